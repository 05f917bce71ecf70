"""The pages are true: names, files, links, commands and options exist, and the examples run."""

import argparse
import ast
import importlib
import importlib.util
import inspect
import os
import re
import shlex
import shutil
import sys
import tomllib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple, NoReturn

import numpy as np
import PIL.Image
import pytest
import yaml
from accelerate.state import AcceleratorState

from smalti.common import config
from smalti.common.codes_info import TokenizerIdentity
from smalti.common.commands import COMMANDS
from smalti.common.condition import condition_of
from smalti.common.config import Settings, leaves
from smalti.common.errors import UserError
from smalti.common.folder import sha256
from smalti.pipeline.image_pipeline import ImagePipeline
from smalti.pipeline.run import FIRST_STAGES, SECOND_STAGES
from smalti.prior.config import PriorConfig
from smalti.prior.model import build_prior
from smalti.prior.nextscale.config import NextScaleConfig
from smalti.prior.sampling_config import SamplingConfig
from smalti.tokenizer.multiscale.config import MultiscaleConfig
from smalti.tokenizer.multiscale.model import MultiscaleTokenizer
from tests import processes

ROOT = Path(__file__).resolve().parents[1]
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", ROOT / "CHANGELOG.md", *sorted((ROOT / "docs").glob("*.md"))]
SCRIPTS = [
    f"{path.parent.name}/{path.name}"
    for package in ("tokenizer", "prior", "pipeline")
    for path in sorted((ROOT / package).glob("*.py"))
    if "def main(argv: Sequence[str])" in path.read_text(encoding="utf-8")
]
FIRST_CONFIGS = {"tokenizer/train.py": "tokenizer", "tokenizer/cluster.py": "cluster", "prior/train.py": "prior"}


def text_of(page: Path) -> str:
    return page.read_text(encoding="utf-8")


# --------------------------------------------------------------------------------------------------------- names, links


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_every_function_and_test_that_a_page_names_exists(page):
    for file, name in set(re.findall(r"`([\w/]+\.py):(\w+)`", text_of(page))):
        tree = ast.parse((ROOT / file).read_text(encoding="utf-8"))
        named = {node.name for node in tree.body if isinstance(node, ast.FunctionDef | ast.ClassDef)}
        assert name in named, f"{file}:{name}"


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_and_pictures_of_a_page_are_there(page):
    for target in re.findall(r"\]\(([^)#\s]+)", text_of(page)):
        assert target.startswith("https://") or (page.parent / target).exists(), target


NAMED = r"""`(
    (?:benchmarks|common|metrics|pipeline|prior|tests|tokenizer)/[\w/]+\.py
    | benchmarks/results/[\w/]+\.json
    | configs/(?!mine/)[\w/]+\.(?:yaml|sh)
    | docs/[\w/]+\.(?:md|png)
)`"""


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_files_that_a_page_names_are_there(page):
    """It checks code spans that name a path in this repository; NAME stands for any name."""
    for target in re.findall(NAMED, text_of(page), re.X):
        assert (ROOT / target).exists() or "NAME" in target, target


def test_the_readme_is_short_and_its_pictures_load_fast():
    readme = text_of(ROOT / "README.md")
    assert len(readme.split()) < 1300
    for picture in re.findall(r"!\[[^]]*\]\((\S+)\)", readme):
        assert (ROOT / picture).stat().st_size < 200_000, picture


def test_the_badges_of_the_readme_say_what_the_package_says():
    """They are files here: no server is asked."""
    project = tomllib.loads(text_of(ROOT / "pyproject.toml"))["project"]
    versions = [each.rpartition(" ")[2] for each in project["classifiers"] if " :: Python :: 3." in each]
    said = {path.stem: re.findall(r"<title>(.*)</title>", text_of(path)) for path in (ROOT / "docs/badges").iterdir()}
    assert said == {"python": [f"python: {' | '.join(versions)}"], "licence": [f"licence: {project['license']}"]}


def test_the_readme_cites_the_version_of_the_package():
    version = tomllib.loads(text_of(ROOT / "pyproject.toml"))["project"]["version"]
    assert f"version = {{{version}}}" in text_of(ROOT / "README.md")


def test_the_readme_names_the_commands_that_take_steps():
    """`--steps 500` stood there for all commands, and pipeline/run.py and encode.py refuse it."""
    (said,) = (each for each in re.split(r"\.\s", text_of(ROOT / "README.md")) if "`--steps" in each)
    taking = {script for script in SCRIPTS if "steps" in dict(leaves(settings_of(script)))}
    taking -= {"tokenizer/amortization.py"}  # no training: its steps are of each image's own q
    taking -= {"pipeline/generate.py", "pipeline/tune.py"}  # theirs are the passes that draw an image
    assert taking == {"tokenizer/train.py", "prior/train.py"} and "in trainings" in said


def test_the_page_of_commands_has_every_command_and_every_shipped_config():
    page = text_of(ROOT / "docs/commands.md")
    for name, command in COMMANDS.items():
        assert f"`{name}`" in page and f"`{command.script}`" in page, name
    for config_file in (ROOT / "configs").glob("*/generate.yaml"):
        assert f"| `{config_file.parent.name}` |" in page, config_file


# ------------------------------------------------------------------------------------------------------------- commands


class Command(NamedTuple):
    words: list[str]
    text: str  # as it stands on the page


def blocks(text: str) -> Iterator[str]:
    """Yield each block indented by four spaces or fenced as `bash`, unindented."""
    yield from re.findall(r"^```bash\n(.*?)^```", text, re.M | re.S)
    plain = re.sub(r"^```.*?^```", "", text, flags=re.M | re.S)
    for block in re.findall(r"(?:^    .*\n)+", plain, re.M):
        yield re.sub(r"^    ", "", block, flags=re.M)


STARTS = ("accelerate", "python", "python3", "make", "pip", "cp", "mkdir", "sbatch", "source", "smalti", "sphinx-build")


def is_command(line: str) -> bool:
    first = re.sub(r"^(?:[A-Z_]+=\S+ +)*(?:\$ )?", "", line).split(" ")[0]
    return first.removeprefix(".venv/bin/") in STARTS and len(line.split()) > 1


def commands_of(text: str) -> list[Command]:
    """Return the commands of a page in order, first from blocks, then from code spans; a final backslash continues a
    line."""
    lines = [line for block in blocks(text) for line in re.sub(r"\\\n\s*", "", block).splitlines()]
    plain = re.sub(r"^(?:```.*?^```|    .*?)$", "", text, flags=re.M | re.S)
    lines += [" ".join(span.split()) for span in re.findall(r"(?<!`)`([^`]+)`(?!`)", plain)]
    found = []
    for line in filter(is_command, lines):
        found += [Command(shlex.split(part, comments=True), line) for part in line.split(" && ")]
    return found


def check_command(words: list[str], copied: dict[str, str]) -> None:
    """Check a command with the parser that it meets. `copied`: folders of settings that the page has made.

    Raises:
        UserError, SystemExit: the parser refuses it.
    """
    while "=" in words[0]:  # environment variables
        words = words[1:]
    program, arguments = words[0].removeprefix(".venv/bin/"), words[1:]
    if program in ("python", "python3") and arguments[0] == "-m":
        check_module(arguments[1], arguments[2:])
    elif program in ("python", "python3"):
        check_script(arguments[0], arguments[1:], copied)
    elif program == "accelerate":
        from accelerate.commands.launch import launch_command_parser

        if not any(word.endswith(".py") or word == "SCRIPT" for word in arguments):  # part of a command in a sentence
            return
        assert arguments[0] == "launch"
        a = launch_command_parser().parse_args([{"N": "0", "FIRST": "host"}.get(word, word) for word in arguments[1:]])
        assert a.config_file is None or (ROOT / a.config_file).exists(), a.config_file
        check_script(a.training_script, a.training_script_args, copied)
    elif program == "smalti" and arguments and arguments[0] not in ("--help", "NAME"):
        check_script(COMMANDS[arguments[0]].script, arguments[1:], copied)
    elif program == "sbatch":
        assert (ROOT / arguments[0]).exists(), arguments[0]
        check_script(arguments[1], arguments[2:], copied)
    elif program == "make":
        targets = re.findall(r"^([\w-]+):", (ROOT / "Makefile").read_text(), re.M)
        assert {word for word in arguments if "=" not in word} <= set(targets), f"make {arguments}: there are {targets}"
    elif program == "pip":
        check_pip(arguments)
    elif program == "cp" and arguments[-1].startswith("configs/"):
        assert (ROOT / arguments[-2]).is_dir(), arguments[-2]
        copied[arguments[-1]] = arguments[-2]
    else:
        assert program in ("cp", "mkdir", "source", "sphinx-build", "tensorboard", "smalti"), (
            f"no test knows the command {program}"
        )


def check_pip(arguments: list[str]) -> None:
    """Check that the extras to install exist."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    for word in arguments:
        for extra in re.findall(r"(?:^\.|smalti)\[([\w,]+)\]", word):
            assert set(extra.split(",")) <= set(project["optional-dependencies"]), word


class Parsed(Exception):
    """Signal that a command line was understood and the command stopped there."""


def check_module(module: str, arguments: list[str]) -> None:
    """Start a `python -m` benchmark, and stop it when its parser has understood."""
    if not module.startswith("benchmarks."):
        assert module in ("venv", "sphinx", "ruff") or importlib.util.find_spec(module), module
        return
    assert importlib.util.find_spec(module), module
    if not arguments:  # the module's name, inside a sentence
        return
    parse_args = argparse.ArgumentParser.parse_args

    def parse_and_stop(parser: argparse.ArgumentParser, *_: Any) -> NoReturn:
        parse_args(parser, [{"T": "1"}.get(word, word) for word in arguments])
        raise Parsed

    with pytest.MonkeyPatch.context() as patched, pytest.raises(Parsed):
        patched.setattr(argparse.ArgumentParser, "parse_args", parse_and_stop)
        try:
            package = (ROOT / module.replace(".", "/")).is_dir()
            main = importlib.import_module(f"{module}.__main__" if package else module).main
            main(*[arguments] * len(inspect.signature(main).parameters))
        except ModuleNotFoundError as error:
            raise Parsed from error  # a peer library is not installed, so the parser cannot be asked


def check_script(script: str, arguments: list[str], copied: dict[str, str]) -> None:
    """Start a script, and stop it when its settings are understood."""
    if script == "SCRIPT":  # stands for any script
        return
    assert (ROOT / script).is_file(), f"there is no {script}"
    for copy, original in copied.items():
        arguments = [re.sub(rf"^{copy}(?=/|$)", original, word) for word in arguments]
    arguments = [
        f"configs/digits/{FIRST_CONFIGS.get(script, 'generate')}.yaml" if w == "CONFIG" else w for w in arguments
    ]
    arguments = [str(ROOT / word) if word.startswith("configs/") else word for word in arguments]
    parse = config.parse

    def parse_and_stop(cls: type[Settings], *given: Any, **options: Any) -> NoReturn:
        parse(cls, *given, **options)
        raise Parsed

    if "--help" not in arguments:
        start_script(script, arguments, parse_and_stop)


def start_script(script: str, arguments: list[str], parse: Callable[..., NoReturn]) -> Parsed:
    """Run `main` with another `parse`, which ends it, and return the exception that it ended with."""
    with pytest.MonkeyPatch.context() as patched, pytest.raises(Parsed) as ended:
        patched.setattr(config, "parse", parse)
        importlib.import_module(f"smalti.{script.removesuffix('.py').replace('/', '.')}").main(arguments)
    return ended.value


def settings_of(script: str) -> type[Settings]:
    """Return the settings class of a script."""

    def tell(cls: type[Settings], *_: Any, **__: Any) -> NoReturn:
        raise Parsed(cls)

    return start_script(script, [], tell).args[0]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_every_command_of_a_page_is_understood(page):
    """The real parsers read scripts, configs, options and their values."""
    copied: dict[str, str] = {}
    for command in commands_of(text_of(page)):
        try:
            check_command(command.words, copied)
        except (UserError, SystemExit) as error:
            pytest.fail(f"{command.text}: {error}")


@pytest.mark.parametrize(
    "command",
    [
        "python pipeline/generate.py runs/digits --lables 3",
        "accelerate launch -q tokenizer/train.py configs/digits/tokeniser.yaml",
        "accelerate launch -q --mutli_gpu tokenizer/train.py",
        "accelerate launch -q tokenizer/train.py --steps many",
        "accelerate launch -q prior/train.py CONFIG --order sideways",
        "python -m benchmarks.cost configs/imagenet256 --imagse 9",  # it needs no peer library, which may be absent
        "python pipeline/paint.py runs/digits",
        "make dmeo",
        "pip install -e '.[bnech]'",
    ],
)
def test_a_misspelt_command_is_not_understood(command):
    with pytest.raises((UserError, SystemExit, AssertionError)):
        check_command(shlex.split(command), {})


SCRIPTS_OF = {
    "tokenizer": FIRST_STAGES.values(),
    "encode": ["tokenizer/encode.py"],
    "prior": SECOND_STAGES.values(),
    "generate": ["pipeline/generate.py"],
}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_every_option_that_a_page_names_is_some_commands(page):
    """It checks code spans such as `--steps 500`."""
    known = {
        "--help",
        "--config",
        "--multi_gpu",
        "--num_processes",
        "--config_file",
        "--machine_rank",
        "--main_process_ip",
        "--cpu",
    }
    for script in SCRIPTS:
        known |= {f"--{key}" for key, _ in leaves(settings_of(script))}
    for stage, scripts in SCRIPTS_OF.items():
        keys = ["KEY", *(key for script in scripts for key, _ in leaves(settings_of(script)))]
        known |= {f"--{stage}.{key}" for key in keys}
    for span in re.findall(r"(?<!`)`(--[^`]+)`(?!`)", text_of(page)):
        for option in (word for word in span.split() if re.match(r"--\w", word)):
            here = option.partition("=")[0]
            assert "--" + here[2:].replace("-", "_") in known or benchmarks_have(here), option


def benchmarks_have(option: str) -> bool:
    return any(f'"{option}"' in path.read_text(encoding="utf-8") for path in (ROOT / "benchmarks").glob("*.py"))


# --------------------------------------------------------------------------------------------------------- what they do


def save_scales(run: Path) -> None:
    """Write a run of grids of 1 to 4 codes a side and a next-scale prior, both with random weights, and its
    pipeline."""
    tokenizer = MultiscaleTokenizer(MultiscaleConfig(image_size=(8, 8), channels=(8, 16), scales=(1, 2, 3, 4)))
    tokenizer.save_pretrained(run / "tokenizer/model")
    identity = TokenizerIdentity(name="test", sha256=sha256(run / "tokenizer/model/model.safetensors"))
    c = PriorConfig(
        layout=tokenizer.config.layout,
        condition=condition_of(("Bag", "Sneaker")),
        tokenizer=identity,
        architecture=NextScaleConfig(depth=1, dim=32, heads=2),
    )
    build_prior(c).save_pretrained(run / "prior/model")
    ImagePipeline.from_run(run, SamplingConfig()).save_pretrained(run / "pipeline")


@pytest.mark.filterwarnings("ignore:this prior was trained in raster order")
@pytest.mark.parametrize("page", [page for page in PAGES if "```python" in text_of(page)], ids=lambda page: page.name)
def test_the_python_of_a_page_runs(page, finished_run, tmp_path, monkeypatch):
    """The blocks run one after the other, in a folder that holds `runs/digits` and `runs/fashion_mnist_scales`."""
    run = shutil.copytree(finished_run, tmp_path / "runs/digits", ignore=shutil.ignore_patterns("state"))
    ImagePipeline.from_run(run, SamplingConfig()).save_pretrained(run / "pipeline")
    save_scales(tmp_path / "runs/fashion_mnist_scales")
    monkeypatch.chdir(tmp_path)
    names: dict[str, object] = {}
    for block in re.findall(r"^```python\n(.*?)^```", text_of(page), re.M | re.S):
        exec(compile(block, page.name, "exec"), names)


TEN_MINUTES = ROOT / "docs/ten_minutes.md"


def drive(scripts: list[list[str]]) -> None:
    """Run all commands in one process."""
    os.environ["TQDM_DISABLE"] = "1"
    for script, *arguments in scripts:
        print("$", script, *arguments, flush=True)
        sys.argv = [script, *arguments]
        importlib.import_module(f"smalti.{script.removesuffix('.py').replace('/', '.')}").main(arguments)
        AcceleratorState._reset_state(True)


def shrink(folder: Path) -> None:
    """Write test sizes into each stage's config."""
    short = {"steps": 2, "batch_size": 8, "warmup": 1, "evaluate_every": 2, "save_every": 2}
    tokenizer = {"image_size": [16, 16], "patch": 2, "channels": [8, 16], "quantizer": {"codebook_size": 16}}
    changes = {
        "tokenizer": {"model": {**tokenizer, "image_channels": 3}},
        "prior": {"model": {"depth": 1, "dim": 16, "heads": 2}},
    }
    for stage, change in changes.items():
        path = folder / f"{stage}.yaml"
        path.write_text(yaml.safe_dump({**yaml.safe_load(path.read_text(encoding="utf-8")), **short, **change}))


@pytest.fixture(scope="module")
def ten_minutes(tmp_path_factory) -> tuple[list[Command], str]:
    """Run the commands of the page in order on a folder of small pictures, and return them with their output."""
    folder = tmp_path_factory.mktemp("ten_minutes")
    shutil.copytree(ROOT / "configs", folder / "configs")
    random = np.random.default_rng(0)
    for number in range(40):
        path = folder / "pictures" / ("people", "things")[number % 2] / f"{number}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        PIL.Image.fromarray(random.integers(0, 255, (20, 20, 3), np.uint8)).save(path)
    commands = [
        c for block in blocks(text_of(TEN_MINUTES)) for c in commands_of("    " + block.replace("\n", "\n    "))
    ]
    scripts = []
    for command in commands:
        words = command.words
        if words[0] == "cp":
            shutil.copytree(folder / words[2], folder / words[3])
            shrink(folder / words[3])
        else:
            scripts.append(words[next(i for i, word in enumerate(words) if word.endswith(".py")) :])
    return commands, processes.finish(processes.Process(lambda: drive(scripts), folder))


def test_the_ten_minutes_work_as_they_are_written(ten_minutes):
    commands, printed = ten_minutes
    assert printed.count("$ ") == sum(command.words[0] != "cp" for command in commands) >= 6


def test_what_a_command_of_the_ten_minutes_says_comes_next_stands_on_the_page(ten_minutes):
    """A new user who reads only the last line of each command ends where a reader of the page ends."""
    commands, printed = ten_minutes
    printed = printed.replace(f"{ROOT}/", "")  # a reader of the page works in the checkout
    told = [" ".join(shlex.split(line)) for line in re.findall(r"^next: (.*)$", printed, re.M)]
    there = [" ".join(command.words) for command in commands]
    assert len(told) >= 3
    for line in told:
        assert line in there, line
