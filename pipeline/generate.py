"""Draw images: sample codes from the prior, decode them with the tokenizer.

    accelerate launch pipeline/generate.py runs/fashion_mnist --labels sneaker bag --num-images 32 --seed 7
    smalti generate digits                  # by the pipeline that comes with the package, into digits-samples
    smalti generate digits --animation true

Reads RUN/pipeline, which it makes from RUN/tokenizer/model and RUN/prior/model if those are newer; RUN may also be a
pipeline folder, or `digits`. Writes PNG files with metadata.jsonl and grid.png into RUN/samples (or --output); --format
npz writes the evaluators' samples.npz, --format codes a codes dataset; --animation true also writes growth.gif, in
which the images of the grid are drawn code by code, or pass by pass. Several processes share the batches; interrupted,
the same command goes on with the batches that are missing.
"""

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal, NamedTuple

if __package__ in (None, ""):
    sys.path[0] = str(Path(__file__).resolve().parents[1])
    from smalti.common.starting import answer_signals

    answer_signals()

from pydantic import Field

from smalti.common import config
from smalti.common.command_line import answer_at_once, is_command
from smalti.prior.sampling_config import SamplingConfig

DEFAULT_CONFIG = Path(__file__).resolve().parents[1] / "configs/digits/generate.yaml"


class Settings(SamplingConfig):
    """Draw images from a trained prior. Sampling settings not given are those of generation_config.json."""

    run: str = "runs/digits"
    """folder of the experiment, or a pipeline folder, or digits, which comes with the package"""
    output: str | None = None
    """folder for the images; samples/ in the run when null, NAME-samples beside a pipeline folder"""
    overwrite: bool = False
    """replace what another request wrote into the output folder"""
    labels: tuple[int | str, ...] | None = None
    """class names, or numbers where no class is called so, dealt to the images in turn; all classes when null"""
    num_images: int | None = Field(None, ge=1)
    """images in all; one a label when null"""
    seed: int = Field(0, ge=0, le=2**62)
    """image i has seed `seed + i`; with keep_share below 1, candidate i"""
    keep_share: float = Field(1.0, ge=0.001, le=1)
    """the share that is kept of the images that are drawn: of each class those of which a classifier, trained on the
    run's labelled images, is surest (Razavi et al. 2019); num_images are kept. A quarter draws four times as many"""
    animation: bool = False
    """also write growth.gif: how the images of grid.png are drawn, code by code or pass by pass"""
    format: Literal["png", "npz", "codes"] = "png"
    """png: an imagefolder; npz: the evaluators' layout; codes: a codes dataset"""
    batch_size: int | None = Field(None, ge=1)
    """images a process draws at once; 64, or 256 on CUDA, when null, and fewer where memory asks for it"""


def read_settings(argv: Sequence[str], **below: Any) -> Settings:
    told = "folder of the experiment, or a pipeline folder"
    return config.parse(Settings, __doc__, argv, positional="run", positional_help=told, **below)


if is_command(__name__):  # --help and a wrong setting are answered before torch is imported
    answer_at_once(read_settings)

from accelerate import Accelerator

from smalti.common.bundled import run_named
from smalti.common.commands import as_typed
from smalti.common.launch import Interrupt, Interrupted, check_agree, make_accelerator, run_command
from smalti.common.progress import advance, progress_bar
from smalti.common.session import path_beside, session, tell_of_training
from smalti.pipeline.generation_config import GenerationConfig, carried
from smalti.pipeline.growth import check_grows
from smalti.pipeline.image_pipeline import ImagePipeline, is_of_run
from smalti.pipeline.output import FORMATS, Output, Request, begin_request, read_request
from smalti.pipeline.rejection import Candidates, candidates_for, keep_surest, open_classifier
from smalti.prior.sample import BATCH


class Assembled(NamedTuple):
    """A pipeline, and the settings of the request."""

    pipeline: ImagePipeline
    settings: Settings


def assemble_pipeline(c: Settings, given: SamplingConfig | None, accelerator: Accelerator) -> Assembled:
    """Return the pipeline of a run, and save it if the models or the sampling settings to keep are new.

    Args:
        given: sampling settings to keep with the pipeline; None leaves those that it has.

    Raises:
        UserError: the prior cannot draw with the settings of the request.
    """
    run = run_named(c.run)
    if (run / "model_index.json").exists():
        pipeline = ImagePipeline.from_pretrained(run)
        c, _ = carried(c, _saved_sampling(run) or SamplingConfig(), pipeline.prior)
        pipeline.check_sampling(**_sampling(c))
        return Assembled(pipeline, c)
    path, saved = run / "pipeline", _saved_sampling(run) or SamplingConfig()
    kept = given or saved
    pipeline = ImagePipeline.from_run(run, kept)
    config_of_prior = pipeline.prior.config
    c, left_out = carried(c, saved, pipeline.prior)
    for line in filter(None, (left_out, *c.without_effect())):
        accelerator.print(line, file=sys.stderr)
    # A config file is for sets without labels too.
    if kept.guidance == c.guidance != 1 and not config_of_prior.condition.told:
        line = f"guidance {c.guidance:g} leans towards a class, and the prior was trained without: it is left out"
        accelerator.print(line, file=sys.stderr)
        c = c.model_copy(update={"guidance": 1.0})
    pipeline.check_sampling(**_sampling(c))
    with session(path, accelerator, wait=True):  # another request may hold it
        saved = _saved_sampling(run) or SamplingConfig()  # a search may have chosen others meanwhile
        kept, _ = carried(given or saved, saved, pipeline.prior)
        if not config_of_prior.takes_guidance:  # else the guidance of a config would be kept as a default
            kept = kept.model_copy(update={"guidance": 1.0})
        pipeline.sampling = kept
        same = is_of_run(path, run) and _saved_sampling(run) == kept
        accelerator.wait_for_everyone()
        if accelerator.is_main_process and not same:  # `chosen` is dropped with other settings or weights
            pipeline.save_pretrained(path)
        accelerator.wait_for_everyone()
    return Assembled(pipeline, c)


def output_folder(c: Settings) -> Path:
    """Return the folder of the images: by default inside a run, beside a pipeline folder, or here for a bundled one."""
    run = run_named(c.run)
    if c.output:
        return Path(c.output)
    if run != Path(c.run):  # never beside it, inside the package
        return Path(f"{run.name}-samples")
    return path_beside(run, "-samples") if (run / "model_index.json").exists() else run / "samples"


def request_settings(c: Settings, request: Request) -> dict[str, Any]:
    """Return the request as it is kept in JSON beside the images: all that decides them."""
    not_kept = {"run", "output", "overwrite", "animation", *(("keep_share",) if c.keep_share == 1 else ())}
    return {
        **c.model_dump(mode="json", exclude=not_kept),
        "batch_size": request.batch_size,
        "labels": list(request.labels),
        "seeds": list(request.seeds),
        "tokenizer": request.pipeline.identity.whole,
        "prior": request.pipeline.prior_sha256,
    }


def surest_seeds(
    c: Settings,
    labels: Sequence[int],
    pipeline: ImagePipeline,
    batch_size: int,
    accelerator: Accelerator,
) -> list[int]:
    """Return the seed of each image that is kept, of more that are drawn now. Raises as `open_classifier`."""
    classifier = open_classifier(Path(c.run), pipeline, {*labels}, accelerator)
    of_candidates = pipeline.deal_labels(c.labels, candidates_for(len(labels), c.keep_share))
    candidates = Candidates(of_candidates, pipeline.deal_seeds(len(of_candidates), c.seed))
    pipeline.to(accelerator.device)
    plan = _sampling(c) | {
        "batch_size": batch_size,
        "tokenizer": pipeline.identity.whole,
        "prior": pipeline.prior_sha256,
    }
    sampler = pipeline.sampler(c.batch_size, **_sampling(c))
    return keep_surest(candidates, labels, classifier, pipeline, sampler, plan, Path(c.run), batch_size, accelerator)


def draw_missing(c: Settings, request: Request, output: Output, accelerator: Accelerator) -> None:
    """Draw and write the missing batches, each process its share. Raises `Interrupted` after a signal to stop."""
    pipeline = request.pipeline.to(accelerator.device)
    there = frozenset(number for number in range(request.batches) if output.has(number))
    bar = progress_bar(accelerator, len(request.labels), "generate", unit="image")
    sampler = pipeline.sampler(c.batch_size, **_sampling(c))  # in smaller batches inside where memory asks for it
    with Interrupt(accelerator) as interrupt:
        batches = pipeline.generate(
            request.labels,
            request.seeds,
            sampler,
            batch_size=request.batch_size,
            skip=there,
            first=accelerator.process_index,
            every=accelerator.num_processes,
        )
        for batch in batches:
            output.write(batch)
            advance(bar, len(batch.images) * accelerator.num_processes)
            if interrupt.stopped:
                raise Interrupted("what was drawn is saved; the same command goes on with the rest")
    bar.close()


def generate(c: Settings, accelerator: Accelerator, kept: SamplingConfig | None = None) -> Path:
    """Draw the images of a request that are missing, and return their folder.

    Args:
        kept: sampling settings to keep with the pipeline as its defaults; by default those that it has, or the standard
            ones. Guidance is not kept if the prior cannot follow it.
    """
    path = output_folder(c)
    read_request(path)  # raises if the folder is not ours, before anything is read or written
    pipeline, c = assemble_pipeline(c, kept, accelerator)
    check_agree(f"{pipeline.identity.whole} {pipeline.prior_sha256}", f"a model of {c.run}")
    if c.animation:
        check_grows(pipeline)  # before an hour of drawing
    labels = pipeline.deal_labels(c.labels, c.num_images)
    batch_size = c.batch_size or BATCH.get(accelerator.device.type, BATCH["cpu"])
    if c.keep_share < 1:
        seeds = surest_seeds(c, labels, pipeline, batch_size, accelerator)
    else:
        seeds = pipeline.deal_seeds(len(labels), c.seed)
    request = Request(pipeline, labels, seeds, batch_size)
    for line in pipeline.untrained(labels):
        accelerator.print(line, file=sys.stderr)
    accelerator.wait_for_everyone()
    if accelerator.is_main_process:
        begin_request(path, request_settings(c, request), overwrite=c.overwrite)
    accelerator.wait_for_everyone()
    output = FORMATS[c.format](path, request)
    if not output.is_whole():
        draw_missing(c, request, output, accelerator)
        accelerator.wait_for_everyone()
        if accelerator.is_main_process:
            output.finish()
    if c.animation and accelerator.is_main_process:
        output.animate(**_sampling(c))
    accelerator.wait_for_everyone()
    return output.folder


def _sampling(c: SamplingConfig) -> dict[str, Any]:
    return c.model_dump(include=set(SamplingConfig.model_fields))


def _saved_sampling(run: Path) -> SamplingConfig | None:
    """Return the sampling settings that are kept with the run's pipeline, if it has one."""
    path = run / "generation_config.json"  # of a pipeline folder
    found = GenerationConfig.read(path) if path.exists() else GenerationConfig.of_run(run)
    return None if found is None else found.sampling


def main(argv: Sequence[str]) -> None:
    run = run_named(read_settings(argv).run)
    found = _saved_sampling(run)
    saved = found.model_dump() if found else {}
    default = DEFAULT_CONFIG if not saved and run == Path(Settings().run) else None
    c = read_settings(argv, base=saved, default_file=default)
    # The sampling settings of a file are kept with the pipeline as its defaults; those of this command line are not.
    named = [word.startswith("--config=") or "--config" in (word, *argv[:i][-1:]) for i, word in enumerate(argv)]
    files = [word for word, is_named in zip(argv, named, strict=True) if is_named]
    from_file = read_settings(files, base=saved, default_file=default)
    read_request(output_folder(c))  # before the folder is locked, too
    accelerator = make_accelerator()
    tell_of_training("the images", accelerator, run / "tokenizer", run / "prior")
    with session(output_folder(c), accelerator):
        path = generate(c, accelerator, SamplingConfig(**_sampling(from_file)) if files or default else None)
    growing = f" and {path / 'growth.gif'}" if c.animation else ""
    accelerator.print(f"the images are in {path}; look at {path / 'grid.png'}{growing}")
    if (run / "codes").exists():
        accelerator.print(f"next, to measure the run: {as_typed('tokenizer/evaluate.py', Path(c.run))}")


if __name__ == "__main__":
    run_command(main)
