"""The losses of a discriminator and of the tokenizer it judges, and the weight between the tokenizer's losses.

Shapes: real and fake are the logits (B, n) of each head, of images and of reconstructions; each head counts alike.
"""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

LEAST = 1e-12  # length of a gradient that is divided by


def hinge_loss(real: Sequence[Tensor], fake: Sequence[Tensor]) -> Tensor:
    """Return the discriminator's loss, E max(0, 1 − D(x)) + E max(0, 1 + D(x̂)) (Lim and Ye 2017,
    https://arxiv.org/abs/1705.02894)."""
    return _over_heads([F.relu(1 - a).mean() + F.relu(1 + b).mean() for a, b in zip(real, fake, strict=True)])


def adversarial_loss(fake: Sequence[Tensor]) -> Tensor:
    """Return the tokenizer's loss, −E D(x̂)."""
    return _over_heads([-logits.mean() for logits in fake])


def lecam(real: Sequence[Tensor], fake: Sequence[Tensor], anchors: Tensor) -> Tensor:
    """Return E (D(x) − α_F)² + E (D(x̂) − α_R)² (Tseng et al. 2021, https://arxiv.org/abs/2104.03310, eq. 8).

    Args:
        anchors: (2, heads), α_R and α_F: running means of the logits of images and of reconstructions.
    """
    of_real, of_fake = anchors
    heads = zip(real, fake, of_real, of_fake, strict=True)
    return _over_heads([(a - mean_b).square().mean() + (b - mean_a).square().mean() for a, b, mean_a, mean_b in heads])


def adaptive_weight(rest: Tensor, adversarial: Tensor, most: float) -> Tensor:
    """Return |∇ rest| / |∇ adversarial| of gradients at the decoder's last layer, at most `most` (Esser et al. 2021,
    https://arxiv.org/abs/2012.09841, eq. 7)."""
    return (rest.norm() / adversarial.norm().clamp_min(LEAST)).clamp_max(most)


def accuracy(real: Sequence[Tensor], fake: Sequence[Tensor]) -> Tensor:
    """Return the share of logits with the right sign, images and reconstructions counted alike."""
    pairs = zip(real, fake, strict=True)
    return _over_heads([((a > 0).float().mean() + (b < 0).float().mean()) / 2 for a, b in pairs])


def _over_heads(values: Sequence[Tensor]) -> Tensor:
    return torch.stack([*values]).mean()
