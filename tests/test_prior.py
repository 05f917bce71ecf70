"""The prior: a causal distribution over codes, sampled exactly."""

import math

import numpy as np
import pytest
import torch

from smalti.common.condition import Nothing
from smalti.common.layout import Grid, Layout
from smalti.common.mixed_radix import to_index
from smalti.prior.base import Prior
from smalti.prior.baselines import marginal_nll, uniform_nll
from smalti.prior.code_head import nll_each
from smalti.prior.draw import draw_categorical, image_uniforms
from smalti.prior.layers import RMSNorm
from smalti.prior.prediction_order import code_order, shuffled
from smalti.prior.rotary import rotary_angles
from smalti.prior.sampling_config import SamplingConfig
from smalti.prior.transformer.layers import causal_attention
from smalti.prior.transformer.model import TransformerPrior
from tests.conftest import sample


@pytest.fixture
def codes():
    return torch.randint(0, 16, (4, 9), generator=torch.Generator().manual_seed(0))


LABELS = torch.tensor([0, 2, 3, 1])  # 3 means no class
DEEP = Layout(grids=(Grid(shape=(1, 2), depth=2, factors=(16,)), Grid(shape=(2, 2), depth=2, factors=(16,))))
SHAPES = {
    "one code a place": {},
    "two codes a place": {"layout": Layout.of(3, 2, depth=2, factors=(16,))},
    "codes in parts": {"layout": Layout.of(2, 2, depth=2, factors=(16, 16, 16, 8))},
    "two grids": {"layout": Layout(grids=(Grid(shape=(1, 2), factors=(16,)), Grid(shape=(2, 3), factors=(16,))))},
    "two grids of two codes": {"layout": DEEP},
    "a sequence": {"layout": Layout.of(7, factors=(16,))},
    "a block": {"layout": Layout.of(2, 2, 2, factors=(16,))},
}


@pytest.fixture(params=SHAPES.values(), ids=SHAPES)
def any_prior(prior, request):
    """Return the prior of `prior` for each shape of codes."""
    torch.manual_seed(0)
    model = TransformerPrior(prior.config.model_copy(update=request.param)).eval()
    torch.nn.init.normal_(model.head.weight)
    return model


def some_codes(prior: Prior) -> torch.Tensor:
    generator = torch.Generator().manual_seed(0)
    return torch.randint(0, prior.config.layout.codebook_size, (4, prior.config.layout.length), generator=generator)


def test_a_code_cannot_be_seen_before_it_is_predicted(prior, codes):
    changed = codes.clone()
    changed[:, 5:] = (changed[:, 5:] + 1) % 16
    before, after = prior(LABELS, codes), prior(LABELS, changed)
    torch.testing.assert_close(before[:, :6], after[:, :6])
    assert not torch.allclose(before[:, 6:], after[:, 6:])


def test_every_code_is_seen_by_all_that_follow(prior, codes):
    changed = codes.clone()
    changed[:, 2] = (changed[:, 2] + 1) % 16
    difference = (prior(LABELS, codes) - prior(LABELS, changed)).abs().amin(dim=(0, 2))
    assert (difference[3:] > 0).all()


def test_plain_attention_is_the_fused_one():
    q, k, v = torch.randn(3, 2, 4, 7, 8, generator=torch.Generator().manual_seed(0)).unbind(0)
    fused = torch.nn.functional.scaled_dot_product_attention(q, k, v, is_causal=True)
    torch.testing.assert_close(causal_attention(q, k, v), fused)


@pytest.mark.parametrize("size", [(5, 32), (2, 3, 7, 16)])
def test_the_norm_on_a_cpu_is_torchs(size):
    """Its value and both gradients equal torch's: it is the same formula in fewer passes."""
    torch.manual_seed(0)
    x, norm = torch.randn(size, requires_grad=True), RMSNorm(size[-1])
    torch.nn.init.uniform_(norm.weight, 0.5, 1.5)
    gradient = torch.randn(size)
    expected = torch.nn.functional.rms_norm(x, size[-1:], norm.weight, norm.eps)
    wanted = torch.autograd.grad(expected, (x, norm.weight), gradient)
    found = torch.autograd.grad(norm(x), (x, norm.weight), gradient)
    torch.testing.assert_close(norm(x), expected)
    torch.testing.assert_close(found, wanted)


def test_logits_are_fp32_under_autocast(prior, codes):
    with torch.autocast("cpu", torch.bfloat16):
        logits = prior(LABELS, codes)
    assert logits.dtype == torch.float32 and not torch.equal(logits, logits.bfloat16().float())


def test_an_untrained_prior_is_uniform(any_prior):
    """Its head starts at zero, so training starts at ln K and not above, also if a code is predicted in parts."""
    untrained, c = TransformerPrior(any_prior.config), any_prior.config
    expected = torch.full((4,), c.layout.length * math.log(c.layout.codebook_size))
    torch.testing.assert_close(-untrained.log_prob(some_codes(untrained), LABELS), expected)


def test_a_large_code_of_digits_is_predicted_in_parts_and_a_table_is_not(prior):
    def vocabularies(*factors):
        return prior.config.model_copy(update={"layout": Layout.of(3, 3, factors=factors)}).vocabularies

    assert vocabularies(*(2,) * 18) == (1024, 256)
    assert vocabularies(8, 5, 5, 5) == (1000,)
    assert vocabularies(2**18) == (2**18,)


def test_the_parts_of_a_code_are_a_distribution(prior):
    """p(code) = p(first part) p(second part | first) sums to one over all 32,768 codes of the first place."""
    config = prior.config.model_copy(update={"layout": Layout.of(1, 2, factors=(512, 64))})
    torch.manual_seed(0)
    model = TransformerPrior(config).eval()
    torch.nn.init.normal_(model.head.weight)
    codes = torch.stack([torch.arange(32768), torch.zeros(32768, dtype=torch.int64)], dim=1)
    labels = torch.ones(32768, dtype=torch.int64)
    nll = torch.cat(
        [
            nll_each(model(a, b), b, config.vocabularies)
            for a, b in zip(labels.split(4096), codes.split(4096), strict=True)
        ]
    )
    assert nll[:, 0].neg().exp().sum().item() == pytest.approx(1, abs=1e-4)  # fp32, 32,768 terms


def test_each_depth_has_an_embedding_and_a_head_of_its_own(prior):
    deep = TransformerPrior(prior.config.model_copy(update={"layout": Layout.of(3, 3, depth=2, factors=(16,))})).eval()
    assert deep.code_embedding.num_embeddings == 2 * 16 and deep.head.weight.shape == (2 * 16, 32)
    same = torch.full((1, 2), 5)
    first, second = (deep.code_embedding(row) for row in (same + deep.first_rows[:2, 0])[0])
    assert torch.equal(first, deep.code_embedding.weight[5]) and torch.equal(second, deep.code_embedding.weight[16 + 5])


@pytest.mark.parametrize("ordered", [False, True], ids=["raster", "any order"])
def test_each_grid_has_embeddings_and_a_head_of_its_own(prior, ordered):
    """The loss of the fine grid's codes moves its own rows of the head, and the embeddings of what stands before them:
    a code of two grids means two things."""
    model = TransformerPrior(prior.config.model_copy(update={"layout": DEEP}))
    torch.nn.init.normal_(model.head.weight)
    codes, labels = torch.full((3, 12), 5), torch.tensor([0, 1, 2])
    order = (
        code_order(shuffled(3, 6, torch.Generator().manual_seed(0)), 2) if ordered else torch.arange(12).expand(3, -1)
    )
    logits = model(labels, codes, order if ordered else None)
    nll_each(logits, codes, model.vocabularies)[order >= 4].sum().backward()  # the coarse grid has 4 codes
    moved = model.head.weight.grad.abs().sum(1).view(4, 16) > 0  # of each codebook
    assert not moved[:2].any() and moved[2:].all()
    read = model.code_embedding.weight.grad.abs().sum(1).view(4, 16) > 0
    assert read[:, 5].all() and read.sum() == 4


def test_codes_that_mean_the_opposite_in_another_grid_are_learnt(prior):
    """Each of the fine grid's codes is 15 minus the one above it: certain, where the coarse grid is known."""
    grids = (Grid(shape=(1, 2), factors=(16,)), Grid(shape=(2, 2), factors=(16,)))
    torch.manual_seed(0)
    model = TransformerPrior(prior.config.model_copy(update={"layout": Layout(grids=grids)}))
    coarse = torch.randint(16, (64, 2))
    codes, labels = torch.cat([coarse, 15 - coarse, 15 - coarse], 1), torch.full((64,), 3)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    for _ in range(150):
        loss = model.loss(codes, labels, model)[:, 2:].mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert loss.item() < 0.1 < math.log(16) / 10


def test_the_depths_of_a_place_share_its_position(prior):
    """Inputs 1 + 2 i and 2 + 2 i are the two codes of place i; input 0 is the class."""
    flat, deep = (rotary_angles(Layout.of(3, 3, depth=depth, factors=(16,)), 16) for depth in (1, 2))
    assert torch.equal(deep[0], flat[0])
    assert torch.equal(deep[1::2], flat[1:]) and torch.equal(deep[2::2], flat[1:])


def test_log_probabilities_of_all_images_sum_to_one(prior):
    """The test enumerates 16² sequences of two codes; by causality the rest is marginalised."""
    pairs = torch.cartesian_prod(torch.arange(16), torch.arange(16))
    codes = torch.cat([pairs, torch.zeros(256, 7, dtype=torch.int64)], dim=1)
    labels = torch.ones(256, dtype=torch.int64)
    log_prob = -nll_each(prior(labels, codes), codes, prior.vocabularies)[:, :2].sum(1)
    assert log_prob.exp().sum().item() == pytest.approx(1, abs=1e-5)


def test_rotary_positions_are_two_dimensional(prior):
    """Codes in one row share half of their angles, codes in one column the other half; the class is not rotated."""
    angles = rotary_angles(prior.config.layout, 16)
    quarter = angles.shape[1] // 2
    at = {(i, j): angles[1 + 3 * i + j] for i in range(3) for j in range(3) if 1 + 3 * i + j < 9}
    assert angles[0].eq(0).all()
    assert torch.equal(at[0, 0][:quarter], at[0, 2][:quarter]) and torch.equal(at[0, 1][quarter:], at[1, 1][quarter:])
    assert not torch.equal(at[0, 0][:quarter], at[1, 0][:quarter])


def test_a_greedy_draw_is_the_likeliest_code_given_those_before(any_prior):
    """At a vanishing temperature every part of every code is the argmax of its teacher-forced logits."""
    drawn = sample(any_prior, LABELS, [1, 2, 3, 4], SamplingConfig(temperature=1e-6), batch_size=4)
    parts = any_prior(LABELS, drawn).split(list(any_prior.vocabularies), dim=-1)
    assert torch.equal(to_index(torch.stack([part.argmax(-1) for part in parts], -1), any_prior.vocabularies), drawn)


def test_draws_follow_the_softmax():
    """In 20,000 draws of 4 codes a share differs from its probability by more than 0.02 with odds below 1e-7."""
    logits = torch.tensor([[0.0, 2.0, -1.0, 1.0]]).expand(20_000, 4)
    u = image_uniforms([0], 20_000)[0]
    frequency = torch.bincount(draw_categorical(logits, u, SamplingConfig()), minlength=4) / len(u)
    torch.testing.assert_close(frequency, logits[0].softmax(0), atol=0.02, rtol=0)


@pytest.mark.parametrize(
    "settings, allowed",
    [
        ({"top_k": 2}, {1, 3}),
        ({"top_p": 0.6}, {1}),  # the probabilities are 0.09, 0.64, 0.03, 0.24
        ({"top_p": 0.7}, {1, 3}),
        ({"top_p": 1.0, "top_k": 4}, {0, 1, 2, 3}),
        ({"temperature": 1e-3}, {1}),
    ],
)
def test_truncation_keeps_the_likeliest_codes(settings, allowed):
    logits = torch.tensor([[0.0, 2.0, -1.0, 1.0]]).expand(2_000, 4)
    drawn = draw_categorical(logits, image_uniforms([0], 2_000)[0], SamplingConfig(**settings))
    assert set(drawn.tolist()) == allowed


def test_the_ends_of_the_uniform_draw_codes_that_are_possible():
    logits = torch.tensor([[-torch.inf, 0.0, 0.0, -torch.inf]]).expand(2, 4)
    assert draw_categorical(logits, torch.tensor([2.0**-24, 1.0]), SamplingConfig()).tolist() == [1, 2]


def test_guidance_leans_from_no_class_towards_the_class(prior):
    """At 0 the class has no effect; at 1 there is no second forward; far above 1 the classes separate."""
    labels, seeds = torch.tensor([0, 1]), [3, 3]

    def drawn(guidance: float) -> torch.Tensor:
        return sample(prior, labels, seeds, SamplingConfig(guidance=guidance), batch_size=2)

    none = sample(prior, torch.tensor([3]), [3], SamplingConfig(), batch_size=2)
    assert torch.equal(drawn(0.0), none.expand(2, 9))
    assert not torch.equal(*drawn(4.0))


def test_an_unconditional_prior_refuses_guidance(prior):
    unconditional = TransformerPrior(prior.config.model_copy(update={"condition": Nothing()}))
    assert sample(unconditional, torch.tensor([0]), [1], SamplingConfig()).shape == (1, 9)
    with pytest.raises(ValueError, match="unconditional"):
        sample(unconditional, torch.tensor([0]), [1], SamplingConfig(guidance=2.0))


def test_log_prob_refuses_codes_it_was_not_trained_for(prior):
    with pytest.raises(ValueError, match=r"codes must be \(B, 9\), .*got \(1, 8\)"):
        prior.log_prob(torch.zeros(1, 8, dtype=torch.int64), torch.zeros(1, dtype=torch.int64))
    with pytest.raises(ValueError, match=r"codes must lie in \[0, 16\), got 16 to 16"):
        prior.log_prob(torch.full((1, 9), 16), torch.zeros(1, dtype=torch.int64))


def test_the_priors_without_training():
    assert uniform_nll(512) == pytest.approx(math.log(512))
    codes = np.random.default_rng(0).integers(0, 4, (10_000, 8))
    assert marginal_nll(codes, codes, Layout.of(8, factors=(4,))) == pytest.approx(math.log(4), abs=1e-3)
    assert marginal_nll(np.zeros((1000, 8), int), np.zeros((5, 8), int), Layout.of(8, factors=(4,))) < 0.01


def test_independent_codes_are_counted_at_each_depth():
    """If the first depth is always 0 and the second always 1, both are certain, though each code makes up half of
    all."""
    codes = np.tile([0, 1], (1000, 4))
    assert marginal_nll(codes, codes, Layout.of(4, depth=2, factors=(4,))) < 0.01
    assert marginal_nll(codes, codes, Layout.of(8, factors=(4,))) == pytest.approx(math.log(2), abs=0.01)


def test_independent_codes_are_counted_in_each_grid():
    """The coarse grid is always 0 and the finer one always 1: both are certain. In one grid, a quarter would be 0."""
    codes = np.tile([0, 1, 1, 1], (1000, 1))
    two = Layout(grids=(Grid(shape=(1,), factors=(4,)), Grid(shape=(3,), factors=(4,))))
    assert marginal_nll(codes, codes, two) < 0.01
    assert marginal_nll(codes, codes, Layout.of(4, factors=(4,))) == pytest.approx(0.5623, abs=0.01)
