"""The settings of a feature extractor, and of the classifier that serves as one."""

from typing import Annotated, Literal

from pydantic import Field, model_validator

from smalti.common.config import Settings

KIND = """`classifier`: trained on the images' own labels; `inception`: of the FID; `torchvision`, `timm`: a model of
that library by name; `torchscript`: a network saved as TorchScript; `none`: compare no features, train no classifier"""


class Recipe(Settings):
    """The recipe of training. The defaults reach 93% on Fashion-MNIST (with `mirror`), 97% on digits of 16x16."""

    width: int = Field(24, ge=1)
    """channels of the first level; twice as many at the second, four times from the third on"""
    epochs: int = Field(4, ge=1)
    """passes over the training images"""
    least_steps: int = Field(600, ge=1)
    """optimizer steps at least; a small set is passed over more often"""
    batch_size: int = Field(128, ge=2)
    """images a step"""
    peak_lr: float = Field(4e-3, gt=0)
    """of one cycle (Smith and Topin 2018)"""
    weight_decay: float = Field(0.05, ge=0)
    """AdamW's"""
    label_smoothing: float = Field(0.05, ge=0, lt=1)
    """share of the target spread over all classes"""
    mirror: bool = False
    """mirror half of the images left-right: for clothes and animals, never for digits; images.flip says the same"""
    seed: int = Field(0, ge=0, le=2**62)
    """of the weights and the order of the images"""


class FeaturesConfig(Settings):
    """The feature extractor that compares images."""

    kind: Annotated[
        Literal["classifier", "inception", "torchvision", "timm", "torchscript", "none"], Field(description=KIND)
    ] = "classifier"
    name: str | None = None
    """torchvision, timm: which model, `resnet50`; torchscript: what figures call it, null takes the file's name"""
    weights: str | None = None
    """a local file of weights: .safetensors, or .pth with a state dict; null downloads what the library has. Of
    torchscript the network itself"""
    channels: Literal["rgb", "data"] = "rgb"
    """torchscript: give it RGB whatever the images are, or the channels of the data"""
    batch_size: int = Field(64, ge=1)
    """images at once"""
    classifier: Recipe = Recipe()
    """how the classifier of the images' labels is trained; its figures compare with those of the same recipe alone"""

    @model_validator(mode="after")
    def _belongs_together(self) -> "FeaturesConfig":
        if self.kind in ("torchvision", "timm") and self.name is None:
            raise ValueError(f"kind {self.kind} needs name, a model of {self.kind}: resnet50, for example")
        if self.kind == "torchscript" and self.weights is None:
            raise ValueError("kind torchscript needs weights, the file that torch.jit.save wrote")
        if self.kind == "classifier" and self.weights is not None:
            raise ValueError("kind classifier takes no weights, it is trained on the images' labels; leave weights out")
        if self.kind == "none" and (self.name, self.weights) != (None, None):
            raise ValueError("kind none loads no network; leave name and weights out")
        return self
