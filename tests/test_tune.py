"""Sampling settings are chosen on the validation split, by a distance between images with their classes."""

import shutil
import signal

import pytest
import torch

from smalti.common import folder
from smalti.common.condition import Nothing
from smalti.common.errors import UserError
from smalti.common.launch import Interrupt, Interrupted
from smalti.pipeline.frechet import SIDE, Ruler, cells
from smalti.pipeline.generate import main as generate
from smalti.pipeline.generation_config import GenerationConfig, carried
from smalti.pipeline.image_pipeline import ImagePipeline
from smalti.pipeline.run import generate_options
from smalti.pipeline.tune import (
    Settings,
    Trials,
    beginning,
    candidates,
    compare_on_fresh_seeds,
    read_held_out,
    swept,
    tune,
)
from smalti.prior.masked.config import MaskedConfig
from smalti.prior.model import build_prior, load_prior
from smalti.prior.sampling_config import CODE_SETTINGS, SamplingConfig
from smalti.prior.transformer.model import TransformerPrior

DRAWN_BY = {*CODE_SETTINGS, "precision"}  # the settings that a Transformer draws by
ONE_EACH = {"guidance": (1.0, 2.0), "temperature": (0.5, 1.0), "top_p": (), "min_p": ()}


@pytest.fixture
def run(finished_run, tmp_path):
    """Return a copy of the finished run that a test may write into."""
    return shutil.copytree(finished_run, tmp_path / "digits", ignore=shutil.ignore_patterns("state"))


def settings(run, **given):
    return Settings(run=str(run), images=64, **{**ONE_EACH, **given})


def kept(run):
    return folder.read_json(run / "pipeline/generation_config.json")


def normal(seed, *shape):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


# --------------------------------------------------------------------------------------------------------- the distance


def test_images_that_do_not_show_their_class_cost():
    labels = torch.arange(400) % 4
    features = normal(0, 400, 5) + labels[:, None]
    measure = Ruler(features, labels, 4, 400)
    assert measure(features, labels) == pytest.approx(0, abs=1e-6)
    assert measure(features, labels.roll(1)) > 0.5


def test_the_distance_does_not_depend_on_the_scale_of_pixels():
    held_out, drawn, none = normal(0, 300, 5), normal(1, 300, 5), torch.zeros(300, dtype=torch.int64)
    plain, scaled = Ruler(held_out, none, 0, 300)(drawn, none), Ruler(100 * held_out, none, 0, 300)(100 * drawn, none)
    assert scaled == pytest.approx(plain)


@pytest.mark.parametrize("held_out, drawn, classes, components", [(40, 500, 3, 7), (500, 40, 3, 7), (500, 500, 0, 12)])
def test_features_are_far_fewer_than_images(held_out, drawn, classes, components):
    """With classes a quarter of the images, or else the components that hold 95% of the variance."""
    found = torch.cat([normal(0, held_out, 12), 0.1 * normal(1, held_out, 12)], 1)
    assert Ruler(found, torch.zeros(held_out, dtype=torch.int64), classes, drawn).components == components


def test_a_cell_of_a_large_image_is_the_mean_of_its_pixels():
    images = torch.zeros(1, 1, 2 * SIDE, 4, dtype=torch.uint8)
    images[..., 1::2, 0] = 255
    assert cells(images).tolist() == [[0, -1, -1, -1] * SIDE]


# ----------------------------------------------------------------------------------------------------------- the search


def test_what_is_chosen_is_what_generate_draws_with(run, accelerator, tmp_path):
    tuned = tune(settings(run), accelerator)
    written = kept(run)
    assert GenerationConfig.read(run / "pipeline/generation_config.json").chosen == tuned.chosen
    generate([str(run), "--num-images", "1", "--output", str(tmp_path / "a")])
    asked = folder.read_json(tmp_path / "a/.request.json")
    assert kept(run) == written and asked.items() >= tuned.sampling.model_dump().items()
    assert ImagePipeline.from_pretrained(run / "pipeline").sampling == tuned.sampling


def test_a_request_that_waited_for_a_search_leaves_what_it_chose(run, accelerator, tmp_path, monkeypatch):
    """A request read the settings, waited for the search to end, and wrote the old ones back over the chosen."""
    from smalti.pipeline import generate as script

    wait, found = script.session, []

    def after_the_search(*arguments, **options):
        if not found:
            found.append(tune(settings(run), accelerator))
        return wait(*arguments, **options)

    monkeypatch.setattr(script, "session", after_the_search)
    request = script.Settings(run=str(run), num_images=2, output=str(tmp_path / "drawn"))
    script.generate(request, accelerator)
    assert GenerationConfig.read(run / "pipeline/generation_config.json").chosen == found[0].chosen


def test_the_whole_chain_once_more_draws_with_what_was_chosen(run, accelerator, tmp_path):
    """pipeline/run.py always passed its generate.yaml: run again after a search, it discarded the chosen settings."""
    (tmp_path / "generate.yaml").write_text("temperature: 0.123\nnum_images: 2\nlabels: [0, 1]\n")
    assert generate_options(tmp_path / "generate.yaml", run) == ["--config", str(tmp_path / "generate.yaml")]
    tuned = tune(settings(run), accelerator)
    arguments = generate_options(tmp_path / "generate.yaml", run)
    assert arguments == ["--num_images", "2", "--labels", "0", "1"]
    generate([str(run), *arguments, "--output", str(tmp_path / "a")])
    assert GenerationConfig.read(run / "pipeline/generation_config.json").chosen == tuned.chosen
    assert folder.read_json(tmp_path / "a/.request.json").items() >= tuned.sampling.model_dump().items()


def test_the_best_figure_is_found_among_candidates_that_are_drawn_once(run, accelerator):
    tuned = tune(settings(run), accelerator)
    assert len(tuned.figures) == tuned.chosen.candidates == 5  # start, three schedules of guidance 2, temperature
    assert len({(s.guidance, s.temperature) if s.guidance == 1 else s for s in tuned.figures}) == 5
    assert tuned.figures[tuned.found] == min(tuned.figures.values())
    report = folder.read_json(run / "pipeline/tuning.json")
    assert [row["value"] for row in report["figures"]] == list(tuned.figures.values())


def test_the_same_command_repeats_itself(run, accelerator):
    """It finds its own result, and still begins where the first search began."""
    first = tune(settings(run), accelerator)
    again = tune(settings(run), accelerator)
    assert again._replace(chosen=first.chosen) == first
    assert again.chosen.model_copy(update={"date": first.chosen.date}) == first.chosen


def test_the_search_begins_with_the_settings_kept(run, accelerator, tmp_path):
    (tmp_path / "g.yaml").write_text("temperature: 0.7\nguidance: 1.25\nnum_images: 1\n")
    generate([str(run), "--config", str(tmp_path / "g.yaml")])
    assert tune(settings(run), accelerator).chosen.start == SamplingConfig(temperature=0.7, guidance=1.25)


def test_the_test_split_is_never_read(run, accelerator):
    for path in (run / "codes").glob("test-*"):
        path.unlink()
    assert tune(settings(run), accelerator).chosen.split == "validation"


def test_an_unconditional_prior_has_no_guidance_to_search(run, accelerator):
    config = load_prior(run / "prior/model").config
    TransformerPrior(config.model_copy(update={"condition": Nothing()})).save_pretrained(run / "prior/model")
    tuned = tune(settings(run), accelerator)
    assert tuned.chosen.metric.startswith("fd_decoded_pca")
    assert [(s.guidance, s.temperature) for s in tuned.figures] == [(1, 1), (1, 0.5)]


def test_a_choice_that_was_luck_is_not_kept(run, accelerator):
    """It is best on the search's seeds and worse on fresh ones, so the start stays."""
    start, lucky, c = SamplingConfig(), SamplingConfig(temperature=0.5), settings(run)

    class Lucky(Trials):
        def draw(self, sampling, seed, bar):
            return 1.0 if sampling == start else {c.seed: 0.5, c.seed + c.images: 2.0}[seed]

    pipeline = ImagePipeline.from_run(run, start)
    trials = Lucky(c, pipeline, read_held_out(c, pipeline), Interrupt(accelerator))
    assert trials.best("temperature", [start, lucky]) == lucky
    tuned = compare_on_fresh_seeds(c, start, lucky, trials)
    assert (tuned.sampling, tuned.chosen.value, tuned.found_value) == (start, 1.0, 2.0)


def test_an_interrupted_search_has_written_nothing(run, accelerator, monkeypatch):
    def interrupted(images):
        signal.raise_signal(signal.SIGINT)
        monkeypatch.undo()
        return cells(images)

    monkeypatch.setattr("smalti.pipeline.tune.cells", interrupted)
    with pytest.raises(Interrupted, match="nothing was written; the same command begins again"):
        tune(settings(run), accelerator)
    assert not (run / "pipeline").exists()


# --------------------------------------------------------------------------------------------------------- the protocol


def test_a_protocol_stands_only_beside_the_settings_it_chose(run, accelerator, tmp_path):
    tuned = tune(settings(run), accelerator)
    (tmp_path / "g.yaml").write_text(f"temperature: {tuned.sampling.temperature}\nnum_images: 1\n")
    generate([str(run), "--config", str(tmp_path / "g.yaml"), "--output", str(tmp_path / "a")])
    assert "chosen" in kept(run)
    (tmp_path / "g.yaml").write_text("temperature: 0.7\nnum_images: 1\n")
    generate([str(run), "--config", str(tmp_path / "g.yaml"), "--output", str(tmp_path / "b")])
    assert kept(run) == {**tuned.sampling.model_dump(include=DRAWN_BY), "temperature": 0.7}
    assert beginning(run).temperature == 0.7


def test_a_protocol_goes_with_the_weights_it_was_found_with(run, accelerator):
    tuned = tune(settings(run), accelerator)
    TransformerPrior(load_prior(run / "prior/model").config).save_pretrained(run / "prior/model")
    generate([str(run), "--num-images", "1"])
    assert kept(run) == tuned.sampling.model_dump(include=DRAWN_BY)


def test_a_pipeline_keeps_its_protocol_wherever_it_is_saved(run, accelerator, tmp_path):
    tuned = tune(settings(run), accelerator)
    ImagePipeline.from_pretrained(run / "pipeline").save_pretrained(tmp_path / "copy")
    assert ImagePipeline.from_pretrained(tmp_path / "copy").chosen == tuned.chosen


@pytest.mark.parametrize(
    "key, message", [("tempreture", "tempreture; did you mean temperature"), ("chosen.by", "chosen.by")]
)
def test_a_key_that_is_none_of_ours_is_refused_by_name(run, accelerator, key, message):
    tune(settings(run), accelerator)
    written = kept(run)
    table, name = (written["chosen"], "by") if "." in key else (written, key)
    table[name] = "me"
    folder.write_json(run / "pipeline/generation_config.json", written)
    with pytest.raises(UserError, match=rf"generation_config\.json: unknown setting {message}"):
        ImagePipeline.from_pretrained(run / "pipeline")


def forget_validation(run):
    info = folder.read_json(run / "codes/codes.json")
    del info["splits"]["validation"]
    folder.write_json(run / "codes/codes.json", info)


def rename_tokenizer(run):
    info = folder.read_json(run / "codes/codes.json")
    folder.write_json(run / "codes/codes.json", {**info, "tokenizer": {"name": "other", "sha256": "f" * 64}})


@pytest.mark.parametrize(
    "harm, given, message",
    [
        (forget_validation, {}, r"must have a validation split to choose on, it has train, test"),
        (
            rename_tokenizer,
            {},
            r"written by the tokenizer other .*, not by the one of this run, .*digits/tokenizer/model",
        ),
        (lambda run: shutil.rmtree(run / "codes"), {}, r"no codes dataset .*; tokenizer/encode\.py writes one"),
        (
            lambda run: shutil.rmtree(run / "prior"),
            {},
            r"no trained model in .*prior/model; prior/train\.py \(or fit\.py\) with --run",
        ),
        (
            lambda run: None,
            {"images": 11},
            r"over at least 11 features, 10 of them classes, needs more than 11 images",
        ),
        (lambda run: None, {"temperature": (1.0, 0.0)}, r"sampling: temperature: .* give top_k 1"),
        (lambda run: None, {"top_k": (None, 17)}, r"top_k 17 is more than the 16 codes"),
    ],
)
def test_what_cannot_be_searched_is_refused_before_anything_is_drawn(run, accelerator, harm, given, message):
    harm(run)
    with pytest.raises(UserError, match=message):
        tune(settings(run).model_copy(update=given), accelerator)
    assert not (run / "pipeline").exists()


@pytest.mark.parametrize("kind", ["masked", "transformer"])
def test_settings_that_were_kept_for_another_prior_are_left_out_and_asked_ones_are_refused(run, kind):
    """The file of a run outlives its prior; nobody can leave out what they did not give."""
    given = load_prior(run / "prior/model").config
    masked = MaskedConfig(depth=1, dim=16, heads=2, dropout=0.0)
    prior = build_prior(given.model_copy(update={"architecture": masked})) if kind == "masked" else build_prior(given)
    kept = SamplingConfig(steps=8, choice_temperature=10.0, temperature=0.9)
    asked = kept.model_copy(update={"order": "halton"})  # as the shipped configs of masked priors
    found, line = carried(asked if kind == "masked" else kept, kept, prior)
    prior.check_sampling(found)
    assert found.temperature == 0.9 and found.choice_temperature == 4.5
    assert found.steps == (8 if kind == "masked" else None)
    assert "choice_temperature 10.0" in line and "generation_config.json" in line
    with pytest.raises(ValueError, match="order halton has none" if kind == "masked" else "steps is no setting"):
        prior.check_sampling(carried(asked.model_copy(update={"choice_temperature": 3.0, "steps": 5}), kept, prior)[0])


def test_a_setting_that_another_switches_off_is_told_of():
    assert not [*SamplingConfig(guidance=2.0, guidance_schedule="linear").without_effect()]
    (line,) = SamplingConfig(guidance_schedule="linear").without_effect()
    assert "guidance_schedule linear does nothing at guidance 1" in line
    (line,) = SamplingConfig(guidance=2.0, guidance_power=3.0).without_effect()
    assert "guidance_power is of guidance_schedule power-cosine" in line


@pytest.mark.parametrize("start", [SamplingConfig(order="halton"), SamplingConfig(choice_temperature=12.0)])
def test_every_candidate_of_a_masked_prior_can_be_drawn_with(run, start):
    """The order confidence alone has noise, and the shipped configs of masked priors keep another."""
    given = load_prior(run / "prior/model").config
    masked = MaskedConfig(depth=1, dim=16, heads=2, dropout=0.0)
    prior = build_prior(given.model_copy(update={"architecture": masked})).eval()
    tokenizer = ImagePipeline.from_run(run, SamplingConfig()).tokenizer
    pipeline = ImagePipeline(tokenizer, prior, start, given.tokenizer)
    found = [each for names in swept(pipeline) for each in candidates(Settings(), start, names)]
    assert {each.order for each in found} == {"confidence", "halton"} and len({*found}) > 10
    for each in found:
        pipeline.check_sampling(**each.model_dump())
    assert pipeline.check_sampling(order="random").choice_temperature == SamplingConfig().choice_temperature
