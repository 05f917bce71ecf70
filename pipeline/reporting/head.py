"""The head of the page: what was made of what, and the few figures that one looks for first."""

from collections.abc import Iterator, Mapping

from smalti.common.record import private
from smalti.pipeline.reporting import page
from smalti.pipeline.reporting.found import Found, finite, outdated
from smalti.pipeline.reporting.meanings import meaning
from smalti.pipeline.reporting.page import Figure, Html, number, percent


def lead(found: Found) -> Iterator[str]:
    """Source, numbers and sizes, in a sentence or two."""
    images = found.settings.get("tokenizer", {}).get("images")
    source = found.codes[0].source if found.codes else images if isinstance(images, Mapping) else {}
    name, subset = private(source.get("source")), source.get("subset")
    yield f"Images of {name}" + (f" ({subset})" if subset else "") if name else "Images"
    if found.codes:
        counts = [f"{number(split.get('images', split.get('rows')))} {name}" for name, split in found.codes[1].items()]
        yield f": {', '.join(counts)}"
    yield ". "
    if (model := found.model) is not None:
        H, W = model.image_size
        colours = {1: "grey", 3: "RGB", 4: "RGBA"}[model.image_channels]
        yield f"Each is {H}×{W} {colours} and becomes {str(model.layout).replace(' x ', '×')}. "
    if found.classes:
        yield f"There are {len(found.classes):,} classes. " if len(found.classes) > 1 else "There is one class. "


def reconstruction(found: Found, name: str) -> tuple[float, str] | None:
    """PSNR, usage or perplexity, and of what: the evaluation's, else what encoding measured, else training's last."""
    if (value := found.value("tokenizer", name)) is not None:
        return value, found.of("tokenizer", "number")
    splits = found.codes[1] if found.codes else {}
    for split in ("test", "validation"):
        if (value := finite(splits.get(split, {}).get(name))) is not None:
            return value, f"{split} split, as encoded"
    for line in reversed(found.metrics("tokenizer")):
        if (value := finite(line.get(name))) is not None:
            return value, "validation split, in training"
    return None


def psnr(found: Found) -> tuple[float, str] | None:
    """Return the pooled PSNR in dB, and of what. Of runs of before there is the mean over images alone, and it is
    called so."""
    if (pooled := reconstruction(found, "psnr_pooled")) is not None:
        return pooled[0], f"pooled, {pooled[1]}"
    mean = reconstruction(found, "psnr")
    return None if mean is None else (mean[0], f"mean over images, {mean[1]}")


def nats(found: Found) -> tuple[float, float | None, str] | None:
    """Nats per code, the share saved under independent codes, and of what."""
    if (value := found.value("prior", "nll")) is not None:
        return value, found.value("prior", "saved"), found.of("prior", "number")
    figures = found.prior_figures()
    for split in ("test", "validation"):
        value, alone = finite(figures.get(f"{split}_nll")), finite(figures.get(f"{split}_marginal_nll"))
        if value is not None:
            return value, 1 - value / alone if alone else None, f"{split} split, after training"
    return None


def distances(found: Found) -> Iterator[Figure]:
    """Fréchet distances of drawn images, each beside that of training images."""
    for name in found.evaluations.get("pipeline", {}).get("figures", {}):
        value = found.value("pipeline", name)
        if value is not None and (name == "fid" or name.startswith("fd_")) and not name.endswith("_train"):
            train = found.value("pipeline", f"{name}_train")
            beside = f"; training images have {number(train)}" if train is not None else ""
            yield Figure(meaning(name).title, number(float(value)), f"{found.of('pipeline', 'drawn')} drawn{beside}")


def headline(found: Found) -> Iterator[Figure]:
    """The large figures."""
    if seen := psnr(found):
        yield Figure("PSNR of reconstructions", f"{seen[0]:.2f} dB", seen[1])
    if seen := reconstruction(found, "usage"):
        yield Figure("codebook in use", percent(seen[0]), seen[1])
    if (value := found.value("pipeline", "learned_bits_per_dim")) is not None:
        yield Figure("bits per dimension", f"{value:.3f}", f"learned prior, {found.of('pipeline', 'priced')}")
    if cost := nats(found):
        saved = f"{percent(cost[1])} saved under independent codes; " if cost[1] is not None else ""
        yield Figure("nats per code", f"{cost[0]:.3f}", f"{saved}{cost[2]}")
    yield from distances(found)
    if (value := found.value("pipeline", "class_agreement")) is not None:
        yield Figure("class agreement", percent(value), "drawn images that a classifier takes for the class asked for")


def head(found: Found) -> Html:
    warnings = [page.paragraph(line, class_="warning") for line in outdated(found)]
    return page.join(page.paragraph(*lead(found), class_="lead"), *warnings, page.tiles(headline(found)))
