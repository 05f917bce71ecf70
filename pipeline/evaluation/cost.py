"""The bits of held-out images under the priors of a run, as figures and their protocol."""

import math
import sys
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from smalti.common.evaluation_file import parts_path
from smalti.common.parts import in_parts
from smalti.common.seeds import generator
from smalti.pipeline.evaluation.bench import EvaluationBench, priced_positions
from smalti.pipeline.evaluation.bits import PRIORS, bits_per_dim, image_nats, likely, stochastic_bounds
from smalti.pipeline.evaluation.vector_bits import VECTOR_PRIORS, no_vector_bits, vector_nats
from smalti.pipeline.image_pipeline import ImagePipeline
from smalti.prior.base import Scores
from smalti.prior.baselines import Marginal
from smalti.prior.data import plain_views
from smalti.tokenizer.base import LikelihoodTokenizer

PART = 500  # images


def no_bits(pipeline: ImagePipeline) -> str | None:
    """Return why tokenizer and prior do not say what an image costs, or None where they do."""
    if not isinstance(pipeline.tokenizer, LikelihoodTokenizer):
        return f"a tokenizer of kind {pipeline.tokenizer.config.name()} does not say p(x | z)"
    if pipeline.prior.config.layout != pipeline.tokenizer.config.layout:
        return "the prior draws the vectors of codes, and their density says nothing of how likely the codes are"
    if not pipeline.prior.config.layout.discrete:
        return no_vector_bits(pipeline)
    if not isinstance(pipeline.prior, Scores):
        return f"a prior of kind {pipeline.prior.config.architecture.name()} does not say how likely codes are"
    return None


def price(bench: EvaluationBench) -> tuple[dict[str, Any], dict[str, Any]]:
    """Return the bits of held-out images as figures, and their protocol, which says why where there are none."""
    if (why := no_bits(bench.pipeline)) is not None:
        bench.accelerator.print(f"no bits: {why}", file=sys.stderr)
        return {}, {"no_bits": why}
    vectors = not bench.pipeline.prior.config.layout.discrete
    nats, protocol = price_vectors(bench) if vectors else price_codes(bench)
    config, none = bench.pipeline.tokenizer.config, bench.pipeline.condition.num_classes
    dimensions = config.image_channels * math.prod(config.image_size)
    bits = {name: bits_per_dim(each, dimensions) for name, each in nats.items()}
    protocol |= {
        "priced": len(bits["distortion"]),
        "conditional": "with its label, which is paid for" if none else "without labels",
        "likelihood": likely(bench.pipeline).likelihood.kind,
    }
    if not vectors:
        return bits_figures(bits, PRIORS), protocol
    return bits_figures(bits, VECTOR_PRIORS) | nats_figures(nats), protocol


def labels_of(bench: EvaluationBench, labels: Tensor) -> Tensor:
    """Return labels of images as the pipeline has them, (B,)."""
    none = bench.pipeline.condition.num_classes
    return torch.where((labels < 0) | (labels >= none), none, labels)


def price_vectors(bench: EvaluationBench) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Return the nats (N,) of each held-out image by draws of its vectors, and how they were drawn."""
    c, pipeline, priced = bench.c, bench.pipeline, priced_positions(bench)

    def compute(positions: Tensor) -> dict[str, Tensor]:
        parts = []
        for some in priced[positions].split(c.batch_size):
            batch, noise = bench.split.read(some), generator(c.seed + int(some[0]), pipeline.device)
            with bench.accelerator.autocast():
                found = vector_nats(pipeline, batch.images, labels_of(bench, batch.labels), c.importance_samples, noise)
            importance = {f"{prior}_importance": each for prior, each in found.importance.items()}
            label = pipeline.condition.nats(labels_of(bench, batch.labels))
            parts.append({"distortion": found.distortion, "label": label} | found.rate | importance)
        return {name: torch.cat([part[name] for part in parts]) for name in parts[0]}

    drawn = {"importance_samples": c.importance_samples, "seed": c.seed}
    folder = parts_path(bench.run, f"bits-{bench.split.name}")
    nats = in_parts(folder, bench.plan | drawn, len(priced), PART, compute, bench.accelerator, "bits")
    assert isinstance(pipeline.prior, Scores)  # `no_bits` has asked
    told = {"learned_rate": "exact" if pipeline.prior.exact else "bound"}
    how = {"kind": "bound", "rates": "by the draws, under every prior", "binarize": bench.binarize} | told
    return nats, drawn | how


def price_codes(bench: EvaluationBench) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Return the nats (N,) of each held-out image by its codes, and how they were drawn if the posterior has draws."""
    c, pipeline, info = bench.c, bench.pipeline, bench.data.info
    train = plain_views(bench.data.splits["train"], info).codes
    marginal = Marginal(train, info.layout)
    stochastic, priced = likely(pipeline).stochastic, priced_positions(bench)

    def compute(positions: Tensor) -> dict[str, Tensor]:
        parts = []
        for some in priced[positions].split(c.batch_size):
            batch = bench.split.read(some)
            labels = labels_of(bench, batch.labels)
            with bench.accelerator.autocast():
                found = image_nats(pipeline, marginal, batch.images, labels)._asdict()
            if stochastic:
                noise = generator(c.seed + int(some[0]))
                with bench.accelerator.autocast():
                    elbo, importance = stochastic_bounds(
                        pipeline, marginal, batch.images, labels, c.importance_samples, noise
                    )
                found |= {f"{prior}_elbo": elbo[prior] for prior in PRIORS}
                found |= {f"{prior}_importance": importance[prior] for prior in importance}
            parts.append(found)
        return {name: torch.cat([part[name] for part in parts]) for name in parts[0]}

    assert isinstance(pipeline.prior, Scores)  # `no_bits` has asked
    drawn = {"importance_samples": c.importance_samples, "seed": c.seed} if stochastic else {}
    told = {"learned_rate": "exact" if pipeline.prior.exact else "bound"}
    folder = parts_path(bench.run, f"bits-{bench.split.name}")
    nats = in_parts(folder, bench.plan | drawn, len(priced), PART, compute, bench.accelerator, "bits")
    return nats, drawn | told


def bits_figures(bits: dict[str, Tensor], priors: Sequence[str]) -> dict[str, Any]:
    """Return the figures, from the distortion, each prior's rate and bounds of each image in bits per dimension."""
    figures: dict[str, Any] = {"distortion": bits["distortion"].mean().item()}
    for prior in priors:
        figures[f"{prior}_rate"] = bits[prior].mean().item()
        figures[f"{prior}_bits_per_dim"] = (bits["distortion"] + bits[prior]).mean().item()
        for bound in ("elbo", "importance"):
            if f"{prior}_{bound}" in bits:  # the posterior is stochastic
                figures[f"{prior}_{bound}_bits_per_dim"] = bits[f"{prior}_{bound}"].mean().item()
    total = bits["distortion"] + bits["learned"]
    figures["bits_per_dim_error"] = total.std().item() / len(total) ** 0.5 if len(total) > 1 else 0.0
    *_, plain, learned = (figures[f"{prior}_rate"] for prior in priors)
    return figures | ({"rate_saved": 1 - learned / plain} if plain > 0 else {})


def nats_figures(nats: dict[str, Tensor]) -> dict[str, float]:
    """Return the same of vectors in nats an image."""
    figures = {"distortion_nats": nats["distortion"].mean().item(), "label_nats": nats["label"].mean().item()}
    for prior in VECTOR_PRIORS:
        figures[f"{prior}_rate_nats"] = nats[prior].mean().item()
        figures[f"{prior}_nats"] = (nats["distortion"] + nats[prior]).mean().item()
        if f"{prior}_importance" in nats:  # not of a prior that gives no more than a bound
            figures[f"{prior}_importance_nats"] = nats[f"{prior}_importance"].mean().item()
    return figures
