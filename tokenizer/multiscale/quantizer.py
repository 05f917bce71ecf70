"""The multi-scale residual quantizer: codes on grids from coarse to fine, each of what those before left.

    f = z_e − its mean over images and places,   f̂_0 = 0
    r_s = f − f̂_{s−1}, averaged over areas down to the grid of scale s;   codes_s = its codes, e_s = their vectors
    f̂_s = f̂_{s−1} + φ_s(e_s, brought up to the grid of f bilinearly),   φ_s(e) = (e + conv_s(e)) / 2, 3 x 3;
    of a grid of one place, where nothing is interpolated, φ_s(e) = e
    z_q = f̂_S, with the gradient dL/df = dL/dz_q
    codebook loss   1/S Σ_s mean (sg[f] − f̂_s)²
    commitment loss 1/S Σ_s mean (f − sg[f̂_s])²

Tian et al. (2024, VAR), https://arxiv.org/abs/2404.02905, algorithms 1 and 2; the losses are eq. 3 of van den Oord et
al. (2017) for what the scales so far add up to, the mean over scales, with β on the commitment loss alone. The codebook
loss moves the vectors and φ, which begins as the identity.

The mean is taken away since coarse codes would not survive it: in the first steps the outputs for all images move
together, by more than the area means of a whole image differ from image to image. Of 16 codes fitted to the digits, 19%
were in use on a grid of one place six steps later; without the mean of each batch all were. For evaluation it is
averaged with the weights (`common/ema.py`), since the averaged encoder lags behind as much.

The quantizers inside know places and no grid; this layer does. Where the vectors of a kind are fixed (fsq, lfq), those
of a scale are stretched to what is left for it, which `tokenizer/multiscale/initialization.py` measures. Where a kind
wants encoder outputs on the sphere or within bounds, f is there; residuals are not.

Shapes, for B samples, D channels, P = h · w places of f and T codes of all S scales:
    z_e, z_q  (B, D, P)       indices (B, T), scale after scale, the places of each in raster order
    f, f̂      (B, D, h, w)    left, e (B, D, h_s · w_s)
"""

from collections.abc import Iterator, Sequence
from typing import Any, ClassVar, NamedTuple, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from smalti.common.precision import fp32
from smalti.tokenizer.bottleneck.base import Quantized, Quantizer, Table, build_quantizer
from smalti.tokenizer.bottleneck.config import NearestConfig, SingleConfig, TableConfig
from smalti.tokenizer.bottleneck.estimators import ESTIMATORS
from smalti.tokenizer.bottleneck.losses import codebook_and_commitment

HALF = 0.5  # of φ is the convolution's, as in VAR
WINDOW = 16  # images whose mean is taken away in training: the batch's, and where it is smaller some before too
OF_BEFORE = ("near_mean", "batches")  # in files of before, which had two means


class Phi(nn.Conv2d):
    """φ(e) = (e + conv(e)) / 2, which repairs what interpolation blurs. It begins as the identity."""

    def __init__(self, dim: int):
        super().__init__(dim, dim, 3, padding=1)
        nn.init.dirac_(self.weight)
        assert self.bias is not None
        nn.init.zeros_(self.bias)

    def forward(self, e: Tensor) -> Tensor:
        assert self.bias is not None
        return e.lerp(F.conv2d(e, fp32(self.weight), fp32(self.bias), padding=1), HALF)


class AfterScale(NamedTuple):
    """The result of quantizing f by the scales so far."""

    stage: Quantized  # what the quantizer of the last of them returned, of what was left for it
    f_hat: Tensor  # (B, D, h, w)


class MultiscaleQuantizer(Quantizer):
    """The quantizer of several scales, each with a codebook of its own or all with one."""

    averaged: ClassVar = ("mean",)  # buffers that are averaged with the weights
    mean: Tensor  # (D,) of z_e over the last images
    stretch: Tensor  # (S,) of each scale's vectors, 1 where they are a table's

    def __init__(self, config: SingleConfig, grids: Sequence[tuple[int, int]], *, shared: bool):
        """
        Args:
            config: of the quantizer of every scale.
            grids: (h_s, w_s) of each scale, coarse first; the last is that of f.
            shared: whether all scales have one codebook.
        """
        super().__init__()
        table = isinstance(config, TableConfig)
        of_scale = config.model_copy(update={"normalize": False}) if table else config  # residuals leave the sphere
        bottlenecks = [build_quantizer(of_scale) for _ in range(1 if shared else len(grids))]
        self.config, self.grids, self.shared = config, tuple(grids), shared
        self.on_sphere = isinstance(config, TableConfig) and config.normalize
        self.bottlenecks = cast(
            Sequence[Quantizer], nn.ModuleList(bottlenecks)
        )  # torch types elements as plain modules
        self.phis = nn.ModuleList(Phi(config.dim).requires_grad_(grid != (1, 1)) for grid in self.grids)
        self.register_buffer("mean", torch.zeros(config.dim))
        self.register_buffer("stretch", torch.ones(len(grids)))
        self.estimator = ESTIMATORS[config.gradient if isinstance(config, NearestConfig) else "straight_through"]

    def bottleneck(self, scale: int) -> Quantizer:
        """Return the quantizer of a scale."""
        return self.bottlenecks[0 if self.shared else scale]

    def prepare(self, z_e: Tensor) -> Tensor:
        """Return f of z_e (B, D, P): without its mean, and on the sphere or within bounds where a kind wants it so."""
        if self.training and z_e.numel():
            self.follow(z_e.detach())
        return self.centred(z_e, self.mean)

    def centred(self, z_e: Tensor, mean: Tensor) -> Tensor:
        """Return f of z_e (B, D, P) whose mean is `mean` (D,)."""
        f = z_e - fp32(mean)[:, None]
        return F.normalize(f, dim=1) if self.on_sphere else self.bottlenecks[0].prepare(f)

    @torch.no_grad()
    def follow(self, z_e: Tensor) -> None:
        """Move the mean towards that of a batch z_e (B, D, P); one that is not finite is left out, as its step is."""
        found, finite = z_e.mean((0, 2)).to(self.mean.dtype), z_e.isfinite().all()
        mean = self.mean.lerp(found, min(1.0, len(z_e) / WINDOW))
        self.mean.copy_(torch.where(finite, mean, self.mean))

    @torch.no_grad()
    def center(self, z_e: Tensor) -> None:
        """Set the mean to that of z_e (B, D, P)."""
        self.mean.copy_(z_e.mean((0, 2)))

    def _load_from_state_dict(self, state_dict: dict[str, Tensor], prefix: str, *rest: Any) -> None:
        for name in OF_BEFORE:
            state_dict.pop(f"{prefix}{name}", None)
        super()._load_from_state_dict(state_dict, prefix, *rest)

    def left_for(self, scale: int, f: Tensor, f_hat: Tensor) -> Tensor:
        """Return what a scale quantizes, (B, D, h_s · w_s): the area means of what those before left of f."""
        return F.adaptive_avg_pool2d(f - f_hat, self.grids[scale]).flatten(2)

    def vectors(self, scale: int, indices: Tensor) -> Tensor:
        """Return the vectors (B, D, h_s · w_s) of the codes (B, h_s · w_s) of a scale."""
        return self.bottleneck(scale).lookup(indices) * self.stretch[scale]

    def brought_up(self, scale: int, e: Tensor) -> Tensor:
        """Return what the vectors (B, D, h_s · w_s) of a scale add to f̂, (B, D, h, w)."""
        on_grid = e.unflatten(2, self.grids[scale])
        if self.grids[scale] != self.grids[-1]:
            on_grid = F.interpolate(on_grid, size=self.grids[-1], mode="bilinear", align_corners=False)
        added: Tensor = self.phis[scale](on_grid)
        return added

    def scales(self, f: Tensor) -> Iterator[AfterScale]:
        """Yield what each scale makes of prepared f (B, D, h, w), coarse first."""
        f_hat = torch.zeros_like(f)
        for scale in range(len(self.grids)):
            left = self.left_for(scale, f, f_hat.detach())
            stage = self.bottleneck(scale).quantize(left / self.stretch[scale])
            f_hat = f_hat + self.brought_up(scale, self.vectors(scale, stage.indices))
            yield AfterScale(stage, f_hat)

    def quantize(self, z_e: Tensor) -> Quantized:
        f = z_e.unflatten(2, self.grids[-1])
        after = list(self.scales(f))
        losses = [torch.stack(codebook_and_commitment(f, each.f_hat)) for each in after]
        codebook_loss, commitment_loss = torch.stack(losses).mean(0)
        stages = tuple(each.stage for each in after)
        return Quantized(
            z_q=self.estimator(z_e, after[-1].f_hat.flatten(2)),
            indices=torch.cat([stage.indices for stage in stages], 1),
            codebook_loss=codebook_loss,
            commitment_loss=commitment_loss if self.config.commits else z_e.new_zeros(()),
            regularizer=torch.stack([stage.regularizer for stage in stages]).mean(),
            z_e=z_e,
            stages=(side_by_side(stages),) if self.shared else stages,
        )

    def lookup(self, indices: Tensor) -> Tensor:
        return self.lookup_coarse(indices, len(self.grids))

    def lookup_coarse(self, indices: Tensor, scales: int) -> Tensor:
        """Return f̂ (B, D, P) after the first `scales` of indices (B, T), of which those of later ones are not read."""
        parts = indices.split([h * w for h, w in self.grids], 1)[:scales]
        with torch.autocast(indices.device.type, enabled=False):  # f̂ is what `quantize` found in training
            added = [self.brought_up(scale, self.vectors(scale, part)) for scale, part in enumerate(parts)]
            return torch.stack(added).sum(0).flatten(2)

    def vectors_at(self, depth: int, codes: Tensor) -> Tensor:
        """Return the vectors (N, D) of codes (N,) of a scale, before they are brought up."""
        return self.vectors(depth, codes[:, None])[:, :, 0]

    def tables(self) -> tuple[Table, ...]:
        return tuple(table for bottleneck in self.bottlenecks for table in bottleneck.tables())

    def anneal(self, progress: float) -> None:
        for bottleneck in self.bottlenecks:
            bottleneck.anneal(progress)


def side_by_side(stages: Sequence[Quantized]) -> Quantized:
    """Return what one quantizer made of several scales as if their places lay side by side."""
    indices = torch.cat([stage.indices for stage in stages], 1)
    return stages[0]._replace(indices=indices, z_e=torch.cat([stage.z_e for stage in stages], 2))
