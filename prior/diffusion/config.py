"""The config of a latent diffusion prior."""

from typing import ClassVar, Literal

from pydantic import Field, model_validator

from smalti.common.config import declared
from smalti.prior.config import TrainedArchitecture

Target = Literal["flow", "v", "epsilon"]
Schedule = Literal["linear", "cosine"]


@declared("smalti.prior.diffusion.model")
class DiffusionConfig(TrainedArchitecture):
    """A diffusion Transformer (Peebles and Xie 2023): the sizes that no other stage decides, and what it predicts."""

    over: ClassVar = "vectors"
    kind: Literal["diffusion"] = "diffusion"
    """diffusion over vectors: noise is taken away from all places at once, in steps"""
    target: Target = "flow"
    """what the network predicts. flow: noise minus latents, on the straight line between them (Lipman et al. 2022, Liu
    et al. 2022); v: its like on a circle (Salimans and Ho 2022); epsilon: the noise (Ho et al. 2020)"""
    schedule: Schedule | None = None
    """how noise grows over the 1000 levels of v and epsilon. linear: beta from 0.0001 to 0.02 (Ho et al. 2020);
    cosine: Nichol and Dhariwal (2021); null is cosine of v and linear of epsilon; flow has none"""
    depth: int = Field(6, ge=1, le=512)
    """Transformer blocks"""
    dim: int = Field(256, ge=8, le=2**15)
    """C, width of the residual stream"""
    heads: int = Field(4, ge=1, le=2**12)
    """attention heads; dim / heads must be a multiple of 4, two rotated pairs for each of two axes"""
    dropout: float = Field(0.0, ge=0, lt=1)
    """on what each block adds"""

    @model_validator(mode="after")
    def _goes_together(self) -> "DiffusionConfig":
        if self.dim % (4 * self.heads):
            raise ValueError(f"dim {self.dim} must be a multiple of 4 x heads = {4 * self.heads}")
        if self.target == "flow" and self.schedule is not None:
            raise ValueError(f"schedule {self.schedule} is of target v or epsilon; flow has none, leave it out")
        if self.target == "epsilon" and self.schedule == "cosine":
            raise ValueError(
                "target epsilon needs schedule linear: under cosine nothing of the latents is left at the last level, "
                "and there the noise does not say what they were; take target v"
            )
        return self

    @property
    def unit_variance(self) -> bool:
        return True

    @property
    def head_dim(self) -> int:
        return self.dim // self.heads

    @property
    def noise_schedule(self) -> Schedule | None:
        """Return the schedule of noise, chosen where the config leaves it open; None of flow."""
        if self.target == "flow":
            return None
        return self.schedule or ("cosine" if self.target == "v" else "linear")
