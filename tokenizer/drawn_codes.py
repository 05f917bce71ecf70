"""The codes that a prior drew in the place of those of a run's training images, beside these images.

prior/redraw.py writes them, a row a view of an image. A training of the decoder shows an image in a view that is drawn
for each epoch, and replaces its codes by the draws of this view.

Shapes: rows, epochs (B,); codes (B, T); images (B, C, H, W).
"""

from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from smalti.common.codes import codes_fingerprint, load_redrawn
from smalti.common.codes_info import TokenizerIdentity
from smalti.common.config import build
from smalti.common.data.config import ImagesConfig
from smalti.common.data.images import ImageSet
from smalti.common.data.split import ImageBatch, ImageSplit
from smalti.common.data.views import image_views
from smalti.common.errors import UserError
from smalti.common.folder import sha256
from smalti.common.seeds import seed_for, uniforms_of_rows

AGAIN = "prior/redraw.py draws those of this tokenizer and these images"
READ_ALIKE = ("resize", "white", "animated", "binarize")  # of the settings that decide the pixels; views have the rest
OF_VIEWS = 0x7669657773  # between the stream of the views and all others of a seed
ASKED = 256  # rows at once


class DrawnCodes:
    """The draws in a folder, by image and view."""

    def __init__(self, folder: Path, images: ImageSet, how: ImagesConfig, seed: int):
        """
        Args:
            images: whose codes they must be.
            how: the settings by which these are read. Shifts and mirrors are those of the draws.
            seed: of the views.
        Raises:
            UserError: they are of other images, of images that were read otherwise, or not of all that are trained on;
                what `load_redrawn` raises.
        """
        data = load_redrawn(folder)
        self.folder, self.info, self.split = folder, data.info, data.splits["train"]
        self.fingerprint, self.seed = codes_fingerprint(data), seed_for(seed, OF_VIEWS)
        said = {name: value for name, value in data.info.source.items() if name != "fingerprint"}
        self.how = build(ImagesConfig, said, folder / "codes.json")
        self.rows = self.split.rows[:: data.info.views]  # ascending, one an image
        of = str(data.info.source.get("fingerprint"))
        if of != images.fingerprint:
            raise UserError(
                f"{folder} holds codes of other images than these (fingerprint {of[:12]} there, "
                f"{images.fingerprint[:12]} here): {AGAIN}"
            )
        self._check_pixels(how)
        self._check_rows(images.splits["train"])

    def _check_pixels(self, how: ImagesConfig) -> None:
        """Raise `UserError` where the images are read otherwise than those whose codes were drawn anew."""
        there = self.how.model_dump(include=set(READ_ALIKE))
        if there["binarize"] == "dynamic":  # of which codes are of the first draw, as of a fixed one
            there["binarize"] = "fixed"
        here = how.model_dump(include=set(READ_ALIKE))
        both = ((name, there[name], here[name]) for name in READ_ALIKE)
        if differ := [f"images.{name} {a} there and {b} here" for name, a, b in both if a != b]:
            raise UserError(
                f"{self.folder} holds codes of images that were read otherwise: {', '.join(differ)}. Give the settings "
                "there"
            )

    def _check_rows(self, split: ImageSplit) -> None:
        """Raise `UserError` where an image that can be read has no codes."""
        for some in np.split(missing := np.setdiff1d(split.rows, self.rows), range(ASKED, len(missing), ASKED)):
            if len(some) and len(read := split.read_rows(some).rows):
                raise UserError(
                    f"{self.folder} has no codes of {len(missing):,} of the {len(split):,} training images, such as "
                    f"row {int(read[0])}: other images were held out there (images.validation_share). {AGAIN}"
                )

    def __str__(self) -> str:
        drawn = self.info.redrawn
        assert drawn is not None  # `load_redrawn` has asked
        given = ", ".join(f"{name} {value}" for name, value in drawn.sampling.items() if value is not None)
        views = f"in one of its {self.info.views} views (images.shift {self.how.shift}, images.flip {self.how.flip})"
        shown = "as it is" if self.info.views == 1 else views
        return f"draws of the prior {drawn.prior[:12]}, seed {drawn.seed}, {given}; each image is shown {shown}"

    def check_tokenizer(self, tokenizer: TokenizerIdentity) -> None:
        """Raise `UserError` unless they are codes of this tokenizer."""
        if not self.info.tokenizer.same_codes(tokenizer):
            raise UserError(
                f"{self.folder} holds codes of the tokenizer {self.info.tokenizer}, not of {tokenizer}: {AGAIN}"
            )

    def unused(self, how: ImagesConfig) -> str | None:
        """Return a line on the shifts and mirrors of a training, where they are others than those of the views."""
        here, there = (how.shift, how.flip), (self.how.shift, self.how.flip)
        if here == there:
            return None
        return (
            f"images.shift {here[0]} and images.flip {here[1]} are not used: the draws are of views by images.shift "
            f"{there[0]} and images.flip {there[1]}"
        )

    def of_another_prior(self, model: Path) -> str | None:
        """Return a warning where a run has another prior by now than the one that drew, in its model folder."""
        weights, drawn = model / "model.safetensors", self.info.redrawn
        if drawn is None or not weights.is_file() or sha256(weights) == drawn.prior:
            return None
        return (
            f"the draws of {self.folder} are of another prior than {model} is now: the decoder learns to bear the "
            "errors of that one; prior/redraw.py draws anew, into another --output"
        )

    def views_of(self, batch: ImageBatch) -> tuple[Tensor, Tensor]:
        """Return a view of each image of a batch, uint8, and what was drawn in place of its codes (B, T).

        Raises:
            UserError: an image has no codes.
        """
        rows, epochs = batch.rows.numpy(), batch.epochs.numpy()
        first = np.searchsorted(self.rows, rows).clip(max=len(self.rows) - 1)
        if len(missing := rows[self.rows[first] != rows]):
            raise UserError(f"{self.folder} has no codes of row {missing[0]} of the training images: {AGAIN}")
        which = (uniforms_of_rows(self.seed, epochs, rows, 1)[0] * self.info.views).long().numpy()
        codes = self.split.codes[first * self.info.views + which].astype(np.int64)
        return image_views(batch.images, 0, rows, which, self.how), torch.from_numpy(codes)
