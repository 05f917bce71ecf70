"""The gradient estimators, compared with an enumerated gradient and with what their papers promise."""

from itertools import pairwise

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from benchmarks.estimators import (
    ENUMERATED,
    Moments,
    Problem,
    Protocol,
    compare,
    draw_gumbel,
    enumerate_codes,
    mean_baseline,
    no_baseline,
    reinforce,
)
from smalti.tokenizer.bottleneck.estimators import ESTIMATORS, gumbel_softmax, rotation, straight_through

SMALL = Protocol(vectors=64)


@pytest.fixture(scope="module", params=range(3), ids="problem {}".format)
def problem(request) -> Problem:
    return Problem(request.param, SMALL)


def moments(problem: Problem, name: str) -> Moments:
    return enumerate_codes(problem, ENUMERATED[name](problem))


def figures(problem: Problem, name: str) -> dict[str, float]:
    return compare(moments(problem, name), problem.gradient())


def test_the_exact_gradient_is_the_one_finite_differences_see(problem):
    """In float64 central differences of 1e-5 are right to about 1e-10 of the values, which are of order 1."""
    direction = torch.randn(problem.z.shape, dtype=torch.float64, generator=torch.Generator().manual_seed(0))

    def objective(z: Tensor) -> Tensor:
        return (problem.log_q(z).exp() * problem.losses()).sum(1)

    difference = (objective(problem.z + 1e-5 * direction) - objective(problem.z - 1e-5 * direction)) / 2e-5
    torch.testing.assert_close((problem.gradient() * direction).sum(1), difference, atol=1e-7, rtol=1e-7)


@pytest.mark.parametrize("name", ["reinforce", "reinforce_baseline"])
def test_reinforce_is_unbiased_with_a_baseline_and_without(problem, name):
    """The expectation is enumerated in float64, so only rounding remains."""
    torch.testing.assert_close(moments(problem, name).mean, problem.gradient(), atol=1e-10, rtol=1e-10)


def test_any_baseline_that_does_not_see_the_code_leaves_reinforce_unbiased(problem):
    baseline = torch.linspace(-5, 5, len(problem.z), dtype=torch.float64)
    mean = enumerate_codes(problem, reinforce(problem, baseline)).mean
    torch.testing.assert_close(mean, problem.gradient(), atol=1e-10, rtol=1e-10)


def test_the_mean_loss_as_a_baseline_lowers_the_variance_of_reinforce(problem):
    """Enumerated, it falls to 0.34–0.40; the test asks for half. No theorem says so: the best baseline weighs losses by
    |∇log q|²."""
    plain, with_baseline = (
        enumerate_codes(problem, reinforce(problem, baseline(problem))).variance.sum()
        for baseline in (no_baseline, mean_baseline)
    )
    assert with_baseline < plain / 2


@pytest.mark.parametrize("name", ESTIMATORS)
def test_the_estimators_of_the_codebooks_are_biased_and_yet_point_downhill(problem, name):
    """Enumerated, the bias is 0.51 to 0.62 of the gradient, the cosine 0.80 to 0.86, and 89% of z or more point
    downhill."""
    measured = figures(problem, name)
    assert measured["bias"] > 0.4 and measured["cosine"] > 0.7 and measured["downhill"] > 0.8


@pytest.mark.parametrize("name", ESTIMATORS)
def test_the_estimators_of_the_codebooks_have_less_variance_than_reinforce(problem, name):
    """Their standard deviation is half as large where two or three codes matter. A soft q is left out: its gradient is
    small, while straight-through copies the decoder's, which is not."""
    assert figures(problem, name)["noise"] < figures(problem, "reinforce_baseline")["noise"]


@pytest.mark.parametrize("name", ESTIMATORS)
def test_the_harder_the_choice_the_less_the_decoders_gradient_knows_of_its_gradient(name):
    """A q near one-hot has a gradient only where two codes are about equally near; the decoder's gradient is taken at
    one of them."""
    problem, cosines = Problem(0, SMALL), []
    for sharpness in (1, 4, 16):
        problem.sharpen(sharpness)
        cosines.append(figures(problem, name)["cosine"])
    assert cosines == sorted(cosines, reverse=True) and cosines[-1] < 0.5 < cosines[0]


def test_of_a_linear_loss_straight_through_leaves_out_only_what_the_posterior_spreads():
    """∇ Σ_k q_k f(e_k) = 2 s Cov_q(e, f), which equals 2 s Cov_q(e) ∇f where f is linear: positive, hence downhill."""

    class Linear(Problem):
        def loss(self, z_q: Tensor) -> Tensor:
            return z_q @ torch.tensor([1.0, -2.0, 0.5], dtype=torch.float64)

    problem = Linear(0, Protocol(vectors=64, normalize=False))
    q = problem.log_q(problem.z).exp().detach()
    off = problem.codes - (q @ problem.codes)[:, None]  # (N, K, D)
    covariance = torch.einsum("nk,nkc,nkd->ncd", q, off, off)
    expected = 2 * SMALL.sharpness * torch.einsum("ncd,nd->nc", covariance, moments(problem, "straight_through").mean)
    torch.testing.assert_close(problem.gradient(), expected, atol=1e-10, rtol=1e-10)


def test_gumbels_bias_falls_and_its_variance_rises_as_its_temperature_falls(problem):
    """The draws have a fixed seed. Each step changes the bias by at least 0.06; its standard error is below 0.01."""
    exact = problem.gradient()
    at = [compare(draw_gumbel(problem, temperature, draws=2048), exact) for temperature in (2, 1, 1 / 2, 1 / 4)]
    for warmer, colder in pairwise(at):
        assert colder["bias"] < warmer["bias"] and colder["noise"] > 1.3 * warmer["noise"]


def test_of_a_quadratic_loss_gumbel_at_a_low_temperature_has_no_bias():
    """At a low temperature it moves weight between the two best codes only, and takes the loss along that move to
    change as its gradient at either end says, each equally often: the trapezoidal rule, exact for a quadratic loss.
    What the curvature adds beyond it remains at any temperature. In draws the bias is 0.35 at temperature 1, and below
    0.04 at 1/16 in six tries."""

    class Quadratic(Problem):
        def loss(self, z_q: Tensor) -> Tensor:
            return ((z_q - self.z.roll(1, 0)) * torch.tensor([1.0, 2.0, 0.5], dtype=torch.float64)).square().sum(-1)

    problem = Quadratic(0, Protocol(vectors=64, normalize=False))
    warm, cold = (
        compare(draw_gumbel(problem, temperature, 4096), problem.gradient())["bias"] for temperature in (1, 1 / 16)
    )
    assert warm > 0.25 and cold < 0.12


# --------------------------------------------------------------------------------------------- what is promised of each


def pairs() -> tuple[Tensor, Tensor]:
    """Return z_e and e (2, 4, 15), in fp32 as in training, with no two nearly opposite."""
    generator = torch.Generator().manual_seed(0)
    z_e = torch.randn(2, 4, 15, generator=generator)
    return z_e.requires_grad_(), z_e.detach() + torch.randn(2, 4, 15, generator=generator)


@pytest.mark.parametrize("name", ESTIMATORS)
def test_forward_the_estimators_of_the_codebooks_are_the_chosen_vector(name):
    z_e, e = pairs()
    torch.testing.assert_close(ESTIMATORS[name](z_e, e), e, atol=1e-5, rtol=1e-5)  # a few fp32 roundings


def test_forward_gumbel_is_the_one_hot_of_the_code_it_drew():
    logits = torch.randn(500, 8, generator=torch.Generator().manual_seed(0))
    one_hot, indices = gumbel_softmax(logits, temperature=0.5)
    torch.testing.assert_close(one_hot, F.one_hot(indices, 8).float(), atol=1e-6, rtol=0)  # 1 + soft − soft


@pytest.mark.parametrize("temperature", [2.0, 1 / 16])
def test_gumbel_draws_from_the_softmax_at_any_temperature(temperature):
    """χ² of 100,000 draws from 8 codes exceeds 40.5 by chance once in a million seeds; the seed is fixed."""
    logits = torch.linspace(-2, 1, 8)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        _, indices = gumbel_softmax(logits.expand(100_000, 8), temperature)
    expected = 100_000 * logits.softmax(0)
    assert ((torch.bincount(indices, minlength=8) - expected).square() / expected).sum() < 40.5


def test_rotation_keeps_the_angle_between_gradient_and_vector():
    """Fifty et al. 2024: the gradient has the same angle to z_e as it had to the code, and is scaled by |e| / |z_e|."""
    z_e, e = pairs()
    at_code = torch.randn(2, 4, 15, generator=torch.Generator().manual_seed(1))
    (at_z_e,) = torch.autograd.grad(rotation(z_e, e), z_e, at_code)
    torch.testing.assert_close(F.cosine_similarity(at_z_e, z_e, dim=1), F.cosine_similarity(at_code, e, dim=1))
    torch.testing.assert_close(at_z_e.norm(dim=1), at_code.norm(dim=1) * e.norm(dim=1) / z_e.norm(dim=1))


def test_where_encoder_and_code_agree_rotation_is_straight_through():
    z_e, _ = pairs()
    at_code = torch.randn(2, 4, 15, generator=torch.Generator().manual_seed(1))
    turned, copied = (torch.autograd.grad(f(z_e, z_e.detach()), z_e, at_code)[0] for f in (rotation, straight_through))
    torch.testing.assert_close(turned, copied, atol=1e-5, rtol=1e-5)  # R is the identity up to fp32 rounding


def opposite() -> tuple[Tensor, Tensor]:
    z_e, _ = pairs()
    return z_e, -1.5 * z_e.detach()


def from_zero() -> tuple[Tensor, Tensor]:
    z_e, e = pairs()
    return torch.zeros_like(z_e).requires_grad_(), e


def to_zero() -> tuple[Tensor, Tensor]:
    z_e, e = pairs()
    return z_e, torch.zeros_like(e)


@pytest.mark.parametrize("meeting", [opposite, from_zero, to_zero])
def test_rotation_is_finite_where_it_has_no_angle(meeting):
    z_e, e = meeting()
    z_q = rotation(z_e, e)
    (gradient,) = torch.autograd.grad(z_q.sum(), z_e)
    assert z_q.isfinite().all() and gradient.isfinite().all()


@pytest.mark.parametrize("meeting", [opposite, from_zero])
def test_forward_rotation_is_the_chosen_vector_where_it_has_no_angle(meeting):
    """There ê + ẑ is only rounding, or ẑ is zero. The second depth of `residual` meets z_e = 0 where the first left
    nothing."""
    z_e, e = meeting()
    torch.testing.assert_close(rotation(z_e, e), e, atol=1e-5, rtol=1e-5)
