"""The charts of a report: curves, the use of a codebook, bits, nats by place; each a PNG file, and SVG for the page.

The SVG draws its text and axes in the colour of the text around it, so it can be read on light and on dark. No text
from a file is drawn: matplotlib would read a dollar sign in it as mathematics.
"""

import io
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from smalti.common.written import replacing_ours
from smalti.pipeline.reporting.markup import Html

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

INK = "#1d2125"  # the page replaces it by its own colour of text
COLOURS = ("#4a8fe0", "#e08a3c", "#3fa77a", "#a678d0")  # distinct on white and on black
SHOWN = 512  # ranks of a codebook to draw, evenly spaced
NUMBERED = 64  # a map of at most so many places shows its numbers


class Curve(NamedTuple):
    """A metric over the step."""

    name: str
    steps: Sequence[float]
    values: Sequence[float]


def _plot(width: float, height: float) -> "tuple[Figure, Axes]":
    """Return a figure of this size in inches and its axes, without a frame."""
    import matplotlib

    matplotlib.use("agg")
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), layout="constrained")
    axes = figure.add_subplot()
    axes.spines[["top", "right"]].set_visible(False)
    axes.spines[["left", "bottom"]].set_color(INK)
    axes.spines[["left", "bottom"]].set_alpha(0.5)
    axes.tick_params(which="both", colors=INK, labelsize=9, length=3)
    axes.grid(color=INK, alpha=0.12, linewidth=0.7)
    axes.set_axisbelow(True)
    return figure, axes


def _legend(axes: "Axes", **place: Any) -> None:
    axes.legend(fontsize=8.5, frameon=False, labelcolor=INK, handlelength=1.6, borderaxespad=0.2, **place)


def _legend_above(figure: "Figure") -> None:
    figure.legend(loc="outside upper left", ncols=4, fontsize=8.5, frameon=False, labelcolor=INK, handlelength=1.2)


def _save(figure: "Figure", path: Path) -> Html:
    """Write the PNG, and return the SVG."""
    import matplotlib

    with replacing_ours(path) as aside:
        figure.savefig(aside, format="png", dpi=150)
    figure.set_layout_engine("none")  # the PNG has laid it out
    text = io.StringIO()
    with matplotlib.rc_context(
        {"svg.fonttype": "none", "svg.hashsalt": path.stem}
    ):  # so that the charts of a page share no ids
        figure.savefig(text, format="svg", transparent=True, metadata={"Date": None})
    svg = text.getvalue()
    svg = re.sub(r"<metadata>.*?</metadata>", "", svg[svg.index("<svg") :], flags=re.DOTALL)
    svg = re.sub(r'<svg [^>]*?(viewBox="[^"]+")[^>]*>', r'<svg \1 aria-hidden="true">', svg)
    svg = re.sub(r' id="[a-zA-Z0-9.]+_\d+"', "", svg).replace("xlink:href", "href")
    return Html(svg.replace(INK, "currentColor").strip())


def curves(
    curves: Sequence[Curve],
    path: Path,
    *,
    levels: Mapping[str, float] | None = None,
    log: bool = False,
    shares: bool = False,
    width: float = 4.0,
) -> Html:
    """Draw metrics over the step, and `levels` as dashed lines. `width` is in inches; `shares` are shown as percent."""
    from matplotlib.ticker import MaxNLocator, PercentFormatter

    figure, axes = _plot(width, 2.7)
    for colour, curve in zip(COLOURS, curves, strict=False):
        few = "." if len(curve.steps) < 30 else ""
        axes.plot(curve.steps, curve.values, label=curve.name, color=colour, marker=few, linewidth=1.6)
    for style, (name, level) in zip(("--", ":"), (levels or {}).items(), strict=False):
        axes.axhline(level, linestyle=style, color=INK, alpha=0.7, linewidth=1.2, label=name)
    if log:
        axes.set_yscale("log")
    else:
        axes.ticklabel_format(useOffset=False)
    if shares:
        axes.yaxis.set_major_formatter(PercentFormatter(1))
        axes.set_ylim(top=min(axes.get_ylim()[1], 1.003))
    axes.xaxis.set_major_locator(MaxNLocator("auto", steps=[1, 2, 2.5, 5, 10], integer=True))
    axes.set_xlabel("step", color=INK, fontsize=9)
    if len(curves) + len(levels or {}) > 1:
        _legend(axes)
    return _save(figure, path)


def code_use(counts: np.ndarray, names: Sequence[str], path: Path) -> Html:
    """Draw counts (R, K), how often each code was used: a line a codebook, most used first, on a logarithmic scale."""
    figure, axes = _plot(7.4, 2.6)
    used, K = int((counts > 0).sum(1).max()), counts.shape[1]
    last = K if used > K / 4 else max(used, 1)  # in a large codebook, unused codes would take all the room
    ranks = np.unique(np.linspace(1, last, min(SHOWN, last)).round().astype(int))
    for depth, row in enumerate(-np.sort(-counts, axis=1)):
        some = ranks[row[ranks - 1] > 0]
        name = "codes" if len(counts) == 1 else names[depth].replace("$", r"\$")  # no formula
        colour = COLOURS[depth % len(COLOURS)]
        axes.step(some, row[some - 1], where="mid", color=colour, linewidth=1.6, label=name)
        if len(counts) == 1:
            axes.fill_between(some, row[some - 1], 0.5, step="mid", color=colour, alpha=0.25, linewidth=0)
    even = counts.sum() / counts.size
    if even > 0.5 and len({*counts.sum(1).tolist()}) == 1:  # grids of one sample have each their own number of places
        axes.axhline(even, linestyle="--", color=INK, alpha=0.7, linewidth=1.2, label="if all were used alike")
    axes.set(yscale="log", xlim=(0, last + 1), ylim=(0.5, max(counts.max(), 1) * 1.6))
    axes.set_xlabel("codes, the most used first", color=INK, fontsize=9)
    axes.set_ylabel("times used", color=INK, fontsize=9)
    if len(counts) == 1:
        _legend(axes, loc="lower left")
    else:  # where it covers no line, and is seen before a phone scrolls
        _legend_above(figure)
    return _save(figure, path)


def bits(distortion: float, rates: Mapping[str, float], path: Path) -> Html:
    """Draw bits per dimension, a bar for each prior: the distortion, which all share, and the prior's own rate."""
    figure, axes = _plot(7.4, 0.9 + 0.45 * len(rates))
    names, values = [name.replace("_", " ") for name in rates], np.array(list(rates.values()))
    axes.barh(names, [distortion] * len(names), color=COLOURS[0], height=0.62, label="distortion")
    axes.barh(names, values, left=distortion, color=COLOURS[1], height=0.62, label="rate")
    for place, total in enumerate(distortion + values):
        axes.annotate(
            f"{total:.3f}", (total, place), (4, 0), textcoords="offset points", va="center", fontsize=9, color=INK
        )
    axes.invert_yaxis()
    axes.margins(x=0.09)
    if distortion >= 0:
        axes.set_xlim(left=0)
    axes.grid(axis="y", visible=False)
    axes.set_xlabel("bits per dimension", color=INK, fontsize=9)
    _legend_above(figure)
    return _save(figure, path)


def place_map(nats: np.ndarray, path: Path) -> Html:
    """Draw nats (h, w) as a map of the grid, darker where a code costs more."""
    h, w = nats.shape
    figure, axes = _plot(3.6, 0.3 + min(6.0, 3.3 * h / w))
    drawn = axes.pcolormesh(nats, cmap="Blues", edgecolors="none")
    axes.set(aspect="equal", xticks=[], yticks=[])
    axes.invert_yaxis()
    axes.spines[:].set_visible(False)
    axes.grid(visible=False)
    if nats.size <= NUMBERED:
        middle = (nats.min() + nats.max()) / 2
        for (row, column), value in np.ndenumerate(nats):
            colour = "white" if value > middle else "#102a4c"
            axes.text(column + 0.5, row + 0.5, f"{value:.2f}", ha="center", va="center", fontsize=9, color=colour)
    else:
        bar = figure.colorbar(drawn, shrink=0.8)
        bar.ax.tick_params(colors=INK, labelsize=9)
        bar.outline.set_visible(False)
    return _save(figure, path)
