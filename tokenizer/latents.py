"""Draw the latents of a run's tokenizer whose latents are vectors, and say how much of them is used.

    accelerate launch -q tokenizer/latents.py runs/digits_vae

Reads RUN/tokenizer/{config.yaml, model/} and up to --images of its held-out images. Writes, anew each time, into
RUN/tokenizer/latents/:
    numbers.png          the KL of each number of z and how far its centre moves over images: collapsed ones are at 0
    traversals.png       images along the numbers of z that move most, each alone from -3 to 3
    interpolations.png   the way between pairs of images, straight and over the sphere
    plane.png            of two numbers: the decoded plane, through the quantiles of the normal distribution
    points.png           of two numbers: the held-out images as points of it, by class, with their ellipses
    classes.png          of a tokenizer that is told of the class: a row a z of N(0, I), a column a class
    latents.json         the figures
and prints a summary with the advice. Where the class is told, traversals and plane are of the first image's class, and
interpolations go between two images of one class.
"""

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

if __package__ in (None, ""):
    sys.path[0] = str(Path(__file__).resolve().parents[1])
    from smalti.common.starting import answer_signals

    answer_signals()

from pydantic import Field

from smalti.common import config
from smalti.common.command_line import answer_at_once, is_command
from smalti.common.config import Settings as BaseSettings


class Settings(BaseSettings):
    """Draw the vectors of a tokenizer."""

    run: str = "runs/digits_vae"
    """folder of the experiment: its tokenizer is looked at"""
    split: str | None = None
    """which split is looked at; test, or where there is none validation, when null"""
    images: int = Field(2000, ge=2)
    """images that are encoded at most, evenly spaced"""


def read_settings(argv: Sequence[str]) -> Settings:
    return config.parse(Settings, __doc__, argv, positional="run", positional_help="folder of the experiment")


if is_command(__name__):  # --help and a wrong setting are answered before torch is imported
    answer_at_once(read_settings)

import PIL.Image
import torch
from accelerate import Accelerator
from torch import Tensor

from smalti.common.commands import as_typed
from smalti.common.data.images import held_out_split
from smalti.common.data.pixels import to_float, to_uint8
from smalti.common.data.run_images import open_run_images
from smalti.common.data.split import ImageSplit
from smalti.common.errors import UserError
from smalti.common.folder import replacing, write_json
from smalti.common.launch import make_accelerator, run_command
from smalti.common.plots import image_grid, save_picture
from smalti.common.seeds import generator
from smalti.common.session import logged
from smalti.common.spacing import evenly_spaced
from smalti.tokenizer.base import ImageTokenizer, LikelihoodTokenizer
from smalti.tokenizer.interpolation import WAYS, between
from smalti.tokenizer.labels import check_labels
from smalti.tokenizer.latent_use import LatentUse, latent_use
from smalti.tokenizer.model import load_tokenizer, trained

BATCH = 256
FARTHEST = 3.0  # deviations of N(0, I) that a traversal goes either way
TRAVERSED, COLUMNS = 12, 11  # numbers of z, and images along each
PAIRS = 4
SIDE = 20  # images along a side of the plane
STYLES, CLASSES = 10, 20  # rows and, at most, columns of the picture of classes


class Encoded(NamedTuple):
    """Images of a split and their latents."""

    images: Tensor  # (N, C, H, W) uint8
    labels: Tensor  # (N,), -1 where an image has none
    centers: Tensor  # (N, T)
    deviations: Tensor | None  # (N, T) where there is a q(z | x)
    kl: Tensor | None  # (T,) nats of each number, the mean over images, where the KL is a sum over numbers


def examine(c: Settings, accelerator: Accelerator) -> dict[str, Any]:
    """Measure and draw the latents, and return the contents of `latents.json`. The main process does it alone."""
    run = Path(c.run) / "tokenizer"
    tokenizer = load_tokenizer(trained(run)).to(accelerator.device)
    if tokenizer.config.layout.discrete:
        raise UserError(
            f"the latents of a tokenizer of kind {tokenizer.config.name()} are codes; "
            f"{as_typed('tokenizer/codebook.py', Path(c.run))} draws their codebook"
        )
    if not accelerator.is_main_process:
        return {}
    opened = open_run_images(run, tokenizer.config)
    check_labels(tokenizer.condition, opened)
    encoded = encode_some(tokenizer, held_out_split(opened.splits, c.split), c.images, accelerator.device)
    use, folder = latent_use(encoded.centers), run / "latents"
    folder.mkdir(exist_ok=True)
    save_numbers(use, encoded.kl, folder / "numbers.png")
    save_picture(traversals(tokenizer, encoded, use), folder / "traversals.png")
    save_picture(interpolations(tokenizer, encoded), folder / "interpolations.png")
    if len(use.variance) == 2:
        save_picture(plane(tokenizer, encoded.labels[0]), folder / "plane.png")
        save_points(encoded, opened.class_names, folder / "points.png")
    if tokenizer.condition.told:
        save_picture(styles_by_class(tokenizer), folder / "classes.png")
    figures = {
        "images": len(encoded.images),
        "numbers": len(use.variance),
        "active_units": use.active,
        "center_variance": use.variance.tolist(),
        "kl_by_number": None if encoded.kl is None else encoded.kl.tolist(),
        "advice": [line for line in (use.warning(tokenizer),) if line is not None],
    }
    write_json(folder / "latents.json", figures)
    return figures


@torch.no_grad()
def encode_some(tokenizer: ImageTokenizer, split: ImageSplit, most: int, device: torch.device) -> Encoded:
    """Return up to `most` images of a split, evenly spaced, with their latents."""
    parts, kl = [], list[Tensor]()
    images, labels = [], []
    for positions in evenly_spaced(most, len(split)).split(BATCH):
        batch = split.read(positions)
        pixels = to_float(batch.images.to(device))
        deviation = tokenizer.deviation(pixels, batch.labels)
        parts.append((tokenizer.encode(pixels, batch.labels).cpu(), None if deviation is None else deviation.cpu()))
        images.append(batch.images)
        labels.append(batch.labels)
        if isinstance(tokenizer, LikelihoodTokenizer):
            bound = tokenizer.bound(pixels, 1, generator(0, device), batch.labels)
            kl += [] if bound is None else [bound.rate.flatten(1).cpu()]
    if sum(map(len, images)) < 2:
        raise UserError(f"at least two images of {split.name} are wanted, and {sum(map(len, images))} could be read")
    each = torch.cat(kl).double().mean(0) if kl else None
    deviations = [deviation for _, deviation in parts if deviation is not None]
    return Encoded(
        torch.cat(images),
        torch.cat(labels),
        torch.cat([center for center, _ in parts]),
        torch.cat(deviations) if deviations else None,
        each if each is not None and len(each) == tokenizer.config.layout.length else None,
    )


@torch.no_grad()
def decoded(tokenizer: ImageTokenizer, latents: Tensor, labels: Tensor) -> Tensor:
    """Return the images (N, C, H, W) uint8 of latents (N, T) of classes (N,), on the CPU."""
    device = next(tokenizer.parameters()).device
    both = zip(latents.split(BATCH), labels.split(BATCH), strict=True)
    return torch.cat([to_uint8(tokenizer.decode(some.to(device), told)).cpu() for some, told in both])


def styles_by_class(tokenizer: ImageTokenizer) -> PIL.Image.Image:
    """Return a row for each of a few draws of N(0, I), decoded as each class: z is the style, the class the content."""
    classes = min(CLASSES, tokenizer.condition.num_classes)
    z = torch.randn(STYLES, tokenizer.config.layout.length, generator=generator(0))
    images = decoded(tokenizer, z.repeat_interleave(classes, 0), torch.arange(classes).repeat(STYLES))
    return image_grid(images, columns=classes)


def plane(tokenizer: ImageTokenizer, label: Tensor) -> PIL.Image.Image:
    """Return the decoded plane of two numbers of z: columns and rows lie at evenly spaced quantiles of N(0, 1), so that
    each image stands for as much of the prior (Kingma and Welling 2014, fig. 4)."""
    quantiles = torch.special.ndtri((torch.arange(SIDE).double() + 0.5) / SIDE).float()
    up, right = torch.meshgrid(quantiles.flip(0), quantiles, indexing="ij")
    points = torch.stack([right, up], -1).view(-1, 2)
    return image_grid(decoded(tokenizer, points, label.expand(len(points))), columns=SIDE, side=32)


def traversals(tokenizer: ImageTokenizer, encoded: Encoded, use: LatentUse) -> PIL.Image.Image:
    """Return a row for each of the numbers of z that move most, along which that number alone goes from -3 to 3."""
    chosen = use.variance.argsort(descending=True)[:TRAVERSED]
    rows = encoded.centers[:1].repeat(len(chosen) * COLUMNS, 1).view(len(chosen), COLUMNS, -1)
    for row, number in enumerate(chosen.tolist()):
        rows[row, :, number] = torch.linspace(-FARTHEST, FARTHEST, COLUMNS)
    labels = encoded.labels[:1].expand(len(chosen) * COLUMNS)
    return image_grid(decoded(tokenizer, rows.flatten(0, 1), labels), columns=COLUMNS)


def interpolations(tokenizer: ImageTokenizer, encoded: Encoded) -> PIL.Image.Image:
    """Return two rows for each of a few pairs of images: the straight way between them and the one over the sphere."""
    progress, rows, labels = torch.linspace(0, 1, COLUMNS)[:, None], list[Tensor](), list[Tensor]()
    for pair in pairs_of(encoded.labels, same_class=tokenizer.condition.told):
        first, last = encoded.centers[pair].split(1)
        rows += [between(first, last, progress, way) for way in WAYS]
        labels += [encoded.labels[pair[:1]].expand(COLUMNS)] * len(WAYS)
    return image_grid(decoded(tokenizer, torch.cat(rows), torch.cat(labels)), columns=COLUMNS)


def pairs_of(labels: Tensor, *, same_class: bool) -> list[Tensor]:
    """Return the places of a few pairs of images: the first ones, or of each of the first classes its first two."""
    if not same_class:
        return list(torch.arange(len(labels) // 2 * 2).view(-1, 2)[:PAIRS])
    places = [(labels == label).nonzero()[:2, 0] for label in labels.unique()]
    found = [pair for pair in places if len(pair) == 2][:PAIRS]
    return found or [torch.tensor([0, 0])]  # no class has two: from an image to itself


def save_numbers(use: LatentUse, kl: Tensor | None, path: Path) -> None:
    """Save the KL of each number of z and the variance of its centre over images, largest first."""
    from matplotlib.figure import Figure

    panels = {"variance of the centre over images": use.variance.sort(descending=True).values}
    panels |= {} if kl is None else {"KL, nats": kl.sort(descending=True).values}
    figure = Figure(figsize=(5 * len(panels), 3), layout="constrained")
    for axes, (title, values) in zip(figure.subplots(1, len(panels), squeeze=False)[0], panels.items(), strict=True):
        axes.bar(range(1, len(values) + 1), values.tolist(), width=1.0)
        axes.xaxis.get_major_locator().set_params(integer=True)
        axes.set(title=f"{title}: {use.active} of {len(values)} active", xlabel="number of z, largest first")
    with replacing(path) as aside:
        figure.savefig(aside, format="png", dpi=110)


def save_points(encoded: Encoded, class_names: Sequence[str] | None, path: Path) -> None:
    """Save held-out images as points of the plane, coloured by class, some with the ellipse of one deviation."""
    from matplotlib.figure import Figure
    from matplotlib.patches import Ellipse

    figure = Figure(figsize=(7, 6), layout="constrained")
    axes = figure.subplots()
    colours = [f"C{label % 10}" for label in encoded.labels.tolist()]
    right, up = encoded.centers.T.tolist()
    axes.scatter(right, up, c=colours, s=5)
    shown = range(0, len(encoded.images), max(1, len(encoded.images) // 200)) if encoded.deviations is not None else ()
    for place in shown:
        assert encoded.deviations is not None
        width, height = (2 * encoded.deviations[place]).tolist()
        middle = right[place], up[place]
        ellipse = Ellipse(middle, width, height, fill=False, color=colours[place], lw=0.5)
        axes.add_patch(ellipse)
    for label, name in enumerate((class_names or ())[:10]):
        axes.scatter([], [], c=f"C{label}", s=20, label=name)
    if class_names:
        axes.legend(fontsize=8, loc="center left", bbox_to_anchor=(1, 0.5))
    axes.set(xlabel="first number of z", ylabel="second number of z", aspect="equal")
    with replacing(path) as aside:
        figure.savefig(aside, format="png", dpi=110)


def main(argv: Sequence[str]) -> None:
    c = read_settings(argv)
    accelerator = make_accelerator("fp32")
    with logged(Path(c.run) / "tokenizer"):  # not alone: latents may be looked at while they are trained
        figures = examine(c, accelerator)
    accelerator.wait_for_everyone()
    if accelerator.is_main_process:
        print(
            f"{figures['active_units']} of {figures['numbers']} numbers of z are active on {figures['images']} images"
        )
        for line in figures["advice"]:
            print(f"advice: {line}")
        print(f"the pictures are in {Path(c.run) / 'tokenizer/latents'}")


if __name__ == "__main__":
    run_command(main)
