"""The page's markup: sheets of images, code grids, figures. All incoming text is escaped.

Shapes: images (N, C, H, W) uint8; codes (h, w).
"""

import base64
import io
import math
from collections.abc import Sequence

import PIL.Image
import torch
import torch.nn.functional as F
from torch import Tensor

from smalti.common.data.pixels import to_pil
from smalti.common.layout import Layout
from smalti.pipeline.playground.view import CONTRAST, View, difference
from smalti.pipeline.reporting.markup import Figure, Html, figure_tag, join, number, tag, tiles

BETWEEN = 225  # grey between patches, distinct from black and white ones
SMALL = 128  # pixels a side: in a smaller image each pixel should be visible
GOLDEN = 0.618034  # of the circle of hues lies between two consecutive codes


def data_uri(image: PIL.Image.Image) -> str:
    """Return an image as a data URI of a PNG file, pixel for pixel."""
    file = io.BytesIO()
    image.save(file, format="PNG")
    return "data:image/png;base64," + base64.b64encode(file.getvalue()).decode()


def image_tag(image: PIL.Image.Image, alt: str) -> Html:
    """Return an image in memory as an element."""
    kind = "tes-picture tes-small" if max(image.size) < SMALL else "tes-picture"
    return tag("img", src=data_uri(image), alt=alt, class_=kind, decoding="sync")


def sheet(images: Sequence[PIL.Image.Image], captions: Sequence[tuple[str, str]], chosen: int | None = None) -> Html:
    """Return images to click, each with its title and a line below it; one of them is framed."""
    many = "few" if len(images) <= 4 else "some" if len(images) <= 20 else "many"
    figures = (
        figure_tag(
            image_tag(image, f"{title} {about}"),
            title,
            tag("span", about),
            data_index=i,
            class_="chosen" if i == chosen else None,
        )
        for i, (image, (title, about)) in enumerate(zip(images, captions, strict=True))
    )
    return tag("div", *figures, class_=f"tes-sheet {many}")


def code_grid(codes: Tensor) -> Html:
    """Return the codes of a grid as numbers, each on the colour of its number."""
    h, w = codes.shape
    cells = []
    for place, code in enumerate(codes.flatten().tolist()):
        row, column = divmod(place, w)
        hue, size = round(360 * (code * GOLDEN % 1)), min(0.42, 1.5 / len(str(code)))
        cells.append(tag("rect", x=column, y=row, width=1, height=1, fill=f"hsl({hue} 55% 84%)"))
        cells.append(tag("text", code, x=column + 0.5, y=row + 0.5, font_size=f"{size:.2f}"))
    told = f"{h} x {w} codes: " + " / ".join(" ".join(map(str, row)) for row in codes.tolist())
    return tag("svg", *cells, viewBox=f"0 0 {w} {h}", class_="tes-codes", role="img", aria_label=told)


def code_grids(codes: Tensor, layout: Layout) -> list[Tensor]:
    """Return the codes (1, T) of a picture as grids (h, w), one a codebook; none of vectors or of another rank."""
    if not layout.discrete or len(layout.grids[0].shape) != 2:
        return []
    parts = zip(layout.split(codes), layout.grids, strict=True)
    return [each for part, grid in parts for each in part.view(*grid.shape, grid.depth).unbind(-1)]


def looked_at(view: View, layout: Layout, class_name: str | None) -> Html:
    """Return the picture, its code grids if it has any, its reconstruction, their difference, and the figures."""
    H, W = view.image.shape[2:]
    named = zip(layout.codebook_names, code_grids(view.codes, layout), strict=False)
    grids = [
        figure_tag(code_grid(codes), f"its codes, {name}" if name else "its codes", id=f"tes-codes-{i}")
        for i, (name, codes) in enumerate(named)
    ]
    differs = difference(view.image, view.again)
    shown = [
        figure_tag(image_tag(to_pil(view.image)[0], "the picture"), f"the picture at {H} × {W}", id="tes-image"),
        *grids,
        figure_tag(image_tag(to_pil(view.again)[0], "its reconstruction"), "what its codes decode to", id="tes-again"),
        figure_tag(
            image_tag(to_pil(differs)[0], "the difference"),
            f"the difference, {CONTRAST}-fold; grey is none",
            id="tes-difference",
        ),
    ]
    sheet = tag("div", *shown, class_="tes-sheet few tes-still")
    return join(sheet, tiles(figures_of(view, layout), "tes-tiles"), bits_explained(view, layout, class_name))


def figures_of(view: View, layout: Layout) -> list[Figure]:
    """Return the figures of a picture and of its codes."""
    C, H, W = view.image.shape[1:]
    told = [Figure("PSNR", f"{view.psnr:.1f} dB", "of the reconstruction; more is nearer")]
    if view.bits is not None:
        most = "" if view.exact else "at most "
        told.append(Figure("codes by the prior", f"{most}{number(round(view.bits))} bits", "as it predicts them"))
    if view.evenly is not None:
        size = str(layout).replace(" x ", " × ")
        told.append(Figure("codes alone", f"{number(round(view.evenly))} bits", f"{size}, all alike likely"))
    told.append(Figure("pixels", f"{number(view.raw)} bits", f"{H} × {W} × {C} bytes as they are"))
    return told


def bits_explained(view: View, layout: Layout, class_name: str | None) -> Html | None:
    """Return how the bits of the codes are counted with the prior and without; nothing of vectors."""
    if view.evenly is None:
        return None
    alone = (
        f"Codes alone: each of the {number(layout.length)} codes is one of {number(layout.codebook_size)} and costs "
        f"log2 {number(layout.codebook_size)} = {math.log2(layout.codebook_size):.4g} bits, whatever the picture."
    )
    parts = [tag("p", alone, class_="tes-note")]
    if view.bits is not None:
        given = "without a class" if class_name is None else f"given the class {class_name}"
        bound = "" if view.exact else " This prior gives a bound: the true number is no larger."
        by_prior = (
            f"Codes by the prior: −log2 p(codes), {given}. A coder that knows the prior needs so many bits for this "
            "picture: few where the prior expects it, more than for the codes alone where it is surprised." + bound
        )
        parts.append(tag("p", by_prior, class_="tes-note"))
    parts.append(tag("p", "Neither counts what the codes lose of the pixels, which PSNR says.", class_="tes-note"))
    return tag("div", *parts, class_="tes-bits")


def on_plane(decoded: Tensor, nearest: Tensor, place: str, class_name: str | None) -> Html:
    """Return what a place of the latent map decodes to, (1, C, H, W), beside the held-out image nearest to it."""
    about = "no class" if class_name is None else f"class {class_name}"
    shown = (
        (decoded, "decoded here", place, "tes-decoded"),
        (nearest, "the nearest held-out image", about, "tes-nearest"),
    )
    figures = (
        figure_tag(image_tag(to_pil(image)[0], f"{title}, {told}"), title, tag("span", told), id=name)
        for image, title, told, name in shown
    )
    return tag("div", *figures, class_="tes-sheet few tes-still")


def patch_sheet(patches: Tensor, columns: int) -> str:
    """Return patches (N, C, p, p), each in a margin, as a data URI; empty places have the margin's colour."""
    C, p = patches.shape[1:3]
    scale = max(1, 24 // p)
    tiles = F.pad(patches.repeat_interleave(scale, 2).repeat_interleave(scale, 3), (1, 1, 1, 1), value=BETWEEN)
    rows, side = -(-len(tiles) // columns), p * scale + 2
    whole = torch.full((rows * columns, C, side, side), BETWEEN, dtype=torch.uint8)
    whole[: len(tiles)] = tiles
    pixels = whole.view(rows, columns, C, side, side).permute(2, 0, 3, 1, 4).reshape(1, C, rows * side, columns * side)
    return data_uri(to_pil(pixels)[0])


def of_one_code(patch: Tensor, title: str, about: str, near: Sequence[tuple[int, Tensor]]) -> Html:
    """Return a code's patch (C, p, p) and number, its use, and its neighbours."""
    beside = (tag("span", image_tag(to_pil(each[None])[0], f"code {code}"), tag("b", code)) for code, each in near)
    return tag(
        "div",
        image_tag(to_pil(patch[None])[0], title),
        tag("div", tag("h3", title), tag("p", about), tag("p", "nearest to it"), tag("div", *beside, class_="near")),
        class_="tes-code",
    )
