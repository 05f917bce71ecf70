"""The VQ-VAE: a convolutional encoder, a quantizer, a convolutional decoder.

Shapes: images (B, C, H, W) in [-1, 1], z_e and z_q (B, D, h, w), indices (B, h, w) or (B, h, w, Q) in [0, K), output
(B, P, H, W), which a likelihood reads as p(images | z_q).
"""

from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

from smalti.common import folder
from smalti.common.commands import quoted
from smalti.common.errors import UserError
from smalti.common.hub import locate
from smalti.tokenizer.base import ImageTokenizer, NetworkTokenizer
from smalti.tokenizer.config import TokenizerConfig
from smalti.tokenizer.kmeans_tokenizer import KMeansTokenizer
from smalti.tokenizer.layers import Decoder, Encoder
from smalti.tokenizer.likelihood import build_likelihood
from smalti.tokenizer.quantizers.base import Quantized
from smalti.tokenizer.quantizers.build import build_quantizer
from smalti.tokenizer.quantizers.gumbel import GumbelQuantizer
from smalti.tokenizer.vqgan import VQGANTokenizer


class Reconstruction(NamedTuple):
    nll: Tensor  # (B,) −log p(images | z_q), nats
    quantized: Quantized


class Tokenizer(NetworkTokenizer):
    """Images to indices and back, by a network trained with `tokenizer/train.py`."""

    config_class = TokenizerConfig
    config: TokenizerConfig

    def __init__(self, config: TokenizerConfig):
        super().__init__()
        self.config = config
        self.encoder = Encoder(config)
        self.quantizer = build_quantizer(config.quantizer)
        self.decoder = Decoder(config)
        self.likelihood = build_likelihood(config.likelihood, config.image_channels)

    def forward(self, images: Tensor) -> Reconstruction:
        quantized = self.quantizer(self.encoder(images))
        return Reconstruction(self.likelihood.nll(self.draw(quantized.z_q), images), quantized)

    def _encode(self, images: Tensor) -> Tensor:
        z_e = self.encoder(images)
        bad = ~z_e.flatten(1).isfinite().all(1)
        if bad.any():  # the nearest code to NaN is some code: it would be written down as if it meant something
            raise UserError(
                f"the encoder's output is NaN or Inf for {int(bad.sum())} of {len(bad)} images: its weights have diverged, or "
                "precision fp32 is needed; train another --run with a lower lr"
            )
        return self.quantizer(z_e).indices

    @property
    def stochastic(self) -> bool:
        return isinstance(self.quantizer, GumbelQuantizer)

    @torch.no_grad()
    def log_posterior(self, images: Tensor) -> Tensor | None:
        if not isinstance(self.quantizer, GumbelQuantizer):
            return None
        log_q = self.quantizer.log_posterior(self.quantizer.prepare(self.encoder(images).float()))
        return log_q.view(len(images), self.config.layout.length, -1)

    def draw(self, z_q: Tensor) -> Tensor:
        return self.decoder(z_q.to(next(self.decoder.parameters()).dtype))  # z_q is fp32 also in a model of half precision


TOKENIZERS: tuple[type[ImageTokenizer], ...] = (Tokenizer, KMeansTokenizer, VQGANTokenizer)  # that a folder may hold


def trained(run: Path) -> Path:
    """The model folder of RUN/tokenizer. Raises `UserError` that says how to make one."""
    if not (run / "model/config.json").exists():
        raise UserError(
            f"there is no trained tokenizer in {run / 'model'}; tokenizer/train.py with --run {quoted(run.parent)} makes one "
            "(tokenizer/cluster.py, one of K-means; tokenizer/convert.py, one of somebody else's weights)"
        )
    return run / "model"


def load_tokenizer(
    path: str | Path, *, subfolder: str = "", revision: str | None = None, token: str | bool | None = None,
    cache_dir: str | Path | None = None, local_files_only: bool = False,
) -> ImageTokenizer:  # fmt: skip
    """Return the tokenizer in a folder, or in a Hub repository `owner/name`: which kind it is stands in its `config.json`.

    Args: as of `common.hub.Pretrained.from_pretrained`.

    Raises:
        UserError: no such folder, no tokenizer in it, or weights that do not fit the config.
    """
    found = locate(
        path, folder.MODEL_FILES, subfolder=subfolder, revision=revision, token=token, cache_dir=cache_dir,
        local_files_only=local_files_only,
    )  # fmt: skip
    kind = folder.kind_in(folder.read_json(folder.inside(found, "config.json")))
    kinds = {folder.kind_of(cls): cls for cls in TOKENIZERS}
    return kinds.get(kind, Tokenizer).from_folder(found)
