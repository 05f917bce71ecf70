"""What a training that began from given weights has changed: figures of the validation split, and the codes.

RUN/tokenizer/metrics.jsonl    step 0: the figures of the given weights, on the new images; last line: those of now
RUN/tokenizer/history.jsonl    the identity of the given weights, which is of what decides their codes
"""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from smalti.common.errors import UserError
from smalti.common.history import START, Change, read_history
from smalti.common.origin import Origin
from smalti.common.run_folder import read_metrics
from smalti.tokenizer.base import TrainedTokenizer
from smalti.tokenizer.criterion.criteria import losses_of
from smalti.tokenizer.model import identity_of

WORDS = {  # of the figures of an evaluation
    "psnr_pooled": ("PSNR", "{:.2f} dB pooled"),
    "distortion": ("distortion", "{:.3f} bits/dim"),
    "usage": ("codes used", "{:.1%}"),
    "perplexity": ("perplexity", "{:.1f}"),
}
SAME = (
    "every image has the codes it had: codes datasets and priors of the given tokenizer are valid for this one; copy "
    "them into this run, or give --codes"
)
OTHER = (
    "images have other codes than before: encode them, and train a prior on those codes (prior/train.py --start_from "
    "may begin it from the old one)"
)


def change_of(origin: Origin[TrainedTokenizer]) -> Change:
    """Return the line of a run's history for the tokenizer that it begins from.

    Raises:
        UserError: its folder holds another one now.
    """
    identity = identity_of(origin.folder, origin.name)
    if identity.files[0] != origin.sha256:
        raise UserError(
            f"{origin.folder} was replaced after it had been read: a training saves there. The same command begins "
            "again, when that is done or stopped"
        )
    losses = losses_of(origin.folder.parent) if origin.folder.name == "model" else ()  # of a run of ours
    return origin.change.model_copy(update={"identity": identity, "losses": losses or None})


def figures_before(run: Path) -> dict[str, Any] | None:
    """Return the figures of the weights that a training began from; None where it did not."""
    return next((line for line in read_metrics(run / "metrics.jsonl") if line["step"] == 0 and "psnr" in line), None)


def before_and_after(run: Path) -> Iterator[str]:
    """Yield lines that say what a training changed, where it began from given weights."""
    before = figures_before(run)
    after = next((line for line in reversed(read_metrics(run / "metrics.jsonl")) if "psnr" in line), None)
    if before is None or after is None:
        return
    figures = (
        f"{word} {form.format(before[name])} -> {form.format(after[name])}"
        for name, (word, form) in WORDS.items()
        if name in before and name in after
    )
    yield f"{after['validation_images']:,} validation images, before -> after: {', '.join(figures)}"
    began = next((change for change in read_history(run) if change.setting == START), None)
    if began is not None and began.identity is not None and "usage" in after:
        yield SAME if identity_of(run / "model", "").sha256 == began.identity.sha256 else OTHER
