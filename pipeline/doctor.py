"""Describe this machine, what Accelerate will do on it, and whether a config fits.

    python pipeline/doctor.py
    python pipeline/doctor.py configs/cifar10          # or one file of it, configs/cifar10/prior.yaml

Prints versions, devices, free memory and disk. For a config it prints the memory of each training step: what the
optimizer keeps for every weight, counted, and the activations that autograd keeps, counted by one step on tensors
without storage. Reads and writes nothing else, and asks no network.
"""

import math
import shutil
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

if __package__ in (None, ""):
    sys.path[0] = str(Path(__file__).resolve().parents[1])
    from smalti.common.starting import answer_signals

    answer_signals()

from smalti.common import config
from smalti.common.command_line import answer_at_once, is_command


class Settings(config.Settings):
    """Describe this machine, and whether a config fits it."""

    configs: str | None = None
    """a shipped or own folder of configs, or one YAML file of it; without one the machine alone"""


def read_settings(argv: Sequence[str]) -> Settings:
    return config.parse(
        Settings, __doc__, argv, positional="configs", positional_help="a folder of configs, or one file of it"
    )


if is_command(__name__):  # --help and a wrong setting are answered before torch is imported
    answer_at_once(read_settings)

import psutil
import torch
from accelerate import Accelerator
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode

from smalti.common import codes
from smalti.common.codes_info import CodesInfo, TokenizerIdentity
from smalti.common.commands import as_typed
from smalti.common.condition import Nothing
from smalti.common.errors import UserError
from smalti.common.latent_statistics import unit_statistics
from smalti.common.launch import computes_bf16, make_accelerator, run_command
from smalti.common.record import code_version, cores, cpu_model
from smalti.pipeline.run_arguments import run_arguments
from smalti.prior.config import FitConfig, PriorConfig
from smalti.prior.config import TrainConfig as PriorTraining
from smalti.prior.model import build_prior
from smalti.tokenizer.config import TrainConfig as TokenizerTraining
from smalti.tokenizer.model import build_tokenizer
from smalti.tokenizer.patches.cluster_config import ClusterConfig

PACKAGES = ("torch", "torchvision", "accelerate", "datasets", "huggingface_hub", "safetensors", "numpy", "pillow")
EXTRAS = {"eval": ("torch-fidelity",), "app": ("gradio",), "track": ("tensorboard", "wandb", "trackio")}
EXTRAS |= {"onnx": ("onnx", "onnxruntime", "onnxscript"), "lm": ("transformers",)}
ADAMW, MUON, EMA, GRADIENT, WEIGHT = 2, 1, 1, 1, 1  # fp32 numbers a weight
WORKSPACE = 1.5  # factor on the counted bytes: cifar10's steps took 1.2 to 1.5 on a CPU, both stages, fp32 and bf16
GIB = 2**30
NOT = "DOES NOT FIT"


# ----------------------------------------------------------------------------------------------------- the machine


def installed(name: str) -> str | None:
    """Return the version of a package; None where it is not installed."""
    try:
        return version(name)
    except PackageNotFoundError:
        return None


def version_lines() -> Iterator[str]:
    """Yield the versions of Smalti, Python and packages, and the extras that are missing."""
    yield f"smalti    {code_version()}, python {sys.version.split()[0]}"
    yield "packages    " + ", ".join(f"{name} {installed(name)}" for name in PACKAGES)
    for extra, names in EXTRAS.items():
        there = [f"{name} {installed(name) or 'missing'}" for name in names]
        missing = [name for name in names if not installed(name)]
        hint = f"; pip install {' '.join(missing)}" if missing else ""
        yield f"extra {extra:<5} {', '.join(there)}{hint}"


def machine_lines() -> Iterator[str]:
    """Yield the processor, memory, disk and devices."""
    memory = psutil.virtual_memory()
    yield f"processor   {cpu_model()}, {cores()} cores, {torch.get_num_threads()} threads of torch"
    yield f"memory      {memory.available / GIB:.1f} GiB free of {memory.total / GIB:.1f}"
    yield f"disk        {shutil.disk_usage('.').free / GIB:.1f} GiB free here"
    for i in range(torch.cuda.device_count()):
        free, total = torch.cuda.mem_get_info(i)
        yield f"device {i}    {torch.cuda.get_device_name(i)}, {free / GIB:.1f} GiB free of {total / GIB:.1f}"
    if not torch.accelerator.is_available():
        yield "devices     none: everything runs on the processor"


def accelerate_lines(accelerator: Accelerator) -> Iterator[str]:
    """Yield what `python SCRIPT` and `accelerate launch SCRIPT` do here."""
    from accelerate.commands.config.config_args import default_config_file, load_config_from_file

    device = accelerator.device.type
    yield f"precision   auto is {'bf16' if computes_bf16(device) else 'fp32'} on this {device}"
    number = accelerator.num_processes
    yield f"accelerate  this command: {number} process{'es' * (number > 1)} on {device}"
    if not Path(default_config_file).is_file():
        yield "            accelerate launch: there is no config file of its own, --num_processes N decides"
        return
    try:
        kept = load_config_from_file(None)
    except Exception as error:  # accelerate's parser raises anything for a file by hand or of another version
        told = f"its config file cannot be read ({error}); accelerate config writes another"
        yield f"            accelerate launch: {told}"
        return
    yield (
        f"            accelerate launch: {kept.num_processes} process(es), {kept.distributed_type}, precision "
        f"{kept.mixed_precision} (ours decides), by its config file"
    )


# ------------------------------------------------------------------------------------------------------ the configs


def saved_for_backward(step: Callable[[], Tensor], weights: nn.Module) -> int:
    """Return the bytes that autograd keeps from `step`'s forward for its backward pass, each storage once."""
    own = {tensor.untyped_storage()._cdata for tensor in (*weights.parameters(), *weights.buffers())}
    kept: dict[int, Tensor] = {}

    def keep(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage._cdata not in own:
            kept[storage._cdata] = tensor
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        loss = step()
    total = sum(tensor.untyped_storage().nbytes() for tensor in kept.values())
    del loss
    return total


def count_parameters(model: nn.Module) -> int:
    """Return the number of weights of a model."""
    return sum(parameter.numel() for parameter in model.parameters())


@contextmanager
def without_storage(bf16: bool) -> Iterator[None]:
    """Give tensors shapes but no memory within, and compute the forward pass in the precision of training."""
    with FakeTensorMode(), torch.autocast("cpu", dtype=torch.bfloat16, enabled=bf16):
        yield


def tokenizer_step(c: TokenizerTraining, images: int, bf16: bool) -> tuple[int, int]:
    """Return the bytes of stage one that do not depend on the batch, and those of the activations of so many images."""
    with without_storage(bf16):
        model = build_tokenizer(c.model).train()
        pixels = torch.empty(images, c.model.image_channels, *c.model.image_size)
        labels = torch.zeros(images, dtype=torch.int64) if c.model.conditional else None
        saved = saved_for_backward(lambda: sum(model(pixels, labels).losses.values()), model)
    return 4 * count_parameters(model) * (WEIGHT + GRADIENT + ADAMW + EMA), saved


def prior_step(c: PriorTraining, model_config: PriorConfig, images: int, bf16: bool) -> tuple[int, int]:
    """Return the bytes of stage two that do not depend on the batch, and those of the activations of so many images."""
    with without_storage(bf16):
        model = build_prior(model_config).train()
        model.prepare(c)
        labels = torch.zeros(images, dtype=torch.int64)
        kind = torch.int64 if model_config.layout.discrete else torch.float32
        rows = torch.zeros(images, model_config.layout.length, dtype=kind)
        saved = saved_for_backward(lambda: model.loss(rows, labels, model).mean(), model)
    matrices = sum(p.numel() for p in model.matrices()) if c.matrix_lr is not None else 0
    return 4 * (count_parameters(model) * (WEIGHT + GRADIENT + ADAMW + EMA) - matrices * (ADAMW - MUON)), saved


def prior_over(path: Path, c: PriorTraining) -> PriorConfig:
    """Return the prior's config over the run's codes; before there are any, over those of the tokenizer beside it."""
    written = Path(c.codes or f"{c.run}/codes")
    if (written / "codes.json").exists():
        info, _ = codes.read_info(written)
        condition = info.condition if c.condition == "labels" else Nothing()
        return PriorConfig.over(info, c.model, condition=condition, any_order=c.order == "any")
    beside: dict[str, type[TokenizerTraining | ClusterConfig]] = {
        "tokenizer.yaml": TokenizerTraining,
        "cluster.yaml": ClusterConfig,
    }
    for name, settings in beside.items():
        first = path.with_name(name)
        if first.exists():
            model = config.build(settings, config.read_yaml(first), str(first)).model
            info = CodesInfo(
                layout=model.layout,
                views=1,
                condition=Nothing(),
                tokenizer=TokenizerIdentity(name="to be trained", sha256="0" * 64),
                source={},
                shard_size=1,
                statistics=None if model.layout.discrete else unit_statistics(model.layout),
            )
            return PriorConfig.over(info, c.model, any_order=c.order == "any")
    raise UserError(
        f"{path} is over the codes of {written}, which are not there yet, and no tokenizer.yaml stands beside it"
    )


def config_lines(path: Path, accelerator: Accelerator) -> Iterator[str]:
    """Yield what a config costs here. Raises `UserError` for a file that is no config."""
    given = config.read_yaml(path)
    if path.name == "cluster.yaml":
        c = config.build(ClusterConfig, given, str(path))
        yield f"{path}: {c.model.name()} of {c.model.codebook_size} patches, no network to train: fits"
        return
    if path.name == "fit.yaml":
        fitted = config.build(FitConfig, given, str(path))
        yield f"{path}: {fitted.model.name()} of vectors, no network to train: fits"
        return
    if path.name == "tokenizer.yaml":
        tokenizer = config.build(TokenizerTraining, given, str(path))
        each, bf16 = images_each(tokenizer, accelerator), in_bf16(tokenizer, accelerator)
        fixed, activations = tokenizer_step(tokenizer, each, bf16)
    else:
        prior = config.build(PriorTraining, given, str(path))
        each, bf16 = images_each(prior, accelerator), in_bf16(prior, accelerator)
        fixed, activations = prior_step(prior, prior_over(path, prior), each, bf16)
    yield from verdict_lines(path, fixed, activations, each, "bf16" if bf16 else "fp32", accelerator)


def images_each(c: TokenizerTraining | PriorTraining, accelerator: Accelerator) -> int:
    """Return the images of a micro-batch on one process."""
    return max(1, c.batch_size // (c.accumulate * accelerator.num_processes))


def in_bf16(c: TokenizerTraining | PriorTraining, accelerator: Accelerator) -> bool:
    """Return whether a training computes in bf16 here."""
    return c.precision == "bf16" or (c.precision == "auto" and computes_bf16(accelerator.device.type))


def verdict_lines(
    path: Path, fixed: int, activations: int, images: int, precision: str, accelerator: Accelerator
) -> Iterator[str]:
    """Yield the memory that a config needs, and whether it fits."""
    on_gpu = accelerator.device.type == "cuda"
    free = torch.cuda.mem_get_info()[0] if on_gpu else psutil.virtual_memory().available
    needed = (fixed + activations) * WORKSPACE
    place = f"device {accelerator.device.index or 0}" if on_gpu else "memory"
    yield f"{path}: {fixed / GIB:.2f} GiB of weights, gradients, optimizer and averages"
    yield f"  + {activations / GIB:.2f} GiB of activations of {images} images in {precision}"
    told = f"about {needed / GIB:.1f} GiB; {free / GIB:.1f} GiB are free in {place}"
    yield f"  x {WORKSPACE} for what lies around them: {told}"
    room, one = free / WORKSPACE - fixed, activations / images
    if needed <= free:
        yield "  fits" + ("" if on_gpu else ", beside the gigabyte or so that Python and torch take")
    elif room < one:
        yield f"  {NOT} one image at a time: take a smaller model or smaller images (or for a prior, FSDP)"
    else:
        parts = math.ceil(images / int(room / one))
        yield f"  {NOT}: accumulate, {parts} times what it is now, takes as many images a step in smaller parts"


def configs_of(path: Path) -> list[Path]:
    """Return the configs to check: the file, or those of a folder. Raises `UserError` where there are none."""
    if path.is_file():
        return [path]
    if not path.exists() and (near := config.near_configs(path, "*")):
        raise UserError(f"there is no {path}; did you mean {near[0]}?")
    found = [
        path / name for name in ("tokenizer.yaml", "cluster.yaml", "prior.yaml", "fit.yaml") if (path / name).exists()
    ]
    if not found:
        raise UserError(
            f"{path} must be a folder with tokenizer.yaml, cluster.yaml, prior.yaml or fit.yaml, or one of these files"
        )
    return found


def main(argv: Sequence[str]) -> None:
    c = read_settings(argv)
    accelerator = make_accelerator()
    for line in (*version_lines(), *machine_lines(), *accelerate_lines(accelerator)):
        accelerator.print(line)
    if c.configs is None:
        accelerator.print(f"next: {as_typed('pipeline/doctor.py', 'configs/digits')}    # whether a config fits")
        return
    found = configs_of(config.find_config(c.configs))
    told = [line for path in found for line in config_lines(path, accelerator)]
    for line in told:
        accelerator.print(line)
    if not any(NOT in line for line in told):
        accelerator.print(f"next: {as_typed('pipeline/run.py', *run_arguments(found[0]))}")


if __name__ == "__main__":
    run_command(main)
