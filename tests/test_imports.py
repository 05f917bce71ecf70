"""Data flows one way: image -> tokenizer -> codes -> prior -> pipeline. Imports follow it."""

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
MAY_IMPORT = {
    "common": set(),
    "metrics": {"common"},
    "tokenizer": {"common", "metrics"},
    "prior": {"common"},
    "pipeline": {"common", "metrics", "tokenizer", "prior"},
}


def imported(path: Path) -> set[str]:
    names = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            names |= {node.module, *(f"{node.module}.{alias.name}" for alias in node.names)}
    return names


def is_script(path: Path) -> bool:
    return '__name__ == "__main__"' in path.read_text(encoding="utf-8")


@pytest.mark.parametrize("package", MAY_IMPORT)
def test_a_package_imports_only_what_stands_before_it(package):
    for path in (ROOT / package).rglob("*.py"):
        packages = {name.split(".")[0] for name in imported(path)}
        forbidden = packages & MAY_IMPORT.keys() - {package} - MAY_IMPORT[package]
        assert not forbidden, f"{path} imports {forbidden}"


def test_nobody_imports_a_script():
    files = [path for package in MAY_IMPORT for path in (ROOT / package).rglob("*.py")]
    scripts = {".".join(path.relative_to(ROOT).with_suffix("").parts) for path in files if is_script(path)}
    assert scripts == {
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
