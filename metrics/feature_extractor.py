"""Feature extractors: the networks by whose features drawn images are compared with real ones.

    images (N, C, H, W) uint8, C = 1, 3 or 4  ->  prepare  ->  network  ->  features (N, D) fp32

A distance between features means nothing without the network: its figure carries the network's name (`frechet_name`),
and is called `fid` where it is that of Heusel et al. 2017, Inception with the weights of 2015-12-05, and nowhere else.
Weights are read as tensors alone, never unpickled, and a network without its weights is refused.
"""

import difflib
import hashlib
import io
import warnings
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any
from urllib.error import URLError
from urllib.parse import urlparse

import torch
import torch.nn.functional as F
from safetensors import SafetensorError
from torch import Tensor, nn

from smalti.common.ends import pass_on
from smalti.common.errors import UserError
from smalti.common.folder import remove, sha256
from smalti.common.tensors import check_types, read_tensors
from smalti.metrics.classifier import Classifier, to_pixels
from smalti.metrics.features_config import FeaturesConfig

EVAL = "pip install torch-fidelity"
# the SHA-256 of Inception's weights of 2015-12-05 begins so: torch-fidelity's and pytorch-fid's file
FID_WEIGHTS = "6726825d"
IMAGENET_SIDE, IMAGENET_MEAN, IMAGENET_STD = 224, (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


# ----------------------------------------------------------------------------------- what the networks want to be shown


def rgb(images: Tensor) -> Tensor:
    """Return uint8 (N, C, H, W) as uint8 (N, 3, H, W): grey is repeated, transparency is laid on white."""
    channels = images.shape[1]
    if channels == 1:
        return images.expand(-1, 3, -1, -1)
    if channels == 4:
        opacity = images[:, 3:] / 255
        return (images[:, :3] * opacity + 255 * (1 - opacity)).round().to(torch.uint8)
    if channels != 3:
        raise ValueError(f"images have 1 channel (grey), 3 (RGB) or 4 (RGBA), got {channels}")
    return images


def rgb_pixels(images: Tensor) -> Tensor:
    """Return images as RGB in [-1, 1]."""
    return to_pixels(rgb(images))


def imagenet(images: Tensor, mean: Sequence[float] = IMAGENET_MEAN, std: Sequence[float] = IMAGENET_STD) -> Tensor:
    """Return images as RGB of 224 x 224, bicubic, normalised as most networks trained on ImageNet expect."""
    size = (IMAGENET_SIDE, IMAGENET_SIDE)
    pixels = F.interpolate(rgb(images) / 255, size, mode="bicubic", antialias=True).clamp(0, 1)
    centre, scale = (pixels.new_tensor(value).view(3, 1, 1) for value in (mean, std))
    return (pixels - centre) / scale


class Features:
    """A feature extractor, called on images; any network will do: `Features(network, name="mine", prepare=rgb)`."""

    def __init__(
        self,
        network: nn.Module,
        name: str,
        prepare: Callable[[Tensor], Tensor] = rgb_pixels,
        device: torch.device | str = "cpu",
        batch_size: int = 64,
        identity: str | None = None,
    ):
        """
        Args:
            network: prepared images to (N, D); it is moved to the device and set to evaluation mode.
            name: what its figures are called after.
            prepare: images (N, C, H, W) uint8 to what the network wants.
            identity: what caches know it by; its name, its preparation and the SHA-256 of its weights when not given.
        """
        self.network, self.name, self.prepare = network.to(device).eval(), name, prepare
        self.device, self.batch_size = torch.device(device), batch_size
        self.identity = identity or identity_of(name, prepare, network.state_dict())

    @property
    def frechet_name(self) -> str:
        """Return the name of a Fréchet distance of these features."""
        return f"fd_{self.name}"

    @torch.no_grad()
    def __call__(self, images: Tensor) -> Tensor:
        """Return features (N, D) fp32, on the device, of images (N, C, H, W) uint8. Raises `ValueError` for others."""
        if images.dtype != torch.uint8 or images.ndim != 4 or not len(images):
            raise ValueError(f"images must be uint8 (N, C, H, W), got {images.dtype} {tuple(images.shape)}")
        return torch.cat([self._of_few(batch.to(self.device)) for batch in images.split(self.batch_size)])

    def _of_few(self, images: Tensor) -> Tensor:
        with torch.autocast(self.device.type, enabled=False):  # a figure must not depend on how the model was run
            found = self.network(self.prepare(images))
        if not isinstance(found, Tensor) or found.ndim != 2 or len(found) != len(images):
            got = tuple(found.shape) if isinstance(found, Tensor) else type(found).__name__
            raise UserError(f"the network {self.name} must give features ({len(images)}, D), got {got}")
        if not found.isfinite().all():
            raise UserError(f"the network {self.name} gives NaN or Inf for some images; they cannot be compared by it")
        return found.float()


class FIDFeatures(Features):
    """Inception with the weights that Heusel et al. 2017 used, and no other network."""

    @property
    def frechet_name(self) -> str:
        return "fid"


def identity_of(name: str, prepare: Callable[..., Any], weights: Mapping[str, Any]) -> str:
    """Return the SHA-256 of everything that the features depend on."""
    content = hashlib.sha256(f"{name} {getattr(prepare, '__qualname__', type(prepare).__qualname__)}".encode())
    for key, tensor in weights.items():
        content.update(f"{key} {tensor.dtype} {tuple(tensor.shape)}".encode())
        content.update(tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy())
    return content.hexdigest()


# -------------------------------------------------------------------------------------------- weights, as tensors alone


def read_weights(path: Path) -> dict[str, Tensor]:
    """Return the state dict of a .safetensors or .pth file. Raises `UserError` if it is absent, damaged or not that."""
    if not path.is_file():
        raise UserError(f"there is no file of weights {path}")
    try:
        safe = path.suffix == ".safetensors"
        found = read_tensors(path) if safe else torch.load(path, map_location="cpu", weights_only=True)
    except (SafetensorError, RuntimeError, EOFError, OSError, ValueError) as error:
        pass_on(error)
        raise UserError(f"{path} cannot be read as weights: {_first_line(error)}") from None
    except Exception as error:  # pickle.UnpicklingError, and nearly anything else of a file that is no pickle
        pass_on(error)
        raise UserError(
            f"{path} holds something else than tensors, and is not unpickled; save the network's state_dict() alone, "
            "best as .safetensors"
        ) from None
    if not isinstance(found, Mapping) or not all(isinstance(value, Tensor) for value in found.values()):
        shown = ", ".join(map(str, list(found)[:5])) if isinstance(found, Mapping) else type(found).__name__
        raise UserError(
            f"{path} must hold a state dict, names of tensors; got {shown}; save the network's state_dict() alone"
        )
    return dict(found)


def _first_line(error: Exception) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0][:200]


def _downloaded(url: str) -> Path:
    """Return a file of torch.hub's cache, downloaded if it is missing, checked against the hash in its name."""
    path = Path(torch.hub.get_dir()) / "checkpoints" / Path(urlparse(url).path).name
    hashed = torch.hub.HASH_REGEX.search(path.name)
    if not path.exists():
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            torch.hub.download_url_to_file(url, str(path), hashed.group(1) if hashed else None, progress=False)
        except (URLError, OSError, RuntimeError) as error:
            raise UserError(
                f"the weights {url} cannot be downloaded ({_first_line(error)}); "
                "fetch that file elsewhere and give its path as weights"
            ) from None
    if hashed and not sha256(path).startswith(hashed.group(1)):
        remove(path)
        raise UserError(f"{path} was damaged and has been removed; the same command downloads it again")
    return path


def _fill(network: nn.Module, weights: Mapping[str, Tensor], path: Path) -> None:
    try:
        check_types(weights, network.state_dict())
        network.load_state_dict(weights)  # strict
    except (RuntimeError, ValueError) as error:
        raise UserError(f"{path} does not fit the network: {' '.join(str(error).split())[:300]}") from None


def _without(weights: Mapping[str, Tensor], head: str) -> dict[str, Tensor]:
    """Return the weights without a classification head's, which may have any number of classes."""
    return {key: value for key, value in weights.items() if not key.startswith(f"{head}.")}


# ---------------------------------------------------------------------------------------------------------- the kinds


def load_features(
    config: FeaturesConfig, device: torch.device | str = "cpu", classifier: Classifier | None = None
) -> Features:
    """Return the feature extractor that the settings choose.

    Args:
        classifier: for kind `classifier`, from `metrics.classifier.load_or_train`.

    Raises:
        UserError: a library or weights are missing, or do not fit; it says which and what to do.
    """
    kinds = {"inception": _inception, "torchvision": _torchvision, "timm": _timm, "torchscript": _torchscript}
    if config.kind in kinds:
        return kinds[config.kind](config, device)
    if classifier is None:
        raise UserError(
            "features of kind classifier need labelled images to train it on; choose another kind for these"
        )
    return Features(classifier.trunk, "classifier", classifier.prepare, device, config.batch_size)


class _Inception(nn.Module):
    """torch-fidelity's Inception, with TensorFlow's resizing inside: uint8 RGB of any size -> (N, 2048)."""

    def __init__(self, weights: Mapping[str, Tensor]):
        from torch_fidelity.feature_extractor_inceptionv3 import FeatureExtractorInceptionV3

        super().__init__()
        file = io.BytesIO()  # torch-fidelity unpickles the file it is given: it is given tensors that were read safely
        torch.save(dict(weights), file)
        file.seek(0)
        self.network = FeatureExtractorInceptionV3("inception-v3-compat", ["2048"], feature_extractor_weights_path=file)

    def forward(self, images: Tensor) -> Tensor:
        return self.network(images)[0]


def _inception(config: FeaturesConfig, device: torch.device | str) -> Features:
    try:
        from torch_fidelity.feature_extractor_inceptionv3 import URL_INCEPTION_V3
    except ImportError:
        raise UserError(f"features of kind inception need torch-fidelity; {EVAL}") from None
    path = Path(config.weights) if config.weights else _downloaded(URL_INCEPTION_V3)
    weights = read_weights(path)
    try:
        network = _Inception(weights)
    except RuntimeError as error:
        raise UserError(f"{path} does not fit Inception: {' '.join(str(error).split())[:300]}") from None
    file = sha256(path)
    if file.startswith(FID_WEIGHTS):
        return FIDFeatures(network, "inception", rgb, device, config.batch_size)
    return Features(network, f"inception_{file[:8]}", rgb, device, config.batch_size)


def torchvision_network(name: str, weights: str | None) -> nn.Module:
    """Return a network of torchvision whose head, the last linear layer, is an identity.

    Args:
        weights: a local file; None downloads what torchvision has.
    """
    from torchvision import models

    if name not in models.list_models(module=models):
        near = difflib.get_close_matches(name, models.list_models(module=models), 1)
        raise UserError(f"torchvision has no model {name!r}{f'; did you mean {near[0]}?' if near else ''}")
    path = Path(weights) if weights else _downloaded(models.get_model_weights(name).DEFAULT.url)
    with torch.random.fork_rng(devices=[]):
        network = models.get_model(name, weights=None)
    heads = [key for key, module in network.named_modules() if isinstance(module, nn.Linear)]
    if not heads:
        raise UserError(f"torchvision's {name} ends in no linear layer, so its features are not known; take another")
    network.set_submodule(heads[-1], nn.Identity())
    if hasattr(network, "transform_input"):
        network.transform_input = True  # GoogLeNet's and Inception's weights were made for it
    _fill(network, _without(read_weights(path), heads[-1]), path)
    return network


def _torchvision(config: FeaturesConfig, device: torch.device | str) -> Features:
    assert config.name is not None  # its settings ask for it
    network = torchvision_network(config.name, config.weights)
    return Features(network, config.name, imagenet, device, config.batch_size)


def timm_network(name: str, weights: str | None) -> nn.Module:
    """Return a network of timm without its head, its weights from a file, or by default those that timm publishes.

    Raises:
        UserError: timm is missing, has no such network or reaches no weights, or the file does not fit.
    """
    try:
        import timm
    except ImportError:
        raise UserError("networks of timm need it; pip install timm") from None
    if not timm.is_model(name):
        near = difflib.get_close_matches(name, timm.list_models(), 1)
        raise UserError(f"timm has no model {name!r}{f'; did you mean {near[0]}?' if near else ''}")
    try:
        with torch.random.fork_rng(devices=[]):
            network: nn.Module = timm.create_model(name, pretrained=weights is None, num_classes=0)
    except (OSError, RuntimeError) as error:
        pass_on(error)
        raise UserError(
            f"timm has or reaches no weights of {name} ({_first_line(error)}); "
            "fetch its model.safetensors elsewhere and give its path as weights"
        ) from None
    if weights:
        heads = timm_facts(network).get("classifier") or ()
        found = read_weights(Path(weights))
        for head in (heads,) if isinstance(heads, str) else heads:
            found = _without(found, head)
        _fill(network, found, Path(weights))
    return network


def timm_facts(network: nn.Module) -> Mapping[str, Any]:
    """Return what timm says of a network's weights: `mean` and `std` of the pixels that they expect, `classifier`."""
    facts: Mapping[str, Any] = network.pretrained_cfg  # type: ignore[assignment]  # of every network of timm
    return facts


def _timm(config: FeaturesConfig, device: torch.device | str) -> Features:
    assert config.name is not None  # its settings ask for it
    network = timm_network(config.name, config.weights)
    facts = timm_facts(network)
    if (facts["mean"], facts["std"]) == (IMAGENET_MEAN, IMAGENET_STD):
        return Features(network, config.name, imagenet, device, config.batch_size)
    prepare = partial(imagenet, mean=facts["mean"], std=facts["std"])
    said = f"{config.name} normalised by {facts['mean']} and {facts['std']}"
    identity = identity_of(said, imagenet, network.state_dict())
    return Features(network, config.name, prepare, device, config.batch_size, identity)


class _Stranger(nn.Module):
    """A network from elsewhere, which may expect other images than these."""

    def __init__(self, network: nn.Module, path: Path):
        super().__init__()
        self.network, self.path = network, path

    def forward(self, images: Tensor) -> Tensor:
        try:
            return self.network(images)
        except RuntimeError as error:
            if isinstance(error, torch.OutOfMemoryError):
                raise
            shape = tuple(images.shape[1:])
            raise UserError(
                f"{self.path} does not take images {shape}: {str(error).strip().splitlines()[-1][:200]}"
            ) from None


def torchscript_network(path: Path, device: torch.device | str) -> nn.Module:
    """Return the network in a TorchScript file, which runs itself and no Python."""
    if not path.is_file():
        raise UserError(f"there is no TorchScript file {path}")
    try:
        with warnings.catch_warnings():
            for kind in (FutureWarning, DeprecationWarning):  # one day torch stops writing TorchScript; files remain
                warnings.simplefilter("ignore", kind)
            return torch.jit.load(path, map_location=device)
    except (RuntimeError, ValueError) as error:
        raise UserError(f"{path} is not a network that torch.jit.save wrote: {_first_line(error)}") from None


def _torchscript(config: FeaturesConfig, device: torch.device | str) -> Features:
    """Return the features of a TorchScript file."""
    assert config.weights is not None  # its settings ask for them
    path = Path(config.weights)
    network = torchscript_network(path, device)
    prepare = rgb_pixels if config.channels == "rgb" else to_pixels
    identity = hashlib.sha256(f"{sha256(path)} {config.channels}".encode()).hexdigest()
    return Features(_Stranger(network, path), config.name or path.stem, prepare, device, config.batch_size, identity)
