"""The registry of priors, by the kind of their architecture."""

from pathlib import Path

from smalti.common import folder
from smalti.common.hub import locate
from smalti.prior.base import Prior
from smalti.prior.config import PriorConfig


def build_prior(config: PriorConfig) -> Prior:
    """Return the prior of a config, with random weights."""
    prior: Prior = config.architecture.builds(config)
    return prior


def load_prior(
    path: str | Path,
    *,
    subfolder: str = "",
    revision: str | None = None,
    token: str | bool | None = None,
    cache_dir: str | Path | None = None,
    local_files_only: bool = False,
) -> Prior:
    """Return the prior in a folder, or in a Hub repository `owner/name`; its `config.json` says of which kind it is.

    Raises:
        UserError: no such folder, no prior in it, or weights that do not fit the config.
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
    written = folder.read_json(folder.inside(found, "config.json"))
    folder.check_format(written, Prior.kind, found / "config.json")
    config = folder.read_settings(PriorConfig, written, found / "config.json")
    prior: Prior = config.architecture.builds.from_folder(found)
    return prior
