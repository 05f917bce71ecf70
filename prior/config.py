"""The config of a prior, which is saved beside its weights as `config.json`, and the settings of its training."""

from typing import Any, ClassVar, Literal

from pydantic import Field, model_validator

from smalti.common.choices import Precision, Tracker
from smalti.common.codes_info import CodesInfo, TokenizerIdentity
from smalti.common.condition import Condition
from smalti.common.config import Kind, Settings
from smalti.common.errors import UserError
from smalti.common.latent_statistics import LatentStatistics
from smalti.common.layout import Layout

LARGEST_VOCABULARY = 16_384  # with more rows, embedding and head would outweigh the blocks between them
PART_VOCABULARY = 1024  # values of a part at most, where a code is predicted in parts
LONGEST = 2**16  # numbers an image at most


class ArchitectureConfig(Kind):
    """The settings of a prior that no other stage decides: of any kind, trained or fitted."""

    kinds: ClassVar[dict[str, Any]] = {}
    usual: ClassVar[str] = "transformer"
    listed_in: ClassVar[str | None] = "smalti.prior.kinds"
    over: ClassVar[Literal["codes", "vectors"] | None] = None  # what it is a distribution over; null is either

    def check_over(self, layout: Layout) -> None:
        """Raise `UserError` unless a sample of this layout is what this kind is a distribution over."""
        if self.over == "vectors" and layout.discrete:
            raise UserError(
                f"model.kind {self.name()} is over vectors, and a sample is {layout}: for codes prior/train.py trains "
                "--model.kind transformer, masked, nextset, nextscale, levels and pixelcnn, and prior/fit.py fits "
                "independent ones; for vectors encode with --vectors true, which writes those of the codebook, or take "
                "a VAE in stage one"
            )
        if self.over == "codes" and not layout.discrete:
            raise UserError(
                f"model.kind {self.name()} is over codes, and a sample is {layout}: over vectors prior/train.py trains "
                "--model.kind diffusion, and prior/fit.py has --model.kind mixture and standard_normal"
            )

    @property
    def any_order(self) -> bool:
        """Return whether this kind can be trained to predict the places in every order."""
        return False

    def no_order(self) -> str:
        """Return why it is not trained in every order."""
        return f"order: a prior of kind {self.name()} is not trained in an order of one's choice; leave order out"

    @property
    def unit_variance(self) -> bool:
        """Return whether this kind is of vectors whose channels are shifted and scaled to mean 0 and deviation 1."""
        return False


class TrainedArchitecture(ArchitectureConfig):
    """A prior that prior/train.py trains by gradient. Each such kind has a class under this one."""

    kinds: ClassVar[dict[str, Any]] = {}
    made_by: ClassVar[str | None] = "prior/train.py"


class LevelArchitecture(TrainedArchitecture):
    """A prior that can be one of several, a grid each, in prior/levels/: it predicts code after code and takes a hint
    (prior/autoregressive.py:HintedPrior). Each such kind has a class under this one."""

    kinds: ClassVar[dict[str, Any]] = {}


class FittedArchitecture(ArchitectureConfig):
    """A prior that prior/fit.py makes without a gradient. Each such kind has a class under this one."""

    kinds: ClassVar[dict[str, Any]] = {}
    usual: ClassVar[str] = "mixture"
    made_by: ClassVar[str | None] = "prior/fit.py"

    @property
    def by_class(self) -> bool:
        """Return whether it is fitted to the rows of each class; otherwise it has nothing to fit, and is told of no
        class."""
        raise NotImplementedError


class PriorConfig(Settings):
    """A prior over the codes of one tokenizer. The codes dataset decides all but the architecture."""

    later: ClassVar[frozenset[str]] = frozenset({"statistics"})

    layout: Layout
    """what stands where in a sample"""
    condition: Condition
    """what each sample is conditioned on"""
    tokenizer: TokenizerIdentity
    """whose codes these are"""
    architecture: ArchitectureConfig
    """depth and widths"""
    any_order: bool = False
    """trained to predict the places in every order; otherwise in raster order alone"""
    codes: str | None = None
    """fingerprint of the codes it is trained on; null where an earlier version trained it"""
    hidden: float | None = Field(None, ge=0, le=1)
    """share of the training rows without a condition, hidden by label_dropout or missing; null if not recorded"""
    statistics: LatentStatistics | None = None
    """mean and deviation of the vectors' channels, by which they get unit variance; null where they stay as they are"""

    @model_validator(mode="after")
    def _short_enough(self) -> "PriorConfig":
        if self.layout.length > LONGEST:
            raise ValueError(f"{self.layout} are {self.layout.length} numbers, at most {LONGEST}")
        if self.any_order and not self.architecture.any_order:
            raise ValueError(self.architecture.no_order())
        if (self.statistics is not None) != self.architecture.unit_variance:
            said = "has none; take the whole folder again, or train again" if self.statistics is None else "has some"
            needed = "needs" if self.architecture.unit_variance else "has no use for"
            raise ValueError(
                f"a prior of kind {self.architecture.name()} {needed} statistics, mean and deviation of each channel "
                f"of its vectors, and this one {said}"
            )
        if self.statistics is not None:
            self.statistics.check(self.layout)
        return self

    @classmethod
    def over(
        cls,
        info: CodesInfo,
        architecture: ArchitectureConfig,
        *,
        condition: Condition | None = None,
        any_order: bool = False,
        codes: str | None = None,
        hidden: float | None = None,
    ) -> "PriorConfig":
        """Return the config of a prior over a codes dataset, with the dataset's condition or the one given."""
        condition = info.condition if condition is None else condition
        statistics = info.statistics if architecture.unit_variance else None
        architecture.check_over(info.layout)
        if architecture.unit_variance and statistics is None:
            raise UserError(
                "these vectors have no statistics in codes.json, by which they get unit variance: an earlier version "
                "wrote them; remove their folder and encode again"
            )
        return cls(
            layout=info.layout,
            tokenizer=info.tokenizer,
            architecture=architecture,
            condition=condition,
            any_order=any_order,
            codes=codes,
            hidden=hidden if condition.told else None,
            statistics=statistics,
        )

    @property
    def vocabularies(self) -> tuple[int, ...]:
        """Return the number of values of each part in which a code is embedded and predicted; their product is K.

        A code has one part if K is at most `LARGEST_VOCABULARY` or the code is a single digit. Otherwise neighbouring
        digits are grouped into parts.
        """
        if self.layout.codebook_size <= LARGEST_VOCABULARY:
            return (self.layout.codebook_size,)
        groups = [1]
        for digit in self.layout.factors:
            if groups[-1] > 1 and groups[-1] * digit > PART_VOCABULARY:
                groups.append(1)
            groups[-1] *= digit
        return tuple(groups)

    @property
    def knows_none(self) -> bool:
        """Return whether the prior learnt to predict without a condition, as far as the config says."""
        return not self.condition.told or self.hidden != 0

    @property
    def takes_guidance(self) -> bool:
        """Return whether guidance is possible: there is a condition, and the prior learnt to predict without it."""
        return self.condition.told and self.knows_none


class TrainConfig(Settings):
    """Train a prior, the second stage."""

    run: str = "runs/digits"
    """folder of the experiment; this stage reads its subfolder codes/ and writes into prior/"""
    codes: str | None = None
    """another folder of codes"""
    model: TrainedArchitecture = Field(default_factory=TrainedArchitecture.default)
    """sizes; K, the grid and the classes are read from the codes"""
    condition: Literal["labels", "nothing"] = "labels"
    """labels: samples by class, where the codes have labels; nothing: unconditional all the same"""
    order: Literal["raster", "any", "annealed"] = "raster"
    """order in which codes are predicted. raster: row after row; any: every image's places in a new random order each
    time, so that any part of an image can be completed from any other; annealed: from any to raster, as in RAR (Yu et
    al. 2024)"""
    label_dropout: float = Field(0.1, ge=0, lt=1)
    """share of training rows whose class is hidden, so that guidance has an unconditional prediction"""
    start_from: str | None = None
    """weights to begin from instead of random ones: a folder of a model, run or pipeline of ours, or a Hub repository
    owner/name; settings of model that are not given are then taken from there"""
    change_settings: bool = False
    """go on with lr and other settings of the steps to come as they are given now, and keep the old ones in
    history.jsonl"""
    steps: int = Field(1000, ge=1)
    """optimizer steps"""
    batch_size: int = Field(128, ge=1, le=2**24)
    """rows an optimizer step, over all processes and micro-batches"""
    accumulate: int = Field(1, ge=1)
    """micro-batches an optimizer step"""
    lr: float = Field(3e-3, gt=0)
    """peak learning rate of AdamW, which moves embeddings, norms and head"""
    matrix_lr: float | None = Field(0.02, gt=0)
    """peak learning rate of Muon (Jordan et al. 2024), which moves the matrices inside the blocks and needs half the
    steps; null leaves them to AdamW"""
    warmup: int | None = Field(None, ge=0)
    """steps of linear warm-up, before half a cosine down to 0; a tenth of all, and at most 100, when null"""
    weight_decay: float = Field(0.05, ge=0)
    """of the matrices inside the blocks; a PixelCNN has few, its convolutions have no decay"""
    clip: float = Field(1.0, gt=0)
    """largest norm of the gradient"""
    ema_decay: float = Field(0.999, ge=0, lt=1)
    """of the averaged weights that are evaluated and saved"""
    precision: Precision = "auto"
    """auto is bf16 where the hardware computes it; weights, logits and loss are fp32 always"""
    recompute: bool = False
    """recompute the blocks' activations in the backward pass instead of keeping them: less memory, a third more time"""
    compile: Literal["auto", True, False] = "auto"
    """torch.compile the forward pass of training, which takes a minute at the start and makes each step faster; auto:
    where it was measured to pay, a long training of a Transformer by one process on a CPU"""
    seed: int = Field(0, ge=0, le=2**62)
    """of the weights, the order of the rows and every draw"""
    log_every: int = Field(20, ge=1)
    """steps between lines of metrics.jsonl"""
    evaluate_every: int = Field(250, ge=1)
    """steps between evaluations on the whole validation split; the best weights are kept"""
    save_every: int = Field(250, ge=1)
    """steps between saved states"""
    keep_states: int = Field(2, ge=1)
    """number of last states that are kept; a damaged state is replaced by the one before"""
    track: tuple[Tracker, ...] = ()
    """trackers that get the metrics, and pictures at every evaluation: tensorboard, wandb, trackio"""
    track_project: str = Field("smalti", pattern=r"^[\w.-]+$", max_length=100)
    """project under which the trackers file the run"""

    @model_validator(mode="after")
    def _goes_with_its_model(self) -> "TrainConfig":
        if self.order != "raster" and not self.model.any_order:
            raise ValueError(self.model.no_order())
        usual = type(self).model_fields["label_dropout"].default
        if self.condition == "nothing" and self.label_dropout not in (0, usual):
            raise ValueError("label_dropout is of classes, and condition nothing has none; leave it away")
        return self


class FitConfig(Settings):
    """Fit a prior, the second stage without a network."""

    run: str = "runs/digits"
    """folder of the experiment; this stage reads its subfolder codes/ and writes into prior/"""
    codes: str | None = None
    """another folder of codes"""
    model: FittedArchitecture = Field(default_factory=FittedArchitecture.default)
    """which distribution, mixture and standard_normal over vectors, independent and uniform over codes; what a sample
    is and the classes are read from the codes"""
    condition: Literal["labels", "nothing"] = "labels"
    """labels: samples by class, where the codes have labels; nothing: unconditional all the same"""
    iterations: int = Field(100, ge=1)
    """steps of EM at most, each over all training rows; of a mixture alone, as are the next three"""
    tolerance: float = Field(1e-3, ge=0)
    """nats a sample: the fit of a class ends at the step that raises its log-likelihood by less"""
    regularization: float = Field(1e-6, ge=0)
    """added to the variance of each number, so that no component becomes a point"""
    seed: int = Field(0, ge=0, le=2**62)
    """of the first means"""
    track: tuple[Tracker, ...] = ()
    """trackers that get what metrics.jsonl gets: tensorboard, wandb, trackio"""
    track_project: str = Field("smalti", pattern=r"^[\w.-]+$", max_length=100)
    """project under which the trackers file the run"""
