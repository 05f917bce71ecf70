"""Where images lie: the built-in digits, a Hub data set, or a folder, as parts of encoded rows with their labels.

    source (digits | Hub | folder)  ->  open_source  ->  Source: a Part for each split, and what is not read

Every file under a source is read, or stands in `Source.unread` with its kind, or is one of `files.SIDE_FILES` or
`SIDE_FOLDERS` (a README, a licence, what an operating system leaves behind), which describe a data set and are no part
of it.
"""

from smalti.common.data.sources.columns import file_of
from smalti.common.data.sources.open import open_source
from smalti.common.data.sources.part import Column, Left, Part, Source, Unread, one_line
from smalti.common.data.sources.splits import VALIDATION_NAMES

__all__ = [
    "VALIDATION_NAMES",
    "Column",
    "Left",
    "Part",
    "Source",
    "Unread",
    "file_of",
    "one_line",
    "open_source",
]
