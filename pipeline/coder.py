"""Images to bytes and back, exactly: an arithmetic coder over both stages. What it writes is as long as the model says.

First each image's codes are coded by the prior, one after another, then its pixels by p(x | z), channel after channel:
−log2 p(z) − log2 p(x | z) bits, the rate and the distortion of `pipeline.bits`, behind a head of 33 bytes.

The entropy coder is constriction's range coder (Bamler 2022, https://arxiv.org/abs/2201.01741). Whoever expands must compute
the very numbers that were coded with: another processor, number of threads or version of torch may round them otherwise, which
is why this is a demonstration and no format to archive in. A checksum of the images tells.

Shapes: images (N, C, H, W) uint8; labels (N,); symbols (M,) with probabilities (M, S) float64.
"""

import struct
import zlib
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

from common.digits import to_digits
from common.errors import UserError
from common.folder import weights_sha256
from common.progress import passing_bar
from pipeline.image_pipeline import ImagePipeline
from prior.walk import walk
from tokenizer.likelihood import levels_of, pixels_of
from tokenizer.pixels import to_float, to_uint8

HEAD = struct.Struct("<8s?II8s8s")  # magic, labelled, images, CRC-32 of them, and which tokenizer and prior it takes
MAGIC = b"tesserae"
DAMAGED = (
    "the bytes are damaged, or were written where sums are rounded otherwise: expand them on the same machine, with the same "
    "number of threads and version of torch"
)
BATCH = 64  # images coded side by side: a batch that is smaller may round otherwise, so both sides take the same


class Compressed(NamedTuple):
    data: bytes
    rate: float  # bits of all images' codes, and labels where they were told
    distortion: float  # bits of their pixels, given the codes


class _Encoder:
    """Symbols in, 32-bit words out; adds up −log2 p."""

    def __init__(self) -> None:
        from constriction import stream

        self.coder, self.family, self.bits = stream.queue.RangeEncoder(), stream.model.Categorical(perfect=False), 0.0

    def put(self, symbols: Tensor, probabilities: Tensor) -> None:
        self.bits -= probabilities.gather(1, symbols[:, None]).log2().sum().item()
        self.coder.encode(symbols.int().numpy(), self.family, probabilities.numpy())


class _Decoder:
    def __init__(self, words: np.ndarray):
        from constriction import stream

        self.coder, self.family = stream.queue.RangeDecoder(words), stream.model.Categorical(perfect=False)

    def get(self, probabilities: Tensor) -> Tensor:
        try:
            symbols = self.coder.decode(self.family, probabilities.numpy())
        except AssertionError:  # constriction's word for bytes that no encoder wrote
            raise UserError(DAMAGED) from None
        return torch.from_numpy(symbols.astype(np.int64))


@torch.inference_mode()
def compress(pipeline: ImagePipeline, images: Tensor, labels: Tensor | None = None) -> Compressed:
    """images and, where they are known, their class numbers -> bytes, of which `expand` makes the same images.

    Raises:
        UserError: images of another size, type or number of channels than the tokenizer's; labels that are no classes.
    """
    c, classes = pipeline.tokenizer.config, pipeline.prior.config.num_classes
    expected = (c.image_channels, *c.image_size)
    if images.dtype != torch.uint8 or images.shape[1:] != expected:
        raise UserError(f"images must be uint8 (N, {', '.join(map(str, expected))}), got {images.dtype} {tuple(images.shape)}")
    if labels is not None and (labels.shape != (len(images),) or not ((labels >= 0) & (labels < classes)).all()):
        raise UserError(f"labels must be {len(images)} class numbers below {classes}, got {labels.tolist()[:8]}")
    encoder, rate, bar = _Encoder(), 0.0, _bar(pipeline, len(images), "compress")
    for some in torch.arange(len(images)).split(BATCH):
        before, pixels = encoder.bits, to_float(images[some].to(pipeline.device))
        if labels is not None:
            encoder.put(labels[some], _uniform(len(some), classes))
        indices = pipeline.tokenizer.encode(pixels)
        digits = to_digits(indices.flatten(1).cpu(), pipeline.prior.vocabularies)  # (b, T, parts)

        def known(logits: Tensor, t: int, g: int, digits: Tensor = digits) -> Tensor:
            encoder.put(digits[:, t, g], _shares(logits))
            bar.update()
            return digits[:, t, g].to(logits.device)

        walk(pipeline.prior, _classes(pipeline, labels, some), known)
        rate += encoder.bits - before
        output, likelihood = pipeline.tokenizer.output(indices).double(), pipeline.tokenizer.likelihood
        for channel in range(c.image_channels):
            shares = likelihood.probabilities(output, pixels.double(), channel).flatten(0, 2).cpu()
            encoder.put(levels_of(pixels[:, channel]).flatten().cpu(), shares)
            bar.update()
    bar.close()
    checksum = _checksum(images)
    head = HEAD.pack(MAGIC, labels is not None, len(images), checksum, *_models(pipeline))
    return Compressed(head + encoder.coder.get_compressed().astype("<u4").tobytes(), rate, encoder.bits - rate)


@torch.inference_mode()
def expand(pipeline: ImagePipeline, data: bytes) -> Tensor:
    """The images (N, C, H, W) uint8 that `compress` was given.

    Raises:
        UserError: other or damaged data, data of other models, or numbers that this machine rounds otherwise.
    """
    if not data.startswith(MAGIC) or len(data) < HEAD.size or (len(data) - HEAD.size) % 4:
        raise UserError("this is no file that pipeline/compress.py wrote, or it is damaged")
    _, labelled, number, checksum, *models = HEAD.unpack_from(data)
    if models != _models(pipeline):
        raise UserError("these bytes were written with another tokenizer or prior, and only the same weights can read them")
    words = np.frombuffer(data, dtype="<u4", offset=HEAD.size).astype(np.uint32)
    c, decoder, found, bar = pipeline.tokenizer.config, _Decoder(words), [], _bar(pipeline, number, "expand")

    def next_one(logits: Tensor, _t: int, _g: int) -> Tensor:
        bar.update()
        return decoder.get(_shares(logits)).to(logits.device)

    for some in torch.arange(number).split(BATCH):
        labels = decoder.get(_uniform(len(some), pipeline.prior.config.num_classes)) if labelled else None
        classes = _classes(pipeline, labels, torch.arange(len(some)))
        codes = walk(pipeline.prior, classes, next_one)
        output = pipeline.tokenizer.output(codes.view(-1, *pipeline.tokenizer.index_shape)).double()
        pixels = output.new_zeros(len(some), c.image_channels, *c.image_size)
        for channel in range(c.image_channels):
            shares = pipeline.tokenizer.likelihood.probabilities(output, pixels, channel).flatten(0, 2).cpu()
            pixels[:, channel] = pixels_of(decoder.get(shares), torch.float64).view_as(pixels[:, channel])
            bar.update()
        found.append(to_uint8(pixels).cpu())
    bar.close()
    images = torch.cat(found)
    if _checksum(images) != checksum:
        raise UserError(DAMAGED)
    return images


def _bar(pipeline: ImagePipeline, images: int, what: str) -> tqdm:
    """Of a batch's steps: each part of each code, then each channel of the pixels."""
    steps = pipeline.prior.config.length * len(pipeline.prior.vocabularies) + pipeline.tokenizer.config.image_channels
    return passing_bar(-(-images // BATCH) * steps, what, unit="step")


def _shares(logits: Tensor) -> Tensor:
    return logits.double().softmax(-1).cpu()


def _uniform(number: int, values: int) -> Tensor:
    return torch.full((number, values), 1 / values, dtype=torch.float64)


def _classes(pipeline: ImagePipeline, labels: Tensor | None, some: Tensor) -> Tensor:
    """What the prior is told: class numbers, or the one of no class."""
    none = torch.full((len(some),), pipeline.prior.config.num_classes)
    return (none if labels is None else labels[some]).to(pipeline.device)


def _checksum(images: Tensor) -> int:
    return zlib.crc32(images.contiguous().numpy().data)


def _models(pipeline: ImagePipeline) -> list[bytes]:
    return [bytes.fromhex(weights_sha256(model))[:8] for model in (pipeline.tokenizer, pipeline.prior)]
