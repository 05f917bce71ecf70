"""`timm`: a network of timm. ResNet, EfficientNet and ConvNeXt are tried."""

from typing import ClassVar

from smalti.metrics.feature_extractor import timm_facts, timm_network
from smalti.tokenizer.criterion.trunk.config import NamedNetworkConfig, TimmConfig
from smalti.tokenizer.criterion.trunk.named_network import Loaded, NamedNetwork


@TimmConfig.register
class Timm(NamedNetwork):
    """The feature maps of a network of timm."""

    library: ClassVar[str] = "timm"

    @staticmethod
    def load(config: NamedNetworkConfig) -> Loaded:
        network = timm_network(config.network, config.path)
        facts = timm_facts(network)
        return Loaded(network, facts["mean"], facts["std"])
