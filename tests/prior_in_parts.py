"""Train a prior under FSDP2 on two CPU processes, once for each config file given; `test_fsdp.py` runs it.

Accelerate shards on accelerators only and silently ignores its FSDP settings on CPUs. This script hands it what it
reads from its config file on GPUs; torch's sharding itself works on CPUs too.
"""

import sys
from collections.abc import Sequence
from pathlib import Path

if __package__ in (None, ""):
    sys.path[0] = str(Path(__file__).resolve().parents[1])

from accelerate import DistributedType, FullyShardedDataParallelPlugin, PartialState
from torch.distributed.tensor import DTensor

import smalti.prior.train as script
from smalti.common.config import parse
from smalti.common.launch import make_accelerator, run_command
from smalti.prior.config import TrainConfig


def main(argv: Sequence[str]) -> None:
    accelerator = make_accelerator("fp32")
    accelerator.state.fsdp_plugin = FullyShardedDataParallelPlugin()
    PartialState().distributed_type = accelerator.state.distributed_type = DistributedType.FSDP
    script.EVALUATION_BATCH = 40  # of the 81 validation rows the first process has two batches, the second has one
    for file in argv:
        script.train(parse(TrainConfig, __doc__, [file]), accelerator)
        (model,) = accelerator._models
        parts = all(isinstance(p, DTensor) and 0 < p.to_local().numel() < p.numel() for p in model.parameters())
        accelerator.print("in parts" if accelerator.is_fsdp2 and parts else "WHOLE")
        accelerator.free_memory()


if __name__ == "__main__":
    run_command(main)
