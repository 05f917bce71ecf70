"""What a prior over latents is: the contract, and what some priors offer beyond it.

    Prior        a loss to train by, and a sampler: all that training, drawing and the pipeline need
    Scores       how likely latents are: nats, evaluation and tuning by them
    Walks        each code from those before it, one after the other: compression
    Completes    the rest of a sample around what is known of it

Shapes: condition (B, ...) as `config.condition` has it; latents (B, T) as the layout has them, codes int64
in [0, K) or vectors float32; known (B, P) bool over the places.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import ClassVar, Protocol, Self, runtime_checkable

import torch
from torch import Tensor, nn

from smalti.common import folder
from smalti.common.errors import UserError
from smalti.common.hub import Pretrained
from smalti.prior.config import ArchitectureConfig, PriorConfig, TrainConfig
from smalti.prior.draw import SamplingConfig

Choose = Callable[[Tensor, int, int], Tensor]  # (logits (B, V_g), t, g) -> digits (B,) of part g of code t


class Sampler(Protocol):
    """Draws from one prior with one setting. The weights are taken as they are when it is made."""

    def __call__(
        self,
        condition: Tensor,
        seeds: Sequence[int],
        latents: Tensor | None = None,
        known: Tensor | None = None,
        progress: Callable[[int], object] = lambda images: None,
    ) -> Tensor:
        """Return latents (B, T), a sample for each condition (B, ...) and seed, whatever else is drawn.

        Args:
            latents: (B, T), read at the known places.
            known: (B, P) bool, places whose latents are kept.
            progress: called with the number of samples of each batch that is done.
        Raises:
            ValueError: not one seed a sample, a condition the prior does not know, latents or a mask of another shape.
        """


class Prior(nn.Module, Pretrained, ABC):
    """`config` says the layout, the classes, whose latents these are, and the sizes."""

    face, files = "load_prior", folder.MODEL_FILES
    kind: ClassVar[str] = "smalti.prior"  # of the folder; which architecture stands in its config
    config_class: ClassVar[type[ArchitectureConfig]]
    takes: ClassVar[frozenset[str]] = frozenset()  # names of the settings of sampling that it heeds, guidance apart

    def __init__(self, config: PriorConfig):
        super().__init__()
        self.config = config

    # ---------------------------------------------------------------------------------------------- what a kind decides

    @abstractmethod
    def loss(self, latents: Tensor, condition: Tensor, forward: nn.Module) -> Tensor:
        """Return what each number of latents (B, T) adds to the loss, (B, T): nats where the prior scores.

        Args:
            forward: this module as training wraps it; it is called and not the module, so that processes share
                gradients.
        """

    @abstractmethod
    def validation(self, latents: Tensor, condition: Tensor, rows: Sequence[int]) -> Tensor:
        """Return what each number of held-out latents costs, (B, T), without gradients: nats where the prior scores.

        Args:
            rows: the places of the samples in their split, by which whatever is random is drawn.
        """

    @abstractmethod
    def sampler(self, config: SamplingConfig, batch_size: int | None = None) -> Sampler:
        """Return what draws with these settings, `batch_size` samples at once, or as many as memory holds.

        Raises:
            ValueError: settings that this prior cannot draw with.
        """

    def matrices(self) -> list[nn.Parameter]:
        """Return the weights that are matrices of a layer: weight decay is theirs, and Muon moves them."""
        return []

    def prepare(self, c: TrainConfig) -> None:
        """Take what a training says of this kind. Raises `UserError` for what it cannot do."""
        if c.recompute:
            raise UserError(f"recompute is not there for model.kind {self.config.architecture.name()}: leave it away")

    def anneal(self, progress: float) -> None:
        """Set what changes over training, as a function of the share of steps done."""

    # ----------------------------------------------------------------------------------------------- what follows of it

    @property
    def device(self) -> torch.device:
        return next(self.parameters()).device

    def check(self, latents: Tensor, condition: Tensor, known: Tensor | None = None) -> None:
        """Raise ValueError unless latents (B, T), condition (B, ...) and known places (B, P) are such as it was trained
        for."""
        layout = self.config.layout
        what, numbers = ("codes", "whole numbers") if layout.discrete else ("latents", "numbers of floating point")
        if latents.ndim != 2 or latents.shape[1] != layout.length:
            told = tuple(latents.shape)
            raise ValueError(
                f"{what} must be (B, {layout.length}), the {layout} this prior was trained for; got {told}"
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

    def check_sampling(self, sampling: SamplingConfig) -> None:
        """Raise ValueError for settings that this prior cannot draw with: those it does not heed, top_k above K,
        guidance without classes or without a prediction that was learnt without them."""
        c = self.config
        for name, field in SamplingConfig.model_fields.items():
            if name not in self.takes and not name.startswith("guidance") and getattr(sampling, name) != field.default:
                raise ValueError(f"{name} is no setting of a prior of kind {c.architecture.name()}; leave it away")
        if sampling.top_k is not None and sampling.top_k > c.layout.codebook_size:
            raise ValueError(f"top_k {sampling.top_k} is more than the {c.layout.codebook_size} codes there are")
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
        """Return the prior in a folder that holds one of this class; `smalti.prior.model.load_prior` asks the
        folder."""
        return folder.load_model(path, cls, PriorConfig)


@runtime_checkable
class Scores(Protocol):
    """A prior that says how likely latents are."""

    exact: bool  # or a bound, which is then named one wherever it stands

    def log_prob(self, codes: Tensor, condition: Tensor, known: Tensor | None = None) -> Tensor:
        """Return log p(latents | condition) of each sample, (B,), or of its unknown places given the known, in nats.

        Raises:
            ValueError: latents, condition or known places that are not of this prior.
        """


@runtime_checkable
class Walks(Protocol):
    """A prior whose codes have a distribution one after the other."""

    vocabularies: tuple[int, ...]  # values of each part in which a code is predicted

    def walk(self, condition: Tensor, choose: Choose) -> Tensor:
        """Return codes (B, T), whose parts `choose` says one after another, each from its logits once those before are
        known.

        Who codes and who decodes must compute the very same numbers, so both walk here; the parallel forward of
        training rounds its sums otherwise.
        """


@runtime_checkable
class Completes(Protocol):
    """A prior whose sampler draws the rest of a sample around known places."""

    def heeds(self, known: Tensor) -> bool:
        """Return whether all that is known, (B, P) bool, is heeded in drawing the rest."""
