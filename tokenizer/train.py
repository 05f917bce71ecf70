"""Stage one: train the image tokenizer.

    accelerate launch tokenizer/train.py configs/cifar10/tokenizer.yaml --lr 1e-4

Reads images and writes into RUN/tokenizer:
    config.yaml           the settings of this run, overrides included
    metrics.jsonl         one line every `log_every` steps, one every evaluation
    reconstructions.png   validation images above what they become, at the last evaluation
    curves.png            losses, PSNR and codebook use over the steps
    histogram.json        how often each code was used, at the last evaluation
    images.json           how many images each split has, and how many were left out, repeated or animated
    history.jsonl         what the run began from, and with which settings it went on, if there is something to say
    state/                what resuming needs
    model/                what everyone else needs: the averaged weights and their config
    tensorboard/, wandb/  of the trackers in --track, which are told the metrics and shown the picture (common/track.py)
Interrupted (Ctrl-C, SIGTERM), it saves; the same command goes on from the last saved state. With more --steps a finished
training is lengthened; with --change_settings true it goes on with another --lr and its like; --start_from FOLDER begins from
given weights.
"""

import math
import sys
from collections.abc import Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import Any, NamedTuple

if __package__ in (None, ""):
    sys.path[0] = str(Path(__file__).resolve().parents[1])
    from smalti.common.starting import answer_signals

    answer_signals()

import torch
from accelerate import Accelerator
from torch import Tensor

from smalti.common import config, state
from smalti.common.commands import as_typed
from smalti.common.ema import EMA
from smalti.common.errors import UserError
from smalti.common.finite import Part, SkippedSteps
from smalti.common.folder import kind_of
from smalti.common.launch import Interrupt, Interrupted, make_accelerator, run_command
from smalti.common.order import Order, Share, batches
from smalti.common.origin import Origin, begin_from, begun_from
from smalti.common.pictures import save_curves, save_picture
from smalti.common.progress import progress_bar
from smalti.common.run import Leeway, Means, Metrics, check_run, enter_run, read_metrics
from smalti.common.schedule import warmup_cosine
from smalti.common.session import session
from smalti.common.shown import shown
from smalti.tokenizer.config import TrainConfig
from smalti.tokenizer.evaluation import Evaluation, evaluate, reconstructions, save_histogram
from smalti.tokenizer.health import described, unused
from smalti.tokenizer.images import ImageSet, open_images, tell_of_images
from smalti.tokenizer.initialization import initialize_codebook
from smalti.tokenizer.kmeans import KMeansTokenizer
from smalti.tokenizer.model import Tokenizer
from smalti.tokenizer.pixels import to_float
from smalti.tokenizer.quantizers.config import GumbelConfig, ResidualConfig
from smalti.tokenizer.run_images import where_they_lay, write_record
from smalti.tokenizer.split import ImageBatch
from smalti.tokenizer.upkeep import CodebookUpkeep, forget
from smalti.tokenizer.views import augment
from smalti.tokenizer.vqgan import VQGANTokenizer

LEEWAY = Leeway(
    free={
        "run", "workers", "log_every", "save_every", "keep_states", "track", "track_project", "change_settings", "encode.views",
        "encode.batch_size", "encode.shard_size",
    },
    length="steps",
    tunable={
        "lr", "warmup", "weight_decay", "clip", "commitment_weight", "ema_decay", "revive_below", "batch_size", "accumulate",
        "precision", "evaluate_every",
    },
)  # fmt: skip
AS_IT_IS = "tokenizer/encode.py turns images into codes with it, and prior/train.py trains a prior on those codes"
INSTEAD = {  # of a start_from that is not trained here
    kind_of(VQGANTokenizer): f"use the one that tokenizer/convert.py made as it is ({AS_IT_IS}); fine-tuning it comes with a "
    "later version",
    kind_of(KMeansTokenizer): f"use the one of K-means as it is ({AS_IT_IS})",
    "": "give a folder that tokenizer/train.py wrote; tokenizer/convert.py makes a tokenizer of somebody else's VQGAN, to "
    "encode with and to train a prior on its codes",
}
REVIVE_UNTIL = 0.8  # of the steps; in the rest the decoder learns what the last codes mean
SCALE_PACE = 10.0
DEFAULT_CONFIG = Path(__file__).resolve().parents[1] / "configs/digits/tokenizer.yaml"


class Trained(NamedTuple):
    """What training moves."""

    tokenizer: Tokenizer
    ema: EMA[Tokenizer]
    upkeep: CodebookUpkeep
    optimizer: torch.optim.Optimizer
    means: Means  # of the losses since they were last logged
    skipped: SkippedSteps
    data: str  # fingerprint of the images


def train(c: TrainConfig, accelerator: Accelerator) -> Path:
    """Train, or go on training, and return the folder of the model."""
    run = Path(c.run) / "tokenizer"
    c, origin = begun_from(c, run, Tokenizer, lambda model: model.config, INSTEAD)
    share = Share(
        batch_size=c.batch_size, accumulate=c.accumulate, rank=accelerator.process_index, world=accelerator.num_processes
    )  # fmt: skip
    images = open_images(where_they_lay(c.images, run), c.model.image_size, c.model.image_channels)
    splits = images.splits
    reopened = check_run(run, c, LEEWAY)
    tell_of_images(images, accelerator)
    if c.batch_size > len(splits["train"]):
        raise UserError(f"batch_size {c.batch_size} is more than the {len(splits['train'])} training images; lower it")

    trained, first_step = start(c, images, origin, run, accelerator)
    began_from = None if origin is None else origin.change
    enter_run(run, c, first_step, reopened, accelerator, schedule=schedule, began_from=began_from)
    write_record(images, c.images.source, run, accelerator)
    if first_step > 0 and accelerator.is_main_process:
        trained.ema.model.save_pretrained(run / "model")  # the same, unless it was damaged or lost
    model = accelerator.prepare(trained.tokenizer)
    metrics = Metrics(run, accelerator, first_step, c, c.track_project)
    bar = progress_bar(accelerator, c.steps, "tokenizer", initial=first_step)
    shown, figures = dict[str, Any](), dict[str, Any]()
    reader = batches(splits["train"], Order(len(splits["train"]), c.seed, share, first_step), c.workers)
    with metrics, Interrupt(accelerator) as interrupt:
        for step in range(first_step, c.steps):
            state.seed_step(c.seed, step, accelerator.process_index)
            lr = learning_rate(c, step)
            for group in trained.optimizer.param_groups:
                group["lr"] = lr * group["pace"]
            trained.tokenizer.quantizer.anneal(step / c.steps)

            parts = []
            for micro in range(c.accumulate):
                batch = next(reader)
                pixels = prepare_images(batch, c, accelerator)
                with accelerator.no_sync(model) if micro + 1 < c.accumulate else nullcontext():
                    nll, quantized = model(pixels)
                    nll = nll.mean() / pixels[0].numel()  # nats a dimension
                    terms = {
                        "reconstruction_loss": trained.tokenizer.likelihood.weight() * nll,
                        "codebook_loss": quantized.codebook_loss,
                        "commitment_loss": quantized.commitment_loss,
                        "regularizer": quantized.regularizer,
                    }
                    loss = terms["reconstruction_loss"] + terms["codebook_loss"] + terms["regularizer"]
                    loss = loss + c.commitment_weight * terms["commitment_loss"]
                    accelerator.backward(loss / c.accumulate)
                trained.upkeep.observe(quantized)
                losses = {"loss": loss, **terms, "distortion": nll / math.log(2)}
                parts.append(Part("the encoder's output", quantized.z_e, losses, batch.rows))
            if trained.skipped.clip(step + 1, model, c.clip, parts):
                trained.optimizer.step()
                keep_codebook_alive(trained, step, c, accelerator)
                for part in parts:
                    trained.means.add(**part.losses)
            else:
                trained.upkeep.discard()
            trained.optimizer.zero_grad()

            done, last = step + 1, step + 1 == c.steps
            bar.update()
            if done % c.log_every == 0 or last:
                means = trained.means.take()
                metrics.log(done, "train", **means, lr=lr, skipped_steps=trained.skipped.total)
                shown = {"loss": f"{means['loss']:.4f}"} if means else {}
                bar.set_postfix(**shown, **figures, refresh=False)
            sound = trained.skipped.in_a_row == 0 or last  # weights whose steps are skipped may be what is wrong: not to keep
            if sound and (done % c.evaluate_every == 0 or last):
                evaluation = evaluate(trained.ema.model, splits["validation"], accelerator)
                figures = report(evaluation, done, trained, metrics, run, accelerator)
                bar.set_postfix(**shown, **figures, refresh=False)
            interrupted = interrupt.asked(done) and not last
            if sound and (done % c.save_every == 0 or last or interrupted):
                save(trained, done, run, c.keep_states, accelerator)
            if interrupted:
                what = "saved" if sound else "last saved before the steps skipped"
                raise Interrupted(f"{what} at step {done} of {c.steps}; the same command goes on from there")
    bar.close()
    told = ", ".join(f"{name} {value}" for name, value in figures.items())
    accelerator.print(f"validation: {told}" if told else f"all {c.steps} steps were done before")
    if accelerator.is_main_process:
        draw_curves(run)
    accelerator.wait_for_everyone()
    return run / "model"


def learning_rate(c: TrainConfig, step: int) -> float:
    return warmup_cosine(step, peak=c.lr, warmup=c.warmup, total=c.steps)


def schedule(c: TrainConfig, step: int) -> dict[str, float]:
    """Return what a step takes from the settings by the number of steps."""
    values = {"lr": learning_rate(c, step), "steps in which codes are revived": int(REVIVE_UNTIL * c.steps)}
    quantizer = c.model.quantizer.each if isinstance(c.model.quantizer, ResidualConfig) else c.model.quantizer
    return values | ({"temperature": quantizer.temperature_at(step / c.steps)} if isinstance(quantizer, GumbelConfig) else {})


def start(
    c: TrainConfig, images: ImageSet, origin: Origin[Tokenizer] | None, run: Path, accelerator: Accelerator
) -> tuple[Trained, int]:  # fmt: skip
    """What training moves, at its beginning or as last saved, and the first step to take."""
    saved = state.latest(run, accelerator, c.keep_states)
    state.seed_step(c.seed, 0, 0)  # the same initial weights on every process
    tokenizer = Tokenizer(c.model).to(accelerator.device)
    if saved is None and origin is not None:
        accelerator.print(begin_from(origin, tokenizer))
    elif saved is None:
        initialize_codebook(tokenizer, images.splits["train"], c, accelerator)
    else:
        state.check_same_data(saved, images.fingerprint, "images of fingerprint", run)
    optimizer = make_optimizer(tokenizer, c)
    upkeep = CodebookUpkeep(tokenizer.quantizer, revive_below=c.revive_below)
    ema, means = EMA(tokenizer, c.ema_decay), Means(accelerator)
    with state.restoring(run):
        skipped = SkippedSteps(**saved.info["skipped"]) if saved else SkippedSteps()
    trained = Trained(tokenizer, ema, upkeep, accelerator.prepare(optimizer), means, skipped, images.fingerprint)
    if saved is None:
        return trained, 0
    with state.restoring(run):
        state.restore(tokenizer, saved.tensors["model"])
        ema.load_state_dict(saved.tensors["ema"])
        means.load_state_dict(saved.tensors["means"])
        upkeep.load_state_dict(saved.tensors["upkeep"])
        state.load_optimizer(trained.optimizer, saved.tensors["optimizer"])
    accelerator.print(f"going on from step {saved.step} of {c.steps}")
    return trained, saved.step


def make_optimizer(tokenizer: Tokenizer, c: TrainConfig) -> torch.optim.Optimizer:
    """AdamW; the likelihood's scales are a few logarithms that have far to go and move at `SCALE_PACE` times the rate."""
    scales = list(tokenizer.likelihood.parameters())
    rest = [p for name, p in tokenizer.named_parameters() if not name.startswith("likelihood.")]
    groups = [{"params": rest, "pace": 1.0, "weight_decay": c.weight_decay}]
    groups += [{"params": scales, "pace": SCALE_PACE, "weight_decay": 0.0}] if scales else []
    return torch.optim.AdamW(groups, lr=c.lr, betas=(0.9, 0.99))


def prepare_images(batch: ImageBatch, c: TrainConfig, accelerator: Accelerator) -> Tensor:
    """One micro-batch, shifted and mirrored at random: (b, C, H, W) in [-1, 1] on the device."""
    for corrupt in batch.corrupt:
        print(f"left out of this step: {shown(corrupt)}", file=sys.stderr)
    if len(batch.images) == 0:
        raise UserError(f"no image of a batch of {len(batch.corrupt)} could be read; {batch.corrupt[0]}")
    images = augment(batch.images, c.seed, batch.rows, batch.epochs, c.images)
    return to_float(images.to(accelerator.device, non_blocking=True))


def keep_codebook_alive(trained: Trained, step: int, c: TrainConfig, accelerator: Accelerator) -> None:
    """After the optimizer's step: move an EMA codebook, revive dead codes, and average the weights."""
    revived = trained.upkeep.step(accelerator, step, revive=step < REVIVE_UNTIL * c.steps)
    trained.ema.update(trained.tokenizer, step)
    both = zip(trained.tokenizer.quantizer.tables(), trained.ema.model.quantizer.tables(), strict=True)
    for (table, average), rows in zip(both, revived, strict=True):
        if len(rows):
            forget(trained.optimizer, table.codebook, rows)
            average.codebook[rows] = table.codebook.detach()[rows]


def save(trained: Trained, step: int, run: Path, keep: int, accelerator: Accelerator) -> None:
    tensors = {
        "model": trained.tokenizer.state_dict(),
        "ema": trained.ema.state_dict(),
        "upkeep": trained.upkeep.state_dict(accelerator),
        "optimizer": state.optimizer_tensors(trained.optimizer),
        "means": trained.means.state_dict(),
    }
    trained.means.check_finite()  # weights that are not must never replace good ones
    if accelerator.is_main_process:
        trained.ema.model.save_pretrained(run / "model")  # first: a run whose last state is there has its model
        state.save(run, step, tensors, {"data": trained.data, "skipped": trained.skipped.state()}, accelerator, keep)
    accelerator.wait_for_everyone()


def report(
    evaluation: Evaluation, step: int, trained: Trained, metrics: Metrics, run: Path, accelerator: Accelerator
) -> dict[str, Any]:  # fmt: skip
    """Log an evaluation, draw it, warn of codes that are not used; what of it stands beside the progress bar."""
    metrics.log(step, "validation", **evaluation.metrics())
    if accelerator.is_main_process:
        picture = reconstructions(evaluation)
        save_picture(picture, run / "reconstructions.png")
        metrics.picture(step, "reconstructions", picture)
        save_histogram(evaluation, run / "histogram.json")
    book = described(trained.tokenizer, trained.upkeep.revive_below)
    for low in unused(book, "validation", evaluation.counts):
        accelerator.print(f"step {step}: {low}", file=sys.stderr)
    return evaluation.summary()


def draw_curves(run: Path) -> None:
    panels = {
        "loss": ["reconstruction_loss", "codebook_loss", "commitment_loss", "regularizer"],
        "validation PSNR, dB": ["psnr_pooled", "psnr"],
        "validation distortion, bits/dim": ["distortion"],
        "codebook perplexity": ["perplexity"],
        "codebook usage": ["usage"],
    }
    lines = read_metrics(run / "metrics.jsonl")
    held_out = [line if "psnr" in line else {k: v for k, v in line.items() if k != "distortion"} for line in lines]
    save_curves(held_out, panels, run / "curves.png")


def main(argv: Sequence[str]) -> None:
    c = config.parse(TrainConfig, __doc__, argv, default_file=DEFAULT_CONFIG)
    accelerator = make_accelerator(c.precision, c.track, Path(c.run) / "tokenizer")
    with session(Path(c.run) / "tokenizer", accelerator):
        model = train(c, accelerator)
    if accelerator.is_main_process:
        config.remember_folder(c.run, argv, DEFAULT_CONFIG)
    accelerator.print(f"the tokenizer is in {model}\nnext: {as_typed('tokenizer/encode.py', Path(c.run))}")


if __name__ == "__main__":
    run_command(main)
