"""Text from files, folders and command lines, made safe for a terminal, a log or a card.

A name may hold any character: ESC and its sequences, which move a terminal's cursor and colour it; line breaks, which
would begin a line of their own; and marks that turn the direction of what follows. Each is shown as an escape: `\\x1b`.
"""

import re
from typing import TextIO

_ACTING = "\x00-\x08\x0b-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028-\u202e\u2066-\u2069\ud800-\udfff"
_IN_LINES, _IN_A_LINE = re.compile(f"[{_ACTING}]"), re.compile(f"[{_ACTING}\t\n]")
_OF_A_BAR = re.compile(r"(\r|\n|\x1b\[A)*")  # how tqdm moves between the lines of its bars, in writes of their own


def shown(text: object) -> str:
    """Return text as one line; characters that would act on a terminal are escaped."""
    return _IN_A_LINE.sub(_escaped, str(text))


def shown_lines(text: str) -> str:
    """Return text of several lines; characters that would act on a terminal are escaped."""
    return _IN_LINES.sub(_escaped, text)


def _escaped(found: re.Match[str]) -> str:
    return found[0].encode("unicode_escape").decode("ascii")


class Outlet:
    """A stream that escapes its text, except the carriage returns and moves with which a bar moves the cursor."""

    def __init__(self, stream: TextIO):
        self.stream = stream

    def write(self, text: str) -> int:
        start = len(text) - len(text.lstrip("\r"))
        moves = _OF_A_BAR.fullmatch(text) is not None
        self.stream.write(text if moves else text[:start] + shown_lines(text[start:].replace("\r\n", "\n")))
        return len(text)

    def writelines(self, lines: list[str]) -> None:
        for line in lines:
            self.write(line)

    def __getattr__(self, name: str) -> object:
        return getattr(self.stream, name)
