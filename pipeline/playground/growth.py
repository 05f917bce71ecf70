"""The growth of an image, code by code, in the order its codes were drawn. Priors that draw in passes are watched at
these instead.

A code never changes once it is drawn, and an image drawn from nothing is drawn in raster order, also by a prior of any
order. So the first n places of the finished codes are all that the sampler knew after n places, and showing them in
turn repeats its work at a pace to watch. A place's look depends on its neighbours too: it is decoded amid the places
drawn so far, while the others hold the most used code; a place is grey until it is drawn.

Shapes: codes (B, T), T = P·Q; images (B, C, H, W) uint8.
"""

from collections.abc import Iterator

import torch
from einops import repeat
from torch import Tensor

UNDRAWN = 208  # grey, distinct from a black place and a white one
FRAMES, DECODED = 49, 640  # the most frames of a growth, and the most images in all its frames


def frames_of(places: int, images: int) -> list[int]:
    """Return the number of drawn places in each frame but the last, which is the finished image."""
    number = min(places, FRAMES, max(8, DECODED // images))
    return [places * n // number for n in range(number)]


def unfinished(codes: Tensor, drawn: int, usual: Tensor) -> Tensor:
    """Return codes (B, T) with those after the first `drawn` places replaced by `usual` (Q,)."""
    Q = len(usual)
    some = repeat(usual, "q -> b (p q)", b=len(codes), p=codes.shape[1] // Q).clone()
    some[:, : drawn * Q] = codes[:, : drawn * Q]
    return some


def hidden(images: Tensor, known: Tensor, grid: tuple[int, int]) -> Tensor:
    """Return images with the places that are not `known`, (P,) or (B, P), in grey."""
    (h, w), (H, W) = grid, images.shape[2:]
    shown = repeat(known.view(-1, h, w), "b h w -> b 1 (h p) (w q)", p=H // h, q=W // w).to(images.device)
    grey = torch.full_like(images, UNDRAWN)
    if images.shape[1] == 4:
        grey[:, 3] = 255
    return torch.where(shown, images, grey)


def first_places(drawn: int, places: int) -> Tensor:
    """Return a mask (P,) of the first `drawn` places."""
    return torch.arange(places) < drawn


def in_batches(counts: list[int], images: int, rows: int) -> Iterator[list[int]]:
    """Yield the frames to decode together: at most `rows` images, or a single frame."""
    step = max(1, rows // images)
    yield from (counts[i : i + step] for i in range(0, len(counts), step))
