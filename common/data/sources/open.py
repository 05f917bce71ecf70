"""Open a source, wherever it is, and tell the many errors of `datasets` in one line."""

from pathlib import Path

from smalti.common.classes import check_names
from smalti.common.data.config import ImagesConfig
from smalti.common.data.sources.builtin_digits import open_digits
from smalti.common.data.sources.cache import prepare_datasets, refuse_cache
from smalti.common.data.sources.columns import column_parts
from smalti.common.data.sources.hub_dataset import read_hub
from smalti.common.data.sources.local import LAYOUTS, open_folder
from smalti.common.data.sources.part import Source, as_unread, one_line
from smalti.common.data.sources.splits import with_train
from smalti.common.ends import pass_on
from smalti.common.errors import UserError
from smalti.common.progress import passing_word


def _hub(config: ImagesConfig) -> Source:
    prepare_datasets()
    splits, left, notes = read_hub(config.source, config.subset, config.data_files.given(), config.split.given())
    from datasets.config import HF_DATASETS_CACHE
    from huggingface_hub.constants import HF_HUB_CACHE

    homes = tuple(Path(cache).expanduser().resolve() for cache in (HF_HUB_CACHE, HF_DATASETS_CACHE))
    parts, names = column_parts(with_train(splits, config.source), config, None, homes)
    return Source(parts, names, as_unread(left), None, tuple(notes))


def open_source(config: ImagesConfig) -> Source:
    """Return the splits of a source, its class names and its unread files.

    Raises:
        UserError: there is no such source or column, a split is empty, or class names disagree between splits.
    """
    if config.source == "digits":
        return open_digits(config)
    source, folder = config.source, Path(config.source).expanduser()
    if folder.is_file():
        raise UserError(f"source {source} is a file: expected a folder or a name on the Hub; give {folder.parent}")
    if folder.exists() and not folder.is_dir():
        raise UserError(f"source {source} is a pipe or a device: expected a folder or a name on the Hub")
    local = folder.is_dir()
    if not local and (source[:1] in "/.~" or source.count("/") > 1):
        raise UserError(f"source {source}: no such folder here; expected one of {LAYOUTS}")
    try:
        where = f"reading {source}" if local else f"there is no folder {source} here, so the Hub is asked for it"
        with passing_word(f"{where}; the first time takes longest"):
            opened = open_folder(folder, config) if local else _hub(config)
    except (UserError, MemoryError):
        raise
    except Exception as error:  # damaged files raise nearly anything in `datasets` and the parsers under it
        refuse_cache(error)
        pass_on(error)
        unknown = isinstance(error, ConnectionError | FileNotFoundError) and not local
        expected = "no such folder here, and the Hub has or reaches no data set of that name"
        expected = expected if unknown else f"it cannot be read; expected {LAYOUTS}, and an image in every split"
        raise UserError(f"source {source}: {expected} ({one_line(error.__cause__ or error)})") from None
    for name, part in opened.parts.items():
        if len(part.labels) == 0:
            raise UserError(f"split {name} of {source} is empty; expected at least one image")
    try:
        check_names(opened.class_names or ())
    except ValueError as error:
        raise UserError(f"source {source}: {error}") from None
    return opened
