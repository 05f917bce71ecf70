"""The posteriors q(z | x): densities, draws and gradients against exact numbers, one property a test."""

import copy
import math

import pytest
import torch
from torch.distributions import Distribution, MultivariateNormal, Normal, kl_divergence

from smalti.common.errors import UserError
from smalti.tokenizer.posterior.base import build_posterior, noise_for
from smalti.tokenizer.posterior.config import FlowConfig, GaussianConfig, MixtureConfig, NoneConfig, PosteriorConfig
from smalti.tokenizer.posterior.normal import bounded, standard_log_prob
from smalti.tokenizer.vae.linear import LinearGaussian

SMALL = {"transforms": 2, "hidden": (16, 16), "context": 2}
GAUSSIANS = {
    "isotropic": GaussianConfig(covariance="isotropic"),
    "diagonal": GaussianConfig(covariance="diagonal"),
    "full": GaussianConfig(covariance="full"),
}
MIXTURES = {"mixture": MixtureConfig(components=3)}
FLOWS = {"flow iaf": FlowConfig(**SMALL), "flow nsf": FlowConfig(**SMALL, transform="nsf")}
DENSITIES = GAUSSIANS | MIXTURES | FLOWS
ALL = {"none": NoneConfig()} | DENSITIES
every_kind = pytest.mark.parametrize("config", ALL.values(), ids=ALL)
every_density = pytest.mark.parametrize("config", DENSITIES.values(), ids=DENSITIES)
every_gaussian = pytest.mark.parametrize("config", GAUSSIANS.values(), ids=GAUSSIANS)


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


def built(config, dim=3, noise=0.3):
    """Return a posterior in fp64; flows start as the identity, so their weights are moved."""
    torch.manual_seed(0)
    posterior = build_posterior(config, dim).double()
    for weight in posterior.parameters():
        weight.data += noise * torch.randn_like(weight)
    return posterior


def encoder_output(posterior, *shape, seed=1):
    """Return a random h (B, P, N) in fp64."""
    N = posterior.config.outputs(posterior.dim)
    return torch.randn(*(shape or (2, 4)), N, generator=seeded(seed), dtype=torch.float64)


def grid(dim, reach, number):
    """Return the points (S, 1, 1, D) of a grid on [−reach, reach]^D and the volume of each."""
    line = torch.linspace(-reach, reach, number, dtype=torch.float64)
    points = torch.cartesian_prod(*[line] * dim).view(-1, 1, 1, dim)
    return points, (2 * reach / (number - 1)) ** dim


# ------------------------------------------------------------------------------------------------------- every kind


def test_every_kind_is_in_the_table():
    assert {config.kind for config in ALL.values()} == PosteriorConfig.family().keys()


@every_kind
def test_a_draw_has_S_vectors_a_place(config):
    posterior = built(config)
    h = encoder_output(posterior)
    z, log_q = posterior.draw(h, 5)
    assert z.shape == (5, 2, 4, 3) and posterior.center(h).shape == (2, 4, 3)
    assert log_q.shape == (5, 2, 4) if config.stochastic else log_q is None
    assert posterior.draw(h).z.shape[0] == 1


@every_kind
def test_a_kl_in_closed_form_is_there_where_the_config_says_so(config):
    posterior = built(config)
    kl = posterior.kl(encoder_output(posterior))
    assert (kl is not None) == config.closed_form
    if config.closed_form:
        assert kl.shape == (2, 4, 1 if config.covariance == "full" else 3)


@every_density
def test_log_q_of_a_draw_is_log_prob_there(config):
    posterior = built(config)
    h = encoder_output(posterior)
    z, log_q = posterior.draw(h, 20)
    # a flow's inverse: the rounding of fp64 over the smallest slope of a spline, squared
    torch.testing.assert_close(posterior.log_prob(h, z), log_q, atol=1e-5, rtol=1e-5)


@every_density
@pytest.mark.parametrize("dim, reach, number, error", [(1, 40, 40001, 1e-5), (2, 12, 241, 3e-3)])
def test_q_integrates_to_one(config, dim, reach, number, error):
    posterior = built(config, dim, noise=0.2)
    z, volume = grid(dim, reach, number)
    with torch.no_grad():
        total = posterior.log_prob(0.5 * encoder_output(posterior, 1, 1), z).exp().sum() * volume
    assert total == pytest.approx(1, abs=error)  # a spline's density has kinks, and a grid its step


@pytest.mark.parametrize("name", [*GAUSSIANS, *MIXTURES])
def test_draws_have_the_center_and_the_deviation(name):
    """Within 5 standard errors, in 24 numbers."""
    posterior = built(ALL[name])
    h, S = encoder_output(posterior), 20000
    z = posterior.draw(h, S, seeded()).z
    center, deviation = posterior.center(h), posterior.deviation(h)
    assert ((z.mean(0) - center).abs() < 5 * deviation / S**0.5).all()
    squares = (z - center).square()
    assert ((squares.mean(0) - deviation.square()).abs() < 5 * squares.std(0) / S**0.5).all()


@pytest.mark.parametrize("name", FLOWS)
def test_draws_of_a_flow_have_nearly_its_center_and_deviation(name):
    """Both are of 64 fixed draws: within a tenth of the deviation, in 24 numbers; exact where T shifts and scales."""
    posterior = built(ALL[name])
    h = encoder_output(posterior)
    z = posterior.draw(h, 20000, seeded()).z
    assert ((z.mean(0) - posterior.center(h)).abs() < 0.1 * z.std(0)).all()
    torch.testing.assert_close(posterior.deviation(h), z.std(0), atol=0, rtol=0.1)
    posterior, diagonal = build_posterior(ALL[name], 3), build_posterior(GAUSSIANS["diagonal"], 3)  # T is the identity
    torch.testing.assert_close(posterior.center(h.float()), h[..., :3].float(), atol=1e-5, rtol=0)
    torch.testing.assert_close(posterior.deviation(h.float()), diagonal.deviation(h[..., :6].float()))


def test_the_center_of_a_flow_belongs_to_its_row_alone(monkeypatch):
    """Whatever is in the batch, and however many points are moved at once."""
    posterior = built(ALL["flow iaf"])
    h = encoder_output(posterior)
    whole = posterior.center(h)
    torch.testing.assert_close(posterior.center(h[1:, :2]), whole[1:, :2])
    monkeypatch.setattr("smalti.tokenizer.posterior.flow.TOGETHER", 24)
    torch.testing.assert_close(posterior.center(h), whole)


def test_of_none_every_draw_is_the_encoders_output():
    posterior = built(ALL["none"])
    h = encoder_output(posterior)
    assert torch.equal(posterior.draw(h, 2).z, torch.stack([h, h])) and torch.equal(posterior.center(h), h)
    assert not posterior.deviation(h).any()
    with pytest.raises(UserError, match="`none` has no density"):
        posterior.log_prob(h, h[None])


@every_density
def test_at_zero_q_starts_as_the_standard_normal(config):
    posterior = build_posterior(config, 3)
    h, z = torch.zeros(2, 4, config.outputs(3)), torch.randn(5, 2, 4, 3, generator=seeded())
    torch.testing.assert_close(posterior.log_prob(h, z), standard_log_prob(z))


@every_kind
def test_numbers_are_fp32_under_autocast_and_of_half_precision(config):
    posterior = built(config).float()
    h = encoder_output(posterior).bfloat16()
    expected = posterior.draw(h.float(), 2, seeded())
    with torch.autocast("cpu", torch.bfloat16):
        found = posterior.draw(h, 2, seeded())
        others = (posterior.center(h), posterior.deviation(h), posterior.kl(h))
    assert torch.equal(found.z, expected.z) and found.z.dtype == torch.float32
    assert all(other is None or other.dtype == torch.float32 for other in others)
    if config.stochastic:
        assert torch.equal(found.log_q, expected.log_q)
        with torch.autocast("cpu", torch.bfloat16):
            assert torch.equal(posterior.log_prob(h, found.z), posterior.log_prob(h.float(), found.z))


@every_kind
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_weights_of_half_precision_compute_in_fp32(config, dtype):
    posterior = built(config).to(dtype)
    draw = posterior.draw(encoder_output(posterior).to(dtype), 2)
    assert draw.z.dtype == torch.float32 and draw.z.isfinite().all()


@every_kind
def test_a_place_depends_on_its_own_output_alone(config):
    """The noise is that of the shape and the seed: a place keeps it whatever stands in the others."""
    posterior = built(config)
    h, other = encoder_output(posterior), encoder_output(posterior, seed=2)
    other[1, 2] = h[1, 2]
    kept, moved = posterior.draw(h, 3, seeded()), posterior.draw(other, 3, seeded())
    torch.testing.assert_close(kept.z[:, 1, 2], moved.z[:, 1, 2])  # equal but for the rounding of a matrix product
    assert not torch.isclose(kept.z[:, 0], moved.z[:, 0]).any()
    if config.stochastic:
        torch.testing.assert_close(kept.log_q[:, 1, 2], moved.log_q[:, 1, 2])


@every_density
def test_a_density_does_not_depend_on_the_batch(config):
    posterior = built(config)
    h = encoder_output(posterior)
    z = posterior.draw(h, 3).z
    alone = posterior.log_prob(h[1:, 2:3], z[:, 1:, 2:3])
    torch.testing.assert_close(posterior.log_prob(h, z)[:, 1:, 2:3], alone)
    torch.testing.assert_close(posterior.center(h)[1:, 2:3], posterior.center(h[1:, 2:3]))


@every_density
def test_a_draw_is_a_function_of_output_shape_and_seed(config):
    posterior = built(config)
    h = encoder_output(posterior)
    first = posterior.draw(h, 2, seeded(3)).z
    assert torch.equal(first, posterior.draw(h, 2, seeded(3)).z)
    assert not torch.isclose(first, posterior.draw(h, 2, seeded(4)).z).any()
    assert not torch.isclose(first[0], first[1]).any()


@every_kind
@pytest.mark.parametrize("size", [1e3, 1e6])
def test_a_wild_encoder_gives_finite_numbers_and_gradients(config, size):
    posterior = build_posterior(config, 3)
    h = (encoder_output(posterior, 20, 50).float() * size).requires_grad_()
    z, log_q = posterior.draw(h, 3)
    numbers = [n for n in (z, log_q, posterior.kl(h), posterior.center(h), posterior.deviation(h)) if n is not None]
    (gradient,) = torch.autograd.grad(sum(n.mean() for n in numbers), h)
    assert all(n.isfinite().all() for n in (*numbers, gradient))


@pytest.mark.parametrize("name", [name for name in ALL if name not in FLOWS])  # zuko's networks take no empty batch
def test_an_empty_batch_has_empty_draws(name):
    posterior = built(ALL[name])
    assert posterior.draw(encoder_output(posterior, 0, 4), 2).z.shape == (2, 0, 4, 3)


@every_kind
def test_a_posterior_on_the_disk_is_the_same_posterior(config):
    posterior, again = built(config), build_posterior(config, 3).double()
    again.load_state_dict(copy.deepcopy(posterior.state_dict()))
    h = encoder_output(posterior)
    assert torch.equal(posterior.draw(h, 2, seeded()).z, again.draw(h, 2, seeded()).z)


# -------------------------------------------------------------------------------------------------- KL in closed form


def test_the_isotropic_kl_is_the_lectures():
    """½ (k σ² − k + |μ|² − k log σ²)."""
    posterior = built(GAUSSIANS["isotropic"])
    h = encoder_output(posterior)
    mean, variance, k = h[..., :3], torch.exp(2 * bounded(h[..., 3])), 3
    expected = 0.5 * (k * variance - k + mean.square().sum(-1) - k * variance.log())
    torch.testing.assert_close(posterior.kl(h).sum(-1), expected)


@pytest.mark.parametrize("name", ["isotropic", "diagonal"])
def test_the_kl_of_each_number_is_that_of_torch(name):
    posterior = built(GAUSSIANS[name])
    h = encoder_output(posterior)
    q = Normal(posterior.center(h), posterior.deviation(h))
    torch.testing.assert_close(posterior.kl(h), kl_divergence(q, Normal(torch.zeros_like(q.loc), 1.0)))


def lower_triangle(posterior, h):
    """Return L of `full`, written out from h = (μ, log σ, √D L'_10, L'_20, L'_21)."""
    L = torch.diag_embed(bounded(h[..., 3:6]).exp())
    L[..., 1, 0], L[..., 2, 0], L[..., 2, 1] = h[..., 6] / 3**0.5, h[..., 7] / 3**0.5, h[..., 8] / 3**0.5
    return L


def test_the_full_covariance_has_the_kl_density_and_deviation_of_torch():
    posterior = built(GAUSSIANS["full"])
    h = encoder_output(posterior)
    q = MultivariateNormal(h[..., :3], scale_tril=lower_triangle(posterior, h))
    p = MultivariateNormal(torch.zeros_like(q.loc), torch.eye(3, dtype=torch.float64))
    torch.testing.assert_close(posterior.kl(h)[..., 0], kl_divergence(q, p))
    torch.testing.assert_close(posterior.deviation(h), q.stddev)
    z = posterior.draw(h, 5).z
    torch.testing.assert_close(posterior.log_prob(h, z), q.log_prob(z))


def test_draws_of_the_full_covariance_are_correlated_as_it_says():
    posterior = built(GAUSSIANS["full"])
    h = encoder_output(posterior, 1, 1)
    L = lower_triangle(posterior, h)[0, 0]
    covariance = posterior.draw(h, 100000, seeded()).z[:, 0, 0].T.cov()
    spread = (L @ L.T).diag().sqrt()
    error = (covariance - L @ L.T).abs() / (spread[:, None] * spread)
    assert (error < 5 * math.sqrt(2 / 100000)).all()  # no covariance has a larger standard error


@every_gaussian
def test_the_mean_of_log_q_minus_log_p_is_the_kl(config):
    """Within 4 standard errors, in 8 places."""
    posterior = built(config)
    h, S = encoder_output(posterior), 20000
    z, log_q = posterior.draw(h, S, seeded())
    nats = log_q - standard_log_prob(z)
    assert ((nats.mean(0) - posterior.kl(h).sum(-1)).abs() < 4 * nats.std(0) / S**0.5).all()


@every_gaussian
def test_in_fp32_the_kl_is_never_negative(config):
    """σ² − 1 − log σ² near σ = 1, as the formula stands, is rounding of either sign."""
    posterior = build_posterior(config, 3)
    h = encoder_output(posterior, 20, 50).float() * 1e-4
    assert (posterior.kl(h) >= 0).all() and posterior.kl(torch.zeros_like(h)).abs().max() == 0


# --------------------------------------------------------------------------------------------------------- gradients


@pytest.mark.parametrize("name", [*GAUSSIANS, *FLOWS])
def test_gradients_of_draws_are_finite_differences_under_the_same_noise(name):
    """By the encoder's output, means and scales among it, and by the weights of a flow."""
    posterior = built(ALL[name], 2, noise=0.1)
    weights = [weight.requires_grad_() for weight in posterior.parameters()][-2:]
    h = encoder_output(posterior, 1, 2).requires_grad_()
    inputs = (h, *weights)
    assert torch.autograd.gradcheck(lambda h, *_: tuple(posterior.draw(h, 2, seeded())), inputs, fast_mode=True)
    if posterior.config.closed_form:
        assert torch.autograd.gradcheck(posterior.kl, h)


def negative_elbo(z, log_q):
    """Return log q − log p of a bumpy p, whose gradient no parameter escapes."""
    return log_q + 0.5 * z.square().sum(-1) - torch.sin(2 * z).sum(-1)


def integrated_gradient(posterior, h, reach, number):
    """Return dE_q[log q − log p] / dh by finite differences of an integral over a grid."""
    z, volume = grid(posterior.dim, reach, number)

    def objective(h):
        log_q = posterior.log_prob(h, z)
        return (log_q.exp() * negative_elbo(z, log_q)).sum() * volume

    steps = 1e-5 * torch.eye(h.numel(), dtype=torch.float64).view(-1, *h.shape)
    with torch.no_grad():
        return torch.stack([(objective(h + step) - objective(h - step)) / 2e-5 for step in steps])


@every_density
def test_the_mean_gradient_of_draws_is_that_of_the_integral(config):
    """Within 4 standard errors; for weights, means and scales of a mixture, too."""
    posterior, S = built(config, 1, noise=0.1), 20000
    one = encoder_output(posterior, 1, 1) * 0.5
    exact = integrated_gradient(posterior, one, 20, 4001)
    h = one.repeat(1, S, 1).requires_grad_()  # each place draws once, so that the gradient of each draw is seen
    z, log_q = posterior.draw(h, 1, seeded())
    (gradients,) = torch.autograd.grad(negative_elbo(z, log_q).sum(), h)
    mean, error = gradients[0].mean(0), gradients[0].std(0) / S**0.5
    assert ((mean - exact).abs() < 4 * error + 1e-6).all()  # 1e-6: of the finite differences
    assert mean.abs().max() > 0.05


@pytest.mark.parametrize("dim, reach, number", [(1, 15, 3001), (2, 10, 201)])
def test_the_implicit_gradient_of_a_mixture_is_exact(dim, reach, number):
    """Its expectation over q is the gradient of the integral: no draw is made, so the tolerance is a grid's."""
    posterior = built(MIXTURES["mixture"], dim)
    h = (encoder_output(posterior, 1, 1) * 0.5).requires_grad_()
    points, volume = grid(dim, reach, number)
    mass = posterior.log_prob(h, points).exp().detach() * volume
    z = posterior.mixture(h).implicit(points)
    torch.testing.assert_close(z, points)
    kept = mass > 1e-14  # beyond, ∂F/∂z is 0 in fp64
    (found,) = torch.autograd.grad((mass * negative_elbo(z, posterior.log_prob(h, z)))[kept].sum(), h)
    exact = integrated_gradient(posterior, h.detach(), reach, number)
    torch.testing.assert_close(found.flatten(), exact, atol=1e-6, rtol=1e-5)


# ------------------------------------------------------------------------------------------------------------- flows


@pytest.mark.parametrize("config", FLOWS.values(), ids=FLOWS)
def test_log_det_is_that_of_the_jacobian_and_the_inverse_gives_the_noise_back(config):
    posterior = built(config)
    h = encoder_output(posterior, 1, 1)
    noise = noise_for(h, 1, 3, seeded())
    z, log_q = posterior.draw(h, 1, seeded())

    def drawn(noise):
        return posterior.normal(h).move(posterior.transform(h, lambda T: T(noise.view(1, 1, 1, 3)))).flatten()

    jacobian = torch.autograd.functional.jacobian(drawn, noise.flatten())
    torch.testing.assert_close(drawn(noise), z.flatten())
    torch.testing.assert_close(log_q, standard_log_prob(noise) - jacobian.slogdet().logabsdet)
    back = posterior.transform(h, lambda T: T.inv(posterior.normal(h).noise_of(z)))
    torch.testing.assert_close(back, noise, atol=1e-6, rtol=1e-6)


@pytest.mark.parametrize("config", FLOWS.values(), ids=FLOWS)
def test_two_transforms_let_every_number_depend_on_every_other(config):
    posterior = built(config)
    h = encoder_output(posterior, 1, 1)
    at = noise_for(h, 1, 3, seeded()).flatten()
    jacobian = torch.autograd.functional.jacobian(
        lambda noise: posterior.transform(h, lambda T: T(noise.view(1, 1, 1, 3))).flatten(), at
    )
    assert (jacobian != 0).all()


@pytest.mark.parametrize("config", FLOWS.values(), ids=FLOWS)
def test_a_flow_starts_as_the_diagonal_gaussian(config):
    flow, gaussian = build_posterior(config, 3), build_posterior(GAUSSIANS["diagonal"], 3)
    h = encoder_output(flow).float()
    found, expected = flow.draw(h, 3, seeded()), gaussian.draw(h[..., :6], 3, seeded())
    torch.testing.assert_close(found.z, expected.z, atol=1e-5, rtol=1e-5)  # fp32 rounding, in a spline
    torch.testing.assert_close(found.log_q, expected.log_q, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(flow.center(h), h[..., :3], atol=1e-5, rtol=1e-5)


def test_a_flow_leaves_the_checks_of_torch_distributions_on():
    """Importing zuko turns them off for the whole process."""
    before = Distribution._validate_args
    Distribution.set_default_validate_args(True)
    build_posterior(FLOWS["flow iaf"], 2)
    assert Distribution._validate_args
    Distribution.set_default_validate_args(before)


# ------------------------------------------------------------------------------- how near q comes to a known posterior


def maximize(elbo, variables, steps=150):
    """Move the variables to where `elbo()` is largest."""

    def closure():
        optimizer.zero_grad()
        loss = -elbo()
        loss.backward()
        return loss

    optimizer = torch.optim.LBFGS(variables, max_iter=steps, line_search_fn="strong_wolfe")
    optimizer.step(closure)


def elbo_on(posterior, h, log_joint, z, volume):
    """Return the ELBO of one place by exact quadrature over the grid z, on which q has all its mass.

    Where q leaves the grid, the sum can be larger than log p(x).
    """
    log_q = posterior.log_prob(h, z)
    if not torch.is_grad_enabled():
        assert float(log_q.exp().sum() * volume) == pytest.approx(1, abs=1e-4)
    return (log_q.exp() * (log_joint(z) - log_q)).sum() * volume


def elbo_of_noise(flow, h, log_joint):
    """Return the ELBO of one place by quadrature over the noise of a flow, which cannot leave its grid.

    The grid is fine, or a spline learns to be good at its points alone.
    """
    noise, volume = grid(2, 5, 61)
    mass = standard_log_prob(noise).exp() * volume
    y, log_det = flow.transform(h, lambda T: T.call_and_ladj(noise))
    log_q = standard_log_prob(noise) - log_det - flow.normal(h).log_det()
    return (mass * (log_joint(flow.normal(h).move(y)) - log_q)).sum()


ONES = torch.ones(1, 2, dtype=torch.float64)
LINEAR = LinearGaussian(ONES, torch.zeros(1, dtype=torch.float64), torch.full((1,), 0.3**2, dtype=torch.float64))
LOG_DET, TRACE = float(LINEAR.precision.logdet()), float(LINEAR.precision.trace())
GAPS = {  # of log p(x) from the ELBO, in nats
    "isotropic": 0.5 * (2 * math.log(TRACE / 2) - LOG_DET),  # σ² = D / tr Λ is best
    "diagonal": float(LINEAR.diagonal_gap()),
    "full": 0.0,
    "flow iaf": 0.0,
    "flow nsf": 0.0,
}
WITHIN = {"flow iaf": 1e-3, "flow nsf": 5e-3}  # of the gap; a spline has to bend on [−5, 5] what is straight here


@pytest.mark.parametrize("name", GAPS)
def test_on_a_linear_model_the_elbo_falls_short_of_log_p_by_the_known_gap(name):
    """p(z) = N(0, I), p(x | z) = N(z_1 + z_2, 0.3²), x = 1: the two numbers of the posterior have correlation −0.92."""

    def log_joint(z):
        return standard_log_prob(z) + Normal(z.sum(-1), 0.3).log_prob(torch.tensor(1.0))

    log_p = float(LINEAR.log_prob(torch.ones(1, 1)))
    posterior = built(ALL[name], 2, noise=0.0)
    h = torch.zeros(1, 1, posterior.config.outputs(2), dtype=torch.float64, requires_grad=True)
    if name in FLOWS:
        maximize(lambda: elbo_of_noise(posterior, h, log_joint), [h, *posterior.parameters()], steps=60)
    else:
        maximize(lambda: elbo_on(posterior, h, log_joint, *grid(2, 5, 81)), [h])
    with torch.no_grad():
        gap = log_p - float(elbo_on(posterior, h, log_joint, *grid(2, 5, 241)))
    assert gap == pytest.approx(GAPS[name], abs=WITHIN.get(name, 1e-6))


def test_a_mixture_has_the_two_modes_that_a_gaussian_has_to_choose_from():
    """p(z) = N(0, 1), p(x | z) = N(z², 0.5²), x = 2: the posterior has modes at ± 1.4."""

    def log_joint(z):
        return standard_log_prob(z) + Normal(z.square().sum(-1), 0.5).log_prob(torch.tensor(2.0))

    z, volume = grid(1, 8, 1601)
    log_p = float(log_joint(z).flatten().logsumexp(0) + math.log(volume))
    gaps = []
    for config in (GAUSSIANS["diagonal"], MixtureConfig(components=2), MixtureConfig(components=4)):
        posterior = built(config, 1)
        h = encoder_output(posterior, 1, 1).requires_grad_()
        maximize(lambda posterior=posterior, h=h: elbo_on(posterior, h, log_joint, z, volume), [h])
        with torch.no_grad():
            gaps.append(log_p - float(elbo_on(posterior, h, log_joint, z, volume)))
    one, two, four = gaps
    assert one > math.log(2)  # it covers one mode of two
    assert 0 <= four < two < 0.02
