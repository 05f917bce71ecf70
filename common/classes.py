"""Classes without a training image, which a model cannot have learnt."""

from collections.abc import Iterator, Sequence

NAMED = 8  # the others are counted


def untrained(absent: Sequence[int], class_names: Sequence[str]) -> Iterator[str]:
    """Yield a line on the classes without a training image, if there are any."""
    if absent:
        names = ", ".join(class_names[number] for number in absent[:NAMED])
        more = f" and {len(absent) - NAMED} more" if len(absent) > NAMED else ""
        told = f"class {names} has" if len(absent) == 1 else f"{len(absent)} classes ({names}{more}) have"
        yield f"{told} no training image: what is drawn of it is untrained"
