"""The building blocks of a page that is one file: markup that escapes what it is given, pictures inside it, its styles.

Text becomes `Html` by being escaped and in no other way: whatever a file said, a class name or a setting, is shown as text.
The page loads nothing: pictures stand in it as data, and it holds no script.
"""

import base64
import html
import json
import math
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

EMPTY = {"img", "meta", "br"}  # elements without an end


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
    return Html("".join(part if isinstance(part, Html) else html.escape(str(part)) for part in parts if part is not None))


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


def table(head: Sequence[Any], rows: Iterable[Sequence[Any]], *, words: Sequence[int] = (0,), caption: Any = None) -> Html:
    """Rows under a head. Columns hold numbers, flush right, but for those that hold `words`."""

    def row(kind: str, cells: Sequence[Any]) -> Html:
        return tag("tr", *(tag(kind, cell, class_=None if i in words else "number") for i, cell in enumerate(cells)))

    body = tag("tbody", *(row("td", cells) for cells in rows))
    above = None if caption is None else tag("caption", caption)
    return tag("div", tag("table", above, tag("thead", row("th", head)), body), class_="scroll", tabindex="0")


def bars(head: tuple[str, str], values: Mapping[str, float], written: Mapping[str, str], *, caption: Any = None) -> Html:
    """A table of two columns whose numbers are drawn as bars too, all from zero."""
    most = max([*values.values(), 0.0]) or 1.0

    def bar(value: float) -> Html:
        return tag("span", class_="bar", style=f"width:{100 * min(1, max(0, value / most)):.1f}%")

    rows = [(name, tag("span", bar(value), class_="track"), written[name]) for name, value in values.items()]
    return table((head[0], "", head[1]), rows, words=(0, 1), caption=caption)


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
    data = base64.b64encode(path.read_bytes()).decode()
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


# ----------------------------------------------------------------------------------------------------------------- page


def page(title: str, head: Html, sections: Sequence[Section], foot: Html) -> str:
    """The whole document."""
    contents = tag("nav", tag("ul", *map(_entry, sections)), aria_label="Contents")
    body = [tag("section", tag("h2", section.title), section.body, id=section.anchor) for section in sections]
    main = tag("main", tag("header", tag("h1", title), head), contents, *body)
    meta = [
        tag("meta", charset="utf-8"),
        tag("meta", name="viewport", content="width=device-width, initial-scale=1"),
        tag("meta", name="color-scheme", content="light dark"),
    ]
    document = tag(
        "html", tag("head", *meta, tag("title", f"{title} – Tesserae"), tag("style", Html(STYLE))),
        tag("body", main, tag("footer", foot)), lang="en",
    )  # fmt: skip
    return f"<!DOCTYPE html>\n{document}\n"


def _entry(section: Section) -> Html:
    link = tag("a", section.title, href=f"#{section.anchor}")
    return tag("li", link, class_=None if section.filled else "empty")


STYLE = """
:root {
  color-scheme: light dark;
  --paper: #fdfdfc; --ink: #1d2126; --quiet: #5d6570; --line: #dfe2e6; --wash: #f3f4f5; --accent: #2f6fc4; --warm: #8a5a00;
}
@media (prefers-color-scheme: dark) {
  :root {
    --paper: #16181b; --ink: #e4e6e9; --quiet: #9ba3ad; --line: #33383f; --wash: #1f2327; --accent: #74a9f0; --warm: #e0b364;
  }
}
* { box-sizing: border-box; }
html { scroll-behavior: smooth; -webkit-text-size-adjust: 100%; }
body {
  margin: 0; padding: 2.5rem 1.25rem 4rem; background: var(--paper); color: var(--ink);
  font: 16px/1.55 system-ui, -apple-system, "Segoe UI", Roboto, "Helvetica Neue", "Noto Sans", sans-serif;
}
main, footer { max-width: 1000px; margin: 0 auto; }
h1 { font-size: 2rem; line-height: 1.2; margin: 0 0 .4rem; letter-spacing: -.01em; overflow-wrap: anywhere; }
h2 { font-size: 1.35rem; margin: 0 0 .8rem; }
h3 { font-size: 1rem; margin: 1.8rem 0 .5rem; }
p { margin: 0 0 .8rem; max-width: 46rem; }
a { color: var(--accent); text-underline-offset: .15em; }
code, pre { font: .86em/1.5 ui-monospace, SFMono-Regular, Menlo, Consolas, "DejaVu Sans Mono", monospace; }
code { overflow-wrap: anywhere; }
pre {
  background: var(--wash); border: 1px solid var(--line); border-radius: 6px; padding: .8rem 1rem; margin: .5rem 0 1rem;
  overflow-x: auto;
}
pre code { font-size: inherit; overflow-wrap: normal; }
section { margin-top: 3rem; padding-top: 1.6rem; border-top: 1px solid var(--line); scroll-margin-top: .5rem; }
.lead { color: var(--quiet); }
.missing { color: var(--quiet); }
.warning { border-left: 3px solid var(--warm); padding-left: .8rem; color: var(--warm); }

.tiles { display: grid; grid-template-columns: repeat(auto-fit, minmax(8.7rem, 1fr)); gap: 1.2rem; margin: 1.6rem 0 0; }
.tiles dt { font-size: .82rem; color: var(--quiet); line-height: 1.3; }
.tiles dd { margin: 0; font-size: 1.65rem; line-height: 1.35; font-weight: 600; font-variant-numeric: tabular-nums; }
.tiles dd.about { font-size: .78rem; font-weight: 400; color: var(--quiet); line-height: 1.35; }

nav { margin-top: 2rem; }
nav ul { list-style: none; margin: 0; padding: 0; display: flex; flex-wrap: wrap; gap: .25rem 1.3rem; font-size: .92rem; }
nav .empty a { color: var(--quiet); }

figure { margin: 0 0 1.6rem; break-inside: avoid; }
figcaption { margin-top: .6rem; font-size: .88rem; color: var(--quiet); max-width: 46rem; }
img { display: block; max-width: 100%; height: auto; }
.pixels { image-rendering: pixelated; }
.grid { display: inline-block; max-width: 100%; }
.plate { background: #fff; padding: 4px; border-radius: 3px; }
.named { display: inline-grid; grid-template-columns: auto minmax(0, auto); column-gap: .7rem; }
.named .columns { grid-column: 2; }
.named .rows { grid-column: 1; }
.named .plate { grid-column: 2; }
.columns { display: grid; grid-auto-flow: column; grid-auto-columns: minmax(0, 1fr); padding: 0 4px .25rem; align-items: end; }
.columns span { text-align: center; font-size: .78rem; line-height: 1.15; overflow-wrap: anywhere; hyphens: auto; }
.rows { display: grid; grid-auto-rows: 1fr; padding: 4px 0; }
.rows span { align-self: center; text-align: right; font-size: .78rem; line-height: 1.15; max-width: 7.5rem; }

.charts { display: grid; grid-template-columns: repeat(auto-fit, minmax(270px, 1fr)); gap: 1.2rem 1.6rem; }
.charts figure { margin: 0; }
.charts figcaption { margin: 0 0 .3rem; color: var(--ink); }
.chart svg { display: block; width: 100%; height: auto; max-width: 100%; }
.chart svg text { font-family: system-ui, -apple-system, "Segoe UI", Roboto, "Noto Sans", sans-serif !important; }
.wide { max-width: 780px; overflow-x: auto; }
.chart.wide svg { min-width: 22rem; }
.small { max-width: 400px; }
.side { display: grid; grid-template-columns: repeat(auto-fit, minmax(300px, 1fr)); gap: 1rem 2.5rem; align-items: start; }

.scroll { overflow-x: auto; margin: 0 0 1.4rem; }
table { border-collapse: collapse; font-size: .9rem; min-width: min(100%, 22rem); }
caption { text-align: left; font-weight: 600; padding: 0 0 .4rem; }
th, td { padding: .3rem 1.1rem .3rem 0; text-align: left; vertical-align: top; border-bottom: 1px solid var(--line); }
th { font-weight: 500; color: var(--quiet); font-size: .82rem; white-space: nowrap; }
th:last-child, td:last-child { padding-right: 0; }
td { overflow-wrap: break-word; }
.number { text-align: right; font-variant-numeric: tabular-nums; white-space: nowrap; }
.track { display: block; width: clamp(5rem, 18vw, 11rem); padding-top: .42em; }
.bar { display: block; height: .65em; background: var(--accent); border-radius: 1px; print-color-adjust: exact; }

details { margin: 0 0 .6rem; }
summary { cursor: pointer; padding: .15rem 0; }
details[open] { margin-bottom: 1.4rem; }
footer { margin-top: 3.5rem; font-size: .85rem; color: var(--quiet); }

@media (max-width: 640px) {
  body { padding: 1.5rem 1rem 3rem; font-size: 15px; }
  h1 { font-size: 1.6rem; }
  .tiles { grid-template-columns: repeat(2, 1fr); gap: 1rem; }
  .tiles dd { font-size: 1.4rem; }
  .columns span, .rows span { font-size: .68rem; }
  .rows span { max-width: 4.6rem; }
  .named { column-gap: .4rem; }
}
@media print {
  :root { --paper: #fff; --ink: #000; --quiet: #444; --line: #ccc; --wash: #fff; --accent: #2f6fc4; --warm: #6a4500; }
  body { padding: 0; font-size: 10.5pt; }
  nav { display: none; }
  h2, h3, caption { break-after: avoid; }
  tr, .chart { break-inside: avoid; }
  section { margin-top: 1.6rem; }
  pre { white-space: pre-wrap; }
  details::details-content { content-visibility: visible; height: auto; }
}
"""
