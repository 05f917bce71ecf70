"""Nearest codes: our quantizer against vector-quantize-pytorch and against `torch.cdist` + `argmin`, in one run.

Each point is N vectors of d dimensions and K codes, drawn from N(0, 1) and the same for all, fp32. Forward is the
quantizer in eval mode without gradients; training is forward and backward of |z_q|² and its own losses in train mode,
the peer's moving average included; search is `nearest_indices`. Ours reads (B, d, 32, 32), the peer (B, 1024, d), each
its own layout, the peer at its defaults (`VectorQuantize(dim=d, codebook_size=K)`). Times are the best of a few after a
warm-up, or the only one where that took long. Each side of a point is timed in a fresh process, and so is each peak of
memory: of our search, and of the peer's forward, beyond what the process held before it. A point whose N x K scores
would not fit four times into free memory is not run with those that keep them. Codes that differ are looked at in fp64.

    python -m benchmarks.nearest [--quick] [--device cuda --peak-tflops T] [--out JSON]
    python -m benchmarks.nearest --memory    # of our search alone, at every point, into results/nearest_memory.json

With a peak, `roofline` is the share of it that our search computes, counting 2 N K d operations.
"""

import argparse
import gc
import json
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from itertools import product
from pathlib import Path
from typing import Any

import torch
from einops import rearrange
from torch import Tensor, nn
from vector_quantize_pytorch import VectorQuantize

from benchmarks.claim import Claim, verdict
from benchmarks.points import Figures, Point, compare
from smalti.common.record import record
from smalti.tokenizer.bottleneck.base import build_quantizer
from smalti.tokenizer.bottleneck.config import VQConfig
from smalti.tokenizer.nearest import nearest_indices

ROOT = Path(__file__).parents[1]
SIDE = 32  # of the grid of codes, so N is B x 1024
REPEATS, ENOUGH, SLOW = (
    30,
    1.0,
    4.0,
)  # runs; seconds after which no further run; seconds of a warm-up that counts as the run
MIB = 2**20
POINTS = [Point(N, d, K) for N, d, K in product((4096, 16384, 65536), (8, 64, 256), (512, 8192, 16384))]
QUICK_POINTS = [Point(4096, d, K) for d, K in product((8, 64, 256), (512, 8192))]
LARGE = Point(8192, 8, 262_144)


# ------------------------------------------------------------------------------------------------------- time, memory


def seconds(work: Callable[[], object], device: str) -> float:
    """Return the seconds of the fastest run."""

    def once() -> float:
        start = time.perf_counter()
        work()
        if device == "cuda":
            torch.cuda.synchronize()
        return time.perf_counter() - start

    gc.collect()
    warm = once()
    if warm > SLOW:
        return warm
    runs = [once()]
    while len(runs) < REPEATS and sum(runs) < ENOUGH:
        runs.append(once())
    return min(runs)


def fits(point: Point, device: str) -> bool:
    """Return whether free memory holds N x K scores four times over, as the peer and `argmin` keep them."""
    return free_memory(device) > 4 * 4 * point.N * point.K


def free_memory(device: str) -> int:
    if device == "cuda":
        return torch.cuda.mem_get_info()[0]
    lines = Path("/proc/meminfo").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("MemAvailable")) * 1024


def extra_memory(work: Callable[[], object], device: str) -> int:
    """Return the bytes that `work` took at its peak beyond those held before, in a process with little else to do."""
    if device == "cuda":
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        work()
        return torch.cuda.max_memory_allocated() - before
    Path("/proc/self/clear_refs").write_text("5")  # the peak of resident memory starts again from what is resident now
    before = status("VmRSS")
    work()
    return max(0, status("VmHWM") - before)


def status(name: str) -> int:
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(name)) * 1024


# ------------------------------------------------------------------------------------------------------ the contestants


def make_ours(codebook: Tensor) -> nn.Module:
    K, d = codebook.shape
    quantizer = build_quantizer(VQConfig(codebook_size=K, code_dim=d, normalize=False)).to(codebook.device)
    (table,) = quantizer.tables()
    table.place(torch.arange(K, device=codebook.device), codebook)
    return quantizer


def make_peer(codebook: Tensor) -> VectorQuantize:
    K, d = codebook.shape
    quantizer = VectorQuantize(dim=d, codebook_size=K).to(codebook.device)
    quantizer._codebook.embed.data.copy_(codebook[None])
    return quantizer


def as_images(vectors: Tensor) -> Tensor:
    """(N, d) -> (B, d, 32, 32)."""
    return rearrange(vectors, "(b h w) d -> b d h w", h=SIDE, w=SIDE).contiguous()


def our_step(quantizer: nn.Module, z_e: Tensor) -> None:
    quantized = quantizer(z_e)
    (quantized.z_q.square().mean() + quantized.codebook_loss + quantized.commitment_loss).backward()


def peer_step(quantizer: VectorQuantize, x: Tensor) -> None:
    z_q, _, loss = quantizer(x)
    (z_q.square().mean() + loss.sum()).backward()


@torch.no_grad()
def forward(quantizer: nn.Module, x: Tensor) -> Any:
    return quantizer(x)


# ------------------------------------------------------------------------------------------ parts, each its own process


def our_times(point: Point, device: str) -> Figures:
    vectors, codebook = point.draw(device)
    ours, z_e = make_ours(codebook), as_images(vectors)
    return {
        "ours_search": seconds(lambda: nearest_indices(vectors, codebook), device),
        "ours_forward": seconds(lambda: forward(ours.eval(), z_e), device),
        "ours_training": seconds(lambda: our_step(ours.train(), z_e.requires_grad_()), device),
    }


def other_times(point: Point, device: str) -> Figures:
    """Return the others' seconds, and whether their codes are ours. Training is last: it moves the peer's codebook."""
    vectors, codebook = point.draw(device)
    peer, tokens = make_peer(codebook), rearrange(vectors, "(b n) d -> b n d", n=SIDE * SIDE)
    figures = {
        "cdist_argmin": seconds(lambda: torch.cdist(vectors, codebook).argmin(1), device),
        "peer_forward": seconds(lambda: forward(peer.eval(), tokens), device),
    }
    codes = forward(make_ours(codebook).eval(), as_images(vectors)).indices.flatten()
    figures |= compare(vectors, codebook, codes, forward(peer, tokens)[1].flatten())
    return figures | {"peer_training": seconds(lambda: peer_step(peer.train(), tokens.requires_grad_()), device)}


def our_memory(point: Point, device: str) -> Figures:
    vectors, codebook = point.draw(device)
    nearest_indices(vectors[:64], codebook[:64])  # what is loaded at first use is not the search's
    return {"ours_extra_mib": extra_memory(lambda: nearest_indices(vectors, codebook), device) / MIB}


def peer_memory(point: Point, device: str) -> Figures:
    vectors, codebook = point.draw(device)
    tokens, peer = vectors[None], make_peer(codebook).eval()
    forward(make_peer(codebook[:64]).eval(), tokens[:, :64])
    return {"peer_extra_mib": extra_memory(lambda: forward(peer, tokens), device) / MIB}


def large(point: Point, device: str) -> Figures:
    """Return memory, time, and a comparison with the codes of an fp64 search a few vectors at a time."""
    vectors, codebook = point.draw(device)
    memory = our_memory(point, device)
    e = codebook.double()
    scores = (part.double() @ e.T - e.square().sum(1) / 2 for part in vectors.split(64))
    exact = torch.cat([score.argmax(1) for score in scores])
    ours = seconds(lambda: nearest_indices(vectors, codebook), device)
    return memory | {"ours_search": ours} | compare(vectors, codebook, nearest_indices(vectors, codebook), exact)


PARTS = {
    "our_times": our_times,
    "other_times": other_times,
    "our_memory": our_memory,
    "peer_memory": peer_memory,
    "large": large,
}


def fresh(part: str, point: Point, device: str) -> Figures:
    """Return a part's figures from its own process; where that was killed, as for too much memory, the signal alone."""
    command = [sys.executable, "-m", "benchmarks.nearest", "--device", device, "--part", part]
    ended = subprocess.run(
        [*command, "--point", *map(str, asdict(point).values())], cwd=ROOT, capture_output=True, text=True
    )
    if ended.returncode < 0:
        return {f"{part}_killed_by_signal": -ended.returncode}
    if ended.returncode:
        raise RuntimeError(f"{part} of {point} failed:\n{ended.stderr}")
    return json.loads(ended.stdout.splitlines()[-1])


def measure(point: Point, device: str, peak_tflops: float | None) -> Figures:
    figures = asdict(point) | fresh("our_times", point, device) | fresh("our_memory", point, device)
    figures["peer_fits"] = fits(point, device)
    if figures["peer_fits"]:
        figures |= fresh("other_times", point, device) | fresh("peer_memory", point, device)
    for ours, other in (("search", "cdist_argmin"), ("forward", "peer_forward"), ("training", "peer_training")):
        if {f"ours_{ours}", other} <= figures.keys():
            figures[f"{ours}_ratio"] = figures[other] / figures[f"ours_{ours}"]
    if peak_tflops and "ours_search" in figures:
        figures["roofline"] = 2 * point.N * point.K * point.d / figures["ours_search"] / (peak_tflops * 1e12)
    return figures


# --------------------------------------------------------------------------------------------------------- the claims


@dataclass(frozen=True, kw_only=True)
class Check:
    """A claim about those points of the table that have its figure."""

    claim: Claim
    figure: str
    of: Callable[[Figures], bool] = lambda point: True

    def judge(self, points: list[Figures]) -> Figures | None:
        points = [point for point in points if self.figure in point and self.of(point)]
        if not points:
            return None
        judged = self.claim.judge([(point,) for point in points])
        values = judged.pop("per_seed")
        worst = points[values.index(judged["value"])]
        return judged | {"worst_at": {size: worst[size] for size in "NdK"}, "points": len(points)}


def check(
    text: str, relation: str, threshold: float, figure: str, of: Callable[[Figures], bool] = lambda _: True
) -> Check:
    claim = Claim(text=text, relation=relation, threshold=threshold, value=lambda point: float(point[figure]))
    return Check(claim=claim, figure=figure, of=of)


def checks() -> Iterator[Check]:
    def at(d: int, many: bool | None = None) -> Callable[[Figures], bool]:
        return lambda point: point["d"] == d and many in (None, point["K"] >= 8192)

    for d, few, many, training in ((8, 12, 40, 9), (64, 5, 10, 4), (256, 2, 3, 3)):
        yield check(f"peer's forward over ours, d = {d}, K = 512", "at least", few, "forward_ratio", at(d, many=False))
        yield check(
            f"peer's forward over ours, d = {d}, K >= 8192", "at least", many, "forward_ratio", at(d, many=True)
        )
        yield check(f"peer's training step over ours, d = {d}", "at least", training, "training_ratio", at(d))
    yield check("cdist + argmin over our search", "at least", 1, "search_ratio")
    yield check("extra memory of our search, MiB", "at most", 32, "ours_extra_mib", lambda point: point["K"] < LARGE.K)
    yield check(
        "extra memory at K = 262,144, MiB", "at most", 512, "ours_extra_mib", lambda point: point["K"] == LARGE.K
    )
    yield check("codes equal or tied in fp32", "at least", 1, "codes_are_ties")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="N = 4096 alone, K up to 8192")
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--peak-tflops", type=float, help="the device's TF32 peak, dense")
    parser.add_argument("--memory", action="store_true", help="our extra memory alone: neither times nor the peer")
    parser.add_argument("--out", type=Path)
    parser.add_argument("--part", choices=PARTS, help=argparse.SUPPRESS)  # what `fresh` asks of its processes
    parser.add_argument("--point", type=int, nargs=3, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.part:
        print(json.dumps(PARTS[args.part](Point(*args.point), args.device)))
        return

    points = []
    for point in QUICK_POINTS if args.quick else POINTS:
        if args.memory:
            points.append(asdict(point) | fresh("our_memory", point, args.device))
        else:
            points.append(measure(point, args.device, args.peak_tflops))
        print(json.dumps(points[-1]), flush=True)
    points.append(asdict(LARGE) | fresh("large", LARGE, args.device))
    judged = [result for result in (each.judge(points) for each in checks()) if result]
    protocol = (__doc__ or "").split("\n\n")[1].replace("\n", " ")
    result = record("benchmarks.nearest", ["vector-quantize-pytorch"]) | {
        "protocol": protocol,
        "checks": judged,
        "points": points,
    }
    out = args.out or ROOT / f"benchmarks/results/nearest{'_memory' * args.memory}.json"
    out.parent.mkdir(parents=True, exist_ok=True)
    out.write_text(json.dumps(result, indent=2) + "\n")
    print(*map(verdict, judged), sep="\n")


if __name__ == "__main__":
    main()
