"""The building blocks of a page that is one file: markup that escapes what it is given, tables, pictures inside it.

Text becomes `Html` by being escaped and in no other way: whatever a file said, a class name or a setting, is shown as
text. The page loads nothing: pictures stand in it as data, and it holds no script.
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

EMPTY = {"img", "meta", "br"}  # elements without an end
CLASSES = 40  # that a table of classes has at most


class Html(str):
    """Markup. Any other text is escaped where it is put among some."""


class Figure(NamedTuple):
    """A number as the page tells it."""

    title: str
    value: str
    meaning: str


class Section(NamedTuple):
    anchor: str
    title: str
    body: Html
    filled: bool = True  # else the body says what would fill it


# --------------------------------------------------------------------------------------------------------------- markup


def join(*parts: Any) -> Html:
    """Parts one after the other, those escaped that are not markup; None is nothing."""
    return Html(
        "".join(part if isinstance(part, Html) else html.escape(str(part)) for part in parts if part is not None)
    )


def tag(name: str, /, *children: Any, **attributes: Any) -> Html:
    """An element. `class_` is the attribute class and `aria_label` aria-label; one that is None is left out."""
    given = {key.rstrip("_").replace("_", "-"): value for key, value in attributes.items() if value is not None}
    written = "".join(f' {key}="{html.escape(str(value))}"' for key, value in given.items())
    return Html(f"<{name}{written}>" if name in EMPTY else f"<{name}{written}>{join(*children)}</{name}>")


def paragraph(*children: Any, class_: str | None = None) -> Html:
    return tag("p", *children, class_=class_)


def code(text: str) -> Html:
    return tag("code", text)


def missing(what: str, command: str) -> Html:
    """One line in the place of a section, or of a part of one."""
    return paragraph(f"{what}: ", code(command), " fills this in.", class_="missing")


def details(summary: Any, *children: Any) -> Html:
    """What is folded away until it is asked for, and unfolded on paper."""
    return tag("details", tag("summary", summary), *children)


def listing(text: str) -> Html:
    """Text as it is, to be copied."""
    return tag("pre", tag("code", text), tabindex="0")


# -------------------------------------------------------------------------------------------------------------- numbers


def number(value: Any) -> str:
    """Whole numbers in full, others with four digits that count, the rest as JSON would have it."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        return value if isinstance(value, str) else json.dumps(value)
    if isinstance(value, int):
        return f"{value:,}"
    if not math.isfinite(value):
        return str(value)
    places = 3 if value == 0 else min(6, max(0, 3 - math.floor(math.log10(abs(value)))))
    return minus(f"{value:,.{places}f}")


def minus(text: str) -> str:
    """A hyphen is no minus."""
    return text.replace("-", "−")


def percent(value: float) -> str:
    return minus(f"{value:.1%}")


# ------------------------------------------------------------------------------------------------------ tables and bars


def table(
    head: Sequence[Any], rows: Iterable[Sequence[Any]], *, words: Sequence[int] = (0,), caption: Any = None
) -> Html:
    """Rows under a head. Columns hold numbers, flush right, but for those that hold `words`."""

    def row(kind: str, cells: Sequence[Any]) -> Html:
        return tag("tr", *(tag(kind, cell, class_=None if i in words else "number") for i, cell in enumerate(cells)))

    body = tag("tbody", *(row("td", cells) for cells in rows))
    above = None if caption is None else tag("caption", caption)
    return tag("div", tag("table", above, tag("thead", row("th", head)), body), class_="scroll", tabindex="0")


def bars(
    head: tuple[str, str], values: Mapping[str, float], written: Mapping[str, str], *, caption: Any = None
) -> Html:
    """A table of two columns whose numbers are drawn as bars too, all from zero."""
    most = max([*values.values(), 0.0]) or 1.0

    def bar(value: float) -> Html:
        return tag("span", class_="bar", style=f"width:{100 * min(1, max(0, value / most)):.1f}%")

    rows = [(name, tag("span", bar(value), class_="track"), written[name]) for name, value in values.items()]
    return table((head[0], "", head[1]), rows, words=(0, 1), caption=caption)


def class_bars(caption: str, values: Mapping[str, float], write: Callable[[float], str]) -> Html:
    """A bar for each class; of many classes the lowest and the highest."""
    shown = dict(values)
    if len(values) > CLASSES:
        ranked = sorted(values, key=values.__getitem__)
        shown = {name: values[name] for name in (*ranked[: CLASSES // 2], *ranked[-CLASSES // 2 :])}
        caption += f" (of {len(values):,} the {CLASSES // 2} lowest and highest)"
    return bars(
        ("class", "value"), shown, {name: write(float(value)) for name, value in shown.items()}, caption=caption
    )


def figures_table(figures: Iterable[Figure], *, caption: Any = None) -> Html:
    """Figures with what each means."""
    return table(("figure", "value", "meaning"), figures, words=(0, 2), caption=caption)


def tiles(figures: Iterable[Figure]) -> Html:
    """The large figures at the head of the page."""

    def tile(figure: Figure) -> Html:
        return tag("div", tag("dt", figure.title), tag("dd", figure.value), tag("dd", figure.meaning, class_="about"))

    return tag("dl", *map(tile, figures), class_="tiles")


# ------------------------------------------------------------------------------------------------------------- pictures


def picture(path: Path, alt: str, *, pixels: bool = False) -> Html:
    """A PNG file as part of the page. `pixels`: of images so small that each pixel is to be seen."""
    data = base64.b64encode(read_file(path)).decode()
    return tag("img", src=f"data:image/png;base64,{data}", alt=alt, class_="pixels" if pixels else None)


def labelled(image: Html, *, columns: Sequence[str] = (), rows: Sequence[str] = ()) -> Html:
    """A picture that is a grid, with a name over each column and beside each row."""
    above = tag("div", *(tag("span", name) for name in columns), class_="columns") if columns else None
    beside = tag("div", *(tag("span", name) for name in rows), class_="rows") if rows else None
    return tag("div", above, beside, tag("div", image, class_="plate"), class_="grid named" if rows else "grid")


def figure(content: Html, *caption: Any) -> Html:
    """What is seen, and under it how to read it."""
    return tag("figure", content, tag("figcaption", *caption))


def panel(title: str, content: Html) -> Html:
    """One of several charts, under its title."""
    return tag("figure", tag("figcaption", title), content)


def chart(svg: Html, alt: str, *, wide: bool = False) -> Html:
    """A drawing. One that is `wide` is scrolled in a narrow window, so that it can be read."""
    return tag("div", svg, class_="chart wide" if wide else "chart", role="img", aria_label=alt)


def side_by_side(*parts: Html) -> Html:
    return tag("div", *parts, class_="side")


# ------------------------------------------------------------------------------------------------------------ document


def entry(section: Section) -> Html:
    """A line of the contents."""
    link = tag("a", section.title, href=f"#{section.anchor}")
    return tag("li", link, class_=None if section.filled else "empty")


def document(title: str, head: Html, sections: Sequence[Section], foot: Html) -> str:
    """The whole page."""
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
