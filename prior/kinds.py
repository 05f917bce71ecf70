"""The kinds of priors there are: importing them declares them, without torch, so that a command reads its settings at
once. What they build is imported when it is built (`common/config.py:declared`)."""

from smalti.prior.diffusion.config import DiffusionConfig
from smalti.prior.levels.config import LevelsConfig
from smalti.prior.masked.config import MaskedConfig
from smalti.prior.nextscale.config import NextScaleConfig
from smalti.prior.nextset.config import NextSetConfig
from smalti.prior.pixelcnn.config import PixelCNNConfig
from smalti.prior.simple.config import IndependentConfig, MixtureConfig, StandardNormalConfig, UniformConfig
from smalti.prior.transformer.config import TransformerConfig

KINDS = (
    TransformerConfig,
    MaskedConfig,
    PixelCNNConfig,
    NextScaleConfig,
    NextSetConfig,
    LevelsConfig,
    DiffusionConfig,
    MixtureConfig,
    StandardNormalConfig,
    UniformConfig,
    IndependentConfig,
)
