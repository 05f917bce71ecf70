"""A network of a library by its name, its weights read from a file: the contract of `torchvision` and `timm`.

Of each size of feature map (B, N, h, w) the last one before the next halving is taken; of `vgg16` these are the five of
LPIPS (Zhang et al. 2018, https://arxiv.org/abs/1801.03924). Outputs that have the channels last, as inside ConvNeXt,
are left out, and a network with fewer than two sizes of maps is refused. It is shown RGB, normalised as its weights
expect.
"""

import hashlib
from abc import abstractmethod
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import ClassVar, NamedTuple, Self

from torch import Tensor, nn

from smalti.common.errors import UserError
from smalti.common.folder import sha256
from smalti.tokenizer.criterion.trunk.base import Place, Trunk, enlarged, rgb_of
from smalti.tokenizer.criterion.trunk.config import NamedNetworkConfig, TrunkConfig

# layers whose output is another's seen coarser, and no feature map of its own
POOLING = (nn.MaxPool2d, nn.AvgPool2d, nn.AdaptiveAvgPool2d, nn.Dropout, nn.Identity)
LEAST_LEVELS = 2
AROUND = 2  # places by which padding makes a side longer


class Loaded(NamedTuple):
    """A network with its weights, and what it expects of pixels in [0, 1]."""

    network: nn.Module
    mean: Sequence[float]  # of each of the three channels
    std: Sequence[float]


class NamedNetwork(Trunk):
    """The feature maps of a network of a library."""

    library: ClassVar[str]

    def __init__(self, config: NamedNetworkConfig, loaded: Loaded, identity: str):
        super().__init__()
        self.config, self.network, self.identity = config, loaded.network, identity
        self.mean, self.std = loaded.mean, loaded.std
        self.title = f"{self.library}'s {config.network} with the weights {config.path}"
        self._seen: dict[tuple[int, ...], Tensor] = {}  # of a pass, the last feature map of each size
        for module in self.network.modules():
            leaf = not list(module.children()) or isinstance(module, nn.modules.batchnorm._NormBase)  # timm's activate
            if leaf and not isinstance(module, (*POOLING, nn.Linear)):
                module.register_forward_hook(self._see)

    @staticmethod
    @abstractmethod
    def load(config: NamedNetworkConfig) -> Loaded:
        """Return the network of a config. Raises `UserError` where there is none, or its file does not fit."""

    @classmethod
    def open(cls, config: TrunkConfig, place: Place, kept: Mapping[str, Tensor] | None) -> Self:
        assert isinstance(config, NamedNetworkConfig)
        loaded = cls.load(config)
        said = f"{config.network} {sha256(Path(config.path))} {config.least_side}"
        identity = hashlib.sha256(said.encode()).hexdigest()
        return cls(config, loaded, identity).to(place.accelerator.device).freeze()

    def _see(self, module: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        if isinstance(output, Tensor) and output.ndim == 4 and max(output.shape[2:]) > 1:  # 1 x 1: no map, but a gate
            self._seen[tuple(output.shape[2:])] = output

    def feature_maps(self, pixels: Tensor) -> list[Tensor]:
        shown = enlarged(rgb_of(pixels), self.config.least_side)
        mean, std = (shown.new_tensor(value).view(3, 1, 1) for value in (self.mean, self.std))
        self._seen.clear()
        self.network(((shown + 1) / 2 - mean) / std)
        levels = [level for size, level in self._seen.items() if is_map(size, shown.shape[2:])]
        self._seen.clear()
        if len(levels) < LEAST_LEVELS:
            raise UserError(
                f"{self.library}'s {self.config.network} has {len(levels)} sizes of feature maps (B, N, h, w) of "
                f"images of {shown.shape[2]} x {shown.shape[3]}, and at least {LEAST_LEVELS} are wanted; take a "
                "convolutional network, as vgg16 or resnet18, or larger images by least_side"
            )
        return levels


def is_map(size: Sequence[int], shown: Sequence[int]) -> bool:
    """Return whether outputs of this size are feature maps of images as they were shown, not rows of channels: both
    sides are as much smaller, but for what rounding and padding make of it."""
    (h, w), (H, W) = size, shown
    return h <= H + AROUND and w <= W + AROUND and abs(h * W - w * H) <= AROUND * max(H, W)
