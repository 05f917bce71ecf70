"""Products with a matrix of weights in the sampling loop: few rows, always as many, thousands of times.

    x (N, C) -> y (N, O) = x Wᵀ, for a weight W (O, C); x of any type, y of the type that is multiplied in

With few rows a product takes the time of reading W, and on a CPU of bringing W into the kernel's own layout, which
`F.linear` does at every call. So W is packed once, for the number of rows of a step; other numbers of rows work too,
more slowly. `F.linear` multiplies where the build of torch has no packed kernel.
"""

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

from smalti.common.launch import computes_bf16
from smalti.prior.sampling_config import Precision

Matrix = Callable[[Tensor], Tensor]
INT8_INPUTS = 32  # torch's int8 kernel reads beyond the weights unless the inputs are a multiple of it
# Up to so many rows, and below so many weights, fp32 is faster on a CPU than bf16 in oneDNN: a step of single images
# took the `5m` of benchmarks/sampling.py 1.30 ms with matrices of 360,000 weights in bf16, and 1.13 ms all in fp32.
FEW, SMALL = 4, 2**19
# A Transformer whose matrices all have fewer weights draws as fast in fp32 on a CPU: a guided digit (width 128) took
# 20 ms in place of 30, a Fashion-MNIST image (width 160) 80 in place of 105, and 64 at once the same within a tenth.
# From a width of 192 batches gain a fifth and more by bf16.
GAINS = 160_000


def resolve(precision: Precision, device: torch.device, largest: int) -> Precision:
    """Return the precision on a device. `auto` is bf16 where the hardware computes it and gains by it, else fp32.

    Args:
        largest: number of weights of the largest matrix.
    Raises:
        ValueError: int8 on another device than a CPU, which has no kernel for it.
    """
    if precision == "auto":
        gains = device.type != "cpu" or largest >= GAINS
        return "bf16" if gains and computes_bf16(device.type) else "fp32"
    if precision == "int8" and device.type != "cpu":
        raise ValueError(f"precision int8 is for CPUs, got {device.type}; leave it at auto")
    return precision


def cache_type(precision: Precision, rows: int, device: torch.device) -> torch.dtype:
    """Return the type of keys and values: bf16 with bf16 weights, else fp32.

    With few rows on a CPU it is fp32 too, because rounding costs more than reading.
    """
    few = device.type == "cpu" and rows <= FEW
    return torch.bfloat16 if precision == "bf16" and not few else torch.float32


def make_matrix(weight: Tensor, rows: int, precision: Precision) -> Matrix:
    """Return the product with a weight (O, C), laid out for `rows` rows.

    Args:
        precision: fp32, bf16, or int8: whole numbers with one scale an output, multiplied with bf16.
    """
    weight = weight.detach().contiguous()
    if precision == "int8":
        return _rounded(weight, rows)
    if precision == "bf16" and weight.device.type == "cpu" and rows <= FEW and weight.numel() < SMALL:
        precision = "fp32"
    weight = weight.to(torch.bfloat16 if precision == "bf16" else torch.float32)
    if weight.device.type == "cpu":
        pack = _packed_by_mkl if precision == "fp32" else _packed_by_onednn
        try:
            packed = pack(weight, rows)
            packed(weight.new_zeros(rows, weight.shape[1]))
            return packed
        except (AttributeError, RuntimeError, NotImplementedError):  # a build without MKL or oneDNN
            pass
    return lambda x: F.linear(x.to(weight.dtype), weight)


def _packed_by_mkl(weight: Tensor, rows: int) -> Matrix:
    if rows == 1:  # a product with one vector reads W as it is
        transposed = weight.T.contiguous()
        return lambda x: torch.mm(x.float(), transposed)
    linear = torch.ops.mkl._mkl_linear
    packed = torch.ops.mkl._mkl_reorder_linear_weight(weight, rows)
    return lambda x: linear(x.float(), packed, weight, None, rows)


def _packed_by_onednn(weight: Tensor, rows: int) -> Matrix:
    linear = torch.ops.mkldnn._linear_pointwise
    packed = torch.ops.mkldnn._reorder_linear_weight(weight, rows)
    return lambda x: linear(x.bfloat16(), packed, None, "none", [], "")


def _rounded(weight: Tensor, rows: int) -> Matrix:
    """Return the product in int8, with one scale an output: its weights err by at most 1/254 of the largest."""
    scale = weight.abs().amax(dim=1).clamp_min(1e-12) / 127
    rounded = (weight / scale[:, None]).round()
    if weight.shape[1] % INT8_INPUTS:
        return make_matrix(rounded * scale[:, None], rows, "fp32")
    rounded, scale = rounded.to(torch.int8), scale.bfloat16()
    return lambda x: torch._weight_int8pack_mm(x.bfloat16(), rounded, scale)
