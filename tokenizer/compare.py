"""Compare a tokenizer with the one that its training began from: what it gained on its images, and lost on the others.

    accelerate launch -q tokenizer/compare.py runs/mine
    accelerate launch -q tokenizer/compare.py runs/mine --source path/to/old/images --features.kind inception

Reads RUN/tokenizer, the weights that RUN/tokenizer/history.jsonl says it began from (or those of --before), and the
images of both: the run's, and those of the run that the other was trained in, or of --source. Writes
RUN/evaluation/compare-SPLIT.json (with --source compare-SPLIT-of-NAME, with --before ...-to-NAME) and changes no other
run. Each process takes its share of the images; interrupted, the same command goes on. Figures are of whole held-out
splits, and by the names of tokenizer/evaluate.py:

    new, old       the images of the run, and those of the other tokenizer where they are others
    before, after  psnr_pooled, ssim, distortion, uniform_rate or rate, usage, perplexity, fd_NAME, accuracy_... of both
    codes_equal    share of the images all of whose codes are the same in both, where both have the same grids of codes
"""

import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

if __package__ in (None, ""):
    sys.path[0] = str(Path(__file__).resolve().parents[1])
    from smalti.common.starting import answer_signals

    answer_signals()

from pydantic import Field

from smalti.common import config
from smalti.common.choices import Precision
from smalti.common.command_line import answer_at_once, is_command
from smalti.common.config import Settings as BaseSettings
from smalti.metrics.features_config import FeaturesConfig


class Settings(BaseSettings):
    """Compare a tokenizer with another one."""

    run: str = "runs/digits"
    """folder of the experiment"""
    before: str | None = None
    """the tokenizer it is compared with: a run, a model folder, a pipeline or a Hub repository; null is the one that
    its training began from"""
    source: str | None = None
    """the images of the other tokenizer, a Hub id or a folder; null are those of the run that it was trained in"""
    split: str | None = None
    """which split of the images; test, or where there is none validation, when null"""
    features: FeaturesConfig = FeaturesConfig()
    """feature extractor that compares reconstructions with the images"""
    batch_size: int = Field(128, ge=1)
    """images a process encodes at once"""
    precision: Precision = "fp32"
    """of encoder and decoder"""


def read_settings(argv: Sequence[str]) -> Settings:
    return config.parse(Settings, __doc__, argv, positional="run", positional_help="folder of the experiment")


if is_command(__name__):  # --help and a wrong setting are answered before torch is imported
    answer_at_once(read_settings)

from accelerate import Accelerator

from smalti.common.config import read_yaml
from smalti.common.data.config import ImagesConfig
from smalti.common.data.images import ImageSet, held_out_split, open_images
from smalti.common.data.run_images import open_run_images, run_images
from smalti.common.data.split import ImageSplit
from smalti.common.errors import UserError
from smalti.common.evaluation_file import evaluation_path, parts_path, write_evaluation
from smalti.common.folder import read_json
from smalti.common.history import START, read_history
from smalti.common.launch import check_agree, make_accelerator, run_command
from smalti.common.origin import find_model_folder
from smalti.common.session import session, tell_of_training
from smalti.tokenizer.criterion.criteria import remark_on_losses
from smalti.tokenizer.labels import check_labels
from smalti.tokenizer.model import Identified, load_identified, trained
from smalti.tokenizer.reconstruction import (
    Measuring,
    measure_split,
    not_measured,
    part_of_source,
    plan_of,
    reconstruction_figures,
    without_distance,
)
from smalti.tokenizer.run_features import features_cache, open_extractors

TABLE = {  # the figures that are printed, in the words of the table; the file has all
    "psnr_pooled": "PSNR, dB, pooled",
    "ssim": "SSIM",
    "distortion": "distortion, bits/dim",
    "rate": "rate, bits/dim",
    "uniform_rate": "rate of uniform codes, bits/dim",
    "usage": "share of codes used",
    "perplexity": "perplexity",
    "accuracy_reconstructions": "accuracy, reconstructions",
}


class Compared(NamedTuple):
    """A tokenizer that is compared."""

    name: str  # as the user would call it
    folder: Path  # of its model
    tokenizer: Identified

    @property
    def stage(self) -> Path | None:
        """Return the stage of the run that it was trained in; None where it lies alone, or somebody else trained it."""
        config = self.folder.parent / "config.yaml"
        said = read_yaml(config) if self.folder.name == "model" and config.is_file() else {}
        return self.folder.parent if isinstance(said.get("images"), dict) and "checkpoint" not in said else None


class Domain(NamedTuple):
    """Images that both tokenizers are measured on."""

    settings: ImagesConfig
    images: ImageSet
    split: ImageSplit


def compare(c: Settings, accelerator: Accelerator, arguments: Sequence[str] = ()) -> Path:
    """Measure both tokenizers on the images of both, or what is still missing of it, and return the file."""
    run = Path(c.run)
    model = trained(run / "tokenizer")
    both = {"before": tokenizer_before(c.before, run), "after": Compared(str(run), model, load_identified(model, ""))}
    check_pair(*both.values())
    for one in both.values():
        told = remark_on_losses(one.folder.parent) if one.folder.name == "model" else None
        if told is not None:
            accelerator.print(f"{one.name}: {told}", file=sys.stderr)
    found = {
        name: measured(c, name, domain, both, accelerator)
        for name, domain in domains(c, run, both, accelerator).items()
    }
    split = found["new"].protocol["split"]
    name = split if c.source is None else f"{split}-of-{Path(c.source).name}"
    name = name if c.before is None else f"{name}-to-{'-'.join(Path(c.before).parts[-2:]).strip('/')}"
    if accelerator.is_main_process:
        protocol: dict[str, Any] = {domain: each.protocol for domain, each in found.items()}
        protocol |= {when: one.tokenizer.identity.whole for when, one in both.items()}
        protocol |= {"tokenizer": protocol.pop("after"), "before_name": both["before"].name}
        protocol |= {"number": protocol["new"]["number"]}
        figures, script = {domain: each.figures for domain, each in found.items()}, "tokenizer/compare.py"
        write_evaluation(run, "compare", name, figures=figures, protocol=protocol, arguments=arguments, script=script)
    accelerator.wait_for_everyone()
    return evaluation_path(run, "compare", name)


# -------------------------------------------------------------------------------------------------- the two tokenizers


def tokenizer_before(given: str | None, run: Path) -> Compared:
    """Return the tokenizer to compare with: the one that is named, or the one that the run began from.

    Raises:
        UserError: none is named and the run began from none; or it is not there, or was replaced since.
    """
    if given is not None:
        folder = find_model_folder(given, "tokenizer", setting="before")
        return Compared(given, folder, load_identified(folder, ""))
    began = next((change for change in read_history(run / "tokenizer") if change.setting == START), None)
    if began is None or not isinstance(began.after, str):
        raise UserError(
            f"{run}/tokenizer/history.jsonl names no weights that its training began from: give the other tokenizer as "
            "--before"
        )
    name, place = began.after, began.place
    if place is not None and not Path(place).is_dir():
        raise UserError(f"{run} began from {place}, which is not there: bring it back, or give it as --before")
    try:
        folder = find_model_folder(place or name, "tokenizer", setting=f"what {run} began from")
    except UserError as error:
        raise UserError(f"{error}. Give the tokenizer to compare with as --before") from None
    found = Compared(name, folder, load_identified(folder, ""))
    if found.tokenizer.identity.whole != began.sha256:
        raise UserError(
            f"{name} is not what {run} began from any more (SHA-256 {str(began.sha256)[:12]}): it was trained on or "
            "replaced. Give a copy of the weights of then, or another tokenizer, as --before"
        )
    return found


def check_pair(before: Compared, after: Compared) -> None:
    """Raise `UserError` unless they are two and take the same images, and all processes read the same two."""
    for one in (before, after):
        check_agree(one.tokenizer.identity.whole, f"the tokenizer of {one.name}")
    if before.tokenizer.identity.whole == after.tokenizer.identity.whole:
        raise UserError(f"{before.name} and {after.name} are one tokenizer: give another --before")
    configs = [one.tokenizer.tokenizer.config for one in (before, after)]
    shapes = [(*c.image_size, c.image_channels) for c in configs]
    if shapes[0] != shapes[1]:
        raise UserError(
            f"the two tokenizers take other images, {shapes[0]} (height, width, channels) in {before.name} and "
            f"{shapes[1]} in {after.name}: their figures would not compare"
        )


# ------------------------------------------------------------------------------------------------------------- images


def domains(c: Settings, run: Path, both: Mapping[str, Compared], accelerator: Accelerator) -> dict[str, Domain]:
    """Return the images of the run, and those of the other tokenizer where they are known and others; say why not.

    Raises:
        UserError: the run's images, or those of `source`, cannot be read or do not fit both tokenizers.
    """
    own = opened(c, run / "tokenizer", None, both)
    if c.source is None and both["before"].stage is None:
        line = "does not say which images it was trained on, so what they lost is not measured: give --source"
        accelerator.print(f"{both['before'].name} {line}", file=sys.stderr)
        return {"new": own}
    try:
        old = opened(c, both["before"].stage or run / "tokenizer", c.source, both)
    except UserError as error:
        if c.source is not None:
            raise
        line = f"what the images of {both['before'].name} lost is not measured: {error}. --source names them"
        accelerator.print(line, file=sys.stderr)
        return {"new": own}
    if own.images.fingerprint == old.images.fingerprint:
        line = f"the images of {old.settings.source} are those of {run}: measured once"
        otherwise = "" if read_alike(own, old) else ", as that run reads and splits them; the other does otherwise"
        accelerator.print(f"{line}{otherwise}", file=sys.stderr)
        return {"new": own}
    if c.source is not None and (told := part_of_source(c.source, old.images, old.split)) is not None:
        accelerator.print(told, file=sys.stderr)
    return {"new": own, "old": old}


def opened(c: Settings, stage: Path, source: str | None, both: Mapping[str, Compared]) -> Domain:
    """Return the images of a run's stage, or another source read as those are.

    Raises:
        UserError: they are not there, have no such split, or are none that both tokenizers take.
    """
    config, settings = both["after"].tokenizer.tokenizer.config, run_images(stage, source)
    if source is None:
        images = open_run_images(stage, config)
    else:  # nothing was trained on it here: what is damaged is left out and counted
        settings = settings.model_copy(update={"corrupt": "skip"})
        images = open_images(settings, config.image_size, config.image_channels)
    domain = Domain(settings, images, held_out_split(images.splits, c.split))
    for one in both.values():
        tokenizer = one.tokenizer.tokenizer
        check_labels(tokenizer.condition, images)
        if tokenizer.black_and_white and domain.settings.binarize == "none":
            raise UserError(f"{one.name} is of black and white images, and those of {domain.settings.source} are grey")
    return domain


def read_alike(a: Domain, b: Domain) -> bool:
    """Return whether two domains of the same images read and split them alike."""
    rows = [each.split.rows.tolist() for each in (a, b)]
    return a.split.shape == b.split.shape and rows[0] == rows[1]


# ------------------------------------------------------------------------------------------------------------ figures


class Measured(NamedTuple):
    """The figures of both tokenizers on the images of a domain, and how they were measured."""

    figures: dict[str, Any]
    protocol: dict[str, Any]


def measured(
    c: Settings, name: str, domain: Domain, both: Mapping[str, Compared], accelerator: Accelerator
) -> Measured:
    """Measure both tokenizers on the images of a domain."""
    run, (settings, images, split) = Path(c.run), domain
    how, cache = Measuring(c.batch_size, c.precision), features_cache(run)
    extractors = open_extractors(c.features, images, settings, split, cache, accelerator)
    found, figures, protocol = {}, dict[str, Any](), dict[str, Any]()
    for when, one in both.items():
        tokenizer, identity = one.tokenizer
        tokenizer.to(accelerator.device)
        plan = plan_of(how, identity.whole, images, split, extractors)
        folder = parts_path(run, f"compare-{name}-{when}-{split.name}")
        found[when] = measure_split(how, tokenizer, split, extractors, folder, plan, accelerator, f"{name}, {when}")
        figures[when] = reconstruction_figures(found[when], tokenizer, extractors, how.importance_samples)
        number = len(found[when]["squared_error"])
        protocol = plan | {"source": settings.source, "number": number, "skipped": not_measured(split, number)}
    if (told := without_distance(found["after"], extractors)) is not None:
        accelerator.print(f"{name} images: {told}", file=sys.stderr)
    layouts = [one.tokenizer.tokenizer.config.layout for one in both.values()]
    if layouts[0] == layouts[1] and layouts[0].discrete:
        figures["codes_equal"] = (found["before"]["codes"] == found["after"]["codes"]).all(1).double().mean().item()
    return Measured(figures, {key: value for key, value in protocol.items() if key != "tokenizer"})


def lines(path: Path) -> Iterator[str]:
    """Yield the lines of a comparison as they are printed, from its file."""
    found = read_json(path)
    for name, figures in found["figures"].items():
        told = found["protocol"][name]
        left_out = f", {told['skipped']:,} left out" if told["skipped"] else ""
        yield f"{name} images: {told['source']}, {told['split']}, {told['number']:,} images{left_out}"
        before, after = figures["before"], figures["after"]
        distances = [key for key in after if key.startswith("fd_") or key == "fid"]
        rows = TABLE | {key: f"Fréchet distance, {key.removeprefix('fd_')}" for key in distances}
        rows = {key: words for key, words in rows.items() if key in before and key in after}
        width = max(map(len, rows.values()))
        yield f"  {'':<{width}}  {'before':>10}  {'after':>10}"
        for key, words in rows.items():
            yield f"  {words:<{width}}  {before[key]:>10.4f}  {after[key]:>10.4f}"
        if "codes_equal" in figures:
            yield f"  images with the same codes: {figures['codes_equal']:.1%}"


def main(argv: Sequence[str]) -> None:
    c = read_settings(argv)
    accelerator = make_accelerator(c.precision)
    tell_of_training("the figures", accelerator, Path(c.run) / "tokenizer")
    with session(Path(c.run) / "evaluation/compare", accelerator):
        path = compare(c, accelerator, argv)
    if accelerator.is_main_process:
        print(*lines(path), f"the figures are in {path}", sep="\n")


if __name__ == "__main__":
    run_command(main)
