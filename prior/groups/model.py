"""A prior over groups of codes: what it is trained on, its likelihood, how it draws and walks.

Shapes: condition (B, ...), codes (B, T) int64 in [0, K), known (B, P) bool over the places.

Codes of a group are independent given the class and the groups before, so that log p(codes | class), a sum over all
codes, is exact.
"""

from collections.abc import Iterator, Sequence
from typing import ClassVar

import torch
from torch import Tensor, nn

from smalti.common.mixed_radix import to_index
from smalti.prior.base import Choose, Unfolding
from smalti.prior.code_head import nll_each
from smalti.prior.groups.drawing import CachedGroups, GroupDrawing
from smalti.prior.groups.transformer import GroupTransformer
from smalti.prior.sample import Batch, PassSampler
from smalti.prior.sampling_config import CODE_SETTINGS, Precision, SamplingConfig


class GroupSampler(PassSampler):
    """A sampler that keeps the weights laid out and the cache from batch to batch."""

    _drawing: GroupDrawing | None = None

    def __init__(self, prior: "GroupPrior", config: SamplingConfig, batch_size: int | None = None):
        self.network = prior
        super().__init__(prior, config, batch_size)

    @property
    def rows(self) -> int:
        return min(self.network.lengths) * (2 if self.config.guidance != 1 else 1)

    def passes(self, batch: Batch) -> Iterator[Unfolding]:
        self._drawing = self._drawing or GroupDrawing(self.network, self.config, self.batch_size, self.precision)
        return self._drawing.passes(batch)

    def release(self) -> None:
        self._drawing = None


class GroupPrior(GroupTransformer):
    """A distribution over the codes of each group given the class and the groups before."""

    takes: ClassVar[frozenset[str]] = CODE_SETTINGS | {"precision"}
    exact = True

    # ------------------------------------------------------------------------------------------------------ in training

    def loss(self, latents: Tensor, condition: Tensor, forward: nn.Module) -> Tensor:
        return nll_each(forward(condition, latents), latents, self.vocabularies)

    @torch.no_grad()
    def validation(self, latents: Tensor, condition: Tensor, rows: Sequence[int]) -> Tensor:
        return self.loss(latents, condition, self)

    # --------------------------------------------------------------------------------------------------------- scoring

    def nats(self, latents: Tensor, condition: Tensor, rows: Sequence[int]) -> Tensor:
        return self.validation(latents, condition, rows)

    @torch.no_grad()
    def log_prob(self, codes: Tensor, condition: Tensor, known: Tensor | None = None) -> Tensor:
        """Return log p(codes | condition) of each image, or of its unknown codes, (B,) in nats.

        Each unknown code is predicted given all codes of earlier groups, and none of its own and later ones; this is
        log p given the known codes if no known place lies in a later group than an unknown one.
        """
        self.check(codes, condition, known)
        nll = self.loss(codes, condition, self)
        if known is not None:
            nll = nll.masked_fill(known.repeat_interleave(self.code_depth, 1), 0)
        return -nll.sum(1)

    # --------------------------------------------------------------------------------------------------------- drawing

    def sampler(self, config: SamplingConfig, batch_size: int | None = None) -> GroupSampler:
        self.check_sampling(config)
        return GroupSampler(self, config, batch_size)

    def heeds(self, known: Tensor) -> bool:
        known = self.ordered(known.to(self.device))
        group = self.group_of.expand_as(known)
        last_known = group.masked_fill(~known, -1).amax(1)
        first_unknown = group.masked_fill(known, len(self.groups)).amin(1)
        return bool((last_known <= first_unknown).all())

    def drawing_bytes(self, config: SamplingConfig, batch_size: int, precision: Precision) -> int:
        a, P, n = self.architecture, self.config.layout.places, max(self.lengths)
        cached = 4 * P * a.dim * (2 * a.depth + 1)
        of_pass = n * (60 * a.dim + 16 * max(self.vocabularies) + 8 * a.heads * min(P, 256))
        return batch_size * (1 + (config.guidance != 1)) * (cached + of_pass)

    def passes(self, batch: Batch, config: SamplingConfig, precision: Precision) -> Iterator[Unfolding]:
        """Yield the codes after each group; those of later groups are zeros, or known."""
        return GroupDrawing(self, config, len(batch.seeds), precision).passes(batch)

    # --------------------------------------------------------------------------------------------------------- walking

    @torch.inference_mode()
    def walk(self, condition: Tensor, choose: Choose) -> Tensor:
        """Return codes (B, T), as `prior.base.Walks` says, group after group: a group's logits are computed at once."""
        B, Q, layout = len(condition), self.code_depth, self.config.layout
        network, told = CachedGroups(self, B, "fp32"), self.class_embedding(condition)
        read = told.new_zeros(B, layout.places, told.shape[1])
        codes = condition.new_zeros(B, layout.length)  # in the order of the slots
        number = self.codes_ordered(torch.arange(layout.length, device=self.device)[None])[0].tolist()
        for group, slots in enumerate(self.groups):
            features, codebook = network.features(network.inputs(told, read, group), group), self.codebook(group)
            of_slots = features.view(B, -1, features.shape[1])
            first = [network.logits(features, codebook + depth, []).view(*of_slots.shape[:2], -1) for depth in range(Q)]
            for n in range(slots.start * Q, slots.stop * Q):
                i, depth = n // Q - slots.start, n % Q
                digits = [choose(first[depth][:, i], number[n], 0)]
                for g in range(1, len(self.vocabularies)):
                    digits.append(choose(network.logits(of_slots[:, i], codebook + depth, digits), number[n], g))
                codes[:, n] = to_index(torch.stack(digits, -1), self.vocabularies)
            read[:, slots] = self.embedded(codes[:, slots.start * Q : slots.stop * Q], slots.start)
        return self.codes_placed(codes)
