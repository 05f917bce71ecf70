"""Stage two: train the prior over the codes of a run.

    accelerate launch prior/train.py configs/cifar10/prior.yaml --model.depth 12

Reads RUN/codes (or --codes) and writes into RUN/prior:
    config.yaml      the settings of this run, overrides included
    metrics.jsonl    one line every `log_every` steps, one every evaluation
    figures.json     NLL of the kept weights on every held-out split, beside the two priors that need no training
    curves.png       training and validation NLL beside the same two
    history.jsonl    what the run began from, and with which settings it went on, if there is something to say
    state/           what resuming needs
    model/           what everyone else needs: the averaged weights that were best on the validation split
    tensorboard/, wandb/    of the trackers in --track (common/track.py): the metrics, and the NLL of each place on
                            the grid; no drawn pictures, because this stage does not know the tokenizer
Interrupted (Ctrl-C, SIGTERM), it saves; the same command goes on from the last saved state. More --steps lengthen a
finished training; with --change_settings true it goes on with another --lr and the like; --start_from FOLDER begins
from given weights.
"""

import sys
from collections.abc import Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import NamedTuple, cast

if __package__ in (None, ""):
    sys.path[0] = str(Path(__file__).resolve().parents[1])
    from smalti.common.starting import answer_signals

    answer_signals()

import PIL.Image
import torch
import torch.nn.functional as F
from accelerate import Accelerator
from torch import Tensor, nn

from smalti.common import codes, config, folder, sharding, state
from smalti.common.commands import as_typed
from smalti.common.condition import Nothing
from smalti.common.ema import EMA
from smalti.common.errors import UserError
from smalti.common.finite import MicroBatch, SkippedSteps
from smalti.common.launch import make_accelerator, run_command
from smalti.common.layout import Layout
from smalti.common.origin import Origin, begin_from, settings_and_origin
from smalti.common.plots import image_grid, save_curves
from smalti.common.progress import passing_bar
from smalti.common.row_order import RowOrder, Share, batches
from smalti.common.run_folder import Leeway, Means, Metrics, check_run, enter_run, read_metrics
from smalti.common.schedule import warmup_cosine
from smalti.common.session import session
from smalti.common.steps import Steps
from smalti.common.tensors import read_tensors
from smalti.prior.autoregressive import share_shuffled
from smalti.prior.base import Prior, Scores
from smalti.prior.baselines import marginal_nll, uniform_nll
from smalti.prior.config import PriorConfig, TrainConfig
from smalti.prior.data import CodesBatch, CodesRows, check_tokenizer_of, plain_views
from smalti.prior.model import build_prior, load_prior

# The codes are checked by their fingerprint; recompute and compile change only speed and memory.
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
)
EVALUATION_BATCH = 256
DEFAULT_CONFIG = Path(__file__).resolve().parents[1] / "configs/digits/prior.yaml"


class PriorTraining(NamedTuple):
    """The state of training: the weights, their average, the optimizers, and what is counted."""

    prior: Prior
    model: nn.Module  # the prior as Accelerate wraps it, to be called in training
    ema: EMA[Prior]
    optimizers: dict[str, torch.optim.Optimizer]
    means: Means  # of the NLL since it was last logged
    skipped: SkippedSteps
    data: str  # fingerprint of the codes


def read_codes(c: TrainConfig) -> codes.Codes:
    """Return the codes of the run. They have a train and a validation split, and belong to the run's tokenizer, if any.

    Raises:
        UserError: a split is missing, or the tokenizers of the run and of the codes differ; the message names both.
    """
    data = codes.load_codes(Path(c.codes or f"{c.run}/codes"))
    for split in ("train", "validation"):
        if split not in data.splits:
            raise UserError(f"the codes must have a split {split}; they have {', '.join(data.splits)}")
    check_tokenizer_of(Path(c.run), data.info)
    return data


class Best(NamedTuple):
    """The evaluation whose weights are kept."""

    step: int
    nll: float


NONE_YET = Best(0, float("inf"))


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
    data = read_codes(c)
    reopened = check_run(run, c, LEEWAY)
    if c.batch_size > len(data.splits["train"].rows):
        raise UserError(
            f"batch_size {c.batch_size} is more than the {len(data.splits['train'].rows)} rows of codes; lower it"
        )
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
    rows = CodesRows(data.splits["train"], model_config)
    validation = CodesRows(plain_views(data.splits["validation"], data.info), model_config)

    trained, first_step, best = start(c, model_config, fingerprint, origin, run, accelerator)
    began_from = None if origin is None else origin.change
    enter_run(run, c, first_step, reopened, accelerator, schedule=prior_schedule, began_from=began_from)
    peaks = {"adamw": c.lr, "muon": c.matrix_lr or 0.0}
    metrics = Metrics(run, accelerator, first_step, c, c.track_project)
    reader = batches(rows, RowOrder(len(rows), c.seed, share, first_step))
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
                    nll = each.mean()
                    accelerator.backward(nll / c.accumulate)
                parts.append(MicroBatch("the NLL", each, {"nll": nll}, batch.rows))
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
                    metrics.log(step + 1, "validation", validation_nll=held_out.nll)
                    metrics.picture(step + 1, "nll_by_place", picture_of(held_out, model_config.layout))
                    if held_out.nll < best.nll:
                        best = Best(step + 1, held_out.nll)
                        keep(trained.ema.model, run / "model", accelerator)
                    steps.show(validation=f"{held_out.nll:.3f}", best=f"{best.nll:.3f}")
                elif due == "save":
                    save(trained, step + 1, best, run, c.keep_states, accelerator)
    report(data, best, run, accelerator)
    return run / "model"


def share_of_peak(c: TrainConfig, step: int) -> float:
    """Return the share of their peaks that the learning rates have at a step."""
    return warmup_cosine(step, peak=1.0, warmup=c.warmup, total=c.steps)


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
        accelerator.print(begin_from(origin, prior))
    ema = EMA(prior, c.ema_decay)
    if saved is not None:
        state.check_same_data(saved, fingerprint, "codes of fingerprint", run)
        with state.restoring(run):
            state.restore(prior, saved.tensors["model"])
            ema.load_state_dict(saved.tensors["ema"])
    forward = cast(nn.Module, torch.compile(prior)) if c.compile else prior  # compile returns a module for a module
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
            best = Best(int(saved.info["best"]["step"]), float(saved.info["best"]["nll"]))
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
        return {"adamw": torch.optim.AdamW(groups, lr=c.lr, betas=(0.9, 0.95))}
    muon = torch.optim.Muon(matrices, lr=c.matrix_lr, weight_decay=c.weight_decay, momentum=0.95)
    return {"adamw": torch.optim.AdamW(rest, lr=c.lr, betas=(0.9, 0.95), weight_decay=0.0), "muon": muon}


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


def to_device(batch: CodesBatch, accelerator: Accelerator) -> CodesBatch:
    """Return a batch on the device of this process."""
    return CodesBatch(*(tensor.to(accelerator.device, non_blocking=True) for tensor in batch))


class HeldOutLoss(NamedTuple):
    """The mean loss of a split."""

    nll: float  # of a number of the latents: −log p in nats if the prior scores
    by_place: list[Tensor]  # the same at each place, one tensor (*shape) a grid


@torch.no_grad()
def held_out_loss(prior: Prior, rows: CodesRows, accelerator: Accelerator) -> HeldOutLoss:
    """Return the loss on a split. Each process computes its share; the means are over the whole split."""
    layout = prior.config.layout
    sums = torch.zeros(1 + layout.length, device=accelerator.device)  # number of rows; the loss of each code
    bar = passing_bar(len(rows), "evaluate on held-out codes", unit="row")
    for few in torch.arange(len(rows)).split(EVALUATION_BATCH * accelerator.num_processes):
        mine = few[accelerator.process_index :: accelerator.num_processes]
        some = mine if len(mine) else few[:1]  # all processes must take part, because sharded weights are gathered
        batch = to_device(rows[some, some], accelerator)
        prior.check(batch.codes, batch.condition)
        with accelerator.autocast():
            nll = prior.validation(batch.codes, batch.condition, some.tolist())[: len(mine)]
        sums += torch.cat([nll.new_tensor([len(mine)]), nll.sum(0)])
        bar.update(len(few))
    bar.close()
    number, nats = accelerator.reduce(sums).cpu().split([1, layout.length])
    nll = (nats / number).double().mean().item()
    return HeldOutLoss(nll, layout.by_place(nats / number))


def picture_of(evaluation: HeldOutLoss, layout: Layout) -> PIL.Image.Image:
    """Return a picture of the loss at each place: black is 0, and white is ln K, or for vectors the largest."""
    largest = max(grid.max().item() for grid in evaluation.by_place)
    most = uniform_nll(layout.codebook_size) if layout.discrete else largest
    shares = [grid.reshape(-1, grid.shape[-1]).div(most or 1.0).clamp(0, 1) for grid in evaluation.by_place]
    pixels = [(255 * share).round().to(torch.uint8)[None, None] for share in shares]
    side = max(max(each.shape[2:]) for each in pixels)
    return image_grid(torch.cat([F.interpolate(each, (side, side)) for each in pixels]), columns=len(pixels), side=256)


def unit(prior: Prior) -> str:
    """Return the unit of a prior's loss, in words."""
    amount = "nats" if isinstance(prior, Scores) else "of the loss"
    return f"{amount} per {'code' if prior.config.layout.discrete else 'number'}"


def report(data: codes.Codes, best: Best, run: Path, accelerator: Accelerator) -> None:
    """Evaluate the kept weights on every held-out split beside the untrained priors, and draw the curves."""
    kept = load_prior(run / "model").to(accelerator.device)
    layout, figures = data.info.layout, {"best_step": float(best.step)}
    for name, split in data.splits.items():
        if name != "train":
            plain = plain_views(split, data.info)
            figures[f"{name}_nll"] = held_out_loss(kept, CodesRows(plain, kept.config), accelerator).nll
            line = f"{name}: {figures[f'{name}_nll']:.3f} {unit(kept)}"
            if layout.discrete:
                K, marginal = layout.codebook_size, marginal_nll(data.splits["train"].codes, plain.codes, layout)
                figures |= {"uniform_nll": uniform_nll(K), f"{name}_marginal_nll": marginal}
                line += f"; independent codes {marginal:.3f}, uniform ln {K} = {uniform_nll(K):.3f}"
            accelerator.print(line)
    if accelerator.is_main_process:
        folder.write_json(run / "figures.json", figures)
        lines = read_metrics(run / "metrics.jsonl")
        taken = [line for line in lines if "validation_nll" in line]
        if taken and taken[-1]["step"] > best.step:
            accelerator.print(
                f"the weights of step {best.step} are kept, the best on validation: {best.nll:.3f}, and after the last "
                f"step {taken[-1]['validation_nll']:.3f}"
            )
        flat = {}
        if layout.discrete:
            flat = {"uniform": figures["uniform_nll"], "independent": figures["validation_marginal_nll"]}
        save_curves(lines, {f"loss, {unit(kept)}": ["nll", "validation_nll"]}, run / "curves.png", flat)
    accelerator.wait_for_everyone()


def main(argv: Sequence[str]) -> None:
    c = config.parse(TrainConfig, __doc__, argv, default_file=DEFAULT_CONFIG)
    accelerator = make_accelerator(c.precision, c.track, Path(c.run) / "prior")
    with session(Path(c.run) / "prior", accelerator):
        model = train(c, accelerator)
    if not (Path(c.run) / "tokenizer/model").exists():  # the codes are another run's
        accelerator.print(f"to draw from it, copy the folder tokenizer/ of the run of its codes into {c.run}")
    kept = Path(c.run) / "pipeline/generation_config.json"
    tuned = kept.exists() and "chosen" in folder.read_json(kept)  # a config would replace the settings that were chosen
    settings = [] if tuned else ["--config", Path(config.config_beside(c.run, "generate"))]
    accelerator.print(f"the prior is in {model}\nnext: {as_typed('pipeline/generate.py', Path(c.run), *settings)}")


if __name__ == "__main__":
    run_command(main)
