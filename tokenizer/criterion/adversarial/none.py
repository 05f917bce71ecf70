"""`none`: there is no discriminator."""

from smalti.tokenizer.criterion.adversarial.config import NoAdversarialConfig


@NoAdversarialConfig.register
class NoDiscriminator:
    """No discriminator; a training without one makes none."""
