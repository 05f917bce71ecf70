"""Smalti: images into tiles, tiles into images.

The rooms of the package are the folders that stand on top of a checkout. There this file takes in what stands beside
it; in an installed wheel they lie inside. The public face is imported when it is asked for, since torch takes seconds.
"""

from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from smalti.common.plots import make_grid
    from smalti.pipeline.image_pipeline import ImagePipeline
    from smalti.pipeline.image_tokens import ImageTokens
    from smalti.prior.model import load_prior
    from smalti.tokenizer.model import load_tokenizer

__all__ = ["ImagePipeline", "ImageTokens", "load_prior", "load_tokenizer", "make_grid"]

_FACE = {
    "ImagePipeline": "smalti.pipeline.image_pipeline",
    "ImageTokens": "smalti.pipeline.image_tokens",
    "load_prior": "smalti.prior.model",
    "load_tokenizer": "smalti.tokenizer.model",
    "make_grid": "smalti.common.plots",
}
_checkout = Path(__file__).resolve().parents[1]
if (_checkout / "pyproject.toml").is_file() and (
    _checkout / "tokenizer/train.py"
).is_file():  # never all of site-packages
    __path__.append(str(_checkout))


def __getattr__(name: str) -> Any:
    if name not in _FACE:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from importlib import import_module

    return getattr(import_module(_FACE[name]), name)


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__])
