"""The codebook: how often each code was used, and what it decodes to.

Q codes at each place of the grid, K codes to choose from.
"""

from pathlib import Path
from typing import Any

import numpy as np

from smalti.common.errors import UserError
from smalti.common.folder import read_json
from smalti.pipeline.reporting import charts, page
from smalti.pipeline.reporting.found import Found, read_picture
from smalti.pipeline.reporting.page import Html, Section


def read_counts(path: Path) -> tuple[np.ndarray, dict[str, Any]]:
    """(Q, K), how often each code was used, and what else the file says."""
    value = read_json(path)
    try:
        counts = np.array(value.get("counts"), dtype=np.int64)
    except (ValueError, TypeError, OverflowError):
        counts = np.zeros(0, dtype=np.int64)
    if counts.ndim != 2 or not counts.size or counts.min() < 0:
        raise UserError(
            f"{path} must hold counts, a list of whole numbers for each depth; training again writes it anew"
        )
    return counts, value


def use_of_codes(found: Found, path: Path) -> Html:
    counts, value = read_counts(path)
    never = int((counts == 0).sum())
    images = value.get("images")
    of = f"{value.get('split', 'validation')} split" + (f", {images:,} images" if isinstance(images, int) else "")
    drawn = charts.code_use(counts, found.path / "report/codebook-use.png")
    seen = f"{never:,} of {counts.size:,} codes were never used" if never else f"all {counts.size:,} codes were used"
    alt = f"How often each code was used, sorted: from {counts.max():,} times down to {counts.min():,}; {seen}"
    return page.figure(
        page.chart(drawn, alt, wide=True),
        f"How often each code was used on the {of}, the most used first; {seen}. A curve that stays near the dashed "
        "line uses its codes alike; one that falls early leaves codes idle.",
    )


def section(found: Found) -> Section:
    histogram, drawn = found.path / "tokenizer/histogram.json", found.path / "tokenizer/codebook.png"
    parts = []
    if histogram.exists():
        parts.append(use_of_codes(found, histogram))
    if drawn.exists():
        read_picture(drawn)
        caption = "The codebook: its use over each split, what every code decodes to, and the nearest pairs of codes."
        parts.append(page.figure(page.tag("div", page.picture(drawn, caption), class_="plate"), caption))
    elif found.model is not None:
        parts.append(
            page.missing("The patches of its codes were not drawn yet", found.command("tokenizer/codebook.py"))
        )
    lacking = page.missing("There is no codebook yet", found.tokenizer_command)
    return Section("codebook", "Codebook", page.join(*parts) if parts else lacking, bool(parts))
