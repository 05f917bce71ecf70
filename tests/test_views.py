"""Views of an image: the plain view is the image, pixel for pixel; the others are shifted or mirrored."""

import json
import shutil
from pathlib import Path

import numpy as np
import PIL.Image
import pytest
import torch

from smalti.common import config
from smalti.common.condition import Nothing
from smalti.common.data.config import ImagesConfig
from smalti.common.data.images import open_images
from smalti.common.data.pixels import MODES
from smalti.common.data.run_images import open_run_images, run_images
from smalti.common.data.views import augment, default_views, different_views, image_view
from smalti.common.errors import UserError
from smalti.common.session import at_work
from smalti.metrics.feature_extractor import Features
from smalti.pipeline.generate import Settings as GenerateSettings
from smalti.pipeline.generate import generate
from smalti.pipeline.generation_config import GenerationConfig
from smalti.prior.model import build_prior, load_prior
from smalti.prior.sampling_config import SamplingConfig
from smalti.tokenizer.config import TrainConfig
from smalti.tokenizer.encode import Settings as EncodeSettings
from smalti.tokenizer.encode import chosen_views
from smalti.tokenizer.labelled import as_read
from smalti.tokenizer.model import load_tokenizer
from smalti.tokenizer.patches.cluster_config import ClusterConfig
from smalti.tokenizer.run_features import real_features

CONFIGS = Path(__file__).resolve().parents[1] / "configs"
FIRST = {"tokenizer.yaml": TrainConfig, "cluster.yaml": ClusterConfig}
SHIPPED = sorted(path for name in FIRST for path in CONFIGS.glob(f"*/{name}"))
SIZE = (6, 5)
MOVING = ImagesConfig(shift=2, flip=True)


def pictures(folder: Path, count: int, size: tuple[int, int], channels: int) -> np.ndarray:
    """Write so many pictures of noise as PNG files, and return their pixels (N, h, w, C)."""
    folder.mkdir()
    pixels = np.random.default_rng(0).integers(0, 256, (count, *size, channels), dtype=np.uint8)
    for i, image in enumerate(pixels):
        PIL.Image.fromarray(image.squeeze(-1) if channels == 1 else image, MODES[channels]).save(folder / f"{i}.png")
    return pixels


@pytest.fixture
def batch() -> torch.Tensor:
    return torch.randint(0, 256, (64, 3, *SIZE), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))


# --------------------------------------------------------------------------------------------------- the plain view


@pytest.mark.parametrize("memory", [1.0, 0.0], ids=["in memory", "from disk"])
@pytest.mark.parametrize("path", SHIPPED, ids=lambda path: path.parent.name)
def test_a_picture_of_the_size_asked_for_is_what_every_shipped_config_sees(path, memory, tmp_path):
    """Four configs enlarged each picture and cropped its middle: every pixel was resampled, and the rim was lost."""
    c = config.parse(FIRST[path.name], "", [str(path)])
    pixels = pictures(tmp_path / "set", 3, c.model.image_size, c.model.image_channels)
    settings = c.images.model_copy(update={"source": str(tmp_path / "set"), "subset": None, "memory": memory})
    for split in open_images(settings, c.model.image_size, c.model.image_channels).splits.values():
        read = split.read(np.arange(len(split)))
        plain = image_view(read.images, 0, read.rows, 0, settings)
        assert np.array_equal(plain.permute(0, 2, 3, 1), pixels[read.rows.numpy()])


# ----------------------------------------------------------------------------------------------- augmentation and views


def test_an_augmented_image_depends_on_seed_epoch_and_row_and_not_on_its_batch(batch):
    rows, epochs = torch.arange(64), torch.arange(64) % 3
    together = augment(batch, 1, rows, epochs, MOVING)
    some = torch.tensor([40, 2, 17])
    assert torch.equal(augment(batch[some], 1, rows[some], epochs[some], MOVING), together[some])
    for changed in ((2, rows, epochs), (1, rows + 64, epochs), (1, rows, epochs + 3)):
        assert not torch.equal(augment(batch, *changed, MOVING), together)


def test_augmentation_takes_every_shift_and_its_mirror_equally_often(batch):
    padded = torch.nn.functional.pad(batch[:1].float(), (2, 2, 2, 2), mode="replicate")[0].to(torch.uint8)
    moved = {
        (top, left, flip): window.flip(-1) if flip else window
        for top in range(5)
        for left in range(5)
        for flip in (False, True)
        for window in [padded[:, top : top + 6, left : left + 5]]
    }
    assert len(moved) == different_views(MOVING) == 50
    taken = augment(batch[:1].expand(2000, -1, -1, -1), 0, range(2000), 0, MOVING)
    counts = {place: int((taken == window).flatten(1).all(1).sum()) for place, window in moved.items()}
    assert sum(counts.values()) == 2000 and min(counts.values()) >= 15  # 40 expected of each, standard deviation 6.3
    assert 900 < sum(count for (_, _, flip), count in counts.items() if flip) < 1100  # 4.5 standard deviations


def test_what_comes_in_is_the_images_own_rim(batch):
    """Black bars would become part of every picture, and appear in drawn ones."""
    plain = torch.full((8, 1, 6, 6), 200, dtype=torch.uint8)
    assert torch.equal(augment(plain, 0, range(8), 0, ImagesConfig(shift=5)), plain)


def test_without_shift_and_flip_augmentation_changes_nothing(batch):
    assert torch.equal(augment(batch, 0, range(64), 5, ImagesConfig()), batch)


def test_the_augmentation_of_a_row_is_the_same_on_every_machine_and_in_every_version():
    places = torch.arange(30, dtype=torch.uint8).view(1, 1, *SIZE).expand(6, -1, -1, -1)
    middles = augment(places, 7, range(6), 3, MOVING)[:, 0, 3, [1, 2, 3]]
    assert middles.tolist() == [[14, 14, 13], [17, 16, 15], [16, 15, 15], [29, 28, 27], [13, 14, 14], [15, 16, 17]]


def test_the_first_view_is_the_image_the_second_its_mirror_and_the_others_augmentations(batch):
    rows = torch.arange(64)
    plain, mirror, third = (image_view(batch, 0, rows, index, MOVING) for index in range(3))
    assert torch.equal(plain, batch) and torch.equal(mirror, batch.flip(-1))
    assert torch.equal(third, augment(batch, 0, rows, 2, MOVING))
    assert torch.equal(
        image_view(batch, 0, rows, 1, ImagesConfig(shift=2)), augment(batch, 0, rows, 1, ImagesConfig(shift=2))
    )


@pytest.mark.parametrize(
    "images, settings, expected",
    [
        (300, MOVING, 8),
        (5_000, MOVING, 4),
        (20_000, MOVING, 2),
        (1_000_000, MOVING, 2),
        (20_000, ImagesConfig(shift=2), 1),
        (19_999, ImagesConfig(shift=2), 2),
        (300, ImagesConfig(), 1),
        (300, ImagesConfig(flip=True), 2),
        (0, MOVING, 8),
    ],
)
def test_views_follow_the_number_of_images_and_never_repeat_one(images, settings, expected):
    """Four views of 20,000 images cost a fifth of a run, and no one had asked for them."""
    assert default_views(images, settings) == expected


def test_encoding_says_how_many_views_it_chose_and_leaves_an_answer_alone(finished_run, accelerator, tmp_path, capsys):
    images = open_run_images(finished_run / "tokenizer", load_tokenizer(finished_run / "tokenizer/model").config)
    how = run_images(finished_run / "tokenizer")
    assert chosen_views(EncodeSettings(views=3), images, how, accelerator) == 3 and not capsys.readouterr().out
    assert chosen_views(EncodeSettings(), images, how, accelerator) == 8
    number = len(images.splits["train"])
    assert f"8 views an image, as fits {number:,} training images (--views)" in capsys.readouterr().out


# --------------------------------------------------------------------------------------------------- settings of before


@pytest.mark.parametrize("margin, shift", [(1, 1), (2, 1), (4, 2)])
def test_a_margin_is_refused_and_told_of_the_shift_that_moves_as_far(margin, shift):
    told = rf"run.yaml: images.margin: there is no margin any more.*`shift: {shift}` in its place"
    with pytest.raises(UserError, match=told):
        config.build(TrainConfig, {"images": {"margin": margin}}, "run.yaml")


def test_a_run_of_before_that_had_no_margin_is_read(tmp_path):
    """Every config.yaml of that time holds `margin: 0`."""
    (tmp_path / "config.yaml").write_text("images: {source: digits, margin: 0}\n")
    assert run_images(tmp_path) == ImagesConfig()
    assert "margin" not in ImagesConfig().model_dump()


def test_a_shift_as_wide_as_the_image_is_refused():
    with pytest.raises(UserError, match=r"images.shift 8 moves images of 8x16 out of sight"):
        open_images(ImagesConfig(shift=8), (8, 16), 1)


def test_a_configs_guidance_is_left_out_where_the_prior_has_no_classes(finished_run, accelerator, tmp_path, capsys):
    """One config serves folders with and without classes; without classes it ended in an error after both trainings."""
    run = tmp_path / "run"
    shutil.copytree(finished_run / "tokenizer/model", run / "tokenizer/model")
    without = load_prior(finished_run / "prior/model").config.model_copy(update={"condition": Nothing()})
    build_prior(without).save_pretrained(run / "prior/model")
    settings = GenerateSettings(run=str(run), num_images=2, guidance=1.5)
    folder = generate(settings, accelerator, SamplingConfig(guidance=1.5))
    assert len(list(folder.glob("*.png"))) == 3 and "guidance 1.5 leans towards a class" in capsys.readouterr().err
    assert GenerationConfig.read(run / "pipeline/generation_config.json").guidance == 1
    with pytest.raises(ValueError, match="guidance needs a prior with classes"):  # from the command line alone
        generate(settings.model_copy(update={"output": str(tmp_path / "other")}), accelerator)


# --------------------------------------------------------------------------------------------- what evaluations look at


def test_a_classifier_of_the_blurred_view_is_not_used_again_and_one_that_a_shift_parts_is():
    """It is cached beside the runs, and would judge by a view that no longer exists."""
    images, settings = open_images(ImagesConfig(), (8, 8), 1), ImagesConfig()
    key = as_read(images, settings)
    assert "margin" not in json.loads(key)[1]  # earlier keys have it
    assert as_read(images, settings.model_copy(update={"shift": 2})) == key
    for other in ({"white": 4095}, {"resize": "stretch"}, {"flip": True}):
        assert as_read(images, settings.model_copy(update=other)) != key


def test_features_are_kept_by_how_images_were_read(accelerator, tmp_path):
    """Features were cached by network and images only: cropped and stretched images shared them."""
    pictures(tmp_path / "set", 4, (8, 12), 1)
    network = Features(torch.nn.Flatten(), name="pixels")
    found = []
    for resize in ("crop", "stretch"):
        images = open_images(ImagesConfig(source=str(tmp_path / "set"), resize=resize), (8, 8), 1)
        split = images.splits["train"]
        found.append(real_features(network, images, split, torch.arange(len(split)), tmp_path / "cache", accelerator))
    assert not torch.equal(*found)


def test_runs_that_are_evaluated_at_once_share_no_folder_of_other_features(accelerator, tmp_path):
    """Of other sizes, networks or rows they removed each other's parts in one folder, and mixed them."""
    pictures(tmp_path / "set", 4, (8, 12), 1)
    for side in (4, 8):
        for name in ("first", "second"):
            images = open_images(ImagesConfig(source=str(tmp_path / "set")), (side, side), 1)
            network = Features(torch.nn.Flatten(), name="pixels", identity=name)
            split = images.splits["train"]
            real_features(network, images, split, torch.arange(len(split)), tmp_path / "cache", accelerator)
    assert len(list((tmp_path / "cache").glob("*/plan.json"))) == 4


def test_features_belong_to_the_rows_and_not_to_the_first_and_last_of_them(accelerator, tmp_path):
    pictures(tmp_path / "set", 9, (8, 8), 1)
    images, found = open_images(ImagesConfig(source=str(tmp_path / "set")), (8, 8), 1), []
    network, split = Features(torch.nn.Flatten(), name="pixels"), images.splits["train"]
    for between in (1, 2):
        positions = torch.tensor([0, between, 3])
        found.append(real_features(network, images, split, positions, tmp_path / "cache", accelerator))
    assert not torch.equal(*found)


def test_who_computes_features_locks_their_folder(accelerator, tmp_path):
    pictures(tmp_path / "set", 2, (8, 8), 1)
    images, seen = open_images(ImagesConfig(source=str(tmp_path / "set")), (8, 8), 1), []

    class Looking(torch.nn.Flatten):
        def forward(self, pixels: torch.Tensor) -> torch.Tensor:
            seen.extend(at_work(path.parent) for path in (tmp_path / "cache").glob("*/plan.json"))
            return super().forward(pixels)

    split = images.splits["train"]
    real_features(Features(Looking(), name="pixels"), images, split, torch.arange(1), tmp_path / "cache", accelerator)
    assert len(seen) == 1 and seen[0] is not None
