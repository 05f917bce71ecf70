"""The site of docs/ builds without a warning, and all its links work."""

import re
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote, urlsplit

import pytest

from tests.widths import WINDOWS, beyond_the_window

ROOT = Path(__file__).resolve().parents[1]


class Page(HTMLParser):
    """Read the anchors of a page, and the targets of its links."""

    def __init__(self, text: str):
        super().__init__()
        self.anchors: set[str] = set()
        self.targets: list[str] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        for name, value in attrs:
            if name in ("id", "name") and value:
                self.anchors.add(value)
            elif name in ("href", "src") and value:
                self.targets.append(value)


@pytest.fixture(scope="module")
def site(tmp_path_factory) -> Path:
    pytest.importorskip("sphinx", reason="the site needs pip install -e '.[docs]'")
    built = tmp_path_factory.mktemp("site") / "html"
    command = [
        sys.executable,
        "-m",
        "sphinx",
        "-W",
        "--keep-going",
        "-n",
        "-q",
        "-b",
        "html",
        "-d",
        str(built.parent / "trees"),
    ]
    ended = subprocess.run([*command, str(ROOT / "docs"), str(built)], capture_output=True, text=True)
    assert ended.returncode == 0, ended.stderr
    return built


def test_the_site_is_built_without_a_warning(site):
    assert {path.with_suffix(".html").name for path in (ROOT / "docs").glob("*.md")} <= {
        path.name for path in site.iterdir()
    }


def test_every_link_inside_the_site_leads_somewhere(site):
    """It checks pages, pictures, files and anchors, but no external addresses."""
    pages = {path.resolve(): Page(path.read_text(encoding="utf-8")) for path in site.rglob("*.html")}
    followed = 0
    for path, page in pages.items():
        for target in page.targets:
            there = urlsplit(target)
            if there.scheme or there.netloc:
                continue
            file = (path.parent / unquote(there.path)).resolve() if there.path else path
            assert file.exists(), f"{path.relative_to(site)}: {target}"
            if there.fragment and file in pages:
                anchors = pages[file].anchors
                assert unquote(there.fragment) in anchors, f"{path.relative_to(site)}: {target}"
            followed += 1
    assert followed > 1000


def test_formulas_are_formulas_on_the_site(site):
    """They are in MathML, which needs no external script."""
    page = (site / "lecture.html").read_text(encoding="utf-8")
    formulas = re.findall(r"<math.*?</math>", page, re.S)
    assert len(formulas) > 20 and not any("merror" in formula for formula in formulas)
    assert "$" not in re.sub(r"<script.*?</script>", "", page, flags=re.S)


def test_the_site_loads_nothing_from_elsewhere(site):
    for path in site.rglob("*.html"):
        for tag in re.findall(r"<(?:script|link|img)[^>]*>", path.read_text(encoding="utf-8")):
            assert not re.search(r'(?:src|href)="(?:https?:)?//', tag), f"{path.name}: {tag}"


PAGES = ("index", "commands", "formats", "board", "lecture")


@pytest.fixture(scope="module")
def seen(site, browser) -> dict[str, tuple[list[str], list[str]]]:
    """Open pages, and return of each what is wider than a window, and which words of code are broken on a phone."""
    (width, height), *_ = WINDOWS
    opened, found = browser.new_page(), {}
    broken = "spans => spans.filter(span => span.getClientRects().length > 1).map(span => span.textContent)"
    for name in PAGES:
        opened.set_viewport_size({"width": width, "height": height})
        opened.goto((site / f"{name}.html").as_uri())
        words = opened.eval_on_selector_all("code.literal .pre", broken)
        found[name] = (beyond_the_window(opened), words)
    opened.close()
    return found


def test_nothing_of_a_page_is_wider_than_the_window(seen):
    """At 1,300 pixels the whole site was 28 wider: its text had a width, whatever the window's."""
    assert not {name: wider for name, (wider, _) in seen.items() if wider}


def test_on_a_phone_code_breaks_behind_its_signs_alone(seen):
    """`amortization` stood as `amortiza` and `tion`, since a column of code got what the others left, and `--steps` as
    `--` and `steps`."""
    assert not {name: broken for name, (_, broken) in seen.items() if broken}
