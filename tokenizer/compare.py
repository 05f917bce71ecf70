"""Compare a tokenizer with the one that its training began from: what it gained on its images, and lost on the others.

    accelerate launch -q tokenizer/compare.py runs/mine
    accelerate launch -q tokenizer/compare.py runs/mine --source path/to/old/images --features.kind inception

Reads RUN/tokenizer, the weights that RUN/tokenizer/history.jsonl says it began from (or those of --before), and the
images of both: the run's, and those of the run that the other is of, or of --source. Writes
RUN/evaluation/compare-SPLIT.json and changes no other run. Each process takes its share of the images; interrupted,
the same command goes on. Figures are of whole held-out splits, and by the names of tokenizer/evaluate.py:

    new, old       the images of the run, and those of the other tokenizer where they are others
    before, after  psnr_pooled, ssim, distortion, rate, usage, perplexity, fd_NAME, accuracy_... of both tokenizers
    codes_equal    share of the images all of whose codes are the same in both
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
    """the images of the other tokenizer, a Hub id or a folder; null are those of the run that it is of"""
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

from smalti.common.commands import as_typed
from smalti.common.data.config import ImagesConfig
from smalti.common.data.images import ImageSet, held_out_split
from smalti.common.data.run_images import ANOTHER, open_run_images, run_images
from smalti.common.errors import UserError
from smalti.common.evaluation_file import evaluation_path, parts_path, write_evaluation
from smalti.common.folder import read_json
from smalti.common.history import START, read_history
from smalti.common.launch import check_agree, make_accelerator, run_command
from smalti.common.origin import find_model_folder
from smalti.common.session import session
from smalti.tokenizer.labels import check_labels
from smalti.tokenizer.model import Identified, load_identified, trained
from smalti.tokenizer.reconstruction import Measuring, measure_split, plan_of, reconstruction_figures
from smalti.tokenizer.run_features import features_cache, open_extractors

TABLE = {  # the figures that are printed, in the words of the table; the file has all
    "psnr_pooled": "PSNR, dB, pooled",
    "ssim": "SSIM",
    "distortion": "distortion, bits/dim",
    "rate": "rate, bits/dim",
    "usage": "share of codes used",
    "perplexity": "perplexity",
    "accuracy_reconstructions": "accuracy, reconstructions",
}


class Domain(NamedTuple):
    """Images that both tokenizers are measured on."""

    settings: ImagesConfig
    images: ImageSet


def compare(c: Settings, accelerator: Accelerator, arguments: Sequence[str] = ()) -> Path:
    """Measure both tokenizers on the images of both, or what is still missing of it, and return the file."""
    run = Path(c.run)
    after = load_identified(trained(run / "tokenizer"), "")
    folder = folder_before(c.before, run)
    before = load_identified(folder, "")
    check_pair(before, after, folder, run)
    figures, protocol, split = dict[str, Any](), dict[str, Any](), "test"
    for name, domain in domains(c, run, folder, after, before, accelerator):
        figures[name], protocol[name] = measured(c, name, domain, {"before": before, "after": after}, accelerator)
        if name == "new":
            split = protocol[name]["split"]
    path = evaluation_path(run, "compare", split)
    if accelerator.is_main_process:
        protocol |= {"before": before.identity.whole, "tokenizer": after.identity.whole}
        script = "tokenizer/compare.py"
        write_evaluation(run, "compare", split, figures=figures, protocol=protocol, arguments=arguments, script=script)
    accelerator.wait_for_everyone()
    return path


# -------------------------------------------------------------------------------------------------- the two tokenizers


def folder_before(given: str | None, run: Path) -> Path:
    """Return the model folder of the tokenizer to compare with.

    Raises:
        UserError: none is named and the run began from none; or it is not there, or was replaced since.
    """
    if given is not None:
        return find_model_folder(given, "tokenizer", setting="before")
    began = next((change for change in read_history(run / "tokenizer") if change.setting == START), None)
    if began is None:
        raise UserError(f"the tokenizer of {run} began from no given weights: give the other one as --before")
    try:
        folder = find_model_folder(str(began.after), "tokenizer", setting=f"{run} began from")
    except UserError as error:
        raise UserError(f"{error}. Give the tokenizer to compare with as --before") from None
    if began.identity is not None and load_identified(folder, "").identity.whole != began.identity.whole:
        raise UserError(
            f"{began.after} is not what {run} began from any more (SHA-256 {str(began.sha256)[:12]}): it was trained "
            "on or replaced. Give a copy of the weights of then, or another tokenizer, as --before"
        )
    return folder


def check_pair(before: Identified, after: Identified, folder: Path, run: Path) -> None:
    """Raise `UserError` unless the two take the same images, and all processes read the same two."""
    for name, one in ((str(folder), before), (str(run), after)):
        check_agree(one.identity.whole, f"the tokenizer of {name}")
    shapes = [(*each.tokenizer.config.image_size, each.tokenizer.config.image_channels) for each in (before, after)]
    if shapes[0] != shapes[1]:
        raise UserError(
            f"the two tokenizers take other images, {shapes[0]} (height, width, channels) in {folder} and {shapes[1]} "
            f"in {run}: their figures would not compare"
        )


# ------------------------------------------------------------------------------------------------------------- images


def domains(
    c: Settings, run: Path, folder: Path, after: Identified, before: Identified, accelerator: Accelerator
) -> Iterator[tuple[str, Domain]]:
    """Yield the images of the run, and those of the other tokenizer where they are known and others; say why not.

    Args:
        folder: the other's model.
    """
    stage = run / "tokenizer"
    own = open_run_images(stage, after.tokenizer.config, otherwise=ANOTHER)
    yield "new", Domain(run_images(stage), own)
    theirs = folder.parent
    if c.source is not None:
        old = Domain(run_images(stage, c.source), open_run_images(stage, after.tokenizer.config, c.source))
    elif folder.name == "model" and (theirs / "config.yaml").is_file():
        old = Domain(run_images(theirs), open_run_images(theirs, before.tokenizer.config, otherwise=ANOTHER))
    else:
        line = f"{folder} does not say which images it was trained on, so what they lost is not measured: give --source"
        accelerator.print(line, file=sys.stderr)
        return
    if old.images.fingerprint == own.fingerprint:
        accelerator.print(f"both were trained on the images of {old.settings.source}", file=sys.stderr)
    else:
        yield "old", old


# ------------------------------------------------------------------------------------------------------------ figures


def measured(
    c: Settings, name: str, domain: Domain, both: Mapping[str, Identified], accelerator: Accelerator
) -> tuple[dict[str, Any], dict[str, Any]]:
    """Return the figures of both tokenizers on the images of a domain, and how they were measured."""
    run, images = Path(c.run), domain.images
    split, how = held_out_split(images.splits, c.split), Measuring(c.batch_size, c.precision)
    extractors = open_extractors(c.features, images, domain.settings, split, features_cache(run), accelerator)
    found, figures, protocol = {}, dict[str, Any](), dict[str, Any]()
    for when, (tokenizer, identity) in both.items():
        tokenizer.to(accelerator.device)
        check_labels(tokenizer.condition, images)
        plan = plan_of(how, identity.whole, images, split, extractors)
        place, what = parts_path(run, f"compare-{name}-{when}"), f"{name} images, {when}"
        found[when] = measure_split(how, tokenizer, split, extractors, place, plan, accelerator, what)
        figures[when] = reconstruction_figures(found[when], tokenizer, extractors, how.importance_samples)
        number = len(found[when]["squared_error"])
        protocol = {**plan, "source": domain.settings.source, "number": number, "skipped": len(split) - number}
    if all("codes" in each for each in found.values()):
        codes = [found[when]["codes"] for when in both]
        same = codes[0].shape == codes[1].shape and (codes[0] == codes[1]).all(1).double().mean().item()
        figures["codes_equal"] = float(same)
    return figures, {key: value for key, value in protocol.items() if key != "tokenizer"}


def lines(path: Path) -> Iterator[str]:
    """Yield the lines of a comparison as they are printed, from its file."""
    found = read_json(path)
    for name, figures in found["figures"].items():
        told = found["protocol"][name]
        yield f"{name} images: {told['source']}, {told['split']}, {told['number']:,} images"
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
    with session(Path(c.run) / "evaluation/compare", accelerator):
        path = compare(c, accelerator, argv)
    if accelerator.is_main_process:
        told = "\n".join(lines(path))
        print(f"{told}\nthe figures are in {path}\nnext: {as_typed('tokenizer/encode.py', Path(c.run))}")


if __name__ == "__main__":
    run_command(main)
