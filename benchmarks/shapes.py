"""Shapes of Transformer to time, and for each our prior and the peer's: as deep, as wide, over as many codes."""

from dataclasses import dataclass

from torch import nn
from x_transformers import Decoder, TransformerWrapper

from smalti.common.codes_info import TokenizerIdentity
from smalti.common.condition import condition_of
from smalti.common.layout import Layout
from smalti.prior.config import PriorConfig
from smalti.prior.layers import hidden_width
from smalti.prior.transformer.config import Preset, TransformerConfig
from smalti.prior.transformer.model import TransformerPrior


@dataclass(frozen=True, kw_only=True)
class Shape:
    preset: Preset
    codebook_size: int
    side: int  # of the grid of codes
    classes: int = 0

    @property
    def architecture(self) -> TransformerConfig:
        return TransformerConfig(preset=self.preset, dropout=0)

    @property
    def length(self) -> int:
        return self.side**2


SMALL = Shape(preset="5m", codebook_size=512, side=8)
MIDDLE = Shape(preset="38m", codebook_size=1024, side=16)
LARGE = Shape(preset="343m", codebook_size=16_384, side=24)


def make_prior(shape: Shape) -> TransformerPrior:
    """Return our prior, unconditional where the shape has no classes."""
    config = PriorConfig(
        layout=Layout.of(shape.side, shape.side, factors=(shape.codebook_size,)),
        architecture=shape.architecture,
        condition=condition_of(tuple(map(str, range(shape.classes))) or None),
        tokenizer=TokenizerIdentity(name="none", sha256="0" * 64),
    )
    return TransformerPrior(config)


def make_x_transformer(shape: Shape, flash: bool = True) -> TransformerWrapper:
    """Return the peer, with one more token, which opens a sequence."""
    a = shape.architecture
    blocks = Decoder(
        dim=a.dim,
        depth=a.depth,
        heads=a.heads,
        attn_dim_head=a.head_dim,
        rotary_pos_emb=True,
        use_rmsnorm=True,
        ff_swish=True,
        ff_glu=True,
        ff_mult=hidden_width(a.dim) / a.dim,
        ff_no_bias=True,
        attn_flash=flash,
    )
    tokens, length = shape.codebook_size + 1, shape.length + 1
    return TransformerWrapper(num_tokens=tokens, max_seq_len=length, use_abs_pos_emb=False, attn_layers=blocks)


def parameters(model: nn.Module) -> int:
    return sum(each.numel() for each in model.parameters())
