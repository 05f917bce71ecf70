"""The plain chain a user would build today: vector-quantize-pytorch for the tokenizer, x-transformers for the prior.

    images (B, H, W, C) uint8    z_q (B, D, h, w)    indices (B, h, w)    sequences (B, 1 + T): a class, T codes

Both libraries with the settings of their READMEs: `VectorQuantize(decay=0.8, commitment_weight=1.)` between a strided
conv encoder and decoder twice as wide as the library's Fashion-MNIST example, mean squared error plus the commitment
loss it returns; `TransformerWrapper(Decoder(...))` in an `AutoregressiveWrapper`, the class ids appended to the
vocabulary and one of them first, `generate` with its own defaults (top-k over a tenth of the vocabulary). It has no p(x
| z) and is given the best Gaussian: its variance is that of the error on the held-out images. Where the READMEs' sizes
are a GPU's (codes of 256, a Transformer of 512 x 12) they are cut to what two cores train in minutes. AdamW at the
constant rate of the examples, fp32, the last weights. Each stage trains for so many seconds of one core; imports,
reading the images, encoding them for stage two and all evaluation are not counted.

    python -m benchmarks.peer_chain --data FOLDER --out DIR --tokenizer-seconds S --prior-seconds S --seed N

Writes DIR/samples.npz (10,000 images, 1,000 a class) and DIR/reconstructions.npz (the test split), both in the
evaluator layout, DIR/grid.png with one column a class, and last DIR/figures.json. Nothing is resumed.
"""

import argparse
import json
import math
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn
from vector_quantize_pytorch import VectorQuantize
from x_transformers import AutoregressiveWrapper, Decoder, TransformerWrapper
from x_transformers.autoregressive_wrapper import top_k

from benchmarks import images as figures
from benchmarks.images import LabelledImages, held_out, load_images, write_grid, write_npz
from smalti.tokenizer.criterion.likelihood.base import build_likelihood
from smalti.tokenizer.criterion.likelihood.config import GaussianConfig


@dataclass(frozen=True, kw_only=True)
class Recipe:
    codebook_size: int = 512
    code_dim: int = 64
    width: int = 32
    tokenizer_batch_size: int = 64
    tokenizer_lr: float = 3e-4
    dim: int = 256
    depth: int = 6
    heads: int = 8
    prior_batch_size: int = 64
    prior_lr: float = 3e-4
    validation_share: float = 0.05
    images_per_class: int = 1000
    sample_batch_size: int = 100


class Tokenizer(nn.Module):
    """The peer's tokenizer: two halvings turn a 28x28 image into 7x7 codes, and one of 32x32 into 8x8."""

    def __init__(self, recipe: Recipe, channels: int):
        super().__init__()
        w, d = recipe.width, recipe.code_dim
        self.encoder = nn.Sequential(
            nn.Conv2d(channels, w, 4, stride=2, padding=1),
            nn.GELU(),
            nn.Conv2d(w, 2 * w, 4, stride=2, padding=1),
            nn.GELU(),
            nn.Conv2d(2 * w, d, 3, padding=1),
        )
        self.quantizer = VectorQuantize(
            dim=d, codebook_size=recipe.codebook_size, decay=0.8, commitment_weight=1.0, accept_image_fmap=True
        )
        self.decoder = nn.Sequential(
            nn.Conv2d(d, 2 * w, 3, padding=1),
            nn.GELU(),
            nn.ConvTranspose2d(2 * w, w, 4, stride=2, padding=1),
            nn.GELU(),
            nn.ConvTranspose2d(w, channels, 4, stride=2, padding=1),
        )

    def forward(self, images: Tensor) -> Tensor:
        """Return the loss."""
        pixels = _pixels(images)
        z_q, _, commitment_loss = self.quantizer(self.encoder(pixels))
        return F.mse_loss(self.decoder(z_q), pixels) + commitment_loss

    @torch.inference_mode()
    def encode(self, images: Tensor, batch_size: int = 500) -> Tensor:
        """Return the indices (N, h, w) of images."""
        return torch.cat([self.quantizer(self.encoder(_pixels(batch)))[1] for batch in images.split(batch_size)])

    @torch.inference_mode()
    def decode(self, indices: Tensor, batch_size: int = 500) -> Tensor:
        """Return the images (N, H, W, C) uint8 of indices."""
        lookup = self.quantizer.get_output_from_indices
        return torch.cat([_bytes(self.decoder(lookup(batch))) for batch in indices.split(batch_size)])


def _pixels(images: Tensor) -> Tensor:
    return rearrange(images, "b h w c -> b c h w").float() / 127.5 - 1


def _bytes(pixels: Tensor) -> Tensor:
    return rearrange(((pixels.clamp(-1, 1) + 1) * 127.5).round().byte(), "b c h w -> b h w c")


def make_prior(recipe: Recipe, codes: int, classes: int) -> AutoregressiveWrapper:
    layers = Decoder(dim=recipe.dim, depth=recipe.depth, heads=recipe.heads)
    vocabulary = recipe.codebook_size + classes
    return AutoregressiveWrapper(TransformerWrapper(num_tokens=vocabulary, max_seq_len=1 + codes, attn_layers=layers))


def batches(rows: Tensor, batch_size: int) -> Iterator[Tensor]:
    """Yield full batches without end, every epoch in a new order."""
    while True:
        order = torch.randperm(len(rows))
        for batch in order[: len(order) // batch_size * batch_size].split(batch_size):
            yield rows[batch]


def train(model: nn.Module, rows: Tensor, batch_size: int, lr: float, seconds: float) -> int:
    """Minimise the loss `model(batch)` for so many seconds, and return the number of steps."""
    optimizer = torch.optim.AdamW(model.parameters(), lr)
    model.train()
    step, end = 0, time.process_time() + seconds
    for batch in batches(rows, batch_size):
        if time.process_time() >= end:
            break
        loss = model(batch)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        step += 1
    model.eval()
    return step


@torch.inference_mode()
def nll(prior: AutoregressiveWrapper, sequences: Tensor) -> float:
    """Return nats per code."""
    losses = torch.stack([prior(batch) * len(batch) for batch in sequences.split(500)])
    return losses.sum().item() / len(sequences)


@torch.inference_mode()
def sample(tokenizer: Tokenizer, prior: AutoregressiveWrapper, labels: Tensor, h: int, w: int) -> Tensor:
    """Return one image (H, W, C) uint8 for each label."""
    codebook_size = tokenizer.quantizer.codebook_size

    def codes_alone(logits: Tensor) -> Tensor:  # a class id has no vector in the codebook
        return top_k(logits.index_fill(1, torch.arange(codebook_size, logits.shape[1]), float("-inf")))

    prompts = (codebook_size + labels)[:, None]
    codes = prior.generate(prompts, h * w, filter_logits_fn=codes_alone)  # (B, T)
    return tokenizer.decode(rearrange(codes, "b (h w) -> b h w", h=h))


@torch.inference_mode()
def gaussian_bits(tokenizer: Tokenizer, held_out: Tensor, images: Tensor) -> float:
    """Return −log2 p(x | z) a dimension by the Gaussian of the held-out error, over 8-bit levels as ours is."""
    error = [
        tokenizer.decoder(tokenizer.quantizer(tokenizer.encoder(_pixels(b)))[0]) - _pixels(b)
        for b in held_out.split(500)
    ]
    sigma = torch.cat(error).double().square().mean().sqrt().item()
    likelihood, nats = build_likelihood(GaussianConfig(sigma=sigma), images.shape[-1]).double(), 0.0
    for batch in images.split(500):
        decoded = tokenizer.decoder(tokenizer.quantizer(tokenizer.encoder(_pixels(batch)))[0])
        nats += likelihood.nll(decoded.double(), _pixels(batch).double()).sum().item()
    return nats / (math.log(2) * images.numel())


def sequences_of(recipe: Recipe, labels: Tensor, indices: Tensor) -> Tensor:
    """Return the prior's sequences (N, 1 + T): a class, then the codes."""
    return torch.cat([recipe.codebook_size + labels[:, None], indices.flatten(1)], 1)


def figures_of(
    recipe: Recipe,
    tokenizer: Tokenizer,
    prior: AutoregressiveWrapper,
    indices: tuple[Tensor, Tensor],
    validation: LabelledImages,
    test: LabelledImages,
    classes: int,
) -> dict[str, Any]:
    """Return the figures of both stages on test; `indices` (N, h, w) are those of train and of test."""
    places, dimensions = indices[1][0].numel(), test.images[0].numel()
    rate = nll(prior, sequences_of(recipe, test.labels, indices[1]))
    independent = figures.marginal_nll(*indices, recipe.codebook_size)
    distortion = gaussian_bits(tokenizer, validation.images, test.images)
    label = math.log(classes)  # the prior is given the class, which costs too
    rates = {
        "uniform": places * math.log2(recipe.codebook_size),
        "independent": places * independent / math.log(2),
        "learned": (places * rate + label) / math.log(2),
    }
    return {
        "usage": figures.usage(indices[1], recipe.codebook_size),
        "perplexity": figures.perplexity(indices[1], recipe.codebook_size),
        "prior_nll": rate,
        "prior_independent_nll": independent,
        "prior_saved": 1 - rate / independent,
        "distortion": distortion,
        **{f"{name}_rate": bits / dimensions for name, bits in rates.items()},
        **{f"{name}_bits_per_dim": bits / dimensions + distortion for name, bits in rates.items()},
        "codes": places,
        "codebook_size": recipe.codebook_size,
        "tokenizer_parameters": sum(p.numel() for p in tokenizer.parameters()),
        "prior_parameters": sum(p.numel() for p in prior.parameters()),
    }


def run(data: Path, out: Path, recipe: Recipe, tokenizer_seconds: float, prior_seconds: float, seed: int) -> None:
    """Train both stages, draw, and write samples, reconstructions and figures."""
    whole, test = load_images(data)
    split, validation = held_out(whole, recipe.validation_share)  # kept out of training as it is in our chain
    classes = int(whole.labels.max()) + 1
    torch.manual_seed(seed)
    out.mkdir(parents=True, exist_ok=True)

    tokenizer = Tokenizer(recipe, whole.images.shape[-1])
    rows = split.images
    tokenizer_steps = train(tokenizer, rows, recipe.tokenizer_batch_size, recipe.tokenizer_lr, tokenizer_seconds)
    start = time.perf_counter()
    indices = tokenizer.encode(split.images)
    encode_seconds = time.perf_counter() - start
    indices_test = tokenizer.encode(test.images)
    _, h, w = indices.shape

    prior = make_prior(recipe, h * w, classes)
    sequences = sequences_of(recipe, split.labels, indices)
    prior_steps = train(prior, sequences, recipe.prior_batch_size, recipe.prior_lr, prior_seconds)
    labels = torch.arange(classes).repeat_interleave(recipe.images_per_class)
    drawn = [sample(tokenizer, prior, batch, h, w) for batch in labels.split(recipe.sample_batch_size)]

    samples = LabelledImages(torch.cat(drawn), labels)
    write_npz(out / "samples.npz", samples)
    write_npz(out / "reconstructions.npz", LabelledImages(tokenizer.decode(indices_test), test.labels))
    write_grid(out / "grid.png", samples)
    known = figures_of(recipe, tokenizer, prior, (indices, indices_test), validation, test, classes)
    known |= {"seed": seed, "tokenizer_seconds": tokenizer_seconds, "encode_seconds": encode_seconds}
    known |= {"prior_seconds": prior_seconds, "tokenizer_steps": tokenizer_steps, "prior_steps": prior_steps}
    known |= {"threads": torch.get_num_threads(), "recipe": asdict(recipe)}
    (out / "figures.json").write_text(json.dumps(known, indent=2) + "\n")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--tokenizer-seconds", type=float, required=True)
    parser.add_argument("--prior-seconds", type=float, required=True)
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    run(args.data, args.out, Recipe(), args.tokenizer_seconds, args.prior_seconds, args.seed)
