"""Lines of pictures with their names at the left, as one figure of the docs."""

import textwrap
from collections.abc import Mapping
from pathlib import Path

from matplotlib.figure import Figure
from torch import Tensor

from smalti.common.folder import replacing
from smalti.common.plots import image_grid

DPI = 90
WRAPPED = 24  # characters of a name, of which longer ones take two lines


def save_lines(lines: Mapping[str, Tensor], path: Path, *, side: int = 128, width: float = 9.0) -> None:
    """Write lines of images (N, C, H, W) uint8, as many in each; small ones are enlarged to about `side` pixels."""
    figure = Figure(figsize=(width, 0.11 * width * len(lines)))
    figure.subplots_adjust(left=0.2, right=0.995, top=0.99, bottom=0.01, hspace=0.08)
    for axes, (name, images) in zip(figure.subplots(len(lines), 1), lines.items(), strict=True):
        axes.imshow(image_grid(images, len(images), side=side), interpolation="nearest", cmap="grey", vmin=0, vmax=255)
        axes.set_ylabel("\n".join(textwrap.wrap(name, WRAPPED)), rotation=0, ha="right", va="center", fontsize=9)
        axes.set(xticks=[], yticks=[])
    with replacing(path) as aside:
        figure.savefig(aside, format="png", dpi=DPI)
