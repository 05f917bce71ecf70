"""The building blocks of a self-contained page: markup that escapes its input, tables, pictures inside it.

Text becomes `Html` only by being escaped: whatever a file holds, a class name or a setting, is shown as text. The page
loads nothing: pictures stand in it as data, and it holds no script.
"""

import base64
import html
import json
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from smalti.common.reading import read_file
from smalti.pipeline.reporting.style import STYLE

EMPTY = {"img", "meta", "br"}  # elements without an end tag
CLASSES = 40  # the most rows of a table of classes


class Html(str):
    """Markup. `join` and `tag` escape any other text."""


class Figure(NamedTuple):
    """A number as the page shows it."""

    title: str
    value: str
    meaning: str


class Section(NamedTuple):
    """A section of the page."""

    anchor: str
    title: str
    body: Html
    filled: bool = True  # otherwise the body names the command that fills it


# --------------------------------------------------------------------------------------------------------------- markup


def join(*parts: Any) -> Html:
    """Concatenate parts. Text that is no markup is escaped; None is skipped."""
    return Html(
        "".join(part if isinstance(part, Html) else html.escape(str(part)) for part in parts if part is not None)
    )


def tag(name: str, /, *children: Any, **attributes: Any) -> Html:
    """Return an element. `class_` is the attribute class, `aria_label` aria-label; one that is None is left out."""
    given = {key.rstrip("_").replace("_", "-"): value for key, value in attributes.items() if value is not None}
    written = "".join(f' {key}="{html.escape(str(value))}"' for key, value in given.items())
    return Html(f"<{name}{written}>" if name in EMPTY else f"<{name}{written}>{join(*children)}</{name}>")


def paragraph(*children: Any, class_: str | None = None) -> Html:
    return tag("p", *children, class_=class_)


def code_tag(text: str) -> Html:
    return tag("code", text)


def missing(what: str, command: str) -> Html:
    """Return the line that stands for a missing section, or for a missing part of one."""
    return paragraph(f"{what}: ", code_tag(command), " fills this in.", class_="missing")


def details_tag(summary: Any, *children: Any) -> Html:
    """Return content that is folded until a reader opens it, and open on paper."""
    return tag("details", tag("summary", summary), *children)


def listing(text: str) -> Html:
    """Return preformatted text to copy."""
    return tag("pre", tag("code", text), tabindex="0")


# -------------------------------------------------------------------------------------------------------------- numbers


def number(value: Any) -> str:
    """Format whole numbers in full, others with four significant digits, and the rest as JSON."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        return value if isinstance(value, str) else json.dumps(value)
    if isinstance(value, int):
        return f"{value:,}"
    if not math.isfinite(value):
        return str(value)
    places = 3 if value == 0 else min(6, max(0, 3 - math.floor(math.log10(abs(value)))))
    return minus(f"{value:,.{places}f}")


def minus(text: str) -> str:
    """Replace hyphens by minus signs."""
    return text.replace("-", "−")


def percent(value: float) -> str:
    return minus(f"{value:.1%}")


# ------------------------------------------------------------------------------------------------------ tables and bars


def table_tag(
    head: Sequence[Any], rows: Iterable[Sequence[Any]], *, words: Sequence[int] = (0,), caption: Any = None
) -> Html:
    """Return a table. Columns hold numbers, flush right, except those in `words`."""

    def row(kind: str, cells: Sequence[Any]) -> Html:
        return tag("tr", *(tag(kind, cell, class_=None if i in words else "number") for i, cell in enumerate(cells)))

    body = tag("tbody", *(row("td", cells) for cells in rows))
    above = None if caption is None else tag("caption", caption)
    return tag("div", tag("table", above, tag("thead", row("th", head)), body), class_="scroll", tabindex="0")


def bars(
    head: tuple[str, str], values: Mapping[str, float], written: Mapping[str, str], *, caption: Any = None
) -> Html:
    """Return a table of names and numbers with the numbers drawn as bars too, all from zero."""
    most = max([*values.values(), 0.0]) or 1.0

    def bar(value: float) -> Html:
        return tag("span", class_="bar", style=f"width:{100 * min(1, max(0, value / most)):.1f}%")

    rows = [(name, tag("span", bar(value), class_="track"), written[name]) for name, value in values.items()]
    return table_tag((head[0], "", head[1]), rows, words=(0, 1), caption=caption)


def class_bars(caption: str, values: Mapping[str, float], write: Callable[[float], str]) -> Html:
    """Return a bar for each class; of many classes the lowest and the highest."""
    shown = dict(values)
    if len(values) > CLASSES:
        ranked = sorted(values, key=values.__getitem__)
        shown = {name: values[name] for name in (*ranked[: CLASSES // 2], *ranked[-CLASSES // 2 :])}
        caption += f" (of {len(values):,} the {CLASSES // 2} lowest and highest)"
    return bars(
        ("class", "value"), shown, {name: write(float(value)) for name, value in shown.items()}, caption=caption
    )


def figures_table(figures: Iterable[Figure], *, caption: Any = None) -> Html:
    """Return a table of figures with their meanings."""
    return table_tag(("figure", "value", "meaning"), figures, words=(0, 2), caption=caption)


def tiles(figures: Iterable[Figure], class_: str = "tiles") -> Html:
    """Return figures in large type, each with its title and meaning."""

    def tile(figure: Figure) -> Html:
        return tag("div", tag("dt", figure.title), tag("dd", figure.value), tag("dd", figure.meaning, class_="about"))

    return tag("dl", *map(tile, figures), class_=class_)


# ------------------------------------------------------------------------------------------------------------- pictures


def png_tag(path: Path, alt: str, *, pixels: bool = False) -> Html:
    """Embed a PNG file in the page. `pixels`: its images are so small that each pixel should be visible."""
    data = base64.b64encode(read_file(path)).decode()
    return tag("img", src=f"data:image/png;base64,{data}", alt=alt, class_="pixels" if pixels else None)


def labelled_grid(image: Html, *, columns: Sequence[str] = (), rows: Sequence[str] = ()) -> Html:
    """Return a picture of a grid with a name over each column and beside each row."""
    above = tag("div", *(tag("span", name) for name in columns), class_="columns") if columns else None
    beside = tag("div", *(tag("span", name) for name in rows), class_="rows") if rows else None
    return tag("div", above, beside, tag("div", image, class_="plate"), class_="grid named" if rows else "grid")


def figure_tag(content: Html, *caption: Any, **attributes: Any) -> Html:
    """Return a picture with its caption below it."""
    return tag("figure", content, tag("figcaption", *caption), **attributes)


def panel(title: str, content: Html) -> Html:
    """Return one of several charts, under its title."""
    return tag("figure", tag("figcaption", title), content)


def chart(svg: Html, alt: str, *, wide: bool = False) -> Html:
    """Return a drawing. A `wide` one scrolls in a narrow window, so that it stays readable."""
    return tag("div", svg, class_="chart wide" if wide else "chart", role="img", aria_label=alt)


def side_by_side(*parts: Html) -> Html:
    return tag("div", *parts, class_="side")


# ------------------------------------------------------------------------------------------------------------ document


def entry(section: Section) -> Html:
    """Return a line of the contents."""
    link = tag("a", section.title, href=f"#{section.anchor}")
    return tag("li", link, class_=None if section.filled else "empty")


def document(title: str, head: Html, sections: Sequence[Section], foot: Html) -> str:
    """Return the whole page."""
    contents = tag("nav", tag("ul", *map(entry, sections)), aria_label="Contents")
    body = [tag("section", tag("h2", section.title), section.body, id=section.anchor) for section in sections]
    main = tag("main", tag("header", tag("h1", title), head), contents, *body)
    meta = [
        tag("meta", charset="utf-8"),
        tag("meta", name="viewport", content="width=device-width, initial-scale=1"),
        tag("meta", name="color-scheme", content="light dark"),
    ]
    written = tag(
        "html",
        tag("head", *meta, tag("title", f"{title} – Smalti"), tag("style", Html(STYLE))),
        tag("body", main, tag("footer", foot)),
        lang="en",
    )
    return f"<!DOCTYPE html>\n{written}\n"
