"""The site of these pages: sphinx-build -W --keep-going -n -b html docs build/docs

The pages are plain Markdown and read on their own. Where one names a file of the repository in a code span, `a/b.py` or
`a/b.py:name`, the site has the file too, and the span leads to it.
"""

import ast
import json
import re
import shutil
from collections.abc import Iterator
from html import escape
from pathlib import Path
from typing import Any

from docutils import nodes
from docutils.utils.math import MathError
from docutils.utils.math.latex2mathml import tex2mathml
from pygments import highlight
from pygments.formatters import HtmlFormatter
from pygments.lexers import get_lexer_for_filename
from sphinx.application import Sphinx
from sphinx.errors import ExtensionError
from sphinx.transforms.post_transforms import SphinxPostTransform

ROOT = Path(__file__).resolve().parents[1]
FOLDERS = "benchmarks|common|configs|metrics|pipeline|pretrained|prior|tests|tokenizer"
NAMED = re.compile(rf"((?:{FOLDERS})/[\w/]+\.(?:py|yaml|sh))(?::(\w+))?")
LONG = 100  # letters of a cell, from which it has much text
WHOLE = 12  # letters of the longest word of code that is never broken
PARTED = re.compile(r"(?<=\w[/._:=,-])(?=\w{4})")  # behind a sign in a word, but not in front of py or png

project = "Smalti"
extensions = ["myst_parser", "sphinx_copybutton"]
myst_enable_extensions = ["dollarmath"]
myst_heading_anchors = 3
source_suffix = {".md": "markdown", ".ipynb": "markdown"}  # a notebook is read as the page that `notebook_page` makes
highlight_language = "none"  # of indented blocks, which are commands
copybutton_prompt_text = "$ "
html_math_renderer = "mathml"
html_theme = "furo"
html_title = "Smalti"
html_static_path = ["_static"]
html_css_files = ["site.css"]
html_show_copyright = False


class SourceLinks(SphinxPostTransform):
    """Code spans that name a file of the repository become links to it."""

    default_priority = 400
    formats = ("html",)

    def run(self, **_: Any) -> None:
        for span in list(self.document.findall(nodes.literal)):
            found = NAMED.fullmatch(span.astext())
            if found is None or not (ROOT / found[1]).is_file() or isinstance(span.parent, nodes.reference):
                continue
            self.env.named_files = getattr(self.env, "named_files", set()) | {found[1]}  # type: ignore[attr-defined]
            page = self.app.builder.get_relative_uri(self.env.docname, f"code/{found[1]}")
            link = nodes.reference("", "", internal=True, refuri=page + (f"#{found[2]}" if found[2] else ""))
            span.replace_self(link)
            link += span


def notebook_page(app: Sphinx, docname: str, source: list[str]) -> None:
    """Replace a notebook by its page: its text, its code, and what the code shows."""
    path = app.env.doc2path(docname)
    if path.suffix == ".ipynb":
        source[0] = "\n\n".join(cell_text(cell) for cell in json.loads(source[0])["cells"])


def cell_text(cell: dict[str, Any]) -> str:
    text = "".join(cell["source"])
    if cell["cell_type"] == "markdown":
        return text
    shown = [f"```python\n{text}\n```"]
    for output in cell["outputs"]:
        data = output.get("data", {"text/plain": output.get("text", [])})
        if "image/png" in data:
            shown.append(f"![what the cell shows](data:image/png;base64,{data['image/png']})")
        else:
            shown.append("```text\n" + "".join(data["text/plain"]).rstrip() + "\n```")
    return "\n\n".join(shown)


class CodeBreaks(SphinxPostTransform):
    """Words of code break behind their signs alone, so that they fit a phone and `--option` stays whole.

    A cell of a table with much text is marked: where the table is wider than a phone, it gets a width to read it in.
    """

    default_priority = 410  # after the links
    formats = ("html",)

    def run(self, **_: Any) -> None:
        for span in list(self.document.findall(nodes.literal)):
            parts: list[nodes.Node] = []
            for part in parts_of(span.astext()):
                parts += [nodes.raw("", "<wbr>", format="html"), nodes.Text(part)]
            span.children = []
            span.extend(parts[1:])
        for cell in self.document.findall(nodes.entry):
            if len(cell.astext()) > LONG:
                cell["classes"].append("long")


def parts_of(text: str) -> list[str]:
    """Return the parts of a text of code between which a line may break."""
    parts = [""]
    for word in re.split(r"(\s+)", text):
        first, *others = PARTED.split(word) if len(word) > WHOLE else [word]
        parts[-1] += first
        parts += others
    return parts


def source_pages(app: Sphinx) -> Iterator[tuple[str, dict[str, Any], str]]:
    """A page for every file that was named."""
    for file in sorted(getattr(app.env, "named_files", ())):
        yield f"code/{file}", {"title": file, "body": source_page(file)}, "page.html"


def source_page(file: str) -> str:
    """The file's lines, with an anchor at each of its functions and classes."""
    text = (ROOT / file).read_text(encoding="utf-8")
    lines = highlight(text, get_lexer_for_filename(file, stripnl=False), HtmlFormatter(nowrap=True)).split("\n")
    if file.endswith(".py"):
        for node in ast.parse(text).body:
            if isinstance(node, ast.FunctionDef | ast.ClassDef):
                lines[node.lineno - 1] = f'<span id="{node.name}"></span>{lines[node.lineno - 1]}'
    return f'<h1>{escape(file)}</h1><div class="highlight"><pre>' + "\n".join(lines) + "</pre></div>"


def write_math(translator: Any, node: nodes.math | nodes.math_block) -> None:
    """MathML, which browsers show by themselves: no script, no network."""
    try:
        translator.body.append(tex2mathml(node.astext(), as_block=isinstance(node, nodes.math_block)))
    except MathError as error:
        raise ExtensionError(f"{node.astext()}: {error}") from None
    raise nodes.SkipNode


def copy_live(app: Sphinx, error: Exception | None) -> None:
    """The page that computes in the browser is no page of Sphinx's: its folder goes along as it is."""
    if error is None and app.builder.name == "html":
        shutil.copytree(ROOT / "docs/live", Path(app.outdir) / "live", dirs_exist_ok=True)


def setup(app: Sphinx) -> dict[str, bool]:
    app.add_html_math_renderer("mathml", (write_math, None), (write_math, None))
    app.add_post_transform(SourceLinks)
    app.connect("source-read", notebook_page)
    app.add_post_transform(CodeBreaks)
    app.connect("html-collect-pages", source_pages)
    app.connect("build-finished", copy_live)
    return {"parallel_read_safe": False, "parallel_write_safe": False}
