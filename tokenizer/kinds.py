"""The kinds of tokenizers there are: importing them declares them, without torch, so that a command reads its settings
at once. What they build is imported when it is built (`common/config.py:declared`)."""

from smalti.tokenizer.kmeans.config import KMeansConfig
from smalti.tokenizer.mixture.config import GaussianMixtureConfig
from smalti.tokenizer.multiscale.config import MultiscaleConfig
from smalti.tokenizer.vae.config import VAEConfig
from smalti.tokenizer.vqgan.config import VQGANConfig
from smalti.tokenizer.vqvae.config import VQVAEConfig
from smalti.tokenizer.vqvae2.config import VQVAE2Config

KINDS = (
    VQVAEConfig,
    KMeansConfig,
    VQGANConfig,
    GaussianMixtureConfig,
    VAEConfig,
    VQVAE2Config,
    MultiscaleConfig,
)
