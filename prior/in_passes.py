"""A Transformer over codes that draws all of a batch in passes: what the masked prior shares with those of groups.

Shapes: condition (B, ...), codes (B, T) int64 in [0, K).
"""

from abc import abstractmethod
from collections.abc import Iterator, Sequence

import torch
from torch import Tensor, nn

from smalti.common.launch import computes_bf16
from smalti.prior.base import Prior, Unfolding
from smalti.prior.config import PriorConfig, TrainConfig
from smalti.prior.sample import Batch
from smalti.prior.sampling_config import Precision, SamplingConfig


class CodesInPasses(Prior):
    """A distribution over codes by the blocks of `prior/block.py`, which draws in passes."""

    blocks: nn.ModuleList

    def __init__(self, config: PriorConfig):
        super().__init__(config)
        self.vocabularies = config.vocabularies
        self.recompute = False  # set in training: blocks compute their activations again in the backward pass

    @abstractmethod
    def passes(self, batch: Batch, config: SamplingConfig, precision: Precision) -> Iterator[Unfolding]:
        """Yield the codes after each pass, at last as they are returned."""

    def matrices(self) -> list[nn.Parameter]:
        return [p for p in self.blocks.parameters() if p.ndim == 2]

    def prepare(self, c: TrainConfig) -> None:
        super().prepare(c.model_copy(update={"recompute": False}))
        self.recompute = c.recompute

    def resolved(self, precision: Precision) -> Precision:
        """Return the precision to draw in: `auto` is bf16 where the hardware computes it."""
        if precision == "int8":
            raise ValueError(
                f"a prior of kind {self.config.architecture.name()} has no precision int8; take fp32 or bf16"
            )
        if precision == "auto":
            return "bf16" if computes_bf16(self.device.type) else "fp32"
        return precision

    @torch.inference_mode()  # of a generator it is off between the steps, where the caller goes on
    def unfold(self, config: SamplingConfig, condition: Tensor, seeds: Sequence[int]) -> Iterator[Unfolding]:
        self.check_sampling(config)
        layout, B = self.config.layout, len(seeds)
        codes = torch.zeros(B, layout.length, dtype=torch.int64, device=self.device)
        known = torch.zeros(B, layout.places, dtype=torch.bool, device=self.device)
        batch = Batch(condition.to(self.device), list(seeds), codes, known)
        yield from self.passes(batch, config, self.resolved(config.precision))
