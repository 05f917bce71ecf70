"""`torchscript`: a network of the user's, saved by torch.jit.save, which gives one feature map or several.

It is shown pixels in [-1, 1] and gives (B, N, h, w), or a list or tuple of such, fine first.
"""

import hashlib
from collections.abc import Mapping
from pathlib import Path
from typing import Self

from torch import Tensor, nn

from smalti.common.errors import UserError
from smalti.common.folder import sha256
from smalti.metrics.feature_extractor import torchscript_network
from smalti.tokenizer.criterion.trunk.base import Place, Trunk, enlarged, rgb_of
from smalti.tokenizer.criterion.trunk.config import TorchScriptConfig, TrunkConfig


@TorchScriptConfig.register
class TorchScript(Trunk):
    """The feature maps of a TorchScript network."""

    def __init__(self, config: TorchScriptConfig, network: nn.Module, identity: str):
        super().__init__()
        self.config, self.network, self.identity = config, network, identity
        self.title = f"the network of {config.path}"
        other = "data" if config.channels == "rgb" else "rgb"
        self.remedy = f"it is shown {config.channels}: channels {other} shows it the other, least_side larger images"

    @classmethod
    def open(cls, config: TrunkConfig, place: Place, kept: Mapping[str, Tensor] | None) -> Self:
        assert isinstance(config, TorchScriptConfig)
        path = Path(config.path)
        network = torchscript_network(path, place.accelerator.device)
        identity = hashlib.sha256(f"{sha256(path)} {config.channels} {config.least_side}".encode()).hexdigest()
        return cls(config, network, identity).freeze()

    def feature_maps(self, pixels: Tensor) -> list[Tensor]:
        shown = enlarged(rgb_of(pixels) if self.config.channels == "rgb" else pixels, self.config.least_side)
        found = self.network(shown)
        levels = list(found) if isinstance(found, list | tuple) else [found]
        if not levels or not all(isinstance(each, Tensor) and each.ndim == 4 for each in levels):
            raise UserError(f"{self.config.path} must give feature maps (B, N, h, w), one or a list of them")
        return levels
