"""The gradient estimators against the gradient they estimate, on a problem small enough to enumerate it.

    z (N, D) encoder outputs    codes (K, D)    q(k | z) = softmax_k(−s |z − e_k|²), the posterior of our `gumbel`
    f(e) = |x − g(e)|²          what a drawn code costs, g a small fixed tanh network: smooth, and not quadratic in e
    J(z) = Σ_k q(k | z) f(e_k)  the objective, so ∇J is a sum of K terms; autograd takes it exactly

Straight-through (Bengio et al. 2013, https://arxiv.org/abs/1308.3432), rotation (Fifty et al. 2024,
https://arxiv.org/abs/2410.06424), Gumbel, hard forward and soft backward (Jang et al. 2017,
https://arxiv.org/abs/1611.01144), all three through the product's own functions and autograd, and REINFORCE (Williams
1992), f(e_k) ∇log q(k | z) without and with the baseline E f. Mean and variance over the drawn code are enumerated, so
exact, but for Gumbel, whose noise is sampled; what the sampling adds to its squared bias is subtracted.

Five problems (seeds 0 to 4), each a decoder, 16 codes from our K-means and 256 z, on the unit sphere in 3 dimensions as
our codes are by default; x is what the decoder makes of a point near z. Gumbel: 2,048 draws a z and temperature, 1,024
along the sharpness. Over the z of a problem, and relative to the exact gradient's own size:
    bias      (Σ_z |E g − ∇J|² / Σ_z |∇J|²)^½        cosine    of E g and ∇J, all z as one long vector
    noise     (Σ_z E |g − E g|² / Σ_z |∇J|²)^½       downhill  share of z where E g · ∇J > 0; noise² is the variance

    python -m benchmarks.estimators [--out JSON] [--figure PNG]

Writes the figures with their spread over the problems to JSON, and the picture in the docs. A minute on one core.
"""

import argparse
import json
import math
import statistics
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from fractions import Fraction
from pathlib import Path
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Generator, Tensor

from benchmarks.claim import mean_and_spread
from smalti.common.record import record
from smalti.tokenizer.bottleneck.config import GumbelConfig
from smalti.tokenizer.bottleneck.estimators import rotation, straight_through
from smalti.tokenizer.bottleneck.gumbel import GumbelQuantizer

Figures = dict[str, float]


@dataclass(frozen=True, kw_only=True)
class Protocol:
    problems: int = 5
    vectors: int = 256  # N
    codes: int = 16  # K
    dim: int = 3  # D
    normalize: bool = True
    sharpness: float = 4.0  # q then has about two codes in play
    sharpnesses: tuple[float, ...] = (0.5, 1, 2, 4, 8, 16, 32)
    temperatures: tuple[float, ...] = (2, 1, 1 / 2, 1 / 4, 1 / 8, 1 / 16)  # ours falls from 1 to 1/16
    draws: int = 2048  # of Gumbel noise, a z
    swept_temperatures: tuple[float, ...] = (1, 1 / 16)
    swept_draws: int = 1024


class Moments(NamedTuple):
    """The mean and variance of an estimator over the drawn code, at each z."""

    mean: Tensor  # (N, D)
    variance: Tensor  # (N,) E |g − E g|²
    draws: float  # that they were estimated from; infinite where they were enumerated


class Problem:
    """A decoder, its codes, and encoder outputs with an image each, in float64, so that rounding does not count."""

    def __init__(self, seed: int, protocol: Protocol):
        generator = torch.Generator().manual_seed(seed)
        N, K, D = protocol.vectors, protocol.codes, protocol.dim
        config = GumbelConfig(codebook_size=K, code_dim=D, normalize=protocol.normalize)
        self.quantizer = GumbelQuantizer(config).double().train()
        self.quantizer.initialize(torch.randn(4096, D, generator=generator), generator)
        self.decoder = TanhDecoder(D, generator)
        self.z = self.prepare(_normal(generator, N, D))
        self.x = self.decoder(self.prepare(self.z + 0.5 * _normal(generator, N, D)))  # (N, P)
        self.sharpen(protocol.sharpness)

    def sharpen(self, sharpness: float) -> None:
        torch.nn.init.constant_(self.quantizer.log_sharpness, math.log(sharpness))

    @property
    def codes(self) -> Tensor:
        return self.quantizer.vectors.detach()  # (K, D)

    def prepare(self, z: Tensor) -> Tensor:
        """Return the vectors (N, D) on the sphere of the codes."""
        return self.quantizer.prepare(z)

    def log_q(self, z: Tensor) -> Tensor:
        return self.quantizer.log_posterior(self.prepare(z)[..., None])  # (N, K)

    def nearest(self, z: Tensor) -> Tensor:
        return self.log_q(z).argmax(1)  # (N,)

    def loss(self, z_q: Tensor) -> Tensor:
        """Return f of a vector for each z: (..., N, D) -> (..., N)."""
        return (self.decoder(z_q) - self.x).square().sum(-1)

    def losses(self) -> Tensor:
        """Return f of every code for each z."""
        return self.loss(self.codes[:, None].expand(-1, len(self.z), -1)).T  # (N, K)

    def gradient(self) -> Tensor:
        """Return ∇J, exactly."""
        z = self.z.clone().requires_grad_()
        (gradient,) = torch.autograd.grad((self.log_q(z).exp() * self.losses()).sum(), z)
        return gradient  # (N, D)


class TanhDecoder:
    """The decoder g with one hidden layer: (..., D) -> (..., 8)."""

    def __init__(self, dim: int, generator: Generator, hidden: int = 16, outputs: int = 8):
        self.inner, self.bias = _normal(generator, dim, hidden) / dim**0.5, _normal(generator, hidden)
        self.outer = _normal(generator, hidden, outputs) / hidden**0.5

    def __call__(self, e: Tensor) -> Tensor:
        return torch.tanh(e @ self.inner + self.bias) @ self.outer


def _normal(generator: Generator, *shape: int) -> Tensor:
    return torch.randn(*shape, generator=generator, dtype=torch.float64)


# ------------------------------------------------------------------------------------------------------ the estimators


Estimator = Callable[[Tensor, Tensor], Tensor]  # (z_e, e) -> z_q, as in tokenizer.quantizers.estimators


def through(problem: Problem, estimator: Estimator) -> Tensor:
    """Return the gradient at z if code k is drawn, from the decoder's gradient through the estimator: (N, K, D)."""
    N, K = len(problem.z), len(problem.codes)
    z = problem.z.repeat(K, 1).requires_grad_()  # (K N, D), one z for each code it may draw
    e = problem.codes.repeat_interleave(N, 0)
    z_q = estimator(problem.prepare(z)[..., None], e[..., None])
    loss = problem.loss(rearrange(z_q, "(k n) d 1 -> k n d", k=K)).sum()
    return rearrange(torch.autograd.grad(loss, z)[0], "(k n) d -> n k d", k=K)


def reinforce(problem: Problem, baseline: Tensor) -> Tensor:
    """Return (f(e_k) − baseline) ∇log q(k | z) with one baseline (N,) for every code: (N, K, D)."""
    N, K = len(problem.z), len(problem.codes)
    z = problem.z.repeat(K, 1).requires_grad_()  # (K N, D)
    log_q = problem.log_q(z).gather(1, torch.arange(K).repeat_interleave(N)[:, None])  # (K N, 1), of its own code
    advantage = rearrange(problem.losses() - baseline[:, None], "n k -> (k n) 1")
    return rearrange(torch.autograd.grad((advantage * log_q).sum(), z)[0], "(k n) d -> n k d", k=K)


def no_baseline(problem: Problem) -> Tensor:
    return torch.zeros(len(problem.z), dtype=problem.z.dtype)


def mean_baseline(problem: Problem) -> Tensor:
    """Return E f, for which training uses a running mean of the losses or a learned critic."""
    return (problem.log_q(problem.z).exp() * problem.losses()).sum(1).detach()  # (N,)


ENUMERATED: dict[str, Callable[[Problem], Tensor]] = {
    "straight_through": lambda problem: through(problem, straight_through),
    "rotation": lambda problem: through(problem, rotation),
    "reinforce": lambda problem: reinforce(problem, no_baseline(problem)),
    "reinforce_baseline": lambda problem: reinforce(problem, mean_baseline(problem)),
}  # each (N, K, D), the estimate that drawing code k gives


def enumerate_codes(problem: Problem, estimates: Tensor) -> Moments:
    """Return the exact moments of estimates (N, K, D) under q."""
    q = problem.log_q(problem.z).exp().detach()  # (N, K)
    mean = torch.einsum("nk,nkd->nd", q, estimates)
    return Moments(mean, (q * (estimates - mean[:, None]).square().sum(2)).sum(1), math.inf)


def draw_gumbel(problem: Problem, temperature: float, draws: int, at_once: int = 256) -> Moments:
    """Return the moments of the gradient at z from our `gumbel` quantizer in training, over draws of its noise."""
    problem.quantizer.temperature = temperature
    shift = enumerate_codes(problem, through(problem, straight_through)).mean  # keeps the sums of squares small
    first, second = torch.zeros_like(problem.z), torch.zeros(len(problem.z), dtype=problem.z.dtype)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        for _ in range(draws // at_once):
            z = problem.z.repeat(at_once, 1).requires_grad_()
            z_q = problem.quantizer.quantize(problem.prepare(z)[..., None]).z_q
            loss = problem.loss(rearrange(z_q, "(m n) d 1 -> m n d", m=at_once)).sum()
            off = rearrange(torch.autograd.grad(loss, z)[0], "(m n) d -> m n d", m=at_once) - shift
            first, second = first + off.sum(0), second + off.square().sum((0, 2))
    mean = first / draws
    return Moments(shift + mean, (second / draws - mean.square().sum(1)) * draws / (draws - 1), draws)


# --------------------------------------------------------------------------------------------------------- the measure


def compare(moments: Moments, exact: Tensor) -> Figures:
    """Return bias, noise, cosine and, where nothing was sampled, downhill, as the module defines them."""
    size, variance = exact.square().sum(), moments.variance.sum()
    sampled = variance / moments.draws  # in expectation, what a mean over draws has too much of in its square
    squared_bias = (moments.mean - exact).square().sum() - sampled
    squared_mean = moments.mean.square().sum() - sampled
    figures = {
        "bias": (squared_bias.clamp_min(0) / size).sqrt(),
        "noise": (variance / size).sqrt(),
        "cosine": (moments.mean * exact).sum() / (squared_mean * size).sqrt(),
    }
    if math.isinf(moments.draws):
        figures["downhill"] = ((moments.mean * exact).sum(1) > 0).double().mean()
    return {name: value.item() for name, value in figures.items()}


def measure(problem: Problem, temperatures: Sequence[float], draws: int) -> dict[str, Figures]:
    """Return the figures of every estimator at the problem's sharpness; Gumbel's are named after their temperature."""
    exact = problem.gradient()
    enumerated = {name: enumerate_codes(problem, estimates(problem)) for name, estimates in ENUMERATED.items()}
    drawn = {f"gumbel_{tau:g}": draw_gumbel(problem, tau, draws) for tau in temperatures}
    return {name: compare(moments, exact) for name, moments in (enumerated | drawn).items()}


def codes_in_play(problem: Problem) -> float:
    """Return exp H(q), averaged over z: 1 when the choice is hard, K when it is uniform."""
    log_q = problem.log_q(problem.z)
    return (-(log_q.exp() * log_q).sum(1)).exp().mean().item()


def hard_step(problem: Problem, direction: Tensor, length: float = 0.5) -> Figures:
    """Return what a step against `direction` (N, D) does to f(nearest code), whose gradient is 0 almost everywhere."""
    before = problem.nearest(problem.z)
    after = problem.nearest(problem.z - length * F.normalize(direction, dim=1))
    losses, changed = problem.losses(), before != after
    lower = losses.gather(1, after[:, None]) < losses.gather(1, before[:, None])
    return {"changed": changed.double().mean().item(), "lowered_of_changed": lower[changed, 0].double().mean().item()}


def hard_steps(problem: Problem) -> dict[str, Figures]:
    """Return the effect of steps along the deterministic quantizers' gradients at z, and along noise, to compare."""
    rows, nearest = torch.arange(len(problem.z)), problem.nearest(problem.z)
    directions = {
        "straight_through": through(problem, straight_through)[rows, nearest],
        "rotation": through(problem, rotation)[rows, nearest],
        "random": _normal(torch.Generator().manual_seed(0), *problem.z.shape),
    }
    return {name: hard_step(problem, direction) for name, direction in directions.items()}


# ---------------------------------------------------------------------------------------------------------- the result


def over_problems(of_each: Sequence[dict[str, Figures]]) -> dict[str, Any]:
    return {name: mean_and_spread([figures[name] for figures in of_each]) for name in of_each[0]}


def compare_all(protocol: Protocol) -> dict[str, Any]:
    """Return the result but its record: at one sharpness, along the sharpness, and after a step on the hard choice."""
    problems = [Problem(seed, protocol) for seed in range(protocol.problems)]
    play = statistics.fmean(map(codes_in_play, problems))
    sharpness: dict[str, Any] = {}
    result = {
        "protocol": asdict(protocol),
        "codes_in_play": play,
        "estimators": over_problems([measure(p, protocol.temperatures, protocol.draws) for p in problems]),
        "hard_step": over_problems([hard_steps(p) for p in problems]),
        "sharpness": sharpness,
    }
    for factor in protocol.sharpnesses:
        for problem in problems:
            problem.sharpen(factor)
        of_each = [measure(p, protocol.swept_temperatures, protocol.swept_draws) for p in problems]
        play = statistics.fmean(map(codes_in_play, problems))
        sharpness[f"{factor:g}"] = {"codes_in_play": play, "estimators": over_problems(of_each)}
    return result


# --------------------------------------------------------------------------------------------------------- the picture


LOOKS = {  # of those that have a line: label and colour
    "straight_through": ("straight-through", "tab:red"),
    "rotation": ("rotation", "tab:orange"),
    "gumbel_1": ("Gumbel, τ = 1", "tab:blue"),
    "gumbel_0.0625": ("Gumbel, τ = 1/16", "midnightblue"),
    "reinforce": ("REINFORCE", "yellowgreen"),
    "reinforce_baseline": ("REINFORCE, baseline", "tab:green"),
}


def draw(result: dict[str, Any], path: Path) -> None:
    """Draw three panels: bias against noise of one draw, the error left by n draws, and the effect of q's sharpness."""
    from matplotlib.figure import Figure  # without pyplot there is no display and no backend to choose

    figure = Figure(figsize=(12.6, 5), layout="constrained")
    one, many, sharp = figure.subplots(1, 3, width_ratios=(1.2, 1, 1))
    draw_trade_off(one, result["estimators"])
    draw_averaging(many, result["estimators"])
    draw_sharpness(sharp, result)
    for axes in (one, many, sharp):
        axes.title.set_size(13.5)
        axes.xaxis.label.set_size(12)
        axes.yaxis.label.set_size(12)
        axes.grid(alpha=0.25)
        axes.spines[["top", "right"]].set_visible(False)
    handles, labels = many.get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=len(labels), fontsize=12, frameon=False)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, format="png", dpi=144)


def draw_trade_off(axes: Any, figures: dict[str, Any]) -> None:
    bias, noise = ({name: spreads[key]["mean"] for name, spreads in figures.items()} for key in ("bias", "noise"))
    gumbel = sorted((name for name in figures if name.startswith("gumbel")), key=temperature_of)
    axes.plot([bias[name] for name in gumbel], [noise[name] for name in gumbel], color="tab:blue")
    for name in gumbel:
        tau = Fraction(temperature_of(name))
        label, offset, side = (
            (f"τ = {tau}", (-8, -12), "right") if name == gumbel[-1] else (f"τ = {tau}", (9, 0), "left")
        )
        label = f"Gumbel, {label}" if name == gumbel[0] else label
        place = {"textcoords": "offset points", "ha": side, "fontsize": 12, "color": "tab:blue"}
        axes.annotate(label, (bias[name], noise[name]), offset, **place)
        axes.plot(bias[name], noise[name], "o", color=LOOKS.get(name, LOOKS["gumbel_1"])[1], markersize=8)
    for name, label, offset, side in (
        ("straight_through", "straight-through", (-24, 13), "left"),
        ("rotation", "rotation", (0, -20), "center"),
        ("reinforce", "REINFORCE", (8, -15), "left"),
        ("reinforce_baseline", "REINFORCE,\nbaseline", (10, -26), "left"),
    ):
        axes.plot(bias[name], noise[name], "o", color=LOOKS[name][1], markersize=11, zorder=3, clip_on=False)
        place = {"textcoords": "offset points", "ha": side, "fontsize": 12, "color": LOOKS[name][1]}
        axes.annotate(label, (bias[name], noise[name]), offset, **place)
    axes.set(
        title="One draw: bias or noise",
        xlabel="bias / size of the gradient",
        ylabel="noise (std) / size of the gradient",
    )
    axes.set(xlim=(0, 0.75), yscale="log", ylim=(0.5, 10))
    axes.set_yticks([0.5, 1, 2, 5, 10], ["0.5", "1", "2", "5", "10"])


def draw_averaging(axes: Any, figures: dict[str, Any]) -> None:
    draws = [2 ** (i / 4) for i in range(41)]
    for name, (label, colour) in LOOKS.items():
        bias, noise = figures[name]["bias"]["mean"], figures[name]["noise"]["mean"]
        axes.plot(
            draws, [math.hypot(bias, noise / math.sqrt(n)) for n in draws], label=label, color=colour, linewidth=2.5
        )
    axes.set(
        title="n draws: noise averages out, bias stays",
        xlabel="draws averaged, n",
        ylabel="error / size of the gradient",
    )
    axes.set(xscale="log", yscale="log", xlim=(1, 1024))
    axes.set_xticks([1, 10, 100, 1000], ["1", "10", "100", "1,000"])
    axes.set_yticks([0.1, 0.2, 0.5, 1, 2, 5], ["0.1", "0.2", "0.5", "1", "2", "5"])


def draw_sharpness(axes: Any, result: dict[str, Any]) -> None:
    swept = list(result["sharpness"].values())
    play = [at["codes_in_play"] for at in swept]
    for name in ("straight_through", "rotation", "gumbel_1", "gumbel_0.0625", "reinforce"):
        cosine = [at["estimators"][name]["cosine"]["mean"] for at in swept]
        axes.plot(play, cosine, "o-", color=LOOKS[name][1], linewidth=2.5, markersize=5)
    axes.axvline(result["codes_in_play"], color="0.5", linestyle=":")
    axes.annotate(
        "left panels", (result["codes_in_play"], 0.03), (4, 0), textcoords="offset points", color="0.4", fontsize=11
    )
    axes.set(title="A harder choice: direction is lost", xlabel="codes in play, exp H(q): soft → hard")
    axes.set(ylabel="cosine of mean estimate and gradient", xscale="log", xlim=(16, 1.1), ylim=(0, 1.03))
    axes.set_xticks([16, 8, 4, 2, 1.2], ["16", "8", "4", "2", "1.2"])
    axes.minorticks_off()


def temperature_of(name: str) -> float:
    return float(name.removeprefix("gumbel_"))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results/estimators.json"))
    parser.add_argument("--figure", type=Path, default=Path("docs/estimators.png"))
    args = parser.parse_args()
    torch.set_num_threads(1)
    result = record("benchmarks.estimators") | compare_all(Protocol())
    args.out.parent.mkdir(parents=True, exist_ok=True)
    args.out.write_text(json.dumps(result, indent=2) + "\n")
    draw(result, args.figure)
    for name, spreads in result["estimators"].items():
        print(f"{name:18}", *(f"{key} {spread['mean']:.3f}" for key, spread in spreads.items()), sep="  ")


if __name__ == "__main__":
    main()
