"""Classifier-based rejection sampling: of more images, those whose class is surest are kept, and none is changed."""

import json
import shutil

import numpy as np
import PIL.Image
import pytest
import torch

from smalti.common import folder
from smalti.common.condition import Classes, Nothing
from smalti.common.errors import UserError
from smalti.metrics.classifier import Classifier, ClassifierConfig
from smalti.pipeline import rejection
from smalti.pipeline.generate import Settings, generate
from smalti.pipeline.image_pipeline import ImagePipeline
from smalti.pipeline.rejection import Candidates, candidates_for, keep_surest, open_classifier, surest
from smalti.prior.sampling_config import SamplingConfig
from smalti.prior.transformer.model import TransformerPrior


@pytest.fixture(scope="module")
def run(finished_run, runs):
    """Return a copy of the finished run, beside others that have the same classifier."""
    return shutil.copytree(finished_run, runs / "rejection", ignore=shutil.ignore_patterns("state"))


@pytest.fixture(scope="module")
def pipeline(run):
    return ImagePipeline.from_run(run, SamplingConfig())


def test_of_each_class_the_candidates_with_the_largest_probability_are_kept_in_their_order():
    labels, log_p = [0, 1, 0, 1, 0, 1, 0], torch.tensor([-3.0, -1.0, -2.0, -5.0, -1.0, -0.5, -9.0])
    assert surest(labels, [0, 1, 0], log_p) == [2, 5, 4]
    assert surest(labels, [1, 1, 1], log_p) == [1, 3, 5]


def test_so_many_are_drawn_that_those_wanted_are_their_share():
    assert [candidates_for(*each) for each in ((10, 0.25), (10, 1.0), (10, 0.3), (1, 0.5))] == [40, 10, 34, 2]


def test_the_kept_seeds_are_the_surest_of_all_that_were_drawn(pipeline, accelerator, tmp_path):
    """The classifier is tiny and untrained: what counts here is that its word is followed."""
    torch.manual_seed(0)
    tiny = Classifier(ClassifierConfig(image_size=(8, 8), image_channels=1, classes=10)).eval()
    candidates, wanted = Candidates([3, 7] * 8, list(range(40, 56))), [3, 7, 3, 7]
    sampler = pipeline.sampler(4)
    kept = keep_surest(candidates, wanted, tiny, pipeline, sampler, {}, tmp_path, 4, accelerator)
    images = torch.cat([b.images for b in pipeline.generate(*candidates, pipeline.sampler(4), batch_size=4)])
    log_p = tiny.log_probs(images).gather(1, torch.tensor(candidates.labels)[:, None])[:, 0]
    for label in (3, 7):
        mine = [seed for seed, of in zip(kept, wanted, strict=True) if of == label]
        scored = [(log_p[i].item(), s) for i, (of, s) in enumerate(zip(*candidates, strict=True)) if of == label]
        assert mine == sorted(seed for _, seed in sorted(scored)[-2:])


def test_a_kept_image_is_the_one_of_its_label_and_seed(run, pipeline, accelerator, tmp_path):
    c = Settings(
        run=str(run),
        labels=("7", 1),
        num_images=4,
        seed=5,
        keep_share=0.25,
        batch_size=4,
        output=str(tmp_path / "kept"),
    )
    out = generate(c, accelerator)
    lines = [json.loads(line) for line in (out / "metadata.jsonl").read_text().splitlines()]
    assert [line["label"] for line in lines] == ["7", "1"] * 2
    seeds = [line["seed"] for line in lines]
    assert len(set(seeds)) == 4 and min(seeds) >= 5 and max(seeds) < 5 + 16
    assert folder.read_json(out / ".request.json")["seeds"] == seeds
    for line in lines:
        (alone,) = pipeline([line["label"]], seed=line["seed"], batch_size=4).images
        assert np.array_equal(np.asarray(alone), np.asarray(PIL.Image.open(out / line["file_name"])))
    written = {path.name: path.stat().st_mtime_ns for path in out.glob("0*.png")}
    assert generate(c, accelerator) == out  # all is there
    assert written == {path.name: path.stat().st_mtime_ns for path in out.glob("0*.png")}


def test_a_request_that_keeps_all_is_written_down_as_before(run, accelerator, tmp_path):
    """A folder that an earlier version began is gone on with."""
    out = generate(Settings(run=str(run), num_images=2, output=str(tmp_path / "all")), accelerator)
    assert "keep_share" not in folder.read_json(out / ".request.json")


def test_a_pipeline_without_its_run_is_refused(run, pipeline, accelerator, tmp_path):
    pipeline.save_pretrained(tmp_path / "alone")
    with pytest.raises(UserError, match=r"alone is a pipeline alone: give the run's folder; or leave keep_share out"):
        generate(Settings(run=str(tmp_path / "alone"), num_images=2, keep_share=0.5), accelerator)


@pytest.mark.parametrize(
    ("condition", "told"),
    [
        (Nothing(), "keep_share keeps images of their class, and this pipeline is told of none"),
        (Classes(names=("a", "b")), "for the classes that are drawn, .* and those of the images are"),
    ],
)
def test_classes_that_the_classifier_does_not_know_are_refused(run, pipeline, accelerator, condition, told):
    prior = TransformerPrior(pipeline.prior.config.model_copy(update={"condition": condition}))
    other = ImagePipeline(pipeline.tokenizer, prior, SamplingConfig(), pipeline.identity)
    with pytest.raises(UserError, match=told):
        open_classifier(run, other, {0}, accelerator)


def test_a_class_that_no_training_image_has_is_refused_before_anything_is_drawn(run, accelerator, monkeypatch):
    """The classifier has no output for it, or one that never learnt."""
    found = rejection.open_run_images(run / "tokenizer", ImagePipeline.from_run(run, SamplingConfig()).tokenizer.config)
    train = found.splits["train"]
    train.labels[train.labels == 9] = 8
    monkeypatch.setattr(rejection, "open_run_images", lambda *given, **more: found)
    with pytest.raises(UserError, match="has seen none of the class 9: leave it out of labels"):
        generate(Settings(run=str(run), labels=("7", "9"), num_images=2, keep_share=0.5), accelerator)
