"""The priors of independent codes: exact probabilities and draws; their fit, from codes to images and to bytes."""

import itertools
import json
import math
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from smalti.common import codes
from smalti.common.codes import CodesSplit
from smalti.common.codes_info import CodesInfo, TokenizerIdentity
from smalti.common.condition import Classes, Condition, Nothing
from smalti.common.errors import UserError
from smalti.common.layout import Grid, Layout
from smalti.pipeline.coder import compress, expand
from smalti.pipeline.evaluate import evaluate as evaluate_pipeline
from smalti.pipeline.evaluation.settings import Settings as BenchSettings
from smalti.pipeline.generate import Settings as GenerateSettings
from smalti.pipeline.generate import generate
from smalti.pipeline.image_pipeline import ImagePipeline
from smalti.pipeline.report import Settings as ReportSettings
from smalti.pipeline.report import write_report
from smalti.prior import fit as script
from smalti.prior.base import Completes, Scores, Walks
from smalti.prior.baselines import Marginal
from smalti.prior.config import FitConfig, PriorConfig
from smalti.prior.evaluate import Settings as EvaluateSettings
from smalti.prior.evaluate import evaluate
from smalti.prior.fit import fit
from smalti.prior.model import build_prior, load_prior
from smalti.prior.sampling_config import SamplingConfig
from smalti.prior.simple.code_prior import CodePrior
from smalti.prior.simple.config import IndependentConfig, MixtureConfig, UniformConfig
from smalti.prior.simple.independent import IndependentPrior, check_table, count
from tests import processes

LAYOUT = Layout.of(1, 2, depth=2, factors=(3,))  # T = 4, P = 2, K = 3
TOKENIZER = TokenizerIdentity(name="test", sha256="0" * 64)
KINDS = {
    "uniform": UniformConfig(),
    "independent": IndependentConfig(),
    "of all places": IndependentConfig(by_place=False),
}


def prior_of(architecture, layout: Layout = LAYOUT, condition: Condition | None = None) -> CodePrior:
    """Return a prior with two classes, if it is told of any; its counts are random, no two alike."""
    condition = condition or (Classes(names=("a", "b")) if architecture.by_class else Nothing())
    prior = build_prior(
        PriorConfig(layout=layout, condition=condition, tokenizer=TOKENIZER, architecture=architecture, hidden=1.0)
    )
    if isinstance(prior, IndependentPrior):
        prior.take(torch.randint(1, 30, prior.log_p.shape, generator=torch.Generator().manual_seed(0)))
    return prior


def told(prior: CodePrior, samples: int) -> Tensor:
    """Return a condition of each sample: class a, class b, none, and again."""
    return torch.arange(samples) % (prior.config.condition.num_classes + 1)


def every_sample(layout: Layout) -> Tensor:
    """Return all samples there are, (K^T, T)."""
    return torch.tensor(list(itertools.product(range(layout.codebook_size), repeat=layout.length)))


@pytest.fixture(params=KINDS.values(), ids=KINDS)
def prior(request) -> CodePrior:
    return prior_of(request.param)


# --------------------------------------------------------------------------------------------- probabilities and draws


def test_it_scores_walks_and_completes(prior):
    assert isinstance(prior, Scores) and isinstance(prior, Walks) and isinstance(prior, Completes)
    assert prior.exact and prior.heeds(torch.tensor([[False, True]]))


def test_the_probabilities_of_all_samples_sum_to_one(prior):
    """1e-5: tables are float32."""
    for condition in range(prior.config.condition.num_classes + 1):
        every = every_sample(LAYOUT)
        total = prior.log_prob(every, torch.full((len(every),), condition)).exp().sum()
        assert float(total) == pytest.approx(1, abs=1e-5)


def test_a_codes_nats_add_up_and_those_of_known_places_are_left_out(prior):
    some, condition = every_sample(LAYOUT)[::7], told(prior, 12)
    each = prior.nats(some, condition, range(12))
    assert torch.allclose(each.double().sum(1), -prior.log_prob(some, condition), atol=1e-5)
    known = torch.tensor([[True, False]]).expand(12, -1)
    assert torch.allclose(each[:, 2:].double().sum(1), -prior.log_prob(some, condition, known), atol=1e-5)


def test_walking_over_codes_gives_their_log_probability(prior):
    some, condition, found = every_sample(LAYOUT)[::7], told(prior, 12), torch.zeros(12)

    def known(logits: Tensor, t: int, g: int) -> Tensor:
        found.add_(logits.log_softmax(-1).gather(1, some[:, t, None])[:, 0])
        return some[:, t]

    assert torch.equal(prior.walk(condition, known), some)
    assert torch.allclose(found.double(), prior.log_prob(some, condition), atol=1e-5)


def test_drawn_samples_have_the_probabilities_that_it_says(prior):
    """5 standard errors of 4,000 draws."""
    number, condition = 4000, prior.config.condition.num_classes // 2
    drawn = prior.sampler(SamplingConfig(), 500)(torch.full((number,), condition), range(number))
    every = every_sample(LAYOUT)
    p = prior.log_prob(every, torch.full((len(every),), condition)).exp()
    seen = (drawn[:, None] == every).all(-1).double().mean(0)
    assert ((seen - p).abs() <= 5 * (p * (1 - p) / number).sqrt() + 1e-9).all()


def test_a_sample_depends_on_its_condition_and_seed_and_not_on_its_batch(prior):
    condition, seeds = told(prior, 7), [5, 2**40, 7, 8, 9, 10, 2**63]
    together = prior.sampler(SamplingConfig(), 4)(condition, seeds)
    for i in (1, 4):
        assert torch.equal(prior.sampler(SamplingConfig(), 1)(condition[i : i + 1], seeds[i : i + 1])[0], together[i])


def test_known_codes_stay_and_the_others_do_not_depend_on_them(prior):
    condition, known = told(prior, 6), torch.tensor([[True, False]]).expand(6, -1)
    draw = prior.sampler(SamplingConfig(), 6)
    given = torch.full((6, 4), 2)
    drawn = draw(condition, range(6), given, known)
    assert torch.equal(drawn[:, :2], given[:, :2])
    assert torch.equal(drawn[:, 2:], draw(condition, range(6))[:, 2:])


def test_the_settings_of_a_draw_are_those_of_every_prior_over_codes():
    prior, condition = prior_of(IndependentConfig()), torch.ones(50, dtype=torch.int64)
    likeliest = prior.log_p[1].argmax(-1)
    for greedy in (SamplingConfig(top_k=1), SamplingConfig(temperature=1e-6), SamplingConfig(top_p=1e-6)):
        assert torch.equal(prior.sampler(greedy)(condition, range(50)), likeliest.expand(50, -1))
    leaning = (prior.log_p[2] + 50 * (prior.log_p[1] - prior.log_p[2])).argmax(-1)
    guided = prior.sampler(SamplingConfig(guidance=50, temperature=1e-3))(condition, range(50))
    assert torch.equal(guided, leaning.expand(50, -1))


@pytest.mark.parametrize("architecture", KINDS.values(), ids=KINDS)
def test_a_code_in_many_parts_is_drawn_in_the_range_of_its_digits(architecture):
    """K = 2^15: others predict such a code in parts, a table has it in whole."""
    prior = prior_of(architecture, Layout.of(1, 2, factors=(2,) * 15))
    drawn = prior.sampler(SamplingConfig(), 8)(told(prior, 8), range(8))
    prior.check(drawn, told(prior, 8))
    assert len(drawn.unique()) > 8 and math.prod(prior.vocabularies) == 2**15


def test_saved_and_loaded_it_is_the_same(prior, tmp_path):
    prior.save_pretrained(tmp_path / "model")
    again, some = load_prior(tmp_path / "model"), every_sample(LAYOUT)[:6]
    assert type(again) is type(prior)
    assert torch.equal(again.log_prob(some, told(prior, 6)), prior.log_prob(some, told(prior, 6)))


def test_what_it_does_not_have_is_refused_by_name(prior):
    vectors = Layout(grids=(Grid(shape=(2,), depth=2),))
    with pytest.raises(UserError, match=r"is over codes, and a sample is .* prior/fit.py has --model.kind mixture"):
        prior_of(prior.config.architecture, vectors)
    with pytest.raises(UserError, match=r"is over vectors, and a sample is .* prior/fit.py fits independent ones"):
        prior_of(MixtureConfig())
    with pytest.raises(ValueError, match=r"precision is no setting of a prior of kind"):
        prior.sampler(SamplingConfig(precision="bf16"))


def test_tables_beyond_the_memory_are_refused_before_anything_is_made():
    over = PriorConfig(
        layout=Layout.of(64, 64, factors=(2,) * 24),
        condition=Nothing(),
        tokenizer=TOKENIZER,
        architecture=IndependentConfig(),
    )
    with pytest.raises(UserError, match=r"1 tables of 4096 x 16777216 code frequencies need .* --model.by_place false"):
        check_table(over)


# -------------------------------------------------------------------------------------------------------------- the fit


def write_codes(folder: Path, condition: Condition | None = None, labels: np.ndarray | None = None) -> None:
    """Write a dataset of 300 and 100 rows; the codes of a place depend on the place, and their class moves them."""
    info = CodesInfo(
        layout=LAYOUT, views=1, condition=condition or Nothing(), tokenizer=TOKENIZER, source={}, shard_size=1000
    )
    codes.begin_codes(folder, info)
    splits, draws = {}, np.random.default_rng(0)
    for split, number in (("train", 300), ("validation", 100)):
        moved = 0 if labels is None else labels[:number, None].clip(0)
        values = ((draws.random((number, 4)) < [0.2, 0.4, 0.6, 0.8]) + moved).astype(np.uint8)
        said = CodesSplit(values, None if labels is None else labels[:number], np.arange(number))
        codes.write_shard(codes.shard_path(folder, split, 0, 1), info, said)
        splits[split] = {"rows": number, "sha256": said.digest()}
    codes.finish(folder, info, splits)


def settings(run: Path, **given) -> FitConfig:
    return FitConfig(**{"run": str(run), "model": IndependentConfig(), **given})


def lines(run: Path) -> list[dict]:
    return [json.loads(line) for line in (run / "prior/metrics.jsonl").read_text().splitlines()]


@pytest.fixture(scope="module")
def classes(tmp_path_factory) -> Path:
    """Return a run with codes of two classes and rows without one; no row has the third class."""
    run = tmp_path_factory.mktemp("classes")
    write_codes(run / "codes", Classes(names=("a", "b", "c")), np.arange(300) % 3 - 1)
    return run


@pytest.fixture
def run(classes, tmp_path) -> Path:
    return Path(shutil.copytree(classes, tmp_path / "run"))


@pytest.mark.parametrize("by_place", [True, False])
def test_a_fitted_table_holds_the_frequencies_of_its_class_with_one_more_of_each(run, accelerator, by_place):
    prior = load_prior(fit(settings(run, model=IndependentConfig(by_place=by_place)), accelerator))
    train = codes.load_codes(run / "codes").splits["train"]
    for condition, rows in ((0, train.condition == 0), (1, train.condition == 1), (3, train.condition > -2)):
        seen = torch.from_numpy(np.asarray(train.codes)[rows].astype(np.int64))
        for t in range(4):
            column = seen[:, t] if by_place else seen[:, t % 2 :: 2].flatten()
            counts = torch.bincount(column, minlength=3) + 1.0
            there = prior.logits(torch.tensor([condition]), t, 0)[0].exp()
            assert torch.allclose(there, counts / counts.sum(), atol=1e-6)


def test_frequencies_of_all_places_are_counted_in_each_grid():
    """Known answer: 100 rows of one 0 in the coarse grid and three 1s in the finer one, and one more of each."""
    layout = Layout(grids=(Grid(shape=(1,), factors=(3,)), Grid(shape=(3,), factors=(3,))))
    prior = prior_of(IndependentConfig(by_place=False), layout, Nothing())
    some, condition = torch.tensor([0, 1, 1, 1]).expand(100, -1), torch.zeros(100, dtype=torch.int64)
    prior.take(count(some, condition, prior.config))
    expected = torch.tensor([101 / 103] + [301 / 303] * 3).log()
    assert torch.allclose(prior.nats(some, condition, range(100)), -expected.expand(100, -1), atol=1e-6)
    assert prior.logits(condition[:1], 0, 0).argmax() == 0 and prior.logits(condition[:1], 3, 0).argmax() == 1


def test_of_all_places_and_without_classes_it_is_the_baseline_of_evaluation(run, accelerator):
    """1e-6: tables are float32."""
    model = IndependentConfig(by_place=False)
    figures = (fit(settings(run, model=model, condition="nothing"), accelerator).parent / "figures.json").read_text()
    data = codes.load_codes(run / "codes")
    held_out = torch.from_numpy(np.asarray(data.splits["validation"].codes).astype(np.int64))
    baseline = Marginal(data.splits["train"].codes, LAYOUT).nll(held_out).mean() / 4
    assert json.loads(figures)["validation_nll"] == pytest.approx(float(baseline), abs=1e-6)
    assert json.loads(figures)["validation_marginal_nll"] == pytest.approx(float(baseline), abs=1e-6)


def test_what_it_is_told_of_saves_nats(run, accelerator, capfd):
    """Each of place and class moves the codes of this set."""
    found = []
    for condition, by_place in (("labels", True), ("labels", False), ("nothing", True), ("nothing", False)):
        name, model = f"{condition}-{by_place}", IndependentConfig(by_place=by_place)
        fit(settings(run.with_name(name), codes=str(run / "codes"), model=model, condition=condition), accelerator)
        found.append(json.loads((run.with_name(name) / "prior/figures.json").read_text())["validation_nll"])
    assert found == sorted(found) and found[3] < math.log(3)
    assert "nats per code" in capfd.readouterr().out


def test_a_uniform_prior_costs_ln_k(run, accelerator):
    fit(settings(run, model=UniformConfig()), accelerator)
    figures = json.loads((run / "prior/figures.json").read_text())
    assert figures["validation_nll"] == pytest.approx(math.log(3), abs=1e-6) == figures["uniform_nll"]


def test_a_class_without_rows_has_the_table_of_all_rows(run, accelerator, capfd):
    prior = load_prior(fit(settings(run), accelerator))
    assert torch.equal(prior.log_p[2], prior.log_p[3]) and not torch.equal(prior.log_p[0], prior.log_p[3])
    assert "c" in capfd.readouterr().err


def test_a_finished_fit_says_the_same_again_and_refuses_other_codes(run, accelerator):
    first, before = (fit(settings(run), accelerator) / "model.safetensors").read_bytes(), lines(run)
    assert (fit(settings(run), accelerator) / "model.safetensors").read_bytes() == first and lines(run) == before
    shutil.rmtree(run / "codes")
    write_codes(run / "codes")
    with pytest.raises(UserError, match=r"was trained on codes of fingerprint"):
        fit(settings(run, condition="labels"), accelerator)


def test_killed_after_counting_it_goes_on_to_the_same_tables(run, accelerator, monkeypatch):
    whole = fit(settings(run.with_name("whole"), codes=str(run / "codes")), accelerator)

    def killed(*_) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patched, pytest.raises(KeyboardInterrupt):
        patched.setattr(script, "measured", killed)
        fit(settings(run), accelerator)
    again = fit(settings(run), accelerator)
    assert (whole / "model.safetensors").read_bytes() == (again / "model.safetensors").read_bytes()
    assert lines(run) == lines(whole.parents[1])


def test_two_processes_count_what_one_does(run, accelerator):
    two = ["--run", run.with_name("two"), "--codes", run / "codes", "--model.kind", "independent"]
    processes.finish(processes.command_of_two("prior/fit.py", *two))
    fit(settings(run.with_name("one"), codes=str(run / "codes"), model=KINDS["independent"]), accelerator)
    models = [(run.with_name(name) / "prior/model/model.safetensors").read_bytes() for name in ("one", "two")]
    assert models[0] == models[1]


# ----------------------------------------------------------------------------------------------------- the whole chain


@pytest.fixture(scope="module", params=["uniform", "independent"])
def fitted(request, finished_run, tmp_path_factory, accelerator) -> Path:
    """Return a run whose tokenizer is trained, with a fitted prior."""
    run = tmp_path_factory.mktemp("fitted") / request.param
    for part in ("tokenizer", "codes"):
        shutil.copytree(finished_run / part, run / part, ignore=shutil.ignore_patterns("state"))
    fit(settings(run, model=KINDS[request.param]), accelerator)
    return run


def test_a_run_goes_from_codes_to_images_figures_and_its_page(fitted, accelerator, tmp_path):
    drawn = generate(GenerateSettings(run=str(fitted), num_images=2, output=str(tmp_path / "drawn")), accelerator)
    assert len(list(drawn.glob("0*.png"))) == 2
    figures = json.loads(evaluate(EvaluateSettings(run=str(fitted)), accelerator).read_text())["figures"]
    assert figures["nll"] == pytest.approx(
        json.loads((fitted / "prior/figures.json").read_text())["test_nll"], abs=1e-5
    )
    written = json.loads(evaluate_pipeline(BenchSettings(run=str(fitted), images=0), accelerator).read_text())
    assert written["protocol"]["learned_rate"] == "exact" and "learned_bits_per_dim" in written["figures"]
    assert write_report(ReportSettings(run=str(fitted))).exists()


def test_images_are_compressed_and_come_back(fitted):
    """The range coder adds 96 bits a file, and rounds probabilities: 1%."""
    pipeline = ImagePipeline.from_run(fitted, SamplingConfig())
    images = torch.randint(0, 256, (3, 1, 8, 8), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    packed = compress(pipeline, images)
    assert torch.equal(expand(pipeline, packed.data), images)
    assert 8 * len(packed.data) < 1.01 * (packed.rate + packed.distortion) + 8 * 33 + 96
