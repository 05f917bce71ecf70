"""The lecture's board: its cells, its budgets, and what it writes."""

import math
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from benchmarks.lecture_board import (
    BEGIN,
    COLUMNS,
    END,
    FIT,
    IMAGES,
    PAGE,
    ROOT,
    ROWS,
    Bench,
    cells,
    options,
    put,
    steps_within,
    told,
    write,
)
from smalti.common import config
from smalti.common.folder import read_json, write_json
from smalti.common.record import record
from smalti.prior.config import FitConfig
from smalti.prior.config import TrainConfig as PriorTraining
from smalti.tokenizer.config import TrainConfig
from smalti.tokenizer.patches.cluster_config import ClusterConfig

CODES = ("uniform", "independent", "pixelcnn", "transformer", "any_order", "masked", "nextset")
HIERARCHICAL = ("uniform", "independent", "transformer", "any_order", "masked", "levels", "nextscale")
VECTORS = ("uniform", "independent", "diffusion")
CAME = record("tests.test_lecture_board")


@pytest.fixture
def bench(tmp_path) -> Bench:
    (tmp_path / "steps").mkdir()
    return Bench(data=tmp_path, work=tmp_path, minutes=1.0, drawn=100)


def trial(per_step: float, beside: float):
    """Return a training that takes so many seconds, and leaves a folder."""

    def train(run: Path, steps: int) -> float:
        run.mkdir()
        return beside + per_step * steps

    return train


def test_every_tokenizer_meets_every_prior_of_its_latents():
    found = cells([*ROWS], [*COLUMNS])
    for row, each in ROWS.items():
        of_codes = HIERARCHICAL if each.hierarchical else CODES
        assert [c for r, c in found if r == row] == list(of_codes if each.codes else VECTORS)


@pytest.mark.parametrize("name", ROWS)
def test_the_settings_of_a_tokenizer_are_understood_and_make_its_latents(name):
    row = ROWS[name]
    settings = ClusterConfig if row.by_em else TrainConfig
    c = config.parse(settings, "", [str(ROOT / row.config), *options({**IMAGES, **row.settings})])
    layout = c.model.layout
    assert layout.grids[-1].shape == (7, 7) and (len(layout.grids) > 1) == row.hierarchical
    numbers = layout.length * math.log2(layout.codebook_size) if row.codes else layout.length
    assert numbers == pytest.approx(7 * 7 * (9 if row.codes else 4), rel=0.01)


@pytest.mark.parametrize("name", COLUMNS)
def test_the_settings_of_a_prior_are_understood(name):
    for fill in (COLUMNS[name].codes, COLUMNS[name].vectors):
        if fill is None:
            continue
        settings = FitConfig if fill.script == FIT else PriorTraining
        given = [] if fill.config is None else [str(ROOT / fill.config)]
        assert config.parse(settings, "", [*given, *options(fill.settings)]).model.made_by == fill.script


def test_a_stage_gets_the_steps_that_its_minutes_hold(bench):
    assert steps_within(bench, "vae", trial(0.5, 10.0), (5, 25)) == 100


def test_a_trial_whose_steps_do_not_stand_out_is_made_longer(bench):
    """Start-up that varied by more than twenty steps took gave a step a millisecond, and a training hours."""

    def uneven(run: Path, steps: int) -> float:
        return trial(0.1, 13.0 if steps == 5 else 10.0)(run, steps)

    assert steps_within(bench, "vae", uneven, (5, 25)) == pytest.approx(500, rel=0.2)


def test_steps_are_measured_once_and_stay(bench):
    first = steps_within(bench, "vae", trial(0.5, 10.0), (5, 25))

    def never(run: Path, steps: int) -> float:
        raise AssertionError

    assert steps_within(bench, "vae", never, (5, 25)) == first
    assert [path.name for path in bench.work.iterdir()] == ["steps"]


def test_of_two_processes_that_measure_the_first_to_end_decides(bench):
    def overtaken(run: Path, steps: int) -> float:
        write_json(bench.work / "steps/vae-1.json", {"steps": 77})
        return trial(0.5, 10.0)(run, steps)

    assert steps_within(bench, "vae", overtaken, (5, 25)) == 77


def test_bits_are_a_length_where_both_stages_are_exact_and_of_vectors_a_bound_under_any_prior():
    figures = {"learned_bits_per_dim": 3.0, "distortion": 2.0, "learned_rate": 1.0}

    def kind(protocol: dict[str, str], figures: dict[str, float] = figures) -> str:
        return told({"figures": figures, "protocol": protocol})["bits_kind"]

    assert kind({"learned_rate": "exact"}) == "exact length" and kind({"learned_rate": "bound"}) == "bound"
    assert kind({"kind": "bound"}) == kind({"kind": "bound", "learned_rate": "exact"}) == "bound"
    assert kind({"no_bits": "an autoencoder has none"}, {}) == "none"


def test_cells_written_at_the_same_time_are_all_kept(tmp_path):
    result = tmp_path / "result.json"
    with ThreadPoolExecutor(4) as pool:
        list(
            pool.map(
                lambda seed: put(result, ("MNIST", "1", "vae", "uniform", str(seed)), {"bits": 1.0}, CAME), range(8)
            )
        )
    by_seed = read_json(result)["datasets"]["MNIST"]["1"]["vae"]["uniform"]
    assert sorted(map(int, by_seed)) == list(range(8)) and by_seed["3"]["record"]["commit"]


def test_the_page_gets_its_tables_and_figure_between_the_marks(tmp_path, drawn_figures):
    result, page, figure = tmp_path / "result.json", tmp_path / "page.md", tmp_path / "figure.png"
    cell = {"fd_classifier": 2.0, "bits": 3.5, "bits_kind": "bound", "images_a_second_64": 100.0, "passes": 8}
    for seed in (0, 1):
        for name in ("tokenizer", "masked 12", "uniform"):
            of_seed = {**cell, "fd_classifier": 2.0 + seed, "training_cpu_seconds": 60.0}
            put(result, ("MNIST", "1", "vqvae", name, str(seed)), of_seed, CAME)
    page.write_text(f"before\n\n{BEGIN}\n\nold\n\n{END}\n\nafter\n", encoding="utf-8")
    for _ in range(2):
        write(result, page, figure)
        said = page.read_text(encoding="utf-8")
        assert said.startswith("before\n\n") and said.endswith("\n\nafter\n") and "old" not in said
    assert "| VQ-VAE | masked x 12 | 2 | 60 | 3.500 | bound | 2.50 ± 0.71 |" in said
    assert said.index("uniform") < said.index("masked x 12") and figure.stat().st_size > 10_000


def test_the_page_has_both_marks_once():
    page = PAGE.read_text(encoding="utf-8")
    assert page.count(BEGIN) == page.count(END) == 1
