"""Measure after how many steps compiling the forward pass of a prior's training has paid, in turns with the plain one.

    python -m benchmarks.compiling [--presets digits fashion_mnist] [--rounds 3] [--steps 10] [--output JSON]

Of each preset the prior and the batch of its config, over random codes, in the precision that `auto` takes here. A step
is forward, backward, clipping and the optimizers (AdamW and Muon), without data, log or evaluation. `start_seconds` is
what the first compiled step takes more than a plain one, with an empty cache of the compiler, its processes included.
Then both take turns, some steps a round. Seconds are the processor's, of one thread, and medians count. `pays_from` is
the number of steps whose gain equals the start, and null where a compiled step is no faster.
"""

import argparse
import json
import os
import resource
import tempfile
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path
from statistics import median
from typing import Any, cast

import torch
from torch import nn

from benchmarks.timing import ROOT
from smalti.common import config
from smalti.common.codes_info import TokenizerIdentity
from smalti.common.condition import condition_of
from smalti.common.launch import computes_bf16
from smalti.common.record import record
from smalti.prior.base import Prior
from smalti.prior.config import PriorConfig, TrainConfig
from smalti.prior.model import build_prior
from smalti.prior.muon import Muon
from smalti.tokenizer.config import TrainConfig as TokenizerConfig

CLASSES = tuple(map(str, range(10)))
Step = Callable[[], None]


def settings_of(preset: str) -> tuple[TrainConfig, PriorConfig]:
    """Return the settings of a preset's training, and the config of its prior over the codes of its tokenizer."""
    first = config.parse(TokenizerConfig, "", [str(ROOT / "configs" / preset / "tokenizer.yaml")])
    second = config.parse(TrainConfig, "", [str(ROOT / "configs" / preset / "prior.yaml")])
    prior = PriorConfig(
        layout=first.model.layout,
        architecture=second.model,
        condition=condition_of(CLASSES),
        tokenizer=TokenizerIdentity(name="none", sha256="0" * 64),
    )
    return second, prior


def make_step(c: TrainConfig, prior: Prior, forward: nn.Module) -> Step:
    """Return a step of training on one batch of random codes."""
    layout, bf16 = prior.config.layout, computes_bf16("cpu")
    codes = torch.randint(layout.codebook_size, (c.batch_size, layout.length))
    labels = torch.randint(len(CLASSES), (c.batch_size,))
    matrices = prior.matrices()
    inside = set(map(id, matrices))
    rest = [p for p in prior.parameters() if id(p) not in inside]
    optimizers = [torch.optim.AdamW(rest, lr=c.lr, fused=True), Muon(matrices, lr=c.matrix_lr or c.lr)]

    def step() -> None:
        with torch.autocast("cpu", torch.bfloat16) if bf16 else nullcontext():
            loss = prior.loss(codes, labels, forward).mean()
        loss.backward()
        nn.utils.clip_grad_norm_(prior.parameters(), c.clip)
        for optimizer in optimizers:
            optimizer.step()
            optimizer.zero_grad()

    return step


def processor_seconds() -> float:
    """Return the processor's seconds of this process and of those it has waited for."""
    used = [resource.getrusage(whose) for whose in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return sum(each.ru_utime + each.ru_stime for each in used)


def seconds(work: Step, times: int = 1) -> float:
    """Return the processor's seconds of one of so many runs."""
    start = processor_seconds()
    for _ in range(times):
        work()
    return (processor_seconds() - start) / times


def measure(preset: str, rounds: int, steps: int) -> dict[str, Any]:
    """Return the figures of a preset."""
    c, prior_config = settings_of(preset)
    plain, compiled = (build_prior(prior_config).train() for _ in range(2))
    forward = cast(nn.Module, torch.compile(compiled))  # a module for a module
    works = {"plain": make_step(c, plain, plain), "compiled": make_step(c, compiled, forward)}
    seconds(works["plain"])  # warm
    start = seconds(works["compiled"]) - seconds(works["plain"])
    runs = [{name: seconds(work, steps) for name, work in works.items()} for _ in range(rounds)]
    taken = {name: median(each[name] for each in runs) for name in works}
    gain = taken["plain"] - taken["compiled"]
    return {
        "preset": preset,
        "parameters": sum(each.numel() for each in plain.parameters()),
        "codes_a_step": c.batch_size * prior_config.layout.length,
        "precision": "bf16" if computes_bf16("cpu") else "fp32",
        "steps_of_the_preset": c.steps,
        "start_seconds": start,
        "seconds_a_step": taken,
        "rounds": runs,
        "ratio": taken["plain"] / taken["compiled"],
        "pays_from": start / gain if gain > 0 else None,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--presets", nargs="+", default=["digits", "fashion_mnist"], help="folders of configs/")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--steps", type=int, default=10, help="of each in a round")
    parser.add_argument("--output", type=Path, default=ROOT / "benchmarks/results/compiling.json")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    points = []
    for preset in arguments.presets:
        torch._dynamo.reset()
        with tempfile.TemporaryDirectory() as cache:
            os.environ |= {"TORCHINDUCTOR_CACHE_DIR": cache, "TORCHINDUCTOR_COMPILE_THREADS": "1"}
            points.append(measure(preset, arguments.rounds, arguments.steps))
        print(json.dumps(points[-1]), flush=True)
    said = {**record("benchmarks.compiling"), "protocol": __doc__, "points": points}
    arguments.output.write_text(json.dumps(said, indent=2) + "\n")


if __name__ == "__main__":
    main()
