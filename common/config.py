"""Typed settings: a YAML file and command-line overrides, read strictly into frozen pydantic models.

Defaults < YAML file < `--key.sub value` on the command line, wherever it stands. A key that no class declares, a wrong
type, a missing file and a key given twice are errors of one line that name the file and the key. Nothing named in a
file is imported: a table `kind:` selects among the classes a field declares.
"""

import argparse
import ast
import copy
import difflib
import importlib
import inspect
import json
import os
import re
import sys
import types
import typing
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any, ClassVar, Literal, Self, TypeVar

import yaml
from pydantic import BaseModel, ConfigDict, GetCoreSchemaHandler, ValidationError, ValidationInfo
from pydantic.fields import FieldInfo
from pydantic_core import CoreSchema, PydanticKnownError, PydanticUndefined, core_schema

from smalti.common.commands import READ_BY, typed
from smalti.common.ends import pass_on
from smalti.common.errors import UserError
from smalti.common.reading import read_text


class Settings(BaseModel):
    """The base of everything that configures: frozen, strict, and documented by the docstring under each field."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True, allow_inf_nan=False, defer_build=True)
    # settings that another one chooses, where it is given
    stands_for: ClassVar[Mapping[str, tuple[str, ...]]] = {}
    # settings that came after format 2 did: older files of it lack them, and mean their default
    later: ClassVar[frozenset[str]] = frozenset()


S = TypeVar("S", bound=Settings)
B = TypeVar("B", bound=type)
K = TypeVar("K", bound="Kind")


_built: dict[type, Any] = {}  # the class that a kind configures, of those that are registered


class _Builds:
    """The class that a kind configures, as an attribute of the kind."""

    def __get__(self, _settings: Any, kind: type["Kind"]) -> Any:
        if kind not in _built and kind.home is not None:
            importlib.import_module(kind.home)  # which registers it
        if kind not in _built:
            raise AttributeError(f"{kind.__module__}.{kind.__qualname__} is registered with no class")
        return _built[kind]


class Kind(Settings):
    """Settings of one of several kinds, which `kind` tells apart.

    A family is a class with `kinds` of its own. Its kinds are its subclasses, each registered with the class that it
    configures:

        class VQConfig(BottleneckConfig): ...

        @VQConfig.register
        class VectorQuantizer(Quantizer): ...

    So that a command reads its settings without torch, ours stand in a file without it, each under `@declared(MODULE)`
    with the module where the class is registered. That is imported when `builds` is first asked for.

    A field of a family's type takes any of its kinds, also those that a user's own program registers.
    """

    kinds: ClassVar[dict[str, Any]]  # of a family: the class of settings by its name
    usual: ClassVar[str]  # of a family: the kind where none is named
    listed_in: ClassVar[str | None] = None  # of a family: the module that declares its kinds, where it is not its own
    builds: ClassVar[Any] = _Builds()  # of a kind: the class that it configures
    home: ClassVar[str | None] = None  # of a declared kind: the module of that class
    made_by: ClassVar[str | None] = None  # the script that makes such models, where a family has several

    @classmethod
    def register(cls, builds: B) -> B:
        """Register the class that a kind configures, and return it with the kind as its `config_class`.

        Raises:
            TypeError: a method of the contract is missing.
            ValueError: another class has this kind: the second would take the place of the first unseen.
        """
        for each in (cls, builds):
            _check_whole(each)
        cls._list()
        _built[cls] = builds
        builds.config_class = cls  # type: ignore[attr-defined]  # of every class that is registered
        return builds

    @classmethod
    def _list(cls) -> None:
        """Take a kind into its families. Raises `ValueError` where another class has its name."""
        families = [family for family in cls.__mro__ if "kinds" in vars(family)]
        for family in families:
            there = family.kinds.get(cls.name(), cls)  # type: ignore[attr-defined]  # asked for above
            if (there.__module__, there.__qualname__) != (cls.__module__, cls.__qualname__):
                raise ValueError(
                    f"{cls.__module__}.{cls.__qualname__} has the kind {cls.name()!r}, which is that of "
                    f"{there.__module__}.{there.__qualname__}; give it another"
                )
        for family in families:
            family.kinds[cls.name()] = cls  # type: ignore[attr-defined]

    @classmethod
    def name(cls) -> str:
        """Return the word that selects this kind."""
        return str(cls.model_fields["kind"].default)

    @classmethod
    def default(cls) -> Self:
        """Return the usual kind of a family, with its defaults."""
        usual: Self = cls.family()[cls.usual]()
        return usual

    @classmethod
    def family(cls) -> dict[str, Any]:
        """Return the kinds of a family, by name."""
        if cls.listed_in is not None:
            importlib.import_module(cls.listed_in)
        return cls.kinds

    @classmethod
    def members(cls) -> list[type["Kind"]]:
        """Return the kinds of a family, the usual one first; of a kind itself alone."""
        if "kinds" not in vars(cls):
            return [cls]
        return sorted(cls.family().values(), key=lambda kind: (kind.name() != cls.usual, kind.name()))

    @classmethod
    def __get_pydantic_core_schema__(cls, source: Any, handler: GetCoreSchemaHandler) -> CoreSchema:
        if "kinds" not in vars(cls):
            return handler(source)
        return core_schema.with_info_plain_validator_function(cls._chosen)

    @classmethod
    def _made_elsewhere(cls, kind: Any) -> str | None:
        """Return the script that makes models of a kind, where a wider family has the kind and it is not this one's."""
        wider = (family.kinds for family in cls.__mro__[1:] if "kinds" in vars(family))  # type: ignore[attr-defined]
        found = next((kinds[kind] for kinds in wider if isinstance(kind, str) and kind in kinds), None)
        return None if found is None or found.made_by == cls.made_by else found.made_by

    @classmethod
    def _chosen(cls, value: Any, info: ValidationInfo) -> Any:
        """Return settings of the kind that is named in a mapping, or that are of one of the kinds already."""
        kinds = cls.family()
        if type(value) in kinds.values():
            return value
        if not isinstance(value, Mapping):
            raise PydanticKnownError("model_type", {"class_name": cls.__name__})
        kind = value.get("kind", cls.usual)
        if not isinstance(kind, str) or kind not in kinds:  # a list has no hash to look up
            if (script := cls._made_elsewhere(kind)) is not None:
                raise ValueError(f"kind {kind} is not for this command: {script} takes --model.kind {kind}")
            names = ", ".join(repr(m.name()) for m in cls.members())
            told = {"discriminator": "kind", "tag": str(kind), "expected_tags": names}
            raise PydanticKnownError("union_tag_invalid", told)
        chosen: type[Kind] = kinds[kind]
        # JSON mode again: a list may fill a tuple there
        return chosen.model_validate_json(json.dumps(value)) if info.mode == "json" else chosen.model_validate(value)


def declared(home: str) -> Callable[[type[K]], type[K]]:
    """Return what takes a kind into its families before the class that it configures, in the module `home`, is
    imported. Raises as `Kind.register`."""

    def declare(kind: type[K]) -> type[K]:
        _check_whole(kind)
        kind.home = home
        kind._list()
        return kind

    return declare


def _check_whole(cls: type) -> None:
    if missing := sorted(getattr(cls, "__abstractmethods__", ())):
        raise TypeError(f"{cls.__module__}.{cls.__qualname__} must have {', '.join(missing)}")


MOST_YAML = 2**20  # bytes
MOST_NAME = 2**12  # bytes, of a folder's
SHIPPED = Path(__file__).resolve().parents[1] / "configs"


# ---------------------------------------------------------------------------------------------------- YAML, strictly


class _PlainLoader(yaml.SafeLoader):
    """PyYAML's safe loader, which makes no objects, and here no aliases: a few could outgrow any memory."""

    def compose_node(self, parent: yaml.Node | None, index: Any) -> yaml.Node | None:
        if self.check_event(yaml.AliasEvent):
            raise UserError(f"line {self.peek_event().start_mark.line + 1}: no aliases (*name) here; write it out")
        return super().compose_node(parent, index)


def load_yaml(text: str) -> Any:
    """Return the plain values in a YAML text. Raises `UserError` for an alias, and what PyYAML raises."""
    return yaml.load(text, _PlainLoader)


class _Loader(_PlainLoader):
    """The loader of settings, which reads `1e-4` as a float and refuses a key given twice."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict:
        seen = set()
        for key_node, _ in node.value:
            key = self.construct_object(key_node, deep=True)
            if not isinstance(key, str):
                raise UserError(f"line {key_node.start_mark.line + 1}: a setting's name must be text, got {key!r}")
            if key in seen:
                raise UserError(f"line {key_node.start_mark.line + 1}: {key} is given twice; keep one")
            seen.add(key)
        return super().construct_mapping(node, deep)


_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float", re.compile(r"^[-+]?(\d+\.?\d*|\.\d+)[eE][-+]?\d+$"), list("-+0123456789.")
)


def find_config(path: str | Path) -> Path:
    """Return the path itself if it exists, else the shipped config of that name (`configs/NAME...` or `NAME`)."""
    path = Path(path)
    if path.exists() or path.is_absolute() or ".." in path.parts:
        return path
    shipped = (SHIPPED.parent if path.parts[:1] == ("configs",) else SHIPPED) / path
    return shipped if shipped.exists() else path


def read_yaml(path: Path) -> dict[str, Any]:
    """Return the mapping in a YAML file. Raises `UserError` that names the file when there is none."""
    path = find_config(path)
    try:
        text = read_text(path, MOST_YAML)
    except FileNotFoundError:
        raise UserError(f"there is no config file {path}{_did_you_mean(near_configs(path, '*.y*ml'))}") from None
    except (OSError, ValueError) as error:
        pass_on(error)
        raise UserError(f"config file {path} cannot be read: {error}") from None
    try:
        settings = yaml.load(text, _Loader)
    except UserError as error:
        raise UserError(f"{path}, {error}") from None
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        reason = " ".join(str(error).split()) or type(error).__name__
        raise UserError(f"{path} is not a YAML file of settings: {reason}") from None
    if not isinstance(settings or {}, dict):
        raise UserError(f"{path} must hold `key: value` lines, got {type(settings).__name__}")
    return settings or {}


def near_configs(path: Path, names: str) -> list[str]:
    """Return the one config that a mistyped path may mean, shipped or beside it; an empty list where none is near."""
    shipped = [str(found.relative_to(SHIPPED.parent)) for found in SHIPPED.rglob(names)]
    beside = [str(found) for found in path.parent.glob(names)] if path.parent.is_dir() else []
    return difflib.get_close_matches(str(path), [*beside, *shipped], 1, 0.5)


def _did_you_mean(near: Sequence[str]) -> str:
    return f"; did you mean {' or '.join(near)}?" if near else ""


def remember_folder(run: str, argv: Sequence[str], default_file: Path) -> None:
    """Write into a run which folder its first config stood in, so that later hints can name the configs beside it."""
    file = next((word for word in argv if word.endswith((".yaml", ".yml"))), str(default_file))
    (Path(run) / ".configs").write_text(str(Path(file.removeprefix("--config=")).parent), encoding="utf-8")


def config_beside(run: str, stage: str) -> str:
    """Return the config of a stage beside the one that a run was started with, or CONFIG, for a hint."""
    kept = Path(run) / ".configs"
    try:
        folder = read_text(kept, MOST_NAME)
        path = Path(folder) / f"{stage}.yaml" if folder.isprintable() else Path("CONFIG")
        there = find_config(path).exists()
    except (OSError, ValueError):  # there is none, or it is a stranger's
        return "CONFIG"
    if path.is_absolute() and path.is_relative_to(Path.cwd()):
        path = path.relative_to(Path.cwd())
    elif path.is_relative_to(SHIPPED):
        path = path.relative_to(SHIPPED.parent)
    return str(path) if there else "CONFIG"


def write_yaml(settings: Settings, path: Path) -> None:
    path.write_text(yaml.safe_dump(settings.model_dump(mode="json"), sort_keys=False), encoding="utf-8")


# ------------------------------------------------------------------------------------- from a mapping to typed settings


def build(cls: type[S], settings: Mapping[str, Any], source: str | Path) -> S:
    """Return `settings` as `cls`. Raises `UserError` that names the full key, its source and the nearest name.

    Args:
        source: what the settings are from, in words; or the file, where a program wrote it: no option is advised then.
    """
    try:
        return cls.model_validate_json(json.dumps(settings, default=str))  # JSON mode: a list may fill a tuple
    except ValidationError as error:
        raise UserError(_explain(cls, error, settings, source)) from None
    except ValueError as error:  # JSON has no nan
        raise UserError(f"{source}: {error}") from None


def _explain(cls: type[Settings], error: ValidationError, settings: Mapping[str, Any], source: str | Path) -> str:
    first = error.errors()[0]
    path = [str(part) for part in first["loc"]]
    key = ".".join(path) or cls.__name__
    if first["type"] == "extra_forbidden":
        known = [name for name, _ in leaves(cls)]
        if any(name == key or name.startswith(f"{key}.") for name in known):
            other = f"{source}: {key} is a setting of another kind than {_kind_at(cls, settings, path[:-1])}"
            table = ".".join(path[:-1])
            having = sorted(_kinds_with(cls, path)) if len(path) > 1 else []
            return f"{other}; {table}.kind {' or '.join(having)} has it" if having else other
        last = key.rpartition(".")[2]
        near = difflib.get_close_matches(key, known, 1) or [k for k in known if k.rpartition(".")[2] == last][:1]
        hint = f"did you mean {near[0]}?" if near else f"the settings are {', '.join(cls.model_fields)}"
        return f"{source}: unknown setting {key}; {hint}"
    if first["type"] == "union_tag_invalid":
        kinds, given = first["ctx"]["expected_tags"].replace("'", ""), first["ctx"]["tag"]
        meant = _did_you_mean(_near(given, kinds.split(", ")))
        return f"{source}: {key}.kind must be one of {kinds}, got {given!r}{meant}"
    if first["type"] == "literal_error":
        values = first["ctx"]["expected"].replace("True", "true").replace("False", "false")
        near = _near(first["input"], re.findall("'([^']*)'", values))
        came = _word(first["input"]) if isinstance(first["input"], bool) else repr(first["input"])
        return f"{source}: {key} must be {values}, got {came}{_did_you_mean(near)}"
    name = key.rstrip("0123456789").rstrip(".")  # without a place in a tuple
    if first["type"] in ("missing", "tuple_type", "too_long") and (number := _values(cls, name)) is not None:
        given = None if isinstance(first["input"], Mapping) else first["input"]  # of what has no such key
        return f"{source}: {name} takes {_told_number(None if isinstance(source, Path) else name, number, given)}"
    if first["type"] == "missing" and isinstance(source, Path):
        return f"{source}: {key} must be given, and is not there"
    if first["type"] == "missing":
        below = [name for name, _ in leaves(cls) if name.startswith(f"{key}.")]
        return f"{source}: {key} must be given{f', as --{below[0]} and its like' if below else ''}"
    message = first["msg"].removeprefix("Value error, ")
    message = message[0].lower() + message[1:] if not message.startswith("Input") else message[6:]
    if first["type"] == "value_error":
        return f"{source}: {message}" if len(path) == 0 else f"{source}: {key}: {message}"
    return f"{source}: {key} {message}, got {first['input']!r}"


def _near(word: Any, names: Sequence[str]) -> list[str]:
    """Return the name that a word is, or almost is, whatever its case."""
    by_folded = {name.casefold(): name for name in names}
    return [by_folded[near] for near in difflib.get_close_matches(str(word).casefold(), by_folded, 1)]


def _values(cls: type[Settings], name: str) -> int | None:
    """Return how many values a setting takes, 0 for as many as one likes, and None where it takes a single one."""
    annotation = dict(leaves(cls))[name].annotation if name in dict(leaves(cls)) else None
    for choice in (annotation, *typing.get_args(annotation)):
        if typing.get_origin(choice) is tuple:
            return 0 if Ellipsis in typing.get_args(choice) else len(typing.get_args(choice))
    return None


def _told_number(option: str | None, number: int, given: Any) -> str:
    """Return how many values there must be and what to write, as an option too where one gives them."""
    items = given if isinstance(given, list) else [] if given is None else [given]
    again = items * (number or 1) if len(items) == 1 else ["VALUE"] * (number or 1)
    what = f"{number} values" if number else "a list of values"
    shown = " ".join(map(str, items)) or "none"
    written = f"[{', '.join(map(str, again))}]"
    if option is not None:
        written = f"--{option} {' '.join(map(str, again))}, or in a file {written}"
    return f"{what}, got {shown}; {'for the same one each' if number and len(items) == 1 else 'write'} {written}"


def _kind_at(cls: type[Settings], settings: Mapping[str, Any], path: list[str]) -> str:
    """Return the kind of the settings at a place, which is named there or the usual one."""
    members: list[type[Settings]] = [cls]
    for part in path:
        settings = settings.get(part, {})
        members = next((_nested(m.model_fields[part].annotation) for m in members if part in m.model_fields), [])
        members = [m for m in members if issubclass(m, Kind) and m.name() == settings.get("kind")] or members[:1]
    return members[0].name() if members and issubclass(members[0], Kind) else ".".join(path)


def _kinds_with(cls: type[Settings], path: list[str]) -> set[str]:
    """Return the kinds of the table around a setting that have it."""
    members: list[type[Settings]] = [cls]
    for part in path[:-1]:
        members = [n for m in members if part in m.model_fields for n in _nested(m.model_fields[part].annotation)]
    return {m.name() for m in _kinds(members) if path[-1] in m.model_fields}


def _nested(annotation: Any) -> list[type[Settings]]:
    """Return the settings classes a field may hold: none for a plain value, several for a table with a `kind`."""
    if isinstance(annotation, type) and issubclass(annotation, Kind):
        return [*annotation.members()]
    if isinstance(annotation, type) and issubclass(annotation, Settings):
        return [annotation]
    return [cls for argument in typing.get_args(annotation) for cls in _nested(argument)]


def _kinds(members: Sequence[type[Settings]]) -> list[type[Kind]]:
    return [member for member in members if issubclass(member, Kind)]


@cache
def _describe(cls: type[Settings]) -> None:
    """Give the settings of a class their descriptions, the docstrings under them.

    pydantic does the same of every class when it is made, which takes a third of the time in which a command starts.
    """
    for name, field in cls.model_fields.items():
        found = (_docstrings(each.__module__).get(f"{each.__qualname__}.{name}") for each in cls.__mro__)
        field.description = field.description or next(filter(None, found), None)


def _docstrings(module: str) -> dict[str, str]:
    """Return the docstrings under the attributes of a module's classes, by the qualified name of each attribute."""
    file = getattr(sys.modules.get(module), "__file__", None)
    return {} if file is None else _docstrings_in(file)


@cache
def _docstrings_in(file: str) -> dict[str, str]:
    found: dict[str, str] = {}

    def look_through(body: Sequence[ast.stmt], place: str) -> None:
        for before, node in zip([None, *body], body, strict=False):
            if isinstance(node, ast.ClassDef):
                look_through(node.body, f"{place}{node.name}.")
            elif isinstance(node, ast.FunctionDef):
                look_through(node.body, f"{place}{node.name}.<locals>.")
            elif isinstance(before, ast.AnnAssign) and isinstance(before.target, ast.Name):
                text = node.value if isinstance(node, ast.Expr) else None
                if isinstance(text, ast.Constant) and isinstance(text.value, str):
                    found[place + before.target.id] = inspect.cleandoc(text.value)

    try:
        look_through(ast.parse(Path(file).read_text(encoding="utf-8")).body, "")
    except (OSError, SyntaxError, UnicodeDecodeError):  # an extension module, or no file any more
        return {}
    return found


def leaves(cls: type[Settings], prefix: str = "") -> Iterator[tuple[str, FieldInfo]]:
    """Yield every setting once, by its full dotted name; those of all kinds of a table stand side by side."""
    _describe(cls)
    for name, field in cls.model_fields.items():
        nested = _nested(field.annotation)
        if not nested:
            yield prefix + name, field
        # Once for each kind: tables lie in tables, and looking through them for each setting takes seconds.
        of_member = {member: dict(leaves(member, f"{prefix}{name}.")) for member in nested}
        if not field.is_required():
            usual = field.get_default(call_default_factory=True)
            if type(usual) in of_member:  # its own values, where they are not those of its class
                of_member[type(usual)] = _defaulting(of_member[type(usual)], usual, f"{prefix}{name}.")
        found: dict[str, FieldInfo] = {}
        for settings in of_member.values():
            found |= {key: leaf for key, leaf in settings.items() if key not in found}
        if len(nested) > 1:  # the kinds there are to choose from, and which of them have a setting
            for key, leaf in found.items():
                having = [m for m in _kinds(nested) if key in of_member[m]]
                if len(having) < len(nested):
                    found[key] = copy.copy(leaf)
                    found[key].description = f"({', '.join(m.name() for m in having)}) {leaf.description}"
                by_kind = {m.name(): _default_of(of_member[m][key]) for m in having}
                if key != f"{prefix}{name}.kind" and len({*by_kind.values()}) > 1:
                    found[key] = copy.copy(found[key])
                    shown = ", ".join(f"{kind} {default}" for kind, default in by_kind.items())
                    found[key].description = f"{found[key].description} (default: {shown})"
                    found[key].default, found[key].default_factory = PydanticUndefined, None
            chosen = copy.copy(found[f"{prefix}{name}.kind"])
            names = tuple(m.name() for m in _kinds(nested))
            chosen.annotation = Literal[names]  # type: ignore[assignment]  # pydantic reads what no checker can: made here
            chosen.description = "; ".join(
                f"`{m.name()}`: {m.model_fields['kind'].description}" for m in _kinds(nested)
            )
            found[f"{prefix}{name}.kind"] = chosen
        yield from found.items()


def _defaulting(below: Mapping[str, FieldInfo], usual: Settings, prefix: str) -> dict[str, FieldInfo]:
    """Return the settings of a table with the defaults that they have in `usual`."""
    found = dict(below)
    for key, leaf in below.items():
        value: Any = usual
        for part in key.removeprefix(prefix).split("."):
            value = getattr(value, part, PydanticUndefined)
        if value is not PydanticUndefined and value != leaf.get_default(call_default_factory=True):
            found[key] = copy.copy(leaf)
            found[key].default, found[key].default_factory = value, None
    return found


def _default_of(field: FieldInfo) -> str:
    """Return a setting's default as `--help` shows it; "none" where it must be given."""
    return "none" if field.is_required() else _show(field.get_default(call_default_factory=True))


# ------------------------------------------------------------------------------------------------- the command line


CONFIG_HELP = "a YAML file of these settings"
YES_OR_NO = ("true", "false", "yes", "no", "on", "off", "null")
# What users of other programs type, with the setting that is meant here or the reason why there is none.
DEVICES = (
    "devices are no setting: the accelerator that is there is taken, or the processor. CUDA_VISIBLE_DEVICES=1 before "
    "the command chooses one of several, an empty one the processor, and `accelerate launch --multi_gpu` takes them all"
)
GOES_ON = "there is nothing to set: the same command goes on from what was saved"
ELSEWHERE = {
    **dict.fromkeys(("device", "devices", "gpu", "gpus", "cuda", "cpu", "num_gpus", "num_processes"), DEVICES),
    **dict.fromkeys(("resume", "resume_from_checkpoint", "checkpoint_path"), GOES_ON),
}
MEANT = {
    "learning_rate": "lr",
    "epochs": "steps",
    "num_epochs": "steps",
    "max_steps": "steps",
    "num_train_epochs": "steps",
    "output_dir": "run",
    "fp16": "precision",
    "bf16": "precision",
    "mixed_precision": "precision",
    "num_workers": "workers",
    "images.black_and_white": "images.binarize",
    "data": "images.source",
    "dataset": "images.source",
    "data_dir": "images.source",
    "resolution": "model.image_size",
    "num_samples": "num_images",
}


class _Once(argparse.Action):
    def __call__(
        self,
        parser: argparse.ArgumentParser,
        namespace: argparse.Namespace,
        values: Any,
        option_string: str | None = None,
    ) -> None:
        if hasattr(namespace, self.dest):
            raise UserError(f"{option_string} is given twice; keep one")
        setattr(namespace, self.dest, values)


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> typing.NoReturn:
        raise UserError(f"{message}; --help lists the settings")


def _takes(annotation: Any, wanted: Any) -> bool:
    if isinstance(annotation, types.UnionType) or typing.get_origin(annotation) is typing.Union:
        return any(_takes(argument, wanted) for argument in typing.get_args(annotation))
    if typing.get_origin(annotation) is typing.Literal:
        return any(isinstance(value, wanted) for value in typing.get_args(annotation))
    return annotation is wanted or typing.get_origin(annotation) is wanted


def _from_text(text: str, annotation: Any) -> Any:
    """Return a word of the command line as the field wants it: text as it is, `null` as none, the rest as YAML."""
    if text == "null" and _takes(annotation, types.NoneType):
        return None
    try:
        value = yaml.load(text, _Loader)
    except (yaml.YAMLError, ValueError):  # a date that there is not is a ValueError
        value = text
    yes_or_no = isinstance(value, bool) and _takes(annotation, bool)  # where a word is another choice
    return text if _takes(annotation, str) and not yes_or_no else value


def _from_words(words: list[str], field: FieldInfo) -> Any:
    if not _takes(field.annotation, tuple):
        return _from_text(words[0], field.annotation)
    if words == ["null"] and _takes(field.annotation, types.NoneType):
        return None
    bracketed = [word.startswith("[") and word.endswith("]") for word in words]  # only there a comma parts values
    parts = [word[1:-1].split(",") if inside else [word] for word, inside in zip(words, bracketed, strict=True)]
    items = [part.strip() for several in parts for part in several if part.strip()]
    element = next(a for a in typing.get_args(field.annotation) or () if a is not types.NoneType)
    if typing.get_origin(element) is tuple:
        element = typing.get_args(element)[0]
    return [_from_text(item, element) for item in items]


def _word(value: Any) -> str:
    """Return a value that a setting may have as one writes it."""
    return str(value).lower() if isinstance(value, bool) else str(value)


def _type_name(annotation: Any) -> str:
    for choice in (annotation, *typing.get_args(annotation)):  # null, where it is a value, is shown as the default
        if typing.get_origin(choice) is typing.Literal:
            return " | ".join(map(_word, typing.get_args(choice)))
    if _takes(annotation, tuple):
        return "several"
    names = [a.__name__ for a in (bool, int, float, str) if _takes(annotation, a)]
    return " or ".join(names) or "value"


def parser(cls: type[Settings], description: str, positional: str, positional_help: str) -> argparse.ArgumentParser:
    """Return a parser with one `--option` a setting, with type, meaning and default in its help."""
    p = _Parser(
        usage=f"%(prog)s [{positional}] [--key value ...]",
        description=typed(description),
        allow_abbrev=False,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    p.add_argument(positional, nargs="?", help=positional_help)
    p.add_argument("--config", dest="config_option", nargs=1, action=_Once, default=argparse.SUPPRESS, help=CONFIG_HELP)
    group = p.add_argument_group("settings")
    for key, field in leaves(cls):
        shown = "" if field.is_required() else f" (default: {_show(field.get_default(call_default_factory=True))})"
        group.add_argument(
            f"--{key}",
            dest=f"set:{key}",
            nargs="+" if _takes(field.annotation, tuple) else 1,
            action=_Once,
            default=argparse.SUPPRESS,
            metavar=_type_name(field.annotation),
            help=typed((field.description or "") + shown).replace("%", "%%"),
        )
    return p


def _show(default: Any) -> str:
    return "null" if default is None else json.dumps(default, default=str)


def parse(
    cls: type[S],
    description: str,
    argv: Sequence[str],
    *,
    positional: str = "config",
    positional_help: str = "a YAML file of these settings",
    default_file: Path | None = None,
    base: Mapping[str, Any] | None = None,
) -> S:
    """Return the settings a command was given.

    Args:
        positional: `config`, a YAML file; or the name of a field of `cls`, which then may also be given first by place.
        default_file: the config read when none is given, and no `start_from`.
        base: settings that stand under the file and the options, as a saved run's.
    """
    p = parser(cls, description, positional, positional_help)
    arguments, rest = p.parse_known_args(_with_bare_flags(cls, [_underscored(word) for word in argv]))
    if rest:
        raise UserError(_unknown_option(rest[0], [key for key, _ in leaves(cls)]))
    given = vars(arguments)
    # weights to begin from have sizes of their own, which those of a default file would override
    path = _config_path(given) or (None if "set:start_from" in given else default_file)
    settings = json.loads(json.dumps(base or {}))
    if path:
        from_file = read_yaml(_of_folder(cls, path))
        _check_whose(cls, from_file, path)
        _merge(settings, from_file)
    overrides = _overrides(cls, given, positional)
    for line in _leave_what_another_kind_has_not(cls, settings, overrides):
        _tell_once(f"{path}: {line}")
    _leave_what_is_chosen_anew(cls, settings, overrides)
    _merge(settings, overrides)
    built = build(cls, settings, f"{path} with the command line" if path and overrides else str(path or "command line"))
    run = getattr(built, "run", None)
    if isinstance(run, str) and Path(run).is_file():
        raise UserError(f"run must be the folder of an experiment, got the file {run}")
    return built


def _config_path(given: Mapping[str, Any]) -> Path | None:
    """Return the config file that the command line names, by place or by --config; None where it names none."""
    files = [*given.get("config_option", []), *([given["config"]] if given.get("config") else [])]
    if len(files) > 1:
        raise UserError(f"the config is given twice, as {files[0]} and {files[1]}; keep one")
    return Path(files[0]) if files else None


def _overrides(cls: type[Settings], given: Mapping[str, Any], positional: str) -> dict[str, Any]:
    """Return the settings that the command line gives, nested as in a file."""
    fields = dict(leaves(cls))
    overrides: dict[str, Any] = {}
    for key, words in ((k.removeprefix("set:"), w) for k, w in given.items() if k.startswith("set:")):
        try:
            _put(overrides, key, _from_words(words, fields[key]))
        except UserError as error:
            raise UserError(f"--{key} {error}") from None
    if positional != "config" and given[positional] is not None:
        if positional in overrides:
            raise UserError(f"{positional} is given twice, as {given[positional]} and as --{positional}; keep one")
        overrides[positional] = given[positional]
    return overrides


def _of_folder(cls: type[Settings], path: Path) -> Path:
    """Return the path of a config file. Raises `UserError` for a folder, naming what in it has such settings."""
    if not find_config(path).is_dir():
        return path
    files = {path / found.name: _strange(cls, read_yaml(found)) for found in sorted(find_config(path).glob("*.y*ml"))}
    meant = [str(file) for file, strange in files.items() if not strange] or list(map(str, files))
    raise UserError(f"{path} is a folder, expected a config file{_did_you_mean(meant) or ', and there is none in it'}")


def _strange(cls: type[Settings], settings: Mapping[str, Any]) -> set[str]:
    """Return the settings, by their full names, that a class does not have."""
    return set(flat(settings)) - {name for name, _ in leaves(cls)}


def _check_whose(cls: type[Settings], settings: Mapping[str, Any], path: Path) -> None:
    """Raise `UserError` for another command's config, whose shipped ones have more of its settings than `cls`."""
    strange = _strange(cls, settings)
    if not strange:
        return
    for name, script in READ_BY.items():
        theirs = {key for shipped in SHIPPED.glob(f"*/{name}") for key in flat(read_yaml(shipped))}
        if len(set(flat(settings)) - theirs) < len(strange):
            raise UserError(f"{path} is a config for {script}: {sorted(strange)[0]} is no setting of this command")


def _with_bare_flags(cls: type[Settings], words: Sequence[str]) -> list[str]:
    """Return the words, with `true` after each option of a yes or no that nothing of the kind follows."""
    flags = {
        f"--{key}": {*YES_OR_NO, *map(_word, typing.get_args(field.annotation))}
        for key, field in leaves(cls)
        if _takes(field.annotation, bool)
    }
    followed = zip(words, [*words, "--"][1:], strict=True)
    bare = ((word, word in flags and next_.lower() not in flags[word]) for word, next_ in followed)
    given = [[word, "true"] if alone else [word] for word, alone in bare]
    return [word for several in given for word in several]


@cache
def _tell_once(line: str) -> None:
    """Print a line on stderr, on the main process; once, though a command reads its settings twice."""
    if os.environ.get("RANK", "0") == "0":
        print(line, file=sys.stderr)


def _leave_what_another_kind_has_not(
    cls: type[Settings], settings: dict[str, Any], overrides: Mapping[str, Any], table: str = ""
) -> Iterator[str]:
    """Drop settings of the file that only its `kind` has, where the command line chooses another, and name them."""
    for name, value in overrides.items():
        below = settings.get(name)
        members = _nested(cls.model_fields[name].annotation) if name in cls.model_fields else []
        if not isinstance(value, Mapping) or not isinstance(below, dict) or not members:
            continue
        chosen: type[Settings] | None = members[0]
        if len(members) > 1:
            kinds = {m.name(): m for m in _kinds(members)}
            before = kinds.get(str(below.get("kind", _kinds(members)[0].name())))
            chosen = kinds.get(str(value["kind"])) if "kind" in value else before
            if before is not None and chosen is not None and chosen is not before:
                left = {
                    key: below.pop(key) for key in [*below] if key in before.model_fields.keys() - chosen.model_fields
                }
                if left:
                    named = ", ".join(f"{table}{name}.{key} {each}" for key, each in left.items())
                    yield f"left out, as {table}{name}.kind {chosen.name()} has no such setting: {named}"
        if chosen is not None:
            yield from _leave_what_another_kind_has_not(chosen, below, value, f"{table}{name}.")


def _leave_what_is_chosen_anew(cls: type[Settings], settings: dict[str, Any], overrides: Mapping[str, Any]) -> None:
    """Drop settings of the file that a setting of the command line stands for (`Settings.stands_for`)."""
    for name, value in overrides.items():
        for key in cls.stands_for.get(name, ()):
            settings.pop(key, None)
        below = settings.get(name)
        members = _nested(cls.model_fields[name].annotation) if name in cls.model_fields else []
        if isinstance(value, Mapping) and isinstance(below, dict) and members:
            kind = {**below, **value}.get("kind")
            of_kind = [m for m in _kinds(members[1:]) if kind == m.name()]
            _leave_what_is_chosen_anew((of_kind or members)[0], below, value)


def _underscored(word: str) -> str:
    """Return `--num-images` as `--num_images`, and a value as it is."""
    option, equals, value = word.partition("=")
    return "--" + option[2:].replace("-", "_") + equals + value if word.startswith("--") else word


def _unknown_option(option: str, known: list[str]) -> str:
    if not option.startswith("-"):
        return f"unexpected argument {option}; settings are given as --key value"
    typed, name = option.partition("=")[0], option.partition("=")[0].lstrip("-").replace("-", "_").lower()
    if name in ELSEWHERE:
        return f"unknown option {typed}; {ELSEWHERE[name]}"
    near = [MEANT[name]] if MEANT.get(name) in known else difflib.get_close_matches(name, known, 1, 0.5)
    near = near or [key for key in known if key.endswith(f".{name}")][:1]
    return f"unknown option {typed}{_did_you_mean([f'--{key}' for key in near]) or '; --help lists the settings'}"


def flat(settings: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Return nested settings by their full dotted names."""
    found: dict[str, Any] = {}
    for key, value in settings.items():
        found |= flat(value, f"{prefix}{key}.") if isinstance(value, Mapping) else {prefix + key: value}
    return found


def _put(settings: dict[str, Any], key: str, value: Any) -> None:
    *parents, leaf = key.split(".")
    for parent in parents:
        settings = settings.setdefault(parent, {})
    settings[leaf] = value


def _merge(settings: dict[str, Any], update: Mapping[str, Any]) -> None:
    for key, value in update.items():
        if isinstance(value, Mapping) and isinstance(settings.get(key), dict):
            _merge(settings[key], value)
        else:
            settings[key] = value
