"""The cache in which `datasets` keeps tables: its preparation, and the error when it cannot be written."""

import errno
import os
import sys
from typing import NoReturn

from smalti.common.errors import UserError
from smalti.common.progress import on_main

FULL = {errno.ENOSPC, errno.EDQUOT, errno.EROFS}


def prepare_datasets() -> None:
    """Have `datasets` write where it can, and keep its bars to terminals."""
    import datasets
    from huggingface_hub.utils import disable_progress_bars

    # in a log file their bars would be one line of thousands of carriage returns
    if not (on_main() and sys.stderr.isatty()):
        datasets.disable_progress_bars()
        disable_progress_bars()
    cache = os.path.expanduser(datasets.config.HF_DATASETS_CACHE)
    try:
        os.makedirs(cache, exist_ok=True)
        if not os.access(cache, os.W_OK | os.X_OK):
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))
    except OSError as error:
        _refuse(error)


def refuse_cache(error: BaseException) -> None:
    """Raise `UserError` where the cache of `datasets` was at fault and not the source."""
    from datasets.config import HF_DATASETS_CACHE

    cause: BaseException | None = error
    while cause is not None:
        inside = str(getattr(cause, "filename", "")).startswith(os.path.expanduser(HF_DATASETS_CACHE))
        if isinstance(cause, OSError) and (cause.errno in FULL or (inside and cause.errno == errno.EACCES)):
            _refuse(cause)
        cause = cause.__cause__ or cause.__context__


def _refuse(error: OSError) -> NoReturn:
    from datasets.config import HF_DATASETS_CACHE

    cache = os.path.expanduser(HF_DATASETS_CACHE)
    raise UserError(
        f"the cache of `datasets`, {cache}, cannot be written ({error.strerror or error}); name another folder with "
        "the environment variable HF_DATASETS_CACHE"
    ) from None
