"""The models of a run as ONNX graphs, which run where there is no Python: encoder, decoder, and a step of the prior.

    encoder.onnx    images (B, C, H, W) float32 in [-1, 1] -> codes (B, T) int64, or latents (B, T) float32
    decoder.onnx    codes, or latents -> images
    prior.onnx      condition (B,), codes (B, T) -> logits (B, T, K): row n is of code n, given the n codes before it

B is fixed. A model that is told of the class has an input `condition` (B,) beside the others. Each graph says what its
codes are, in its metadata under `smalti`.
"""

import warnings
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor, nn

from smalti.common.ends import pass_on
from smalti.common.errors import UserError
from smalti.prior.autoregressive import AutoregressivePrior
from smalti.tokenizer.base import ImageTokenizer

OPSET = 20
LARGEST = 2**31 - 2**24  # bytes of a graph in one file


class Encoder(nn.Module):
    def __init__(self, tokenizer: ImageTokenizer):
        super().__init__()
        self.tokenizer = tokenizer

    def forward(self, images: Tensor, condition: Tensor | None = None) -> Tensor:
        return self.tokenizer._encode(images, condition).flatten(1)


class Decoder(nn.Module):
    def __init__(self, tokenizer: ImageTokenizer):
        super().__init__()
        self.tokenizer = tokenizer

    def forward(self, latents: Tensor, condition: Tensor | None = None) -> Tensor:
        return self.tokenizer._decode(latents, condition).float()


class PriorStep(nn.Module):
    def __init__(self, prior: AutoregressivePrior):
        super().__init__()
        self.prior = prior

    def forward(self, condition: Tensor, codes: Tensor) -> Tensor:
        logits: Tensor = self.prior(condition, codes)
        return logits


class Graph(NamedTuple):
    """A module to export, with inputs to trace it by."""

    module: nn.Module
    inputs: dict[str, Tensor]
    output: str


def tokenizer_graphs(tokenizer: ImageTokenizer, batch_size: int) -> dict[str, Graph]:
    """Return the graphs of encoder and decoder by the names of their files."""
    c, layout = tokenizer.config, tokenizer.config.layout
    images = torch.zeros(batch_size, c.image_channels, *c.image_size)
    name, latents = "latents", torch.zeros(batch_size, layout.length)
    if layout.discrete:
        name, latents = "codes", latents.long()
    told = {"condition": torch.zeros(batch_size, dtype=torch.int64)} if tokenizer.condition.told else {}
    return {
        "encoder.onnx": Graph(Encoder(tokenizer), {"images": images, **told}, name),
        "decoder.onnx": Graph(Decoder(tokenizer), {name: latents, **told}, "images"),
    }


def prior_graph(prior: AutoregressivePrior, batch_size: int) -> Graph:
    """Return the graph of a prior's step."""
    codes = torch.zeros(batch_size, prior.config.layout.length, dtype=torch.int64)
    return Graph(PriorStep(prior), {"condition": prior.config.condition.none(batch_size), "codes": codes}, "logits")


def need_onnx() -> None:
    """Raise `UserError` where what writes and runs graphs cannot be imported."""
    try:
        import onnx  # noqa: F401
        import onnxruntime  # noqa: F401
        import onnxscript  # noqa: F401
    except ImportError as error:
        raise UserError(f"ONNX needs more packages ({error}): pip install onnx onnxruntime onnxscript") from None


@torch.no_grad()
def write_graph(graph: Graph, path: Path, metadata: str) -> None:
    """Write a graph as one file. Raises `UserError` for a model that ONNX cannot express, or too large for a file."""
    if (size := sum(each.numel() * each.element_size() for each in graph.module.state_dict().values())) > LARGEST:
        raise UserError(f"{path.name} would hold {size:,} bytes of weights, and an ONNX file at most {LARGEST:,}")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of the exporter, on itself
            program = torch.onnx.export(
                graph.module.eval(),
                tuple(graph.inputs.values()),
                input_names=[*graph.inputs],
                output_names=[graph.output],
                opset_version=OPSET,
                dynamo=True,
                verbose=False,
            )
    except Exception as error:  # of torch, of many kinds; all say that an operator has no form in ONNX
        pass_on(error)
        line = next(iter(str(error.__cause__ or error).strip().splitlines()), type(error).__name__)
        raise UserError(f"{path.name}: torch cannot express this model in ONNX: {line[:300]}") from None
    assert program is not None
    model = program.model
    for node in model.graph.all_nodes():
        node.metadata_props.clear()  # lines and paths of the machine that wrote it
    model.graph.metadata_props.clear()
    model.metadata_props["smalti"] = metadata
    program.save(path)


def run_graph(path: Path, inputs: dict[str, Tensor]) -> Tensor:
    """Return what the graph in a file makes of inputs whose first axis is its batch size or a multiple of it."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    batch = session.get_inputs()[0].shape[0]
    parts = zip(*(each.split(batch) for each in inputs.values()), strict=True)
    found = [session.run(None, {n: t.numpy() for n, t in zip(inputs, part, strict=True)})[0] for part in parts]
    return torch.cat([torch.from_numpy(each) for each in found])
