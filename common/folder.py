"""Folders on disk: written aside and renamed, so that nobody ever reads half of one; and the model folder.

A model folder is `config.json` (settings, and which kind of model it is) beside `model.safetensors`. Nothing in it is
a pickle, and the weights' SHA-256 is the model's identity.
"""

import glob
import hashlib
import json
import os
import re
import shutil
import stat
from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, Literal, TypeVar

import torch
from safetensors import SafetensorError
from safetensors.torch import save, save_file
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from smalti.common import config, lock, process
from smalti.common.condition import condition_of_format_1
from smalti.common.ends import pass_on
from smalti.common.errors import Refused, UserError
from smalti.common.layout import of_format_1
from smalti.common.reading import open_regular_file, read_text
from smalti.common.tensors import NAMES, misfit, opened_tensors, read_tensors

T = TypeVar("T")
M = TypeVar("M", bound=nn.Module)
S = TypeVar("S", bound=config.Settings)
MODEL_FILES = ("config.json", "model.safetensors")
DECODES_ONLY = "decodes_only"  # in a tokenizer's config.json: the modules that no code depends on
ANEW = "the command that trained it writes it again; of a copy, copy it again"
MOST_JSON = 2**28  # bytes: the histogram of a large codebook has 2**26
FIRST_NAME = "tesserae"  # of the project: what its files were called by, and are still known by
FIRST_KINDS = {  # of format 1: what tokenizers were called when there was one of each
    "smalti.tokenizer": "smalti.vqvae",
    "smalti.kmeanstokenizer": "smalti.kmeans",
    "smalti.vqgantokenizer": "smalti.vqgan",
}
STEADY = 5  # times that a model is read until it is not replaced meanwhile
FORMAT = 2  # of every file of ours; a reader refuses what is newer than itself


# ------------------------------------------------------------------------------------------------------------- files


HALF = re.compile(r"\.(.+)\.([0-9a-f]{8}-\d+-\d+)\.(writing|old)")  # a file's name, the process, what it is


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """Yield a path to write a file or folder at; it replaces `path` when the block ends without an error."""
    path.parent.mkdir(parents=True, exist_ok=True)
    aside, old = temporary_path(path, "writing"), temporary_path(path, "old")
    remove(aside)
    try:
        yield aside
        settle(aside, path)
        sync(aside)
        if path.is_dir():  # a folder cannot be replaced in one step: the old one stands aside for a moment
            remove(old)
            lock.follow(path, aside)
            path.rename(old)
            aside.rename(path)
            remove(old)
        else:
            os.replace(aside, path)
        sync_entry(path.parent)
    except BaseException:
        if os.path.lexists(old) and not os.path.lexists(path):
            old.rename(path)
        remove(aside)
        raise


@contextmanager
def rewriting(path: Path, ours: Collection[str]) -> Iterator[Path]:
    """Replace a folder as `replacing` does, but keep the files in it that `ours` does not name by their paths.

    The whole folder is exchanged, so that nobody reads new weights beside an old config; others' files are linked over.
    """
    mend(path)
    with replacing(path) as aside:
        aside.mkdir()
        yield aside
        if path.is_dir():
            _carry_over(path, aside, ours)


def _carry_over(old: Path, new: Path, ours: Collection[str], above: str = "") -> None:
    for entry in sorted(old.iterdir()):
        target, name = new / entry.name, above + entry.name
        if entry.is_dir() and not entry.is_symlink():
            begun, held = target.is_dir(), any(entry.iterdir())
            target.mkdir(exist_ok=True)
            _carry_over(entry, target, ours, f"{name}/")
            if not begun and held and not any(target.iterdir()):  # all that it held was ours
                target.rmdir()
        elif name not in ours and not HALF.fullmatch(entry.name):
            if os.path.lexists(target):
                raise Refused(f"{entry} is none of ours, and another would take its place; move it away")
            link(entry, target)


def link(source: Path, target: Path) -> None:
    """Link a file under a second name; copy it to another disk, or where there are no links."""
    try:
        os.link(source, target, follow_symlinks=False)
    except OSError:
        shutil.copy2(source, target, follow_symlinks=False)


def temporary_path(path: Path, what: Literal["writing", "old"]) -> Path:
    """Return the path at which this process alone keeps what it is writing, or what it replaces."""
    return path.with_name(f".{path.name}.{process.label()}.{what}")


def sweep(folder: Path) -> None:
    """Undo what killed commands left half done in and beside a folder that this command has locked.

    Half-written files are removed. What stood aside for a successor comes back if that never came.
    """
    mend(folder)
    for where, folders, names in os.walk(folder, onerror=pass_on):
        halves = {name: found[2] for name in folders + names if (found := HALF.fullmatch(name))}
        folders[:] = [name for name in folders if name not in halves]
        for name, writer in halves.items():
            if process.ended(writer) is not False:  # of another machine too: it does not have the lock
                _undo(Path(where) / name)


def mend(path: Path) -> None:
    """Undo what a killed command of this machine left half done when it wrote `path`."""
    for half in path.parent.glob(f".{glob.escape(path.name)}.*") if path.parent.is_dir() else ():
        found = HALF.fullmatch(half.name)
        if found and found[1] == path.name and process.ended(found[2]):
            _undo(half)


def _undo(half: Path) -> None:
    found = HALF.fullmatch(half.name)
    assert found
    successor = half.with_name(found[1])
    with suppress(FileNotFoundError):  # another process of this command was faster
        if found[3] == "old" and _is_vacant(successor):
            lock.follow(successor, half)
            half.rename(successor)  # over an empty folder too
        else:
            remove(half)


def _is_vacant(path: Path) -> bool:
    """Return whether nothing is at a path, or the empty folder that a command makes to lock it."""
    if path.is_symlink() or not path.is_dir():
        return not os.path.lexists(path)
    return not any(path.iterdir())


def remove(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def settle(new: Path, before: Path) -> None:
    """Give a new file the mode of what it replaces, or else the mode that the umask leaves.

    (safetensors writes files that nobody else can read.) A file that has a second name elsewhere is left as it is.
    """
    found = new.lstat()
    if stat.S_ISLNK(found.st_mode):
        return
    if not before.is_symlink() and before.exists() and before.is_dir() == new.is_dir():
        shutil.copymode(before, new)
    elif stat.S_ISREG(found.st_mode) and found.st_nlink == 1:
        new.chmod(0o666 & ~_umask())
    for child in new.iterdir() if new.is_dir() else ():
        settle(child, before / child.name)


def _umask() -> int:
    found = os.umask(0o077)  # there is no other way to ask
    os.umask(found)
    return found


def sync(path: Path) -> None:
    """Bring a file, or all files of a folder, to the disk."""
    if path.is_symlink():
        return
    if path.is_dir():
        for child in path.iterdir():
            sync(child)
        sync_entry(path)
    elif path.is_file() and os.access(path, os.R_OK):
        with open(path, "rb" if os.name == "posix" else "r+b") as file:  # Windows brings what can be written alone
            os.fsync(file.fileno())


def sync_entry(directory: Path) -> None:
    if os.name == "posix":
        descriptor = os.open(directory, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


def inside(folder: Path, name: str) -> Path:
    """Return the path of a file or folder by its name in a folder that may come from a stranger.

    Raises:
        UserError: it is a link to something outside the folder (and not the Hub's cache, which links to its own files).
    """
    path, home = folder / name, folder.resolve()
    try:
        real = path.resolve()
        whole = not real.exists() or real.is_file() or real.is_dir()
    except (RuntimeError, OSError) as error:  # links in a circle, or a name no disk can have
        raise UserError(f"{path} cannot be followed: {error}") from None
    if not whole:
        raise UserError(f"{path} is no file but a device or a pipe; put a file there")
    caches = [parent.parent / "blobs" for parent in folder.absolute().parents if parent.name == "snapshots"]
    if not any(real.is_relative_to(place.resolve()) for place in (home, *caches)):
        raise UserError(f"{path} is a link that leaves its folder, to {real}; put the file itself there")
    return path


def write_json(path: Path, value: Any, indent: int | None = 2) -> None:
    """Write a value as JSON; `indent=None` writes one line, for what is long and read by programs."""
    with replacing(path) as aside:
        aside.write_text(json.dumps(value, indent=indent) + "\n", encoding="utf-8")


def read_json(path: Path) -> dict[str, Any]:
    """Return the object in a JSON file. Raises `UserError` that names the file when it is absent or damaged."""
    try:
        value = json.loads(read_text(path, MOST_JSON))
    except FileNotFoundError:
        raise UserError(f"there is no {path}") from None
    except (OSError, ValueError, RecursionError) as error:
        pass_on(error)
        raise UserError(f"{path} cannot be read as JSON: {error}") from None
    if not isinstance(value, dict):
        raise UserError(f"{path} must hold a JSON object, got {type(value).__name__}")
    return value


def check_not_around(path: Path, mark: str, name: str) -> None:
    """Raise `UserError` where a folder has not the file `mark`, and its subfolder `name` has."""
    if not (path / mark).exists() and (path / name / mark).is_file():
        raise UserError(f"there is no {path / mark}; give {path / name}, which lies in it")


def kind_in(value: Mapping[str, Any]) -> str:
    """Return the kind that a JSON file says it is of, under its present name."""
    kind = re.sub(rf"^{FIRST_NAME}\.", "smalti.", str(value.get("kind")))
    return FIRST_KINDS.get(kind, kind)


def check_format(value: Mapping[str, Any], kind: str, path: Path) -> None:
    """Raise `UserError` unless a JSON file of ours is of this kind and no newer than this code."""
    if kind_in(value) != kind:
        raise UserError(f"{path} must be of kind {kind!r}, got {value.get('kind')!r}")
    found = value.get("format")
    if not isinstance(found, int) or isinstance(found, bool) or found < 1:
        got = f"got {found!r}" if "format" in value else "and has none"
        raise UserError(
            f"{path} must say its format, a whole number from 1 to {FORMAT}, {got}: it was changed or is damaged; "
            "the command that wrote it writes it again"
        )
    if found > FORMAT:
        raise UserError(f"{path} has format {found}, this version reads up to {FORMAT}; update smalti")


def weights_sha256(model: nn.Module) -> str:
    """Return the SHA-256 of a model's names and weights, whatever device they are on."""
    weights = {name: tensor.cpu().contiguous() for name, tensor in model.state_dict().items()}
    return hashlib.sha256(save(weights)).hexdigest()


def sha256(path: Path) -> str:
    """Return the SHA-256 of a file's bytes. Raises `UserError` where it is no file but a pipe or a device."""
    try:
        with open_regular_file(path) as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except ValueError as error:
        raise UserError(f"{path} cannot be read: {error}") from None


# ------------------------------------------------------------------------------------------------------------- models


def is_empty(folder: Path) -> bool:
    """Return whether a folder holds nothing, or only what a killed command of ours left half written."""
    return all(HALF.fullmatch(entry.name) for entry in folder.iterdir())


def check_ours(path: Path, mark: str, names: Collection[str] = ()) -> None:
    """Raise `Refused` unless `path` is free or a folder of ours, as the file `mark` in it says.

    Args:
        names: of its files, by which a folder in a run of ours is still known when its `mark` is damaged.
    """
    if path.is_symlink():
        raise Refused(f"{path} is a link to {os.path.realpath(path)}; give that folder itself")
    if not path.exists() or (path.is_dir() and is_empty(path)):
        return
    if not path.is_dir() or not (_says_ours(path / mark) or _is_left_of_ours(path, names)):
        raise Refused(f"{path} holds something else than what would be written there; give another folder")
    if (path / ".git").exists():
        raise Refused(
            f"{path} is a git checkout, whose history would be lost: give another folder, and copy the files there"
        )


def _says_ours(path: Path) -> bool:
    try:
        return kind_in(read_json(path)).startswith("smalti.")
    except UserError:
        return False


def _is_left_of_ours(path: Path, names: Collection[str]) -> bool:
    """Return whether a folder is the model of a run whose `config.json` was damaged or lost."""
    return is_stage(path.parent) and {entry.name for entry in path.iterdir()} <= set(names)


def is_stage(folder: Path) -> bool:
    """Return whether a training, or its substitute, wrote into the folder: a `config.yaml` or a state is there."""
    if any(_says_ours(path) for path in folder.glob("state/step_*/state.json")):
        return True
    path = folder / "config.yaml"
    try:
        found = config.read_yaml(path) if path.is_file() else {}
    except UserError:
        return False
    return "run" in found and not found.keys().isdisjoint({"images", "codes"})


def kind_of(cls: type) -> str:
    """Return what the `config.json` of a class says it is: the kind of its settings, or a `kind` that classes share."""
    kind, settings = getattr(cls, "kind", None), getattr(cls, "config_class", None)
    if isinstance(kind, str):
        return kind
    if settings is not None and issubclass(settings, config.Kind):
        return f"smalti.{settings.name()}"
    return f"smalti.{cls.__name__.lower()}"


def settings_in(written: Mapping[str, Any], path: Path) -> dict[str, Any]:
    """Return the settings in a JSON file under their present names, without what else it says.

    Raises:
        UserError: what format 1 said of a grid does not go together.
    """
    settings = {key: value for key, value in written.items() if key not in ("kind", "format", DECODES_ONLY)}
    try:
        return condition_of_format_1(of_format_1(settings))
    except ValueError as error:
        raise UserError(f"{path}: {error}") from None


def read_settings(cls: type[S], written: Mapping[str, Any], path: Path) -> S:
    """Return the settings in a JSON file of ours, which gives each: a default would change what the weights mean.

    Raises:
        UserError: a setting is missing (of format 1, one that has no default), unknown or of another type.
    """
    settings = settings_in(written, path)
    built = config.build(cls, settings, path)
    whole = built.model_dump(mode="json", exclude={"kind", *(cls.later - settings.keys())})
    lacking = next(_lacking(settings, whole), None)
    if lacking is not None and written.get("format") != 1:
        raise UserError(
            f"{path}: {lacking} must be given, and is not there: it was changed or is damaged; "
            "the command that wrote it writes it again"
        )
    return built


def _lacking(given: Any, whole: Any, name: str = "") -> Iterator[str]:
    """Yield the full names of the settings that stand in `whole` and not in what was given."""
    if isinstance(whole, Mapping) and isinstance(given, Mapping):
        yield from (name + key for key in whole if key not in given)
        for key in whole.keys() & given.keys():
            yield from _lacking(given[key], whole[key], f"{name}{key}.")
    elif isinstance(whole, list) and isinstance(given, list):
        for i, (mine, theirs) in enumerate(zip(given, whole, strict=False)):
            yield from _lacking(mine, theirs, f"{name}{i}.")


def save_model(path: Path, model: nn.Module, settings: config.Settings, **said: Any) -> None:
    """Write `config.json` and `model.safetensors` into the folder `path`, replacing older ones; keep other files.

    Args:
        said: what `config.json` says beside the settings.
    """
    check_ours(path, "config.json", MODEL_FILES)
    for name, tensor in model.state_dict().items():
        if tensor.is_floating_point() and tensor.dtype != torch.float32:
            kind = str(tensor.dtype).removeprefix("torch.")
            raise UserError(
                f"weights are saved in float32, and {name} is {kind}: load the model again, or .float() it first"
            )
    with rewriting(path, MODEL_FILES) as aside:
        head = {"kind": kind_of(type(model)), "format": FORMAT, **said}
        ordered = head | {name: value for name, value in settings.model_dump(mode="json").items() if name not in head}
        (aside / "config.json").write_text(f"{json.dumps(ordered, indent=2)}\n", encoding="utf-8")
        weights = {name: tensor.detach().cpu().contiguous() for name, tensor in model.state_dict().items()}
        save_file(weights, aside / "model.safetensors", metadata={"format": "pt"})


def load_model(path: Path, cls: type[M], settings_cls: type[config.Settings]) -> M:
    """Return the model in a folder, in evaluation mode on the CPU.

    Raises:
        UserError: no such folder, another kind of model, or weights that do not fit the config.
    """
    if not path.is_dir():
        raise UserError(f"there is no folder {path}")
    settings_path, weights_path = (inside(path, name) for name in MODEL_FILES)
    written = read_json(settings_path)
    check_format(written, kind_of(cls), settings_path)
    settings = read_settings(settings_cls, written, settings_path)
    try:
        _check_fits(weights_path, cls, settings)
        model = cls(settings)
        model.load_state_dict(read_tensors(weights_path))  # strict
        _check_finite(model)
    except UserError:
        raise
    except FileNotFoundError:
        raise UserError(f"there is no {weights_path}; {ANEW}") from None
    except (SafetensorError, OSError) as error:
        pass_on(error)
        raise UserError(f"{weights_path} is damaged: {error}; {ANEW}") from None
    except (RuntimeError, ValueError) as error:
        pass_on(error)
        reason = " ".join(str(error).split())[:300]
        raise UserError(f"{weights_path} does not fit its config.json: {reason}; {ANEW}") from None
    return model.eval()


def read_steadily(path: Path, read: Callable[[], T]) -> T:
    """Return what `read` takes from a model folder, read again where a training replaced the folder meanwhile.

    So weights, settings and what they are known by are of one model.

    Raises:
        UserError: it was another one each of a few times.
    """
    for _ in range(STEADY):
        before, found = _files_now(path), read()
        if _files_now(path) == before:
            return found
    raise UserError(f"{path} was replaced each of {STEADY} times that it was read; wait until that is over")


def _files_now(path: Path) -> list[tuple[int, ...] | None]:
    """Return what tells the files of a model from those that replace them, without reading them."""
    found: list[tuple[int, ...] | None] = []
    for name in MODEL_FILES:
        try:
            at = (path / name).stat()
            found.append((at.st_dev, at.st_ino, at.st_size, at.st_mtime_ns))
        except OSError:  # `read` says what is missing
            found.append(None)
    return found


class _Unfilled(TorchFunctionMode):
    """A context in which weights are made and not filled: what asks for their shapes needs no numbers.

    On the meta device torch would trace what fills them, and import its compiler for it: five seconds of a processor.
    """

    # functions of the shape and type of their input
    alike = (Tensor.normal_, Tensor.uniform_, Tensor.div_, Tensor.mul_, Tensor.cos, Tensor.sin, Tensor.clone)

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        if func in (torch.randn, torch.rand):
            return torch.empty(*args, **kwargs)
        if func is torch.eye:
            return torch.empty(args[0], args[-1], **kwargs)
        if func in self.alike or getattr(func, "__module__", None) == "torch.nn.init":
            return args[0] if args else kwargs["tensor"]
        return func(*args, **kwargs)


def _check_fits(weights: Path, cls: type[nn.Module], settings: config.Settings) -> None:
    """Raise ValueError unless a file has the tensors its config asks for, before memory is taken for either."""
    with opened_tensors(weights) as file:
        slices = {name: file.get_slice(name) for name in file.keys()}  # noqa: SIM118 - no mapping
        there = {name: (tuple(each.get_shape()), each.get_dtype()) for name, each in slices.items()}
    with torch.device("meta"), _Unfilled():
        wanted = cls(settings).state_dict()
    for name in sorted(there.keys() | wanted.keys()):
        expected = tuple(wanted[name].shape) if name in wanted else "absent"
        got, dtype = there.get(name, ("none", ""))
        if got != expected:
            raise ValueError(f"{name} must be {expected}, got {got}")
        if wrong := misfit(NAMES.get(dtype, dtype), wanted[name].dtype):
            raise ValueError(f"{name} {wrong}")


def _check_finite(model: nn.Module) -> None:
    """Raise ValueError that names the first weight that has NaN or Inf."""
    for name, tensor in model.state_dict().items():
        if not tensor.isfinite().all():
            raise ValueError(f"{name} must be of finite numbers, and has NaN or Inf")
