"""Perceptual and adversarial losses of stage one: known answers, and a training with both that resumes bit for bit."""

import copy
import shutil

import numpy as np
import PIL.Image
import pytest
import torch
from safetensors.torch import load_file, save_file

from smalti.common import folder, state
from smalti.common.data.config import ImagesConfig
from smalti.common.data.images import open_images
from smalti.common.errors import UserError
from smalti.common.finite import MOST_IN_A_ROW
from smalti.common.run_folder import read_metrics
from smalti.common.schedule import warmup_cosine
from smalti.common.seeds import uniforms_of_rows
from smalti.metrics.classifier import Recipe
from smalti.pipeline.reporting.bits_section import bits_section
from smalti.pipeline.reporting.model_card import measured
from smalti.pipeline.reporting.run_contents import gather
from smalti.tokenizer.config import TrainConfig, TrainedConfig
from smalti.tokenizer.criterion.adversarial.adversary import SALT, Adversary
from smalti.tokenizer.criterion.adversarial.augmentation import DRAWS, augmented
from smalti.tokenizer.criterion.adversarial.base import build_discriminator
from smalti.tokenizer.criterion.adversarial.features import FeatureDiscriminatorConfig, coarse
from smalti.tokenizer.criterion.adversarial.health import LONG, Health
from smalti.tokenizer.criterion.adversarial.loss import accuracy, adaptive_weight, adversarial_loss, hinge_loss, lecam
from smalti.tokenizer.criterion.adversarial.patches import PatchDiscriminatorConfig
from smalti.tokenizer.criterion.criteria import Criteria, losses_of, open_criteria, remark_on_losses
from smalti.tokenizer.criterion.perceptual.features import FeatureDistance, FeatureDistanceConfig, feature_distance
from smalti.tokenizer.criterion.trunk.base import Place, enlarged, rgb_of
from smalti.tokenizer.criterion.trunk.classifier import OwnClassifierConfig
from smalti.tokenizer.criterion.trunk.config import TimmConfig, TorchvisionConfig
from smalti.tokenizer.criterion.trunk.named_network import is_map
from smalti.tokenizer.criterion.trunk.torchscript import TorchScriptConfig
from smalti.tokenizer.evaluate import Settings as EvaluateSettings
from smalti.tokenizer.evaluate import evaluate
from smalti.tokenizer.labelled import rotated
from smalti.tokenizer.model import build_tokenizer, load_tokenizer
from smalti.tokenizer.multiscale.config import MultiscaleConfig
from smalti.tokenizer.network.convolutional_vectors import ConvolutionalConfig
from smalti.tokenizer.network.mlp import MLPConfig
from smalti.tokenizer.train import train
from smalti.tokenizer.vae.config import VAEConfig
from smalti.tokenizer.vqgan.config import VQGANConfig
from smalti.tokenizer.vqvae.config import VQVAEConfig
from smalti.tokenizer.vqvae2.config import VQVAE2Config
from tests import processes, toy_sequence
from tests.conftest import NO_FEATURES, tokenizer_training
from tests.test_training import same_files

TRUNK = OwnClassifierConfig(recipe=Recipe(width=8, least_steps=20, epochs=1))
PERCEPTUAL = FeatureDistanceConfig(trunk=TRUNK)
PATCHES = PatchDiscriminatorConfig(width=8, halvings=1, start=0.0, warmup=1 / 6, ramp=1 / 3)
HEADS = FeatureDiscriminatorConfig(width=8, trunk=TRUNK, start=0.0, warmup=0.0, ramp=0.0)
IMAGES = torch.rand(4, 1, 8, 8, generator=torch.Generator().manual_seed(0)) * 2 - 1
ROWS = torch.arange(4)


@pytest.fixture(scope="module")
def place(tmp_path_factory, accelerator) -> Place:
    """Return the digits of 8 x 8, and a cache that tests share."""
    settings = ImagesConfig()
    cache = tmp_path_factory.mktemp("sharper") / ".cache"
    return Place(open_images(settings, (8, 8), 1), settings, (8, 8), 1, cache, accelerator)


@pytest.fixture(scope="module")
def trunk(place):
    return TRUNK.builds.open(TRUNK, place, None)


@pytest.fixture(scope="module")
def sharp_run(place, accelerator):
    """Return a run of six steps with both losses. Copy it before you change it."""
    run = place.cache.parent / "sharp"
    train(tokenizer_training(run, perceptual=PERCEPTUAL, adversarial=PATCHES), accelerator)
    return run


def adversary_of(config, place, trunk, **settings) -> Adversary:
    c = TrainConfig(steps=6, batch_size=4, adversarial=config, **settings)
    torch.manual_seed(0)
    return Adversary(config, build_discriminator(config, place, trunk), c, place.accelerator)


def criteria_of(model: TrainedConfig, place, trunk) -> Criteria:
    """Return both criteria of a tokenizer with random weights, the adversarial one in full from the first step."""
    torch.manual_seed(0)
    tokenizer, config = build_tokenizer(model), PATCHES.model_copy(update={"warmup": 0.0, "ramp": 0.0})
    distance, adversary = FeatureDistance(PERCEPTUAL, trunk), adversary_of(config, place, trunk)
    adversary.adaptive = torch.tensor(3.0)
    return Criteria(tokenizer, place.accelerator, distance, adversary, {"perceptual": trunk})


# ------------------------------------------------------------------------------------------------------- known answers


def test_the_distance_of_an_image_to_itself_is_0_and_grows_with_noise(trunk):
    distance = FeatureDistance(PERCEPTUAL, trunk)
    noise = torch.randn(IMAGES.shape, generator=torch.Generator().manual_seed(1))
    none, little, much = (distance(IMAGES, IMAGES + scale * noise).mean() for scale in (0.0, 0.05, 0.5))
    assert none == 0 and 0 < little < much < 2


def test_the_distance_is_that_of_unit_vectors_over_places_and_levels():
    """Opposite vectors are 4 apart, orthogonal ones 2, whatever their lengths; levels count alike."""
    east, north = torch.tensor([9.0, 0.0]).view(1, 2, 1, 1), torch.tensor([0.0, 7.0]).view(1, 2, 1, 1)
    fine = (east.expand(1, 2, 2, 2), -east.expand(1, 2, 2, 2)), (east, north)
    found = feature_distance([a for a, _ in fine], [b for _, b in fine])
    torch.testing.assert_close(found, torch.tensor([3.0]), rtol=1e-4, atol=0)  # FAINT shortens the vectors


def test_features_that_are_all_zero_give_a_finite_gradient():
    """The root of a sum of squares has no derivative at 0: dead ReLUs in a white background made it NaN."""
    dead = torch.zeros(1, 3, 2, 2, requires_grad=True)
    feature_distance([torch.ones(1, 3, 2, 2)], [dead]).sum().backward()
    assert dead.grad.isfinite().all()


def test_hinge_losses_are_those_of_the_margins():
    real, fake = [torch.tensor([[2.0, 0.5]])], [torch.tensor([[-3.0, 0.5]])]
    assert hinge_loss(real, fake) == 0.25 + 0.75 and adversarial_loss(fake) == 1.25
    assert accuracy(real, fake) == (1 + 0.5) / 2


def test_lecam_pulls_logits_to_the_running_mean_of_the_other_side():
    real, fake, anchors = [torch.tensor([[1.0, 3.0]])], [torch.tensor([[-2.0]])], torch.tensor([[0.5], [1.0]])
    assert lecam(real, fake, anchors) == (0 + 4) / 2 + 2.5**2


def test_the_adaptive_weight_is_the_ratio_of_the_gradients_lengths_and_is_clipped():
    assert adaptive_weight(torch.tensor([3.0, 4.0]), torch.tensor([0.0, 2.0]), most=100) == 2.5
    assert adaptive_weight(torch.tensor([3.0, 4.0]), torch.tensor([0.0, 2.0]), most=2) == 2
    assert adaptive_weight(torch.ones(2), torch.zeros(2), most=7) == 7, "no gradient to raise: not infinity"


def test_each_augmentation_is_the_same_for_an_image_and_its_reconstruction_and_passes_the_gradient():
    pixels = torch.rand(2, 3, 16, 16, generator=torch.Generator().manual_seed(0)).requires_grad_()
    draws = torch.rand(DRAWS, 2, generator=torch.Generator().manual_seed(1))
    for which in (["translation"], ["colour"], ["cutout"], ["translation", "colour", "cutout"]):
        found = augmented(pixels, draws, which)
        other = augmented(pixels.detach(), draws, which)
        assert torch.equal(found, other) and not torch.equal(found, pixels)
        (gradient,) = torch.autograd.grad(found.sum(), pixels)
        assert gradient.abs().sum() > 0
    assert torch.equal(augmented(pixels, draws, []), pixels)


def test_augmentation_covers_its_whole_range():
    """Draws at both ends move by an eighth of the side, halve or half again the contrast, and cut a quarter."""
    image = torch.linspace(-1, 1, 16).view(1, 1, 1, 16).expand(2, 1, 16, 16)
    ends = torch.tensor([0.0, 1 - 1e-6]).expand(DRAWS, 2)
    moved = augmented(image, ends, ["translation"])
    assert torch.equal(moved[0, ..., 2:], image[0, ..., :-2]) and torch.equal(moved[1, ..., :-2], image[1, ..., 2:])
    low, high = augmented(image, ends, ["colour"])
    assert low.mean() == pytest.approx(-0.5, abs=1e-5) and high.mean() == pytest.approx(0.5, abs=1e-5)
    assert (low.std() / image[0].std()).item() == pytest.approx(0.5, abs=1e-4)
    middle = torch.full((DRAWS, 1), 0.5)
    assert (augmented(torch.ones(1, 1, 16, 16), middle, ["cutout"]) == 0).float().mean() == pytest.approx(0.25, abs=0.1)


@pytest.mark.parametrize("config", [PATCHES, HEADS], ids=["patches", "features"])
def test_the_logits_of_an_image_do_not_depend_on_the_batch(config, place, trunk):
    """They would with BatchNorm; fp32 sums in another order may differ."""
    discriminator = adversary_of(config, place, trunk).discriminator
    together, alone = discriminator(IMAGES), discriminator(IMAGES[:1])
    for a, b in zip(together, alone, strict=True):
        torch.testing.assert_close(a[:1], b, rtol=1e-4, atol=1e-5)


# -------------------------------------------------------------------------------------------- one step, and its parts

MODELS = {
    "vqvae": VQVAEConfig(image_size=(8, 8), channels=(8, 16)),
    "vqvae2": VQVAE2Config(image_size=(8, 8), channels=(8, 16)),
    "multiscale": MultiscaleConfig(image_size=(8, 8), channels=(8, 16)),
    "vae": VAEConfig(image_size=(8, 8), network=ConvolutionalConfig(channels=(8, 8))),
    "vqgan": VQGANConfig(
        image_size=(8, 8),
        image_channels=1,
        first_channels=8,
        channels=(8, 16),
        blocks=1,
        norm_groups=4,
        attention_levels=(),
    ),
    "mlp": VAEConfig(image_size=(8, 8), network=MLPConfig(hidden=(8,))),
}


@pytest.mark.parametrize("name", MODELS)
def test_the_gradient_is_that_of_the_sum_of_all_losses_and_reaches_no_trunk(name, place, trunk):
    """Each network is passed backwards once; autograd through all of them together gives the same, up to rounding."""
    criteria = criteria_of(MODELS[name], place, trunk)
    tokenizer, adversary = criteria.tokenizer, criteria.adversary
    adversary.config = adversary.config.model_copy(update={"augment": ()})
    terms = tokenizer(IMAGES)
    own = torch.stack([*terms.losses.values()]).sum()
    loss, logged = criteria.add(own, terms, IMAGES, ROWS, 0)
    last = tokenizer.last_layer()
    found = torch.autograd.grad(loss, [last, terms.output], retain_graph=True)

    image = tokenizer.likelihood.mean(terms.output)
    distance = criteria.distance(IMAGES, image).mean()
    fooled = adversarial_loss(adversary.discriminator(image))
    rest = own + PERCEPTUAL.weight * tokenizer.error_weight() * distance
    plain = rest + 3 * PATCHES.weight * fooled
    expected = torch.autograd.grad(plain, [last, terms.output], retain_graph=True)
    for a, b in zip(found, expected, strict=True):
        assert b.abs().max() > 0
        torch.testing.assert_close(a, b, rtol=1e-3, atol=1e-3 * b.abs().max().item())
    assert loss.item() == pytest.approx(plain.item(), rel=1e-4) and logged["perceptual_loss"] == distance
    assert all(parameter.grad is None for parameter in trunk.parameters())

    norms = [torch.autograd.grad(each, last, retain_graph=True)[0].norm() for each in (rest, fooled)]
    adversary.step(0)
    expected_weight = min((norms[0] / norms[1]).item(), PATCHES.most)
    assert adversary.adaptive.item() == pytest.approx(expected_weight, rel=1e-3), "it holds for the next step"


def test_micro_batches_of_one_image_move_the_discriminator_as_the_whole_batch_does(place, trunk):
    found = []
    for accumulate in (1, 4):
        criteria = criteria_of(MODELS["vqvae"], place, trunk)
        adversary = criteria.adversary
        adversary.c = adversary.c.model_copy(update={"accumulate": accumulate})
        for rows in ROWS.chunk(accumulate):
            terms = criteria.tokenizer(IMAGES[rows])
            criteria.add(torch.stack([*terms.losses.values()]).sum(), terms, IMAGES[rows], rows, 0)
        gradients = torch.cat([parameter.grad.flatten() for parameter in adversary.parameters])
        adversary.step(0)
        found.append((gradients, adversary.anchors, adversary.adaptive))
    for whole, parts in zip(*found, strict=True):
        torch.testing.assert_close(whole, parts, rtol=2e-3, atol=1e-6)  # sums of fp32 in another order


@pytest.mark.parametrize("config", [PATCHES, HEADS], ids=["patches", "features"])
def test_the_discriminators_gradient_is_that_of_hinge_and_lecam_of_augmented_images(config, place, trunk):
    """The augmentation of an image and of its reconstruction are the same; anchors are of all heads."""
    adversary = adversary_of(config.model_copy(update={"lecam": 0.3}), place, trunk)
    adversary.anchors = torch.tensor([[0.4], [-0.7]]).expand_as(adversary.anchors).clone()
    adversary.judge(IMAGES, IMAGES / 2, ROWS, 2)
    found = [parameter.grad for parameter in adversary.parameters]

    draws = uniforms_of_rows(adversary.c.seed + SALT, np.full(4, 2), ROWS.numpy(), DRAWS)
    real, fake = (adversary.discriminator(augmented(each, draws, config.augment)) for each in (IMAGES, IMAGES / 2))
    whole = hinge_loss(real, fake) + 0.3 * lecam(real, fake, adversary.anchors)
    expected = torch.autograd.grad(whole, adversary.parameters)
    assert config.augment and max(each.abs().max() for each in expected) > 0
    for a, b in zip(found, expected, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-6)  # the same sums in fp32


@pytest.mark.parametrize("config", [PATCHES, HEADS], ids=["patches", "features"])
def test_it_learns_to_tell_images_from_reconstructions_and_is_then_called_too_strong(config, place, trunk, capsys):
    config = config.model_copy(update={"lr": 4e-3, "warmup": 0.0, "ramp": 0.0, "augment": ()})
    c = TrainConfig(steps=100, batch_size=4, adversarial=config)
    torch.manual_seed(0)
    adversary = Adversary(config, build_discriminator(config, place, trunk), c, place.accelerator)
    criteria = Criteria(build_tokenizer(MODELS["vqvae"]), place.accelerator, None, adversary)
    told = []
    for step in range(100):
        adversary.judge(IMAGES, IMAGES.roll(1, 3) / 4, ROWS, step)
        adversary.weigh(*a_loss())
        adversary.step(step)
        told.append(criteria.figures(step)["discriminator_accuracy"])
    assert told[0] < 0.75 and told[-1] > 0.95
    assert "the discriminator is too strong" in capsys.readouterr().err


def test_a_criterion_counts_by_its_start_warm_up_and_ramp(place, trunk):
    """Two steps of eight are without it, two train the discriminator alone, and then its weight rises by a fourth."""
    config = PATCHES.model_copy(update={"start": 0.25, "warmup": 0.25, "ramp": 0.5})
    adversary = adversary_of(config, place, trunk)
    adversary.c = adversary.c.model_copy(update={"steps": 8})
    adversary.adaptive = torch.tensor(3.0)
    torch.manual_seed(0)
    criteria = Criteria(build_tokenizer(MODELS["vqvae"]), place.accelerator, None, adversary)
    found = []
    for step in range(8):
        terms = criteria.tokenizer(IMAGES)
        own = torch.stack([*terms.losses.values()]).sum()
        loss, _ = criteria.add(own, terms, IMAGES, ROWS, step)
        trains = adversary.parameters[0].grad is not None and adversary.parameters[0].grad.abs().sum() > 0
        value = adversary._parts[-1].losses["adversarial_loss"] if adversary._parts else torch.tensor(1.0)
        found.append((bool(trains), ((loss - own) / (3 * config.weight * value)).item()))
        adversary._forget()
    assert [trains for trains, _ in found] == [False, False, *[True] * 6]
    shares = [share for _, share in found]
    assert shares == pytest.approx([0, 0, 0, 0, 0, 0.25, 0.5, 0.75], abs=1e-3)  # a difference of losses in fp32


def test_a_discriminator_that_is_not_finite_is_named_and_moves_nothing(place, trunk, capsys):
    criteria = criteria_of(MODELS["vqvae"], place, trunk)
    adversary = criteria.adversary
    kept = adversary.discriminator.layers[-1].weight.detach().clone()
    adversary.discriminator.layers[0].bias.data[0] = torch.nan
    terms = criteria.tokenizer(IMAGES)
    own = torch.stack([*terms.losses.values()]).sum()
    loss, _ = criteria.add(own, terms, IMAGES, ROWS, 0)
    (gradient,) = torch.autograd.grad(loss, criteria.tokenizer.last_layer())
    assert loss.isfinite() and gradient.isfinite().all() and gradient.abs().sum() > 0, "the tokenizer goes on without"
    adversary.step(0)
    assert "step 1 of the discriminator skipped: the discriminator's output is NaN" in capsys.readouterr().err
    assert torch.equal(adversary.discriminator.layers[-1].weight, kept) and adversary.skipped.total == 1
    assert adversary.anchors.isfinite().all() and adversary.adaptive == 3
    with pytest.raises(UserError, match=r"5 steps of the discriminator in a row .* a lower adversarial\.lr"):
        for step in range(1, MOST_IN_A_ROW):
            terms = criteria.tokenizer(IMAGES)
            criteria.add(torch.stack([*terms.losses.values()]).sum(), terms, IMAGES, ROWS, step)
            adversary.step(step)


def test_it_is_trained_alone_before_it_counts_and_enters_by_a_ramp():
    config = PatchDiscriminatorConfig(start=0.25, warmup=0.25, ramp=0.25)
    assert [config.trains(progress) for progress in (0.0, 0.24, 0.25, 0.9)] == [False, False, True, True]
    assert [config.counted(progress) for progress in (0.25, 0.49, 0.5, 0.625, 0.75, 1.0)] == [0, 0, 0, 0.5, 1, 1]


def test_the_pair_is_warned_of_by_cause_and_remedy():
    health, fine = Health(), {"discriminator_accuracy": 0.7, "real_logits": 0.3, "fake_logits": -0.2}
    strong, dead = fine | {"discriminator_accuracy": 0.99}, fine | {"fake_logits": 0.301}
    assert not [*health.of_figures(fine, True)] and not [w for _ in range(9) for w in health.of_figures(strong, False)]
    found = [warning for each in (strong, dead) for _ in range(LONG + 2) for warning in health.of_figures(each, True)]
    assert [warning.partition(":")[0] for warning in found] == [
        "the discriminator is too strong",
        "the discriminator is dead",
    ]
    assert all("adversarial.lr" in warning for warning in found)
    assert not [*health.of_evaluation(20.0, False), *health.of_evaluation(19.1, True)]
    assert not [*(late := Health()).of_evaluation(20.0, True)] and late.before == 20.0  # none before it counted
    (worse,) = Health(**health.state()).of_evaluation(18.9, True)
    assert "18.90 dB of PSNR, and 20.00 before" in worse and "adversarial.weight" in worse


def test_the_running_means_of_logits_begin_as_plain_means(place, trunk):
    """From 0 they would need hundreds of steps, in which LeCam pulls logits to nothing."""
    adversary = adversary_of(PATCHES, place, trunk)
    kept = []
    for step in (0, 1):
        adversary.judge(IMAGES, IMAGES / 2, ROWS, step)
        adversary.weigh(*a_loss())
        kept.append(adversary._logits.clone())
        adversary.step(step)
    torch.testing.assert_close(adversary.anchors, (kept[0] + kept[1]) / 2)


def a_loss() -> tuple[torch.Tensor, ...]:
    """Return a loss, a reconstruction, its gradient and the last layer they are of."""
    last = torch.nn.Parameter(torch.ones(1))
    return last.sum(), last * torch.ones(1), torch.ones(1), last


def test_heads_read_levels_of_at_most_32_places_a_side(place, trunk):
    discriminator = adversary_of(HEADS, place, trunk).discriminator
    level = torch.rand(2, 8, 70, 64, generator=torch.Generator().manual_seed(0))
    assert coarse(level).shape == (2, 8, 24, 22) and coarse(level[..., :32, :32]).shape == (2, 8, 32, 32)
    assert [len(logits[0]) for logits in discriminator(IMAGES)] == [64, 16, 4], "8 x 8 and its halves are read whole"


# ------------------------------------------------------------------------------------------------------------ the trunk


@pytest.mark.parametrize("size", [(8, 8), (6, 8)], ids=["square", "oblong"])
def test_a_mirrored_image_has_the_rotation_that_its_mirrored_picture_has(size):
    """Mirroring after the turn made a left turn of one image what a right turn of its mirror image is."""
    split = open_images(ImagesConfig(), size, 1).splits["train"]
    source = rotated(split)
    turns = len(source.labels) // len(split)
    turned, labels = source.read(torch.arange(turns))
    upright = turned[0].flip(-1)
    for image, label in zip(turned.flip(-1), labels, strict=True):
        found = torch.rot90(upright, source.mirrored[label] * 4 // turns, (1, 2))
        assert torch.equal(image, found)


def test_rotations_are_the_labels_where_there_are_none_and_leave_out_what_cannot_be_read(tmp_path):
    picture = np.zeros((8, 8), np.uint8)
    picture[0] = 255  # its top
    for name in ("train/a", "train/b", "validation/c"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        picture[4, 4] += 1
        PIL.Image.fromarray(picture).save(tmp_path / f"{name}.png")
    (tmp_path / "train/a.png").write_bytes((tmp_path / "train/a.png").read_bytes()[:45])
    split = open_images(ImagesConfig(source=str(tmp_path), memory=0, corrupt="skip"), (8, 8), 1).splits["train"]
    source = rotated(split)
    pixels, labels = source.read(torch.tensor([4, 0, 5, 6, 3, 7]))  # of a.png, 0 and 3
    assert labels.tolist() == [0, 1, 2, 3] and len(source.labels) == 4 * len(split) == 8
    tops = (pixels[0, 0, 0], pixels[1, 0, :, 0], pixels[2, 0, -1], pixels[3, 0, :, -1])
    assert all((top == 255).all() for top in tops)


def test_labels_are_the_task_where_there_are_some_and_rotations_where_they_are_asked_for(place, trunk):
    assert "of the classes of" in trunk.title and trunk.classifier.config.classes == 10
    rotations = TRUNK.model_copy(update={"task": "rotations"})
    assert "of the rotations of" in rotations.builds.open(rotations, place, None).title


def test_images_of_one_class_have_a_trunk_by_their_rotations(place):
    """Names of classes that have no image are no classes: a filtered set keeps them."""
    filtered = copy.copy(place.images.splits["train"])
    filtered.labels = np.zeros_like(filtered.labels)
    one = place._replace(images=place.images._replace(splits={**place.images.splits, "train": filtered}))
    found = TRUNK.builds.open(TRUNK, one, None)
    assert "rotations of the training images" in found.title and found.classifier.config.classes == 4


class Doubled(torch.nn.Module):
    def forward(self, pixels: torch.Tensor) -> torch.Tensor:
        return 2 * pixels


class Halved(torch.nn.Module):
    def forward(self, pixels: torch.Tensor) -> torch.Tensor:
        return pixels / 2


def test_a_torchscript_trunk_sees_rgb_and_small_images_enlarged(tmp_path, place):
    path = tmp_path / "trunk.pt"
    torch.jit.save(torch.jit.trace(Doubled(), torch.zeros(1, 3, 8, 8)), path)
    config = TorchScriptConfig(path=str(path), least_side=16)
    found = config.builds.open(config, place, None)
    (level,) = found(IMAGES)
    assert level.shape == (4, 3, 16, 16) and level.abs().max() > 1 and not found.kept()
    other = config.model_copy(update={"least_side": 8})
    assert other.builds.open(other, place, None).identity != found.identity


def test_a_torchvision_trunk_gives_the_last_map_of_each_size_and_reads_its_weights_from_a_file(tmp_path, place):
    from torchvision import models

    torch.manual_seed(0)
    save_file(models.mobilenet_v3_small().state_dict(), tmp_path / "weights.safetensors")
    config = TorchvisionConfig(network="mobilenet_v3_small", path=str(tmp_path / "weights.safetensors"))
    sizes = [level.shape[2] for level in config.builds.open(config, place, None)(IMAGES)]
    assert sizes == sorted(sizes, reverse=True) and sizes[0] == 32 and len(sizes) >= 4
    with pytest.raises(UserError, match="there is no file of weights"):
        missing = config.model_copy(update={"path": str(tmp_path / "nowhere.pth")})
        missing.builds.open(missing, place, None)


@pytest.mark.parametrize(("network", "mean", "levels"), [("resnet10t", 0.485, 5), ("tf_efficientnet_lite0", 0.5, 5)])
def test_a_timm_trunk_is_shown_pixels_as_its_weights_expect(network, mean, levels, tmp_path, place):
    """Its maps are those after the last norm of each size, whatever activation timm folds into the norm."""
    import timm

    torch.manual_seed(0)
    theirs = timm.create_model(network).eval()
    save_file(theirs.state_dict(), tmp_path / "weights.safetensors")
    config = TimmConfig(network=network, path=str(tmp_path / "weights.safetensors"))
    trunk = config.builds.open(config, place, None)
    trunk.check(place)
    found = trunk(IMAGES)
    assert len(found) == levels and found[0].shape[2] == 32
    assert trunk.mean[0] == mean
    shown = (enlarged(rgb_of(IMAGES), 64) + 1) / 2
    normed = (shown - torch.tensor(trunk.mean).view(3, 1, 1)) / torch.tensor(trunk.std).view(3, 1, 1)
    torch.testing.assert_close(found[-1], theirs.forward_features(normed), rtol=1e-4, atol=1e-4)


def test_outputs_with_the_channels_last_are_no_feature_maps(tmp_path, place):
    """ConvNeXt's blocks compute (B, h, w, N) inside; every level is channels first, each half of the one before."""
    from torchvision import models

    torch.manual_seed(0)
    save_file(models.convnext_tiny().state_dict(), tmp_path / "weights.safetensors")
    config = TorchvisionConfig(network="convnext_tiny", path=str(tmp_path / "weights.safetensors"))
    levels = [tuple(level.shape[1:]) for level in config.builds.open(config, place, None)(IMAGES[:1])]
    assert levels == [(96, 16, 16), (192, 8, 8), (384, 4, 4), (768, 2, 2)]


def test_sizes_are_those_of_feature_maps_where_both_sides_are_as_much_smaller():
    assert not is_map((16, 96), (64, 64)) and not is_map((768, 768), (64, 64)), "rows of channels"
    assert is_map((17, 17), (64, 64)) and is_map((8, 16), (64, 128)) and is_map((2, 3), (50, 64))


@pytest.mark.parametrize("trunk", [{"network": "vgg61", "path": "w.pth"}, {"network": "vgg16", "path": "nowhere.pth"}])
def test_a_wrong_trunk_of_a_new_run_is_said_as_it_is_and_no_state_is_blamed(trunk, place, tmp_path, accelerator):
    c = TrainConfig(steps=6, perceptual=FeatureDistanceConfig(trunk=TorchvisionConfig(**trunk)))
    tokenizer = build_tokenizer(MODELS["vqvae"])
    with pytest.raises(UserError, match=r"did you mean vgg|no file of weights") as error:
        open_criteria(c, tokenizer, place.images, tmp_path / "sharp", accelerator, None)
    assert "state" not in str(error.value) and "remove" not in str(error.value)


class Flat(torch.nn.Module):
    def forward(self, pixels: torch.Tensor) -> torch.Tensor:
        return (pixels * 127).round().detach()


class Dead(torch.nn.Module):
    def forward(self, pixels: torch.Tensor) -> torch.Tensor:
        return torch.relu(pixels - 2)


class Summed(torch.nn.Module):
    def forward(self, pixels: torch.Tensor) -> torch.Tensor:
        return pixels.sum(0, keepdim=True)


class Damaged(torch.nn.Module):
    def forward(self, pixels: torch.Tensor) -> torch.Tensor:
        return pixels * float("nan")


class OfEight(torch.nn.Module):
    def forward(self, pixels: torch.Tensor) -> torch.Tensor:
        return pixels * torch.ones(3, 8, 8)


@pytest.mark.parametrize(
    ("network", "told"),
    [
        (Flat(), "gives no gradient to the images"),
        (Dead(), "gives no gradient to the images"),
        (Damaged(), "gives NaN or Inf"),
        (Summed(), r"feature map \(B, N, h, w\) for each of 2 images, got \(1, 3, 12, 12\)"),
        (OfEight(), r"does not take images .*least_side"),
    ],
)
def test_a_trunk_that_could_not_be_trained_by_is_refused_before_the_first_step(network, told, place, tmp_path):
    path = tmp_path / "trunk.pt"
    torch.jit.save(torch.jit.script(network), path)
    larger = place._replace(image_size=(12, 12))
    with pytest.raises(UserError, match=told):
        TorchScriptConfig(path=str(path)).builds.open(TorchScriptConfig(path=str(path)), larger, None).check(larger)


@pytest.mark.parametrize(
    "shares", [{"start": 0.5, "warmup": 0.45, "ramp": 0.2}, {"start": 0.9, "warmup": 0.0, "ramp": 0.0}]
)
def test_shares_that_leave_no_whole_step_in_which_it_counts_are_refused(shares):
    """The shares sum to less than 1, and the last of nine steps still lies before the first in which it counts."""
    config = PatchDiscriminatorConfig(**shares)
    TrainConfig(steps=1000, adversarial=config)
    with pytest.raises(ValueError, match="would count in none of 9 steps"):
        TrainConfig(steps=9, adversarial=config)


def test_a_run_that_is_lengthened_is_told_that_the_discriminator_rests():
    """Its weight is 0 before and after: what changes is that it is trained no longer."""
    config = PatchDiscriminatorConfig()
    before, after = config.scheduled(250 / 1000), config.scheduled(250 / 3000)
    assert before["adversarial.weight"] == after["adversarial.weight"] == after["adversarial.lr"] == 0
    assert before["adversarial.lr"] == pytest.approx(warmup_cosine(250, peak=config.lr, warmup=0, total=1000))


def test_a_discriminator_that_could_never_count_is_refused():
    with pytest.raises(ValueError, match="leave no step in which the discriminator counts"):
        PatchDiscriminatorConfig(start=0.5, warmup=0.5)


@pytest.mark.parametrize("width", [136, 264])
def test_any_width_that_a_discriminator_may_have_can_be_normalised(width, place):
    discriminator = build_discriminator(PatchDiscriminatorConfig(width=width, halvings=2), place, None)
    assert all(logits.isfinite().all() for logits in discriminator(IMAGES))


# -------------------------------------------------------------------------------------------------------- the training


def test_a_resumed_training_with_both_losses_is_the_uninterrupted_one_bit_for_bit(sharp_run, accelerator):
    """It needs no cache: the state has the classifier's weights."""
    killed = shutil.copytree(sharp_run, sharp_run.parent.parent / "sharper-killed/sharp")
    folder.remove(killed / "tokenizer/state/step_00000006")
    folder.remove(killed / "tokenizer/config.yaml")  # names the other folder
    train(tokenizer_training(killed, perceptual=PERCEPTUAL, adversarial=PATCHES), accelerator)
    last = "state/step_00000006"
    names = [path.name for path in (sharp_run / "tokenizer" / last).glob("*.safetensors")]
    assert {"discriminator.safetensors", "discriminator_optimizer.safetensors", "adversary.safetensors"} <= {*names}
    files = ("metrics.jsonl", "model/model.safetensors", f"{last}/state.json", *(f"{last}/{name}" for name in names))
    assert same_files(sharp_run / "tokenizer", killed / "tokenizer", *files)
    assert not (killed.parent / ".cache").exists()


def test_two_processes_train_both_models_as_one_does(sharp_run):
    """Losses and gradients are averaged over processes, augmentation belongs to the row: they agree up to rounding."""
    two = sharp_run.parent / "two"
    config = sharp_run / "tokenizer/config.yaml"
    once = ["--evaluate_every", 6, "--save_every", 6]
    processes.finish(processes.command_of_two("tokenizer/train.py", config, "--run", two, *once))
    ours, theirs = (read_metrics(run / "tokenizer/metrics.jsonl") for run in (sharp_run, two))
    last = [[line for line in lines if "loss" in line][-1] for lines in (ours, theirs)]
    for name in ("loss", "perceptual_loss", "adversarial_loss", "discriminator_loss", "real_logits", "adaptive_weight"):
        assert last[0][name] == pytest.approx(last[1][name], rel=5e-3, abs=1e-4), name
    for name in ("discriminator", "adversary"):
        whole, parts = (
            load_file(run / f"tokenizer/state/step_00000006/{name}.safetensors") for run in (sharp_run, two)
        )
        for key in whole:
            torch.testing.assert_close(whole[key], parts[key], rtol=5e-3, atol=5e-4)
    one, both = (load_file(run / "tokenizer/model/model.safetensors") for run in (sharp_run, two))
    for key in one:
        torch.testing.assert_close(one[key], both[key], rtol=5e-3, atol=5e-4)


@pytest.mark.parametrize("config", [PATCHES, HEADS], ids=["patches", "features"])
def test_batches_of_one_image_train_a_discriminator_of_either_kind(config, place, accelerator, tmp_path):
    at_once = config.model_copy(update={"warmup": 0.0, "ramp": 0.0})
    run = place.cache.parent / f"one-{config.kind}"
    train(tokenizer_training(run, adversarial=at_once, batch_size=1, steps=3, log_every=1), accelerator)
    lines = [line for line in read_metrics(run / "tokenizer/metrics.jsonl") if "adversarial_loss" in line]
    assert [line["step"] for line in lines] == [1, 2, 3]
    assert all(line["skipped_steps"] == line["discriminator_skipped_steps"] == 0 for line in lines)
    assert (run / "tokenizer/state/step_00000003/discriminator.safetensors").exists()


def test_a_training_on_images_of_one_class_says_that_its_trunk_learns_rotations(accelerator, tmp_path, capsys):
    (tmp_path / "set/only").mkdir(parents=True)
    for number, pixels in enumerate(np.random.default_rng(0).integers(0, 256, (60, 8, 8), np.uint8)):
        PIL.Image.fromarray(pixels).save(tmp_path / f"set/only/{number}.png")
    images, run = ImagesConfig(source=str(tmp_path / "set")), tmp_path / "run"
    both = {"perceptual": PERCEPTUAL, "adversarial": HEADS}
    train(tokenizer_training(run, images=images, **both), accelerator)
    assert "rotations of the training images" in capsys.readouterr().out
    state_of = run / "tokenizer/state/step_00000006"
    assert (state_of / "trunk_perceptual.safetensors").exists() and (state_of / "discriminator.safetensors").exists()


def test_a_trunk_in_a_file_may_move_and_may_not_change(accelerator, tmp_path):
    """A killed training goes on with the same network wherever it lies, to the same weights."""
    path, moved = tmp_path / "trunk.pt", tmp_path / "moved.pt"
    torch.jit.save(torch.jit.trace(Doubled(), torch.zeros(1, 3, 8, 8)), path)
    by = lambda file: FeatureDistanceConfig(trunk=TorchScriptConfig(path=str(file)))  # noqa: E731
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    train(tokenizer_training(whole, perceptual=by(path)), accelerator)
    shutil.copytree(whole, killed)
    folder.remove(killed / "tokenizer/state/step_00000006")
    folder.remove(killed / "tokenizer/config.yaml")  # names the other folder
    path.rename(moved)
    train(tokenizer_training(killed, perceptual=by(moved)), accelerator)
    assert same_files(whole / "tokenizer", killed / "tokenizer", "metrics.jsonl", "model/model.safetensors")
    torch.jit.save(torch.jit.trace(Halved(), torch.zeros(1, 3, 8, 8)), path)
    with pytest.raises(UserError, match="trunk"):
        train(tokenizer_training(killed, perceptual=by(path), steps=9), accelerator)


def test_criteria_warn_of_a_dead_discriminator_and_of_worse_reconstructions(place, trunk, capsys):
    """And name the step; what was measured before it counts is what a fall is held against."""
    criteria = criteria_of(MODELS["vqvae"], place, trunk)
    figures = {"discriminator_accuracy": 0.5, "real_logits": 0.1, "fake_logits": 0.1}
    criteria.adversary.figures = lambda step: figures
    for step in range(LONG + 2):
        criteria.figures(step)
    criteria.begun(25.0)
    criteria.evaluated(5, 23.5)
    told = capsys.readouterr().err
    assert "the discriminator is dead" in told
    assert "step 5: reconstructions get worse" in told and "23.50 dB of PSNR, and 25.00 before" in told


def test_a_resumed_training_with_a_discriminator_over_features_is_the_uninterrupted_one(place, accelerator):
    whole, killed = place.cache.parent / "heads", place.cache.parent / "heads-killed"
    train(tokenizer_training(whole, adversarial=HEADS), accelerator)
    shutil.copytree(whole, killed)
    folder.remove(killed / "tokenizer/state/step_00000006")
    folder.remove(killed / "tokenizer/config.yaml")  # names the other folder
    train(tokenizer_training(killed, adversarial=HEADS), accelerator)
    last = "state/step_00000006"
    files = [f"{last}/{path.name}" for path in (whole / "tokenizer" / last).glob("*.safetensors")]
    assert f"{last}/trunk_adversarial.safetensors" in files and f"{last}/discriminator.safetensors" in files
    assert same_files(whole / "tokenizer", killed / "tokenizer", "metrics.jsonl", "model/model.safetensors", *files)


def test_a_discriminator_that_breaks_stops_the_training_with_what_was_sound(accelerator, tmp_path):
    """By a rate that no weights survive; nothing is saved while its steps are skipped, and the tokenizer stays well."""
    broken = PATCHES.model_copy(update={"warmup": 0.0, "ramp": 0.0, "lr": 1e37})
    with pytest.raises(UserError, match=r"5 steps of the discriminator in a row .* a lower adversarial\.lr"):
        train(tokenizer_training(tmp_path / "run", adversarial=broken, steps=20, save_every=1), accelerator)
    states = sorted(path.name for path in (tmp_path / "run/tokenizer/state").iterdir() if path.is_dir())
    assert states and states[-1] < "step_00000006"
    weights = load_file(tmp_path / "run/tokenizer/state" / states[-1] / "model.safetensors")
    assert all(tensor.isfinite().all() for tensor in weights.values() if tensor.is_floating_point())


def test_losses_cannot_come_into_a_run_and_the_way_to_them_is_named(finished_run, accelerator, tmp_path):
    """A discriminator in the middle of a training begins from nothing, in another run of the same weights."""
    run = shutil.copytree(finished_run, tmp_path / "digits")
    at_once = PATCHES.model_copy(update={"warmup": 0.0, "ramp": 0.0})
    c = tokenizer_training(finished_run, adversarial=at_once, steps=12)
    with pytest.raises(UserError, match=r"adversarial.kind .* another --run .*with --start_from .*digits/tokenizer"):
        train(c, accelerator)
    train(tokenizer_training(tmp_path / "on", start_from=str(run), adversarial=at_once, steps=1), accelerator)
    optimizer = load_file(tmp_path / "on/tokenizer/state/step_00000001/discriminator_optimizer.safetensors")
    assert {tensor.item() for name, tensor in optimizer.items() if name.endswith("step")} == {1.0}


def test_the_decoder_alone_is_trained_with_both_losses_and_every_code_stays(finished_run, accelerator, place):
    run, at_once = place.cache.parent / "decoder", PATCHES.model_copy(update={"warmup": 0.0, "ramp": 0.0})
    given = {"start_from": str(finished_run), "train": "decoder", "perceptual": PERCEPTUAL, "adversarial": at_once}
    train(tokenizer_training(run, **given), accelerator)
    before, after = (load_tokenizer(each / "tokenizer/model") for each in (finished_run, run))
    assert torch.equal(before.encode(IMAGES), after.encode(IMAGES))
    assert not torch.equal(before.decode(before.encode(IMAGES)), after.decode(before.encode(IMAGES)))


def test_an_evaluation_is_of_weights_before_it_counted_until_a_step_was_taken_with_it(place, trunk):
    """The discriminator counts from the fourth of six steps on, which the evaluation after three has not seen."""
    config = PATCHES.model_copy(update={"start": 0.5, "warmup": 0.0, "ramp": 0.0})
    criteria = Criteria(build_tokenizer(MODELS["vqvae"]), place.accelerator, None, adversary_of(config, place, trunk))
    for step, psnr, before in ((3, 20.0, 20.0), (4, 19.5, 20.0)):
        criteria.evaluated(step, psnr)
        assert criteria.adversary.health.before == before


def test_a_run_without_them_computes_and_saves_nothing_more(finished_run, accelerator):
    c = tokenizer_training(finished_run)
    tokenizer = build_tokenizer(c.model)
    criteria = open_criteria(c, tokenizer, None, finished_run / "tokenizer", accelerator, None)
    terms, loss = tokenizer(IMAGES), torch.ones(())
    assert criteria.add(loss, terms, IMAGES, ROWS, 0) == (loss, {})
    assert (criteria.tensors(), criteria.info(), criteria.figures(0), criteria.skipped()) == ({}, {}, {}, ())
    names = {path.name for path in (finished_run / "tokenizer/state/step_00000006").iterdir()}
    assert names == {f"{name}.safetensors" for name in ("model", "ema", "upkeep", "optimizer", "means")} | {
        "state.json"
    }


def test_weights_that_a_training_begins_from_are_what_it_is_held_against(sharp_run, tmp_path, accelerator):
    """With --start_from and a discriminator that counts at once, nothing said that reconstructions got worse."""
    at_once = PATCHES.model_copy(update={"warmup": 0.0, "ramp": 0.0})
    run = tmp_path / "begun"
    train(tokenizer_training(run, start_from=str(sharp_run), adversarial=at_once, steps=1), accelerator)
    before = read_metrics(run / "tokenizer/metrics.jsonl")[0]["psnr_pooled"]
    kept = folder.read_json(run / "tokenizer/state/step_00000001/state.json")
    assert kept["info"]["adversary"]["health"]["before"] == before


def test_losses_are_remembered_by_what_begins_from_their_weights(sharp_run, finished_run, tmp_path, accelerator):
    """The remark on bits was lost when the decoder alone was trained further."""
    train(tokenizer_training(tmp_path / "begun", start_from=str(sharp_run), steps=1), accelerator)
    train(tokenizer_training(tmp_path / "again", start_from=str(tmp_path / "begun"), steps=1), accelerator)
    assert losses_of(tmp_path / "again/tokenizer") == ("perceptual features", "adversarial patches")
    assert "losses beside the likelihood (perceptual features, adversarial patches)" in remark_on_losses(
        tmp_path / "again/tokenizer"
    )
    assert remark_on_losses(finished_run / "tokenizer") is None


def test_bits_of_a_sharpened_tokenizer_are_remarked_on_wherever_they_stand(sharp_run, accelerator, tmp_path, capsys):
    run = shutil.copytree(sharp_run, tmp_path / "sharp")
    evaluate(EvaluateSettings(run=str(run), features=NO_FEATURES), accelerator)
    said = "trained with losses beside the likelihood (perceptual features, adversarial patches): bits are"
    assert said in capsys.readouterr().err
    contents = gather(run)
    assert said in str(bits_section(contents).body) and said in "".join(measured(contents, "tokenizer"))


def test_the_model_that_is_saved_knows_nothing_of_them(sharp_run, finished_run):
    ours, plain = (load_file(run / "tokenizer/model/model.safetensors") for run in (sharp_run, finished_run))
    assert ours.keys() == plain.keys()


def test_another_trunk_than_the_run_began_with_is_refused(tmp_path, place):
    path = tmp_path / "trunk.pt"
    torch.jit.save(torch.jit.trace(Doubled(), torch.zeros(1, 3, 8, 8)), path)
    perceptual = FeatureDistanceConfig(trunk=TorchScriptConfig(path=str(path)))
    c = tokenizer_training(tmp_path, perceptual=perceptual)
    saved = state.State(3, {}, {"trunks": {"perceptual": "0" * 64}})
    with pytest.raises(UserError, match="was trained with a perceptual trunk of SHA-256 000000000000, and the network"):
        open_criteria(c, build_tokenizer(c.model), place.images, tmp_path, place.accelerator, saved)


def test_what_cannot_be_sharpened_is_refused(place, tmp_path):
    c = tokenizer_training(tmp_path, adversarial=PATCHES.model_copy(update={"halvings": 4}))
    arguments = (place.images, tmp_path, place.accelerator, None)
    with pytest.raises(UserError, match=r"adversarial\.halvings 4: images of 8x8 cannot be halved so often"):
        open_criteria(c, build_tokenizer(c.model), *arguments)
    blind = toy_sequence.SequenceTokenizer(toy_sequence.SequenceConfig(image_size=(8, 8)))
    with pytest.raises(UserError, match=r"gives none with a gradient; set perceptual\.kind"):
        open_criteria(c, blind, *arguments)
