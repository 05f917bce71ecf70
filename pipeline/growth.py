"""The growth of images, code by code, in the order their codes were drawn. Priors that draw in passes are watched at
these instead. The page shows it, and `pipeline/generate.py --animation true` writes it as a GIF.

A code never changes once it is drawn, and an image drawn from nothing is drawn in raster order, also by a prior of any
order. So the first n places of the finished codes are all that the sampler knew after n places, and showing them in
turn repeats its work at a pace to watch. A place's look depends on its neighbours too: it is decoded amid the places
drawn so far, while the others hold the most used code; a place is grey until it is drawn.

Shapes: codes (B, T), T = P·Q; images (B, C, H, W) uint8.
"""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import PIL.Image
import torch
from einops import repeat
from torch import Tensor

from smalti.common.errors import UserError
from smalti.common.plots import image_grid
from smalti.common.written import replacing_ours
from smalti.pipeline.image_pipeline import ENCODED, ImagePipeline
from smalti.prior.base import Unfolding, Unfolds
from smalti.tokenizer.base import DecodesCoarse

UNDRAWN = 208  # grey, distinct from a black place and a white one
FRAMES, DECODED = 49, 640  # the most frames of a growth, and the most images in all its frames
PACE, AT_LAST = 120, 2500  # milliseconds a frame of an animation, and of its last


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


def after_pass(pipeline: ImagePipeline, unfolding: Unfolding, labels: Tensor) -> Tensor:
    """Return the images of a pass: what has not settled is grey; of several grids, those that have settled."""
    layout, settled = pipeline.prior.config.layout, unfolding.settled
    if settled is None or (layout.rectangle is None and not isinstance(pipeline.tokenizer, DecodesCoarse)):
        return pipeline.decode(unfolding.latents, labels)
    if layout.rectangle is not None:
        return hidden(pipeline.decode(unfolding.latents, labels), settled, layout.rectangle)
    whole = [bool(part.all()) for part in settled.split([grid.places for grid in layout.grids], 1)]
    return pipeline.decode_coarse(unfolding.latents, max(1, [*whole, False].index(False)))


# ----------------------------------------------------------------------------------------------------- as an animation


def check_grows(pipeline: ImagePipeline) -> None:
    """Raise `UserError` where a prior draws all of an image at once."""
    layout = pipeline.prior.config.layout
    if not isinstance(pipeline.prior, Unfolds) and not (layout.discrete and layout.rectangle is not None):
        raise UserError(
            f"an animation shows how an image is drawn, code by code or pass by pass, and a prior of kind "
            f"{pipeline.prior.config.architecture.name()} over {layout} is not drawn so: leave animation out"
        )


def frames(pipeline: ImagePipeline, labels: Sequence[int], seeds: Sequence[int], **sampling: Any) -> Iterator[Tensor]:
    """Yield images (B, C, H, W) as they stand while they are drawn, the finished ones last. Raises as `check_grows`."""
    check_grows(pipeline)
    told = torch.tensor(labels)
    if isinstance(pipeline.prior, Unfolds):
        last = None
        for last in pipeline.unfold(told, seeds, **sampling):
            yield after_pass(pipeline, last, told)
        assert last is not None  # there is a pass
        yield pipeline.decode(last.latents, told)
        return
    layout = pipeline.prior.config.layout
    assert layout.rectangle is not None  # `check_grows` has asked
    codes = pipeline.sampler(**sampling)(pipeline.told_to_prior(told), seeds).cpu()
    usual = codes.view(-1, layout.depth).mode(0).values
    for counts in in_batches(frames_of(layout.places, len(codes)), len(codes), ENCODED):
        some = pipeline.decode(torch.cat([unfinished(codes, n, usual) for n in counts]), told.repeat(len(counts)))
        for n, images in zip(counts, some.split(len(codes)), strict=True):
            yield hidden(images, first_places(n, layout.places), layout.rectangle)
    yield pipeline.decode(codes, told)


def save_animation(images: Iterator[Tensor], columns: int, path: Path) -> None:
    """Write a GIF with a frame for each of some images (B, C, H, W) uint8, in a grid; it stays at the last a while."""
    pictures = [_on_white(image_grid(each, columns)) for each in images]
    ends = PIL.Image.new("RGB", (pictures[0].width, 2 * pictures[0].height))  # the first has the grey, the last colours
    ends.paste(pictures[0], (0, 0))
    ends.paste(pictures[-1], (0, pictures[0].height))
    palette = ends.quantize(255, dither=PIL.Image.Dither.NONE)
    shown = [each.quantize(palette=palette, dither=PIL.Image.Dither.NONE) for each in pictures]
    durations = [PACE] * (len(shown) - 1) + [AT_LAST]
    with replacing_ours(path) as aside:
        shown[0].save(
            aside, format="GIF", save_all=True, append_images=shown[1:], duration=durations, loop=0, optimize=True
        )


def _on_white(picture: PIL.Image.Image) -> PIL.Image.Image:
    """Return a picture in RGB, laid on white where it is transparent."""
    if picture.mode != "RGBA":
        return picture.convert("RGB")
    return PIL.Image.alpha_composite(PIL.Image.new("RGBA", picture.size, "white"), picture).convert("RGB")
