"""Networks that compute features: their weights are read safely or missing with an error, and a figure bears their
name."""

import hashlib
import io
import sys
import threading
import urllib.request
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from sklearn.datasets import load_digits
from torch import nn
from torch_fidelity.feature_extractor_inceptionv3 import FeatureExtractorInceptionV3
from torchvision import models

from smalti.common import folder
from smalti.common.config import build
from smalti.common.errors import UserError
from smalti.common.lock import Lock
from smalti.metrics import feature_extractor
from smalti.metrics.classifier import Classifier, ClassifierConfig, LabelledSource, accuracy_score, load_or_train
from smalti.metrics.feature_extractor import Features, imagenet, load_features, read_weights, rgb
from smalti.metrics.features_config import FeaturesConfig, Recipe

QUICK = Recipe(width=8, least_steps=100)
SMALL = "shufflenet_v2_x0_5"  # torchvision's model with the fewest weights


def images(*shape, seed=0):
    return torch.randint(0, 256, shape, dtype=torch.uint8, generator=torch.Generator().manual_seed(seed))


@pytest.fixture(scope="module")
def digits():
    """Return train and held-out digits of 8 x 8: every third is held out, and every tenth label of train is missing."""
    pixels, labels = load_digits(return_X_y=True)
    pixels = torch.from_numpy(pixels * 255 / 16).round().to(torch.uint8).view(-1, 1, 8, 8)
    labels, held_out = torch.from_numpy(labels), torch.arange(len(pixels)) % 3 == 0
    train = labels[~held_out].where(torch.arange(int((~held_out).sum())) % 10 > 0, -1)
    return LabelledSource.in_memory(pixels[~held_out], train), LabelledSource.in_memory(
        pixels[held_out], labels[held_out]
    )


@pytest.fixture(scope="module")
def classifier(digits, tmp_path_factory):
    return load_or_train(*digits, "digits", tmp_path_factory.mktemp("cache"), QUICK)


@pytest.fixture
def offline(tmp_path, monkeypatch):
    """Remove all downloaded weights, and block downloads."""
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    monkeypatch.setattr(urllib.request, "_opener", None)  # an existing opener keeps its proxies
    for name in ("http_proxy", "https_proxy", "HTTP_PROXY", "HTTPS_PROXY"):
        monkeypatch.setenv(name, "http://127.0.0.1:9")
    for name in ("no_proxy", "NO_PROXY"):
        monkeypatch.setenv(name, "")


def written(tmp_path, thing, name="weights.pth"):
    torch.save(thing, tmp_path / name)
    return str(tmp_path / name)


# ------------------------------------------------------------------------------------------------------- the classifier


def test_it_learns_digits(digits, classifier):
    """100 steps with a third of the default width reach 97%."""
    held_out, (pixels, labels) = digits[1], digits[1].read(torch.arange(len(digits[1].labels)))
    assert classifier.accuracy > 0.9
    assert classifier.agreement(pixels, labels) == pytest.approx(classifier.accuracy)
    assert classifier.features(pixels).shape == (len(held_out.labels), 128)


def test_the_cache_gives_it_back_bit_for_bit_and_training_again_does_too(digits, tmp_path):
    recipe = Recipe(width=8, least_steps=5, epochs=1)
    first = load_or_train(*digits, "digits", tmp_path / "a", recipe)
    when = [path.stat().st_mtime_ns for path in (tmp_path / "a").glob("*/*")]
    kept = load_or_train(*digits, "digits", tmp_path / "a", recipe)
    assert [path.stat().st_mtime_ns for path in (tmp_path / "a").glob("*/*")] == when and len(when) == 2
    assert kept.config == first.config
    for other in (kept, load_or_train(*digits, "digits", tmp_path / "b", recipe)):
        assert all(torch.equal(tensor, other.state_dict()[name]) for name, tensor in first.state_dict().items())


def test_another_recipe_or_other_images_are_another_classifier(digits, tmp_path):
    short = Recipe(width=8, least_steps=1, epochs=1)
    train, held_out = digits
    load_or_train(train, held_out, "digits", tmp_path, short)
    load_or_train(train, held_out, "digits", tmp_path, short.model_copy(update={"seed": 1}))
    load_or_train(train, held_out, "others", tmp_path, short)
    load_or_train(LabelledSource.in_memory(*train.read(train.labelled())), held_out, "digits", tmp_path, short)
    assert len(list(tmp_path.iterdir())) == 4


def test_one_classifier_is_trained_for_all_who_ask_at_once(digits, tmp_path):
    """Others wait for who trains it, and read what he wrote."""
    short = QUICK.model_copy(update={"least_steps": 5, "epochs": 1})
    first = load_or_train(*digits, "digits", tmp_path, short)
    (path,) = tmp_path.glob("classifier-*")
    folder.remove(path)
    mine, found = Lock(path), list[Classifier]()
    mine.take()
    other = threading.Thread(target=lambda: found.append(load_or_train(*digits, "digits", tmp_path, short)))
    other.start()
    other.join(0.5)
    assert other.is_alive() and not found
    told = first.config.model_copy(update={"accuracy": 0.125})  # no training would say so
    folder.save_model(path, first, told)
    mine.release()
    other.join(30)
    assert found[0].config.accuracy == 0.125


def test_a_damaged_cache_is_written_again(digits, tmp_path):
    short = Recipe(width=8, least_steps=1, epochs=1)
    first = load_or_train(*digits, "digits", tmp_path, short)
    next(tmp_path.glob("*/model.safetensors")).write_bytes(b"half of it")
    again = load_or_train(*digits, "digits", tmp_path, short)
    assert torch.equal(again.head.weight, first.head.weight)


def test_training_leaves_the_random_numbers_of_others_alone(digits, tmp_path):
    before = torch.get_rng_state(), np.random.get_state()[1].copy()
    load_or_train(*digits, "digits", tmp_path, Recipe(width=8, least_steps=1, epochs=1, mirror=True))
    assert torch.equal(torch.get_rng_state(), before[0]) and np.array_equal(np.random.get_state()[1], before[1])


@pytest.mark.parametrize("shape", [(1, 8, 8), (3, 20, 33), (4, 16, 100), (3, 256, 256)])
def test_images_of_any_size_and_channels_have_128_features(shape):
    channels, *size = shape
    model = Classifier(
        ClassifierConfig(image_size=tuple(size), image_channels=channels, classes=2, recipe=QUICK)
    ).eval()
    assert model.features(images(2, *shape)).shape == (2, 128)
    with pytest.raises(ValueError, match=rf"must be uint8 \(N, {channels}, .* as the classifier was trained on, got"):
        model.features(images(2, 2, *size))


def test_the_network_is_convolutions_norms_rectifiers_and_pooling_in_this_order():
    """It rectifies behind the pooling, where there is a quarter as much, which is the same; in fp64, so 1e-12."""
    model = Classifier(ClassifierConfig(image_size=(9, 12), image_channels=3, classes=2, recipe=QUICK)).double().eval()
    x = pixels = torch.rand(4, 3, 9, 12, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    kinds = [layer for layer in model.trunk.modules() if isinstance(layer, nn.Conv2d | nn.BatchNorm2d)]
    levels = []
    for number, (convolution, norm) in enumerate(zip(kinds[::2], kinds[1::2], strict=True)):
        x = norm(convolution(x)).relu()
        levels.append(x)
        x = nn.functional.max_pool2d(x, 2, ceil_mode=True) if number < 2 else x
    linear, norm = (layer for layer in model.trunk if isinstance(layer, nn.Linear | nn.BatchNorm1d))
    expected = norm(linear(x.contiguous().flatten(1))).relu()
    torch.testing.assert_close(model.trunk(pixels), expected, rtol=0, atol=1e-12)
    torch.testing.assert_close(model.feature_maps(pixels), levels, rtol=0, atol=1e-12)  # one a level, rectified


def test_a_mirrored_image_is_taught_with_the_label_that_it_has_then():
    """The label says which half is bright: with the label it had before it was mirrored, nothing can be learnt."""
    labels = torch.arange(200) % 2
    pixels = torch.randint(0, 100, (400, 1, 8, 8), generator=torch.Generator().manual_seed(0), dtype=torch.uint8)
    pixels[::2, ..., :4] += 100
    pixels[1::2, ..., 4:] += 100
    shown, held_out = (LabelledSource.in_memory(some, labels) for some in pixels.split(200))
    recipe = QUICK.model_copy(update={"mirror": True})
    assert accuracy_score(shown._replace(mirrored=(1, 0)), held_out, recipe) == 1
    assert accuracy_score(shown, held_out, recipe) < 0.8


def test_images_that_do_not_show_their_class_teach_nothing(digits):
    """The accuracy on real images is that of their classifier; with shuffled labels it is one in ten."""
    train, held_out = digits
    pixels, labels = train.read(train.labelled())
    shuffled = LabelledSource.in_memory(
        pixels, labels[torch.randperm(len(labels), generator=torch.Generator().manual_seed(0))]
    )
    assert accuracy_score(LabelledSource.in_memory(pixels, labels), held_out, QUICK) > 0.9
    assert accuracy_score(shuffled, held_out, QUICK) < 0.3


def test_unlabelled_images_teach_nothing_and_say_so(tmp_path):
    source = LabelledSource.in_memory(images(5, 1, 8, 8), torch.tensor([-1, -1, 3, 3, -1]))
    with pytest.raises(UserError, match="at least 2 classes, got 2 labelled images of 1"):
        load_or_train(source, source, "x", tmp_path, QUICK)


# -------------------------------------------------------------------------------------------------- any network at all


def test_features_are_fp32_inside_of_autocast_too():
    network, shown = nn.Sequential(nn.Flatten(), nn.Linear(48, 5)), images(2, 3, 4, 4)
    found = Features(network, "linear")
    with torch.autocast("cpu", torch.bfloat16):
        again = found(shown)
    assert torch.equal(found(shown), again)


def test_features_are_the_networks_own_whatever_the_batch():
    network = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten())
    shown = images(5, 3, 8, 8)
    found = Features(network, "mean", batch_size=2)(shown)
    torch.testing.assert_close(found, shown.float().mean((2, 3)) / 127.5 - 1)


def test_grey_is_repeated_and_transparency_is_laid_on_white():
    grey = images(2, 1, 4, 4)
    assert torch.equal(rgb(grey), torch.cat([grey] * 3, 1))
    pixel = torch.tensor([[200, 0, 100, 0], [200, 0, 100, 255], [200, 0, 100, 51]], dtype=torch.uint8)[..., None, None]
    assert rgb(pixel)[..., 0, 0].tolist() == [[255, 255, 255], [200, 0, 100], [244, 204, 224]]
    with pytest.raises(ValueError, match=r"1 channel .*, got 2"):
        rgb(images(2, 2, 4, 4))


def test_a_grey_image_is_zero_where_imagenet_is_grey_on_average():
    flat = torch.tensor([0.485, 0.456, 0.406]).mul(255).round().to(torch.uint8).view(1, 3, 1, 1).expand(1, 3, 50, 70)
    assert imagenet(flat).shape == (1, 3, 224, 224)
    assert imagenet(flat).abs().max() < 0.5 / 255 / 0.22  # half a grey level


def test_a_network_that_gives_maps_is_refused():
    with pytest.raises(ValueError, match=r"network maps must give features \(2, D\), got \(2, 3, 8, 8\)"):
        Features(nn.Identity(), "maps")(images(2, 3, 8, 8))
    with pytest.raises(ValueError, match=r"images must be uint8 \(N, C, H, W\), got torch\.float32"):
        Features(nn.Identity(), "maps")(torch.zeros(2, 3, 8, 8))


def test_identity_follows_the_weights_and_what_they_are_shown():
    one, other = nn.Linear(3, 2), nn.Linear(3, 2)
    same = nn.Linear(3, 2)
    same.load_state_dict(one.state_dict())
    of = [Features(network, "x").identity for network in (one, same, other)]
    assert of[0] == of[1] != of[2] and Features(one, "x", imagenet).identity != of[0]


def test_the_classifiers_features_carry_its_name(classifier):
    found, shown = load_features(FeaturesConfig(), classifier=classifier), images(3, 1, 8, 8)
    torch.testing.assert_close(found(shown), classifier.features(shown))
    assert found.frechet_name == "fd_classifier"
    with pytest.raises(UserError, match="need labelled images"):
        load_features(FeaturesConfig())


# --------------------------------------------------------------------------------------------- networks from files


def test_torchscript_gives_what_the_network_gave(tmp_path):
    network = nn.Sequential(nn.Conv2d(3, 5, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten()).eval()
    with pytest.warns((FutureWarning, DeprecationWarning), match="deprecated"):
        torch.jit.script(network).save(str(tmp_path / "mine.pt"))
    grey = images(3, 1, 8, 8)
    found = load_features(FeaturesConfig(kind="torchscript", weights=str(tmp_path / "mine.pt")))
    torch.testing.assert_close(found(grey), Features(network, "the same")(grey))
    assert found.frechet_name == "fd_mine"
    as_data = load_features(FeaturesConfig(kind="torchscript", weights=str(tmp_path / "mine.pt"), channels="data"))
    assert as_data.identity != found.identity
    with pytest.raises(UserError, match=r"mine\.pt does not take images \(1, 8, 8\): .*expected input"):
        as_data(grey)


def test_a_file_that_is_no_torchscript_is_named(tmp_path):
    (tmp_path / "mine.pt").write_bytes(b"nothing")
    with pytest.raises(UserError, match=r"mine\.pt is not a network that torch\.jit\.save wrote"):
        load_features(FeaturesConfig(kind="torchscript", weights=str(tmp_path / "mine.pt")))


@pytest.mark.parametrize("suffix", ["pth", "safetensors"])
def test_a_torchvision_model_loses_its_head_of_however_many_classes(tmp_path, suffix):
    network, path = models.get_model(SMALL, num_classes=7).eval(), tmp_path / f"weights.{suffix}"
    save_file(network.state_dict(), path) if suffix == "safetensors" else torch.save(network.state_dict(), path)
    found, shown = (
        load_features(FeaturesConfig(kind="torchvision", name=SMALL, weights=str(path))),
        images(2, 1, 16, 16),
    )
    with torch.no_grad():
        torch.testing.assert_close(network.fc(found(shown)), network(imagenet(shown)))
    assert found(shown).shape == (2, 1024) and found.frechet_name == f"fd_{SMALL}"


class Blank(FeatureExtractorInceptionV3):
    """Return Inception as torch-fidelity builds it, with its initial weights, because no pretrained ones are at
    hand."""

    def __init__(self):
        nothing = io.BytesIO()
        torch.save({}, nothing)
        nothing.seek(0)
        super().__init__("blank", ["2048"], feature_extractor_weights_path=nothing)

    def load_state_dict(self, state_dict, strict=True):
        pass


def test_inception_is_torch_fidelitys_and_called_fid_with_its_own_weights_alone(tmp_path, monkeypatch):
    torch.manual_seed(0)
    network, shown = Blank(), images(1, 1, 32, 32)
    path = written(tmp_path, network.state_dict())
    found = load_features(FeaturesConfig(kind="inception", weights=path))
    with torch.no_grad():
        torch.testing.assert_close(found(shown), network(rgb(shown))[0])
    sha256 = hashlib.sha256(Path(path).read_bytes()).hexdigest()
    assert found(shown).shape == (1, 2048) and found.frechet_name == f"fd_inception_{sha256[:8]}"
    assert Features(nn.Identity(), "inception").frechet_name == "fd_inception"
    monkeypatch.setattr(feature_extractor, "FID_WEIGHTS", sha256[:8])  # as if they were the weights of 2015-12-05
    assert load_features(FeaturesConfig(kind="inception", weights=path)).frechet_name == "fid"


# ---------------------------------------------------------------------------------------------- what is missing is said


class Harm:
    def __reduce__(self):
        return exec, ("raise SystemExit('code in a file of weights was run')",)


def test_a_file_of_weights_runs_no_code(tmp_path):
    with pytest.raises(
        UserError, match=r"holds something else than tensors, and is not unpickled; .*state_dict\(\) alone"
    ):
        read_weights(tmp_path / written(tmp_path, {"a": Harm()}))
    with pytest.raises(UserError, match="is not unpickled"):
        load_features(FeaturesConfig(kind="inception", weights=written(tmp_path, {"a": Harm()})))


@pytest.mark.parametrize(
    "thing, message",
    [
        ({"model": {"a": torch.zeros(1)}, "step": 3}, r"must hold a state dict, names of tensors; got model, step"),
        ([torch.zeros(1)], "must hold a state dict, names of tensors; got list"),
    ],
)
def test_a_file_that_holds_more_than_weights_is_refused(tmp_path, thing, message):
    with pytest.raises(UserError, match=message):
        read_weights(tmp_path / written(tmp_path, thing))


@pytest.mark.parametrize("name", ["a.pth", "a.safetensors"])
def test_a_damaged_or_absent_file_of_weights_is_named(tmp_path, name):
    with pytest.raises(UserError, match=f"there is no file of weights .*{name}"):
        read_weights(tmp_path / name)
    (tmp_path / name).write_bytes(b"half")
    with pytest.raises(UserError, match=f"{name} (cannot be read as weights|holds something else)"):
        read_weights(tmp_path / name)


@pytest.mark.parametrize("kind, name", [("inception", None), ("torchvision", SMALL)])
def test_weights_of_another_network_are_refused(tmp_path, kind, name):
    path = written(tmp_path, {"a": torch.zeros(1)})
    with pytest.raises(UserError, match=r"weights\.pth does not fit"):
        load_features(FeaturesConfig(kind=kind, name=name, weights=path))


@pytest.mark.parametrize("kind, name", [("inception", None), ("torchvision", SMALL)])
def test_without_a_connection_it_says_which_file_to_fetch(offline, kind, name):
    with pytest.raises(UserError, match=r"weights https://.*\.pth cannot be downloaded .*give its path as weights"):
        load_features(FeaturesConfig(kind=kind, name=name))


def test_a_download_that_was_cut_short_is_not_used(offline, tmp_path):
    file = tmp_path / "hub/checkpoints" / models.get_model_weights(SMALL).DEFAULT.url.rpartition("/")[2]
    file.parent.mkdir(parents=True)
    torch.save(models.get_model(SMALL).state_dict(), file)
    with pytest.raises(UserError, match="was damaged and has been removed"):
        load_features(FeaturesConfig(kind="torchvision", name=SMALL))
    assert not file.exists()


@pytest.mark.parametrize(
    "kind, module, message",
    [
        (
            "inception",
            "torch_fidelity.feature_extractor_inceptionv3",
            r"need torch-fidelity; pip install torch-fidelity",
        ),
        ("timm", "timm", "networks of timm need it; pip install timm"),
    ],
)
def test_a_missing_library_is_named_with_its_remedy(monkeypatch, kind, module, message):
    monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(UserError, match=message):
        load_features(FeaturesConfig(kind=kind, name="resnet50"))


@pytest.mark.parametrize(
    "settings, message",
    [
        ({"kind": "timm"}, "kind timm needs name"),
        ({"kind": "none", "name": "resnet50"}, "kind none loads no network; leave name and weights out"),
        ({"kind": "torchscript"}, r"kind torchscript needs weights, the file that torch\.jit\.save wrote"),
        ({"kind": "classifier", "weights": "a.pth"}, "leave weights out"),
    ],
)
def test_settings_that_do_not_belong_together_are_refused(settings, message):
    with pytest.raises(UserError, match=message):
        build(FeaturesConfig, settings, "metrics.yaml")


@pytest.mark.parametrize(
    "name, message", [("resnet19", "did you mean resnet1"), ("squeezenet1_0", "ends in no linear layer")]
)
def test_a_model_that_will_not_do_is_refused_by_name(tmp_path, name, message):
    with pytest.raises(UserError, match=message):
        load_features(FeaturesConfig(kind="torchvision", name=name, weights=written(tmp_path, {"a": torch.zeros(1)})))
