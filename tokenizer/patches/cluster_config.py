"""The settings of tokenizer/cluster.py, with the kinds of tokenizers that it fits."""

from pydantic import Field

from smalti.common.choices import Tracker
from smalti.common.config import Settings
from smalti.common.data.config import ImagesConfig
from smalti.tokenizer.config import EncodeConfig
from smalti.tokenizer.kmeans.config import KMeansConfig
from smalti.tokenizer.mixture.config import GaussianMixtureConfig
from smalti.tokenizer.patches.config import PatchesConfig

KINDS = (KMeansConfig, GaussianMixtureConfig)  # importing them declares them


class ClusterConfig(Settings):
    """Stage one without a network: fit a tokenizer of patches by EM."""

    run: str = "runs/digits_kmeans"
    """folder of the experiment; this stage writes into its subfolder tokenizer/"""
    images: ImagesConfig = ImagesConfig()
    """which images, and how they are read; they are taken as they are, neither moved nor mirrored"""
    model: PatchesConfig = Field(default_factory=PatchesConfig.default)
    """the tokenizer"""
    encode: EncodeConfig = EncodeConfig()
    """how tokenizer/encode.py will turn the images into codes"""
    iterations: int = Field(20, ge=1)
    """steps of EM, each over all training images"""
    seed: int = Field(0, ge=0, le=2**62)
    """of the first means"""
    track: tuple[Tracker, ...] = ()
    """trackers that get what metrics.jsonl gets, and pictures at every evaluation: tensorboard, wandb, trackio"""
    track_project: str = Field("smalti", pattern=r"^[\w.-]+$", max_length=100)
    """under which they file the run"""
