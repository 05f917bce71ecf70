"""The settings of a VAE: its network, its posterior, its likelihood and its objective."""

from math import prod
from typing import Literal

from pydantic import Field, model_validator

from smalti.common.layout import Layout
from smalti.tokenizer.config import TrainedConfig
from smalti.tokenizer.criterion.likelihood.config import LikelihoodConfig
from smalti.tokenizer.criterion.likelihood.gaussian import GaussianConfig as GaussianLikelihoodConfig
from smalti.tokenizer.criterion.objective.config import ObjectiveConfig
from smalti.tokenizer.criterion.objective.elbo import ELBOConfig
from smalti.tokenizer.network.config import NetworkConfig
from smalti.tokenizer.network.convolutional_vectors import ConvolutionalConfig
from smalti.tokenizer.posterior.config import PosteriorConfig
from smalti.tokenizer.posterior.gaussian import GaussianConfig as GaussianPosteriorConfig


class VAEConfig(TrainedConfig):
    """The variational autoencoder (Kingma and Welling 2014), and without a posterior the autoencoder."""

    kind: Literal["vae"] = "vae"
    """an encoder, a posterior q(z | x) over vectors, a decoder"""
    network: NetworkConfig = ConvolutionalConfig()
    """encoder and decoder"""
    latents: Literal["image", "grid"] = "image"
    """image: one vector for the whole image; grid: one at each place of the network's grid"""
    latent_dim: int = Field(16, ge=1, le=2**14)
    """D, numbers of a vector"""
    posterior: PosteriorConfig = GaussianPosteriorConfig()
    """the distribution q(z | x) of the vectors of an image; none makes an autoencoder"""
    likelihood: LikelihoodConfig = GaussianLikelihoodConfig()
    """the distribution p(x | z) of the pixels"""
    objective: ObjectiveConfig = ELBOConfig()
    """what training minimises"""

    @model_validator(mode="after")
    def _goes_together(self) -> "VAEConfig":
        pixels = self.image_channels * prod(self.image_size)
        if self.network.grid(self.image_size) is None and self.latents == "grid":
            raise ValueError(f"latents: a network of kind {self.network.name()} has no grid; take latents image")
        if self.layout.length > pixels:
            raise ValueError(
                f"latent_dim: {self.layout} are {self.layout.length} numbers for an image of {pixels}; take fewer"
            )
        if not self.posterior.stochastic and self.objective.needs_density:
            raise ValueError(
                f"objective: {self.objective.name()} needs log q(z | x), which posterior none has not; "
                "take objective reconstruction or wae, or another posterior"
            )
        return self

    @property
    def wants_black_and_white(self) -> bool:
        return self.likelihood.name() == "bernoulli"

    def scheduled(self, progress: float) -> dict[str, float]:
        return self.objective.scheduled(progress)

    @property
    def grid(self) -> tuple[int, int] | None:
        """Return (h, w) of the vectors, or None for one vector of the whole image."""
        return self.network.grid(self.image_size) if self.latents == "grid" else None

    @property
    def layout(self) -> Layout:
        return Layout.of(*(self.grid or (1,)), depth=self.latent_dim)
