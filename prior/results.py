"""The results of stage two: the loss on held-out codes, figures.json, curves.png, and what to type next.

Both prior/train.py and prior/fit.py end with them.
"""

from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import PIL.Image
import torch
import torch.nn.functional as F
from accelerate import Accelerator
from torch import Tensor

from smalti.common.codes import Codes
from smalti.common.commands import as_typed
from smalti.common.config import config_beside
from smalti.common.folder import mend, read_json, write_json
from smalti.common.layout import Layout
from smalti.common.plots import image_grid, save_curves
from smalti.common.progress import passing_bar
from smalti.common.run_folder import read_metrics
from smalti.prior.base import Prior, Scores
from smalti.prior.baselines import marginal_nll, uniform_nll
from smalti.prior.data import CodesBatch, CodesRows, plain_views
from smalti.prior.model import load_prior

EVALUATION_BATCH = 256
WORSE = (
    "the prior is worse than independent codes, which know nothing of one another: it wants more steps, or has too few "
    "images to learn from"
)


class Best(NamedTuple):
    """The evaluation whose weights are kept."""

    step: int
    loss: float


NONE_YET = Best(0, float("inf"))


def to_device(batch: CodesBatch, accelerator: Accelerator) -> CodesBatch:
    """Return a batch on the device of this process."""
    return CodesBatch(*(tensor.to(accelerator.device, non_blocking=True) for tensor in batch))


class HeldOutLoss(NamedTuple):
    """The mean loss of a split."""

    loss: float  # of a number of the latents
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
            loss = prior.validation(batch.codes, batch.condition, some.tolist())[: len(mine)]
        sums += torch.cat([loss.new_tensor([len(mine)]), loss.sum(0)])
        bar.update(len(few))
    bar.close()
    number, summed = accelerator.reduce(sums).cpu().split([1, layout.length])
    return HeldOutLoss((summed / number).double().mean().item(), layout.by_place(summed / number))


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
    nats = "nats" if isinstance(prior, Scores) else "of the loss"
    amount = {"nll": nats, "mse": "squared error"}[prior.measure]
    bound = " (a bound)" if isinstance(prior, Scores) and not prior.exact and prior.measure == "nll" else ""
    return f"{amount} per {'code' if prior.config.layout.discrete else 'number'}{bound}"


def report(data: Codes, best: Best, run: Path, accelerator: Accelerator) -> None:
    """Evaluate the kept weights on every held-out split beside the untrained priors, and draw the curves."""
    kept = load_prior(run / "model").to(accelerator.device)
    layout, figures = data.info.layout, {"best_step": float(best.step)}
    measure, worse = kept.measure, False
    for name, split in data.splits.items():
        if name != "train":
            plain = plain_views(split, data.info)
            loss = held_out_loss(kept, CodesRows(plain, kept.config), accelerator).loss
            figures[f"{name}_{measure}"] = loss
            line = f"{name}: {loss:.3f} {unit(kept)}"
            if layout.discrete:
                K, marginal = layout.codebook_size, marginal_nll(data.splits["train"].codes, plain.codes, layout)
                figures |= {"uniform_nll": uniform_nll(K), f"{name}_marginal_nll": marginal}
                line += f"; independent codes {marginal:.3f}, uniform ln {K} = {uniform_nll(K):.3f}"
                worse = worse or (bool(best.step) and loss > marginal)
            accelerator.print(line)
    if worse:
        accelerator.print(WORSE)
    if accelerator.is_main_process:
        write_json(run / "figures.json", figures)
        lines = read_metrics(run / "metrics.jsonl")
        taken = [line for line in lines if f"validation_{measure}" in line]
        if taken and taken[-1]["step"] > best.step:
            accelerator.print(
                f"the weights of step {best.step} are kept, the best on validation: {best.loss:.3f}, and after the "
                f"last step {taken[-1][f'validation_{measure}']:.3f}"
            )
        flat = {}
        if layout.discrete:
            flat = {"uniform": figures["uniform_nll"], "independent": figures["validation_marginal_nll"]}
        hidden = "in training of hidden codes, on validation " if isinstance(kept, Scores) and not kept.exact else ""
        title = f"loss, {hidden if measure == 'nll' else ''}{unit(kept)}"  # two quantities where one is a bound
        save_curves(lines, {title: [measure, f"validation_{measure}"]}, run / "curves.png", flat)
    accelerator.wait_for_everyone()


def what_is_next(model: Path) -> Iterator[str]:
    """Yield where a prior is, RUN/prior/model, and the command that draws from it."""
    run = model.parents[1]
    if not (run / "tokenizer/model").exists():  # the codes are another run's
        yield f"to draw from it, copy the folder tokenizer/ of the run of its codes into {run}"
    mend(run / "pipeline")
    kept = run / "pipeline/generation_config.json"
    tuned = kept.exists() and "chosen" in read_json(kept)  # a config would replace the settings that were chosen
    settings = [] if tuned else ["--config", Path(config_beside(str(run), "generate"))]
    yield f"the prior is in {model}"
    yield f"next: {as_typed('pipeline/generate.py', run, *settings)}"
