"""Tensors in `.safetensors` files that may be a stranger's: read, and compared with what they are to replace.

`load_state_dict` compares names and shapes, and copies numbers of any type into any other: weights of int64, bool or
uint8 would become a model without a word. So a floating tensor may be of any of four precisions, which all convert into
ours, and every other must have the very type of the one that it becomes.
"""

import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import torch
from safetensors import safe_open
from safetensors.torch import load_file
from torch import Tensor

from smalti.common.reading import open_regular_file

FLOATING = (torch.float16, torch.bfloat16, torch.float32, torch.float64)
NAMES = {  # of types, as safetensors writes them; others (fp8, which means nothing without its scales) are none of ours
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "F32": torch.float32,
    "F64": torch.float64,
    "BOOL": torch.bool,
    "U8": torch.uint8,
    "I8": torch.int8,
    "I16": torch.int16,
    "I32": torch.int32,
    "I64": torch.int64,
}


def read_tensors(path: Path) -> dict[str, Tensor]:
    """Return the tensors of a file. Raises as `opened_tensors`."""
    with open_regular_file(path), _with_its_reason(path):
        return load_file(path)


@contextmanager
def opened_tensors(path: Path) -> Iterator[safe_open]:
    """Return a file of tensors, open for reading, as a context.

    Raises:
        ValueError: it is no regular file.
        OSError: it is not there, or cannot be read; and what safetensors raises.
    """
    with open_regular_file(path):
        with _with_its_reason(path):
            file = safe_open(path, framework="pt")
        with file:
            yield file


@contextmanager
def _with_its_reason(path: Path) -> Iterator[None]:
    """Raise the system's own error where a file that is there is not opened.

    safetensors reports every such error, too many open files included, as a file that is not there.
    """
    try:
        yield
    except FileNotFoundError:
        os.close(os.open(path, os.O_RDONLY))
        raise


def misfit(given: torch.dtype | str, wanted: torch.dtype) -> str | None:
    """Return what is wrong with a type where another is wanted; None if it can be converted."""
    if given == wanted or (wanted in FLOATING and given in FLOATING):
        return None
    name, expected = (str(dtype).removeprefix("torch.") for dtype in (given, wanted))
    others = " (float16, bfloat16 and float64 are converted)" if wanted is torch.float32 else ""
    return f"must be {expected}{others}, got {name}"


def check_types(given: Mapping[str, Tensor], wanted: Mapping[str, Tensor]) -> None:
    """Raise ValueError that names the first tensor of a wrong type. Names that only one side has are not checked."""
    for name in sorted(given.keys() & wanted.keys()):
        if wrong := misfit(given[name].dtype, wanted[name].dtype):
            raise ValueError(f"{name} {wrong}")


def shapes_only() -> bool:
    """Return whether tensors are made without numbers, on the meta device: a table that is computed needs none there.

    torch computes most of them by way of its compiler, which takes five seconds of a processor to import.
    """
    return torch.get_default_device().type == "meta"
