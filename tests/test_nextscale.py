"""The next-scale prior: what a scale sees, exact probabilities, draws scale after scale, and what it learns."""

import itertools
import math

import pytest
import torch
import torch.nn.functional as F

from smalti.common import config
from smalti.common.codes_info import TokenizerIdentity
from smalti.common.condition import Classes, Nothing
from smalti.common.errors import UserError
from smalti.common.layout import Grid, Layout
from smalti.common.mixed_radix import to_digits
from smalti.prior.base import Completes, Scores, Unfolds, Walks
from smalti.prior.config import PriorConfig, TrainConfig
from smalti.prior.groups.drawing import CachedGroups
from smalti.prior.interpolation import between, interpolation
from smalti.prior.model import build_prior, load_prior
from smalti.prior.nextscale.config import NextScaleConfig
from smalti.prior.nextscale.model import NextScalePrior
from smalti.prior.sampling_config import SamplingConfig

TOKENIZER = TokenizerIdentity(name="t", sha256="0" * 64)


def grids(*shapes: tuple[int, ...], depth: int = 1, factors: tuple[int, ...] = (7,)) -> Layout:
    return Layout(grids=tuple(Grid(shape=shape, depth=depth, factors=factors) for shape in shapes))


LAYOUTS = {
    "three scales": grids((1, 1), (2, 2), (4, 4)),
    "not square": grids((1, 2), (3, 4)),
    "a sequence": grids((2,), (5,), (9,)),
    "a block": grids((1, 1, 2), (2, 3, 4)),
    "several codes a place": grids((2, 2), (3, 3), depth=2, factors=(5,)),
    "codes in parts": grids((1, 1), (2, 3), factors=(2,) * 16),
    "codes in parts, several a place": grids((1, 1), (2, 2), depth=2, factors=(2,) * 16),
}
every_layout = pytest.mark.parametrize("layout", LAYOUTS.values(), ids=LAYOUTS)
FP32 = {"precision": "fp32"}


def make(layout=LAYOUTS["three scales"], condition=None, spread=0.5, depth=2, dim=32, **settings) -> NextScalePrior:
    """Return a prior with weights far from their beginning, where every code would be as likely."""
    torch.manual_seed(0)
    prior = build_prior(
        PriorConfig(
            layout=layout,
            condition=Classes(names=("a", "b")) if condition is None else condition,
            tokenizer=TOKENIZER,
            architecture=NextScaleConfig(depth=depth, dim=dim, heads=2, dropout=0.0, **settings),
        )
    ).eval()
    assert isinstance(prior, NextScalePrior)
    torch.nn.init.normal_(prior.head.weight, std=spread)
    for name, parameter in prior.named_parameters():
        if "embedding" in name:
            torch.nn.init.normal_(parameter, std=0.2)
    for block in prior.blocks:
        torch.nn.init.normal_(block.attention.out.weight, std=0.3)
    return prior


def codes_of(prior: NextScalePrior, samples: int = 3) -> torch.Tensor:
    noise = torch.Generator().manual_seed(1)
    return torch.randint(prior.config.layout.codebook_size, (samples, prior.config.layout.length), generator=noise)


def labels_of(samples: int) -> torch.Tensor:
    return torch.arange(samples) % 2


def toy() -> tuple[NextScalePrior, torch.Tensor]:
    """Return a prior over grids of 1 and 2 places with 2 codes, and all 8 samples, (8, 3)."""
    prior = make(grids((1,), (2,), factors=(2,)))
    torch.nn.init.zeros_(prior.head.weight[:2])  # both codes of the first grid are likely
    return prior, torch.tensor(list(itertools.product(range(2), repeat=3)))


def draw(prior: NextScalePrior, samples: int = 6, batch_size: int = 6, first_seed: int = 0, **settings) -> torch.Tensor:
    sampler = prior.sampler(SamplingConfig(**{**FP32, **settings}), batch_size)
    return sampler(labels_of(samples), range(first_seed, first_seed + samples))


def scale_of_codes(layout: Layout) -> torch.Tensor:
    """Return the number of the grid of each code, (T,)."""
    lengths = torch.tensor([grid.length for grid in layout.grids])
    return torch.arange(len(lengths)).repeat_interleave(lengths)


# -------------------------------------------------------------------------------------------------- what a scale sees


@every_layout
def test_a_code_changes_the_features_of_all_finer_grids_and_of_no_other(layout):
    """Not by a bit in grids that must not see it, and at every place of those that do."""
    prior, scales = make(layout), scale_of_codes(layout)
    codes, labels = codes_of(prior, 1), labels_of(1)
    before, of_places = prior.features(labels, codes), scales[:: layout.depth]
    for t in range(layout.length):
        other = codes.clone()
        other[0, t] = (other[0, t] + 1) % layout.codebook_size
        moved = (prior.features(labels, other) != before).any(2)[0]
        assert torch.equal(moved, of_places > scales[t])


@every_layout
def test_no_gradient_flows_from_a_grid_to_the_embeddings_of_its_own_and_finer_codes(layout):
    prior, scales, embedded = make(layout), scale_of_codes(layout), []
    prior.code_embedding.register_forward_hook(lambda module, given, found: embedded.append(found))  # (1, T', G, C)
    features = prior.features(labels_of(1), codes_of(prior, 1))
    for s in range(len(layout.grids)):
        of_grid = features[:, scales[:: layout.depth] == s].sum()
        (gradient,) = torch.autograd.grad(of_grid, embedded, retain_graph=True)
        seen = gradient[0].abs().amax((1, 2)) > 0
        assert torch.equal(seen, (scales < s)[: len(seen)])


def test_every_place_is_told_of_the_class():
    prior = make()
    codes = codes_of(prior, 1)
    moved = prior.features(torch.tensor([0]), codes) != prior.features(torch.tensor([1]), codes)
    assert moved.any(2).all()


@pytest.mark.parametrize(
    "shape, to, mode", [((3,), (7,), "linear"), ((2, 3), (5, 4), "bilinear"), ((1, 2, 2), (3, 2, 5), "trilinear")]
)
def test_interpolation_is_the_linear_one_of_torch(shape, to, mode):
    """1e-6: two sums of fp32 numbers in another order."""
    x = torch.randn(1, 4, *shape, generator=torch.Generator().manual_seed(0))
    expected = F.interpolate(x, size=to, mode=mode, align_corners=False).flatten(2)
    torch.testing.assert_close(x.flatten(2) @ between(shape, to).T, expected, atol=1e-6, rtol=0)


def test_a_place_sums_all_coarser_grids_whose_weights_are_one_in_all():
    found = interpolation(grids((1, 1), (2, 2), (3, 4), (2, 2, 2)[:2]))
    assert torch.equal(found[:1], torch.zeros(1, 21))
    torch.testing.assert_close(found.sum(1), torch.tensor([0.0] + 4 * [1.0] + 12 * [2.0] + 4 * [3.0]))


def test_each_grid_has_its_own_embeddings_and_head():
    prior = make(grids((1, 1), (2, 2), depth=2, factors=(5,)))
    assert len(prior.code_embedding.weight) == len(prior.head.weight) == 4 * 5


# ------------------------------------------------------------------------------------------------------ probabilities


def test_the_probabilities_of_all_samples_sum_to_one():
    """1e-5: they are sums of fp32 logarithms."""
    prior, every = toy()
    for label in range(3):
        total = prior.log_prob(every, torch.full((8,), label)).exp().sum().item()
        assert total == pytest.approx(1, abs=1e-5)


def test_codes_of_a_grid_are_independent_given_those_before_and_not_without_them():
    prior, every = toy()
    joint = prior.log_prob(every, torch.zeros(8, dtype=torch.int64)).exp().view(2, 2, 2)
    given = joint / joint.sum((1, 2), keepdim=True)
    torch.testing.assert_close(given, given.sum(2, keepdim=True) * given.sum(1, keepdim=True), atol=1e-6, rtol=0)
    free = joint.sum(0)
    assert (free - free.sum(1, keepdim=True) * free.sum(0, keepdim=True)).abs().max() > 1e-3


@every_layout
def test_log_prob_is_minus_the_sum_of_nats_and_known_codes_cost_nothing(layout):
    prior = make(layout)
    codes, labels = codes_of(prior), labels_of(3)
    nats = prior.nats(codes, labels, range(3))
    assert nats.shape == codes.shape
    torch.testing.assert_close(prior.log_prob(codes, labels), -nats.sum(1))
    known = torch.rand(3, layout.places, generator=torch.Generator().manual_seed(0)) < 0.5
    left = nats.masked_fill(known.repeat_interleave(layout.depth, 1), 0)
    torch.testing.assert_close(prior.log_prob(codes, labels, known), -left.sum(1))
    assert prior.log_prob(codes, labels, torch.ones_like(known)).abs().max() == 0


def test_the_first_loss_is_ln_k():
    prior = make()
    torch.nn.init.zeros_(prior.head.weight)
    loss = prior.loss(codes_of(prior), labels_of(3), prior)
    torch.testing.assert_close(loss, torch.full_like(loss, math.log(7)))


def test_draws_have_the_probabilities_that_it_says():
    """4,000 draws: each of 8 frequencies lies within 5 standard deviations of its probability."""
    prior, every = toy()
    drawn = prior.sampler(SamplingConfig(**FP32), 1000)(torch.zeros(4000, dtype=torch.int64), range(4000))
    expected = prior.log_prob(every, torch.zeros(8, dtype=torch.int64)).exp()
    found = (drawn[:, None] == every).all(2).float().mean(0)
    assert ((found - expected).abs() < 5 * (expected * (1 - expected) / 4000).sqrt()).all()


# ------------------------------------------------------------------------------------------------------------ drawing


@every_layout
@pytest.mark.parametrize("precision, tolerance", [("fp32", 1e-4), ("bf16", 0.1)])
def test_the_cache_gives_the_features_that_recomputing_all_scales_gives(layout, precision, tolerance):
    """1e-4: sums of fp32 numbers in another order; 0.1: bf16 has 8 bits, and features have a deviation of 1."""
    prior = make(layout)
    codes, labels, Q = codes_of(prior), labels_of(3), layout.depth
    network, told = CachedGroups(prior, 3, precision), prior.class_embedding(labels)
    read, found = torch.zeros(3, layout.places, 32), []
    with torch.inference_mode():
        for s, scale in enumerate(prior.groups):
            found.append(network.features(network.inputs(told, read, s), s).view(3, -1, 32))
            read[:, scale] = prior.embedded(codes[:, scale.start * Q : scale.stop * Q], scale.start)
    torch.testing.assert_close(
        torch.cat(found, 1), prior.features(labels, codes).detach(), atol=tolerance, rtol=tolerance
    )


@every_layout
@pytest.mark.parametrize("guidance", [1.0, 2.0])
def test_a_sample_is_a_function_of_its_label_and_seed(layout, guidance):
    prior = make(layout)
    whole = draw(prior, guidance=guidance)
    assert whole.shape == (6, layout.length) and (whole >= 0).all() and (whole < layout.codebook_size).all()
    assert torch.equal(whole, draw(prior, guidance=guidance, batch_size=4))
    sampler = prior.sampler(SamplingConfig(**FP32, guidance=guidance), 2)
    assert torch.equal(whole[3:5], sampler(torch.tensor([1, 0]), [3, 4]))
    assert not torch.equal(whole, draw(prior, guidance=guidance, first_seed=100))


def test_draws_in_bf16_are_codes_too():
    drawn = draw(make(), precision="bf16")
    assert (drawn >= 0).all() and (drawn < 7).all()


def test_seeds_beyond_32_bits_are_others():
    prior = make()
    assert not torch.equal(draw(prior, first_seed=1), draw(prior, first_seed=1 + 2**32))


def test_watching_the_scales_settles_one_after_the_other_and_ends_with_the_sample():
    prior = make()
    frames = list(prior.unfold(SamplingConfig(**FP32), labels_of(6), range(6)))
    assert [frame.settled.sum(1).unique().tolist() for frame in frames] == [[1], [5], [21]]
    assert torch.equal(frames[-1].latents, draw(prior))
    for frame in frames:
        assert torch.equal(frame.latents[frame.settled], frames[-1].latents[frame.settled])
        assert (frame.latents[~frame.settled] == 0).all()


def test_truncation_and_temperature_are_heeded():
    prior = make(spread=2.0)
    likeliest = draw(prior, temperature=1e-6)
    for settings in ({"top_k": 1}, {"top_p": 1e-6}, {"min_p": 1.0}):
        assert torch.equal(draw(prior, **settings), likeliest)
    assert torch.equal(likeliest, draw(prior, temperature=1e-6, first_seed=50))


def test_guidance_of_one_is_none_and_more_leans_towards_the_class():
    prior = make(spread=1.0)
    assert torch.equal(draw(prior), draw(prior, guidance=1.0))
    plain, led = (draw(prior, guidance=scale, samples=200, batch_size=200) for scale in (1.0, 4.0))
    nats = [-prior.log_prob(each, labels_of(200)) for each in (plain, led)]
    none = [-prior.log_prob(each, torch.full((200,), 2)) for each in (plain, led)]
    assert (none[1] - nats[1]).mean() > (none[0] - nats[0]).mean()  # the class explains more of what it led to


def test_rising_guidance_is_none_at_the_first_scale_and_whole_at_the_last():
    prior = make(spread=1.0)
    plain, rising, constant = (
        draw(prior, samples=50, batch_size=50, guidance=scale, guidance_schedule=schedule)
        for scale, schedule in ((1.0, "constant"), (6.0, "linear"), (6.0, "constant"))
    )
    assert torch.equal(rising[:, 0], plain[:, 0]) and not torch.equal(rising[:, 5:], plain[:, 5:])
    assert not torch.equal(constant[:, 0], plain[:, 0])
    known = torch.arange(21) < 5  # given the same coarse grids, both schedules draw the last one alike
    last = [
        prior.sampler(SamplingConfig(**FP32, guidance=6.0, guidance_schedule=schedule), 50)(
            labels_of(50), range(50), plain, known.expand(50, -1)
        )
        for schedule in ("linear", "constant")
    ]
    assert torch.equal(*last)


def test_known_codes_stay_and_finer_grids_are_drawn_given_them():
    prior = make(spread=2.0)
    codes, known = codes_of(prior, 6), torch.rand(6, 21, generator=torch.Generator().manual_seed(0)) < 0.5
    known[0], known[1] = True, False
    sampler = prior.sampler(SamplingConfig(**FP32), 4)
    drawn = sampler(labels_of(6), range(6), codes, known)
    assert torch.equal(drawn[known], codes[known])
    other = torch.where(known, codes, (codes + 1) % 7)  # what is not known is not read
    assert torch.equal(drawn, sampler(labels_of(6), range(6), other, known))
    known = (torch.arange(21) < 5).expand(6, -1)
    first = sampler(labels_of(6), range(6), codes, known)
    assert not torch.equal(first[:, 5:], sampler(labels_of(6), range(6), (codes + 1) % 7, known)[:, 5:])


def test_what_is_kept_of_a_sample_leads_to_the_same_sample():
    """Uniforms belong to seed and place, whatever is known."""
    prior = make()
    whole = draw(prior)
    again = prior.sampler(SamplingConfig(**FP32), 6)(
        labels_of(6), range(6), whole, (torch.arange(21) < 5).expand(6, -1)
    )
    assert torch.equal(whole, again)


def test_it_heeds_what_is_known_unless_it_lies_in_a_finer_grid_than_what_is_drawn():
    prior, places = make(), torch.arange(21)
    assert prior.heeds((places < 5)[None]) and prior.heeds((places < 0)[None]) and prior.heeds((places < 21)[None])
    assert prior.heeds(((places < 1) | (places == 3))[None]), "places of a grid do not see each other"
    assert not prior.heeds((places == 3)[None]) and not prior.heeds((places != 2)[None])
    assert not prior.heeds(torch.stack([places < 5, places >= 5]))
    assert "finer grid" in prior.unheeded and not prior.heeds_all


# ------------------------------------------------------------------------------------------------------------ walking


@every_layout
def test_the_walk_asks_for_each_part_of_each_code_once_and_in_order(layout):
    prior, asked = make(layout), []
    prior.walk(torch.tensor([0, 1]), lambda logits, t, g: asked.append((t, g)) or logits.argmax(1))
    assert asked == [(t, g) for t in range(layout.length) for g in range(len(prior.vocabularies))]


@every_layout
def test_walking_over_codes_gives_them_back_with_their_nats(layout):
    """1e-3: the cache and the parallel forward round their sums differently."""
    prior = make(layout)
    codes, labels = codes_of(prior), labels_of(3)
    digits, nats = to_digits(codes, prior.vocabularies), torch.zeros(codes.shape)

    def choose(logits, t, g):
        nats[:, t] -= logits.log_softmax(-1).gather(1, digits[:, t, g, None])[:, 0]
        return digits[:, t, g]

    assert torch.equal(prior.walk(labels, choose), codes)
    torch.testing.assert_close(nats, prior.nats(codes, labels, range(3)), atol=1e-3, rtol=1e-3)


def test_a_decoder_meets_the_logits_of_the_encoder_bit_for_bit():
    prior = make()
    codes, sent, met = codes_of(prior), [], []
    prior.walk(labels_of(3), lambda logits, t, g: sent.append(logits.clone()) or codes[:, t])
    back = prior.walk(labels_of(3), lambda logits, t, g: met.append(logits.clone()) or codes[:, t])
    assert torch.equal(back, codes) and all(map(torch.equal, sent, met))


# ----------------------------------------------------------------------------------------------------------- learning


def test_it_learns_that_the_fine_grid_copies_the_coarse_one():
    """A sample costs ln 4 a coarse place at least, 5.55 nats; codes of the fine grid alone would cost 22 more."""
    torch.manual_seed(0)
    prior = make(grids((2, 2), (4, 4), factors=(4,)), condition=Nothing(), dim=32).train()
    torch.nn.init.zeros_(prior.head.weight)
    optimizer = torch.optim.Adam(prior.parameters(), 1e-2)
    for _ in range(60):
        coarse = torch.randint(4, (64, 2, 2))
        fine = coarse.repeat_interleave(2, 1).repeat_interleave(2, 2)
        loss = prior.loss(prior.config.layout.join([coarse, fine]), torch.zeros(64, dtype=torch.int64), prior)
        optimizer.zero_grad()
        loss.sum(1).mean().backward()
        optimizer.step()
    assert loss.sum(1).mean() < 4 * math.log(4) + 1


def test_recomputing_activations_changes_no_gradient():
    prior = make().train()
    codes, labels, gradients = codes_of(prior), labels_of(3), []
    for recompute in (False, True):
        prior.recompute = recompute
        prior.zero_grad()
        prior.loss(codes, labels, prior).mean().backward()
        gradients.append(prior.code_embedding.weight.grad.clone())
    torch.testing.assert_close(*gradients)


def test_every_weight_gets_a_gradient():
    prior = make()
    prior.loss(codes_of(prior), labels_of(3), prior).mean().backward()
    assert all(parameter.grad is not None and parameter.grad.abs().sum() > 0 for parameter in prior.parameters())


# ---------------------------------------------------------------------------------------------- settings and protocols


def test_it_offers_what_evaluation_coder_completion_and_page_ask_for():
    prior = make()
    for protocol in (Scores, Walks, Completes, Unfolds):
        assert isinstance(prior, protocol)
    assert prior.exact


def test_it_is_saved_and_loaded(tmp_path):
    prior = make()
    prior.save_pretrained(tmp_path / "model")
    again = load_prior(tmp_path / "model")
    assert type(again) is NextScalePrior and torch.equal(draw(prior), draw(again.eval()))


def test_settings_of_other_kinds_are_refused_by_name():
    prior = make()
    for name, value in (("steps", 4), ("order", "halton"), ("solver", "ddim")):
        with pytest.raises(ValueError, match=f"{name} is no setting of a prior of kind nextscale"):
            prior.sampler(SamplingConfig(**{name: value}))
    with pytest.raises(ValueError, match="no precision int8"):
        prior.sampler(SamplingConfig(precision="int8"))


def test_weights_that_are_not_finite_are_named():
    prior = make()
    torch.nn.init.constant_(prior.head.weight, torch.nan)
    with pytest.raises(UserError, match="NaN or Inf"):
        draw(prior)


@pytest.mark.parametrize(
    "layout, message",
    [
        (
            Layout.of(4, 4, factors=(7,)),
            "needs several, coarse first; .* one grid: take --model.kind nextset or masked",
        ),
        (Layout.of(4, 4, depth=3), "is over codes, and a sample is 4 x 4 vectors of 3"),
    ],
)
def test_layouts_that_are_not_codes_on_several_grids_are_refused(layout, message):
    with pytest.raises(UserError, match=message):
        make(layout)


def test_an_order_of_training_is_refused():
    with pytest.raises(ValueError, match="is not trained in an order of one's choice"):
        TrainConfig(model=NextScaleConfig(), order="any")


def test_a_width_that_heads_do_not_divide_is_refused():
    with pytest.raises(ValueError, match="dim 36 must be a multiple of 4 x heads = 16"):
        NextScaleConfig(dim=36, heads=4)


def test_the_help_of_training_lists_it(capsys):
    with pytest.raises(SystemExit):
        config.parse(TrainConfig, "", ["--model.kind", "nextscale", "--help"])
    assert "nextscale" in capsys.readouterr().out
