"""Forged compressed files: heads and bodies drawn at random and written with care, which the coder expands.

Each must be refused with a `UserError`, or expand to the very images that were compressed; in seconds, and in little
memory.
"""

import random
import resource
import time
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import torch

from benchmarks.torture.forks import Ended, run
from smalti.common.errors import UserError
from smalti.pipeline.coder import HEAD, MAGIC, expand
from smalti.pipeline.image_pipeline import ImagePipeline
from smalti.prior.sampling_config import SamplingConfig

A_CHILD = 50  # files
SECONDS, MEMORY = 20.0, 2**30  # of one file; and more than the process had before
NUMBERS = (0, 1, 2, 7, 8, 9, 63, 64, 65, 2**16, 2**20, 2**31 - 1, 2**31, 2**32 - 1)
BYTES = (0x00, 0x01, 0x7F, 0x80, 0xFF)


def forged(whole: bytes, draw: random.Random) -> bytes:
    """Return another head on the same body, or the same head on another body, forged in one of ten ways."""
    magic, labelled, number, checksum, *models = HEAD.unpack_from(whole)
    body, way = whole[HEAD.size :], draw.randrange(10)
    if way == 0:
        number = draw.choice(NUMBERS)
    elif way == 1:
        number, body = draw.choice(NUMBERS), b""
    elif way == 2:
        number, body = draw.choice(NUMBERS), bytes([draw.choice(BYTES)]) * 4 * draw.randrange(64)
    elif way == 3:
        number, body = draw.getrandbits(32), draw.randbytes(4 * draw.randrange(64))
    elif way == 4:
        labelled, number = not labelled, draw.choice(NUMBERS)
    elif way == 5:
        checksum = draw.getrandbits(32)
    elif way == 6:
        models[draw.randrange(2)] = draw.randbytes(8)
    elif way == 7:
        return whole[: draw.randrange(len(whole))]
    elif way == 8:
        return MAGIC + draw.randbytes(draw.randrange(400))
    else:
        head = bytearray(whole)
        for _ in range(draw.randrange(1, 6)):
            head[draw.randrange(HEAD.size)] ^= 1 << draw.randrange(8)
        return bytes(head)
    return HEAD.pack(magic, labelled, number, checksum, *models) + body


def examine(pipeline: ImagePipeline, whole: bytes, images: torch.Tensor, data: bytes) -> str | None:
    """Return what is wrong with how a file is expanded, or None."""
    began = time.monotonic()
    try:
        found = expand(pipeline, data)
        if not torch.equal(found, images):
            return f"{len(found)} images came of {len(data)} bytes"
    except UserError as error:
        if "\n" in str(error):
            return f"more than a line: {error}"
    except Exception as error:
        return f"{type(error).__name__}: {error}"
    spent = time.monotonic() - began
    return f"{spent:.0f} seconds" if spent > SECONDS else None


def torture(work: Path, number: int, seed: int) -> dict[str, Any]:
    folder, draw, wrong, worst = work / "reference", random.Random(seed), list[str](), {"seconds": 0.0, "bytes": 0}
    whole = (folder / "run/compressed.tess").read_bytes()
    for first in range(0, number, A_CHILD):
        files = [forged(whole, draw) for _ in range(min(A_CHILD, number - first))]
        ended = run(partial(examine_all, whole, files), folder, work / "out/heads", A_CHILD * SECONDS)
        wrong += faults(ended)
        worst = {"seconds": max(worst["seconds"], ended.seconds), "bytes": max(worst["bytes"], ended.peak)}
    return {"files": number, "worst_of_fifty": worst, "wrong": wrong}


def examine_all(whole: bytes, files: list[bytes]) -> None:
    """Expand each file in this process, which has a limit on its memory, and print on stderr what is wrong."""
    import sys

    pipeline = ImagePipeline.from_run(Path("run"), SamplingConfig())
    images = expand(pipeline, whole)
    has = int(Path("/proc/self/statm").read_text().split()[5]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_DATA, (has + MEMORY,) * 2)
    for data in files:
        if said := examine(pipeline, whole, images, data):
            print(
                f"wrong: {data[: HEAD.size].hex()} and {len(data) - HEAD.size} bytes: {said}",
                file=sys.stderr,
                flush=True,
            )


def faults(ended: Ended) -> Iterator[str]:
    """Yield what a child reported as wrong, and its status if it failed."""
    yield from (line for line in ended.err.splitlines() if line.startswith("wrong: "))
    if ended.status:
        yield f"status {ended.status}: {ended.err[-300:]}"
