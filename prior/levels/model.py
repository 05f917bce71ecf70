"""A prior for each grid of a hierarchy, coarse first, each told of the grids above:

    log p(codes | class) = Σ_g log p_g(codes of grid g | class, grids before g)

which is exact where each p_g is. The p_g share no weight: training is on the sum of their losses, and each loss moves
its own. Over a fine grid it is cheaper than one Transformer over all codes, whose attention grows with the square of
their number. (Razavi et al. 2019, VQ-VAE-2, https://arxiv.org/abs/1906.00446, sec. 3.2.)

Shapes: condition (B, ...), codes (B, T) int64 in [0, K), grid after grid; logits (B, T, V); hint (B, P, C) of the P
places of a grid.
"""

from collections.abc import Sequence
from typing import ClassVar, cast

import torch
from torch import Tensor, nn

from smalti.common.errors import UserError
from smalti.common.layout import Layout
from smalti.common.seeds import seed_for
from smalti.prior.autoregressive import AutoregressivePrior, HintedPrior
from smalti.prior.base import Choose
from smalti.prior.config import PriorConfig, TrainConfig
from smalti.prior.levels.config import LevelsConfig
from smalti.prior.levels.hint import Hint
from smalti.prior.prediction_order import raster
from smalti.prior.sampling_config import Precision, SamplingConfig

COPIES = 16  # of the stream of a hint's network in fp32 while it is computed


@LevelsConfig.register
class LevelsPrior(AutoregressivePrior):
    """A prior for each grid, in raster order; the sampler draws grid after grid."""

    unheeded: ClassVar[str] = (
        "draws each grid in raster order, given the coarser ones: what is kept of finer grids, or below or right of "
        "what is drawn, is not heeded in drawing it"
    )

    def __init__(self, config: PriorConfig):
        super().__init__(config)
        a, layout = config.architecture, config.layout
        assert isinstance(a, LevelsConfig)
        if len(layout.grids) == 1:
            raise UserError(
                f"model.kind levels needs several grids, coarse first, as of a tokenizer of kind vqvae2; these are "
                f"{layout}: take model.kind {a.top.name()}"
            )
        self.architecture = a
        self.numbers = [grid.length for grid in layout.grids]
        self.places = [grid.places for grid in layout.grids]
        parts = [_part(config, grid) for grid in range(len(layout.grids))]
        hints = [Hint(config, a.hint, grid, parts[grid].hint_dim) for grid in range(1, len(layout.grids))]
        self.parts = cast(Sequence[HintedPrior], nn.ModuleList(parts))  # torch types its elements as plain modules
        self.hints = nn.ModuleList(hints)

    def forward(self, condition: Tensor, codes: Tensor, order: Tensor | None = None) -> Tensor:
        assert order is None, "levels have raster order alone"
        each = zip(self.parts, codes.split(self.numbers, 1), strict=True)
        return torch.cat([part(condition, own, hint=self.hint(g, codes)) for g, (part, own) in enumerate(each)], dim=1)

    def hint(self, grid: int, codes: Tensor) -> Tensor | None:
        """Return what the codes (B, ≥ T') of the grids above tell the prior of a grid, (B, P, C); None for the top."""
        return self.hints[grid - 1](codes[:, : sum(self.numbers[:grid])]) if grid else None

    def matrices(self) -> list[nn.Parameter]:
        of_hints = [p for hint in self.hints for p in cast(Hint, hint).blocks.parameters() if p.ndim == 2]
        return [p for part in self.parts for p in part.matrices()] + of_hints

    def prepare(self, c: TrainConfig) -> None:
        super().prepare(c.model_copy(update={"recompute": False}))
        for part in self.parts:
            part.prepare(c)

    def resolved(self, precision: Precision) -> Precision:
        """Return the precision as it is: each grid's prior resolves it by itself. Raises ValueError if one cannot."""
        for part in self.parts:
            part.resolved(precision)
        return precision

    def drawing(self, config: SamplingConfig, batch_size: int, precision: Precision) -> "LevelsDrawing":
        return LevelsDrawing(self, config, batch_size, precision)

    def drawing_bytes(self, config: SamplingConfig, batch_size: int, precision: Precision) -> int:
        rows = batch_size * (1 + (config.guidance != 1))
        of_hints = sum(
            rows * number * part.hint_dim + COPIES * batch_size * sum(self.places[:g]) * self.architecture.hint.dim
            for g, (part, number) in enumerate(zip(self.parts, self.numbers, strict=True))
            if g
        )
        of_parts = (part.drawing_bytes(config, batch_size, part.resolved(precision)) for part in self.parts)
        return sum(of_parts) + 4 * of_hints

    @torch.inference_mode()
    def walk(self, condition: Tensor, choose: Choose) -> Tensor:
        codes = torch.zeros(len(condition), 0, dtype=torch.int64, device=condition.device)
        for g, part in enumerate(self.parts):

            def of_grid(logits: Tensor, t: int, part: int, first: int = codes.shape[1]) -> Tensor:
                return choose(logits, first + t, part)

            codes = torch.cat([codes, part.walk(condition, of_grid, self.hint(g, codes))], dim=1)
        return codes


class LevelsDrawing:
    """The state of a batch that is drawn, grid after grid. Under a schedule, guidance rises over each grid anew."""

    def __init__(self, prior: LevelsPrior, config: SamplingConfig, batch_size: int, precision: Precision):
        self.prior = prior
        self.size = batch_size
        self.drawings = [part.drawing(config, batch_size, part.resolved(precision)) for part in prior.parts]

    def draw(
        self, condition: Tensor, seeds: list[int], codes: Tensor, order: Tensor, given: Tensor, lead: int
    ) -> Tensor:
        """Return codes (b, T) of at most B images, as `prior.sample.Drawing` says; their order is raster order."""
        b, first, drawn = len(condition), 0, list(codes.split(self.prior.numbers, 1))
        pad = torch.arange(self.size, device=codes.device).clamp_max(b - 1)  # a hint does not depend on the batch
        for g, (drawing, known) in enumerate(zip(self.drawings, given.split(self.prior.places, 1), strict=True)):
            lead_there = min(max(lead - first, 0), known.shape[1])
            if not known.all():
                hint = self.prior.hint(g, torch.cat(drawn, 1)[pad])
                own = raster(b, known.shape[1], codes.device)
                own_seeds = [seed_of(seed, g) for seed in seeds]
                told = None if hint is None else hint[:b]
                drawn[g] = drawing.draw(condition, own_seeds, drawn[g], own, known, lead_there, told)
            first += known.shape[1]
        return torch.cat(drawn, 1)


def seed_of(seed: int, grid: int) -> int:
    """Return the seed from which a grid of a sample is drawn; of the top it is the sample's own."""
    return seed if grid == 0 else seed_for(seed, grid)


def _part(config: PriorConfig, grid: int) -> HintedPrior:
    """Return the prior of one grid."""
    architecture = config.architecture
    assert isinstance(architecture, LevelsConfig)
    own = architecture.rest if grid else architecture.top
    layout = Layout(grids=(config.layout.grids[grid],))
    part = own.builds(config.model_copy(update={"layout": layout, "architecture": own}))
    assert isinstance(part, HintedPrior)  # of every kind of `LevelArchitecture`
    return part
