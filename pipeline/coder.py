"""Images to bytes and back, exactly: an arithmetic coder over both stages, whose bytes are as long as the model says.

The prior codes each image's codes, one after another, and then p(x | z) its pixels, channel after channel, digit after
digit of their levels. That takes −log2 p(z) − log2 p(x | z) bits, the rate and the distortion of
`pipeline.evaluation.bits`, behind a header of 33 bytes. Files of the first format have a level in one symbol, and are
expanded too.

The entropy coder is constriction's range coder (Bamler 2022, https://arxiv.org/abs/2201.01741). Expanding must compute
exactly the numbers of compressing. Another processor, number of threads or version of torch may round them differently,
so this is a demonstration and not a format for archives. A checksum of the images shows the difference.

Bytes may come from strangers. Nothing is allocated for what the header claims: an image takes at least a bit, images
are expanded a batch at a time, and decoded symbols are coded again, so that missing and left-over bytes are noticed.

Shapes: images (N, C, H, W) uint8; labels (N,); symbols (M,) with probabilities (M, S) float64, up to a factor.
"""

import math
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
from smalti.tokenizer.criterion.likelihood.base import Likelihood
from smalti.tokenizer.criterion.likelihood.levels import levels_of, pixels_of
from smalti.tokenizer.criterion.likelihood.walk import RADIX, walk_levels

HEAD = struct.Struct("<8s?II8s8s")  # magic, labelled, images, their CRC-32, tokenizer and prior
MAGIC = b"smalti.2"
FIRST_MAGIC = b"tesserae"  # the project's first name: files of the first format
DAMAGED = (
    "the bytes are damaged, or were written where sums are rounded otherwise: expand them on the same machine, with "
    "the same number of threads and version of torch"
)
MOST_PER_BYTE = 8  # images: each takes a bit at least, and pictures with noise take far more
SEALS = 2  # words that the coder adds at the end
FIRST_BATCH = 64  # images coded side by side in the first format
BATCH, BATCH_PIXELS = 256, 2**18  # the same now, and pixels of them; of large images as many as in the first format
PIXELS = 2**14  # of them whose levels are coded side by side: what is computed of more leaves the processor's caches


class Compressed(NamedTuple):
    """Compressed images, and how many bits the models say."""

    data: bytes
    rate: float  # bits of all images' codes, and of the labels if there are any
    distortion: float  # bits of their pixels, given the codes


class _Encoder:
    """An encoder of symbols to 32-bit words."""

    def __init__(self) -> None:
        from constriction import stream

        self.coder = stream.queue.RangeEncoder()
        self.family = stream.model.Categorical(perfect=False)

    def put(self, symbols: Tensor, probabilities: Tensor) -> None:
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
        of_codes = "train one over codes, --model.kind transformer, masked, nextset, nextscale, levels or pixelcnn"
        of_vectors = "vectors cannot be coded: take a tokenizer of codes in stage one, as --model.kind vqvae"
        remedy = of_codes if pipeline.tokenizer.config.layout.discrete else of_vectors
        raise UserError(
            f"a coder needs the distribution of one code after the other, which a prior of kind {kind} does not give; "
            f"{remedy}"
        )
    return pipeline.prior


def batch_size(pipeline: ImagePipeline, first_format: bool = False) -> int:
    """Return how many images are coded side by side: the same on both sides, as other batches may round differently."""
    _, height, width = _image_shape(pipeline)
    return FIRST_BATCH if first_format else max(FIRST_BATCH, min(BATCH, BATCH_PIXELS // (height * width)))


def check_images(pipeline: ImagePipeline, images: Tensor, labels: Tensor | None) -> None:
    """Raise `UserError` unless there are images like the tokenizer's, and the labels are classes of the prior."""
    classes, expected = pipeline.condition.num_classes, _image_shape(pipeline)
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
    tokenizer, prior, encoder = likely(pipeline), walking(pipeline), _Encoder()
    check_images(pipeline, images, labels)
    batches = torch.arange(len(images)).split(batch_size(pipeline))
    rate, distortion, bar = 0.0, 0.0, _bar(pipeline, len(batches), "compress")
    for some in batches:
        pixels = to_float(images[some].to(pipeline.device))
        if labels is not None:
            shares = _uniform(len(some), pipeline.condition.num_classes)
            encoder.put(labels[some], shares)
            rate += _bits(labels[some], shares)
        told = _classes(pipeline, labels, some)
        codes = tokenizer.encode(pixels, told)
        digits = to_digits(codes.cpu(), prior.vocabularies)  # (b, T, parts)
        spent: list[float] = []

        def known(logits: Tensor, t: int, g: int, digits: Tensor = digits, spent: list[float] = spent) -> Tensor:
            shares = _shares(logits)
            encoder.put(digits[:, t, g], shares)
            spent.append(_bits(digits[:, t, g], shares))
            bar.update()
            return digits[:, t, g].to(logits.device)

        prior.walk(pipeline.told_to_prior(told), known)
        rate += sum(spent)
        distortion += _put_pixels(encoder, tokenizer.likelihood, tokenizer.output(codes, told).double(), pixels)
        bar.update()
    bar.close()
    head = HEAD.pack(MAGIC, labels is not None, len(images), _checksum(images), *_models(pipeline))
    words = encoder.coder.get_compressed().astype("<u4").tobytes()
    if len(images) > MOST_PER_BYTE * len(words):
        raise UserError(
            f"{len(images)} images came to {len(words)} bytes, and each must take a bit at least; give others"
        )
    return Compressed(head + words, rate, distortion)


def _put_pixels(encoder: _Encoder, likelihood: Likelihood, output: Tensor, pixels: Tensor) -> float:
    """Encode pixels (B, C, H, W) given the decoder's output, and return their bits."""
    levels = levels_of(pixels)
    decoded = pixels_of(levels, torch.float64)  # the pixels by which a decoder knows the channels before
    for some in _few(pixels):
        for channel in range(pixels.shape[1]):
            there = levels[some, channel]

            def known(masses: Tensor, worth: int, there: Tensor = there) -> Tensor:
                digits = there.flatten() // worth % RADIX
                encoder.put(digits.cpu(), masses.cpu())
                return digits

            walk_levels(likelihood.below(output[some], decoded[some], channel), there.shape, known, there.device)
    return likelihood.nll(output, pixels).sum().item() / math.log(2)


class CompressedHeader(NamedTuple):
    """The header of a compressed file, without the models."""

    first_format: bool  # a pixel's level is one symbol, not four digits
    labelled: bool
    images: int
    checksum: int


def read_header(pipeline: ImagePipeline, data: bytes) -> CompressedHeader:
    """Return the header of a compressed file. Raises as `expand`."""
    if not data.startswith((MAGIC, FIRST_MAGIC)) or len(data) < HEAD.size or (len(data) - HEAD.size) % 4:
        raise UserError("this is no file that pipeline/compress.py wrote, or it is damaged")
    fields = HEAD.unpack_from(data)
    magic, labelled, images, checksum, *models = fields
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
    return CompressedHeader(magic == FIRST_MAGIC, labelled, images, checksum)


def expand(pipeline: ImagePipeline, data: bytes) -> Tensor:
    """Return the images (N, C, H, W) uint8 that were compressed.

    Raises:
        UserError: other or damaged data, data of other models, or numbers that this machine rounds differently.
    """
    return torch.cat(list(expand_in_batches(pipeline, data)))


@torch.inference_mode()
def expand_in_batches(pipeline: ImagePipeline, data: bytes) -> Iterator[Tensor]:
    """Yield the images of `expand`, a batch at a time. They are exact only if the last batch comes without an error."""
    first_format, labelled, number, checksum = read_header(pipeline, data)
    prior, get_pixels = walking(pipeline), _get_pixels_of_first_format if first_format else _get_pixels
    words = np.frombuffer(data, dtype="<u4", offset=HEAD.size).astype(np.uint32)
    decoder, found, batch = _Decoder(words), 0, batch_size(pipeline, first_format)
    bar = _bar(pipeline, -(-number // batch), "expand")

    def next_one(logits: Tensor, _t: int, _g: int) -> Tensor:
        bar.update()
        return decoder.get(_shares(logits)).to(logits.device)

    for start in range(0, number, batch):
        some = torch.arange(min(batch, number - start))
        labels = decoder.get(_uniform(len(some), pipeline.condition.num_classes)) if labelled else None
        classes = _classes(pipeline, labels, some)
        codes = prior.walk(pipeline.told_to_prior(classes), next_one)
        output = likely(pipeline).output(codes, classes).double()
        pixels = output.new_zeros(len(some), *_image_shape(pipeline))
        get_pixels(decoder, likely(pipeline).likelihood, output, pixels)
        bar.update()
        images = to_uint8(pixels).cpu()
        found = _checksum(images, found)
        if start + batch >= number:
            bar.close()
            decoder.check_end()
            if found != checksum:
                raise UserError(DAMAGED)
        yield images


def _get_pixels(decoder: _Decoder, likelihood: Likelihood, output: Tensor, pixels: Tensor) -> None:
    """Decode pixels (B, C, H, W), in place, as `_put_pixels` encodes them."""
    device = pixels.device
    for some in _few(pixels):
        for channel in range(pixels.shape[1]):
            below = likelihood.below(output[some], pixels[some], channel)
            shape = pixels[some, channel].shape
            levels = walk_levels(below, shape, lambda masses, _: decoder.get(masses.cpu()).to(device), device)
            pixels[some, channel] = pixels_of(levels, torch.float64)


def _get_pixels_of_first_format(decoder: _Decoder, likelihood: Likelihood, output: Tensor, pixels: Tensor) -> None:
    """Decode pixels (B, C, H, W), in place, whose level is one symbol."""
    for channel in range(pixels.shape[1]):
        shares = likelihood.probabilities(output, pixels, channel).flatten(0, 2).cpu()
        pixels[:, channel] = pixels_of(decoder.get(shares), torch.float64).view_as(pixels[:, channel])


def _few(pixels: Tensor) -> list[slice]:
    """Return the images of pixels (B, C, H, W) a few at a time."""
    at_once = max(1, PIXELS // pixels[0, 0].numel())
    return [slice(start, start + at_once) for start in range(0, len(pixels), at_once)]


def _image_shape(pipeline: ImagePipeline) -> tuple[int, ...]:
    """Return (C, H, W) of the pipeline's images."""
    c = pipeline.tokenizer.config
    return (c.image_channels, *c.image_size)


def _bar(pipeline: ImagePipeline, batches: int, what: str) -> tqdm:
    """Return a bar of the steps: each part of each code, and the pixels, of each batch."""
    parts = pipeline.prior.config.layout.length * len(walking(pipeline).vocabularies)
    return passing_bar(batches * (parts + 1), what, unit="step")


def _shares(logits: Tensor) -> Tensor:
    return logits.double().softmax(-1).cpu()


def _bits(symbols: Tensor, probabilities: Tensor) -> float:
    """Return Σ −log2 p of symbols (M,) with probabilities (M, S)."""
    return -probabilities.gather(1, symbols[:, None]).log2().sum().item()


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
