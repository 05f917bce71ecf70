"""Bits: what an image costs under each prior, and what the learned one is worth on held-out codes.

In bits per dimension, for each number of an image, the cost is distortion + rate: its pixels given its codes, and its
codes.
"""

import math

import numpy as np

from smalti.pipeline.reporting import charts, page
from smalti.pipeline.reporting.found import Found
from smalti.pipeline.reporting.meanings import PRIORS, told_figures
from smalti.pipeline.reporting.page import Html, Section, number, percent


def doubts(found: Found, stage: str, learned: bool) -> str:
    """What is to be known of the learned sum, a sentence each with a space before it."""
    error = found.value(stage, "bits_per_dim_error")
    doubt = f" The learned sum has a standard error of {error:.4f}." if error else ""
    conditional = found.evaluations[stage]["protocol"].get("conditional")
    if isinstance(conditional, str) and learned:
        doubt = f" The learned rate is that of an image {conditional}.{doubt}"
    return doubt


def rate_distortion(found: Found, stage: str, distortion: float) -> Html:
    """What an image costs: its pixels given the codes, and the codes under each prior."""
    all_rates = {prior: found.value(stage, f"{prior}_rate") for prior in PRIORS}
    rates = {prior: rate for prior, rate in all_rates.items() if rate is not None}
    most = rates.get("uniform") or math.inf
    drawn = charts.bits(distortion, rates, found.path / "report/bits.png")
    spoken = ", ".join(f"{prior} {distortion + rate:.3f}" for prior, rate in rates.items())
    of = found.of(stage, "priced" if stage == "pipeline" else "number")
    caption = (
        f"What a held-out image costs, in bits for each of its numbers ({of}): its codes under each prior, and its "
        "pixels once the codes are known, which no prior changes. Shorter is "
        f"better.{doubts(found, stage, 'learned' in rates)}"
    )
    names = ("prior", "", "distortion", "rate", "sum", "under uniform")
    rows = [
        (prior, PRIORS[prior], f"{distortion:.4f}", f"{rate:.4f}", f"{distortion + rate:.4f}", percent(1 - rate / most))
        for prior, rate in rates.items()
    ]
    chart = page.chart(drawn, f"Bits per dimension of distortion and rate together: {spoken}", wide=True)
    return page.join(page.figure(chart, caption), page.table(names, rows, words=(0, 1)))


def place_nats(found: Found) -> np.ndarray | None:
    """(h, w), where the evaluation says it."""
    try:
        values = np.array(found.evaluations["prior"]["figures"].get("by_place"), dtype=np.float64)
    except (ValueError, TypeError):
        return None
    return values if values.ndim == 2 and values.size and np.isfinite(values).all() else None


def place_map(found: Found, places: np.ndarray) -> Html:
    drawn = charts.place_map(places, found.path / "report/prior-places.png")
    size = f"{places.shape[0]} by {places.shape[1]}"
    alt = f"Nats per code on a grid of {size}, from {places.min():.2f} to {places.max():.2f}"
    caption = "Nats per code, by place of the grid: dark places cost most."
    if found.evaluations["prior"]["protocol"].get("order") == "raster":
        caption += " In raster order the first codes are drawn knowing little."
    return page.figure(page.tag("div", page.chart(drawn, alt), class_="small"), caption)


def where_nats_go(found: Found) -> Html | None:
    """Nats by class, and by place of the grid."""
    classes, places = found.numbers("prior", "by_class"), place_nats(found)
    parts = []
    if classes:
        parts.append(page.class_bars("Nats per code, by class", classes, number))
    if places is not None:
        parts.append(place_map(found, places))
    return page.side_by_side(*parts) if parts else None


def section(found: Found) -> Section:
    parts: list[Html | None] = []
    distortions = {stage: found.value(stage, "distortion") for stage in ("pipeline", "tokenizer")}
    measured = [(stage, value) for stage, value in distortions.items() if value is not None]
    if measured:
        parts.append(rate_distortion(found, *measured[0]))
    if distortions["pipeline"] is None:
        what = "What an image costs under the priors was not measured"
        parts.append(page.missing(what, found.command("pipeline/evaluate.py")))
    if "prior" in found.evaluations:
        table = page.figures_table(told_figures(found, "prior"))
        parts += [page.tag("h3", "The prior on held-out codes"), table, where_nats_go(found)]
    else:
        parts.append(page.missing("The prior was not evaluated", found.command("prior/evaluate.py")))
    return Section("bits", "Bits", page.join(*parts), bool(measured) or "prior" in found.evaluations)
