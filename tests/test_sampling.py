"""Sampling draws exactly from the prior's distribution, in any batches, and around known codes."""

import math

import pytest
import torch
from scipy.stats import chi2

from smalti.common.codes_info import TokenizerIdentity
from smalti.common.condition import Classes
from smalti.common.errors import UserError
from smalti.common.layout import Grid, Layout
from smalti.common.mixed_radix import to_digits, to_index
from smalti.prior.base import Prior
from smalti.prior.config import PriorConfig
from smalti.prior.draw import draw_categorical, guidance_scales, image_uniforms
from smalti.prior.fast.matrix import GAINS, make_matrix, resolve
from smalti.prior.prediction_order import code_order, known_first, raster, shuffled
from smalti.prior.sample import BATCH, fitting_batch
from smalti.prior.sampling_config import SamplingConfig
from smalti.prior.transformer.config import PRESETS, TransformerConfig
from smalti.prior.transformer.fast.cached import CachedTransformer, CountedStep, NumberedStep
from smalti.prior.transformer.fast.graph import lengths
from smalti.prior.transformer.model import TransformerPrior
from smalti.prior.transformer.network import own_rows
from tests.conftest import sample

FP32 = SamplingConfig(precision="fp32")


def make_prior(architecture: TransformerConfig | None = None, **settings) -> Prior:
    """Return a prior with random weights, head included; by default two blocks over 3 x 3 codes of 16 with three
    classes."""
    torch.manual_seed(0)
    shape = {
        "layout": Layout.of(3, 3, factors=(16,)),
        "condition": Classes(names=("a", "b", "c")),
        "tokenizer": TokenizerIdentity(name="test", sha256="0" * 64),
        "architecture": architecture or TransformerConfig(depth=2, dim=32, heads=2, dropout=0.0),
    }
    prior = TransformerPrior(PriorConfig(**{**shape, **settings})).eval()
    torch.nn.init.normal_(prior.head.weight, std=0.3)
    torch.nn.init.normal_(prior.target_embedding, std=0.2)
    for name, parameter in prior.named_parameters():
        if "norm" in name:
            torch.nn.init.uniform_(parameter, 0.5, 1.5)
    return prior


def random_codes(prior: Prior, images: int, seed: int = 0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(
        0, prior.config.layout.codebook_size, (images, prior.config.layout.length), generator=generator
    )


def two_grids(depth: int, factors: tuple[int, ...]) -> Layout:
    coarse, fine = (Grid(shape=shape, depth=depth, factors=factors) for shape in ((1, 2), (2, 2)))
    return Layout(grids=(coarse, fine))


@torch.no_grad()
def decoded(
    prior: Prior,
    labels: torch.Tensor,
    codes: torch.Tensor,
    *,
    order: torch.Tensor | None = None,
    start: int = 0,
    precision: str = "fp32",
    counted: bool = False,
) -> torch.Tensor:
    """Return the logits (B, T - start, V) of steps start, ..., T - 1, each from the cache; earlier steps are read at
    once."""
    decoder, B = CachedTransformer(prior, len(codes), precision), len(codes)
    codebooks = prior.config.layout.codebook_of()
    ordered = codes if order is None else codes.gather(1, order)
    places = raster(B, prior.config.layout.length, codes.device) if order is None else order
    target, own = 1 + places, own_rows(places)
    x = prior.inputs(labels, ordered[:, :-1], order)
    if start:
        decoder.prefill(x[:, :start], target[:, :start], own[:, :start])
    found, digits = [], to_digits(ordered, prior.vocabularies)
    for n in range(start, prior.config.layout.length):
        step = CountedStep(torch.tensor([n]), decoder.slots) if counted else NumberedStep(n)
        hidden = decoder.step(x[:, n].clone(), decoder.turns(target[:, n], own[:, n]), step)
        before = [list(digits[:, n, :g].unbind(-1)) for g in range(len(prior.vocabularies))]
        codebook = int(codebooks[n]) if order is None else codebooks[places[:, n]]
        found.append(torch.cat([decoder.logits(hidden, codebook, parts) for parts in before], dim=-1))
    return torch.stack(found, dim=1)


# ------------------------------------------------------------------------------------------------- cached = recomputed

SHAPES = {
    "one code a place": {},
    "two codes a place": {"layout": Layout.of(3, 2, depth=2, factors=(16,))},
    "codes in parts": {"layout": Layout.of(2, 2, depth=2, factors=(16, 16, 16, 8))},
    "a wide grid": {"layout": Layout.of(2, 5, factors=(16,))},
    "two grids": {"layout": Layout(grids=(Grid(shape=(1, 2), factors=(16,)), Grid(shape=(2, 4), factors=(16,))))},
    "two grids of two codes": {"layout": two_grids(2, (16,))},
    "two grids in parts": {"layout": two_grids(2, (16, 16, 16, 8))},
    "a sequence": {"layout": Layout.of(7, depth=2, factors=(16,))},
    "a block": {"layout": Layout.of(2, 3, 3, factors=(16,))},
    "grouped heads": {"architecture": TransformerConfig(depth=2, dim=64, heads=4, kv_heads=2)},
    "one head of keys": {"architecture": TransformerConfig(depth=2, dim=64, heads=4, kv_heads=1)},
}


@pytest.fixture(params=SHAPES.values(), ids=SHAPES)
def any_prior(request):
    return make_prior(**request.param)


@pytest.mark.parametrize("start", [0, 1, 3])
@pytest.mark.parametrize("ordered", [False, True], ids=["raster", "any order"])
@torch.no_grad()
def test_the_cache_gives_the_logits_that_recomputing_the_prefix_gives(any_prior, ordered, start):
    """This holds in any order, wherever the part that is read at once ends."""
    codes, c, labels = random_codes(any_prior, 4), any_prior.config, torch.tensor([0, 2, 3, 1])
    order = (
        code_order(shuffled(4, c.layout.places, torch.Generator().manual_seed(1)), c.layout.depth) if ordered else None
    )
    expected = any_prior(labels, codes, order)[:, start:]
    found = decoded(any_prior, labels, codes, order=order, start=start)
    torch.testing.assert_close(found, expected, atol=1e-4, rtol=1e-4)  # fp32 rounding


@torch.no_grad()
def test_the_input_of_a_step_is_its_row_of_all_inputs(any_prior):
    """A walk embeds one code a step. Equal by the bit, since files that walked over all inputs must still expand."""
    codes, labels, c = random_codes(any_prior, 4), torch.tensor([0, 2, 3, 1]), any_prior.config
    hint = torch.randn(4, c.layout.places, any_prior.hint_dim)
    for given in (None, hint):
        every = any_prior.inputs(labels, codes[:, :-1], None, given)
        steps = [any_prior.input_of_step(n, labels, codes[:, n - 1], given) for n in range(c.layout.length)]
        assert torch.equal(torch.stack(steps, dim=1), every)


LARGE = ("111m", "343m")  # once each


@pytest.mark.parametrize(
    "preset, grouped",
    [(preset, grouped) for preset in PRESETS for grouped in ((True,) if preset in LARGE else (False, True))],
)
@torch.no_grad()
def test_the_cache_is_exact_for_every_preset(preset, grouped):
    """Two blocks of each preset's width and heads run on a small grid, with and without grouped heads of keys and two
    codes a place: all its blocks would take seconds and gigabytes."""
    kv_heads = PRESETS[preset]["heads"] // 2 if grouped else None
    architecture = TransformerConfig(preset=preset, depth=2, kv_heads=kv_heads, dropout=0.0)
    prior = make_prior(architecture, layout=Layout.of(2, 3, depth=1 + grouped, factors=(64,)))
    labels, codes = torch.tensor([0, 3]), random_codes(prior, 2)
    # fp32 rounding
    torch.testing.assert_close(decoded(prior, labels, codes), prior(labels, codes), atol=1e-4, rtol=1e-4)


def test_the_step_a_graph_captures_is_the_step(any_prior):
    """The step counted on the device attends to the whole masked cache; the numbered step to a slice of it."""
    labels, codes = torch.tensor([0, 2, 3, 1]), random_codes(any_prior, 4)
    numbered, counted = (decoded(any_prior, labels, codes, counted=counted) for counted in (False, True))
    torch.testing.assert_close(counted, numbered, atol=1e-4, rtol=1e-4)  # fp32 rounding


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_captured_graphs_draw_what_single_steps_draw(any_prior):
    labels, seeds = torch.tensor([0, 1, 2, 3], device="cuda"), [1, 2, 3, 4]
    sampler = any_prior.cuda().sampler(FP32, 4)
    graphed = sampler(labels, seeds)
    sampler._batch.graphs = None
    assert torch.equal(sampler(labels, seeds), graphed)


def test_lengths_of_the_cache_end_with_all_of_it():
    assert lengths(16) == [16] and lengths(64) == [64] and lengths(256) == [64, 128, 192, 256]
    assert lengths(4096) == [512 * i for i in range(1, 9)] and all(n % 8 == 0 for n in lengths(576))


@pytest.mark.parametrize("precision, largest", [("bf16", 0.05), ("int8", 0.1)])
def test_coarser_weights_move_the_logits_by_little(precision, largest):
    """The error is a root mean square in standard deviations of the logits: 8 bits of mantissa, or 254 steps a row."""
    prior = make_prior(TransformerConfig(depth=4, dim=128, heads=4))
    labels, codes = torch.arange(8) % 4, random_codes(prior, 8)
    exact, coarse = decoded(prior, labels, codes), decoded(prior, labels, codes, precision=precision)
    error = (coarse - exact).square().mean().sqrt() / exact.std()
    assert 0 < error < largest


@pytest.mark.parametrize("precision", ["fp32", "bf16", "int8"])
@pytest.mark.parametrize("rows", [1, 3, 16])
@pytest.mark.parametrize("inputs", [40, 64])
def test_a_packed_matrix_multiplies_any_number_of_rows(precision, rows, inputs):
    """It is laid out for one number of rows. torch's int8 kernel ends the process on 40 inputs, so we do not call it
    there."""
    generator = torch.Generator().manual_seed(0)
    weight, x = torch.randn(24, inputs, generator=generator), torch.randn(7, inputs, generator=generator)
    matrix = make_matrix(weight, rows, precision)
    for some in (x, x[:rows], x[:1]):
        error = (matrix(some).float() - some @ weight.T).abs().max()
        assert error < {"fp32": 1e-5, "bf16": 0.15, "int8": 0.3}[precision]  # sums of `inputs` products of about 1


# ----------------------------------------------------------------------------------------------- what is drawn, exactly


def chi_square_surprise(counts: torch.Tensor, probabilities: torch.Tensor) -> float:
    """Return the odds that counts (n,) differ this much from probabilities (n,). Rare cells are pooled."""
    expected = probabilities * counts.sum()
    rare = expected < 5
    if rare.any():
        counts = torch.cat([counts[~rare], counts[rare].sum()[None]])
        expected = torch.cat([expected[~rare], expected[rare].sum()[None]])
    statistic = ((counts - expected).square() / expected).sum().item()
    return float(chi2.sf(statistic, len(counts) - 1))


def all_sequences(K: int, T: int) -> torch.Tensor:
    return torch.cartesian_prod(*[torch.arange(K)] * T)


@pytest.mark.parametrize("precision", ["fp32", "auto"])
def test_draws_have_the_distribution_of_the_prior(precision):
    """20,000 draws of three codes of four are compared with the exact probabilities of all 64 images: a right sampler
    fails with odds of 1e-6, and the seeds are fixed. (Where auto means bf16, it moves probabilities by less than 20,000
    draws can show.)"""
    prior = make_prior(layout=Layout.of(1, 3, factors=(4,)))
    images = all_sequences(4, 3)
    exact = prior.log_prob(images, torch.ones(64, dtype=torch.int64)).double().exp()
    assert exact.sum().item() == pytest.approx(1, abs=1e-5)
    config = SamplingConfig(precision=precision)
    drawn = sample(prior, torch.ones(20_000, dtype=torch.int64), range(20_000), config, batch_size=2000)
    counts = torch.bincount(drawn @ torch.tensor([16, 4, 1]), minlength=64).double()
    assert chi_square_surprise(counts, exact) > 1e-6


def test_completions_have_the_distribution_of_the_prior_given_what_is_known():
    """The last of four codes is known: 20,000 draws of the others are compared with the 64 exact conditional
    probabilities, which an any-order prior defines; odds of a false alarm 1e-6, seeds fixed."""
    prior = make_prior(layout=Layout.of(2, 2, factors=(4,)), any_order=True)
    images = torch.cat([all_sequences(4, 3), torch.full((64, 1), 2)], dim=1)
    known = torch.tensor([[False, False, False, True]])
    labels = torch.ones(64, dtype=torch.int64)
    exact = prior.log_prob(images, labels, known.expand(64, 4)).double().exp()
    assert exact.sum().item() == pytest.approx(1, abs=1e-5)
    n = 20_000
    drawn = prior.sampler(FP32, 2000)(
        torch.ones(n, dtype=torch.int64), range(n), torch.full((n, 4), 2), known.expand(n, 4)
    )
    assert (drawn[:, 3] == 2).all()
    counts = torch.bincount(drawn[:, :3] @ torch.tensor([16, 4, 1]), minlength=64).double()
    assert chi_square_surprise(counts, exact) > 1e-6


def test_a_wrong_distribution_is_noticed():
    """The test above can fail: it tells draws at a temperature of 0.9 from the prior's."""
    prior = make_prior(layout=Layout.of(1, 3, factors=(4,)))
    exact = prior.log_prob(all_sequences(4, 3), torch.ones(64, dtype=torch.int64)).double().exp()
    config = SamplingConfig(temperature=0.9, precision="fp32")
    drawn = sample(prior, torch.ones(20_000, dtype=torch.int64), range(20_000), config, batch_size=2000)
    counts = torch.bincount(drawn @ torch.tensor([16, 4, 1]), minlength=64).double()
    assert chi_square_surprise(counts, exact) < 1e-6


# --------------------------------------------------------------------------------------------------- an image is itself


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_an_image_does_not_change_by_a_bit_with_its_place_in_the_batch(any_prior, precision):
    config, n = SamplingConfig(precision=precision), 8
    labels, seeds = torch.arange(n) % 4, list(range(100, 100 + n))
    together = sample(any_prior, labels, seeds, config, batch_size=n)
    for rows in (torch.arange(n).flip(0), torch.tensor([5]), torch.tensor([7, 2, 2])):
        elsewhere = sample(any_prior, labels[rows], [seeds[i] for i in rows.tolist()], config, batch_size=n)
        assert torch.equal(elsewhere, together[rows])


def test_a_request_is_drawn_in_the_fewest_batches_alike(prior):
    """A batch has no fewer rows than those from which a product computes each as among many."""
    sampler, guided = prior.sampler(FP32), prior.sampler(FP32.model_copy(update={"guidance": 2.0}))
    assert [sampler.suited(images) for images in (1, 5, 64, 65, 100, 129)] == [4, 5, 64, 33, 50, 43]
    assert [guided.suited(images) for images in (1, 5)] == [2, 5]
    assert prior.sampler(FP32, 8).suited(1) == 8


def test_bf16_keeps_matrices_in_fp32_that_few_rows_multiply_sooner_so():
    """A step of single images of a small prior took longer in bf16 than in fp32."""
    torch.manual_seed(0)
    for outputs, rows, exact in ((1408, 1, True), (1408, 4, True), (1408, 8, False), (2816, 1, False)):
        weight, x = torch.randn(outputs, 256), torch.randn(rows, 256)
        found, expected = make_matrix(weight, rows, "bf16")(x).double(), x.double() @ weight.double().T
        assert ((found - expected).abs().max() < 1e-3) == exact  # bf16 rounds products of deviation 16 by about 0.1


def test_another_batch_size_changes_draws_by_rounding_alone(any_prior):
    """In at most one of 64 images rounding moves a cumulative probability across its uniform number."""
    labels, seeds = torch.arange(64) % 4, range(64)
    one, many = (sample(any_prior, labels, seeds, FP32, batch_size=size) for size in (1, 64))
    assert (one != many).any(1).sum() <= 1


def test_a_completed_image_does_not_change_with_its_neighbours(any_prior):
    """This holds even if their masks differ."""
    c = any_prior.config
    known = (
        torch.rand(6, c.layout.places, generator=torch.Generator().manual_seed(0)) < torch.linspace(0, 1, 6)[:, None]
    )
    labels, seeds, codes = torch.arange(6) % 4, list(range(6)), random_codes(any_prior, 6)
    for any_order in (False, True):
        prior = TransformerPrior(c.model_copy(update={"any_order": any_order})).eval()
        prior.load_state_dict(any_prior.state_dict())
        sampler = prior.sampler(FP32, 4)
        together = sampler(labels, seeds, codes, known)
        alone = torch.cat(
            [sampler(labels[i : i + 1], seeds[i : i + 1], codes[i : i + 1], known[i : i + 1]) for i in range(6)]
        )
        assert torch.equal(together, alone)


# ------------------------------------------------------------------------------------------------- around what is known


@pytest.mark.parametrize("any_order", [False, True])
def test_what_is_known_is_kept_and_the_rest_is_drawn(any_order):
    prior = make_prior(any_order=any_order, layout=Layout.of(3, 3, depth=2, factors=(16,)))
    codes, known = random_codes(prior, 32), torch.rand(32, 9, generator=torch.Generator().manual_seed(2)) < 0.5
    drawn = prior.sampler(FP32, 32)(torch.zeros(32, dtype=torch.int64), range(32), codes, known)
    given = known.repeat_interleave(2, 1)
    assert torch.equal(drawn[given], codes[given])
    assert (drawn != codes)[~given].float().mean() > 0.5


def test_nothing_known_is_sampling_and_all_known_is_the_image(any_prior):
    labels, codes, sampler = torch.zeros(4, dtype=torch.int64), random_codes(any_prior, 4), any_prior.sampler(FP32, 4)
    known = torch.zeros(4, any_prior.config.layout.places, dtype=torch.bool)
    assert torch.equal(sampler(labels, range(4), codes, known), sampler(labels, range(4)))
    assert torch.equal(sampler(labels, range(4), codes, ~known), codes)


def test_only_a_prior_of_any_order_heeds_what_comes_later():
    """The last code is known with one value or another: only an any-order prior changes the first codes."""
    labels, seeds = torch.zeros(64, dtype=torch.int64), range(64)
    known = torch.arange(9).eq(8).expand(64, 9)
    for any_order in (False, True):
        prior = make_prior(any_order=any_order)
        one, other = (prior.sampler(FP32, 64)(labels, seeds, torch.full((64, 9), k), known) for k in (3, 12))
        assert torch.equal(one[:, :8], other[:, :8]) is not any_order


@torch.no_grad()
@pytest.mark.parametrize("guidance", [1.0, 2.0])
@pytest.mark.parametrize("factors", [(16,), (16, 16, 16, 8)], ids=["codes", "codes in parts"])
def test_in_any_order_over_several_grids_the_likeliest_codes_are_drawn(factors, guidance):
    """The images' masks differ, so that a step predicts codes of one grid in some and of the other in others."""
    prior = make_prior(any_order=True, layout=two_grids(2, factors))
    labels, codes = torch.arange(8) % 3, random_codes(prior, 8)
    known = torch.rand(8, 6, generator=torch.Generator().manual_seed(2)) < 0.5
    settings = SamplingConfig(temperature=1e-6, guidance=guidance, precision="fp32")
    drawn = prior.sampler(settings, 8)(labels, range(8), codes, known)
    order = code_order(known_first(known), 2)
    with_class, without = prior(labels, drawn, order), prior(torch.full((8,), 3), drawn, order)
    parts = torch.lerp(without, with_class, torch.tensor(guidance)).split(list(prior.vocabularies), dim=-1)
    likeliest = to_index(torch.stack([part.argmax(-1) for part in parts], -1), prior.vocabularies)
    unknown = ~known.repeat_interleave(2, 1)
    assert torch.equal(torch.empty_like(drawn).scatter(1, order, likeliest)[unknown], drawn[unknown])


def test_upper_rows_known_are_completed_alike_in_either_order():
    """Known-first order and raster order are then the same, so the draws are too."""
    codes, known = random_codes(make_prior(), 16), torch.arange(9).lt(3).expand(16, 9)
    labels = torch.zeros(16, dtype=torch.int64)
    drawn = [
        make_prior(any_order=any_order).sampler(FP32, 16)(labels, range(16), codes, known)
        for any_order in (False, True)
    ]
    assert torch.equal(*drawn)


@torch.no_grad()
def test_a_code_cannot_be_seen_before_its_turn_in_any_order():
    prior = make_prior()
    codes, order = random_codes(prior, 4), shuffled(4, 9, torch.Generator().manual_seed(3))
    changed = codes.scatter(1, order[:, 5:], (codes.gather(1, order[:, 5:]) + 1) % 16)
    labels = torch.zeros(4, dtype=torch.int64)
    before, after = prior(labels, codes, order), prior(labels, changed, order)
    torch.testing.assert_close(before[:, :6], after[:, :6])
    assert not torch.allclose(before[:, 6:], after[:, 6:])


@torch.no_grad()
def test_raster_order_is_one_of_the_orders():
    prior = make_prior(layout=Layout.of(3, 3, depth=2, factors=(16,)))
    labels, codes = torch.zeros(4, dtype=torch.int64), random_codes(prior, 4)
    order = code_order(raster(4, 9, codes.device), 2)
    torch.testing.assert_close(prior(labels, codes, order), prior(labels, codes))


def test_known_places_come_first_each_in_raster_order():
    known = torch.tensor([[False, True, False, True], [True, True, True, True]])
    assert known_first(known).tolist() == [[1, 3, 0, 2], [0, 1, 2, 3]]
    assert code_order(known_first(known), 2)[0].tolist() == [2, 3, 6, 7, 0, 1, 4, 5]


def test_in_any_order_the_unknown_is_a_distribution_given_the_known():
    """Seven of 3 x 3 codes are known: the probabilities of the 256 completions sum to one."""
    prior = make_prior(any_order=True)
    codes = random_codes(prior, 1).expand(256, 9).clone()
    codes[:, [1, 6]] = torch.cartesian_prod(torch.arange(16), torch.arange(16))
    known = torch.ones(256, 9, dtype=torch.bool)
    known[:, [1, 6]] = False
    log_prob = prior.log_prob(codes, torch.ones(256, dtype=torch.int64), known)
    assert log_prob.double().exp().sum().item() == pytest.approx(1, abs=1e-5)


def test_a_raster_prior_is_not_asked_in_another_order():
    codes, order = torch.zeros(1, 9, dtype=torch.int64), torch.arange(9)[None]
    with pytest.raises(ValueError, match="an order is for a prior trained with order: any"):
        make_prior().log_prob(codes, codes[:, 0], order=order)


# ------------------------------------------------------------------------------------------------------------- settings


def test_guidance_schedules_go_from_none_to_all():
    """RAR's power-cosine is 1 + (s - 1) (1 - cos(pi r^p)) / 2."""
    for schedule in ("constant", "linear", "power-cosine"):  # a single pass is the last: it had no guidance by two
        assert guidance_scales(SamplingConfig(guidance=3.0, guidance_schedule=schedule), 1).tolist() == [3.0]
    constant = guidance_scales(SamplingConfig(guidance=3.0), 5)
    linear = guidance_scales(SamplingConfig(guidance=3.0, guidance_schedule="linear"), 5)
    cosine = guidance_scales(SamplingConfig(guidance=3.0, guidance_schedule="power-cosine", guidance_power=2.0), 5)
    assert constant.tolist() == [3.0] * 5
    torch.testing.assert_close(linear, torch.tensor([1.0, 1.5, 2.0, 2.5, 3.0]))
    torch.testing.assert_close(cosine[[0, 2, 4]], torch.tensor([1.0, 2 - math.cos(math.pi / 4), 3.0]))


def test_without_guidance_no_row_is_computed_twice():
    prior = make_prior()
    for guidance, rows in ((1.0, 4), (2.0, 8)):
        sampler = prior.sampler(SamplingConfig(guidance=guidance), 4)
        sampler(torch.zeros(4, dtype=torch.int64), range(4))
        assert sampler._batch.decoder.rows == rows


def test_guided_draws_follow_the_guided_distribution():
    """20,000 first codes at guidance 3 are compared with softmax(u + 3 (c - u)); odds of a false alarm 1e-6, seeds
    fixed."""
    prior = make_prior(layout=Layout.of(1, 1, factors=(8,)))
    with torch.no_grad():
        c, u = prior(torch.tensor([1, 3]), torch.zeros(2, 1, dtype=torch.int64))[:, 0].double()
    config = SamplingConfig(guidance=3.0, precision="fp32")
    drawn = sample(prior, torch.ones(20_000, dtype=torch.int64), range(20_000), config, batch_size=4000)
    assert chi_square_surprise(torch.bincount(drawn[:, 0], minlength=8).double(), (u + 3 * (c - u)).softmax(0)) > 1e-6


@pytest.mark.parametrize("min_p, allowed", [(0.0, {0, 1, 2, 3}), (0.1, {0, 1, 3}), (0.2, {1, 3}), (1.0, {1})])
def test_min_p_keeps_codes_a_share_as_likely_as_the_likeliest(min_p, allowed):
    logits = torch.tensor([[0.0, 2.0, -1.0, 1.0]]).expand(2_000, 4)  # relative to the likeliest 0.14, 1, 0.05, 0.37
    assert set(draw_categorical(logits, image_uniforms([0], 2_000)[0], SamplingConfig(min_p=min_p)).tolist()) == allowed


# ------------------------------------------------------------------------------------------------------------ bad input


def around(codes: torch.Tensor, known: torch.Tensor) -> dict[str, torch.Tensor]:
    return {"latents": codes, "known": known}


CODES, KNOWN = torch.zeros(2, 9, dtype=torch.int64), torch.ones(2, 9, dtype=torch.bool)


@pytest.mark.parametrize(
    "call, message",
    [
        ({"seeds": [5, 6, 7]}, "one seed an image: got 2 images and 3 seeds"),
        ({"condition": torch.tensor([0, 4])}, r"labels must lie in \[0, 3\], got 0 to 4"),
        ({"known": KNOWN}, "latents and known are given together"),
        (around(torch.zeros(2, 16, dtype=torch.int64), KNOWN), r"the 3 x 3 codes of 16 .*got \(2, 16\)"),
        (around(CODES, KNOWN.view(2, 3, 3)), r"known must be bool \(2, 9\)"),
        (around(CODES, KNOWN.float()), r"known must be bool \(2, 9\)"),
        (around(CODES + 16, KNOWN), r"codes must lie in \[0, 16\), got 16"),
    ],
)
def test_what_cannot_be_drawn_is_refused(call, message):
    with pytest.raises(ValueError, match=message):
        make_prior().sampler(FP32, 2)(**{"condition": torch.tensor([0, 1]), "seeds": [5, 6], **call})


@pytest.mark.parametrize(
    "settings, batch_size, message",
    [({"top_k": 17}, 1, "top_k 17 is more than the 16 codes"), ({}, 0, "batch_size must be at least 1, got 0")],
)
def test_settings_that_cannot_be_are_refused(settings, batch_size, message):
    with pytest.raises(ValueError, match=message):
        make_prior().sampler(SamplingConfig(**settings), batch_size)


@pytest.mark.parametrize("value", [torch.nan, torch.inf])
def test_a_prior_whose_weights_are_not_finite_is_refused(prior, value):
    """Searching a cumulative distribution of NaN ends beyond the last code; on a GPU this index ends the process."""
    prior.head.weight.data[3, 0] = value
    with pytest.raises(UserError, match="logits became NaN or Inf"):
        prior.sampler(SamplingConfig())(torch.tensor([0, 1]), [0, 1])


def test_top_k_of_codes_in_parts_is_at_most_the_values_of_a_part():
    """Of a codebook of 2^18 codes, two parts of at most 1024, a top_k of 2000 masked nothing."""
    layout, identity = Layout.of(1, 2, factors=(2,) * 18), TokenizerIdentity(name="test", sha256="0" * 64)
    small = TransformerConfig(depth=1, dim=16, heads=2)
    prior = TransformerPrior(
        PriorConfig(layout=layout, condition=Classes(names=("a",)), tokenizer=identity, architecture=small)
    )
    most = max(prior.config.vocabularies)
    with pytest.raises(ValueError, match=f"top_k {most + 1} is more than the {most} values of each of the 2 parts"):
        prior.sampler(SamplingConfig(top_k=most + 1))
    prior.sampler(SamplingConfig(top_k=most))


def test_int8_is_refused_where_it_has_no_kernel():
    with pytest.raises(ValueError, match="precision int8 is for CPUs, got cuda"):
        resolve("int8", torch.device("cuda"), GAINS)


@pytest.mark.parametrize(
    "device, largest, computes, expected",
    [
        ("cpu", GAINS, True, "bf16"),
        ("cpu", GAINS - 1, True, "fp32"),
        ("cpu", GAINS, False, "fp32"),
        ("cuda", 1, True, "bf16"),
        ("cuda", GAINS, False, "fp32"),
    ],
)
def test_auto_is_bf16_where_the_hardware_computes_it_and_matrices_gain_by_it(
    monkeypatch, device, largest, computes, expected
):
    monkeypatch.setattr("smalti.prior.fast.matrix.computes_bf16", lambda kind: computes)
    assert resolve("auto", torch.device(device), largest) == expected


def test_when_memory_is_full_the_batch_is_halved_and_said_so(monkeypatch):
    """Memory holds attention over three rows only: the batch goes from 8 to 4 to 2."""
    attention = torch.nn.functional.scaled_dot_product_attention

    def cramped(q, *others, **settings):
        if len(q) > 3:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return attention(q, *others, **settings)

    prior, labels, seeds = make_prior(), torch.arange(5) % 3, list(range(5))
    expected = sample(prior, labels, seeds, FP32, batch_size=2)
    monkeypatch.setattr(torch.nn.functional, "scaled_dot_product_attention", cramped)
    sampler = prior.sampler(FP32, 8)
    with pytest.warns(UserWarning, match="memory is full: going on with batches of"):
        drawn = sampler(labels, seeds)
    assert sampler.batch_size == 2 and torch.equal(drawn, expected)


def test_batches_are_as_large_as_free_memory_holds(monkeypatch):
    import psutil

    shape = {"architecture": TransformerConfig(preset="343m"), "layout": Layout.of(24, 24, factors=(16384,))}
    with torch.device("meta"):
        large = TransformerPrior(make_prior().config.model_copy(update=shape))
    sizes = []
    for gibibytes in (1, 8, 2000):
        monkeypatch.setattr(psutil, "virtual_memory", lambda free=gibibytes: type("", (), {"available": free * 2**30}))
        sizes.append(fitting_batch(large, SamplingConfig(), "fp32"))
    cache = 2 * 24 * 1024 * 576 * 4  # bytes for each image
    assert sizes[0] < sizes[1] < sizes[2] == BATCH["cpu"]
    assert sizes[1] * cache < 4 * 2**30
