"""A tokenizer made one's own: begun from given weights, trained whole or the decoder alone, with codes that stay."""

import hashlib
import json
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from smalti.common import codes, config, folder
from smalti.common.codes_info import TokenizerIdentity
from smalti.common.data.config import ImagesConfig
from smalti.common.data.images import open_images
from smalti.common.data.pixels import to_float, to_pil
from smalti.common.errors import UserError
from smalti.common.history import read_history
from smalti.common.identity import codes_sha256, only_decodes
from smalti.common.origin import read_origin
from smalti.common.run_folder import read_metrics
from smalti.pipeline.evaluation.bench import Settings as PipelineSettings
from smalti.pipeline.evaluation.bench import open_bench
from smalti.pipeline.image_pipeline import ImagePipeline
from smalti.prior.data import read_codes
from smalti.prior.draw import SamplingConfig
from smalti.tokenizer.bottleneck.fsq import FSQConfig
from smalti.tokenizer.bottleneck.gumbel import GumbelConfig
from smalti.tokenizer.bottleneck.lfq import LFQConfig
from smalti.tokenizer.bottleneck.residual import ResidualConfig
from smalti.tokenizer.bottleneck.simvq import SimVQConfig
from smalti.tokenizer.bottleneck.vq import VQConfig
from smalti.tokenizer.bottleneck.vq_ema import EMAVQConfig
from smalti.tokenizer.config import TrainConfig, TrainedConfig
from smalti.tokenizer.decoder_training import CodeReplacement, DecoderTraining, freeze_encoder, nearest_codes
from smalti.tokenizer.encode import Settings as EncodeSettings
from smalti.tokenizer.encode import encode
from smalti.tokenizer.model import build_tokenizer, identity_of, load_tokenizer
from smalti.tokenizer.multiscale.config import MultiscaleConfig
from smalti.tokenizer.origin_images import with_images
from smalti.tokenizer.train import load_trained, share_averaged, train, trained_kinds
from smalti.tokenizer.vae.config import VAEConfig
from smalti.tokenizer.vqgan.config import VQGANConfig
from smalti.tokenizer.vqvae.config import VQVAEConfig
from smalti.tokenizer.vqvae2.config import VQVAE2Config
from tests.conftest import ROOT

SIZES = {"image_size": (8, 8), "channels": (8, 16)}
TABLE = {"codebook_size": 16, "code_dim": 4}
VQGAN = VQGANConfig(
    image_size=(8, 8), image_channels=1, first_channels=32, channels=(32, 32), blocks=1, z_channels=4, **TABLE,
    attention_levels=(1,), normalize=False,
)  # fmt: skip
FAMILIES = {
    "vq": VQVAEConfig(**SIZES, quantizer=VQConfig(**TABLE)),
    "vq_ema": VQVAEConfig(**SIZES, quantizer=EMAVQConfig(**TABLE)),
    "simvq": VQVAEConfig(**SIZES, quantizer=SimVQConfig(**TABLE)),
    "gumbel": VQVAEConfig(**SIZES, quantizer=GumbelConfig(**TABLE)),
    "fsq": VQVAEConfig(**SIZES, quantizer=FSQConfig(levels=(4, 3))),
    "lfq": VQVAEConfig(**SIZES, quantizer=LFQConfig(bits=4)),
    "residual": VQVAEConfig(**SIZES, quantizer=ResidualConfig(code_depth=2, each=EMAVQConfig(**TABLE))),
    "vqvae2": VQVAE2Config(**SIZES, quantizer=VQConfig(**TABLE)),
    "multiscale": MultiscaleConfig(**SIZES, quantizer=VQConfig(**TABLE)),
    "vqgan": VQGAN,
    "vqgan, on the sphere": VQGAN.model_copy(update={"normalize": True}),  # LlamaGen's
}


def training(run: Path, start_from: Path, **settings) -> TrainConfig:
    """Return the settings of 12 steps, in which dead codes would be revived once, saved after 6 of them."""
    usual = {"steps": 12, "batch_size": 16, "warmup": 2, "evaluate_every": 6, "save_every": 6, "log_every": 6}
    given = {"run": str(run), "start_from": str(start_from), "precision": "fp32", "train": "decoder", "lr": 1e-2}
    return TrainConfig(**{**usual, **given, **settings})


def given_weights(path: Path, model: TrainedConfig) -> Path:
    """Write a tokenizer with random weights, and return its folder."""
    torch.manual_seed(0)
    build_tokenizer(model).save_pretrained(path)
    return path


def write_images(images: torch.Tensor, folder: Path) -> None:
    """Write grey images (N, 1, H, W) uint8 as PNG files."""
    folder.mkdir()
    for number, picture in enumerate(to_pil(images)):
        picture.save(folder / f"{number}.png")


@pytest.fixture(scope="module")
def digits() -> torch.Tensor:
    split = open_images(ImagesConfig(), (8, 8), 1).splits["validation"]
    return to_float(split.read(torch.arange(len(split))).images)


# --------------------------------------------------------------------------------------------------- the decoder alone


@pytest.mark.parametrize("family", FAMILIES)
def test_gradients_reach_what_only_decodes_and_no_code_depends_on_it(family, digits):
    """Training mode alone would have moved the mean that a multi-scale quantizer follows, and drawn codes (gumbel)."""
    torch.manual_seed(0)
    tokenizer = build_tokenizer(FAMILIES[family])
    freeze_encoder(tokenizer)
    training = DecoderTraining(tokenizer, TrainConfig(start_from="x", train="decoder", replace_codes=0.5))
    before, codes_before = {n: each.clone() for n, each in tokenizer.state_dict().items()}, tokenizer.encode(digits)
    optimizer = torch.optim.AdamW([each for each in tokenizer.parameters() if each.requires_grad], lr=1e-2)
    for _ in range(2):
        optimizer.zero_grad()
        training(digits).losses["reconstruction_loss"].backward()
        optimizer.step()
    moved = {name for name, each in tokenizer.state_dict().items() if not torch.equal(each, before[name])}
    assert moved and all(only_decodes(name, tokenizer.decodes_only) for name in moved)
    with torch.no_grad():
        for name, each in tokenizer.state_dict().items():
            if only_decodes(name, tokenizer.decodes_only):
                each.fill_(7.0)
    assert torch.equal(tokenizer.encode(digits), codes_before)


@pytest.mark.parametrize("family", ["vq_ema", "multiscale", "vqgan", "vqgan, on the sphere"])
def test_codes_of_every_image_stay_when_the_decoder_alone_is_trained(family, accelerator, tmp_path, digits):
    """An EMA codebook follows encoder outputs, dead codes are revived, and averages are taken of frozen weights too."""
    there = given_weights(tmp_path / "given", FAMILIES[family])
    here = train(training(tmp_path / "new", there, replace_codes=0.5, evaluate_every=12, save_every=12), accelerator)
    before, after = load_tokenizer(there), load_tokenizer(here)
    assert torch.equal(before.encode(digits), after.encode(digits))
    assert identity_of(there, "").sha256 == identity_of(here, "").sha256
    assert identity_of(there, "").whole != identity_of(here, "").whole
    weights = [load_file(path / "model.safetensors") for path in (there, here)]
    for name, tensor in weights[0].items():
        same = tensor.numpy().tobytes() == weights[1][name].numpy().tobytes()
        assert same or only_decodes(name, after.decodes_only), name
    errors = [(each.decode(each.encode(digits)) - digits).square().mean() for each in (before, after)]
    assert errors[1] < 0.9 * errors[0], "and the decoder learns"


def test_frozen_buffers_are_not_averaged_over_processes():
    """A third of three equal numbers added is often not the number: every code's identity hung on that."""

    class OfThree:
        num_processes = 3

        def reduce(self, tensor: torch.Tensor, how: str) -> torch.Tensor:
            return (tensor + tensor + tensor) / 3

    torch.manual_seed(0)
    tokenizer = build_tokenizer(FAMILIES["multiscale"])
    tokenizer.quantizer.mean.normal_()
    before = tokenizer.quantizer.mean.clone()
    freeze_encoder(tokenizer)
    share_averaged(tokenizer, OfThree())
    assert torch.equal(tokenizer.quantizer.mean, before)
    tokenizer.train()
    tokenizer.quantizer.mean.copy_(torch.linspace(0.1, 1.1, before.numel()).view_as(before))
    share_averaged(tokenizer, OfThree())
    torch.testing.assert_close(tokenizer.quantizer.mean, torch.linspace(0.1, 1.1, before.numel()).view_as(before))


def test_images_and_their_split_are_those_of_the_run_that_it_begins_from(accelerator, tmp_path, capsys):
    """Without a config the defaults counted: images that were held out for codes and prior became training images."""
    first = training(tmp_path / "first", given_weights(tmp_path / "given", FAMILIES["vq"]), train="all", steps=1)
    images = ImagesConfig(validation_share=0.2, shift=1)
    train(first.model_copy(update={"images": images, "start_from": None, "model": FAMILIES["vq"]}), accelerator)
    for _ in range(2):  # and where it goes on
        train(training(tmp_path / "second", tmp_path / "first", steps=1), accelerator)
    kept = config.read_yaml(tmp_path / "second/tokenizer/config.yaml")["images"]
    assert (kept["validation_share"], kept["shift"]) == (0.2, 1)
    splits = [folder.read_json(tmp_path / run / "tokenizer/images.json")["splits"] for run in ("first", "second")]
    assert splits[0] == splits[1] and ", split as in " in capsys.readouterr().out
    origin = read_origin(str(tmp_path / "first"), trained_kinds(), load_trained, "tokenizer")
    given = training(tmp_path / "third", tmp_path / "first", images=ImagesConfig(validation_share=0.3))
    begun = with_images(given, {"validation_share": 0.3}, tmp_path / "third/tokenizer", origin).settings.images
    assert (begun.validation_share, begun.shift) == (0.3, 1), "what is given stands"
    other = given.model_copy(update={"images": ImagesConfig(source="elsewhere")})
    told = with_images(other, {"source": "elsewhere"}, tmp_path / "third/tokenizer", origin)
    assert told.settings == other, "other images have their own"


def test_another_spelling_of_the_same_folder_is_the_same_images(accelerator, tmp_path, monkeypatch):
    """Its split was dropped in silence: what was held out at first was trained on."""
    monkeypatch.chdir(tmp_path)
    write_images(torch.randint(0, 256, (40, 1, 8, 8), dtype=torch.uint8), Path("pictures"))
    given = given_weights(tmp_path / "given", FAMILIES["vq"])
    images = ImagesConfig(source="pictures", validation_share=0.5)
    train(training(tmp_path / "first", given, steps=1, images=images), accelerator)
    origin = read_origin(str(tmp_path / "first"), trained_kinds(), load_trained, "tokenizer")
    for spelled, share in ((str(tmp_path / "pictures"), 0.5), ("./pictures/", 0.5), (str(tmp_path), None)):
        c = training(tmp_path / "second", tmp_path / "first", images=ImagesConfig(source=spelled))
        found = with_images(c, {"source": spelled}, tmp_path / "second/tokenizer", origin).settings.images
        assert found.source == spelled, "as it is given"
        assert (found.validation_share == share) or (share is None and found == c.images)


def test_no_codebook_is_fitted_anew_from_given_weights(accelerator, tmp_path):
    """With batches that have too few vectors for the codes, every code was moved at four fifths of the steps."""
    there = given_weights(tmp_path / "given", FAMILIES["vq"])
    c = training(tmp_path / "new", there, train="all", batch_size=1, lr=1e-12, revive_below=0.0, steps=5)
    before, after = load_tokenizer(there), load_tokenizer(train(c, accelerator))
    torch.testing.assert_close(before.quantizer.codebook, after.quantizer.codebook)


def test_settings_of_what_is_frozen_are_refused():
    for name, value in {"commitment_weight": 3.0, "revive_below": 0.5}.items():
        with pytest.raises(ValueError, match=f"{name} is of encoder and codebook, which train decoder freezes"):
            TrainConfig(start_from="x", train="decoder", **{name: value})


def test_a_killed_training_of_the_decoder_ends_in_the_same_weights(accelerator, tmp_path):
    there = given_weights(tmp_path / "given", FAMILIES["vq_ema"])
    c = training(tmp_path / "whole", there, replace_codes=0.5)
    train(c, accelerator)
    shutil.copytree(tmp_path / "whole", tmp_path / "killed")
    folder.remove(tmp_path / "killed/tokenizer/state/step_00000012")
    shutil.rmtree(there)  # a run that goes on needs it no more
    train(c.model_copy(update={"run": str(tmp_path / "killed")}), accelerator)
    for name in ("metrics.jsonl", "history.jsonl", "model/model.safetensors", "state/step_00000012/ema.safetensors"):
        files = [tmp_path / run / "tokenizer" / name for run in ("whole", "killed")]
        assert files[0].read_bytes() == files[1].read_bytes(), name


def test_training_the_decoder_alone_is_refused_without_weights_or_a_decoder_of_its_own(tmp_path, accelerator):
    with pytest.raises(ValueError, match="train decoder needs start_from"):
        TrainConfig(train="decoder")
    with pytest.raises(ValueError, match="replace_codes is of the decoder's training"):
        TrainConfig(replace_codes=0.1)
    there = given_weights(tmp_path / "given", VAEConfig(image_size=(8, 8)))
    with pytest.raises(UserError, match="the decoder of a tokenizer of kind vae is not trained by itself"):
        train(training(tmp_path / "new", there), accelerator)
    assert not (tmp_path / "new").exists()


def test_settings_that_may_change_codes_are_refused_where_the_decoder_alone_is_trained(tmp_path, accelerator):
    """The weights fit codes that are not on the sphere too, and their identity is of the weights."""
    there = given_weights(tmp_path / "given", FAMILIES["vq"])
    model = FAMILIES["vq"].model_copy(update={"quantizer": VQConfig(**TABLE, normalize=False)})
    with pytest.raises(UserError, match=r"keeps the codes of .*: quantizer\.normalize True there and False here"):
        train(training(tmp_path / "new", there, model=model), accelerator)
    assert not (tmp_path / "new/tokenizer/config.yaml").exists()


def test_no_default_config_is_read_where_weights_are_given():
    """Its sizes would have won over those of the weights, and its images and steps are the digits'."""
    file = ROOT / "configs/digits/tokenizer.yaml"
    found = config.parse(TrainConfig, "", ["--start-from", "runs/theirs"], default_file=file)
    assert found == TrainConfig(start_from="runs/theirs")
    assert config.parse(TrainConfig, "", [], default_file=file).steps != found.steps


# ----------------------------------------------------------------------------------------------------- replaced codes


@pytest.mark.parametrize("family", ["residual", "vqvae2", "multiscale", "fsq"])
def test_a_code_is_replaced_by_one_of_the_nearest_of_its_own_codebook(family, digits):
    """Either of two codes may be it where both are at one distance."""
    torch.manual_seed(0)
    tokenizer = build_tokenizer(FAMILIES[family]).eval()
    layout, before = tokenizer.config.layout, tokenizer.encode(digits)
    near = nearest_codes(tokenizer)
    assert near.shape == (layout.codebooks, layout.codebook_size, 8)
    after = CodeReplacement(layout, "near", near)(before, torch.ones(len(before), 1))
    assert (after != before).all(), "a code is none of its own neighbours"
    for column, depth in enumerate(layout.codebook_of().tolist()):
        vectors = tokenizer.code_vectors(depth, torch.arange(layout.codebook_size))
        distances = (vectors[:, None] - vectors).square().sum(2).fill_diagonal_(torch.inf)
        eighth = distances.sort(1).values[:, 7]
        found = distances[before[:, column], after[:, column]]
        assert (found <= eighth[before[:, column]] + 1e-5).all()  # fp32 sums of a few numbers of about one


def test_the_share_of_codes_that_are_replaced_is_the_one_asked_for():
    """A code in 16 is replaced by itself, so that 28.1% of 20,000 change: the standard deviation is 0.3%."""
    layout = FAMILIES["vq"].layout
    before = torch.zeros(20_000 // layout.length, layout.length, dtype=torch.int64)
    torch.manual_seed(0)
    after = CodeReplacement(layout, "any")(before, torch.full((len(before), 1), 0.3))
    assert (after != before).float().mean().item() == pytest.approx(0.3 * 15 / 16, abs=0.015)
    assert torch.equal(CodeReplacement(layout, "any")(before, torch.zeros(len(before), 1)), before)


@pytest.mark.parametrize("by", ["near", "any"])
def test_the_decoder_is_trained_on_replaced_codes_another_share_for_each_image(by, digits):
    """Up to half of them: a quarter in the mean, of 16 codes each none to all of a half."""
    torch.manual_seed(0)
    tokenizer, seen = build_tokenizer(FAMILIES["vq"]), []
    decoded = tokenizer.decoder_terms
    tokenizer.decoder_terms = lambda images, codes, condition: seen.append(codes) or decoded(images, codes, condition)
    freeze_encoder(tokenizer)
    training = DecoderTraining(
        tokenizer, TrainConfig(start_from="x", train="decoder", replace_codes=0.5, replace_by=by)
    )
    training(digits)
    (codes,), before = seen, tokenizer.encode(digits)
    others = codes != before
    of_any = 15 / 16 if by == "any" else 1.0  # any may be the code itself
    assert others.double().mean().item() == pytest.approx(0.25 * of_any, abs=0.05)  # 81 images of 16 codes
    shares = others.double().mean(1)
    assert shares.min() < 0.1 and shares.max() > 0.4, "one share for all would be within 0.25 ± 0.11"
    near = nearest_codes(tokenizer)[0]
    among = (near[before] == codes[..., None]).any(2)[others]
    assert among.all() if by == "near" else not among.all()


# -------------------------------------------------------------------------------------------------------- the identity


def test_codes_and_a_prior_of_a_tokenizer_are_valid_for_one_whose_decoder_was_trained(
    finished_run, accelerator, tmp_path
):
    new = tmp_path / "new"
    train(training(new, finished_run, steps=1), accelerator)
    for stage in ("codes", "prior"):
        shutil.copytree(finished_run / stage, new / stage)
    read_codes(str(new))
    pipeline = ImagePipeline.from_run(new, SamplingConfig())
    old = ImagePipeline.from_run(finished_run, SamplingConfig())
    drawn = [each(labels=[3], seed=1) for each in (old, pipeline)]
    assert torch.equal(drawn[0].codes, drawn[1].codes) and drawn[0].images[0] != drawn[1].images[0]
    pipeline.save_pretrained(new / "pipeline")
    assert ImagePipeline.from_pretrained(new / "pipeline").identity.sha256 == old.identity.sha256
    assert str(tmp_path) not in (new / "pipeline/prior/config.json").read_text(), "a path of this machine"
    plan = open_bench(PipelineSettings(run=str(new), images=0), accelerator).plan
    assert plan["tokenizer"] == folder.sha256(new / "tokenizer/model/model.safetensors"), (
        "figures are of the decoder too"
    )


def test_another_encoder_is_refused_with_both_names(finished_run, accelerator, tmp_path):
    new = tmp_path / "new"
    train(training(new, finished_run, train="all", steps=1), accelerator)
    for stage in ("codes", "prior"):
        shutil.copytree(finished_run / stage, new / stage)
    ours, theirs = (identity_of(run / "tokenizer/model", "").sha256[:12] for run in (new, finished_run))
    with pytest.raises(
        UserError, match=rf"tokenizer digits/tokenizer \(sha256 {theirs}\), not .*new.*\(sha256 {ours}\)"
    ):
        read_codes(str(new))
    with pytest.raises(UserError, match=rf"digits/tokenizer \(sha256 {theirs}\), not of .*\(sha256 {ours}\)"):
        ImagePipeline.from_run(new, SamplingConfig())


def as_before(run: Path) -> None:
    """Make the folders of a run what the version before wrote: the identity is that of the whole file."""
    whole = folder.sha256(run / "tokenizer/model/model.safetensors")
    for name in ("codes/codes.json", "codes/.plan.json", "prior/model/config.json"):
        written = json.loads((run / name).read_text())
        written["tokenizer"] = {"name": "digits/tokenizer", "sha256": whole}
        (run / name).write_text(json.dumps(written))
    written = json.loads((run / "tokenizer/model/config.json").read_text())
    assert written.pop("decodes_only") == ["decoder", "likelihood"]
    (run / "tokenizer/model/config.json").write_text(json.dumps(written))


def test_codes_and_a_prior_that_an_earlier_version_wrote_are_accepted_with_their_tokenizer(
    finished_run, accelerator, tmp_path
):
    run = shutil.copytree(finished_run, tmp_path / "digits")
    as_before(run)
    assert read_codes(str(run)).info.tokenizer.files == ()
    ImagePipeline.from_run(run, SamplingConfig()).save_pretrained(run / "pipeline")
    ImagePipeline.from_pretrained(run / "pipeline")
    assert encode(EncodeSettings(run=str(run), views=2, shard_size=500, precision="fp32"), accelerator) == run / "codes"
    assert codes.read_info(run / "codes")[0].tokenizer.files == ()


def test_they_are_accepted_with_the_tokenizers_whose_decoder_was_trained_from_it_too(
    finished_run, accelerator, tmp_path
):
    """They name the whole file, which is gone: the history of the new runs says that its codes are theirs."""
    old = shutil.copytree(finished_run, tmp_path / "digits")
    as_before(old)
    for start_from, new in ((old, "new"), (tmp_path / "new", "newer")):
        run = tmp_path / new
        train(training(run, start_from, steps=1), accelerator)
        for stage in ("codes", "prior"):
            shutil.copytree(old / stage, run / stage)
        read_codes(str(run))
        ImagePipeline.from_run(run, SamplingConfig()).save_pretrained(run / "pipeline")
        shutil.move(run / "pipeline", tmp_path / f"{new}-alone")
        ImagePipeline.from_pretrained(tmp_path / f"{new}-alone")


def test_the_identity_is_of_names_shapes_and_numbers_in_one_order_whatever_the_precision():
    """The known answer was computed by hashlib over the bytes written out."""
    tensors = {"b": torch.tensor([[1.0, -2.0]]), "a.x": torch.tensor([3], dtype=torch.int64), "d.y": torch.ones(2)}
    known = b'["a.x", "int64", [1]]' + b"\x03" + 7 * b"\0" + b'["b", "float32", [1, 2]]' + b"\0\0\x80\x3f\0\0\0\xc0"
    found = codes_sha256(tensors, ["d"])
    assert found == hashlib.sha256(known).hexdigest()
    assert codes_sha256(dict(reversed(tensors.items())), ["d"]) == found
    assert codes_sha256({**tensors, "b": tensors["b"].half(), "d.z": tensors["b"]}, ["d"]) == found
    assert codes_sha256({**tensors, "b": tensors["b"].T}, ["d"]) != found != codes_sha256(tensors, [])
    assert not only_decodes("decoder_of_codes.weight", ["decoder"])


def test_two_identities_are_of_the_same_codes_where_either_hash_is_the_same():
    a, b, c = (letter * 64 for letter in "abc")
    now, tuned = (TokenizerIdentity(name=name, sha256=a, files=(file,)) for name, file in (("now", b), ("tuned", c)))
    before, other = TokenizerIdentity(name="before", sha256=b), TokenizerIdentity(name="other", sha256=c)
    assert now.same_codes(tuned) and now.same_codes(before) and before.same_codes(now)
    assert not now.same_codes(other) and not tuned.same_codes(before)


# -------------------------------------------------------------------------------------------------- before and after


@pytest.mark.parametrize(("which", "said"), [("decoder", "every image has the codes it had"), ("all", "other codes")])
def test_a_training_from_given_weights_says_what_it_changed(which, said, finished_run, accelerator, tmp_path, capsys):
    train(training(tmp_path / "new", finished_run, train=which, steps=2, evaluate_every=1), accelerator)
    lines = [line for line in read_metrics(tmp_path / "new/tokenizer/metrics.jsonl") if "psnr" in line]
    assert [line["step"] for line in lines] == [0, 1, 2]
    old = [line for line in read_metrics(finished_run / "tokenizer/metrics.jsonl") if "psnr" in line][-1]
    assert lines[0]["psnr"] == pytest.approx(old["psnr"], rel=1e-6), "those of the weights it began from"
    told = capsys.readouterr().out
    assert f"PSNR {old['psnr_pooled']:.2f} dB pooled -> {lines[-1]['psnr_pooled']:.2f} dB pooled" in told
    assert said in told
    (began,) = read_history(tmp_path / "new/tokenizer")
    assert began.identity.sha256 == identity_of(finished_run / "tokenizer/model", "").sha256


# ------------------------------------------------------------------------------------------------ a converted tokenizer


def test_a_converted_tokenizer_is_trained_whole_with_the_losses_it_was_published_with(accelerator, tmp_path, digits):
    """L = reconstruction + |sg[z_e] − e|² + β |z_e − sg[e]|² (LlamaGen's vq_model.py, taming's with legacy false)."""
    there = given_weights(tmp_path / "given", VQGAN)
    tokenizer = load_tokenizer(there).train()
    losses = tokenizer(digits[:4]).losses
    z_e = tokenizer.latents(digits[:4])
    e = tokenizer.lookup(tokenizer.encode(digits[:4]).view(4, 4, 4))
    assert losses["codebook_loss"].item() == pytest.approx((z_e - e).square().mean().item(), rel=1e-5)
    assert losses["commitment_loss"].item() == pytest.approx(losses["codebook_loss"].item(), rel=1e-6)
    here = train(training(tmp_path / "new", there, train="all", steps=2), accelerator)
    before, after = (load_file(path / "model.safetensors") for path in (there, here))
    moved = {name.split(".")[0] for name in before if not torch.equal(before[name], after[name])}
    assert moved == {"encoder", "to_code", "quantizer", "from_code", "decoder", "likelihood"}
    assert load_tokenizer(here).config == VQGAN
