"""Tiny models and runs that several tests share."""

import fcntl
import os
import shutil
import subprocess
import sys
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import PIL.Image
import pytest
import torch
from accelerate import Accelerator
from matplotlib.figure import Figure

from smalti.common.codes_info import TokenizerIdentity
from smalti.common.condition import Classes
from smalti.common.data.config import ImagesConfig
from smalti.common.launch import make_accelerator
from smalti.common.layout import Layout
from smalti.metrics.features_config import FeaturesConfig, Recipe
from smalti.prior.base import Prior
from smalti.prior.config import PriorConfig
from smalti.prior.config import TrainConfig as PriorTraining
from smalti.prior.transformer.config import TransformerConfig
from smalti.prior.transformer.model import TransformerPrior
from smalti.tokenizer.bottleneck.config import VQConfig
from smalti.tokenizer.config import EncodeConfig
from smalti.tokenizer.config import TrainConfig as TokenizerTraining
from smalti.tokenizer.vqvae.config import VQVAEConfig

torch.set_num_threads(1)  # tiny models gain nothing from more
ROOT = Path(__file__).resolve().parents[1]
NO_FEATURES = FeaturesConfig(kind="none")  # no classifier is trained
QUICK = FeaturesConfig(classifier=Recipe(width=8, least_steps=100))  # in a second it learns 90% of the digits of 8 x 8
DRAWN = Figure.savefig  # matplotlib's own


@pytest.fixture(scope="session", autouse=True)
def blank_figures() -> Iterator[None]:
    """Let matplotlib write empty PNGs of the right size: to draw curves takes a quarter of a short training."""

    def savefig(figure: Figure, to: Any, *, format: str, dpi: float | None = None, **settings: Any) -> None:
        if format != "png":
            return DRAWN(figure, to, format=format, dpi=dpi, **settings)
        across, up = (figure.get_size_inches() * (dpi or figure.dpi)).astype(int)
        PIL.Image.new("RGB", (int(across), int(up))).save(to, format="PNG")

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Figure, "savefig", savefig)
        yield


@pytest.fixture
def drawn_figures(monkeypatch) -> None:
    """Let matplotlib draw, for a test that looks at a figure."""
    monkeypatch.setattr(Figure, "savefig", DRAWN)


@pytest.fixture(scope="session")
def accelerator() -> Accelerator:
    return make_accelerator("fp32")


@pytest.fixture
def prior() -> Prior:
    """Return a prior of two blocks over 3 x 3 codes of 16 with three classes; its head is random, so that logits
    differ."""
    torch.manual_seed(0)
    config = PriorConfig(
        layout=Layout.of(3, 3, factors=(16,)),
        condition=Classes(names=("a", "b", "c")),
        tokenizer=TokenizerIdentity(name="test", sha256="0" * 64),
        architecture=TransformerConfig(depth=2, dim=32, heads=2, dropout=0.0),
    )
    model = TransformerPrior(config).eval()
    torch.nn.init.normal_(model.head.weight)
    return model


def sample(prior: Prior, labels: torch.Tensor, seeds, config, *, batch_size: int | None = None) -> torch.Tensor:
    """Return the codes (B, T) that a new sampler draws for labels (B,) and seeds."""
    return prior.sampler(config, batch_size)(labels, seeds)


def tokenizer_training(run: Path, **settings) -> TokenizerTraining:
    """Return the settings of six steps on the digits, for a tokenizer with 4 x 4 codes of 16."""
    model = VQVAEConfig(image_size=(8, 8), channels=(8, 16), quantizer=VQConfig(codebook_size=16, code_dim=4))
    defaults = {
        "run": str(run),
        "model": model,
        "images": ImagesConfig(shift=1),
        "encode": EncodeConfig(views=2, shard_size=500),
        "steps": 6,
        "batch_size": 16,
        "warmup": 2,
        "evaluate_every": 3,
        "save_every": 3,
        "log_every": 2,
        "precision": "fp32",
    }
    return TokenizerTraining(**{**defaults, **settings})


def prior_training(run: Path, **settings) -> PriorTraining:
    """Return the settings of six steps of one block over the codes of `tokenizer_training`."""
    defaults = {
        "run": str(run),
        "model": TransformerConfig(depth=1, dim=16, heads=2),
        "steps": 6,
        "batch_size": 16,
        "warmup": 2,
        "evaluate_every": 3,
        "save_every": 3,
        "log_every": 2,
        "precision": "fp32",
    }
    return PriorTraining(**{**defaults, **settings})


@pytest.fixture(scope="session")
def finished_run(tmp_path_factory, accelerator) -> Path:
    """Return a run with both stages trained for six steps on the digits. Tests share it: copy it before you change
    it."""
    from smalti.prior.train import train as train_prior
    from smalti.tokenizer.encode import Settings as EncodeSettings
    from smalti.tokenizer.encode import encode
    from smalti.tokenizer.train import train as train_tokenizer

    run = tmp_path_factory.mktemp("finished") / "digits"
    train_tokenizer(tokenizer_training(run), accelerator)
    encode(EncodeSettings(run=str(run), views=2, shard_size=500, precision="fp32"), accelerator)
    train_prior(prior_training(run), accelerator)
    return run


@pytest.fixture(scope="session")
def runs(tmp_path_factory) -> Path:
    """Return a folder for runs that are evaluated: those of the same images, side by side, share their classifier."""
    return tmp_path_factory.mktemp("runs")


@pytest.fixture(scope="session")
def wheel(tmp_path_factory) -> Path:
    """Return what pip puts into site-packages: the wheel, unpacked. Workers side by side share it; do not change it."""
    base = tmp_path_factory.getbasetemp()
    folder = (base.parent if "PYTEST_XDIST_WORKER" in os.environ else base) / "packaging"
    with open(folder.with_suffix(".lock"), "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)  # another worker may be at it
        if not (folder / "installed").exists():
            build_wheel(folder)
    return folder / "installed"


def build_wheel(folder: Path) -> None:
    """Build the wheel from the sdist, and unpack it into `installed`."""
    tree, built = folder / "tree", folder / "built"
    tree.mkdir(parents=True)
    for name in ("common", "metrics", "tokenizer", "prior", "pipeline", "configs", "pretrained", "smalti"):
        shutil.copytree(ROOT / name, tree / name, ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copytree(tree / "configs/imagefolder_small", tree / "configs/mine", dirs_exist_ok=True)  # as the README says
    for name in ("pyproject.toml", "setup.py", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, tree)
    # The sdist, and the wheel from it
    command = [
        sys.executable,
        "-m",
        "build",
        "--no-isolation",
        "--outdir",
        str(built),
        str(tree),
    ]
    told = subprocess.run(command, capture_output=True, text=True)
    assert told.returncode == 0, told.stdout[-2000:] + told.stderr[-2000:]
    (found,) = built.glob("*.whl")
    with zipfile.ZipFile(found) as archive:
        archive.extractall(folder / "unpacked")
    (folder / "unpacked").rename(folder / "installed")


FLAGS = [
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
]


@pytest.fixture(scope="module")
def browser():
    """Return a Chromium, without a window."""
    pytest.importorskip("playwright.sync_api", reason="clicking needs playwright")
    from playwright.sync_api import Error, sync_playwright

    found = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
    manager = sync_playwright()
    try:
        playwright = manager.start()
    except Exception as error:  # its driver needs a system library that is missing
        if found:
            raise
        pytest.skip(f"there is no Chromium here, and playwright does not start: {error}")
    try:
        opened = playwright.chromium.launch(executable_path=found, args=FLAGS)
    except Error as error:
        playwright.stop()
        if found:
            raise
        pytest.skip(f"there is no Chromium here, nor playwright's own: {str(error).splitlines()[0]}")
    yield opened
    opened.close()
    playwright.stop()
