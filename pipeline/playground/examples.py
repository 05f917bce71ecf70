"""The examples of the page, at one click: settings to draw with, and pictures for whoever has none at hand.

The pictures are unlike those of any training set, so they show what the codes cannot say and what surprises the prior.
"""

from collections.abc import Callable, Collection, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

COLD, HOT = 0.5, 1.5  # temperatures
NUMBER = 20  # images


class Example(NamedTuple):
    """A request, by the values of its controls."""

    title: str
    labels: list[int]
    number: int
    temperature: float


def examples(class_names: Sequence[str] | None, takes: Collection[str], temperature: float) -> list[Example]:
    """Return requests that differ in what a prior can be told: a class, and the temperature where it takes one."""
    found = []
    if class_names:
        if 2 * len(class_names) <= NUMBER:
            found.append(Example("every class twice", [], 2 * len(class_names), temperature))
        found.append(Example(f"{NUMBER} of {class_names[-1]}", [len(class_names) - 1], NUMBER, temperature))
    if "temperature" in takes:
        found.append(Example(f"cold, at {COLD}", [], NUMBER, COLD))
        found.append(Example(f"hot, at {HOT}", [], NUMBER, HOT))
    return found


def _disc(across: Tensor, down: Tensor) -> Tensor:
    return (across.square() + down.square() < 0.4).float()


def _stripes(across: Tensor, down: Tensor) -> Tensor:
    return (torch.sin(9 * (across + 0.5 * down)) > 0).float()


def _noise(across: Tensor, down: Tensor) -> Tensor:
    return torch.rand(across.shape, generator=torch.Generator().manual_seed(0))


PICTURES: dict[str, Callable[[Tensor, Tensor], Tensor]] = {"a disc": _disc, "stripes": _stripes, "noise": _noise}


def example_picture(name: str, channels: int, size: tuple[int, int], black_and_white: bool) -> Tensor:
    """Return one of `PICTURES`, (1, C, H, W) uint8, grey and opaque."""
    down, across = torch.meshgrid(*(torch.linspace(-1, 1, side) for side in size), indexing="ij")
    grey = PICTURES[name](across, down)
    image = (255 * (grey.round() if black_and_white else grey)).round().to(torch.uint8).expand(1, channels, -1, -1)
    if channels == 4:
        image = torch.cat([image[:, :3], torch.full_like(image[:, 3:], 255)], dim=1)
    return image.contiguous()
