"""The settings of every objective of a VAE, each kind with the file that has its paper and equation."""

from typing import Any, ClassVar, Literal

from pydantic import Field

from smalti.common.config import Kind, declared


class ObjectiveConfig(Kind):
    """What training a VAE minimises."""

    kinds: ClassVar[dict[str, Any]] = {}
    usual: ClassVar[str] = "elbo"
    needs_density: ClassVar[bool] = True  # whether it needs log q(z | x), which an autoencoder has not
    least_images: ClassVar[int] = 1  # of a micro-batch
    against_collapse: ClassVar[tuple[str, ...]] = ()  # what its settings can do where numbers of z go unused

    samples: int = Field(1, ge=1, le=2**14)
    """draws of z for each image, over which the objective is averaged; memory and time grow with them"""

    def scheduled(self, progress: float) -> dict[str, float]:
        """Return the values that change with the share of the steps done, by name."""
        return {}


@declared("smalti.tokenizer.criterion.objective.reconstruction")
class ReconstructionConfig(ObjectiveConfig):
    """Reconstruction alone: q(z | x) shrinks to points, and p(z) says nothing of where they are."""

    kind: Literal["reconstruction"] = "reconstruction"
    """the reconstruction alone, as of an autoencoder"""
    needs_density: ClassVar[bool] = False


@declared("smalti.tokenizer.criterion.objective.elbo")
class ELBOConfig(ObjectiveConfig):
    """The evidence lower bound."""

    kind: Literal["elbo"] = "elbo"
    """the evidence lower bound; with kl_weight β-VAE"""
    against_collapse: ClassVar = (
        "let the KL cost less at first (--model.objective.kl_warmup 0.3)",
        "leave some of it free (--model.objective.free_bits {free})",
        "take a lower --model.objective.kl_weight",
    )
    kl_weight: float = Field(1.0, ge=0)
    """β on the KL; only at 1 is the loss a bound on −log p(x)"""
    kl_warmup: float = Field(0.0, ge=0, le=1)
    """share of the steps over which the KL's weight rises from 0, so that latents are used before they cost"""
    free_bits: float = Field(0.0, ge=0)
    """nats that are free of charge for each number of z, or for each place where the KL is no sum over numbers"""

    def weight(self, progress: float) -> float:
        """Return the KL's weight at a share of the steps."""
        return self.kl_weight * (min(1.0, progress / self.kl_warmup) if self.kl_warmup else 1.0)

    def scheduled(self, progress: float) -> dict[str, float]:
        return {"kl_weight": self.weight(progress)} if self.kl_warmup else {}


@declared("smalti.tokenizer.criterion.objective.iwae")
class IWAEConfig(ObjectiveConfig):
    """The importance-weighted bound."""

    kind: Literal["iwae"] = "iwae"
    """the importance-weighted bound of `samples` draws"""
    samples: int = Field(5, ge=1, le=2**14)
    """K, draws of z for each image; memory and time grow with them"""


@declared("smalti.tokenizer.criterion.objective.mmd")
class WAEConfig(ObjectiveConfig):
    """The Wasserstein autoencoder by MMD."""

    kind: Literal["wae"] = "wae"
    """Wasserstein autoencoder: MMD in place of the KL"""
    needs_density: ClassVar[bool] = False
    least_images: ClassVar[int] = 2  # it compares pairs
    against_collapse: ClassVar = ("take a lower --model.objective.mmd_weight",)
    mmd_weight: float = Field(1000.0, ge=0)
    """λ, nats an image that an MMD² of 1 costs"""


@declared("smalti.tokenizer.criterion.objective.mmd")
class InfoVAEConfig(ObjectiveConfig):
    """InfoVAE by MMD."""

    kind: Literal["infovae"] = "infovae"
    """InfoVAE: part of the KL, and MMD"""
    least_images: ClassVar[int] = 2  # it compares pairs
    against_collapse: ClassVar = ("take a lower --model.objective.kl_weight",)
    kl_weight: float = Field(0.1, ge=0)
    """1 − α on the KL"""
    mmd_weight: float = Field(1000.0, ge=0)
    """α + λ − 1, nats an image that an MMD² of 1 costs"""
