"""I(x; z) under q by the aggregated posterior: known answers, and its cap."""

import json
import math

import pytest
import torch

from smalti.tokenizer import mutual_information
from smalti.tokenizer.evaluate import Settings, evaluate
from smalti.tokenizer.mutual_information import surgery
from smalti.tokenizer.posterior.base import build_posterior
from smalti.tokenizer.posterior.config import FlowConfig, GaussianConfig, MixtureConfig
from smalti.tokenizer.posterior.normal import WIDEST
from smalti.tokenizer.posterior.of_images import ImagePosteriors
from smalti.tokenizer.train import train
from smalti.tokenizer.vae.config import VAEConfig
from tests.conftest import NO_FEATURES, tokenizer_training
from tests.test_vae import MLP

KINDS = {
    "isotropic": GaussianConfig(covariance="isotropic"),
    "diagonal": GaussianConfig(),
    "full": GaussianConfig(covariance="full"),
    "mixture": MixtureConfig(components=2),
}
every_kind = pytest.mark.parametrize("kind", KINDS)


def normals(means, sigma, kind="diagonal") -> ImagePosteriors:
    """Return posteriors N(mean, sigma² I) of each row of means (N, D), written as each kind has it."""
    (N, D), log_scale = means.shape, math.log(sigma)
    scale = torch.full((N, D), log_scale / math.sqrt(1 - (log_scale / WIDEST) ** 2))  # `bounded` gives log_scale of it
    parts = {
        "isotropic": [means, scale[:, :1]],
        "diagonal": [means, scale],
        "full": [means, scale, torch.zeros(N, D * (D - 1) // 2)],
        "mixture": [torch.zeros(N, 2), means, means, scale, scale],
    }
    return ImagePosteriors(build_posterior(KINDS[kind], D), torch.cat(parts[kind], 1)[:, None])


def figures(posteriors, draws=1):
    """Return the figures by so many draws an image."""
    N = len(posteriors.h)
    z, _ = posteriors.draw(draws, torch.Generator().manual_seed(0))
    return surgery(posteriors, z.flatten(0, 1), torch.arange(N).repeat(draws)).figures(N)


@every_kind
def test_two_images_far_apart_are_told_apart_by_ln_2(kind):
    found = figures(normals(torch.tensor([[-30.0, 0.0], [30.0, 0.0]]), 1.0, kind), 10)
    assert found["mutual_information"] == pytest.approx(math.log(2)) == found["mutual_information_cap"]


@every_kind
def test_collapsed_posteriors_say_nothing(kind):
    found = figures(normals(torch.zeros(50, 3), 1.0, kind))
    assert found["mutual_information"] == pytest.approx(0, abs=1e-6)
    assert found["marginal_kl"] == pytest.approx(0, abs=1e-6)  # all of them are the prior


@every_kind
def test_of_a_linear_gaussian_encoder_it_is_what_theory_says(kind):
    """z = x + σ ε with x ~ N(0, I): I = D/2 ln(1 + 1/σ²), far below ln N, and q(z) is N(0, 1 + σ²). Within five
    standard errors: those of 2,000 draws of a log-ratio of deviation below 2."""
    D, sigma = 2, 0.5
    found = figures(normals(torch.randn(2000, D, generator=torch.Generator().manual_seed(1)), sigma, kind))
    assert found["mutual_information"] == pytest.approx(D / 2 * math.log(1 + sigma**-2), abs=0.1)
    variance = 1 + sigma**2
    assert found["marginal_kl"] == pytest.approx(D / 2 * (variance - 1 - math.log(variance)), abs=0.1)


@every_kind
def test_it_is_never_above_the_log_of_the_number_of_images(kind):
    for sigma in (1e-4, 1e-2, 1.0):
        found = figures(normals(torch.randn(64, 4, generator=torch.Generator().manual_seed(0)), sigma, kind), 3)
        assert found["mutual_information"] <= math.log(64) + 1e-12  # fp64


def test_its_parts_are_the_rate_and_do_not_depend_on_the_chunks(monkeypatch):
    posteriors = normals(torch.randn(40, 3, generator=torch.Generator().manual_seed(0)), 0.3)
    whole = figures(posteriors)
    monkeypatch.setattr(mutual_information, "AT_ONCE", 7 * posteriors.h.numel())
    assert figures(posteriors) == pytest.approx(whole)
    z, log_q = posteriors.draw(1, torch.Generator().manual_seed(0))
    rate = (log_q + (0.5 * z.square() + 0.5 * math.log(2 * math.pi)).sum(-1)).mean().item()
    assert whole["mutual_information"] + whole["marginal_kl"] == pytest.approx(rate, abs=1e-5)


@pytest.mark.parametrize("kind", ["gaussian", "flow"])
def test_it_is_measured_where_log_q_of_another_image_is_cheap_and_named_where_not(kind, tmp_path, accelerator, capsys):
    posterior = GaussianConfig() if kind == "gaussian" else FlowConfig(transforms=1, hidden=(8,), context=2)
    model = VAEConfig(image_size=(8, 8), network=MLP, latent_dim=2, posterior=posterior)
    train(tokenizer_training(tmp_path, model=model), accelerator)
    found = json.loads(evaluate(Settings(run=str(tmp_path), features=NO_FEATURES), accelerator).read_text())["figures"]
    if kind == "flow":
        assert found["mutual_information"] is None and "no mutual_information" in capsys.readouterr().err
        return
    assert 0 < found["mutual_information"] < found["mutual_information_cap"] == pytest.approx(math.log(297))
    nats = found["rate"] * 64 * math.log(2)  # in closed form: five standard errors of 297 draws
    assert found["mutual_information"] + found["marginal_kl"] == pytest.approx(nats, abs=0.4)
