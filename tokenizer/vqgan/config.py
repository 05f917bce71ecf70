"""The settings of a published VQGAN, and of its conversion."""

from collections.abc import Sequence
from typing import Annotated, Literal

from pydantic import Field, model_validator

from smalti.common.config import Settings, declared
from smalti.common.data.config import ImagesConfig, Pixels
from smalti.common.layout import MOST_CODES, Layout
from smalti.tokenizer.bottleneck.config import VQConfig
from smalti.tokenizer.codebooks.facts import CodebookFacts
from smalti.tokenizer.config import EncodeConfig, TrainedConfig

Width = Annotated[int, Field(ge=1, le=2**14)]  # channels of a published network
Publisher = Literal["llamagen", "taming", "diffusers"]


@declared("smalti.tokenizer.vqgan.model")
class VQGANConfig(TrainedConfig):
    """A VQGAN as taming-transformers, LlamaGen and diffusers publish it; see `tokenizer/vqgan/model.py`."""

    kind: Literal["vqgan"] = "vqgan"
    """a network of others"""
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
    codebook_size: int = Field(16_384, ge=2, le=MOST_CODES)
    """K, codes"""
    code_dim: Width = 8
    """D, dimensions of a code"""
    normalize: bool = True
    """codes and encoder outputs on the unit sphere, as LlamaGen's are"""

    @model_validator(mode="after")
    def _fits(self) -> "VQGANConfig":
        for side, pixels in zip(("height", "width"), self.image_size, strict=True):
            if pixels % self.downsampling:
                raise ValueError(
                    f"image_size: a {side} of {pixels} does not divide by the downsampling {self.downsampling}"
                )
        for channels in (self.first_channels, *self.channels):
            if channels % self.norm_groups:
                raise ValueError(f"norm_groups: a width of {channels} does not divide into {self.norm_groups} groups")
        for level in self.attention_levels:
            if not 0 <= level < len(self.channels):
                raise ValueError(f"attention_levels: there are levels 0 to {len(self.channels) - 1}, got {level}")
        return self

    @property
    def downsampling(self) -> int:
        """Return the pixels a side that one code stands for."""
        return 2 ** (len(self.channels) - 1)

    @property
    def grid(self) -> tuple[int, int]:
        """Return (h, w) of the codes."""
        return self.image_size[0] // self.downsampling, self.image_size[1] // self.downsampling

    @property
    def quantizer(self) -> VQConfig:
        """Return the settings of its quantizer, which searches a table as ours does."""
        return VQConfig(codebook_size=self.codebook_size, code_dim=self.code_dim, normalize=self.normalize)

    @property
    def layout(self) -> Layout:
        """Return the layout of the codes of an image."""
        return Layout.of(*self.grid, factors=(self.codebook_size,))

    @property
    def commits(self) -> bool:
        return True

    @property
    def revives(self) -> bool:
        return True

    @property
    def codebook(self) -> CodebookFacts:
        return VQGANFacts("vqgan", self.code_dim, "")


class VQGANFacts(CodebookFacts):
    """The facts about somebody else's codebook, which no setting of ours decides."""

    cause = "the checkpoint never used them, or for images unlike these"
    fitted = False

    def wider_use(self, revive_below: float | None) -> Sequence[str]:
        return ["training it on these images, by tokenizer/train.py --start_from"]

    def fewer(self, wanted: float, codebook_size: int) -> str:
        return f"a checkpoint of about {max(2, round(wanted)):,} codes"


class ConvertConfig(Settings):
    """Stage one with somebody else's weights: make a VQGAN's checkpoint a tokenizer of ours."""

    checkpoint: str
    """the published file: .safetensors, or .pt, .ckpt or .bin of plain tensors; of diffusers the folder of a VQModel"""
    kind: Publisher
    """who published it, and so what its tensors are called"""
    architecture: str | None = None
    """taming's project .yaml, to hold the tensors against and for its resolution; null reads the sizes off the tensors
    alone"""
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
