"""Write a run's models as ONNX graphs, which run without Python: in onnxruntime, in browsers, on telephones.

    python pipeline/export_onnx.py runs/digits
    python pipeline/export_onnx.py digits          # the pipeline that comes with the package, into digits-onnx

Reads RUN/tokenizer/model and, where it is there, RUN/prior/model, or both models of a pipeline folder, and writes into
RUN/onnx (of a pipeline folder, beside it; or --output):
    encoder.onnx    images in [-1, 1] -> codes, or latents
    decoder.onnx    codes, or latents -> images
    prior.onnx      class and codes -> logits of each code given those before it, of a Transformer and a PixelCNN
    onnx.json       what the codes are
At the end the graphs are held against the models, on images that the tokenizer decodes.
"""

import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

if __package__ in (None, ""):
    sys.path[0] = str(Path(__file__).resolve().parents[1])
    from smalti.common.starting import answer_signals

    answer_signals()

from pydantic import Field

from smalti.common import config
from smalti.common.command_line import answer_at_once, is_command
from smalti.common.config import Settings as BaseSettings


class Settings(BaseSettings):
    """Write the models of a run as ONNX graphs."""

    run: str = "runs/digits"
    """folder of the experiment, or a pipeline folder"""
    output: str | None = None
    """folder to write; onnx/ in the run when null, or beside a pipeline folder, with -onnx after its name"""
    batch_size: int = Field(1, ge=1, le=4096)
    """B, images that a graph computes at once, neither fewer nor more"""
    checked: int = Field(64, ge=1)
    """images on which the graphs are held against the models"""


RUN = "folder of the experiment, or a pipeline folder"


def read_settings(argv: Sequence[str]) -> Settings:
    return config.parse(Settings, __doc__, argv, positional="run", positional_help=RUN)


if is_command(__name__):  # --help and a wrong setting are answered before torch is imported
    answer_at_once(read_settings)

import torch
from torch import Tensor

from smalti.common import folder
from smalti.common.bundled import run_named
from smalti.common.data.pixels import to_float, to_uint8
from smalti.common.errors import Refused
from smalti.common.launch import check_alone, make_accelerator, run_command
from smalti.common.session import path_beside, session
from smalti.common.written import rewriting_ours
from smalti.pipeline.onnx_graphs import Graph, need_onnx, prior_graph, run_graph, tokenizer_graphs, write_graph
from smalti.prior.autoregressive import AutoregressivePrior
from smalti.prior.base import Prior
from smalti.prior.model import load_prior
from smalti.tokenizer.base import ImageTokenizer
from smalti.tokenizer.model import load_identified, trained

MARK = "onnx.json"
FILES = ("encoder.onnx", "decoder.onnx", "prior.onnx", MARK)


class ModelFolders(NamedTuple):
    """The folders of a run's models, and where the graphs go by default."""

    tokenizer: Path
    prior: Path
    output: Path


def model_folders(run: str) -> ModelFolders:
    """Return the folders of a run, of a pipeline folder, or of a bundled pipeline by its name."""
    path = run_named(run)
    if (path / "model_index.json").exists():
        beside = path_beside(path, "-onnx") if path == Path(run) else Path(f"{path.name}-onnx")  # not in the package
        return ModelFolders(path / "tokenizer", path / "prior", beside)
    return ModelFolders(path / "tokenizer/model", path / "prior/model", path / "onnx")


def output_folder(c: Settings) -> Path:
    return Path(c.output) if c.output else model_folders(c.run).output


def export(c: Settings) -> Path:
    """Write the folder in place of an earlier one, and return it. Files that a user added or changed are kept."""
    need_onnx()
    path, found = output_folder(c), model_folders(c.run)
    folder.check_ours(path, MARK)
    if found.tokenizer.name == "model":
        trained(found.tokenizer.parent)  # or says how to make one
    tokenizer, identity = load_identified(found.tokenizer, "")
    sha256 = identity.whole
    check_same_tokenizer(c, path, sha256)
    graphs = tokenizer_graphs(tokenizer, c.batch_size)
    prior = load_prior(found.prior) if (found.prior / "config.json").exists() else None
    if prior is None:
        print(f"{c.run} has no prior: prior.onnx is left out", file=sys.stderr)
    elif not prior.config.tokenizer.same_codes(identity):
        told = f"{prior.config.tokenizer}, not of this one: prior.onnx is left out; train it anew on new codes"
        print(f"the prior of {c.run} is over the codes of the tokenizer {told}", file=sys.stderr)
        prior = None
    if isinstance(prior, AutoregressivePrior) and len(prior.vocabularies) == 1:
        graphs["prior.onnx"] = prior_graph(prior, c.batch_size)
    elif prior is not None:
        kind = prior.config.architecture.name()
        print(f"a prior of kind {kind} has no step that is one graph: prior.onnx is left out", file=sys.stderr)
    said = about(tokenizer, prior, c.batch_size, sha256)
    with rewriting_ours(path, FILES) as aside:
        for name, graph in graphs.items():
            write_graph(graph, aside / name, json.dumps(said))
        folder.write_json(aside / MARK, said)
        lines = checks(aside, tokenizer, graphs, c)  # before they take the place of earlier ones
    print(*lines, sep="\n")
    return path


def check_same_tokenizer(c: Settings, path: Path, sha256: str) -> None:
    """Raise `Refused` where a folder that was named holds the graphs of another tokenizer."""
    before = folder.read_json(path / MARK) if c.output and (path / MARK).is_file() else {}
    if before.get("tokenizer_sha256", sha256) != sha256:
        raise Refused(f"{path} holds the graphs of another tokenizer than {c.run}; give another --output, or remove it")


def about(tokenizer: ImageTokenizer, prior: Prior | None, batch_size: int, sha256: str) -> dict[str, Any]:
    """Return what is said of the codes and of the prior's classes, in the folder and in each graph."""
    c = tokenizer.config
    return {
        "kind": "smalti.onnx",
        "format": folder.FORMAT,
        "layout": c.layout.model_dump(mode="json"),
        "image_size": list(c.image_size),
        "image_channels": c.image_channels,
        "black_and_white": tokenizer.black_and_white,
        "condition": tokenizer.condition.model_dump(mode="json"),
        "prior_condition": None if prior is None else prior.config.condition.model_dump(mode="json"),
        "batch_size": batch_size,
        "tokenizer_sha256": sha256,
    }


@torch.inference_mode()
def checks(path: Path, tokenizer: ImageTokenizer, graphs: dict[str, Graph], c: Settings) -> list[str]:
    """Return lines on how far the graphs agree with the models, on decoded random codes and prior's logits of them."""
    layout, generator = tokenizer.config.layout, torch.Generator().manual_seed(0)
    number = -(-c.checked // c.batch_size) * c.batch_size
    latents = torch.randn(number, layout.length, generator=generator)
    if layout.discrete:
        sizes = torch.cat([torch.full((grid.length,), grid.codebook_size) for grid in layout.grids])
        latents = (torch.rand(number, layout.length, generator=generator) * sizes).long()
    classes = torch.arange(number) % max(1, tokenizer.condition.num_classes)
    told = {"condition": classes} if tokenizer.condition.told else {}
    images = torch.cat([tokenizer.decode(some, which) for some, which in each(latents, classes, c.batch_size)])
    decoded = run_graph(path / "decoder.onnx", {graphs["encoder.onnx"].output: latents, **told})
    pictures = to_float(to_uint8(images))
    codes = torch.cat([tokenizer.encode(some, which) for some, which in each(pictures, classes, c.batch_size)])
    encoded = run_graph(path / "encoder.onnx", {"images": pictures, **told})
    lines = [f"decoder.onnx: pixels of {number} images differ by at most {(decoded - images).abs().max():.1e}"]
    if layout.discrete:
        same = int((encoded == codes).sum())
        lines.append(f"encoder.onnx: {same:,} of {codes.numel():,} codes of {number} images are the same")
    else:
        lines.append(f"encoder.onnx: latents differ by at most {(encoded - codes).abs().max():.1e}")
    if "prior.onnx" in graphs:
        step, none = graphs["prior.onnx"].module, graphs["prior.onnx"].inputs["condition"][:1]
        given = {"condition": none.repeat(number), "codes": codes}
        logits = torch.cat([step(*some) for some in each(given["condition"], codes, c.batch_size)])
        apart = (run_graph(path / "prior.onnx", given) - logits).abs().max()
        lines.append(f"prior.onnx: logits differ by at most {apart:.1e}")
    return lines


def each(first: Tensor, second: Tensor, batch_size: int) -> list[tuple[Tensor, Tensor]]:
    return list(zip(first.split(batch_size), second.split(batch_size), strict=True))


def main(argv: Sequence[str]) -> None:
    check_alone()
    c = read_settings(argv)
    folder.check_ours(output_folder(c), MARK)
    with session(output_folder(c), make_accelerator("fp32")):
        path = export(c)
    sizes = ", ".join(f"{name} {(path / name).stat().st_size / 1e6:.1f} MB" for name in FILES if (path / name).exists())
    print(f"{path} is written: {sizes}")


if __name__ == "__main__":
    run_command(main)
