"""The head of the page: the data, the sizes, and the figures that readers look for first."""

from collections.abc import Iterator, Mapping

from smalti.common.record import private
from smalti.pipeline.reporting import markup
from smalti.pipeline.reporting.markup import Figure, Html, number, percent
from smalti.pipeline.reporting.meanings import meaning
from smalti.pipeline.reporting.run_contents import RunContents, finite, outdated

COLOURS = {1: "grey", 3: "RGB", 4: "RGBA"}  # by the number of channels


def lead(contents: RunContents) -> Iterator[str]:
    """Yield the words of the lead: source, numbers of images, and sizes."""
    images = contents.settings.get("tokenizer", {}).get("images")
    source = contents.codes[0].source if contents.codes else images if isinstance(images, Mapping) else {}
    name, subset = private(source.get("source")), source.get("subset")
    yield f"Images of {name}" + (f" ({subset})" if subset else "") if name else "Images"
    if contents.codes:
        counts = [
            f"{number(split.get('images', split.get('rows')))} {name}" for name, split in contents.codes[1].items()
        ]
        yield f": {', '.join(counts)}"
    yield ". "
    if (model := contents.model) is not None:
        H, W = model.image_size
        yield f"Each is {H}×{W} {COLOURS[model.image_channels]} and becomes {str(model.layout).replace(' x ', '×')}. "
    if contents.classes:
        yield f"There are {len(contents.classes):,} classes. " if len(contents.classes) > 1 else "There is one class. "


def reconstruction(contents: RunContents, name: str) -> tuple[float, str] | None:
    """Return PSNR, usage or perplexity, and of what: by the evaluation, else by encoding, else by training."""
    if (value := contents.value("tokenizer", name)) is not None:
        return value, contents.of("tokenizer", "number")
    splits = contents.codes[1] if contents.codes else {}
    for split in ("test", "validation"):
        if (value := finite(splits.get(split, {}).get(name))) is not None:
            return value, f"{split} split, as encoded"
    for line in reversed(contents.metrics("tokenizer")):
        if (value := finite(line.get(name))) is not None:
            return value, "validation split, in training"
    return None


def psnr(contents: RunContents) -> tuple[float, str] | None:
    """Return the PSNR in dB, and of what: pooled over the split.

    Older runs have only the mean over images, and the words then say so.
    """
    if (pooled := reconstruction(contents, "psnr_pooled")) is not None:
        return pooled[0], f"pooled, {pooled[1]}"
    mean = reconstruction(contents, "psnr")
    return None if mean is None else (mean[0], f"mean over images, {mean[1]}")


def nats(contents: RunContents) -> tuple[float, float | None, str] | None:
    """Return nats per code, the share saved under independent codes, and of what."""
    if (value := contents.value("prior", "nll")) is not None:
        return value, contents.value("prior", "saved"), f"{contents.of('prior', 'number')}{contents.bound('prior')}"
    figures = contents.prior_figures()
    for split in ("test", "validation"):
        value, alone = finite(figures.get(f"{split}_nll")), finite(figures.get(f"{split}_marginal_nll"))
        if value is not None:
            return value, 1 - value / alone if alone else None, f"{split} split, after training"
    return None


def distances(contents: RunContents) -> Iterator[Figure]:
    """Yield the Fréchet distances of drawn images, each beside that of training images."""
    for name in contents.evaluations.get("pipeline", {}).get("figures", {}):
        value = contents.value("pipeline", name)
        if value is not None and (name == "fid" or name.startswith("fd_")) and not name.endswith("_train"):
            train = contents.value("pipeline", f"{name}_train")
            beside = f"; training images have {number(train)}" if train is not None else ""
            yield Figure(meaning(name).title, number(float(value)), f"{contents.of('pipeline', 'drawn')} drawn{beside}")


def headline(contents: RunContents) -> Iterator[Figure]:
    """Yield the large figures."""
    if seen := psnr(contents):
        yield Figure("PSNR of reconstructions", f"{seen[0]:.2f} dB", seen[1])
    if seen := reconstruction(contents, "usage"):
        yield Figure("codebook in use", percent(seen[0]), seen[1])
    if (value := contents.value("pipeline", "learned_bits_per_dim")) is not None:
        yield Figure(
            "bits per dimension",
            f"{value:.3f}",
            f"learned prior{contents.bound('pipeline')}, {contents.of('pipeline', 'priced')}",
        )
    if cost := nats(contents):
        saved = f"{percent(cost[1])} saved under independent codes; " if cost[1] is not None else ""
        yield Figure(f"nats per {contents.unit}", f"{cost[0]:.3f}", f"{saved}{cost[2]}")
    yield from distances(contents)
    if (value := contents.value("pipeline", "class_agreement")) is not None:
        yield Figure("class agreement", percent(value), "drawn images that a classifier takes for the class asked for")


def page_head(contents: RunContents) -> Html:
    """Return the lead, warnings of outdated evaluations, and the large figures."""
    warnings = [markup.paragraph(line, class_="warning") for line in outdated(contents)]
    return markup.join(markup.paragraph(*lead(contents), class_="lead"), *warnings, markup.tiles(headline(contents)))
