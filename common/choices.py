"""The words that settings of several commands choose among."""

from typing import Literal

Precision = Literal["auto", "fp32", "bf16"]
Tracker = Literal["tensorboard", "wandb", "trackio"]
Covariance = Literal["spherical", "diagonal", "full", "tied"]  # of a Gaussian of a mixture
