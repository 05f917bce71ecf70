"""The VAE: its loss is the bound, its latents are a dataset of moments, and it passes through every command."""

import json
import math
import re
import shutil
from pathlib import Path

import numpy as np
import PIL.Image
import pytest
import torch

from smalti.common import codes, config, folder
from smalti.common.data.binarization import binarized
from smalti.common.data.config import ImagesConfig
from smalti.common.data.images import open_images
from smalti.common.data.pixels import to_float
from smalti.common.errors import UserError
from smalti.common.seeds import normals_of_rows
from smalti.pipeline.evaluate import evaluate as evaluate_both
from smalti.pipeline.evaluation.settings import Settings as BothSettings
from smalti.pipeline.generate import Settings as Generation
from smalti.pipeline.generate import generate
from smalti.pipeline.image_pipeline import ImagePipeline
from smalti.pipeline.report import main as report
from smalti.prior.config import FitConfig
from smalti.prior.data import CodesRows
from smalti.prior.fit import fit
from smalti.prior.model import load_prior
from smalti.prior.sampling_config import SamplingConfig
from smalti.prior.simple.config import MixtureConfig
from smalti.tokenizer.amortization import Settings as AmortizationSettings
from smalti.tokenizer.amortization import measure as amortized
from smalti.tokenizer.config import TrainConfig
from smalti.tokenizer.criterion.objective.config import ELBOConfig, ObjectiveConfig, ReconstructionConfig, WAEConfig
from smalti.tokenizer.encode import Settings as EncodeSettings
from smalti.tokenizer.encode import encode
from smalti.tokenizer.evaluate import Settings as EvaluateSettings
from smalti.tokenizer.evaluate import evaluate
from smalti.tokenizer.latent_use import LatentUse
from smalti.tokenizer.latents import Settings as LatentSettings
from smalti.tokenizer.latents import examine
from smalti.tokenizer.model import load_tokenizer
from smalti.tokenizer.network.config import ConvolutionalConfig, MLPConfig
from smalti.tokenizer.posterior.config import GaussianConfig, NoneConfig, PosteriorConfig
from smalti.tokenizer.train import train
from smalti.tokenizer.vae.config import VAEConfig
from smalti.tokenizer.vae.model import VAE
from tests.conftest import NO_FEATURES, tokenizer_training
from tests.test_training import same_files

MLP = MLPConfig(hidden=(16,))
CONVOLUTIONAL = ConvolutionalConfig(channels=(8, 8))
IMAGES = torch.rand(6, 1, 8, 8, generator=torch.Generator().manual_seed(0)) * 2 - 1


def vae(**settings) -> VAE:
    """Return a VAE of 8 x 8 grey images with random weights."""
    torch.manual_seed(0)
    return VAE(VAEConfig(**{"image_size": (8, 8), "network": MLP, "latent_dim": 3, **settings}))


# ----------------------------------------------------------------------------------------------------- the loss, shapes


@pytest.mark.parametrize("network", [MLP, CONVOLUTIONAL], ids=["mlp", "convolutional"])
def test_of_beta_one_the_loss_is_the_bound_in_nats_a_dimension(network):
    model = vae(network=network)
    torch.manual_seed(1)
    terms = model(IMAGES)
    torch.manual_seed(1)
    bound = model.bound(IMAGES, 1)
    nats = bound.distortion + bound.rate.sum((1, 2))
    torch.testing.assert_close(sum(terms.losses.values()), nats.mean() / 64)
    torch.testing.assert_close(terms.watched["rate"], bound.rate.sum((1, 2)).mean() / (64 * math.log(2)))


def test_images_twice_as_high_and_wide_cost_four_times_as_much_of_both_terms():
    """Peers average the KL over latents and sum the reconstruction, or the other way: beta then depends on the size."""
    costs = []
    for side in (8, 16):
        model = vae(image_size=(side, side), network=CONVOLUTIONAL, latents="grid")
        for parameter in model.parameters():
            torch.nn.init.zeros_(parameter)
        model.network.encoder[-1].bias.data.fill_(0.5)  # every place has the same q(z | x)
        bound = model.bound(torch.zeros(2, 1, side, side), 1)
        costs.append((bound.distortion.mean(), bound.rate.sum((1, 2)).mean()))
        elbo = sum(model(torch.zeros(2, 1, side, side)).losses.values()) * side**2
        torch.testing.assert_close(elbo, sum(costs[-1]))
    torch.testing.assert_close(torch.stack(costs[1]), 4 * torch.stack(costs[0]))


@pytest.mark.parametrize(
    ("settings", "layout"),
    [
        ({"network": MLP}, "1 vector of 3"),
        ({"network": CONVOLUTIONAL}, "1 vector of 3"),
        ({"network": CONVOLUTIONAL, "latents": "grid"}, "4 x 4 vectors of 3"),
    ],
)
def test_an_image_is_one_vector_or_one_at_each_place(settings, layout):
    model = vae(**settings)
    latents = model.encode(IMAGES)
    assert str(model.config.layout) == layout and latents.shape == (6, model.config.layout.length)
    assert model.decode(latents).shape == IMAGES.shape


def test_the_importance_weighted_bound_is_computed_in_chunks(monkeypatch):
    model, whole = vae(), vae().bound(IMAGES, 9, torch.Generator().manual_seed(0))
    monkeypatch.setattr("smalti.tokenizer.vae.model.DECODED", 6 * 4)  # four draws of six images at once
    parts = model.bound(IMAGES, 9, torch.Generator().manual_seed(0))
    assert whole.importance_weighted.shape == (6,)
    torch.testing.assert_close(parts.rate, whole.rate)  # in closed form, so without noise
    assert (whole.importance_weighted <= whole.distortion + whole.rate.sum((1, 2)) + 1e-3).all()  # Jensen


@pytest.mark.parametrize("kind", sorted(PosteriorConfig.kinds))
def test_every_posterior_has_a_gradient_to_every_weight(kind):
    posterior = config.build(PosteriorConfig.kinds[kind], {}, kind)
    model = vae(posterior=posterior, objective=ELBOConfig() if posterior.stochastic else ReconstructionConfig())
    sum(model(IMAGES).losses.values()).backward()
    without = {name for name, each in model.named_parameters() if each.grad is None}
    assert not without


@pytest.mark.parametrize("kind", sorted(PosteriorConfig.kinds))
def test_every_posterior_is_the_same_on_the_disk(kind, tmp_path):
    """Loading first builds the model without memory, where a library may look at numbers that are not there."""
    posterior = config.build(PosteriorConfig.kinds[kind], {}, kind)
    model = vae(posterior=posterior, objective=ELBOConfig() if posterior.stochastic else ReconstructionConfig())
    model.save_pretrained(tmp_path / kind)
    kept = load_tokenizer(tmp_path / kind)
    assert torch.equal(kept.encode(IMAGES), model.eval().encode(IMAGES))


# ------------------------------------------------------------------------------------------------------------ bad input


@pytest.mark.parametrize(
    ("settings", "told"),
    [
        ({"latent_dim": 0}, "latent_dim .*greater than or equal to 1, got 0"),
        ({"latent_dim": 65}, "65 numbers for an image of 64; take fewer"),
        ({"latents": "grid"}, "a network of kind mlp has no grid; take latents image"),
        ({"posterior": {"kind": "none"}}, "elbo needs log q.z . x., which posterior none has not"),
        ({"network": {"kind": "convolutional", "channels": [8, 8, 8, 8, 8]}}, "does not divide by the downsampling 16"),
    ],
)
def test_settings_that_do_not_go_together_are_refused_by_name(settings, told):
    given = {"model": {"kind": "vae", "image_size": [8, 8], "network": {"kind": "mlp"}, **settings}}
    with pytest.raises(UserError, match=told):
        config.build(TrainConfig, given, "settings")


def test_grey_pixels_are_refused_to_a_bernoulli_with_the_setting_to_use():
    given = {"model": {"kind": "vae", "likelihood": {"kind": "bernoulli"}}}
    with pytest.raises(UserError, match=r"set images\.binarize: dynamic"):
        config.build(TrainConfig, given, "settings")


# --------------------------------------------------------------------------------------------------------- binarization


def test_a_pixel_is_white_with_its_grey_as_the_probability():
    grey = torch.full((4000, 1, 2, 2), 64, dtype=torch.uint8)
    drawn = binarized(grey, torch.arange(4000), torch.zeros(4000, dtype=torch.int64), "fixed")
    assert set(drawn.unique().tolist()) == {0, 255}
    # 16,000 draws of p = 64 / 255: four standard errors
    assert (drawn == 255).double().mean().item() == pytest.approx(64 / 255, abs=4 * (0.19 / 16_000) ** 0.5)
    ends = torch.tensor([0, 255], dtype=torch.uint8).view(1, 1, 1, 2).repeat(500, 1, 1, 1)
    assert torch.equal(binarized(ends, torch.arange(500), torch.arange(500), "dynamic"), ends)


def test_a_fixed_draw_belongs_to_the_row_and_a_dynamic_one_to_the_epoch_too():
    images = open_images(ImagesConfig(binarize="fixed"), (8, 8), 1).splits["train"]
    again = open_images(ImagesConfig(binarize="dynamic"), (8, 8), 1).splits["train"]
    some = torch.arange(50)
    assert torch.equal(images.read(some, 0).images, images.read(some, 3).images)
    assert not torch.equal(again.read(some, 0).images, again.read(some, 3).images)
    assert torch.equal(again.read(some, 3).images, again.read(some.flip(0), 3).images.flip(0))


# ---------------------------------------------------------------------------------------------- through every command


@pytest.fixture(scope="module")
def run(tmp_path_factory, accelerator) -> Path:
    """Return a run of two numbers an image: trained for a hundred steps, encoded, with a mixture as prior."""
    run = tmp_path_factory.mktemp("vae") / "digits"
    model = VAEConfig(image_size=(8, 8), network=MLPConfig(hidden=(64,)), latent_dim=2)
    settings = {"lr": 5e-3, "steps": 100, "evaluate_every": 50, "save_every": 50, "batch_size": 64}
    train(tokenizer_training(run, model=model, **settings), accelerator)
    encode(EncodeSettings(run=str(run), views=1, precision="fp32"), accelerator)
    fit(FitConfig(run=str(run), model=MixtureConfig(components=2), iterations=5), accelerator)
    return run


def test_training_lowers_the_bound_and_resumes_bit_for_bit(run, tmp_path, accelerator):
    lines = [json.loads(line) for line in (run / "tokenizer/metrics.jsonl").read_text().splitlines()]
    bounds = [line["negative_elbo"] for line in lines if "negative_elbo" in line]
    assert bounds[1] < bounds[0]
    killed = shutil.copytree(run, tmp_path / "killed")
    folder.remove(killed / "tokenizer/state/step_00000100")
    folder.remove(killed / "tokenizer/config.yaml")
    settings = {"lr": 5e-3, "steps": 100, "evaluate_every": 50, "save_every": 50, "batch_size": 64}
    model = VAEConfig(image_size=(8, 8), network=MLPConfig(hidden=(64,)), latent_dim=2)
    train(tokenizer_training(killed, model=model, **settings), accelerator)
    resumable = ("metrics.jsonl", "model/model.safetensors", "state/step_00000100/ema.safetensors")
    assert same_files(run / "tokenizer", killed / "tokenizer", *resumable)


def test_the_dataset_holds_mean_and_deviation_of_each_number(run):
    data = codes.load_codes(run / "codes")
    tokenizer = load_tokenizer(run / "tokenizer/model")
    pixels = to_float(open_images(ImagesConfig(shift=1), (8, 8), 1).splits["test"].read(torch.arange(5)).images)
    split = data.splits["test"]
    assert data.info.moments and split.scale.shape == split.codes.shape
    np.testing.assert_allclose(split.codes[:5], tokenizer.encode(pixels).numpy(), rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(split.scale[:5], tokenizer.deviation(pixels).numpy(), rtol=1e-5)
    from datasets import load_dataset

    rows = load_dataset(str(run / "codes"), split="test", cache_dir=str(run / "cache"))
    assert rows.column_names == ["latents", "scale", "label", "row"]


def test_rows_of_moments_are_drawn_anew_in_each_epoch_around_the_mean(run):
    split = codes.load_codes(run / "codes").splits["train"]
    rows = CodesRows(split, load_prior(run / "prior/model").config)
    some = torch.arange(len(rows))
    drawn = [rows[some, torch.full_like(some, epoch)].codes for epoch in (0, 1)]
    assert torch.equal(drawn[0], rows[some, torch.zeros_like(some)].codes) and not torch.equal(*drawn)
    noise = (drawn[0] - torch.from_numpy(split.codes)) / torch.from_numpy(split.scale)
    # 2,686 normal numbers: mean and deviation within four standard errors
    assert abs(noise.mean()) < 0.08 and noise.std().item() == pytest.approx(1, abs=0.06)


def test_noise_of_a_row_is_not_that_of_its_pixels():
    """Number k of a row's noise was a function of the same bits as its binarized pixel k: the two rose together."""
    rows, zeros = torch.arange(4000), torch.zeros(4000, dtype=torch.int64)
    grey = torch.full((4000, 1, 1, 1), 128, dtype=torch.uint8)
    white = binarized(grey, rows, zeros, "dynamic").flatten() > 0
    noise = normals_of_rows(0, rows.numpy(), zeros.numpy(), 1)[:, 0]
    # of 2,000 numbers each the means are within five standard errors; they were 1.6 apart
    assert abs(noise[white].mean() - noise[~white].mean()) < 5 * (2 / 2000) ** 0.5


def test_trainings_of_other_seeds_draw_other_vectors_of_a_row(run):
    split, config = codes.load_codes(run / "codes").splits["train"], load_prior(run / "prior/model").config
    some = torch.arange(3)
    drawn = [CodesRows(split, config, seed)[some, torch.zeros_like(some)].codes for seed in (0, 1)]
    assert not torch.equal(*drawn)


def test_a_codes_dataset_without_moments_keeps_its_fingerprint(finished_run):
    """Datasets of earlier versions say nothing of moments, and the priors trained on them know their fingerprint."""
    data = codes.load_codes(finished_run / "codes")
    assert not data.info.moments and data.splits["train"].scale is None
    assert codes.codes_fingerprint(data) == load_prior(finished_run / "prior/model").config.codes


def test_it_is_measured_in_nats_that_name_how_pixels_were_binarized(run, accelerator):
    path = evaluate(EvaluateSettings(run=str(run), importance_samples=5, features=NO_FEATURES), accelerator)
    written = json.loads(path.read_text())
    figures, protocol = written["figures"], written["protocol"]
    assert figures["importance_weighted"] < figures["negative_elbo"]
    assert figures["negative_elbo"] == pytest.approx(figures["bits_per_dim"] * 64 * math.log(2))
    assert figures["bits_per_dim"] == pytest.approx(figures["distortion"] + figures["rate"])
    assert sum(figures["kl_by_number"]) == pytest.approx(figures["rate"] * 64 * math.log(2))
    assert figures["active_units"] == 2 and protocol["binarize"] == "none" and protocol["importance_samples"] == 5


def test_it_costs_bits_under_the_standard_normal_and_under_the_learned_prior(run, accelerator):
    own = json.loads(
        evaluate(EvaluateSettings(run=str(run), importance_samples=30, features=NO_FEATURES), accelerator).read_text()
    )["figures"]
    path = evaluate_both(BothSettings(run=str(run), images=0, importance_samples=30), accelerator)
    written = json.loads(path.read_text())
    figures, protocol = written["figures"], written["protocol"]
    assert protocol["kind"] == "bound" and protocol["importance_samples"] == 30 and protocol["binarize"] == "none"
    # five standard errors over 297 images and 30 draws each, whose terms deviate by less than 10 nats
    assert figures["standard_normal_nats"] == pytest.approx(own["negative_elbo"], abs=0.6)
    assert figures["standard_normal_importance_nats"] == pytest.approx(own["importance_weighted"], abs=0.6)
    for prior in ("standard_normal", "learned"):
        assert figures[f"{prior}_nats"] == pytest.approx(figures[f"{prior}_bits_per_dim"] * 64 * math.log(2))
        assert figures[f"{prior}_nats"] == pytest.approx(figures["distortion_nats"] + figures[f"{prior}_rate_nats"])
        assert figures[f"{prior}_importance_nats"] < figures[f"{prior}_nats"]
    report([str(run)])
    page = (run / "report.html").read_text()
    assert "What a held-out image costs" in page and "under standard normal" in page and "30 draws" in page


def test_images_are_drawn_and_reported(run, accelerator, tmp_path):
    drawn = generate(Generation(run=str(run), labels=(3, 7), num_images=4, output=str(tmp_path / "drawn")), accelerator)
    assert len(list(drawn.glob("0*.png"))) == 4
    report([str(run)])
    page = (run / "report.html").read_text()
    assert "1 vector of 2" in page and "nats per number" in page and "nats per code" not in page
    assert "tokenizer/latents.py" in page and "tokenizer/codebook.py" not in page


def test_its_latents_are_drawn(run, accelerator):
    figures = examine(LatentSettings(run=str(run), images=40), accelerator)
    names = ("plane", "points", "numbers", "traversals", "interpolations")
    assert all((run / f"tokenizer/latents/{name}.png").stat().st_size > 1000 for name in names)
    assert figures["active_units"] == 2 and figures["advice"] == []


def test_a_tokenizer_of_codes_has_no_vectors_to_draw(finished_run, accelerator):
    with pytest.raises(UserError, match=r"are codes; .*codebook.py .* draws their codebook"):
        examine(LatentSettings(run=str(finished_run)), accelerator)


def test_a_collapsed_posterior_is_told_with_its_remedies(tmp_path, accelerator, capsys):
    model = VAEConfig(image_size=(8, 8), network=MLP, latent_dim=4, objective=ELBOConfig(kl_weight=1e4))
    train(tokenizer_training(tmp_path, model=model, steps=30, evaluate_every=30, lr=1e-2), accelerator)
    said = capsys.readouterr().err
    assert "posterior collapse: 0 of 4 numbers of z depend on the image" in said and "kl_warmup" in said


@pytest.mark.parametrize("objective", ObjectiveConfig.kinds)
def test_the_remedies_of_a_collapse_are_settings_that_the_objective_has(objective):
    chosen = ObjectiveConfig.kinds[objective]
    posterior = GaussianConfig() if chosen.needs_density else NoneConfig()
    model = vae(objective=config.build(chosen, {}, objective), posterior=posterior)
    said = LatentUse(torch.zeros(3)).warning(model)
    assert ("posterior collapse" in said) == chosen.needs_density  # an autoencoder has no posterior
    named = re.findall(r"--model\.objective\.(\w+)", said)
    assert set(named) <= chosen.model_fields.keys() and "--lr" in said
    assert LatentUse(torch.ones(3)).warning(model) is None


def test_free_bits_are_advised_for_a_number_or_for_a_place():
    use = LatentUse(torch.zeros(3))
    assert "--model.objective.free_bits 0.1)" in use.warning(vae())
    assert "--model.objective.free_bits 0.3)" in use.warning(vae(posterior=GaussianConfig(covariance="full")))


def test_an_objective_of_pairs_is_refused_micro_batches_of_one_image(tmp_path, accelerator):
    model = VAEConfig(image_size=(8, 8), network=MLP, objective=WAEConfig())
    with pytest.raises(UserError, match=r"compares 2 images or more .* leaves 1; take --batch_size 32"):
        train(tokenizer_training(tmp_path, model=model, accumulate=16), accelerator)


def test_more_draws_of_a_point_are_refused():
    with pytest.raises(ValueError, match="samples 8 of posterior none are all the same; leave samples out"):
        VAEConfig(posterior=NoneConfig(), objective=WAEConfig(samples=8))


@pytest.mark.parametrize("objective", [ReconstructionConfig(), WAEConfig()], ids=["reconstruction", "wae"])
def test_an_autoencoder_has_points_for_latents_and_no_bound(objective, tmp_path, accelerator, capsys):
    model = VAEConfig(image_size=(8, 8), network=MLP, latent_dim=2, posterior=NoneConfig(), objective=objective)
    train(tokenizer_training(tmp_path, model=model), accelerator)
    encode(EncodeSettings(run=str(tmp_path), views=1, precision="fp32"), accelerator)
    assert not codes.load_codes(tmp_path / "codes").info.moments
    capsys.readouterr()
    measured = EvaluateSettings(run=str(tmp_path), importance_samples=5, features=NO_FEATURES)
    figures = json.loads(evaluate(measured, accelerator).read_text())["figures"]
    assert "importance_samples has no effect" in capsys.readouterr().err
    assert not (tmp_path.parent / ".cache").exists()  # features of kind none: no classifier
    assert "negative_elbo" not in figures and figures["distortion"] > 0 and "mutual_information" not in figures
    fit(FitConfig(run=str(tmp_path), model=MixtureConfig(components=1), iterations=2), accelerator)
    figures = json.loads(evaluate_both(BothSettings(run=str(tmp_path), images=0), accelerator).read_text())["figures"]
    assert figures == {} and "no bits: an autoencoder has no bits" in capsys.readouterr().err
    report([str(tmp_path)])
    assert "An image has no cost in bits here: an autoencoder has no bits" in (tmp_path / "report.html").read_text()


# ------------------------------------------------------------------------------------------------------- interpolation


def test_vectors_go_straight_or_over_the_sphere_from_one_image_to_the_other(run):
    pipeline = ImagePipeline.from_run(run, SamplingConfig())
    first, last = pipeline(labels=[1, 0], seed=0).images
    ends = pipeline.encode_pixels(pipeline._pixels([first, last]))
    straight = pipeline.interpolate(first, last, 5, way="straight").codes
    torch.testing.assert_close(straight[2], ends.mean(0))
    for way in ("straight", "sphere"):
        found = pipeline.interpolate(first, last, 5, way=way).codes
        torch.testing.assert_close(found[[0, 4]], ends, atol=1e-5, rtol=1e-5)
    lengths = found.norm(dim=1)  # over the sphere they change evenly
    torch.testing.assert_close(lengths, torch.linspace(lengths[0].item(), lengths[4].item(), 5), atol=1e-5, rtol=1e-5)


def test_settings_of_codes_are_refused_where_vectors_are_interpolated(run, finished_run):
    vectors = ImagePipeline.from_run(run, SamplingConfig())
    pictures = vectors(labels=[1, 2], seed=0).images
    with pytest.raises(UserError, match="an interpolation of vectors draws nothing: leave out share"):
        vectors.interpolate(*pictures, share=0.5)
    with pytest.raises(UserError, match="way must be 'straight' or 'sphere', got 'round'"):
        vectors.interpolate(*pictures, way="round")
    with pytest.raises(UserError, match="way is of vectors, and this pipeline has codes"):
        ImagePipeline.from_run(finished_run, SamplingConfig()).interpolate(*pictures, way="straight")


def test_the_log_density_of_vectors_has_no_bits(run):
    pipeline = ImagePipeline.from_run(run, SamplingConfig())
    drawn = pipeline(labels=[1, 2], seed=0)
    found = pipeline.log_prob(drawn.codes, labels=[1, 2])
    torch.testing.assert_close(found.nats, pipeline.prior.log_prob(drawn.codes, torch.tensor([1, 2])))
    assert found.bits is None
    with pytest.raises(UserError, match="vectors must be finite; 1 of 2 have NaN or Inf"):
        pipeline.log_prob(drawn.codes * torch.tensor([[1.0], [torch.nan]]))
    with pytest.raises(UserError, match=r"a share of 0\.3 of the 1 place\(s\) of an image is none"):
        pipeline.vary(drawn.codes)


@pytest.mark.parametrize("kind", PosteriorConfig.kinds)
def test_every_posterior_with_a_density_has_moments(kind):
    objective = WAEConfig() if kind == "none" else ELBOConfig()
    model = vae(posterior=config.build(PosteriorConfig.kinds[kind], {}, kind), objective=objective)
    assert model.has_moments == (kind != "none") == (model.deviation(IMAGES) is not None)


# ------------------------------------------------------------------------------------------------- what cannot be read


@pytest.fixture(scope="module")
def holed(tmp_path_factory, accelerator) -> Path:
    """Return a run whose first held-out image cannot be read, and is read from the disk each time."""
    root = tmp_path_factory.mktemp("holed")
    pixels = torch.randint(0, 256, (24, 8, 8), generator=torch.Generator().manual_seed(0), dtype=torch.uint8).numpy()
    for split, number in (("train", 16), ("test", 8)):
        (root / "images" / split).mkdir(parents=True)
        for place in range(number):
            PIL.Image.fromarray(pixels[place]).save(root / f"images/{split}/{place}.png")
    (root / "images/test/0.png").write_bytes(b"no picture")
    images = ImagesConfig(source=str(root / "images"), corrupt="skip", memory=0.0)
    model = VAEConfig(image_size=(8, 8), network=MLP, latent_dim=2)
    train(tokenizer_training(root / "run", model=model, images=images, steps=1, batch_size=8), accelerator)
    return root / "run"


@pytest.mark.parametrize("batch_size", [1, 128])
def test_an_image_that_cannot_be_read_is_left_out_of_every_figure(holed, batch_size, accelerator):
    path = evaluate(
        EvaluateSettings(run=str(holed), features=NO_FEATURES, batch_size=batch_size, importance_samples=2), accelerator
    )
    told = folder.read_json(path)
    assert told["protocol"]["number"] == 7 and told["figures"]["mutual_information_cap"] == pytest.approx(math.log(7))
    amortization = AmortizationSettings(run=str(holed), images=8, steps=2, draws=4, batch_size=min(batch_size, 8))
    assert folder.read_json(amortized(amortization, accelerator))["protocol"]["number"] == 7


def test_latents_of_a_single_readable_image_are_refused(holed, accelerator):
    with pytest.raises(UserError, match="at least two images of test are wanted, and 1 could be read"):
        examine(LatentSettings(run=str(holed), images=2), accelerator)


@pytest.mark.parametrize("how", ["fixed", "dynamic"])
def test_a_batch_of_no_images_is_binarized(how):
    none = torch.zeros(0, 1, 8, 8, dtype=torch.uint8)
    rows = torch.zeros(0, dtype=torch.int64)
    assert binarized(none, rows, rows, how).shape == none.shape
