"""The weights a training begins from: a folder of ours, what comes with the package, or a repository of the Hub.

start_from: runs/digits/tokenizer/model  |  runs/digits  |  runs/digits/pipeline  |  smalti/digits  |  owner/name
"""

from collections.abc import Callable, Collection, Mapping
from pathlib import Path
from typing import Any, Generic, NamedTuple, TypeVar

from torch import Tensor, nn

from smalti.common import state
from smalti.common.bundled import bundled_name, run_named
from smalti.common.config import Settings, build
from smalti.common.errors import UserError
from smalti.common.folder import MODEL_FILES, kind_in, read_json, read_steadily, sha256
from smalti.common.history import START, Change
from smalti.common.hub import NoSuchFile, locate
from smalti.common.run_folder import settings_of

M = TypeVar("M", bound=nn.Module)
S = TypeVar("S", bound=Settings)
GIVE = "give one that it trained"
NOTHING: Mapping[str, str] = {}


class Origin(NamedTuple, Generic[M]):
    """A model that a training begins from."""

    name: str  # as it was given; of what comes with the package, its full name
    model: M
    sha256: str  # of its weights
    folder: Path  # of the model

    @property
    def change(self) -> Change:
        """Return the line of a run's history for these weights."""
        place = str(Path(self.name).resolve()) if Path(self.name).is_dir() else None
        return Change(setting=START, after=self.name, sha256=self.sha256, place=place)


def find_model_folder(start_from: str, stage: str, setting: str = START) -> Path:
    """Return the model folder of a stage: the folder itself, or one in a run, a run's stage or a pipeline.

    Args:
        setting: what names it, for the message.
    Raises:
        UserError: there is none.
    """
    given = run_named(start_from)
    if not given.is_dir():
        try:
            return locate(start_from, MODEL_FILES)
        except NoSuchFile:  # of a pipeline
            return locate(start_from, MODEL_FILES, subfolder=stage)
    places = (".", "model", f"{stage}/model", stage)
    for place in places:
        if (given / place / MODEL_FILES[0]).is_file():
            return given / place
    raise UserError(
        f"{setting}: {start_from} must hold a {stage}, {MODEL_FILES[0]} beside {MODEL_FILES[1]}, there or in "
        f"{', '.join(f'{place}/' for place in places[1:])}, and holds none"
    )


def read_origin(
    start_from: str, kinds: Collection[str], load: Callable[[Path], M], stage: str, instead: Mapping[str, str] = NOTHING
) -> Origin[M]:
    """Return the model to begin from.

    Args:
        instead: of kinds that are not trained, what can be done with one.
    Raises:
        UserError: it is not there, damaged, or a model of another kind than is trained.
    """
    if Path(start_from).is_file():
        raise UserError(f"start_from: {start_from} is a file, and a model of ours is a folder: {instead.get('', GIVE)}")
    folder = find_model_folder(start_from, stage)
    said = read_json(folder / MODEL_FILES[0])
    if "kind" not in said:
        raise UserError(f"start_from: {start_from} holds no model of ours: {instead.get('', GIVE)}")
    if (kind := kind_in(said)) not in kinds:
        trains = " or ".join(repr(each.removeprefix("smalti.")) for each in kinds)
        raise UserError(
            f"start_from: {start_from} holds a {kind.removeprefix('smalti.')!r}, and {stage}/train.py trains a "
            f"{trains} alone: {instead.get(kind, GIVE)}"
        )
    model, weights = read_steadily(folder, lambda: (load(folder), sha256(folder / MODEL_FILES[1])))
    return Origin(bundled_name(start_from) or start_from, model, weights, folder)


def settings_and_origin(
    c: S,
    run: Path,
    kinds: Collection[str],
    load: Callable[[Path], M],
    sizes: Callable[[M], Settings],
    instead: Mapping[str, str] = NOTHING,
) -> tuple[S, Origin[M] | None]:
    """Return the settings of a training, with the sizes of the model it begins from, and that model.

    The model is None where the run has a state to go on from, which needs it no more.

    Args:
        run: the folder of the stage, of its name.
        kinds: of the models that this stage trains.
        load: the model of such a kind in a folder.
        sizes: of a model, what the training calls `model`.
        instead: of kinds that are not trained, what can be done with one; "" is a model of somebody else's.
    """
    start_from: str | None = c.start_from  # type: ignore[attr-defined]  # of both trainings
    if start_from is None:
        return c, None
    before = settings_of(run, type(c))
    if before is not None and state.last_step(run) is not None:
        return _with_model(c, before.model), None  # type: ignore[attr-defined]
    origin = read_origin(start_from, kinds, load, run.name, instead)
    return _with_model(c, sizes(origin.model)), origin


# --------------------------------------------------------------------------------------------------------- its settings


def _with_model(c: S, theirs: Settings) -> S:
    """Return the settings of a training; settings of `model` that were not given come from the model it begins from.

    Raises:
        UserError: the two do not go together.
    """
    model: Settings = c.model  # type: ignore[attr-defined]  # of both trainings
    settings = c.model_dump(mode="json") | {"model": laid_over(theirs.model_dump(mode="json"), given_of(model))}
    return build(type(c), settings, "start_from with the settings given")


def given_of(settings: Settings) -> dict[str, Any]:
    """Return the settings that were given, without defaults."""
    values = {name: getattr(settings, name) for name in settings.model_fields_set}
    dumped = settings.model_dump(mode="json")
    return {name: given_of(value) if isinstance(value, Settings) else dumped[name] for name, value in values.items()}


def laid_over(theirs: Mapping[str, Any], given: Mapping[str, Any]) -> dict[str, Any]:
    """Return `theirs` overridden by what is given; another kind keeps nothing of theirs."""
    if "kind" in given and given["kind"] != theirs.get("kind"):
        return dict(given)
    both = [k for k, v in given.items() if isinstance(v, Mapping) and isinstance(theirs.get(k), Mapping)]
    return {**theirs, **given, **{k: laid_over(theirs[k], given[k]) for k in both}}


# ---------------------------------------------------------------------------------------------------------- its weights


def begin_from(origin: Origin[M], model: M, instead: Mapping[str, Tensor] | None = None) -> str:
    """Give a model the weights of another; return a message that names their origin and which settings differ.

    Args:
        instead: weights that take the place of the other's, by name.
    Raises:
        UserError: a tensor has another shape, or is in one of them alone.
    """
    there, here = origin.model.state_dict() | dict(instead or {}), model.state_dict()
    differences = differences_of(origin.model.config, model.config)  # type: ignore[arg-type]  # of both stages
    for name in [*here, *(name for name in there if name not in here)]:
        shapes = [tuple(state[name].shape) if name in state else "absent" for state in (there, here)]
        if shapes[0] != shapes[1]:
            settings = "; ".join(differences[:4]) or "their settings are the same"
            raise UserError(
                f"start_from: the weights of {origin.name} do not fit: {name} is {shapes[0]} there and {shapes[1]} "
                f"here ({settings}). Leave the settings of model away to take those there, begin from other weights, "
                "or from none"
            )
    model.load_state_dict(there)
    but = f"; other settings: {'; '.join(differences)}" if differences else ""
    return f"begins from the weights of {origin.name} (sha256 {origin.sha256[:12]}){but}"


def differences_of(there: Settings, here: Settings) -> list[str]:
    """Return which settings of two models differ, a phrase each."""
    return _differences(there.model_dump(mode="json"), here.model_dump(mode="json"))


def _differences(there: Mapping[str, Any], here: Mapping[str, Any], prefix: str = "") -> list[str]:
    """Return which settings differ, a phrase each."""
    found: list[str] = []
    for name in here:
        a, b = there.get(name), here[name]
        if isinstance(a, Mapping) and isinstance(b, Mapping):
            found += _differences(a, b, f"{prefix}{name}.")
        elif a != b:
            found.append(f"{prefix}{name} {_short(a)} there and {_short(b)} here")
    return found


def _short(value: Any) -> str:
    text = str(value)
    return text if len(text) <= 40 else f"{text[:36]}... ({len(value)})"
