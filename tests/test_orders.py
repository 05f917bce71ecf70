"""The orders in which a prior learns to predict: raster, any, or annealed from any to raster."""

import shutil

import pytest
import torch

from smalti.common import folder
from smalti.common.layout import Layout
from smalti.prior.autoregressive import share_shuffled
from smalti.prior.config import PriorConfig
from smalti.prior.model import load_prior
from smalti.prior.prediction_order import draw_order
from smalti.prior.train import train as train_prior
from smalti.prior.transformer.config import TransformerConfig
from smalti.prior.transformer.model import TransformerPrior
from tests.conftest import prior_training


def test_annealing_goes_from_random_orders_to_raster_order():
    """As in RAR, all rows are shuffled until half of the steps, none from three quarters on, with a linear decrease
    between."""
    assert [share_shuffled("annealed", progress) for progress in (0, 0.5, 0.99)] == [1.0, 1.0, 0.0]
    assert share_shuffled("annealed", 0.6) == pytest.approx(0.6) and share_shuffled("annealed", 0.75) == 0.0
    assert share_shuffled("raster", 0) == 0 and share_shuffled("any", 1) == 1


def test_the_orders_of_a_batch_are_permutations_of_places_depths_side_by_side(prior):
    config = prior.config.model_copy(update={"layout": Layout.of(3, 3, depth=2, factors=(16,))})
    torch.manual_seed(0)
    order = draw_order(64, config.layout, 0.5, torch.device("cpu"))
    assert torch.equal(order.sort(1).values, torch.arange(18).expand(64, 18))
    assert torch.equal(order[:, 1::2], order[:, ::2] + 1) and order[:, ::2].remainder(2).eq(0).all()
    in_raster = order.eq(torch.arange(18)).all(1).float().mean().item()
    assert in_raster == pytest.approx(0.5, abs=0.3)  # within five standard deviations


def test_raster_training_draws_no_orders(prior):
    assert draw_order(4, prior.config.layout, 0.0, torch.device("cpu")) is None


def test_every_order_is_equally_likely(prior):
    """Each of the six orders of three places takes a sixth of 60,000 rows; a share is off by 0.01 with odds below
    1e-9."""
    config = prior.config.model_copy(update={"layout": Layout.of(1, 3, factors=(16,))})
    torch.manual_seed(0)
    order = draw_order(60_000, config.layout, 1.0, torch.device("cpu"))
    shares = torch.bincount(order @ torch.tensor([9, 3, 1])).float() / 60_000
    assert (shares > 0).sum() == 6
    torch.testing.assert_close(shares[shares > 0], torch.full((6,), 1 / 6), atol=0.01, rtol=0)


@pytest.mark.parametrize("order", ["any", "annealed"])
def test_a_resumed_training_sees_the_same_orders(order, finished_run, tmp_path, accelerator):
    """Its weights equal those of the uninterrupted one bit for bit; only a prior left at any order is marked so."""
    codes, weights = str(finished_run / "codes"), []
    for name in ("whole", "killed"):
        run = tmp_path / name
        train_prior(prior_training(run, codes=codes, order=order), accelerator)
        if name == "killed":
            folder.remove(run / "prior/state/step_00000006")
            shutil.rmtree(run / "prior/model")
            train_prior(prior_training(run, codes=codes, order=order), accelerator)
        weights.append((run / "prior/model/model.safetensors").read_bytes())
    assert weights[0] == weights[1]
    assert load_prior(run / "prior/model").config.any_order is (order == "any")


def test_a_preset_gives_its_shape_and_what_stands_beside_it_wins():
    shape = TransformerConfig(preset="343m")
    assert (shape.depth, shape.dim, shape.heads, shape.key_heads) == (24, 1024, 16, 16)
    assert TransformerConfig(preset="343m", depth=3).depth == 3
    assert TransformerConfig(**shape.model_dump()) == shape


@pytest.mark.parametrize(
    "preset, millions",
    [("5m", (4.5, 5.5)), ("14m", (13, 16)), ("38m", (37, 40)), ("111m", (108, 114)), ("343m", (335, 347))],
)
def test_a_preset_has_the_weights_it_is_named_after(preset, millions, prior):
    """The presets are counted with K = 512, and the two shapes of LlamaGen with its 16,384."""
    K = 16384 if preset in ("111m", "343m") else 512
    update = {"architecture": TransformerConfig(preset=preset), "layout": Layout.of(16, 16, factors=(K,))}
    with torch.device("meta"):
        model = TransformerPrior(PriorConfig(**{**prior.config.model_dump(), **update}))
    assert millions[0] < sum(p.numel() for p in model.parameters()) / 1e6 < millions[1]


@pytest.mark.parametrize(
    "settings, message",
    [
        ({"preset": "1b"}, "preset"),
        ({"heads": 4, "kv_heads": 3}, "heads 4 must be a multiple of kv_heads 3"),
        ({"dim": 100, "heads": 8}, "dim 100 must be a multiple of 4 x heads = 32"),
    ],
)
def test_shapes_that_cannot_be_are_refused(settings, message):
    with pytest.raises(ValueError, match=message):
        TransformerConfig(**settings)
