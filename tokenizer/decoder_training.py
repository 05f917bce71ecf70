"""Training of the decoder alone: encoder and codebook are frozen, so that every code stays what it was.

    codes   = encode(x)                                   by the frozen encoder, as it encodes anywhere
    share   ~ U(0, replace_codes), one an image           of its codes that are replaced, each by chance
    loss    = −log p(x | codes with some replaced)

A prior's codes are not those of any image: some are wrong, and a decoder that was trained on right codes alone may make
more of a wrong one than a blemish. DeTok (Yang et al. 2025), https://arxiv.org/abs/2507.15856, trains tokenizers to
decode latents that noise has made worse; here it is codes, and the decoder alone. A wrong code of a prior is seldom any
code: it is one that could stand there too, so `near` replaces a code by one of the few whose vectors are nearest, and
`drawn` by what a prior drew in its place, given the image's own codes before it (prior/redraw.py). Free draws of a
prior are of no image, and so have no target.

Shapes: codes (B, T); neighbours (R, K, M), of each of R codebooks the M codes nearest to each of K.
"""

from collections.abc import Iterator

import torch
from torch import Tensor, nn

from smalti.common.errors import UserError
from smalti.common.identity import only_decodes
from smalti.common.layout import Layout
from smalti.tokenizer.base import DrawsCodes, LikelihoodTokenizer, Terms, TrainedTokenizer
from smalti.tokenizer.config import TrainConfig

NEAR = 8  # codes, of which a near one is drawn
MOST_CODES = 2**16  # of a codebook, whose distances are all computed
TILE = 2**10  # codes at once


class DecoderTraining(nn.Module):
    """A tokenizer of which a training moves what only decodes. It shares its weights."""

    def __init__(self, tokenizer: TrainedTokenizer, c: TrainConfig):
        """
        Args:
            tokenizer: with the weights of its encoder and codebook, whose neighbours are looked up now.
        Raises:
            UserError: codes are to be replaced, and there are none, or too many to know the nearest.
        """
        super().__init__()
        assert isinstance(tokenizer, LikelihoodTokenizer)
        self.tokenizer = tokenizer
        self.most = c.replace_codes
        self.replacement = code_replacement(self.tokenizer, c) if c.replace_codes else None

    def forward(self, images: Tensor, condition: Tensor | None = None, drawn: Tensor | None = None) -> Terms:
        """Return the terms of images (B, C, H, W), whose codes do not depend on what is trained.

        Args:
            drawn: (B, T), what a prior drew in the place of each code.
        """
        codes = self.tokenizer.encode(images, condition)
        if self.replacement is not None:
            share = torch.rand(len(codes), 1, device=codes.device) * self.most
            codes = self.replacement(codes, share, drawn)
        return self.tokenizer.decoder_terms(images, codes, condition)


def freeze_encoder(tokenizer: TrainedTokenizer) -> None:
    """Let gradients reach nothing but what only decodes, and let the tokenizer encode as in evaluation."""
    for name, parameter in tokenizer.named_parameters():
        parameter.requires_grad_(only_decodes(name, tokenizer.decodes_only))
    tokenizer.eval()


class CodeReplacement(nn.Module):
    """Replaces a random share of codes."""

    near: Tensor | None
    codebook: Tensor  # (T,) of each number of a sample

    def __init__(self, layout: Layout, by: str, near: Tensor | None = None):
        """
        Args:
            by: near, any or drawn, as `TrainConfig.replace_by`.
            near: neighbours of each code, for near.
        """
        super().__init__()
        assert (near is not None) == (by == "near")
        self.codebook_size, self.by = layout.codebook_size, by
        self.register_buffer("near", near, persistent=False)
        self.register_buffer("codebook", layout.codebook_of(), persistent=False)

    def forward(self, codes: Tensor, share: Tensor, drawn: Tensor | None = None) -> Tensor:
        """Return codes (B, T) of which each is replaced with the probability share (B, 1).

        Args:
            drawn: (B, T), by what they are replaced, for drawn.
        """
        assert (drawn is not None) == (self.by == "drawn")
        replaced = torch.rand(codes.shape, device=codes.device) < share
        if drawn is not None:
            others = drawn
        elif self.near is None:
            others = torch.randint(self.codebook_size, codes.shape, device=codes.device)
        else:
            which = torch.randint(self.near.shape[2], codes.shape, device=codes.device)
            others = self.near[self.codebook.expand_as(codes), codes, which]
        return torch.where(replaced, others, codes)


def code_replacement(tokenizer: LikelihoodTokenizer, c: TrainConfig) -> CodeReplacement:
    """Return what replaces a tokenizer's codes in a training of its decoder. Raises as `DecoderTraining`."""
    if not tokenizer.config.layout.discrete:
        raise UserError(f"replace_codes is of codes, and a tokenizer of kind {c.model.name()} has none")
    near = nearest_codes(tokenizer) if c.replace_by == "near" else None
    return CodeReplacement(tokenizer.config.layout, c.replace_by, near)


@torch.no_grad()
def nearest_codes(tokenizer: LikelihoodTokenizer) -> Tensor:
    """Return the neighbours (R, K, M) of each code of a tokenizer, by the distance of their vectors."""
    layout = tokenizer.config.layout
    if not isinstance(tokenizer, DrawsCodes) or layout.codebook_size > MOST_CODES:
        raise UserError(
            f"replace_by near needs the vectors of at most {MOST_CODES:,} codes, and the codes are {layout}; give "
            "replace_by any"
        )
    every = torch.arange(layout.codebook_size)
    vectors = (tokenizer.code_vectors(depth, every).float() for depth in range(layout.codebooks))
    return torch.stack([torch.cat(list(_nearest(each))) for each in vectors])


def _nearest(vectors: Tensor) -> Iterator[Tensor]:
    """Yield the nearest others (k, M) of some of the vectors (K, D), from the first to the last."""
    K = len(vectors)
    for start in range(0, K, TILE):
        rows = torch.arange(start, min(start + TILE, K), device=vectors.device)
        distances = torch.cdist(vectors[rows], vectors)
        distances[rows - start, rows] = torch.inf
        yield distances.topk(min(NEAR, K - 1), largest=False).indices
