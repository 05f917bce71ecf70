"""The settings of every network of a VAE."""

from abc import abstractmethod
from typing import Annotated, Any, ClassVar, Literal

from pydantic import Field

from smalti.common.config import Kind, declared
from smalti.tokenizer.network.grid import grid_of


class NetworkConfig(Kind):
    """An encoder and a decoder between images and vectors."""

    kinds: ClassVar[dict[str, Any]] = {}
    usual: ClassVar[str] = "convolutional"

    @abstractmethod
    def grid(self, image_size: tuple[int, int]) -> tuple[int, int] | None:
        """Return (h, w) of the network's own grid of vectors, or None where it has none.

        Raises:
            ValueError: a network that images of this size do not fit.
        """


class WholeImageConfig(NetworkConfig):
    """A network of the whole image."""

    def grid(self, image_size: tuple[int, int]) -> None:
        return None


@declared("smalti.tokenizer.network.linear")
class LinearConfig(WholeImageConfig):
    """One linear layer each way, with a posterior that is known exactly: probabilistic PCA."""

    kind: Literal["linear"] = "linear"
    """one linear layer each way, of the whole image: probabilistic PCA"""


@declared("smalti.tokenizer.network.mlp")
class MLPConfig(WholeImageConfig):
    """Fully connected layers: fast, and enough for small images."""

    kind: Literal["mlp"] = "mlp"
    """fully connected layers, of the whole image"""
    hidden: tuple[Annotated[int, Field(ge=1, le=2**14)], ...] = Field((200, 200), min_length=1, max_length=16)
    """widths of the encoder's hidden layers; the decoder has them in reverse"""


@declared("smalti.tokenizer.network.convolutional_vectors")
class ConvolutionalConfig(NetworkConfig):
    """The convolutional network of the VQGAN family (Esser et al. 2021, table 7)."""

    kind: Literal["convolutional"] = "convolutional"
    """residual convolutional blocks, as in the VQ-VAE"""
    patch: Literal[1, 2, 4, 8] = 1
    """pixels a side that the first layer folds into channels; 2 or 4 save most of the time of a full-size level"""
    channels: tuple[Annotated[int, Field(ge=8, le=2**14, multiple_of=8)], ...] = Field(
        (32, 64), min_length=1, max_length=12
    )
    """width of each level; each level after the first halves the image"""
    blocks: int = Field(1, ge=1, le=256)
    """residual blocks a level"""
    attention: bool = False
    """self-attention at the lowest level"""

    def grid(self, image_size: tuple[int, int]) -> tuple[int, int]:
        return grid_of(image_size, self.patch, len(self.channels))
