"""The picture of a codebook: its usage curve, every code's patch, the nearest pairs of codes, and the advice.

Shapes: counts (R, K), a row a codebook of the layout; patches (N, 1 or 3, p, p) uint8, p the
pixels a side that one code stands for.

A code's patch is what it draws in the middle of 5 x 5 places whose other vectors are the mean of the counted codes'. (A
grid that the code fills looks less like the images' patches that become this code: a correlation of 0.4, not 0.8, on
the digits, for a decoder sees the places around.) Of a residual tokenizer the other depths hold their mean in the
middle too, and from the second depth on what a code changes in the mean patch is shown, grey being no change, the
contrast raised alike for all. Of K-means the patch is the mean itself.
"""

import math
import textwrap
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from einops import rearrange
from torch import Tensor

from smalti.common.data.pixels import to_uint8
from smalti.common.folder import replacing
from smalti.tokenizer.base import DrawsCodes
from smalti.tokenizer.codebooks.health import PAIRS, Counted, Neighbours
from smalti.tokenizer.codebooks.usage import perplexity

if TYPE_CHECKING:
    from matplotlib.axes import Axes

SHOWN = 1024  # patches of the picture, over all depths
CURVE_POINTS = 2000
LEFT, WIDE, TITLED, TITLE, MARGIN, FRAME = 580, 880, 700, 36, 20, 2  # of the picture, in pixels
BACKGROUND, RED = 225, (230, 40, 40)  # neither a black patch nor a white one is lost on grey


# ------------------------------------------------------------------------------------------------------------- patches


def patches(tokenizer: DrawsCodes, counts: Tensor, depth: int, chosen: Tensor) -> Tensor:
    """Return the patches (N, 1 or 3, p, p) uint8 on the CPU of codes `chosen` (N,) of a codebook, for counts (R, K)."""
    return to_uint8(_on_white(tokenizer.code_pictures(counts, depth, chosen))).cpu()


def _on_white(images: Tensor) -> Tensor:
    """Return RGBA in [-1, 1] as RGB on white, and grey and RGB as they are."""
    if images.shape[1] < 4:
        return images
    opacity = (images[:, 3:] + 1) / 2
    return images[:, :3] * opacity + 1 - opacity


# ------------------------------------------------------------------------------------------------------------- picture


class _Page:
    """A figure laid out in pixels from its upper left corner, so that patches are drawn pixel by pixel."""

    def __init__(self, width: int, height: int):
        import matplotlib

        matplotlib.use("agg")
        from matplotlib.figure import Figure

        self.width, self.height = width, height
        self.figure = Figure(figsize=(width / 100, height / 100), dpi=100)

    def axes(self, left: int, top: int, width: int, height: int) -> "Axes":
        bottom = self.height - top - height
        return self.figure.add_axes((left / self.width, bottom / self.height, width / self.width, height / self.height))

    def image(self, pixels: np.ndarray, left: int, top: int) -> None:
        """Draw pixels (H, W, 3) uint8."""
        axes = self.axes(left, top, pixels.shape[1], pixels.shape[0])
        axes.imshow(pixels, interpolation="nearest", aspect="auto")
        axes.axis("off")

    def text(self, words: str, left: int, top: int, **style: Any) -> None:
        self.figure.text(left / self.width, 1 - top / self.height, words, va="top", **style)


def draw_codebook(
    tokenizer: DrawsCodes,
    names: Sequence[str],
    counted: Counted,
    near: Sequence[Neighbours],
    sentences: Sequence[str],
    path: Path,
) -> None:
    """Draw the usage curve, nearest pairs and advice on the left, and every code's patch on the right."""
    counts = counted.counts[counted.most]
    blocks = list(_blocks(tokenizer, names, counts, counted.most))
    words = "\n\n".join(textwrap.fill(sentence, 88) for sentence in sentences)
    below = 470 + 330 * bool(near)  # where the advice begins
    left, right = below + 30 + 14 * len(words.splitlines()), sum(block.shape[0] + TITLE for _, block in blocks)
    page = _Page(LEFT + max(TITLED, *(block.shape[1] for _, block in blocks)) + MARGIN, max(left, right) + MARGIN)
    draw_usage_curves(page.axes(75, 40, LEFT - 120, 350), names, counted)
    if near:
        draw_pairs(page, tokenizer, names, counts, near, top=470)
    page.text("advice", 20, below, fontsize=11)
    page.text(words, 20, below + 24, fontsize=8, linespacing=1.25)
    top = 10
    for title, block in blocks:
        page.text(title, LEFT, top, fontsize=11)
        page.image(block, LEFT, top + TITLE - 10)
        top += block.shape[0] + TITLE
    with replacing(path) as aside:
        page.figure.savefig(aside, format="png", dpi=100)


def draw_usage_curves(axes: "Axes", names: Sequence[str], counted: Counted) -> None:
    """Draw the use of codes, the most used first: a line a split, or a line a codebook where there are several."""
    if len(names) == 1:
        lines = {name: row for name, (row,) in counted.counts.items()}
    else:
        lines = dict(zip(names, counted.counts[counted.most], strict=True))
    for number, (name, row) in enumerate(lines.items()):
        K, colour = len(row), f"C{number}"
        level = (row.double() * K / row.sum().clamp_min(1)).sort(descending=True).values
        used = int((level > 0).sum())
        shown = torch.linspace(0, max(0, used - 1), min(max(1, used), CURVE_POINTS)).round().long()
        label = f"{name}: {used:,} of {K:,} used, perplexity {perplexity(row):,.1f}" if number < 8 else None
        axes.plot(shown + 1, level[shown], color=colour, label=label, marker="." if used < 30 else "")
        axes.axvline(perplexity(row), linestyle=":", color=colour)
    axes.axhline(1, linestyle="--", color="0.5", label="even use")
    axes.set(
        yscale="log",
        xlim=(0, max(int((row > 0).sum()) for row in lines.values()) * 1.02 + 1),
        xlabel="codes, the most used first; dotted: perplexity",
        ylabel="use, in units of even use",
    )
    axes.yaxis.set_major_formatter("{x:g}")
    axes.yaxis.set_minor_formatter("")
    axes.set_title(
        "use of the codebook" + f" on {counted.most}, by codebook" * (len(names) > 1), loc="left", fontsize=11
    )
    axes.legend(fontsize=8)
    axes.grid(alpha=0.3)


def _blocks(
    tokenizer: DrawsCodes, names: Sequence[str], counts: Tensor, split: str
) -> Iterator[tuple[str, np.ndarray]]:
    """Yield the title of each codebook and the pixels of its codes' patches, the most used first."""
    R, K = counts.shape
    shown = min(K, max(1, SHOWN // R))
    columns = math.ceil(math.sqrt(R * shown))
    for depth, row in enumerate(counts):
        order = row.argsort(descending=True, stable=True)
        unused = row[order[:shown]] == 0
        tiles = framed(patches(tokenizer, counts, depth, order[:shown]), unused, min(64, WIDE // columns))
        where = f"{names[depth]} of {R}{', what it changes' * (depth > 0)}: " if R > 1 else ""
        some = f"the {shown:,} most used of {K:,} codes" if shown < K else f"all {K:,} codes, the most used first"
        dead = f"{int((row == 0).sum()):,} dead{', in red' * bool(unused.any())}"
        yield f"{where}{some}, by {split}; {dead}", patch_grid(tiles, columns)


def framed(images: Tensor, dead: Tensor, side: int) -> np.ndarray:
    """Return patches (N, C, p, p) uint8 enlarged to about `side`, the dead ones in a red frame: (N, s, s, 3)."""
    scale = max(1, (side - 2 * FRAME) // images.shape[-1])
    pixels = images.permute(0, 2, 3, 1).numpy().repeat(scale, 1).repeat(scale, 2)
    pixels = np.broadcast_to(pixels, (*pixels.shape[:3], 3))
    tiles = np.pad(pixels, ((0, 0), (FRAME, FRAME), (FRAME, FRAME), (0, 0)), constant_values=BACKGROUND)
    marked = tiles.copy()
    marked[:] = RED
    marked[:, FRAME:-FRAME, FRAME:-FRAME] = pixels
    return np.where(dead.numpy()[:, None, None, None], marked, tiles)


def patch_grid(tiles: np.ndarray, columns: int) -> np.ndarray:
    """Return tiles (N, s, s, 3) laid out row after row: (rows · s, columns · s, 3)."""
    rows = -(-len(tiles) // columns)
    whole = np.full((rows * columns, *tiles.shape[1:]), BACKGROUND, dtype=np.uint8)
    whole[: len(tiles)] = tiles
    return rearrange(whole, "(r c) h w ch -> (r h) (c w) ch", r=rows)


def draw_pairs(
    page: _Page, tokenizer: DrawsCodes, names: Sequence[str], counts: Tensor, near: Sequence[Neighbours], top: int
) -> None:
    """Draw the nearest pairs of all codebooks: both patches, their codes, their distance."""
    both = [(depth, pair) for depth, found in enumerate(near) for pair in found.pairs]
    both = sorted(both, key=lambda item: item[1].relative)[:PAIRS]
    some = f" among the {near[0].compared:,} most used codes" if near[0].compared < counts.shape[1] else ""
    page.text(f"nearest pairs{some}; below: distance, 1 is the median to the nearest", 20, top, fontsize=11)
    tiles: dict[tuple[int, int], np.ndarray] = {}
    for depth in {depth for depth, _ in both}:
        chosen = torch.tensor([pair.codes for at, pair in both if at == depth]).flatten().unique()
        drawn = framed(patches(tokenizer, counts, depth, chosen), counts[depth][chosen] == 0, 56)
        tiles |= {(depth, code): tile for code, tile in zip(chosen.tolist(), drawn, strict=True)}
    for place, (depth, pair) in enumerate(both):
        left, down = 20 + place % 4 * 130, top + 30 + place // 4 * 100
        pixels = patch_grid(np.stack([tiles[depth, code] for code in pair.codes]), 2)
        page.image(pixels, left, down)
        at = f"{names[depth]}: " if len(counts) > 1 else ""
        page.text(
            f"{at}{pair.codes[0]}, {pair.codes[1]}\n{pair.relative:.2f}", left, down + len(pixels) + 2, fontsize=8
        )
