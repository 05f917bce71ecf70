"""Completion: a few held-out images whose upper half is kept and whose lower half the run draws anew."""

import torch
from torch import Tensor

from smalti.common.data.images import held_out_split
from smalti.common.data.pixels import to_pil
from smalti.common.data.run_images import open_vouched_images
from smalti.common.errors import UserError
from smalti.common.plots import image_grid, save_picture
from smalti.common.record import private
from smalti.pipeline.image_pipeline import ImagePipeline
from smalti.pipeline.reporting import page
from smalti.pipeline.reporting.found import Found
from smalti.pipeline.reporting.page import Html, Section
from smalti.prior.draw import SamplingConfig
from smalti.tokenizer.config import ImageTokenizerConfig

COMPLETED = 8  # images
DRAWS = 2  # completions of each
GREY = 128  # of what a completion is not shown


def half_rows(c: ImageTokenizerConfig) -> int:
    """Return the pixel rows of the upper half of the grid. Raises `UserError` where it has none."""
    if c.layout.rectangle is None or c.layout.rectangle[0] < 2:
        raise UserError(f"{c.layout} have no upper half")
    rows = c.layout.rectangle[0]
    return rows // 2 * (c.image_size[0] // rows)


def completed(found: Found) -> tuple[list[Tensor], str]:
    """Rows of images (n, C, H, W): originals, what is kept of them, and completions. Raises `UserError` if it cannot
    be."""
    pipeline = ImagePipeline.from_run(found.path, found.sampling.sampling if found.sampling else SamplingConfig())
    pipeline.to(torch.accelerator.current_accelerator(check_available=True) or "cpu")
    c = pipeline.tokenizer.config
    images = open_vouched_images(found.path / "tokenizer", c, memory=0.0)  # a few alone are decoded
    split = held_out_split(images.splits, found.split)
    n = min(COMPLETED, len(split))
    batch = split.read(torch.arange(n) * len(split) // n)
    originals, rows = batch.images, half_rows(c)
    kept = torch.zeros(c.image_size, dtype=torch.bool)
    kept[:rows] = True
    names, numbers = pipeline.prior.config.condition.class_names or (), batch.labels.tolist()
    labels = [names[number] for number in numbers] if all(0 <= number < len(names) for number in numbers) else None
    drawn = [
        pipeline.complete(to_pil(originals), kept, labels=labels, seed=seed * len(originals), batch_size=len(originals))
        for seed in range(DRAWS)
    ]
    seen = torch.where(kept, originals, torch.full_like(originals, GREY))
    return [originals, seen, *(pipeline.decode(each.codes) for each in drawn)], split.name


def drawing(found: Found, rows: list[Tensor], split: str) -> Html:
    """The rows as a picture, written beside the page too."""
    path = found.path / "report/completion.png"
    save_picture(image_grid(torch.cat(rows), len(rows[0])), path)
    alt = "Held-out images, the upper half of each that is kept, and completions"
    image = page.picture(path, alt, pixels=found.pixels)
    names = ("originals", "what is kept", *(f"drawn, seed {seed}" for seed in range(DRAWS)))
    caption = (
        f"{len(rows[0])} images evenly spaced in the {split} split. Of each the upper half is kept and the lower half "
        "drawn anew, knowing the class where there is one; nothing is read of what is hidden. What is kept is shown as "
        "its codes decode."
    )
    return page.figure(page.labelled(image, rows=names), caption)


def section(found: Found, wanted: bool) -> Section:
    def lacking(body: Html) -> Section:
        return Section("completion", "Completion", body, False)

    if not wanted:
        return lacking(page.missing("Left out as asked", found.command("pipeline/report.py")))
    for stage, command in (("tokenizer", found.tokenizer_command), ("prior", found.prior_command)):
        if not (found.path / stage / "model/config.json").exists():
            return lacking(page.missing(f"There is no {stage} yet", command))
    try:
        rows, split = completed(found)
    except UserError as error:
        reason = " ".join(
            map(private, str(error).replace(str(found.path), found.shown).split())
        )  # no folders of this machine
        return lacking(page.paragraph(f"No images could be completed: {reason}", class_="missing"))
    return Section("completion", "Completion", drawing(found, rows, split))
