"""The models of a run as ONNX graphs: another runtime finds the same codes, pixels and logits."""

import shutil
import sys

import pytest
import torch

from smalti.common.data.pixels import to_float, to_uint8
from smalti.common.errors import UserError
from smalti.pipeline import onnx_graphs
from smalti.pipeline.export_onnx import Settings, export
from smalti.pipeline.onnx_graphs import Graph, run_graph, write_graph
from smalti.prior.model import load_prior
from smalti.tokenizer.model import load_tokenizer
from smalti.tokenizer.nearest import nearest_plain, nearest_tiled

pytest.importorskip("onnxruntime")
pytest.importorskip("onnxscript")
ROUNDING = 1e-4  # of pixels in [-1, 1] and of logits: sums of fp32 in another order


@pytest.fixture(scope="module")
def run(finished_run, tmp_path_factory):
    """Return a run whose graphs are exported, of one image at once."""
    path = tmp_path_factory.mktemp("onnx") / "digits"
    shutil.copytree(finished_run, path, ignore=shutil.ignore_patterns("state", "codes"))
    export(Settings(run=str(path), checked=8))
    return path


def test_encoder_decoder_and_prior_give_what_the_models_give(run):
    tokenizer, prior = load_tokenizer(run / "tokenizer/model"), load_prior(run / "prior/model")
    torch.manual_seed(0)
    images = to_float(to_uint8(torch.rand(64, 1, 8, 8) * 2 - 1))
    codes = run_graph(run / "onnx/encoder.onnx", {"images": images})
    assert torch.equal(codes, tokenizer.encode(images))
    decoded = run_graph(run / "onnx/decoder.onnx", {"codes": codes})
    assert (decoded - tokenizer.decode(codes)).abs().max() < ROUNDING
    given = {"condition": torch.arange(64) % 11, "codes": codes}  # the last class is none
    logits = run_graph(run / "onnx/prior.onnx", given)
    with torch.no_grad():
        assert (logits - prior(given["condition"], codes)).abs().max() < ROUNDING


def test_a_graph_says_what_its_codes_are_and_nothing_of_the_machine(run):
    import onnx

    for name in ("encoder", "decoder", "prior"):
        path = run / f"onnx/{name}.onnx"
        (said,) = onnx.load(path).metadata_props
        assert said.key == "smalti" and '"image_size": [8, 8]' in said.value
        assert b".py" not in path.read_bytes(), "the exporter writes the lines that it traced"


def test_of_codes_that_score_the_same_the_first_is_found_as_by_the_tiled_search():
    """Every vector of the codebook stands there three times. The search is one product, of which a graph is made."""
    torch.manual_seed(0)
    codebook = torch.randn(20, 4).repeat_interleave(3, 0) + 100  # far from the origin
    columns = torch.cat([torch.randn(2, 4, 30) + 100, codebook.T.expand(2, -1, -1)], 2)
    found = nearest_plain(columns, codebook)
    assert torch.equal(found, nearest_tiled(columns, codebook)) and (found % 3 == 0).all()


def test_what_onnx_cannot_express_is_refused_by_name(tmp_path):
    class Sorted(torch.nn.Module):
        def forward(self, x):
            return x[x > 0].item() * x

    with pytest.raises(UserError, match=r"prior\.onnx: torch cannot express this model in ONNX"):
        write_graph(Graph(Sorted(), {"x": torch.zeros(2)}, "y"), tmp_path / "prior.onnx", "{}")
    assert not list(tmp_path.iterdir())


def test_a_missing_package_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "onnxscript", None)  # as if it were not installed
    with pytest.raises(UserError, match=r"pip install 'smalti\[onnx\]'"):
        onnx_graphs.need_onnx()
