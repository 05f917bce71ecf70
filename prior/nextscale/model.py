"""The next-scale Transformer as a prior: what it is trained on, its likelihood, how it draws and walks.

Shapes: condition (B, ...), codes (B, T) int64 in [0, K), known (B, P) bool over the places.

Codes of a scale are independent given the class and the scales before, so that log p(codes | class), a sum over all
codes, is exact.
"""

from collections.abc import Iterator, Sequence
from typing import ClassVar

import torch
from torch import Tensor, nn

from smalti.common.mixed_radix import to_index
from smalti.prior.base import Choose, Unfolding
from smalti.prior.code_head import nll_each
from smalti.prior.nextscale.config import NextScaleConfig
from smalti.prior.nextscale.drawing import CachedScales, ScaleDrawing
from smalti.prior.nextscale.network import NextScaleTransformer
from smalti.prior.sample import Batch, PassSampler
from smalti.prior.sampling_config import CODE_SETTINGS, Precision, SamplingConfig


class ScaleSampler(PassSampler):
    """A sampler that keeps the weights laid out and the cache from batch to batch."""

    _drawing: ScaleDrawing | None = None

    def __init__(self, prior: "NextScalePrior", config: SamplingConfig, batch_size: int | None = None):
        super().__init__(prior, config, batch_size)
        self.network = prior

    def passes(self, batch: Batch) -> Iterator[Unfolding]:
        self._drawing = self._drawing or ScaleDrawing(self.network, self.config, self.batch_size, self.precision)
        return self._drawing.passes(batch)

    def release(self) -> None:
        self._drawing = None


@NextScaleConfig.register
class NextScalePrior(NextScaleTransformer):
    """A distribution over the codes of each grid given the class and the coarser grids."""

    takes: ClassVar[frozenset[str]] = CODE_SETTINGS | {"precision"}
    unheeded: ClassVar[str] = (
        "draws grid after grid, coarse first: what is kept in a finer grid than what is drawn is not heeded in drawing "
        "it"
    )
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

        Each unknown code is predicted given all codes of coarser grids, and none of its own and finer ones; this is
        log p given the known codes if no known place lies in a finer grid than an unknown one.
        """
        self.check(codes, condition, known)
        nll = self.loss(codes, condition, self)
        if known is not None:
            nll = nll.masked_fill(known.repeat_interleave(self.code_depth, 1), 0)
        return -nll.sum(1)

    # --------------------------------------------------------------------------------------------------------- drawing

    def sampler(self, config: SamplingConfig, batch_size: int | None = None) -> ScaleSampler:
        self.check_sampling(config)
        return ScaleSampler(self, config, batch_size)

    def heeds(self, known: Tensor) -> bool:
        scale = self.scale_of.to(known.device).expand_as(known)
        last_known = scale.masked_fill(~known, -1).amax(1)
        first_unknown = scale.masked_fill(known, len(self.scales)).amin(1)
        return bool((last_known <= first_unknown).all())

    def drawing_bytes(self, config: SamplingConfig, batch_size: int, precision: Precision) -> int:
        a, P, n = self.architecture, self.config.layout.places, max(self.lengths)
        cached = 4 * P * a.dim * (2 * a.depth + 1)
        of_pass = n * (60 * a.dim + 16 * max(self.vocabularies) + 8 * a.heads * min(P, 256))
        return batch_size * (1 + (config.guidance != 1)) * (cached + of_pass)

    def passes(self, batch: Batch, config: SamplingConfig, precision: Precision) -> Iterator[Unfolding]:
        """Yield the codes after each scale; those of later scales are zeros, or known."""
        return ScaleDrawing(self, config, len(batch.seeds), precision).passes(batch)

    # --------------------------------------------------------------------------------------------------------- walking

    @torch.inference_mode()
    def walk(self, condition: Tensor, choose: Choose) -> Tensor:
        """Return codes (B, T), as `prior.base.Walks` says, scale after scale: a scale's logits are computed at once."""
        B, Q = len(condition), self.code_depth
        network, told = CachedScales(self, B, "fp32"), self.class_embedding(condition)
        read = told.new_zeros(B, self.config.layout.places, told.shape[1])
        codes = condition.new_zeros(B, self.config.layout.length)
        for s, scale in enumerate(self.scales):
            features = network.scale(network.inputs(told, read, scale), scale)
            of_places = features.view(B, -1, features.shape[1])
            first = [network.logits(features, s * Q + depth, []).view(*of_places.shape[:2], -1) for depth in range(Q)]
            for t in range(scale.start * Q, scale.stop * Q):
                i, depth = t // Q - scale.start, t % Q
                digits = [choose(first[depth][:, i], t, 0)]
                for g in range(1, len(self.vocabularies)):
                    digits.append(choose(network.logits(of_places[:, i], s * Q + depth, digits), t, g))
                codes[:, t] = to_index(torch.stack(digits, -1), self.vocabularies)
            read[:, scale] = self.embedded(codes[:, scale.start * Q : scale.stop * Q], scale.start)
        return codes
