"""An exponential moving average of a model's weights."""

import copy
from typing import Generic, TypeVar

import torch
from torch import Tensor, nn

from smalti.common.tensors import check_types

M = TypeVar("M", bound=nn.Module)


class EMA(Generic[M]):
    """`ema.model` is the averaged model, ready for evaluation and export. Parameters are averaged, buffers copied."""

    def __init__(self, model: M, decay: float):
        self.model = copy.deepcopy(model).requires_grad_(False).eval()
        self.decay = decay

    @torch.no_grad()
    def update(self, model: nn.Module, step: int) -> None:
        """Update the average after step `step` (from 0); it is short at first, to forget the initial weights."""
        decay = min(self.decay, (1 + step) / (10 + step))
        pairs = zip(self.model.parameters(), model.parameters(), strict=True)
        trained = [(average, weight) for average, weight in pairs if weight.requires_grad]  # frozen ones stay
        averages, weights = [average for average, _ in trained], [weight for _, weight in trained]
        torch._foreach_lerp_(list[Tensor](averages), list[Tensor](weights), 1 - decay)
        for average, value in zip(self.model.buffers(), model.buffers(), strict=True):
            average.copy_(value)

    def state_dict(self) -> dict[str, Tensor]:
        return self.model.state_dict()

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        check_types(state, self.state_dict())
        self.model.load_state_dict(state)
