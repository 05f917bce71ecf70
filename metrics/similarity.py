"""How alike an image is to the one it should equal: one number a pair, of 8-bit pixels.

Shapes: images and others (B, C, H, W) uint8; each result (B,) fp32.

SSIM: Wang et al. 2004, in the form of torchmetrics, which agrees with the authors' weights of 11 x 11, sigma 1.5.
"""

import torch
from torch import Tensor

KERNEL, SIGMA = 11, 1.5  # of SSIM's Gaussian weights


def psnr_each(images: Tensor, others: Tensor) -> Tensor:
    """(B,) dB between two batches of uint8 images; equal images give 100 dB, not infinity."""
    mse = (images.float() - others.float()).square().mean((1, 2, 3))
    return 10 * torch.log10(255**2 / mse.clamp_min(255**2 * 1e-10))


def ssim_each(images: Tensor, others: Tensor) -> Tensor:
    """(B,) in [-1, 1]; 1 for equal images, whatever their size.

    A side shorter than 11 pixels has no room for the weights: then they are as wide as the largest odd number that fits the
    shorter side, and sigma shrinks with them, 1.5 · width / 11. Such figures compare among themselves alone.
    """
    from torchmetrics.functional.image import structural_similarity_index_measure  # 1.6 s that most commands never need

    shorter = min(images.shape[2:])
    width = min(KERNEL, shorter - 1 + shorter % 2)
    found = structural_similarity_index_measure(
        images.float(), others.float(), sigma=SIGMA * width / KERNEL, kernel_size=width, data_range=255.0, reduction="none"
    )
    assert isinstance(found, Tensor)  # a pair only for who asks for more than the similarity
    return found.reshape(len(images))  # of one image torchmetrics returns a number without a shape
