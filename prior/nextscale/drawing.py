"""Batches that are drawn scale after scale, each scale in one pass on the keys and values of those before.

R rows of B images (under guidance twice as many: first with the class and then without it), n places of a scale:
x (R, n, C), codes (B, T), logits (R · n, V_g).
"""

from collections.abc import Iterator

import torch
import torch.nn.functional as F
from torch import Tensor

from smalti.common.errors import UserError
from smalti.common.mixed_radix import to_index
from smalti.prior.base import Unfolding
from smalti.prior.draw import draw_categorical, guidance_scales, image_uniforms
from smalti.prior.fast.blocks import CachedBlocks
from smalti.prior.nextscale.network import NextScaleTransformer
from smalti.prior.sample import Batch
from smalti.prior.sampling_config import Precision, SamplingConfig


class CachedScales(CachedBlocks):
    """The Transformer that computes one scale at a time. It takes the weights as they are when it is made."""

    def __init__(self, prior: NextScaleTransformer, rows: int, precision: Precision):
        heads, longest = prior.architecture.heads, max(prior.lengths)
        # fp32 as of one input, a transposed matrix, is the fastest for any number of places; bf16 is packed
        packed_for = 1 if precision == "fp32" else rows * longest
        super().__init__(prior, (heads, heads), rows, len(prior.cos), precision, packed_for)
        with torch.no_grad():
            self.places = prior.places()  # (P, C)
        self.interpolation = prior.interpolation

    def inputs(self, told: Tensor, read: Tensor, places: slice) -> Tensor:
        """Return the inputs (R, n, C) of a scale, from the class's embeddings (R, C) and those of codes (R, P, C)."""
        x, first = self.places[places] + told[:, None], places.start
        if not first:
            return x
        return torch.baddbmm(x, self.interpolation[places, :first].expand(len(x), -1, -1), read[:, :first])

    def scale(self, x: Tensor, places: slice) -> Tensor:
        """Return the features (R · n, C) for the head, from the inputs x (R, n, C) of a scale. Overwrites x."""
        R, n, C = x.shape
        x, turns = x.view(R * n, C), self.angles[places, None]
        for layer in self.layers:
            q, k, v = (each.view(R, n, self.heads, -1).transpose(1, 2) for each in self.qkv(layer, x, turns))
            layer.keys[:, :, places], layer.values[:, :, places] = k, v
            keys, values = layer.keys[:, :, : places.stop], layer.values[:, :, : places.stop]
            seen = F.scaled_dot_product_attention(q, keys, values)  # without gradients it beats plain products
            x += layer.out(seen.transpose(1, 2).reshape(R * n, C))
            x += self.mlp(layer, x)
        return self.unit(x) * self.norm


class ScaleDrawing:
    """The state of one batch after another, of a prior with one setting."""

    def __init__(self, prior: NextScaleTransformer, config: SamplingConfig, batch_size: int, precision: Precision):
        self.prior, self.config, self.guided = prior, config, config.guidance != 1
        self.network = CachedScales(prior, batch_size * (1 + self.guided), precision)
        self.guidance = guidance_scales(config, len(prior.scales)).tolist()

    def passes(self, batch: Batch) -> Iterator[Unfolding]:
        """Yield the codes after each scale; those of later scales are zeros, or known."""
        prior, Q, places = self.prior, self.prior.code_depth, self.prior.config.layout.places
        condition, seeds, given, known = batch
        uniforms = image_uniforms(seeds, len(given[0]), len(prior.vocabularies)).to(given.device)
        if self.guided:
            condition = torch.cat([condition, prior.config.condition.none(len(condition), condition.device)])
        told = prior.class_embedding(condition)
        read = told.new_zeros(len(told), places, told.shape[1])
        keeps = bool(known.any())
        codes = given.clone()
        for s, scale in enumerate(prior.scales):
            some = slice(scale.start * Q, scale.stop * Q)
            features = self.network.scale(self.network.inputs(told, read, scale), scale)
            drawn = self._draw(features, s, uniforms[:, some])
            if keeps:
                drawn = torch.where(known[:, scale].repeat_interleave(Q, 1), given[:, some], drawn)
            codes = torch.cat([codes[:, : some.start], drawn, codes[:, some.stop :]], 1)
            read[:, scale] = self._doubled(prior.embedded(drawn, scale.start))
            settled = known.clone()
            settled[:, : scale.stop] = True
            yield Unfolding(codes, settled)

    def _draw(self, features: Tensor, s: int, uniforms: Tensor) -> Tensor:
        """Return the codes (B, n · Q) of scale s, from features (R · n, C) and uniforms (B, n · Q, G)."""
        found, Q = [], self.prior.code_depth
        for depth in range(Q):
            digits: list[Tensor] = []
            for g, size in enumerate(self.prior.vocabularies):
                logits = self.network.logits(features, s * Q + depth, [self._doubled(part) for part in digits])
                if self.guided:
                    conditional, unconditional = logits.chunk(2)
                    logits = torch.lerp(unconditional, conditional, self.guidance[s])
                part = draw_categorical(logits, uniforms[:, depth::Q, g].flatten(), self.config)
                if (part >= size).any():  # only NaN gives a code beyond the last
                    raise UserError(
                        "the prior's logits became NaN or Inf: its weights have diverged, or the file is damaged"
                    )
                digits.append(part)
            found.append(digits[0] if len(digits) == 1 else to_index(torch.stack(digits, -1), self.prior.vocabularies))
        return torch.stack(found, -1).view(len(uniforms), -1)

    def _doubled(self, x: Tensor) -> Tensor:
        """Return x (B, ...) for all R rows: twice under guidance."""
        return torch.cat([x, x]) if self.guided else x
