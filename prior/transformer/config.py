"""The config of a causal Transformer."""

from collections.abc import Mapping
from typing import Any, ClassVar, Literal

from pydantic import Field, model_validator

from smalti.common.config import declared
from smalti.prior.config import LevelArchitecture

Preset = Literal["5m", "14m", "38m", "111m", "343m"]
# Named after their number of weights; the last two are counted with the 16,384 codes of LlamaGen.
PRESETS: dict[Preset, dict[str, int]] = {
    "5m": {"depth": 6, "dim": 256, "heads": 4},
    "14m": {"depth": 8, "dim": 384, "heads": 6},
    "38m": {"depth": 12, "dim": 512, "heads": 8},
    "111m": {"depth": 12, "dim": 768, "heads": 12},  # LlamaGen-B (Sun et al. 2024, https://arxiv.org/abs/2406.06525)
    "343m": {"depth": 24, "dim": 1024, "heads": 16},  # LlamaGen-L
}


@declared("smalti.prior.transformer.model")
class TransformerConfig(LevelArchitecture):
    """A causal Transformer: the sizes that no other stage decides."""

    over: ClassVar = "codes"
    kind: Literal["transformer"] = "transformer"
    """attention over all codes before"""
    stands_for: ClassVar[Mapping[str, tuple[str, ...]]] = {"preset": ("depth", "dim", "heads")}

    preset: Preset | None = None
    """a shape by its number of weights: sets depth, dim and heads where they are not given beside it"""
    depth: int = Field(6, ge=1, le=512)
    """Transformer blocks"""
    dim: int = Field(256, ge=8, le=2**15)
    """C, width of the residual stream"""
    heads: int = Field(4, ge=1, le=2**12)
    """attention heads; dim / heads must be a multiple of 4, two rotated pairs for each of the two axes"""
    kv_heads: int | None = Field(None, ge=1)
    """heads of keys and values, each shared by heads / kv_heads queries (Ainslie et al. 2023): fewer make the cache
    smaller; null is as many as heads"""
    dropout: float = Field(0.1, ge=0, lt=1)
    """on embeddings and on what each block adds; small sets need it"""

    @model_validator(mode="before")
    @classmethod
    def _fill_in(cls, given: Any) -> Any:
        if isinstance(given, dict) and isinstance(given.get("preset"), str):
            return {**PRESETS.get(given["preset"], {}), **given}
        return given

    @model_validator(mode="after")
    def _divides(self) -> "TransformerConfig":
        if self.dim % (4 * self.heads):
            raise ValueError(f"dim {self.dim} must be a multiple of 4 x heads = {4 * self.heads}")
        if self.heads % self.key_heads:
            raise ValueError(f"heads {self.heads} must be a multiple of kv_heads {self.kv_heads}")
        return self

    @property
    def any_order(self) -> bool:
        return True

    @property
    def key_heads(self) -> int:
        """Return the number of heads of keys and values."""
        return self.kv_heads or self.heads

    @property
    def head_dim(self) -> int:
        return self.dim // self.heads
