"""The settings of drawing from a prior, of all kinds together."""

from collections.abc import Iterator
from typing import Any, Literal

from pydantic import Field, field_validator

from smalti.common.config import Settings

Precision = Literal["auto", "fp32", "bf16", "int8"]
CODE_SETTINGS = frozenset(  # of whatever draws a code from logits
    {"temperature", "top_k", "top_p", "min_p", "guidance", "guidance_schedule", "guidance_power"}
)


class CodeSampling(Settings):
    """The settings of drawing one code from its distribution."""

    temperature: float = Field(1.0, ge=1e-6, le=1e6)
    """logits are divided by it: below 1 is safer, above 1 more varied"""
    top_k: int | None = Field(None, ge=1)
    """draw among the k likeliest codes only; this and the next two are of each part of a code, where codebooks of more
    than 2^14 codes are predicted in parts"""
    top_p: float | None = Field(None, gt=0, le=1)
    """draw among the fewest codes that hold this share of the probability (Holtzman et al. 2019)"""
    min_p: float | None = Field(None, ge=0, le=1)
    """draw among the codes at least this share as likely as the likeliest (Nguyen et al. 2024)"""
    guidance: float = Field(1.0, ge=0, le=1e4)
    """classifier-free guidance (Ho and Salimans 2022): 1 is none, above 1 leans towards the class"""

    @field_validator("temperature", mode="before")
    @classmethod
    def _not_zero(cls, value: Any) -> Any:
        if value in (0, "0", "0.0"):
            raise ValueError(
                "at 0 there is nothing to draw from; leave it out, and give top_k 1 for the likeliest code each time"
            )
        return value


class SamplingConfig(CodeSampling):
    """The settings of drawing from the prior's distribution. A prior says which of them it heeds."""

    guidance_schedule: Literal["constant", "linear", "power-cosine"] = "constant"
    """how guidance rises from 1 to its value at the last code or pass: at once, linearly, or late and steeply (RAR)"""
    guidance_power: float = Field(2.75, gt=0)
    """of power-cosine: the greater, the later guidance sets in"""
    precision: Precision = "auto"
    """of the weights: auto is bf16 if the hardware computes it and gains by it, else fp32; int8, the coarsest, is for
    single images on a CPU"""
    steps: int | None = Field(None, ge=1, le=2**16)
    """passes over all of an image, of a prior that draws it whole: null is 12 of a masked prior and 25 of a diffusion
    prior"""
    order: Literal["confidence", "halton", "random"] = "confidence"
    """of a masked prior, which codes a pass keeps: those it is surest of, in Halton's order, evenly over the grid
    (Besnier et al. 2025), or at random"""
    choice_temperature: float = Field(4.5, ge=0, le=1e6)
    """of a masked prior in order of confidence: noise in the choice, which falls to 0 at the last pass (Chang et al.
    2022); 0 is none, which makes images plain"""
    solver: Literal["ddpm", "ddim", "euler", "dpm"] | None = None
    """of a diffusion prior: ddpm draws noise in each step, ddim and dpm (DPM-Solver++, second order) none; euler is of
    flow matching; null is dpm"""
    resampling: int = Field(10, ge=1, le=1000)
    """of a diffusion prior that completes an image: how often each step is taken, so that the two parts agree (RePaint,
    Lugmayr et al. 2022)"""

    def without_effect(self) -> Iterator[str]:
        """Yield a line on each setting that another one switches off."""
        if self.guidance == 1 and self.guidance_schedule != "constant":
            yield f"guidance_schedule {self.guidance_schedule} does nothing at guidance 1, which is none"
        elif self.guidance_schedule != "power-cosine" and self.guidance_power != SamplingConfig().guidance_power:
            yield f"guidance_power is of guidance_schedule power-cosine, and does nothing with {self.guidance_schedule}"
