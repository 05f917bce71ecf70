"""Measure how long people wait for the first answer: the help of each command, and one image from the shell or a call.

    python -m benchmarks.starting [--repeats 5] [--output JSON]

Commands are run as a user types them, in turn, round after round, after one round that is not counted; of each the
median of the processor's seconds counts, of user and system together. The seconds in which Python imports torch alone
stand beside them, since nothing of ours can be below them that computes. The image is a digit of the pipeline of
configs/digits, of random weights: 16 codes, guidance 2. From Python it is one call of a warm `ImagePipeline` on one
thread; beside it the same call with `batch_size=64`, to which one image was padded before.
"""

import argparse
import json
import os
import resource
import statistics
import subprocess
import sys
import time
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory

import torch

from benchmarks.claim import Claim, verdict
from benchmarks.timing import interleaved
from smalti.common import config, folder
from smalti.common.codes_info import TokenizerIdentity
from smalti.common.commands import COMMANDS
from smalti.common.condition import Classes
from smalti.common.record import record
from smalti.pipeline.image_pipeline import ImagePipeline
from smalti.prior.config import PriorConfig
from smalti.prior.config import TrainConfig as PriorTraining
from smalti.prior.model import build_prior
from smalti.prior.sampling_config import SamplingConfig
from smalti.tokenizer.config import TrainConfig as TokenizerTraining
from smalti.tokenizer.model import build_tokenizer

ROOT = Path(__file__).parents[1]
GUIDED = SamplingConfig(temperature=0.8, guidance=2.0)
IMPORT = "import torch"
HELP = Claim(
    text="the slowest help of a command, seconds of a processor",
    relation="at most",
    threshold=0.5,
    value=lambda medians: max(value for name, value in medians.items() if name.endswith("--help")),
)
SHELL = Claim(
    text="one digit from the shell, seconds of a processor",
    relation="at most",
    threshold=4.0,
    value=lambda medians: medians["one digit"],
)
CALL = Claim(
    text="one digit by a warm call, ms of a processor",
    relation="at most",
    threshold=25.0,
    value=lambda medians: medians["one image"],
)


def write_run(run: Path) -> None:
    """Write the two models of a run of configs/digits, of random weights."""
    torch.manual_seed(0)
    tokenizer = config.build(TokenizerTraining, config.read_yaml(ROOT / "configs/digits/tokenizer.yaml"), "digits")
    prior = config.build(PriorTraining, config.read_yaml(ROOT / "configs/digits/prior.yaml"), "digits")
    (run / "tokenizer").mkdir(parents=True)
    (run / "prior").mkdir()
    build_tokenizer(tokenizer.model).save_pretrained(run / "tokenizer/model")
    sha256 = folder.sha256(run / "tokenizer/model/model.safetensors")
    model = build_prior(
        PriorConfig(
            layout=tokenizer.model.layout,
            condition=Classes(names=tuple("0123456789")),
            tokenizer=TokenizerIdentity(name="digits", sha256=sha256),
            architecture=prior.model,
            hidden=0.1,
        )
    )
    torch.nn.init.normal_(model.get_parameter("head.weight"), std=0.2)
    model.save_pretrained(run / "prior/model")


def seconds_of(command: list[str]) -> float:
    """Return the processor's seconds of a command, which must end well."""
    environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT), "CUDA_VISIBLE_DEVICES": ""}
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    subprocess.run(command, check=True, cwd=ROOT, env=environment, capture_output=True)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


def commands(run: Path) -> dict[str, list[str]]:
    """Return the commands that are measured, by name."""
    smalti = [sys.executable, "-m", "smalti.pipeline.terminal"]
    drawn = [*smalti, "generate", str(run), "--labels", "3", "--num_images", "1", "--guidance", "2", "--overwrite"]
    helps = {f"{name} --help": [*smalti, name, "--help"] for name in COMMANDS}
    return {IMPORT: [sys.executable, "-c", IMPORT], **helps, "one digit": drawn}


def shell(run: Path, repeats: int) -> dict[str, list[float]]:
    """Return the seconds of every round of each command."""
    measured = commands(run)
    rounds = [{name: seconds_of(command) for name, command in measured.items()} for _ in range(repeats + 1)]
    return {name: [each[name] for each in rounds[1:]] for name in measured}


def calls(run: Path, repeats: int) -> dict[str, list[float]]:
    """Return the ms of each warm call."""
    torch.set_num_threads(1)
    kept, padded = ImagePipeline.from_run(run, GUIDED), ImagePipeline.from_run(run, GUIDED)
    works = {
        "one image": partial(kept, labels="3", seed=1),
        "one image in a batch of 64": partial(padded, labels="3", seed=1, batch_size=64),
    }
    found = interleaved(works, 10 * repeats, "cpu", time.process_time)
    return {name: [1e3 * each for each in times] for name, times in found.items()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=5, help="rounds of commands; ten times as many of calls")
    parser.add_argument("--output", type=Path, default=ROOT / "benchmarks/results/starting.json")
    args = parser.parse_args()
    with TemporaryDirectory() as work:
        run = Path(work) / "run"
        write_run(run)
        warm, cold = calls(run, args.repeats), shell(run, args.repeats)
    medians = {name: statistics.median(times) for name, times in {**cold, **warm}.items()}
    judged = [claim.judge([(medians,)]) for claim in (HELP, SHELL, CALL)]
    result = record("benchmarks.starting", []) | {
        "protocol": __doc__,
        "claims": judged,
        "medians": medians,
        "cpu_seconds": cold,
        "cpu_ms": warm,
    }
    args.output.write_text(json.dumps(result, indent=2) + "\n")
    print(json.dumps(medians, indent=2))
    print(*map(verdict, judged), sep="\n")


if __name__ == "__main__":
    main()
