"""What the page shows, as markup: sheets of images, code grids, figures. Whatever text comes in is escaped.

Shapes: images (N, C, H, W) uint8; codes (h, w).
"""

import base64
import io
from collections.abc import Sequence

import PIL.Image
import torch
import torch.nn.functional as F
from torch import Tensor

from smalti.common.data.pixels import to_pil
from smalti.common.layout import Layout
from smalti.pipeline.playground.view import CONTRAST, View, difference
from smalti.pipeline.reporting.page import Html, join, number, tag

BETWEEN = 225  # of codes' patches: neither a black one nor a white one is lost on grey
SMALL = 128  # pixels a side, below which each is to be seen
GOLDEN = 0.618034  # of the way round the circle of hues lie two codes with neighbouring numbers


def data_uri(image: PIL.Image.Image) -> str:
    """A PNG file, pixel for pixel."""
    file = io.BytesIO()
    image.save(file, format="PNG")
    return "data:image/png;base64," + base64.b64encode(file.getvalue()).decode()


def picture(image: PIL.Image.Image, told: str) -> Html:
    kind = "tes-picture tes-small" if max(image.size) < SMALL else "tes-picture"
    return tag("img", src=data_uri(image), alt=told, class_=kind, decoding="sync")


def figure(content: Html, *caption: object, **attributes: object) -> Html:
    return tag("figure", content, tag("figcaption", *caption), **attributes)


def sheet(images: Sequence[PIL.Image.Image], captions: Sequence[tuple[str, str]], chosen: int | None = None) -> Html:
    """Images that can be clicked, each with its title and what is said below that; one of them framed."""
    many = "few" if len(images) <= 4 else "some" if len(images) <= 20 else "many"
    figures = (
        figure(
            picture(image, f"{title} {about}"),
            title,
            tag("span", about),
            data_index=i,
            class_="chosen" if i == chosen else None,
        )
        for i, (image, (title, about)) in enumerate(zip(images, captions, strict=True))
    )
    return tag("div", *figures, class_=f"tes-sheet {many}")


def code_grid(codes: Tensor) -> Html:
    """Each place's code: its number, on a colour that belongs to the number."""
    h, w = codes.shape
    cells = []
    for place, code in enumerate(codes.flatten().tolist()):
        row, column = divmod(place, w)
        hue, size = round(360 * (code * GOLDEN % 1)), min(0.42, 1.5 / len(str(code)))
        cells.append(tag("rect", x=column, y=row, width=1, height=1, fill=f"hsl({hue} 55% 84%)"))
        cells.append(tag("text", code, x=column + 0.5, y=row + 0.5, font_size=f"{size:.2f}"))
    told = f"{h} x {w} codes: " + " / ".join(" ".join(map(str, row)) for row in codes.tolist())
    return tag("svg", *cells, viewBox=f"0 0 {w} {h}", class_="tes-codes", role="img", aria_label=told)


def looked_at(view: View, layout: Layout) -> Html:
    """Return the picture, its codes where they lie in rows and columns, its reconstruction, what differs, and the
    figures."""
    C, H, W = view.image.shape[1:]
    depth = layout.depth if layout.rectangle else 1
    depths = view.codes.view(*layout.rectangle, depth).unbind(-1) if layout.rectangle and layout.discrete else ()
    grids = [
        figure(
            code_grid(codes), "its codes" if depth == 1 else f"its codes, depth {i + 1} of {depth}", id=f"tes-codes-{i}"
        )
        for i, codes in enumerate(depths)
    ]
    differs = difference(view.image, view.again)
    shown = [
        figure(picture(to_pil(view.image)[0], "the picture"), f"the picture at {H} × {W}", id="tes-image"),
        *grids,
        figure(picture(to_pil(view.again)[0], "its reconstruction"), "what its codes decode to", id="tes-again"),
        figure(
            picture(to_pil(differs)[0], "the difference"),
            f"the difference, {CONTRAST}-fold; grey is none",
            id="tes-difference",
        ),
    ]
    told = [("PSNR", f"{view.psnr:.1f} dB", "of the reconstruction; more is nearer")]
    if view.bits is not None:
        told.append(
            (
                "codes",
                f"{number(round(view.bits))} bits",
                f"{str(layout).replace(' x ', ' × ')} as the prior predicts them",
            )
        )
    if view.evenly is not None:
        told.append(("without the prior", f"{number(round(view.evenly))} bits", "were all codes alike likely"))
    told.append(("pixels", f"{number(view.raw)} bits", f"{H} × {W} × {C} bytes as they are"))
    return join(tag("div", *shown, class_="tes-sheet few tes-still"), tiles(told))


def tiles(told: Sequence[tuple[str, str, str]]) -> Html:
    """A title, a value and what it means."""
    each = (
        tag("div", tag("dt", title), tag("dd", value), tag("dd", means, class_="about")) for title, value, means in told
    )
    return tag("dl", *each, class_="tes-tiles")


def mosaic(patches: Tensor, columns: int) -> str:
    """patches (N, C, p, p), each in a margin, as a data URI; what is left over is the colour of the margin."""
    C, p = patches.shape[1:3]
    scale = max(1, 24 // p)
    tiles = F.pad(patches.repeat_interleave(scale, 2).repeat_interleave(scale, 3), (1, 1, 1, 1), value=BETWEEN)
    rows, side = -(-len(tiles) // columns), p * scale + 2
    whole = torch.full((rows * columns, C, side, side), BETWEEN, dtype=torch.uint8)
    whole[: len(tiles)] = tiles
    pixels = whole.view(rows, columns, C, side, side).permute(2, 0, 3, 1, 4).reshape(1, C, rows * side, columns * side)
    return data_uri(to_pil(pixels)[0])


def of_one_code(patch: Tensor, title: str, about: str, near: Sequence[tuple[int, Tensor]]) -> Html:
    """A code's patch (C, p, p) and number, its use, and its neighbours."""
    beside = (tag("span", picture(to_pil(each[None])[0], f"code {code}"), tag("b", code)) for code, each in near)
    return tag(
        "div",
        picture(to_pil(patch[None])[0], title),
        tag("div", tag("h3", title), tag("p", about), tag("p", "nearest to it"), tag("div", *beside, class_="near")),
        class_="tes-code",
    )
