"""`none`: there is no discriminator."""

from typing import Literal

from smalti.tokenizer.criterion.adversarial.config import AdversarialConfig


class NoAdversarialConfig(AdversarialConfig):
    """No discriminator."""

    kind: Literal["none"] = "none"
    """none"""


@NoAdversarialConfig.register
class NoDiscriminator:
    """No discriminator; a training without one makes none."""
