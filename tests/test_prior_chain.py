"""Other priors over codes pass through the same commands as the Transformer: their codes are drawn, priced, completed,
compressed and shown by code that asks for protocols."""

import json
import math
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch

from smalti.pipeline import app
from smalti.pipeline.compress import main as compress
from smalti.pipeline.evaluate import evaluate as evaluate_pipeline
from smalti.pipeline.evaluation.settings import Settings as PipelineSettings
from smalti.pipeline.generate import Settings as GenerateSettings
from smalti.pipeline.generate import generate
from smalti.pipeline.image_pipeline import ImagePipeline
from smalti.pipeline.report import main as report
from smalti.prior.evaluate import Settings as PriorSettings
from smalti.prior.evaluate import evaluate as evaluate_prior
from smalti.prior.masked.config import MaskedConfig
from smalti.prior.masked.model import MaskedPrior
from smalti.prior.model import load_prior
from smalti.prior.nextset.config import NextSetConfig
from smalti.prior.nextset.model import NextSetPrior
from smalti.prior.pixelcnn.config import PixelCNNConfig
from smalti.prior.pixelcnn.model import PixelCNNPrior
from smalti.prior.sampling_config import SamplingConfig
from smalti.prior.train import train as train_prior
from tests.conftest import prior_training

KINDS = {
    PixelCNNPrior: PixelCNNConfig(depth=2, dim=16, kernel=3),
    MaskedPrior: MaskedConfig(depth=2, dim=16, heads=2),
    NextSetPrior: NextSetConfig(depth=2, dim=16, heads=2, passes=5),
}


@pytest.fixture(scope="module", params=KINDS, ids=lambda prior: prior.__name__)
def kind(request) -> type:
    return request.param


@pytest.fixture(scope="module")
def run(kind, finished_run, runs, accelerator) -> Path:
    """Return a run with the digits' codes and 20 steps of a small prior."""
    run = runs / kind.__name__
    shutil.copytree(finished_run, run, ignore=shutil.ignore_patterns("prior", "pipeline", "evaluation"))
    train_prior(prior_training(run, model=KINDS[kind], steps=20, evaluate_every=10), accelerator)
    return run


def test_a_resumed_training_ends_in_the_same_weights(run, kind, accelerator, tmp_path):
    again = shutil.copytree(run, tmp_path / "digits")
    shutil.rmtree(again / "prior/state/step_00000020")
    train_prior(prior_training(again, model=KINDS[kind], steps=20, evaluate_every=10), accelerator)
    for name, tensor in load_prior(run / "prior/model").state_dict().items():
        assert torch.equal(load_prior(again / "prior/model").state_dict()[name], tensor), name


def test_it_is_found_by_its_kind_and_draws_what_label_and_seed_say(run, kind, accelerator, tmp_path):
    assert type(load_prior(run / "prior/model")) is kind
    settings = GenerateSettings(run=str(run), labels=(3, 7), num_images=4, output=str(tmp_path / "drawn"))
    assert len(list(generate(settings, accelerator).glob("0*.png"))) == 4
    pipeline = ImagePipeline.from_run(run, SamplingConfig())
    together, alone = pipeline(labels=[3, 7], seed=0, guidance=2.0), pipeline(labels=[7], seed=1, guidance=2.0)
    assert torch.equal(together.codes[1], alone.codes[0])


def test_it_is_measured_as_the_transformer_is(run, accelerator):
    prior = json.loads(evaluate_prior(PriorSettings(run=str(run)), accelerator).read_text())["figures"]
    assert 0 < prior["nll"] < math.log(16) + 0.1 and prior["uniform_nll"] == pytest.approx(math.log(16))
    settings = PipelineSettings(run=str(run), images=0)  # drawn images are judged without a look at the prior
    both = json.loads(evaluate_pipeline(settings, accelerator).read_text())["figures"]
    assert both["learned_rate"] == pytest.approx(prior["nll"] * 16 / math.log(2) / 64 + math.log2(10) / 64, rel=1e-4)


def test_images_are_compressed_by_it_and_come_back(run, tmp_path):
    file = tmp_path / "some.tess"
    compress([str(run), "--images", "6", "--output", str(file)])
    compress([str(run), "--expand", str(file), "--output", str(tmp_path / "back")])
    assert len(list((tmp_path / "back").glob("*.png"))) == 6


def test_lower_halves_are_completed_around_upper_ones(run):
    pipeline = ImagePipeline.from_run(run, SamplingConfig())
    whole, upper = pipeline(labels=[1, 2], seed=0), np.zeros((8, 8), bool)
    upper[:4] = True
    done, other = (pipeline.complete(whole.images, upper, labels=[1, 2], seed=seed).codes for seed in (5, 50))
    assert torch.equal(done[:, :8], other[:, :8]), "the two upper rows of four codes are kept"
    assert not torch.equal(done[:, 8:], other[:, 8:]), "the rest is drawn"


def test_where_all_is_kept_nothing_is_drawn(run):
    """An index beyond the last raised from the sampler, of priors that draw in passes."""
    pipeline = ImagePipeline.from_run(run, SamplingConfig())
    whole = pipeline(labels=[1, 2], seed=0)
    kept = pipeline.complete(whole.images, np.ones((8, 8), bool), labels=[1, 2], seed=5).codes
    assert torch.equal(kept, pipeline.vary(whole.images, 0, labels=[1, 2], seed=6).codes)


def test_a_mask_that_keeps_no_place_whole_is_warned_of(run):
    pipeline = ImagePipeline.from_run(run, SamplingConfig())
    checkers = np.indices((8, 8)).sum(0) % 2 == 0
    with pytest.warns(UserWarning, match="no place is kept whole"):
        pipeline.complete(pipeline(labels=[1], seed=0).images, checkers, labels=[1], seed=0)


def test_the_report_and_the_page_show_it(run, kind):
    report([str(run)])
    page = (run / "report.html").read_text()
    assert KINDS[kind].name() in page
    assert ("This prior draws set after set" in page) == (kind is NextSetPrior), "of the kept upper halves"
    pytest.importorskip("gradio")
    from smalti.pipeline.playground.controller import open_controller

    pipeline = app.load_pipeline(str(run))
    desk = open_controller(pipeline, app.code_counts_of(run, pipeline))
    drawn = desk.draw([2], 3, 0, {})
    assert len(list(desk.grow(drawn))[-1]) == 3
