"""A command's first look at its command line, before torch is imported: --help and wrong settings are answered at once.

A script declares its settings on top, and asks here before the imports that take seconds:

    if is_command(__name__):
        answer_at_once(read_settings)
"""

import os
import sys
from collections.abc import Callable, Sequence
from typing import Any

from smalti.common.commands import typed
from smalti.common.errors import UserError
from smalti.common.shown import shown
from smalti.common.starting import UNHEARD, USER_ERROR, speak_anyhow

_by_name: str | None = None  # the module of the command that `smalti NAME` starts


def begin(module: str) -> None:
    """Let `is_command` know the command that this process was started for."""
    global _by_name
    _by_name = module


def is_command(module: str) -> bool:
    """Return whether this process runs a module as its command, so that the command line is for it."""
    return module in ("__main__", _by_name)


def answer_at_once(read_settings: Callable[[Sequence[str]], Any]) -> None:
    """End the process after --help, or with the line on a wrong setting; return where there is nothing to answer.

    Of several processes the first speaks. Whatever else goes wrong, `main` meets again, and it is told as there.
    """
    if os.environ.get("RANK", "0") != "0":
        return
    speak_anyhow()
    try:
        read_settings(sys.argv[1:])
    except UserError as error:
        print(shown(typed(f"error: {error}")), file=sys.stderr, flush=True)
        sys.exit(USER_ERROR)
    except SystemExit:  # after --help
        _finish()
        raise
    except Exception:
        return


def _finish() -> None:
    try:
        sys.stdout.flush()
    except BrokenPipeError:  # `| head` has read enough
        os._exit(UNHEARD)
