"""The visitor's actions: each method answers one event of the page, with values to show, and knows nothing of Gradio.

Visitors share one controller, and one event at a time computes; each visitor's state is passed in and returned.

Shapes: codes (B, T); images (B, C, H, W) uint8.
"""

import threading
import time
import warnings
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple

import PIL.Image
import PIL.ImageOps
import torch
from torch import Tensor

from smalti.common.data.pixels import from_pil, to_pil
from smalti.common.errors import UserError
from smalti.common.raster import open_picture
from smalti.pipeline import growth
from smalti.pipeline.image_pipeline import Generated, ImagePipeline
from smalti.pipeline.playground import grid_board, plane_board, rendering
from smalti.pipeline.playground.codebook_browser import PAGE, CodebookBrowser
from smalti.pipeline.playground.examples import example_picture
from smalti.pipeline.playground.latent_map import LatentMap
from smalti.pipeline.playground.view import View, view_picture
from smalti.pipeline.reporting.markup import Html, percent
from smalti.prior.base import Completes, Unfolding, Unfolds
from smalti.prior.sampling_config import SamplingConfig
from smalti.tokenizer.base import DecodesCoarse, DrawsCodes

MOST_PIXELS = 20_000_000  # of a dropped picture: decoding takes ten bytes a pixel for a moment
LARGE = 2_000_000  # pixels: a larger picture is reduced before it gets the tokenizer's size
# formats whose head gives the number of decoded pixels; the head of an icon does not
FORMATS = ("PNG", "JPEG", "WEBP", "GIF", "BMP", "AVIF")
ROWS = 64  # images decoded at once
PACE, PACE_OF_PASSES = 0.06, 0.2  # seconds a frame, of a code more and of a pass over all
OFF = {"steps": 0, "top_k": 0, "top_p": 1.0, "min_p": 0.0}  # values of the controls that set nothing
COLUMNS = 32  # the most columns of a page of the codebook


class Held(NamedTuple):
    """The picture that a visitor has selected: drawn or dropped."""

    image: Tensor  # (1, C, H, W)
    codes: Tensor  # (1, T), as they were drawn, or as the tokenizer finds them
    label: int | None


class Canvas(NamedTuple):
    """An image painted with codes, and its earlier states."""

    codes: Tensor  # (1, T)
    before: tuple[Tensor, ...]
    label: int | None = None  # the class that a tokenizer is told of, where it is


class Controller:
    """A pipeline, its lock, and the actions that work with every family of tokenizer and prior."""

    def __init__(self, pipeline: ImagePipeline):
        self.pipeline, self.turn = pipeline, threading.Lock()
        self.reader = ThreadPoolExecutor(1)  # one thread decodes, since malloc keeps each thread's memory
        self.names = pipeline.condition.class_names

    # --------------------------------------------------------------------------------------------------------- drawing

    def draw(self, labels: Sequence[int], number: int, seed: int | None, sampling: dict[str, Any]) -> Generated:
        """Draw images with the pipeline. No labels mean all classes in turn, and no seed means a random one."""
        with self.turn:
            if seed is None:
                (seed,) = torch.randint(2**31, (1,)).tolist()
            return self.pipeline(labels=self._named(labels) or None, num_images=number, seed=seed, **sampling)

    def _named(self, labels: Sequence[int]) -> list[int | str]:
        """Return classes by their names, because a pipeline reads a number that is also a name as the name."""
        return [label if self.names is None else self.names[label] for label in labels]

    def grow(self, drawn: Generated, sampling: dict[str, Any] | None = None) -> Iterator[list[PIL.Image.Image]]:
        """Yield the images as they stood while they were drawn with these settings, at last the finished ones.

        A prior that draws an image in passes is watched at them: what has not settled is grey, or noise that clears.
        """
        if isinstance(self.pipeline.prior, Unfolds):
            due = time.monotonic()
            for unfolding in self._passes(drawn, sampling or {}):
                with self.turn:
                    images = growth.after_pass(self.pipeline, unfolding, self._told(drawn))
                time.sleep(max(0.0, due - time.monotonic()))
                due = time.monotonic() + PACE_OF_PASSES
                yield to_pil(images)
        yield drawn.images

    def _passes(self, drawn: Generated, sampling: dict[str, Any]) -> Iterator[Unfolding]:
        """Yield the latents after each pass that draws these images, a turn each."""
        with self.turn:
            passes = self.pipeline.unfold(self._told(drawn), drawn.seeds, **sampling)
        while True:
            with self.turn:
                found = next(passes, None)
            if found is None:
                return
            yield found

    def _told(self, drawn: Generated) -> Tensor:
        """Return the class numbers of drawn images, (B,)."""
        if drawn.labels is None:
            return self.pipeline.condition.none(len(drawn.seeds))
        return torch.tensor(drawn.labels)

    def captions(self, drawn: Generated) -> list[tuple[str, str]]:
        """Return each image's title and the line below it."""
        if drawn.labels is None or self.names is None:
            return [(f"seed {seed}", "") for seed in drawn.seeds]
        return [(self.names[label], f"seed {seed}") for label, seed in zip(drawn.labels, drawn.seeds, strict=True)]

    def sheet(self, drawn: Generated, chosen: int | None = None) -> Html:
        return rendering.sheet(drawn.images, self.captions(drawn), chosen)

    def decode(self, codes: Tensor, labels: Tensor | None = None) -> Tensor:
        with self.turn:
            return self.pipeline.decode(codes, labels)

    # ------------------------------------------------------------------------------------------------ a picture in hand

    def pick(self, drawn: Generated, index: int) -> Held:
        """Return one of the drawn images."""
        if not 0 <= index < len(drawn.images):
            raise UserError(f"there is no drawn image {index}; draw some first")
        codes = drawn.codes[index : index + 1]
        return Held(self._pixels(drawn.images[index]), codes, drawn.labels[index] if drawn.labels is not None else None)

    def drop(self, file: str | bytes, label: int | None = None) -> Held:
        """Read a picture from a file, one file at a time. Raises `UserError` where it cannot be read as a picture."""
        try:
            image = self.reader.submit(self._read, Path(file) if isinstance(file, str) else file).result()
        except Exception as error:  # damaged files raise nearly anything in PIL
            told = (str(error).replace(file, "it") if isinstance(file, str) else str(error)) or type(error).__name__
            raise UserError(f"the file cannot be read as a picture: {told}; drop a PNG, JPEG or WebP file") from None
        return self.hold(image, label)

    def hold(self, image: Tensor, label: int | None) -> Held:
        """Return a picture (1, C, H, W) with its codes, as of a class; a tokenizer that is told of none needs none."""
        with self.turn:
            return Held(
                image, self.pipeline.encode_pixels(image, None if label is None else torch.tensor([label])), label
            )

    def relabel(self, held: Held, label: int | None) -> Held:
        """Return a picture as of another class, encoded anew where the tokenizer is told of it."""
        return self.hold(held.image, label) if self.needs_class else held._replace(label=label)

    @property
    def needs_class(self) -> bool:
        """Return whether the tokenizer encodes and decodes no picture without its class."""
        return self.pipeline.tokenizer.condition.told

    def example(self, name: str, label: int | None) -> Held:
        """Return one of the pictures to try."""
        tokenizer = self.pipeline.tokenizer
        c = tokenizer.config
        return self.hold(example_picture(name, c.image_channels, c.image_size, tokenizer.black_and_white), label)

    def look(self, held: Held) -> Html:
        """Return what the tokenizer makes of a picture."""
        with self.turn:
            found: View = view_picture(self.pipeline, held.image, held.label)
        name = None if held.label is None or self.names is None else self.names[held.label]
        return rendering.looked_at(found, self.pipeline.tokenizer.config.layout, name)

    def _read(self, file: Path | bytes) -> Tensor:
        with open_picture(file, MOST_PIXELS, FORMATS) as picture:
            return self._pixels(smaller(picture, self.pipeline.tokenizer.config.image_size))

    def _pixels(self, picture: PIL.Image.Image) -> Tensor:
        tokenizer = self.pipeline.tokenizer
        c = tokenizer.config
        return from_pil([picture], c.image_size, c.image_channels, black_and_white=tokenizer.black_and_white)


class CodeController(Controller):
    """The actions over codes in rows and columns: images grow code by code, are completed, and painted with codes."""

    def __init__(self, pipeline: ImagePipeline, counts: Tensor | None):
        """
        Args:
            counts: (Q, K), how often each code was used, where a run has counted it.
        """
        super().__init__(pipeline)
        layout = pipeline.tokenizer.config.layout
        assert layout.rectangle is not None and isinstance(
            pipeline.tokenizer, DrawsCodes
        )  # `open_controller` has checked this
        self.codebook = CodebookBrowser(pipeline.tokenizer, layout, counts)
        self.grid, self.depth, self.places = layout.rectangle, layout.depth, layout.places

    def grow(self, drawn: Generated, sampling: dict[str, Any] | None = None) -> Iterator[list[PIL.Image.Image]]:
        """Yield the images after more and more places, slowly enough to watch, at last the finished ones."""
        if isinstance(self.pipeline.prior, Unfolds):
            yield from super().grow(drawn, sampling)
            return
        due, told = time.monotonic(), self._told(drawn)
        for counts in growth.in_batches(growth.frames_of(self.places, len(drawn.images)), len(drawn.images), ROWS):
            codes = torch.cat([growth.unfinished(drawn.codes, n, self.codebook.usual) for n in counts])
            frames = self.decode(codes, told.repeat(len(counts))).split(len(drawn.images))
            for n, images in zip(counts, frames, strict=True):
                time.sleep(max(0.0, due - time.monotonic()))
                due = time.monotonic() + PACE
                yield to_pil(growth.hidden(images, growth.first_places(n, self.places), self.grid))
        time.sleep(max(0.0, due - time.monotonic()))
        yield drawn.images

    # ------------------------------------------------------------------------------------------------------ completing

    def cover(self, held: Held, covered: Sequence[int]) -> dict[str, Any]:
        """Return the board on which places are covered."""
        h, w = self.grid
        return grid_board.board_value(rendering.data_uri(to_pil(held.image)[0]), h, w, covered)

    @property
    def lower_half(self) -> list[int]:
        return list(range(self.grid[0] // 2 * self.grid[1], self.places))

    def complete(
        self, held: Held, covered: Any, label: int | None, number: int, seed: int | None, sampling: dict[str, Any]
    ) -> tuple[Html, list[str]]:
        """Return completions beside what was kept, and the warnings about them."""
        made, told = self.completed(held, covered, label, number, seed, sampling)
        shown = to_pil(growth.hidden(held.image, self._known(covered), self.grid)) + made.images
        captions = [("what is kept", ""), *((f"seed {each}", "") for each in made.seeds)]
        return rendering.sheet(shown, captions), told

    def _known(self, covered: Any) -> Tensor:
        """Return a mask (P,) of the places that are not covered. Raises `UserError` where none is."""
        places = grid_board.read_places(covered, self.places)
        if not places:
            raise UserError("nothing is covered: drag over what is to be drawn anew")
        known = torch.ones(self.places, dtype=torch.bool)
        known[places] = False
        return known

    def completed(
        self, held: Held, covered: Any, label: int | None, number: int, seed: int | None, sampling: dict[str, Any]
    ) -> tuple[Generated, list[str]]:
        """Return completions, and the warnings about them."""
        known, (h, w), (H, W) = self._known(covered), self.grid, held.image.shape[2:]
        kept = known.view(h, w).repeat_interleave(H // h, 0).repeat_interleave(W // w, 1)
        pictures = to_pil(held.image.expand(number, -1, -1, -1))
        labels = None if label is None else self._named([label] * number)
        with self.turn, warnings.catch_warnings(record=True) as told:
            warnings.simplefilter("always")
            made = self.pipeline.complete(pictures, kept, labels=labels, seed=seed, **sampling)
        return made, [str(each.message) for each in told if each.category is UserWarning]

    # -------------------------------------------------------------------------------------------------------- painting

    def codes_board(self, depth: int, by_use: bool, page: int, chosen: int) -> dict[str, Any]:
        """Return the board of a page of the codebook."""
        codes = self.codebook.page(depth, by_use, page).tolist()
        columns = self.columns(len(codes))
        with self.turn:
            tiles = self.codebook.patches(depth, tuple(codes))
        place = codes.index(chosen) if chosen in codes else None
        return grid_board.board_value(
            rendering.patch_sheet(tiles, columns), -(-len(codes) // columns), columns, chosen=place
        )

    @staticmethod
    def columns(codes: int) -> int:
        """Return the number of columns that makes a page about as wide as high."""
        return min(COLUMNS, max(1, round(codes**0.5)))

    def code_at(self, places: Any, depth: int, by_use: bool, page: int) -> int | None:
        """Return the code at the clicked place of a page; None behind the last code."""
        codes = self.codebook.page(depth, by_use, page).tolist()
        *_, place = grid_board.read_places(places, PAGE + COLUMNS) or [len(codes)]
        return codes[place] if place < len(codes) else None

    def tell(self, depth: int, code: int) -> Html:
        """Return a code's patch, its use and its neighbours."""
        counts, near = self.codebook.counts[depth], self.codebook.near(depth, code)
        with self.turn:
            patch, *others = self.codebook.patches(depth, (code, *near.codes.tolist()))
        if self.codebook.counted:
            used, rank = int(counts[code]), int((counts > counts[code]).sum()) + 1
            share = percent(used / max(1, int(counts.sum())))
            about = f"used {used:,} times, {share} of all codes; rank {rank:,} of {self.codebook.codes:,}"
        else:
            about = f"one of {self.codebook.codes:,}; nobody counted how often it is used"
        title = f"Code {code}" + (f" of depth {depth + 1}" if self.depth > 1 else "")
        return rendering.of_one_code(patch, title, about, list(zip(near.codes.tolist(), others, strict=True)))

    def canvas(self, held: Held) -> Canvas:
        """Return a canvas that begins with the picture in hand."""
        return Canvas(held.codes, (), held.label)

    def blank(self, canvas: Canvas) -> Canvas:
        """Return a canvas of the same class with the most used code everywhere."""
        return Canvas(self.codebook.usual.repeat(self.places)[None], (), canvas.label)

    def paint(self, canvas: Canvas, places: Any, depth: int, code: int) -> Canvas:
        """Put a code at these places, at one depth."""
        codes = canvas.codes.clone()
        codes[0, torch.tensor(grid_board.read_places(places, self.places), dtype=torch.int64) * self.depth + depth] = (
            code
        )
        return canvas._replace(codes=codes, before=(*canvas.before[-99:], canvas.codes))

    @staticmethod
    def undo(canvas: Canvas) -> Canvas:
        return canvas._replace(codes=canvas.before[-1], before=canvas.before[:-1]) if canvas.before else canvas

    def canvas_board(self, canvas: Canvas) -> dict[str, Any]:
        told = None if canvas.label is None else torch.tensor([canvas.label])
        return grid_board.board_value(rendering.data_uri(to_pil(self.decode(canvas.codes, told))[0]), *self.grid)


class ScalesController(Controller):
    """The actions over several grids: a picture by its coarse grids alone, and with the finer ones drawn anew."""

    def __init__(self, pipeline: ImagePipeline):
        super().__init__(pipeline)
        self.grids = pipeline.tokenizer.config.layout.grids

    def coarse(self, held: Held, kept: int) -> Html:
        """Return the picture beside what its first `kept` grids decode to."""
        with self.turn:
            image = self.pipeline.decode_coarse(held.codes, kept)
        words = " + ".join(" × ".join(map(str, grid.shape)) for grid in self.grids[:kept])
        shown = to_pil(held.image) + to_pil(image)
        return rendering.sheet(shown, [("the picture", ""), (f"{kept} of {len(self.grids)} grids", words)])

    def refine(
        self, held: Held, kept: int, label: int | None, number: int, seed: int | None, sampling: dict[str, Any]
    ) -> Html:
        """Return pictures whose first `kept` grids are those of the one in hand, the finer ones drawn."""
        if kept >= len(self.grids):
            raise UserError("all grids are kept: move the slider to the left, and what is right of it is drawn")
        labels = None if label is None else self._named([label] * number)
        with self.turn:
            made = self.pipeline.refine(held.codes.expand(number, -1), kept, labels=labels, seed=seed, **sampling)
        return rendering.sheet(made.images, [(f"seed {each}", "") for each in made.seeds])


class MapController(Controller):
    """The actions over vectors: places of the latent map are decoded."""

    def __init__(self, pipeline: ImagePipeline, shown: LatentMap):
        super().__init__(pipeline)
        self.map, self.points = shown, plane_board.points_uri(shown)

    @property
    def first_place(self) -> tuple[float, float]:
        """Return the place that is shown first: the point of the first image."""
        right, up = self.map.points[0].tolist()
        return right, up

    def at(self, right: Any, up: Any, label: int | None = None) -> tuple[dict[str, Any], Html]:
        """Return the board with a place chosen, and what is there.

        Args:
            label: of what is decoded, where the tokenizer is told of it; the nearest image's when not given.
        """
        place = self.map.place(right, up)
        near = self.map.nearest(place)
        labels = self.map.labels[near : near + 1] if label is None else torch.tensor([label])
        decoded = self.decode(self.map.latents(place), labels)
        right, up = place.tolist()
        where = f"at {right:.2f}, {up:.2f}"
        if label is not None and self.names is not None:
            where += f", as of class {self.names[label]}"
        told = rendering.on_plane(decoded, self.map.images[near : near + 1], where, self.map.class_of(near))
        return plane_board.plane_value(self.points, self.map, (right, up), near), told


def open_controller(pipeline: ImagePipeline, counts: Tensor | None, shown: LatentMap | None = None) -> Controller:
    """Return the controller that fits a pipeline.

    Args:
        counts: (Q, K), how often each code was used, where a run has counted it.
        shown: the latent map, where the run has vectors and its images are there.
    """
    if shown is not None:
        return MapController(pipeline, shown)
    layout, completes = pipeline.tokenizer.config.layout, isinstance(pipeline.prior, Completes)
    if isinstance(pipeline.tokenizer, DecodesCoarse) and len(layout.grids) > 1 and completes:
        return ScalesController(pipeline)
    drawn = isinstance(pipeline.tokenizer, DrawsCodes) and completes
    return CodeController(pipeline, counts) if layout.discrete and layout.rectangle and drawn else Controller(pipeline)


def smaller(picture: PIL.Image.Image, size: tuple[int, int]) -> PIL.Image.Image:
    """Return a large picture cropped to the shape of (H, W) pixels and averaged down; a small one as it is.

    At least four times as many pixels a side remain. Without this, what follows takes forty bytes a pixel.
    """
    if picture.width * picture.height <= LARGE:
        return picture
    if picture.format == "JPEG":
        most = (8 * max(size), 8 * max(size))  # square, since EXIF may turn the picture
        picture.draft(None, most)  # decodes every second, fourth or eighth pixel
    PIL.ImageOps.exif_transpose(picture, in_place=True)
    if picture.mode in ("1", "P", "PA"):  # modes that cannot be averaged
        picture = picture.convert("L" if picture.mode == "1" else "RGBA" if picture.has_transparency_data else "RGB")
    scale = min(have / want for have, want in zip(picture.size, size[::-1], strict=True))
    seen = [max(1, round(want * scale)) for want in size[::-1]]
    left, top = ((have - want) // 2 for have, want in zip(picture.size, seen, strict=True))
    by = max(1, int(scale / 4))
    box = (left, top, left + seen[0], top + seen[1])
    return picture.resize((-(-seen[0] // by), -(-seen[1] // by)), PIL.Image.Resampling.BOX, box)


def read_sampling(
    temperature: float, guidance: float | None, steps: float | None, top_k: float | None, top_p: float, min_p: float
) -> dict[str, Any]:
    """Return the sampling settings of a call from the values of the controls."""
    given = {"steps": int(steps or 0), "top_k": int(top_k or 0), "top_p": top_p, "min_p": min_p}
    cut = {name: None if value == OFF[name] else value for name, value in given.items()}
    return {"temperature": temperature, **({} if guidance is None else {"guidance": guidance}), **cut}


def controls(sampling: SamplingConfig) -> dict[str, float]:
    """Return the values of the controls from sampling settings."""
    cut = {name: off if getattr(sampling, name) is None else getattr(sampling, name) for name, off in OFF.items()}
    return {"temperature": sampling.temperature, "guidance": sampling.guidance, **cut}
