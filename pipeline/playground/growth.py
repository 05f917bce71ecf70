"""How an image grows, code by code, in the order its codes were drawn.

A code never changes once it is drawn, and an image drawn from nothing is drawn in raster order, also by a prior of any
order: so the first n places of the finished codes are all that the sampler knew after n places, and showing them one
after the other shows what it did, at a pace that can be watched. What a place looks like depends on its neighbours too:
it is decoded amid those drawn so far, the others holding the most used code, and is grey to the eye until it is drawn.

Shapes: codes (B, T), T = P·Q; images (B, C, H, W) uint8.
"""

from collections.abc import Iterator

import torch
from einops import repeat
from torch import Tensor

UNDRAWN = 208  # grey: neither a black place nor a white one is taken for it
FRAMES, DECODED = 49, 640  # at most of one growth, and images of all frames


def frames_of(places: int, images: int) -> list[int]:
    """How many places are drawn in each frame but the last, which is the finished image."""
    number = min(places, FRAMES, max(8, DECODED // images))
    return [places * n // number for n in range(number)]


def unfinished(codes: Tensor, drawn: int, usual: Tensor) -> Tensor:
    """codes (B, T) of which only those of the first `drawn` places stand yet; elsewhere `usual` (Q,)."""
    Q = len(usual)
    some = repeat(usual, "q -> b (p q)", b=len(codes), p=codes.shape[1] // Q).clone()
    some[:, : drawn * Q] = codes[:, : drawn * Q]
    return some


def hidden(images: Tensor, known: Tensor, grid: tuple[int, int]) -> Tensor:
    """images with the places that are not among `known` (P,) bool in grey."""
    (h, w), (H, W) = grid, images.shape[2:]
    shown = repeat(known.view(h, w), "h w -> (h p) (w q)", p=H // h, q=W // w)
    grey = torch.full_like(images, UNDRAWN)
    if images.shape[1] == 4:
        grey[:, 3] = 255
    return torch.where(shown, images, grey)


def first_places(drawn: int, places: int) -> Tensor:
    """(P,) bool."""
    return torch.arange(places) < drawn


def in_batches(counts: list[int], images: int, rows: int) -> Iterator[list[int]]:
    """Frames that are decoded together, `rows` images at most, if not for a single frame."""
    step = max(1, rows // images)
    yield from (counts[i : i + step] for i in range(0, len(counts), step))
