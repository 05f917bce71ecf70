"""A long computation over many items, shared by processes; saved part by part it can be resumed, by any number of them.

FOLDER/plan.json               what is computed, of what and with what
FOLDER/000003.safetensors      the tensors of items [3 · size, 4 · size), written by process 3 mod world
"""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.utils import broadcast_object_list
from safetensors import SafetensorError
from safetensors.torch import save_file
from torch import Tensor

from smalti.common.errors import UserError
from smalti.common.folder import read_json, remove, replacing, write_json
from smalti.common.launch import Interrupt, Interrupted
from smalti.common.progress import progress_bar
from smalti.common.tensors import read_tensors


def share_of(total: int, size: int, accelerator: Accelerator) -> tuple[Tensor, ...]:
    """Return this process's share of the positions 0 .. total - 1, in batches; none where others have them all."""
    mine = torch.arange(total)[accelerator.process_index :: accelerator.num_processes]
    return mine.split(size) if len(mine) else ()


def in_parts(
    folder: Path,
    plan: Mapping[str, Any],
    total: int,
    size: int,
    compute: Callable[[Tensor], Mapping[str, Tensor]],
    accelerator: Accelerator,
    what: str,
) -> dict[str, Tensor]:
    """Return `compute` of all positions 0 .. total - 1, rows in order by name; the same on every process.

    Args:
        folder: of the parts. One that holds parts of another plan is emptied first.
        plan: all that decides the numbers, as JSON would keep it.
        compute: positions (n,) of one part -> named tensors of n rows, or fewer where some cannot be read, on any
            device.
        what: for the progress bar.
    Raises:
        Interrupted: on Ctrl-C or SIGTERM, after the part at hand.
    """
    _begin(folder, {**plan, "total": total, "size": size}, accelerator)
    parts, rank, world = torch.arange(total).split(size), accelerator.process_index, accelerator.num_processes
    bar = progress_bar(accelerator, total, what, unit="image")
    with Interrupt(accelerator) as interrupt:
        for number, positions in enumerate(parts):
            path = _part(folder, number)
            if number % world == rank and not path.exists():
                tensors = {name: tensor.cpu().contiguous() for name, tensor in compute(positions).items()}
                with replacing(path) as aside:
                    save_file(tensors, aside)
            bar.update(len(positions))
            if interrupt.stopped:
                raise Interrupted("what was computed is kept; the same command goes on with the rest")
    bar.close()
    accelerator.wait_for_everyone()
    found = [_read(_part(folder, number)) for number in range(len(parts))]
    return {name: torch.cat([part[name] for part in found]) for name in (found[0] if found else {})}


def are_whole(folder: Path, plan: Mapping[str, Any], total: int, size: int) -> bool:
    """Return whether a folder has all parts that `in_parts` would compute, by the main process's eyes."""
    numbers = range(-(-total // size))
    whole = _is_of(folder, {**plan, "total": total, "size": size}) and all(_part(folder, n).exists() for n in numbers)
    (said,) = broadcast_object_list([whole])
    return bool(said)


def _part(folder: Path, number: int) -> Path:
    """Return the file of a part."""
    return folder / f"{number:06d}.safetensors"


def _begin(folder: Path, plan: Mapping[str, Any], accelerator: Accelerator) -> None:
    """Write the plan into a folder, unless it holds parts of this very plan, to go on with."""
    if accelerator.is_main_process and not _is_of(folder, plan):
        remove(folder)
        write_json(folder / "plan.json", plan)
    accelerator.wait_for_everyone()


def _is_of(folder: Path, plan: Mapping[str, Any]) -> bool:
    try:
        return read_json(folder / "plan.json") == plan
    except UserError:  # absent or damaged
        return False


def _read(path: Path) -> dict[str, Tensor]:
    try:
        return read_tensors(path)
    except (SafetensorError, ValueError, FileNotFoundError):  # the last, where another process was faster to remove it
        remove(path)
        raise Interrupted(f"{path} was damaged and is removed; the same command computes it again") from None
