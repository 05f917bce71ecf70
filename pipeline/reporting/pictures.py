"""The pictures that other commands left: samples, reconstructions, and the training images nearest to samples."""

from collections.abc import Mapping
from pathlib import Path

import PIL.Image

from smalti.pipeline.reporting import page
from smalti.pipeline.reporting.found import Found, read_picture
from smalti.pipeline.reporting.meanings import told_figures
from smalti.pipeline.reporting.page import Html, Section, number, percent
from smalti.prior.draw import SamplingConfig


def evaluation_picture(found: Found, what: str) -> Path | None:
    """A picture that the shown evaluation of the pipeline left."""
    if "pipeline" not in found.evaluations:
        return None
    path = found.path / f"evaluation/pipeline-{found.evaluations['pipeline']['split']}-{what}.png"
    return path if path.exists() else None


# -------------------------------------------------------------------------------------------------------------- samples


def columns_of(image: PIL.Image.Image, found: Found) -> int:
    """How many images stand side by side in a picture of common/plots.py."""
    H, W = found.model.image_size if found.model is not None else (64, 64)
    scale = max(1, 64 // max(H, W))
    return max(1, round((image.width + 2 * scale) / ((W + 2) * scale)))


def by_class(found: Found, across: int) -> bool:
    """Whether the evaluation's samples have a column for each class: as long as each was drawn."""
    drawn = found.numbers("pipeline", "agreement_by_class")
    return 1 < len(found.classes) == across <= 20 and (not drawn or len(drawn) == across)


def sample_names(found: Found, across: int) -> tuple[str, ...]:
    """The names over the columns of what pipeline/generate.py drew, where labels were dealt in turn."""
    labels = [str(line["label"]) for line in found.samples() if "label" in line]
    names = tuple(dict.fromkeys(labels))
    in_turn = all(label == names[i % len(names)] for i, label in enumerate(labels))
    return names if in_turn and 1 < len(names) == across else ()


def sampling_line(found: Found) -> Html | None:
    """With which settings images were drawn."""
    sampling = found.evaluations.get("pipeline", {}).get("protocol", {}).get("sampling")
    if not isinstance(sampling, Mapping):
        sampling = found.sampling.sampling.model_dump(mode="json") if found.sampling else {}
    if not sampling:
        return None
    usual = SamplingConfig().model_dump(mode="json")
    told = ", ".join(f"{name} {value}" for name, value in sampling.items() if value != usual.get(name))
    if not told:
        return page.paragraph("Sampling settings: the defaults.")
    return page.paragraph("Sampling settings: ", page.code(told), "; the others are the defaults.")


def samples(found: Found) -> Section:
    drawn, grid = evaluation_picture(found, "samples"), found.path / "samples/grid.png"
    if drawn is None and not grid.exists():
        lacking = page.missing("Nothing was drawn yet", found.command("pipeline/generate.py"))
        return Section("samples", "Samples", lacking, False)
    path = drawn or grid
    across = columns_of(read_picture(path), found)
    if drawn:
        names = found.classes if by_class(found, across) else ()
        how = f"labels dealt as the {found.evaluations['pipeline']['split']} split has them; the first that were drawn"
    else:
        names = sample_names(found, across)
        how = "drawn by pipeline/generate.py; the first that were drawn"
    columns = "Each column is a class, named over it. " if names else ""
    alt = f"Drawn images in {across} columns" + (", a column for each class" if names else "")
    image = page.labelled(page.picture(path, alt, pixels=found.pixels), columns=names)
    content = page.figure(image, f"{columns}Nobody made these: {how}, none picked out.")
    return Section("samples", "Samples", page.join(content, sampling_line(found)))


# ------------------------------------------------------------------------------------------------------ reconstructions


def reconstructions(found: Found) -> Section:
    path, parts = found.path / "tokenizer/reconstructions.png", []
    if path.exists():
        read_picture(path)
        image = page.picture(
            path, "A row of validation images over a row of their reconstructions", pixels=found.pixels
        )
        parts.append(
            page.figure(
                page.labelled(image, rows=("originals", "through the codes")),
                "Validation images over what is left of each when only its codes are kept: the best that any prior can "
                "draw.",
            )
        )
    if "tokenizer" in found.evaluations:
        caption = f"On the {found.of('tokenizer', 'number')}"
        parts.append(page.figures_table(told_figures(found, "tokenizer"), caption=caption))
    elif parts:
        parts.append(page.missing("The tokenizer was not evaluated", found.command("tokenizer/evaluate.py")))
    lacking = page.missing("There are no reconstructions yet", found.tokenizer_command)
    return Section("reconstructions", "Reconstructions", page.join(*parts) if parts else lacking, bool(parts))


# ----------------------------------------------------------------------------------------------------------- neighbours


def memorised(found: Found, shares: Mapping[str, float]) -> Html:
    """How many samples are as near to a training image as few held-out images are, and how to read that."""
    protocol = found.evaluations["pipeline"]["protocol"]
    looked, among = protocol.get("neighbours"), protocol.get("neighbours_among")
    counts = (
        f" Looked up were {number(looked)} drawn images among {number(among)} of train." if looked and among else ""
    )
    reading = (
        "The threshold is set so that 1% of held-out images, which nobody has memorised, fall under it: about 1% is "
        "what a sampler that copies nothing shows, and a share many times that says that training images are repeated. "
        "Few codes, or few training images, raise it too."
    )
    rows = [(kind, percent(share)) for kind, share in shares.items()]
    return page.join(
        page.table(("measured in", "as near as 1% of held-out images"), rows), page.paragraph(reading, counts)
    )


def neighbours(found: Found) -> Section:
    path, title = evaluation_picture(found, "neighbours"), "Nearest training images"
    if path is None:
        what = "Drawn images were not looked up among the training images"
        return Section("neighbours", title, page.missing(what, found.command("pipeline/evaluate.py")), False)
    read_picture(path)
    each = {kind: found.value("pipeline", f"memorised_{kind}") for kind in ("pixels", "features", "codes")}
    shares = {kind: share for kind, share in each.items() if share is not None}
    alt = f"Drawn images over the nearest training image of each in {', '.join(shares)}"
    image = page.picture(path, alt, pixels=found.pixels)
    caption = (
        "The upper row was drawn. Under each image stands the training image nearest to it, once for each way of "
        "measuring: an image that repeats one of them would stand there twice."
    )
    rows = page.labelled(image, rows=("drawn", *(f"nearest in {kind}" for kind in shares)))
    return Section("neighbours", title, page.join(page.figure(rows, caption), memorised(found, shares)))
