"""Stage two: train the prior over the codes of a run.

    accelerate launch prior/train.py configs/cifar10/prior.yaml --model.depth 12

Reads RUN/codes (or --codes) and writes into RUN/prior:
    config.yaml      the settings of this run, overrides included
    metrics.jsonl    one line every `log_every` steps, one every evaluation
    figures.json     loss of the kept weights on every held-out split, beside the two priors that need no training
    curves.png       training and validation loss beside the same two
    history.jsonl    what the run began from, and with which settings it went on, if there is something to say
    state/           what resuming needs
    model/           what everyone else needs: the averaged weights that were best on the validation split
    tensorboard/, wandb/    of the trackers in --track (common/track.py): the metrics, and the loss of each place on
                            the grid; no drawn pictures, because this stage does not know the tokenizer
Interrupted (Ctrl-C, SIGTERM), it saves; the same command goes on from the last saved state. More --steps lengthen a
finished training; with --change_settings true it goes on with another --lr and the like; --start_from FOLDER begins
from given weights.
"""

import sys
from collections.abc import Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import NamedTuple

if __package__ in (None, ""):
    sys.path[0] = str(Path(__file__).resolve().parents[1])
    from smalti.common.starting import answer_signals

    answer_signals()

from smalti.common import config
from smalti.common.command_line import answer_at_once, is_command
from smalti.prior.config import TrainConfig

DEFAULT_CONFIG = Path(__file__).resolve().parents[1] / "configs/digits/prior.yaml"


def read_settings(argv: Sequence[str]) -> TrainConfig:
    return config.parse(TrainConfig, __doc__, argv, default_file=DEFAULT_CONFIG)


if is_command(__name__):  # --help and a wrong setting are answered before torch is imported
    answer_at_once(read_settings)

import torch
from accelerate import Accelerator
from torch import Tensor, nn

from smalti.common import codes, sharding, state
from smalti.common.condition import Nothing
from smalti.common.ema import EMA
from smalti.common.finite import MicroBatch, SkippedSteps
from smalti.common.history import rows_dealt
from smalti.common.launch import make_accelerator, run_command
from smalti.common.origin import Origin, begin_from, settings_and_origin
from smalti.common.row_order import RowOrder, Share, batches
from smalti.common.run_folder import Leeway, Means, Metrics, check_run, enter_run
from smalti.common.schedule import warmup_cosine
from smalti.common.session import session
from smalti.common.steps import Steps
from smalti.common.tensors import read_tensors
from smalti.prior.autoregressive import share_shuffled
from smalti.prior.base import Prior
from smalti.prior.compilation import forward_of
from smalti.prior.config import PriorConfig
from smalti.prior.data import CodesRows, plain_views, read_codes
from smalti.prior.model import build_prior, load_prior
from smalti.prior.muon import Muon
from smalti.prior.other_classes import class_embeddings, describe_classes
from smalti.prior.results import NONE_YET, Best, held_out_loss, picture_of, report, to_device, what_is_next

# The codes are checked by their fingerprint; recompute and compile change only speed, memory and what rounding is.
LEEWAY = Leeway(
    free={
        "run",
        "codes",
        "log_every",
        "save_every",
        "keep_states",
        "track",
        "track_project",
        "change_settings",
        "recompute",
        "compile",
    },
    length="steps",
    tunable={
        "lr",
        "matrix_lr",
        "warmup",
        "weight_decay",
        "clip",
        "ema_decay",
        "batch_size",
        "accumulate",
        "precision",
        "evaluate_every",
    },
    usual={"warmup"},
)

MOST_WARMUP = 100  # steps, where the settings do not say


class PriorTraining(NamedTuple):
    """The state of training: the weights, their average, the optimizers, and what is counted."""

    prior: Prior
    model: nn.Module  # the prior as Accelerate wraps it, to be called in training
    ema: EMA[Prior]
    optimizers: dict[str, torch.optim.Optimizer]
    means: Means  # of the loss since it was last logged
    skipped: SkippedSteps
    data: str  # fingerprint of the codes


def train(c: TrainConfig, accelerator: Accelerator) -> Path:
    """Train, or go on with a training, and return the folder of the best model."""
    run = Path(c.run) / "prior"
    c, origin = settings_and_origin(c, run, [Prior.kind], load_prior, lambda model: model.config.architecture)
    share = Share(
        batch_size=c.batch_size,
        accumulate=c.accumulate,
        rank=accelerator.process_index,
        world=accelerator.num_processes,
    )
    data = read_codes(c.run, c.codes)
    reopened = check_run(run, c, LEEWAY)
    share.check_rows(len(data.splits["train"].rows), "rows of codes", "prior")
    fingerprint = codes.codes_fingerprint(data)
    column = data.splits["train"].condition
    condition = data.info.condition.seen(column) if c.condition == "labels" else Nothing()
    model_config = PriorConfig.over(
        data.info,
        c.model,
        condition=condition,
        any_order=c.order == "any",
        codes=fingerprint,
        hidden=condition.share_hidden(column, c.label_dropout),
    )
    for line in condition.untrained():
        accelerator.print(line, file=sys.stderr)
    rows = CodesRows(data.splits["train"], model_config, c.seed)
    validation = CodesRows(plain_views(data.splits["validation"], data.info), model_config)

    trained, first_step, best = start(c, model_config, fingerprint, origin, run, accelerator)
    began_from, measure = None if origin is None else origin.change, trained.prior.measure
    enter_run(run, c, first_step, reopened, accelerator, schedule=prior_schedule, began_from=began_from)
    peaks = {"adamw": c.lr, "muon": c.matrix_lr or 0.0}
    metrics = Metrics(run, accelerator, first_step, c, c.track_project)
    dealt = rows_dealt(run, first_step, c.batch_size)
    reader = batches(rows, RowOrder(len(rows), c.seed, share, first_step, dealt))
    with metrics, Steps(c, first_step, accelerator, "prior") as steps:
        for step in steps:
            state.seed_step(c.seed, step, accelerator.process_index)
            trained.prior.anneal(step / c.steps)
            height = share_of_peak(c, step)
            for name, optimizer in trained.optimizers.items():
                for group in optimizer.param_groups:
                    group["lr"] = height * peaks[name]

            parts = []
            for micro in range(c.accumulate):
                batch = to_device(next(reader), accelerator)
                shown = condition.hide(batch.condition, c.label_dropout)
                with accelerator.no_sync(trained.model) if micro + 1 < c.accumulate else nullcontext():
                    each = trained.prior.loss(batch.codes, shown, trained.model)
                    loss = each.mean()
                    accelerator.backward(loss / c.accumulate)
                parts.append(MicroBatch(f"the {measure.upper()}", each, {measure: loss}, batch.rows))
            if trained.skipped.clip(step + 1, trained.model, c.clip, parts):
                for optimizer in trained.optimizers.values():
                    optimizer.step()
                trained.ema.update(trained.prior, step)
                for part in parts:
                    trained.means.add(**part.losses)
            for optimizer in trained.optimizers.values():
                optimizer.zero_grad()

            for due in steps.after(step, trained.skipped):
                if due == "log":
                    logged = trained.means.take()
                    metrics.log(step + 1, "train", **logged, lr=height * c.lr, skipped_steps=trained.skipped.total)
                    steps.show(**{name: f"{value:.3f}" for name, value in logged.items()})
                elif due == "evaluate":
                    held_out = held_out_loss(trained.ema.model, validation, accelerator)
                    metrics.log(step + 1, "validation", **{f"validation_{measure}": held_out.loss})
                    metrics.picture(step + 1, f"{measure}_by_place", picture_of(held_out, model_config.layout))
                    if held_out.loss < best.loss:
                        best = Best(step + 1, held_out.loss)
                        keep(trained.ema.model, run / "model", accelerator)
                    steps.show(validation=f"{held_out.loss:.3f}", best=f"{best.loss:.3f}")
                elif due == "save":
                    save(trained, step + 1, best, run, c.keep_states, accelerator)
    report(data, best, run, accelerator)
    return run / "model"


def share_of_peak(c: TrainConfig, step: int) -> float:
    """Return the share of their peaks that the learning rates have at a step."""
    warmup = min(MOST_WARMUP, c.steps // 10) if c.warmup is None else c.warmup
    return warmup_cosine(step, peak=1.0, warmup=warmup, total=c.steps)


def prior_schedule(c: TrainConfig, step: int) -> dict[str, float]:
    """Return the scheduled values of a step, by their names: learning rates, and the share of rows in random order."""
    height = share_of_peak(c, step)
    values = {"lr": height * c.lr}
    if c.matrix_lr is not None:
        values["matrix_lr"] = height * c.matrix_lr
    if c.order == "annealed":
        values["share of rows in random order"] = share_shuffled(c.order, step / c.steps)
    return values


def start(
    c: TrainConfig,
    model_config: PriorConfig,
    fingerprint: str,
    origin: Origin[Prior] | None,
    run: Path,
    accelerator: Accelerator,
) -> tuple[PriorTraining, int, Best]:
    """Return the state of training, new or as last saved, the first step, and the best evaluation so far."""
    state.seed_step(c.seed, 0, 0)  # the same initial weights on every process
    prior = build_prior(model_config).to(accelerator.device)
    prior.prepare(c)
    saved = state.latest(run, accelerator, c.keep_states)
    if saved is None and origin is not None:
        accelerator.print(begin_from(origin, prior, class_embeddings(prior, origin.model)))
        for line in describe_classes(prior, origin.model):
            accelerator.print(line)
    ema = EMA(prior, c.ema_decay)
    if saved is not None:
        state.check_same_data(saved, fingerprint, "codes of fingerprint", run)
        with state.restoring(run):
            state.restore(prior, saved.tensors["model"])
            ema.load_state_dict(saved.tensors["ema"])
    forward = forward_of(prior, c, accelerator)
    model, optimizers = sharding.prepare(forward, ema.model, make_optimizers(prior, c), accelerator)
    trained = PriorTraining(prior, model, ema, optimizers, Means(accelerator), SkippedSteps(), fingerprint)
    if saved is None:
        return trained, 0, NONE_YET
    with state.restoring(run):
        for name, optimizer in optimizers.items():
            state.load_optimizer(optimizer, saved.tensors[name])
        trained.means.load_state_dict(saved.tensors["means"])
        trained = trained._replace(skipped=SkippedSteps(**saved.info["skipped"]))
        best, weights = NONE_YET, saved.tensors["best"]
        if weights:
            best = Best(int(saved.info["best"]["step"]), float(saved.info["best"]["loss"]))
        if weights and accelerator.is_main_process:  # they are there, unless damaged, lost, or of a later step
            save_weights(model_config, weights, run / "model")
    accelerator.print(f"going on from step {saved.step} of {c.steps}")
    return trained, saved.step, best


def make_optimizers(prior: Prior, c: TrainConfig) -> dict[str, torch.optim.Optimizer]:
    """Return the optimizers: Muon for the matrices inside the blocks, and AdamW for all other parameters."""
    matrices = prior.matrices()
    inside = set(map(id, matrices))
    rest = [p for p in prior.parameters() if id(p) not in inside]
    if c.matrix_lr is None or not matrices:
        groups = [{"params": matrices, "weight_decay": c.weight_decay}, {"params": rest, "weight_decay": 0.0}]
        return {"adamw": torch.optim.AdamW(groups, lr=c.lr, betas=(0.9, 0.95), fused=True)}
    muon = Muon(matrices, lr=c.matrix_lr, weight_decay=c.weight_decay, momentum=0.95)
    return {"adamw": torch.optim.AdamW(rest, lr=c.lr, betas=(0.9, 0.95), weight_decay=0.0, fused=True), "muon": muon}


def save(trained: PriorTraining, step: int, best: Best, run: Path, keep: int, accelerator: Accelerator) -> None:
    """Save the state of training. All processes take part, and the main one writes."""
    tensors = {
        "model": trained.prior.state_dict(),
        "ema": trained.ema.state_dict(),
        **{name: state.optimizer_tensors(optimizer) for name, optimizer in trained.optimizers.items()},
        "means": trained.means.state_dict(),
    }
    tensors = {name: sharding.whole(named, accelerator) for name, named in tensors.items()}
    trained.means.check_finite()
    if accelerator.is_main_process:
        kept = run / "model/model.safetensors"
        tensors["best"] = read_tensors(kept) if best.step else {}
        info = {"best": best._asdict() if best.step else None, "data": trained.data, "skipped": trained.skipped.state()}
        state.save_state(run, step, tensors, info, accelerator, keep)
    accelerator.wait_for_everyone()


def keep(prior: Prior, path: Path, accelerator: Accelerator) -> None:
    """Write the model folder of a prior that may be sharded. All processes take part, and the main one writes."""
    weights = sharding.whole(prior.state_dict(), accelerator)
    if accelerator.is_main_process:
        save_weights(prior.config, weights, path)


def save_weights(c: PriorConfig, weights: dict[str, Tensor], path: Path) -> None:
    """Write a model folder of these weights."""
    with torch.device("meta"):
        prior = build_prior(c)
    prior.load_state_dict(weights, assign=True)
    prior.save_pretrained(path)


def main(argv: Sequence[str]) -> None:
    c = read_settings(argv)
    accelerator = make_accelerator(c.precision, c.track, Path(c.run) / "prior")
    with session(Path(c.run) / "prior", accelerator):
        model = train(c, accelerator)
    for line in what_is_next(model):
        accelerator.print(line)


if __name__ == "__main__":
    run_command(main)
