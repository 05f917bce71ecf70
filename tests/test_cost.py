"""The cost of a preset is counted, and the page about it states these counts."""

from pathlib import Path

import pytest
import torch
from torch import nn

from benchmarks.cost import Kept, cost
from smalti.common.folder import read_json

ROOT = Path(__file__).resolve().parents[1]
IMAGENET = ROOT / "benchmarks/results/cost_imagenet256.json"
SMALL = ROOT / "benchmarks/results/cost_cifar10_small.json"


@pytest.fixture(scope="module")
def imagenet():
    return cost(ROOT / "configs/imagenet256", images=1_281_167, classes=1000)


def test_a_trained_code_takes_about_six_operations_a_weight(imagenet):
    """Two are forward and four backward. Embeddings multiply nothing and attention has no weights: 10% covers both."""
    prior = imagenet["prior"]
    assert prior["operations_a_code"] == pytest.approx(6 * prior["weights"], rel=0.1)


def test_what_is_kept_for_the_backward_pass_is_counted_once_and_without_weights():
    with torch.device("meta"):
        model, x = nn.Sequential(nn.Linear(256, 512), nn.ReLU(), nn.Linear(512, 256)), torch.empty(1024, 256)
    kept = Kept(model)
    with kept.hooks:
        model(x)
    assert kept.mib == (1024 * 256 + 1024 * 512) * 4 / 2**20  # the input, and the output of ReLU, which two layers keep


def test_what_is_committed_is_what_the_presets_cost(imagenet):
    for found, path in ((imagenet, IMAGENET), (cost(ROOT / "configs/cifar10_small", 47_353, 10), SMALL)):
        committed = read_json(path)
        assert {name: committed[name] for name in found} == found


def test_the_page_says_what_was_counted(imagenet):
    page = (ROOT / "docs/scale.md").read_text(encoding="utf-8")
    one, two = imagenet["tokenizer"], imagenet["prior"]
    for told in (
        f"| {one['weights'] / 1e6:.0f} million | {two['weights'] / 1e6:.0f} million |",
        f"| {one['operations_an_image'] / 1e11:.2f} × 10¹¹ | {two['operations_an_image'] / 1e11:.2f} × 10¹¹ |",
        f"| {one['operations'] / 1e19:.2f} × 10¹⁹ | {two['operations'] / 1e19:.2f} × 10¹⁹ |",
        f"| {one['state_gib']:.1f} GiB | {two['state_gib']:.1f} GiB |",
        f"**{imagenet['operations'] / 1e20:.2f} × 10²⁰ operations**",
        f"{one['mib_kept_an_image']:,.0f} MiB",
        f"{two['mib_kept_an_image']:,.0f} MiB",
        f"{imagenet['codes_gib']:.1f} GiB",
        f"{one['operations'] / 1e14 / 3600:.0f} GPU hours and the prior {two['operations'] / 1e14 / 3600:.0f}",
    ):
        assert told in page, told
    assert round(imagenet["years_at_that_rate"]) == 11 and "**eleven years**" in page
