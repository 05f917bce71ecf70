"""The settings of `pipeline/evaluate.py`."""

from pydantic import Field

from smalti.common.choices import Precision
from smalti.common.config import Settings as BaseSettings
from smalti.metrics.features_config import FeaturesConfig


class Settings(BaseSettings):
    """Evaluate a tokenizer and a prior together."""

    run: str = "runs/digits"
    """folder of the experiment"""
    codes: str | None = None
    """another folder of codes, where the prior was trained on one"""
    split: str | None = None
    """which split of the images; test, or where there is none validation, when null"""
    images: int | None = Field(None, ge=0)
    """drawn; as many as the split has, up to 10,000, when null; 0 leaves the samples out"""
    priced: int | None = Field(None, ge=1)
    """held-out images whose bits are measured, evenly spaced; as many as `images` when null, all where that is null or
    0"""
    seed: int = Field(0, ge=0, le=2**62)
    """drawn image i has seed `seed + i`"""
    neighbours: int = Field(1000, ge=0)
    """of the drawn images, how many are looked up among the training images"""
    importance_samples: int = Field(16, ge=1)
    """draws for each held-out image, where the posterior is stochastic: K of the importance-weighted bound"""
    features: FeaturesConfig = FeaturesConfig()
    """the features by which images are compared"""
    batch_size: int = Field(64, ge=1)
    """images at once where they are encoded and scored"""
    precision: Precision = "fp32"
    """of encoder, decoder and prior where images are priced; likelihoods are fp64 always, and drawing has its
    own"""
