"""From a quantizer's config to the quantizer."""

from smalti.tokenizer.quantizers.base import Quantizer
from smalti.tokenizer.quantizers.config import QuantizerConfig, ResidualConfig, TableConfig
from smalti.tokenizer.quantizers.fsq import FiniteScalarQuantizer
from smalti.tokenizer.quantizers.gumbel import GumbelQuantizer
from smalti.tokenizer.quantizers.lfq import LookupFreeQuantizer
from smalti.tokenizer.quantizers.residual import ResidualQuantizer
from smalti.tokenizer.quantizers.simvq import SimVectorQuantizer
from smalti.tokenizer.quantizers.vq import VectorQuantizer
from smalti.tokenizer.quantizers.vq_ema import EMAVectorQuantizer

KINDS = {
    "vq": VectorQuantizer,
    "vq_ema": EMAVectorQuantizer,
    "simvq": SimVectorQuantizer,
    "gumbel": GumbelQuantizer,
    "fsq": FiniteScalarQuantizer,
    "lfq": LookupFreeQuantizer,
}


def build_quantizer(config: QuantizerConfig) -> Quantizer:
    """The quantizer of a config, its weights drawn at random."""
    if not isinstance(config, ResidualConfig):
        return KINDS[config.kind](config)
    plain = {"normalize": False} if isinstance(config.each, TableConfig) else {}  # what is left is not on the sphere
    rest = [build_quantizer(config.each.model_copy(update=plain)) for _ in range(1, config.code_depth)]
    return ResidualQuantizer(config, [build_quantizer(config.each), *rest])
