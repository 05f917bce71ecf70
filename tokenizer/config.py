"""Which images are read, what a tokenizer is (its `config.json`), and how it is fitted and applied."""

from typing import Annotated, Any, Literal

from pydantic import AfterValidator, Field, field_validator, model_validator

from smalti.common.config import Settings
from smalti.common.launch import Precision
from smalti.common.layout import Layout
from smalti.common.track import Tracker
from smalti.tokenizer.likelihood import GaussianConfig, LikelihoodConfig
from smalti.tokenizer.quantizers.config import QuantizerConfig, VQConfig


class SplitNames(Settings):
    """What the source calls its splits, where that is none of the usual names."""

    train: str | None = None
    """the split, folder or data file (without its suffix) that is trained on"""
    validation: str | None = None
    """the one that training is watched with"""
    test: str | None = None
    """the one that figures are of"""

    def given(self) -> dict[str, str]:
        return {split: name for split, name in self if name is not None}


class DataFiles(Settings):
    """Which files are of which split, as patterns inside the source's folder: `*.parquet`, `train/**`, `a/0.png`."""

    train: tuple[str, ...] | None = Field(None, min_length=1)
    """files that are trained on, as patterns inside the source; with any of the three given, other files are not read"""
    validation: tuple[str, ...] | None = Field(None, min_length=1)
    """files that training is watched with"""
    test: tuple[str, ...] | None = Field(None, min_length=1)
    """files that figures are of"""

    @field_validator("*", mode="before")
    @classmethod
    def _one_is_several(cls, patterns: Any) -> Any:
        if isinstance(patterns, str):
            return (patterns,)
        return tuple(patterns) if isinstance(patterns, list) else patterns

    def given(self) -> dict[str, list[str]]:
        return {split: list(patterns) for split, patterns in self if patterns is not None}


def _gone(margin: int) -> int:
    if margin:
        raise ValueError(
            "there is no margin any more, which resampled every picture and cut off its rim; "
            f"`shift: {-(-margin // 2)}` in its place moves them as far and reads them as they are"
        )
    return margin


class ImagesConfig(Settings):
    """Where the images come from, and how they are brought to the size the model wants."""

    source: str = "digits"
    """`digits` (1,797 of 8x8 pixels, built in), the name of a data set on the Hugging Face Hub, or a local folder of
    Parquet, Arrow (also save_to_disk), WebDataset .tar shards or image files"""
    subset: str | None = None
    """the data set's configuration, where it has several"""
    split: SplitNames = SplitNames()
    """which splits of the source are train, validation and test; without it, those called so: train, training; validation,
    valid, val, dev; test, testing, eval, evaluation; in any letter case, and with a number, as train-00000-of-00005"""
    data_files: DataFiles = DataFiles()
    """which files are of which split, in place of their names; without it also a README's `configs: data_files:` says so"""
    reach: Literal["folder", "anywhere"] = "folder"
    """files that a link or a row of a table names outside the source's folder: refused (folder), or read (anywhere); a
    stranger's folder could so name your own files"""
    image_column: str | None = None
    """the column of images; null finds it by its type"""
    label_column: str | None = None
    """the column of class labels, of a table or of metadata files; null finds it by its type (`label` in metadata files), and
    without one the images are unlabelled"""
    resize: Literal["crop", "stretch"] = "crop"
    """crop: the shorter side to size and the centre of the longer one; stretch: both sides to size"""
    shift: int = Field(0, ge=0, le=2**13)
    """pixels that training images are moved at most, either way on both axes; what comes in is the side's own rim, repeated"""
    margin: Annotated[int, AfterValidator(_gone)] = Field(0, exclude=True)
    """gone; runs of before say 0, which is taken, and anything else is told of images.shift"""
    flip: bool = False
    """mirror half of the training images left-right"""
    black_and_white: bool = False
    """every channel of a pixel to 0 or 255, whichever is nearer: what model.likelihood.kind bernoulli is a likelihood of"""
    white: int = Field(65_535, ge=255, le=65_535)
    """of pictures of 16 bits a channel: the value that is white; cameras and microscopes often use fewer bits, as 12: 4095"""
    validation_share: float = Field(0.05, gt=0, le=0.5)
    """share of the training images held out where the source has no split `validation` (val, valid, dev)"""
    corrupt: Literal["refuse", "skip"] = "refuse"
    """what to do with a row whose image cannot be decoded, or whose label is none of the classes: stop and name it, or leave it
    out and count it"""
    animated: Literal["first", "skip", "refuse"] = "first"
    """of an image of several frames: take the first, leave it out, or stop and name it"""
    duplicates: Literal["keep", "skip", "refuse"] = "keep"
    """of a row whose file is that of another, within a split or between them: keep it, leave it out (of train rather than of
    what is held out, which else would be known by heart), or stop and name it"""
    max_pixels: int = Field(89_478_485, ge=1, le=178_956_970)
    """width x height from which an image counts as corrupt, unseen: a small file may claim more pixels than there is memory"""
    memory: float = Field(1.0, ge=0)
    """GiB of decoded pixels kept in memory; a set that needs more is read from disk batch by batch"""


Pixels = Annotated[int, Field(ge=1, le=2**13)]  # a side of an image
Width = Annotated[int, Field(ge=1, le=2**14)]  # channels of a published network
Publisher = Literal["llamagen", "taming", "diffusers"]


class TokenizerConfig(Settings):
    """The convolutional VQ-VAE of the VQGAN family (Esser et al. 2021, table 7)."""

    image_size: tuple[Pixels, Pixels] = (16, 16)
    """height and width of the images, in pixels"""
    image_channels: Literal[1, 3, 4] = 1
    """1 grey, 3 RGB, 4 RGBA"""
    patch: Literal[1, 2, 4, 8] = 1
    """pixels a side that the first layer folds into channels; 2 or 4 save most of the time of a full-size level"""
    channels: tuple[Annotated[int, Field(ge=8, le=2**14, multiple_of=8)], ...] = Field((64, 128), min_length=1, max_length=12)
    """width of each level; each level after the first halves the image"""
    blocks: int = Field(1, ge=1, le=256)
    """residual blocks a level"""
    attention: bool = False
    """self-attention at the lowest level"""
    quantizer: QuantizerConfig = VQConfig()
    """what turns encoder outputs into codes"""
    likelihood: LikelihoodConfig = GaussianConfig()
    """what the decoder says of the pixels, p(x | z); its -log is the reconstruction loss"""

    @model_validator(mode="after")
    def _divides(self) -> "TokenizerConfig":
        for side, pixels in zip(("height", "width"), self.image_size, strict=True):
            if pixels < self.downsampling:
                raise ValueError(
                    f"image_size: a {side} of {pixels} is smaller than the downsampling {self.downsampling}; "
                    f"take larger images, fewer channels levels or a smaller patch"
                )
            if pixels % self.downsampling:
                near = max(1, round(pixels / self.downsampling)) * self.downsampling
                raise ValueError(
                    f"image_size: a {side} of {pixels} does not divide by the downsampling {self.downsampling} "
                    f"(patch {self.patch} and {len(self.channels) - 1} halvings); {near} would"
                )
        return self

    @property
    def downsampling(self) -> int:
        """Pixels a side that one code stands for."""
        return self.patch * 2 ** (len(self.channels) - 1)

    @property
    def grid(self) -> tuple[int, int]:
        """(h, w) of the codes."""
        return self.image_size[0] // self.downsampling, self.image_size[1] // self.downsampling

    @property
    def layout(self) -> Layout:
        """What an image becomes."""
        return Layout.of(*self.grid, depth=self.quantizer.code_depth, factors=self.quantizer.factors)


class KMeansConfig(Settings):
    """K-means of patches: the tokenizer without a network."""

    image_size: tuple[Pixels, Pixels] = (16, 16)
    """height and width of the images, in pixels"""
    image_channels: Literal[1, 3, 4] = 1
    """1 grey, 3 RGB, 4 RGBA"""
    patch: int = Field(4, ge=1, le=256)
    """pixels a side of the patch that one code stands for"""
    codebook_size: int = Field(512, ge=2, le=2**24)
    """K, means"""

    @model_validator(mode="after")
    def _divides(self) -> "KMeansConfig":
        for side, pixels in zip(("height", "width"), self.image_size, strict=True):
            if pixels % self.patch:
                raise ValueError(f"image_size: a {side} of {pixels} does not divide by the patch {self.patch}")
        return self

    @property
    def grid(self) -> tuple[int, int]:
        """(h, w) of the codes."""
        return self.image_size[0] // self.patch, self.image_size[1] // self.patch

    @property
    def code_dim(self) -> int:
        """D, numbers a patch."""
        return self.image_channels * self.patch**2

    @property
    def layout(self) -> Layout:
        """What an image becomes."""
        return Layout.of(*self.grid, factors=(self.codebook_size,))


class VQGANConfig(Settings):
    """The VQGAN of others, as taming-transformers, LlamaGen and diffusers publish it; see `tokenizer/vqgan.py`."""

    image_size: tuple[Pixels, Pixels] = (256, 256)
    """height and width of the images, in pixels; the network takes any that divide"""
    image_channels: Literal[1, 3, 4] = 3
    """1 grey, 3 RGB, 4 RGBA"""
    first_channels: Width = 128
    """width before the first level of the encoder"""
    channels: tuple[Width, ...] = Field((128, 128, 256, 256, 512), min_length=1, max_length=12)
    """width of each level; each level after the first halves the image"""
    blocks: int = Field(2, ge=1, le=64)
    """residual blocks a level of the encoder; the decoder's have one more"""
    attention_levels: tuple[int, ...] = (4,)
    """levels with self-attention after each block, 0 being that of the whole image"""
    middle_attention: bool = True
    """self-attention between the last two blocks"""
    norm_groups: int = Field(32, ge=1, le=2**14)
    """groups of channels that are normalised together"""
    z_channels: Width = 256
    """width of the lowest level's output, which a 1 x 1 convolution turns into codes' dimensions"""
    codebook_size: int = Field(16_384, ge=2, le=2**24)
    """K, codes"""
    code_dim: Width = 8
    """D, dimensions of a code"""
    normalize: bool = True
    """codes and encoder outputs on the unit sphere, as LlamaGen's are"""

    @model_validator(mode="after")
    def _fits(self) -> "VQGANConfig":
        for side, pixels in zip(("height", "width"), self.image_size, strict=True):
            if pixels % self.downsampling:
                raise ValueError(f"image_size: a {side} of {pixels} does not divide by the downsampling {self.downsampling}")
        for channels in (self.first_channels, *self.channels):
            if channels % self.norm_groups:
                raise ValueError(f"norm_groups: a width of {channels} does not divide into {self.norm_groups} groups")
        for level in self.attention_levels:
            if not 0 <= level < len(self.channels):
                raise ValueError(f"attention_levels: there are levels 0 to {len(self.channels) - 1}, got {level}")
        return self

    @property
    def downsampling(self) -> int:
        """Pixels a side that one code stands for."""
        return 2 ** (len(self.channels) - 1)

    @property
    def grid(self) -> tuple[int, int]:
        """(h, w) of the codes."""
        return self.image_size[0] // self.downsampling, self.image_size[1] // self.downsampling

    @property
    def quantizer(self) -> VQConfig:
        """The same search and table as ours."""
        return VQConfig(codebook_size=self.codebook_size, code_dim=self.code_dim, normalize=self.normalize)

    @property
    def layout(self) -> Layout:
        """What an image becomes."""
        return Layout.of(*self.grid, factors=(self.codebook_size,))


ImageTokenizerConfig = TokenizerConfig | KMeansConfig | VQGANConfig  # what the `config` of an ImageTokenizer may be


class EncodeConfig(Settings):
    """How a dataset becomes codes."""

    views: int | None = Field(None, ge=1)
    """rows an image: the plain one, its mirror when images.flip, then shifts by up to images.shift; null follows the number of
    training images: few have up to 8 views, from 20,000 on an image has one, or with images.flip two"""
    batch_size: int = Field(256, ge=1, le=2**24)
    """images a process encodes at once"""
    shard_size: int = Field(10_000, ge=1)
    """images a Parquet shard, each with all its views; an interrupted encode goes on at the first shard not whole"""


class ClusterConfig(Settings):
    """Stage one without a network: fit the K-means tokenizer."""

    run: str = "runs/digits_kmeans"
    """folder of the experiment; this stage writes into its subfolder tokenizer/"""
    images: ImagesConfig = ImagesConfig()
    """which images, and how they are read; they are taken as they are, neither moved nor mirrored"""
    model: KMeansConfig = KMeansConfig()
    """the tokenizer"""
    encode: EncodeConfig = EncodeConfig()
    """how tokenizer/encode.py will turn the images into codes"""
    iterations: int = Field(20, ge=1)
    """steps of EM, each over all training images"""
    seed: int = Field(0, ge=0, le=2**62)
    """of the first means"""
    track: tuple[Tracker, ...] = ()
    """trackers that are told what metrics.jsonl is told, and pictures at every evaluation: tensorboard, wandb, trackio"""
    track_project: str = Field("smalti", pattern=r"^[\w.-]+$", max_length=100)
    """under which they file the run"""


class ConvertConfig(Settings):
    """Stage one with somebody else's weights: make a VQGAN's checkpoint a tokenizer of ours."""

    checkpoint: str
    """the published file: .safetensors, or .pt, .ckpt or .bin of plain tensors; of diffusers the folder of a VQModel"""
    kind: Publisher
    """who published it, and so what its tensors are called"""
    architecture: str | None = None
    """taming's project .yaml, to hold the tensors against and for its resolution; null reads the sizes off the tensors alone"""
    run: str = "runs/imported"
    """folder of the experiment; this stage writes into its subfolder tokenizer/"""
    images: ImagesConfig
    """which images the codes will be of, and how they are read"""
    image_size: tuple[Pixels, Pixels] | None = None
    """height and width of the images, in pixels; null is the resolution in `architecture`, and 256 x 256 without"""
    encode: EncodeConfig = EncodeConfig(batch_size=32)
    """how tokenizer/encode.py will turn the images into codes"""
    fit_images: int = Field(128, ge=1)
    """training images, evenly spaced, by whose reconstructions the scale of the likelihood is fitted"""
    batch_size: int = Field(16, ge=1, le=2**24)
    """images a process reconstructs at once"""


class TrainConfig(Settings):
    """Stage one: train the image tokenizer."""

    run: str = "runs/digits"
    """folder of the experiment; this stage writes into its subfolder tokenizer/"""
    images: ImagesConfig = ImagesConfig()
    """which images, and how they are read"""
    model: TokenizerConfig = TokenizerConfig()
    """the tokenizer"""
    encode: EncodeConfig = EncodeConfig()
    """how tokenizer/encode.py will turn the images into codes"""
    start_from: str | None = None
    """weights to begin from instead of random ones: a folder of a model, run or pipeline of ours, or a repository owner/name of
    the Hub; settings of model that are not given are then those there"""
    change_settings: bool = False
    """where the run goes on: take lr and other settings of the steps to come as they are given now, and keep what they were
    in history.jsonl"""
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
    """trackers that are told what metrics.jsonl is told, and pictures at every evaluation: tensorboard, wandb, trackio"""
    track_project: str = Field("smalti", pattern=r"^[\w.-]+$", max_length=100)
    """under which they file the run"""

    @model_validator(mode="after")
    def _black_and_white(self) -> "TrainConfig":
        if self.model.likelihood.kind == "bernoulli" and not self.images.black_and_white:
            raise ValueError(
                "model.likelihood.kind bernoulli gives a probability to black and white alone; set images.black_and_white: "
                "true, or take another likelihood"
            )
        return self
