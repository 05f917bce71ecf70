"""The gated PixelCNN as a prior over codes.

Shapes: condition (B, ...), codes (B, T) in raster order, the Q codes of a place side by side; features (B, C, h, w);
x (B, T, C) what the head reads; logits (B, T, V).

The stacks give the features of each place from the places before it. If a place has several codes, they are predicted
one after another, each from the place's features and an embedding of the codes before it. So every code has an exact
probability.
"""

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn

from smalti.common.errors import UserError
from smalti.common.mixed_radix import to_digits, to_index
from smalti.prior.autoregressive import HintedPrior
from smalti.prior.base import Choose
from smalti.prior.code_head import CodeHead, embedding_rows
from smalti.prior.config import PriorConfig
from smalti.prior.draw import DIVERGED, draw_categorical, guidance_scales, image_uniforms
from smalti.prior.layers import RMSNorm, SwiGLU, hidden_width
from smalti.prior.pixelcnn.config import PixelCNNConfig
from smalti.prior.pixelcnn.network import RowByRow, Stacks
from smalti.prior.sampling_config import Precision, SamplingConfig


def rectangle(config: PriorConfig) -> tuple[int, int]:
    """Return (h, w) of the codes. Raises `UserError` unless they lie in rows and columns of one grid."""
    if config.layout.rectangle is None:
        several = len(config.layout.grids) > 1 and len(config.layout.grids[0].shape) == 2
        other = "levels, which has a PixelCNN for each with --model.top.kind and --model.rest.kind pixelcnn"
        raise UserError(
            f"a PixelCNN needs one grid of rows and columns, and these are {config.layout}; take model.kind "
            f"{other if several else 'transformer'}"
        )
    return config.layout.rectangle


@PixelCNNConfig.register
class PixelCNNPrior(HintedPrior):
    """A gated PixelCNN over one grid of codes, in raster order."""

    first_rows: Tensor  # (T, G)

    def __init__(self, config: PriorConfig):
        super().__init__(config)
        a = config.architecture
        assert isinstance(a, PixelCNNConfig)
        self.architecture = a
        self.height, self.width = rectangle(config)
        self.class_embedding = config.condition.embedding(a.dim)
        self.code_embedding = nn.Embedding(config.layout.depth * sum(self.vocabularies), a.dim)
        self.stacks = Stacks(a.dim, a.depth, a.kernel, a.dropout)
        self.place_norm = RMSNorm(a.dim) if config.layout.depth > 1 else None
        self.place_mlp = SwiGLU(a.dim, hidden_width(a.dim)) if config.layout.depth > 1 else None
        self.norm = RMSNorm(a.dim)
        self.head = CodeHead(config, a.dim)
        self.register_buffer("first_rows", embedding_rows(config), persistent=False)
        for name, parameter in self.named_parameters():
            if "embedding" in name:
                nn.init.normal_(parameter, std=0.2)
        nn.init.zeros_(self.head.weight)  # the first NLL is ln K

    @property
    def hint_dim(self) -> int:
        return self.architecture.dim

    def forward(
        self, condition: Tensor, codes: Tensor, order: Tensor | None = None, hint: Tensor | None = None
    ) -> Tensor:
        assert order is None, "a PixelCNN has raster order alone"
        c = self.config
        digits = to_digits(codes, self.vocabularies)
        embedded = rearrange(self.embed(digits, slice(None)), "b (p q) c -> b p q c", q=c.layout.depth)
        grid = rearrange(embedded.sum(2), "b (h w) c -> b c h w", h=self.height)
        features = self.stacks(grid, self.class_embedding(condition), self.by_rows(hint))
        features = rearrange(features, "b c h w -> b (h w) c")
        before = embedded.cumsum(2) - embedded  # the sum of the codes before each at its place
        each = [self.at_depth(features, before[:, :, q], q) for q in range(c.layout.depth)]
        return self.head(self.norm(rearrange(torch.stack(each, 2), "b p q c -> b (p q) c")), digits)

    def by_rows(self, hint: Tensor | None) -> Tensor | None:
        """Return a hint (B, P, C) in rows and columns, (B, h, w, C)."""
        return None if hint is None else rearrange(hint, "b (h w) c -> b h w c", h=self.height)

    def embed(self, digits: Tensor, places: slice | int) -> Tensor:
        """Return embeddings (..., C) of digits (..., T, G) at places of the sequence, or (..., G) at one place."""
        return self.code_embedding(digits + self.first_rows[places]).sum(-2)

    def at_depth(self, features: Tensor, before: Tensor, depth: int) -> Tensor:
        """Return the input of the head at this depth, from features (..., C) and the embedded codes before it there."""
        if depth == 0 or self.place_mlp is None or self.place_norm is None:
            return features
        return features + self.place_mlp(self.place_norm(features + before))

    def matrices(self) -> list[nn.Parameter]:
        inside = [self.stacks, *([self.place_mlp] if self.place_mlp is not None else [])]
        return [p for module in inside for p in module.parameters() if p.ndim == 2]

    def resolved(self, precision: Precision) -> Precision:
        if precision not in ("auto", "fp32"):
            raise ValueError(f"precision {precision}: a PixelCNN draws in fp32 alone; leave it at auto")
        return "fp32"

    def drawing(self, config: SamplingConfig, batch_size: int, precision: Precision) -> "PixelCNNDrawing":
        return PixelCNNDrawing(self, config, batch_size)

    def drawing_bytes(self, config: SamplingConfig, batch_size: int, precision: Precision) -> int:
        a, width = self.architecture, self.width
        kept = a.depth * a.dim * width * (2 + a.kernel // 2 + 2)  # of a layer: what is above, rows, and the row so far
        rows = 1 + (config.guidance != 1)
        return 4 * batch_size * (rows * kept + 8 * max(self.vocabularies) + 8 * self.config.layout.length)

    @torch.inference_mode()
    def walk(self, condition: Tensor, choose: Choose, hint: Tensor | None = None) -> Tensor:
        steps, found = CachedPixelCNN(self, condition, hint=hint), list[Tensor]()
        for t in range(self.config.layout.length):
            digits: list[Tensor] = []
            for g in range(len(self.vocabularies)):
                digits.append(choose(steps.logits(t, digits), t, g))
            found.append(to_index(torch.stack(digits, dim=-1), self.vocabularies))
            steps.put(t, found[-1])
        return torch.stack(found, dim=1)


class CachedPixelCNN:
    """A PixelCNN that computes one code after another and keeps what earlier codes gave.

    For each code t, call `logits(t, digits)` for those of its parts that are wanted, and then `put(t, code)`.
    """

    def __init__(self, prior: PixelCNNPrior, condition: Tensor, known: int = 0, hint: Tensor | None = None):
        """
        Args:
            condition: (R, ...), a row each.
            known: places at the beginning whose codes are only put; whole rows of them skip the horizontal stack.
            hint: (R, P, C).
        """
        self.prior = prior
        self.Q = prior.config.layout.depth
        self.width = prior.width
        self.first_place = known // self.width * self.width
        embedded = prior.class_embedding(condition)
        self.rows = RowByRow(prior.stacks, embedded, self.width, prior.by_rows(hint))
        self.matrices = [matrix.float() for matrix in prior.head.matrices()]  # each (Q, V_g, C)
        self.place = -1
        self.x = embedded
        self.features = torch.zeros_like(embedded)  # of the place
        self.before = self.features  # the sum of its embedded codes so far

    def logits(self, t: int, digits: list[Tensor]) -> Tensor:
        """Return logits (R, V_g) of part g of code t, whose parts before are `digits`, each (R,)."""
        depth = t % self.Q
        if not digits:
            self.begin(t)
            self.x = self.prior.norm(self.prior.at_depth(self.features, self.before, depth))
        return F.linear(self.prior.head.after(self.x, digits), self.matrices[len(digits)][depth])

    def begin(self, t: int) -> None:
        """Compute the features of the place of code t, once."""
        place, depth = divmod(t, self.Q)
        if depth == 0 and place >= self.first_place and self.place != place:
            self.features, self.before = self.rows.features(place % self.width), torch.zeros_like(self.before)
            self.place = place

    def put(self, t: int, code: Tensor) -> None:
        """Take code t (R,); calling `logits` before it is not necessary."""
        place, depth = divmod(t, self.Q)
        self.begin(t)
        self.before = (0 if depth == 0 else self.before) + self.prior.embed(to_digits(code, self.prior.vocabularies), t)
        if depth + 1 == self.Q:
            self.rows.put(place % self.width, self.before)
            if place % self.width + 1 == self.width:
                self.rows.end_row()


class PixelCNNDrawing:
    """The state of a batch that is drawn: R = B rows, or under guidance 2 B, first with the class, then without."""

    def __init__(self, prior: PixelCNNPrior, config: SamplingConfig, batch_size: int):
        self.prior = prior
        self.config = config
        self.size = batch_size
        self.guided = config.guidance != 1
        self.scales = guidance_scales(config, prior.config.layout.length).to(prior.device)

    def draw(
        self,
        condition: Tensor,
        seeds: list[int],
        codes: Tensor,
        order: Tensor,
        given: Tensor,
        lead: int,
        hint: Tensor | None = None,
    ) -> Tensor:
        c, b = self.prior.config, len(condition)
        pad = torch.arange(self.size, device=condition.device).clamp_max(b - 1)  # pads with the last image
        padded, codes = condition[pad], codes[pad].clone()
        given = given[pad].repeat_interleave(c.layout.depth, 1)
        rows = torch.cat([padded, c.condition.none(self.size, padded.device)]) if self.guided else padded
        uniforms = image_uniforms(seeds, c.layout.length, len(self.prior.vocabularies))[pad.cpu()].to(condition.device)
        steps = CachedPixelCNN(self.prior, rows, lead, None if hint is None else self._doubled(hint[pad]))
        for t in range(c.layout.length):
            if t >= lead * c.layout.depth:
                codes[:, t] = torch.where(given[:, t], codes[:, t], self._code(steps, t, uniforms[:, t]))
            steps.put(t, self._doubled(codes[:, t]))
        return codes[:b]

    def _code(self, steps: CachedPixelCNN, t: int, uniforms: Tensor) -> Tensor:
        """Draw code t, (B,), with uniforms (B, G)."""
        parts: list[Tensor] = []
        for u in uniforms.unbind(1):
            logits = steps.logits(t, [self._doubled(part) for part in parts])
            if self.guided:
                conditional, unconditional = logits.chunk(2)
                logits = torch.lerp(unconditional, conditional, self.scales[t])
            drawn = draw_categorical(logits, u, self.config)
            if (drawn >= logits.shape[1]).any():  # only NaN gives a code beyond the last
                raise UserError(DIVERGED)
            parts.append(drawn)
        return to_index(torch.stack(parts, dim=-1), self.prior.vocabularies)

    def _doubled(self, x: Tensor) -> Tensor:
        """Return x (B, ...) for all R rows: twice under guidance."""
        return torch.cat([x, x]) if self.guided else x
