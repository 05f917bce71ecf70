"""Conditions: their contract, and a kind declared only here that passes through dataset, prior and sampler."""

import json
from typing import Any, ClassVar, Literal

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from smalti.common import codes
from smalti.common.codes_info import CodesInfo, TokenizerIdentity
from smalti.common.condition import (
    Classes,
    Condition,
    Nothing,
    condition_in_format_1,
    condition_of,
    condition_of_format_1,
)
from smalti.common.config import Settings
from smalti.common.errors import UserError
from smalti.common.layout import Layout
from smalti.prior.config import PriorConfig
from smalti.prior.data import CodesRows
from smalti.prior.model import build_prior, load_prior
from smalti.prior.pixelcnn.config import PixelCNNConfig
from smalti.prior.sampling_config import SamplingConfig
from smalti.prior.transformer.config import TransformerConfig

CLASSES = Classes(names=("cat", "dog"))


class Told(Settings):
    condition: Condition


class Weight(Condition):
    kind: Literal["toy_weight"] = "toy_weight"
    """the weight of a sample, a number"""
    column: ClassVar[str | None] = "weight"

    def feature(self) -> Any:
        from datasets import Value

        return Value("float64")

    def check_column(self, values: np.ndarray) -> None:
        if (values < 0).any():
            raise ValueError(f"weights must be positive, got {values.min()}")

    def check(self, condition: Tensor) -> None:
        if condition.ndim != 2 or condition.shape[1] != 2:
            raise ValueError(f"weights must be (B, 2), got {tuple(condition.shape)}")

    def none(self, samples: int, device: torch.device | str | None = None) -> Tensor:
        return torch.zeros(samples, 2, device=device)

    def of_column(self, values: np.ndarray) -> Tensor:
        weight = torch.from_numpy(values).float()
        return torch.stack([weight, torch.ones_like(weight)], 1)

    def lacking(self, values: np.ndarray) -> np.ndarray:
        return np.isnan(values)

    def nats(self, condition: Tensor) -> Tensor:
        return torch.zeros(len(condition), dtype=torch.float64)

    def embedding(self, dim: int) -> nn.Module:
        return nn.Linear(2, dim, bias=False)


@pytest.fixture(autouse=True)
def weight():
    Condition.kinds["toy_weight"] = Weight
    yield
    del Condition.kinds["toy_weight"]


def weighed(folder) -> codes.Codes:
    info = CodesInfo(
        layout=Layout.of(3, 3, factors=(8,)),
        views=1,
        condition=Weight(),
        tokenizer=TokenizerIdentity(name="t", sha256="0" * 64),
        source={},
        shard_size=16,
    )
    drawn = np.random.default_rng(0).integers(0, 8, (16, 9))
    codes.begin_codes(folder, info)
    codes.write_shard(
        codes.shard_path(folder, "train", 0, 1), info, codes.CodesSplit(drawn, np.linspace(1, 5, 16), np.arange(16))
    )
    codes.finish(folder, info, {"train": {"rows": 16}})
    return codes.load_codes(folder)


@pytest.mark.parametrize("shape", [TransformerConfig(depth=1, dim=16, heads=2), PixelCNNConfig(depth=1, dim=16)])
def test_a_condition_that_is_no_class_goes_from_the_dataset_through_a_prior_and_back(shape, tmp_path):
    torch.manual_seed(0)  # without it all four conditions are hidden once in sixteen times, and none has a gradient
    data = weighed(tmp_path / "codes")
    prior = build_prior(PriorConfig.over(data.info, shape, hidden=0.5))
    batch = CodesRows(data.splits["train"], prior.config)[torch.arange(4), torch.zeros(4)]
    assert batch.condition[:, 0].tolist() == pytest.approx([1, 1 + 4 / 15, 1 + 8 / 15, 1 + 12 / 15])
    nn.init.normal_(prior.head.weight)
    prior.loss(batch.codes, data.info.condition.hide(batch.condition, 0.5), prior).mean().backward()
    assert prior.class_embedding.weight.grad.abs().sum() > 0
    prior.save_pretrained(tmp_path / "prior")
    kept = load_prior(tmp_path / "prior").eval()
    light, heavy = (kept.log_prob(batch.codes, torch.tensor([[w, 1.0]]).expand(4, 2)) for w in (1.0, 100.0))
    assert not torch.allclose(light, heavy)
    drawn = kept.sampler(SamplingConfig(guidance=2.0), 2)(batch.condition, [0, 1, 2, 3])
    assert drawn.shape == (4, 9)
    with pytest.raises(ValueError, match=r"weights must be \(B, 2\), got \(4,\)"):
        kept.log_prob(batch.codes, torch.zeros(4, dtype=torch.int64))


def test_a_column_that_is_not_the_conditions_is_refused_with_its_file(tmp_path):
    data = weighed(tmp_path / "codes")
    path = codes.shard_path(tmp_path / "codes", "train", 0, 1)
    split = data.splits["train"]
    codes.write_shard(path, data.info, split._replace(condition=-np.ones(16)))
    with pytest.raises(UserError, match=rf"{path.name}: weights must be positive, got -1"):
        codes.load_codes(tmp_path / "codes")


def test_hiding_replaces_a_share_of_the_samples_by_none_and_nothing_else():
    torch.manual_seed(0)
    labels = torch.zeros(10_000, dtype=torch.int64)
    hidden = CLASSES.hide(labels, 0.25)
    # Seven standard deviations
    assert set(hidden.tolist()) == {0, 2} and (hidden == 2).float().mean() == pytest.approx(0.25, abs=0.03)
    assert torch.equal(CLASSES.hide(labels, 0.0), labels)


def test_rows_without_a_class_and_sets_without_classes_are_told_of_nothing():
    assert CLASSES.of_rows(np.array([1, -1, 0]), 3).tolist() == [1, 2, 0]
    assert CLASSES.of_rows(None, 2).tolist() == [2, 2]
    assert Nothing().of_rows(np.array([1, 1]), 2).tolist() == [0, 0]


def test_a_class_costs_what_telling_it_apart_takes_and_none_costs_nothing():
    assert CLASSES.nats(torch.tensor([0, 1, 2])).tolist() == pytest.approx([np.log(2), np.log(2), 0])


@pytest.mark.parametrize("condition", [Nothing(), CLASSES])
def test_what_format_1_said_of_classes_is_read_as_a_condition(condition):
    said = condition_in_format_1(condition)
    read = Told.model_validate_json(json.dumps(condition_of_format_1(said)))
    assert read.condition == condition


def test_a_set_with_classes_has_them_as_its_condition():
    assert condition_of(None) == Nothing() and condition_of(["cat", "dog"]) == CLASSES


@pytest.mark.parametrize("name", ["a\nb", "a\0", "\x1b[2J", "a\u2028b", "\x85"])
def test_a_class_whose_name_is_no_line_is_refused(name):
    with pytest.raises(ValueError, match="must be one line without control characters"):
        Classes(names=("cat", name))


@pytest.mark.parametrize("names", [("cat", "dog", "cat"), ("caf\u00e9", "cafe\u0301"), ("", "")])
def test_two_classes_of_one_name_are_refused(names):
    """`--labels cat` would mean either; the composed form and the letter with its accent look alike."""
    with pytest.raises(ValueError, match=r"each class must have a name of its own, got .* for class 0 and class \d"):
        Classes(names=names)


def test_classes_of_almost_one_name_are_taken():
    assert Classes(names=("cat", "Cat", "cat ", "👩‍🚀")).num_classes == 4
