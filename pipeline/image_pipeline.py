"""Both stages as one object, from labels and seeds to images, and from images to their reconstructions.

    pipeline = ImagePipeline.from_pretrained("runs/digits/pipeline").to("cuda")
    pipeline(labels=["3", "7"], seed=0).images    # a list of PIL images
    pipeline.complete(pictures, mask, seed=0).images    # the pixels the mask keeps, the rest drawn anew

Shapes inside: codes (B, T) -> indices (B, h, w) or (B, h, w, Q) -> images (B, C, H, W) uint8. An image is a function of
(weights, label, seed): batches are padded to a size from which on each image is computed alike, so it depends neither
on its neighbours nor on the number of processes.
"""

import math
import operator
import unicodedata
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, NamedTuple, NoReturn, Self

import PIL.Image
import torch
from torch import Tensor

from smalti.common import config, folder
from smalti.common.codes_info import TokenizerIdentity
from smalti.common.commands import quoted
from smalti.common.condition import Condition
from smalti.common.config import build
from smalti.common.data.pixels import from_pil, to_float, to_pil, to_uint8
from smalti.common.errors import UserError
from smalti.common.hub import Pretrained, check_dtype
from smalti.common.identity import identity_in_memory
from smalti.common.progress import passing_bar
from smalti.common.seeds import seed_for, uniforms
from smalti.pipeline import diffusers_options
from smalti.pipeline.diffusers_options import OutputType, check_output_type, of_type
from smalti.pipeline.generation_config import Chosen, GenerationConfig, carried
from smalti.pipeline.mask import drawn_over, fill_unknown, known_places, read_mask
from smalti.prior.base import Completes, Prior, Sampler, Scores, Unfolding, Unfolds
from smalti.prior.config import ArchitectureConfig, PriorConfig
from smalti.prior.model import load_prior
from smalti.prior.sample import BatchSampler
from smalti.prior.sampling_config import SamplingConfig
from smalti.tokenizer.base import DecodesCoarse, EmbedsCodes, ImageTokenizer
from smalti.tokenizer.config import ImageTokenizerConfig
from smalti.tokenizer.interpolation import between
from smalti.tokenizer.model import load_identified

PARTS = ("tokenizer", "prior")  # of a pipeline folder
# what an index of format 1 says, and the kind of today
FIRST_PARTS: dict[tuple[str, str], tuple[type[config.Kind], str]] = {
    ("tokenizer.model", "Tokenizer"): (ImageTokenizerConfig, "vqvae"),
    ("tokenizer.kmeans", "KMeansTokenizer"): (ImageTokenizerConfig, "kmeans"),
    ("tokenizer.vqgan", "VQGANTokenizer"): (ImageTokenizerConfig, "vqgan"),
    ("prior.model", "Prior"): (ArchitectureConfig, "transformer"),
}
AGAIN, COME = 2**32, 2**32 + 1  # purposes of a seed beside drawing: places drawn again, and places of another image
ENCODED = 64  # images that are encoded, scored or decoded at once
ALIKE = 4  # images from which a decoder computes each as among 64; one alone takes other kernels, which round otherwise


class ClassNumber(int):
    """The number of a class. A plain number may be a class's name instead, as in MNIST."""


class Generated(NamedTuple):
    """The result of a call: B images, and what each was made from."""

    images: list[PIL.Image.Image]  # of another `output_type`, an array or a tensor
    labels: list[int] | None  # class numbers; None if no image has a class
    seeds: list[int]
    codes: Tensor  # (B, T) int64, on the CPU


class LogProb(NamedTuple):
    """log p(codes | label) of each of B images, or of its unknown codes given the others.

    Of codes it is at most 0, and with its sign changed it is what an ideal coder needs for them. Of vectors it is the
    logarithm of a density, in which no code has a length: there are no bits.
    """

    nats: Tensor  # (B,), ln p
    bits: Tensor | None  # (B,), log2 p; None of vectors


class PipelineConfig(NamedTuple):
    """The settings of a pipeline and of its parts, as its files have them."""

    tokenizer: ImageTokenizerConfig
    prior: PriorConfig
    sampling: SamplingConfig


# (the pipeline, the number of the pass, that number again, {"latents": (B, T)}) -> the same dictionary, or None
OnStepEnd = Callable[["ImagePipeline", int, int, dict[str, Tensor]], Mapping[str, Tensor] | None]
BAR = ("disable", "leave", "desc")  # of tqdm, what a pipeline's bars take


class GeneratedBatch(NamedTuple):
    """A batch of a request: its places [start, start + b)."""

    start: int
    images: Tensor  # (b, C, H, W) uint8, on the CPU
    codes: Tensor  # (b, T) int64, on the CPU


class ImagePipeline(Pretrained):
    """A tokenizer and a prior over its codes."""

    face = "ImagePipeline"
    files = (
        "model_index.json",
        "generation_config.json",
        *(f"{part}/{name}" for part in PARTS for name in folder.MODEL_FILES),
    )

    def __init__(
        self,
        tokenizer: ImageTokenizer,
        prior: Prior,
        sampling: SamplingConfig | Mapping[str, Any] | None = None,
        identity: TokenizerIdentity | None = None,
        chosen: Chosen | None = None,
    ):
        """
        Args:
            sampling: the settings of calls that give no others; by default the standard ones.
            identity: of the tokenizer's codes and weights; by default computed from these weights.
            chosen: how a search chose `sampling` for these weights; saved beside it.
        Raises:
            UserError: the prior was trained on codes of another tokenizer or shape; the message names both; or what is
                given is no tokenizer, no prior, no sampling settings.
        """
        for given, kind in ((tokenizer, ImageTokenizer), (prior, Prior)):
            if not isinstance(given, kind):
                raise UserError(f"a pipeline is made of an ImageTokenizer and a Prior, got {type(given).__name__}")
        if identity is None:
            identity = identity_in_memory(tokenizer.state_dict(), tokenizer.decodes_only)
        if not prior.config.tokenizer.same_codes(identity):
            raise UserError(
                f"the prior was trained on codes of the tokenizer {prior.config.tokenizer}, not of {identity}; "
                "its codes mean nothing to another tokenizer: encode again and train the prior on those codes"
            )
        ours, theirs = tokenizer.config.layout, prior.config.layout
        if ours != theirs and not (isinstance(tokenizer, EmbedsCodes) and theirs == tokenizer.vector_layout):
            raise UserError(
                f"an image is {ours} for the tokenizer and {theirs} for the prior, which differ in "
                f"{ours.differences(theirs)}: a config.json was changed; {folder.ANEW}"
            )
        both = [each.class_names for each in (tokenizer.condition, prior.config.condition) if each.told]
        if any(names != both[0] for names in both):
            raise UserError(
                f"the tokenizer is told of {len(both[0] or ())} classes and the prior of {len(both[1] or ())}, which "
                f"are not the same ones: a config.json was changed; {folder.ANEW}"
            )
        self.tokenizer = tokenizer
        self.prior = prior
        self.identity = identity
        if not isinstance(sampling, SamplingConfig):
            sampling = build(SamplingConfig, sampling or {}, "sampling")
        self.sampling = sampling
        self.chosen = chosen
        self.prior_sha256: str | None = None  # of the file that the prior was loaded from
        self._bar: dict[str, Any] = {}
        self._kept: list[tuple[Any, Sampler]] = []  # the sampler of the last call, and what it was made of

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_kept": []}  # a copy, or another process, makes its own

    def __repr__(self) -> str:
        changed = {name: value for name, value in self.sampling if value != SamplingConfig.model_fields[name].default}
        names = self.class_names or ()
        shown = f"{len(names)}: {', '.join(names[:10])}{', ...' * (len(names) > 10)}" if names else "none"
        parts = {
            "tokenizer": f"{self.tokenizer.config.name()}, {_size(self.tokenizer)}; an image of {_shape(self)} is "
            f"{self.tokenizer.config.layout}",
            "prior": f"{self.prior.config.architecture.name()}, {_size(self.prior)}",
            "classes": shown,
            "sampling": ", ".join(f"{name} {value}" for name, value in changed.items()) or "as it comes",
            "device": str(self.device),
        }
        return "\n".join(["ImagePipeline(", *(f"  {name}: {value}" for name, value in parts.items()), ")"])

    if not TYPE_CHECKING:  # a type checker would take every attribute for one that is there

        def __getattr__(self, name: str) -> NoReturn:
            instead = diffusers_options.PARTS_INSTEAD.get(name)
            raise AttributeError(f"ImagePipeline has no {name}" + (f": {instead}" if instead else ""))

    @classmethod
    def from_pipe(cls, pipeline: "ImagePipeline", **changed: Any) -> Self:
        """Return another pipeline over the same models, which it shares, as diffusers' `from_pipe`.

        Args:
            changed: `tokenizer`, `prior` or `sampling` to take in place of the pipeline's.
        """
        if not isinstance(pipeline, ImagePipeline):
            raise UserError(
                f"from_pipe takes a pipeline, got {type(pipeline).__name__}; from_pretrained reads a folder"
            )
        same = pipeline.components
        if other := changed.keys() - same.keys():
            raise UserError(f"from_pipe takes {', '.join(same)}, got {', '.join(sorted(other))}")
        if "tokenizer" not in changed:
            same["identity"] = pipeline.identity
        return cls(**(same | changed))

    # ---------------------------------------------------------------------------------------------------- on the disk

    @classmethod
    def from_models(cls, tokenizer: Path, prior: Path, sampling: SamplingConfig, chosen: Chosen | None = None) -> Self:
        """Return the pipeline of the two model folders that training wrote."""
        loaded, identity = load_identified(tokenizer, str(tokenizer))
        weights = prior / folder.MODEL_FILES[1]
        loaded_prior, of_file = folder.read_steadily(prior, lambda: (load_prior(prior), folder.sha256(weights)))
        found = cls(loaded, loaded_prior, sampling, identity, chosen)
        found.prior_sha256 = of_file
        found._name_by_codes()
        return found

    def _name_by_codes(self) -> None:
        """Give the prior the identity of its tokenizer, by the name there: an earlier version named a file."""
        named = self.identity.model_copy(update={"name": self.prior.config.tokenizer.name})
        self.prior.config = self.prior.config.model_copy(update={"tokenizer": named})

    @classmethod
    def from_run(cls, run: Path, sampling: SamplingConfig) -> Self:
        """Return the pipeline of a run's two stages. Raises as `check_trained`."""
        cls.check_trained(run)
        return cls.from_models(run / "tokenizer/model", run / "prior/model", sampling)

    @staticmethod
    def check_trained(run: Path) -> None:
        """Raise `UserError` unless a run has both models; the message names the command that makes the missing one."""
        tokenizer, prior = run / "tokenizer/model", run / "prior/model"
        for model, command in (
            (tokenizer, "tokenizer/train.py (or cluster.py, or convert.py)"),
            (prior, "prior/train.py (or fit.py)"),
        ):
            if not (model / "config.json").exists():
                raise UserError(f"there is no trained model in {model}; {command} with --run {quoted(run)} makes one")

    @classmethod
    def from_folder(cls, path: Path) -> Self:
        folder.check_not_around(path, "model_index.json", "pipeline")
        index_path = folder.inside(path, "model_index.json")
        index = folder.read_json(index_path)
        folder.check_format(index, "smalti.imagepipeline", index_path)
        if index.get("_class_name") != "ImagePipeline":
            raise UserError(f"{index_path}: _class_name must be ImagePipeline, got {index.get('_class_name')!r}")
        for part, family in (("tokenizer", ImageTokenizerConfig), ("prior", ArchitectureConfig)):
            named = _today(index.get(part))
            kinds = [kind for kind in family.members() if kind.home is None or [kind.home] == named[:1]]
            if named not in [_class_of(kind.builds) for kind in kinds]:
                expected = " or ".join(".".join(_class_of(kind.builds)) for kind in family.members())
                raise UserError(
                    f"{index_path}: {part} must be {expected}, got {index.get(part)!r}; nothing else is imported"
                )
        settings = GenerationConfig.read(folder.inside(path, "generation_config.json"))
        tokenizer, prior = (folder.inside(path, part) for part in PARTS)
        pipeline = cls.from_models(tokenizer, prior, settings.sampling, settings.chosen)
        kept = settings.sampling  # old files have the settings of all kinds of priors
        pipeline.sampling, _ = carried(kept, kept, pipeline.prior)
        return pipeline

    def save_pretrained(self, path: str | Path) -> None:
        """Write both models, `model_index.json` and `generation_config.json` into a folder; other files in it stay."""
        folder.check_ours(Path(path), "model_index.json")
        with folder.rewriting(Path(path), (*self.files, "tuning.json")) as aside:
            self.tokenizer.save_pretrained(aside / "tokenizer")
            self.prior.save_pretrained(aside / "prior")
            index = {
                "kind": "smalti.imagepipeline",
                "format": folder.FORMAT,
                "_class_name": "ImagePipeline",
                "tokenizer": _class_of(type(self.tokenizer)),
                "prior": _class_of(type(self.prior)),
            }
            folder.write_json(aside / "model_index.json", index)
            chosen = {} if self.chosen is None else {"chosen": self.chosen.model_dump(mode="json")}
            kept = self.sampling.model_dump(mode="json", include=set(self.prior.takes))
            folder.write_json(aside / "generation_config.json", kept | chosen)

    # ------------------------------------------------------------------------------------------------------ the device

    def to(self, *device_or_dtype: str | torch.device | torch.dtype, **named: Any) -> Self:
        """Move both models to a device, as in `.to("cuda")`, and return the pipeline.

        Raises:
            UserError: another dtype than float32, which the weights keep, or a device that is not there.
        """
        given = {("dtype" if isinstance(each, torch.dtype) else "device"): each for each in device_or_dtype} | named
        check_dtype(given.pop("dtype", None))
        device = given.pop("device", None)
        if given or len(device_or_dtype) + len(named) > 2:
            raise UserError(f"to takes a device, got {', '.join(map(str, [*device_or_dtype, *named]))}")
        if device is not None:
            self._kept.clear()
            try:
                self.tokenizer.to(device)
                self.prior.to(device)
            except (RuntimeError, AssertionError) as error:  # torch has one for a wrong name and one for each backend
                if isinstance(error, torch.OutOfMemoryError):
                    raise
                told = " ".join(str(error).split())[:200]
                raise UserError(f"the pipeline cannot be moved to device {device}: {told}") from None
        return self

    @property
    def device(self) -> torch.device:
        return self.prior.device

    @property
    def components(self) -> dict[str, Any]:
        """Return what the pipeline is made of: `ImagePipeline(**pipeline.components)` draws the same."""
        return {"tokenizer": self.tokenizer, "prior": self.prior, "sampling": self.sampling}

    @property
    def config(self) -> PipelineConfig:
        return PipelineConfig(self.tokenizer.config, self.prior.config, self.sampling)

    @property
    def class_names(self) -> tuple[str, ...] | None:
        """Return the names that `labels` may be, in the order of their numbers; None where images have no class."""
        return self.condition.class_names

    def set_progress_bar_config(self, **options: Any) -> None:
        """Take options of tqdm for this pipeline's bars, as in `set_progress_bar_config(disable=True)`.

        Raises:
            UserError: an option that its bars do not take.
        """
        if other := options.keys() - set(BAR):
            raise UserError(f"a pipeline's bars take {', '.join(BAR)}, got {', '.join(sorted(other))}")
        self._bar = options

    @property
    def condition(self) -> Condition:
        """Return what an image is told of, by its tokenizer, its prior, or both."""
        return self.tokenizer.condition if self.tokenizer.condition.told else self.prior.config.condition

    def to_prior(self, codes: Tensor) -> Tensor:
        """Return the prior's latents of codes (B, T): the codes, or where it draws their vectors, these."""
        if self.prior.config.layout == self.tokenizer.config.layout:
            return codes
        assert isinstance(self.tokenizer, EmbedsCodes)  # `__init__` has asked
        return self.tokenizer.embed(codes.to(self.device)).cpu()

    def from_prior(self, latents: Tensor) -> Tensor:
        """Return codes (B, T) of the prior's latents: of the vectors of codes, the nearest."""
        if self.prior.config.layout == self.tokenizer.config.layout:
            return latents
        assert isinstance(self.tokenizer, EmbedsCodes)  # `__init__` has asked
        return self.tokenizer.nearest(latents.to(self.device)).cpu()

    def told_to_prior(self, labels: Tensor) -> Tensor:
        """Return the prior's condition of class numbers (B,); of a prior that is told of no class, none."""
        condition = self.prior.config.condition
        return labels if condition.told else condition.none(len(labels), labels.device)

    # ---------------------------------------------------------------------------------------------------------- calling

    def __call__(
        self,
        labels: Sequence[int | str] | int | str | None = None,
        *,
        num_images: int | None = None,
        num_images_per_label: int | None = None,
        seed: int | None = None,
        generator: torch.Generator | None = None,
        batch_size: int | None = None,
        output_type: OutputType = "pil",
        callback_on_step_end: OnStepEnd | None = None,
        **sampling: Any,
    ) -> Generated:
        """Draw images.

        Args:
            labels: class numbers or names, dealt in turn to the images; by default all classes.
            num_images: by default one for each label or class.
            num_images_per_label: that many of the first label, then of the second, and so on, instead.
            seed: image i has seed `seed + i`; without it and a generator, seeds are drawn at random.
            generator: draws the seeds instead, as in diffusers.
            batch_size: images a forward; it changes images only by rounding. Every batch is computed whole, even for
                fewer images. By default as many as the call asks for and memory holds, at most 64 (on CUDA 256,
                whatever is asked for).
            output_type: of the images: a list of PIL pictures; as in diffusers, `np` is an array (B, H, W, C) and `pt`
                a tensor (B, C, H, W), float32 in [0, 1].
            callback_on_step_end: of a prior that draws in passes, called after each with the pipeline, the number of
                the pass (twice: diffusers gives a timestep there) and `{"latents": (B, T)}`. It looks, and changes
                nothing. All images are drawn at once.
            sampling: settings of `SamplingConfig` (temperature, top_k, top_p, min_p, guidance, ...) that differ from
                the pipeline's. `guidance_scale` is guidance.
        Raises:
            UserError: unknown labels or settings, two ways of saying one thing, or an option of diffusers that is not
                offered; the message names what does it instead.
        """
        check_output_type(output_type)
        numbers = self._dealt(labels, num_images, num_images_per_label)
        seeds = self.deal_seeds(len(numbers), seed, generator)
        if callback_on_step_end is None:
            drawn = self._drawn(numbers, seeds, batch_size, sampling)
        elif batch_size is not None:
            raise UserError("callback_on_step_end sees all images after each pass: leave batch_size out")
        else:
            drawn = self._watched(numbers, seeds, callback_on_step_end, sampling)
        return _of_type(drawn, output_type)

    def _dealt(
        self, labels: Sequence[int | str] | int | str | None, num_images: int | None, each: int | None
    ) -> list[int]:
        """Return a class number for each image: the labels in turn, or `each` images of one after the other."""
        if each is None:
            return self.deal_labels(labels, num_images)
        if num_images is not None:
            raise UserError("give num_images or num_images_per_label, not both")
        number = _whole(each, "num_images_per_label")
        if number < 1:
            raise UserError(f"num_images_per_label must be at least 1, got {number}")
        return [label for label in self.deal_labels(labels, None) for _ in range(number)]

    def _watched(self, labels: list[int], seeds: list[int], callback: OnStepEnd, sampling: dict[str, Any]) -> Generated:
        """Draw images in passes, and call `callback` after each."""
        if not isinstance(self.prior, Unfolds):
            raise UserError(
                f"callback_on_step_end is of priors that draw an image in passes, and a prior of kind "
                f"{self.prior.config.architecture.name()} draws its latents one after the other: leave it out"
            )
        for line in self.untrained(labels):
            warnings.warn(line, stacklevel=3)
        latents = None
        for step, unfolding in enumerate(self.unfold(torch.tensor(labels), seeds, **sampling)):
            latents = unfolding.latents
            given = callback(self, step, step, {"latents": latents})
            if given is not None and given.get("latents", latents) is not latents:
                raise UserError(
                    "callback_on_step_end looks at what is drawn and changes nothing: return what it was given"
                )
        assert latents is not None  # there is a pass
        return self._generated(latents, labels, seeds)

    def complete(
        self,
        images: Sequence[PIL.Image.Image] | PIL.Image.Image,
        mask: Any,
        *,
        labels: Sequence[int | str] | int | str | None = None,
        seed: int | None = None,
        generator: torch.Generator | None = None,
        batch_size: int | None = None,
        output_type: OutputType = "pil",
        **sampling: Any,
    ) -> Generated:
        """Keep a part of each image and draw the rest.

        A place of the grid is kept if all its pixels are. Those of other places that the mask keeps are read by the
        encoder beside them, and are not kept. The kept part is shown as its codes decode. A prior trained with
        `order: any` draws the rest given all that is kept, exactly. One of raster order draws each code given only the
        codes before it. This is exact if the upper rows are kept; for other masks it ignores what is kept further on,
        and a warning says so. Of several grids, a place of a coarse one is kept if all it lies over is; where one is
        drawn anew over what is kept, that looks different, and a warning says so too.

        Args:
            images: pictures of any size and mode; they are converted to the tokenizer's.
            mask: booleans of the tokenizer's image size, (H, W) or (B, H, W): true where a pixel is kept.
            labels: one for all images or one for each; without labels the prior draws without a class, and a tokenizer
                that is told of it refuses.
            seed, generator, batch_size, output_type, sampling: as in a call.
        Raises:
            UserError: a mask of another shape or type, another number of labels, or what a call refuses.
        """
        check_output_type(output_type)
        pixels = self._pixels(images)
        numbers = self._labels_of(labels, len(pixels))
        seeds = self.deal_seeds(len(pixels), seed, generator)
        kept = read_mask(mask, len(pixels), self.tokenizer.config.image_size)
        known = known_places(kept, self.prior.config.layout)
        if kept.any() and not known.any():
            warnings.warn(
                "no place is kept whole: a place of the grid is kept if all its pixels are, so all is drawn anew",
                stacklevel=2,
            )
        codes = self.encode_pixels(fill_unknown(pixels, kept), torch.tensor(numbers))
        self._tell_of_coarse(known)
        return _of_type(self._drawn(numbers, seeds, batch_size, sampling, codes, known), output_type)

    def _tell_of_coarse(self, known: Tensor) -> None:
        """Warn where fine places (B, P) are kept under coarse ones that are drawn: their picture is that of both."""
        layout = self.prior.config.layout
        if len(layout.grids) > 1 and drawn_over(known, layout):
            warnings.warn(
                f"an image is {layout}: some places of a coarse grid are drawn anew over finer ones that are kept, and "
                "what is kept looks different under them; refine keeps whole grids",
                stacklevel=3,
            )

    def vary(
        self,
        images: Sequence[PIL.Image.Image] | PIL.Image.Image | Tensor,
        share: float = 0.3,
        *,
        labels: Sequence[int | str] | int | str | None = None,
        seed: int | None = None,
        generator: torch.Generator | None = None,
        batch_size: int | None = None,
        output_type: OutputType = "pil",
        **sampling: Any,
    ) -> Generated:
        """Draw a share of each image's places again, chosen at random by its seed, given the others; see `complete`.

        Args:
            images: pictures, or codes (B, T), as a call returns them.
        """
        _check_share(share)
        check_output_type(output_type)
        codes, numbers = self._codes_of(images, labels)
        seeds = self.deal_seeds(len(codes), seed, generator)
        ranks = torch.cat([_ranks(self.prior.config.layout.places, seed, AGAIN) for seed in seeds])
        again = round(share * ranks.shape[1])
        if share > 0 and again == 0:
            raise UserError(
                f"a share of {share:g} of the {ranks.shape[1]} place(s) of an image is none: nothing would be drawn "
                f"again; give more than {0.5 / ranks.shape[1]:g}"
            )
        known = ranks >= again
        self._tell_of_coarse(known)
        return _of_type(self._drawn(numbers, seeds, batch_size, sampling, codes, known), output_type)

    def refine(
        self,
        images: Sequence[PIL.Image.Image] | PIL.Image.Image | Tensor,
        from_scale: int,
        *,
        labels: Sequence[int | str] | int | str | None = None,
        seed: int | None = None,
        generator: torch.Generator | None = None,
        batch_size: int | None = None,
        output_type: OutputType = "pil",
        **sampling: Any,
    ) -> Generated:
        """Keep the coarse grids of each image and draw the finer ones: of a small picture, a large one.

        Args:
            images: pictures of any size and mode, which are converted to the tokenizer's; or codes (B, T), as a call
                returns them: a drawn picture, encoded again, may have others.
            from_scale: the first grid that is drawn, counted from 0, the coarsest; those before it are kept.
            labels, seed, generator, batch_size, output_type, sampling: as in `complete`.
        Raises:
            UserError: a layout of a single grid, a scale that it does not have, or what `complete` refuses.
        """
        check_output_type(output_type)
        grids, c = self.prior.config.layout.grids, self.tokenizer.config
        if len(grids) < 2:
            raise UserError(
                f"an image of this pipeline is {c.layout}, one grid: refine needs several, coarse first, as the "
                "tokenizers multiscale and vqvae2 have them"
            )
        if not 0 <= _whole(from_scale, "from_scale") < len(grids):
            raise UserError(
                f"from_scale must be from 0 to {len(grids) - 1}, the grids of {c.layout}, got {from_scale}: those "
                "before it are kept and it and the finer ones are drawn"
            )
        codes, numbers = self._codes_of(images, labels)
        seeds = self.deal_seeds(len(codes), seed, generator)
        kept = sum(grid.places for grid in grids[:from_scale])
        known = (torch.arange(self.prior.config.layout.places) < kept).expand(len(codes), -1)
        return _of_type(self._drawn(numbers, seeds, batch_size, sampling, codes, known), output_type)

    def interpolate(
        self,
        first: PIL.Image.Image,
        last: PIL.Image.Image,
        steps: int = 8,
        share: float | None = None,
        *,
        way: Literal["straight", "sphere"] | None = None,
        label: int | str | None = None,
        seed: int | None = None,
        batch_size: int | None = None,
        output_type: OutputType = "pil",
        **sampling: Any,
    ) -> Generated:
        """Return `steps` images from one to another; the first and last are the reconstructions of those given.

        Of codes, the places take the code of the last image one after another, in a random order. Around the middle up
        to a share (0.5) of the places is drawn again, given the others, so that both halves fit together; see
        `complete`. Vectors go from one to the other and nothing is drawn: `straight`, or (the default) over a `sphere`
        as in White (2016), whose points are as far from the origin as draws of N(0, I), where a straight way is nearer.
        """
        check_output_type(output_type)
        if _whole(steps, "steps") < 2:
            raise UserError(f"steps must be at least 2, got {steps}")
        given = None if label is None and not self.tokenizer.condition.told else self._labels_of(label, steps)
        ends = self.encode_pixels(self._pixels([first, last]), None if given is None else torch.tensor(given[:2]))
        progress, layout = torch.linspace(0, 1, steps)[:, None], self.tokenizer.config.layout
        if not layout.discrete:
            if share is not None or seed is not None or sampling:
                raise UserError(
                    "an interpolation of vectors draws nothing: leave out share, seed and sampling settings"
                )
            return _of_type(self._decoded(between(ends[:1], ends[1:], progress, way or "sphere"), given), output_type)
        if way is not None:
            raise UserError("way is of vectors, and this pipeline has codes: leave it out")
        share = 0.5 if share is None else share
        _check_share(share)
        (seed,) = self.deal_seeds(1, seed)
        come, again = (_ranks(layout.places, seed, purpose) for purpose in (COME, AGAIN))
        taken = come < (progress * come.shape[1]).round()  # (steps, P)
        known = again >= (share * 4 * progress * (1 - progress) * again.shape[1]).round()
        codes = torch.where(taken.repeat_interleave(layout.depth, 1), ends[1], ends[0])
        numbers = given or self._labels_of(label, steps)
        return _of_type(self._drawn(numbers, [seed] * steps, batch_size, sampling, codes, known), output_type)

    def _decoded(self, latents: Tensor, labels: list[int] | None) -> Generated:
        """Return latents (B, T) that were not drawn, with their images."""
        images = to_pil(self.decode(latents, None if labels is None else torch.tensor(labels)))
        return Generated(images, None if labels is None else [*map(ClassNumber, labels)], [], latents)

    @torch.inference_mode()
    def log_prob(
        self,
        images: Sequence[PIL.Image.Image] | PIL.Image.Image | Tensor,
        *,
        labels: Sequence[int | str] | int | str | None = None,
        known: Tensor | None = None,
    ) -> LogProb:
        """Return log p(codes | label) of each image, the rate term of the ELBO, without the pixels given the codes.

        Of vectors it is the log-density of the one that `encode` gives, the centre of q(z | x), and no rate: see
        `pipeline/evaluate.py` for that.

        Args:
            images: pictures, or codes (B, T).
            labels: one for all images or one for each; without labels the prior scores without a class.
            known: (B, P) bool, places of the grid whose codes are given and cost nothing; see the prior's `log_prob`.
        Raises:
            UserError: another number of labels, or codes or known places of another shape or range.
        """
        if not isinstance(self.prior, Scores):
            raise UserError(
                f"a prior of kind {self.prior.config.architecture.name()} does not say how likely an image is"
            )
        if self.prior.config.layout != self.tokenizer.config.layout:
            raise UserError(
                "this prior draws the vectors of codes: their density says nothing of how likely the codes are"
            )
        codes, labelled = self._codes_of(images, labels)
        if known is not None and (not isinstance(known, Tensor) or len(known) != len(codes)):
            raise UserError(
                f"known must be a bool tensor ({len(codes)}, {self.prior.config.layout.places}), one row an image"
            )
        numbers = self.told_to_prior(torch.tensor(labelled, dtype=torch.int64))
        nats = []
        try:
            for rows in torch.arange(len(codes)).split(ENCODED):
                given = None if known is None else known[rows].to(self.device)
                here = codes[rows].to(self.device), numbers[rows].to(self.device)
                nats.append(self.prior.log_prob(*here, given).cpu())
        except ValueError as error:
            raise UserError(str(error)) from None
        found = torch.cat(nats) if nats else torch.empty(0)
        return LogProb(found, found / math.log(2) if self.prior.config.layout.discrete else None)

    def deal_labels(self, labels: Sequence[int | str] | int | str | None, num_images: int | None) -> list[int]:
        """Return a class number for each image, from the given labels, or from all classes, in turn."""
        given = [labels] if isinstance(labels, int | str) else labels
        chosen = [self.class_number(label) for label in given] if given is not None else None
        if chosen is None:
            classes = self.condition.num_classes
            chosen = list(range(classes or 1))  # an unconditional prior has the number 0 alone
        if not chosen:
            raise UserError("labels must name at least one class, got none")
        number = len(chosen) if num_images is None else _whole(num_images, "num_images")
        if number < 1:
            raise UserError(f"num_images must be at least 1, got {number}")
        return [chosen[i % len(chosen)] for i in range(number)]

    def class_number(self, label: int | str) -> int:
        """Return the number of a class given by name or number; a number that is a class's name is that name.

        So 2 and "2" always mean the same class, and if all names are whole numbers, only names are accepted. The labels
        that a pipeline returns are class numbers, and it accepts them as such.

        Raises:
            UserError: there is no class of that name or number; the message names the classes.
        """
        names = self.condition.class_names
        if names is None:
            raise UserError(f"labels were asked for ({label!r}), but this prior is unconditional: leave labels out")
        if isinstance(label, ClassNumber) and label < len(names):
            return int(label)
        text = label if isinstance(label, str) else str(_whole(label, "a label that is no name"))
        named = _named(text, names)
        if named is not None:
            return named
        numerals = all(name.isdecimal() for name in names)
        if not text.isdecimal() or numerals:
            raise UserError(f"there is no class {label!r}; the classes are {', '.join(names)}")
        if not int(text) < len(names):
            raise UserError(f"there is no class {label}; classes are 0 to {len(names) - 1}: {', '.join(names)}")
        return int(text)

    def untrained(self, labels: Sequence[int]) -> Iterator[str]:
        """Yield a line on the classes among the labels that no training image has, if there are any."""
        return self.condition.untrained(labels)

    @staticmethod
    def deal_seeds(number: int, seed: int | None, generator: torch.Generator | None = None) -> list[int]:
        """Return a seed for each image."""
        if seed is not None and generator is not None:
            raise UserError("give a seed or a generator, not both")
        if seed is not None:
            seed = _whole(seed, "seed")
            if not 0 <= seed <= 2**62:
                raise UserError(f"seed must be a whole number from 0 to 2**62, got {seed}")
            return [seed + i for i in range(number)]
        if generator is not None and not isinstance(generator, torch.Generator):
            raise UserError(
                f"generator must be one torch.Generator, got {type(generator).__name__}; the seeds of all images are "
                "drawn from it. For the same image again give seed, which is that of the first image"
            )
        device = generator.device if generator is not None else None
        return torch.randint(2**62, (number,), generator=generator, device=device).tolist()

    def sampler(self, batch_size: int | None = None, **sampling: Any) -> Sampler:
        """Return a sampler with the pipeline's settings, some replaced. Raises `UserError` for impossible settings."""
        settings = self.check_sampling(**sampling)
        try:
            return self.prior.sampler(settings, None if batch_size is None else _whole(batch_size, "batch_size"))
        except ValueError as error:
            raise UserError(str(error)) from None

    @contextmanager
    def _sampler(self, batch_size: int | None, sampling: dict[str, Any]) -> Iterator[Sampler]:
        """Yield the sampler of the last call if it would be made the same now, else a new one; see `sampler`.

        While it draws, it is not there for another thread, which makes its own: a sampler holds the state of a batch.
        """
        made_of = (self.check_sampling(**sampling), batch_size, self.device, _state(self.prior))
        try:
            kept, sampler = self._kept.pop()
        except IndexError:
            kept, sampler = None, None
        if sampler is None or kept != made_of:
            sampler = None  # what it holds first
            sampler = self.sampler(batch_size, **sampling)
        yield sampler
        self._kept[:] = [(made_of, sampler)]

    def check_sampling(self, **sampling: Any) -> SamplingConfig:
        """Return the pipeline's settings, some replaced. Raises `UserError` for impossible settings."""
        given = diffusers_options.ours(sampling, self.prior.takes)
        kept = self.sampling.model_dump()
        if given.get("order", "confidence") != "confidence":  # which alone has the noise: that of before goes with it
            del kept["choice_temperature"]
        settings = config.build(SamplingConfig, {**kept, **given}, "sampling")
        try:
            self.prior.check_sampling(settings)
        except ValueError as error:
            raise UserError(str(error)) from None
        return settings

    def generate(
        self,
        labels: Sequence[int],
        seeds: Sequence[int],
        sampler: Sampler,
        *,
        batch_size: int,
        first: int = 0,
        every: int = 1,
        skip: frozenset[int] = frozenset(),
    ) -> Iterator[GeneratedBatch]:
        """Yield a process's share of a request: batches first, first + every, ..., without those in `skip`."""
        for number in range(first, -(-len(labels) // batch_size), every):
            if number in skip:
                continue
            some = slice(number * batch_size, (number + 1) * batch_size)
            told = torch.tensor(labels[some])
            codes = self.from_prior(sampler(self.told_to_prior(told), seeds[some]).cpu())
            yield GeneratedBatch(some.start, self.decode(codes, told), codes)

    def unfold(self, labels: Tensor, seeds: Sequence[int], **sampling: Any) -> Iterator[Unfolding]:
        """Yield the latents of images after each pass that draws them, on the CPU, of class numbers (B,).

        The last are those that a call returns.

        Raises:
            UserError: impossible settings, or a prior that does not draw in passes.
        """
        settings, prior = self.check_sampling(**sampling), self.prior
        if not isinstance(prior, Unfolds):
            raise UserError(f"a prior of kind {prior.config.architecture.name()} draws its latents one after the other")
        number, sampler = len(seeds), prior.sampler(settings)
        size = sampler.suited(number) if isinstance(sampler, BatchSampler) and sampler.chosen else number
        padded = torch.arange(max(number, size)).clamp_max(number - 1)
        passes = prior.unfold(settings, self.told_to_prior(labels[padded].to(self.device)), [seeds[i] for i in padded])
        return (
            Unfolding(
                self.from_prior(each.latents[:number].cpu()),
                None if each.settled is None else each.settled[:number].cpu(),
            )
            for each in passes
        )

    def _drawn(
        self,
        labels: list[int],
        seeds: list[int],
        batch_size: int | None,
        sampling: dict[str, Any],
        codes: Tensor | None = None,
        known: Tensor | None = None,
    ) -> Generated:
        """Draw images, whole or around the known codes."""
        if known is not None and not isinstance(self.prior, Completes):
            raise UserError(
                f"a prior of kind {self.prior.config.architecture.name()} draws whole images, and completes none"
            )
        if known is not None and isinstance(self.prior, Completes) and not self.prior.heeds(known):
            warnings.warn(
                f"this prior {self.prior.unheeded}; prior/train.py with --model.kind transformer --order any, or with "
                "--model.kind masked, trains one that heeds all",
                stacklevel=3,
            )
        for line in self.untrained(labels):
            warnings.warn(line, stacklevel=3)
        try:
            with self._sampler(batch_size, sampling) as sampler, passing_bar(len(labels), "draw", **self._bar) as bar:
                told = self.told_to_prior(torch.tensor(labels))
                given = None if codes is None else self.to_prior(codes)
                drawn = self.from_prior(sampler(told, seeds, given, known, progress=bar.update).cpu())
        except ValueError as error:
            raise UserError(str(error)) from None
        if codes is not None and known is not None:  # a stack of codes is found again nearly, and not always
            drawn = torch.where(known.repeat_interleave(self.tokenizer.config.layout.depth, 1), codes, drawn)
        return self._generated(drawn, labels, seeds)

    def _generated(self, codes: Tensor, labels: list[int], seeds: list[int]) -> Generated:
        """Return drawn codes (B, T) with their images."""
        classes = self.condition.num_classes
        numbers: list[int] | None = None
        if any(number < classes for number in labels):
            numbers = [*map(ClassNumber, labels)]
        return Generated(to_pil(self.decode(codes, torch.tensor(labels))), numbers, seeds, codes)

    def _labels_of(self, labels: Sequence[int | str] | int | str | None, images: int) -> list[int]:
        """Return a class number for each image, from no label, one for all, or one for each."""
        if labels is None:
            if self.tokenizer.condition.told:
                raise UserError(
                    "no labels were given, and this tokenizer is told of the class of every image, to encode and to "
                    f"decode it: give labels, of the classes {', '.join(self.condition.class_names or ())}"
                )
            if not self.prior.config.knows_none:
                warnings.warn(
                    "no labels were given, and this prior never learnt to predict without one (label_dropout 0): give "
                    "labels",
                    stacklevel=3,
                )
            return self.condition.none(images).tolist()
        if isinstance(labels, int | str):
            return [self.class_number(labels)] * images
        if len(labels) != images:
            raise UserError(
                f"labels must be one for all images or one for each, got {len(labels)} labels and {images} images"
            )
        return [self.class_number(label) for label in labels]

    def _codes_of(
        self,
        images: Sequence[PIL.Image.Image] | PIL.Image.Image | Tensor,
        labels: Sequence[int | str] | int | str | None,
    ) -> tuple[Tensor, list[int]]:
        """Return the codes (B, T) of pictures, or those that are given, and the class number of each image."""
        if not isinstance(images, Tensor):
            pixels = self._pixels(images)
            numbers = self._labels_of(labels, len(pixels))
            return self.encode_pixels(pixels, torch.tensor(numbers)), numbers
        layout = self.tokenizer.config.layout
        if images.ndim != 2 or images.shape[1] != layout.length:
            raise UserError(f"codes must be (B, {layout.length}), the {layout} of an image, got {tuple(images.shape)}")
        if not len(images):
            raise UserError("there must be at least one image, got none")
        if layout.discrete and (images.is_floating_point() or images.is_complex() or images.dtype == torch.bool):
            raise UserError(f"codes must be whole numbers, got {images.dtype}")
        images = images.cpu().long() if layout.discrete else images.cpu()
        if layout.discrete and not ((images >= 0) & (images < layout.codebook_size)).all():
            most = layout.codebook_size - 1
            raise UserError(f"codes must be from 0 to {most}, got {int(images.min())} to {int(images.max())}")
        if not layout.discrete and (bad := int((~images.isfinite()).any(1).sum())):
            raise UserError(f"vectors must be finite; {bad} of {len(images)} have NaN or Inf")
        return images, self._labels_of(labels, len(images))

    def _pixels(self, images: Sequence[PIL.Image.Image] | PIL.Image.Image) -> Tensor:
        """Return pictures of any size and mode as the tokenizer's images, (B, C, H, W) uint8."""
        c, given = self.tokenizer.config, [images] if isinstance(images, PIL.Image.Image) else images
        if not isinstance(given, Sequence) or not given or not all(isinstance(each, PIL.Image.Image) for each in given):
            several = isinstance(given, Sequence) and not isinstance(given, str)
            what = [type(each).__name__ for each in given][:4] if several else type(given).__name__
            raise UserError(
                f"images must be a PIL picture, or a list of at least one, got {what}; PIL.Image.open reads a file"
            )
        try:
            return from_pil(given, c.image_size, c.image_channels, black_and_white=self.tokenizer.black_and_white)
        except ZeroDivisionError:
            raise UserError("a picture cannot be read: it has no pixels") from None
        except ValueError as error:  # a mode without an agreed range
            raise UserError(f"a picture cannot be read: {error}") from None

    @torch.no_grad()
    def encode_pixels(self, pixels: Tensor, labels: Tensor | None = None) -> Tensor:
        """Return the codes (B, T) of images (B, C, H, W) uint8; class numbers (B,) where the tokenizer needs them.

        A few images are computed by other kernels than many, which round otherwise: where two codes are nearly as near,
        an image alone may be given the other one.
        """
        found, bar = [], passing_bar(len(pixels), "encode", **self._bar)
        for rows in torch.arange(len(pixels)).split(ENCODED):
            told = None if labels is None else labels[rows]
            found.append(self.tokenizer.encode(to_float(pixels[rows].to(self.device)), told).cpu())
            bar.update(len(rows))
        bar.close()
        return torch.cat(found)

    @torch.no_grad()
    def decode(self, codes: Tensor, labels: Tensor | None = None) -> Tensor:
        """Return the images (B, C, H, W) uint8 of codes (B, T), on the CPU; class numbers (B,) as of `encode_pixels`.

        An image does not depend on its neighbours: batches have one size, and on a CPU at least `ALIKE` images, from
        which on each is computed as among more.
        """
        return self._in_batches(codes, labels, self.tokenizer.decode)

    def _in_batches(self, codes: Tensor, labels: Tensor | None, decode: Callable[..., Tensor]) -> Tensor:
        """Return the images of `decode(codes, labels)` as `decode` says."""
        found = [torch.empty(0, self.tokenizer.config.image_channels, *self.tokenizer.config.image_size).byte()]
        for rows in torch.arange(len(codes)).split(ENCODED) if len(codes) else ():
            size = max(len(rows), ALIKE) if self.device.type == "cpu" else ENCODED
            padded = torch.cat([rows, rows[-1:].expand(size - len(rows))])
            told = None if labels is None else labels[padded]
            found.append(to_uint8(decode(codes[padded].to(self.device), told))[: len(rows)].cpu())
        return torch.cat(found)

    @torch.no_grad()
    def decode_coarse(self, codes: Tensor, grids: int) -> Tensor:
        """Return the images (B, C, H, W) uint8 that the first `grids` grids of codes (B, T) make, on the CPU.

        Raises:
            UserError: a tokenizer whose coarse grids make no picture, or a number of grids that the layout has not.
        """
        layout = self.tokenizer.config.layout
        if not isinstance(self.tokenizer, DecodesCoarse):
            raise UserError(f"an image of this pipeline is {layout}: it has no coarse grids that make a picture alone")
        tokenizer = self.tokenizer
        if not 1 <= _whole(grids, "grids") <= len(layout.grids):
            raise UserError(f"grids must be from 1 to {len(layout.grids)}, those of {layout}, got {grids}")
        tokenizer.check(codes)
        return self._in_batches(codes, None, lambda some, _: tokenizer.decode_coarse(some, grids))

    def reconstruct(
        self,
        images: Sequence[PIL.Image.Image] | PIL.Image.Image,
        labels: Sequence[int | str] | int | str | None = None,
        *,
        output_type: OutputType = "pil",
    ) -> Any:
        """Return images of any size and mode as they are decoded from their codes, a list or what `output_type` says.

        Args:
            labels: one for all images or one for each, where the tokenizer is told of the class.
            output_type: as in a call.
        """
        check_output_type(output_type)
        pixels = self._pixels(images)
        given = labels is not None or self.tokenizer.condition.told
        told = torch.tensor(self._labels_of(labels, len(pixels))) if given else None
        return of_type(to_pil(self.decode(self.encode_pixels(pixels, told), told)), output_type)


def is_of_run(path: Path, run: Path) -> bool:
    """Return whether a pipeline folder holds the present models of a run."""
    pairs = [(path / part / "model.safetensors", run / part / "model/model.safetensors") for part in PARTS]
    return (path / "model_index.json").exists() and all(folder.sha256(a) == folder.sha256(b) for a, b in pairs)


def _of_type(drawn: Generated, output_type: OutputType) -> Generated:
    return drawn._replace(images=of_type(drawn.images, output_type))


def _size(model: torch.nn.Module) -> str:
    return f"{sum(weight.numel() for weight in model.state_dict().values()):,} numbers"


def _shape(pipeline: ImagePipeline) -> str:
    c = pipeline.tokenizer.config
    return f"{c.image_size[0]} x {c.image_size[1]} x {c.image_channels}"


def _check_share(share: float) -> None:
    if not isinstance(share, int | float) or not 0 <= share <= 1:
        raise UserError(f"share must be a number in [0, 1], got {share!r}")


def _named(label: str, names: Sequence[str]) -> int | None:
    """Return the class of a name, as written, in Unicode's composed form, or in any letter case; numerals by value."""
    by_value = all(name.isdecimal() for name in (label, *names))
    for alike in (str, _composed, lambda name: _composed(name).casefold(), int if by_value else str):
        same = [alike(name) for name in names]
        if same.count(alike(label)) == 1:
            return same.index(alike(label))
    return None


def _composed(name: str) -> str:
    return unicodedata.normalize("NFC", name)


def _whole(value: Any, name: str) -> int:
    """Return a whole number of any library as an int. Raises `UserError` for anything else, also for booleans."""
    try:
        if isinstance(value, bool):
            raise TypeError
        return operator.index(value)
    except TypeError:
        raise UserError(f"{name} must be a whole number, got {value!r}") from None


def _ranks(places: int, seed: int, purpose: int) -> Tensor:
    """Return the random permutation of a seed for a purpose, (1, P).

    Codes are drawn from the seed's own stream: had ranks the same one, a place that is drawn again because its number
    is low would draw its code by that low number.
    """
    return uniforms(seed_for(seed, purpose), 1, places).argsort(dim=1)


def _state(prior: Prior) -> list[tuple[float, ...]]:
    """Return what changes when a weight does: where it lies, how often it was written, and the sums of its numbers and
    of their bits, which also `weight.data.copy_(...)` changes."""
    weights = [*prior.parameters(), *prior.buffers()]
    places = [(id(each), each.data_ptr(), -1 if each.is_inference() else each._version) for each in weights]
    numbers = [each.detach() for each in weights if each.dtype == torch.float32]
    sums = [[each.sum() for each in numbers], [each.view(torch.int32).sum() for each in numbers]]
    return [*places, *(tuple(torch.stack(each).tolist()) for each in sums if each)]


def _today(named: Any) -> list[str]:
    """Return the module and class that an index names, by their present names if it has older ones; nothing if it names
    none."""
    if not isinstance(named, list) or not all(isinstance(each, str) for each in named):
        return []
    first = FIRST_PARTS.get((named[0], named[-1])) if len(named) == 2 else None
    if first is None:
        return named
    family, kind = first
    return _class_of(family.family()[kind].builds)


def _class_of(cls: type) -> list[str]:
    return [cls.__module__, cls.__name__]
