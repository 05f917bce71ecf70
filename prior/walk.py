"""The prior's distributions one after another, each once the codes before it are known: what an entropy coder walks along.

Shapes: labels (B,); codes (B, T), raster order; logits (B, V_g) of part g of a code, whose values digits are.

Who codes and who decodes must compute the very same numbers, so both walk here, step by step; the parallel forward of
training rounds its sums otherwise.
"""

from collections.abc import Callable

import torch
from torch import Tensor

from smalti.common.digits import to_index
from smalti.prior.decoder import Decoder, NumberedStep
from smalti.prior.model import Prior


@torch.inference_mode()
def walk(prior: Prior, labels: Tensor, choose: Callable[[Tensor, int, int], Tensor]) -> Tensor:
    """codes (B, T), of which `choose(logits, t, g)` says part g of code t: digits (B,), on the device of the logits."""
    decoder = Decoder(prior, len(labels), "fp32")
    codes = labels.new_zeros(len(labels), 0)
    for t in range(prior.config.length):
        x = prior.inputs(labels, codes, None)[:, -1].contiguous()
        place = torch.full_like(labels, t)
        hidden = decoder.step(x, decoder.turns(1 + place, place), NumberedStep(t))
        digits: list[Tensor] = []
        for g in range(len(prior.vocabularies)):
            digits.append(choose(decoder.logits(hidden, t % prior.config.code_depth, digits), t, g))
        code = to_index(torch.stack(digits, dim=-1), prior.vocabularies)
        codes = torch.cat([codes, code[:, None]], dim=1)
    return codes
