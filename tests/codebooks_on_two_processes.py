"""Train codebooks on two processes with different data, and check that they stay equal; `test_processes.py` runs it."""

import sys
from collections.abc import Sequence
from pathlib import Path

if __package__ in (None, ""):
    sys.path[0] = str(Path(__file__).resolve().parents[1])

import torch

from smalti.common.launch import make_accelerator, run_command
from smalti.tokenizer.bottleneck.base import build_quantizer
from smalti.tokenizer.bottleneck.config import EMAVQConfig, GumbelConfig, ResidualConfig, SimVQConfig, VQConfig
from smalti.tokenizer.codebooks.upkeep import CodebookUpkeep


def main(argv: Sequence[str]) -> None:
    accelerator = make_accelerator()
    assert accelerator.num_processes == 2
    sizes = {"codebook_size": 64, "code_dim": 4}
    stacked = ResidualConfig(code_depth=2, each=EMAVQConfig(**sizes, decay=0.9))
    kinds = (VQConfig(**sizes), EMAVQConfig(**sizes, decay=0.9), SimVQConfig(**sizes), GumbelConfig(**sizes), stacked)
    for config in kinds:
        torch.manual_seed(0)
        quantizer = build_quantizer(config)
        upkeep = CodebookUpkeep(quantizer.tables(), revive_below=0.1)
        torch.manual_seed(1 + accelerator.process_index)
        revived = 0
        for step in range(60):
            upkeep.observe(quantizer(torch.randn(4, 4, 16).abs()))  # in one orthant: most codes are never nearest
            revived += sum(map(len, upkeep.step(accelerator, step, revive=True)))
        assert revived > 0, "nothing was revived, so nothing was tested"
        both = [accelerator.gather(table.codebook.detach()[None]) for table in quantizer.tables()]
        accelerator.print(config.kind, "equal" if all(torch.equal(a, b) for a, b in both) else "DRIFTED")


if __name__ == "__main__":
    run_command(main)
