"""Stage two without a network: fit a prior, of vectors a mixture of Gaussians by EM, of codes their frequencies.

    accelerate launch prior/fit.py configs/mine/fit.yaml --model.components 16 --model.covariance full
    accelerate launch prior/fit.py --run runs/digits --model.kind independent

Reads RUN/codes (or --codes) and writes into RUN/prior what prior/train.py writes: config.yaml, metrics.jsonl (nats per
number, in training and validation, a line each an EM step), figures.json, curves.png, state/ and model/, with the
mixtures of the EM step that was best on the validation split; trackers in --track get the metrics too. A class has a
mixture or a table of frequencies of its own, and one over all rows is for samples without a class. --model.kind
standard_normal, of vectors, and uniform, of codes, have nothing to fit: they are measured and written.

The processes of a job share the rows. Interrupted (Ctrl-C, SIGTERM), it saves, and the same command goes on; with more
--iterations it is lengthened.
"""

import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

if __package__ in (None, ""):
    sys.path[0] = str(Path(__file__).resolve().parents[1])
    from smalti.common.starting import answer_signals

    answer_signals()

from smalti.common import config
from smalti.common.command_line import answer_at_once, is_command
from smalti.prior.config import FitConfig


def read_settings(argv: Sequence[str]) -> FitConfig:
    return config.parse(FitConfig, __doc__, argv)


if is_command(__name__):  # --help and a wrong setting are answered before torch is imported
    answer_at_once(read_settings)

import psutil
import torch
from accelerate import Accelerator
from accelerate.utils import broadcast
from torch import Tensor

from smalti.common import codes, state
from smalti.common.condition import Nothing
from smalti.common.errors import UserError
from smalti.common.gaussian_mixture import EMPTY, GaussianMixture, Moments, e_step, first_mixture, m_step
from smalti.common.launch import Interrupt, Interrupted, anyone, make_accelerator, run_command
from smalti.common.parts import share_of
from smalti.common.progress import advance, passing_bar, progress_bar
from smalti.common.run_folder import Leeway, Metrics, check_run, enter_run, read_metrics
from smalti.common.seeds import generator
from smalti.common.session import session
from smalti.prior.base import Prior
from smalti.prior.config import FittedArchitecture, PriorConfig
from smalti.prior.data import CodesRows, plain_views, read_codes
from smalti.prior.model import build_prior
from smalti.prior.results import NONE_YET, Best, held_out_loss, report, what_is_next
from smalti.prior.simple.config import IndependentConfig, MixtureConfig
from smalti.prior.simple.independent import IndependentPrior, check_table, count, table_shape
from smalti.prior.simple.mixture import MixturePrior

LEEWAY = Leeway(free={"run", "codes", "track", "track_project"}, length="iterations")
TOGETHER = 2**22  # numbers that are read at once
SAMPLE = 2**22  # numbers of the rows that the first means are drawn from; at least 32 rows a component
SAVE_AFTER = 60.0  # seconds between saved states
TENSORS = ("log_weights", "means", "scale")  # of a mixture
COPIES = 4  # of the covariances in fp64: the mixture, its moments, and what the M step makes of both


class Group(NamedTuple):
    """The training rows of one mixture."""

    name: str
    own: Tensor  # (n,) int64, rows that are told of this condition: their log-likelihood is logged
    others: Tensor  # (m,) int64, rows that are told of another: of the mixture for none alone


class Task(NamedTuple):
    """A prior to fit, and the rows of each of its mixtures."""

    c: FitConfig
    prior: MixturePrior
    groups: dict[int, Group]  # by the number of the condition: each class that has rows, and none
    rows: CodesRows
    data: str  # fingerprint of the codes
    run: Path
    accelerator: Accelerator


class Fit(NamedTuple):
    """The state of a fit, by the number of the condition; and the best so far."""

    mixtures: dict[int, GaussianMixture]
    moments: dict[int, Moments]  # of all rows of a mixture
    own: dict[int, float]  # log-likelihood of the rows of its own
    settled: set[int]  # the mixtures that are fitted
    best: Best
    weights: dict[str, Tensor]  # of the best


def fit(c: FitConfig, accelerator: Accelerator) -> Path:
    """Fit the prior from its beginning or its last state, and return the folder of the model."""
    run, data = Path(c.run) / "prior", read_codes(c.run, c.codes)
    reopened = check_run(run, c, LEEWAY)
    fingerprint, model_config = codes.codes_fingerprint(data), config_over(c, data)
    for line in model_config.condition.untrained():
        accelerator.print(line, file=sys.stderr)
    em = {name: getattr(c, name) for name in ("iterations", "tolerance", "regularization")}
    changed = [name for name, value in em.items() if value != FitConfig.model_fields[name].default]
    if changed and not isinstance(c.model, MixtureConfig):
        told = f"{', '.join(changed)}: of EM, which fits a mixture; {c.model.name()} has no use for it"
        accelerator.print(told, file=sys.stderr)
    if isinstance(c.model, MixtureConfig):
        check_size(c.model, model_config)
    if isinstance(c.model, IndependentConfig):
        check_table(model_config)
    prior = build_prior(model_config).to(accelerator.device)
    rows = CodesRows(data.splits["train"], model_config, c.seed)
    validation = CodesRows(plain_views(data.splits["validation"], data.info), model_config)
    groups = groups_of(rows, c.model)
    saved = state.latest(run, accelerator)
    if saved is not None:
        state.check_same_data(saved, fingerprint, "codes of fingerprint", run)
    enter_run(run, c, saved.step if saved else 0, reopened, accelerator)
    with Metrics(run, accelerator, saved.step if saved else 0, c, c.track_project) as metrics:
        if isinstance(prior, MixturePrior):
            task = Task(c, prior, groups, rows, fingerprint, run, accelerator)
            best = climb(task, validation, saved, metrics)
        else:
            if isinstance(prior, IndependentPrior):
                take_counts(prior, rows, saved, fingerprint, run, accelerator)
            best = measured(prior, rows, validation, run, metrics, accelerator)
        if accelerator.is_main_process:
            prior.save_pretrained(run / "model")
        accelerator.wait_for_everyone()
        report(data, best, run, accelerator)
    return run / "model"


def climb(task: Task, validation: CodesRows, saved: state.State | None, metrics: Metrics) -> Best:
    """Fit mixtures by EM, leave those in the prior that were best on validation, and return when they were."""
    c, prior, accelerator = task.c, task.prior, task.accelerator
    fitted, done = begin(task) if saved is None else go_on(task, saved)
    bar = progress_bar(accelerator, c.iterations, "EM", initial=done, unit="EM step")
    saved_at = time.monotonic()
    with Interrupt(accelerator) as interrupt:
        while done < c.iterations and len(fitted.settled) < len(task.groups):
            done += 1
            for number in sorted(task.groups.keys() - fitted.settled):
                before = fitted.moments[number]
                fitted.mixtures[number] = shared(m_step(before, fitted.mixtures[number], c.regularization))
                expect(fitted, number, task)
                gain = (fitted.moments[number].log_likelihood - before.log_likelihood) / before.points
                if float(gain) < c.tolerance:
                    fitted.settled.add(number)

            prior.take(every_condition(fitted, prior))
            metrics.log(done, "train", **figures(fitted, task))
            held_out = held_out_loss(prior, validation, accelerator).loss
            metrics.log(done, "validation", validation_nll=held_out)
            if held_out < fitted.best.loss:
                fitted = fitted._replace(best=Best(done, held_out), weights=copied(prior))
            bar.set_postfix(validation=f"{held_out:.4f}", settled=len(fitted.settled), refresh=False)
            bar.update()

            last = done == c.iterations or len(fitted.settled) == len(task.groups)
            interrupted = interrupt.asked() and not last
            if anyone(last or interrupted or time.monotonic() > saved_at + SAVE_AFTER, accelerator):
                save(fitted, done, task)
                saved_at = time.monotonic()
            if interrupted:
                raise Interrupted(f"saved after EM step {done} of {c.iterations}; the same command goes on from there")
    bar.close()
    prior.load_state_dict(fitted.weights)
    for line in told(fitted, task, done):
        accelerator.print(line, file=sys.stderr)
    return fitted.best


# --------------------------------------------------------------------------------------------------- before it starts


def config_over(c: FitConfig, data: codes.Codes) -> PriorConfig:
    """Return the config of the prior: of samples by class, where there are classes and the kind is told of them."""
    column = data.splits["train"].condition
    by_class = c.condition == "labels" and c.model.by_class
    return PriorConfig.over(
        data.info,
        c.model,
        condition=data.info.condition.seen(column) if by_class else Nothing(),
        codes=codes.codes_fingerprint(data),
        hidden=1.0,  # the distribution for none is of all rows
    )


def check_size(c: MixtureConfig, over: PriorConfig) -> None:
    """Raise `UserError` where this machine's memory does not hold the covariances."""
    T, mixtures = over.layout.length, over.condition.num_classes + 1
    numbers = {"spherical": 1, "diagonal": c.components * T, "full": c.components * T**2, "tied": T**2}[c.covariance]
    needed, memory = COPIES * 8 * numbers * mixtures, psutil.virtual_memory().total
    if needed > memory:
        raise UserError(
            f"{mixtures} mixtures of {c.components} components with a {c.covariance} covariance of {T} numbers need "
            f"{needed / 2**30:.0f} GiB, this machine has {memory / 2**30:.0f}: take --model.covariance diagonal, fewer "
            "components, or --condition nothing"
        )


def groups_of(rows: CodesRows, c: FittedArchitecture) -> dict[int, Group]:
    """Return the rows of each mixture, by the number of the condition: each class that has rows, and none.

    Raises:
        UserError: fewer rows than components.
    """
    if not isinstance(c, MixtureConfig):
        return {}
    condition = rows.condition
    told_of, none = condition.of_rows(rows.split.condition, len(rows)), condition.num_classes
    groups = {
        number: Group(f"class {name}", (told_of == number).nonzero()[:, 0], torch.zeros(0, dtype=torch.int64))
        for number, name in enumerate(condition.class_names or ())
        if (told_of == number).any()
    }
    groups[none] = Group("all rows", (told_of == none).nonzero()[:, 0], (told_of != none).nonzero()[:, 0])
    for group in groups.values():
        number = len(group.own) + len(group.others)
        if number < c.components:
            raise UserError(
                f"model.components {c.components} is more than the {number} rows of {group.name}: take fewer, or "
                "--condition nothing for one mixture of all rows"
            )
    return groups


def begin(task: Task) -> tuple[Fit, int]:
    """Return the fit before its first EM step, and 0."""
    fitted = Fit({}, {}, {}, set(), NONE_YET, copied(task.prior))
    for number, group in task.groups.items():
        fitted.mixtures[number] = shared(first_of(task.c, task.prior, group, task.rows))
        expect(fitted, number, task)
    return fitted, 0


def go_on(task: Task, saved: state.State) -> tuple[Fit, int]:
    """Return the fit as last saved, and the EM steps done."""
    with state.restoring(task.run):
        best = Best(int(saved.info["best"]["step"]), float(saved.info["best"]["loss"]))
        state.restore(task.prior, saved.tensors["best"])
        settled = set(map(int, saved.info["settled"]))
        fitted = Fit(read_mixtures(saved, task), {}, {}, settled, best, copied(task.prior))
    task.accelerator.print(f"going on from EM step {saved.step} of {task.c.iterations}")
    for number in task.groups:
        expect(fitted, number, task)
    return fitted, saved.step


def first_of(c: FitConfig, prior: MixturePrior, group: Group, rows: CodesRows) -> GaussianMixture:
    """Return the mixture that EM begins with, from a sample of its rows that belongs to the seed."""
    a, every = prior.architecture(prior.config), torch.cat([group.own, group.others]).sort().values
    most = max(SAMPLE // prior.config.layout.length, 32 * a.components)
    sample = every[torch.randperm(len(every), generator=generator(c.seed))[:most].sort().values]
    points, draws = points_of(rows, sample, prior.device), generator(c.seed, prior.device)
    return first_mixture(points, a.components, a.covariance, regularization=c.regularization, generator=draws)


def points_of(rows: CodesRows, some: Tensor, device: torch.device) -> Tensor:
    """Return rows as points (n, T) float64. Every EM step reads the same: those of epoch 0."""
    return rows[some, torch.zeros_like(some)].codes.to(device).double()


# ---------------------------------------------------------------------------------------------------------- its steps


def expect(fitted: Fit, number: int, task: Task) -> None:
    """Take the E step of one mixture: its moments, and the log-likelihood of the rows of its own."""
    mixture, group = fitted.mixtures[number], task.groups[number]
    own, others = (expectation(mixture, some, task.rows, task.accelerator) for some in (group.own, group.others))
    fitted.moments[number], fitted.own[number] = own.plus(others), float(own.log_likelihood)


def expectation(mixture: GaussianMixture, some: Tensor, rows: CodesRows, accelerator: Accelerator) -> Moments:
    """Return the moments of some rows, of which each process takes its share."""
    found = e_step(mixture.means[:0], mixture)  # of no points
    bar = passing_bar(len(some), "E step", unit="row")
    together = max(1, TOGETHER // mixture.means.shape[1])
    for few in some[accelerator.process_index :: accelerator.num_processes].split(together):
        if len(few):
            found = found.plus(e_step(points_of(rows, few, mixture.means.device), mixture))
            advance(bar, len(few) * accelerator.num_processes)
    bar.close()
    return Moments(*map(accelerator.reduce, found))


def shared(mixture: GaussianMixture) -> GaussianMixture:
    """Return the main process' mixture: one process' rounding decides for all."""
    tensors = (broadcast(each.contiguous()) for each in (mixture.log_weights, mixture.means, mixture.scale))
    return GaussianMixture(mixture.covariance, *tensors)


def every_condition(fitted: Fit, prior: MixturePrior) -> list[GaussianMixture]:
    """Return a mixture for each class and for none; a class without rows has that for none."""
    none = prior.config.condition.num_classes
    return [fitted.mixtures.get(number, fitted.mixtures[none]) for number in range(none + 1)]


def figures(fitted: Fit, task: Task) -> dict[str, float]:
    """Return the figures of a step: training nats per number, components without points, mixtures that are fitted."""
    nll = -sum(fitted.own.values()) / (len(task.rows) * task.prior.config.layout.length)
    empty = sum(int((each.weights < EMPTY).sum()) for each in fitted.moments.values())
    return {"nll": nll, "empty": empty, "settled": len(fitted.settled)}


def copied(prior: Prior) -> dict[str, Tensor]:
    """Return a copy of a prior's weights."""
    return {name: tensor.clone() for name, tensor in prior.state_dict().items()}


def save(fitted: Fit, done: int, task: Task) -> None:
    """Save the state of the fit."""
    if task.accelerator.is_main_process:
        mixtures = {
            f"{number}.{name}": getattr(mixture, name)
            for number, mixture in fitted.mixtures.items()
            for name in TENSORS
        }
        info = {"data": task.data, "best": fitted.best._asdict(), "settled": sorted(fitted.settled)}
        tensors = {"mixtures": mixtures, "best": fitted.weights}
        state.save_state(task.run, done, tensors, info, task.accelerator)
    task.accelerator.wait_for_everyone()


def read_mixtures(saved: state.State, task: Task) -> dict[int, GaussianMixture]:
    """Return the mixtures of a state. Raises KeyError or ValueError where they do not fit."""
    found, prior = {}, task.prior
    for number in task.groups:
        # copied: a file's tensors begin anywhere in memory, and on some CPUs products of such round another way
        tensors = [saved.tensors["mixtures"][f"{number}.{name}"].to(prior.device, copy=True) for name in TENSORS]
        for name, tensor in zip(TENSORS, tensors, strict=True):
            wanted = getattr(prior, name)[number].shape
            if tensor.shape != wanted or tensor.dtype != torch.float64:
                raise ValueError(f"{number}.{name} must be float64 {tuple(wanted)}, got {tuple(tensor.shape)}")
        found[number] = GaussianMixture(prior.architecture(prior.config).covariance, *tensors)
    return found


# --------------------------------------------------------------------------------------------------- at the end of EM


def told(fitted: Fit, task: Task, done: int) -> Iterator[str]:
    """Yield what the user should know of the fit: mixtures not settled, components without points or without width."""
    c = task.c
    if unsettled := task.groups.keys() - fitted.settled:
        yield (
            f"{len(unsettled)} of {len(task.groups)} mixtures still gained more than the tolerance {c.tolerance:g} at "
            f"EM step {done}: more --iterations go on from here"
        )
    for number, group in task.groups.items():
        K = len(fitted.mixtures[number].log_weights)
        if empty := int((fitted.moments[number].weights < EMPTY).sum()):
            yield f"{group.name}: {empty} of {K} components have no points; fewer components do the same"
        narrow = task.prior.mixture(number).narrowest() <= 2 * c.regularization  # of the weights that are kept
        if narrow.any():
            yield (
                f"{group.name}: the covariances of {int(narrow.sum())} of {len(narrow)} components are singular, but "
                f"for the regularization {c.regularization:g}: take fewer components, a covariance with fewer numbers, "
                "or a larger regularization"
            )


# ------------------------------------------------------------------------------------------------- what needs no steps


def take_counts(
    prior: IndependentPrior,
    rows: CodesRows,
    saved: state.State | None,
    data: str,
    run: Path,
    accelerator: Accelerator,
) -> None:
    """Give a prior the frequencies of the codes, of which each process counts its share of the rows, or those saved."""
    if saved is not None:
        with state.restoring(run):
            state.restore(prior, saved.tensors["model"])
        return
    counts = torch.zeros(table_shape(prior.config), dtype=torch.int64, device=prior.device)
    bar = passing_bar(len(rows), "count codes", unit="row")
    for few in share_of(len(rows), max(1, TOGETHER // prior.config.layout.length), accelerator):
        batch = rows[few, torch.zeros_like(few)]
        counts += count(batch.codes.to(prior.device), batch.condition.to(prior.device), prior.config)
        advance(bar, len(few) * accelerator.num_processes)
    bar.close()
    prior.take(accelerator.reduce(counts))
    if accelerator.is_main_process:
        state.save_state(run, 0, {"model": prior.state_dict()}, {"data": data}, accelerator)
    accelerator.wait_for_everyone()


def measured(
    prior: Prior,
    rows: CodesRows,
    validation: CodesRows,
    run: Path,
    metrics: Metrics,
    accelerator: Accelerator,
) -> Best:
    """Return the evaluation of a prior without steps, and log it and the loss on the training rows once."""
    nll, held_out = (held_out_loss(prior, some, accelerator).loss for some in (rows, validation))
    if not read_metrics(run / "metrics.jsonl"):
        metrics.log(0, "train", nll=nll)
        metrics.log(0, "validation", validation_nll=held_out)
    return Best(0, held_out)


def main(argv: Sequence[str]) -> None:
    c = read_settings(argv)
    accelerator = make_accelerator("fp32", c.track, Path(c.run) / "prior")
    with session(Path(c.run) / "prior", accelerator):
        model = fit(c, accelerator)
    for line in what_is_next(model):
        accelerator.print(line)


if __name__ == "__main__":
    run_command(main)
