"""Measure a prior on held-out codes: nats per code, beside the two priors of the lecture that need no training.

    accelerate launch -q prior/evaluate.py runs/digits

Reads RUN/prior/model and RUN/codes (or --codes). Writes RUN/evaluation/prior-SPLIT.json. Each process takes its share
of the rows; interrupted, the same command goes on. The figures:

    nll, nll_error        nats per code: the mean over images, and its standard error; a bound on it of priors that have
                          no more, or an estimate with --likelihood flow, and then `kind` in the protocol says so
    bits_per_image        the rate: what an ideal coder needs for all codes of an image, given its class
    independent_nll       nats per code of independent codes with their frequencies in train
    saved                 the share by which nll is lower, the class that the prior is told of paid for
    uniform_nll           ln K
    train_nll, gap        nll of as many training images, and by how much nll is higher; a large gap means memorising
    by_class, by_place    mean nats per code of each class, and of each place of each grid
"""

import math
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

if __package__ in (None, ""):
    sys.path[0] = str(Path(__file__).resolve().parents[1])
    from smalti.common.starting import answer_signals

    answer_signals()

from pydantic import Field

from smalti.common import config
from smalti.common.choices import Precision
from smalti.common.command_line import answer_at_once, is_command
from smalti.common.config import Settings as BaseSettings


class Settings(BaseSettings):
    """Evaluate a prior on held-out codes."""

    run: str = "runs/digits"
    """folder of the experiment"""
    codes: str | None = None
    """another folder of codes, where the prior was trained on one"""
    split: str | None = None
    """which split of the codes; when null test, or validation if there is no test split"""
    batch_size: int = Field(256, ge=1)
    """images at once"""
    precision: Precision = "fp32"
    """of the network; logits are fp32 always"""
    likelihood: Literal["usual", "flow"] = "usual"
    """usual: exact, or a bound of priors that have no more; flow: of a diffusion prior an estimate by its probability
    flow, which takes fifteen times as long"""


def read_settings(argv: Sequence[str]) -> Settings:
    return config.parse(Settings, __doc__, argv, positional="run", positional_help="folder of the experiment")


if is_command(__name__):  # --help and a wrong setting are answered before torch is imported
    answer_at_once(read_settings)

import numpy as np
import torch
from accelerate import Accelerator
from torch import Tensor

from smalti.common import codes
from smalti.common.codes import Codes, CodesSplit
from smalti.common.commands import as_typed, quoted
from smalti.common.errors import UserError
from smalti.common.evaluation_file import evaluation_path, parts_path, tell, write_evaluation
from smalti.common.folder import read_steadily, sha256
from smalti.common.identity import check_tokenizer_of
from smalti.common.launch import check_agree, make_accelerator, run_command
from smalti.common.parts import in_parts
from smalti.common.record import code_version
from smalti.common.session import session, tell_of_training
from smalti.common.spacing import evenly_spaced
from smalti.prior.base import FlowsBack, Prior, Scores
from smalti.prior.baselines import Marginal, uniform_nll
from smalti.prior.data import CodesRows, plain_views, tell_of_other_codes
from smalti.prior.model import load_prior

PART = 1000  # images


def evaluate(c: Settings, accelerator: Accelerator, arguments: Sequence[str] = ()) -> Path:
    """Compute the figures that are missing, and return their file."""
    run, data = Path(c.run), codes.load_codes(Path(c.codes or f"{c.run}/codes"))
    model = run / "prior/model"
    if not (model / "config.json").exists():
        raise UserError(f"there is no trained prior in {model}; prior/train.py with --run {quoted(run)} makes one")
    name = c.split or ("test" if "test" in data.splits else "validation")
    for needed in ("train", name):
        if needed not in data.splits:
            raise UserError(f"the codes have no split {needed!r}; they have {', '.join(data.splits)}")
    check_tokenizer_of(run, data.info)
    weights = model / "model.safetensors"
    prior, of_file = read_steadily(model, lambda: (load_scoring_prior(model, data), sha256(weights)))
    check_agree(of_file, f"the prior of {run}")
    prior.to(accelerator.device)
    if c.likelihood == "flow" and not isinstance(prior, FlowsBack):
        raise UserError(
            f"likelihood flow is of diffusion priors, and this one is of kind {prior.config.architecture.name()}: leave"
            " it out"
        )
    held_out = plain_views(data.splits[name], data.info)
    seen = evenly_spaced_rows(plain_views(data.splits["train"], data.info), len(held_out.rows))
    plan = {
        "code": code_version(),
        "prior": of_file,
        "codes": codes.codes_fingerprint(data),
        "precision": "fp32" if c.likelihood == "flow" else c.precision,  # whose derivatives are of fp32
        "batch_size": c.batch_size,
    } | ({} if c.likelihood == "usual" else {"likelihood": c.likelihood})
    nats = {
        split_name: measure(prior, split, run, split_name, plan, c.batch_size, accelerator)
        for split_name, split in ((name, held_out), ("train", seen))
    }
    if c.likelihood == "flow" and c.precision != plan["precision"]:
        accelerator.print(f"precision {c.precision} is left out: the flow's derivatives are of fp32", file=sys.stderr)
    stage = "prior" if c.likelihood == "usual" else "prior_flow"  # an estimate never replaces a bound
    path = evaluation_path(run, stage, name)
    if accelerator.is_main_process:
        figures = prior_figures(nats[name], nats["train"], data, held_out, prior)
        assert isinstance(prior, Scores)
        if prior.exact:
            order = "random, a row's own" if prior.config.any_order else prior.order_in_words
        else:
            order = "random, by masks that follow from the row's codes"
        ordered = {"order": order} if data.info.layout.discrete else {}
        usual = "exact" if prior.exact else "bound"
        kind = "estimate by the probability flow" if c.likelihood == "flow" else usual
        protocol = plan | {"number": len(held_out.rows), "train_number": len(seen.rows), "kind": kind} | ordered
        script = "prior/evaluate.py"
        write_evaluation(run, stage, name, figures=figures, protocol=protocol, arguments=arguments, script=script)
        if kind != "exact":
            print(f"nll is {'a bound, which lies above the exact one' if kind == 'bound' else f'an {kind}'}")
    accelerator.wait_for_everyone()
    return path


def load_scoring_prior(model: Path, data: Codes) -> Prior:
    """Return the prior in a model folder.

    Raises:
        UserError: the prior does not score, or it was trained on the codes of another tokenizer.
    """
    prior = load_prior(model)
    if not isinstance(prior, Scores):
        kind = prior.config.architecture.name()
        raise UserError(f"a prior of kind {kind} does not say how likely latents are: nothing to measure")
    if not prior.config.tokenizer.same_codes(data.info.tokenizer):
        raise UserError(
            f"the codes were written by the tokenizer {data.info.tokenizer}, and the prior was trained on those of "
            f"{prior.config.tokenizer}; give its --codes"
        )
    tell_of_other_codes(codes.codes_fingerprint(data), prior.config)
    return prior


def evenly_spaced_rows(split: CodesSplit, number: int) -> CodesSplit:
    """Return `number` rows of a split, evenly spaced, or all if there are fewer."""
    return split.at(evenly_spaced(number, len(split.rows)).numpy())


def measure(
    prior: Prior,
    split: CodesSplit,
    run: Path,
    name: str,
    plan: dict[str, Any],
    batch_size: int,
    accelerator: Accelerator,
) -> Tensor:
    """Return −log p of every code of every image, (N, T) float32, each at its own place."""
    rows = CodesRows(split, prior.config)
    assert isinstance(prior, Scores)  # `load_scoring_prior` has asked

    def compute(positions: Tensor) -> dict[str, Tensor]:
        found = []
        for some in positions.split(batch_size):
            batch = rows[some, some]
            latents, condition = batch.codes.to(accelerator.device), batch.condition.to(accelerator.device)
            with accelerator.autocast():
                if "likelihood" in plan and isinstance(prior, FlowsBack):
                    found.append(prior.flow_nats(latents, condition))
                else:
                    found.append(prior.nats(latents, condition, some.tolist()))
        return {"nats": torch.cat(found)}

    folder = parts_path(run, f"prior-{name}")
    return in_parts(folder, plan, len(rows), PART, compute, accelerator, f"evaluate {name}")["nats"]


def prior_figures(nats: Tensor, train: Tensor, data: Codes, held_out: CodesSplit, prior: Prior) -> dict[str, Any]:
    """Return the figures, from the nats (N, T) of the held-out images and (M, T) of the training images."""
    layout, each = data.info.layout, nats.double().mean(1)
    nll, train_nll = each.mean().item(), train.double().mean().item()
    error = each.std().item() / len(each) ** 0.5 if len(each) > 1 else 0.0
    figures: dict[str, Any] = {"nll": nll, "nll_error": error}
    if layout.discrete:
        marginal = Marginal(plain_views(data.splits["train"], data.info).codes, layout)
        held_out_codes = torch.from_numpy(np.asarray(held_out.codes).astype("int64"))
        independent = marginal.nll(held_out_codes).mean().item() / layout.length
        label = label_nats(prior, held_out) / layout.length
        figures |= {
            "bits_per_code": nll / math.log(2),
            "bits_per_image": nll * layout.length / math.log(2),
            "independent_nll": independent,
            "uniform_nll": uniform_nll(layout.codebook_size),
            "saved": 1 - (nll + label) / independent if independent else 0.0,
        }
    figures |= {"train_nll": train_nll, "gap": nll - train_nll}
    if prior.config.condition.class_names is not None and held_out.condition is not None:
        labels = torch.from_numpy(held_out.condition)
        there = [(i, name) for i, name in enumerate(prior.config.condition.class_names) if (labels == i).any()]
        figures["by_class"] = {name: each[labels == i].mean().item() for i, name in there}
    places = [grid.tolist() for grid in layout.by_place(nats.double().mean(0))]
    figures["by_place"] = places[0] if len(places) == 1 else places
    return figures


def label_nats(prior: Prior, split: CodesSplit) -> float:
    """Return what the class that the prior is told of costs, in nats an image."""
    if split.condition is None:
        return 0.0
    condition = prior.config.condition
    return condition.nats(condition.of_column(np.asarray(split.condition))).mean().item()


def main(argv: Sequence[str]) -> None:
    c = read_settings(argv)
    accelerator = make_accelerator(c.precision)
    tell_of_training("the figures", accelerator, Path(c.run) / "prior")
    with session(Path(c.run) / "evaluation/prior", accelerator):
        path = evaluate(c, accelerator, argv)
    if accelerator.is_main_process:
        tell(path, as_typed("pipeline/evaluate.py", Path(c.run)))


if __name__ == "__main__":
    run_command(main)
