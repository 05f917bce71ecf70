"""Both stages as one object: labels and seeds to images, and images to their reconstructions.

    pipeline = ImagePipeline.from_pretrained("runs/digits/pipeline").to("cuda")
    pipeline(labels=["3", "7"], seed=0).images    # a list of PIL images

Shapes inside: codes (B, T) -> indices (B, h, w) or (B, h, w, Q) -> images (B, C, H, W) uint8. An image is a function of
(weights, label, seed): batches have a fixed, padded size, so neither its neighbours nor the number of processes change it.
"""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import PIL.Image
import torch
from torch import Tensor

from common import config, folder
from common.codes import TokenizerIdentity
from common.errors import UserError
from prior.model import Prior
from prior.sample import SamplingConfig, sample
from tokenizer.base import ImageTokenizer
from tokenizer.images import from_pil, to_float, to_pil, to_uint8
from tokenizer.model import load_tokenizer

BATCH_SIZE = 64


class Generated(NamedTuple):
    """What the pipeline returns: B images, and what each was made of."""

    images: list[PIL.Image.Image]
    labels: list[int] | None  # class numbers; none for an unconditional prior
    seeds: list[int]
    codes: Tensor  # (B, T) int64


class Batch(NamedTuple):
    """One batch of a request: places [start, start + b) of it."""

    start: int
    images: Tensor  # (b, C, H, W) uint8, on the CPU
    codes: Tensor  # (b, T) int64, on the CPU


class ImagePipeline:
    """A tokenizer and a prior over its codes."""

    def __init__(self, tokenizer: ImageTokenizer, prior: Prior, sampling: SamplingConfig, identity: TokenizerIdentity):
        """
        Args:
            sampling: used where a call gives nothing else.
            identity: of the tokenizer's weights.
        Raises:
            UserError: the prior was trained on the codes of another tokenizer, or of another shape; the message names both.
        """
        if prior.config.tokenizer.sha256 != identity.sha256:
            raise UserError(
                f"the prior was trained on codes of the tokenizer {prior.config.tokenizer}, not of {identity}; "
                "its codes mean nothing to another tokenizer: encode again and train the prior on those codes"
            )
        for name in ("codebook_size", "grid", "code_depth"):
            ours, theirs = getattr(tokenizer.config, name), getattr(prior.config, name)
            if ours != theirs:
                raise UserError(f"{name} is {ours} for the tokenizer and {theirs} for the prior: a config.json was changed")
        self.tokenizer, self.prior, self.sampling, self.identity = tokenizer, prior, sampling, identity

    # ---------------------------------------------------------------------------------------------------- on the disk

    @classmethod
    def from_models(cls, tokenizer: str | Path, prior: str | Path, sampling: SamplingConfig) -> "ImagePipeline":
        """From the two model folders that training wrote."""
        path = folder.locate(tokenizer)
        loaded = load_tokenizer(path)
        identity = TokenizerIdentity(name=str(tokenizer), sha256=folder.sha256(path / "model.safetensors"))
        return cls(loaded, Prior.from_pretrained(prior), sampling, identity)

    @classmethod
    def from_pretrained(cls, path: str | Path) -> "ImagePipeline":
        """Read a pipeline folder, or a Hub repository, that `save_pretrained` wrote."""
        found = folder.locate(path)
        index = folder.read_json(found / "model_index.json")
        folder.check_format(index, "tesserae.imagepipeline", found / "model_index.json")
        settings = folder.read_json(found / "generation_config.json")
        sampling = config.build(SamplingConfig, settings, str(found / "generation_config.json"))
        return cls.from_models(found / "tokenizer", found / "prior", sampling)

    def save_pretrained(self, path: str | Path) -> None:
        """Write both model folders, `model_index.json` and `generation_config.json` into a folder."""
        folder.check_ours(Path(path), "model_index.json")
        with folder.replacing(Path(path)) as aside:
            aside.mkdir()
            self.tokenizer.save_pretrained(aside / "tokenizer")
            self.prior.save_pretrained(aside / "prior")
            index = {
                "kind": "tesserae.imagepipeline", "format": folder.FORMAT, "_class_name": "ImagePipeline",
                "tokenizer": _class_of(self.tokenizer), "prior": _class_of(self.prior),
            }  # fmt: skip
            folder.write_json(aside / "model_index.json", index)
            folder.write_json(aside / "generation_config.json", self.sampling.model_dump(mode="json"))

    # ------------------------------------------------------------------------------------------------------ the device

    def to(self, device: str | torch.device) -> "ImagePipeline":
        self.tokenizer.to(device)
        self.prior.to(device)
        return self

    @property
    def device(self) -> torch.device:
        return self.prior.head.weight.device

    # ---------------------------------------------------------------------------------------------------------- calling

    def __call__(
        self,
        labels: Sequence[int | str] | int | str | None = None,
        *,
        num_images: int | None = None,
        seed: int | None = None,
        generator: torch.Generator | None = None,
        batch_size: int = BATCH_SIZE,
        **sampling: Any,
    ) -> Generated:
        """Draw images.

        Args:
            labels: class numbers or names, dealt in turn to the images; none is all classes in turn.
            num_images: as many as labels, or classes, when not given.
            seed: image i has seed `seed + i`; without it and a generator, seeds are drawn at random.
            generator: draws the seeds instead, as in diffusers.
            batch_size: images a forward; changes images only by rounding.
            sampling: temperature, top_k, top_p, guidance, where they shall differ from the pipeline's.
        Raises:
            UserError: labels there are not, settings there are not, or a seed and a generator at once.
        """
        numbers = self.deal_labels(labels, num_images)
        seeds = self.deal_seeds(len(numbers), seed, generator)
        settings = config.build(SamplingConfig, {**self.sampling.model_dump(), **sampling}, "sampling")
        batches = list(self.generate(numbers, seeds, settings, batch_size=batch_size))
        images = [image for batch in batches for image in to_pil(batch.images)]
        known = numbers if self.prior.config.num_classes else None
        return Generated(images, known, seeds, torch.cat([batch.codes for batch in batches]))

    def deal_labels(self, labels: Sequence[int | str] | int | str | None, num_images: int | None) -> list[int]:
        """A class number for each image: the given labels, or all classes, in turn."""
        given = [labels] if isinstance(labels, int | str) else labels
        chosen = [self.class_number(label) for label in given] if given is not None else None
        if chosen is None:
            chosen = list(range(self.prior.config.num_classes)) or [0]  # an unconditional prior's only number
        if not chosen:
            raise UserError("labels must name at least one class, got none")
        number = len(chosen) if num_images is None else num_images
        if number < 1:
            raise UserError(f"num_images must be at least 1, got {number}")
        return [chosen[i % len(chosen)] for i in range(number)]

    def class_number(self, label: int | str) -> int:
        """The number of a class given by number or name. Raises `UserError` naming the classes there are."""
        names = self.prior.config.class_names
        if names is None:
            raise UserError(f"labels were asked for ({label!r}), but this prior is unconditional: leave labels away")
        if isinstance(label, str):
            if label in names:
                return names.index(label)
            folded = [name.casefold() for name in names]
            if folded.count(label.casefold()) == 1:
                return folded.index(label.casefold())
            if not label.isdecimal():
                raise UserError(f"there is no class {label!r}; the classes are {', '.join(names)}")
        if not 0 <= int(label) < len(names):
            raise UserError(f"there is no class {label}; classes are 0 to {len(names) - 1}: {', '.join(names)}")
        return int(label)

    @staticmethod
    def deal_seeds(number: int, seed: int | None, generator: torch.Generator | None = None) -> list[int]:
        """A seed for each image."""
        if seed is not None and generator is not None:
            raise UserError("give a seed or a generator, not both")
        if seed is not None and not (isinstance(seed, int) and 0 <= seed <= 2**62):
            raise UserError(f"seed must be a whole number from 0 to 2**62, got {seed!r}")
        if seed is not None:
            return [seed + i for i in range(number)]
        device = generator.device if generator is not None else None
        return torch.randint(2**62, (number,), generator=generator, device=device).tolist()

    def generate(
        self, labels: Sequence[int], seeds: Sequence[int], sampling: SamplingConfig, *, batch_size: int = BATCH_SIZE,
        first: int = 0, every: int = 1, skip: frozenset[int] = frozenset(),
    ) -> Iterator[Batch]:  # fmt: skip
        """The batches of a request, those numbered first, first + every, ...: a process's share. `skip` are not drawn."""
        for number in range(first, -(-len(labels) // batch_size), every):
            if number in skip:
                continue
            some = slice(number * batch_size, (number + 1) * batch_size)
            wanted = torch.tensor(labels[some], device=self.device)
            try:
                codes = sample(self.prior, wanted, seeds[some], sampling, batch_size=batch_size)
            except ValueError as error:
                raise UserError(str(error)) from None
            padded = torch.cat([codes, codes[-1:].expand(batch_size - len(codes), -1)])
            yield Batch(some.start, self.decode(padded)[: len(codes)], codes.cpu())

    @torch.inference_mode()
    def decode(self, codes: Tensor) -> Tensor:
        """codes (B, T) -> images (B, C, H, W) uint8 on the CPU."""
        return to_uint8(self.tokenizer.decode(codes.view(-1, *self.tokenizer.index_shape))).cpu()

    @torch.inference_mode()
    def reconstruct(self, images: Sequence[PIL.Image.Image] | PIL.Image.Image) -> list[PIL.Image.Image]:
        """What the codes of images decode to; images of any size and mode are brought to the tokenizer's first."""
        given = [images] if isinstance(images, PIL.Image.Image) else images
        if not given:
            return []
        pixels = from_pil(given, self.tokenizer.config.image_size, self.tokenizer.config.image_channels)
        found = []
        for part in pixels.split(BATCH_SIZE):
            decoded = self.tokenizer.decode(self.tokenizer.encode(to_float(part.to(self.device))))
            found += to_pil(to_uint8(decoded).cpu())
        return found


def _class_of(model: torch.nn.Module) -> list[str]:
    return [type(model).__module__, type(model).__name__]
