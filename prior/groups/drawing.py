"""Batches that are drawn group after group, each in one pass on the keys and values of those before.

R rows of B images (under guidance twice as many: first with the class and then without it), n slots of a group:
x (R, n, C), codes (B, T) in the order of the slots, logits (R · n, V_g).
"""

from collections.abc import Iterator

import torch
import torch.nn.functional as F
from torch import Tensor

from smalti.common.errors import UserError
from smalti.common.mixed_radix import to_index
from smalti.prior.base import Unfolding
from smalti.prior.draw import DIVERGED, draw_categorical, guidance_scales, image_uniforms
from smalti.prior.fast.blocks import CachedBlocks
from smalti.prior.groups.transformer import GroupTransformer
from smalti.prior.sample import Batch
from smalti.prior.sampling_config import Precision, SamplingConfig


class CachedGroups(CachedBlocks):
    """The Transformer that computes one group at a time. It takes the weights as they are when it is made."""

    def __init__(self, prior: GroupTransformer, rows: int, precision: Precision):
        heads, longest = prior.architecture.heads, max(prior.lengths)
        # fp32 as of one input, a transposed matrix, is the fastest for any number of slots; bf16 is packed
        packed_for = 1 if precision == "fp32" else rows * longest
        super().__init__(prior, (heads, heads), rows, len(prior.cos), precision, packed_for)
        self.prior = prior
        with torch.no_grad():
            self.places = prior.places()  # (P, C)
            queries, keys = prior.turns()
            self.turns = torch.complex(*queries)[:, None]  # (P, 1 or heads of both, d / 2)
            if keys is not queries:
                both = (self.turns, torch.complex(*keys)[:, None])
                self.turns = torch.cat([turn.expand(-1, heads, -1) for turn in both], 1)

    def inputs(self, told: Tensor, read: Tensor, group: int) -> Tensor:
        """Return the inputs (R, n, C) of a group, from the class's embeddings (R, C) and vectors of codes (R, P, C)."""
        return self.prior.with_read(self.places[self.prior.groups[group]] + told[:, None], read, group)

    def features(self, x: Tensor, group: int) -> Tensor:
        """Return the features (R · n, C) for the head, from the inputs x (R, n, C) of a group. Overwrites x."""
        R, n, C = x.shape
        slots = self.prior.groups[group]
        x, turns = x.view(R * n, C), self.turns[slots]
        for layer in self.layers:
            q, k, v = (each.view(R, n, self.heads, -1).transpose(1, 2) for each in self.qkv(layer, x, turns))
            layer.keys[:, :, slots], layer.values[:, :, slots] = k, v
            keys, values = layer.keys[:, :, : slots.stop], layer.values[:, :, : slots.stop]
            seen = F.scaled_dot_product_attention(q, keys, values)  # without gradients it beats plain products
            x += layer.out(seen.transpose(1, 2).reshape(R * n, C))
            x += self.mlp(layer, x)
        return self.unit(x) * self.norm


class GroupDrawing:
    """The state of one batch after another, of a prior with one setting."""

    def __init__(self, prior: GroupTransformer, config: SamplingConfig, batch_size: int, precision: Precision):
        self.prior, self.config, self.guided = prior, config, config.guidance != 1
        self.network = CachedGroups(prior, batch_size * (1 + self.guided), precision)
        self.guidance = guidance_scales(config, len(prior.groups)).tolist()

    def passes(self, batch: Batch) -> Iterator[Unfolding]:
        """Yield the codes after each group; those of later groups are zeros, or known."""
        prior, Q, P = self.prior, self.prior.code_depth, self.prior.config.layout.places
        condition, seeds = batch.condition, batch.seeds
        given, known = prior.codes_ordered(batch.latents), prior.ordered(batch.known)
        uniforms = image_uniforms(seeds, P * Q, len(prior.vocabularies)).to(given.device)
        uniforms = prior.codes_ordered(uniforms)
        if self.guided:
            condition = torch.cat([condition, prior.config.condition.none(len(condition), condition.device)])
        told = prior.class_embedding(condition)
        read = told.new_zeros(len(told), P, told.shape[1])
        keeps = bool(known.any())
        codes = given.clone()
        for g, slots in enumerate(prior.groups):
            some = slice(slots.start * Q, slots.stop * Q)
            features = self.network.features(self.network.inputs(told, read, g), g)
            drawn = self._draw(features, g, uniforms[:, some])
            if keeps:
                drawn = torch.where(known[:, slots].repeat_interleave(Q, 1), given[:, some], drawn)
            codes = torch.cat([codes[:, : some.start], drawn, codes[:, some.stop :]], 1)
            read[:, slots] = self._doubled(prior.embedded(drawn, slots.start))
            settled = known.clone()
            settled[:, : slots.stop] = True
            yield Unfolding(prior.codes_placed(codes), prior.placed(settled))

    def _draw(self, features: Tensor, group: int, uniforms: Tensor) -> Tensor:
        """Return the codes (B, n · Q) of a group, from features (R · n, C) and uniforms (B, n · Q, G)."""
        found, Q, codebook = [], self.prior.code_depth, self.prior.codebook(group)
        for depth in range(Q):
            digits: list[Tensor] = []
            for g, size in enumerate(self.prior.vocabularies):
                logits = self.network.logits(features, codebook + depth, [self._doubled(part) for part in digits])
                if self.guided:
                    conditional, unconditional = logits.chunk(2)
                    logits = torch.lerp(unconditional, conditional, self.guidance[group])
                part = draw_categorical(logits, uniforms[:, depth::Q, g].flatten(), self.config)
                if (part >= size).any():  # only NaN gives a code beyond the last
                    raise UserError(DIVERGED)
                digits.append(part)
            found.append(digits[0] if len(digits) == 1 else to_index(torch.stack(digits, -1), self.prior.vocabularies))
        return torch.stack(found, -1).view(len(uniforms), -1)

    def _doubled(self, x: Tensor) -> Tensor:
        """Return x (B, ...) for all R rows: twice under guidance."""
        return torch.cat([x, x]) if self.guided else x
