"""Going on: both stages can train longer, go on with other settings, or begin from given weights."""

import json
import shutil
from types import SimpleNamespace

import pytest
import torch
from safetensors.torch import load_file

from smalti.common import config, folder
from smalti.common.codes_info import TokenizerIdentity
from smalti.common.condition import Classes, condition_of
from smalti.common.errors import UserError
from smalti.common.history import Change, read_history, sentences, steps_by_batch, write_history
from smalti.common.origin import find_model_folder
from smalti.common.run_folder import read_metrics
from smalti.common.schedule import warmup_cosine
from smalti.pipeline.reporting.model_card import model_card
from smalti.pipeline.reporting.run_contents import gather
from smalti.prior.config import TrainConfig as PriorTraining
from smalti.prior.model import build_prior, load_prior
from smalti.prior.other_classes import class_embeddings, describe_classes
from smalti.prior.train import prior_schedule
from smalti.prior.train import train as train_prior
from smalti.prior.transformer.config import TransformerConfig
from smalti.tokenizer.bottleneck.config import GumbelConfig, ResidualConfig, VQConfig
from smalti.tokenizer.cluster import cluster
from smalti.tokenizer.config import TrainConfig as TokenizerTraining
from smalti.tokenizer.encode import Settings as EncodeSettings
from smalti.tokenizer.encode import encode
from smalti.tokenizer.kmeans.config import KMeansConfig
from smalti.tokenizer.kmeans.model import KMeansTokenizer
from smalti.tokenizer.patches.cluster_config import ClusterConfig
from smalti.tokenizer.train import tokenizer_schedule
from smalti.tokenizer.train import train as train_tokenizer
from smalti.tokenizer.vqvae.config import VQVAEConfig
from smalti.tokenizer.vqvae.model import VQVAE
from tests.conftest import prior_training, tokenizer_training
from tests.test_hub import hub  # noqa: F401 - a fixture

STAGES = {
    "tokenizer": SimpleNamespace(settings=tokenizer_training, train=train_tokenizer, lr=1e-3, error="psnr"),
    "prior": SimpleNamespace(settings=prior_training, train=train_prior, lr=3e-3, error="validation_nll"),
}


@pytest.fixture(params=STAGES)
def stage(request):
    return SimpleNamespace(name=request.param, **vars(STAGES[request.param]))


@pytest.fixture
def run(finished_run, tmp_path):
    """Return a run with six steps of each stage, saved after three and six."""
    return shutil.copytree(finished_run, tmp_path / "digits")


def contents(path):
    return {p: p.read_bytes() for p in sorted(path.rglob("*")) if p.is_file()}


def rates(run, stage):
    return {line["step"]: line["lr"] for line in read_metrics(run / stage.name / "metrics.jsonl") if "lr" in line}


# --------------------------------------------------------------------------------------------------------------- longer


def test_a_finished_training_goes_on_for_more_steps(run, stage, accelerator, capsys):
    before = read_metrics(run / stage.name / "metrics.jsonl")
    stage.train(stage.settings(run, steps=9), accelerator)
    lines = read_metrics(run / stage.name / "metrics.jsonl")
    assert lines[: len(before)] == before and {line["step"] for line in lines[len(before) :]} == {8, 9}
    cosine = {step: warmup_cosine(step - 1, peak=stage.lr, warmup=2, total=9) for step in (8, 9)}
    assert {step: rates(run, stage)[step] for step in (8, 9)} == pytest.approx(cosine), "that of the new length"
    assert config.read_yaml(run / stage.name / "config.yaml")["steps"] == 9
    told = capsys.readouterr().out
    assert "going on from step 6 of 9" in told
    rate = f"lr {warmup_cosine(6, peak=stage.lr, warmup=2, total=9):.4g} instead of 0"
    assert f"from step 6 on: steps 9 instead of 6 ({rate}" in told
    (line,) = read_history(run / stage.name)
    assert (line.step, line.setting, line.before, line.after) == (6, "steps", 6, 9)


def test_a_lengthened_training_that_was_killed_ends_in_the_same_weights(run, stage, accelerator, tmp_path):
    stage.train(stage.settings(run, steps=9), accelerator)
    killed = shutil.copytree(run, tmp_path / "killed")
    folder.remove(killed / stage.name / "state/step_00000009")
    stage.train(stage.settings(killed, steps=9), accelerator)
    for name in ("metrics.jsonl", "history.jsonl", "model/model.safetensors", "state/step_00000009/ema.safetensors"):
        assert (run / stage.name / name).read_bytes() == (killed / stage.name / name).read_bytes(), name


def test_no_more_steps_than_are_done_is_refused_with_both_numbers(run, stage, accelerator):
    """The number it had before it was lengthened is refused too: its last weights have more steps."""
    stage.train(stage.settings(run, steps=9), accelerator)
    before = contents(run)
    for steps in (4, 6):
        with pytest.raises(
            UserError, match=rf"steps {steps} is not more than the 9 that are done .*where it was 9: give a larger"
        ):
            stage.train(stage.settings(run, steps=steps), accelerator)
    changed = {path for path, content in contents(run).items() if before.get(path) != content}
    assert {path.name for path in changed} <= {"images.json"}, (
        "of the images that were read, whatever became of the command"
    )


def test_a_model_without_its_states_is_not_made_longer_from_nothing(run, stage, accelerator):
    """It would have begun anew, and replaced a trained model by one that had not seen an image."""
    shutil.rmtree(run / stage.name / "state")
    with pytest.raises(UserError, match=r"a model and no state/ to go on from, .*give another --run with --start_from"):
        stage.train(stage.settings(run, steps=9), accelerator)


def test_what_depends_on_the_length_is_said_of_every_schedule():
    gumbel = VQVAEConfig(image_size=(8, 8), channels=(8, 16), quantizer=GumbelConfig(codebook_size=16, code_dim=4))
    stacked = gumbel.model_copy(update={"quantizer": ResidualConfig(code_depth=2, each=gumbel.quantizer)})
    for model in (gumbel, stacked):
        short, long = (tokenizer_schedule(TokenizerTraining(model=model, steps=steps), 100) for steps in (100, 200))
        assert short["temperature"] == pytest.approx(1 / 16) and long["temperature"] == pytest.approx(16 ** (-2 / 3))
        assert (short["steps in which codes are revived"], long["steps in which codes are revived"]) == (80, 160)
    annealed = [prior_schedule(PriorTraining(order="annealed", warmup=10, steps=steps), 100) for steps in (100, 200)]
    assert [each["share of rows in random order"] for each in annealed] == [0.0, 1.0]
    assert annealed[0]["matrix_lr"] == 0 < annealed[1]["matrix_lr"]


def test_k_means_of_four_steps_are_those_of_two_and_two_more(tmp_path, accelerator):
    def fit(name, iterations):
        model = KMeansConfig(image_size=(8, 8), patch=2, codebook_size=8)
        return cluster(ClusterConfig(run=str(tmp_path / name), model=model, iterations=iterations), accelerator)

    fit("parts", 2)
    weights = [load_file(fit(name, 4) / "model.safetensors") for name in ("parts", "whole")]
    assert all(torch.equal(weights[0][name], weights[1][name]) for name in weights[1])
    evaluated = [line["step"] for line in read_metrics(tmp_path / "parts/tokenizer/metrics.jsonl") if "psnr" in line]
    assert evaluated == [2, 4]
    with pytest.raises(UserError, match="iterations 3 is not more than the 4 that are done"):
        fit("parts", 3)


def test_codes_of_the_shorter_tokenizer_are_refused_with_what_to_do(run, accelerator):
    """More steps give other weights than those that wrote the codes."""
    VQVAE(tokenizer_training(run).model).save_pretrained(run / "tokenizer/model")
    with pytest.raises(UserError, match=r"not by the one of this run, .*: remove their folder and encode again"):
        train_prior(prior_training(run, steps=9), accelerator)
    with pytest.raises(
        UserError, match=r"holds codes of the tokenizer .*; give another --output, or remove the folder to encode again"
    ):
        encode(EncodeSettings(run=str(run), views=2, shard_size=500, precision="fp32"), accelerator)


# ------------------------------------------------------------------------------------------------------- other settings


def test_another_learning_rate_is_taken_where_a_flag_says_so(run, stage, accelerator, capsys):
    """The advice for a diverged run, a lower lr, could only be followed by beginning anew."""
    with pytest.raises(UserError, match=rf"lr was {stage.lr} and is 0\.0001. Give --change_settings true to go on"):
        stage.train(stage.settings(run, steps=9, lr=1e-4), accelerator)
    stage.train(stage.settings(run, steps=9, lr=1e-4, weight_decay=0.0, change_settings=True), accelerator)
    assert rates(run, stage)[9] == pytest.approx(warmup_cosine(8, peak=1e-4, warmup=2, total=9))
    changed = {line.setting: (line.step, line.before, line.after) for line in read_history(run / stage.name)}
    assert changed.keys() == {"steps", "lr", "weight_decay"} and changed["lr"] == (6, stage.lr, 1e-4)
    assert f"lr 0.0001 instead of {stage.lr}" in capsys.readouterr().out
    # The same settings go on without the flag
    stage.train(stage.settings(run, steps=9, lr=1e-4, weight_decay=0.0), accelerator)
    assert len(read_history(run / stage.name)) == 3


def test_every_setting_of_the_steps_to_come_may_change(run, stage, accelerator):
    changes = {"batch_size": 8, "accumulate": 2, "ema_decay": 0.5, "clip": 0.1, "evaluate_every": 4}
    stage.train(stage.settings(run, steps=7, change_settings=True, **changes), accelerator)
    assert {line.setting for line in read_history(run / stage.name)} == {"steps", *changes}


def test_what_a_run_is_cannot_change_even_with_the_flag(run, stage, accelerator):
    before = contents(run)
    with pytest.raises(UserError, match=r"other settings: seed was 0 and is 1\. Give the same ones") as told:
        stage.train(stage.settings(run, steps=9, lr=1e-4, seed=1, change_settings=True), accelerator)
    assert "lr" not in str(told.value).partition(". Give")[0]
    with pytest.raises(UserError, match=r"seed was 0 and is 1; lr was .* \(seed cannot change in a run\)"):
        stage.train(stage.settings(run, lr=1e-4, seed=1), accelerator)
    assert contents(run) == before


def test_a_warmup_that_was_left_to_the_number_of_steps_may_be_given(run, accelerator):
    """Its null is a tenth of the steps, and not off."""
    shutil.rmtree(run / "prior")
    train_prior(prior_training(run, warmup=None), accelerator)
    train_prior(prior_training(run, warmup=3, steps=9, change_settings=True), accelerator)
    changed = {line.setting: line.after for line in read_history(run / "prior")}
    assert changed == {"steps": 9, "warmup": 3}


def test_an_optimizer_cannot_be_added_or_left_out_on_the_way(run, accelerator):
    with pytest.raises(UserError, match=r"other settings: matrix_lr was 0\.02 and is None\. Give the same ones"):
        train_prior(prior_training(run, matrix_lr=None, change_settings=True), accelerator)


def test_a_run_begun_before_these_settings_were_there_goes_on(run, stage, accelerator):
    path = run / stage.name / "config.yaml"
    older = [line for line in path.read_text().splitlines() if not line.startswith(("start_from", "change_settings"))]
    path.write_text("\n".join(older))
    stage.train(stage.settings(run), accelerator)
    assert read_history(run / stage.name) == []


def test_a_change_whose_state_was_lost_counts_from_the_one_that_is_taken(run, accelerator):
    train_prior(prior_training(run, steps=9, keep_states=9), accelerator)
    for step in (6, 9):
        folder.remove(run / f"prior/state/step_{step:08d}")
    train_prior(prior_training(run, steps=9), accelerator)
    assert [(line.step, line.after) for line in read_history(run / "prior")] == [(3, 9)]


# -------------------------------------------------------------------------------------------------------- given weights


def still(stage, run, **settings):
    """Return the settings of one step that hardly changes the weights."""
    return stage.settings(run, steps=1, lr=1e-12, **({"matrix_lr": None} if stage.name == "prior" else {}), **settings)


def test_a_training_begins_from_given_weights(run, stage, accelerator, tmp_path, capsys):
    """Its first evaluation equals their last one: no codebook is fitted anew, and the average begins there too."""
    if stage.name == "prior":
        shutil.copytree(run / "codes", tmp_path / "fine/codes")
    stage.train(still(stage, tmp_path / "fine", start_from=str(run)), accelerator)
    last = [read_metrics(r / stage.name / "metrics.jsonl")[-1] for r in (run, tmp_path / "fine")]
    assert last[1][stage.error] == pytest.approx(last[0][stage.error], rel=1e-5)
    weights = run / stage.name / "model/model.safetensors"
    (line,) = read_history(tmp_path / "fine" / stage.name)
    assert (line.setting, line.after, line.sha256) == ("start_from", str(run), folder.sha256(weights))
    assert f"begins from the weights of {run} (sha256 {line.sha256[:12]})" in capsys.readouterr().out
    assert config.read_yaml(tmp_path / "fine" / stage.name / "config.yaml")["start_from"] == str(run)


def test_the_model_is_that_of_the_weights_where_nothing_else_is_given(run, accelerator, tmp_path):
    given = {"batch_size": 16, "precision": "fp32", "steps": 1, "start_from": str(run)}
    images = tokenizer_training(run).images
    model = train_tokenizer(TokenizerTraining(run=str(tmp_path / "a"), images=images, **given), accelerator)
    assert VQVAE.from_pretrained(model).config == tokenizer_training(run).model
    shutil.copytree(run / "codes", tmp_path / "b/codes")
    settings = PriorTraining(run=str(tmp_path / "b"), model=TransformerConfig(dropout=0.5), **given)
    architecture = load_prior(train_prior(settings, accelerator)).config.architecture
    assert architecture == TransformerConfig(depth=1, dim=16, heads=2, dropout=0.5), "and what is given wins"


def test_a_run_goes_on_without_the_folder_it_began_from(run, stage, accelerator, tmp_path):
    """config.yaml holds its sizes, and its state the weights. Killed after three steps, it ends in the same weights."""
    weights, whole = shutil.copytree(run / stage.name / "model", tmp_path / "weights"), fresh(run, tmp_path)
    settings = stage.settings(whole, start_from=str(weights))
    settings = settings.model_copy(update={"model": type(settings.model)()})
    stage.train(settings, accelerator)
    killed = shutil.copytree(whole, tmp_path / "killed")
    folder.remove(killed / stage.name / "state/step_00000006")
    shutil.rmtree(weights)
    stage.train(settings.model_copy(update={"run": str(killed)}), accelerator)
    for name in ("metrics.jsonl", "history.jsonl", "model/model.safetensors"):
        assert (killed / stage.name / name).read_bytes() == (whole / stage.name / name).read_bytes(), name


@pytest.mark.parametrize("place", [".", "tokenizer", "tokenizer/model", "pipeline"])
def test_weights_are_found_in_a_model_a_stage_a_run_or_a_pipeline(run, place):
    shutil.copytree(run / "tokenizer/model", run / "pipeline/tokenizer")
    found = find_model_folder(str(run / place), "tokenizer")
    assert (found / "model.safetensors").read_bytes() == (run / "tokenizer/model/model.safetensors").read_bytes()


def test_a_folder_without_weights_is_refused_with_where_they_were_looked_for(run, tmp_path):
    with pytest.raises(
        UserError, match=r"must hold a prior, config\.json .*or in model/, prior/model/, prior/, and holds none"
    ):
        find_model_folder(str(tmp_path), "prior")
    with pytest.raises(UserError, match="there is no folder"):
        find_model_folder(str(tmp_path / "nothere"), "prior")


@pytest.mark.parametrize("whole", [True, False])
def test_weights_come_from_the_hub(run, hub, accelerator, tmp_path, whole):  # noqa: F811
    """They come from a model's repository, or from one part of a pipeline's."""
    files = {name: (run / "tokenizer/model" / name).read_bytes() for name in folder.MODEL_FILES}
    files = (
        {f"tokenizer/{name}": each for name, each in files.items()} | {"model_index.json": b"{}"} if whole else files
    )
    hub.repositories["models/me/digits"] = {"main": [files]}
    train_tokenizer(
        still(SimpleNamespace(name="tokenizer", settings=tokenizer_training), tmp_path, start_from="me/digits"),
        accelerator,
    )
    (line,) = read_history(tmp_path / "tokenizer")
    assert (line.after, line.sha256) == ("me/digits", folder.sha256(run / "tokenizer/model/model.safetensors"))


def test_weights_of_other_shapes_are_refused_by_the_tensor_and_the_setting(run, accelerator, tmp_path):
    larger = VQConfig(codebook_size=32, code_dim=4)
    model = tokenizer_training(run).model.model_copy(update={"quantizer": larger})
    with pytest.raises(
        UserError,
        match=r"quantizer\.codebook is \(16, 4\) there and \(32, 4\) here "
        r"\(quantizer\.codebook_size 16 there and 32 here",
    ):
        train_tokenizer(tokenizer_training(tmp_path, model=model, start_from=str(run)), accelerator)
    assert not (tmp_path / "tokenizer/config.yaml").exists()
    shutil.copytree(run / "codes", tmp_path / "codes")
    with pytest.raises(
        UserError, match=r"is \(.*16\) there and \(.*32\) here \(architecture\.dim 16 there and 32 here"
    ):
        train_prior(
            prior_training(tmp_path, model=TransformerConfig(depth=1, dim=32, heads=2), start_from=str(run)),
            accelerator,
        )
    with pytest.raises(
        UserError, match=r"blocks\.1\..* is absent there and .* here \(architecture\.depth 1 there and 2 here"
    ):
        train_prior(
            prior_training(tmp_path, model=TransformerConfig(depth=2, dim=16, heads=2), start_from=str(run)),
            accelerator,
        )


def test_a_prior_of_other_classes_and_another_width_is_refused_by_the_tensor_and_both_shapes(
    run, accelerator, tmp_path
):
    c = load_prior(run / "prior/model").config
    wider = c.architecture.model_copy(update={"dim": 2 * c.architecture.dim})
    theirs = c.model_copy(update={"condition": condition_of(("9", "cat")), "architecture": wider})
    build_prior(theirs).save_pretrained(tmp_path / "theirs")
    settings = prior_training(fresh(run, tmp_path), steps=1, model=c.architecture, start_from=str(tmp_path / "theirs"))
    with pytest.raises(UserError, match=r"do not fit: \S+ is \(.*32.*\) there and \(.*16.*\) here"):
        train_prior(settings, accelerator)


@pytest.mark.parametrize("names", [("9", "cat", "3"), tuple("abcdefghij"), None])
def test_a_prior_of_other_classes_gives_all_but_the_vectors_of_new_ones(run, names, accelerator, tmp_path, capsys):
    """A class of the same name keeps its vector, and so does none, which guidance needs; a number of its own does not
    make a class the same."""
    c = load_prior(run / "prior/model").config
    there = build_prior(c.model_copy(update={"condition": condition_of(names)}))
    there.save_pretrained(tmp_path / "theirs")
    settings = prior_training(fresh(run, tmp_path), steps=1, lr=1e-12, matrix_lr=None)
    here = load_prior(train_prior(settings.model_copy(update={"start_from": str(tmp_path / "theirs")}), accelerator))
    shutil.rmtree(tmp_path / "fresh/prior")
    anew = load_prior(train_prior(settings, accelerator))
    names = names or ()
    for name, weights in there.state_dict().items():
        found = here.state_dict()[name]
        if name != "class_embedding.weight":
            torch.testing.assert_close(found, weights)
    rows = [names.index(each) if each in names else None for each in map(str, range(10))]
    for row, theirs in enumerate([*rows, len(names)]):
        expected = anew.class_embedding.weight[row] if theirs is None else there.class_embedding.weight[theirs]
        torch.testing.assert_close(here.class_embedding.weight[row], expected)
    new = [str(number) for number, row in enumerate(rows) if row is None]
    assert f"{len(new)} of 10 classes begin with a new vector: {', '.join(new[:5])} and" in capsys.readouterr().out


def test_the_vector_of_a_class_that_the_other_prior_never_saw_begins_anew(run):
    """It has a name there, and no image had it: what its vector holds is nothing."""
    c = load_prior(run / "prior/model").config
    here = build_prior(c)
    names = c.condition.class_names
    there = build_prior(c.model_copy(update={"condition": Classes(names=names, absent=(3,))}))
    (weight,) = class_embeddings(here, there).values()
    own, theirs = (each.class_embedding.weight for each in (here, there))
    assert torch.equal(weight[3], own[3]) and torch.equal(weight[[0, 9, 10]], theirs[[0, 9, 10]])
    (said,) = describe_classes(here, there)
    assert said.startswith(f"1 of 10 classes begin with a new vector: {names[3]};")


def fresh(run, tmp_path):
    """Return a run that has codes and no prior."""
    shutil.copytree(run / "codes", tmp_path / "fresh/codes")
    return tmp_path / "fresh"


def test_settings_that_fit_the_weights_and_mean_something_else_are_named(run, accelerator, tmp_path, capsys):
    c = load_prior(run / "prior/model").config
    identity = TokenizerIdentity(name="other", sha256="f" * 64)
    build_prior(c.model_copy(update={"tokenizer": identity})).save_pretrained(tmp_path / "other")
    train_prior(prior_training(fresh(run, tmp_path), steps=1, start_from=str(tmp_path / "other")), accelerator)
    assert "; other settings: tokenizer.name other there and digits/tokenizer here" in capsys.readouterr().out


KMEANS = KMeansConfig(image_size=(8, 8), patch=2, codebook_size=8)


@pytest.mark.parametrize("place", ["", "tokenizer/model"])
def test_a_tokenizer_that_is_not_trained_is_refused_with_what_can_be_done_with_it(accelerator, tmp_path, place):
    """The message asked for another one, and did not say that this one can encode and carry a prior."""
    KMeansTokenizer(KMEANS).save_pretrained(tmp_path / "theirs/tokenizer/model")
    trained = "'vqvae' or 'multiscale' or 'vae' or 'vqgan' or 'vqvae2'"
    words = rf"holds a 'kmeans', and tokenizer/train\.py trains a {trained} alone: use it as it is"
    with pytest.raises(UserError, match=words) as said:
        train_tokenizer(tokenizer_training(tmp_path / "new", start_from=str(tmp_path / "theirs" / place)), accelerator)
    assert said.match(
        "tokenizer/encode.py turns images into codes with it, and prior/train.py trains a prior on those codes"
    )
    assert not (tmp_path / "new").exists()


def test_weights_of_somebody_elses_are_refused_with_how_to_make_them_a_tokenizer(run, accelerator, tmp_path):
    """For a checkpoint the message asked for its folder, and called a diffusers folder a 'None'."""
    (tmp_path / "last.ckpt").write_bytes(b"weights")
    (tmp_path / "vqvae").mkdir()
    (tmp_path / "vqvae/config.json").write_text('{"_class_name": "VQModel"}')
    for given, what in (
        ("last.ckpt", "is a file, and a model of ours is a folder"),
        ("vqvae", "holds no model of ours"),
    ):
        settings = tokenizer_training(tmp_path / "new", start_from=str(tmp_path / given))
        with pytest.raises(
            UserError, match=rf"{given} {what}: .*tokenizer/convert\.py makes a tokenizer of somebody else's"
        ):
            train_tokenizer(settings, accelerator)
    with pytest.raises(UserError, match="vqvae holds no model of ours: give one that it trained"):
        train_prior(prior_training(fresh(run, tmp_path), start_from=str(tmp_path / "vqvae")), accelerator)


def test_a_prior_begins_from_no_tokenizer(run, accelerator, tmp_path):
    with pytest.raises(UserError, match=r"holds a 'vqvae', and prior/train\.py trains a 'prior' alone"):
        train_prior(prior_training(fresh(run, tmp_path), start_from=str(run / "tokenizer/model")), accelerator)


def test_other_weights_to_begin_from_are_another_run(run, stage, accelerator):
    with pytest.raises(UserError, match="other settings: start_from was None and is"):
        stage.train(stage.settings(run, start_from=str(run), change_settings=True), accelerator)


# ---------------------------------------------------------------------------------------------------------- the history


def test_a_card_says_what_a_training_began_from_and_how_it_went_on(run, accelerator):
    began = Change(setting="start_from", after="me/digits", sha256="f" * 64)
    write_history(run / "prior", 0, [began])
    train_prior(prior_training(run, steps=9, batch_size=32, change_settings=True), accelerator)
    assert [line.setting for line in read_history(run / "prior")] == ["start_from", "steps", "batch_size"]
    card = model_card(gather(run), "prior")
    assert (
        f"It began from the weights of me/digits, SHA-256 {'f' * 64}." in card and "base_model:\n- me/digits\n" in card
    )
    assert "From step 6 on it was trained with steps 9 instead of 6, batch\\_size 32 instead of 16." in card
    assert f"| {6 * 16 + 3 * 32} |" in card, "the rows seen are those of either batch size"


def test_a_card_names_no_base_model_on_the_hub_for_what_comes_with_the_package(run):
    """A bundled pipeline stood there by its name, as if it lay on the Hub, where `smalti` may be anybody's account."""
    write_history(run / "tokenizer", 0, [Change(setting="start_from", after="smalti/digits", sha256="f" * 64)])
    card = model_card(gather(run), "tokenizer")
    assert "base_model" not in card
    assert f"It began from the weights of smalti/digits, which come with the package, SHA-256 {'f' * 64}." in card


def test_a_damaged_line_of_a_history_is_left_out(tmp_path):
    write_history(tmp_path, 3, [Change(setting="lr", before=1.0, after=2.0)])
    path = tmp_path / "history.jsonl"
    path.write_text(path.read_text() + '[1]\n{"step": "x"}\n' + json.dumps({"step": 4, "sett'": 1}) + "\n{")
    assert [line.setting for line in read_history(tmp_path)] == ["lr"]


def test_a_history_is_told_in_words_without_the_machines_folders():
    history = [
        Change(setting="start_from", after="/home/me/secret/digits", sha256="abc"),
        Change(step=5, setting="lr", before=1.0, after=0.5),
        Change(step=8, setting="batch_size", before=4, after=2),
    ]
    assert list(sentences(history)) == [
        "It began from the weights of .../digits, SHA-256 abc.",
        "From step 5 on it was trained with lr 0.5 instead of 1.0.",
        "From step 8 on it was trained with batch_size 2 instead of 4.",
    ]
    assert list(steps_by_batch(history, 10, 2)) == [(8, 4), (2, 2)]
