"""The section on the trainings: what each stage logged, as curves over the step, and the prior's figures at its end."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

from smalti.common.history import sentences
from smalti.pipeline.reporting import charts, markup
from smalti.pipeline.reporting.charts import Curve
from smalti.pipeline.reporting.comparisons import began_from_weights, comparisons
from smalti.pipeline.reporting.markup import Html, Section, number
from smalti.pipeline.reporting.run_contents import RunContents, decoder_alone, finite


class Panel(NamedTuple):
    """A chart of the tokenizer's training: its title and curves."""

    title: str
    names: Mapping[str, tuple[str, bool | None]]  # by curve: its metric, and whether of validation; None is either
    log: bool = False
    shares: bool = False


PANELS = (
    Panel(
        "losses",
        {
            "loss": ("loss", False),
            "reconstruction": ("reconstruction_loss", False),
            "perceptual": ("perceptual_loss", False),
            "commitment": ("commitment_loss", False),
            "regularizer": ("regularizer", False),
            "KL": ("kl_loss", False),
            "MMD": ("mmd_loss", False),
            "importance-weighted": ("importance_weighted_loss", False),
        },
        log=True,
    ),
    Panel("discriminator's logits", {"images": ("real_logits", None), "reconstructions": ("fake_logits", None)}),
    Panel("discriminator's accuracy", {"train": ("discriminator_accuracy", None)}, shares=True),
    Panel("mean squared error", {"train": ("objective", None)}),
    Panel("empty codes", {"train": ("empty", None)}),
    Panel("distortion, bits per dimension", {"train": ("distortion", False), "validation": ("distortion", True)}),
    Panel("rate, bits per dimension", {"train": ("rate", False), "validation": ("rate", True)}),
    Panel("bound on -log p(x) on validation, nats", {"-ELBO": ("negative_elbo", True)}),
    Panel("active units on validation", {"validation": ("active_units", True)}),
    Panel("PSNR on validation, dB", {"pooled": ("psnr_pooled", True), "mean over images": ("psnr", True)}),
    Panel("codebook in use on validation", {"validation": ("usage", True)}, shares=True),
    Panel("perplexity on validation", {"validation": ("perplexity", True)}),
)


def curve(name: str, lines: Sequence[Mapping[str, Any]], metric: str, *, log: bool = False) -> Curve | None:
    """Return a metric over the step; None where there is nothing to draw."""
    points = [(line["step"], value) for line in lines if (value := finite(line.get(metric))) is not None]
    points = [point for point in points if point[1] > 0 or not log]
    return Curve(name, *zip(*points, strict=True)) if points else None


def ends(curves: Sequence[Curve]) -> str:
    """Return the last value of each curve, for readers who cannot see the chart."""
    return "; ".join(f"{each.name} ends at {number(float(each.values[-1]))}" for each in curves)


# ------------------------------------------------------------------------------------------------------------ tokenizer


def panels(contents: RunContents, lines: Sequence[Mapping[str, Any]]) -> Iterator[Html]:
    """Yield the charts of the tokenizer's metrics; a metric with fewer than two points has none."""
    for panel in PANELS:
        all_named = [
            curve(name, [line for line in lines if validation in (None, "psnr" in line)], metric, log=panel.log)
            for name, (metric, validation) in panel.names.items()
        ]
        curves = [each for each in all_named if each is not None]
        if any(len(each.steps) > 1 for each in curves):
            path = contents.path / "report" / f"tokenizer-{panel.title.split(',')[0].replace(' ', '-').lower()}.png"
            drawn = charts.curves(curves, path, log=panel.log, shares=panel.shares)
            yield markup.panel(panel.title, markup.chart(drawn, f"{panel.title} over the step: {ends(curves)}"))


# ---------------------------------------------------------------------------------------------------------------- prior


def words(name: str) -> str:
    """Put the name of a figure of the prior's end into words, as `test_marginal_nll`."""
    known = {"best_step": "step of the weights kept", "uniform_nll": "uniform codes, ln K"}
    split, _, kind = name.removesuffix("_nll").removesuffix("_mse").partition("_")
    return known.get(name, f"{split}, {'independent codes' if kind == 'marginal' else 'learned'}")


def prior_curves(contents: RunContents, lines: Sequence[Mapping[str, Any]]) -> Html:
    """Return the chart of the loss over the step, beside the figures after training."""
    measure = "mse" if any("mse" in line for line in lines) else "nll"
    after = {name: value for name, value in contents.prior_figures().items() if finite(value) is not None}
    named = {"uniform codes": "uniform_nll", "independent codes": "validation_marginal_nll"}
    levels = {name: after[key] for name, key in named.items() if key in after}
    both = (curve("train", lines, measure), curve("validation", lines, f"validation_{measure}"))
    curves = [each for each in both if each is not None]
    drawn = charts.curves(curves, contents.path / f"report/prior-{measure}.png", levels=levels, width=5.6)
    unit = f"{'nats' if measure == 'nll' else 'squared error'} per {contents.unit}"
    beside = ", beside the two priors that need no training. Validation is without dropout." if levels else "."
    alt = f"{unit.capitalize()} over the step: {ends(curves)}"
    left = markup.figure_tag(markup.chart(drawn, alt), unit.capitalize() + beside)
    if not after:
        return markup.tag("div", left, class_="small")
    rows = [(words(name), f"{value:,.0f}" if name == "best_step" else number(value)) for name, value in after.items()]
    return markup.side_by_side(left, markup.table_tag(("after training", unit), rows))


def history(contents: RunContents, stage: str) -> Html:
    """Return what the training began from and the settings that changed when it went on, a paragraph each."""
    told = (*sentences(contents.history(stage)), *decoder_alone(contents, stage))
    return markup.join(*(markup.tag("p", each) for each in told))


def compared(contents: RunContents) -> Iterator[Html]:
    """Yield the comparisons with other tokenizers, or the command that makes the one that is missing."""
    tables = list(comparisons(contents))
    for each in tables:
        yield markup.table_tag(each.head, each.rows, words=(0, 3), caption=each.caption)
    if not tables and began_from_weights(contents):
        lacking = "What the training gained and lost beside the weights it began from was not measured"
        yield markup.missing(lacking, contents.command("tokenizer/compare.py"))


def prior_part(contents: RunContents) -> Html:
    """Return the prior's curves, which are named where the prior is of another tokenizer than the run has now."""
    lines = contents.metrics("prior")
    if not lines:
        return markup.missing("Not trained yet", contents.prior_command)
    whose = contents.others.get("prior")
    named = markup.paragraph(f"Of a prior over the codes of another tokenizer, {whose}.", class_="warning")
    return markup.join(named if whose else None, prior_curves(contents, lines))


def training_section(contents: RunContents) -> Section:
    """Return the section on both trainings."""
    tokenizer = contents.metrics("tokenizer")
    body = markup.join(
        markup.tag("h3", "Tokenizer"),
        markup.tag("div", *panels(contents, tokenizer), class_="charts")
        if tokenizer
        else markup.missing("Not trained yet", contents.tokenizer_command),
        history(contents, "tokenizer"),
        *compared(contents),
        markup.tag("h3", "Prior"),
        prior_part(contents),
        history(contents, "prior"),
    )
    return Section("training", "Training", body, bool(tokenizer or contents.metrics("prior")))
