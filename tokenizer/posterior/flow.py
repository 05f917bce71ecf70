"""`flow`: noise through invertible networks, which gives z correlations, tails and modes that no formula has.

    ε ~ N(0, I),   y = T_K ∘ ... ∘ T_1(ε; c),   z = μ + σ y
    log q(z | x) = log N(ε; 0, I) − Σ_k log |det ∂T_k| − Σ_d log σ_d

with μ, log σ and the context c from the encoder. Each T_k is autoregressive in its input: a draw is one pass, and log q
of a z from elsewhere D passes. Number d of `iaf` is y_d = s(ε_<d, c) ε_d + m(ε_<d, c): Kingma et al. (2016),
https://arxiv.org/abs/1606.04934. That of `nsf` is a rational-quadratic spline of 8 pieces on [−5, 5] whose shape
depends on (ε_<d, c), and the identity beyond: Durkan et al. (2019), https://arxiv.org/abs/1906.04032. The order of the
numbers is turned round from one T to the next. Networks and transforms are zuko's, https://zuko.readthedocs.io.

The log det belongs to log q: the density of the noise alone, p(z_0) for p(z_K), is a wrong KL that training can lower
without end. μ and σ stand last, where the paper has them first: the networks and the splines see standard numbers.

Bounds: log σ softly in (−10, 10), each T's slope in (1e-3, 1e3), c in (−1, 1) by tanh. The last layers start at zero:
T is the identity, and q the diagonal Gaussian N(μ, σ²). There is no KL, mean or deviation in closed form: mean and
deviation are those of `POINTS` draws, of the same noise for every image.
"""

from collections.abc import Callable
from functools import cache
from typing import Any, TypeVar

import torch
from torch import Generator, Tensor, nn
from torch.distributions import Distribution
from torch.func import functional_call

from smalti.tokenizer.posterior.base import Draw, Posterior, in_fp32, noise_for
from smalti.tokenizer.posterior.config import FlowConfig
from smalti.tokenizer.posterior.normal import DiagonalNormal, bounded, standard_log_prob

POINTS = 64  # draws of which mean and deviation are taken
TOGETHER = 2**22  # numbers that a transform moves at once
R = TypeVar("R")


class Transforms(nn.Module):
    """T = T_K ∘ ... ∘ T_1, zuko's modules, which make a transform of a context (B, P, C)."""

    def __init__(self, config: FlowConfig, dim: int):
        super().__init__()
        chosen = _zuko_flows()[config.transform]
        shape = {"transforms": config.transforms, "hidden_features": config.hidden, "activation": nn.SiLU}
        with torch.device("cpu"):  # zuko looks at its masks, which on the meta device have no numbers
            chain = chosen(dim, config.context, **shape).transform
        self.chain = chain.to(torch.get_default_device())
        for each in self.chain.transforms:
            nn.init.zeros_(each.hyper[-1].weight)
            nn.init.zeros_(each.hyper[-1].bias)

    def forward(self, context: Tensor, use: Callable[[Any], R]) -> R:
        """Return what `use` makes of the transform T at a context.

        The networks run while `use` does, so it runs in here, where `functional_call` puts weights of another type.
        """
        return use(self.chain(context))


def _zuko_flows() -> dict[str, Any]:
    """Return zuko's flows by our names; its MAF, called in the direction of one pass, is IAF.

    Importing zuko turns the checks of torch.distributions off for the whole process; here they stay as they were.
    """
    before = Distribution._validate_args
    from zuko.flows import MAF, NSF

    Distribution.set_default_validate_args(before)
    return {"iaf": MAF, "nsf": NSF}


@FlowConfig.register
class FlowPosterior(Posterior):
    """The flow posterior; h is μ, log σ and c."""

    config: FlowConfig

    def __init__(self, config: FlowConfig, dim: int):
        super().__init__(config, dim)
        self.transforms = Transforms(config, dim)

    def normal(self, h: Tensor) -> DiagonalNormal:
        """Return N(μ, σ²), the last step, which h (B, P, N), fp32, stands for."""
        mean, log_scale, _ = h.split([self.dim, self.dim, self.config.context], dim=-1)
        return DiagonalNormal(mean, bounded(log_scale))

    def transform(self, h: Tensor, use: Callable[[Any], R]) -> R:
        """Return what `use` makes of T at the context of h, with weights of the type of h."""
        context = h[..., 2 * self.dim :].tanh()
        weights = {name: weight.to(h.dtype) for name, weight in self.transforms.named_parameters()}
        found: R = functional_call(self.transforms, weights, (context, use))
        return found

    @in_fp32
    def draw(self, h: Tensor, samples: int = 1, generator: Generator | None = None) -> Draw:
        normal, noise = self.normal(h), noise_for(h, samples, self.dim, generator)
        y, log_det = self.transform(h, lambda T: T.call_and_ladj(noise))
        return Draw(normal.move(y), standard_log_prob(noise) - log_det - normal.log_det())

    @in_fp32
    def log_prob(self, h: Tensor, z: Tensor) -> Tensor:
        normal = self.normal(h)
        y = normal.noise_of(z.to(h.dtype))
        noise, log_det = self.transform(h, lambda T: T.inv.call_and_ladj(y))
        return standard_log_prob(noise) + log_det - normal.log_det()

    @in_fp32
    def center(self, h: Tensor) -> Tensor:
        mean, _ = self.moments(h)
        return self.normal(h).move(mean)

    @in_fp32
    def deviation(self, h: Tensor) -> Tensor:
        _, variance = self.moments(h)
        return self.normal(h).deviation() * variance.sqrt()

    def moments(self, h: Tensor) -> tuple[Tensor, Tensor]:
        """Return mean and variance (B, P, D) of T(ε) at the context of h, fp32, over the fixed points ε."""
        B, P, _ = h.shape
        points = fixed_points(self.dim)[:, None, None].to(h)

        def summed(T: Any) -> tuple[Tensor, Tensor]:
            sums = squares = h.new_zeros(B, P, self.dim, dtype=torch.float64)  # squares cancel where y is far from 0
            for some in points.split(max(1, TOGETHER // max(1, B * P * self.dim))):
                y = T(some.expand(-1, B, P, -1)).double()
                sums, squares = sums + y.sum(0), squares + y.square().sum(0)
            return sums, squares

        sums, squares = self.transform(h, summed)
        mean = sums / POINTS
        return mean.to(h), (squares / POINTS - mean.square()).clamp_min(0).to(h)


@cache
def fixed_points(dim: int) -> Tensor:
    """Return `POINTS` draws of N(0, I), (POINTS, D) float64, the same at every call.

    They are pairs of opposite ones, and each number has variance 1, so that a transform that shifts and scales has
    exactly its mean and deviation.
    """
    half = torch.randn(POINTS // 2, dim, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    half = half / half.square().mean(0).sqrt()
    return torch.cat([half, -half])
