"""Stage one without a network: fit a tokenizer of image patches by EM, K-means or a mixture of Gaussians.

    accelerate launch tokenizer/cluster.py configs/digits_kmeans/cluster.yaml --model.codebook_size 256
    accelerate launch tokenizer/cluster.py --model.kind gaussian_mixture --model.covariance full --run runs/mine

Reads images and writes into RUN/tokenizer what tokenizer/train.py writes: config.yaml, metrics.jsonl (one line an EM
step), reconstructions.png, curves.png, histogram.json, state/ and model/; trackers in --track get the metrics too.
tokenizer/encode.py, prior/train.py and pipeline/generate.py take it from there. Interrupted, the same command goes on
from the last EM step; with more --iterations it is lengthened.
"""

import sys
from collections.abc import Sequence
from pathlib import Path

if __package__ in (None, ""):
    sys.path[0] = str(Path(__file__).resolve().parents[1])
    from smalti.common.starting import answer_signals

    answer_signals()

from smalti.common import config
from smalti.common.command_line import answer_at_once, is_command
from smalti.tokenizer.patches.cluster_config import ClusterConfig

DEFAULT_CONFIG = Path(__file__).resolve().parents[1] / "configs/digits_kmeans/cluster.yaml"


def read_settings(argv: Sequence[str]) -> ClusterConfig:
    return config.parse(ClusterConfig, __doc__, argv, default_file=DEFAULT_CONFIG)


if is_command(__name__):  # --help and a wrong setting are answered before torch is imported
    answer_at_once(read_settings)

import torch
from accelerate import Accelerator
from accelerate.utils import broadcast
from torch import Tensor

from smalti.common import state
from smalti.common.commands import as_typed
from smalti.common.data.images import open_images, tell_of_images
from smalti.common.data.pixels import to_float
from smalti.common.data.run_images import where_they_lay, write_record
from smalti.common.data.split import ImageSplit
from smalti.common.launch import Interrupt, Interrupted, make_accelerator, run_command
from smalti.common.parts import share_of
from smalti.common.plots import save_curves, save_picture
from smalti.common.progress import advance, passing_bar, progress_bar
from smalti.common.row_order import RowOrder, Share
from smalti.common.run_folder import Leeway, Metrics, check_run, enter_run, read_metrics
from smalti.common.seeds import generator
from smalti.common.session import session
from smalti.tokenizer.codebooks.health import codebook_of, unused
from smalti.tokenizer.codebooks.initialization import check_enough, sampled
from smalti.tokenizer.patches.model import PatchTokenizer
from smalti.tokenizer.split_evaluation import evaluate_split, reconstruction_grid, save_histogram

LEEWAY = Leeway(
    free={"run", "track", "track_project", "encode.views", "encode.batch_size", "encode.shard_size"},
    length="iterations",
)
BATCH = 1024


def cluster(c: ClusterConfig, accelerator: Accelerator) -> Path:
    """Fit the tokenizer from its beginning or its last state, and return the folder of the model."""
    run = Path(c.run) / "tokenizer"
    images = open_images(where_they_lay(c.images, run), c.model.image_size, c.model.image_channels)
    fingerprint, splits = images.fingerprint, images.splits
    reopened = check_run(run, c, LEEWAY)
    tell_of_images(images, accelerator)
    check_enough(c.model.codebook_size, len(splits["train"]), c.model.layout.grids[0], "patches")
    saved = state.latest(run, accelerator)
    if saved is not None:
        state.check_same_data(saved, fingerprint, "images of fingerprint", run)
    tokenizer: PatchTokenizer = c.model.builds(c.model).to(accelerator.device).for_fitting()
    sample = sampled_patches(tokenizer, splits["train"], c, accelerator)
    begin_or_go_on(tokenizer, sample, saved, c, run)
    first = saved.step if saved else 0
    enter_run(run, c, first, reopened, accelerator)
    write_record(images, c.images.source, run, accelerator)
    metrics = Metrics(run, accelerator, first, c, c.track_project)
    bar = progress_bar(accelerator, c.iterations, "EM", initial=first, unit="EM step")
    with metrics:
        with Interrupt(accelerator) as interrupt:
            for iteration in range(first, c.iterations):
                sums = expectation(tokenizer, splits["train"], accelerator)
                figures = tokenizer.m_step(sums, sample)
                share(tokenizer)
                done, last = iteration + 1, iteration + 1 == c.iterations
                metrics.log(done, "train", **figures)
                bar.set_postfix(objective=f"{figures['objective']:.5f}", refresh=False)
                bar.update()
                if accelerator.is_main_process:
                    state.save_state(run, done, {"model": tokenizer.state_dict()}, {"data": fingerprint}, accelerator)
                accelerator.wait_for_everyone()
                if interrupt.asked() and not last:
                    raise Interrupted(
                        f"saved after EM step {done} of {c.iterations}; the same command goes on from there"
                    )
        bar.close()
        report_fit(tokenizer.float(), splits["validation"], c.iterations, metrics, run, accelerator)
    return run / "model"


def begin_or_go_on(
    tokenizer: PatchTokenizer, sample: Tensor, saved: state.State | None, c: ClusterConfig, run: Path
) -> None:
    """Set the tokenizer as it was last saved, or at the beginning from a sample of patches (N, D)."""
    if saved is None:
        tokenizer.begin(sample, generator(c.seed, sample.device))
        share(tokenizer)
    else:
        with state.restoring(run):
            state.restore(tokenizer, saved.tensors["model"])


def share(tokenizer: PatchTokenizer) -> None:
    """Give all processes the main one's tokenizer: one process' rounding decides for all."""
    with torch.no_grad():
        for tensor in tokenizer.state_dict().values():
            tensor.copy_(broadcast(tensor.contiguous()))


def patches_of(tokenizer: PatchTokenizer, split: ImageSplit, positions: Tensor) -> Tensor:
    """Return the patches (b · h · w, D) of images of a split, on the tokenizer's device."""
    images = split.read(positions).images
    return tokenizer.patches(to_float(images.to(tokenizer.likelihood.log_scale.device)))


def sampled_patches(tokenizer: PatchTokenizer, split: ImageSplit, c: ClusterConfig, accelerator: Accelerator) -> Tensor:
    """Return patches (N, D) of images drawn by the seed, from which first means and new places for empty ones come."""
    number = sampled(c.model.codebook_size)
    order = RowOrder(len(split), c.seed, Share(batch_size=BATCH), 0)
    positions, _ = order.at(0, min(len(split), -(-number // c.model.layout.places)))
    bar, found = passing_bar(len(positions), "read a sample"), []
    for some in positions.split(BATCH):
        found.append(patches_of(tokenizer, split, some))
        bar.update(len(some))
    bar.close()
    return torch.cat(found)


def expectation(tokenizer: PatchTokenizer, split: ImageSplit, accelerator: Accelerator) -> tuple[Tensor, ...]:
    """Return the sums over all patches that the M step needs: the E step, each process its share."""
    found = tokenizer.e_step(patches_of(tokenizer, split, torch.zeros(0, dtype=torch.int64)))
    bar = passing_bar(len(split), "E step")
    for positions in share_of(len(split), BATCH, accelerator):
        some = tokenizer.e_step(patches_of(tokenizer, split, positions))
        found = tuple(before + more for before, more in zip(found, some, strict=True))
        advance(bar, len(positions) * accelerator.num_processes)
    bar.close()
    return tuple(map(accelerator.reduce, found))


def report_fit(
    tokenizer: PatchTokenizer,
    validation: ImageSplit,
    iterations: int,
    metrics: Metrics,
    run: Path,
    accelerator: Accelerator,
) -> None:
    """Evaluate the tokenizer, and write its metrics, pictures and model."""
    evaluation = evaluate_split(tokenizer, validation, accelerator)
    counts = evaluation.counts
    assert counts is not None  # patches become codes
    evaluated = [line["step"] for line in read_metrics(run / "metrics.jsonl") if "psnr" in line]
    if iterations not in evaluated:  # killed after it, it comes here again
        metrics.log(iterations, "validation", **evaluation.metrics())
    if accelerator.is_main_process:
        picture = reconstruction_grid(evaluation)
        if iterations not in evaluated:
            metrics.picture(iterations, "reconstructions", picture)
        save_picture(picture, run / "reconstructions.png")
        save_histogram(counts, evaluation.images, tokenizer.config.layout, run / "histogram.json")
        save_curves(read_metrics(run / "metrics.jsonl"), {tokenizer.objective: ["objective"]}, run / "curves.png")
        tokenizer.save_pretrained(run / "model")
    for low in unused(codebook_of(tokenizer), "validation", counts):
        accelerator.print(low, file=sys.stderr)
    for line in tokenizer.warnings():
        accelerator.print(line, file=sys.stderr)
    figures = ", ".join(f"{name} {value}" for name, value in evaluation.summary().items())
    accelerator.print(f"validation: {figures}")
    accelerator.wait_for_everyone()


def main(argv: Sequence[str]) -> None:
    c = read_settings(argv)
    accelerator = make_accelerator("fp32", c.track, Path(c.run) / "tokenizer")
    with session(Path(c.run) / "tokenizer", accelerator):
        model = cluster(c, accelerator)
    if accelerator.is_main_process:
        config.remember_folder(c.run, argv, DEFAULT_CONFIG)
    accelerator.print(f"the tokenizer is in {model}\nnext: {as_typed('tokenizer/encode.py', Path(c.run))}")


if __name__ == "__main__":
    run_command(main)
