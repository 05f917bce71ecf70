"""The next-scale prior over the grids of a multi-scale tokenizer, through the commands of the chain."""

import json
import math
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch

from smalti.pipeline.compress import main as compress
from smalti.pipeline.generate import Settings as GenerateSettings
from smalti.pipeline.generate import generate
from smalti.pipeline.image_pipeline import ImagePipeline
from smalti.pipeline.playground.controller import open_controller
from smalti.prior.evaluate import Settings as PriorSettings
from smalti.prior.evaluate import evaluate as evaluate_prior
from smalti.prior.model import load_prior
from smalti.prior.nextscale.config import NextScaleConfig
from smalti.prior.nextscale.model import NextScalePrior
from smalti.prior.sampling_config import SamplingConfig
from smalti.prior.train import train as train_prior
from smalti.tokenizer.bottleneck.config import VQConfig
from smalti.tokenizer.encode import Settings as EncodeSettings
from smalti.tokenizer.encode import encode
from smalti.tokenizer.multiscale.config import MultiscaleConfig
from smalti.tokenizer.train import train as train_tokenizer
from tests.conftest import prior_training, tokenizer_training

SCALES = (1, 2, 4)  # 21 codes of 16
TRAINING = {
    "model": NextScaleConfig(depth=2, dim=16, heads=2),
    "steps": 20,
    "evaluate_every": 10,
    "save_every": 10,
    "recompute": True,
}


@pytest.fixture(scope="module")
def run(runs, accelerator) -> Path:
    """Return a run with both stages on the digits, each trained for a few steps."""
    run, quantizer = runs / "nextscale", VQConfig(codebook_size=16, code_dim=4)
    model = MultiscaleConfig(image_size=(8, 8), channels=(8, 16), quantizer=quantizer, scales=SCALES)
    train_tokenizer(tokenizer_training(run, model=model), accelerator)
    encode(EncodeSettings(run=str(run), views=1, precision="fp32"), accelerator)
    train_prior(prior_training(run, **TRAINING), accelerator)
    return run


@pytest.fixture
def pipeline(run) -> ImagePipeline:
    return ImagePipeline.from_run(run, SamplingConfig(precision="fp32"))


def test_a_resumed_training_ends_in_the_same_weights(run, accelerator, tmp_path):
    again = shutil.copytree(run, tmp_path / "digits")
    shutil.rmtree(again / "prior/state/step_00000020")
    train_prior(prior_training(again, **TRAINING), accelerator)
    found = load_prior(again / "prior/model").state_dict()
    for name, tensor in load_prior(run / "prior/model").state_dict().items():
        assert torch.equal(found[name], tensor), name


def test_it_is_found_by_its_kind_and_draws_what_label_and_seed_say(run, pipeline, accelerator, tmp_path):
    assert type(pipeline.prior) is NextScalePrior
    settings = GenerateSettings(run=str(run), labels=(3, 7), num_images=4, output=str(tmp_path / "drawn"))
    assert len(list(generate(settings, accelerator).glob("0*.png"))) == 4
    together, alone = pipeline(labels=[3, 7], seed=0, guidance=2.0), pipeline(labels=[7], seed=1, guidance=2.0)
    assert torch.equal(together.codes[1], alone.codes[0])


def test_its_nats_are_exact_and_written_as_such(run, accelerator):
    found = json.loads(evaluate_prior(PriorSettings(run=str(run)), accelerator).read_text())
    assert 0 < found["figures"]["nll"] < math.log(16) + 0.1


def test_images_are_compressed_by_it_and_come_back(run, tmp_path):
    file = tmp_path / "some.tess"
    compress([str(run), "--images", "6", "--output", str(file)])
    compress([str(run), "--expand", str(file), "--output", str(tmp_path / "back")])
    assert len(list((tmp_path / "back").glob("*.png"))) == 6


def test_a_refined_picture_keeps_its_coarse_grids_without_a_warning(pipeline, recwarn):
    whole = pipeline(labels=[1, 2], seed=0)
    done = [pipeline.refine(whole.images, 2, labels=[1, 2], seed=seed).codes for seed in (5, 50)]
    assert torch.equal(done[0][:, :5], done[1][:, :5]) and not torch.equal(done[0][:, 5:], done[1][:, 5:])
    assert not [each for each in recwarn if "heeded" in str(each.message)]


def test_a_completion_says_that_what_is_kept_of_finer_grids_is_not_heeded(pipeline):
    upper = np.zeros((8, 8), bool)
    upper[:4] = True
    whole = pipeline(labels=[1], seed=0)
    with pytest.warns(UserWarning, match="draws grid after grid, coarse first: .* finer grid .* is not heeded"):
        pipeline.complete(whole.images, upper, labels=[1], seed=0)


def test_the_page_shows_a_picture_after_each_scale(pipeline):
    desk = open_controller(pipeline, None)
    frames = list(desk.grow(desk.draw([2], 3, 0, {})))
    assert len(frames) == len(SCALES) + 1 and all(len(images) == 3 for images in frames)
