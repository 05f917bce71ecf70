"""The section on bits: what an image costs under each prior, and what the learned prior costs on held-out codes.

In bits per dimension, that is for each number of an image, cost = distortion + rate: the pixels given the codes, and
the codes.
"""

import math
from collections.abc import Iterator

import numpy as np

from smalti.pipeline.reporting import charts, markup
from smalti.pipeline.reporting.markup import Html, Section, number, percent
from smalti.pipeline.reporting.meanings import PRIORS, figures_with_meanings
from smalti.pipeline.reporting.run_contents import RunContents


def doubts(contents: RunContents, stage: str, learned: bool) -> str:
    """Return the standard error and the condition of the learned sum, a sentence each with a space before it."""
    error = contents.value(stage, "bits_per_dim_error")
    doubt = f" The learned sum has a standard error of {error:.4f}." if error else ""
    conditional = contents.evaluations[stage]["protocol"].get("conditional")
    if isinstance(conditional, str) and learned:
        doubt = f" The learned rate is that of an image {conditional}.{doubt}"
    return doubt


def of_draws(contents: RunContents, stage: str) -> str:
    """Return sentences on the bounds of vectors, with a space before them; nothing of codes."""
    protocol = contents.evaluations[stage]["protocol"]
    tighter = {prior: contents.value(stage, f"{prior}_importance_nats") for prior in PRIORS}
    told = [
        f"{cost:.2f} under the {prior.replace('_', ' ')} prior" for prior, cost in tighter.items() if cost is not None
    ]
    if protocol.get("kind") != "bound" or not told:
        return ""
    label = contents.value(stage, "label_nats")
    paid = f" Of the learned rate {label:.2f} nats an image are its label's." if label else ""
    return (
        f" Each sum is minus the ELBO, a bound by {protocol.get('importance_samples')} draws of z. The tighter, "
        f"importance-weighted bound of those draws is, in nats an image, {' and '.join(told)}. "
        f"Pixels were binarized: {protocol.get('binarize')}.{paid}"
    )


def rate_distortion(contents: RunContents, stage: str, distortion: float) -> Html:
    """Return the chart and the table of an image's cost: its pixels given the codes, and its codes under each prior."""
    all_rates = {prior: contents.value(stage, f"{prior}_rate") for prior in PRIORS}
    rates = {prior: rate for prior, rate in all_rates.items() if rate is not None}
    plain = next(iter(rates), "uniform")
    most, latents = rates.get(plain) or math.inf, contents.latents
    drawn = charts.bits(distortion, rates, contents.path / "report/bits.png")
    spoken = ", ".join(f"{prior} {distortion + rate:.3f}" for prior, rate in rates.items())
    of = contents.of(stage, "priced" if stage == "pipeline" else "number")
    caption = (
        f"What a held-out image costs, in bits for each of its numbers ({of}): its {latents} under each prior, and its "
        f"pixels once the {latents} are known, which no prior changes. Shorter is "
        f"better.{of_draws(contents, stage)}{doubts(contents, stage, 'learned' in rates)}"
    )
    names = ("prior", "", "distortion", "rate", "sum", f"under {plain.replace('_', ' ')}")
    rows = [
        (
            prior.replace("_", " ") + (contents.bound(stage) if prior == "learned" else ""),
            PRIORS[prior],
            *_four(distortion, rate, distortion + rate),
            percent(1 - rate / most),
        )
        for prior, rate in rates.items()
    ]
    chart = markup.chart(drawn, f"Bits per dimension of distortion and rate together: {spoken}", wide=True)
    return markup.join(markup.figure_tag(chart, caption), markup.table_tag(names, rows, words=(0, 1)))


def _four(*values: float) -> Iterator[str]:
    yield from (f"{value:.4f}" for value in values)


def place_nats(contents: RunContents) -> np.ndarray | None:
    """Return the nats per code of each place, (h, w); None where the evaluation holds no such grid."""
    try:
        values = np.array(contents.evaluations["prior"]["figures"].get("by_place"), dtype=np.float64)
    except (ValueError, TypeError):
        return None
    return values if values.ndim == 2 and values.size and np.isfinite(values).all() else None


def place_map_figure(contents: RunContents, places: np.ndarray) -> Html:
    """Return the map of nats per code (h, w) with its caption."""
    drawn = charts.place_map(places, contents.path / "report/prior-places.png")
    size = f"{places.shape[0]} by {places.shape[1]}"
    alt = f"Nats per code on a grid of {size}, from {places.min():.2f} to {places.max():.2f}"
    caption = "Nats per code, by place of the grid: dark places cost most."
    if contents.evaluations["prior"]["protocol"].get("order") == "raster":
        caption += " In raster order the first codes are predicted from little."
    return markup.figure_tag(markup.tag("div", markup.chart(drawn, alt), class_="small"), caption)


def where_nats_go(contents: RunContents) -> Html | None:
    """Return nats per code by class and by place of the grid; None where neither was measured."""
    classes, places = contents.numbers("prior", "by_class"), place_nats(contents)
    parts = []
    if classes:
        parts.append(markup.class_bars(f"Nats per {contents.unit}, by class", classes, number))
    if places is not None:
        parts.append(place_map_figure(contents, places))
    return markup.side_by_side(*parts) if parts else None


def bits_section(contents: RunContents) -> Section:
    """Return the section on bits per dimension and on the prior's evaluation."""
    parts: list[Html | None] = []
    distortions = {stage: contents.value(stage, "distortion") for stage in ("pipeline", "tokenizer")}
    measured = [(stage, value) for stage, value in distortions.items() if value is not None]
    if measured and (distortions["pipeline"] is not None or not contents.vectors):
        parts.append(rate_distortion(contents, *measured[0]))
        parts.append(None if (told := contents.losses()) is None else markup.paragraph(told))
    why = contents.evaluations.get("pipeline", {}).get("protocol", {}).get("no_bits")
    if isinstance(why, str):
        parts.append(markup.paragraph(f"An image has no cost in bits here: {why}."))
    elif distortions["pipeline"] is None:
        what = "What an image costs under the priors was not measured"
        parts.append(markup.missing(what, contents.command("pipeline/evaluate.py")))
    if "prior" in contents.evaluations:
        table = markup.figures_table(figures_with_meanings(contents, "prior"))
        parts += [
            markup.tag("h3", f"The prior on held-out {contents.latents}"),
            table,
            where_nats_go(contents),
        ]
    else:
        parts.append(markup.missing("The prior was not evaluated", contents.command("prior/evaluate.py")))
    return Section("bits", "Bits", markup.join(*parts), bool(measured) or "prior" in contents.evaluations)
