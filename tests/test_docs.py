"""The pages say what is there: names they give are in the files they name, and links lead somewhere."""

import ast
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]


@pytest.mark.parametrize("reference", sorted(set(re.findall(r"`([\w/]+\.py):(\w+)`", (ROOT / "docs/lecture.md").read_text()))))
def test_every_function_and_test_of_the_lecture_page_exists(reference):
    file, name = reference
    tree = ast.parse((ROOT / file).read_text(encoding="utf-8"))
    assert name in {node.name for node in tree.body if isinstance(node, ast.FunctionDef | ast.ClassDef)}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_and_pictures_of_a_page_are_there(page):
    for target in re.findall(r"\]\(([^)#\s]+)", page.read_text(encoding="utf-8")):
        assert target.startswith("https://") or (page.parent / target).exists(), target


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_files_that_a_page_names_are_there(page):
    """In code spans, of the folders of this repository."""
    folders = "benchmarks|common|configs|docs|metrics|pipeline|prior|tests|tokenizer"
    for target in re.findall(rf"`((?:{folders})/[\w/.]+\.(?:py|yaml|md|sh))`", page.read_text(encoding="utf-8")):
        assert (ROOT / target).exists(), target
