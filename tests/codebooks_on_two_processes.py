"""Run on two processes by `test_processes.py`: other data on each; after many steps the codebooks must be equal."""

import sys
from collections.abc import Sequence
from pathlib import Path

if __package__ in (None, ""):
    sys.path[0] = str(Path(__file__).resolve().parents[1])

import torch

from common.launch import make_accelerator, run_command
from tokenizer.config import EMAVQConfig, VQConfig
from tokenizer.quantize import build_quantizer
from tokenizer.upkeep import CodebookUpkeep


def main(argv: Sequence[str]) -> None:
    accelerator = make_accelerator()
    assert accelerator.num_processes == 2
    for config in (VQConfig(codebook_size=64, code_dim=4), EMAVQConfig(codebook_size=64, code_dim=4, decay=0.9)):
        torch.manual_seed(0)
        quantizer = build_quantizer(config)
        upkeep = CodebookUpkeep(quantizer, revive_below=0.1)
        torch.manual_seed(1 + accelerator.process_index)
        revived = 0
        for step in range(200):
            upkeep.observe(quantizer(torch.randn(4, 4, 4, 4).abs()))  # in one orthant: most codes are never nearest
            revived += len(upkeep.step(accelerator, step, revive=True))
        codebooks = accelerator.gather(quantizer.codebook.detach()[None])
        assert revived > 0, "nothing was revived, so nothing was tested"
        accelerator.print(config.kind, "equal" if torch.equal(codebooks[0], codebooks[1]) else "DRIFTED")


if __name__ == "__main__":
    run_command(main)
