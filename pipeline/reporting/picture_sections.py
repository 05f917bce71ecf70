"""The sections of pictures from other commands: samples, reconstructions, and training images nearest to samples."""

from collections.abc import Mapping
from pathlib import Path

import PIL.Image

from smalti.pipeline.reporting import markup
from smalti.pipeline.reporting.markup import Html, Section, number, percent
from smalti.pipeline.reporting.meanings import figures_with_meanings
from smalti.pipeline.reporting.run_contents import RunContents, of_other_weights, read_run_picture
from smalti.prior.sampling_config import SamplingConfig


def evaluation_picture(contents: RunContents, what: str) -> Path | None:
    """Return the path of a picture from the shown evaluation of the pipeline; None where there is none."""
    if "pipeline" not in contents.evaluations:
        return None
    path = contents.path / f"evaluation/pipeline-{contents.evaluations['pipeline']['split']}-{what}.png"
    return path if path.exists() else None


# -------------------------------------------------------------------------------------------------------------- samples


def columns_of(image: PIL.Image.Image, contents: RunContents) -> int:
    """Return how many images stand side by side in a picture of common/plots.py."""
    H, W = contents.model.image_size if contents.model is not None else (64, 64)
    scale = max(1, 64 // max(H, W))
    return max(1, round((image.width + 2 * scale) / ((W + 2) * scale)))


def by_class(contents: RunContents, across: int) -> bool:
    """Return whether the evaluation's samples have a column for each class, which holds if all classes were drawn."""
    drawn = contents.numbers("pipeline", "agreement_by_class")
    return 1 < len(contents.classes) == across <= 20 and (not drawn or len(drawn) == across)


def sample_names(contents: RunContents, across: int) -> tuple[str, ...]:
    """Return the names over the columns of pipeline/generate.py's picture; none unless labels were dealt in turn."""
    labels = [str(line["label"]) for line in contents.samples() if "label" in line]
    names = tuple(dict.fromkeys(labels))
    in_turn = all(label == names[i % len(names)] for i, label in enumerate(labels))
    return names if in_turn and 1 < len(names) == across else ()


def sampling_line(contents: RunContents, *, evaluated: bool) -> Html | None:
    """Return the sampling settings of the drawn images, in words: those of the evaluation, or of RUN/samples."""
    protocol = contents.evaluations.get("pipeline", {}).get("protocol", {})
    sampling = protocol.get("sampling") if evaluated else contents.samples_request()
    if not isinstance(sampling, Mapping):
        sampling = contents.sampling.sampling.model_dump(mode="json") if contents.sampling else {}
    if not sampling:
        return None
    usual = SamplingConfig().model_dump(mode="json")
    given = {name: value for name, value in sampling.items() if name in usual}  # a request says more than these
    told = ", ".join(f"{name} {value}" for name, value in given.items() if value != usual[name])
    if not told:
        return markup.paragraph("Sampling settings: the defaults.")
    return markup.paragraph("Sampling settings: ", markup.code_tag(told), "; the others are the defaults.")


def samples_section(contents: RunContents) -> Section:
    """Return the section of drawn images."""
    drawn, grid = evaluation_picture(contents, "samples"), contents.path / "samples/grid.png"
    old = any(name == "pipeline" for name, _ in of_other_weights(contents))
    if old and grid.exists() and contents.samples_request():
        drawn = None
    if drawn is None and not (grid.exists() and contents.samples_request()):
        what = "What was drawn is not of the run's present weights" if grid.exists() else "Nothing was drawn yet"
        lacking = markup.missing(what, contents.command("pipeline/generate.py"))
        return Section("samples", "Samples", lacking, False)
    path = drawn or grid
    across = columns_of(read_run_picture(path), contents)
    if drawn:
        names = contents.classes if by_class(contents, across) else ()
        how = (
            f"labels dealt as the {contents.evaluations['pipeline']['split']} split has them; the first that were drawn"
        )
    else:
        names = sample_names(contents, across)
        how = "drawn by pipeline/generate.py; the first that were drawn"
    columns = "Each column is a class, named over it. " if names else ""
    alt = f"Drawn images in {across} columns" + (", a column for each class" if names else "")
    image = markup.labelled_grid(markup.png_tag(path, alt, pixels=contents.pixels), columns=names)
    whose = "weights that have changed since" if drawn and old else "the model"
    content = markup.figure_tag(image, f"{columns}Images by {whose}: {how}, with none picked by hand.")
    return Section("samples", "Samples", markup.join(content, sampling_line(contents, evaluated=drawn is not None)))


# ------------------------------------------------------------------------------------------------------ reconstructions


def reconstructions_section(contents: RunContents) -> Section:
    """Return the section of reconstructions."""
    path, parts = contents.path / "tokenizer/reconstructions.png", []
    if path.exists():
        read_run_picture(path)
        image = markup.png_tag(
            path, "A row of validation images over a row of their reconstructions", pixels=contents.pixels
        )
        parts.append(
            markup.figure_tag(
                markup.labelled_grid(image, rows=("originals", "reconstructions")),
                "Validation images over their reconstructions: the best that any prior can draw.",
            )
        )
    if "tokenizer" in contents.evaluations:
        caption = f"On the {contents.of('tokenizer', 'number')}"
        parts.append(markup.figures_table(figures_with_meanings(contents, "tokenizer"), caption=caption))
    elif parts:
        parts.append(markup.missing("The tokenizer was not evaluated", contents.command("tokenizer/evaluate.py")))
    lacking = markup.missing("There are no reconstructions yet", contents.tokenizer_command)
    return Section("reconstructions", "Reconstructions", markup.join(*parts) if parts else lacking, bool(parts))


# ----------------------------------------------------------------------------------------------------------- neighbours


def memorised_table(contents: RunContents, shares: Mapping[str, float]) -> Html:
    """Return the shares of samples as near to a training image as few held-out images are, and how to read them."""
    protocol = contents.evaluations["pipeline"]["protocol"]
    looked, among = protocol.get("neighbours"), protocol.get("neighbours_among")
    counts = (
        f" {number(looked)} drawn images were looked up among {number(among)} of train." if looked and among else ""
    )
    reading = (
        "The threshold is set so that 1% of held-out images, which cannot be memorised, fall under it. A sampler that "
        "copies nothing shows about 1%; a share many times that means that training images are repeated. Few codes, or "
        "few training images, raise it too, and so do codes in any case: their distances are whole numbers, of which "
        "several percent of the held-out images may have the one at the threshold."
    )
    rows = [(kind, percent(share)) for kind, share in shares.items()]
    return markup.join(
        markup.table_tag(("measured in", "as near as 1% of held-out images"), rows), markup.paragraph(reading, counts)
    )


def neighbours_section(contents: RunContents) -> Section:
    """Return the section of the training images nearest to samples."""
    path, title = evaluation_picture(contents, "neighbours"), "Nearest training images"
    if path is None:
        what = "Drawn images were not looked up among the training images"
        return Section("neighbours", title, markup.missing(what, contents.command("pipeline/evaluate.py")), False)
    read_run_picture(path)
    each = {kind: contents.value("pipeline", f"memorised_{kind}") for kind in ("pixels", "features", "codes")}
    shares = {kind: share for kind, share in each.items() if share is not None}
    alt = f"Drawn images over the nearest training image of each in {', '.join(shares)}"
    image = markup.png_tag(path, alt, pixels=contents.pixels)
    caption = (
        "The upper row was drawn. Under each image stands the training image nearest to it, once for each way of "
        "measuring: an image that repeats one of them would stand there twice."
    )
    rows = markup.labelled_grid(image, rows=("drawn", *(f"nearest in {kind}" for kind in shares)))
    return Section(
        "neighbours", title, markup.join(markup.figure_tag(rows, caption), memorised_table(contents, shares))
    )
