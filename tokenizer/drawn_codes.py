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
from smalti.common.data.split import ImageBatch
from smalti.common.data.views import image_views
from smalti.common.errors import UserError
from smalti.common.seeds import uniforms_of_rows

AGAIN = "prior/redraw.py draws those of this tokenizer and these images"


class DrawnCodes:
    """The draws in a folder, by image and view."""

    def __init__(self, folder: Path, images: ImageSet, how: ImagesConfig, seed: int):
        """
        Args:
            images: whose codes they must be.
            how: the settings by which these are read.
            seed: of the views.
        Raises:
            UserError: they are of other images, or of other views; what `load_redrawn` raises.
        """
        data = load_redrawn(folder)
        self.folder, self.info, self.split = folder, data.info, data.splits["train"]
        self.fingerprint, self.seed = codes_fingerprint(data), seed
        said = {name: value for name, value in data.info.source.items() if name != "fingerprint"}
        self.how = build(ImagesConfig, said, folder / "codes.json")
        self.rows = self.split.rows[:: data.info.views]  # ascending, one an image
        of = str(data.info.source.get("fingerprint"))
        if of != images.fingerprint:
            raise UserError(
                f"{folder} holds codes of other images than these (fingerprint {of[:12]} there, "
                f"{images.fingerprint[:12]} here): {AGAIN}"
            )
        mine, theirs = (how.shift, how.flip), (self.how.shift, self.how.flip)
        if mine != theirs:
            raise UserError(
                f"{folder} holds codes of views by images.shift {theirs[0]} and images.flip {theirs[1]}, and here they "
                f"are {mine[0]} and {mine[1]}: leave these away, as images are shown in the views of the draws"
            )
        if how.binarize == "dynamic":
            raise UserError(
                "drawn_codes are of one draw of black and white, and images.binarize dynamic draws another in each "
                "epoch: take replace_by near"
            )

    def check_tokenizer(self, tokenizer: TokenizerIdentity) -> None:
        """Raise `UserError` unless they are codes of this tokenizer."""
        if not self.info.tokenizer.same_codes(tokenizer):
            raise UserError(
                f"{self.folder} holds codes of the tokenizer {self.info.tokenizer}, not of {tokenizer}: {AGAIN}"
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
        codes = np.asarray(self.split.codes[first * self.info.views + which])
        return image_views(batch.images, 0, rows, which, self.how), torch.from_numpy(codes.astype(np.int64))
