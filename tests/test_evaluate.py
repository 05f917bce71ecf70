"""The three evaluations: their figures agree with each other and with their inputs, and their parts resume."""

import math
import shutil
from functools import partial

import numpy as np
import PIL.Image
import pytest
import torch

from benchmarks.board import judge_peer
from benchmarks.images import LabelledImages, write_npz
from smalti.common import codes, folder
from smalti.common.codes import CodesSplit
from smalti.common.data.config import ImagesConfig
from smalti.common.data.images import open_images
from smalti.common.data.pixels import to_pil
from smalti.common.data.run_images import open_run_images
from smalti.common.errors import UserError
from smalti.common.evaluation_file import evaluation_path, read_evaluations
from smalti.common.launch import Interrupted
from smalti.common.parts import are_whole, in_parts
from smalti.common.spacing import evenly_spaced
from smalti.metrics.features_config import FeaturesConfig
from smalti.pipeline.evaluate import evaluate as evaluate_pipeline
from smalti.pipeline.evaluation import bench as pipeline_bench
from smalti.pipeline.evaluation.bench import codes_of, open_bench, read_images, written_codes
from smalti.pipeline.evaluation.cost import price
from smalti.pipeline.evaluation.judge import Drawn, RealImages, compare_features, look_up
from smalti.pipeline.reporting.model_card import data as data_of
from smalti.pipeline.reporting.provenance_sections import stage_commands
from smalti.pipeline.reporting.run_contents import gather, outdated
from smalti.prior.data import CodesRows, plain_views
from smalti.prior.evaluate import Settings as PriorSettings
from smalti.prior.evaluate import evaluate as evaluate_prior
from smalti.prior.evaluate import evenly_spaced_rows
from smalti.prior.model import load_prior
from smalti.tokenizer import evaluate as tokenizer_script
from smalti.tokenizer.evaluate import evaluate as evaluate_tokenizer
from smalti.tokenizer.model import load_tokenizer
from smalti.tokenizer.reconstruction import reconstruction_figures
from smalti.tokenizer.run_features import Extractors, features_cache
from smalti.tokenizer.train import train as train_tokenizer
from smalti.tokenizer.vqvae.model import VQVAE
from tests.conftest import NO_FEATURES, QUICK, tokenizer_training

TokenizerSettings = partial(tokenizer_script.Settings, features=QUICK)
PipelineSettings = partial(pipeline_bench.Settings, features=QUICK)


@pytest.fixture
def run(finished_run, runs, request):
    """Return a copy of the finished run that a test may write into."""
    ignored = shutil.ignore_patterns("state", "evaluation")
    return shutil.copytree(finished_run, runs / f"digits-{request.node.name}", ignore=ignored)


def figures(path):
    return folder.read_json(path)["figures"]


# ---------------------------------------------------------------------------------------------------------------- parts


def doubled(positions):
    return {"values": 2 * positions}


def test_parts_are_whole_when_all_of_this_very_plan_are_there(tmp_path, accelerator):
    in_parts(tmp_path / "parts", {"of": "this"}, 5, 2, doubled, accelerator, "test")
    assert are_whole(tmp_path / "parts", {"of": "this"}, 5, 2)
    assert not are_whole(tmp_path / "parts", {"of": "that"}, 5, 2)
    (tmp_path / "parts/000002.safetensors").unlink()
    assert not are_whole(tmp_path / "parts", {"of": "this"}, 5, 2)


def test_parts_are_computed_once_and_put_together_in_order(tmp_path, accelerator):
    asked = []

    def compute(positions):
        asked.append(positions.tolist())
        return doubled(positions)

    for _ in range(2):
        found = in_parts(tmp_path / "parts", {"of": "numbers"}, 7, 3, compute, accelerator, "test")
        assert found["values"].tolist() == [0, 2, 4, 6, 8, 10, 12]
    assert asked == [[0, 1, 2], [3, 4, 5], [6]]


def test_parts_of_another_plan_are_forgotten(tmp_path, accelerator):
    in_parts(tmp_path / "parts", {"weights": "a"}, 4, 2, doubled, accelerator, "test")
    found = in_parts(tmp_path / "parts", {"weights": "b"}, 4, 2, lambda p: {"values": p}, accelerator, "test")
    assert found["values"].tolist() == [0, 1, 2, 3]


def test_what_a_kill_left_is_gone_on_with(tmp_path, accelerator):
    """Complete parts stay; the part that was being written is computed again."""
    in_parts(tmp_path / "parts", {}, 6, 2, doubled, accelerator, "test")
    (tmp_path / "parts/000001.safetensors").unlink()
    asked = []
    found = in_parts(
        tmp_path / "parts", {}, 6, 2, lambda p: asked.append(p.tolist()) or doubled(p), accelerator, "test"
    )
    assert asked == [[2, 3]] and found["values"].tolist() == [0, 2, 4, 6, 8, 10]


def test_a_damaged_part_is_removed_and_named(tmp_path, accelerator):
    in_parts(tmp_path / "parts", {}, 4, 2, doubled, accelerator, "test")
    (tmp_path / "parts/000001.safetensors").write_bytes(b"short")
    with pytest.raises(Interrupted, match=r"000001\.safetensors was damaged and is removed"):
        in_parts(tmp_path / "parts", {}, 4, 2, doubled, accelerator, "test")
    assert in_parts(tmp_path / "parts", {}, 4, 2, doubled, accelerator, "test")["values"].tolist() == [0, 2, 4, 6]


def test_a_damaged_plan_is_begun_anew(tmp_path, accelerator):
    in_parts(tmp_path / "parts", {}, 4, 2, doubled, accelerator, "test")
    (tmp_path / "parts/plan.json").write_text("{")
    assert in_parts(tmp_path / "parts", {}, 4, 2, doubled, accelerator, "test")["values"].tolist() == [0, 2, 4, 6]


# ------------------------------------------------------------------------------------------------------------ tokenizer


def test_the_tokenizers_figures_are_those_of_its_codes_and_pictures(run, accelerator):
    path = evaluate_tokenizer(TokenizerSettings(run=str(run)), accelerator)
    found = figures(path)
    _, splits = codes.read_info(run / "codes")
    assert path == evaluation_path(run, "tokenizer", "test")
    assert found["psnr"] == pytest.approx(splits["test"]["psnr"], abs=1e-3)  # other batch sizes round differently
    assert found["usage"] == splits["test"]["usage"]
    assert found["uniform_rate"] == 16 * 4 / 64  # 4 x 4 codes of 16 for 8 x 8 pixels
    assert found["uniform_bits_per_dim"] == found["uniform_rate"] + found["distortion"]
    assert found["fd_classifier"] >= 0 and found["accuracy_images"] > 0.7  # a small classifier of 8 x 8 digits


def test_an_evaluation_says_what_repeats_it(run, accelerator):
    path = evaluate_tokenizer(TokenizerSettings(run=str(run)), accelerator, [str(run), "--batch_size", "64"])
    (value,) = read_evaluations(run)
    assert value["command"] == f"python tokenizer/evaluate.py .../{run.name} --batch_size 64"
    assert {"date", "commit", "versions", "machine", "protocol", "figures", "split", "stage"} <= value.keys()
    assert value["protocol"]["number"] == 297 and path.exists()


def test_the_same_command_again_gives_the_same_figures(run, accelerator):
    first = figures(evaluate_tokenizer(TokenizerSettings(run=str(run)), accelerator))
    part = next((run / "evaluation/.parts/tokenizer-test").glob("*.safetensors"))
    part.unlink()
    assert figures(evaluate_tokenizer(TokenizerSettings(run=str(run)), accelerator)) == first


def test_images_without_labels_have_no_classifier(run, tmp_path, accelerator, capsys):
    pictures = tmp_path / "pictures"
    for split, number in (("train", 30), ("test", 12)):
        (pictures / split).mkdir(parents=True)
        for i in range(number):
            pixels = np.random.default_rng(i).integers(0, 256, (8, 8), dtype=np.uint8)
            PIL.Image.fromarray(pixels).save(pictures / split / f"{i}.png")
    found = figures(evaluate_tokenizer(TokenizerSettings(run=str(run), source=str(pictures)), accelerator))
    assert "psnr" in found and not any(name.startswith(("fd_", "accuracy")) for name in found)
    assert "have no labels to train a classifier on" in capsys.readouterr().err


def test_a_split_there_is_not_is_named(run, accelerator):
    with pytest.raises(UserError, match="there is no split 'tset'; the images have train, validation, test"):
        evaluate_tokenizer(TokenizerSettings(run=str(run), split="tset"), accelerator)


# ---------------------------------------------------------------------------------------------------------------- prior


def test_the_priors_figures_are_those_of_log_prob(run, accelerator):
    found = figures(evaluate_prior(PriorSettings(run=str(run)), accelerator))
    data, prior = codes.load_codes(run / "codes"), load_prior(run / "prior/model")
    rows = CodesRows(plain_views(data.splits["test"], data.info), prior.config)
    batch = rows[torch.arange(len(rows)), torch.arange(len(rows))]
    nll = -prior.log_prob(batch.codes, batch.condition).mean().item() / 16
    assert found["nll"] == pytest.approx(nll, rel=1e-5)
    assert found["uniform_nll"] == math.log(16)
    assert found["bits_per_image"] == pytest.approx(16 * found["nll"] / math.log(2))
    assert found["gap"] == found["nll"] - found["train_nll"]


def test_what_codes_cost_by_class_and_by_place_is_their_cost(run, accelerator):
    found = figures(evaluate_prior(PriorSettings(run=str(run)), accelerator))
    assert np.mean(found["by_place"]) == pytest.approx(found["nll"], rel=1e-6) and np.shape(found["by_place"]) == (4, 4)
    labels = codes.load_codes(run / "codes").splits["test"].condition[::2]  # two views an image
    shares = np.bincount(labels, minlength=10) / len(labels)
    assert shares @ list(found["by_class"].values()) == pytest.approx(found["nll"], rel=1e-6)


# ------------------------------------------------------------------------------------------------------------- pipeline


@pytest.fixture(scope="module")
def judged(finished_run, runs, accelerator):
    """Return a run with all of its evaluations, and the figures of its pipeline."""
    run = runs / "judged"
    shutil.copytree(finished_run, run, ignore=shutil.ignore_patterns("state", "evaluation"))
    evaluate_tokenizer(TokenizerSettings(run=str(run)), accelerator)
    evaluate_prior(PriorSettings(run=str(run)), accelerator)
    path = evaluate_pipeline(PipelineSettings(run=str(run), images=200, priced=297, neighbours=50), accelerator)
    return run, figures(path)


def test_the_three_evaluations_agree(judged):
    run, found = judged
    of = {value["stage"]: value["figures"] for value in read_evaluations(run)}
    assert found["distortion"] == pytest.approx(of["tokenizer"]["distortion"], rel=1e-5)  # batches of another size
    assert found["uniform_rate"] == pytest.approx(of["tokenizer"]["uniform_rate"], rel=1e-12)
    label = math.log2(10) / 64
    assert found["learned_rate"] == pytest.approx(of["prior"]["bits_per_image"] / 64 + label, rel=1e-5)
    assert found["independent_rate"] == pytest.approx(of["prior"]["independent_nll"] * 16 / math.log(2) / 64, rel=1e-9)
    for prior in ("uniform", "independent", "learned"):
        assert found[f"{prior}_bits_per_dim"] == pytest.approx(found["distortion"] + found[f"{prior}_rate"], rel=1e-12)


def test_images_of_other_classes_than_the_priors_count_by_name(finished_run, accelerator, tmp_path, capsys):
    """With a decoder of other images and a copied prior their numbers were taken for its classes."""
    data = tmp_path / "pictures"
    split = open_images(ImagesConfig(), (8, 8), 1).splits["train"]
    for position in range(120):
        place = data / ("train", "test")[position % 2] / ("even", "3")[position // 2 % 2]
        place.mkdir(parents=True, exist_ok=True)
        to_pil(split.read(torch.tensor([position])).images)[0].save(place / f"{position}.png")
    run = tmp_path / "tuned"
    given = {"start_from": str(finished_run), "train": "decoder", "images": ImagesConfig(source=str(data))}
    train_tokenizer(tokenizer_training(run, steps=1, **given), accelerator)
    for stage in ("codes", "prior"):
        shutil.copytree(finished_run / stage, run / stage)
    bench = open_bench(PipelineSettings(run=str(run), images=50), accelerator)
    assert "the run's images have the classes 3, even, and the prior draws 0, 1, 2, 3" in capsys.readouterr().err
    assert set(bench.split.labels.tolist()) == {3, -1} and len(bench.split.labels) == 60
    assert (bench.split.read(torch.arange(60)).labels.numpy() == bench.split.labels).all()
    found = figures(evaluate_pipeline(PipelineSettings(run=str(run), images=50, neighbours=0), accelerator))
    assert "precision" in found and not found.keys() & {"class_agreement", "classification_accuracy_score"}
    contents = gather(run)
    (told,) = [line for line in outdated(contents) if "was trained last on the images of" in line]
    assert ".../pictures" in told and contents.copied and not gather(finished_run).copied
    _, copying, drawing = stage_commands(contents)
    assert copying.startswith('cp -r "$run/codes" "$run/prior" "$again/"') and "generate.py" in drawing
    card = "".join(data_of(contents))
    assert "| train | 1,419 |" in card and "was trained last on other images" in card


def test_samples_are_judged_and_shown(judged):
    run, found = judged
    names = {"fd_classifier", "fd_classifier_train", "kernel_distance", "precision", "recall", "density", "coverage"}
    names |= {"class_agreement", "classifier_accuracy", "classification_accuracy_score", "memorised_pixels"}
    assert names | {"memorised_features", "memorised_codes"} <= found.keys()
    for what in ("samples", "neighbours"):
        assert PIL.Image.open(run / f"evaluation/pipeline-test-{what}.png").size[0] > 100


def test_the_picture_of_neighbours_goes_where_none_are_looked_up(judged, runs, accelerator):
    run = shutil.copytree(judged[0], runs / "alone")
    path = evaluate_pipeline(PipelineSettings(run=str(run), images=200, priced=297, neighbours=0), accelerator)
    assert "memorised_pixels" not in figures(path) and not (run / "evaluation/pipeline-test-neighbours.png").exists()


def test_the_classifier_is_trained_as_the_settings_say(judged, accelerator):
    run, _ = judged
    found = {}
    for lr in (4e-3, 1e-9):
        recipe = QUICK.classifier.model_copy(update={"peak_lr": lr, "epochs": 1})
        settings = pipeline_bench.Settings(run=str(run), features=FeaturesConfig(classifier=recipe))
        classifier = open_bench(settings, accelerator).eyes.classifier
        assert classifier.config.recipe == recipe
        found[lr] = classifier.accuracy
    assert found[1e-9] < 0.5 < found[4e-3]


def test_a_sampler_of_training_images_is_found_out(judged, accelerator):
    """If it draws training images, all of them count as copies in pixels, features and codes."""
    run, _ = judged
    bench = open_bench(PipelineSettings(run=str(run)), accelerator)
    train, held = (read_images(bench.images.splits[name], torch.arange(200)) for name in ("train", "test"))
    features, encode = bench.eyes.features, bench.pipeline.encode_pixels
    some = train.images[:60]
    copies = Drawn(some, encode(some), torch.zeros(60), features(some))
    real = RealImages(train.images, held.images, features(train.images), encode(*train), encode(*held))
    found, rows = look_up(copies, real, features)
    assert found == {"memorised_pixels": 1.0, "memorised_features": 1.0, "memorised_codes": 1.0}
    assert torch.equal(rows[:10], rows[10:20])


def test_codes_are_read_from_the_disk_where_they_are_of_these_images(judged, accelerator):
    run, _ = judged
    bench = open_bench(PipelineSettings(run=str(run), images=0), accelerator)
    for split in (bench.images.splits["train"], bench.split):
        positions = evenly_spaced(30, len(split))
        images = read_images(split, positions)
        encoded = bench.pipeline.encode_pixels(*images)  # in fp32, as the run was encoded
        found = written_codes(bench, split, positions)
        assert found is not None and torch.equal(found, encoded)
        others = bench._replace(data=bench.data._replace(splits={}))
        assert written_codes(others, split, positions) is None
        assert torch.equal(codes_of(others, split, positions, images), encoded)


def test_as_many_images_are_priced_as_are_drawn(run, accelerator):
    """Bits of a few images are those of the same images among all, and the protocol says how many they were."""
    drawn = open_bench(PipelineSettings(run=str(run), images=20, features=NO_FEATURES), accelerator)
    few, protocol = price(drawn)
    assert protocol["priced"] == 20 and few["bits_per_dim_error"] > 0
    every, protocol = price(drawn._replace(c=drawn.c.model_copy(update={"images": None})))
    assert protocol["priced"] == 297 and abs(few["distortion"] - every["distortion"]) < 5 * few["bits_per_dim_error"]


def test_a_stochastic_tokenizer_has_its_bounds(tmp_path, accelerator):
    """For gumbel the ELBO is looser than the bound of several draws, for each of the three priors."""
    from smalti.prior.train import train as train_prior
    from smalti.tokenizer.bottleneck.config import GumbelConfig
    from smalti.tokenizer.encode import Settings as EncodeSettings
    from smalti.tokenizer.encode import encode
    from smalti.tokenizer.train import train as train_tokenizer
    from smalti.tokenizer.vqvae.config import VQVAEConfig
    from tests.conftest import prior_training, tokenizer_training

    run = tmp_path / "gumbel"
    model = VQVAEConfig(image_size=(8, 8), channels=(8, 16), quantizer=GumbelConfig(codebook_size=16, code_dim=4))
    train_tokenizer(tokenizer_training(run, model=model), accelerator)
    encode(EncodeSettings(run=str(run), precision="fp32"), accelerator)
    train_prior(prior_training(run), accelerator)
    found = figures(evaluate_pipeline(PipelineSettings(run=str(run), images=0, importance_samples=4), accelerator))
    for prior in ("uniform", "independent", "learned"):
        assert found[f"{prior}_importance_bits_per_dim"] < found[f"{prior}_elbo_bits_per_dim"]
    assert load_tokenizer(run / "tokenizer/model").stochastic and "fd_classifier" not in found


def test_too_few_images_to_judge_are_refused_before_a_classifier_is_trained(run, accelerator, tmp_path):
    run = shutil.copytree(run, tmp_path / "alone/digits")
    with pytest.raises(
        UserError, match=r"at least 10 images on either side, got 3 to draw and 297 held out; --images 0"
    ):
        evaluate_pipeline(PipelineSettings(run=str(run), images=3), accelerator)
    assert not features_cache(run).exists()


def test_training_images_are_not_looked_up_among_themselves(run, accelerator):
    found = figures(
        evaluate_pipeline(PipelineSettings(run=str(run), split="train", images=150, neighbours=20), accelerator)
    )
    assert "fd_classifier" in found and not any(name.startswith("memorised") for name in found)


def test_without_samples_no_picture_of_them_is_left(run, accelerator):
    """The report showed pictures of an earlier evaluation beside figures that were gone."""
    picture = run / "evaluation/pipeline-test-samples.png"
    picture.parent.mkdir()
    picture.write_bytes(b"old")
    evaluate_pipeline(PipelineSettings(run=str(run), images=0), accelerator)
    assert not picture.exists()


def test_codes_of_another_tokenizer_are_refused(run, accelerator):
    written = folder.read_json(run / "codes/codes.json")
    written["tokenizer"] = {"name": "another", "sha256": "f" * 64}
    folder.write_json(run / "codes/codes.json", written)
    for evaluate, settings in ((evaluate_prior, PriorSettings), (evaluate_pipeline, PipelineSettings)):
        with pytest.raises(UserError, match="the codes were written by the tokenizer"):
            evaluate(settings(run=str(run)), accelerator)


def test_codes_of_an_earlier_tokenizer_of_the_run_are_refused(run, accelerator):
    """The prior fits them, and its figures would stand beside reconstructions of another tokenizer."""
    VQVAE(load_tokenizer(run / "tokenizer/model").config).save_pretrained(run / "tokenizer/model")
    with pytest.raises(UserError, match=r"not by the one of this run, .*: remove their folder and encode again"):
        evaluate_prior(PriorSettings(run=str(run)), accelerator)


def test_codes_of_a_run_without_a_tokenizer_are_evaluated(run, accelerator):
    shutil.rmtree(run / "tokenizer")
    assert "nll" in figures(evaluate_prior(PriorSettings(run=str(run)), accelerator))


def test_the_images_are_read_as_the_tokenizer_read_them(finished_run):
    tokenizer = load_tokenizer(finished_run / "tokenizer/model")
    split = open_run_images(finished_run / "tokenizer", tokenizer.config).splits["test"]
    assert split.read(torch.arange(2)).images.shape == (2, 1, 8, 8)  # their own size, although training shifts them


# ------------------------------------------------------------------------------------------------- the board's peer row


def test_a_perfect_peer_gets_the_figures_of_perfection(run, tmp_path, accelerator):
    """Its samples and reconstructions are test images. For a time `judge_peer` called `features_of` and
    `ask_classifier` with outdated signatures, and no test noticed: no peer's row could be measured again."""
    bench = open_bench(PipelineSettings(run=str(run)), accelerator)
    test = bench.split

    def write(name, positions):
        images = test.read(positions).images.permute(0, 2, 3, 1)
        write_npz(tmp_path / name, LabelledImages(images, torch.from_numpy(test.labels[positions])))

    write("samples.npz", evenly_spaced(20, len(test)))
    write("reconstructions.npz", evenly_spaced(len(test), len(test)))
    found = judge_peer(tmp_path, run, QUICK)
    assert found["psnr"] == pytest.approx(100) and found["ssim"] == pytest.approx(1, abs=1e-5)
    assert found["reconstruction_fd_classifier"] == pytest.approx(0, abs=1e-2)
    assert found["precision"] == found["recall"] == 1 and found["class_agreement"] > 0.8
    assert {
        "kernel_distance",
        "density",
        "coverage",
        "classification_accuracy_score",
        "classifier_accuracy",
    } < found.keys()


# --------------------------------------------------------------------------------------- sets that are sorted by class


@pytest.mark.parametrize(("number", "of"), [(4, 10), (10, 10), (12, 10), (7, 13), (0, 3), (3, 0)])
def test_evenly_spaced_places_begin_at_0_and_are_as_far_apart_as_they_can_be(number, of):
    places = evenly_spaced(number, of)
    assert len(places) == min(number, of) and places.unique().numel() == len(places)
    gaps = places.diff(append=torch.tensor([of])) if len(places) else torch.zeros(1)
    assert gaps.max() - gaps.min() <= 1 and (not len(places) or places[0] == 0)


def test_neighbourhoods_are_of_all_classes_of_a_sorted_set(monkeypatch):
    """Two sets of the same ten clusters, one after the other; of the first fifth alone recall would be a fifth."""
    monkeypatch.setattr("smalti.pipeline.evaluation.judge.NEIGHBOURHOODS", 200)
    torch.manual_seed(0)
    real, drawn, train = (torch.randn(n, 4) + 20 * (torch.arange(n)[:, None] // (n // 10)) for n in (200, 1000, 200))
    assert compare_features(drawn, real, train, "fd")["recall"] > 0.8


def test_training_rows_beside_held_out_ones_are_of_all_of_the_split():
    n = 19
    rows = np.arange(n)
    split = CodesSplit(np.zeros((n, 2), np.int64), None, rows, None)
    assert evenly_spaced_rows(split, 10).rows.tolist() == [0, 1, 3, 5, 7, 9, 11, 13, 15, 17]


def test_images_without_a_label_count_for_no_accuracy(finished_run):
    tokenizer = load_tokenizer(finished_run / "tokenizer/model")
    found = {
        "squared_error": torch.ones(4),
        "ssim": torch.ones(4),
        "known": torch.tensor([1, 0, 0, 0], dtype=torch.uint8),
        "known_again": torch.tensor([1, 1, 0, 0], dtype=torch.uint8),
        "labelled": torch.tensor([True, True, False, False]),
    }
    judge = Extractors(None, torch.nn.Identity())
    figures = reconstruction_figures(found, tokenizer, judge, 1)
    assert figures["accuracy_images"] == 0.5 and figures["accuracy_reconstructions"] == 1.0
    found["labelled"] = torch.zeros(4, dtype=torch.bool)
    assert "accuracy_images" not in reconstruction_figures(found, tokenizer, judge, 1)
