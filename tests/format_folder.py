"""Write the folders that tests/test_hub.py keeps of each format: tiny folders of every kind, and the outputs of their
models.

    python tests/format_folder.py tests/data/format_2

Weights are random, because a format keeps names and shapes. A committed folder is never written again: when
`common.folder.FORMAT` grows, this script writes the next folder beside it.
"""

import json
import sys
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import torch

from smalti.common import codes
from smalti.common.codes_info import CodesInfo, TokenizerIdentity
from smalti.common.condition import Classes
from smalti.common.folder import sha256
from smalti.pipeline.image_pipeline import ImagePipeline
from smalti.prior.config import PriorConfig
from smalti.prior.sampling_config import SamplingConfig
from smalti.prior.transformer.config import TransformerConfig
from smalti.prior.transformer.model import TransformerPrior
from smalti.tokenizer.bottleneck.config import VQConfig
from smalti.tokenizer.kmeans.config import KMeansConfig
from smalti.tokenizer.kmeans.model import KMeansTokenizer
from smalti.tokenizer.model import load_tokenizer
from smalti.tokenizer.vqvae.config import VQVAEConfig
from smalti.tokenizer.vqvae.model import VQVAE

LABELS, SEEDS = ["b", "a", "c"], 7


def images() -> torch.Tensor:
    """Return images (3, 1, 8, 8) uint8, computed by a formula."""
    return (torch.arange(3 * 64) * 37 % 256).to(torch.uint8).view(3, 1, 8, 8)


def seen(folder: Path) -> dict:
    """Return the outputs of the models in a folder, and its codes."""
    pipeline, kmeans = ImagePipeline.from_pretrained(folder / "pipeline"), load_tokenizer(folder / "kmeans")
    drawn, encoded = pipeline(labels=LABELS, seed=SEEDS), pipeline.encode_pixels(images())
    return {
        "encoded": encoded.tolist(),
        "drawn": drawn.codes.tolist(),
        "decoded": pipeline.decode(encoded).tolist(),
        "nats": pipeline.log_prob(encoded, labels=LABELS).nats.tolist(),
        "kmeans": kmeans.encode(images() / 127.5 - 1).view(3, 2, 2).tolist(),
        "codes": codes.load_codes(folder / "codes").splits["train"].codes.tolist(),
    }


def make(folder: Path) -> None:
    """Write a pipeline, a K-means tokenizer, codes, and expected.json."""
    torch.manual_seed(0)
    quantizer = VQConfig(codebook_size=16, code_dim=4)
    tokenizer = VQVAE(VQVAEConfig(image_size=(8, 8), patch=2, channels=(8,), quantizer=quantizer)).eval()
    with TemporaryDirectory() as aside:
        tokenizer.save_pretrained(Path(aside) / "tokenizer")
        identity = TokenizerIdentity(name="tiny/tokenizer", sha256=sha256(Path(aside) / "tokenizer/model.safetensors"))
    c = tokenizer.config
    info = CodesInfo(
        layout=c.layout,
        views=1,
        condition=Classes(names=("a", "b", "c")),
        tokenizer=identity,
        source={"source": "none", "fingerprint": "0"},
        shard_size=8,
    )
    prior = TransformerPrior(PriorConfig.over(info, TransformerConfig(depth=1, dim=8, heads=2, dropout=0.0))).eval()
    torch.nn.init.normal_(prior.head.weight)
    sampling = SamplingConfig(temperature=0.9, top_k=8, guidance=1.5, precision="fp32")
    pipeline = ImagePipeline(tokenizer, prior, sampling, identity)
    pipeline.save_pretrained(folder / "pipeline")
    kmeans = KMeansTokenizer(KMeansConfig(image_size=(8, 8), image_channels=1, patch=4, codebook_size=8)).eval()
    torch.nn.init.uniform_(kmeans.codebook, -1, 1)
    kmeans.save_pretrained(folder / "kmeans")
    encoded = pipeline.encode_pixels(images()).numpy()
    codes.write_shard(
        codes.shard_path(folder / "codes", "train", 0, 1), info, codes.CodesSplit(encoded, np.arange(3), np.arange(3))
    )
    codes.finish(folder / "codes", info, {"train": {"rows": 3}})
    (folder / "expected.json").write_text(json.dumps(seen(folder)) + "\n", encoding="utf-8")


if __name__ == "__main__":
    make(Path(sys.argv[1]))
