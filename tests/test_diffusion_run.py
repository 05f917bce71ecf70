"""A diffusion prior in a run: trained, resumed, drawn from, measured, over a VAE's vectors and over those of codes."""

import json
import re
import shutil
from pathlib import Path

import pytest
import torch

from smalti.common import codes, config, folder
from smalti.common.data.config import ImagesConfig
from smalti.common.errors import UserError
from smalti.common.run_folder import read_metrics
from smalti.pipeline import doctor
from smalti.pipeline.evaluate import Settings as EvaluateSettings
from smalti.pipeline.evaluate import evaluate
from smalti.pipeline.evaluation.cost import no_bits
from smalti.pipeline.generate import Settings as GenerateSettings
from smalti.pipeline.generate import generate
from smalti.pipeline.image_pipeline import ImagePipeline
from smalti.pipeline.report import main as report
from smalti.pipeline.reporting.model_card import model_card
from smalti.pipeline.reporting.run_contents import gather
from smalti.pipeline.tune import Settings as TuneSettings
from smalti.pipeline.tune import tune
from smalti.prior.config import FitConfig, TrainConfig
from smalti.prior.diffusion.config import DiffusionConfig
from smalti.prior.evaluate import Settings as PriorEvaluateSettings
from smalti.prior.evaluate import evaluate as evaluate_prior
from smalti.prior.fit import fit
from smalti.prior.sampling_config import SamplingConfig
from smalti.prior.train import train
from smalti.tokenizer.bottleneck.config import FSQConfig, ResidualConfig, VQConfig
from smalti.tokenizer.encode import Settings as EncodeSettings
from smalti.tokenizer.encode import encode
from smalti.tokenizer.network.config import ConvolutionalConfig
from smalti.tokenizer.train import train as train_tokenizer
from smalti.tokenizer.vae.config import VAEConfig
from smalti.tokenizer.vqvae.config import VQVAEConfig
from smalti.tokenizer.vqvae.model import VQVAE
from tests.conftest import NO_FEATURES, prior_training, tokenizer_training

TINY = DiffusionConfig(dim=16, depth=1, heads=2)
FEW = {"steps": 3, "precision": "fp32"}


def training(run: Path, **settings) -> TrainConfig:
    return prior_training(run, **{"model": TINY, **settings})


@pytest.fixture(scope="module")
def trained(tmp_path_factory, accelerator) -> Path:
    """Return a run of a VAE with 4 x 4 vectors of 2 and a diffusion prior, both of six steps."""
    run = tmp_path_factory.mktemp("diffusion") / "vae"
    network = ConvolutionalConfig(channels=(8, 8))
    model = VAEConfig(image_size=(8, 8), network=network, latents="grid", latent_dim=2)
    train_tokenizer(tokenizer_training(run, model=model, images=ImagesConfig()), accelerator)
    encode(EncodeSettings(run=str(run), views=1, precision="fp32"), accelerator)
    train(training(run), accelerator)
    return run


@pytest.fixture(scope="module")
def over_codes(finished_run, tmp_path_factory, accelerator) -> Path:
    """Return a run of a VQ-VAE and a diffusion prior over the vectors of its codes."""
    run = tmp_path_factory.mktemp("diffusion") / "vqvae"
    shutil.copytree(finished_run / "tokenizer", run / "tokenizer")
    encode(EncodeSettings(run=str(run), views=1, precision="fp32", vectors=True), accelerator)
    train(training(run), accelerator)
    return run


@pytest.fixture
def run(trained, tmp_path) -> Path:
    return Path(shutil.copytree(trained, tmp_path / "vae"))


# ------------------------------------------------------------------------------------------------------------- training


def test_its_loss_falls_and_is_called_a_squared_error(run, accelerator, capfd):
    train(training(run.with_name("long"), codes=str(run / "codes"), steps=60, evaluate_every=20), accelerator)
    lines = read_metrics(run.with_name("long") / "prior/metrics.jsonl")
    losses = [line["validation_mse"] for line in lines if "validation_mse" in line]
    assert losses[-1] < losses[0] and "squared error per number" in capfd.readouterr().out
    assert {"test_mse", "validation_mse"} <= json.loads((run / "prior/figures.json").read_text()).keys()


def test_a_training_that_was_killed_ends_in_the_same_weights(run, accelerator, tmp_path):
    killed = shutil.copytree(run, tmp_path / "killed")
    folder.remove(killed / "prior/state/step_00000006")
    folder.remove(killed / "prior/config.yaml")  # it names the other folder
    train(training(killed, codes=str(run / "codes")), accelerator)
    for name in ("metrics.jsonl", "model/model.safetensors", "state/step_00000006/ema.safetensors"):
        assert (run / "prior" / name).read_bytes() == (killed / "prior" / name).read_bytes(), name


def test_codes_are_refused_with_what_to_do(finished_run, tmp_path, accelerator):
    with pytest.raises(UserError, match="encode with --vectors true"):
        train(training(tmp_path, codes=str(finished_run / "codes")), accelerator)


# ------------------------------------------------------------------------------------------------------ the commands


@pytest.mark.parametrize("name", ["trained", "over_codes"])
def test_every_command_runs_on_it(name, request, runs, accelerator, capfd):
    run = Path(shutil.copytree(request.getfixturevalue(name), runs / f"diffusion_{name}"))
    drawn = generate(GenerateSettings(run=str(run), num_images=3, guidance=1.5, **FEW), accelerator)
    assert len(list(drawn.glob("0*.png"))) == 3
    kind = json.loads(evaluate_prior(PriorEvaluateSettings(run=str(run)), accelerator).read_text())["protocol"]["kind"]
    assert kind == "bound"
    flow = PriorEvaluateSettings(run=str(run), likelihood="flow", split="validation")
    path = evaluate_prior(flow, accelerator)
    assert path.name == "prior_flow-validation.json", "an estimate does not take the place of the bound"
    assert json.loads(path.read_text())["protocol"]["kind"] == "estimate by the probability flow"
    tune(TuneSettings(run=str(run), images=16, guidance=(1.0,), steps=(2, 3), solver=("ddim",)), accelerator)
    kept = json.loads((run / "pipeline/generation_config.json").read_text())
    assert kept["steps"] in (None, 2, 3) and kept["chosen"]["candidates"] == 4
    written = json.loads(
        evaluate(
            EvaluateSettings(run=str(run), images=10, features=NO_FEATURES, importance_samples=2), accelerator
        ).read_text()
    )
    assert 0 <= written["figures"]["memorised_pixels"] <= 1
    assert written["protocol"]["sampling"]["solver"] == (kept["solver"] or "dpm")
    assert "order" not in written["protocol"]["sampling"], "no setting of this prior"
    figures, protocol = written["figures"], written["protocol"]
    if name == "trained":
        assert protocol["learned_rate"] == "bound"
        assert {"learned_rate_nats", "learned_nats", "standard_normal_importance_nats"} <= figures.keys()
        assert not any(key.startswith("learned_importance") for key in figures)
    else:
        assert "density says nothing of how likely the codes are" in protocol["no_bits"]
    report([str(run)])
    assert (run / "report.html").exists()
    card = model_card(gather(run), "pipeline")
    assert ("images from vectors" in card) is (name == "trained"), "the card names what the latents are"
    assert re.search(r"The prior keeps the weights of step \d", card), "the step is a float in its file"


def test_a_run_of_another_command_is_called_so(run, accelerator):
    with pytest.raises(UserError, match="is a run of another command: its settings have no iterations"):
        fit(FitConfig(run=str(run)), accelerator)


def test_the_doctor_counts_its_memory_before_and_after_there_are_vectors(run, accelerator):
    for codes_folder in (run, run.with_name("none")):
        config.write_yaml(training(codes_folder), run / "prior.yaml")
        shutil.copy(run / "tokenizer/config.yaml", run / "tokenizer.yaml")
        assert any("fits" in line for line in doctor.config_lines(run / "prior.yaml", accelerator))


# -------------------------------------------------------------------------------------------- over the vectors of codes


def test_what_is_drawn_over_the_vectors_of_codes_is_codes_and_known_codes_stay(over_codes):
    pipeline = ImagePipeline.from_run(over_codes, SamplingConfig(**FEW))
    drawn = pipeline(num_images=4, seed=0)
    assert drawn.codes.dtype == torch.int64 and drawn.codes.shape == (4, 16)
    mask = torch.zeros(8, 8, dtype=torch.bool)
    mask[:4] = True
    one, two = (pipeline.complete(drawn.images, mask, seed=seed).codes for seed in (1, 2))
    assert torch.equal(one[:, :8], two[:, :8]) and not torch.equal(one[:, 8:], two[:, 8:])
    *_, last = pipeline.unfold(torch.tensor(drawn.labels), drawn.seeds)
    assert torch.equal(last.latents, drawn.codes)
    assert len(pipeline.vary(drawn.images, 0.5, seed=1).images) == 4
    assert no_bits(pipeline) is not None
    with pytest.raises(UserError, match="density says nothing of how likely the codes are"):
        pipeline.log_prob(drawn.images)


def test_the_codes_that_are_drawn_over_vectors_are_written_as_codes(over_codes, tmp_path, accelerator):
    out = generate(
        GenerateSettings(run=str(over_codes), num_images=3, format="codes", seed=1, output=str(tmp_path / "out")),
        accelerator,
    )
    info, splits = codes.load_codes(out)
    pipeline = ImagePipeline.from_run(over_codes, SamplingConfig())
    assert info.layout == pipeline.tokenizer.config.layout and info.layout.discrete
    assert splits["generated"].codes.tolist() == pipeline(num_images=3, seed=1).codes.tolist()


def test_the_vectors_on_the_disk_are_those_of_the_codes(over_codes, finished_run):
    vectors = codes.load_codes(over_codes / "codes")
    plain = codes.load_codes(finished_run / "codes").splits["test"].codes[::2]  # it has two views an image
    tokenizer = ImagePipeline.from_run(over_codes, SamplingConfig()).tokenizer
    found = tokenizer.nearest(torch.from_numpy(vectors.splits["test"].codes))
    assert vectors.info.statistics is not None and not vectors.info.layout.discrete
    assert torch.equal(found, torch.from_numpy(plain.astype("int64")))


@pytest.mark.parametrize(
    "quantizer",
    [
        VQConfig(codebook_size=16, code_dim=4),
        FSQConfig(levels=(5, 4)),
        ResidualConfig(code_depth=2, each=VQConfig(codebook_size=16, code_dim=4)),
    ],
    ids=lambda q: q.name(),
)
def test_the_nearest_codes_of_embedded_codes_are_these_codes(quantizer):
    """A stack of codes is found one after another, and may be another stack: then its vectors are nearly the same."""
    torch.manual_seed(0)
    tokenizer = VQVAE(VQVAEConfig(image_size=(8, 8), channels=(8, 16), quantizer=quantizer)).eval()
    layout = tokenizer.config.layout
    drawn = torch.randint(0, layout.codebook_size, (5, layout.length))
    vectors = tokenizer.embed(drawn)
    assert vectors.shape == (5, tokenizer.vector_layout.length) and vectors.dtype == torch.float32
    found = tokenizer.nearest(vectors)
    if layout.depth == 1:
        assert torch.equal(found, drawn)
    else:
        assert (tokenizer.embed(found) - vectors).square().mean() < vectors.var() / 2


def test_the_last_pass_of_one_image_is_the_image_that_a_call_returns(run):
    pipeline = ImagePipeline.from_run(run, SamplingConfig(**FEW))
    drawn = pipeline(num_images=3, seed=0)
    *_, last = pipeline.unfold(torch.tensor(drawn.labels[:1]), drawn.seeds[:1])
    assert torch.equal(last.latents, drawn.codes[:1])
