"""Measure how many codes a second a prior trains on: ours beside an equal x-transformers, interleaved in one process.

A step is forward, backward and AdamW as torch makes it by default, under bf16 autocast over fp32 weights, without
dropout, on one batch of random codes. Both read T codes and predict T; the peer (rotary positions, RMSNorm, SwiGLU)
with `attn_flash` and without, and the faster of the two counts. Ours is timed with attention as plain products and as
the fused SDPA: what we ship takes one or the other by the length T, and that is `ours`. After a warm-up all are timed
in turn, some steps a round; of each the fastest round counts, and all are kept.

    python -m benchmarks.prior_training [--shapes 5m 38m] [--repeats 3] [--output JSON]
    python -m benchmarks.prior_training --device cuda --peak-tflops T  # 343m: ours, compiled, the peer with attn_flash

With the device's dense bf16 peak, `utilisation` is the share of it that a step computes: 6 operations a token for each
weight of blocks and head, and for attention those that the causal mask leaves.
"""

import argparse
import json
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from pathlib import Path
from typing import Any
from unittest.mock import patch

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from benchmarks.claim import Claim, verdict
from benchmarks.shapes import LARGE, MIDDLE, SMALL, Shape, make_prior, make_x_transformer, parameters
from benchmarks.timing import Work, interleaved
from smalti.common.record import record
from smalti.prior.code_head import nll_each
from smalti.prior.transformer import layers

ROOT = Path(__file__).parents[1]
STEPS = 4  # a round
FASTER = 1.3  # than the peer
Figures = dict[str, Any]


BATCHES = {"cpu": {SMALL: 64, MIDDLE: 8}, "cuda": {LARGE: 32}}
# ---------------------------------------------------------------------------------------------------- the contestants


def our_loss(model: nn.Module, codes: Tensor, K: int) -> Tensor:
    nowhere = torch.zeros(len(codes), dtype=torch.int64, device=codes.device)  # the label of no class
    return nll_each(model(nowhere, codes), codes, (K,)).mean()


def peer_loss(model: nn.Module, codes: Tensor, K: int) -> Tensor:
    """Return the network's own loss: `AutoregressiveWrapper` would read one more code and discard its prediction."""
    opened = F.pad(codes[:, :-1], (1, 0), value=K)
    return F.cross_entropy(model(opened).flatten(0, 1), codes.flatten())


def training(model: nn.Module, loss: Callable[..., Tensor], codes: Tensor, K: int, short: int | None = None) -> Work:
    """Return a round of steps; ours takes plain products in attention up to the length `short`, where one is given."""
    optimizer = torch.optim.AdamW(model.parameters())

    def steps() -> None:
        with nullcontext() if short is None else patch.object(layers, "SHORT", short):
            for _ in range(STEPS):
                with torch.autocast(codes.device.type, torch.bfloat16):
                    nll = loss(model, codes, K)
                nll.backward()
                optimizer.step()
                optimizer.zero_grad()

    return steps


def contestants(shape: Shape, codes: Tensor) -> dict[str, Work]:
    K, device = shape.codebook_size, codes.device.type

    def ours(short: int | None = None) -> Work:
        return training(make_prior(shape).to(device), our_loss, codes, K, short)

    def compiled() -> Work:
        prior = make_prior(shape).to(device)
        prior.compile()
        return training(prior, our_loss, codes, K)

    def peer(flash: bool) -> Work:
        return training(make_x_transformer(shape, flash).to(device), peer_loss, codes, K)

    if device == "cuda":
        return {"ours": ours(), "ours, compiled": compiled(), "x-transformers, flash": peer(flash=True)}
    return {
        "ours, products": ours(short=shape.length),
        "ours, SDPA": ours(short=0),
        "x-transformers": peer(flash=False),
        "x-transformers, flash": peer(flash=True),
    }


# ------------------------------------------------------------------------------------------------------------- figures


def operations(shape: Shape) -> int:
    """Return a token's operations, forward and backward: 2 and 4 for each weight and each pair it attends to."""
    prior, a = make_prior(shape), shape.architecture
    attended = 2 * a.depth * a.dim * (shape.length + 1) // 2  # queries with keys, and weights with values
    return 6 * (parameters(prior.blocks) + parameters(prior.head) + attended)


def measure(shape: Shape, batch: int, repeats: int, peak_tflops: float | None, device: str) -> Figures:
    torch.manual_seed(0)
    codes = torch.randint(0, shape.codebook_size, (batch, shape.length)).to(device)
    runs = interleaved(contestants(shape, codes), repeats, device)
    rate = {name: STEPS * codes.numel() / min(times) for name, times in runs.items()}
    if device == "cpu":
        rate["ours"] = rate["ours, products" if shape.length <= layers.SHORT else "ours, SDPA"]
    peer = max(each for name, each in rate.items() if name.startswith("x-transformers"))
    figures: Figures = {
        "shape": shape.preset,
        "batch": batch,
        "T": shape.length,
        "K": shape.codebook_size,
        "parameters": {"ours": parameters(make_prior(shape)), "x-transformers": parameters(make_x_transformer(shape))},
        "tokens_a_second": rate,
        "ratio": rate["ours"] / peer,
        "seconds_a_round": runs,
    }
    if peak_tflops:
        figures["utilisation"] = {
            name: each * operations(shape) / (peak_tflops * 1e12)
            for name, each in rate.items()
            if name.startswith("ours")
        }
    return figures


def judge(points: list[Figures]) -> Iterator[Figures]:
    for point in points:
        text = f"{point['shape']}: ours, times the tokens a second of the faster x-transformers, both in bf16"
        claim = Claim(text=text, relation="at least", threshold=FASTER, value=lambda figures: figures["ratio"])
        judged = claim.judge([(point,)])
        yield {name: each for name, each in judged.items() if name != "per_seed"}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", choices=BATCHES, default="cpu")
    parser.add_argument(
        "--shapes", choices=[shape.preset for shapes in BATCHES.values() for shape in shapes], nargs="+"
    )
    parser.add_argument("--repeats", type=int, default=3, help="rounds")
    parser.add_argument("--peak-tflops", type=float, help="the device's bf16 peak, dense")
    parser.add_argument("--output", type=Path)
    args = parser.parse_args()
    of_device, points = BATCHES[args.device], []
    chosen = {shape: batch for shape, batch in of_device.items() if shape.preset in (args.shapes or [shape.preset])}
    if not chosen:
        parser.error(f"on {args.device} the shapes are {' '.join(shape.preset for shape in of_device)}")
    for shape, batch in chosen.items():
        points.append(measure(shape, batch, args.repeats, args.peak_tflops, args.device))
        print(json.dumps(points[-1]), flush=True)
    judged = list(judge(points)) if args.device == "cpu" else []
    result = record("benchmarks.prior_training", ["x-transformers"]) | {
        "protocol": __doc__,
        "device": args.device,
        "claims": judged,
        "points": points,
    }
    output = args.output or ROOT / f"benchmarks/results/prior_training{'_cuda' * (args.device == 'cuda')}.json"
    output.parent.mkdir(parents=True, exist_ok=True)
    output.write_text(json.dumps(result, indent=2) + "\n")
    print(*map(verdict, judged), sep="\n")


if __name__ == "__main__":
    main()
