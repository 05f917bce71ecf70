"""The Transformer as a prior: how it draws and walks, and how much memory it takes."""

import torch
from torch import Tensor

from smalti.common.mixed_radix import to_index
from smalti.prior.base import Choose
from smalti.prior.config import PriorConfig
from smalti.prior.fast.matrix import cache_type, resolve
from smalti.prior.sampling_config import Precision, SamplingConfig
from smalti.prior.transformer.config import TransformerConfig
from smalti.prior.transformer.fast.cached import CachedTransformer, NumberedStep
from smalti.prior.transformer.fast.drawing import TransformerDrawing
from smalti.prior.transformer.network import CausalTransformer


@TransformerConfig.register
class TransformerPrior(CausalTransformer):
    """The causal Transformer, with the fast code that computes it one step at a time."""

    compiles = True

    def resolved(self, precision: Precision) -> Precision:
        parts = (*self.blocks.parameters(), *self.head.parameters())
        return resolve(precision, self.device, max(part.numel() for part in parts))

    def drawing(self, config: SamplingConfig, batch_size: int, precision: Precision) -> TransformerDrawing:
        return TransformerDrawing(self, config, batch_size, precision)

    def drawing_bytes(self, config: SamplingConfig, batch_size: int, precision: Precision) -> int:
        return batch_size * image_bytes(self.config, batch_size, config.guidance != 1, precision, self.device)

    @torch.inference_mode()
    def walk(self, condition: Tensor, choose: Choose, hint: Tensor | None = None) -> Tensor:
        decoder = CachedTransformer(self, len(condition), "fp32")
        codes = condition.new_zeros(len(condition), self.config.layout.length)
        for t, codebook in enumerate(self.config.layout.codebook_of().tolist()):
            x, place = self.input_of_step(t, condition, codes[:, t - 1], hint), torch.full_like(condition, t)
            hidden = decoder.step(x, decoder.turns(1 + place, place), NumberedStep(t))
            digits: list[Tensor] = []
            for g in range(len(self.vocabularies)):
                digits.append(choose(decoder.logits(hidden, codebook, digits), t, g))
            codes[:, t] = to_index(torch.stack(digits, dim=-1), self.vocabularies)
        return codes


def image_bytes(config: PriorConfig, batch_size: int, guided: bool, precision: Precision, device: torch.device) -> int:
    """Return the bytes that drawing takes for each image of a batch: cache, stream and logits."""
    a, T = config.architecture, config.layout.length
    assert isinstance(a, TransformerConfig)
    of_code = 2 * a.depth * a.key_heads * a.head_dim * cache_type(precision, batch_size * (1 + guided), device).itemsize
    return (1 + guided) * (of_code * T + 32 * a.dim) + 40 * max(config.vocabularies) + 64 * T
