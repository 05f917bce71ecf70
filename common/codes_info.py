"""The settings of a codes dataset, `codes.json`: what its rows are, and whose. See `common/codes.py`."""

from typing import TYPE_CHECKING, Annotated, Any, ClassVar

from pydantic import Field, SerializerFunctionWrapHandler, model_serializer, model_validator

from smalti.common.condition import Condition
from smalti.common.config import Settings
from smalti.common.latent_statistics import LatentStatistics
from smalti.common.layout import Layout

if TYPE_CHECKING:
    import numpy as np

MOST_VIEWS = 2**20  # of an image
MOST_IMAGES = 2**40  # of a shard


Sha256 = Annotated[str, Field(pattern="^[0-9a-f]{64}$")]


class TokenizerIdentity(Settings):
    """The tokenizer that wrote the codes: what decides a code, kept apart from what decodes it."""

    name: str
    sha256: Sha256
    """of the weights that decide its codes, `common/identity.py`; earlier versions wrote that of the whole file here"""
    files: tuple[Sha256, ...] = ()
    """SHA-256 of its `model.safetensors`, decoder included, and of those with the same codes that it began from; none
    where an earlier version wrote the identity"""

    @model_serializer(mode="wrap")
    def _as_it_was(self, dump: SerializerFunctionWrapHandler) -> dict[str, Any]:
        """Return the settings; those of an earlier version stay as that version wrote them."""
        return {name: value for name, value in dump(self).items() if name != "files" or value}

    def same_codes(self, other: "TokenizerIdentity") -> bool:
        """Return whether both make the same codes of every image, whatever they decode them to."""
        return not {self.sha256, *self.files}.isdisjoint({other.sha256, *other.files})

    @property
    def whole(self) -> str:
        """Return the SHA-256 of the whole file."""
        return self.files[0] if self.files else self.sha256

    def __str__(self) -> str:
        return f"{self.name} (sha256 {self.sha256[:12]})"


class Redrawn(Settings):
    """The draws that stand in a codes dataset where the images' own codes were: see `prior/redraw.py`."""

    prior: Sha256
    """of the weights that drew"""
    codes: Sha256
    """the fingerprint of the codes that were drawn anew"""
    sampling: dict[str, Any]
    """temperature and the other settings of a draw"""
    seed: int = Field(ge=0)


class CodesInfo(Settings):
    """The settings in `codes.json`."""

    later: ClassVar[frozenset[str]] = frozenset({"moments", "statistics", "redrawn"})

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
    redrawn: Redrawn | None = None
    """what a prior drew in place of each code; null where the codes are the images' own"""

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
