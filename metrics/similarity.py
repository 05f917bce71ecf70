"""Similarity of an image to the one it should equal: one number a pair, of 8-bit pixels.

Shapes: images and others (B, C, H, W) uint8; each result (B,) fp32.

SSIM: Wang et al. 2004, in the form of torchmetrics, which agrees with the authors' weights of 11 x 11, sigma 1.5.
"""

import torch
from torch import Tensor

KERNEL, SIGMA = 11, 1.5  # of SSIM's Gaussian weights


def squared_error_each(images: Tensor, others: Tensor) -> Tensor:
    """Return the mean squared error (B,) between two batches of uint8 images, in levels of 255."""
    return (images.float() - others.float()).square().mean((1, 2, 3))


def psnr_of(squared_error: Tensor) -> Tensor:
    """Return the PSNR in dB, 10 log10(255² / MSE), of each mean squared error; 100 dB, not infinity, for none.

    For the errors of images (B,) it is each image's own PSNR; for their mean it is the pooled PSNR, which papers
    report. The mean of each image's own is higher: a few smooth images raise it much, and the worst lower it little.
    """
    return 10 * torch.log10(255**2 / squared_error.clamp_min(255**2 * 1e-10))


def psnr_each(images: Tensor, others: Tensor) -> Tensor:
    """Return each image's own PSNR, (B,) dB."""
    return psnr_of(squared_error_each(images, others))


def ssim_each(images: Tensor, others: Tensor) -> Tensor:
    """Return the SSIM of each pair, (B,) in [-1, 1]; 1 for equal images of any size.

    A side shorter than 11 pixels has no room for the weights: then they are as wide as the largest odd number that fits
    the shorter side, and sigma shrinks with them, 1.5 · width / 11. Such figures compare among themselves alone.
    """
    from torchmetrics.functional.image import structural_similarity_index_measure  # 1.6 s that most commands never need

    if len(images) == 0:
        return images.new_zeros(0, dtype=torch.float32)
    shorter = min(images.shape[2:])
    width = min(KERNEL, shorter - 1 + shorter % 2)
    found = structural_similarity_index_measure(
        images.float(),
        others.float(),
        sigma=SIGMA * width / KERNEL,
        kernel_size=width,
        data_range=255.0,
        reduction="none",
    )
    assert isinstance(found, Tensor)  # a pair only if more than the similarity is asked for
    return found.reshape(len(images))  # of one image torchmetrics returns a number without a shape
