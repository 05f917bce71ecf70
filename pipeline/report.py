"""Make one page of a run: its figures, pictures, curves, settings, and the commands that repeat it.

    python pipeline/report.py runs/digits

Reads what exists in RUN: tokenizer/, codes/, prior/, pipeline/, samples/ and evaluation/; and a few held-out images,
which it completes. Writes RUN/report.html, a single file that loads nothing and can be sent as it is, and its charts as
PNG files into RUN/report/. For what is missing the page has a line with the command that makes it.
"""

import hashlib
import os
import sys
from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from functools import partial
from pathlib import Path

if __package__ in (None, ""):
    sys.path[0] = str(Path(__file__).resolve().parents[1])
    from smalti.common.starting import answer_signals

    answer_signals()

from smalti.common import config
from smalti.common.command_line import answer_at_once, is_command
from smalti.common.config import Settings as BaseSettings


class Settings(BaseSettings):
    """Report on a run."""

    run: str = "runs/digits"
    """folder of the experiment"""
    split: str | None = None
    """whose evaluations are shown; of each stage test, or where there is none validation, when null"""
    completion: bool = True
    """complete a few held-out images, for which the images and both models are read"""


def read_settings(argv: Sequence[str]) -> Settings:
    return config.parse(Settings, __doc__, argv, positional="run", positional_help="folder of the experiment")


if is_command(__name__):  # --help and a wrong setting are answered before torch is imported
    answer_at_once(read_settings)

from smalti.common.errors import Refused
from smalti.common.folder import is_empty, mend, replacing
from smalti.common.launch import check_alone, run_command
from smalti.common.progress import passing_bar
from smalti.common.record import commit
from smalti.common.session import logged
from smalti.common.written import NAME, is_as_written, note, noted
from smalti.pipeline.reporting import markup
from smalti.pipeline.reporting.bits_section import bits_section
from smalti.pipeline.reporting.codebook_section import codebook_section
from smalti.pipeline.reporting.completion_section import completion_section
from smalti.pipeline.reporting.latents_section import latents_section
from smalti.pipeline.reporting.markup import Html, Section
from smalti.pipeline.reporting.page_head import page_head
from smalti.pipeline.reporting.picture_sections import neighbours_section, reconstructions_section, samples_section
from smalti.pipeline.reporting.provenance_sections import commands_section, settings_section
from smalti.pipeline.reporting.quality_section import quality_section
from smalti.pipeline.reporting.run_contents import RunContents, gather
from smalti.pipeline.reporting.training_section import training_section

MADE = "Made by pipeline/report.py"  # marks our own pages


def foot() -> Html:
    """Return the foot of the page: its date, and the commit of the code."""
    name, dirty, _ = (commit() or "").partition("-dirty")
    at = f", of the code at commit {name[:10]}{dirty}" if name else ""
    return markup.paragraph(f"{MADE} of Smalti on {datetime.now(UTC).date().isoformat()}{at}.")


def write_report(c: Settings) -> Path:
    """Write the page, and return its file."""
    contents = gather(Path(c.run), c.split)
    check_page_is_ours(contents.path)
    note(contents.path / "report", {})  # marks the folder as ours
    latents = latents_section if contents.vectors else codebook_section
    parts: list[Callable[[RunContents], Section]] = [
        samples_section,
        reconstructions_section,
        training_section,
        latents,
        bits_section,
        partial(completion_section, wanted=c.completion),
        neighbours_section,
        quality_section,
        settings_section,
        commands_section,
    ]
    sections = []
    with passing_bar(len(parts), "report", unit="section") as bar:
        for part in parts:
            sections.append(part(contents))
            bar.update()
    path = contents.path / "report.html"
    text = markup.document(contents.name, page_head(contents), sections, foot()).encode("utf-8", errors="replace")
    mend(path)
    note(contents.path, {path.name: hashlib.sha256(text).hexdigest()})
    with replacing(path) as aside:
        aside.write_bytes(text)
    return path


def check_page_is_ours(run: Path) -> None:
    """Raise `Refused` where the page, or the folder of its charts, is not as this command wrote it."""
    path, charts, files = run / "report.html", run / "report", noted(run)
    made = path.is_file() and MADE.encode() in path.read_bytes()
    if os.path.lexists(path) and not (made and (path.name not in files or is_as_written(run, path.name, files))):
        raise Refused(f"{path} is not as this command wrote it; move it away")
    if os.path.lexists(charts) and not (charts.is_dir() and (made or is_empty(charts) or (charts / NAME).is_file())):
        raise Refused(f"{charts} holds something that this command did not write; move it away")


def main(argv: Sequence[str]) -> None:
    check_alone()
    c = read_settings(argv)
    with logged(Path(c.run) / "report"):
        path = write_report(c)
    size = path.stat().st_size / 2**20
    print(f"the page is {path} ({size:.1f} MiB), its charts are in {path.with_suffix('')}; open it in a browser")


if __name__ == "__main__":
    run_command(main)
