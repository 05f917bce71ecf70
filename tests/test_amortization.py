"""The exact posterior of a linear decoder, and what an encoder loses beside a q(z | x) of each image."""

import json

import pytest
import torch
from torch.distributions import MultivariateNormal

from smalti.common.errors import UserError
from smalti.tokenizer.amortization import Settings, bounds_of_draws, measure, own_numbers
from smalti.tokenizer.criterion.likelihood.config import BernoulliConfig
from smalti.tokenizer.criterion.likelihood.config import GaussianConfig as GaussianLikelihoodConfig
from smalti.tokenizer.criterion.objective.config import ReconstructionConfig
from smalti.tokenizer.network.config import LinearConfig
from smalti.tokenizer.posterior.config import FlowConfig, GaussianConfig, MixtureConfig, NoneConfig
from smalti.tokenizer.train import train
from smalti.tokenizer.vae.config import VAEConfig
from smalti.tokenizer.vae.linear import LinearGaussian, linear_gaussian
from smalti.tokenizer.vae.model import VAE
from tests.conftest import tokenizer_training

POSTERIORS = {
    "diagonal": GaussianConfig(),
    "full": GaussianConfig(covariance="full"),
    "mixture": MixtureConfig(components=2),
    "flow": FlowConfig(transforms=2, hidden=(8,), context=2),
}


def linear_vae(posterior=POSTERIORS["diagonal"], **settings) -> VAE:
    """Return a linear VAE of 2 numbers for 3 x 3 pixels, σ = 0.5, whose random encoder is a bad one."""
    torch.manual_seed(0)
    likelihood = GaussianLikelihoodConfig(sigma=0.5)
    given = {"network": LinearConfig(), "latent_dim": 2, "posterior": posterior, "likelihood": likelihood} | settings
    vae = VAE(VAEConfig(image_size=(3, 3), **given))
    vae.network.decoder.weight.data.mul_(2)
    return vae.requires_grad_(False)


def grey_images(number: int) -> torch.Tensor:
    """Return images of levels in the middle, whose probability is the density times the width of a level."""
    return torch.randint(80, 176, (number, 1, 3, 3), generator=torch.Generator().manual_seed(1)) / 127.5 - 1


@pytest.fixture
def model() -> LinearGaussian:
    drawn = torch.randn(6, 4, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    return LinearGaussian(drawn[:, :2], drawn[:, 2], drawn[:, 3].exp())


# ---------------------------------------------------------------------------------------------------- linear decoders


def test_log_p_of_a_linear_model_is_that_of_the_normal_distribution_of_its_pixels(model):
    x = torch.randn(5, 6, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    whole = MultivariateNormal(model.offset, model.weight @ model.weight.T + model.variance.diag())
    torch.testing.assert_close(model.log_prob(x), whole.log_prob(x))


def test_the_posterior_of_a_linear_model_is_bayes_rule(model):
    """log p(z | x) = log p(x | z) + log p(z) − log p(x) at any z."""
    x = torch.randn(5, 6, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    z = torch.randn(5, 2, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
    mean, covariance = model.posterior(x)
    eye = torch.eye(2, dtype=torch.float64)
    likelihood = MultivariateNormal(z @ model.weight.T + model.offset, model.variance.diag()).log_prob(x)
    joint = likelihood + MultivariateNormal(torch.zeros_like(mean), eye).log_prob(z)
    torch.testing.assert_close(MultivariateNormal(mean, covariance).log_prob(z), joint - model.log_prob(x))


def test_a_linear_vae_with_the_exact_posterior_has_a_bound_of_no_gap():
    """Within the error of the density for the probability of a level, of order (level / σ)²."""
    vae, images = linear_vae(POSTERIORS["full"]).double(), grey_images(4).double()
    mean, covariance = linear_gaussian(vae.network, vae.likelihood).posterior(images.flatten(1))
    lower = torch.linalg.cholesky(covariance)
    scale = lower.diagonal().log()
    scale = scale / (1 - (scale / 10).square()).sqrt()  # undoes the soft bound
    h = torch.cat([mean, torch.cat([scale, 2**0.5 * lower[1:, 0]]).expand(4, -1)], 1)[:, None]
    _, log_weights = bounds_of_draws(vae, images, vae.vector_of(None, images), h, 3, 0)
    torch.testing.assert_close(-log_weights.mean(0), vae.exact_nll(images)["density"], atol=1e-3, rtol=0)
    assert log_weights.std(0).max() < 1e-3  # p(x, z) / q(z | x) is p(x) at every z


def test_other_decoders_have_no_exact_nll():
    vae = linear_vae(likelihood=BernoulliConfig())
    assert vae.exact_nll(grey_images(2)) == {} and linear_gaussian(vae.network, vae.likelihood) is None


# ------------------------------------------------------------------------------------------------ a q of each image


def test_on_a_linear_model_the_own_q_reaches_the_best_diagonal_one():
    """Its mean is the posterior's, its precisions are Λ_dd, and its bound is log p(x) less the known gap."""
    vae, images = linear_vae(), grey_images(3)
    model = linear_gaussian(vae.network, vae.likelihood)
    mean, _ = model.posterior(images.flatten(1))
    noise, first = torch.Generator().manual_seed(0), vae.network.encode(images, vae.vector_of(None, images))
    h = own_numbers(vae, images, vae.vector_of(None, images), first, steps=600, lr=0.05, samples=64, generator=noise)
    q = vae.posterior.normal(h)
    # 0.02: the last steps' noise, of 64 draws and a learning rate that has become small
    torch.testing.assert_close(q.mean[:, 0].double(), mean, atol=0.02, rtol=0)
    best = model.precision.diagonal().rsqrt().expand(3, 2)
    torch.testing.assert_close(q.deviation()[:, 0].double(), best, atol=0.02, rtol=0)
    bounds, _ = bounds_of_draws(vae, images, vae.vector_of(None, images), h, 20000, 1)
    assert float((bounds.mean(0) - vae.exact_nll(images)["density"]).mean()) == pytest.approx(
        float(model.diagonal_gap()),
        abs=0.02,  # three standard errors of 60,000 draws
    )


def run_of(tmp_path, accelerator, posterior, **settings):
    model = VAEConfig(image_size=(8, 8), network=LinearConfig(), latent_dim=2, posterior=posterior, **settings)
    train(tokenizer_training(tmp_path / "run", model=model), accelerator)
    return tmp_path / "run"


@pytest.mark.parametrize("kind", POSTERIORS)
def test_the_command_finds_a_q_that_is_never_worse(tmp_path, accelerator, kind):
    run = run_of(tmp_path, accelerator, POSTERIORS[kind])
    path = measure(Settings(run=str(run), images=6, steps=10, draws=50, batch_size=4), accelerator)
    found = json.loads(path.read_text())
    figures = found["figures"]
    assert path.name == "amortization-test.json" and found["protocol"]["number"] == 6
    assert figures["amortisation_gap"] == pytest.approx(figures["amortised"] - figures["own"])
    assert figures["amortisation_gap"] > -4 * figures["gap_standard_error"]
    assert figures["importance_weighted"] <= figures["own"] and "nll_of_density" in figures


def test_steps_that_lead_away_leave_the_encoders_q(tmp_path, accelerator):
    run = run_of(tmp_path, accelerator, POSTERIORS["diagonal"])
    path = measure(Settings(run=str(run), images=4, steps=1, lr=1000.0, draws=20), accelerator)
    figures = json.loads(path.read_text())["figures"]
    assert figures["moved"] == 0 and figures["amortisation_gap"] == 0


def test_an_autoencoder_has_no_q_to_compare_with(tmp_path, accelerator):
    run = run_of(tmp_path, accelerator, NoneConfig(), objective=ReconstructionConfig())
    with pytest.raises(UserError, match="no encoder of a q"):
        measure(Settings(run=str(run)), accelerator)
