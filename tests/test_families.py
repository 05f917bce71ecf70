"""One family of tokenizers and one of priors, declared in tests alone, pass through every command, the report and the
page.

The tokenizer (`tests/toy_sequence.py`) makes a sequence of vectors of an image.
"""

import io
import json
from pathlib import Path
from typing import ClassVar, Literal

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from smalti.common import codes
from smalti.common.data.config import ImagesConfig
from smalti.common.errors import UserError
from smalti.common.layout import Layout
from smalti.common.seeds import uniforms
from smalti.pipeline import app
from smalti.pipeline.compress import main as compress
from smalti.pipeline.evaluate import evaluate as evaluate_pipeline
from smalti.pipeline.evaluation.settings import Settings as PipelineSettings
from smalti.pipeline.generate import Settings as GenerateSettings
from smalti.pipeline.generate import generate
from smalti.pipeline.image_pipeline import ImagePipeline
from smalti.pipeline.playground.controller import CodeController, open_controller
from smalti.pipeline.publish import main as publish
from smalti.pipeline.report import main as report
from smalti.pipeline.tune import Settings as TuneSettings
from smalti.pipeline.tune import tune
from smalti.prior.base import Prior
from smalti.prior.config import ArchitectureConfig, TrainedArchitecture
from smalti.prior.config import TrainConfig as PriorTraining
from smalti.prior.evaluate import Settings as PriorSettings
from smalti.prior.evaluate import evaluate as evaluate_prior
from smalti.prior.model import load_prior
from smalti.prior.sampling_config import SamplingConfig
from smalti.prior.train import train as train_prior
from smalti.tokenizer.config import TrainConfig
from smalti.tokenizer.encode import Settings as EncodeSettings
from smalti.tokenizer.encode import encode
from smalti.tokenizer.evaluate import Settings as TokenizerSettings
from smalti.tokenizer.evaluate import evaluate as evaluate_tokenizer
from smalti.tokenizer.model import load_tokenizer
from smalti.tokenizer.train import train as train_tokenizer
from tests import toy_sequence
from tests.conftest import QUICK
from tests.toy_sequence import SequenceConfig, SequenceTokenizer


class GaussianConfig(TrainedArchitecture):
    kind: Literal["toy_gaussian"] = "toy_gaussian"
    """draws each number independently, with a mean and a scale for each class"""


class GaussianPrior(Prior):
    takes: ClassVar[frozenset[str]] = frozenset({"temperature"})
    exact = True

    def __init__(self, config):
        super().__init__(config)
        shape = config.condition.num_classes + 1, config.layout.length
        self.mean, self.log_scale = nn.Parameter(torch.zeros(shape)), nn.Parameter(torch.zeros(shape))

    def forward(self, latents: Tensor, labels: Tensor) -> Tensor:
        normal = torch.distributions.Normal(self.mean[labels], self.log_scale[labels].exp())
        return -normal.log_prob(latents)

    def loss(self, latents: Tensor, labels: Tensor, forward: nn.Module) -> Tensor:
        return forward(latents, labels)

    @torch.no_grad()
    def validation(self, latents: Tensor, labels: Tensor, rows) -> Tensor:
        return self(latents, labels)

    def nats(self, latents: Tensor, labels: Tensor, rows) -> Tensor:
        return self.validation(latents, labels, rows)

    def log_prob(self, latents: Tensor, labels: Tensor, known: Tensor | None = None) -> Tensor:
        self.check(latents, labels, known)
        return -self(latents, labels).sum(1)

    def sampler(self, config: SamplingConfig, batch_size: int | None = None):
        self.check_sampling(config)

        @torch.no_grad()
        def draw(labels, seeds, latents=None, known=None, progress=lambda images: None):
            noise = torch.stack([uniforms(seed, self.config.layout.length) for seed in seeds])
            noise = torch.special.ndtri(noise.double().clamp(1e-9, 1 - 1e-9)).float() * config.temperature
            progress(len(labels))
            return self.mean[labels].cpu() + self.log_scale[labels].exp().cpu() * noise

        return draw


@pytest.fixture(scope="module", autouse=True)
def families():
    toy_sequence.register()
    GaussianConfig.register(GaussianPrior)
    yield
    toy_sequence.forget()
    for family in (ArchitectureConfig, TrainedArchitecture):
        del family.kinds[GaussianConfig.name()]


@pytest.fixture(scope="module")
def run(families, runs, accelerator) -> Path:
    """Return a run of sixty steps of each stage on the digits."""
    run, few = runs / "families", {"log_every": 20, "evaluate_every": 30, "save_every": 30}
    model = SequenceConfig(image_size=(8, 8))
    training = TrainConfig(
        run=str(run),
        model=model,
        images=ImagesConfig(),
        steps=60,
        lr=1e-2,
        warmup=2,
        batch_size=64,
        precision="fp32",
        **few,
    )
    train_tokenizer(training, accelerator)
    encode(EncodeSettings(run=str(run), views=1, precision="fp32"), accelerator)
    prior = PriorTraining(run=str(run), model=GaussianConfig(), steps=60, lr=0.1, warmup=2, precision="fp32", **few)
    train_prior(prior, accelerator)
    return run


def test_both_stages_are_found_by_their_kinds(run):
    assert type(load_tokenizer(run / "tokenizer/model")) is SequenceTokenizer
    assert type(load_prior(run / "prior/model")) is GaussianPrior


def test_training_makes_reconstructions_and_the_prior_better(run):
    for stage, name, better in (("tokenizer", "psnr_pooled", 1), ("prior", "validation_nll", -1)):
        lines = [json.loads(line) for line in (run / stage / "metrics.jsonl").read_text().splitlines()]
        values = [line[name] for line in lines if name in line]
        assert len(values) == 2 and better * values[1] > better * values[0]


def test_latents_are_a_dataset_of_vectors(run):
    data = codes.load_codes(run / "codes")
    assert data.info.layout == Layout.of(4, depth=3) and data.splits["train"].codes.dtype == np.float32
    from datasets import load_dataset

    rows = load_dataset(str(run / "codes"), split="test", cache_dir=str(run / "cache"))
    assert len(rows[0]["latents"]) == 12


def test_images_are_drawn_as_their_seeds_say(run, accelerator, tmp_path):
    folder = generate(
        GenerateSettings(run=str(run), labels=(3, 7), num_images=4, output=str(tmp_path / "drawn")), accelerator
    )
    assert len(list(folder.glob("0*.png"))) == 4
    pipeline = ImagePipeline.from_pretrained(run / "pipeline")
    together, alone = pipeline(labels=[3, 7], seed=0), pipeline(labels=[7], seed=1)
    assert torch.equal(together.codes[1], alone.codes[0])


def test_each_stage_and_both_are_measured(run, accelerator):
    found = {
        "tokenizer": evaluate_tokenizer(TokenizerSettings(run=str(run), features=QUICK), accelerator),
        "prior": evaluate_prior(PriorSettings(run=str(run)), accelerator),
        "pipeline": evaluate_pipeline(
            PipelineSettings(run=str(run), images=40, neighbours=20, features=QUICK), accelerator
        ),
    }
    figures = {stage: json.loads(path.read_text())["figures"] for stage, path in found.items()}
    assert figures["tokenizer"]["psnr_pooled"] > 10 and "usage" not in figures["tokenizer"]
    assert np.isfinite(figures["prior"]["nll"]) and "uniform_nll" not in figures["prior"]
    assert 0 <= figures["pipeline"]["class_agreement"] <= 1 and "distortion" not in figures["pipeline"]


def test_the_report_and_the_card_have_what_there_is(run, accelerator, tmp_path, monkeypatch):
    report([str(run)])
    html = (run / "report.html").read_text()
    assert (
        "4 vectors of 3" in html.replace("×", "x") and "nan" not in html.casefold().split("<body")[-1].split("data:")[0]
    )
    publish([str(run), "--to", str(tmp_path / "published")])
    assert "tokenizer" in (tmp_path / "published/README.md").read_text()


def test_sampling_is_tuned_over_what_the_prior_heeds_alone(run, accelerator):
    settings = TuneSettings(run=str(run), images=20, temperature=(0.5, 1.0), top_p=(0.9,))
    assert {each.top_p for each in tune(settings, accelerator).figures} == {None}


def test_what_the_families_do_not_offer_is_refused_by_name(run, tmp_path):
    pipeline = ImagePipeline.from_run(run, SamplingConfig())
    picture = pipeline(labels=[1], seed=0).images[0]
    for call, told in (
        (lambda: pipeline(labels=[1], top_k=3), "top_k is no setting of a prior of kind toy_gaussian"),
        (lambda: pipeline(labels=[1], guidance=2.0), "toy_gaussian has no guidance"),
        (lambda: pipeline.complete(picture, np.ones((8, 8), bool)), "no pixels belong to those of 4 vectors of 3"),
        (lambda: pipeline.vary(picture), "toy_gaussian draws whole images, and completes none"),
        (
            lambda: compress([str(run), "--output", str(tmp_path / "x.tess")]),
            "p.x . z., which a tokenizer of kind toy_sequence does not say",
        ),
    ):
        with pytest.raises(UserError, match=told):
            call()


def test_the_page_draws_and_looks(run):
    pytest.importorskip("gradio")
    from smalti.pipeline.playground.gradio_page import make_page

    pipeline = app.load_pipeline(str(run))
    controller = open_controller(pipeline, app.code_counts_of(run, pipeline))
    assert not isinstance(controller, CodeController)
    drawn = controller.draw([2], 3, 0, {})
    assert len(list(controller.grow(drawn))[-1]) == 3
    file = io.BytesIO()
    drawn.images[0].save(file, "PNG")
    assert "PSNR" in str(controller.look(controller.pick(drawn, 0)))
    labels = [tab.label for tab in make_page(controller, "toy").blocks.blocks.values() if type(tab).__name__ == "Tab"]
    assert labels == ["Draw", "Look"]
