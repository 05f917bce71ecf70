"""Fully sharded training (FSDP2): every process holds a part of each weight, gradient, average and optimizer state.

    accelerate launch --config_file configs/imagenet256/fsdp.yaml prior/train.py configs/imagenet256/prior.yaml

Accelerate's configuration asks for it; without one, nothing here has an effect. A sharded tensor is a `DTensor`. Files
hold whole tensors, so the same run may go on with other processes, and without sharding. torch's sharding is imported
where it is used: it takes a third of the time in which a command starts.
"""

import sys
from collections.abc import Mapping
from typing import TYPE_CHECKING, TypeGuard

import torch
from accelerate import Accelerator, DistributedType, FullyShardedDataParallelPlugin
from torch import Tensor, nn
from torch.optim import Optimizer

from smalti.common.errors import UserError

if TYPE_CHECKING:
    from torch.distributed.tensor import DTensor

NEEDED = {  # of Accelerate's configuration
    "fsdp_version": 2,
    # would draw another dropout in the backward pass; our `recompute` draws the same
    "fsdp_activation_checkpointing": False,
    # each process has the weights already; Accelerate 1.15 fails on ours with it
    "fsdp_cpu_ram_efficient_loading": False,
    "fsdp_offload_params": False,
}


def prepare(
    model: nn.Module, average: nn.Module, optimizers: Mapping[str, Optimizer], accelerator: Accelerator
) -> tuple[nn.Module, dict[str, Optimizer]]:
    """Return a model and its optimizers, prepared by Accelerate; where it shards, shard the average in place too.

    Raises:
        UserError: Accelerate is configured for a sharding under which the training would not be right.
    """
    sharded = accelerator.distributed_type == DistributedType.FSDP
    if sharded:
        from accelerate.utils.fsdp_utils import fsdp2_prepare_model
        from torch.distributed.fsdp import FSDPModule, MixedPrecisionPolicy

        plugin = accelerator.state.fsdp_plugin
        check_fsdp(plugin)
        # Accelerate's policy for bf16 would round the logits too and sum gradients in bf16; autocast does as without
        # sharding.
        plugin.mixed_precision_policy = MixedPrecisionPolicy()
    prepared, *each = accelerator.prepare(model, *optimizers.values())
    if sharded:
        prepared.forward = accelerator.autocast()(prepared.forward)
        fsdp2_prepare_model(accelerator, average)
        assert isinstance(average, FSDPModule)  # it is now: sharding gives it another class
        average.set_reshard_after_forward(True)  # the root too, which else waits for a backward pass: there is none
    return prepared, dict(zip(optimizers, each, strict=True))


def check_fsdp(plugin: FullyShardedDataParallelPlugin) -> None:
    """Raise `UserError` unless Accelerate is configured as this training needs it."""
    from torch.distributed.fsdp import CPUOffloadPolicy

    offload = plugin.cpu_offload
    given = {
        "fsdp_version": plugin.fsdp_version,
        "fsdp_activation_checkpointing": plugin.activation_checkpointing,
        "fsdp_cpu_ram_efficient_loading": plugin.cpu_ram_efficient_loading,
        "fsdp_offload_params": getattr(offload, "offload_params", isinstance(offload, CPUOffloadPolicy)),
    }
    for name, needed in NEEDED.items():
        if given[name] != needed:
            raise UserError(
                f"{name} must be {str(needed).lower()} in the config of accelerate, got {str(given[name]).lower()}; "
                "configs/imagenet256/fsdp.yaml is one that serves"
            )


def is_sharded(tensor: Tensor | None) -> "TypeGuard[DTensor]":
    """Return whether a tensor is a part of one that all processes hold together."""
    module = sys.modules.get("torch.distributed.tensor")  # where nobody has imported it there are none
    return module is not None and isinstance(tensor, module.DTensor)


def whole(tensors: Mapping[str, Tensor], accelerator: Accelerator) -> dict[str, Tensor]:
    """Return sharded tensors whole, on the CPU of the main process. Every process must call this."""
    gathered = {}
    for name, tensor in tensors.items():
        if is_sharded(tensor):
            tensor = tensor.full_tensor()
            tensor = tensor.cpu() if accelerator.is_main_process else tensor.new_empty(0)
        gathered[name] = tensor
    return gathered


def parts_like(tensor: Tensor, parameter: Tensor) -> Tensor:
    """Return an optimizer's tensor sharded as its parameter is, if it has its shape: the inverse of `whole`."""
    if not is_sharded(parameter) or tensor.shape != parameter.shape:
        return tensor
    from torch.distributed.tensor import distribute_tensor

    with torch.no_grad():
        here = tensor.to(parameter.device)
        mesh, placements = parameter.device_mesh, parameter.placements
        return distribute_tensor(here, mesh, placements, src_data_rank=None)  # every process has read the tensor
