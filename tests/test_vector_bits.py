"""The cost of an image in bits under a prior of vectors: against exact likelihoods, and against the VAE's own bound."""

import math

import pytest
import torch

from smalti.common.codes_info import TokenizerIdentity
from smalti.common.condition import condition_of
from smalti.common.data.pixels import to_float
from smalti.pipeline.evaluation import vector_bits
from smalti.pipeline.evaluation.vector_bits import VECTOR_PRIORS, no_vector_bits, vector_nats
from smalti.pipeline.image_pipeline import ImagePipeline
from smalti.prior.config import PriorConfig
from smalti.prior.sampling_config import SamplingConfig
from smalti.prior.simple.config import MixtureConfig, StandardNormalConfig
from smalti.prior.simple.mixture import MixturePrior
from smalti.prior.simple.standard_normal import StandardNormalPrior
from smalti.tokenizer.base import LikelihoodTokenizer
from smalti.tokenizer.criterion.objective.config import ReconstructionConfig
from smalti.tokenizer.posterior.base import build_posterior
from smalti.tokenizer.posterior.config import FlowConfig, GaussianConfig, NoneConfig
from smalti.tokenizer.posterior.config import MixtureConfig as MixturePosteriorConfig
from smalti.tokenizer.posterior.normal import WIDEST
from smalti.tokenizer.posterior.of_images import ImagePosteriors
from smalti.tokenizer.vae.config import VAEConfig
from smalti.tokenizer.vae.model import DECODED
from tests.test_vae import MLP, vae

IDENTITY = TokenizerIdentity(name="test", sha256="0" * 64)
IMAGES = torch.randint(0, 256, (5, 1, 8, 8), generator=torch.Generator().manual_seed(0), dtype=torch.uint8)
NO_LABELS = torch.zeros(5, dtype=torch.int64)


def normal_prior(tokenizer) -> StandardNormalPrior:
    return StandardNormalPrior(settings(tokenizer, StandardNormalConfig()))


def mixture_prior(tokenizer, classes=None, components=2) -> MixturePrior:
    """Return a mixture whose components are all N(0, I)."""
    return MixturePrior(settings(tokenizer, MixtureConfig(components=components), classes))


def settings(tokenizer, architecture, classes=None) -> PriorConfig:
    layout, condition = tokenizer.config.layout, condition_of(classes)
    return PriorConfig(layout=layout, condition=condition, tokenizer=IDENTITY, architecture=architecture)


def nats(tokenizer, prior, samples, labels=NO_LABELS, images=IMAGES):
    pipeline = ImagePipeline(tokenizer.eval(), prior.eval(), SamplingConfig(), IDENTITY)
    return vector_nats(pipeline, images, labels, samples, torch.Generator().manual_seed(0))


# ------------------------------------------------------------------------------------------------------------ the bound


@pytest.mark.parametrize(
    "posterior", [GaussianConfig(), GaussianConfig(covariance="full"), MixturePosteriorConfig(), FlowConfig()]
)
def test_under_the_standard_normal_it_is_the_vaes_own_bound_within_the_error_of_its_draws(posterior, monkeypatch):
    """Both take the same draws, so that all but a KL in closed form is the same up to the rounding of fp32."""
    monkeypatch.setattr(vector_bits, "PIXELS", DECODED // 5 * IMAGES.numel())  # as many at once as the VAE takes
    model = vae(posterior=posterior)
    found = nats(model, normal_prior(model), 4000)
    bound = model.bound(to_float(IMAGES), 4000, torch.Generator().manual_seed(0))
    torch.testing.assert_close(found.distortion.float(), bound.distortion, atol=1e-2, rtol=0)
    torch.testing.assert_close(found.importance["learned"].float(), bound.importance_weighted, atol=1e-2, rtol=0)
    # five standard errors of 4,000 log-ratios that deviate by less than 2 nats
    torch.testing.assert_close(found.rate["learned"].float(), bound.rate.sum((1, 2)), atol=0.16, rtol=0)
    assert torch.equal(found.rate["learned"], found.rate["standard_normal"])  # it is the learned one here


def test_a_mixture_equal_to_the_standard_normal_costs_the_same():
    model = vae()
    found = nats(model, mixture_prior(model), 20)
    for each in (found.rate, found.importance):
        torch.testing.assert_close(each["learned"], each["standard_normal"])


def test_more_draws_make_the_bound_tighter_and_one_draw_is_minus_the_elbo():
    model = vae()
    one, many = nats(model, normal_prior(model), 1), nats(model, normal_prior(model), 1000)
    for name in VECTOR_PRIORS:
        torch.testing.assert_close(one.importance[name], one.distortion + one.rate[name])
        assert (many.importance[name] < many.distortion + many.rate[name]).all()  # Jensen, on the same draws


def test_a_prior_told_the_class_pays_for_it():
    model, classes = vae(), ("a", "b")
    labels = torch.tensor([0, 1, 0, 1, 2])  # the last one has no class
    prior = mixture_prior(model, classes)
    prior.means[1] += 3.0  # class b lies elsewhere
    found, plain = nats(model, prior, 50, labels), nats(model, mixture_prior(model), 50)
    paid = (found.rate["learned"] - plain.rate["learned"]).float()
    torch.testing.assert_close(paid[[0, 2, 4]], torch.tensor([math.log(2), math.log(2), 0.0]), atol=1e-4, rtol=0)
    assert (paid[[1, 3]] > 1).all()  # far from the posteriors


def test_why_there_are_no_bits_is_told():
    model = vae(posterior=NoneConfig(), objective=ReconstructionConfig())
    pipeline = ImagePipeline(model, mixture_prior(model), SamplingConfig(), IDENTITY)
    assert no_vector_bits(pipeline).startswith("an autoencoder has no bits")
    with pytest.raises(ValueError, match="no density"):
        nats(model, mixture_prior(model), 1)
    model = vae()
    assert no_vector_bits(ImagePipeline(model, mixture_prior(model), SamplingConfig(), IDENTITY)) is None


# -------------------------------------------------------------------------------------------------- an exact likelihood


class Exact:
    """N(x; w z, σ²) of real numbers: likelihoods of the house are of 256 levels, and have no p(x) in closed form."""

    kind, w, sigma = "exact", 1.5, 0.7

    def nll(self, output, images):
        return -torch.distributions.Normal(output, self.sigma).log_prob(images).flatten(1).sum(1)


class Linear(LikelihoodTokenizer):
    """x = w z + σ ε with a prior N(mean, deviation²) on each of four z: its q(z | x) is the exact posterior."""

    def __init__(self, mean, deviation):
        super().__init__()
        self.config = VAEConfig(image_size=(2, 2), network=MLP, latent_dim=4)
        self.likelihood, self.mean, self.deviation_of_prior = Exact(), mean, deviation
        self.posterior = build_posterior(GaussianConfig(), 4)

    def posteriors(self, images, condition=None):
        w, precision = self.likelihood.w, self.deviation_of_prior**-2
        of_x = self.likelihood.sigma**-2
        variance = 1 / (precision + w**2 * of_x)
        center = variance * (precision * self.mean + w * of_x * images.flatten(1))
        log_scale = 0.5 * math.log(variance)
        scale = torch.full_like(center, log_scale / math.sqrt(1 - (log_scale / WIDEST) ** 2))  # inverse of `bounded`
        return ImagePosteriors(self.posterior, torch.cat([center, scale], 1)[:, None])

    def _encode(self, images, condition):
        return images

    def _output(self, latents, condition):
        return self.likelihood.w * latents.view(-1, 1, 2, 2)


def test_with_the_exact_posterior_and_prior_it_is_the_exact_likelihood_by_any_number_of_draws(monkeypatch):
    monkeypatch.setattr(vector_bits, "PIXELS", 7 * 5 * 4)  # seven draws at once
    mean, deviation = 0.4, 0.5
    model, images = Linear(mean, deviation), IMAGES[:, :, :2, :2]
    prior = mixture_prior(model, components=1)
    prior.means += mean
    prior.scale *= deviation  # of `full` the lower triangle: deviation times the identity
    w, sigma = Exact.w, Exact.sigma
    spread = math.sqrt((w * deviation) ** 2 + sigma**2)
    exact = -torch.distributions.Normal(w * mean, spread).log_prob(to_float(images).double()).flatten(1).sum(1)
    for samples in (1, 30):
        found = nats(model, prior, samples, images=images)
        torch.testing.assert_close(found.distortion + found.rate["learned"], exact, atol=1e-4, rtol=0)  # fp32 draws
        torch.testing.assert_close(found.importance["learned"], exact, atol=1e-4, rtol=0)
    gap = found.distortion + found.rate["standard_normal"] - exact
    assert (gap > 0).any()  # another prior than the images come from
