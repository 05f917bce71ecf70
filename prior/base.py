"""The contract of a prior over latents, and the protocols that some priors have beside it.

    Prior        has a loss and a sampler: all that training, drawing and the pipeline need
    Scores       says how likely latents are, in nats: evaluation and bits need it
    Walks        gives each code from those before it, one after the other: compression needs it
    Completes    draws the rest of a sample around its known places
    Unfolds      draws a sample whole, in passes that can be watched
    FlowsBack    says how likely vectors are by the path that leads from them to noise

Shapes: condition (B, ...) as `config.condition` has it; latents (B, T) as the layout has them, codes int64
in [0, K) or vectors float32; known (B, P) bool over the places.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from itertools import chain
from pathlib import Path
from typing import Any, ClassVar, NamedTuple, Protocol, Self, runtime_checkable

import torch
from torch import Tensor, nn

from smalti.common import folder
from smalti.common.errors import UserError
from smalti.common.hub import Pretrained
from smalti.prior.config import ArchitectureConfig, PriorConfig, TrainConfig
from smalti.prior.sampling_config import SamplingConfig

Choose = Callable[[Tensor, int, int], Tensor]  # (logits (B, V_g), t, g) -> digits (B,) of part g of code t


class Sampler(Protocol):
    """A sampler of one prior with one setting. It takes the weights as they are when it is made."""

    def __call__(
        self,
        condition: Tensor,
        seeds: Sequence[int],
        latents: Tensor | None = None,
        known: Tensor | None = None,
        progress: Callable[[int], object] = lambda images: None,
    ) -> Tensor:
        """Return latents (B, T), one for each condition (B, ...) and seed; a sample does not depend on the others.

        Args:
            latents: (B, T), read at the known places.
            known: (B, P) bool, places whose latents are kept.
            progress: called with the number of samples of each batch that is done.
        Raises:
            ValueError: not one seed a sample, an unknown condition, or latents or a mask of another shape.
        """


class Prior(nn.Module, Pretrained, ABC):
    """A distribution over the latents of one tokenizer; `config` has its layout, condition, tokenizer and sizes."""

    face, files = "load_prior", folder.MODEL_FILES
    kind: ClassVar[str] = "smalti.prior"  # of the model folder; its config says which architecture
    config_class: ClassVar[type[ArchitectureConfig]]
    takes: ClassVar[frozenset[str]] = frozenset()  # the sampling settings that it heeds, by name
    usual: ClassVar[Mapping[str, Any]] = {}  # its own values of settings that are null
    heeds_all: ClassVar[bool] = False  # whether what it completes is drawn given all that is known, in every kind of it
    unheeded: ClassVar[str] = ""  # the other kinds say here in words what is kept and not heeded: "this prior ..."
    compiles: ClassVar[bool] = False  # whether compiling its training on a CPU was measured to pay, if it is long
    measure: ClassVar[str] = "nll"  # of its loss, by name: nll is in nats where the prior scores

    def __init__(self, config: PriorConfig):
        super().__init__()
        config.architecture.check_over(config.layout)
        self.config = config

    # ---------------------------------------------------------------------------------------------- what a kind decides

    @abstractmethod
    def loss(self, latents: Tensor, condition: Tensor, forward: nn.Module) -> Tensor:
        """Return the loss of each number of latents (B, T), as (B, T).

        Args:
            forward: this module as training wraps it; call it instead of the module, so that processes share gradients.
        """

    @abstractmethod
    def validation(self, latents: Tensor, condition: Tensor, rows: Sequence[int]) -> Tensor:
        """Return the loss of each number of held-out latents, (B, T), without gradients.

        Args:
            rows: the places of the samples in their split; they seed all that is random.
        """

    @abstractmethod
    def sampler(self, config: SamplingConfig, batch_size: int | None = None) -> Sampler:
        """Return a sampler with these settings that draws `batch_size` samples at once; by default what memory holds.

        Raises:
            ValueError: settings that this prior cannot draw with.
        """

    def matrices(self) -> list[nn.Parameter]:
        """Return the weights that are matrices of a layer. They get weight decay, and Muon moves them."""
        return []

    def prepare(self, c: TrainConfig) -> None:
        """Take the training settings that concern this kind. Raises `UserError` for those it cannot follow."""
        if c.recompute:
            raise UserError(f"model.kind {self.config.architecture.name()} has no recompute: leave it out")

    def anneal(self, progress: float) -> None:
        """Set what changes over training, given the share of steps that is done."""

    # ----------------------------------------------------------------------------------------------- what follows of it

    @property
    def device(self) -> torch.device:
        return next(chain(self.parameters(), self.buffers())).device

    def check(self, latents: Tensor, condition: Tensor, known: Tensor | None = None) -> None:
        """Raise ValueError unless latents (B, T), condition (B, ...) and known (B, P) fit this prior."""
        layout = self.config.layout
        what, numbers = ("codes", "whole numbers") if layout.discrete else ("latents", "numbers of floating point")
        if latents.ndim != 2 or latents.shape[1] != layout.length:
            shape = tuple(latents.shape)
            raise ValueError(
                f"{what} must be (B, {layout.length}), the {layout} this prior was trained for; got {shape}"
            )
        if latents.is_floating_point() == layout.discrete or latents.dtype == torch.bool:
            raise ValueError(f"{what} must be {numbers}, got {latents.dtype}")
        if layout.discrete and latents.numel() and not (latents.min() >= 0 and latents.max() < layout.codebook_size):
            raise ValueError(
                f"codes must lie in [0, {layout.codebook_size}), got {latents.min().item()} to {latents.max().item()}"
            )
        if condition.shape[:1] != latents.shape[:1]:
            raise ValueError(
                f"one condition a sample: got {len(latents)} samples and a condition of {tuple(condition.shape)}"
            )
        self.config.condition.check(condition)
        if known is not None and (known.dtype != torch.bool or known.shape != (len(latents), layout.places)):
            raise ValueError(
                f"known must be bool ({len(latents)}, {layout.places}), a mask of each image's places; got "
                f"{known.dtype} {tuple(known.shape)}"
            )

    @property
    def order_in_words(self) -> str:
        """Return the order in which it predicts latents, unless any order will do."""
        return "raster"

    def heeded(self, sampling: SamplingConfig) -> dict[str, Any]:
        """Return the settings that this prior heeds, by name, its own values in the place of nulls."""
        given = sampling.model_dump(mode="json", include=set(self.takes))
        return {name: self.usual.get(name) if value is None else value for name, value in given.items()}

    def not_taken(self, sampling: SamplingConfig) -> list[str]:
        """Return the names of the settings that are not their defaults and that drawing does not read, without those
        of guidance."""
        fields = SamplingConfig.model_fields.items()
        changed = [name for name, field in fields if getattr(sampling, name) != field.default]
        return [name for name in changed if name not in self.takes and not name.startswith("guidance")]

    def check_sampling(self, sampling: SamplingConfig) -> None:
        """Raise ValueError for settings that this prior cannot draw with.

        Those are settings that it does not heed, top_k above K, and guidance without classes or where the prior never
        learnt to predict without a class.
        """
        c = self.config
        for name in self.not_taken(sampling):
            raise ValueError(f"{name} is no setting of a prior of kind {c.architecture.name()}; leave it out")
        if sampling.top_k is not None and c.layout.discrete and sampling.top_k > (most := max(c.vocabularies)):
            parts = len(c.vocabularies)
            of = f"{most} codes there are" if parts == 1 else f"{most} values of each of the {parts} parts of a code"
            raise ValueError(f"top_k {sampling.top_k} is more than the {of}")
        if sampling.guidance != 1 and not c.condition.told:
            raise ValueError("guidance needs a prior with classes; this one is unconditional, leave guidance at 1")
        if sampling.guidance != 1 and "guidance" not in self.takes:
            raise ValueError(f"a prior of kind {c.architecture.name()} has no guidance; leave it at 1")
        if sampling.guidance != 1 and not c.takes_guidance:
            raise ValueError(
                f"guidance {sampling.guidance:g} leans on a prediction without a class, which this prior never learnt: "
                "it was trained with label_dropout 0. Give guidance 1, or train one with --label_dropout 0.1 "
                "(--start_from takes these weights along)"
            )

    # ------------------------------------------------------------------------------------------------------ on the disk

    def save_pretrained(self, path: str | Path) -> None:
        """Write `config.json` and `model.safetensors` into a folder."""
        folder.save_model(Path(path), self, self.config)

    @classmethod
    def from_folder(cls, path: Path) -> Self:
        """Return the prior in a folder that holds one of this class; `load_prior` reads the class from the folder."""
        return folder.load_model(path, cls, PriorConfig)


@runtime_checkable
class Scores(Protocol):
    """A prior that says how likely latents are."""

    exact: bool  # false for a bound, which is then called one wherever it is shown

    def nats(self, latents: Tensor, condition: Tensor, rows: Sequence[int]) -> Tensor:
        """Return −log p of each number of held-out latents given those before it, or its share of the bound, (B, T).

        Args:
            rows: the places of the samples in their split; they seed all that is random.
        """

    def log_prob(self, codes: Tensor, condition: Tensor, known: Tensor | None = None) -> Tensor:
        """Return log p(latents | condition) of each sample, (B,) in nats, or of its unknown places given the others.

        What a bound draws at random belongs to the sample: the same latents give the same figure.

        Raises:
            ValueError: latents, a condition or known places that do not fit this prior.
        """


@runtime_checkable
class FlowsBack(Protocol):
    """A prior that leads vectors to noise along a flow, whose change of volume says how likely they are."""

    def flow_nats(self, latents: Tensor, condition: Tensor) -> Tensor:
        """Return an estimate of −log p of each number of held-out latents by the flow, (B, T); it is no bound."""


@runtime_checkable
class Walks(Protocol):
    """A prior that gives the distribution of each code, one after the other."""

    vocabularies: tuple[int, ...]  # number of values of each part in which a code is predicted

    def walk(self, condition: Tensor, choose: Choose) -> Tensor:
        """Return codes (B, T). `choose` gives their parts one after another, each from its logits given those before.

        Encoder and decoder must compute exactly the same numbers, so both walk here: the parallel forward of training
        rounds its sums differently.
        """


@runtime_checkable
class Completes(Protocol):
    """A prior whose sampler draws the rest of a sample around its known places."""

    def heeds(self, known: Tensor) -> bool:
        """Return whether the rest is drawn given all known places, (B, P) bool; if not, `Prior.unheeded` says why."""


class Unfolding(NamedTuple):
    """A batch of samples after one of the passes that draw them."""

    latents: Tensor  # (B, T), the best guess so far
    settled: Tensor | None  # (B, P) bool, places that stay as they are; None where all move until the last pass


@runtime_checkable
class Unfolds(Protocol):
    """A prior that draws a sample whole, in passes."""

    def unfold(self, config: SamplingConfig, condition: Tensor, seeds: Sequence[int]) -> Iterator[Unfolding]:
        """Yield the samples of conditions (B, ...) and seeds after each pass, at last as the sampler returns them."""
