"""Ways between two vectors."""

import math

from torch import Tensor

from smalti.common.errors import UserError

WAYS = ("straight", "sphere")


def between(first: Tensor, last: Tensor, progress: Tensor, way: str) -> Tensor:
    """Return vectors (S, T) from first (1, T) to last (1, T) at progress (S, 1) in [0, 1].

    Over a sphere the direction turns evenly and the length changes evenly (spherical interpolation, White 2016,
    https://arxiv.org/abs/1609.04468); vectors of opposite directions or of length 0 go straight.

    Raises:
        UserError: another way than straight or sphere.
    """
    if way not in ("straight", "sphere"):
        raise UserError(f"way must be 'straight' or 'sphere', got {way!r}")
    straight = first + progress * (last - first)
    lengths = [each.norm(dim=1, keepdim=True) for each in (first, last)]
    cosine = (first * last).sum() / (lengths[0] * lengths[1]).clamp_min(1e-12)
    angle = cosine.clamp(-1, 1).arccos()
    if way == "straight" or not 1e-4 < angle.item() < math.pi - 1e-4 or 0 in (lengths[0].item(), lengths[1].item()):
        return straight
    turned = ((1 - progress) * angle).sin() * first / lengths[0] + (progress * angle).sin() * last / lengths[1]
    return turned / angle.sin() * (lengths[0] + progress * (lengths[1] - lengths[0]))
