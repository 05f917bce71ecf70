"""The mixture of Gaussians of patches: a tokenizer, and a model of images whose log p is known."""

import json
import math
from itertools import pairwise

import pytest
import torch

from smalti.common.errors import UserError
from smalti.common.gaussian_mixture import GaussianMixture
from smalti.common.run_folder import read_metrics
from smalti.pipeline.generate import Settings as Generation
from smalti.pipeline.generate import generate
from smalti.prior.train import train as train_prior
from smalti.tokenizer.cluster import cluster
from smalti.tokenizer.encode import Settings as EncodeSettings
from smalti.tokenizer.encode import encode
from smalti.tokenizer.evaluate import Settings as EvaluateSettings
from smalti.tokenizer.evaluate import evaluate
from smalti.tokenizer.kmeans.config import KMeansConfig
from smalti.tokenizer.kmeans.model import KMeansTokenizer
from smalti.tokenizer.mixture.config import GaussianMixtureConfig
from smalti.tokenizer.mixture.model import GaussianMixtureTokenizer
from smalti.tokenizer.model import load_tokenizer
from smalti.tokenizer.patches.cluster_config import ClusterConfig
from tests.conftest import NO_FEATURES, prior_training

COVARIANCES = ("spherical", "diagonal", "full", "tied")
every_covariance = pytest.mark.parametrize("covariance", COVARIANCES)


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


def images_of(number, side=4, seed=0):
    return torch.randint(0, 256, (number, 1, side, side), generator=seeded(seed)) / 127.5 - 1


def fitted(covariance="diagonal", steps=3, patch=2, K=5, patches=None, **settings) -> GaussianMixtureTokenizer:
    """Return a mixture of patches, unless given of random images, after some steps of EM."""
    given = {"image_size": (4, 4), "patch": patch, "codebook_size": K, "covariance": covariance} | settings
    tokenizer = GaussianMixtureTokenizer(GaussianMixtureConfig(**given))
    patches = tokenizer.patches(images_of(100)) if patches is None else patches
    tokenizer.for_fitting().begin(patches, seeded())
    for _ in range(steps):
        tokenizer.m_step(tokenizer.e_step(patches), patches)
    return tokenizer


def settings(run, **model) -> ClusterConfig:
    given = {"image_size": (8, 8), "patch": 2, "codebook_size": 16} | model
    return ClusterConfig(run=str(run), iterations=4, model=GaussianMixtureConfig(**given))


def test_of_one_vanishing_variance_and_equal_weights_the_codes_are_those_of_k_means():
    images = images_of(50)
    means = KMeansTokenizer(KMeansConfig(image_size=(4, 4), patch=2, codebook_size=7))
    means.begin(means.patches(images), seeded())
    soft = GaussianMixtureTokenizer(
        GaussianMixtureConfig(image_size=(4, 4), patch=2, codebook_size=7, covariance="spherical")
    )
    soft.centres.copy_(means.codebook)
    soft.scale.fill_(1e-3)
    assert torch.equal(soft.encode(images), means.encode(images))
    assert torch.equal(soft.decode(soft.encode(images)), means.decode(means.encode(images)))


@every_covariance
def test_the_code_is_the_component_of_the_largest_responsibility(covariance):
    tokenizer, images = fitted(covariance), images_of(20, seed=1)
    patches = tokenizer.patches(images).double()
    joint = tokenizer.log_weights + tokenizer.mixture.log_prob_each(patches)
    assert torch.equal(tokenizer.encode(images).flatten(), joint.softmax(1).argmax(1))


@every_covariance
def test_log_p_of_an_image_is_the_sum_of_scikit_learns_over_its_patches(covariance):
    mixture_module = pytest.importorskip("sklearn.mixture")
    tokenizer, images = fitted(covariance), images_of(6, seed=1)
    mixture: GaussianMixture = tokenizer.mixture
    kind = {"spherical": "spherical", "diagonal": "diag"}.get(covariance, covariance)
    peer = mixture_module.GaussianMixture(5, covariance_type=kind)
    peer.weights_, peer.means_ = mixture.log_weights.exp().numpy(), mixture.means.numpy()
    inverse = 1 / mixture.scale if covariance in ("spherical", "diagonal") else torch.linalg.inv(mixture.scale).mT
    peer.precisions_cholesky_ = inverse.numpy()
    peer.covariances_ = mixture.scale.numpy()  # asked for its presence alone
    log_p = peer.score_samples(tokenizer.patches(images).double().numpy()).reshape(6, 4).sum(1)
    expected = -torch.from_numpy(log_p) - 16 * math.log(2 / 255)
    torch.testing.assert_close(tokenizer.exact_nll(images)["density"], expected)


@pytest.mark.parametrize("covariance", ["spherical", "diagonal"])
def test_the_levels_of_a_patch_of_one_pixel_sum_to_one(covariance):
    tokenizer = fitted(covariance, patch=1, image_size=(1, 1), K=3, regularization=1e-4)
    every_level = (torch.arange(256) / 127.5 - 1).view(256, 1, 1, 1)
    assert (-tokenizer.exact_nll(every_level)["levels"]).exp().sum() == pytest.approx(1, abs=1e-5)  # fp32 pixels


def test_of_wide_components_levels_and_density_agree():
    """Within the curvature of the density over a level, (level / σ)² / 24 a pixel."""
    tokenizer, images = fitted("diagonal", regularization=0.25), images_of(6, seed=1) / 2
    images = ((images + 1) * 127.5).round() / 127.5 - 1
    found = tokenizer.exact_nll(images)
    torch.testing.assert_close(found["levels"], found["density"], atol=1e-3, rtol=0)


def test_correlated_pixels_have_no_probability_of_levels():
    assert fitted("full").exact_nll(images_of(2)).keys() == {"density"}


@every_covariance
def test_no_step_of_em_raises_the_objective_and_it_resumes_bit_for_bit(tmp_path, accelerator, covariance):
    whole = cluster(settings(tmp_path / "whole", covariance=covariance), accelerator)
    lines = read_metrics(tmp_path / "whole/tokenizer/metrics.jsonl")
    nats = [line["objective"] for line in lines if "objective" in line]
    assert len(nats) == 4 and all(after < before + 1e-3 for before, after in pairwise(nats))  # the regularization

    halted = settings(tmp_path / "halted", covariance=covariance)
    cluster(halted.model_copy(update={"iterations": 2}), accelerator)
    cluster(halted, accelerator)
    again, once = (load_tokenizer(path) for path in (tmp_path / "halted/tokenizer/model", whole))
    assert all(torch.equal(a, b) for a, b in zip(again.state_dict().values(), once.state_dict().values(), strict=True))


def test_it_passes_through_encode_prior_generate_and_evaluate(runs, accelerator):
    run = runs / "mixture"
    cluster(settings(run), accelerator)
    encode(EncodeSettings(run=str(run), precision="fp32"), accelerator)
    train_prior(prior_training(run), accelerator)
    drawn = generate(Generation(run=str(run), num_images=4), accelerator)
    assert len(list(drawn.glob("0*.png"))) == 4
    figures = json.loads(evaluate(EvaluateSettings(run=str(run), features=NO_FEATURES), accelerator).read_text())[
        "figures"
    ]
    assert figures["nll_of_levels"] > 0 and "nll_of_density" in figures


def test_a_patch_may_be_the_whole_image(tmp_path, accelerator):
    model = load_tokenizer(cluster(settings(tmp_path / "gm", patch=8, codebook_size=10), accelerator))
    assert model.encode(images_of(3, side=8)).shape == (3, 1)


def test_more_components_than_patches_are_refused(tmp_path, accelerator):
    with pytest.raises(UserError, match="codebook_size 4096 is more than the 1419 x 1 x 1 = 1419 patches"):
        cluster(settings(tmp_path / "gm", patch=8, codebook_size=4096), accelerator)


def test_a_singular_covariance_is_regularised_and_said(tmp_path, accelerator, capsys):
    cluster(settings(tmp_path / "gm", covariance="full"), accelerator)
    assert "are singular, but for the regularization 0.001" in capsys.readouterr().err
    with pytest.raises(UserError, match="take a regularization above 0"):
        fitted("full", steps=0, regularization=0.0, patches=torch.ones(20, 4))
