"""One batch that the Transformer draws, step by step: the state at fixed addresses, so that a step can be a captured
graph.

TransformerDrawing.draw: condition (b,), seeds, codes (b, T), order and given (b, P)  ->  codes (b, T)
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from smalti.common.errors import UserError
from smalti.prior.draw import Precision, SamplingConfig, draw_categorical, guidance_scales, image_uniforms
from smalti.prior.prediction_order import code_order
from smalti.prior.transformer.fast.cached import CachedTransformer, CountedStep, NumberedStep, Step
from smalti.prior.transformer.fast.graph import Graphs
from smalti.prior.transformer.network import CausalTransformer, own_rows


class TransformerDrawing:
    """The state of one batch on the device, at fixed addresses; of all steps' tables, row n belongs to step n.

    R = B rows, or 2 B under guidance: with the class above, without it below.
    """

    def __init__(self, prior: CausalTransformer, config: SamplingConfig, batch_size: int, precision: Precision):
        c, device = prior.config, prior.device
        self.prior, self.config, self.size, self.guided, self.device = (
            prior,
            config,
            batch_size,
            config.guidance != 1,
            device,
        )
        self.T, self.Q, rows = c.layout.length, c.layout.depth, batch_size * (1 + self.guided)
        self.decoder = CachedTransformer(prior, rows, precision)
        self.scales = guidance_scales(config, self.T).to(device)
        self.sizes = torch.tensor(prior.vocabularies, device=device)  # of the G parts of a code
        self.worth = self.sizes.flip(0).cumprod(0).flip(0) // self.sizes
        self.x = torch.zeros(rows, prior.architecture.dim, device=device)  # the embedding of the code before
        self.order = torch.zeros(self.T, rows, dtype=torch.int64, device=device)  # the place each step predicts
        self.own = torch.zeros_like(self.order)  # and where the code before stands, as a row of the table of angles
        self.uniforms = torch.zeros(self.T, len(self.sizes), batch_size, device=device)
        self.given = torch.zeros(self.T, batch_size, dtype=torch.bool, device=device)
        self.codes = torch.zeros(
            self.T, batch_size, dtype=torch.int64, device=device
        )  # in the order; given, then drawn
        self.highest = torch.zeros(len(self.sizes), batch_size, dtype=torch.int64, device=device)  # drawn of each part
        self.graphs = (
            Graphs(self._advance_counted, self.decoder.slots, self.Q, device) if device.type == "cuda" else None
        )

    def draw(
        self, condition: Tensor, seeds: list[int], codes: Tensor, order: Tensor, given: Tensor, lead: int
    ) -> Tensor:
        """Up to B images whose order begins with `lead` known places: codes (b, T), order and given (b, P) -> codes (b,
        T)."""
        b, start = len(condition), lead * self.Q
        pad = torch.arange(self.size, device=self.device).clamp_max(b - 1)  # the last image again
        steps = code_order(order[pad], self.Q)
        forced = bool(given[:, lead:].any())  # a code known further on, in raster order
        if self.graphs is not None:
            self.graphs.capture(forced)
        self.uniforms.copy_(image_uniforms(seeds, self.T, len(self.sizes))[pad.cpu()].permute(1, 2, 0))
        self.order.copy_(self._doubled(steps).T)
        self.own.copy_(own_rows(self.order.T).T)
        self.codes.copy_(codes[pad].gather(1, steps).T)
        self.highest.zero_()
        self.given.copy_(given[pad].repeat_interleave(self.Q, 1).T)
        told = condition[pad]
        if self.guided:
            told = torch.cat([told, self.prior.config.condition.none(self.size, self.device)])
        self._begin(told, self._doubled(steps), start)
        if self.graphs is not None:
            self.graphs.run(start, self.T, forced)
        else:
            for n in range(start, self.T):
                self._advance(NumberedStep(n), n % self.Q, forced)
        if (self.highest >= self.sizes[:, None]).any():  # beyond the last code, which no probability is
            raise UserError("the prior's logits became NaN or Inf: its weights have diverged, or the file is damaged")
        return torch.empty_like(steps).scatter_(1, steps, self.codes.T)[:b]

    def _begin(self, condition: Tensor, steps: Tensor, start: int) -> None:
        """Read the class and the codes that the order begins with, but for the last of them, which the next step
        reads."""
        if start == 0:
            self.x.copy_(self.prior.class_embedding(condition))
            return
        known = self._doubled(self.codes[: start - 1].T)
        self.decoder.prefill(self.prior.inputs(condition, known, steps), 1 + self.order[:start].T, self.own[:start].T)
        self._read_back(self.codes[start - 1], (start - 1) % self.Q)

    def _advance_counted(self, n: Tensor, length: int, depth: int, forced: bool) -> None:
        self._advance(CountedStep(n, length), depth, forced)

    def _advance(self, step: Step, depth: int, forced: bool) -> None:
        """One step: from the embedding of the code before to the next code and its embedding."""
        order = step.read(self.order)
        x = self.x + F.embedding(order, self.prior.target_embedding)
        hidden = self.decoder.step(x, self.decoder.turns(1 + order, step.read(self.own)), step)
        parts: list[Tensor] = []
        for u in step.read(self.uniforms).unbind(0):
            logits = self.decoder.logits(hidden, depth, [self._doubled(part) for part in parts])
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
        self._read_back(code, depth)

    def _read_back(self, code: Tensor, depth: int) -> None:
        """What the next step reads of a code (B,) at a depth of its place."""
        if len(self.sizes) == 1:
            embedded = F.embedding(code + depth * self.prior.vocabularies[0], self.prior.code_embedding.weight)
        else:
            rows = code[:, None] // self.worth % self.sizes + self.prior.first_rows[depth]  # (B, G)
            embedded = F.embedding(rows, self.prior.code_embedding.weight).sum(1)
        self.x.copy_(self._doubled(embedded))

    def _doubled(self, x: Tensor) -> Tensor:
        """x (B, ...) -> (R, ...)."""
        return torch.cat([x, x]) if self.guided else x
