"""`torchvision`: a network of torchvision. VGG, ResNet, MobileNet and ConvNeXt are tried."""

from typing import ClassVar

from smalti.metrics.feature_extractor import IMAGENET_MEAN, IMAGENET_STD, torchvision_network
from smalti.tokenizer.criterion.trunk.config import NamedNetworkConfig, TorchvisionConfig
from smalti.tokenizer.criterion.trunk.named_network import Loaded, NamedNetwork


@TorchvisionConfig.register
class Torchvision(NamedNetwork):
    """The feature maps of a network of torchvision."""

    library: ClassVar[str] = "torchvision"

    @staticmethod
    def load(config: NamedNetworkConfig) -> Loaded:
        return Loaded(torchvision_network(config.network, config.path), IMAGENET_MEAN, IMAGENET_STD)
