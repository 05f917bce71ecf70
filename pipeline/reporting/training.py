"""The trainings: what each stage logged, as curves over the step, and what the prior measured at its end."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

from smalti.common.history import sentences
from smalti.pipeline.reporting import charts, page
from smalti.pipeline.reporting.charts import Curve
from smalti.pipeline.reporting.found import Found, finite
from smalti.pipeline.reporting.page import Html, Section, number


class Panel(NamedTuple):
    title: str
    names: Mapping[
        str, tuple[str, bool | None]
    ]  # of each curve: the metric, and whether validation's, training's or either
    log: bool = False
    shares: bool = False


PANELS = (
    Panel(
        "losses",
        {
            "loss": ("loss", False),
            "reconstruction": ("reconstruction_loss", False),
            "commitment": ("commitment_loss", False),
            "regularizer": ("regularizer", False),
        },
        log=True,
    ),
    Panel("mean squared error", {"train": ("objective", None)}),
    Panel("empty codes", {"train": ("empty", None)}),
    Panel("distortion, bits per dimension", {"train": ("distortion", False), "validation": ("distortion", True)}),
    Panel("PSNR on validation, dB", {"pooled": ("psnr_pooled", True), "mean over images": ("psnr", True)}),
    Panel("codebook in use on validation", {"validation": ("usage", True)}, shares=True),
    Panel("perplexity on validation", {"validation": ("perplexity", True)}),
)


def curve(name: str, lines: Sequence[Mapping[str, Any]], metric: str, *, log: bool = False) -> Curve | None:
    """A metric over the step; None where there is nothing to draw."""
    points = [(line["step"], value) for line in lines if (value := finite(line.get(metric))) is not None]
    points = [point for point in points if point[1] > 0 or not log]
    return Curve(name, *zip(*points, strict=True)) if points else None


def ends(curves: Sequence[Curve]) -> str:
    """The last value of each, for who cannot see the chart."""
    return "; ".join(f"{each.name} ends at {number(float(each.values[-1]))}" for each in curves)


# ------------------------------------------------------------------------------------------------------------ tokenizer


def panels(found: Found, lines: Sequence[Mapping[str, Any]]) -> Iterator[Html]:
    """The tokenizer's curves, those that it has; of a single evaluation there is none."""
    for panel in PANELS:
        all_named = [
            curve(name, [line for line in lines if validation in (None, "psnr" in line)], metric, log=panel.log)
            for name, (metric, validation) in panel.names.items()
        ]
        curves = [each for each in all_named if each is not None]
        if any(len(each.steps) > 1 for each in curves):
            path = found.path / "report" / f"tokenizer-{panel.title.split(',')[0].replace(' ', '-').lower()}.png"
            drawn = charts.curves(curves, path, log=panel.log, shares=panel.shares)
            yield page.panel(panel.title, page.chart(drawn, f"{panel.title} over the step: {ends(curves)}"))


# ---------------------------------------------------------------------------------------------------------------- prior


def words(name: str) -> str:
    """`test_marginal_nll`, a figure of the prior's end, in words."""
    known = {"best_step": "step of the weights kept", "uniform_nll": "uniform codes, ln K"}
    split, _, kind = name.removesuffix("_nll").partition("_")
    return known.get(name, f"{split}, {'independent codes' if kind == 'marginal' else 'learned'}")


def prior_curves(found: Found, lines: Sequence[Mapping[str, Any]]) -> Html:
    """Nats per code over the step, and after it."""
    after = {name: value for name, value in found.prior_figures().items() if finite(value) is not None}
    named = {"uniform codes": "uniform_nll", "independent codes": "validation_marginal_nll"}
    levels = {name: after[key] for name, key in named.items() if key in after}
    both = (curve("train", lines, "nll"), curve("validation", lines, "validation_nll"))
    curves = [each for each in both if each is not None]
    drawn = charts.curves(curves, found.path / "report/prior-nll.png", levels=levels, width=5.6)
    caption = "Nats per code, beside the two priors that need no training. Validation is without dropout."
    left = page.figure(page.chart(drawn, f"Nats per code over the step: {ends(curves)}"), caption)
    if not after:
        return page.tag("div", left, class_="small")
    rows = [(words(name), number(value)) for name, value in after.items()]
    return page.side_by_side(left, page.table(("after training", "nats per code"), rows))


def history(found: Found, stage: str) -> Html:
    """What the training began from and with which settings it went on, a paragraph each."""
    return page.join(*(page.tag("p", told) for told in sentences(found.history(stage))))


def section(found: Found) -> Section:
    tokenizer, prior = found.metrics("tokenizer"), found.metrics("prior")
    body = page.join(
        page.tag("h3", "Tokenizer"),
        page.tag("div", *panels(found, tokenizer), class_="charts")
        if tokenizer
        else page.missing("Not trained yet", found.tokenizer_command),
        history(found, "tokenizer"),
        page.tag("h3", "Prior"),
        prior_curves(found, prior) if prior else page.missing("Not trained yet", found.prior_command),
        history(found, "prior"),
    )
    return Section("training", "Training", body, bool(tokenizer or prior))
