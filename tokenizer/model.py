"""The registry of tokenizers, by the kind in a folder's `config.json`."""

from pathlib import Path
from typing import NamedTuple

from smalti.common import folder, identity
from smalti.common.codes_info import TokenizerIdentity
from smalti.common.commands import quoted
from smalti.common.errors import UserError
from smalti.common.hub import locate
from smalti.tokenizer.base import ImageTokenizer, TrainedTokenizer
from smalti.tokenizer.config import ImageTokenizerConfig, TrainedConfig


def settings_class(config: Path) -> type[ImageTokenizerConfig]:
    """Return the class of the settings in a tokenizer's `config.json`. Raises `UserError` for an unknown kind."""
    kinds = {f"smalti.{name}": settings for name, settings in ImageTokenizerConfig.family().items()}
    kind = folder.kind_in(folder.read_json(config))
    if kind not in kinds:
        raise UserError(f"{config} must be of a tokenizer, kind {' or '.join(map(repr, kinds))}, got {kind!r}")
    found = kinds[kind]
    assert issubclass(found, ImageTokenizerConfig)
    return found


def build_tokenizer(config: TrainedConfig) -> TrainedTokenizer:
    """Return the tokenizer of a config, with random weights."""
    tokenizer: TrainedTokenizer = config.builds(config)
    return tokenizer


def load_folder(path: Path) -> ImageTokenizer:
    """Return the tokenizer in a folder. Raises as `load_tokenizer`."""
    tokenizer: ImageTokenizer = settings_class(folder.inside(path, "config.json")).builds.from_folder(path)
    return tokenizer


def load_tokenizer(
    path: str | Path,
    *,
    subfolder: str = "",
    revision: str | None = None,
    token: str | bool | None = None,
    cache_dir: str | Path | None = None,
    local_files_only: bool = False,
) -> ImageTokenizer:
    """Return the tokenizer in a folder, or in a Hub repository `owner/name`; its `config.json` says the kind.

    Args: as of `common.hub.Pretrained.from_pretrained`.

    Raises:
        UserError: no such folder, no tokenizer in it, or weights that do not fit the config.
    """
    found = locate(
        path,
        folder.MODEL_FILES,
        subfolder=subfolder,
        revision=revision,
        token=token,
        cache_dir=cache_dir,
        local_files_only=local_files_only,
    )
    return load_folder(found)


def identity_of(path: Path, name: str) -> TokenizerIdentity:
    """Return the identity of the tokenizer in a folder, by what its class says of its modules."""
    declared: tuple[str, ...] = settings_class(folder.inside(path, "config.json")).builds.decodes_only
    return identity.identity_of(path, name, declared)


class Identified(NamedTuple):
    """A tokenizer and its identity, of the same weights."""

    tokenizer: ImageTokenizer
    identity: TokenizerIdentity


def load_identified(path: Path, name: str) -> Identified:
    """Return the tokenizer in a folder, which a training may replace meanwhile, with its identity."""
    return folder.read_steadily(path, lambda: Identified(load_tokenizer(path), identity_of(path, name)))


def trained(run: Path) -> Path:
    """Return the model folder of RUN/tokenizer. Raises `UserError` that says how to make one."""
    if not (run / "model/config.json").exists():
        raise UserError(
            f"there is no trained tokenizer in {run / 'model'}; tokenizer/train.py with --run {quoted(run.parent)} "
            "makes one (tokenizer/cluster.py, one of K-means or a mixture of Gaussians; tokenizer/convert.py, one of "
            "somebody else's weights)"
        )
    return run / "model"
