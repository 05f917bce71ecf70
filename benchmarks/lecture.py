"""Draw the figures of docs/lecture.md on the digits: the steps of EM, the two terms of the bound, the use of a prior.

    python -m benchmarks.lecture RUN

RUN is a finished run of `configs/digits` (`make demo`). Writes lecture_em.png, lecture_bound.png and lecture_priors.png
into docs/, and the numbers in them as benchmarks/results/lecture.json. Seconds on one core.
"""

import argparse
import json
from itertools import pairwise
from pathlib import Path
from typing import Any, NamedTuple

import torch
from einops import rearrange
from torch import Tensor

from smalti.common import codes
from smalti.common.data.images import held_out_split
from smalti.common.data.pixels import to_float
from smalti.common.data.run_images import open_run_images
from smalti.common.record import record
from smalti.pipeline.evaluation.bits import PRIORS, Nats, bits_per_dim, image_nats
from smalti.pipeline.image_pipeline import ImagePipeline
from smalti.prior.baselines import Marginal
from smalti.tokenizer.kmeans.clustering import assigned, e_step, m_step

ROOT = Path(__file__).parents[1]
DRAWINGS = ROOT / "docs"
RESULT = ROOT / "benchmarks/results/lecture.json"
PATCH, MEANS, ITERATIONS = 4, 32, 12
SHOWN = (0, 1, 3, ITERATIONS)  # iterations whose means are drawn
SEED = 0


class Steps(NamedTuple):
    """K-means, half step by half step."""

    distortion: list[float]  # the mean squared error of a pixel after E, M, E, M, ...
    means: dict[int, Tensor]  # after how many iterations -> (K, D)


def em(vectors: Tensor) -> Steps:
    """Run `ITERATIONS` of EM over vectors (N, D), from means drawn among them."""
    chosen = torch.randperm(len(vectors), generator=torch.Generator().manual_seed(SEED))[:MEANS]
    means = vectors[chosen]
    found = Steps([], {0: means})
    for iteration in range(1, ITERATIONS + 1):
        indices = e_step(vectors, means)
        found.distortion.append((vectors - means[indices]).square().mean().item())
        means = m_step(*assigned(vectors, indices, MEANS), means, vectors)
        found.distortion.append((vectors - means[indices]).square().mean().item())
        found.means[iteration] = means
    assert all(after <= before * (1 + 1e-6) for before, after in pairwise(found.distortion))
    return found


def draw_em(found: Steps, path: Path) -> None:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(11, 3.4), layout="constrained")
    curve, *pictures = figure.subplots(1, 1 + len(SHOWN), width_ratios=[2.4, *[1] * len(SHOWN)])
    halves = [1 + half / 2 for half in range(len(found.distortion))]
    curve.plot(halves, found.distortion, color="0.8", zorder=0)
    curve.scatter(halves[::2], found.distortion[::2], s=22, label="after the E step: every patch to its nearest mean")
    curve.scatter(
        halves[1::2], found.distortion[1::2], s=22, label="after the M step: every mean to the mean of its patches"
    )
    curve.set(
        xlabel="iteration", ylabel="squared error of a pixel", title=f"K-means of {PATCH}×{PATCH} patches, K = {MEANS}"
    )
    curve.legend(fontsize=7)
    curve.grid(alpha=0.3)
    for axes, iteration in zip(pictures, SHOWN, strict=True):
        tiles = rearrange(found.means[iteration], "(r c) (h w) -> r h c w", c=4, h=PATCH)
        framed = torch.nn.functional.pad(tiles, (0, 1, 0, 0, 0, 1), value=1.0)
        axes.imshow(rearrange(framed, "r h c w -> (r h) (c w)"), cmap="gray", vmin=-1, vmax=1, interpolation="nearest")
        axes.set_title("patches to begin with" if iteration == 0 else f"means after {iteration}", fontsize=9)
        axes.set_axis_off()
    figure.savefig(path, format="png", dpi=100)


def draw_bound(found: dict[str, float], path: Path) -> None:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9, 2.5), layout="constrained")
    axes = figure.subplots()
    for row, name in enumerate(PRIORS):
        rate = found[f"{name}_rate"]
        axes.barh(
            row, found["distortion"], color="C0", label="−log2 p(x | z), the reconstruction" if row == 0 else None
        )
        axes.barh(row, rate, left=found["distortion"], color="C1", label="−log2 p(z), the rate" if row == 0 else None)
        axes.text(
            found["distortion"] + rate + 0.02, row, f"{found['distortion']:.2f} + {rate:.3f}", va="center", fontsize=9
        )
    axes.set(
        yticks=range(len(PRIORS)),
        yticklabels=["p(z) uniform", "independent codes", "learned"],
        xlabel="bits per dimension",
        xlim=(0, 1.2 * (found["distortion"] + found["uniform_rate"])),
    )
    axes.invert_yaxis()
    axes.legend(fontsize=8, ncols=2, loc="lower center", bbox_to_anchor=(0.5, 1.0), frameon=False)
    figure.savefig(path, format="png", dpi=100)


def draw_priors(rows: dict[str, Tensor], nats: dict[str, float], path: Path) -> None:
    """Draw each row's images (10, 1, H, W) uint8 beside its name."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9, 0.8 * len(rows)), layout="constrained")
    for axes, (name, images) in zip(figure.subplots(len(rows), 1), rows.items(), strict=True):
        framed = torch.nn.functional.pad(images, (0, 2, 0, 0), value=255)
        axes.imshow(rearrange(framed, "b 1 h w -> h (b w)"), cmap="gray", vmin=0, vmax=255, interpolation="nearest")
        text = f"{name}\n{nats[name]:.2f} nats a code" if name in nats else name
        axes.text(-6, images.shape[2] / 2, text, ha="right", va="center", fontsize=9)
        axes.set_axis_off()
    figure.savefig(path, format="png", dpi=100)


def drawn_rows(pipeline: ImagePipeline, marginal: Marginal, test: Tensor, labels: Tensor) -> dict[str, Tensor]:
    """Return ten images of codes from each prior, and ten test images through their codes."""
    generator, c = torch.Generator().manual_seed(SEED), pipeline.prior.config
    uniform = torch.randint(c.layout.codebook_size, (10, c.layout.length), generator=generator)
    independent = torch.multinomial(marginal.log_p[0].exp(), 10 * c.layout.length, True, generator=generator).view(
        10, -1
    )
    learned = pipeline(labels=list(range(10)), seed=SEED, temperature=1.0, guidance=1.0).codes
    first = torch.stack([(labels == label).nonzero()[0, 0] for label in range(10)])
    return {
        "uniform codes": pipeline.decode(uniform),
        "independent codes": pipeline.decode(independent),
        "the learned prior, a class a column": pipeline.decode(learned),
        "test images, through their codes": pipeline.decode(pipeline.encode_pixels(test[first])),
    }


def measure(nats: Nats, dimensions: int, length: int) -> dict[str, float]:
    """Return both terms of the bound, in bits per dimension, and the cost of a code, in nats."""
    found = {"distortion": bits_per_dim(nats.distortion, dimensions).mean().item()}
    for name in PRIORS:
        rate = getattr(nats, name).mean()
        found |= {f"{name}_rate": bits_per_dim(rate, dimensions).item(), f"{name}_nats_a_code": rate.item() / length}
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path, metavar="RUN")
    run = parser.parse_args().run
    pipeline = ImagePipeline.from_pretrained(run / "pipeline")
    t, c = pipeline.tokenizer.config, pipeline.prior.config
    splits = open_run_images(run / "tokenizer", t).splits
    test = held_out_split(splits).read(torch.arange(len(held_out_split(splits))))
    images = test.images

    train = to_float(splits["train"].read(torch.arange(len(splits["train"]))).images)
    steps = em(rearrange(train, "b c (h p) (w q) -> (b h w) (c p q)", p=PATCH, q=PATCH))
    marginal = Marginal(codes.load_codes(run / "codes", ["train"]).splits["train"].codes, c.layout)
    found = measure(image_nats(pipeline, marginal, images, test.labels), images[0].numel(), c.layout.length)
    rows = drawn_rows(pipeline, marginal, images, test.labels)
    of_row = dict(zip(rows, (found[f"{name}_nats_a_code"] for name in PRIORS), strict=False))

    draw_em(steps, DRAWINGS / "lecture_em.png")
    draw_bound(found, DRAWINGS / "lecture_bound.png")
    draw_priors(rows, of_row, DRAWINGS / "lecture_priors.png")
    result: dict[str, Any] = {
        **record("benchmarks.lecture"),
        "protocol": __doc__,
        "em": {"K": MEANS, "patch": PATCH, "distortion": steps.distortion},
        "bound": found,
        "tokenizer": c.tokenizer.sha256,
    }
    RESULT.write_text(json.dumps(result, indent=2) + "\n")
    print(json.dumps(found, indent=2))


if __name__ == "__main__":
    main()
