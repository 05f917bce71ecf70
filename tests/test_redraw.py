"""Draws of a prior in the place of each code of an image, given the true ones before it, and a decoder trained on them.

Shapes: codes (B, T), logits (B, T, V).
"""

import json
import shutil

import numpy as np
import PIL.Image
import pytest
import torch
from torch import Tensor

from smalti.common import codes, folder
from smalti.common.codes import CodesSplit
from smalti.common.codes_info import Redrawn, TokenizerIdentity
from smalti.common.condition import Classes, Nothing
from smalti.common.data.config import ImagesConfig
from smalti.common.data.images import open_images
from smalti.common.data.pixels import to_float
from smalti.common.errors import UserError
from smalti.common.layout import Grid, Layout
from smalti.common.mapped import MappedRows
from smalti.prior.config import ArchitectureConfig, PriorConfig
from smalti.prior.data import CodesRows, read_codes
from smalti.prior.levels.config import LevelsConfig
from smalti.prior.masked.config import MaskedConfig
from smalti.prior.model import build_prior, load_prior
from smalti.prior.nextscale.config import NextScaleConfig
from smalti.prior.nextset.config import NextSetConfig
from smalti.prior.pixelcnn.config import PixelCNNConfig
from smalti.prior.redraw import Settings, check_prior, redraw, redrawn
from smalti.prior.sampling_config import SamplingConfig
from smalti.prior.simple.config import IndependentConfig, StandardNormalConfig, UniformConfig
from smalti.prior.transformer.config import TransformerConfig
from smalti.tokenizer.bottleneck.vq import VQConfig
from smalti.tokenizer.config import TrainConfig
from smalti.tokenizer.decoder_training import CodeReplacement, DecoderTraining, freeze_encoder
from smalti.tokenizer.drawn_codes import DrawnCodes
from smalti.tokenizer.encode import Settings as EncodeSettings
from smalti.tokenizer.encode import encode
from smalti.tokenizer.model import build_tokenizer, identity_of, load_tokenizer
from smalti.tokenizer.train import train
from smalti.tokenizer.vqvae.config import VQVAEConfig

CPU = torch.device("cpu")
ONE, LARGE = Layout.of(3, 3, depth=2, factors=(8,)), Layout.of(3, 3, factors=(2,) * 15)
GRIDS = Layout(grids=(Grid(shape=(2, 2), factors=(8,)), Grid(shape=(3, 3), factors=(8,))))
SMALL = {"depth": 1, "dim": 16}
TOKENIZER = VQVAEConfig(image_size=(8, 8), channels=(8, 16), quantizer=VQConfig(codebook_size=16, code_dim=4))
KINDS = {
    "transformer": (TransformerConfig(**SMALL, heads=2), ONE),
    "transformer, a code in parts": (TransformerConfig(**SMALL, heads=2), LARGE),
    "pixelcnn": (PixelCNNConfig(**SMALL), ONE),
    "masked": (MaskedConfig(**SMALL, heads=2), ONE),
    "nextset": (NextSetConfig(**SMALL, heads=2, passes=4), ONE),
    "nextscale": (NextScaleConfig(**SMALL, heads=2), GRIDS),
    "levels": (LevelsConfig(), GRIDS),
    "independent": (IndependentConfig(), ONE),
}


def prior_of(architecture: ArchitectureConfig, layout: Layout):
    """Return a prior with three classes and random weights everywhere, so that its logits differ."""
    torch.manual_seed(0)
    prior = build_prior(
        PriorConfig(
            layout=layout,
            condition=Classes(names=("a", "b", "c")),
            tokenizer=TokenizerIdentity(name="test", sha256="0" * 64),
            architecture=architecture,
        )
    ).eval()
    for name, tensor in prior.named_parameters():
        if "head" in name or "embedding" in name:
            torch.nn.init.normal_(tensor, std=0.5)
    if isinstance(architecture, IndependentConfig):
        prior.log_p.copy_(torch.randn_like(prior.log_p).log_softmax(-1))
    return prior


def rows_of(prior, number: int) -> CodesRows:
    """Return rows of random codes and classes, one without a class."""
    layout = prior.config.layout
    found = np.random.default_rng(0).integers(0, layout.codebook_size, (number, layout.length)).astype(np.uint16)
    return CodesRows(CodesSplit(found, np.arange(number) % 4 - 1, np.arange(number)), prior.config)


def draw(prior, rows: CodesRows, some: list[int], size: int = 16, **settings) -> Tensor:
    """Return the draws (B, T) of some rows, computed `size` rows at once."""
    parts = torch.tensor(some).split(size)
    return torch.cat([redrawn(prior, rows, few, size, Settings(**settings), CPU) for few in parts])


def logits_given_the_truth(prior, rows: CodesRows, condition: Tensor) -> Tensor:
    """Return the logits (B, T, V) of each code given the true ones before it, by the forward of training."""
    batch = rows[torch.arange(len(rows)), torch.arange(len(rows))]
    with torch.no_grad():
        return prior(condition, batch.codes)


# ----------------------------------------------------------------------------------------------------------- the draws


@pytest.mark.parametrize("kind", KINDS)
def test_with_no_choice_left_each_code_is_the_likeliest_given_the_true_ones_before_it(kind):
    """The walk is asked with the true codes; the draws must not be read by it."""
    prior = prior_of(*KINDS[kind])
    rows, likeliest = rows_of(prior, 12), {}
    batch = rows[torch.arange(12), torch.arange(12)]
    sizes, worth = prior.vocabularies, list(np.cumprod([1, *prior.vocabularies[:0:-1]])[::-1])

    def choose(logits: Tensor, t: int, g: int) -> Tensor:
        likeliest[t, g] = logits.argmax(1)
        return batch.codes[:, t] // int(worth[g]) % sizes[g]

    assert torch.equal(prior.walk(batch.condition, choose), batch.codes)
    parts = [sum(likeliest[t, g] * int(worth[g]) for g in range(len(sizes))) for t in range(prior.config.layout.length)]
    likeliest_each = torch.stack(parts, 1)
    assert torch.equal(draw(prior, rows, [*range(12)], top_k=1), likeliest_each)
    if kind in ("transformer", "pixelcnn", "levels"):
        logits = logits_given_the_truth(prior, rows, batch.condition)
        assert torch.equal(likeliest_each, logits.argmax(-1)), "the walk was not given the truth"


def test_draws_have_the_probabilities_of_the_forward_of_training():
    """4,000 rows of the same codes and class; within 5 standard errors."""
    prior = prior_of(TransformerConfig(depth=1, dim=16, heads=2), Layout.of(2, 2, factors=(4,)))
    one, number = np.array([[3, 0, 2, 1]], np.uint8), 4000
    rows = CodesRows(CodesSplit(one.repeat(number, 0), np.zeros(number, np.int64), np.arange(number)), prior.config)
    found = draw(prior, rows, [*range(number)], size=500)
    with torch.no_grad():
        p = prior(torch.tensor([0]), torch.from_numpy(one.astype(np.int64)))[0].softmax(-1)
    seen = torch.nn.functional.one_hot(found, 4).double().mean(0)
    assert ((seen - p).abs() <= 5 * (p * (1 - p) / number).sqrt()).all()


@pytest.mark.parametrize("kind", ["transformer", "pixelcnn"])
def test_guidance_leans_towards_the_class_as_in_drawing(kind):
    prior = prior_of(*KINDS[kind])
    rows = rows_of(prior, 12)
    batch = rows[torch.arange(12), torch.arange(12)]
    told = logits_given_the_truth(prior, rows, batch.condition)
    untold = logits_given_the_truth(prior, rows, prior.config.condition.none(12))
    guided = torch.lerp(untold, told, 3.0).argmax(-1)
    assert not torch.equal(guided, told.argmax(-1))
    assert torch.equal(draw(prior, rows, [*range(12)], top_k=1, guidance=3.0), guided)


@pytest.mark.parametrize("kind", ["transformer", "pixelcnn", "masked"])
def test_a_draw_depends_on_its_row_and_seed_and_not_on_its_batch(kind):
    """A batch of few rows is filled up: a product of one row rounds otherwise than one of many."""
    prior = prior_of(*KINDS[kind])
    rows = rows_of(prior, 12)
    whole = draw(prior, rows, [*range(12)])
    assert torch.equal(draw(prior, rows, [4, 5, 6, 7]), whole[4:8])
    assert torch.equal(draw(prior, rows, [11]), whole[11:])
    assert not torch.equal(draw(prior, rows, [*range(12)], seed=1), whole)


def test_a_prior_whose_weights_are_not_finite_draws_nothing():
    prior = prior_of(*KINDS["transformer"])
    with torch.no_grad():
        prior.head.weight.fill_(torch.nan)
    with pytest.raises(UserError, match="logits became NaN or Inf"):
        draw(prior, rows_of(prior, 4), [0, 1])


def test_what_cannot_be_drawn_is_refused_with_what_to_do(finished_run):
    data = codes.load_codes(finished_run / "codes")
    with pytest.raises(UserError, match=r"the codes have the classes 0, 1, 2, .* was trained on a, b, c"):
        prior = prior_of(TransformerConfig(**SMALL, heads=2), data.info.layout)
        prior.config = prior.config.model_copy(update={"tokenizer": data.info.tokenizer})
        check_prior(prior, data, SamplingConfig())
    with pytest.raises(UserError, match="the prior was trained on those of test"):
        check_prior(prior_of(*KINDS["transformer"]), data, SamplingConfig())
    with pytest.raises(
        UserError, match="kind standard_normal does not give the distribution of one code after the other"
    ):
        check_prior(prior_of(StandardNormalConfig(), Layout.of(2, 2, depth=4)), data, SamplingConfig())
    with pytest.raises(UserError, match="top_k 99 is more than the 16 codes there are"):
        redraw(Settings(run=str(finished_run), top_k=99, output="nowhere"), None)


# --------------------------------------------------------------------------------------------------------- the dataset


@pytest.fixture(scope="module")
def drawn_run(finished_run, accelerator, tmp_path_factory):
    """Return a copy of the finished run with draws of its prior."""
    run = tmp_path_factory.mktemp("drawn") / "digits"
    shutil.copytree(finished_run, run)
    redraw(Settings(run=str(run)), accelerator)
    return run


def test_the_draws_stand_beside_the_rows_that_they_are_of(drawn_run):
    true, drawn = codes.load_codes(drawn_run / "codes").splits["train"], codes.load_redrawn(drawn_run / "redrawn")
    split, said = drawn.splits["train"], json.loads((drawn_run / "redrawn/codes.json").read_text())
    assert np.array_equal(split.rows, true.rows) and np.array_equal(split.condition, true.condition)
    same = (np.asarray(split.codes) == np.asarray(true.codes)).mean()
    assert 0 < same < 0.9, "a prior of six steps hits few codes"
    assert said["splits"]["train"]["as_they_were"] == pytest.approx(same)
    assert drawn.info.redrawn == Redrawn(
        prior=folder.sha256(drawn_run / "prior/model/model.safetensors"),
        codes=codes.codes_fingerprint(codes.load_codes(drawn_run / "codes")),
        sampling={"temperature": 1.0, "top_k": None, "top_p": None, "min_p": None, "guidance": 1.0},
        seed=0,
    )
    assert "not the images' own codes" in (drawn_run / "redrawn/README.md").read_text()


def test_an_interrupted_drawing_ends_in_the_same_files(drawn_run, accelerator, tmp_path):
    run = tmp_path / "again"
    shutil.copytree(drawn_run, run)
    shards = codes.shard_paths(run / "redrawn", "train")
    assert len(shards) > 1
    for path in (run / "redrawn/codes.json", shards[1]):
        path.unlink()
    with pytest.raises(UserError, match=r"was begun and not finished: run prior/redraw\.py again"):
        codes.load_redrawn(run / "redrawn")
    redraw(Settings(run=str(run), batch_size=100), accelerator)
    for path in shards:
        assert path.read_bytes() == (drawn_run / "redrawn" / path.name).read_bytes()
    with pytest.raises(UserError, match=r"other settings: redrawn\.seed differ"):
        redraw(Settings(run=str(run), seed=1), accelerator)


def test_draws_and_codes_are_not_taken_for_one_another(drawn_run):
    """A prior of a prior's draws would have looked like any other."""
    with pytest.raises(UserError, match="holds what a prior drew in place of the images' codes"):
        read_codes(str(drawn_run), str(drawn_run / "redrawn"))
    with pytest.raises(UserError, match=r"holds the images' own codes: give the folder that prior/redraw\.py wrote"):
        codes.load_redrawn(drawn_run / "codes")
    with pytest.raises(UserError, match=r"none holds no draws: give the folder that prior/redraw\.py wrote"):
        codes.load_redrawn(drawn_run / "none")
    with pytest.raises(UserError, match=r"digits holds no draws, and .*redrawn does"):
        codes.load_redrawn(drawn_run)
    with pytest.raises(UserError, match="holds the images' own codes; give another --output"):
        codes.check_plan(drawn_run / "codes", codes.load_redrawn(drawn_run / "redrawn").info)
    with pytest.raises(UserError, match=r"lies in .*codes, a codes dataset; give another --output"):
        codes.check_begun(drawn_run / "codes/inner/deeper")
    with pytest.raises(UserError, match=r"is where the images' own codes of .* lie"):
        redraw(Settings(run=str(drawn_run), output=str(drawn_run / "codes")), None)


def test_a_large_set_of_draws_is_mapped_from_the_disk(drawn_run, accelerator, monkeypatch):
    images, how = images_of_run()
    batch = images.splits["train"].read(torch.arange(0, 1000, 9))
    inside = DrawnCodes(drawn_run / "redrawn", images, how, seed=0).views_of(batch)
    monkeypatch.setattr(codes, "MAPPED", 1)
    mapped = DrawnCodes(drawn_run / "redrawn", images, how, seed=0)
    assert isinstance(mapped.split.codes, MappedRows)
    for there, here in zip(inside, mapped.views_of(batch), strict=True):
        assert torch.equal(there, here)
    redraw(Settings(run=str(drawn_run), output=str(drawn_run / "from-the-disk")), accelerator)
    files = [sorted((drawn_run / name).glob("*.parquet")) for name in ("redrawn", "from-the-disk")]
    assert [path.read_bytes() for path in files[0]] == [path.read_bytes() for path in files[1]]


# ------------------------------------------------------------------------------------------ in the decoder's training


def training(run, there, **settings) -> TrainConfig:
    """Return the settings of four steps of the decoder on draws."""
    few = {"steps": 4, "batch_size": 16, "warmup": 1, "evaluate_every": 2, "save_every": 2, "log_every": 2}
    drawn = {"replace_codes": 1.0, "replace_by": "drawn", "drawn_codes": str(there / "redrawn")}
    usual = {"run": str(run), "start_from": str(there), "train": "decoder", "precision": "fp32"}
    return TrainConfig(**(few | usual | drawn | settings))


def finished_folder(path):
    """Write a tokenizer with random weights, and return its folder."""
    torch.manual_seed(0)
    build_tokenizer(TOKENIZER).save_pretrained(path / "given")
    return path / "given"


def write_images(path, broken: int) -> None:
    """Write 40 grey PNG files, of which one is broken."""
    path.mkdir()
    for number, pixels in enumerate(np.random.default_rng(0).integers(0, 256, (40, 8, 8), np.uint8)):
        PIL.Image.fromarray(pixels).save(path / f"{number:02d}.png")
    (path / f"{broken:02d}.png").write_bytes(b"no picture")


def images_of_run(**settings) -> tuple:
    how = ImagesConfig(shift=1, **settings)
    return open_images(how, (8, 8), 1), how


def test_an_image_is_shown_in_the_view_whose_codes_were_drawn_anew(drawn_run):
    """Codes of another view would have been a wrong target, and nothing would have said so."""
    images, how = images_of_run()
    drawn, tokenizer = (
        DrawnCodes(drawn_run / "redrawn", images, how, seed=0),
        load_tokenizer(drawn_run / "tokenizer/model"),
    )
    own, split = codes.load_codes(drawn_run / "codes").splits["train"], images.splits["train"]
    positions, shown = torch.arange(0, len(split), 7), set()
    for epoch in range(3):
        views, anew = drawn.views_of(split.read(positions, epoch))
        encoded = tokenizer.encode(to_float(views)).numpy()
        for row, code, draws in zip(split.rows[positions], encoded, anew.numpy(), strict=True):
            of_image = np.flatnonzero(own.rows == row)  # a row a view
            same = (own.codes[of_image] == code).all(1) & (drawn.split.codes[of_image] == draws).all(1)
            assert same.any(), f"row {row} is shown in a view, and its draws are of another"
            shown.add(int(same.argmax()))
    assert shown == {0, 1}


def test_replaced_codes_are_the_draws(drawn_run):
    torch.manual_seed(0)
    before, drawn = torch.zeros(500, 16, dtype=torch.int64), torch.full((500, 16), 7)
    layout = load_tokenizer(drawn_run / "tokenizer/model").config.layout
    after = CodeReplacement(layout, "drawn")(before, torch.full((500, 1), 0.3), drawn)
    assert set(after.unique().tolist()) == {0, 7}
    assert (after == 7).float().mean().item() == pytest.approx(0.3, abs=0.03)  # five standard errors of 8,000


def test_the_decoder_reads_the_draws_in_training():
    torch.manual_seed(0)
    tokenizer = build_tokenizer(TOKENIZER)
    seen, decoded = [], tokenizer.decoder_terms
    tokenizer.decoder_terms = lambda images, codes, condition: seen.append(codes) or decoded(images, codes, condition)
    freeze_encoder(tokenizer)
    c = TrainConfig(start_from="x", train="decoder", replace_codes=1.0, replace_by="drawn", drawn_codes="y")
    images = torch.rand(200, 1, 8, 8) * 2 - 1
    own = tokenizer.encode(images)
    drawn = (own + 1) % 16
    DecoderTraining(tokenizer, c)(images, None, drawn)
    changed = seen[0] != own
    assert torch.equal(seen[0][changed], drawn[changed])
    assert changed.double().mean().item() == pytest.approx(0.5, abs=0.1)  # shares uniform in [0, 1], of 200 images


def test_a_decoder_trained_on_draws_keeps_its_codes_and_ends_the_same_when_it_was_killed(
    drawn_run, accelerator, tmp_path
):
    """The draws may have moved by then; others in their place are refused."""
    c = training(tmp_path / "whole", drawn_run)
    train(c, accelerator)
    there, here = (identity_of(run / "tokenizer/model", "") for run in (drawn_run, tmp_path / "whole"))
    assert there.sha256 == here.sha256 and there.whole != here.whole
    shutil.copytree(tmp_path / "whole", tmp_path / "killed")
    folder.remove(tmp_path / "killed/tokenizer/state/step_00000004")
    shutil.copytree(drawn_run / "redrawn", tmp_path / "moved")
    moved = {"run": str(tmp_path / "killed"), "drawn_codes": str(tmp_path / "moved")}
    train(c.model_copy(update=moved), accelerator)
    for name in ("metrics.jsonl", "model/model.safetensors", "state/step_00000004/ema.safetensors"):
        files = [tmp_path / run / "tokenizer" / name for run in ("whole", "killed")]
        assert files[0].read_bytes() == files[1].read_bytes(), name
    redraw(Settings(run=str(drawn_run), output=str(tmp_path / "others"), seed=1), accelerator)
    others = c.model_copy(update={"drawn_codes": str(tmp_path / "others"), "steps": 6})
    with pytest.raises(UserError, match=r"was trained on draws of fingerprint \w+, and those of .*others are"):
        train(others, accelerator)


@pytest.mark.parametrize(
    "given, said",
    [
        ({"resize": "stretch"}, r"images\.resize crop there and stretch here"),
        ({"binarize": "nearest"}, r"images\.binarize none there and nearest here"),
        ({"white": 4095}, r"images\.white 65535 there and 4095 here"),
        (
            {"validation_share": 0.02},
            r"has no codes of \d+ of the 1,462 training images, such as row \d+: other",
        ),
    ],
)
def test_draws_of_images_that_were_read_or_held_out_otherwise_are_refused(
    given, said, drawn_run, accelerator, tmp_path
):
    """Their fingerprint is the same: it is of the files."""
    with pytest.raises(UserError, match=said):
        train(training(tmp_path / "new", drawn_run, images=ImagesConfig(**given)), accelerator)
    assert not (tmp_path / "new/tokenizer/config.yaml").exists()


def test_views_are_those_of_the_draws_whatever_the_settings_here_and_it_is_said(drawn_run):
    """A model folder does not say how its images were shifted."""
    (images, how), (others, plain) = images_of_run(), (open_images(ImagesConfig(), (8, 8), 1), ImagesConfig())
    batch = images.splits["train"].read(torch.arange(60))
    there = DrawnCodes(drawn_run / "redrawn", images, how, seed=0).views_of(batch)
    here = DrawnCodes(drawn_run / "redrawn", others, plain, seed=0).views_of(batch)
    assert all(map(torch.equal, there, here))
    drawn = DrawnCodes(drawn_run / "redrawn", others, plain, seed=0)
    assert drawn.unused(how) is None
    assert "images.shift 0 and images.flip False are not used: the draws are of views by" in drawn.unused(plain)


def test_an_image_that_cannot_be_read_needs_no_draws(accelerator, tmp_path):
    """It is in the split of a source that is read from the disk, and was left out of the codes."""
    tokenizer = finished_folder(tmp_path)
    write_images(tmp_path / "images", broken=5)
    images = {"source": str(tmp_path / "images"), "memory": 0, "corrupt": "skip", "flip": True, "shift": 1}
    run = tmp_path / "run"
    c = {"images": ImagesConfig(**images), "start_from": str(tokenizer), "batch_size": 4, "steps": 1, "warmup": 0}
    train(TrainConfig(run=str(run), precision="fp32", **c), accelerator)
    encode(EncodeSettings(run=str(run), views=4, precision="fp32"), accelerator)
    data = codes.load_codes(run / "codes")
    prior = build_prior(PriorConfig.over(data.info, UniformConfig(), condition=Nothing()))
    prior.save_pretrained(run / "prior/model")
    redraw(Settings(run=str(run)), accelerator)
    c |= {"start_from": str(run), "train": "decoder", "replace_codes": 1.0, "replace_by": "drawn"}
    train(TrainConfig(run=str(tmp_path / "new"), drawn_codes=str(run / "redrawn"), **c), accelerator)
    opened = open_images(ImagesConfig(**images), (8, 8), 1)
    drawn = DrawnCodes(run / "redrawn", opened, ImagesConfig(**images), seed=0)
    split, trained = opened.splits["train"], load_tokenizer(run / "tokenizer/model")
    assert 5 in split.rows and 5 not in drawn.rows
    batch = split.read(torch.arange(len(split)))
    views, anew = drawn.views_of(batch)
    own = data.splits["train"]
    for row, code, draws in zip(
        batch.rows.tolist(), trained.encode(to_float(views)).numpy(), anew.numpy(), strict=True
    ):
        of_image = np.flatnonzero(own.rows == row)
        assert ((own.codes[of_image] == code).all(1) & (drawn.split.codes[of_image] == draws).all(1)).any()


def test_it_is_said_what_replaces_codes_and_when_the_prior_is_another_by_now(drawn_run, accelerator, tmp_path, capsys):
    run = tmp_path / "run"
    shutil.copytree(drawn_run, run)
    train(training(tmp_path / "a", run), accelerator)
    told = capsys.readouterr()
    assert "seed 0, temperature 1.0, guidance 1.0; each image is shown in one of its 2 views" in told.out
    assert "of another prior" not in told.err
    prior = load_prior(run / "prior/model")
    with torch.no_grad():
        next(prior.parameters()).add_(1)
    prior.save_pretrained(run / "prior/model")
    train(training(tmp_path / "b", run), accelerator)
    assert "are of another prior than" in capsys.readouterr().err


def test_weights_in_a_folder_of_one_word_are_begun_from(drawn_run, accelerator, tmp_path, monkeypatch):
    """There is no folder two above it in its relative path."""
    shutil.copytree(drawn_run / "tokenizer/model", tmp_path / "given")
    monkeypatch.chdir(tmp_path)
    train(training(tmp_path / "new", drawn_run, start_from="given", steps=1, warmup=0), accelerator)


def test_draws_can_replace_codes_from_some_step_on(drawn_run, accelerator, tmp_path):
    train(training(tmp_path / "new", drawn_run, replace_by="near", drawn_codes=None), accelerator)
    later = {"replace_by": "drawn", "drawn_codes": str(drawn_run / "redrawn"), "steps": 6, "change_settings": True}
    train(training(tmp_path / "new", drawn_run, **later), accelerator)
    assert '"replace_by"' in (tmp_path / "new/tokenizer/history.jsonl").read_text()
    redraw(Settings(run=str(drawn_run), output=str(tmp_path / "others"), seed=1), accelerator)
    near = {"replace_by": "near", "drawn_codes": None, "steps": 8, "change_settings": True}
    train(training(tmp_path / "new", drawn_run, **near), accelerator)
    again = later | {"drawn_codes": str(tmp_path / "others"), "steps": 10}
    with pytest.raises(UserError, match=r"was trained on draws of fingerprint"):
        train(training(tmp_path / "new", drawn_run, **again), accelerator)


def test_draws_of_other_images_or_another_tokenizer_are_refused(drawn_run, accelerator, tmp_path):
    other = tmp_path / "other"
    shutil.copytree(drawn_run, other)
    model = other / "tokenizer/model"
    tokenizer = load_tokenizer(model)
    with torch.no_grad():
        tokenizer.quantizer.codebook += 1
    tokenizer.save_pretrained(model)
    with pytest.raises(UserError, match=r"holds codes of the tokenizer .*, not of "):
        train(training(tmp_path / "b", other), accelerator)
    path = tmp_path / "c"
    shutil.copytree(drawn_run / "redrawn", path)
    said = json.loads((path / "codes.json").read_text())
    said["source"]["fingerprint"] = "f" * 64
    (path / "codes.json").write_text(json.dumps(said))
    with pytest.raises(UserError, match="holds codes of other images than these"):
        train(training(tmp_path / "d", drawn_run, drawn_codes=str(path)), accelerator)
    assert not any((tmp_path / run / "tokenizer/model").exists() for run in "bd")


@pytest.mark.parametrize(
    "settings, said",
    [
        ({"replace_by": "drawn"}, "replace_by drawn needs drawn_codes"),
        ({"drawn_codes": "x"}, "drawn_codes is of replace_by drawn, and it is near"),
    ],
)
def test_the_two_settings_of_draws_go_together(settings, said):
    with pytest.raises(ValueError, match=said):
        TrainConfig(start_from="x", train="decoder", replace_codes=0.5, **settings)
