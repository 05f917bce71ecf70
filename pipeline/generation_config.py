"""`generation_config.json`: a pipeline's default sampling settings, and how they were chosen."""

from pathlib import Path
from typing import TypeVar

from pydantic import Field

from smalti.common import config, folder
from smalti.common.config import Settings
from smalti.prior.base import Prior
from smalti.prior.sampling_config import SamplingConfig

C = TypeVar("C", bound=SamplingConfig)


def carried(asked: C, kept: SamplingConfig, prior: Prior) -> tuple[C, str | None]:
    """Return settings without those of `kept` that the prior cannot draw with, and a line on them, if there are any.

    A run may have another prior by now than the one that its `generation_config.json` was written with. What was asked
    for beside the file's values stays, for the prior to refuse.
    """
    fields = SamplingConfig.model_fields
    names = prior.not_taken(asked)
    names += ["guidance"] if asked.guidance != 1 and not prior.config.takes_guidance else []
    names = [name for name in names if getattr(asked, name) == getattr(kept, name)]
    if not names:
        return asked, None
    told = ", ".join(f"{name} {getattr(kept, name)}" for name in names)
    return (
        asked.model_copy(update={name: fields[name].default for name in names}),
        f"{told}: kept in generation_config.json, and nothing that this prior draws by: left out",
    )


class Chosen(Settings):
    """The protocol of `pipeline/tune.py`: how it chose sampling settings, and the figures they reached."""

    metric: str
    """the Fréchet distance that was made small, named after its features"""
    split: str
    """of the codes dataset; never test"""
    held_out: int = Field(ge=1)
    """images of that split they were held against"""
    images: int = Field(ge=1)
    """drawn for each figure"""
    seed: int = Field(ge=0)
    """of the first image of every candidate"""
    fresh_seed: int = Field(ge=0)
    """of the first image of the two figures below, which no choice among candidates has seen"""
    candidates: int = Field(ge=1)
    """settings that were drawn and compared"""
    value: float
    """the figure of the settings chosen"""
    start_value: float
    """the figure of those the search began with"""
    start: SamplingConfig
    """which these were"""
    date: str


class GenerationConfig(SamplingConfig):
    """The contents of `generation_config.json`: sampling settings and, where a search chose them, its protocol."""

    chosen: Chosen | None = None

    @classmethod
    def read(cls, path: Path) -> "GenerationConfig":
        """Read the file. Raises `UserError` that names the file, and an unknown key."""
        return config.build(cls, folder.read_json(path), path)

    @classmethod
    def of_run(cls, run: Path) -> "GenerationConfig | None":
        """Return that of a run's pipeline, None where there is none; a folder that a kill left set aside comes back."""
        folder.mend(run / "pipeline")
        path = run / "pipeline/generation_config.json"
        return cls.read(path) if path.exists() else None

    @property
    def sampling(self) -> SamplingConfig:
        return SamplingConfig(**self.model_dump(include=set(SamplingConfig.model_fields)))
