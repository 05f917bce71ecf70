"""The section on the codebook: how often each code was used, and what it decodes to.

R codebooks, one for each depth of each grid; K codes to choose from.
"""

from pathlib import Path
from typing import Any

import numpy as np

from smalti.common.errors import UserError
from smalti.common.folder import read_json
from smalti.pipeline.reporting import charts, markup
from smalti.pipeline.reporting.markup import Html, Section
from smalti.pipeline.reporting.run_contents import RunContents, read_run_picture


def read_histogram(path: Path) -> tuple[np.ndarray, dict[str, Any]]:
    """Return how often each code was used, (R, K), and the whole file. Raises `UserError` for a damaged file."""
    value = read_json(path)
    try:
        counts = np.array(value.get("counts"), dtype=np.int64)
    except (ValueError, TypeError, OverflowError):
        counts = np.zeros(0, dtype=np.int64)
    if counts.ndim != 2 or not counts.size or counts.min() < 0:
        raise UserError(
            f"{path} must hold counts, a list of whole numbers for each codebook; training again writes it anew"
        )
    return counts, value


def use_of_codes(contents: RunContents, path: Path) -> Html:
    """Return the chart of how often each code was used."""
    counts, value = read_histogram(path)
    never = int((counts == 0).sum())
    images = value.get("images")
    of = f"{value.get('split', 'validation')} split" + (f", {images:,} images" if isinstance(images, int) else "")
    names = value.get("codebooks")
    if not isinstance(names, list) or len(names) != len(counts):  # an earlier version wrote none
        names = [f"depth {depth + 1}" for depth in range(len(counts))]
    drawn = charts.code_use(counts, [str(name) for name in names], contents.path / "report/codebook-use.png")
    seen = f"{never:,} of {counts.size:,} codes were never used" if never else f"all {counts.size:,} codes were used"
    alt = f"How often each code was used, sorted: from {counts.max():,} times down to {counts.min():,}; {seen}"
    return markup.figure_tag(
        markup.chart(drawn, alt, wide=True),
        f"How often each code was used on the {of}, the most used first; {seen}. A curve that stays level uses its "
        "codes alike; one that falls early leaves codes idle.",
    )


def codebook_section(contents: RunContents) -> Section:
    """Return the section on the codebook."""
    histogram, drawn = contents.path / "tokenizer/histogram.json", contents.path / "tokenizer/codebook.png"
    parts = []
    if histogram.exists():
        parts.append(use_of_codes(contents, histogram))
    if drawn.exists():
        read_run_picture(drawn)
        caption = "The codebook: its use over each split, what every code decodes to, and the nearest pairs of codes."
        parts.append(markup.figure_tag(markup.tag("div", markup.png_tag(drawn, caption), class_="plate"), caption))
    elif contents.model is not None:
        parts.append(
            markup.missing("The patches of its codes were not drawn yet", contents.command("tokenizer/codebook.py"))
        )
    lacking = markup.missing("There is no codebook yet", contents.tokenizer_command)
    return Section("codebook", "Codebook", markup.join(*parts) if parts else lacking, bool(parts))
