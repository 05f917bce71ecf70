"""The health of a codebook: its counts, its nearest codes, the advice, and the files that hold them."""

import numpy as np
import PIL.Image
import pytest
import torch

from smalti.common import codes, folder
from smalti.common.config import read_yaml, write_yaml
from smalti.common.data.config import ImagesConfig
from smalti.common.data.pixels import to_uint8
from smalti.common.errors import UserError
from smalti.common.folder import sha256
from smalti.common.layout import Layout
from smalti.tokenizer.bottleneck.config import FSQConfig, GumbelConfig, LFQConfig, ResidualConfig, SimVQConfig, VQConfig
from smalti.tokenizer.codebook import Settings, count_splits, examine, summary_lines
from smalti.tokenizer.codebooks.facts import CodebookFacts
from smalti.tokenizer.codebooks.health import NEAR, PAIRS, Codebook, advice, code_neighbours
from smalti.tokenizer.codebooks.picture import patch_grid, patches
from smalti.tokenizer.codebooks.usage import count
from smalti.tokenizer.encode import Settings as EncodeSettings
from smalti.tokenizer.encode import encode
from smalti.tokenizer.kmeans.config import KMeansConfig
from smalti.tokenizer.kmeans.model import KMeansTokenizer
from smalti.tokenizer.model import load_identified, load_tokenizer
from smalti.tokenizer.vqvae.config import VQVAEConfig
from smalti.tokenizer.vqvae.model import VQVAE
from tests import processes
from tests.conftest import tokenizer_training

TABLE = VQConfig(codebook_size=16, code_dim=4)
QUANTIZERS = {
    "vq": TABLE,
    "fsq": FSQConfig(levels=(3, 3, 2)),
    "lfq": LFQConfig(bits=4),
    "residual": ResidualConfig(code_depth=2, each=TABLE),
    "residual_fsq": ResidualConfig(code_depth=2, each=FSQConfig(levels=(3, 2))),
}


def random_run(path, kind="vq"):
    """Make the run of a tokenizer with random weights."""
    torch.manual_seed(0)
    if kind == "kmeans":
        tokenizer = KMeansTokenizer(KMeansConfig(image_size=(8, 8), patch=2, codebook_size=16))
        tokenizer.codebook.uniform_(-1, 1)
    else:
        tokenizer = VQVAE(VQVAEConfig(image_size=(8, 8), channels=(8, 16), quantizer=QUANTIZERS[kind]))
    tokenizer.save_pretrained(path / "tokenizer/model")
    write_yaml(
        tokenizer_training(path, images=ImagesConfig(shift=1, validation_share=0.5)), path / "tokenizer/config.yaml"
    )
    return path


def look(run, accelerator, *splits):
    """Examine the codebook, and return codebook.json."""
    examine(Settings(run=str(run), splits=splits or None, precision="fp32"), accelerator)
    return folder.read_json(run / "tokenizer/codebook.json")


def counted(run, accelerator):
    """Return the counts alone, without advice and picture."""
    tokenizer = load_identified(run / "tokenizer/model", "")
    settings = read_yaml(run / "tokenizer/config.yaml")
    return count_splits(Settings(run=str(run), precision="fp32"), *tokenizer, settings, accelerator)


# ------------------------------------------------------------------------------------------------------------ counting


@pytest.mark.parametrize("kind", ["vq", "residual"])
def test_the_histogram_of_codes_on_the_disk_is_that_of_encoding(tmp_path, accelerator, kind):
    """It counts the plain view; the second view of each image is left out."""
    run = random_run(tmp_path, kind)
    made = counted(run, accelerator)
    encode(EncodeSettings(run=str(run), views=2, shard_size=300, precision="fp32"), accelerator)
    read = counted(run, accelerator)
    assert made.source == "images of digits" and read.source == str(run / "codes")
    assert list(made.counts) == ["validation"] and list(read.counts) == ["train", "validation", "test"]
    assert torch.equal(made.counts["validation"], read.counts["validation"])
    assert made.images["validation"] == read.images["validation"] == 780


def test_counts_and_figures_are_of_the_whole_split(tmp_path, accelerator):
    figures = look(random_run(tmp_path), accelerator)["splits"]["validation"]
    (depth,) = figures["depths"]
    assert figures["codes"] == sum(depth["counts"]) == 16 * figures["images"]
    assert figures["dead_codes"] == depth["counts"].count(0) == 16 - round(16 * figures["usage"])
    assert (
        figures["bits_a_place"] == pytest.approx(np.log2(figures["perplexity"])) and figures["most_bits_a_place"] == 4
    )


def test_two_processes_count_what_one_counts(tmp_path, accelerator):
    run = random_run(tmp_path, "residual")
    out = processes.finish(processes.command_of_two("tokenizer/codebook.py", run, "--precision", "fp32"))
    assert folder.read_json(run / "tokenizer/codebook.json") == look(run, accelerator)
    assert out.count("advice:") == 1


def test_the_codes_of_another_tokenizer_are_not_used(tmp_path, accelerator, capsys):
    run = random_run(tmp_path)
    encode(EncodeSettings(run=str(run), precision="fp32"), accelerator)
    weights = run / "tokenizer/model"
    other = VQVAE(load_tokenizer(weights).config)
    other.save_pretrained(weights)
    found = counted(run, accelerator)
    assert found.source == "images of digits" and list(found.counts) == ["validation"]
    assert "is of another tokenizer" in capsys.readouterr().err
    assert codes.read_info(run / "codes")[0].tokenizer.whole != sha256(weights / "model.safetensors")


def test_a_split_that_is_not_there_is_refused_with_those_that_are(tmp_path, accelerator):
    with pytest.raises(UserError, match=r"has no split 'dev'; it has train, validation, test"):
        look(random_run(tmp_path), accelerator, "dev")


def test_no_run_and_no_tokenizer_are_told_with_what_to_do(tmp_path, accelerator):
    with pytest.raises(UserError, match=r"no trained tokenizer in .*; tokenizer/train\.py with --run .*none makes one"):
        look(tmp_path / "none", accelerator)
    with pytest.raises(UserError, match=r"no trained tokenizer in .*; tokenizer/train\.py with --run .* makes one"):
        look(tmp_path, accelerator)


# ------------------------------------------------------------------------------------------------------------- picture


@pytest.mark.parametrize("kind", [*QUANTIZERS, "kmeans"])
def test_every_kind_of_tokenizer_is_drawn_and_told(tmp_path, accelerator, kind, drawn_figures):
    figures = look(random_run(tmp_path, kind), accelerator)
    with PIL.Image.open(tmp_path / "tokenizer/codebook.png") as picture:
        assert picture.format == "PNG" and min(picture.size) > 400
    has_vectors = kind in ("vq", "residual", "kmeans")
    assert len(figures["nearest"]) == has_vectors * figures["code_depth"] and figures["advice"]
    printed = "\n".join(summary_lines(figures))
    assert figures["advice"][0] in printed and ("depth 2: used" in printed) == (figures["code_depth"] == 2)


def test_a_codes_patch_of_kmeans_is_its_mean(tmp_path):
    random_run(tmp_path, "kmeans")
    tokenizer = load_tokenizer(tmp_path / "tokenizer/model")
    drawn = patches(tokenizer, torch.ones(1, 16), 0, torch.arange(16))
    assert torch.equal(drawn, to_uint8(tokenizer.codebook.view(16, 1, 2, 2)))


def test_a_codes_patch_is_drawn_amid_the_mean_of_the_codes_in_use(tmp_path):
    """If only one code is in use, every place holds it: its patch is the middle of an image of that code."""
    random_run(tmp_path)
    tokenizer = load_tokenizer(tmp_path / "tokenizer/model")
    counts = torch.zeros(1, 16).index_fill(1, torch.tensor([5]), 9)
    drawn = patches(tokenizer, counts, 0, torch.tensor([5]))
    image = tokenizer.likelihood.mean(tokenizer.draw(tokenizer.lookup(torch.full((1, 5, 5), 5))))
    assert (drawn.int() - to_uint8(image)[..., 4:6, 4:6].int()).abs().max() <= 1  # sums are rounded differently


def test_the_mosaic_reads_like_a_page():
    tiles = np.arange(5, dtype=np.uint8).repeat(2 * 2 * 3).reshape(5, 2, 2, 3)
    assert patch_grid(tiles, 3)[::2, ::2, 0].tolist() == [[0, 1, 2], [3, 4, 225]]


# ------------------------------------------------------------------------------------------------------- nearest pairs


@pytest.mark.parametrize("K", [2, 5, 300, 700])
def test_nearest_pairs_are_those_of_all_distances(K):
    vectors = torch.randn(K, 3, generator=torch.Generator().manual_seed(K))
    found = code_neighbours(vectors, torch.ones(K))
    distances = torch.cdist(vectors.double(), vectors.double())
    first, second = torch.triu_indices(K, K, 1)
    order = distances[first, second].argsort()[:PAIRS]
    assert [pair.codes for pair in found.pairs] == list(zip(first[order].tolist(), second[order].tolist(), strict=True))
    nearest = distances.fill_diagonal_(torch.inf).amin(1)
    assert found.median == pytest.approx(nearest.median().item())
    assert [pair.distance for pair in found.pairs] == pytest.approx(distances[first, second][order].tolist())
    assert found.near == (nearest <= NEAR * nearest.median()).sum() and found.compared == K


def test_codes_that_are_the_same_are_at_distance_nothing_and_counted():
    vectors = torch.eye(8)
    vectors[3] = vectors[6]
    found = code_neighbours(vectors, torch.ones(8))
    assert found.pairs[0] == ((3, 6), 0.0, 0.0) and found.near == 2 and found.pairs[1].relative == pytest.approx(1)


def test_of_too_many_codes_the_most_used_are_compared():
    vectors, counts = torch.arange(10.0)[:, None], torch.tensor([0, 9, 0, 8, 0, 0, 7, 0, 0, 0])
    found = code_neighbours(vectors, counts, most=3)
    assert found.compared == 3 and [pair.codes for pair in found.pairs] == [(1, 3), (3, 6), (1, 6)]


def test_the_distances_are_where_the_search_is(tmp_path):
    """Normalised codes are compared on the sphere; the later depths of a residual stack are not normalised, and stay as
    they are."""
    random_run(tmp_path, "residual")
    first, second = load_tokenizer(tmp_path / "tokenizer/model").code_tables()
    assert first.norm(dim=1).allclose(torch.ones(16)) and second.norm(dim=1).std() > 0.1


# -------------------------------------------------------------------------------------------------------------- advice

BOOK = Codebook(
    VQConfig(codebook_size=64, code_dim=32, normalize=False).facts("model.quantizer."),
    codebook_size=64,
    revive_below=0.05,
)
STACK = BOOK._replace(
    names=("depth 1", "depth 2", "depth 3"), facts=ResidualConfig(each=VQConfig(code_dim=8)).facts("model.quantizer.")
)
EVEN = torch.full((1, 64), 50)


def test_a_healthy_codebook_needs_no_change():
    assert advice(BOOK, {"train": EVEN, "validation": EVEN // 5}, [code_neighbours(torch.eye(64), EVEN[0])]) == [
        "nothing to change: 100.0% of the codes are used on train, with a perplexity of 64.0 of 64"
    ]


def test_dead_codes_are_told_with_the_settings_that_are_not_yet_so():
    counts = EVEN * (torch.arange(64) < 20)
    (said,) = advice(BOOK, {"validation": counts})
    assert said.startswith("dead codes: 44 of 64 are never used on validation (0 would be expected")
    assert said.endswith(
        "Remedies, the first first: model.quantizer.normalize true; model.quantizer.code_dim 8; revive_below 0.1; "
        "model.quantizer.kind vq_ema or simvq; model.quantizer.codebook_size 32"
    )
    (said,) = advice(BOOK._replace(begun=True), {"validation": counts})
    assert said.endswith(
        "Remedies, the first first: revive_below 0.1; a tokenizer without start_from, whose kind and number of codes "
        "may be others"
    )
    better = BOOK._replace(facts=SimVQConfig(code_dim=8).facts("model.quantizer."), revive_below=0.0)
    (said,) = advice(better, {"validation": counts})
    assert (
        "normalize" not in said and "code_dim" not in said and "revive_below 0.05; model.quantizer.kind vq_ema;" in said
    )


@pytest.mark.parametrize(
    "facts, remedies",
    [
        (FSQConfig().facts("model.quantizer."), "more steps; model.quantizer.levels whose product is near 20"),
        (LFQConfig().facts("model.quantizer."), "a larger model.quantizer.spread; model.quantizer.bits 5"),
        (KMeansConfig().codebook, "more iterations; model.codebook_size 32"),
        (
            GumbelConfig().facts("model.quantizer."),
            "a larger model.quantizer.kl_weight; model.quantizer.kind vq_ema or simvq;",
        ),
    ],
)
def test_each_kind_is_advised_settings_that_it_has(facts, remedies):
    (said,) = advice(BOOK._replace(facts=facts), {"train": EVEN * (torch.arange(64) < 20)})
    assert remedies in said


def test_a_kind_that_says_nothing_of_itself_is_advised_no_setting_of_a_table():
    """A new kind of quantizer has no table until it says so: it was told of code_dim, normalize and codebook_size."""
    facts = CodebookFacts("mine", 4, "model.quantizer.")
    for counts in (EVEN * (torch.arange(64) < 20), EVEN * (torch.arange(64) < 64) + 2000 * (torch.arange(64) < 2)):
        (said,) = advice(BOOK._replace(facts=facts), {"train": counts})
        assert not any(setting in said for setting in ("code_dim", "normalize", "codebook_size", "revive_below"))


def test_a_perplexity_far_below_the_used_codes_is_told():
    counts = EVEN.clone()
    counts[0, :2] = 2000
    (said,) = advice(BOOK, {"train": counts})
    assert said.startswith(
        "skewed use: a perplexity of 17.8 where 64 codes are used on train; half of all places take one of 2"
    )
    assert "plain background" in said and said.endswith("model.quantizer.codebook_size 32")


def test_near_duplicates_are_told_with_how_many_codes_would_do():
    vectors = torch.eye(64)
    vectors[:8] = vectors[8:16] + 1e-3
    (said,) = advice(BOOK, {"train": EVEN}, [code_neighbours(vectors, EVEN[0])])
    assert said.startswith("near-duplicate codes: 16 of 64 have another within 0.1 of the median distance")
    assert said.endswith("Remedy: a model.quantizer.codebook_size of 56 or less")


def test_a_validation_split_that_uses_fewer_codes_than_so_many_of_train_would_is_told():
    validation = EVEN // 5 * (torch.arange(64) < 40)
    (said,) = advice(BOOK, {"train": EVEN, "validation": validation})
    assert said.startswith(
        "codes fitted to few images: validation uses 62.5% of the codes, where as many places of train use "
    )
    assert "more images; images.flip true" in said and said.endswith("model.quantizer.codebook_size 32")


def test_a_small_validation_split_is_not_blamed_for_being_small():
    """As many draws as codes, all equally likely, reach 63% of the codes: this shows no fault."""
    drawn = torch.randint(64, (1, 64), generator=torch.Generator().manual_seed(0))
    validation = count(drawn, Layout.of(8, 8, factors=(64,)))
    assert (validation == 0).sum() > 15
    assert advice(BOOK, {"train": EVEN, "validation": validation})[0].startswith("nothing to change")


def test_too_few_codes_to_judge_are_told_and_what_is_not_met_is_not_called_dead():
    counts = count(
        torch.randint(64, (1, 64), generator=torch.Generator().manual_seed(0)), Layout.of(8, 8, factors=(64,))
    )
    (said,) = advice(BOOK, {"validation": counts})
    assert said.startswith(
        "too few codes to judge by: 64 places of validation for 64 codes (drawn evenly they would use 63.2%)"
    )
    assert said.endswith("Remedy: --splits all")
    (said,) = advice(BOOK, {"train": counts})
    assert said.endswith("Remedy: more images, or model.quantizer.codebook_size 16")


def test_a_residual_depth_that_adds_nothing_is_told_and_not_called_dead_besides():
    counts = EVEN.repeat(3, 1)
    counts[2] = torch.tensor([3200] + [0] * 63)
    (said,) = advice(STACK, {"train": counts})
    assert said.startswith(
        "idle codebook: the codes at depth 3 of 3 say next to nothing on train (perplexities 64.0, 64.0, 1.0)"
    )
    assert "model.quantizer.code_depth 2" in said and "model.quantizer.each.codebook_size" in said


def test_dead_codes_of_a_residual_depth_are_told_with_their_depth():
    counts = EVEN.repeat(3, 1)
    counts[1, 30:] = 0
    (said,) = advice(STACK, {"train": counts})
    assert said.startswith("dead codes: 34 of 64 at depth 2 of 3 are never used on train")
    assert "model.quantizer.each.kind vq_ema or simvq" in said
