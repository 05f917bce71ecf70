"""Both trainings and encoding, for six steps on the digits: a resumed run equals an uninterrupted one, and nothing is
lost."""

import json
import shutil

import numpy as np
import PIL.Image
import pytest
import torch
from safetensors.torch import load_file

from smalti.common import codes, config, folder
from smalti.common.data.config import ImagesConfig
from smalti.common.errors import UserError
from smalti.common.finite import MOST_IN_A_ROW, MicroBatch, SkippedSteps
from smalti.common.plots import save_curves
from smalti.common.run_folder import read_metrics
from smalti.pipeline.generate import Settings as Generation
from smalti.pipeline.generate import generate
from smalti.prior.train import train as train_prior
from smalti.tokenizer.bottleneck.config import BottleneckConfig, VQConfig
from smalti.tokenizer.criterion.likelihood.config import LikelihoodConfig
from smalti.tokenizer.encode import Settings as EncodeSettings
from smalti.tokenizer.encode import encode
from smalti.tokenizer.train import train as train_tokenizer
from smalti.tokenizer.vqvae.config import VQVAEConfig
from smalti.tokenizer.vqvae.model import VQVAE
from tests.conftest import prior_training, tokenizer_training


def same_files(a, b, *names):
    return all((a / name).read_bytes() == (b / name).read_bytes() for name in names)


RESUMABLE = ("metrics.jsonl", "model/model.safetensors", "state/step_00000006/ema.safetensors")


def test_a_resumed_tokenizer_is_the_uninterrupted_one_bit_for_bit(finished_run, tmp_path, accelerator):
    """After a kill past step 3, resuming undoes what the killed run wrote after its last state."""
    shutil.copytree(finished_run, tmp_path / "killed")
    folder.remove(tmp_path / "killed/tokenizer/state/step_00000006")
    settings = tokenizer_training(finished_run)
    folder.remove(tmp_path / "killed/tokenizer/config.yaml")  # names the other folder
    train_tokenizer(settings.model_copy(update={"run": str(tmp_path / "killed")}), accelerator)
    assert same_files(finished_run / "tokenizer", tmp_path / "killed/tokenizer", *RESUMABLE)


def test_a_resumed_prior_is_the_uninterrupted_one_bit_for_bit(finished_run, tmp_path, accelerator):
    """This holds for both optimizers, Muon and AdamW."""
    shutil.copytree(finished_run, tmp_path / "killed")
    folder.remove(tmp_path / "killed/prior/state/step_00000006")
    folder.remove(tmp_path / "killed/prior/config.yaml")
    train_prior(prior_training(tmp_path / "killed"), accelerator)
    assert same_files(finished_run / "prior", tmp_path / "killed/prior", *RESUMABLE)


def test_accumulated_gradients_are_those_of_one_large_batch(finished_run, tmp_path, accelerator):
    """They agree up to the fp32 rounding of sums in another order, which six steps of AdamW enlarge."""
    train_tokenizer(tokenizer_training(tmp_path / "parts", accumulate=4), accelerator)
    whole, parts = (read_metrics(run / "tokenizer/metrics.jsonl") for run in (finished_run, tmp_path / "parts"))
    assert [line["step"] for line in whole] == [line["step"] for line in parts]
    for a, b in zip(whole, parts, strict=True):
        for name in {"loss", "reconstruction_loss", "psnr"} & a.keys():
            assert a[name] == pytest.approx(b[name], rel=1e-3)


def test_every_loss_term_is_logged_and_beta_multiplies_the_commitment_alone(finished_run):
    line = next(line for line in read_metrics(finished_run / "tokenizer/metrics.jsonl") if "loss" in line)
    expected = line["reconstruction_loss"] + line["codebook_loss"] + 0.25 * line["commitment_loss"]
    assert line["loss"] == pytest.approx(expected, rel=1e-6)


def test_every_evaluation_reports_psnr_usage_and_perplexity(finished_run):
    lines = [line for line in read_metrics(finished_run / "tokenizer/metrics.jsonl") if "psnr" in line]
    assert [line["step"] for line in lines] == [3, 6]
    for line in lines:
        assert 0 < line["usage"] <= 1 and 1 <= line["perplexity"] <= 16 and line["psnr"] > 5


def test_the_best_prior_by_validation_nll_is_kept(finished_run, tmp_path, accelerator):
    """A learning rate ruins the weights after the first evaluation; model/ keeps those of the first."""
    shutil.copytree(finished_run / "codes", tmp_path / "codes")
    train_prior(
        prior_training(tmp_path, steps=40, lr=3.0, matrix_lr=None, warmup=30, evaluate_every=1, ema_decay=0.0),
        accelerator,
    )
    values = {
        x["step"]: x["validation_nll"] for x in read_metrics(tmp_path / "prior/metrics.jsonl") if "validation_nll" in x
    }
    figures = folder.read_json(tmp_path / "prior/figures.json")
    assert figures["best_step"] == min(values, key=values.get) < 40
    assert figures["validation_nll"] == pytest.approx(min(values.values()), rel=1e-5)  # model/ holds the best weights


def test_a_run_of_other_settings_is_refused_by_their_names(finished_run, accelerator):
    with pytest.raises(UserError, match=r"run of other settings: lr was 0\.001 and is 0\.002"):
        train_tokenizer(tokenizer_training(finished_run, lr=2e-3), accelerator)
    train_tokenizer(tokenizer_training(finished_run, log_every=5), accelerator)  # it changes no result


def test_a_run_whose_data_have_changed_is_refused(finished_run, tmp_path, accelerator):
    shutil.copytree(finished_run, tmp_path / "run")
    for stage in ("tokenizer", "prior"):
        folder.remove(tmp_path / "run" / stage / "config.yaml")  # names the other folder
        path = tmp_path / "run" / stage / "state/step_00000006/state.json"
        path.write_text(
            json.dumps(
                {**json.loads(path.read_text()), "info": {**json.loads(path.read_text())["info"], "data": "0" * 64}}
            )
        )
    with pytest.raises(UserError, match=r"images of fingerprint 0+ and these are .*they have changed"):
        train_tokenizer(tokenizer_training(tmp_path / "run"), accelerator)
    with pytest.raises(UserError, match=r"codes of fingerprint 0+ and these are .*they have changed"):
        train_prior(prior_training(tmp_path / "run"), accelerator)


def test_views_that_would_repeat_images_are_refused(finished_run, tmp_path, accelerator):
    train_tokenizer(tokenizer_training(tmp_path, images=ImagesConfig(flip=True), steps=1), accelerator)
    with pytest.raises(UserError, match="views 3 would repeat images: with shift 0 there are 2 different ones"):
        encode(EncodeSettings(run=str(tmp_path), views=3), accelerator)


def test_a_codebook_larger_than_the_data_is_refused(tmp_path, accelerator):
    c = tokenizer_training(tmp_path)
    quantizer = c.model.quantizer.model_copy(update={"codebook_size": 30_000})
    with pytest.raises(UserError, match="codebook_size 30000 is more than the 1419 x 4 x 4 = 22704 vectors"):
        train_tokenizer(
            c.model_copy(update={"model": c.model.model_copy(update={"quantizer": quantizer})}), accelerator
        )


def test_an_encoded_image_is_what_the_tokenizer_says_of_it(finished_run):
    """Every split and view is compared, in the order of the rows; encoding includes decoding back."""
    from smalti.common.data.images import open_images
    from smalti.common.data.pixels import to_float
    from smalti.tokenizer.vqvae.model import VQVAE

    c = tokenizer_training(finished_run)
    tokenizer = VQVAE.from_pretrained(finished_run / "tokenizer/model")
    images = open_images(c.images, c.model.image_size, 1)
    info, splits = codes.load_codes(finished_run / "codes")
    assert set(splits) == {"train", "validation", "test"} and info.condition.class_names == tuple("0123456789")
    for name, split in splits.items():
        source = images.splits[name]
        plain = split.codes[:: info.views]
        batch = source.read(np.arange(len(source)))
        expected = tokenizer.encode(to_float(batch.images)).flatten(1)
        agree = (expected.numpy() == plain).mean()
        assert agree > 0.999, "only rounding between batch shapes may differ"
        assert np.array_equal(split.condition[:: info.views], batch.labels) and np.array_equal(
            split.rows[::2], batch.rows
        )


def test_an_interrupted_encode_ends_with_the_same_bytes(finished_run, tmp_path, accelerator):
    shutil.copytree(finished_run, tmp_path / "killed")
    (tmp_path / "killed/codes/codes.json").unlink()
    (tmp_path / "killed/codes/train-00001-of-00003.parquet").unlink()
    settings = EncodeSettings(run=str(finished_run), views=2, shard_size=500, precision="fp32")
    encode(settings.model_copy(update={"output": str(tmp_path / "killed/codes")}), accelerator)
    names = [path.name for path in (finished_run / "codes").iterdir()]
    assert "train-00001-of-00003.parquet" in names
    assert same_files(finished_run / "codes", tmp_path / "killed/codes", *names)


def test_a_damaged_shard_or_summary_is_written_again_by_the_same_command(finished_run, tmp_path, accelerator):
    shutil.copytree(finished_run / "codes", tmp_path / "codes")
    before = {path.name: path.read_bytes() for path in (tmp_path / "codes").iterdir()}
    settings = EncodeSettings(
        run=str(finished_run), output=str(tmp_path / "codes"), views=2, shard_size=500, precision="fp32"
    )
    for name, damage in (("train-00001-of-00003.parquet", b"PAR1"), ("codes.json", b"{")):
        (tmp_path / "codes" / name).write_bytes(damage)
        encode(settings, accelerator)
        assert before == {path.name: path.read_bytes() for path in (tmp_path / "codes").iterdir()}


def test_a_damaged_model_of_a_finished_run_is_written_again_from_its_state(finished_run, tmp_path, accelerator):
    shutil.copytree(finished_run, tmp_path / "run")
    weights = tmp_path / "run/tokenizer/model/model.safetensors"
    whole = weights.read_bytes()
    weights.write_bytes(whole[:1000])
    train_tokenizer(tokenizer_training(tmp_path / "run"), accelerator)
    assert weights.read_bytes() == whole


def test_a_batch_larger_than_the_data_is_refused(tmp_path, accelerator):
    with pytest.raises(UserError, match="batch_size 100000 is more than the 1343 training images; lower it"):
        train_tokenizer(
            tokenizer_training(tmp_path, batch_size=100_000, images=ImagesConfig(validation_share=0.1)), accelerator
        )


def test_the_decode_back_check_agrees_with_the_training_evaluation(finished_run):
    """Codes from the disk reach the PSNR that validation reported for the same weights."""
    last = [line for line in read_metrics(finished_run / "tokenizer/metrics.jsonl") if "psnr" in line][-1]
    check = json.loads((finished_run / "codes/codes.json").read_text())["splits"]["validation"]
    assert check["psnr"] == pytest.approx(last["psnr"], abs=0.01) and check["psnr_images"] == check["images"]


def test_a_split_of_one_row_more_than_a_batch_is_checked(finished_run, tmp_path, accelerator):
    """257 = 256 + 1: the last batch of the check had one row, was indexed by a tensor of one, and crashed after all
    encoding."""
    pictures = tmp_path / "pictures"
    for split, number in (("train", 40), ("validation", 257)):
        (pictures / split).mkdir(parents=True)
        for i in range(number):
            PIL.Image.new("L", (8, 8), i % 256).save(pictures / split / f"{i:03d}.png")
    settings = EncodeSettings(
        run=str(finished_run), source=str(pictures), output=str(tmp_path / "codes"), precision="fp32"
    )
    encode(settings, accelerator)
    splits = folder.read_json(tmp_path / "codes/codes.json")["splits"]
    assert (splits["validation"]["images"], splits["validation"]["psnr_images"]) == (257, 257)


def test_weights_that_are_not_finite_never_replace_good_ones(tmp_path, accelerator):
    """A learning rate of 1e30 ends in NaN; later steps are skipped, the run stops, and saves none of it."""
    c = tokenizer_training(
        tmp_path, lr=1e30, warmup=0, steps=20, log_every=20, save_every=2, evaluate_every=2, clip=1e30
    )
    with pytest.raises(
        UserError, match=r"5 steps in a row were not finite \(.*encoder's output is NaN or Inf for \d+ of 16 rows"
    ):
        train_tokenizer(c, accelerator)
    assert not list((tmp_path / "tokenizer").glob("state/*")) and not (tmp_path / "tokenizer/model").exists()


def test_codes_of_a_tokenizer_that_has_diverged_are_refused():
    """Some code is nearest to NaN: encode wrote it everywhere, with 6 dB and a usage of one code, and ended well."""
    tokenizer = VQVAE(VQVAEConfig(image_size=(8, 8), channels=(8,), quantizer=VQConfig(codebook_size=4, code_dim=2)))
    tokenizer.encoder[0].weight.data[:] = torch.nan
    with pytest.raises(UserError, match="output is NaN or Inf for 3 of 3 images: its weights have diverged"):
        tokenizer.encode(torch.zeros(3, 1, 8, 8))


def part(z_e: torch.Tensor, **losses: torch.Tensor) -> MicroBatch:
    return MicroBatch("the encoder's output", z_e, losses, rows=torch.arange(10, 10 + len(z_e)))


def two_layers(**gradients: float) -> torch.nn.Module:
    """Return two layers with one weight each and these gradients."""
    model = torch.nn.Sequential()
    for name in ("first", "second"):
        model.add_module(name, torch.nn.Linear(1, 1, bias=False))
        model.get_submodule(name).weight.grad = torch.full((1, 1), gradients.get(name, 1.0))
    return model


NAN, ONE = torch.tensor(torch.nan), torch.tensor(1.0)


def test_a_prior_that_is_worse_than_independent_codes_is_said_to_be(finished_run, tmp_path, accelerator, capsys):
    """The two figures stood side by side, and nobody said what they mean."""
    for steps in (2, 60):
        run = shutil.copytree(finished_run, tmp_path / str(steps), ignore=shutil.ignore_patterns("prior"))
        train_prior(prior_training(run, steps=steps, evaluate_every=steps, save_every=steps, lr=3e-2), accelerator)
        said = capsys.readouterr().out
        assert ("the prior is worse than independent codes" in said) == (steps == 2), said


def test_a_step_that_is_not_finite_is_skipped_counted_and_named(capsys):
    """It names the first cause: an output with its rows, or a loss; and the layer where the backward pass first met
    it."""
    skipped, good, bad = SkippedSteps(), torch.zeros(3, 2, 1, 1), torch.zeros(3, 2, 1, 1)
    bad[1] = torch.inf
    both, early = two_layers(first=torch.nan, second=torch.nan), two_layers(first=torch.inf)
    assert skipped.clip(1, two_layers(), 1.0, [part(good, loss=ONE)])
    assert not skipped.clip(2, both, 1.0, [part(good, loss=ONE), part(bad, loss=NAN)])
    assert not skipped.clip(3, both, 1.0, [part(good, regularizer=NAN)])
    assert not skipped.clip(4, early, 1.0, [part(good, loss=ONE)])
    assert capsys.readouterr().err.splitlines() == [
        "step 2 skipped: the encoder's output is NaN or Inf for 1 of 3 rows of the batch, rows 11 of train; "
        "the first gradient that is not is second.weight",
        "step 3 skipped: regularizer is nan; the first gradient that is not is second.weight",
        "step 4 skipped: every loss is finite; the first gradient that is not is first.weight",
    ]
    assert (skipped.total, skipped.in_a_row) == (3, 3)
    assert early.second.weight.grad == 1, "to clip by a norm of NaN would have made every gradient NaN"


def test_a_gradient_is_clipped_to_its_norm():
    model = two_layers(first=3.0, second=4.0)
    assert SkippedSteps().clip(1, model, 1.0, [])
    assert [layer.weight.grad.item() for layer in model] == pytest.approx([0.6, 0.8], rel=1e-5)


def test_only_skipped_steps_in_a_row_stop_a_run():
    skipped, parts = SkippedSteps(), [part(torch.zeros(1, 2, 1, 1))]
    for step in range(20):
        assert skipped.clip(step, two_layers(first=torch.nan if step % 2 else 1.0), 1.0, parts) == (step % 2 == 0)
    assert skipped.total == 10
    with pytest.raises(UserError, match="5 steps in a row were not finite"):
        for step in range(MOST_IN_A_ROW):
            skipped.clip(step, two_layers(first=torch.nan), 1.0, parts)


def test_a_prior_that_diverges_stops_with_its_last_good_state_whole(finished_run, tmp_path, accelerator):
    shutil.copytree(finished_run / "codes", tmp_path / "codes")
    ruinous = {
        "steps": 30,
        "lr": 1e30,
        "matrix_lr": None,
        "clip": 1e30,
        "ema_decay": 0.0,
        "save_every": 1,
        "evaluate_every": 1,
    }
    with pytest.raises(UserError, match=r"5 steps in a row were not finite \(the NLL is NaN or Inf for \d+ of 16 rows"):
        train_prior(prior_training(tmp_path, **ruinous), accelerator)
    for path in tmp_path.glob("prior/state/step_*/model.safetensors"):
        assert all(tensor.isfinite().all() for tensor in load_file(path).values())


OTHER_TESTS = {"vq", "vq_ema"}  # take these through the chain
SMALL = {  # settings of a small codebook; a kind that is not here is trained with its own
    "gumbel": {"codebook_size": 16, "code_dim": 4},
    "simvq": {"codebook_size": 16, "code_dim": 4},
    "fsq": {"levels": [4, 3]},
    "lfq": {"bits": 4},
    "residual": {"code_depth": 2, "each": {"kind": "vq", "codebook_size": 16, "code_dim": 4}},
}


@pytest.mark.parametrize("kind", sorted(BottleneckConfig.kinds.keys() - OTHER_TESTS))
def test_every_quantizer_passes_through_the_whole_chain_and_resumes(kind, tmp_path, accelerator):
    """Three steps and three more equal six steps bit for bit; then come codes, prior and images."""
    quantizer = config.build(BottleneckConfig.kinds[kind], SMALL.get(kind, {}), kind)
    model = VQVAEConfig(image_size=(8, 8), channels=(8, 16), quantizer=quantizer)
    images = ImagesConfig()
    c = tokenizer_training(tmp_path / "whole", model=model, images=images)
    train_tokenizer(c, accelerator)
    shutil.copytree(tmp_path / "whole", tmp_path / "killed")
    folder.remove(tmp_path / "killed/tokenizer/state/step_00000006")
    folder.remove(tmp_path / "killed/tokenizer/config.yaml")
    train_tokenizer(c.model_copy(update={"run": str(tmp_path / "killed")}), accelerator)
    assert same_files(tmp_path / "whole/tokenizer", tmp_path / "killed/tokenizer", *RESUMABLE)

    run = tmp_path / "whole"
    encode(EncodeSettings(run=str(run), precision="fp32"), accelerator)
    info, _ = codes.read_info(run / "codes")
    assert info.layout == model.layout and info.layout.length == 16 * quantizer.depth
    train_prior(prior_training(run), accelerator)
    drawn = generate(Generation(run=str(run), num_images=3), accelerator)
    assert len(list(drawn.glob("0*.png"))) == 3


@pytest.mark.parametrize("kind", sorted(LikelihoodConfig.kinds.keys() - {"gaussian"}))  # that of all other tests
def test_every_likelihood_trains_and_resumes(kind, tmp_path, accelerator):
    """As for the quantizers, three steps and three more equal six. (Learned scales are part of the weights and their
    average.)"""
    small = {"logistic_mixture": {"components": 2}}
    model = VQVAEConfig(
        image_size=(8, 8),
        channels=(8, 16),
        quantizer=VQConfig(codebook_size=16, code_dim=4),
        likelihood=config.build(LikelihoodConfig.kinds[kind], small.get(kind, {}), kind),
    )
    c = tokenizer_training(
        tmp_path / "whole", model=model, images=ImagesConfig(binarize="nearest" if kind == "bernoulli" else "none")
    )
    train_tokenizer(c, accelerator)
    shutil.copytree(tmp_path / "whole", tmp_path / "killed")
    folder.remove(tmp_path / "killed/tokenizer/state/step_00000006")
    folder.remove(tmp_path / "killed/tokenizer/config.yaml")
    train_tokenizer(c.model_copy(update={"run": str(tmp_path / "killed")}), accelerator)
    weights = [tmp_path / run / "tokenizer/model/model.safetensors" for run in ("whole", "killed")]
    assert weights[0].read_bytes() == weights[1].read_bytes()
    last = read_metrics(tmp_path / "whole/tokenizer/metrics.jsonl")[-1]
    # After six steps it is near the cost of a uniform distribution
    assert 0 < last["distortion"] < (1.1 if kind == "bernoulli" else 8.5)


def test_settings_may_still_change_before_anything_is_saved(tmp_path, accelerator):
    """A user can then follow the advice of an error, such as a smaller codebook."""
    c = tokenizer_training(tmp_path)
    quantizer = c.model.quantizer.model_copy(update={"codebook_size": 30_000})
    with pytest.raises(UserError, match="choose a smaller one"):
        train_tokenizer(
            c.model_copy(update={"model": c.model.model_copy(update={"quantizer": quantizer})}), accelerator
        )
    train_tokenizer(c, accelerator)


def test_a_prior_refuses_codes_of_another_tokenizer_than_its_runs(finished_run, tmp_path, accelerator):
    shutil.copytree(finished_run, tmp_path / "run")
    train_tokenizer(tokenizer_training(tmp_path / "other", seed=1), accelerator)
    shutil.rmtree(tmp_path / "run/tokenizer")
    shutil.copytree(tmp_path / "other/tokenizer", tmp_path / "run/tokenizer")
    with pytest.raises(UserError, match=r"tokenizer digits/tokenizer .*, not by the one of this run, .*sha256"):
        train_prior(prior_training(tmp_path / "run"), accelerator)


def test_a_prior_refuses_codes_without_a_split_to_train_on(finished_run, tmp_path, accelerator):
    shutil.copytree(finished_run / "codes", tmp_path / "codes")
    written = folder.read_json(tmp_path / "codes/codes.json")
    folder.write_json(tmp_path / "codes/codes.json", {**written, "splits": {"test": written["splits"]["test"]}})
    with pytest.raises(UserError, match="codes must have a split train; they have test"):
        train_prior(prior_training(tmp_path), accelerator)


def test_a_prior_reads_layout_and_classes_from_the_codes(finished_run):
    written = folder.read_json(finished_run / "prior/model/config.json")
    assert written["layout"] == {"grids": [{"shape": [4, 4], "depth": 1, "factors": [16]}]}
    assert written["condition"]["names"] == list("0123456789")


def test_a_missing_stage_is_named_with_the_command_that_makes_it(tmp_path, accelerator):
    with pytest.raises(UserError, match=r"no trained tokenizer .*tokenizer/train\.py with --run"):
        encode(EncodeSettings(run=str(tmp_path)), accelerator)
    with pytest.raises(UserError, match=r"no codes dataset .*tokenizer/encode\.py"):
        train_prior(prior_training(tmp_path), accelerator)


def test_the_panels_of_curves_show_their_own_metrics(tmp_path, drawn_figures):
    lines = [{"step": step, "loss": 3.0 / step, "psnr": 10.0 + step} for step in (1, 2, 3)]
    pictures = []
    for number, changed in enumerate(({}, {"psnr": 20.0})):
        path = tmp_path / f"{number}.png"
        save_curves([{**line, **changed} for line in lines], {"a loss": ["loss"], "PSNR, dB": ["psnr"]}, path)
        with PIL.Image.open(path) as picture:
            pictures.append(np.asarray(picture.convert("L")).astype(int))
    differs = abs(pictures[0] - pictures[1]).max(0) > 0
    assert pictures[0].shape == (352, 990) and pictures[0].std() > 5
    assert not differs[:495].any() and differs[495:].any()
    save_curves(lines, {f"panel {number}": ["loss"] for number in range(6)}, tmp_path / "six.png")
    with PIL.Image.open(tmp_path / "six.png") as picture:
        assert picture.size == (4 * 495, 2 * 352), "six are no strip: four in a row"
