"""The section on completion: the upper half of a few held-out images is kept, and the run draws the lower half."""

import warnings

import torch
from torch import Tensor

from smalti.common.data.images import held_out_split
from smalti.common.data.pixels import to_pil
from smalti.common.data.run_images import open_vouched_images
from smalti.common.errors import UserError
from smalti.common.plots import image_grid
from smalti.common.record import private
from smalti.common.spacing import evenly_spaced
from smalti.common.written import replacing_ours
from smalti.pipeline.image_pipeline import ImagePipeline
from smalti.pipeline.mask import known_places
from smalti.pipeline.reporting import markup
from smalti.pipeline.reporting.markup import Html, Section
from smalti.pipeline.reporting.run_contents import RunContents
from smalti.prior.base import Completes
from smalti.prior.sampling_config import SamplingConfig
from smalti.tokenizer.config import ImageTokenizerConfig

COMPLETED = 8  # images
DRAWS = 2  # completions of each
GREY = 128  # the hidden part


def half_rows(c: ImageTokenizerConfig) -> int:
    """Return the pixel rows of the upper half of the grid. Raises `UserError` where the grid has no upper half."""
    if c.layout.rectangle is None or c.layout.rectangle[0] < 2:
        raise UserError(f"{c.layout} have no upper half")
    rows = c.layout.rectangle[0]
    return rows // 2 * (c.image_size[0] // rows)


def completed(contents: RunContents) -> tuple[list[Tensor], str, str]:
    """Return rows of images (n, C, H, W), the name of their split, and what the prior does not heed.

    The rows are the originals, what is kept of them, and `DRAWS` completions of each.

    Raises:
        UserError: the images cannot be read or completed.
    """
    pipeline = ImagePipeline.from_run(
        contents.path, contents.sampling.sampling if contents.sampling else SamplingConfig()
    )
    pipeline.to(torch.accelerator.current_accelerator(check_available=True) or "cpu")
    c = pipeline.tokenizer.config
    images = open_vouched_images(contents.path / "tokenizer", c, memory=0.0)  # decodes only the few images it needs
    split = held_out_split(images.splits, contents.split)
    batch = split.read(evenly_spaced(COMPLETED, len(split)))
    originals, rows, n = batch.images, half_rows(c), len(batch.images)
    kept = torch.zeros(c.image_size, dtype=torch.bool)
    kept[:rows] = True
    names = images.class_names or ()
    own = [names[number] if number >= 0 else "" for number in batch.labels.tolist()]
    labels = own if set(own) <= set(pipeline.condition.class_names or ()) else None
    prior, known = pipeline.prior, known_places(kept[None], c.layout)
    unheeded = prior.unheeded if isinstance(prior, Completes) and not prior.heeds(known) else ""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", ".*is not heeded")  # the caption says it
        drawn = [
            pipeline.complete(to_pil(originals), kept, labels=labels, seed=seed * n, batch_size=n)
            for seed in range(DRAWS)
        ]
    seen = torch.where(kept, originals, torch.full_like(originals, GREY))
    told = batch.labels if labels else None
    return [originals, seen, *(pipeline.decode(each.codes, told) for each in drawn)], split.name, unheeded


def completion_figure(contents: RunContents, rows: list[Tensor], split: str, unheeded: str) -> Html:
    """Save the rows as a picture beside the page, and return it with its caption."""
    path = contents.path / "report/completion.png"
    with replacing_ours(path) as aside:
        image_grid(torch.cat(rows), len(rows[0])).save(aside, format="PNG")
    alt = "Held-out images, the upper half of each that is kept, and completions"
    image = markup.png_tag(path, alt, pixels=contents.pixels)
    names = ("originals", "what is kept", *(f"drawn, seed {seed}" for seed in range(DRAWS)))
    caption = (
        f"{len(rows[0])} images evenly spaced in the {split} split. The upper half of each is kept, and the lower half "
        "is drawn anew, given the class where there is one; no hidden pixel is read. The kept part is shown as its "
        "codes decode."
    )
    if unheeded:
        caption += f" This prior {unheeded}."
    return markup.figure_tag(markup.labelled_grid(image, rows=names), caption)


def completion_section(contents: RunContents, wanted: bool) -> Section:
    """Return the section on completion; where it is not wanted or cannot be made, its reason."""

    def lacking(body: Html) -> Section:
        return Section("completion", "Completion", body, False)

    if not wanted:
        return lacking(markup.missing("Left out as asked", contents.command("pipeline/report.py")))
    for stage, command in (("tokenizer", contents.tokenizer_command), ("prior", contents.prior_command)):
        if not (contents.path / stage / "model/config.json").exists():
            return lacking(markup.missing(f"There is no {stage} yet", command))
    try:
        rows, split, unheeded = completed(contents)
    except UserError as error:
        words = str(error).replace(str(contents.path), contents.shown).split()
        reason = " ".join(map(private, words))  # hides the folders of this machine
        return lacking(markup.paragraph(f"No images could be completed: {reason}", class_="missing"))
    return Section("completion", "Completion", completion_figure(contents, rows, split, unheeded))
