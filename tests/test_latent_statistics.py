"""Mean and deviation of the channels of latents over the training rows, by which a prior gets unit variance."""

import json

import numpy as np
import pytest

from smalti.common import codes
from smalti.common.errors import UserError
from smalti.common.latent_statistics import LatentStatistics, latent_statistics
from smalti.common.layout import Grid, Layout
from smalti.tokenizer.encode import Settings as EncodeSettings
from smalti.tokenizer.encode import encode
from smalti.tokenizer.network.config import ConvolutionalConfig
from smalti.tokenizer.train import train
from smalti.tokenizer.vae.config import VAEConfig
from tests.conftest import tokenizer_training

TWO_GRIDS = Layout(grids=(Grid(shape=(1, 1), depth=2), Grid(shape=(2, 2), depth=3)))


def draws(rows: int) -> tuple[np.ndarray, np.ndarray]:
    """Return latents far from 0, which sums of squares in fp32 would lose, and their scale."""
    generator = np.random.default_rng(0)
    size = (rows, TWO_GRIDS.length)
    return (100 + generator.normal(size=size)).astype(np.float32), generator.random(size).astype(np.float32)


@pytest.mark.parametrize("moments", [False, True])
def test_statistics_of_shards_are_numpys_of_all_rows(moments):
    latents, scale = draws(100)
    shards = [(latents[a:b], scale[a:b] if moments else None) for a, b in ((0, 7), (7, 60), (60, 100))]
    found = latent_statistics(shards, TWO_GRIDS)
    parts = [(latents[:, :2], scale[:, :2]), (latents[:, 2:].reshape(-1, 3), scale[:, 2:].reshape(-1, 3))]
    mean = np.concatenate([x.mean(0, np.float64) for x, _ in parts])
    variance = np.concatenate([x.var(0, np.float64) + moments * (s.astype(np.float64) ** 2).mean(0) for x, s in parts])
    np.testing.assert_allclose(found.mean, mean, rtol=1e-12)  # fp64 both
    np.testing.assert_allclose(found.deviation, variance**0.5, rtol=1e-9)


def test_draws_less_the_mean_over_the_deviation_have_unit_variance():
    latents, scale = draws(4000)
    statistics = latent_statistics([(latents, scale)], TWO_GRIDS)
    z = latents + scale * np.random.default_rng(1).normal(size=scale.shape)
    mean, deviation = (np.r_[each[:2], np.tile(each[2:], 4)] for each in (statistics.mean, statistics.deviation))
    standard = (z - mean) / deviation
    assert np.abs(standard[:, :2].mean(0)).max() < 0.07  # four standard errors of 4,000 draws
    assert np.abs(standard[:, 2:].reshape(-1, 3).std(0) - 1).max() < 0.03  # of 16,000


def test_a_constant_channel_has_deviation_zero():
    layout = Layout.of(1, depth=2)
    statistics = latent_statistics([(np.array([[5, 1], [5, 3]], np.float32), None)], layout)
    assert statistics == LatentStatistics(mean=(5.0, 2.0), deviation=(0.0, 1.0))


@pytest.fixture(scope="module")
def run(tmp_path_factory, accelerator):
    """Return a run of 4 x 4 vectors of two channels, encoded in several shards."""
    run = tmp_path_factory.mktemp("statistics") / "digits"
    network = ConvolutionalConfig(channels=(8, 8))
    model = VAEConfig(image_size=(8, 8), network=network, latents="grid", latent_dim=2)
    train(tokenizer_training(run, model=model), accelerator)
    encode(EncodeSettings(run=str(run), views=1, shard_size=500, precision="fp32"), accelerator)
    return run


def test_encoding_writes_the_statistics_of_the_training_rows(run):
    data = codes.load_codes(run / "codes")
    split, found = data.splits["train"], data.info.statistics
    x, s = (each.reshape(-1, 2).astype(np.float64) for each in (split.codes, split.scale))
    np.testing.assert_allclose(found.mean, x.mean(0), rtol=1e-6, atol=1e-9)
    np.testing.assert_allclose(found.deviation, (x.var(0) + (s**2).mean(0)) ** 0.5, rtol=1e-6)


def test_a_dataset_without_statistics_is_read_and_has_the_same_fingerprint(run):
    before = codes.load_codes(run / "codes")
    path = run / "codes/codes.json"
    written = path.read_text()
    try:
        said = json.loads(written)
        del said["statistics"]
        path.write_text(json.dumps(said))
        data = codes.load_codes(run / "codes")
        assert data.info.statistics is None and codes.codes_fingerprint(data) == codes.codes_fingerprint(before)
        path.write_text(json.dumps({**said, "statistics": {"mean": [0.0], "deviation": [1.0]}}))
        with pytest.raises(UserError, match="statistics must be of the 2 channels of 4 x 4 vectors of 2, got 1 and 1"):
            codes.load_codes(run / "codes")
    finally:
        path.write_text(written)


def test_codes_have_no_statistics(finished_run):
    assert codes.read_info(finished_run / "codes")[0].statistics is None
