"""p(x | z): every likelihood is a distribution over 8-bit images, and its −log is the reconstruction loss."""

import math

import pytest
import torch

from smalti.common import config
from smalti.common.data.config import ImagesConfig
from smalti.common.errors import UserError
from smalti.tokenizer.bottleneck.config import VQConfig
from smalti.tokenizer.config import TrainConfig
from smalti.tokenizer.criterion.likelihood.base import build_likelihood
from smalti.tokenizer.criterion.likelihood.config import (
    BernoulliConfig,
    CategoricalConfig,
    GaussianConfig,
    LaplaceConfig,
    LogisticMixtureConfig,
)
from smalti.tokenizer.criterion.likelihood.levels import levels_of, pixels_of
from smalti.tokenizer.kmeans.config import KMeansConfig
from smalti.tokenizer.kmeans.model import KMeansTokenizer
from smalti.tokenizer.vqvae.config import VQVAEConfig
from smalti.tokenizer.vqvae.model import VQVAE

ALL = [
    GaussianConfig(),
    GaussianConfig(sigma=0.003),  # narrower than a grey level
    GaussianConfig(sigma=5),  # wider than the range of pixels
    LaplaceConfig(),
    LaplaceConfig(scale=0.002),
    BernoulliConfig(),
    LogisticMixtureConfig(components=3),
    CategoricalConfig(),
]
NAMES = [f"{c.kind}-{i}" for i, c in enumerate(ALL)]


def drawn(c, channels, *, spread=1.0, number=2):
    """Return a likelihood, a random output for it, and images to which it gives a probability."""
    torch.manual_seed(0)
    output = spread * torch.randn(number, c.outputs(channels), 3, 3, dtype=torch.float64)
    levels = torch.randint(256, (number, channels, 3, 3))
    levels = 255 * (levels > 127) if c.kind == "bernoulli" else levels
    return build_likelihood(c, channels), output, pixels_of(levels, torch.float64)


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("c", ALL, ids=NAMES)
def test_the_levels_of_a_pixel_sum_to_one(c, channels):
    """This holds for every channel given the earlier ones. In fp64 the sum of 256 terms is off by 1e-14 at most, so
    1e-12."""
    likelihood, output, images = drawn(c, channels, spread=2)
    for channel in range(channels):
        total = likelihood.probabilities(output, images, channel).sum(-1)
        torch.testing.assert_close(total, torch.ones_like(total), rtol=0, atol=1e-12)


@pytest.mark.parametrize("c", ALL, ids=NAMES)
def test_the_mass_below_a_level_is_the_sum_of_the_levels_below_it(c):
    """It is what a coder asks for in the place of the table. Both are sums of terms up to 1 in fp64, so 1e-12."""
    likelihood, output, images = drawn(c, 3)
    levels = torch.tensor([1, 2, 64, 127, 128, 254, 255]).expand(2, 3, 3, -1)
    for channel in range(3):
        summed = likelihood.probabilities(output, images, channel).cumsum(-1).gather(-1, levels - 1)
        below = likelihood.below(output, images, channel)(levels)
        torch.testing.assert_close(below, summed, rtol=0, atol=1e-12)


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("c", ALL, ids=NAMES)
def test_nll_is_minus_log_of_the_probabilities_multiplied(c, channels):
    """The chain over channels is the joint. Far tails underflow in the table, not in nll, so the spread is small
    here."""
    likelihood, output, images = drawn(c, channels, spread=0.3)
    if c in (GaussianConfig(sigma=0.003), LaplaceConfig(scale=0.002)):
        output = images + 0.002 * output  # near the images, so that nothing underflows
    chain = torch.zeros(2, dtype=torch.float64)
    for channel in range(channels):
        p = likelihood.probabilities(output, images, channel)
        chain -= p.gather(-1, levels_of(images)[:, channel, ..., None]).log().sum((1, 2, 3))
    torch.testing.assert_close(likelihood.nll(output, images), chain, rtol=1e-6, atol=1e-6)  # 1e-8 seen: 1 - p of tails


def test_every_image_of_two_pixels_is_counted_once():
    """Pixels are independent given z: p sums to one over all 256² images of two grey pixels."""
    likelihood, output, _ = drawn(LogisticMixtureConfig(components=2), 1, number=1)
    levels = torch.cartesian_prod(torch.arange(256), torch.arange(256)).view(-1, 1, 1, 2)
    nll = likelihood.nll(output[:, :, :1, :2].expand(len(levels), -1, -1, -1), pixels_of(levels, torch.float64))
    assert nll.neg().exp().sum().item() == pytest.approx(1, abs=1e-10)


@pytest.mark.parametrize("c", ALL, ids=NAMES)
def test_fp32_is_stable_however_wrong_the_decoder_is(c):
    """nll and its gradient are finite where the probability itself underflows."""
    likelihood, output, images = drawn(c, 3, spread=30)
    output = output.float().requires_grad_()
    images[:, :, 0] = pixels_of(torch.tensor([0, 255, 255]))  # the ends of the range, whose intervals are unbounded
    nll = likelihood.nll(output, images)
    (gradient,) = torch.autograd.grad(nll.sum(), output)
    assert nll.isfinite().all() and gradient.isfinite().all()
    exact = likelihood.nll(output.double(), images)
    torch.testing.assert_close(nll.double(), exact, rtol=1e-4, atol=1e-2)  # fp32 sums of terms up to 1e7


def test_a_wide_gaussian_is_the_squared_error_of_the_lecture():
    """−log p = |x − μ|² / 2σ² + log σ√(2π) − log of a level's width, up to the curvature inside a level."""
    sigma = 0.2
    likelihood = build_likelihood(GaussianConfig(sigma=sigma), 1)
    images, output = (
        pixels_of(torch.randint(1, 255, (4, 1, 5, 5)), torch.float64),
        0.5 * torch.randn(4, 1, 5, 5).double(),
    )
    density = (images - output).square() / (2 * sigma**2) + math.log(sigma * math.sqrt(2 * math.pi)) - math.log(2 / 255)
    torch.testing.assert_close(likelihood.nll(output, images), density.sum((1, 2, 3)), rtol=1e-3, atol=0)


def test_the_gaussians_loss_has_the_gradient_of_the_squared_error_at_every_sigma():
    """The loss is weighted, so that its balance with the codebook losses stays the same while sigma is learned."""
    images, output = (
        pixels_of(torch.randint(1, 255, (2, 1, 4, 4)), torch.float64),
        0.3 * torch.randn(2, 1, 4, 4).double(),
    )
    for sigma in (0.05, 0.5):
        likelihood, mu = build_likelihood(GaussianConfig(sigma=sigma), 1), output.clone().requires_grad_()
        (gradient,) = torch.autograd.grad(likelihood.weight() * likelihood.nll(mu, images).sum(), mu)
        torch.testing.assert_close(gradient, 2 * (mu - images).detach(), rtol=1e-2, atol=1e-6)  # (level / sigma)² / 12


@pytest.mark.parametrize(
    "c, best", [(GaussianConfig(), "root of the mean squared"), (LaplaceConfig(), "mean absolute")]
)
def test_a_learned_scale_is_best_at_the_error_it_stands_for(c, best):
    errors = torch.tensor([0.1, -0.2, 0.3, 0.05], dtype=torch.float64).view(4, 1, 1, 1)
    images = pixels_of(levels_of(errors.new_full((4, 1, 1, 1), 0.1)), torch.float64)
    likelihood, output = build_likelihood(c, 1), images - errors
    expected = errors.square().mean().sqrt() if c.kind == "gaussian" else errors.abs().mean()
    with torch.no_grad():
        likelihood.log_scale.fill_(expected.log())
    (gradient,) = torch.autograd.grad(likelihood.nll(output, images).mean(), likelihood.log_scale)
    assert abs(gradient.item()) < 2e-2, best  # of order (level / error)², 1e-3; without the optimum it would be near 1


def test_later_channels_see_the_earlier_ones():
    """With one component and α = 1 the mean of green moves with red, so colours are cheap where channels agree."""
    likelihood = build_likelihood(LogisticMixtureConfig(components=1), 2)
    output = torch.zeros(1, 6, 1, 1, dtype=torch.float64)
    output[:, 3:5], output[:, 5] = -2.0, 20.0  # narrow; tanh(20) = 1
    images = pixels_of(torch.tensor([200, 0]), torch.float64).view(1, 2, 1, 1)
    assert likelihood.probabilities(output, images, 0).argmax().item() in (127, 128)
    assert likelihood.probabilities(output, images, 1).argmax().item() == 200


@pytest.mark.parametrize("c", ALL, ids=NAMES)
def test_draws_have_the_probabilities(c):
    """The mean of 4,000 draws of a pixel lies within 5 standard errors; a false alarm has odds of 1 in 1.7 million."""
    likelihood, output, _ = drawn(c, 2, spread=0.3, number=1)
    many = output[:, :, :1, :1].expand(4000, -1, -1, -1)
    samples = likelihood.sample(many, torch.Generator().manual_seed(0))
    p = likelihood.probabilities(many[:1], samples[:1], 0)[0, 0, 0]
    levels = pixels_of(torch.arange(256), torch.float64)
    mean, deviation = p @ levels, ((p @ levels.square()) - (p @ levels).square()).clamp_min(0).sqrt()
    assert abs(samples[:, 0].mean() - mean) <= 5 * deviation / 4000**0.5 + 1e-9
    assert torch.equal(pixels_of(levels_of(samples), samples.dtype), samples)


@pytest.mark.parametrize(
    "c", [GaussianConfig(sigma=0.1), LaplaceConfig(scale=0.1), LogisticMixtureConfig(), CategoricalConfig()]
)
def test_mean_and_mode_are_what_they_are_called(c):
    """They are compared with the table of one channel; the mean is far from the ends, where mass and density differ."""
    likelihood, output, images = drawn(c, 1, spread=0.1)
    if c.kind == "logistic_mixture":
        output[:, 2::3] -= 2  # log s: narrow, so that little mass lies at the ends
    p = likelihood.probabilities(output, images, 0)
    mean = (p * pixels_of(torch.arange(256), torch.float64)).sum(-1)
    assert (likelihood.mean(output)[:, 0] - mean).abs().max() < 5e-3  # values beyond black or white count as these
    mode = levels_of(likelihood.mode(output))[:, 0]
    assert (
        p.gather(-1, mode[..., None])[..., 0] >= 0.9 * p.amax(-1)
    ).all()  # a mixture returns its best component's mode


def test_decoding_shows_the_mean_and_nll_is_of_the_same_output():
    model = VQVAEConfig(
        image_size=(8, 8),
        image_channels=3,
        channels=(8, 16),
        quantizer=VQConfig(codebook_size=16, code_dim=4),
        likelihood=LogisticMixtureConfig(components=2),
    )
    torch.manual_seed(0)
    tokenizer = VQVAE(model).eval()
    images = pixels_of(torch.randint(256, (2, 3, 8, 8)))
    indices = tokenizer.encode(images)
    output = tokenizer.output(indices)
    assert output.shape == (2, 2 * (1 + 6 + 3), 8, 8)
    assert torch.equal(tokenizer.decode(indices), tokenizer.likelihood.mean(output))
    torch.testing.assert_close(tokenizer.nll(images, indices), tokenizer.reconstruct(images).nll)  # of the same z_q


def test_k_means_have_the_variance_of_what_they_leave():
    """In the M step of the shared variance, p(x | z) of the fitted patches is best at their mean squared error."""
    tokenizer = KMeansTokenizer(KMeansConfig(image_size=(4, 4), patch=2, codebook_size=2))
    tokenizer.fit_likelihood(0.04)
    images = torch.full((1, 1, 4, 4), 0.2)  # with a codebook of zeros the squared error is 0.04
    at_best = tokenizer.nll(images, tokenizer.encode(images))
    for other in (0.03, 0.05):
        tokenizer.fit_likelihood(other)
        assert tokenizer.nll(images, tokenizer.encode(images)) > at_best


def test_bernoulli_wants_black_and_white_images():
    with pytest.raises(UserError, match=r"set images\.binarize: dynamic"):
        config.build(TrainConfig, {"model": {"likelihood": {"kind": "bernoulli"}}}, "settings")
    for said in ({"binarize": "nearest"}, {"black_and_white": True}):  # as earlier runs wrote it
        given = {"model": {"likelihood": {"kind": "bernoulli"}}, "images": said}
        assert config.build(TrainConfig, given, "settings").images == ImagesConfig(binarize="nearest")
