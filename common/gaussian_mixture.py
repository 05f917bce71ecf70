"""A mixture of Gaussians, and EM, which fits it: K-means with soft assignment and a width of every cluster.

    points (N, D) -> log_weights (K,), means (K, D), scale: (K,), (K, D), (K, D, D) or (D, D)

`scale` holds standard deviations for a spherical or diagonal covariance, and for a full or tied one the lower Cholesky
factor L of the covariance L Lᵀ. All is computed in fp64.

The E step gives the responsibilities r_nk, the M step the weights, means and covariances that are best for them (Bishop
2006, eq. 9.23 to 9.26). Neither can lower the log-likelihood, but for what `regularization` adds to the variances. A
component that has lost its points (`EMPTY`) keeps its mean and covariance and a weight next to nothing: this lowers
nothing either, and it can win points back.

The processes of a job can share the points: `Moments` are sums, and the M step needs nothing else.
"""

import math
from typing import NamedTuple

import torch
from torch import Generator, Tensor
from torch.special import ndtr

from smalti.common.choices import Covariance
from smalti.common.errors import UserError

EMPTY = 1e-3  # points: a component with fewer keeps its mean and covariance
LEAST = 1e-10  # points of a component, so that the logarithm of its weight is finite
TOGETHER = 2**22  # numbers of a tensor at most: a million points need not fit into memory K times
HALF_LOG_2PI = 0.5 * math.log(2 * math.pi)


class Moments(NamedTuple):
    """Sums over points of a mixture's log-likelihood and of what the M step needs. They add up over parts of a set."""

    log_likelihood: Tensor  # (), Σ log p(x)
    points: Tensor  # (), N
    weights: Tensor  # (K,), Σ r
    sums: Tensor  # (K, D), Σ r (x − origin), where the origin is the mixture's
    squares: Tensor  # Σ r (x − origin)²: (K, D), of a full covariance (K, D, D), of a tied one (D, D) over all r

    def plus(self, other: "Moments") -> "Moments":
        """Return the moments of two sets of points together."""
        return Moments(*(a + b for a, b in zip(self, other, strict=True)))


class GaussianMixture(NamedTuple):
    """Σ_k w_k N(x; μ_k, Σ_k), in fp64."""

    covariance: Covariance
    log_weights: Tensor  # (K,)
    means: Tensor  # (K, D)
    scale: Tensor  # (K,), (K, D), (K, D, D) or (D, D): standard deviations, or Cholesky factors

    @property
    def origin(self) -> Tensor:
        """Return the mean of the means, (D,): near the points, so that sums of squares about it lose no digits."""
        return self.means.mean(0)

    @property
    def log_scale(self) -> Tensor:
        """Return the logarithm of each number's deviation given the numbers before it, (K, D)."""
        if self.covariance in ("full", "tied"):
            return self.scale.diagonal(dim1=-2, dim2=-1).log().expand_as(self.means)
        return self.deviations.log()

    @property
    def deviations(self) -> Tensor:
        """Return the standard deviations of a spherical or diagonal covariance, (K, D)."""
        return self.scale[:, None].expand_as(self.means) if self.covariance == "spherical" else self.scale

    # ------------------------------------------------------------------------------------------------------- densities

    def log_prob_each(self, points: Tensor) -> Tensor:
        """Return log N(x; μ_k, Σ_k) of points (n, D) under every component, (n, K)."""
        x, means, D = points - self.origin, self.means - self.origin, self.means.shape[1]
        if self.covariance == "full":
            white = [_solve(L, (x - mean).T) for L, mean in zip(self.scale, means, strict=True)]
            squared = torch.stack([each.square().sum(0) for each in white], 1)
        elif self.covariance == "tied":
            squared = _squared_distances(_solve(self.scale, x.T).T, _solve(self.scale, means.T).T)
        else:
            precision = self.deviations**-2
            mixed = x @ (means * precision).T
            squared = (x**2 @ precision.T - 2 * mixed + (means**2 * precision).sum(1)).clamp_min(0)
        return -0.5 * squared - self.log_scale.sum(1) - D * HALF_LOG_2PI

    @torch.no_grad()
    def log_prob(self, points: Tensor) -> Tensor:
        """Return log p of points (N, D), (N,)."""
        parts = points.split(_rows(self.means))
        return torch.cat([(self.log_weights + self.log_prob_each(some.double())).logsumexp(1) for some in parts])

    @torch.no_grad()
    def log_prob_of_numbers(self, points: Tensor) -> Tensor:
        """Return log p(x_t | x_1 ... x_t−1) of each number of points (N, D), (N, D): by the chain rule, exactly.

        Given the numbers before it a number has a Gaussian in each component: row t of the Cholesky factor. So
        log p(x_1 ... x_t) is a logsumexp over the components, and its differences are the terms.
        """
        K, D = self.means.shape
        parts = points.split(max(1, TOGETHER // (K * D)))
        return torch.cat([self._numbers(some.double()) for some in parts])

    def _numbers(self, points: Tensor) -> Tensor:
        each = -0.5 * self.whitened(points).square() - self.log_scale - HALF_LOG_2PI  # (n, K, D)
        running = (self.log_weights[:, None] + each.cumsum(2)).logsumexp(1)  # (n, D)
        return running.diff(dim=1, prepend=torch.zeros_like(running[:, :1]))

    def whitened(self, points: Tensor) -> Tensor:
        """Return L_k⁻¹ (x − μ_k) of points (n, D), (n, K, D): in its component a point is standard normal."""
        if self.covariance == "full":
            parts = [_solve(L, (points - mean).T).T for L, mean in zip(self.scale, self.means, strict=True)]
            return torch.stack(parts, 1)
        if self.covariance == "tied":
            return _solve(self.scale, points.T).T[:, None] - _solve(self.scale, self.means.T).T
        return (points[:, None] - self.means) / self.deviations

    # ----------------------------------------------------------------------------------------------------------- draws

    def draws(self, number: int, generator: Generator) -> Tensor:
        """Return points (number, D) drawn from the mixture."""
        D, nothing = self.means.shape[1], self.means[0, :0]
        normal = torch.randn(number, D + 1, generator=generator, dtype=torch.float64, device=self.means.device)
        return torch.stack([self.draw(each, nothing) for each in normal])

    def draw(self, normal: Tensor, given: Tensor, temperature: float = 1.0) -> Tensor:
        """Return one point (D,) that begins with the numbers `given` (a,), the others drawn given them.

        Args:
            normal: (D + 1,), standard normal numbers: the first chooses the component, the others are its noise.
            temperature: scales the deviation within the component.
        """
        a, white = len(given), torch.stack([self._white_start(given, k) for k in range(len(self.means))])
        log_weights = self.log_weights - (0.5 * white.square() + self.log_scale[:, :a]).sum(1)
        cumulative = log_weights.softmax(0).cumsum(0)
        chosen = torch.searchsorted(cumulative, ndtr(normal[:1]) * cumulative[-1]).clamp_max(len(cumulative) - 1)
        k = int(chosen)
        noise = torch.cat([white[k], temperature * normal[1 + a :]])
        return torch.cat([given, (self.means[k] + self._coloured(noise, k))[a:]])

    def _factor(self, k: int) -> Tensor:
        return self.scale if self.covariance == "tied" else self.scale[k]

    def _white_start(self, start: Tensor, k: int) -> Tensor:
        """Return the first numbers (a,) of a point, whitened by one component."""
        a = len(start)
        difference = start - self.means[k, :a]
        if self.covariance in ("full", "tied"):
            return _solve(self._factor(k)[:a, :a], difference[:, None])[:, 0]
        return difference / self.deviations[k, :a]

    def _coloured(self, white: Tensor, k: int) -> Tensor:
        """Return L_k y of one white point (D,)."""
        return self._factor(k) @ white if self.covariance in ("full", "tied") else self.deviations[k] * white

    def in_order(self, order: Tensor) -> "GaussianMixture":
        """Return the mixture of the same numbers in another order, a permutation (D,)."""
        if self.covariance in ("full", "tied"):
            rows = self.scale[..., order, :]
            return self._replace(means=self.means[:, order], scale=torch.linalg.cholesky(rows @ rows.mT))
        scale = self.scale if self.covariance == "spherical" else self.scale[:, order]
        return self._replace(means=self.means[:, order], scale=scale)

    # ------------------------------------------------------------------------------------------------------------ width

    def narrowest(self) -> Tensor:
        """Return the least variance of each component in any direction, (K,), or (1,) of a tied covariance."""
        if self.covariance in ("full", "tied"):
            return torch.linalg.svdvals(self.scale).square().amin(-1).reshape(-1)
        return self.deviations.square().amin(1)


# ------------------------------------------------------------------------------------------------------------ the start


def check_points(points: Tensor, components: int) -> None:
    """Raise `UserError` unless points (N, D) are finite and at least as many as the components."""
    if points.ndim != 2:
        raise UserError(f"points must be (N, D), got {tuple(points.shape)}")
    if len(points) < components:
        raise UserError(f"{components} components need at least as many points, got {len(points)}; take fewer")
    if bad := int((~points.isfinite()).any(1).sum()):
        raise UserError(f"points must be finite numbers, got NaN or Inf in {bad} of {len(points)}; leave these out")


@torch.no_grad()
def first_mixture(
    points: Tensor, components: int, covariance: Covariance, *, regularization: float, generator: Generator
) -> GaussianMixture:
    """Return a mixture to begin with: means by k-means++, equal weights, and for all the width about the nearest mean.

    Raises:
        UserError: points that are not finite, or fewer than components.
    """
    check_points(points, components)
    points = points.double()
    means = plus_plus(points, components, generator)
    nearest = torch.cat([_squared_distances(p, means).argmin(1) for p in points.split(_rows(means))])
    away = points - means[nearest]
    if covariance in ("full", "tied"):
        width = away.T @ away / len(points)
        shape: tuple[int, ...] = (components, *width.shape) if covariance == "full" else width.shape
    else:
        width = away.square().mean(0)
        shape = (components, *width.shape)
    scale = _scale(covariance, width.expand(shape), regularization)
    equal = torch.full_like(means[:, 0], -math.log(components))
    return GaussianMixture(covariance, equal, means, scale)


def plus_plus(points: Tensor, k: int, generator: Generator) -> Tensor:
    """Return k of the points (N, D), each drawn in proportion to its squared distance to the nearest yet (Arthur and
    Vassilvitskii 2007)."""
    N, device = len(points), points.device
    chosen = [int(torch.randint(N, (1,), generator=generator, device=device))]
    distances = torch.full((N,), torch.inf, dtype=torch.float64, device=device)
    while len(chosen) < k:
        distances = torch.minimum(distances, (points - points[chosen[-1]]).square().sum(1))
        cumulative = distances.cumsum(0)
        u = torch.rand(1, generator=generator, dtype=torch.float64, device=device)
        chosen.append(min(int(torch.searchsorted(cumulative, u * cumulative[-1])), N - 1))
    return points[chosen]


@torch.no_grad()
def mixture_of(
    points: Tensor, responsibilities: Tensor, covariance: Covariance, *, regularization: float
) -> GaussianMixture:
    """Return the mixture that the M step makes of points (N, D) and responsibilities (N, K)."""
    check_points(points, responsibilities.shape[1])
    points, r = points.double(), responsibilities.double()
    D, centre = points.shape[1], points.mean(0).expand(r.shape[1], -1)
    shape = {"spherical": (), "diagonal": (D,), "full": (D, D), "tied": (D, D)}[covariance]
    scale = points.new_ones(shape if covariance == "tied" else (r.shape[1], *shape))
    before = GaussianMixture(covariance, r.new_zeros(r.shape[1]), centre, scale)
    return m_step(_sums(points, r, before, r.new_zeros(())), before, regularization)


# ------------------------------------------------------------------------------------------------------------------- EM


@torch.no_grad()
def e_step(points: Tensor, mixture: GaussianMixture) -> Moments:
    """Return the moments of points (N, D) under their posterior over the components."""
    found: Moments | None = None
    for some in points.split(_rows(mixture.means)):
        x = some.double()
        joint = mixture.log_weights + mixture.log_prob_each(x)  # (n, K)
        log_prob = joint.logsumexp(1, keepdim=True)
        moments = _sums(x, (joint - log_prob).exp(), mixture, log_prob.sum())
        found = moments if found is None else found.plus(moments)
    assert found is not None  # `split` yields at least one part
    return found


def _sums(points: Tensor, r: Tensor, mixture: GaussianMixture, log_likelihood: Tensor) -> Moments:
    x = points - mixture.origin
    if mixture.covariance == "full":
        squares = torch.stack([(each[:, None] * x).T @ x for each in r.T])
    elif mixture.covariance == "tied":
        squares = (r.sum(1, keepdim=True) * x).T @ x
    else:
        squares = r.T @ x**2
    return Moments(log_likelihood, x.new_tensor(len(x)), r.sum(0), r.T @ x, squares)


@torch.no_grad()
def m_step(moments: Moments, mixture: GaussianMixture, regularization: float) -> GaussianMixture:
    """Return the mixture that is best for the responsibilities, given the one that they come from.

    Args:
        regularization: added to the variance of each number.
    Raises:
        UserError: a covariance is singular in spite of it.
    """
    number = moments.weights[:, None]  # (K, 1)
    empty = number < EMPTY
    origin, before = mixture.origin, mixture.means - mixture.origin
    means = torch.where(empty, before, moments.sums / number.clamp_min(LEAST))  # about the origin
    safe = number.clamp_min(EMPTY)
    if mixture.covariance == "tied":
        crossed = moments.sums.T @ means
        about = moments.squares - crossed - crossed.T + (number * means).T @ means
        scale = _scale("tied", about / number.sum(), regularization)
    elif mixture.covariance == "full":
        about = moments.squares / safe[:, :, None] - means[:, :, None] * means[:, None]
        whole = torch.eye(means.shape[1], dtype=means.dtype, device=means.device)  # in the place of an empty one's
        fresh = _scale("full", torch.where(empty[:, :, None], whole, about), regularization)
        scale = torch.where(empty[:, :, None], mixture.scale, fresh)
    else:
        about = torch.where(empty, 1.0, moments.squares / safe - means**2)
        fresh = _scale(mixture.covariance, about, regularization)
        scale = torch.where(empty if fresh.ndim == 2 else empty[:, 0], mixture.scale, fresh)
    log_weights = moments.weights.clamp_min(LEAST).log().log_softmax(0)
    return GaussianMixture(mixture.covariance, log_weights, means + origin, scale)


def _scale(covariance: Covariance, about: Tensor, regularization: float) -> Tensor:
    """Return deviations or Cholesky factors of variances (K, D) or covariances (..., D, D), regularised."""
    if covariance in ("full", "tied"):
        eye = torch.eye(about.shape[-1], dtype=about.dtype, device=about.device)
        found, failed = torch.linalg.cholesky_ex((about + about.mT) / 2 + regularization * eye)
        singular = bool(failed.any())
    else:
        variances = about.clamp_min(0)
        found = ((variances.mean(1) if covariance == "spherical" else variances) + regularization).sqrt()
        singular = bool((found == 0).any())
    if singular or not bool(found.isfinite().all()):
        raise UserError(
            f"the {covariance} covariance of a component is singular: its points lie in a plane, or are one; take a "
            f"regularization above {regularization:g}, or fewer components"
        )
    return found


# ----------------------------------------------------------------------------------------------------------------- help


def _rows(means: Tensor) -> int:
    """Return how many points are taken together."""
    return max(1, TOGETHER // max(means.shape))


def _solve(L: Tensor, right: Tensor) -> Tensor:
    return torch.linalg.solve_triangular(L, right, upper=False)


def _squared_distances(x: Tensor, y: Tensor) -> Tensor:
    """Return squared distances of vectors (n, D) and (K, D), (n, K)."""
    return (x.square().sum(1, keepdim=True) - 2 * x @ y.T + y.square().sum(1)).clamp_min(0)
