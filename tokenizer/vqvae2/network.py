"""The two networks between neighbouring levels: features to the level above, and what that level decodes to back.

Shapes, for a level of (h, w) places under one of (⌈h / 2⌉, ⌈w / 2⌉):
    Coarser  (B, C, h, w) -> (B, C, ⌈h / 2⌉, ⌈w / 2⌉)
    Finer    (B, N, ⌈h / 2⌉, ⌈w / 2⌉) -> (B, C, h, w)

A place of the upper level lies over two by two of the lower; the last one of an odd side lies half over the edge.
"""

from typing import NamedTuple

import torch.nn.functional as F
from torch import Tensor, nn

from smalti.tokenizer.network.convolutional import ConvolutionalDecoder, ConvolutionalEncoder


class HalvingSizes(NamedTuple):
    """The sizes of a convolutional network of one halving, whose residual blocks are those of its middle alone."""

    channels: tuple[int, int]
    attention: bool
    patch: int = 1
    blocks: int = 0


class Coarser(nn.Module):
    """The encoder of a level above the bottom, of the features of the level below."""

    def __init__(self, width: int, attention: bool):
        super().__init__()
        self.encoder = ConvolutionalEncoder(HalvingSizes((width, width), attention), width, width)

    def forward(self, features: Tensor) -> Tensor:
        h, w = features.shape[2:]
        return self.encoder(F.pad(features, (0, w % 2, 0, h % 2), mode="replicate"))


class Finer(nn.Module):
    """The decoder of a level above the bottom, to the places of the level below."""

    def __init__(self, inputs: int, width: int, attention: bool):
        super().__init__()
        self.decoder = ConvolutionalDecoder(HalvingSizes((width, width), attention), inputs, width)

    def forward(self, vectors: Tensor, grid: tuple[int, int]) -> Tensor:
        h, w = grid
        return self.decoder(vectors)[..., :h, :w]
