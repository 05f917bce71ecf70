"""Make one page of a run: its figures, pictures, curves, settings, and the commands that repeat it.

    python pipeline/report.py runs/digits

Reads what is there of RUN: tokenizer/, codes/, prior/, pipeline/, samples/ and evaluation/; and a few held-out images, which
it completes. Writes RUN/report.html, a single file that loads nothing and may be sent as it is, and the charts of it as PNG
files into RUN/report/. What is not there yet has one line in its place, which says the command that fills it.
"""

import sys
from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from functools import partial
from pathlib import Path

if __package__ in (None, ""):
    sys.path[0] = str(Path(__file__).resolve().parents[1])
    from common.starting import answer_signals

    answer_signals()

from common import config
from common.config import Settings as BaseSettings
from common.folder import replacing
from common.launch import check_alone, run_command
from common.progress import passing_bar
from common.record import commit
from common.session import logged
from pipeline.reporting import bits, codebook, completion, page, pictures, provenance, quality, training
from pipeline.reporting.found import Found, gather
from pipeline.reporting.head import head
from pipeline.reporting.page import Html, Section


class Settings(BaseSettings):
    """Report on a run."""

    run: str = "runs/digits"
    """folder of the experiment"""
    split: str | None = None
    """whose evaluations are shown; of each stage test, or where there is none validation, when null"""
    completion: bool = True
    """complete a few held-out images, for which the images and both models are read"""


def foot() -> Html:
    """When the page was made, and by which code."""
    name, dirty, _ = (commit() or "").partition("-dirty")
    at = f", of the code at commit {name[:10]}{dirty}" if name else ""
    return page.paragraph(f"Made by pipeline/report.py of Tesserae on {datetime.now(UTC).date().isoformat()}{at}.")


def report(c: Settings) -> Path:
    """Write the page, and return its file."""
    found = gather(Path(c.run), c.split)
    parts: list[Callable[[Found], Section]] = [
        pictures.samples,
        pictures.reconstructions,
        training.section,
        codebook.section,
        bits.section,
        partial(completion.section, wanted=c.completion),
        pictures.neighbours,
        quality.section,
        provenance.settings,
        provenance.commands,
    ]
    sections = []
    with passing_bar(len(parts), "report", unit="section") as bar:
        for part in parts:
            sections.append(part(found))
            bar.update()
    path = found.path / "report.html"
    with replacing(path) as aside:
        aside.write_text(page.document(found.name, head(found), sections, foot()), encoding="utf-8", errors="replace")
    return path


def main(argv: Sequence[str]) -> None:
    check_alone()
    c = config.parse(Settings, __doc__, argv, positional="run", positional_help="folder of the experiment")
    with logged(Path(c.run) / "report"):
        path = report(c)
    size = path.stat().st_size / 2**20
    print(f"the page is {path} ({size:.1f} MiB), its charts are in {path.with_suffix('')}; open it in a browser")


if __name__ == "__main__":
    run_command(main)
