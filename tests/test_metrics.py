"""The metrics are those of their papers: they give known answers, and the values of the reference implementations."""

import math

import numpy as np
import pytest
import scipy.linalg
import torch
from torch_fidelity.metric_fid import fid_features_to_statistics, fid_statistics_to_metric
from torch_fidelity.metric_kid import kid_features_to_metric
from torch_fidelity.metric_prc import calculate_precision_recall_full
from torchmetrics.image.fid import FrechetInceptionDistance
from torchmetrics.image.kid import KernelInceptionDistance

from smalti.metrics import distances as distances_module
from smalti.metrics import neighbours
from smalti.metrics.distances import (
    density_coverage,
    frechet_distance,
    frechet_from_moments,
    kernel_distance,
    moments,
    precision_recall,
)
from smalti.metrics.neighbours import measure_memorisation, nearest_codes, nearest_rows
from smalti.metrics.similarity import psnr_each, psnr_of, squared_error_each, ssim_each


def normal(seed, *shape):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def images(seed, *shape):
    return torch.randint(0, 256, shape, dtype=torch.uint8, generator=torch.Generator().manual_seed(seed))


@pytest.fixture
def small_blocks(monkeypatch):
    """Make blocks so small that a small set has many, the last one not full."""
    monkeypatch.setattr(neighbours, "BLOCK", 900)
    monkeypatch.setattr(distances_module, "BLOCK", 900)


class AsTheyAre(torch.nn.Module):
    """Pass features through a metric of torchmetrics that expects images."""

    num_features = 6

    def forward(self, features):
        return features


# ------------------------------------------------------------------------------------------------------ pairs of images


def test_equal_images_are_alike_in_every_measure():
    same = images(0, 3, 3, 16, 16)
    assert psnr_each(same, same).tolist() == pytest.approx([100] * 3)
    assert ssim_each(same, same).tolist() == pytest.approx([1] * 3)


def test_an_error_of_one_level_is_48_decibels():
    black = torch.zeros(2, 1, 8, 8, dtype=torch.uint8)
    assert psnr_each(black, black + 1).tolist() == pytest.approx([48.1308] * 2)


def test_the_pooled_psnr_is_that_of_all_pixels_together_and_below_the_mean_over_images():
    """The mean over images was printed as PSNR, 24.89 where papers report 23.98."""
    original, worse = images(0, 6, 3, 8, 8), images(1, 6, 3, 8, 8)
    worse[:3] = original[:3] // 255 * 255 + (original[:3] + 1) % 255  # the first three are off by one level
    errors = squared_error_each(original, worse)
    together = (original.double() - worse.double()).square().mean().item()
    assert psnr_of(errors.mean()).item() == pytest.approx(10 * math.log10(255**2 / together))
    assert psnr_of(errors.mean()) < psnr_each(original, worse).mean() - 1


def test_ssim_of_flat_images_is_that_of_their_means():
    """(2 μ ν + c) / (μ² + ν² + c) is the luminance term alone; c = (0.01 · 255)²."""
    low, high = (torch.full((1, 1, 24, 24), level, dtype=torch.uint8) for level in (100, 150))
    expected = (2 * 100 * 150 + 6.5025) / (100**2 + 150**2 + 6.5025)
    assert ssim_each(low, high).item() == pytest.approx(expected, abs=5e-4)  # in fp32 the weights sum not quite to 1


@pytest.mark.parametrize("size", [(1, 1), (2, 5), (8, 8), (10, 30), (11, 11)])
def test_images_of_any_size_have_a_similarity(size):
    a, b = images(0, 4, 3, *size), images(1, 4, 3, *size)
    assert ssim_each(a, a).tolist() == pytest.approx([1] * 4)
    assert (ssim_each(a, b) < 0.9).all() and ssim_each(a, b).shape == (4,)


def test_a_similarity_does_not_depend_on_the_batch():
    a, b = images(0, 4, 1, 16, 16), images(1, 4, 1, 16, 16)
    alone = torch.cat([ssim_each(a[i : i + 1], b[i : i + 1]) for i in range(4)])
    torch.testing.assert_close(ssim_each(a, b), alone)


# ----------------------------------------------------------------------------------------------------- Fréchet distance


def test_equal_features_are_at_no_distance():
    assert frechet_distance(normal(0, 500, 6), normal(0, 500, 6)) == pytest.approx(0, abs=1e-6)


def test_a_shift_costs_its_square():
    a = normal(0, 500, 6)
    assert frechet_distance(a, a + torch.tensor([3.0, 4.0, 0, 0, 0, 0])) == pytest.approx(25)


def test_it_is_the_distance_that_the_matrix_root_gives():
    a, b = normal(0, 300, 5) @ normal(1, 5, 5), normal(2, 200, 5) @ normal(3, 5, 5)
    cov_a, cov_b = np.cov(a.T.numpy()), np.cov(b.T.numpy())
    root = scipy.linalg.sqrtm(cov_a @ cov_b).real
    expected = (a.mean(0) - b.mean(0)).square().sum().item() + np.trace(cov_a + cov_b - 2 * root)
    assert frechet_distance(a, b) == pytest.approx(expected)


def test_a_feature_that_says_nothing_new_costs_no_more_than_it_differs():
    """One-hot labels sum to one, so their covariance has no inverse."""
    a, b = normal(0, 300, 5), normal(2, 200, 5) @ normal(3, 5, 5)
    wide = [torch.cat([x, x, torch.ones(len(x), 1)], 1) for x in (a, b)]
    assert frechet_distance(*wide) == pytest.approx(2 * frechet_distance(a, b))


def test_it_is_the_distance_of_torchmetrics_and_torch_fidelity():
    a, b = normal(0, 300, 6), normal(2, 200, 6) @ normal(3, 6, 6)
    metric = FrechetInceptionDistance(feature=AsTheyAre())
    metric.update(a.float(), real=True)
    metric.update(b.float(), real=False)
    theirs = fid_statistics_to_metric(fid_features_to_statistics(a), fid_features_to_statistics(b), False)
    assert frechet_distance(a, b) == pytest.approx(theirs["frechet_inception_distance"], rel=1e-9)
    # torchmetrics ends in fp32
    assert frechet_distance(a.float(), b.float()) == pytest.approx(metric.compute().item(), rel=1e-3)


def test_moments_do_not_depend_on_blocks(small_blocks):
    features = 1000 + normal(0, 700, 6)
    found = moments(features)
    torch.testing.assert_close(found.mean, features.mean(0))
    torch.testing.assert_close(found.covariance, torch.cov(features.T))
    assert found.number == 700
    assert frechet_from_moments(found, moments(features + 1)) == pytest.approx(6)


def test_few_images_have_no_covariance():
    with pytest.raises(ValueError, match="6 images give no covariance of 6 features; compare more than 6"):
        frechet_distance(normal(0, 6, 6), normal(1, 100, 6))


# ------------------------------------------------------------------------------------------------------ kernel distance


def test_it_is_the_kernel_distance_of_torchmetrics_and_torch_fidelity_over_one_whole_subset():
    a, b = normal(0, 150, 6), 0.3 + normal(1, 150, 6)
    metric = KernelInceptionDistance(feature=AsTheyAre(), subsets=1, subset_size=150)
    metric.update(a.float(), real=True)
    metric.update(b.float(), real=False)
    theirs = kid_features_to_metric(a, b, kid_subsets=1, kid_subset_size=150, verbose=False)
    assert kernel_distance(a, b) == pytest.approx(theirs["kernel_inception_distance_mean"], rel=1e-9)
    assert kernel_distance(a, b) == pytest.approx(metric.compute()[0].item(), rel=1e-3)  # torchmetrics sums in fp32


def test_kernel_distance_of_two_points_each_by_hand():
    """k(x, y) = (xy + 1)³ for numbers: k(0, 1) = 1 within a; k(2, 3) = 343 within b; 1, 1, 27, 64 between."""
    a, b = torch.tensor([[0.0], [1]]), torch.tensor([[2.0], [3]])
    assert kernel_distance(a, b) == pytest.approx(1 + 343 - 2 * (1 + 1 + 27 + 64) / 4)


def test_kernel_distance_is_unbiased(small_blocks):
    """Draws of one distribution have distance 0 on average, however few: the mean of 200 lies within 4 standard
    errors."""
    found = torch.tensor([kernel_distance(normal(2 * i, 20, 4), normal(2 * i + 1, 50, 4)) for i in range(200)])
    assert found.mean().abs() < 4 * found.std() / 200**0.5 and found.min() < 0


# ------------------------------------------------------------------------------------------------------- neighbourhoods


def test_precision_and_recall_are_those_of_torch_fidelity(small_blocks):
    real, drawn = normal(0, 120, 4), 0.6 * normal(1, 90, 4) + 0.5
    expected = calculate_precision_recall_full(drawn, real, neighborhood=3)
    assert precision_recall(real, drawn) == pytest.approx(expected, abs=1e-7)  # the reference takes a mean in fp32


def test_precision_and_recall_by_hand():
    """On a line with k = 1 the radii are 1 at 0 and 1, and 9 at 10; 1.5 at 0.5 and 2, and 98 at 100."""
    real, drawn = torch.tensor([[0.0], [1], [10]]), torch.tensor([[0.5], [2.0], [100]])
    assert precision_recall(real, drawn, k=1) == (2 / 3, 1)
    assert precision_recall(drawn, real, k=1) == (1, 2 / 3)


def test_density_and_coverage_by_hand():
    """The radii are 1 at 0 and 1, and 9 at 10: 0.5 lies in two balls, 2.5 in the last only, 100 in none."""
    real, drawn = torch.tensor([[0.0], [1], [10]]), torch.tensor([[0.5], [2.5], [100]])
    assert density_coverage(real, drawn, k=1) == (1, 1)
    assert density_coverage(real, drawn[1:], k=1) == (0.5, pytest.approx(1 / 3))


def test_a_copy_of_the_real_set_has_everything():
    real = normal(0, 200, 4)
    assert precision_recall(real, real.clone()) == (1, 1)
    assert density_coverage(real, real.clone()) == (pytest.approx(6 / 5), 1)  # k others and itself, over k


def test_images_many_times_over_are_still_where_they_are():
    """Rounding of |x|² + |y|² − 2 x·y put copies 1e-6 apart, outside balls of radius 0."""
    real = (1e3 * normal(0, 20, 30)).repeat(5, 1)
    assert precision_recall(real, real[:20]) == (1, 1)


def test_a_set_far_away_has_nothing():
    real, drawn = normal(0, 50, 4), 100 + normal(1, 50, 4)
    assert precision_recall(real, drawn) == (0, 0) and density_coverage(real, drawn) == (0, 0)


@pytest.mark.parametrize("measure, fewest", [(precision_recall, 4), (density_coverage, 6), (kernel_distance, 2)])
def test_too_few_images_are_refused(measure, fewest):
    many, few = normal(0, 10, 3), normal(1, fewest - 1, 3)
    with pytest.raises(
        ValueError, match=f"at least {fewest} images of either kind are needed, got 10 and {fewest - 1}"
    ):
        measure(many, few)
    with pytest.raises(ValueError, match=r"one D, got \(10, 3\) and \(10, 4\)"):
        measure(many, normal(1, 10, 4))


# --------------------------------------------------------------------------------------------------- nearest, memorised


@pytest.mark.parametrize("k", [1, 3, 50])
def test_the_nearest_are_those_that_sorting_all_distances_finds(small_blocks, k):
    queries, rows = normal(0, 40, 5), normal(1, 50, 5)
    distances, indices = torch.cdist(queries, rows, compute_mode="donot_use_mm_for_euclid_dist").sort(1)
    found = nearest_rows(queries, rows, k)
    assert torch.equal(found.indices, indices[:, :k])
    torch.testing.assert_close(found.distances, distances[:, :k])


def test_bytes_are_compared_without_loss():
    rows = images(0, 50, 64)
    found = nearest_rows(rows.flip(0), rows)
    assert found.distances.eq(0).all() and found.indices[:, 0].tolist() == list(range(49, -1, -1))


def test_what_cannot_be_nearest_is_refused():
    with pytest.raises(ValueError, match=r"k must lie in \[1, 5\], the rows there are, got 6"):
        nearest_rows(normal(0, 2, 3), normal(1, 5, 3), 6)
    with pytest.raises(ValueError, match=r"must share D, got \(2, 3\), \(5, 4\)"):
        nearest_rows(normal(0, 2, 3), normal(1, 5, 4))


def test_copies_are_memorised_and_new_images_are_not():
    """By the quantile's definition 1% of new images are that near, 20 of 2,000; 3 standard deviations of its two draws
    are 19."""
    train, held_out, new = normal(0, 500, 3), normal(1, 2000, 3), normal(2, 2000, 3)
    assert measure_memorisation(train[:100] + 1e-6, train, held_out).share == 1
    assert measure_memorisation(held_out, train, held_out).share == pytest.approx(0.01)
    assert measure_memorisation(new, train, held_out).share == pytest.approx(0.01, abs=0.0095)


def test_it_says_of_which_image_a_draw_is_a_copy():
    train, held_out = normal(0, 50, 3), normal(1, 50, 3)
    assert measure_memorisation(train[[7, 3]], train, held_out).nearest.indices.tolist() == [[7], [3]]


@pytest.mark.parametrize("places", [3, 1024, 2500])
def test_distances_of_bytes_are_exact(places):
    """Pixels are searched by fp32 products, 1024 places at a time; 0 and 255 everywhere are the largest distance."""
    a = torch.cat([images(0, 5, places), torch.zeros(1, places, dtype=torch.uint8)])
    b = torch.cat([images(1, 6, places), torch.full((1, places), 255, dtype=torch.uint8), a[:1]])
    exact = (a.long()[:, None] - b.long()).square().sum(2)
    assert torch.equal(nearest_rows(a, b, k=8).distances, exact.double().sort(dim=1).values.sqrt())


@pytest.mark.parametrize("codes", [4, 2**15 + 3, 2**18, 2**40])
def test_the_nearest_codes_differ_in_the_fewest_places(codes, monkeypatch):
    """Codes are compared in the smallest type that holds them, 16, 32 or 64 bits, a block of queries at a time."""
    monkeypatch.setattr(neighbours, "CACHED", 100)
    generator = torch.Generator().manual_seed(0)
    queries, rows = (codes - torch.randint(1, 4, (n, 9), generator=generator) for n in (7, 30))
    differ = (queries[:, None] != rows[None]).sum(2)
    found = nearest_codes(queries, rows, k=3)
    assert torch.equal(found.distances, differ.sort(dim=1).values[:, :3].double())
    assert torch.equal(differ.gather(1, found.indices).double(), found.distances)
