"""The priors over vectors: exact densities and draws; their fit, from codes to images."""

import json
import shutil
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.distributions import MultivariateNormal

from smalti.common import codes, config, launch
from smalti.common.codes import CodesSplit
from smalti.common.codes_info import CodesInfo, TokenizerIdentity
from smalti.common.condition import Classes, Nothing
from smalti.common.data.config import ImagesConfig
from smalti.common.errors import UserError
from smalti.common.layout import Grid, Layout
from smalti.pipeline.generate import Settings as GenerateSettings
from smalti.pipeline.generate import generate
from smalti.prior import fit as script
from smalti.prior.base import Completes, Scores, Walks
from smalti.prior.config import FitConfig, PriorConfig
from smalti.prior.config import TrainConfig as PriorTraining
from smalti.prior.evaluate import Settings as EvaluateSettings
from smalti.prior.evaluate import evaluate
from smalti.prior.fit import fit
from smalti.prior.model import build_prior, load_prior
from smalti.prior.sampling_config import SamplingConfig
from smalti.prior.simple.base import VectorPrior
from smalti.prior.simple.config import MixtureConfig, StandardNormalConfig
from smalti.prior.simple.mixture import MixturePrior
from smalti.tokenizer.config import TrainConfig
from smalti.tokenizer.encode import Settings as EncodeSettings
from smalti.tokenizer.encode import encode
from smalti.tokenizer.train import train as train_tokenizer
from tests import toy_sequence
from tests.toy_sequence import SequenceConfig

LAYOUT = Layout(grids=(Grid(shape=(1,), depth=2), Grid(shape=(2,), depth=2)))  # T = 6, P = 3
TOKENIZER = TokenizerIdentity(name="test", sha256="0" * 64)
COVARIANCES = ("spherical", "diagonal", "full", "tied")
KINDS = (StandardNormalConfig(), *(MixtureConfig(components=2, covariance=name) for name in COVARIANCES))


def prior_of(architecture, layout: Layout = LAYOUT) -> VectorPrior:
    """Return a prior with two classes; of a mixture the weights are random, no two alike."""
    condition = Classes(names=("a", "b")) if architecture.by_class else Nothing()
    prior = build_prior(PriorConfig(layout=layout, condition=condition, tokenizer=TOKENIZER, architecture=architecture))
    if isinstance(prior, MixturePrior):
        draws = torch.Generator().manual_seed(0)
        for weights in (prior.log_weights, prior.means):
            weights.normal_(generator=draws)
        noise = 0.3 * torch.randn(prior.scale.shape, generator=draws).clamp(-1, 1)
        prior.scale.add_(noise if independent(prior) else noise.tril())
    return prior


def independent(prior: VectorPrior) -> bool:
    """Return whether the numbers of a component are independent."""
    return prior.config.architecture.covariance in ("spherical", "diagonal")


def told(prior: VectorPrior, samples: int) -> Tensor:
    """Return a condition of each sample: class a, class b, none, and again."""
    return torch.arange(samples) % (prior.config.condition.num_classes + 1)


def known_places(samples: int) -> Tensor:
    """Return a mask (B, P), of every second sample another."""
    return torch.tensor([[False, True, True], [True, False, True]]).repeat(samples, 1)[:samples]


@pytest.fixture(params=KINDS, ids=lambda a: getattr(a, "covariance", a.name()))
def prior(request) -> VectorPrior:
    return prior_of(request.param)


# ------------------------------------------------------------------------------------------------- densities and draws


def dense(prior: VectorPrior, condition: int) -> list[tuple[float, MultivariateNormal]]:
    """Return weight and Gaussian of each component, as torch has them."""
    if prior.config.architecture.kind == "standard_normal":
        return [(1.0, MultivariateNormal(torch.zeros(6).double(), torch.eye(6).double()))]
    mixture = prior.mixture(condition)
    factor = mixture.scale if not independent(prior) else torch.diag_embed(mixture.deviations)
    pairs = zip(mixture.means, factor.expand(2, 6, 6), strict=True)
    each = [MultivariateNormal(mean, scale_tril=L) for mean, L in pairs]
    return list(zip(mixture.log_weights.exp().tolist(), each, strict=True))


def density(prior: VectorPrior, condition: int, x: Tensor, numbers: list[int]) -> Tensor:
    """Return the density of some numbers of a sample (6,): a Gaussian's marginal has a part of its covariance."""
    return sum(
        weight
        * MultivariateNormal(g.mean[numbers], g.covariance_matrix[numbers][:, numbers]).log_prob(x[numbers]).exp()
        for weight, g in dense(prior, condition)
    )


def test_the_density_is_that_of_torch_whole_and_around_what_is_known(prior):
    condition, known = told(prior, 6), known_places(6)
    latents = torch.randn(6, 6, generator=torch.Generator().manual_seed(1))
    whole, around = prior.log_prob(latents, condition), prior.log_prob(latents, condition, known)
    each = prior.validation(latents, condition, range(6))
    assert prior.exact and each.shape == (6, 6)
    assert torch.allclose(-each.sum(1).double(), whole, atol=1e-4)  # float32
    for i in range(6):
        told_of, x = int(condition[i]), latents[i].double()
        given = prior.known_numbers(known[i]).nonzero()[:, 0].tolist()
        everything = density(prior, told_of, x, list(range(6))).log()
        assert float(whole[i]) == pytest.approx(float(everything), abs=1e-9)
        assert float(around[i]) == pytest.approx(float(everything - density(prior, told_of, x, given).log()), abs=1e-9)


def test_it_scores_and_completes_and_does_not_walk(prior):
    assert isinstance(prior, Scores) and isinstance(prior, Completes) and not isinstance(prior, Walks)


def test_a_sample_depends_on_its_condition_and_seed_and_not_on_its_batch(prior):
    draw, condition, seeds = prior.sampler(SamplingConfig()), told(prior, 7), [5, 2**40, 7, 8, 9, 10, 2**63]
    together = draw(condition, seeds)
    assert together.dtype == torch.float32 and len(together.unique(dim=0)) == 7
    for i in (1, 4):
        assert torch.equal(draw(condition[i : i + 1], seeds[i : i + 1])[0], together[i])
        latents, known = torch.zeros(7, 6), torch.zeros(7, 3, dtype=torch.bool)
        assert torch.equal(draw(condition, seeds, latents, known)[i], together[i])


def test_known_places_stay_and_the_rest_has_their_conditional_distribution(prior):
    """The mean over draws is that of the exact conditional, computed from blocks of the covariances; 5 standard errors
    of 600 draws."""
    condition, number = prior.config.condition.num_classes, 600
    known = known_places(2)[1].expand(number, -1)
    latents = torch.linspace(-1, 1, 6).expand(number, -1)
    drawn = prior.sampler(SamplingConfig())(torch.full((number,), condition), range(number), latents, known)
    A, U = [0, 1, 4, 5], [2, 3]
    assert torch.equal(drawn[:, A], latents[:, A])
    weights, means = [], []
    for weight, g in dense(prior, condition):
        C, x = g.covariance_matrix, latents[0, A].double()
        weights.append(weight * MultivariateNormal(g.mean[A], C[A][:, A]).log_prob(x).exp())
        means.append(g.mean[U] + C[U][:, A] @ torch.linalg.solve(C[A][:, A], x - g.mean[A]))
    share = torch.stack(weights) / sum(weights)
    exact = (share[:, None] * torch.stack(means)).sum(0)
    error = drawn[:, U].double().std(0) / number**0.5
    assert ((drawn[:, U].double().mean(0) - exact).abs() < 5 * error).all()


def test_temperature_scales_the_deviation(prior):
    condition, seeds = told(prior, 6), range(6)
    cold = prior.sampler(SamplingConfig(temperature=1e-6))(condition, seeds)
    half, whole = (prior.sampler(SamplingConfig(temperature=t))(condition, seeds) for t in (0.5, 1.0))
    assert torch.allclose(half - cold, 0.5 * (whole - cold), atol=1e-5)


def test_saved_and_loaded_it_is_the_same(prior, tmp_path):
    prior.save_pretrained(tmp_path / "model")
    again = load_prior(tmp_path / "model")
    latents = torch.randn(6, 6)
    assert type(again) is type(prior)
    assert torch.equal(again.log_prob(latents, told(prior, 6)), prior.log_prob(latents, told(prior, 6)))


def test_what_it_does_not_have_is_refused_by_name(prior):
    with pytest.raises(UserError, match=r"is over vectors, and a sample is 3 x 3 codes of 8: for codes"):
        prior_of(prior.config.architecture, Layout.of(3, 3, factors=(8,)))
    with pytest.raises(ValueError, match=r"top_k is no setting of a prior of kind"):
        prior.sampler(SamplingConfig(top_k=3))
    with pytest.raises(ValueError, match=r"one seed a sample: got 2 samples and 1 seeds"):
        prior.sampler(SamplingConfig())(told(prior, 2), [1])


def test_each_command_takes_its_own_kinds_and_names_the_other_command():
    for cls, kind, command in (
        (PriorTraining, "mixture", "prior/fit.py"),
        (PriorTraining, "standard_normal", "prior/fit.py"),
        (FitConfig, "transformer", "prior/train.py"),
    ):
        with pytest.raises(UserError, match=f"kind {kind} is not for this command: {command} takes --model.kind"):
            config.parse(cls, "", ["--model.kind", kind])
    with pytest.raises(
        UserError,
        match=r"model\.kind must be one of transformer, diffusion, levels, masked, nextscale, nextset, pixelcnn, got "
        "'mixtures'",
    ):
        config.parse(PriorTraining, "", ["--model.kind", "mixtures"])


# -------------------------------------------------------------------------------------------------------------- the fit


def write_codes(folder: Path, condition=None, labels: np.ndarray | None = None, rows: int = 200) -> None:
    """Write a dataset of vectors about two means a class."""
    info = CodesInfo(
        layout=LAYOUT, views=1, condition=condition or Nothing(), tokenizer=TOKENIZER, source={}, shard_size=1000
    )
    codes.begin_codes(folder, info)
    splits, draws = {}, np.random.default_rng(0)
    for split, number in (("train", rows), ("validation", rows // 2)):
        mean = draws.choice([-2.0, 2.0], (number, 1)) + (0 if labels is None else labels[:number, None])
        values = (mean + draws.standard_normal((number, 6)) * [1, 1, 0.3, 0.3, 2, 2]).astype(np.float32)
        said = CodesSplit(values, None if labels is None else labels[:number], np.arange(number))
        codes.write_shard(codes.shard_path(folder, split, 0, 1), info, codes.CodesSplit(*said))
        splits[split] = {"rows": number, "sha256": said.digest()}
    codes.finish(folder, info, splits)


def settings(run: Path, **given) -> FitConfig:
    return FitConfig(**{"run": str(run), "model": MixtureConfig(components=2), "iterations": 30, **given})


def lines(run: Path) -> list[dict]:
    return [json.loads(line) for line in (run / "prior/metrics.jsonl").read_text().splitlines()]


@pytest.fixture(scope="module")
def classes(tmp_path_factory) -> Path:
    """Return a run with codes of two classes and rows without one; no row has the third class."""
    run = tmp_path_factory.mktemp("classes")
    write_codes(run / "codes", Classes(names=("a", "b", "c")), np.arange(200) % 3 - 1)
    return run


@pytest.fixture
def run(classes, tmp_path) -> Path:
    return Path(shutil.copytree(classes, tmp_path / "run"))


def test_a_fit_climbs_to_better_than_the_standard_normal(run, accelerator, capfd):
    """One mixture of all rows is fitted: with classes the figure logged mixes theirs, and need not climb alone."""
    fit(settings(run, condition="nothing"), accelerator)
    steps = [line["nll"] for line in lines(run) if "nll" in line]
    assert all(b <= a + 1e-6 for a, b in pairwise(steps)) and len(steps) > 3  # 1e-6 is the regularization
    figures = json.loads((run / "prior/figures.json").read_text())
    fit(settings(run.with_name("normal"), codes=str(run / "codes"), model=StandardNormalConfig()), accelerator)
    normal = json.loads((run.with_name("normal") / "prior/figures.json").read_text())
    assert figures["validation_nll"] < normal["validation_nll"] and figures["best_step"] > 0
    assert (run / "prior/curves.png").exists() and "nats per number" in capfd.readouterr().out


def test_the_logged_log_likelihood_is_that_of_the_rows_under_the_mixture_of_their_class(run, accelerator):
    """After one step, so that no other can be kept; 1e-5 is the rounding of float32."""
    model = fit(settings(run, iterations=1), accelerator)
    prior, train = load_prior(model), codes.load_codes(run / "codes").splits["train"]
    condition = prior.config.condition.of_rows(train.condition, 200)
    nll = -prior.log_prob(torch.from_numpy(train.codes), condition).mean() / 6
    assert json.loads((run / "prior/figures.json").read_text())["best_step"] == 1
    assert lines(run)[0]["nll"] == pytest.approx(float(nll), abs=1e-5)


def test_a_class_without_rows_has_the_mixture_of_all_rows(run, accelerator, capfd):
    prior = load_prior(fit(settings(run), accelerator))
    latents = torch.randn(5, 6)
    none, absent, other = (prior.log_prob(latents, torch.full((5,), number)) for number in (3, 2, 0))
    assert torch.equal(none, absent) and not torch.equal(none, other)
    assert "c" in capfd.readouterr().err


def test_interrupted_it_goes_on_to_the_same_mixture(run, accelerator, monkeypatch):
    whole = fit(settings(run.with_name("whole"), codes=str(run / "codes"), tolerance=0.0), accelerator)
    with monkeypatch.context() as patched:
        patched.setattr(script.Interrupt, "asked", lambda self, step=0: True)
        for _ in range(2):
            with pytest.raises(launch.Interrupted, match=r"saved after EM step \d of 30; the same command goes on"):
                fit(settings(run, tolerance=0.0), accelerator)
    again = fit(settings(run, tolerance=0.0), accelerator)
    assert (whole / "model.safetensors").read_bytes() == (again / "model.safetensors").read_bytes()
    assert lines(run) == lines(whole.parents[1])


def test_a_fit_ends_when_it_gains_less_than_the_tolerance_and_can_be_lengthened(run, accelerator):
    fit(settings(run, tolerance=10.0), accelerator)
    assert lines(run)[-1]["step"] < 30
    cut = run.with_name("cut")
    fit(settings(cut, codes=str(run / "codes"), tolerance=0.0, iterations=3), accelerator)
    fit(settings(cut, codes=str(run / "codes"), tolerance=0.0, iterations=5), accelerator)
    assert [line["step"] for line in lines(cut) if "nll" in line] == [1, 2, 3, 4, 5]


def test_a_finished_fit_says_the_same_again(run, accelerator):
    for model in (MixtureConfig(components=2), StandardNormalConfig()):
        given = settings(run.with_name(model.kind), codes=str(run / "codes"), model=model)
        first = (fit(given, accelerator) / "model.safetensors").read_bytes()
        before = lines(Path(given.run))
        assert (fit(given, accelerator) / "model.safetensors").read_bytes() == first and lines(
            Path(given.run)
        ) == before


def test_more_components_than_rows_of_a_class_are_refused_with_the_class(run, accelerator):
    with pytest.raises(UserError, match=r"model.components 90 is more than the 67 rows of class a: take fewer"):
        fit(settings(run, model=MixtureConfig(components=90)), accelerator)
    assert not (run / "prior").exists()
    fit(settings(run, model=MixtureConfig(components=90, covariance="tied"), condition="nothing"), accelerator)


def test_a_singular_covariance_is_said_of_the_weights_that_are_kept(run, accelerator, capfd):
    """The second fit ends with singular components, and keeps those of its first step, which are none."""
    wide = settings(run, model=MixtureConfig(components=3), condition="nothing", regularization=10.0, iterations=1)
    fit(wide, accelerator)
    assert "3 of 3 components are singular, but for the regularization 10" in capfd.readouterr().err
    other = run.with_name("other")
    fit(settings(other, codes=str(run / "codes"), model=MixtureConfig(components=40), condition="nothing"), accelerator)
    said = capfd.readouterr()
    assert "the weights of step 1 are kept" in said.out and "singular" not in said.err


def test_covariances_beyond_the_memory_are_refused_before_anything_is_made():
    over = PriorConfig(
        layout=Layout.of(64, 64, depth=16),
        condition=Nothing(),
        tokenizer=TOKENIZER,
        architecture=MixtureConfig(components=1000),
    )
    with pytest.raises(UserError, match=r"full covariance of 65536 numbers need .* take --model.covariance diagonal"):
        script.check_size(over.architecture, over)


def test_a_run_goes_from_vectors_to_images(tmp_path, accelerator):
    run = tmp_path / "run"
    toy_sequence.register()
    try:
        few = {"steps": 20, "log_every": 20, "evaluate_every": 20, "save_every": 20, "batch_size": 32, "warmup": 1}
        model = SequenceConfig(image_size=(8, 8))
        train_tokenizer(
            TrainConfig(run=str(run), model=model, images=ImagesConfig(), precision="fp32", lr=1e-2, **few), accelerator
        )
        encode(EncodeSettings(run=str(run), views=1, precision="fp32"), accelerator)
        fit(settings(run, model=MixtureConfig(components=3, covariance="full"), iterations=5), accelerator)
        drawn = generate(
            GenerateSettings(run=str(run), labels=(3,), num_images=2, output=str(tmp_path / "drawn")), accelerator
        )
        figures = json.loads(evaluate(EvaluateSettings(run=str(run)), accelerator).read_text())["figures"]
    finally:
        toy_sequence.forget()
    assert len(list(drawn.glob("0*.png"))) == 2
    assert figures["nll"] == pytest.approx(json.loads((run / "prior/figures.json").read_text())["test_nll"], abs=1e-5)
