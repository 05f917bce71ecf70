"""A prior for each grid, told of the grids above: exact probabilities, what depends on what, and draws grid after
grid."""

import itertools
import json
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from smalti.common import codes as dataset
from smalti.common.codes import CodesSplit
from smalti.common.codes_info import CodesInfo, TokenizerIdentity
from smalti.common.condition import Classes
from smalti.common.config import build, parse
from smalti.common.errors import UserError
from smalti.common.layout import Grid, Layout
from smalti.common.mixed_radix import to_digits
from smalti.prior.base import Completes, Scores, Walks
from smalti.prior.config import LevelArchitecture, PriorConfig, TrainConfig
from smalti.prior.draw import draw_categorical, image_uniforms
from smalti.prior.levels.config import HintConfig, LevelsConfig
from smalti.prior.levels.model import LevelsPrior, seed_of
from smalti.prior.model import build_prior, load_prior
from smalti.prior.pixelcnn.config import PixelCNNConfig
from smalti.prior.prediction_order import code_order
from smalti.prior.sample import ALIKE
from smalti.prior.sampling_config import SamplingConfig
from smalti.prior.train import train
from smalti.prior.transformer.config import TransformerConfig

TOKENIZER = TokenizerIdentity(name="t", sha256="0" * 64)
HINT = HintConfig(depth=1, dim=16, heads=2, dropout=0.0)
TRANSFORMER = TransformerConfig(depth=2, dim=16, heads=2, dropout=0.0)
PIXELCNN = PixelCNNConfig(depth=2, dim=8, kernel=3, dropout=0.0)
KINDS = {  # of the top and of the rest
    "Transformers": (TRANSFORMER, TRANSFORMER),
    "PixelCNNs": (PIXELCNN, PIXELCNN),
    "a Transformer over PixelCNNs": (TRANSFORMER, PIXELCNN),
    "a PixelCNN over Transformers": (PIXELCNN, TRANSFORMER),
}
of_every_kind = pytest.mark.parametrize("kinds", KINDS.values(), ids=KINDS)


def grids(*shapes: tuple[int, ...], depth: int = 1, factors: tuple[int, ...] = (5,)) -> Layout:
    return Layout(grids=tuple(Grid(shape=shape, depth=depth, factors=factors) for shape in shapes))


TWO = grids((2, 2), (3, 4), depth=2)
LAYOUTS = {
    "two grids": TWO,
    "three grids": grids((1, 1), (1, 2), (2, 4)),
    "codes in parts": grids((1, 2), (2, 2), factors=(2,) * 16),
}
TOY = grids((1, 1), (1, 2), (2, 2), factors=(2,))  # 128 samples
grid_of_toy = TOY.codebook_of()  # of each code, one a place


def make(kinds=KINDS["Transformers"], layout: Layout = TWO, **settings) -> LevelsPrior:
    """Return a prior with two classes, whose weights are far from their beginning: every code depends on all it may."""
    torch.manual_seed(0)
    top, rest = kinds
    architecture = LevelsConfig(top=top, rest=rest, hint=HINT)
    condition = Classes(names=("a", "b"))
    config = PriorConfig(layout=layout, condition=condition, tokenizer=TOKENIZER, architecture=architecture, **settings)
    prior = build_prior(config).eval()
    assert isinstance(prior, LevelsPrior)
    for part in prior.parts:
        torch.nn.init.normal_(part.head.weight, std=0.3)
    for hint in prior.hints:
        torch.nn.init.normal_(hint.out.weight, std=0.3)
    return prior


def codes_of(prior: LevelsPrior, samples: int = 3) -> Tensor:
    noise = torch.Generator().manual_seed(1)
    return torch.randint(prior.config.layout.codebook_size, (samples, prior.config.layout.length), generator=noise)


def every_sample(layout: Layout) -> Tensor:
    return torch.tensor(list(itertools.product(range(layout.codebook_size), repeat=layout.length)))


LABELS = torch.tensor([0, 1, 2])  # 2 means no class


# ------------------------------------------------------------------------------------------------ what depends on what


@of_every_kind
def test_log_probabilities_of_all_samples_sum_to_one(kinds):
    """1e-5: logits are fp32."""
    prior, every = make(kinds, TOY), every_sample(TOY)
    for label in range(3):
        total = prior.log_prob(every, torch.full((len(every),), label)).double().exp().sum()
        assert total.item() == pytest.approx(1, abs=1e-5)


@of_every_kind
@torch.no_grad()
def test_a_grid_depends_on_all_codes_above_it_and_on_none_below(kinds):
    prior = make(kinds, TOY)
    codes = codes_of(prior, 1)
    before = prior(LABELS[:1], codes)
    for t, grid in enumerate(grid_of_toy.tolist()):
        other = codes.clone()
        other[0, t] = 1 - other[0, t]
        moved = (prior(LABELS[:1], other) - before).abs().amax(2)[0] > 1e-6
        assert not moved[: t + 1].any(), f"code {t} is seen before it is predicted"
        assert moved[grid_of_toy > grid].all(), f"code {t} is not seen by all of the grids below it"


@of_every_kind
def test_the_loss_of_a_grid_moves_its_own_prior_and_its_own_hint(kinds):
    prior = make(kinds, TOY)
    codes = codes_of(prior)
    for grid in range(3):
        prior.zero_grad()
        prior.loss(codes, LABELS, prior)[:, grid_of_toy == grid].sum().backward()
        moved = {name.split(".")[0] + name.split(".")[1] for name, p in prior.named_parameters() if _moved(p)}
        assert moved == {f"parts{grid}", *([f"hints{grid - 1}"] if grid else [])}


def _moved(parameter: torch.nn.Parameter) -> bool:
    return parameter.grad is not None and bool(parameter.grad.abs().sum() > 0)


def test_a_hint_is_linear_between_the_places_above():
    """The features of the grids above are interpolated and added: those of one place are the same everywhere."""
    one, several = (make(layout=grids((1, 1), shape, (2, 4))).hints for shape in ((1, 1), (1, 2)))
    assert torch.equal(one[1].interpolation, torch.ones(8, 2))
    assert torch.equal(several[1].interpolation[:4, 1:], torch.tensor([[1, 0], [0.75, 0.25], [0.25, 0.75], [0, 1]]))


@torch.no_grad()
def test_a_hint_is_read_where_its_place_is_predicted_in_every_order():
    """A Transformer's steps before the one that predicts the place do not see its hint; that one and later ones do."""
    fine = make().parts[1]
    codes, order = torch.zeros(1, 24, dtype=torch.int64), torch.arange(11, -1, -1)[None]
    steps, hint = code_order(order, 2), torch.randn(1, 12, 16, generator=torch.Generator().manual_seed(0))
    other = hint.clone()
    other[0, 7] += 1
    moved = (fine(LABELS[:1], codes, steps, other) - fine(LABELS[:1], codes, steps, hint)).abs().amax(2)[0] > 1e-6
    assert torch.equal(moved, torch.arange(24) >= 2 * 4)  # place 7 is the fifth to be predicted


def test_a_fine_grid_that_copies_the_coarse_one_is_learnt():
    """The coarse codes are random; the fine ones are 4 minus the code over them, which the hint alone can tell."""
    prior = make(layout=grids((2, 2), (4, 4))).train()
    coarse = torch.randint(5, (64, 2, 2), generator=torch.Generator().manual_seed(0))
    fine = 4 - coarse.repeat_interleave(2, 1).repeat_interleave(2, 2)
    codes, labels = torch.cat([coarse.flatten(1), fine.flatten(1)], 1), torch.full((64,), 2)
    optimizer = torch.optim.AdamW(prior.parameters(), lr=1e-2)
    for _ in range(25):
        loss = prior.loss(codes, labels, prior)
        optimizer.zero_grad()
        loss.mean().backward()
        optimizer.step()
    assert loss[:, 4:].mean() < 0.1 and loss[:, :4].mean() > 1  # ln 5 = 1.6


# -------------------------------------------------------------------------------------------------- walking and drawing


@of_every_kind
@pytest.mark.parametrize("layout", LAYOUTS.values(), ids=LAYOUTS)
@torch.no_grad()
def test_walking_gives_the_logits_that_the_parallel_forward_gives(kinds, layout):
    """The coder therefore pays what `log_prob` says. 1e-4: fp32 sums in another order."""
    prior = make(kinds, layout)
    codes, found = codes_of(prior), {}

    def choose(logits, t, g):
        found[t, g] = logits
        return to_digits(codes[:, t], prior.vocabularies)[:, g]

    assert torch.equal(prior.walk(LABELS, choose), codes)
    parts = range(len(prior.vocabularies))
    assert list(found) == [(t, g) for t in range(layout.length) for g in parts]
    walked = torch.stack([torch.cat([found[t, g] for g in parts], 1) for t in range(layout.length)], 1)
    torch.testing.assert_close(walked, prior(LABELS, codes), rtol=1e-4, atol=1e-4)


def drawn_without_a_cache(prior, label, seed, config, codes=None, known=None):
    """Draw one sample with the parallel forward alone, which recomputes the whole sequence for every code."""
    layout, found = prior.config.layout, torch.zeros(1, prior.config.layout.length, dtype=torch.int64)
    found = found if codes is None else codes.clone()
    of_grids = [image_uniforms([seed_of(seed, g)], grid.length)[0] for g, grid in enumerate(layout.grids)]
    for t, u in enumerate(torch.cat(of_grids)):
        if known is not None and known[t // layout.depth]:
            continue
        logits = prior(torch.tensor([label]), found)[:, t]
        if config.guidance != 1:
            logits = torch.lerp(prior(torch.tensor([2]), found)[:, t], logits, torch.tensor(config.guidance))
        found[0, t] = draw_categorical(logits, u[None], config)[0]
    return found[0]


@of_every_kind
@pytest.mark.parametrize("guidance", [1.0, 2.0])
@torch.no_grad()
def test_drawing_with_the_cache_draws_what_drawing_without_it_draws(kinds, guidance):
    prior, settings = make(kinds), SamplingConfig(guidance=guidance, temperature=0.8, top_k=4)
    found = prior.sampler(settings, 2)(torch.tensor([0, 1]), [3, 4])
    expected = [drawn_without_a_cache(prior, label, seed, settings) for label, seed in ((0, 3), (1, 4))]
    assert torch.equal(found, torch.stack(expected))


@of_every_kind
@pytest.mark.parametrize("places", [3, 4, 9])
@torch.no_grad()
def test_coarse_codes_are_kept_and_the_rest_is_drawn_given_them(kinds, places):
    """Known are the first of 4 + 12 places: inside the top, all of it, and rows of the grid below."""
    prior = make(kinds)
    codes, known = codes_of(prior, 1), torch.arange(16)[None] < places
    assert prior.heeds(known)
    found = prior.sampler(SamplingConfig())(torch.tensor([1]), [9], codes, known)
    assert torch.equal(found[0, : 2 * places], codes[0, : 2 * places])
    assert torch.equal(found[0], drawn_without_a_cache(prior, 1, 9, SamplingConfig(), codes, known[0]))


def test_what_is_known_further_down_stays_and_is_not_heeded():
    prior, codes = make(), codes_of(make())
    known = torch.tensor([False] * 4 + [True] * 6 + [False] * 6).expand(3, -1)
    assert not prior.heeds(known)
    draw = prior.sampler(SamplingConfig(), 4)
    found = draw(LABELS, range(3), codes, known)
    given = known.repeat_interleave(2, 1)
    assert torch.equal(found[given], codes[given])
    assert torch.equal(found[:, :8], draw(LABELS, range(3))[:, :8])


@of_every_kind
def test_a_sample_is_a_function_of_its_class_and_seed_and_not_of_its_batch(kinds):
    prior = make(kinds)
    draw = prior.sampler(SamplingConfig(), 4)
    labels, seeds = torch.tensor([0, 1, 0, 1, 1]), [5, 6, 2**40, 8, 9]
    together = draw(labels, seeds)
    assert torch.equal(draw(torch.tensor([1, 0]), [8, 2**40]), together[[3, 2]])
    assert len(together.unique(dim=0)) == 5


def test_a_grid_is_drawn_from_other_numbers_than_the_grid_above():
    """With one seed for all grids, those of one shape would repeat the one above them where all codes are as likely."""
    prior = make(layout=grids((2, 4), (2, 4), (2, 4)))
    for part in prior.parts:
        torch.nn.init.zeros_(part.head.weight)
    drawn = prior.sampler(SamplingConfig(), 8)(torch.zeros(8, dtype=torch.int64), range(8)).view(8, 3, 8)
    same = [(drawn[:, a] == drawn[:, b]).double().mean().item() for a, b in ((0, 1), (0, 2), (1, 2))]
    assert max(same) < 0.5  # 1 / 5 by chance


def test_drawn_samples_have_the_probabilities_that_it_says():
    """5 standard errors of 4,000 draws, of 27 samples."""
    layout = grids((1, 1), (1, 2), factors=(3,))
    prior, every = make(KINDS["a PixelCNN over Transformers"], layout), every_sample(layout)
    labels = torch.ones(4000, dtype=torch.int64)
    drawn = prior.sampler(SamplingConfig(precision="fp32"), 1000)(labels, range(4000))
    p = prior.log_prob(every, labels[: len(every)]).double().exp()
    seen = (drawn[:, None] == every).all(-1).double().mean(0)
    assert ((seen - p).abs() <= 5 * (p * (1 - p) / 4000).sqrt() + 1e-9).all()


def test_log_prob_of_the_rest_is_that_of_the_grids_not_known():
    prior = make()
    codes, known = codes_of(prior), (torch.arange(16) < 4).expand(3, -1)
    nats = prior.nats(codes, LABELS, range(3))
    torch.testing.assert_close(prior.log_prob(codes, LABELS, known), -nats[:, 8:].sum(1))
    torch.testing.assert_close(prior.log_prob(codes, LABELS), -nats.sum(1))


# ------------------------------------------------------------------------------------------------------------ as others


@of_every_kind
def test_it_offers_what_evaluation_coder_and_completion_ask_for(kinds):
    prior = make(kinds)
    assert isinstance(prior, Scores) and isinstance(prior, Walks) and isinstance(prior, Completes) and prior.exact


@of_every_kind
def test_what_is_saved_is_loaded(kinds, tmp_path):
    prior = make(kinds, LAYOUTS["three grids"])
    prior.save_pretrained(tmp_path / "prior")
    again = load_prior(tmp_path / "prior")
    assert isinstance(again, LevelsPrior) and again.config == prior.config
    assert torch.equal(again.log_prob(codes_of(prior), LABELS), prior.log_prob(codes_of(prior), LABELS))


def test_every_matrix_of_a_layer_is_moved_by_muon():
    """Those of a Transformer's blocks, of a hint's, and of a PixelCNN's conditions."""
    prior = make(KINDS["a Transformer over PixelCNNs"])
    names = {id(p): name for name, p in prior.named_parameters()}
    found = {names[id(p)] for p in prior.matrices()}
    assert all(p.ndim == 2 for p in prior.matrices()) and not any("embedding" in name for name in found)
    for block in ("parts.0.blocks.1.mlp.down.weight", "parts.1.stacks.layers.1.condition.weight"):
        assert block in found
    assert "hints.0.blocks.0.attention.qkv.weight" in found and "hints.0.out.weight" not in found


def test_recomputing_activations_changes_no_gradient():
    gradients = []
    for recompute in (False, True):
        prior = make().train()
        prior.prepare(TrainConfig(model=prior.architecture, recompute=recompute))
        prior.loss(codes_of(prior), LABELS, prior).mean().backward()
        gradients.append([p.grad for p in prior.parameters() if p.grad is not None])
    torch.testing.assert_close(*gradients)


@pytest.fixture(scope="module")
def run(tmp_path_factory) -> Path:
    """Return a run with codes of 2 x 2 and 4 x 4 places, where each fine code is the one over it."""
    layout, folder = grids((2, 2), (4, 4)), tmp_path_factory.mktemp("levels")
    info = CodesInfo(
        layout=layout, views=1, condition=Classes(names=("a", "b")), tokenizer=TOKENIZER, source={}, shard_size=1000
    )
    dataset.begin_codes(folder / "codes", info)
    splits, draws = {}, np.random.default_rng(0)
    for split, number in (("train", 200), ("validation", 50)):
        coarse = draws.integers(0, 5, (number, 2, 2))
        fine = coarse.repeat(2, 1).repeat(2, 2)
        values = np.concatenate([coarse.reshape(number, -1), fine.reshape(number, -1)], 1).astype(np.uint8)
        said = CodesSplit(values, np.arange(number) % 2, np.arange(number))
        dataset.write_shard(dataset.shard_path(folder / "codes", split, 0, 1), info, said)
        splits[split] = {"rows": number, "sha256": said.digest()}
    dataset.finish(folder / "codes", info, splits)
    return folder


def test_it_is_trained_as_every_other_prior(run, accelerator):
    """The figure is the mean over all codes; the coarse ones are random and cost ln 5."""
    settings = {"steps": 30, "batch_size": 50, "warmup": 5, "evaluate_every": 15, "save_every": 30, "lr": 1e-2}
    model = LevelsConfig(top=PIXELCNN, rest=TRANSFORMER, hint=HINT)
    folder = train(TrainConfig(run=str(run), model=model, precision="fp32", ema_decay=0.9, **settings), accelerator)
    assert isinstance(load_prior(folder), LevelsPrior)
    lines = [json.loads(line) for line in (run / "prior/metrics.jsonl").read_text().splitlines()]
    losses = [line["validation_nll"] for line in lines if "validation_nll" in line]
    assert losses[-1] < losses[0] and losses[-1] < 1 < np.log(5)


# ------------------------------------------------------------------------------------------------------------- settings


def test_the_command_line_chooses_the_kind_of_each_grid():
    given = (
        "--model.kind levels --model.top.kind pixelcnn --model.top.kernel 3 --model.rest.depth 2 --model.hint.dim 64"
    )
    c = parse(TrainConfig, "", given.split())
    assert isinstance(c.model, LevelsConfig) and c.model.hint.dim == 64
    assert c.model.top == PixelCNNConfig(kernel=3) and c.model.rest == TransformerConfig(depth=2)


@pytest.mark.parametrize(
    ("model", "told"),
    [
        ({"top": {"kind": "masked"}}, r"model\.top\.kind must be one of transformer, pixelcnn, got 'masked'"),
        ({"rest": {"kind": "levels"}}, r"model\.rest\.kind must be one of transformer, pixelcnn, got 'levels'"),
        ({"hint": {"dim": 20}}, "dim 20 must be a multiple of 4 x heads = 16"),
        ({"each": {}}, "unknown setting model.each"),
        ({"depth": 3}, "model.depth is a setting of another kind than levels"),
        ({"top": {"kernel": 3}}, "model.top.kernel is a setting of another kind than transformer"),
    ],
)
def test_settings_that_cannot_be_are_refused_by_name(model, told):
    with pytest.raises(UserError, match=told):
        build(TrainConfig, {"model": {"kind": "levels", **model}}, "test")


def test_the_kinds_a_grid_may_have_are_those_that_take_a_hint():
    assert {kind.name() for kind in LevelArchitecture.members()} == {"transformer", "pixelcnn"}


def test_one_grid_is_refused_with_the_kind_that_takes_it():
    with pytest.raises(
        UserError, match=r"levels needs several grids, .* these are 3 x 3 codes .* model.kind transformer"
    ):
        make(layout=Layout.of(3, 3, factors=(5,)))


def test_a_pixelcnn_over_several_grids_is_refused_with_the_kind_that_has_one_for_each():
    config = make().config.model_copy(update={"architecture": PIXELCNN})
    with pytest.raises(UserError, match=r"a PixelCNN needs one grid .* take model.kind levels, .* --model.rest.kind"):
        build_prior(config)


def test_what_a_grids_prior_has_not_is_refused_in_its_own_words():
    prior = make(KINDS["a Transformer over PixelCNNs"])
    with pytest.raises(ValueError, match="precision bf16: a PixelCNN draws in fp32 alone"):
        prior.sampler(SamplingConfig(precision="bf16"))
    with pytest.raises(UserError, match=r"model\.kind pixelcnn has no recompute"):
        prior.prepare(TrainConfig(model=prior.architecture, recompute=True))
    with pytest.raises(ValueError, match="a prior of kind levels is not trained in an order"):
        make(any_order=True)


def test_weights_that_diverged_are_told():
    prior = make()
    prior.parts[1].head.weight.data[0, 0] = float("nan")
    with pytest.raises(UserError, match="became NaN or Inf"):
        prior.sampler(SamplingConfig())(torch.tensor([0]), [0])


def test_one_image_of_a_request_is_drawn_in_as_large_a_batch_as_any_grid_needs():
    """Each grid's prior has its own precision, so that auto says nothing yet of how many rows are computed alike."""
    sampler = make(KINDS["a Transformer over PixelCNNs"]).sampler(SamplingConfig())
    assert sampler.suited(1) == max(ALIKE.values())
