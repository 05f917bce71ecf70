"""Images to bytes and back, exactly: an arithmetic coder over both stages, whose bytes are as long as the model says.

The prior codes each image's codes, one after another, and then p(x | z) its pixels, channel after channel. That takes
−log2 p(z) − log2 p(x | z) bits, the rate and the distortion of `pipeline.evaluation.bits`, behind a header of 33 bytes.

The entropy coder is constriction's range coder (Bamler 2022, https://arxiv.org/abs/2201.01741). Expanding must compute
exactly the numbers of compressing. Another processor, number of threads or version of torch may round them differently,
so this is a demonstration and not a format for archives. A checksum of the images shows the difference.

Bytes may come from strangers. Nothing is allocated for what the header claims: an image takes at least a bit, images
are expanded a batch at a time, and decoded symbols are coded again, so that missing and left-over bytes are noticed.

Shapes: images (N, C, H, W) uint8; labels (N,); symbols (M,) with probabilities (M, S) float64.
"""

import struct
import zlib
from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

from smalti.common.data.pixels import to_float, to_uint8
from smalti.common.errors import UserError
from smalti.common.folder import weights_sha256
from smalti.common.mixed_radix import to_digits
from smalti.common.progress import passing_bar
from smalti.pipeline.evaluation.bits import likely
from smalti.pipeline.image_pipeline import ImagePipeline
from smalti.prior.base import Walks
from smalti.tokenizer.criterion.likelihood.levels import levels_of, pixels_of

HEAD = struct.Struct("<8s?II8s8s")  # magic, labelled, images, their CRC-32, tokenizer and prior
MAGIC = b"tesserae"  # the project's first name: the files keep it
DAMAGED = (
    "the bytes are damaged, or were written where sums are rounded otherwise: expand them on the same machine, with "
    "the same number of threads and version of torch"
)
MOST_PER_BYTE = 8  # images: each takes a bit at least, and pictures with noise take far more
SEALS = 2  # words that the coder adds at the end
BATCH = 64  # images coded side by side, the same on both sides because other batches may round differently


class Compressed(NamedTuple):
    """Compressed images, and how many bits the models say."""

    data: bytes
    rate: float  # bits of all images' codes, and of the labels if there are any
    distortion: float  # bits of their pixels, given the codes


class _Encoder:
    """An encoder of symbols to 32-bit words, which sums −log2 p."""

    def __init__(self) -> None:
        from constriction import stream

        self.coder = stream.queue.RangeEncoder()
        self.family = stream.model.Categorical(perfect=False)
        self.bits = 0.0

    def put(self, symbols: Tensor, probabilities: Tensor) -> None:
        self.bits -= probabilities.gather(1, symbols[:, None]).log2().sum().item()
        self.coder.encode(symbols.int().numpy(), self.family, probabilities.numpy())


class _Decoder:
    """A decoder of 32-bit words to symbols, which codes the symbols again to notice missing and left-over words.

    A decoder alone reads zeros behind the last word, and does not notice words that are left over.
    """

    def __init__(self, words: np.ndarray):
        from constriction import stream

        self.words = words
        self.coder = stream.queue.RangeDecoder(words)
        self.again = stream.queue.RangeEncoder()
        self.family = stream.model.Categorical(perfect=False)

    def get(self, probabilities: Tensor) -> Tensor:
        try:
            symbols = self.coder.decode(self.family, probabilities.numpy())
        except AssertionError:  # constriction raises it for bytes that no encoder wrote
            raise UserError(DAMAGED) from None
        self.again.encode(symbols, self.family, probabilities.numpy())
        if self.again.num_words() > len(self.words) + SEALS:
            raise UserError(DAMAGED)
        return torch.from_numpy(symbols.astype(np.int64))

    def check_end(self) -> None:
        """Raise `UserError` unless the words are exactly those of the symbols so far."""
        if not np.array_equal(self.again.get_compressed(), self.words):
            raise UserError(DAMAGED)


def walking(pipeline: ImagePipeline) -> Walks:
    """Return the pipeline's prior. Raises `UserError` unless it gives each code's distribution, one after the other."""
    if not isinstance(pipeline.prior, Walks):
        kind = pipeline.prior.config.architecture.name()
        raise UserError(
            f"a coder needs the distribution of one code after the other, which a prior of kind {kind} does not give; "
            "train one over codes, --model.kind transformer, masked, nextscale, levels or pixelcnn"
        )
    return pipeline.prior


def check_images(pipeline: ImagePipeline, images: Tensor, labels: Tensor | None) -> None:
    """Raise `UserError` unless there are images like the tokenizer's, and the labels are classes of the prior."""
    c, classes = pipeline.tokenizer.config, pipeline.condition.num_classes
    expected = (c.image_channels, *c.image_size)
    if images.dtype != torch.uint8 or images.shape[1:] != expected:
        raise UserError(
            f"images must be uint8 (N, {', '.join(map(str, expected))}), got {images.dtype} {tuple(images.shape)}"
        )
    if not len(images):
        raise UserError("there are no images to compress; give one at least")
    if labels is not None and (labels.shape != (len(images),) or not ((labels >= 0) & (labels < classes)).all()):
        raise UserError(f"labels must be {len(images)} class numbers below {classes}, got {labels.tolist()[:8]}")


@torch.inference_mode()
def compress(pipeline: ImagePipeline, images: Tensor, labels: Tensor | None = None) -> Compressed:
    """Return the bytes from which `expand` makes the same images; labels are class numbers, if they are known.

    Raises:
        UserError: images of another size, type or number of channels than the tokenizer's, or none; labels that are no
            classes; models so sure of these images that they take less than a bit each.
    """
    tokenizer, prior = likely(pipeline), walking(pipeline)
    check_images(pipeline, images, labels)
    classes, channels = pipeline.condition.num_classes, tokenizer.config.image_channels
    encoder, rate, bar = _Encoder(), 0.0, _bar(pipeline, len(images), "compress")
    for some in torch.arange(len(images)).split(BATCH):
        before, pixels = encoder.bits, to_float(images[some].to(pipeline.device))
        if labels is not None:
            encoder.put(labels[some], _uniform(len(some), classes))
        told = _classes(pipeline, labels, some)
        codes = tokenizer.encode(pixels, told)
        digits = to_digits(codes.cpu(), prior.vocabularies)  # (b, T, parts)

        def known(logits: Tensor, t: int, g: int, digits: Tensor = digits) -> Tensor:
            encoder.put(digits[:, t, g], _shares(logits))
            bar.update()
            return digits[:, t, g].to(logits.device)

        prior.walk(pipeline.told_to_prior(told), known)
        rate += encoder.bits - before
        output = tokenizer.output(codes, told).double()
        for channel in range(channels):
            shares = tokenizer.likelihood.probabilities(output, pixels.double(), channel).flatten(0, 2).cpu()
            encoder.put(levels_of(pixels[:, channel]).flatten().cpu(), shares)
            bar.update()
    bar.close()
    head = HEAD.pack(MAGIC, labels is not None, len(images), _checksum(images), *_models(pipeline))
    words = encoder.coder.get_compressed().astype("<u4").tobytes()
    if len(images) > MOST_PER_BYTE * len(words):
        raise UserError(
            f"{len(images)} images came to {len(words)} bytes, and each must take a bit at least; give others"
        )
    return Compressed(head + words, rate, encoder.bits - rate)


class CompressedHeader(NamedTuple):
    """The header of a compressed file, without the magic and the models."""

    labelled: bool
    images: int
    checksum: int


def read_header(pipeline: ImagePipeline, data: bytes) -> CompressedHeader:
    """Return the header of a compressed file. Raises as `expand`."""
    if not data.startswith(MAGIC) or len(data) < HEAD.size or (len(data) - HEAD.size) % 4:
        raise UserError("this is no file that pipeline/compress.py wrote, or it is damaged")
    fields = HEAD.unpack_from(data)
    _, labelled, images, checksum, *models = fields
    if models != _models(pipeline):
        raise UserError(
            "these bytes were written with another tokenizer or prior, and only the same weights can read them"
        )
    most = MOST_PER_BYTE * (len(data) - HEAD.size)
    if not 1 <= images <= most:
        raise UserError(
            f"the header claims {images:,} images, where {len(data):,} bytes hold 1 to {most:,} at most; {DAMAGED}"
        )
    if HEAD.pack(*fields) != data[: HEAD.size] or (labelled and not pipeline.condition.num_classes):
        raise UserError(DAMAGED)
    return CompressedHeader(labelled, images, checksum)


def expand(pipeline: ImagePipeline, data: bytes) -> Tensor:
    """Return the images (N, C, H, W) uint8 that were compressed.

    Raises:
        UserError: other or damaged data, data of other models, or numbers that this machine rounds differently.
    """
    return torch.cat(list(expand_in_batches(pipeline, data)))


@torch.inference_mode()
def expand_in_batches(pipeline: ImagePipeline, data: bytes) -> Iterator[Tensor]:
    """Yield the images of `expand`, `BATCH` at a time. They are exact only if the last batch comes without an error."""
    labelled, number, checksum = read_header(pipeline, data)
    tokenizer, prior = likely(pipeline), walking(pipeline)
    words = np.frombuffer(data, dtype="<u4", offset=HEAD.size).astype(np.uint32)
    c, decoder, found, bar = tokenizer.config, _Decoder(words), 0, _bar(pipeline, number, "expand")

    def next_one(logits: Tensor, _t: int, _g: int) -> Tensor:
        bar.update()
        return decoder.get(_shares(logits)).to(logits.device)

    for start in range(0, number, BATCH):
        some = torch.arange(min(BATCH, number - start))
        labels = decoder.get(_uniform(len(some), pipeline.condition.num_classes)) if labelled else None
        classes = _classes(pipeline, labels, some)
        codes = prior.walk(pipeline.told_to_prior(classes), next_one)
        output = tokenizer.output(codes, classes).double()
        pixels = output.new_zeros(len(some), c.image_channels, *c.image_size)
        for channel in range(c.image_channels):
            shares = tokenizer.likelihood.probabilities(output, pixels, channel).flatten(0, 2).cpu()
            pixels[:, channel] = pixels_of(decoder.get(shares), torch.float64).view_as(pixels[:, channel])
            bar.update()
        images = to_uint8(pixels).cpu()
        found = _checksum(images, found)
        if start + BATCH >= number:
            bar.close()
            decoder.check_end()
            if found != checksum:
                raise UserError(DAMAGED)
        yield images


def _bar(pipeline: ImagePipeline, images: int, what: str) -> tqdm:
    """Return a bar of the steps: each part of each code, and each channel of the pixels, of each batch."""
    parts = pipeline.prior.config.layout.length * len(walking(pipeline).vocabularies)
    steps = parts + pipeline.tokenizer.config.image_channels
    return passing_bar(-(-images // BATCH) * steps, what, unit="step")


def _shares(logits: Tensor) -> Tensor:
    return logits.double().softmax(-1).cpu()


def _uniform(number: int, values: int) -> Tensor:
    return torch.full((number, values), 1 / values, dtype=torch.float64)


def _classes(pipeline: ImagePipeline, labels: Tensor | None, some: Tensor) -> Tensor:
    """Return the condition of images: their class numbers, or the number of no class."""
    none = pipeline.condition.none(len(some))
    return (none if labels is None else labels[some]).to(pipeline.device)


def _checksum(images: Tensor, before: int = 0) -> int:
    return zlib.crc32(images.contiguous().numpy().data, before)


def _models(pipeline: ImagePipeline) -> list[bytes]:
    return [bytes.fromhex(weights_sha256(model))[:8] for model in (pipeline.tokenizer, pipeline.prior)]
