"""Data flows one way: image -> tokenizer -> codes -> prior -> pipeline. Imports follow it, between rooms and inside
them."""

import ast
import graphlib
import subprocess
import sys
from functools import cache
from pathlib import Path

import pytest

from smalti.prior.config import ArchitectureConfig
from smalti.tokenizer.bottleneck.config import BottleneckConfig
from smalti.tokenizer.config import ImageTokenizerConfig
from smalti.tokenizer.criterion.likelihood.config import LikelihoodConfig
from smalti.tokenizer.criterion.objective.config import ObjectiveConfig
from smalti.tokenizer.network.config import NetworkConfig
from smalti.tokenizer.posterior.config import PosteriorConfig

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
    "tokenizer": {
        "amortization",
        "train",
        "cluster",
        "codebook",
        "compare",
        "convert",
        "encode",
        "evaluate",
        "latents",
    },
    "prior": {"train", "fit", "evaluate", "redraw"},
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


ASKED = """
import sys
from smalti.common.commands import COMMANDS
from smalti.pipeline.terminal import run

for name in COMMANDS:
    for words, status in ((["--help"], 0), (["--no_such_setting"], 2))[: 1 + (name == "generate")]:
        try:
            run([name, *words])
        except SystemExit as end:
            assert (end.code or 0) == status, (name, words, end.code)
        found = {"torch", "numpy", "accelerate", "datasets", "matplotlib"} & sys.modules.keys()
        assert not found, f"{name} {words[0]} imports {found}"
"""


def test_help_and_a_wrong_setting_are_answered_without_what_takes_long_to_import():
    """The help of each command took five seconds of a processor, four and a half of them to import torch."""
    told = subprocess.run([sys.executable, "-c", ASKED], capture_output=True, text=True, cwd=ROOT)
    assert told.returncode == 0, told.stderr
    assert told.stderr == "error: unknown option --no_such_setting; --help lists the settings\n"
    for kinds in (ImageTokenizerConfig.members(), ArchitectureConfig.members()):
        assert all(kind.name() in told.stdout for kind in kinds if kind.name() != "vqgan")  # it has no `kind` to choose


def test_a_kind_is_registered_by_the_module_that_its_settings_name():
    families = (ImageTokenizerConfig, ArchitectureConfig, BottleneckConfig, LikelihoodConfig, ObjectiveConfig)
    for family in (*families, PosteriorConfig, NetworkConfig):
        for kind in family.members():
            if kind.home is not None:  # another test's own kind has none
                assert kind.builds.config_class is kind and kind.builds.__module__ == kind.home


def test_only_its_own_room_and_the_registry_know_a_family():
    """Evaluation, coder, page, card and completion ask for a prior's protocols, never for a class of prior."""
    families = tuple(
        f"smalti.prior.{path.name}." for path in (ROOT / "prior").iterdir() if (path / "network.py").exists()
    )
    allowed = {"smalti.prior.model", "smalti.prior.kinds"}  # the registry, and the list of their settings
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
