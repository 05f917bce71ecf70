"""A VAE that is told of the class: p(x | z, y) and q(z | x, y), from training to drawing; and what it refuses."""

import json
import math

import numpy as np
import pytest
import torch

from smalti.common import codes, folder
from smalti.common.codes_info import TokenizerIdentity
from smalti.common.condition import Classes, Nothing
from smalti.common.data.config import ImagesConfig
from smalti.common.data.images import open_images
from smalti.common.data.pixels import to_float, to_pil, to_uint8
from smalti.common.errors import UserError
from smalti.pipeline.evaluate import Settings as PipelineSettings
from smalti.pipeline.evaluate import evaluate as evaluate_pipeline
from smalti.pipeline.generate import Settings as Generation
from smalti.pipeline.generate import generate
from smalti.pipeline.image_pipeline import ImagePipeline
from smalti.pipeline.playground.controller import open_controller
from smalti.pipeline.playground.latent_map import LatentMap
from smalti.pipeline.playground.rendering import data_uri
from smalti.prior.config import FitConfig, PriorConfig
from smalti.prior.fit import fit
from smalti.prior.model import build_prior
from smalti.prior.sampling_config import SamplingConfig
from smalti.prior.simple.config import MixtureConfig, StandardNormalConfig
from smalti.tokenizer.encode import Settings as EncodeSettings
from smalti.tokenizer.encode import encode
from smalti.tokenizer.evaluate import Settings as EvaluateSettings
from smalti.tokenizer.evaluate import evaluate
from smalti.tokenizer.labels import check_labels
from smalti.tokenizer.latents import Settings as LatentSettings
from smalti.tokenizer.latents import examine
from smalti.tokenizer.model import load_tokenizer
from smalti.tokenizer.network.config import ConvolutionalConfig, MLPConfig
from smalti.tokenizer.train import train
from smalti.tokenizer.vae.config import VAEConfig
from smalti.tokenizer.vae.model import VAE
from tests.conftest import NO_FEATURES, QUICK, tokenizer_training

MLP = MLPConfig(hidden=(16,))
CONVOLUTIONAL = ConvolutionalConfig(channels=(8, 8))
THREE = Classes(names=("a", "b", "c"))
IMAGES = torch.rand(6, 1, 8, 8, generator=torch.Generator().manual_seed(0)) * 2 - 1
LABELS_OF_IMAGES = torch.tensor([0, 1, 2, 0, 1, 2])
NETWORKS = pytest.mark.parametrize(
    "settings",
    [{"network": MLP}, {"network": CONVOLUTIONAL}, {"network": CONVOLUTIONAL, "latents": "grid"}],
    ids=["mlp", "convolutional", "grid"],
)


def vae(**settings) -> VAE:
    """Return a VAE of 8 x 8 grey images of three classes, with random weights."""
    torch.manual_seed(0)
    given = {"image_size": (8, 8), "network": MLP, "latent_dim": 3, "condition": THREE, **settings}
    return VAE(VAEConfig(**given))


# ----------------------------------------------------------------------------------------------------------- the model


@NETWORKS
def test_encoder_and_decoder_depend_on_the_class(settings):
    model, other = vae(**settings).eval(), (LABELS_OF_IMAGES + 1) % 3
    for parameter in model.parameters():  # residual blocks and heads begin at zero
        torch.nn.init.normal_(parameter, std=0.3)
    z = model.encode(IMAGES, LABELS_OF_IMAGES)
    assert not torch.allclose(z, model.encode(IMAGES, other))
    assert not torch.allclose(model.deviation(IMAGES, LABELS_OF_IMAGES), model.deviation(IMAGES, other))
    assert not torch.allclose(model.decode(z, LABELS_OF_IMAGES), model.decode(z, other))


@NETWORKS
def test_every_weight_has_a_gradient_and_only_the_vectors_of_classes_in_the_batch_move(settings):
    model = vae(**settings)
    sum(model(IMAGES[:2], torch.tensor([0, 2])).losses.values()).backward()
    assert not [name for name, each in model.named_parameters() if each.grad is None]
    moved = model.class_vectors.weight.grad.abs().sum(1) > 0
    assert moved.tolist() == [True, False, True]


@NETWORKS
def test_told_of_nothing_it_is_the_vae_it_was(settings):
    """Its weights have the names and shapes of models of before, and a label that is passed is not looked at."""
    model = vae(**settings, condition=Nothing()).eval()
    assert model.class_vectors is None
    assert torch.equal(model.encode(IMAGES), model.encode(IMAGES, LABELS_OF_IMAGES))
    assert torch.equal(model.decode(model.encode(IMAGES)), model.decode(model.encode(IMAGES), LABELS_OF_IMAGES))


def test_a_class_that_says_the_image_leaves_nothing_for_z_to_say():
    """Each class is one image, so told of it the rate falls to 0; without it z must say which of three: ln 3."""
    patterns = torch.sign(torch.rand(3, 1, 8, 8, generator=torch.Generator().manual_seed(1)) - 0.5)
    labels, rates = torch.arange(60) % 3, {}
    for condition in (THREE, Nothing()):
        model = vae(condition=condition)
        optimizer = torch.optim.Adam(model.parameters(), lr=1e-2)
        for _ in range(150):
            loss = sum(model(patterns[labels], labels).losses.values())
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        bound = model.bound(patterns, 1, torch.Generator().manual_seed(0), torch.arange(3))
        rates[condition.name()] = bound.rate.sum((1, 2)).mean().item()
    assert rates["class"] < 0.1 and rates["nothing"] > math.log(3) * 0.9, rates


def test_it_is_the_same_on_the_disk(tmp_path):
    model = vae().eval()
    model.save_pretrained(tmp_path / "kept")
    kept = load_tokenizer(tmp_path / "kept")
    assert kept.condition == THREE
    assert torch.equal(kept.encode(IMAGES, LABELS_OF_IMAGES), model.encode(IMAGES, LABELS_OF_IMAGES))


def test_a_folder_of_before_says_nothing_of_a_condition_and_is_read(tmp_path):
    vae(condition=Nothing()).save_pretrained(tmp_path)
    written = json.loads((tmp_path / "config.json").read_text())
    del written["condition"]
    (tmp_path / "config.json").write_text(json.dumps(written))
    assert load_tokenizer(tmp_path).condition == Nothing()
    del written["latent_dim"]
    (tmp_path / "config.json").write_text(json.dumps(written))
    with pytest.raises(UserError, match="latent_dim must be given, and is not there"):
        load_tokenizer(tmp_path)


@pytest.mark.parametrize(
    ("labels", "told"),
    [
        (None, "is told of the class of every image, .* give the labels"),
        (torch.tensor([0, 1]), r"labels must be a tensor of whole numbers \(6,\), one for each image, got .*\(2,\)"),
        ([0, 1, 2, 0, 1, 2], r"labels must be a tensor of whole numbers \(6,\), .* got list"),
        (torch.tensor([0, 1, 2, -1, 3, 0]), "2 of 6 images have no class of the 3"),
    ],
)
def test_images_without_a_class_are_refused_by_name(labels, told):
    model = vae()
    z = model.encode(IMAGES, LABELS_OF_IMAGES)
    for call in (
        lambda: model.encode(IMAGES, labels),
        lambda: model.decode(z, labels),
        lambda: model.output(z, labels),
        lambda: model.nll(IMAGES, z, labels),
        lambda: model.deviation(IMAGES, labels),
        lambda: model.bound(IMAGES, 1, None, labels),
    ):
        with pytest.raises(UserError, match=told):
            call()


# ----------------------------------------------------------------------------------------------------------- its images


@pytest.fixture(scope="module")
def digits():
    return open_images(ImagesConfig(), (8, 8), 1)


def test_training_reads_the_classes_from_the_images(digits):
    c = VAEConfig(image_size=(8, 8), network=MLP, condition=Classes()).over(digits)
    assert c.condition.class_names == digits.class_names and c.over(digits) == c


def test_images_without_classes_or_of_others_are_refused_with_what_to_do(digits):
    c = VAEConfig(image_size=(8, 8), network=MLP, condition=Classes())
    with pytest.raises(UserError, match=r"these images have no classes; give a source with labels .*kind nothing"):
        c.over(digits._replace(class_names=None))
    with pytest.raises(UserError, match=r"told of the classes a, b, c, and these images have 0, 1, 2"):
        check_labels(THREE, digits)
    some = digits.splits["test"].named("test")
    some.labels = np.where(np.arange(len(some)) < 4, -1, some.labels)
    with pytest.raises(UserError, match=r"4 of the .* images of split test have no class; label them, leave them out"):
        c.over(digits._replace(splits={**digits.splits, "test": some}))
    check_labels(Nothing(), digits._replace(class_names=None))


# --------------------------------------------------------------------------------------------- through every command


@pytest.fixture(scope="module")
def run(runs, accelerator):
    """Return a run of two numbers an image and its class: trained for 300 steps, encoded, N(0, I) as prior."""
    run = runs / "conditional"
    model = VAEConfig(image_size=(8, 8), network=MLPConfig(hidden=(64,)), latent_dim=2, condition=Classes())
    settings = {"lr": 1e-2, "steps": 300, "evaluate_every": 300, "save_every": 300, "batch_size": 64}
    train(tokenizer_training(run, model=model, **settings), accelerator)
    train(tokenizer_training(run, model=model, **settings), accelerator)  # the same command: nothing is left to do
    encode(EncodeSettings(run=str(run), views=1, precision="fp32"), accelerator)
    fit(FitConfig(run=str(run), model=StandardNormalConfig()), accelerator)
    return run


@pytest.fixture(scope="module")
def pipeline(run) -> ImagePipeline:
    return ImagePipeline.from_run(run, SamplingConfig())


def test_the_class_that_is_asked_for_is_drawn(run, pipeline, digits, accelerator, tmp_path):
    """The prior knows no class: z is the same for all, and the decoder draws what is asked for. Each image is nearest
    to the mean digit of its class, of ten; half of 100 is far above the 10% of chance (66% seen after 300 steps)."""
    drawn = pipeline(labels=list(range(10)), num_images=100, seed=0)
    train_split = digits.splits["train"].read(torch.arange(len(digits.splits["train"])))
    means = torch.stack([train_split.images[train_split.labels == label].float().mean(0) for label in range(10)])
    pixels = torch.stack([torch.from_numpy(np.array(image)) for image in drawn.images]).float()
    nearest = torch.cdist(pixels.flatten(1), means.flatten(1)).argmin(1)
    assert drawn.labels == [i % 10 for i in range(100)]
    assert (nearest == torch.tensor(drawn.labels)).double().mean() > 0.5
    assert torch.equal(pipeline(labels=[3], seed=5).codes, pipeline(labels=[8], seed=5).codes)
    folder_of = generate(Generation(run=str(run), labels=(3, 7), num_images=4, output=str(tmp_path / "d")), accelerator)
    lines = [json.loads(line) for line in (folder_of / "metadata.jsonl").read_text().splitlines()]
    assert [line["label"] for line in lines] == ["3", "7", "3", "7"]


def test_rows_are_encoded_with_the_images_own_labels(run, digits):
    tokenizer, split = load_tokenizer(run / "tokenizer/model"), codes.load_codes(run / "codes").splits["test"]
    batch = digits.splits["test"].read(torch.arange(5))
    expected = tokenizer.encode(to_float(batch.images), batch.labels).numpy()
    np.testing.assert_allclose(split.codes[:5], expected, rtol=1e-5, atol=1e-6)  # other batch shapes round otherwise


def test_it_is_measured_given_the_class(run, accelerator):
    written = json.loads(evaluate(EvaluateSettings(run=str(run), features=NO_FEATURES), accelerator).read_text())
    logged = [json.loads(line) for line in (run / "tokenizer/metrics.jsonl").read_text().splitlines()]
    held_out = next(line["negative_elbo"] for line in logged if "negative_elbo" in line)
    assert written["protocol"]["condition"] == "class"
    assert written["figures"]["negative_elbo"] == pytest.approx(held_out, rel=0.2)  # test and validation digits
    settings = PipelineSettings(run=str(run), images=40, neighbours=20, features=QUICK)
    drawn = json.loads(evaluate_pipeline(settings, accelerator).read_text())
    assert drawn["figures"]["class_agreement"] > 0.4  # by a classifier, of ten


def test_a_picture_shows_each_z_as_every_class(run, accelerator):
    examine(LatentSettings(run=str(run), images=40), accelerator)
    names = ("classes", "plane", "points", "numbers", "traversals", "interpolations")
    assert all((run / f"tokenizer/latents/{name}.png").stat().st_size > 1000 for name in names)


def test_pictures_need_their_labels_and_are_refused_without(pipeline):
    first, last = pipeline(labels=["4", "4"], num_images=2, seed=0).images
    assert len(pipeline.reconstruct([first, last], labels="4")) == 2
    between = pipeline.interpolate(first, last, 4, label="4")
    assert between.labels == [4] * 4
    torch.testing.assert_close(between.codes[:1], pipeline.encode_pixels(pipeline._pixels(first), torch.tensor([4])))
    for call in (
        lambda: pipeline.reconstruct(first),
        lambda: pipeline.interpolate(first, last, 4),
        lambda: pipeline.log_prob(first),
        lambda: pipeline.vary(first),
    ):
        with pytest.raises(UserError, match=r"this tokenizer is told of the class of every image, .*: give labels, of"):
            call()


def test_a_pipeline_of_other_classes_for_tokenizer_and_prior_is_refused():
    tokenizer, identity = vae(condition=Classes(names=("a", "b"))), TokenizerIdentity(name="test", sha256="0" * 64)
    layout, architecture = tokenizer.config.layout, MixtureConfig(components=1)
    over = PriorConfig(layout=layout, condition=THREE, tokenizer=identity, architecture=architecture)
    with pytest.raises(UserError, match="told of 2 classes and the prior of 3, which are not the same"):
        ImagePipeline(tokenizer, build_prior(over), SamplingConfig(), identity)


def test_on_the_page_a_picture_is_seen_and_a_place_decoded_as_of_the_chosen_class():
    """Dropping a picture was refused, and a place of the map was always of the nearest image's class."""
    tokenizer, identity = vae(latent_dim=2).eval(), TokenizerIdentity(name="test", sha256="0" * 64)
    for parameter in tokenizer.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    over = PriorConfig(
        layout=tokenizer.config.layout,
        condition=Nothing(),
        tokenizer=identity,
        architecture=StandardNormalConfig(),
    )
    pipeline = ImagePipeline(tokenizer, build_prior(over), SamplingConfig(), identity)
    images, z = to_uint8(IMAGES), tokenizer.encode(IMAGES, LABELS_OF_IMAGES)
    shown = LatentMap(images, LABELS_OF_IMAGES, THREE.names, torch.zeros(2), torch.eye(2), z, ("right", "up"))
    controller = open_controller(pipeline, None, shown)
    held = controller.hold(images[:1], 0)
    for label, name in enumerate(THREE.names):
        held, told = controller.relabel(held, label), torch.tensor([label])
        codes = pipeline.encode_pixels(images[:1], told)
        assert held.label == label and torch.equal(held.codes, codes)
        assert data_uri(to_pil(pipeline.decode(codes, told))[0]) in controller.look(held)
        _, there = controller.at(*z[1].tolist(), label)
        assert data_uri(to_pil(pipeline.decode(z[1:2], told))[0]) in there and f"as of class {name}" in there
    _, there = controller.at(*z[1].tolist())
    assert data_uri(to_pil(pipeline.decode(z[1:2], LABELS_OF_IMAGES[1:2]))[0]) in there
    with pytest.raises(UserError, match="give the labels"):
        controller.hold(images[:1], None)


def test_a_run_of_it_is_reported_and_published(run, accelerator, tmp_path):
    from smalti.pipeline.publish import main as publish
    from smalti.pipeline.report import main as report

    examine(LatentSettings(run=str(run), images=40), accelerator)
    generate(Generation(run=str(run), num_images=4, output=str(tmp_path / "drawn")), accelerator)
    report([str(run)])
    assert "decoded as each class" in (run / "report.html").read_text()
    publish([str(run), "--to", str(tmp_path / "published")])
    card = (tmp_path / "published/README.md").read_text()
    assert 'pipeline.reconstruct(images, labels=["0", "1"])' in card
    assert folder.MODEL_FILES[0] in {path.name for path in (tmp_path / "published/tokenizer").iterdir()}
