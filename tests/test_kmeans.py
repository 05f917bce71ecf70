"""K-means: the lecture's thought model of a codebook, the start of every codebook, and a tokenizer itself."""

import pytest
import torch

from smalti.common.data.config import ImagesConfig
from smalti.common.errors import UserError
from smalti.pipeline.generate import Settings as Generation
from smalti.pipeline.generate import generate
from smalti.prior.train import train as train_prior
from smalti.tokenizer.bottleneck.config import EMAVQConfig
from smalti.tokenizer.cluster import cluster
from smalti.tokenizer.codebooks.upkeep import CodebookUpkeep
from smalti.tokenizer.encode import Settings as EncodeSettings
from smalti.tokenizer.encode import encode
from smalti.tokenizer.kmeans import clustering as module
from smalti.tokenizer.kmeans.clustering import assigned, e_step, kmeans, m_step, plus_plus
from smalti.tokenizer.kmeans.config import KMeansConfig
from smalti.tokenizer.kmeans.model import KMeansTokenizer
from smalti.tokenizer.model import load_tokenizer
from smalti.tokenizer.patches.cluster_config import ClusterConfig
from smalti.tokenizer.vqvae.config import VQVAEConfig
from smalti.tokenizer.vqvae.model import VQVAE
from tests.conftest import prior_training


@pytest.fixture
def generator():
    return torch.Generator().manual_seed(0)


@pytest.fixture
def vectors(generator):
    """Return 150 vectors around three centres."""
    centres = torch.tensor([[0.0, 0.0], [10.0, 0.0], [0.0, 10.0]])
    return centres.repeat_interleave(50, 0) + torch.randn(150, 2, generator=generator)


def test_a_step_is_an_em_step_of_a_mixture_with_hard_assignment(vectors):
    """With Gaussians of equal weight and a vanishing variance the posterior is one-hot, and the means are its weighted
    means."""
    means = vectors[:3].clone()
    distances = torch.cdist(vectors.double(), means.double()).square()
    posterior = (-distances / (2 * 1e-6)).softmax(dim=1)  # (150, 3)
    indices = e_step(vectors, means)
    assert torch.equal(posterior, torch.nn.functional.one_hot(indices, 3).double())
    maximum_likelihood = (posterior.T @ vectors.double()) / posterior.sum(0)[:, None]
    moved = m_step(*assigned(vectors, indices, 3), means, vectors)
    torch.testing.assert_close(moved.double(), maximum_likelihood, atol=1e-5, rtol=1e-5)  # fp32 sums


def test_the_objective_never_rises(generator):
    vectors = torch.randn(400, 4, generator=generator)
    means, values = vectors[:12].clone(), []
    for _ in range(15):
        indices = e_step(vectors, means)
        values.append((vectors - means[indices]).square().sum().item())
        means = m_step(*assigned(vectors, indices, 12), means, vectors)
        values.append((vectors - means[indices]).square().sum().item())
    assert values == sorted(values, reverse=True) and values[-1] < 0.8 * values[0]


def test_separate_clusters_are_found(vectors, generator):
    found = kmeans(vectors, 3, iterations=5, generator=generator)
    centres = torch.tensor([[0.0, 0.0], [10.0, 0.0], [0.0, 10.0]])
    assert torch.cdist(centres, found).amin(1).max() < 1


def test_an_empty_mean_goes_where_the_fit_is_worst(vectors):
    means = torch.cat([vectors[:50].mean(0, keepdim=True), torch.tensor([[99.0, 99.0]])])
    moved = m_step(*assigned(vectors[:60], e_step(vectors[:60], means), 2), means, vectors[:60])
    assert torch.equal(moved[1], vectors[:60][(vectors[:60] - moved[0]).square().sum(1).argmax()])


def test_spherical_means_are_on_the_sphere(generator):
    vectors = torch.nn.functional.normalize(torch.randn(200, 3, generator=generator), dim=1)
    found = kmeans(vectors, 7, iterations=3, generator=generator, spherical=True)
    torch.testing.assert_close(found.norm(dim=1), torch.ones(7))


def test_many_means_are_drawn_in_rounds_of_several(monkeypatch, generator):
    monkeypatch.setattr(module, "ROUNDS", 8)
    vectors = torch.randn(2000, 3, generator=generator)
    drawn = plus_plus(vectors, 100, generator)
    assert drawn.shape == (100, 3) and len(drawn.unique(dim=0)) > 95  # two draws in a round may coincide
    even = vectors[torch.randperm(2000, generator=generator)[:100]]
    assert torch.cdist(vectors, drawn).amin(1).mean() < torch.cdist(vectors, even).amin(1).mean()


def test_more_means_than_vectors_and_what_is_not_finite_are_refused(generator):
    with pytest.raises(ValueError, match="4 means need at least as many vectors to start from, got 3"):
        kmeans(torch.randn(3, 2), 4, iterations=1, generator=generator)
    with pytest.raises(ValueError, match="vectors must be finite"):
        kmeans(torch.tensor([[1.0], [torch.nan]]), 2, iterations=1, generator=generator)


def test_a_one_code_grid_is_deep_k_means(accelerator):
    """With one code an image and an EMA codebook without memory, a training step is K-means' M step on encoder
    outputs."""
    torch.manual_seed(0)
    quantizer = EMAVQConfig(codebook_size=4, code_dim=3, normalize=False, decay=1e-6)
    tokenizer = VQVAE(VQVAEConfig(image_size=(4, 4), patch=4, channels=(8,), quantizer=quantizer))
    images = torch.rand(64, 1, 4, 4) * 2 - 1
    z_e = tokenizer.encoder(images).flatten(1).detach()  # (64, 3): the grid is 1 x 1
    tokenizer.quantizer.initialize(z_e, torch.Generator().manual_seed(0))
    means = tokenizer.quantizer.vectors.clone() + 0.01
    tokenizer.quantizer.place(torch.arange(4), means)
    upkeep = CodebookUpkeep(tokenizer.tables(), revive_below=0.0)
    upkeep.observe(tokenizer.reconstruct(images).quantized)
    upkeep.step(accelerator, 0, revive=False)
    expected = m_step(*assigned(z_e, e_step(z_e, means), 4), means, z_e)
    torch.testing.assert_close(tokenizer.quantizer.vectors, expected, atol=1e-5, rtol=1e-4)  # 1e-6 of the start remains
    assert len(tokenizer.eval().decode(torch.arange(4).view(4, 1)).unique(dim=0)) == 4  # it can draw K images


# ------------------------------------------------------------------------------------------------------- the tokenizer


def settings(run, **others) -> ClusterConfig:
    defaults = {
        "run": str(run),
        "images": ImagesConfig(),
        "iterations": 4,
        "model": KMeansConfig(image_size=(8, 8), patch=2, codebook_size=16),
    }
    return ClusterConfig(**{**defaults, **others})


def test_a_code_decodes_to_its_mean_and_an_image_of_means_to_itself():
    tokenizer = KMeansTokenizer(KMeansConfig(image_size=(4, 6), image_channels=3, patch=2, codebook_size=8))
    tokenizer.codebook.uniform_(-1, 1, generator=torch.Generator().manual_seed(0))
    codes = torch.randint(0, 8, (5, 6), generator=torch.Generator().manual_seed(1))
    images = tokenizer.decode(codes)
    assert images.shape == (5, 3, 4, 6) and torch.equal(tokenizer.encode(images), codes)
    assert torch.equal(images[0, :, 2:4, 4:6].flatten(), tokenizer.codebook[codes[0, 5]])


def test_fitting_lowers_the_error_and_resumes_bit_for_bit(tmp_path, accelerator):
    from smalti.common.run_folder import read_metrics

    whole = cluster(settings(tmp_path / "whole"), accelerator)
    lines = [
        line["objective"] for line in read_metrics(tmp_path / "whole/tokenizer/metrics.jsonl") if "objective" in line
    ]
    assert len(lines) == 4 and lines == sorted(lines, reverse=True)

    halted = settings(tmp_path / "halted")
    cluster(halted, accelerator)
    for step in ("step_00000003", "step_00000004"):  # as if killed after two steps
        folder = tmp_path / "halted/tokenizer/state" / step
        if step.endswith("4"):
            for file in folder.iterdir():
                file.unlink()
            folder.rmdir()
    cluster(halted, accelerator)
    assert torch.equal(load_tokenizer(whole).codebook, load_tokenizer(tmp_path / "halted/tokenizer/model").codebook)


def test_it_passes_through_encode_prior_and_generate(tmp_path, accelerator):
    run = tmp_path / "km"
    cluster(settings(run), accelerator)
    encode(EncodeSettings(run=str(run), precision="fp32"), accelerator)
    train_prior(prior_training(run), accelerator)
    drawn = generate(Generation(run=str(run), num_images=4), accelerator)
    assert len(list(drawn.glob("0*.png"))) == 4 and (drawn / "grid.png").exists()
    assert isinstance(load_tokenizer(run / "pipeline/tokenizer"), KMeansTokenizer)


def test_more_means_than_patches_are_refused(tmp_path, accelerator):
    model = KMeansConfig(image_size=(8, 8), patch=8, codebook_size=4096)
    with pytest.raises(UserError, match=r"codebook_size 4096 is more than the 1419 x 1 x 1 = 1419 patches"):
        cluster(settings(tmp_path / "km", model=model), accelerator)


def test_a_patch_that_does_not_divide_is_refused():
    with pytest.raises(ValueError, match="a width of 6 does not divide by the patch 4"):
        KMeansConfig(image_size=(4, 6), patch=4)
