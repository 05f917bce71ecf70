"""A prior that begins from another of the same vocabulary, over other classes.

All weights are the other's but the class embedding (N + 1, D), whose last row is none: a class whose name the other has
too, with training rows, keeps its vector, and so does none; the vectors of new classes begin anew.
"""

from collections.abc import Iterator

from torch import Tensor

from smalti.common.class_embedding import ClassEmbedding
from smalti.common.condition import Classes
from smalti.prior.base import Prior

SHOWN = 5  # names in a message


def learnt_classes(prior: Prior) -> set[str]:
    """Return the names of the classes that a prior was trained on: those without a training row have no vector."""
    condition = prior.config.condition
    absent = condition.absent if isinstance(condition, Classes) else ()
    return {name for number, name in enumerate(condition.class_names or ()) if number not in absent}


def class_embeddings(here: Prior, there: Prior) -> dict[str, Tensor]:
    """Return the class embeddings of a prior with the vectors of another for the classes that both have, by name;
    nothing where the classes are the same ones, or the vectors have other lengths."""
    names, theirs = here.config.condition.class_names or (), there.config.condition.class_names or ()
    learnt = learnt_classes(there)
    if names == theirs and len(learnt) == len(names):
        return {}
    kept = {names.index(name): theirs.index(name) for name in names if name in learnt}
    rows = [*kept, len(names)]
    from_rows = [*kept.values(), len(theirs)]  # the last row is none
    weights, found = there.state_dict(), {}
    for name, module in here.named_modules():
        if isinstance(module, ClassEmbedding) and f"{name}.weight" in weights:
            embedding, given = module.weight.detach().clone(), weights[f"{name}.weight"]
            if given.shape[1:] != embedding.shape[1:]:
                continue
            embedding[rows] = given.to(embedding.device)[from_rows]
            found[f"{name}.weight"] = embedding
    return found


def describe_classes(here: Prior, there: Prior) -> Iterator[str]:
    """Yield a line on the classes that begin anew, where there are any."""
    learnt = learnt_classes(there)
    names = here.config.condition.class_names or ()
    new = [name for name in names if name not in learnt]
    if new:
        more = f" and {len(new) - SHOWN} more" if len(new) > SHOWN else ""
        yield (
            f"{len(new)} of {len(names)} classes begin with a new vector: {', '.join(new[:SHOWN])}{more}; all other "
            "weights are those of the prior it begins from"
        )
