"""An exponential moving average of a model's weights."""

import copy
from typing import Generic, TypeVar

import torch
from torch import Tensor, nn

from smalti.common.tensors import check_types

M = TypeVar("M", bound=nn.Module)


class EMA(Generic[M]):
    """`ema.model` is the averaged model, ready for evaluation and export.

    Parameters are averaged, and so are the buffers that a module names in `averaged`; other buffers are copied.
    """

    def __init__(self, model: M, decay: float):
        self.model = copy.deepcopy(model).requires_grad_(False).eval()
        self.decay = decay

    @torch.no_grad()
    def update(self, model: nn.Module, step: int) -> None:
        """Update the average after step `step` (from 0); it is short at first, to forget the initial weights."""
        decay = min(self.decay, (1 + step) / (10 + step))
        pairs = zip(self.model.parameters(), model.parameters(), strict=True)
        trained = [(average, weight) for average, weight in pairs if weight.requires_grad]  # frozen ones stay
        modules = zip(self.model.modules(), model.modules(), strict=True)
        named = [(getattr(a, name), getattr(b, name)) for a, b in modules for name in getattr(b, "averaged", ())]
        trained += named
        averages, weights = [average for average, _ in trained], [weight for _, weight in trained]
        torch._foreach_lerp_(list[Tensor](averages), list[Tensor](weights), 1 - decay)
        kept = {id(average) for average, _ in named}
        for average, value in zip(self.model.buffers(), model.buffers(), strict=True):
            if id(average) not in kept:
                average.copy_(value)

    def state_dict(self) -> dict[str, Tensor]:
        return self.model.state_dict()

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        check_types(state, self.state_dict())
        self.model.load_state_dict(state)
