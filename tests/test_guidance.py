"""Guidance needs a prediction without a class: a prior that never learnt one refuses guidance everywhere."""

import shutil

import numpy as np
import pytest
import torch

from smalti.common import folder
from smalti.common.condition import Classes
from smalti.common.errors import UserError
from smalti.pipeline.generate import Settings as Generation
from smalti.pipeline.generate import generate
from smalti.pipeline.image_pipeline import ImagePipeline
from smalti.pipeline.tune import Settings as Tuning
from smalti.pipeline.tune import tune
from smalti.prior.base import Prior
from smalti.prior.model import build_prior, load_prior
from smalti.prior.sampling_config import SamplingConfig
from smalti.prior.train import train as train_prior
from tests.conftest import prior_training

REFUSED = (
    r"guidance 2 leans on a prediction without a class.*label_dropout 0\. "
    "Give guidance 1, or train one with --label_dropout"
)


def with_hidden(prior: Prior, share: float | None) -> Prior:
    """Return the same weights, marked as trained with that share of rows without a class."""
    return build_prior(prior.config.model_copy(update={"hidden": share}))


@pytest.fixture
def run(finished_run, tmp_path):
    """Return a run whose prior always saw the class."""
    run = shutil.copytree(finished_run, tmp_path / "digits", ignore=shutil.ignore_patterns("state"))
    with_hidden(load_prior(run / "prior/model"), 0.0).save_pretrained(run / "prior/model")
    return run


@pytest.mark.parametrize("dropout", [0.0, 0.1])
def test_a_prior_says_which_share_of_its_rows_had_no_class(finished_run, tmp_path, dropout, accelerator):
    shutil.copytree(finished_run / "codes", tmp_path / "codes")
    model = train_prior(prior_training(tmp_path, steps=1, label_dropout=dropout), accelerator)
    assert folder.read_json(model / "config.json")["hidden"] == dropout
    assert load_prior(model).config.takes_guidance == (dropout > 0)


def test_rows_that_have_no_class_of_themselves_teach_it_too():
    hidden = Classes(names=("a", "b")).share_hidden
    assert hidden(np.array([0, 1, -1, -1]), 0.0) == 0.5 and hidden(np.array([0, 1, -1, -1]), 0.5) == 0.75
    assert hidden(np.array([0, 1, 0, 1]), 0.0) == 0.0 and hidden(None, 0.0) == 1.0


@pytest.mark.parametrize(
    "share, guidance, drawn", [(0.0, 2.0, False), (0.0, 0.5, False), (0.0, 1.0, True), (None, 2.0, True)]
)
def test_only_a_prior_known_never_to_have_missed_a_class_refuses_guidance(prior, share, guidance, drawn):
    """An older folder does not record what its prior saw, so it samples as before."""
    if drawn:
        sampler = with_hidden(prior, share).sampler(SamplingConfig(guidance=guidance), 2)
        assert sampler(torch.tensor([0, 1]), [0, 1]).shape == (2, 9)
    else:
        with pytest.raises(ValueError, match=REFUSED.replace("guidance 2", f"guidance {guidance:g}")):
            with_hidden(prior, share).sampler(SamplingConfig(guidance=guidance), 2)


def test_a_refused_generate_leaves_what_was_drawn_before(run, accelerator):
    """--overwrite had removed the earlier images, and a pipeline had been written, before the sampler refused."""
    generate(Generation(run=str(run), num_images=2), accelerator)
    before = {path: path.read_bytes() for path in run.rglob("*") if path.is_file()}
    for asked, message in (({"guidance": 2.0}, REFUSED), ({"top_k": 17}, "top_k 17 is more than the 16 codes")):
        settings = Generation(run=str(run), num_images=3, overwrite=True, **asked)
        with pytest.raises(UserError, match=message):
            generate(settings, accelerator, SamplingConfig(**asked))
    assert {path: path.read_bytes() for path in run.rglob("*") if path.is_file()} == before


def test_a_configs_guidance_is_not_kept_with_a_prior_that_takes_none(run, accelerator):
    """The shipped configs set guidance; with --guidance 1 beside them the pipeline drew once, and refused every call
    after."""
    generate(Generation(run=str(run), num_images=2), accelerator, SamplingConfig(guidance=2.0, temperature=0.8))
    assert ImagePipeline.from_pretrained(run / "pipeline").sampling == SamplingConfig(temperature=0.8)


def test_a_search_proposes_no_guidance_to_such_a_prior(run, accelerator):
    """This holds even if the pipeline's folder still has the settings of an earlier prior."""
    kept = ImagePipeline.from_run(run, SamplingConfig(guidance=2.0))
    kept.save_pretrained(run / "pipeline")
    settings = Tuning(run=str(run), images=64, guidance=(1.0, 2.0), temperature=(0.5,), top_p=(), min_p=())
    assert {each.guidance for each in tune(settings, accelerator).figures} == {1.0}


def test_no_class_is_asked_of_such_a_prior_with_a_warning(run):
    pipeline = ImagePipeline.from_run(run, SamplingConfig())
    codes = torch.zeros(1, 16, dtype=torch.int64)
    with pytest.warns(UserWarning, match=r"no labels were given, and this prior never learnt .*: give labels"):
        pipeline.log_prob(codes)
