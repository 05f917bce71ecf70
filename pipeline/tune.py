"""Choose sampling settings: draw with each candidate, and keep the one nearest to the validation split.

    accelerate launch -q pipeline/tune.py runs/digits --guidance 1 1.5 2 3 --images 2000

Reads RUN/codes (or --codes), RUN/tokenizer/model and RUN/prior/model; the test split is never read. The figure is a
Fréchet distance between drawn images and the decoded codes of the validation split, joint with the labels if the prior
has classes (pipeline/frechet.py). Drawn images have the split's labels, and every candidate the same seeds.

The search takes one setting after the other: steps, solver, order with its choice_temperature, guidance with its
schedule, temperature, top_k, top_p, min_p, so far as the prior heeds them. For each it draws the candidates with all
other settings as the best so far, and keeps the best. (Guidance and its schedule are one choice: guidance that sets in
late must be stronger, and a schedule may help even if constant guidance is best at 1.)
The search begins with the kept settings; if an earlier search chose those, with the settings that it began with, so
that the same command repeats itself. The result and the beginning are then drawn once more with fresh seeds, because
the smallest of many figures is always a lucky one. The better of the two on these is kept.

Writes into RUN/pipeline:
    generation_config.json   the settings, which pipeline/generate.py uses from then on, and under `chosen` the protocol
    tuning.json              every candidate and its figure
Several processes share the drawing. Interrupted, it has written nothing; the same command begins again.
"""

import sys
from collections.abc import Iterator, Sequence
from datetime import UTC, datetime
from itertools import chain, product
from pathlib import Path
from typing import Literal, NamedTuple

if __package__ in (None, ""):
    sys.path[0] = str(Path(__file__).resolve().parents[1])
    from smalti.common.starting import answer_signals

    answer_signals()

from pydantic import Field

from smalti.common import config
from smalti.common.command_line import answer_at_once, is_command
from smalti.common.config import Settings as BaseSettings


class Settings(BaseSettings):
    """Choose sampling settings on the validation split. Those from `steps` on are lists of candidates, for priors that
    heed the setting; [] leaves it."""

    run: str = "runs/digits"
    """folder of the experiment"""
    codes: str | None = None
    """another folder of codes, where the prior was trained on one"""
    images: int = Field(1000, ge=2)
    """drawn for each candidate; more than the validation split has are dealt its labels evenly"""
    seed: int = Field(2**20, ge=0, le=2**62)
    """image i of every candidate has seed `seed + i`; the last comparison takes the seeds after those.
    pipeline/evaluate.py begins at 0, so that its figures are not of the noise that settings were chosen by"""
    steps: tuple[int | None, ...] = ()
    """more are nearly always nearer to the held-out images, and slower: left alone unless candidates are given"""
    solver: tuple[Literal["ddpm", "ddim", "euler", "dpm"] | None, ...] = (None, "ddpm")
    """of a diffusion prior"""
    order: tuple[Literal["confidence", "halton", "random"], ...] = ("confidence", "halton")
    choice_temperature: tuple[float, ...] = (1.0, 4.5, 10.0)
    """of order confidence"""
    guidance: tuple[float, ...] = (1.0, 1.25, 1.5, 2.0, 3.0)
    """left alone where the prior is unconditional, or was trained with label_dropout 0"""
    guidance_schedule: tuple[Literal["constant", "linear", "power-cosine"], ...] = (
        "constant",
        "linear",
        "power-cosine",
    )
    """of each guidance but 1"""
    temperature: tuple[float, ...] = (0.8, 0.9, 1.0, 1.1)
    top_k: tuple[int | None, ...] = (None,)
    top_p: tuple[float | None, ...] = (None, 0.95, 0.9)
    min_p: tuple[float | None, ...] = (None, 0.02, 0.05)


def read_settings(argv: Sequence[str]) -> Settings:
    return config.parse(Settings, __doc__, argv, positional="run", positional_help="folder of the experiment")


if is_command(__name__):  # --help and a wrong setting are answered before torch is imported
    answer_at_once(read_settings)

import torch
from accelerate import Accelerator
from accelerate.utils import broadcast_object_list
from torch import Tensor
from tqdm import tqdm

from smalti.common import codes, folder
from smalti.common.commands import as_typed
from smalti.common.errors import UserError
from smalti.common.launch import Interrupt, Interrupted, check_agree, make_accelerator, run_command
from smalti.common.parts import share_of
from smalti.common.progress import advance, passing_bar, progress_bar
from smalti.common.session import session
from smalti.pipeline.frechet import Ruler, cells
from smalti.pipeline.generation_config import Chosen, GenerationConfig, carried
from smalti.pipeline.image_pipeline import ENCODED, ImagePipeline
from smalti.prior.data import CodesBatch, CodesRows, plain_views, tell_of_other_codes
from smalti.prior.sample import BATCH
from smalti.prior.sampling_config import SamplingConfig

SWEPT = (  # in this order
    ("steps",),
    ("solver",),
    ("order", "choice_temperature"),
    ("guidance", "guidance_schedule"),
    ("temperature",),
    ("top_k",),
    ("top_p",),
    ("min_p",),
)
SPLIT = "validation"
HELD_OUT = 10_000  # images of it that are used, evenly spaced: many more than features, and they fit into memory


class Tuned(NamedTuple):
    """The result of a search."""

    sampling: SamplingConfig  # what is kept
    found: SamplingConfig  # the best on the search's seeds
    found_value: float  # on fresh ones
    chosen: Chosen
    figures: dict[SamplingConfig, float]  # of every candidate, in the order of drawing
    names: tuple[str, ...]  # of the settings that the prior heeds


# ------------------------------------------------------------------------------------------------------------ measuring


class Trials:
    """The candidates' figures: draws each candidate once, and measures its distance to the held-out images."""

    def __init__(self, c: Settings, pipeline: ImagePipeline, held_out: CodesBatch, interrupt: Interrupt):
        self.c = c
        self.pipeline = pipeline
        self.interrupt = interrupt
        self.accelerator = interrupt.accelerator
        condition = held_out.condition
        self.condition = condition[torch.arange(c.images) * len(condition) // c.images]  # evenly spaced in the split
        classes = pipeline.condition.num_classes
        self.ruler = Ruler(self._held_out_cells(held_out), condition, classes, c.images)
        self.figures: dict[SamplingConfig, float] = {}
        self.names = tuple(chain(*swept(pipeline)))

    def _held_out_cells(self, held_out: CodesBatch) -> Tensor:
        """Return the cells (N, P) of decoded codes (N, T); each process decodes its share."""
        latents, told = self.pipeline.from_prior(held_out.codes), held_out.condition
        found = torch.zeros(len(latents), cells(self.pipeline.decode(latents[:1], told[:1])).shape[1])
        bar = passing_bar(len(latents), f"decode {SPLIT}")
        for rows in share_of(len(latents), ENCODED, self.accelerator):
            found[rows] = cells(self.pipeline.decode(latents[rows], told[rows]))
            advance(bar, len(rows) * self.accelerator.num_processes)
        bar.close()
        return self._together(found)

    def _together(self, found: Tensor) -> Tensor:
        """Return rows with those of other processes in place of zeros."""
        return self.accelerator.reduce(found.to(self.accelerator.device)).cpu()

    def draw(self, sampling: SamplingConfig, seed: int, bar: tqdm) -> float:
        """Return the distance of images whose seeds begin with `seed`, the same number on every process."""
        seeds, world = range(seed, seed + self.c.images), self.accelerator.num_processes
        found = torch.zeros(self.c.images, self.ruler.centre.numel())
        for batch in self.pipeline.generate(
            self.condition.tolist(),
            seeds,
            self.pipeline.sampler(**sampling.model_dump()),
            batch_size=BATCH.get(self.accelerator.device.type, BATCH["cpu"]),
            first=self.accelerator.process_index,
            every=world,
        ):
            found[batch.start : batch.start + len(batch.images)] = cells(batch.images)
            advance(bar, len(batch.images) * world)
        if self.interrupt.asked():
            raise Interrupted("nothing was written; the same command begins again")
        value = [self.ruler(self._together(found), self.condition)]
        return broadcast_object_list(value)[0]  # equal to the last bit, so that all processes choose the same

    def best(self, setting: str, candidates: Sequence[SamplingConfig]) -> SamplingConfig:
        """Draw the new candidates, print a line for each, and return the best of all, the first of equals."""
        if new := [sampling for sampling in dict.fromkeys(candidates) if sampling not in self.figures]:
            bar = progress_bar(self.accelerator, len(new) * self.c.images, setting, unit="image")
            for sampling in new:
                self.figures[sampling] = self.draw(sampling, self.c.seed, bar)
                bar.set_postfix(best=f"{min(self.figures.values()):.5f}", refresh=False)
                if self.accelerator.is_main_process:
                    bar.write(f"{self.figures[sampling]:10.5f}  {describe_sampling(sampling, self.names)}")
            bar.close()
        return min(candidates, key=self.figures.__getitem__)


def describe_sampling(sampling: SamplingConfig, names: Sequence[str]) -> str:
    """Return the settings of these names in words, without those that are off."""
    off = {"guidance_schedule"} if sampling.guidance == 1 else set()
    off |= set() if sampling.order == "confidence" else {"choice_temperature"}
    shown = {name: getattr(sampling, name) for name in names if getattr(sampling, name) is not None and name not in off}
    return ", ".join(f"{name} {value}" for name, value in shown.items())


# ------------------------------------------------------------------------------------------------------------ searching


def search_settings(c: Settings, start: SamplingConfig, trials: Trials) -> SamplingConfig:
    """Return the best candidate that one sweep over each setting finds."""
    best = trials.best("start", [start])
    for names in swept(trials.pipeline):
        best = trials.best(names[0], [best, *candidates(c, best, names)])
    return best


def swept(pipeline: ImagePipeline) -> tuple[tuple[str, ...], ...]:
    """Return the settings to search, in order: those that the prior heeds, and guidance only if it can have it."""
    takes = pipeline.prior.takes
    if not pipeline.prior.config.takes_guidance:
        takes -= {"guidance"}
    return tuple(names for names in SWEPT if names[0] in takes)


def candidates(c: Settings, best: SamplingConfig, names: Sequence[str]) -> Iterator[SamplingConfig]:
    """Yield all that differ from the best only in these settings, and not in one that another switches off."""
    for values in product(*(getattr(c, name) or (getattr(best, name),) for name in names)):
        changed = best.model_copy(update=dict(zip(names, values, strict=True)))
        if changed.guidance == 1:
            changed = changed.model_copy(update={"guidance_schedule": best.guidance_schedule})
        if changed.order != "confidence":
            usual = SamplingConfig().choice_temperature
            changed = changed.model_copy(update={"choice_temperature": usual})
        yield changed


def compare_on_fresh_seeds(c: Settings, start: SamplingConfig, found: SamplingConfig, trials: Trials) -> Tuned:
    """Draw both settings once more with fresh seeds, and return the better with the protocol."""
    both, seed = dict.fromkeys([start, found]), c.seed + c.images
    bar = progress_bar(trials.accelerator, len(both) * c.images, "fresh seeds", unit="image")
    values = {sampling: trials.draw(sampling, seed, bar) for sampling in both}
    bar.close()
    kept = found if values[found] < values[start] else start
    chosen = Chosen(
        metric=trials.ruler.metric,
        split=SPLIT,
        held_out=len(trials.ruler.reference),
        images=c.images,
        seed=c.seed,
        fresh_seed=seed,
        candidates=len(trials.figures),
        value=values[kept],
        start_value=values[start],
        start=start,
        date=datetime.now(UTC).date().isoformat(),
    )
    return Tuned(kept, found, values[found], chosen, trials.figures, trials.names)


def tune(c: Settings, accelerator: Accelerator) -> Tuned:
    """Search, compare on fresh seeds, and write the settings to keep."""
    folder.check_ours(Path(c.run) / "pipeline", "model_index.json")  # before an hour of drawing
    start = beginning(Path(c.run))
    pipeline = ImagePipeline.from_run(Path(c.run), start)
    check_agree(f"{pipeline.identity.whole} {pipeline.prior_sha256}", f"a model of {c.run}")
    start, left_out = carried(start, start, pipeline.prior)
    pipeline.sampling = start
    if left_out is not None:
        accelerator.print(left_out, file=sys.stderr)
    heeded = set(chain(*swept(pipeline)))
    for name in chain(*SWEPT):
        if name not in heeded and getattr(c, name) != Settings.model_fields[name].default:
            accelerator.print(f"{name} is left out: this prior does not heed it", file=sys.stderr)
    for name, of, needs in (("choice_temperature", "order", "confidence"), ("guidance_schedule", "guidance", None)):
        off = needs not in getattr(c, of) if needs else {*c.guidance} == {1.0}
        if off and name in heeded and getattr(c, name) != Settings.model_fields[name].default:
            accelerator.print(f"{name} is left out: the values of {of} switch it off", file=sys.stderr)
    for names in swept(pipeline):
        for candidate in candidates(c, start, names):
            pipeline.sampler(**candidate.model_dump())  # refuses impossible ones before an hour of drawing
    held_out = read_held_out(c, pipeline)
    with Interrupt(accelerator) as interrupt:
        trials = Trials(c, pipeline.to(accelerator.device), held_out, interrupt)
        tuned = compare_on_fresh_seeds(c, start, search_settings(c, start, trials), trials)
    if accelerator.is_main_process:
        write(Path(c.run) / "pipeline", tuned, pipeline)
    accelerator.wait_for_everyone()
    return tuned


# -------------------------------------------------------------------------------------------------- reading and writing


def beginning(run: Path) -> SamplingConfig:
    """Return the settings that a search begins with."""
    path = run / "pipeline/generation_config.json"
    if not path.exists():
        return SamplingConfig()
    kept = GenerationConfig.read(path)
    return kept.chosen.start if kept.chosen else kept.sampling


def read_held_out(c: Settings, pipeline: ImagePipeline) -> CodesBatch:
    """Return the validation split, or images evenly spaced in it, with labels as the pipeline knows them."""
    path = Path(c.codes or f"{c.run}/codes")
    info, splits = codes.read_info(path)
    if SPLIT not in splits:
        raise UserError(
            f"{path} must have a validation split to choose on, it has {', '.join(splits)}; tokenizer/encode.py holds "
            "one out of the training images, and test is never chosen on"
        )
    if not info.tokenizer.same_codes(pipeline.identity):
        raise UserError(
            f"{path} was written by the tokenizer {info.tokenizer}, not by the one of this run, {pipeline.identity}: "
            "encode again, or give another --codes"
        )
    tell_of_other_codes(codes.recorded_fingerprint(info, splits), pipeline.prior.config)
    split = plain_views(codes.load_codes(path, [SPLIT]).splits[SPLIT], info)
    rows = CodesRows(split, pipeline.prior.config)
    evenly = torch.arange(0, len(rows), -(-len(rows) // HELD_OUT))
    labels = None if split.condition is None else split.condition[evenly.numpy()]
    return rows[evenly, evenly]._replace(condition=pipeline.condition.of_rows(labels, len(evenly)))


def write(path: Path, tuned: Tuned, pipeline: ImagePipeline) -> None:
    """Write the pipeline with its settings and their protocol, and the figure of every candidate."""
    kept = ImagePipeline(pipeline.tokenizer, pipeline.prior, tuned.sampling, pipeline.identity, tuned.chosen)
    kept.save_pretrained(path)
    report = {
        "kind": "smalti.tuning",
        "format": folder.FORMAT,
        **tuned.chosen.model_dump(mode="json"),
        "kept": tuned.sampling.model_dump(mode="json"),
        "found": tuned.found.model_dump(mode="json"),
        "found_value": tuned.found_value,
        "figures": [{"value": value, **sampling.model_dump(mode="json")} for sampling, value in tuned.figures.items()],
    }
    folder.write_json(path / "tuning.json", report)


def summary_lines(tuned: Tuned) -> Iterator[str]:
    """Yield the lines that are printed at the end."""
    chosen, figures = tuned.chosen, tuned.figures
    compared = f"{chosen.metric} of {chosen.images} images to {chosen.held_out} held out"
    yield f"{compared}, on the search's seeds and on fresh ones:"
    start, found = (describe_sampling(sampling, tuned.names) for sampling in (chosen.start, tuned.found))
    yield f"  began with {figures[chosen.start]:.5f} and {chosen.start_value:.5f}: {start}"
    yield f"  found      {figures[tuned.found]:.5f} and {tuned.found_value:.5f}: {found}"
    if tuned.found == chosen.start:
        yield "no candidate was better than what it began with: that is kept"
    else:
        better = "what it found" if tuned.sampling == tuned.found else "what it began with, which is better there,"
        yield f"on fresh seeds: {better} is kept"


def main(argv: Sequence[str]) -> None:
    c = read_settings(argv)
    accelerator = make_accelerator()
    with session(Path(c.run) / "pipeline", accelerator):
        tuned = tune(c, accelerator)
    for line in summary_lines(tuned):
        accelerator.print(line)
    run = Path(c.run)
    draw = as_typed("pipeline/generate.py", run, "--seed", 1, "--num-images", 20, "--output", run / "tuned")
    accelerator.print(f"next: {draw}")
    if tuned.sampling != tuned.chosen.start:
        accelerator.print(f"figures of before are of other settings: {as_typed('pipeline/evaluate.py', run)}")


if __name__ == "__main__":
    run_command(main)
