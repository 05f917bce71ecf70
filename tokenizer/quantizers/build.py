"""From a quantizer's config to the quantizer."""

from tokenizer.quantizers.base import Quantizer
from tokenizer.quantizers.config import QuantizerConfig, ResidualConfig, TableConfig
from tokenizer.quantizers.fsq import FiniteScalarQuantizer
from tokenizer.quantizers.gumbel import GumbelQuantizer
from tokenizer.quantizers.lfq import LookupFreeQuantizer
from tokenizer.quantizers.residual import ResidualQuantizer
from tokenizer.quantizers.simvq import SimVectorQuantizer
from tokenizer.quantizers.vq import VectorQuantizer
from tokenizer.quantizers.vq_ema import EMAVectorQuantizer

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
