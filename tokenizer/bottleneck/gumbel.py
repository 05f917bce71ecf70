"""`gumbel`: the code is drawn, not chosen, by the lecture's estimator, hard forward and soft backward.

    q(k | z_e) = softmax_k(−s |z_e − e_k|²)          a posterior over codes, sharper as s grows; s is learned
    one_hot    = onehot(argmax_k(log q + Gumbel noise))          forward: an exact draw from q
    d one_hot  = d softmax((log q + noise) / τ)                  backward: τ falls with the step

Jang et al. (2017), https://arxiv.org/abs/1611.01144; as a tokenizer Ramesh et al. (2021),
https://arxiv.org/abs/2102.12092, app. A. The regularizer is the ELBO's rate under a uniform prior, KL(q || uniform) =
ln K − H(q). In evaluation the likeliest code is taken, which is the nearest. The softmax needs N x K memory, which is
why this one is not the default.
"""

import math

import torch
from einops import rearrange
from torch import Tensor, nn

from smalti.tokenizer.bottleneck.base import Quantized
from smalti.tokenizer.bottleneck.config import GumbelConfig
from smalti.tokenizer.bottleneck.estimators import gumbel_softmax
from smalti.tokenizer.bottleneck.table import TableQuantizer

SHARPNESS = 10.0  # of q at the start: draws are mostly among the nearest few


@GumbelConfig.register
class GumbelQuantizer(TableQuantizer):
    """The Gumbel quantizer; its codebook (K, D) and log s are parameters."""

    config: GumbelConfig

    def __init__(self, config: GumbelConfig):
        super().__init__(config)
        self.log_sharpness = nn.Parameter(torch.tensor(math.log(SHARPNESS)))
        self.temperature = config.temperature

    def anneal(self, progress: float) -> None:
        self.temperature = self.config.temperature_at(progress)

    def log_posterior(self, z_e: Tensor) -> Tensor:
        """Return log q(k | z_e) of prepared z_e (B, D, P): (B · P, K)."""
        flat, vectors = rearrange(z_e, "b d p -> (b p) d"), self.vectors
        squared = flat.square().sum(1, keepdim=True) - 2 * flat @ vectors.T + vectors.square().sum(1)
        return (-self.log_sharpness.exp() * squared).log_softmax(dim=1)

    def assignments(self, quantized: Quantized) -> Tensor:
        """Return the nearest codes: one that is drawn now and then but never nearest is dead in evaluation."""
        return self.nearest(quantized.z_e)

    def quantize(self, z_e: Tensor) -> Quantized:
        zero = z_e.new_zeros(())
        if not self.training:
            indices = self.nearest(z_e)
            return Quantized(self.lookup(indices), indices, zero, zero, zero, z_e)
        B, _, P = z_e.shape
        log_q = self.log_posterior(z_e)
        one_hot, indices = gumbel_softmax(log_q, self.temperature)
        z_q = rearrange(one_hot @ self.vectors, "(b p) d -> b d p", b=B, p=P)
        rate = math.log(self.config.codebook_size) + (log_q.exp() * log_q).sum(1).mean()
        return Quantized(z_q, indices.view(B, P), zero, zero, self.config.kl_weight * rate, z_e)
