"""The rows of a codes dataset as training batches: codes (b, T) int64 and their condition (b, ...)."""

import sys
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset

from smalti.common.codes import Codes, CodesSplit, load_codes
from smalti.common.codes_info import CodesInfo
from smalti.common.errors import UserError
from smalti.common.identity import check_tokenizer_of
from smalti.common.progress import on_main
from smalti.common.seeds import normals_of_rows
from smalti.prior.config import PriorConfig


def read_codes(run: str, folder: str | None = None) -> Codes:
    """Return the codes of the run. They have a train and a validation split, and belong to the run's tokenizer, if any.

    Raises:
        UserError: a split is missing, or the tokenizers of the run and of the codes differ; the message names both.
    """
    data = load_codes(Path(folder or f"{run}/codes"))
    for split in ("train", "validation"):
        if split not in data.splits:
            raise UserError(f"the codes must have a split {split}; they have {', '.join(data.splits)}")
    check_tokenizer_of(Path(run), data.info)
    return data


class CodesBatch(NamedTuple):
    """Rows of a codes dataset as tensors."""

    codes: Tensor  # (b, T) int64, or float32 where a sample is vectors
    condition: Tensor  # (b, ...) as the prior's condition has it
    rows: Tensor  # (b,) int64, places in the split


class CodesRows(Dataset):
    """One split, in the disk's type, mapped if it is large; its index is (rows, epochs) of `common.row_order`.

    Where rows are moments of q(z | x), a row's vector is drawn from them, as a function of seed, row and epoch alone.
    """

    def __init__(self, split: CodesSplit, config: PriorConfig, seed: int = 0):
        self.split, self.condition, self.seed = split, config.condition, seed
        if len(split.codes) == 0:
            raise UserError("the codes dataset has a split without rows; encode images into it first")

    def __len__(self) -> int:
        return len(self.split.codes)

    def __getitem__(self, key: tuple[Tensor, Tensor]) -> CodesBatch:
        rows = key[0].numpy()
        some = self.split.codes[rows]
        codes = torch.from_numpy(some.astype(np.int64 if some.dtype.kind == "u" else np.float32))
        if self.split.scale is not None:  # of q(z | x): each epoch draws another z
            noise = normals_of_rows(self.seed, rows, key[1].numpy(), codes.shape[1])
            codes = codes + torch.from_numpy(self.split.scale[rows]) * noise
        column = None if self.split.condition is None else self.split.condition[rows]
        return CodesBatch(codes, self.condition.of_rows(column, len(rows)), key[0])


def tell_of_other_codes(now: str | None, config: PriorConfig) -> None:
    """Print a warning if the fingerprint of the codes is known and not the one the prior was trained on."""
    if now is not None and config.codes not in (None, now) and on_main():
        print(
            f"these codes are not those that the prior was trained on (fingerprint {str(config.codes)[:12]} then, "
            f"{now[:12]} now): figures of them are of other images",
            file=sys.stderr,
        )


def plain_views(split: CodesSplit, info: CodesInfo) -> CodesSplit:
    """Return the first row of each image. The others are its mirror and crops; held-out figures are of plain images."""
    return split.at(slice(None, None, info.views))
