"""Serve a page to play with: draw images and watch them grow, see pictures as codes, complete them, paint with codes.

    python -m smalti.pipeline.app runs/digits

Reads RUN/tokenizer/model, RUN/prior/model and, where they exist, RUN/pipeline/generation_config.json and
RUN/tokenizer/histogram.json, and of vectors the held-out images, which its latent map shows; or a pipeline folder, one
on the Hub (owner/name), or the one that comes with the package (digits), given as RUN. Writes nothing, except that
pictures dropped on the page lie in the temporary folder for an hour. Serves this machine alone, unless --host names
another address or --share true opens a public link; loads nothing from elsewhere. Programs ask it by the names in
pipeline/playground/endpoints.py. Needs Gradio: pip install gradio.
"""

import os
import socket
import sys
import threading
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

if __package__ in (None, ""):
    sys.path[0] = str(Path(__file__).resolve().parents[1])
if __name__ == "__main__":
    from smalti.common.starting import answer_signals

    answer_signals()

from pydantic import Field

from smalti.common import config
from smalti.common.command_line import answer_at_once, is_command
from smalti.common.config import Settings as BaseSettings


class Settings(BaseSettings):
    """Serve a page to play with a trained pipeline."""

    run: str = "runs/digits"
    """folder of the experiment, a pipeline folder, one on the Hub, or digits, which comes with the package"""
    host: str = "127.0.0.1"
    """the address to serve at; 0.0.0.0 serves the network this machine is in"""
    port: int | None = Field(None, ge=1, le=65535)
    """the first free one from 7860 on when null"""
    share: bool = False
    """also at a public address that Gradio's servers lend for a while"""
    names: tuple[str, ...] = ()
    """other names that the page is asked for by, as behind a proxy; a request for any other is refused"""
    device: str | None = None
    """cpu, cuda, cuda:1, mps; what Accelerate finds when null"""


def read_settings(argv: Sequence[str]) -> Settings:
    return config.parse(
        Settings,
        __doc__,
        argv,
        positional="run",
        positional_help="folder of the experiment, a pipeline folder, one on the Hub, or digits",
    )


if is_command(__name__):  # --help and a wrong setting are answered before torch is imported
    answer_at_once(read_settings)

import torch
from torch import Tensor

from smalti.common.bundled import run_named
from smalti.common.data.images import held_out_split
from smalti.common.data.run_images import open_run_images
from smalti.common.errors import UserError
from smalti.common.launch import Terminated, check_alone, make_accelerator, run_command
from smalti.pipeline.generation_config import GenerationConfig, carried
from smalti.pipeline.image_pipeline import ImagePipeline
from smalti.pipeline.playground.latent_map import LatentMap, latent_map
from smalti.prior.sampling_config import SamplingConfig

FILE = "20mb"  # the largest dropped picture
WAITING = 100  # the most waiting requests
VISITORS = 200  # whose pictures are kept; of more, those who have been away longest begin anew


def load_pipeline(run: str) -> ImagePipeline:
    """Return the pipeline of a run's current models, or of a pipeline folder here or on the Hub."""
    path = run_named(run)
    if not (path / "tokenizer").is_dir() or (path / "model_index.json").exists():
        return ImagePipeline.from_pretrained(path)
    kept = GenerationConfig.of_run(path)
    pipeline = ImagePipeline.from_run(path, kept.sampling if kept else SamplingConfig())
    pipeline.sampling, _ = carried(pipeline.sampling, pipeline.sampling, pipeline.prior)
    return pipeline


def code_counts_of(run: Path, pipeline: ImagePipeline) -> Tensor | None:
    """Return how often each code was used, (R, K), where training has counted it.

    Raises:
        UserError: the counts are another codebook's.
    """
    from smalti.pipeline.reporting.codebook_section import read_histogram

    path, c = run / "tokenizer/histogram.json", pipeline.tokenizer.config
    if not path.exists() or not c.layout.discrete:
        return None
    counts = torch.from_numpy(read_histogram(path)[0])
    if tuple(counts.shape) != (c.layout.codebooks, c.layout.codebook_size):
        raise UserError(
            f"{path} must count {c.layout.codebooks} x {c.layout.codebook_size} codes, as the tokenizer has, got "
            f"{' x '.join(map(str, counts.shape))}; training again writes it anew"
        )
    return counts


def latent_map_of(run: Path, pipeline: ImagePipeline) -> LatentMap | None:
    """Return the map of the run's held-out images, or None of codes, of a pipeline folder, and without the images."""
    if pipeline.tokenizer.config.layout.discrete or not (run / "tokenizer/config.yaml").exists():
        return None
    try:
        opened = open_run_images(run / "tokenizer", pipeline.tokenizer.config)
        split = held_out_split(opened.splits)
        if not len(split):
            raise UserError("no image is held out")
    except UserError as error:
        print(f"no latent map: {error}", file=sys.stderr)
        return None
    return latent_map(pipeline.tokenizer, split, opened.class_names or (), pipeline.device)


def move(pipeline: ImagePipeline, device: str | None) -> ImagePipeline:
    """Move a pipeline to the device, by default to Accelerate's. Raises `UserError` for an unusable device."""
    try:
        return pipeline.to(device or make_accelerator().device)
    except (RuntimeError, AssertionError) as error:
        raise UserError(f"device {device} cannot be used: {str(error).partition('. ')[0]}") from None


def name_of(run: str) -> str:
    """Return the run's name for the page, without the folders above it."""
    path = Path(run)
    if not path.is_dir():
        return run
    path = path.resolve()
    return path.parent.name if path.name == "pipeline" else path.name


def check_address(host: str) -> None:
    """Raise `UserError` if this machine has no such address: Gradio would try its ports one after the other."""
    try:
        with socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET) as here:
            here.bind((host, 0))
    except OSError as error:
        raise UserError(
            f"cannot serve at {host}: {error.strerror or error}; give another --host, as 127.0.0.1"
        ) from None


def launch(c: Settings, page: Any, names: set[str]) -> tuple[str, str | None]:
    """Start the server behind a guard of these names, and return the page's address and its public one, if shared."""
    from starlette.middleware import Middleware  # installed with Gradio

    from smalti.pipeline.playground.gradio_page import theme
    from smalti.pipeline.playground.gradio_style import STYLE
    from smalti.pipeline.playground.guard import Guard

    try:
        _, here, public = page.queue(max_size=WAITING).launch(
            server_name=c.host,
            server_port=c.port,
            share=c.share,
            theme=theme(),
            css=STYLE,
            max_file_size=FILE,
            ssr_mode=False,
            footer_links=["api"],
            quiet=True,
            state_session_capacity=VISITORS,
            prevent_thread_lock=True,
            app_kwargs={"middleware": [Middleware(Guard, names=names)]},
        )
    except OSError as error:
        where = f"{c.host}, port {c.port or 'from 7860 on'}"
        raise UserError(
            f"cannot serve at {where}: it is taken, or none of this machine; give another --port or --host"
        ) from error
    return here, public


def serve(c: Settings) -> None:
    """Serve the page until the process is told to end."""
    check_address(c.host)
    os.environ["GRADIO_ANALYTICS_ENABLED"] = "False"  # read when Gradio is imported
    from smalti.pipeline.playground.controller import open_controller
    from smalti.pipeline.playground.gradio_page import make_page  # needs Gradio, and says so
    from smalti.pipeline.playground.guard import name_in, own_names

    pipeline = move(load_pipeline(c.run), c.device)
    if not pipeline.prior.config.takes_guidance:  # the page has no control to change a kept value
        pipeline.sampling = pipeline.sampling.model_copy(update={"guidance": 1.0})
    run = Path(c.run)
    controller = open_controller(pipeline, code_counts_of(run, pipeline), latent_map_of(run, pipeline))
    page = make_page(controller, name_of(c.run)).blocks
    names = own_names(c.host, c.names)
    here, public = launch(c, page, names)
    if public:
        names.add(name_in(urlsplit(public).netloc))
    print(f"the page is at {here}" + (f" and, for a while, at {public}" if public else ""), flush=True)
    print("Ctrl-C ends it", file=sys.stderr, flush=True)
    with suppress(KeyboardInterrupt, Terminated):  # the usual end of a server
        threading.Event().wait()


def main(argv: Sequence[str]) -> None:
    check_alone()
    serve(read_settings(argv))


if __name__ == "__main__":
    run_command(main)
