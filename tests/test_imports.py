"""Data flows one way: image -> tokenizer -> codes -> prior -> pipeline. Imports follow it."""

import ast
from graphlib import TopologicalSorter
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
MAY_IMPORT: dict[str, set[str]] = {
    "common": set(),
    "metrics": {"common"},
    "tokenizer": {"common", "metrics"},
    "prior": {"common"},
    "pipeline": {"common", "metrics", "tokenizer", "prior"},
    "benchmarks": {"common", "metrics", "tokenizer", "prior", "pipeline"},
}


def is_for_types(node: ast.AST) -> bool:
    return isinstance(node, ast.If) and isinstance(node.test, ast.Name) and node.test.id == "TYPE_CHECKING"


def imported(path: Path) -> set[str]:
    names, tree = set(), ast.parse(path.read_text(encoding="utf-8"))
    for_types = {id(each) for node in ast.walk(tree) if is_for_types(node) for each in ast.walk(node)}
    for node in (node for node in ast.walk(tree) if id(node) not in for_types):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            names |= {node.module, *(f"{node.module}.{alias.name}" for alias in node.names)}
    return {name.removeprefix("smalti.") for name in names}


def is_script(path: Path) -> bool:
    return '__name__ == "__main__"' in path.read_text(encoding="utf-8")


@pytest.mark.parametrize("package", MAY_IMPORT)
def test_a_package_imports_only_what_stands_before_it(package):
    for path in (ROOT / package).rglob("*.py"):
        packages = {name.split(".")[0] for name in imported(path)}
        forbidden = packages & MAY_IMPORT.keys() - {package} - MAY_IMPORT[package]
        assert not forbidden, f"{path} imports {forbidden}"


def named(path: Path) -> str:
    return ".".join(path.relative_to(ROOT).with_suffix("").parts)


def test_nobody_imports_a_script():
    """The benchmarks neither: `benchmarks/board.py` took functions of `pipeline/evaluate.py`, whose signatures changed."""
    files = [path for package in MAY_IMPORT for path in (ROOT / package).rglob("*.py")]
    scripts = {named(path) for path in files if is_script(path)}
    assert {name for name in scripts if not name.startswith("benchmarks.")} == {
        "tokenizer.train",
        "tokenizer.cluster",
        "tokenizer.codebook",
        "tokenizer.convert",
        "tokenizer.encode",
        "tokenizer.evaluate",
        "prior.train",
        "prior.evaluate",
        "pipeline.app",
        "pipeline.compress",
        "pipeline.configs",
        "pipeline.doctor",
        "pipeline.evaluate",
        "pipeline.generate",
        "pipeline.publish",
        "pipeline.report",
        "pipeline.run",
        "pipeline.terminal",
        "pipeline.tune",
    }
    for path in files:
        assert not imported(path) & scripts, path


@pytest.mark.parametrize("package", MAY_IMPORT)
def test_a_package_imports_itself_in_no_circle(package):
    files = {named(path).removesuffix(".__init__"): path for path in (ROOT / package).rglob("*.py")}
    graph = {name: {other for other in imported(path) & files.keys() if other != name} for name, path in files.items()}
    list(TopologicalSorter(graph).static_order())  # raises CycleError, which names them
