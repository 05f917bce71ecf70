"""The endpoints of the page for programs: its actions by name, with whole values in and out.

    /draw, /look, /decode, and of codes in rows and columns /complete

Everything is JSON. A picture is a data URI: `data:image/png;base64,...`, exact; one that is sent may be of any format
that the page reads. Classes are names. Codes are lists of numbers, one list an image.
"""

import base64
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from smalti.common.data.pixels import to_pil
from smalti.common.errors import UserError
from smalti.pipeline.image_pipeline import Generated
from smalti.pipeline.playground.controller import CodeController, Controller
from smalti.pipeline.playground.rendering import data_uri
from smalti.pipeline.playground.view import view_picture

MOST = 40  # images a request
STEPS = 1000  # the most passes a request may ask for


class Endpoints:
    """The actions of a controller for programs."""

    def __init__(self, controller: Controller):
        self.controller, self.pipeline = controller, controller.pipeline

    @property
    def named(self) -> dict[str, Callable]:
        """Return the functions by their names."""
        found: dict[str, Callable] = {"draw": self.draw, "look": self.look, "decode": self.decode}
        return {**found, "complete": self.complete} if isinstance(self.controller, CodeController) else found

    def draw(
        self,
        labels: list[str] | None = None,
        number: int = 1,
        seed: int | None = None,
        temperature: float | None = None,
        guidance: float | None = None,
        steps: int | None = None,
        top_k: int | None = None,
        top_p: float | None = None,
        min_p: float | None = None,
    ) -> dict[str, Any]:
        """Draw images of these classes in turn, of all classes without; image i has the seed `seed + i`. What is not
        given is as the pipeline has it. Returns `images`, `labels`, `seeds` and `codes`."""
        settings = self._settings(temperature, guidance, steps, top_k, top_p, min_p)
        drawn = self.controller.draw(self._numbers(labels), count(number), seed, settings)
        return self._told(drawn)

    def look(self, picture: str, label: str | None = None) -> dict[str, Any]:
        """Encode a picture and decode its codes. Returns the `picture` as the tokenizer sees it, its `codes`, the
        `reconstruction`, its `psnr` in dB, the `bits` of the codes as the prior predicts them, given the class if one
        is given, and `bits_without_prior` of them, were all codes alike likely; both are null of vectors."""
        held = self.controller.drop(read_uri(picture), None if label is None else self.pipeline.class_number(label))
        with self.controller.turn:
            view = view_picture(self.pipeline, held.image, held.label)
        shown, again = (data_uri(to_pil(each)[0]) for each in (view.image, view.again))
        return {
            "picture": shown,
            "codes": view.codes.tolist(),
            "reconstruction": again,
            "psnr": view.psnr,
            "bits": view.bits,
            "bits_without_prior": view.evenly,
        }

    def decode(self, codes: list[list[float]], labels: list[str] | None = None) -> dict[str, Any]:
        """Decode codes, one list an image; with a class for each where the tokenizer is told of it. Returns
        `images`."""
        latents = self._latents(codes)
        numbers = self._numbers(labels)
        told = torch.tensor(numbers) if numbers else None
        try:
            images = self.controller.decode(latents, told)
        except ValueError as error:
            raise UserError(str(error)) from None
        return {"images": [data_uri(each) for each in to_pil(images)]}

    def complete(
        self,
        picture: str,
        covered: list[int],
        label: str | None = None,
        number: int = 1,
        seed: int | None = None,
        temperature: float | None = None,
        guidance: float | None = None,
        steps: int | None = None,
        top_k: int | None = None,
        top_p: float | None = None,
        min_p: float | None = None,
    ) -> dict[str, Any]:
        """Draw the covered places of a picture anew, counted row by row from 0. Returns as `draw`."""
        assert isinstance(self.controller, CodeController)  # `named` has asked
        settings = self._settings(temperature, guidance, steps, top_k, top_p, min_p)
        told = None if label is None else self.pipeline.class_number(label)
        held = self.controller.drop(read_uri(picture), told)
        made, _ = self.controller.completed(held, covered, told, count(number), seed, settings)
        return self._told(made)

    def _told(self, drawn: Generated) -> dict[str, Any]:
        """Return drawn images as JSON."""
        names = self.controller.names
        labels = None if drawn.labels is None or names is None else [names[label] for label in drawn.labels]
        images = [data_uri(image) for image in drawn.images]
        return {"images": images, "labels": labels, "seeds": drawn.seeds, "codes": drawn.codes.tolist()}

    def _numbers(self, labels: Sequence[str] | None) -> list[int]:
        """Return the numbers of classes that are given by name. Raises `UserError` where they are not."""
        if not (labels is None or (isinstance(labels, list) and all(isinstance(label, str) for label in labels))):
            raise UserError(f"labels must be a list of names of classes, got {labels!r}")
        return [self.pipeline.class_number(label) for label in labels or ()]

    def _latents(self, codes: Any) -> Tensor:
        """Return codes (B, T) that a program sent. Raises `UserError` where they are none."""
        layout = self.pipeline.tokenizer.config.layout
        kind = torch.int64 if layout.discrete else torch.float32
        try:
            found = torch.tensor(codes, dtype=kind)
        except (TypeError, ValueError, RuntimeError) as error:
            raise UserError(f"codes must be lists of numbers, one list an image: {error}") from None
        if found.ndim != 2 or found.shape[1] != layout.length or not 1 <= len(found) <= MOST:
            raise UserError(
                f"codes must be 1 to {MOST} lists of {layout.length} numbers, got {' x '.join(map(str, found.shape))}"
            )
        return found

    def _settings(self, *values: Any) -> dict[str, Any]:
        """Return the sampling settings that were given. Raises `UserError` for too many passes."""
        names = ("temperature", "guidance", "steps", "top_k", "top_p", "min_p")
        given = {name: value for name, value in zip(names, values, strict=True) if value is not None}
        if isinstance(given.get("steps"), int | float) and given["steps"] > STEPS:
            raise UserError(f"steps must be at most {STEPS}, got {given['steps']}")
        return given


def count(number: Any) -> int:
    """Return a number of images. Raises `UserError` where it is none, or too many for one request."""
    if not isinstance(number, int) or not 1 <= number <= MOST:
        raise UserError(f"number must be a whole number from 1 to {MOST}, got {number!r}")
    return number


def read_uri(picture: Any) -> bytes:
    """Return the file in a data URI. Raises `UserError` where it is none."""
    try:
        head, data = picture.split(",", 1)
        if not (head.startswith("data:image/") and head.endswith(";base64")):
            raise ValueError
        return base64.b64decode(data, validate=True)
    except (AttributeError, ValueError):
        raise UserError("a picture must be a data URI: data:image/png;base64, and the file in base64") from None
