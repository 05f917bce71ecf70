"""Data flows one way: image -> tokenizer -> codes -> prior -> pipeline. Imports follow it, between rooms and inside
them."""

import ast
import graphlib
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
MAY_IMPORT = {
    "common": set(),
    "metrics": {"common"},
    "tokenizer": {"common", "metrics"},
    "prior": {"common"},
    "pipeline": {"common", "metrics", "tokenizer", "prior"},
    "benchmarks": {"common", "metrics", "tokenizer", "prior", "pipeline"},
}
SCRIPTS = {
    "tokenizer": {"amortization", "train", "cluster", "codebook", "convert", "encode", "evaluate", "latents"},
    "prior": {"train", "fit", "evaluate"},
    "pipeline": {
        "app",
        "compress",
        "configs",
        "doctor",
        "evaluate",
        "export_lm",
        "export_onnx",
        "generate",
        "publish",
        "report",
        "run",
        "terminal",
        "tune",
    },
}


@cache
def modules() -> dict[str, Path]:
    """Return every module of the rooms, by the name it is imported under."""
    return {module_name(path): path for room in MAY_IMPORT for path in (ROOT / room).rglob("*.py")}


def module_name(path: Path) -> str:
    parts = path.relative_to(ROOT).with_suffix("").parts
    room = ".".join(parts[:-1] if parts[-1] == "__init__" else parts)
    return room if parts[0] == "benchmarks" else f"smalti.{room}"


@cache
def imported(module: str) -> frozenset[str]:
    """Return the modules that a module imports, also inside functions and for annotations only."""
    names = set()
    for node in ast.walk(ast.parse(modules()[module].read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            inside = {f"{node.module}.{alias.name}" for alias in node.names}
            names |= (inside & modules().keys()) or {node.module}
    return frozenset(names)


def is_script(path: Path) -> bool:
    return '__name__ == "__main__"' in path.read_text(encoding="utf-8")


def room_of(module: str) -> str:
    return module.removeprefix("smalti.").partition(".")[0]


@pytest.mark.parametrize("room", MAY_IMPORT)
def test_a_room_imports_only_what_stands_before_it(room):
    for module in (module for module in modules() if room_of(module) == room):
        rooms = {room_of(name) for name in imported(module) if name in modules()}
        assert not rooms - {room} - MAY_IMPORT[room], f"{module} imports {rooms}"


def test_a_room_is_imported_by_the_one_name():
    """`from tokenizer.model import ...` finds the folder in a checkout, loads a second copy, and fails where
    installed."""
    for module in modules():
        bare = {name for name in imported(module) if name.partition(".")[0] in MAY_IMPORT.keys() - {"benchmarks"}}
        assert not bare, f"{module} imports {bare}"


def test_no_imports_go_in_a_circle():
    """This includes imports for annotations: of any two modules one can be read and tested without the other."""
    graph = {module: imported(module) & modules().keys() - {module} for module in modules()}
    try:
        graphlib.TopologicalSorter(graph).prepare()
    except graphlib.CycleError as error:
        pytest.fail(f"these import each other: {' <- '.join(error.args[1])}")


def test_nobody_imports_a_script():
    found = {module for module, path in modules().items() if is_script(path)}
    ours = {f"smalti.{room}.{name}" for room, names in SCRIPTS.items() for name in names}
    assert {module for module in found if room_of(module) != "benchmarks"} == ours
    for module in modules():
        assert not imported(module) & found, f"{module} imports {imported(module) & found}"


def reached(module: str) -> frozenset[str]:
    """Return all modules that a module imports, itself or through others."""
    found, new = set(), {module}
    while new:
        found |= new
        new = {name for each in new for name in imported(each) & modules().keys()} - found
    return frozenset(found)


def test_a_script_that_reads_kinds_imports_all_of_them():
    """In a test some other module has imported the kinds; as a command the doctor knew of none, and said "model.kind
    must be one of , got 'vqvae'"."""
    of_one_kind = {"cluster", "convert"}
    for room, names in SCRIPTS.items():
        for name in names - of_one_kind:
            there = reached(f"smalti.{room}.{name}")
            for stage in ("tokenizer", "prior"):
                if f"smalti.{stage}.config" in there:
                    assert f"smalti.{stage}.model" in there or name == "cluster", (
                        f"{room}/{name} knows no kind of {stage}"
                    )


def test_only_its_own_room_and_the_registry_know_a_family():
    """Evaluation, coder, page, card and completion ask for a prior's protocols, never for a class of prior."""
    families = tuple(
        f"smalti.prior.{path.name}." for path in (ROOT / "prior").iterdir() if (path / "network.py").exists()
    )
    allowed = {"smalti.prior.model", "smalti.prior.config"}  # the registry, and the union of their settings
    for module in modules().keys() - allowed:
        if module.startswith(families) or room_of(module) == "benchmarks":
            continue
        known = {name for name in imported(module) if name.startswith(families)}
        assert not known, f"{module} imports {known}"


def test_what_takes_long_to_import_is_imported_where_it_is_used():
    """Each of these takes a third of the time in which a command starts, or more, and few commands need it."""
    fsdp = ("torch.distributed.fsdp", "torch.distributed.tensor")
    slow = ("torchvision", *fsdp, "matplotlib", "gradio", "onnxruntime", "transformers", "zuko")
    for name, path in modules().items():
        if room_of(name) == "benchmarks" or path.name == "gradio_page.py":  # which a command imports when it starts it
            continue
        for node in ast.parse(path.read_text(encoding="utf-8")).body:
            names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            names += [node.module or ""] if isinstance(node, ast.ImportFrom) else []
            found = [each for each in names if each.startswith(slow)]
            assert not found, f"{name} imports {found} at its top"
