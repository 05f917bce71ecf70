"""The comparisons of tokenizer/compare.py, as the report and the card show them."""

from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

from smalti.common.history import START
from smalti.common.record import private
from smalti.pipeline.reporting.markup import number, percent
from smalti.pipeline.reporting.meanings import meaning_in
from smalti.pipeline.reporting.run_contents import RunContents, finite


class Comparison(NamedTuple):
    """A table of figures of another tokenizer and of the run's, on one set of images."""

    caption: str
    rows: list[tuple[str, ...]]
    head: tuple[str, ...] = ("figure", "before", "after", "meaning")


def comparisons(contents: RunContents) -> Iterator[Comparison]:
    """Yield the tables of all comparisons of the run's present weights, one for each set of images."""
    for evaluation in contents.of_present_weights("compare"):
        other = compared_with(contents, evaluation["protocol"])
        for domain, about in {"new": "of this run", "old": "of the other tokenizer"}.items():
            figures, told = (mapping(mapping(evaluation[part]).get(domain)) for part in ("figures", "protocol"))
            before, after = (mapping(figures.get(when)) for when in ("before", "after"))
            rows = [
                (title, *(percent(one[name]) if share else number(one[name]) for one in (before, after)), text)
                for name, (title, text, share) in ((name, meaning_in(contents, name)) for name in after)
                if finite(before.get(name)) is not None and finite(after[name]) is not None
            ]
            same = finite(figures.get("codes_equal"))
            equal = "" if same is None else f"; {percent(same)} of them have the same codes in both"
            source = private(told.get("source"))
            images = f"the images {about} ({source}), {told.get('split')} split, {number(told.get('number'))} images"
            if rows:
                yield Comparison(f"Beside {other} (before), on {images}{equal}", rows)


def compared_with(contents: RunContents, protocol: Mapping[str, Any]) -> str:
    """Return the words for the tokenizer that a comparison is with."""
    began = [change for change in contents.history("tokenizer") if change.setting == START]
    if any(change.sha256 == protocol.get("before") for change in began):
        return "the weights it began from"
    return f"{private(str(protocol.get('before_name')))}, which it did not begin from"


def began_from_weights(contents: RunContents) -> bool:
    """Return whether the tokenizer's training began from given weights."""
    return any(change.setting == START for change in contents.history("tokenizer"))


def mapping(value: Any) -> Mapping[str, Any]:
    """Return a value of a file, which nobody vouches for, if it is a mapping, else an empty one."""
    return value if isinstance(value, Mapping) else {}
