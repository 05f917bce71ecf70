"""The settings of every trunk."""

from typing import Any, ClassVar, Literal

from pydantic import Field

from smalti.common.config import Kind, declared
from smalti.metrics.features_config import Recipe


class TrunkConfig(Kind):
    """A frozen network whose feature maps images are compared by."""

    kinds: ClassVar[dict[str, Any]] = {}
    usual: ClassVar[str] = "classifier"


@declared("smalti.tokenizer.criterion.trunk.classifier")
class OwnClassifierConfig(TrunkConfig):
    """A small classifier, trained before the first step on the training images."""

    kind: Literal["classifier"] = "classifier"
    """trained on the labels of the training images, or to tell their rotations apart where they have none"""
    task: Literal["auto", "rotations"] = "auto"
    """what it is trained to tell: auto is the labels where there are some; rotations whatever there is"""
    recipe: Recipe = Recipe(epochs=1, least_steps=150)
    """how it is trained, from the next seed: shorter than the evaluation's, since edges and textures come first; an
    epoch of rotations has every image in four turns"""


@declared("smalti.tokenizer.criterion.trunk.torchscript")
class TorchScriptConfig(TrunkConfig):
    """A network from a TorchScript file."""

    kind: Literal["torchscript"] = "torchscript"
    """a network from a TorchScript file, which gives feature maps"""
    path: str
    """the file that torch.jit.save wrote"""
    channels: Literal["rgb", "data"] = "rgb"
    """what it is shown: RGB whatever the images are, or the channels of the data"""
    least_side: int = Field(1, ge=1, le=2**12)
    """pixels; images whose shorter side has fewer are enlarged to it before the trunk sees them"""


class NamedNetworkConfig(TrunkConfig):
    """A network of a library."""

    kind: str  # declared here to stand before the others, where a config is written
    """which library's"""
    network: str
    """which network, `vgg16` for example"""
    path: str
    """the file of its weights: a state dict, .safetensors or .pth"""
    least_side: int = Field(64, ge=1, le=2**12)
    """pixels; images whose shorter side has fewer are enlarged to it before the trunk sees them"""


@declared("smalti.tokenizer.criterion.trunk.torchvision")
class TorchvisionConfig(NamedNetworkConfig):
    """A network of torchvision."""

    kind: Literal["torchvision"] = "torchvision"
    """a network of torchvision by name, its weights from a file"""


@declared("smalti.tokenizer.criterion.trunk.timm")
class TimmConfig(NamedNetworkConfig):
    """A network of timm."""

    kind: Literal["timm"] = "timm"
    """a network of timm by name, its weights from a file"""
