"""A small run of `benchmarks/priors`: it gives both priors equal conditions, and writes complete results."""

import importlib
import time

import pytest

from benchmarks.priors import KINDS, RESULT, ROOT, Contest, measure, pixelcnn, rows, steps_within
from smalti.common.folder import read_json, write_json
from smalti.prior.model import load_prior
from tests.conftest import QUICK

OFTEN = {"batch_size": 16, "warmup": 2, "log_every": 2, "precision": "fp32"}
TINY = Contest(
    source="digits",
    seconds=0.1,
    looks=2,
    short=(2, 4),
    drawn=150,
    choosing=0.1,
    candidates={},
    kinds={
        "transformer": {"model.depth": 1, "model.dim": 16, "model.heads": 2},
        "pixelcnn": pixelcnn(1, 8, 3, 3e-3, 0.0),
    },
    stages={
        "tokenizer": {
            **OFTEN,
            "model.image_size": (8, 8),
            "model.channels": (8, 16),
            "model.quantizer.codebook_size": 16,
            "model.quantizer.code_dim": 4,
            "steps": 6,
            "evaluate_every": 6,
            "save_every": 6,
        },
        "encode": {"views": 1, "precision": "fp32"},
        "prior": OFTEN,
    },
    features=QUICK,
)


def here(words, ended):
    """Run a command in this process."""
    if not ended.exists():
        before, script = time.process_time(), words[0].removesuffix(".py").replace("/", ".")
        importlib.import_module(f"smalti.{script}").main(list(words[1:]))
        write_json(ended, {"cpu_seconds": time.process_time() - before})
    return read_json(ended)["cpu_seconds"]


@pytest.fixture(scope="module")
def measured(tmp_path_factory):
    work = tmp_path_factory.mktemp("priors")
    return work, measure("digits", TINY, work, [0], work / "priors.png", here)


def test_both_kinds_are_trained_on_the_same_codes_and_judged_alike(measured):
    work, found = measured
    kinds = found["kinds"]
    assert tuple(kinds) == KINDS
    trained = {kind: load_prior(work / f"digits/{kind}-0/prior/model").config for kind in kinds}
    assert trained["transformer"].codes == trained["pixelcnn"].codes is not None
    for kind, of_kind in kinds.items():
        assert trained[kind].architecture.kind == kind
        assert {"nll", "fd_classifier", "class_agreement", "training_cpu_seconds"} <= of_kind["summary"].keys()
        assert of_kind["weights"] > 0 and of_kind["images_a_second"]["fp32"]["batch 64"] > 0
    assert (work / "priors.png").stat().st_size > 0


def test_steps_fill_the_budget_that_the_start_leaves():
    assert steps_within(60, {"a_step": 0.05, "beside": 10.0}) == 1000
    assert steps_within(1, {"a_step": 0.05, "beside": 10.0}) == 1


def test_the_page_says_what_was_measured():
    page = (ROOT / "docs/prior.md").read_text(encoding="utf-8")
    for name, of_set in read_json(RESULT)["sets"].items():
        for line in rows(name, of_set["run"]) if "run" in of_set else ():
            assert line in page, line
