"""Markdown for the cards of the Hub: a README.md under a head in YAML."""

import json
import re
from collections.abc import Iterable, Sequence
from typing import Any

import yaml

from smalti.common.shown import shown, shown_lines

LIBRARY = "smalti"


def yaml_head(**fields: Any) -> str:
    """Return the YAML head, without fields that are None or empty."""
    given = {name: value for name, value in fields.items() if value not in (None, "", [], ())}
    return f"---\n{yaml.safe_dump(given, sort_keys=False, allow_unicode=True)}---\n\n"


def plain(text: Any) -> str:
    """Return a text as one line of Markdown that shows it unchanged."""
    return re.sub(r"([\\`*_{}\[\]<>|#~$])", r"\\\1", shown(" ".join(str(text).split())))


def markdown_table(names: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """Return a table; its cells are Markdown already."""
    lines = [names, ["---"] * len(names), *rows]
    return "".join(f"| {' | '.join(line)} |\n" for line in lines)


def fenced(text: str, language: str = "") -> str:
    """Return a text as a code block that nothing in the text can end."""
    longest = max((len(run) for run in re.findall("`+", text)), default=0)
    fence = "`" * max(3, longest + 1)
    return f"{fence}{language}\n{shown_lines(text.rstrip())}\n{fence}\n"


def collapsible(summary: str, body: str) -> str:
    return f"<details><summary>{summary}</summary>\n\n{body}\n</details>\n"


def loading(cls: type[Any], place: str) -> str:
    """Return the Python lines that load an object of this class from a folder or a repository."""
    given, face = json.dumps(place, ensure_ascii=False), cls.face
    variable = face.removeprefix("load_").removeprefix("Image").lower()
    call = face if face.startswith("load_") else f"{face}.from_pretrained"
    return f"from smalti import {face}\n\n{variable} = {call}({given})"


def brief(cls: type, repo_id: str) -> str:
    """Return the card of a model pushed from memory, whose data and figures are unknown."""
    return (
        f"{yaml_head(library_name=LIBRARY)}# {repo_id.rpartition('/')[2]}\n\n"
        f"An `{cls.__name__}` of Smalti; `config.json` or `model_index.json` says its sizes.\n\n"
        f"{fenced(loading(cls, repo_id), 'python')}\n"
        "This card does not know its data and its figures. Where its run is, "
        f"`python pipeline/publish.py RUN --repo {repo_id}` writes a card that says both.\n"
    )
