"""Keep a codebook alive between optimizer steps: its moving averages, and the revival of dead codes.

    observe(quantized)      every micro-batch: count codes, sum what each was given, remember some z_e
    step(...)               every optimizer step, after it: move an EMA codebook; every `REVIVE_EVERY` steps, revive
    discard()               instead of it, when the step is not taken

Counts and sums are summed over processes and micro-batches before they are used, and a dead code is put where all
processes agree, so codebooks cannot drift apart. A revived code's averages start afresh with it (a stale sum would
overwrite it in the next step), and so do its optimizer moments and its averaged weights.

EMA codebook: van den Oord et al. (2017), appendix A.1; revival: Dhariwal et al. (2020), sec. 3.1, here drawn in
proportion to the squared distance to the nearest code, as k-means++ draws.
"""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from accelerate import Accelerator
from einops import rearrange
from torch import Tensor

from smalti.common.tensors import check_types
from smalti.tokenizer.bottleneck.base import Quantized, Table
from smalti.tokenizer.bottleneck.vq_ema import EMAVectorQuantizer
from smalti.tokenizer.kmeans.clustering import assigned
from smalti.tokenizer.nearest import nearest_indices

REVIVE_EVERY = 10
USE_DECAY = 0.8  # of the average over windows of REVIVE_EVERY steps
GRACE = 3.0  # times `revive_below`, of the use of a new code: one that is never chosen is dead after 5 windows
CANDIDATES = 4096  # vectors a process offers


class TableUpkeep:
    """The upkeep of one table of K vectors; its tensors are part of the training state."""

    def __init__(self, table: Table, *, revive_below: float):
        K, D = table.config.codebook_size, table.config.code_dim
        self.table, self.revive_below = table, revive_below
        device = table.codebook.device
        self.grace = min(1.0, GRACE * revive_below)
        self.use = torch.full((K,), self.grace, device=device)  # average, in units of even use
        self.window = torch.zeros(K, device=device)  # counts since the last revival
        self.counts = torch.ones(K, device=device)  # of the EMA codebook: N_i in eq. 6 of appendix A.1
        self.sums = table.vectors.detach().clone()  # of the EMA codebook: m_i in eq. 7
        self._step_counts, self._step_sums = torch.zeros(K, device=device), torch.zeros(K, D, device=device)
        self._offered = torch.empty(0, D, device=device)

    def state_dict(self, accelerator: Accelerator) -> dict[str, Tensor]:
        """Return the state. All processes call this: each has counted its own window, and goes on with their mean."""
        window = accelerator.reduce(self.window, "mean")
        return {"use": self.use, "window": window, "counts": self.counts, "sums": self.sums}

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        """Load a state. Raises KeyError or ValueError for other names, shapes or types than `state_dict` gives."""
        for name in ("use", "window", "counts", "sums"):
            kept, tensor = getattr(self, name), state[name]
            check_types({name: tensor}, {name: kept})
            if tensor.shape != kept.shape:  # `copy_` would repeat it
                raise ValueError(f"{name} must be {tuple(kept.shape)}, got {tuple(tensor.shape)}")
            kept.copy_(tensor)

    @torch.no_grad()
    def observe(self, quantized: Quantized) -> None:
        vectors = rearrange(quantized.z_e, "b d p -> (b p) d").detach()
        counts, sums = assigned(vectors, self.table.assignments(quantized).flatten(), len(self.use))
        self._step_counts += counts
        self._step_sums += sums
        self._offered = vectors

    def discard(self) -> None:
        self._step_counts.zero_()
        self._step_sums.zero_()

    @torch.no_grad()
    def step(self, accelerator: Accelerator, step: int, *, revive: bool) -> Tensor:
        """Update the table after optimizer step `step`. Returns the revived rows (R,), the same on every process."""
        self.window += self._step_counts
        if isinstance(self.table, EMAVectorQuantizer):
            self._move(self.table, accelerator.reduce(self._step_counts), accelerator.reduce(self._step_sums))
        self.discard()
        if (step + 1) % REVIVE_EVERY:
            return torch.empty(0, dtype=torch.int64, device=self.use.device)
        counts = accelerator.reduce(self.window)
        self.use.lerp_(counts * len(counts) / counts.sum().clamp_min(1), 1 - USE_DECAY)
        self.window.zero_()
        dead = (self.use < self.revive_below).nonzero()[:, 0]
        return self._revive(accelerator, dead) if revive and len(dead) else dead[:0]

    def _move(self, table: EMAVectorQuantizer, counts: Tensor, sums: Tensor) -> None:
        decay = table.config.decay
        self.counts.lerp_(counts, 1 - decay)
        self.sums.lerp_(sums, 1 - decay)
        means = self.sums / self.counts.clamp_min(1e-5)[:, None]
        means = F.normalize(means, dim=1) if table.config.normalize else means
        table.codebook.copy_(torch.where(self.counts[:, None] > 1e-5, means, table.codebook))

    def _revive(self, accelerator: Accelerator, dead: Tensor) -> Tensor:
        number = len(self._offered)  # at a coarse scale, one vector an image: fewer than the candidates, or the dead
        place = torch.arange(CANDIDATES, device=dead.device)
        chosen = torch.randperm(number, device=dead.device)[place % number]  # seeded by (seed, step, rank)
        offered, first = accelerator.gather((self._offered[chosen], place < number))  # the same on every process
        vectors = self.table.vectors
        distances = (offered - vectors[nearest_indices(offered, vectors)]).square().sum(1)
        dead = dead[: min(CANDIDATES, int(first.sum()))]
        # An exponential race draws without replacement in proportion to distance; its noise is a function of place.
        noise = torch.rand(len(offered), generator=torch.Generator().manual_seed(len(dead))).to(dead.device)
        race = (distances + 1e-12).log() - (-noise.clamp_min(1e-12).log()).log()
        race = race.masked_fill(~first, -torch.inf)  # two codes at one vector would leave one of them dead
        drawn = offered[race.topk(len(dead)).indices]
        self.table.place(dead, drawn)
        self.restart(dead)
        return dead

    @torch.no_grad()
    def restart(self, rows: Tensor) -> None:
        """Let the averages of codes that were put elsewhere begin afresh."""
        self.use[rows] = self.grace
        self.counts[rows] = self.counts.mean()
        self.sums[rows] = self.table.vectors[rows] * self.counts[rows][:, None]


class CodebookUpkeep:
    """The upkeep of all tables of a tokenizer: none, one, or one a depth."""

    def __init__(self, tables: Sequence[Table], *, revive_below: float):
        self.revive_below = revive_below
        self.tables = [TableUpkeep(table, revive_below=revive_below) for table in tables]

    def state_dict(self, accelerator: Accelerator) -> dict[str, Tensor]:
        """Return the state of all tables; all processes call this."""
        states = enumerate(table.state_dict(accelerator) for table in self.tables)
        return {f"{i}.{name}": tensor for i, state in states for name, tensor in state.items()}

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        for i, table in enumerate(self.tables):
            mine = {name.partition(".")[2]: tensor for name, tensor in state.items() if name.startswith(f"{i}.")}
            table.load_state_dict(mine)

    def observe(self, quantized: Quantized | None) -> None:
        stages = () if quantized is None else quantized.stages or (quantized,)
        for table, stage in zip(self.tables, stages, strict=False):  # fsq and lfq have none
            table.observe(stage)

    def discard(self) -> None:
        for table in self.tables:
            table.discard()

    def step(self, accelerator: Accelerator, step: int, *, revive: bool) -> list[Tensor]:
        """Update all tables after optimizer step `step`. Returns the revived rows (R,) of each."""
        return [table.step(accelerator, step, revive=revive) for table in self.tables]

    def restart(self, table: Table) -> None:
        """Let all averages of one of the tables begin afresh, which was fitted once more."""
        for each in self.tables:
            if each.table is table:
                each.restart(torch.arange(len(each.use), device=each.use.device))


@torch.no_grad()
def forget(optimizer: torch.optim.Optimizer, parameter: Tensor, rows: Tensor) -> None:
    """Clear the optimizer's moments of some rows of a parameter: a revived code has no past."""
    for value in optimizer.state.get(parameter, {}).values():
        if value.shape == parameter.shape:
            value[rows] = 0
