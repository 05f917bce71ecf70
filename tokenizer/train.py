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
    tensorboard/, wandb/  of the trackers in --track, which get the metrics and the picture (common/track.py)
Interrupted (Ctrl-C, SIGTERM), it saves; the same command goes on from the last saved state. With more --steps a
finished training is lengthened; with --change_settings true it goes on with another --lr and its like; --start_from
FOLDER begins from given weights, all of which are trained, or with --train decoder those that no code depends on.
"""

import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import NamedTuple

if __package__ in (None, ""):
    sys.path[0] = str(Path(__file__).resolve().parents[1])
    from smalti.common.starting import answer_signals

    answer_signals()

from smalti.common import config
from smalti.common.command_line import answer_at_once, is_command
from smalti.tokenizer.config import TrainConfig

DEFAULT_CONFIG = Path(__file__).resolve().parents[1] / "configs/digits/tokenizer.yaml"


def read_settings(argv: Sequence[str]) -> TrainConfig:
    return config.parse(TrainConfig, __doc__, argv, default_file=DEFAULT_CONFIG)


if is_command(__name__):  # --help and a wrong setting are answered before torch is imported
    answer_at_once(read_settings)

import torch
from accelerate import Accelerator
from torch import Tensor, nn

from smalti.common import state
from smalti.common.commands import as_typed
from smalti.common.data.images import ImageSet, open_images, tell_of_images
from smalti.common.data.pixels import to_float
from smalti.common.data.run_images import where_they_lay, write_record
from smalti.common.data.split import ImageBatch, ImageSplit
from smalti.common.data.views import augment
from smalti.common.ema import EMA
from smalti.common.errors import UserError
from smalti.common.finite import MicroBatch, SkippedSteps
from smalti.common.folder import kind_of
from smalti.common.history import rows_dealt
from smalti.common.launch import make_accelerator, run_command
from smalti.common.origin import Origin, begin_from, differences_of, given_of, settings_and_origin
from smalti.common.plots import save_curves, save_picture
from smalti.common.row_order import RowOrder, Share, batches
from smalti.common.run_folder import Leeway, Means, Metrics, check_run, enter_run, read_metrics
from smalti.common.schedule import warmup_cosine
from smalti.common.session import session
from smalti.common.shown import shown
from smalti.common.steps import Steps
from smalti.tokenizer.base import Terms, TrainedTokenizer
from smalti.tokenizer.before_and_after import before_and_after, change_of, figures_before
from smalti.tokenizer.bottleneck.base import Table
from smalti.tokenizer.codebooks.health import codebook_of, unused
from smalti.tokenizer.codebooks.upkeep import CodebookUpkeep, forget
from smalti.tokenizer.config import ImageTokenizerConfig, TrainConfig, TrainedConfig
from smalti.tokenizer.criterion.criteria import FIGURES, Criteria, open_criteria
from smalti.tokenizer.decoder_training import DecoderTraining, freeze_encoder
from smalti.tokenizer.drawn_codes import DrawnCodes
from smalti.tokenizer.model import build_tokenizer, identity_of, load_folder
from smalti.tokenizer.origin_images import with_images
from smalti.tokenizer.split_evaluation import SplitEvaluation, evaluate_split, reconstruction_grid, save_histogram

LEEWAY = Leeway(
    free={
        "run",
        "workers",
        "log_every",
        "save_every",
        "keep_states",
        "track",
        "track_project",
        "change_settings",
        "encode.views",
        "encode.batch_size",
        "encode.shard_size",
        "drawn_codes",  # their fingerprint is in the state
        "perceptual.trunk.path",  # the file's SHA-256 is in the state
        "adversarial.trunk.path",
    },
    length="steps",
    tunable={
        "lr",
        "warmup",
        "weight_decay",
        "clip",
        "commitment_weight",
        "replace_codes",
        "replace_by",
        "ema_decay",
        "revive_below",
        "batch_size",
        "accumulate",
        "precision",
        "evaluate_every",
        "perceptual.weight",
        "adversarial.weight",
        "adversarial.most",
        "adversarial.lr",
        "adversarial.lecam",
        "adversarial.augment",
    },
)
AS_IT_IS = "tokenizer/encode.py turns images into codes with it, and prior/train.py trains a prior on those codes"
REVIVE_UNTIL = 0.8  # of the steps; in the rest the decoder learns what the last codes mean
SCALE_PACE = 10.0
NO_TERMS = FIGURES | {"step", "split", "loss", "lr", "skipped_steps", "distortion", "rate"}  # logged in training


def trained_kinds() -> list[str]:
    """Return the kinds of model folders that this script trains."""
    return [kind_of(settings.builds) for settings in TrainedConfig.members()]


def instead() -> dict[str, str]:
    """Return the advice on a `start_from` that this script does not train, by its kind; "" is somebody else's."""
    untrained = set(ImageTokenizerConfig.members()) - set(TrainedConfig.members())
    return {kind_of(settings.builds): f"use it as it is: {AS_IT_IS}" for settings in untrained} | {
        "": "give a folder that tokenizer/train.py wrote; tokenizer/convert.py makes a tokenizer of somebody else's "
        "VQGAN, which can be given too",
    }


def load_trained(path: Path) -> TrainedTokenizer:
    """Return the tokenizer in a folder of one of `trained_kinds`."""
    tokenizer = load_folder(path)
    assert isinstance(tokenizer, TrainedTokenizer)
    return tokenizer


class TokenizerTraining(NamedTuple):
    """The state of training: what the steps change, and the data that it belongs to."""

    tokenizer: TrainedTokenizer
    ema: EMA[TrainedTokenizer]
    upkeep: CodebookUpkeep
    optimizer: torch.optim.Optimizer
    means: Means  # of the losses since they were last logged
    skipped: SkippedSteps
    criteria: Criteria  # perceptual and adversarial losses
    drawn: DrawnCodes | None  # what a prior drew in place of the images' codes, for the decoder alone
    draws: str | None  # the fingerprint of those, or of those that it was trained on before
    data: str  # fingerprint of the images


def train(c: TrainConfig, accelerator: Accelerator) -> Path:
    """Train the tokenizer from its beginning or its last state, and return the folder of the model."""
    run = Path(c.run) / "tokenizer"
    of_images = given_of(c.images)
    c, origin = settings_and_origin(c, run, trained_kinds(), load_trained, lambda model: model.config, instead())
    c, told = with_images(c, of_images, run, origin)
    if told is not None:
        accelerator.print(told)
    share = Share(
        batch_size=c.batch_size,
        accumulate=c.accumulate,
        rank=accelerator.process_index,
        world=accelerator.num_processes,
    )
    images = open_images(where_they_lay(c.images, run), c.model.image_size, c.model.image_channels)
    splits, c = images.splits, c.model_copy(update={"model": c.model.over(images)})
    reopened = check_run(run, c, LEEWAY)
    tell_of_images(images, accelerator)
    share.check_rows(len(splits["train"]), "training images", "tokenizer")
    share.check_least(c.model.least_images, "the objective compares")

    if c.warmup >= c.steps:
        accelerator.print(f"warmup {c.warmup} is as long as the training: lr {c.lr:g} is not reached", file=sys.stderr)
    trained, first_step = start(c, images, origin, run, accelerator)
    forward = trained.tokenizer if c.train == "all" else DecoderTraining(trained.tokenizer, c)
    began_from = None if origin is None else change_of(origin)
    enter_run(run, c, first_step, reopened, accelerator, schedule=tokenizer_schedule, began_from=began_from)
    write_record(images, c.images.source, run, accelerator)
    if first_step > 0 and accelerator.is_main_process:
        trained.ema.model.save_pretrained(run / "model")  # the same, unless it was damaged or lost
    model = accelerator.prepare(forward)
    metrics = Metrics(run, accelerator, first_step, c, c.track_project)
    figures, weights = dict[str, str](), trained.tokenizer.weights(c)
    dealt = rows_dealt(run, first_step, c.batch_size)
    reader = batches(splits["train"], RowOrder(len(splits["train"]), c.seed, share, first_step, dealt), c.workers)
    with metrics, Steps(c, first_step, accelerator, "tokenizer") as steps:
        if origin is not None:
            before = evaluate_split(trained.ema.model, splits["validation"], accelerator)
            metrics.log(0, "validation", **before.metrics())
            trained.criteria.begun(before.psnr_pooled)
        for step in steps:
            state.seed_step(c.seed, step, accelerator.process_index)
            lr = learning_rate(c, step)
            for group in trained.optimizer.param_groups:
                group["lr"] = lr * group["pace"]
            trained.tokenizer.anneal(step / c.steps)

            parts = add_gradients(trained, model, reader, weights, step, c, accelerator)
            missed = trained.skipped.in_a_row
            if trained.skipped.clip(step + 1, model, c.clip, parts):
                trained.optimizer.step()
                keep_codebook_alive(trained, splits["train"], range(step - missed, step + 1), c, accelerator)
                for part in parts:
                    trained.means.add(**part.losses)
            else:
                trained.upkeep.discard()
            trained.optimizer.zero_grad()
            trained.criteria.step(step)

            for due in steps.after(step, trained.skipped, *trained.criteria.skipped()):
                if due == "log":
                    means = trained.means.take() | trained.criteria.figures(step)
                    metrics.log(step + 1, "train", **means, lr=lr, skipped_steps=trained.skipped.total)
                    steps.show(**({"loss": f"{means['loss']:.4f}"} if means else {}))
                elif due == "evaluate":
                    evaluation = evaluate_split(trained.ema.model, splits["validation"], accelerator)
                    figures = report_evaluation(evaluation, step + 1, trained, metrics, run, accelerator)
                    steps.show(**figures)
                elif due == "save":
                    save(trained, step + 1, run, c.keep_states, accelerator)
    result = ", ".join(f"{name} {value}" for name, value in figures.items())
    accelerator.print(f"validation: {result}" if result else f"all {c.steps} steps were done before")
    if accelerator.is_main_process:
        draw_training_curves(run)
        for line in before_and_after(run):
            accelerator.print(line)
    accelerator.wait_for_everyone()
    return run / "model"


def add_gradients(
    trained: TokenizerTraining,
    model: nn.Module,
    reader: Iterator[ImageBatch],
    weights: Mapping[str, float],
    step: int,
    c: TrainConfig,
    accelerator: Accelerator,
) -> list[MicroBatch]:
    """Add the gradients of a step's micro-batches, and return what each of them gave.

    Args:
        model: the tokenizer as Accelerate prepared it.
        weights: of the terms of the loss, by name; 1 where there is none.
    """
    parts = []
    for micro in range(c.accumulate):
        batch = next(reader)
        pixels, drawn = prepare_images(batch, trained.drawn, c, accelerator)
        labels = batch.labels.to(accelerator.device)
        with accelerator.no_sync(model) if micro + 1 < c.accumulate else nullcontext():
            terms: Terms = model(pixels, labels) if drawn is None else model(pixels, labels, drawn)
            loss = torch.stack([weights.get(name, 1.0) * term for name, term in terms.losses.items()]).sum()
            loss, sharper = trained.criteria.add(loss, terms, pixels, batch.rows, step)
            accelerator.backward(loss / c.accumulate)
        trained.upkeep.observe(terms.quantized)
        logged = {"loss": loss, **terms.losses, **sharper, **terms.watched}
        parts.append(MicroBatch("the encoder's output", terms.latents, logged, batch.rows))
    return parts


def learning_rate(c: TrainConfig, step: int) -> float:
    """Return the learning rate of a step."""
    return warmup_cosine(step, peak=c.lr, warmup=c.warmup, total=c.steps)


def tokenizer_schedule(c: TrainConfig, step: int) -> dict[str, float]:
    """Return the values of a step that depend on the number of steps, by name."""
    values: dict[str, float] = {"lr": learning_rate(c, step)}
    revives = c.model.revives and c.train == "all"
    values |= {"steps in which codes are revived": int(REVIVE_UNTIL * c.steps)} if revives else {}
    return values | c.model.scheduled(step / c.steps) | c.adversarial.scheduled(step / c.steps)


def start(
    c: TrainConfig, images: ImageSet, origin: Origin[TrainedTokenizer] | None, run: Path, accelerator: Accelerator
) -> tuple[TokenizerTraining, int]:
    """Return the state of training, at its beginning or as last saved, and the first step to take."""
    saved = state.latest(run, accelerator, c.keep_states)
    state.seed_step(c.seed, 0, 0)  # the same initial weights on every process
    tokenizer = build_tokenizer(c.model).to(accelerator.device)
    if c.train == "decoder" and origin is not None and (others := differences_of(origin.model.config, c.model)):
        raise UserError(
            f"train decoder keeps the codes of {origin.name}, which other settings of model may change: "
            f"{'; '.join(others[:4])}. Leave them away, or give train all"
        )
    if saved is None and origin is not None:
        accelerator.print(begin_from(origin, tokenizer))
    elif saved is None:
        tokenizer.begin(images.splits["train"], c, accelerator)
    else:
        state.check_same_data(saved, images.fingerprint, "images of fingerprint", run)
    criteria = open_criteria(c, tokenizer, images, run, accelerator, saved)
    drawn = None if c.drawn_codes is None else open_drawn_codes(c, images, origin, saved, run, accelerator)
    if c.train == "decoder":
        freeze_encoder(tokenizer)
    optimizer = make_optimizer(tokenizer, c)
    upkeep = CodebookUpkeep(tokenizer.tables() if c.train == "all" else (), revive_below=c.revive_below)
    ema, means = EMA(tokenizer, c.ema_decay), Means(accelerator)
    with state.restoring(run):
        skipped = SkippedSteps(**saved.info["skipped"]) if saved else SkippedSteps()
    trained = TokenizerTraining(
        tokenizer,
        ema,
        upkeep,
        accelerator.prepare(optimizer),
        means,
        skipped,
        criteria,
        drawn,
        drawn.fingerprint if drawn is not None else saved.info.get("drawn") if saved is not None else None,
        images.fingerprint,
    )
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


def open_drawn_codes(
    c: TrainConfig,
    images: ImageSet,
    origin: Origin[TrainedTokenizer] | None,
    saved: state.State | None,
    run: Path,
    accelerator: Accelerator,
) -> DrawnCodes:
    """Return the draws that a training of the decoder begins with, or goes on with, and print what they are.

    Raises:
        UserError: they are not of the tokenizer it began from, or not those it went on with so far.
    """
    drawn = DrawnCodes(Path(str(c.drawn_codes)), images, c.images, c.seed)
    before = None if saved is None else saved.info.get("drawn")
    if before is None:  # it begins, or replaced codes otherwise until now
        model = run / "model" if origin is None else origin.folder
        drawn.check_tokenizer(identity_of(model, str(model) if origin is None else origin.name))
    elif before != drawn.fingerprint:
        raise UserError(
            f"{run} was trained on draws of fingerprint {str(before)[:12]}, and those of {c.drawn_codes} are "
            f"{drawn.fingerprint[:12]}: give the same ones, or another --run"
        )
    accelerator.print(f"codes are replaced by {drawn}")
    if line := drawn.unused(c.images):
        accelerator.print(line, file=sys.stderr)
    if origin is not None and (line := drawn.of_another_prior(origin.folder.resolve().parent.parent / "prior/model")):
        accelerator.print(line, file=sys.stderr)
    return drawn


def make_optimizer(tokenizer: TrainedTokenizer, c: TrainConfig) -> torch.optim.Optimizer:
    """Return AdamW; the likelihood's few log scales have far to go and move at `SCALE_PACE` times the learning rate."""
    scales = [p for name, p in tokenizer.named_parameters() if name.startswith("likelihood.")]
    rest = [p for name, p in tokenizer.named_parameters() if p.requires_grad and not name.startswith("likelihood.")]
    groups = [{"params": rest, "pace": 1.0, "weight_decay": c.weight_decay}]
    groups += [{"params": scales, "pace": SCALE_PACE, "weight_decay": 0.0}] if scales else []
    return torch.optim.AdamW(groups, lr=c.lr, betas=(0.9, 0.99), fused=True)  # a third of the time on a CPU too


def prepare_images(
    batch: ImageBatch, drawn: DrawnCodes | None, c: TrainConfig, accelerator: Accelerator
) -> tuple[Tensor, Tensor | None]:
    """Return a micro-batch (b, C, H, W) in [-1, 1] on the device, and what a prior drew in place of its codes, (b, T).

    Images are shifted and mirrored at random; with draws, as in a view whose codes were drawn anew.
    """
    for corrupt in batch.corrupt:
        print(f"left out of this step: {shown(corrupt)}", file=sys.stderr)
    if len(batch.images) == 0:
        raise UserError(f"no image of a batch of {len(batch.corrupt)} could be read; {batch.corrupt[0]}")
    if drawn is None:
        images, codes = augment(batch.images, c.seed, batch.rows, batch.epochs, c.images), None
    else:
        images, codes = drawn.views_of(batch)
        codes = codes.to(accelerator.device, non_blocking=True)
    return to_float(images.to(accelerator.device, non_blocking=True)), codes


def keep_codebook_alive(
    trained: TokenizerTraining, split: ImageSplit, steps: range, c: TrainConfig, accelerator: Accelerator
) -> None:
    """Move an EMA codebook, revive dead codes, and average the weights, after the optimizer's step.

    When codes are revived for the last time, the tables that a batch gives too few vectors are fitted once more.

    Args:
        steps: the one that was taken, after those before it that were skipped.
    """
    step = steps[-1]
    share_averaged(trained.tokenizer, accelerator)
    revived = trained.upkeep.step(accelerator, step, revive=step < REVIVE_UNTIL * c.steps)
    trained.ema.update(trained.tokenizer, step)
    again: tuple[Table, ...] = ()
    fits = c.start_from is None and c.revive_below > 0  # given vectors are moved where a code is dead, and not all anew
    if fits and revived and int(REVIVE_UNTIL * c.steps) in steps:
        again = trained.tokenizer.refit(split, c, accelerator)
        for table in again:
            trained.upkeep.restart(table)
    both = zip(trained.tokenizer.tables(), trained.ema.model.tables(), strict=True)
    for (table, average), rows in zip(both, revived, strict=False):  # none are revived of a frozen codebook
        if any(table is each for each in again):
            rows = torch.arange(len(table.codebook), device=rows.device)
        if len(rows):
            forget(trained.optimizer, table.codebook, rows)
            average.codebook[rows] = table.codebook.detach()[rows]


def share_averaged(tokenizer: TrainedTokenizer, accelerator: Accelerator) -> None:
    """Set the buffers that are averaged with the weights to their means over processes, which read other images.

    Those of a tokenizer that only decodes are frozen: a mean of three equal numbers may be another number.
    """
    if accelerator.num_processes == 1 or not tokenizer.training:
        return
    for module in tokenizer.modules():
        for name in getattr(module, "averaged", ()):
            buffer = getattr(module, name)
            buffer.copy_(accelerator.reduce(buffer, "mean"))


def save(trained: TokenizerTraining, step: int, run: Path, keep: int, accelerator: Accelerator) -> None:
    """Write the averaged model, and the state of training after `step` steps."""
    tensors = {
        "model": trained.tokenizer.state_dict(),
        "ema": trained.ema.state_dict(),
        "upkeep": trained.upkeep.state_dict(accelerator),
        "optimizer": state.optimizer_tensors(trained.optimizer),
        "means": trained.means.state_dict(),
        **trained.criteria.tensors(),
    }
    trained.means.check_finite()  # weights that are not must never replace good ones
    drawn = {} if trained.draws is None else {"drawn": trained.draws}
    if accelerator.is_main_process:
        trained.ema.model.save_pretrained(run / "model")  # first: a run whose last state is there has its model
        state.save_state(
            run,
            step,
            tensors,
            {"data": trained.data, "skipped": trained.skipped.state(), **drawn, **trained.criteria.info()},
            accelerator,
            keep,
        )
    accelerator.wait_for_everyone()


def report_evaluation(
    evaluation: SplitEvaluation,
    step: int,
    trained: TokenizerTraining,
    metrics: Metrics,
    run: Path,
    accelerator: Accelerator,
) -> dict[str, str]:
    """Log and draw an evaluation, warn of unused codes or vectors, and return the figures for the progress bar."""
    metrics.log(step, "validation", **evaluation.metrics())
    if accelerator.is_main_process:
        picture = reconstruction_grid(evaluation)
        save_picture(picture, run / "reconstructions.png")
        metrics.picture(step, "reconstructions", picture)
        if evaluation.counts is not None:
            save_histogram(
                evaluation.counts, evaluation.images, trained.tokenizer.config.layout, run / "histogram.json"
            )
    if evaluation.counts is not None and trained.tokenizer.training:  # of frozen codes nothing can be mended
        begun = figures_before(run) is not None
        book = codebook_of(trained.tokenizer, trained.upkeep.revive_below, begun=begun)
        for low in unused(book, "validation", evaluation.counts):
            accelerator.print(f"step {step}: {low}", file=sys.stderr)
    collapsed = None if evaluation.bounds is None else evaluation.bounds.latent_use.warning(trained.tokenizer)
    if collapsed is not None:
        accelerator.print(f"step {step}: {collapsed}", file=sys.stderr)
    trained.criteria.evaluated(step, evaluation.psnr_pooled)
    return evaluation.summary()


def draw_training_curves(run: Path) -> None:
    """Draw `curves.png` of a run from its `metrics.jsonl`."""
    lines = read_metrics(run / "metrics.jsonl")
    logged = [name for line in lines if "loss" in line for name in line]
    panels = {
        "loss": [name for name in dict.fromkeys(logged) if name not in NO_TERMS],
        "validation PSNR, dB": ["psnr_pooled", "psnr"],
        "validation distortion and rate, bits/dim": ["distortion", "rate"],
        "validation −ELBO, nats": ["negative_elbo"],
        "active units": ["active_units"],
        "codebook perplexity": ["perplexity"],
        "codebook usage": ["usage"],
        "discriminator's logits": ["real_logits", "fake_logits"],
        "discriminator's accuracy": ["discriminator_accuracy"],
        "adaptive weight": ["adaptive_weight"],
    }
    there = {name for line in lines for name in line}
    panels = {title: names for title, names in panels.items() if there.intersection(names)}
    held_out = [
        line if "psnr" in line else {k: v for k, v in line.items() if k not in ("distortion", "rate")} for line in lines
    ]
    save_curves(held_out, panels, run / "curves.png")


def main(argv: Sequence[str]) -> None:
    c = read_settings(argv)
    accelerator = make_accelerator(c.precision, c.track, Path(c.run) / "tokenizer")
    with session(Path(c.run) / "tokenizer", accelerator):
        model = train(c, accelerator)
    named = any(word.endswith((".yaml", ".yml")) for word in argv)
    if accelerator.is_main_process and (named or c.start_from is None):
        config.remember_folder(c.run, argv, DEFAULT_CONFIG)
    next_one = as_typed("tokenizer/encode.py", Path(c.run))
    if c.train == "decoder":  # codes and priors of the tokenizer it began from are valid
        next_one = f"copy codes/ and prior/ of that run into {c.run}, or {next_one}"
    compared = f"\nwhat it gained and lost: {as_typed('tokenizer/compare.py', Path(c.run))}" if c.start_from else ""
    accelerator.print(f"the tokenizer is in {model}{compared}\nnext: {next_one}")


if __name__ == "__main__":
    run_command(main)
