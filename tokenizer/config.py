"""The settings of every image tokenizer (its `config.json`), of its training, and of encoding with it."""

from abc import abstractmethod
from typing import TYPE_CHECKING, Any, ClassVar, Literal, Self

from pydantic import Field, model_validator

from smalti.common.choices import Precision, Tracker
from smalti.common.codes_info import MOST_IMAGES, MOST_VIEWS
from smalti.common.config import Kind, Settings
from smalti.common.data.config import ImagesConfig, Pixels
from smalti.common.layout import Layout
from smalti.tokenizer.codebooks.facts import CodebookFacts
from smalti.tokenizer.criterion.adversarial.config import AdversarialConfig, DiscriminatorConfig
from smalti.tokenizer.criterion.perceptual.config import PerceptualConfig

if TYPE_CHECKING:  # torch takes seconds, and reading settings does without
    from smalti.common.data.images import ImageSet


class ImageTokenizerConfig(Kind):
    """A tokenizer of images, of any kind."""

    kinds: ClassVar[dict[str, Any]] = {}
    usual: ClassVar[str] = "vqvae"
    listed_in: ClassVar[str | None] = "smalti.tokenizer.kinds"

    image_size: tuple[Pixels, Pixels] = (16, 16)
    """height and width of the images, in pixels"""
    image_channels: Literal[1, 3, 4] = 1
    """1 grey, 3 RGB, 4 RGBA"""

    @property
    @abstractmethod
    def layout(self) -> Layout:
        """Return the layout of the latents of an image."""

    @property
    def codebook(self) -> CodebookFacts | None:
        """Return the facts about its codebook, or None where there is none or nothing is known."""
        return None

    @property
    def conditional(self) -> bool:
        """Return whether encoder and decoder are told of the class of an image."""
        return False

    @property
    def against_collapse(self) -> tuple[str, ...]:
        """Return what its settings can do where numbers of vectors do not depend on the image."""
        return ()


class TrainedConfig(ImageTokenizerConfig):
    """A tokenizer that tokenizer/train.py trains."""

    kinds: ClassVar[dict[str, Any]] = {}

    @property
    def wants_black_and_white(self) -> bool:
        """Return whether every pixel must be black or white."""
        return False

    @property
    def commits(self) -> bool:
        """Return whether its encoder is asked to stay near its codes, by a commitment loss."""
        return False

    @property
    def revives(self) -> bool:
        """Return whether it has a codebook whose dead codes are revived."""
        return False

    @property
    def least_images(self) -> int:
        """Return how many images a micro-batch must have."""
        return 1

    def scheduled(self, progress: float) -> dict[str, float]:
        """Return the values that change with the share of the steps done, by name."""
        return {}

    def over(self, images: "ImageSet") -> Self:
        """Return the settings of a tokenizer of these images, with what they decide.

        Raises:
            UserError: it cannot be trained on them.
        """
        return self


class EncodeConfig(Settings):
    """The settings of encoding a dataset."""

    views: int | None = Field(None, ge=1, le=MOST_VIEWS)
    """rows an image: the plain one, its mirror when images.flip, then shifts by up to images.shift; null follows the
    number of training images: few have up to 8 views, from 20,000 on an image has one, or with images.flip two"""
    vectors: bool = False
    """of a tokenizer of codes: write the vectors that they stand for, z_q, for a prior over vectors"""
    batch_size: int = Field(256, ge=1, le=2**24)
    """images a process encodes at once"""
    shard_size: int = Field(10_000, ge=1, le=MOST_IMAGES)
    """images a Parquet shard, each with all its views; an interrupted encode goes on at the first shard not whole"""


class TrainConfig(Settings):
    """Stage one: train the image tokenizer."""

    run: str = "runs/digits"
    """folder of the experiment; this stage writes into its subfolder tokenizer/"""
    images: ImagesConfig = ImagesConfig()
    """which images, and how they are read"""
    model: TrainedConfig = Field(default_factory=TrainedConfig.default)
    """the tokenizer"""
    encode: EncodeConfig = EncodeConfig()
    """how tokenizer/encode.py will turn the images into codes"""
    start_from: str | None = None
    """weights to begin from instead of random ones: a folder of a model, run or pipeline of ours, or a repository
    owner/name of the Hub; settings of model that are not given are then those there"""
    train: Literal["all", "decoder"] = "all"
    """all weights; or, of a start_from, the decoder alone: encoder and codebook stay as they are, so every image keeps
    its codes, and codes datasets and priors of that tokenizer are valid for the new one too"""
    replace_codes: float = Field(0.0, ge=0, le=1)
    """with train decoder: largest share of an image's codes that are replaced at random before they are decoded, so
    that the decoder bears the wrong ones of a prior; each image has a share between 0 and this"""
    replace_by: Literal["near", "any", "drawn"] = "near"
    """near: one of the 8 codes whose vectors are nearest to the one that is replaced; any: any code; drawn: what a
    prior drew in its place, given the image's own codes before it"""
    drawn_codes: str | None = None
    """with replace_by drawn: the folder that prior/redraw.py wrote; images are shown in its views, and not shifted or
    mirrored otherwise"""
    change_settings: bool = False
    """where the run goes on: take lr and other settings of the steps to come as they are given now, and keep what they
    were in history.jsonl"""
    steps: int = Field(1000, ge=1)
    """optimizer steps"""
    batch_size: int = Field(128, ge=1, le=2**24)
    """images an optimizer step, over all processes and micro-batches"""
    accumulate: int = Field(1, ge=1)
    """micro-batches an optimizer step, each of batch_size / accumulate images"""
    lr: float = Field(1e-3, gt=0)
    """peak learning rate"""
    warmup: int = Field(100, ge=0)
    """steps of linear warm-up; half a cosine follows, down to 0"""
    weight_decay: float = Field(1e-4, ge=0)
    """AdamW's"""
    clip: float = Field(1.0, gt=0)
    """largest norm of the gradient"""
    commitment_weight: float = Field(0.25, ge=0)
    """beta in eq. 3 of van den Oord et al. (2017), on the commitment loss and only there"""
    perceptual: PerceptualConfig = Field(default_factory=PerceptualConfig.default)
    """a distance that counts beside the likelihood, for sharper pictures"""
    adversarial: AdversarialConfig = Field(default_factory=AdversarialConfig.default)
    """a discriminator that is trained beside the tokenizer, for sharper pictures of 64 pixels a side and more"""
    ema_decay: float = Field(0.999, ge=0, lt=1)
    """of the averaged weights that are evaluated and saved"""
    revive_below: float = Field(0.05, ge=0, lt=1)
    """a code used less than this share of its fair part is moved to where the codebook fits worst"""
    precision: Precision = "auto"
    """auto is bf16 where the hardware computes it; weights, distances and losses are fp32 always"""
    seed: int = Field(0, ge=0, le=2**62)
    """of the weights, the order of the images and every draw"""
    workers: int = Field(0, ge=0)
    """processes that read images ahead; 0 is best for sets kept in memory"""
    log_every: int = Field(20, ge=1)
    """steps between lines of metrics.jsonl"""
    evaluate_every: int = Field(250, ge=1)
    """steps between evaluations on the whole validation split"""
    save_every: int = Field(250, ge=1)
    """steps between saved states"""
    keep_states: int = Field(2, ge=1)
    """the last states that are kept; one that is found damaged is replaced by the one before"""
    track: tuple[Tracker, ...] = ()
    """trackers that get what metrics.jsonl gets, and pictures at every evaluation: tensorboard, wandb, trackio"""
    track_project: str = Field("smalti", pattern=r"^[\w.-]+$", max_length=100)
    """under which they file the run"""

    @model_validator(mode="after")
    def _goes_with_its_model(self) -> "TrainConfig":
        if self.model.wants_black_and_white and self.images.binarize == "none":
            raise ValueError(
                "model.likelihood.kind bernoulli gives a probability to black and white alone; set images.binarize: "
                "dynamic (a new draw in each epoch), fixed (one draw) or nearest, or take another likelihood"
            )
        self._check_train()
        if isinstance(self.adversarial, DiscriminatorConfig) and not self.adversarial.counted(1 - 1 / self.steps):
            raise ValueError(
                f"the discriminator would count in none of {self.steps} steps: of them it waits a share of "
                f"adversarial.start {self.adversarial.start:g}, and is trained alone for {self.adversarial.warmup:g}; "
                "lower them, or give more steps"
            )
        facts = self.model.codebook
        whose = f"model.kind {self.model.name()}" if facts is None else f"{facts.at}kind {facts.kind}"
        for name, of, reads in (
            ("commitment_weight", "a commitment loss", self.model.commits),
            ("revive_below", "a codebook", self.model.revives),
        ):
            if not reads and getattr(self, name) != type(self).model_fields[name].default:
                raise ValueError(f"{name} is of {of}, and {whose} has none; leave it away")
        return self

    def _check_train(self) -> None:
        if self.replace_by != "near" and not self.replace_codes:
            raise ValueError(f"replace_by {self.replace_by} says by what replace_codes replaces: give it too, above 0")
        if self.replace_by == "drawn" and self.drawn_codes is None:
            raise ValueError("replace_by drawn needs drawn_codes: the folder of draws that prior/redraw.py writes")
        if self.replace_by != "drawn" and self.drawn_codes is not None:
            raise ValueError(f"drawn_codes is of replace_by drawn, and it is {self.replace_by}: give that, or leave it")
        if self.train == "all":
            if self.replace_codes:
                raise ValueError("replace_codes is of the decoder's training: give train decoder too, or leave it away")
            return
        for name in ("commitment_weight", "revive_below"):
            if getattr(self, name) != type(self).model_fields[name].default:
                raise ValueError(f"{name} is of encoder and codebook, which train decoder freezes; leave it away")
        if self.start_from is None:
            raise ValueError("train decoder needs start_from: the tokenizer whose encoder and codebook stay")
        if not self.model.builds.decodes_only:
            raise ValueError(
                f"train decoder: the decoder of a tokenizer of kind {self.model.name()} is not trained by itself; "
                "those of vqvae, vqvae2, multiscale and vqgan are. Give train all"
            )
