"""A mixture of Gaussians fitted by EM: what it computes, that it climbs, and that scikit-learn computes the same."""

from itertools import pairwise

import numpy as np
import pytest
import torch
from scipy.stats import kstest
from sklearn.mixture import GaussianMixture as Peer
from torch import Tensor

from smalti.common import gaussian_mixture
from smalti.common.errors import UserError
from smalti.common.gaussian_mixture import GaussianMixture, e_step, first_mixture, m_step, mixture_of

KINDS = {"spherical": "spherical", "diagonal": "diag", "full": "full", "tied": "tied"}  # scikit-learn's words
K, D = 3, 4
SHAPES = {"spherical": (K,), "diagonal": (K, D), "full": (K, D, D), "tied": (D, D)}


@pytest.fixture
def points() -> Tensor:
    """Return 300 points about three means that lie far from 0, with another width in each direction."""
    draws = torch.Generator().manual_seed(0)
    means = 20 + 2 * torch.randn(K, D, generator=draws, dtype=torch.float64)
    noise = torch.randn(300, D, generator=draws, dtype=torch.float64) @ torch.randn(D, D, generator=draws).double()
    return means.repeat(100, 1) + 0.7 * noise


def a_mixture(covariance: str, points: Tensor) -> GaussianMixture:
    """Return a mixture of responsibilities that lean towards the mean that a point was drawn about."""
    r = torch.rand(len(points), K, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    r += torch.eye(K).repeat(len(points) // K, 1)
    return mixture_of(points, r / r.sum(1, keepdim=True), covariance, regularization=1e-6)


def fitted(points: Tensor, mixture: GaussianMixture, steps: int, regularization: float) -> list[float]:
    """Return the mean log-likelihood before each EM step."""
    found = []
    for _ in range(steps):
        moments = e_step(points, mixture)
        found.append(float(moments.log_likelihood) / len(points))
        mixture = m_step(moments, mixture, regularization)
    return found


def precisions(mixture: GaussianMixture) -> np.ndarray:
    """Return the inverse covariances as scikit-learn takes them."""
    if mixture.covariance in ("full", "tied"):
        return torch.linalg.inv(mixture.scale @ mixture.scale.mT).numpy()
    return (mixture.scale**-2).numpy()


@pytest.mark.filterwarnings("ignore::sklearn.exceptions.ConvergenceWarning")
@pytest.mark.parametrize("covariance", KINDS)
def test_each_step_has_the_log_likelihood_of_scikit_learn_from_the_same_start(points, covariance):
    start = a_mixture(covariance, points)
    peer = Peer(
        K,
        covariance_type=KINDS[covariance],
        tol=0,
        max_iter=30,
        reg_covar=1e-6,
        weights_init=start.log_weights.exp().numpy(),
        means_init=start.means.numpy(),
        precisions_init=precisions(start),
    ).fit(points.numpy())
    ours = fitted(points, start, len(peer.lower_bounds_), 1e-6)
    assert ours == pytest.approx(peer.lower_bounds_, abs=1e-6) and ours[-1] > ours[0] + 0.01


@pytest.mark.parametrize("covariance", KINDS)
def test_no_step_lowers_the_log_likelihood(points, covariance):
    """The regularization is 0, which alone could lower it; 1e-10 is rounding."""
    found = fitted(points, a_mixture(covariance, points), 40, 0.0)
    assert all(b >= a - 1e-10 for a, b in pairwise(found))


@pytest.mark.parametrize("covariance", KINDS)
def test_the_density_is_that_of_torch(points, covariance):
    mixture = a_mixture(covariance, points)
    scale = {
        "spherical": lambda: torch.eye(D).double() * mixture.scale[:, None, None],
        "diagonal": lambda: torch.diag_embed(mixture.scale),
        "full": lambda: mixture.scale,
        "tied": lambda: mixture.scale.expand(K, D, D),
    }[covariance]()
    each = torch.distributions.MultivariateNormal(mixture.means, scale_tril=scale)
    peer = torch.distributions.MixtureSameFamily(torch.distributions.Categorical(logits=mixture.log_weights), each)
    assert mixture.scale.shape == SHAPES[covariance]
    assert torch.allclose(mixture.log_prob(points), peer.log_prob(points), atol=1e-9)


@pytest.mark.parametrize("covariance", KINDS)
def test_the_terms_of_the_chain_rule_are_the_conditionals(points, covariance):
    """They sum to log p, and the first ones are those of the mixture of the first numbers alone."""
    mixture = a_mixture(covariance, points)
    each = mixture.log_prob_of_numbers(points)
    scale = mixture.scale if covariance == "spherical" else mixture.scale[..., :2]
    scale = scale[..., :2, :] if covariance in ("full", "tied") else scale
    first = mixture._replace(means=mixture.means[:, :2], scale=scale)
    assert torch.allclose(each.sum(1), mixture.log_prob(points), atol=1e-9)
    assert torch.allclose(each[:, :2].sum(1), first.log_prob(points[:, :2]), atol=1e-9)


@pytest.mark.parametrize("covariance", KINDS)
def test_the_order_of_the_numbers_changes_nothing(points, covariance):
    mixture, order = a_mixture(covariance, points), torch.tensor([2, 0, 3, 1])
    other = mixture.in_order(order)
    assert torch.allclose(other.log_prob(points[:, order]), mixture.log_prob(points), atol=1e-9)


@pytest.mark.parametrize("covariance", KINDS)
def test_draws_have_the_distribution_of_the_mixture(points, covariance):
    """Under the true distribution F(x_t | x_1 ... x_t-1) is uniform; of the four here the last is looked at, where all
    else enters. The seeds are fixed; a p-value below 1e-3 would be one bad draw in a thousand."""
    mixture = a_mixture(covariance, points)
    drawn = mixture.draws(500, torch.Generator().manual_seed(3))
    white = mixture.whitened(drawn)  # (n, K, D)
    before = mixture.log_weights - (0.5 * white.square() + mixture.log_scale)[..., :-1].sum(2)
    u = (before.softmax(1) * torch.special.ndtr(white[..., -1])).sum(1)
    assert kstest(u.numpy(), "uniform").pvalue > 1e-3


def test_what_is_given_stays_and_the_rest_follows_it(points):
    """A nearly singular covariance leaves the second number no choice."""
    scale = torch.tensor([[1.0, 0.0], [2.0, 1e-6]], dtype=torch.float64)
    mixture = GaussianMixture("tied", torch.zeros(1).double(), torch.tensor([[3.0, 5.0]]).double(), scale)
    drawn = mixture.draw(torch.randn(3).double(), torch.tensor([4.0]).double())
    assert drawn[0] == 4 and drawn[1] == pytest.approx(7, abs=1e-4)


@pytest.mark.parametrize("covariance", KINDS)
def test_chunks_of_points_and_parts_of_the_set_change_nothing(points, covariance, monkeypatch):
    mixture = a_mixture(covariance, points)
    whole, numbers = e_step(points, mixture), mixture.log_prob_of_numbers(points)
    monkeypatch.setattr(gaussian_mixture, "TOGETHER", 7 * K * D)
    parts = e_step(points[:50], mixture).plus(e_step(points[50:], mixture))
    for a, b in zip(whole, parts, strict=True):
        assert torch.allclose(a, b, rtol=1e-12)
    assert torch.allclose(numbers, mixture.log_prob_of_numbers(points), rtol=1e-12)


@pytest.mark.parametrize("covariance", KINDS)
def test_separate_clusters_are_found_from_k_means_plus_plus(covariance):
    draws = torch.Generator().manual_seed(0)
    centres = torch.tensor([[0.0, 0.0], [10.0, 0.0], [0.0, 10.0]]).double()
    points = centres.repeat(50, 1) + torch.randn(150, 2, generator=draws, dtype=torch.float64)
    mixture = first_mixture(points, 3, covariance, regularization=1e-6, generator=draws)
    for _ in range(20):
        mixture = m_step(e_step(points, mixture), mixture, 1e-6)
    near = torch.cdist(centres, mixture.means).min(1)
    assert sorted(near.indices.tolist()) == [0, 1, 2] and near.values.max() < 0.5
    assert torch.allclose(mixture.log_weights.exp(), torch.full((3,), 1 / 3).double(), atol=0.01)


@pytest.mark.parametrize("covariance", KINDS)
def test_an_empty_component_keeps_its_place_and_costs_nothing(points, covariance):
    mixture = a_mixture(covariance, points)
    mixture = mixture._replace(means=torch.cat([mixture.means[:2], torch.full((1, D), 1e3).double()]))
    moments = e_step(points, mixture)
    after = m_step(moments, mixture, 0.0)
    assert torch.equal(after.means[2], mixture.means[2]) and after.log_weights[2] < -20
    assert after.log_weights.isfinite().all() and e_step(points, after).log_likelihood > moments.log_likelihood
    if covariance != "tied":
        assert torch.equal(after.scale[2], mixture.scale[2])


@pytest.mark.parametrize("covariance", KINDS)
def test_a_singular_covariance_is_refused_without_regularization_and_narrow_with_it(covariance):
    points = torch.ones(10, D).double() * (0.0 if covariance == "spherical" else 1.0)
    r = torch.ones(10, 1).double()
    with pytest.raises(UserError, match=f"the {covariance} covariance of a component is singular"):
        mixture_of(points, r, covariance, regularization=0.0)
    assert mixture_of(points, r, covariance, regularization=1e-4).narrowest().tolist() == pytest.approx([1e-4])


def test_points_that_cannot_be_fitted_are_refused_by_name():
    def start(points: Tensor) -> GaussianMixture:
        return first_mixture(points, 3, "full", regularization=1e-6, generator=torch.Generator())

    with pytest.raises(UserError, match="3 components need at least as many points, got 2"):
        start(torch.zeros(2, D))
    with pytest.raises(UserError, match="must be finite numbers, got NaN or Inf in 1 of 5"):
        start(torch.tensor([[0.0]] * 4 + [[float("nan")]]))
