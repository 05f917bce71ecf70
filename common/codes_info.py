"""The settings of a codes dataset, `codes.json`: what its rows are, and whose. See `common/codes.py`."""

from typing import TYPE_CHECKING, Any, ClassVar

from pydantic import Field, model_validator

from smalti.common.condition import Condition
from smalti.common.config import Settings
from smalti.common.latent_statistics import LatentStatistics
from smalti.common.layout import Layout

if TYPE_CHECKING:
    import numpy as np

MOST_VIEWS = 2**20  # of an image
MOST_IMAGES = 2**40  # of a shard


class TokenizerIdentity(Settings):
    """The tokenizer that wrote the codes; two with the same SHA-256 of their weights are the same."""

    name: str
    sha256: str = Field(pattern="^[0-9a-f]{64}$")

    def __str__(self) -> str:
        return f"{self.name} (sha256 {self.sha256[:12]})"


class CodesInfo(Settings):
    """The settings in `codes.json`."""

    later: ClassVar[frozenset[str]] = frozenset({"moments", "statistics"})

    layout: Layout
    """what stands where in a row"""
    views: int = Field(ge=1, le=MOST_VIEWS)
    condition: Condition
    """what rows are told of"""
    tokenizer: TokenizerIdentity
    source: dict[str, Any]
    """the images' settings and their fingerprint"""
    shard_size: int = Field(ge=1, le=MOST_IMAGES)
    moments: bool = False
    """a row has the mean and the standard deviation of q(z | x), not one vector: columns `latents` and `scale`"""
    statistics: LatentStatistics | None = None
    """mean and deviation of the vectors' channels over the training rows; null of codes, and where not measured"""

    @model_validator(mode="after")
    def _of_the_layout(self) -> "CodesInfo":
        if self.statistics is not None:
            self.statistics.check(self.layout)
        return self

    @property
    def dtype(self) -> "np.dtype":
        """Return the smallest unsigned type that holds K codes; float32 of vectors."""
        import numpy as np  # a third of the time in which a command reads its settings, which do without

        return np.min_scalar_type(self.layout.codebook_size - 1) if self.layout.discrete else np.dtype(np.float32)

    @property
    def condition_columns(self) -> tuple[str, ...]:
        """Return the names of the columns that hold the condition."""
        return () if self.condition.column is None else (self.condition.column,)

    @property
    def column(self) -> str:
        """Return the name of the column that holds the codes or vectors."""
        return "codes" if self.layout.discrete else "latents"

    @property
    def list_columns(self) -> tuple[str, ...]:
        """Return the names of the columns of T numbers a row."""
        return (self.column, "scale") if self.moments else (self.column,)
