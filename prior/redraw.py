"""Draw each code of a run's training images anew, given the true ones before it.

    accelerate launch -q prior/redraw.py runs/digits

Reads RUN/prior/model and RUN/codes (or --codes), and writes RUN/redrawn (or --output): a codes dataset whose training
rows hold, in the place of each code, what the prior drew there. tokenizer/train.py --train decoder --replace_by drawn
shows them to a decoder, as they are decoded, beside the images that they should become. A draw of the prior alone is of
no image; these are of one, and wrong where the prior errs.

A code is drawn from p(code | class, the image's own codes before it), in the order in which the prior gives one code
after another: of a masked prior given those of earlier passes, of nextset and nextscale those of earlier sets or grids.
Where a code is predicted in parts, each part is drawn given the true ones before it. A draw is a function of (weights,
codes, row, seed), up to the rounding of another batch size. Each process writes whole shards; interrupted, the same
command goes on at the first shard that is not whole.

Shapes: b rows of T codes (b, T), each of G parts (b, T, G); logits (b, V_g) of part g.
"""

import sys
from collections.abc import Sequence
from pathlib import Path

if __package__ in (None, ""):
    sys.path[0] = str(Path(__file__).resolve().parents[1])
    from smalti.common.starting import answer_signals

    answer_signals()

from pydantic import Field

from smalti.common import config
from smalti.common.command_line import answer_at_once, is_command
from smalti.prior.sampling_config import CodeSampling


class Settings(CodeSampling):
    """Draw the codes of the training images anew."""

    run: str = "runs/digits"
    """folder of the experiment: its prior draws, and its draws are written to the subfolder redrawn/"""
    codes: str | None = None
    """another folder of codes, where the prior was trained on one"""
    output: str | None = None
    """another folder for the draws"""
    seed: int = Field(0, ge=0, le=2**62)
    """of the draws"""
    batch_size: int | None = Field(None, ge=1, le=2**20)
    """rows at once; null is as many as memory holds, at most 64 on a CPU and 256 on a GPU"""


def read_settings(argv: Sequence[str]) -> Settings:
    return config.parse(Settings, __doc__, argv, positional="run", positional_help="folder of the experiment")


if is_command(__name__):  # --help and a wrong setting are answered before torch is imported
    answer_at_once(read_settings)

from typing import Any, cast

import numpy as np
import torch
from accelerate import Accelerator
from torch import Tensor

from smalti.common import codes
from smalti.common.codes import Codes
from smalti.common.codes_info import CodesInfo, Redrawn
from smalti.common.commands import as_typed, quoted
from smalti.common.errors import UserError
from smalti.common.folder import read_steadily, sha256
from smalti.common.identity import check_tokenizer_of
from smalti.common.launch import check_agree, make_accelerator, run_command
from smalti.common.mixed_radix import to_digits, to_index
from smalti.common.progress import progress_bar
from smalti.common.seeds import uniforms_of_rows
from smalti.common.session import session, tell_of_training
from smalti.prior.base import Prior, Walks
from smalti.prior.data import CodesRows
from smalti.prior.draw import DIVERGED, draw_categorical
from smalti.prior.model import load_prior
from smalti.prior.sample import DrawsInBatches, fitting_batch
from smalti.prior.sampling_config import SamplingConfig

SPLIT = "train"  # a decoder is trained on no other


def output_folder(c: Settings) -> Path:
    return Path(c.output or Path(c.run) / "redrawn")


def sampling_of(c: Settings) -> SamplingConfig:
    """Return the settings of a draw as a prior takes them."""
    return SamplingConfig(**c.model_dump(include=set(CodeSampling.model_fields)))


def redraw(c: Settings, accelerator: Accelerator) -> Path:
    """Write the draws, or what is missing of them, and return their folder."""
    run, folder = Path(c.run), output_folder(c)
    if folder.resolve() == (run / "codes").resolve():
        raise UserError(f"{folder} is where the images' own codes of {run} lie; give another --output")
    data = codes.load_codes(Path(c.codes or f"{c.run}/codes"))
    if SPLIT not in data.splits:
        raise UserError(f"the codes have no split {SPLIT!r}; they have {', '.join(data.splits)}")
    model = run / "prior/model"
    if not (model / "config.json").exists():
        raise UserError(f"there is no trained prior in {model}; prior/train.py with --run {quoted(run)} makes one")
    check_tokenizer_of(run, data.info)
    prior, of_file = read_steadily(model, lambda: (load_prior(model), sha256(model / "model.safetensors")))
    check_agree(of_file, f"the prior of {run}")
    check_prior(prior, data, sampling_of(c))
    fingerprint = codes.codes_fingerprint(data)
    if prior.config.codes not in (None, fingerprint):
        accelerator.print(
            "these are not the rows of codes that the prior was trained on (other images, or other views of them): it "
            "may err more here than there",
            file=sys.stderr,
        )
    sampling = c.model_dump(mode="json", include=set(CodeSampling.model_fields))
    told = Redrawn(prior=of_file, codes=fingerprint, sampling=sampling, seed=c.seed)
    info = data.info.model_copy(update={"redrawn": told})
    codes.check_plan(folder, info)
    accelerator.wait_for_everyone()
    if accelerator.is_main_process:
        codes.begin_codes(folder, info)
        for path in codes.remove_damaged_codes(folder):
            print(f"{path} was damaged and is written again", file=sys.stderr)
    accelerator.wait_for_everyone()
    if codes.is_whole(folder):
        accelerator.print(f"{folder} is whole already")
        return folder
    redraw_split(prior.to(accelerator.device), data, info, c, folder, accelerator)
    accelerator.wait_for_everyone()
    if accelerator.is_main_process:
        codes.finish(folder, info, {SPLIT: figures_of(folder, data, info)})
    accelerator.wait_for_everyone()
    return folder


def check_prior(prior: Prior, data: Codes, sampling: SamplingConfig) -> None:
    """Raise `UserError` unless a prior can draw these codes one by one with these settings."""
    theirs, layout = prior.config, data.info.layout
    if not isinstance(prior, Walks):
        raise UserError(
            f"a prior of kind {theirs.architecture.name()} does not give the distribution of one code after the other: "
            f"there are no draws given the codes before, of {layout}"
        )
    if not theirs.tokenizer.same_codes(data.info.tokenizer):
        raise UserError(
            f"the codes were written by the tokenizer {data.info.tokenizer}, and the prior was trained on those of "
            f"{theirs.tokenizer}; give its --codes"
        )
    if theirs.layout != layout:
        raise UserError(f"the rows are {layout}, and the prior draws {theirs.layout}; give its --codes")
    here, there = data.info.condition.class_names, theirs.condition.class_names
    if theirs.condition.told and here != there:
        raise UserError(
            f"the codes have the classes {_named(here)}, and the prior was trained on {_named(there)}; give its --codes"
        )
    try:
        prior.check_sampling(sampling)
    except ValueError as error:
        raise UserError(str(error)) from None


def _named(names: Sequence[str] | None) -> str:
    """Return the first of some names, and how many there are."""
    if names is None:
        return "of nothing"
    return f"{', '.join(names[:3])}{', ...' if len(names) > 3 else ''} ({len(names)})"


def redraw_split(
    prior: Prior, data: Codes, info: CodesInfo, c: Settings, folder: Path, accelerator: Accelerator
) -> None:
    """Write this process's shards of the draws: shard k belongs to rank k mod world."""
    split, rows = data.splits[SPLIT], CodesRows(data.splits[SPLIT], prior.config)
    size = c.batch_size or fitting_batch(cast(DrawsInBatches, prior), sampling_of(c), "fp32")
    parts = torch.arange(len(rows)).split(info.shard_size * info.views)
    bar = progress_bar(accelerator, len(rows), "draw anew", unit="row")
    for shard, positions in enumerate(parts):
        path = codes.shard_path(folder, SPLIT, shard, len(parts))
        if shard % accelerator.num_processes == accelerator.process_index and not path.exists():
            drawn = []
            for few in positions.split(size):
                drawn.append(redrawn(prior, rows, few, size, c, accelerator.device))
                bar.update(len(few) if accelerator.num_processes == 1 else 0)
            numbers = torch.cat(drawn).numpy().astype(info.dtype)
            codes.write_shard(path, info, split.at(positions.numpy())._replace(codes=numbers))
        elif accelerator.num_processes == 1:
            bar.update(len(positions))
        if accelerator.num_processes > 1:
            bar.update(len(positions))
    bar.close()


@torch.inference_mode()
def redrawn(prior: Prior, rows: CodesRows, positions: Tensor, size: int, c: Settings, device: torch.device) -> Tensor:
    """Return what the prior draws in the place of each code of some rows, (n, T) on the CPU.

    Args:
        size: rows to compute with, the last one repeated: products of few rows round otherwise than those of many.
    """
    assert isinstance(prior, Walks)  # `check_prior` has asked
    number = len(positions)
    positions = positions[torch.arange(size).clamp_max(number - 1)]
    batch = rows[positions, torch.zeros_like(positions)]
    condition, (b, T), sizes = batch.condition.to(device), batch.codes.shape, prior.vocabularies
    true = to_digits(batch.codes, sizes).to(device)  # (b, T, G)
    epochs = np.zeros(b, np.int64)
    drawn_by = uniforms_of_rows(c.seed, epochs, positions.numpy(), T * len(sizes)).T  # (b, T G) in [0, 1)
    uniforms = (1 - drawn_by).float().view(b, T, len(sizes)).to(device)
    guided = c.guidance != 1
    if guided:
        condition = torch.cat([condition, prior.config.condition.none(b, device)])
    drawn = torch.zeros_like(true)

    def choose(logits: Tensor, t: int, g: int) -> Tensor:
        if guided:
            conditional, unconditional = logits.chunk(2)
            logits = torch.lerp(unconditional, conditional, c.guidance)
        drawn[:, t, g] = draw_categorical(logits, uniforms[:, t, g], c)
        return torch.cat([true[:, t, g]] * 2) if guided else true[:, t, g]

    prior.walk(condition, choose)
    if (drawn >= torch.tensor(sizes, device=device)).any():  # only NaN gives a code beyond the last
        raise UserError(DIVERGED)
    return to_index(drawn[:number], sizes).cpu()


def figures_of(folder: Path, data: Codes, info: CodesInfo) -> dict[str, Any]:
    """Return what codes.json says of the draws on the disk: rows, and the share of codes that are as they were."""
    digest, same, rows, true = codes.Digest(), 0, 0, data.splits[SPLIT].codes
    for path in codes.shard_paths(folder, SPLIT):
        shard = codes.read_shard(path, info)
        digest.update(shard)
        same += int((np.asarray(shard.codes) == np.asarray(true[rows : rows + len(shard.rows)])).sum())
        rows += len(shard.rows)
    return {
        "rows": rows,
        "sha256": digest.hexdigest(),
        "images": rows // info.views,
        "as_they_were": same / (rows * info.layout.length),
    }


def main(argv: Sequence[str]) -> None:
    c = read_settings(argv)
    folder = output_folder(c)
    codes.check_begun(folder)  # before it is locked, too
    accelerator = make_accelerator("fp32")
    tell_of_training("these draws", accelerator, Path(c.run) / "prior")
    with session(folder, accelerator):
        redraw(c, accelerator)
    if accelerator.is_main_process:
        info, splits = codes.read_info(folder)
        told = splits[SPLIT]
        given = ", ".join(f"{name} {getattr(c, name):g}" for name in CodeSampling.model_fields if getattr(c, name))
        same = f"{told['as_they_were']:.1%} of the codes were drawn as they were"
        print(f"{told['rows']} rows of {info.layout}, {given}: {same}")
        print(f"the draws are in {folder}")
        words = ("--train", "decoder", "--replace_codes", 1, "--replace_by", "drawn", "--drawn_codes", folder)
        print(f"next: {as_typed('tokenizer/train.py', '--start_from', Path(c.run), *words, '--run', 'ANOTHER_RUN')}")


if __name__ == "__main__":
    run_command(main)
