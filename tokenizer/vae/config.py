"""The settings of a VAE: its network, its posterior, its likelihood and its objective."""

from math import prod
from typing import TYPE_CHECKING, ClassVar, Literal, Self

from pydantic import Field, model_validator

from smalti.common.condition import Classes, Condition, Nothing
from smalti.common.config import declared
from smalti.common.layout import Layout
from smalti.tokenizer.config import TrainedConfig
from smalti.tokenizer.criterion.likelihood.config import GaussianConfig as GaussianLikelihoodConfig
from smalti.tokenizer.criterion.likelihood.config import LikelihoodConfig
from smalti.tokenizer.criterion.objective.config import ELBOConfig, ObjectiveConfig
from smalti.tokenizer.labels import check_labels
from smalti.tokenizer.network.config import ConvolutionalConfig, NetworkConfig
from smalti.tokenizer.posterior.config import GaussianConfig as GaussianPosteriorConfig
from smalti.tokenizer.posterior.config import PosteriorConfig

if TYPE_CHECKING:  # torch takes seconds, and reading settings does without
    from smalti.common.data.images import ImageSet


@declared("smalti.tokenizer.vae.model")
class VAEConfig(TrainedConfig):
    """The variational autoencoder (Kingma and Welling 2014), and without a posterior the autoencoder."""

    later: ClassVar[frozenset[str]] = frozenset({"condition"})

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
    condition: Condition = Nothing()
    """what encoder and decoder are told of an image: nothing; class: its class, for p(x | z, y) and q(z | x, y)"""

    @model_validator(mode="after")
    def _goes_together(self) -> "VAEConfig":
        pixels = self.image_channels * prod(self.image_size)
        if self.network.grid(self.image_size) is None and self.latents == "grid":
            raise ValueError(f"latents: a network of kind {self.network.name()} has no grid; take latents image")
        if self.layout.length > pixels:
            raise ValueError(
                f"latent_dim: {self.layout} are {self.layout.length} numbers for an image of {pixels}; take fewer"
            )
        if not isinstance(self.condition, Nothing | Classes):
            raise ValueError(f"condition: images are labelled with a class alone, got {self.condition.name()}")
        if not self.posterior.stochastic and self.objective.needs_density:
            raise ValueError(
                f"objective: {self.objective.name()} needs log q(z | x), which posterior none has not; "
                "take objective reconstruction or wae, or another posterior"
            )
        if not self.posterior.stochastic and self.objective.samples > 1:
            raise ValueError(
                f"objective: samples {self.objective.samples} of posterior none are all the same; leave samples out"
            )
        return self

    @property
    def wants_black_and_white(self) -> bool:
        return self.likelihood.name() == "bernoulli"

    @property
    def least_images(self) -> int:
        return self.objective.least_images

    @property
    def against_collapse(self) -> tuple[str, ...]:
        free = 0.1 * (1 if self.posterior.kl_by_number else self.latent_dim)
        of_objective = (line.format(free=f"{free:g}") for line in self.objective.against_collapse)
        return (*of_objective, "lower --lr")

    @property
    def conditional(self) -> bool:
        return self.condition.told

    def over(self, images: "ImageSet") -> Self:
        """Return the settings with the names of the images' classes, where they are told of. Raises `check_labels`'."""
        if not self.condition.told:
            return self
        given = Classes(names=images.class_names or ())
        check_labels(self.condition if self.condition.class_names else given, images)
        return self.model_copy(update={"condition": given.seen(images.splits["train"].labels)})

    def scheduled(self, progress: float) -> dict[str, float]:
        return self.objective.scheduled(progress)

    @property
    def grid(self) -> tuple[int, int] | None:
        """Return (h, w) of the vectors, or None for one vector of the whole image."""
        return self.network.grid(self.image_size) if self.latents == "grid" else None

    @property
    def layout(self) -> Layout:
        return Layout.of(*(self.grid or (1,)), depth=self.latent_dim)
