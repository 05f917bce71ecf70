"""A batch that the Transformer draws step by step: its state is at fixed addresses, so that a graph can be captured.

TransformerDrawing.draw: condition (b,), seeds, codes (b, T), order and given (b, P)  ->  codes (b, T)
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from smalti.common.errors import UserError
from smalti.prior.draw import DIVERGED, draw_categorical, guidance_scales, image_uniforms
from smalti.prior.prediction_order import code_order
from smalti.prior.sampling_config import Precision, SamplingConfig
from smalti.prior.transformer.fast.cached import CachedTransformer, CountedStep, NumberedStep, Step
from smalti.prior.transformer.fast.graph import Graphs
from smalti.prior.transformer.network import CausalTransformer, own_rows


class TransformerDrawing:
    """The state of one batch on the device, at fixed addresses. In tables of all steps, row n belongs to step n.

    R = B rows, or under guidance 2 B: first with the class and then without it.
    """

    def __init__(self, prior: CausalTransformer, config: SamplingConfig, batch_size: int, precision: Precision):
        layout, device = prior.config.layout, prior.device
        self.prior = prior
        self.config = config
        self.size = batch_size
        self.guided = config.guidance != 1
        self.device = device
        self.T = layout.length
        self.Q = layout.depth
        self.codebooks = layout.codebook_of().to(device)  # (T,)
        self.mixed = prior.config.any_order and len(layout.grids) > 1  # rows of a step may be at different grids
        self.codebook_of_step = [0] * self.T if self.mixed else self.codebooks.tolist()
        rows = batch_size * (1 + self.guided)
        self.decoder = CachedTransformer(prior, rows, precision)
        self.scales = guidance_scales(config, self.T).to(device)
        self.sizes = torch.tensor(prior.vocabularies, device=device)  # of the G parts of a code
        self.worth = self.sizes.flip(0).cumprod(0).flip(0) // self.sizes
        first = torch.arange(layout.codebooks, device=device)[:, None] * sum(prior.vocabularies)
        self.first_rows = first + prior.first_rows[0]  # (codebooks, G), in the embedding table
        self.x = torch.zeros(rows, prior.architecture.dim, device=device)  # the embedding of the code before
        self.order = torch.zeros(self.T, rows, dtype=torch.int64, device=device)  # the place each step predicts
        self.own = torch.zeros_like(self.order)  # the place of the code before, as a row of the table of angles
        self.uniforms = torch.zeros(self.T, len(self.sizes), batch_size, device=device)
        self.given = torch.zeros(self.T, batch_size, dtype=torch.bool, device=device)
        self.codes = torch.zeros_like(self.given, dtype=torch.int64)  # in the order; given, then drawn
        self.highest = torch.zeros(len(self.sizes), batch_size, dtype=torch.int64, device=device)  # drawn of each part
        self.hint: Tensor | None = None  # (T, R, C) of the place that each step predicts, where there is one
        self.graphs: Graphs | None = None
        if device.type == "cuda":
            self.graphs = Graphs(self.decoder.slots, self.codebook_of_step, device)

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
        """Return codes (b, T) of at most B images, as `prior.sample.HintedDrawing` says."""
        b, start = len(condition), lead * self.Q
        pad = torch.arange(self.size, device=self.device).clamp_max(b - 1)  # pads with the last image
        steps = code_order(order[pad], self.Q)
        forced = bool(given[:, lead:].any())  # in raster order a later code may be known
        hint = None if hint is None else self._doubled(hint[pad])
        if hint is not None and self.hint is None:  # a drawing has a hint always or never
            self.hint = torch.zeros(self.T, *self.x.shape, device=self.device)
        if self.graphs is not None:
            self.graphs.capture(self._advance_counted, forced)
        if hint is not None and self.hint is not None:
            self.hint.copy_(self.prior.hint_of_steps(hint, self._doubled(steps)).transpose(0, 1))
        self.uniforms.copy_(image_uniforms(seeds, self.T, len(self.sizes))[pad.cpu()].permute(1, 2, 0))
        self.order.copy_(self._doubled(steps).T)
        self.own.copy_(own_rows(self.order.T).T)
        self.codes.copy_(codes[pad].gather(1, steps).T)
        self.highest.zero_()
        self.given.copy_(given[pad].repeat_interleave(self.Q, 1).T)
        rows = condition[pad]
        if self.guided:
            rows = torch.cat([rows, self.prior.config.condition.none(self.size, self.device)])
        self._begin(rows, self._doubled(steps), start, hint)
        if self.graphs is not None:
            self.graphs.run(start, self.T, forced)
        else:
            for n in range(start, self.T):
                self._advance(NumberedStep(n), self.codebook_of_step[n], forced)
        if (self.highest >= self.sizes[:, None]).any():  # only NaN gives a code beyond the last
            raise UserError(DIVERGED)
        return torch.empty_like(steps).scatter_(1, steps, self.codes.T)[:b]

    def _begin(self, condition: Tensor, steps: Tensor, start: int, hint: Tensor | None) -> None:
        """Read the class and the known codes at the beginning of the order, except the last: the next step reads it."""
        if start == 0:
            self.x.copy_(self.prior.class_embedding(condition))
            return
        known = self._doubled(self.codes[: start - 1].T)
        self.decoder.prefill(
            self.prior.inputs(condition, known, steps, hint), 1 + self.order[:start].T, self.own[:start].T
        )
        self._read_back(self.codes[start - 1], self._codebook(self.order[start - 1], self.codebook_of_step[start - 1]))

    def _advance_counted(self, n: Tensor, length: int, codebook: int, forced: bool) -> None:
        self._advance(CountedStep(n, length), codebook, forced)

    def _advance(self, step: Step, codebook_of_step: int, forced: bool) -> None:
        """Do one step: from the embedding of the code before, draw the next code and embed it."""
        order = step.read(self.order)
        codebook = self._codebook(order, codebook_of_step)
        x = self.x + F.embedding(order, self.prior.target_embedding)
        if self.hint is not None:
            x += step.read(self.hint)
        hidden = self.decoder.step(x, self.decoder.turns(1 + order, step.read(self.own)), step)
        parts: list[Tensor] = []
        for u in step.read(self.uniforms).unbind(0):
            logits = self.decoder.logits(hidden, codebook, [self._doubled(part) for part in parts])
            if self.guided:
                conditional, unconditional = logits.chunk(2)
                logits = torch.lerp(unconditional, conditional, step.read(self.scales))
            drawn, number = draw_categorical(logits, u, self.config), logits.shape[1]
            torch.maximum(self.highest[len(parts)], drawn, out=self.highest[len(parts)])
            parts.append(drawn.clamp_max(number - 1))
        code = parts[0] if len(parts) == 1 else torch.stack(parts, dim=-1).mul_(self.worth).sum(-1)
        if forced:
            code = torch.where(step.read(self.given), step.read(self.codes), code)
        step.write(self.codes, code)
        self._read_back(code, codebook)

    def _codebook(self, order: Tensor, codebook_of_step: int) -> int | Tensor:
        """Return the codebook of a step's codes; (R,) where rows may be at different grids, at the places `order`."""
        return self.codebooks[order] if self.mixed else codebook_of_step

    def _read_back(self, code: Tensor, codebook: int | Tensor) -> None:
        """Embed a code (B,) of a codebook, or of one a row (R,), as the input of the next step."""
        if isinstance(codebook, Tensor):
            codebook = codebook[: self.size]
        if len(self.sizes) == 1:
            embedded = F.embedding(code + codebook * self.prior.vocabularies[0], self.prior.code_embedding.weight)
        else:
            rows = code[:, None] // self.worth % self.sizes + self.first_rows[codebook]  # (B, G)
            embedded = F.embedding(rows, self.prior.code_embedding.weight).sum(1)
        self.x.copy_(self._doubled(embedded))

    def _doubled(self, x: Tensor) -> Tensor:
        """Return x (B, ...) for all R rows: twice under guidance."""
        return torch.cat([x, x]) if self.guided else x
