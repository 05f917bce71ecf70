"""The health of tokenizer and discriminator as a pair: what goes wrong between them, with cause and remedy."""

from collections.abc import Iterator, Mapping
from typing import Any

LONG, AGAIN = 5, 25  # lines of the log in a row after which a warning is due, and after which it is due again
SURE = 0.95  # accuracy from which on the tokenizer learns nothing from the discriminator
ALIKE = 0.02  # between the mean logits of images and reconstructions, of a hinge whose margins are 2 apart
WORSE = 1.0  # dB


class Health:
    """The last figures of the pair; part of the training state, so that a resumed run warns as it would have."""

    def __init__(self, strong: int = 0, dead: int = 0, before: float | None = None):
        """
        Args:
            strong: lines of the log in a row with a discriminator that is sure.
            dead: likewise with one that sees no difference.
            before: the last PSNR on validation before the adversarial loss counted, dB; of a tokenizer that begins from
                given weights, theirs; where there was no evaluation before, that of the first one after.
        """
        self.strong, self.dead = int(strong), int(dead)
        self.before = None if before is None else float(before)

    def state(self) -> dict[str, Any]:
        return {"strong": self.strong, "dead": self.dead, "before": self.before}

    def of_figures(self, figures: Mapping[str, float], counts: bool) -> Iterator[str]:
        """Yield what a line of the log says about the pair, where the adversarial loss counts."""
        if not counts or "discriminator_accuracy" not in figures:
            return
        sure, apart = figures["discriminator_accuracy"], figures["real_logits"] - figures["fake_logits"]
        self.strong = self.strong + 1 if sure > SURE else 0
        self.dead = self.dead + 1 if abs(apart) < ALIKE else 0
        if self.strong % AGAIN == LONG:
            yield (
                f"the discriminator is too strong: it is right about {sure:.1%} of the patches, and what it asks for "
                "is then no direction the tokenizer can go; lower adversarial.lr, raise adversarial.lecam, augment "
                "with all of translation, colour, cutout, or let it start later, when reconstructions are better"
            )
        if self.dead % AGAIN == LONG:
            yield (
                f"the discriminator is dead: its logits of images and reconstructions are {abs(apart):.3f} apart, so "
                "that its gradient is noise; raise adversarial.lr or adversarial.warmup, lower adversarial.lecam, or "
                "take fewer augmentations"
            )

    def of_evaluation(self, psnr: float, counts: bool) -> Iterator[str]:
        """Yield what an evaluation says about the pair: a PSNR that falls much below that before it counted."""
        if not counts or self.before is None:
            self.before = psnr
        elif psnr < self.before - WORSE:
            yield (
                f"reconstructions get worse: {psnr:.2f} dB of PSNR, and {self.before:.2f} before the adversarial loss "
                "counted. Some loss is its price, and that of a perceptual distance beside it; more than 1 dB says "
                "that they outweigh the pixels: lower adversarial.weight or perceptual.weight, or lengthen "
                "adversarial.ramp"
            )
