"""The doctor counts memory instead of guessing it, and reports what does not fit."""

from pathlib import Path

import pytest
import torch
from torch import nn

from smalti.common import config
from smalti.common.errors import UserError
from smalti.common.launch import make_accelerator
from smalti.pipeline.doctor import (
    GIB,
    config_lines,
    configs_of,
    count_parameters,
    prior_over,
    saved_for_backward,
    tokenizer_step,
    verdict_lines,
    without_storage,
)
from smalti.pipeline.run_arguments import run_arguments
from smalti.prior.config import TrainConfig as PriorTraining
from smalti.tokenizer.config import TrainConfig as TokenizerTraining
from smalti.tokenizer.vqvae.model import VQVAE

CONFIGS = Path(__file__).resolve().parents[1] / "configs"


def test_the_activations_of_a_known_chain_are_counted_to_the_byte():
    """x @ W keeps x (the weight belongs to the model); tanh keeps its output; the sum keeps nothing."""
    with without_storage(bf16=False):
        model, x = nn.Linear(10, 20, bias=False), torch.empty(8, 10)
        assert saved_for_backward(lambda: model(x).tanh().sum(), model) == 4 * (8 * 10 + 8 * 20)


def test_activations_grow_with_the_images_and_weights_do_not():
    c = TokenizerTraining()
    fixed, activations = tokenizer_step(c, 8, bf16=False)
    again, twice = tokenizer_step(c, 16, bf16=False)
    assert fixed == again == 4 * 5 * count_parameters(VQVAE(c.model))  # weight, gradient, AdamW's two moments, average
    assert twice == pytest.approx(2 * activations, rel=0.01)  # some tensors have no batch: bf16 or transposed weights


@pytest.mark.parametrize("path", sorted(CONFIGS.glob("*/*.yaml")), ids=lambda path: f"{path.parent.name}/{path.stem}")
def test_every_shipped_config_can_be_looked_at(path):
    if path.stem in ("tokenizer", "cluster", "prior", "fit"):
        told = list(config_lines(path, make_accelerator()))
        assert told[0].startswith(str(path))
        assert told[-1].strip().startswith(("fits", "DOES NOT FIT")) or told[-1].endswith("fits")


def test_what_does_not_fit_is_said_with_what_would(monkeypatch):
    class Memory:
        available = 10 * GIB

    monkeypatch.setattr("psutil.virtual_memory", Memory)
    accelerator = make_accelerator()
    if accelerator.device.type != "cpu":
        pytest.skip("counts the processor's memory")
    assert list(verdict_lines(Path("c"), GIB, 2 * GIB, 8, "fp32", accelerator))[-1].startswith("  fits")
    # 10 / 1.5 - 1 = 5.7
    assert "accumulate, 4 times" in list(verdict_lines(Path("c"), GIB, 20 * GIB, 8, "fp32", accelerator))[-1]
    assert "one image at a time" in list(verdict_lines(Path("c"), 20 * GIB, GIB, 8, "fp32", accelerator))[-1]


def test_a_prior_without_codes_is_measured_over_the_tokenizer_beside_it(tmp_path):
    c = config.build(PriorTraining, {"run": str(tmp_path / "none")}, "here")
    assert prior_over(CONFIGS / "fashion_mnist/prior.yaml", c).layout.rectangle == (7, 7)
    with pytest.raises(UserError, match=r"no tokenizer.yaml stands beside it"):
        prior_over(tmp_path / "prior.yaml", c)


def test_a_folder_without_configs_is_refused(tmp_path):
    with pytest.raises(UserError, match=r"must be a folder with tokenizer.yaml"):
        configs_of(tmp_path)


def test_a_config_whose_images_are_to_be_named_says_so():
    wanted = "configs/imagefolder --images FOLDER --run runs/imagefolder"
    assert list(map(str, run_arguments(CONFIGS / "imagefolder/tokenizer.yaml"))) == wanted.split()


@pytest.mark.parametrize(
    "name", ["digits/tokenizer.yaml", "digits_kmeans/cluster.yaml", "fashion_mnist/tokenizer.yaml"]
)
def test_a_config_that_names_its_images_is_asked_for_no_folder(name):
    """A name on the Hub was taken for a folder that is not there."""
    assert list(map(str, run_arguments(CONFIGS / name))) == [f"configs/{Path(name).parent}"]
