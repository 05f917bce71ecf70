"""The diffusion prior: its noise, losses and solvers are those of diffusers, and Gaussians are drawn and scored as they
should be, where a network that knows their best guess stands in for a trained one."""

import math
from collections.abc import Callable
from functools import partial

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from smalti.common import config
from smalti.common.codes_info import CodesInfo, TokenizerIdentity
from smalti.common.condition import Classes
from smalti.common.errors import UserError
from smalti.common.latent_statistics import LatentStatistics
from smalti.common.layout import Grid, Layout
from smalti.prior.base import Completes, Scores, Unfolds, Walks
from smalti.prior.config import PriorConfig, TrainConfig
from smalti.prior.diffusion.bound import bound_each
from smalti.prior.diffusion.config import DiffusionConfig
from smalti.prior.diffusion.draws import Draws
from smalti.prior.diffusion.model import DiffusionPrior
from smalti.prior.diffusion.noise import Noise, Rates, alphas_cumprod
from smalti.prior.diffusion.probability_flow import probability_flow_log_prob
from smalti.prior.model import build_prior, load_prior
from smalti.prior.sampling_config import SamplingConfig

TOKENIZER = TokenizerIdentity(name="test", sha256="0" * 64)
TWO = Layout.of(2, depth=1)  # T = 2
SQUARE = Layout.of(3, 3, depth=2)  # T = 18
TARGETS = ("flow", "v", "epsilon")
FINE = SamplingConfig(precision="fp32")
SCHEDULES = {"linear": "linear", "cosine": "squaredcos_cap_v2"}  # ours, and diffusers' names
TYPES = {"v": "v_prediction", "epsilon": "epsilon"}


def prior_of(layout: Layout = SQUARE, mean: float = 0.0, deviation: float = 1.0, **architecture) -> DiffusionPrior:
    """Return a prior with two classes and random weights, all of them, so that predictions differ."""
    channels = sum(grid.depth for grid in layout.grids)
    settings = PriorConfig(
        layout=layout,
        condition=Classes(names=("a", "b")),
        tokenizer=TOKENIZER,
        architecture=DiffusionConfig(**{"dim": 32, "depth": 2, "heads": 2, **architecture}),
        statistics=LatentStatistics(mean=(mean,) * channels, deviation=(deviation,) * channels),
    )
    torch.manual_seed(0)
    prior = build_prior(settings).eval()
    for parameter in prior.parameters():
        if not parameter.any():
            nn.init.normal_(parameter, std=0.05)
    return prior


def rates_of(noise: Noise, level: Tensor) -> Rates:
    """Return the rates of levels between whole ones too, which the bound asks for."""
    if noise.continuous:
        return noise.rates(level)
    alpha, sigma = (each[1:] for each in noise.exact)
    log_snr = np.interp(level.numpy(), np.arange(1, 1001), 2 * np.log(alpha / sigma))
    return noise.at(torch.from_numpy(log_snr).exp(), level)[1]


class GaussianGuess(nn.Module):
    """The best prediction of x0 ~ N(mean, covariance), whatever the condition."""

    def __init__(self, noise: Noise, mean: Tensor, covariance: Tensor):
        super().__init__()
        self.noise, self.mean, self.covariance = noise, mean, covariance

    def forward(self, x: Tensor, level: Tensor, condition: Tensor) -> Tensor:
        rates = rates_of(self.noise, level)
        alpha, sigma = (each.double()[:, :, None] for each in rates)
        away = (x.flatten(1).double() - rates.alpha.double() * self.mean)[:, :, None]
        inverse = torch.linalg.inv(alpha**2 * self.covariance + sigma**2 * torch.eye(len(self.mean)))
        x0 = self.mean + (alpha * self.covariance @ inverse @ away)[:, :, 0]
        noise = (sigma * inverse @ away)[:, :, 0]
        return self.noise.prediction.target(x0, noise, rates).float().view(x.shape)


MEAN, COVARIANCE = torch.tensor([0.3, -0.2]).double(), torch.tensor([[1.0, 0.7], [0.7, 0.8]]).double()


def gaussian_prior(target: str = "flow", mean: float = 0.0, deviation: float = 1.0, **architecture) -> DiffusionPrior:
    """Return a prior of two numbers that knows their Gaussian, N(MEAN, COVARIANCE) before shift and scale."""
    prior = prior_of(TWO, mean, deviation, target=target, **architecture)
    prior.network = GaussianGuess(prior.noise, MEAN, COVARIANCE)
    return prior


def none(samples: int) -> Tensor:
    return torch.full((samples,), 2)


def classes(samples: int) -> Tensor:
    return torch.arange(samples) % 3


# ------------------------------------------------------------------------------------------------ the same as diffusers


@pytest.fixture(scope="module")
def schedulers():
    return pytest.importorskip("diffusers").schedulers


def scheduler_of(cls: Callable, prior: DiffusionPrior, **settings):
    """Return a scheduler of diffusers with the noise and the target of a prior, without what we do not have."""
    a = prior.architecture
    return cls(
        beta_schedule=SCHEDULES[a.noise_schedule],
        beta_start=1e-4,
        beta_end=0.02,
        prediction_type=TYPES[a.target],
        timestep_spacing="trailing",
        **settings,
    )


@pytest.mark.parametrize(("schedule", "images"), [("constant", 2), ("linear", 4), ("power-cosine", 4)])
def test_a_guided_image_is_drawn_in_as_large_a_batch_as_steps_without_guidance_need(schedule, images):
    """Under a schedule the first steps ask the network once, so that an image has one row there."""
    sampler = gaussian_prior().sampler(SamplingConfig(guidance=2.0, guidance_schedule=schedule, precision="fp32"))
    assert sampler.suited(1) == images


@pytest.mark.parametrize("schedule", SCHEDULES)
def test_the_noise_of_each_level_is_that_of_diffusers(schedule, schedulers):
    theirs = schedulers.DDPMScheduler(beta_schedule=SCHEDULES[schedule]).alphas_cumprod
    np.testing.assert_allclose(alphas_cumprod(schedule), theirs.double(), atol=1e-6)


@pytest.mark.parametrize("target", TYPES)
def test_noisy_latents_and_the_loss_are_those_composed_from_diffusers(target, schedulers):
    prior = prior_of(target=target)
    theirs, latents, condition = scheduler_of(schedulers.DDPMScheduler, prior), torch.randn(6, 18), classes(6)
    torch.manual_seed(3)
    ours = prior.loss(latents, condition, prior)
    torch.manual_seed(3)
    timesteps = (1000 * torch.rand(6)).long()  # one less than our level, of which 0 is without noise
    noise = torch.randn(6, 18)
    noisy = theirs.add_noise(latents, noise, timesteps)
    wanted = theirs.get_velocity(latents, noise, timesteps) if target == "v" else noise
    rates = prior.noise.rates(timesteps + 1.0)
    # their 1 − ᾱ is a difference in fp32, of which little is left at low levels
    torch.testing.assert_close(rates.noisy(latents, noise), noisy, atol=1e-5, rtol=0)
    torch.testing.assert_close(prior.noise.prediction.target(latents, noise, rates), wanted, atol=1e-5, rtol=0)
    predicted = prior(noisy, timesteps + 1.0, condition)
    torch.testing.assert_close(ours, (predicted - wanted) ** 2, atol=1e-4, rtol=1e-4)


def drawn_by(theirs, prior: DiffusionPrior, steps: int, condition: Tensor, seed: int, **given) -> Tensor:
    """Return the samples that a scheduler of diffusers draws from a seed's noise by our network."""
    draws = Draws([seed] * len(condition), prior.config.layout.length, prior.device)
    x = draws.normal()
    theirs.set_timesteps(steps)
    with torch.no_grad():
        for t in theirs.timesteps:
            level = torch.full((len(x),), float(t) + 1)
            x = theirs.step(prior(x, level, condition), t, x, **given).prev_sample
    return x


@pytest.mark.parametrize("target, schedule", [("v", "cosine"), ("v", "linear"), ("epsilon", "linear")])
@pytest.mark.parametrize("solver", ["ddim", "dpm"])
def test_a_run_of_ddim_and_of_dpm_solver_gives_the_samples_of_diffusers(solver, target, schedule, schedulers):
    """1e-5 of the largest: their α are products in fp32. Without clipping, which a latent has no bounds for."""
    prior = prior_of(target=target, schedule=schedule)
    cls, given = {
        "ddim": (schedulers.DDIMScheduler, {"clip_sample": False}),
        "dpm": (schedulers.DPMSolverMultistepScheduler, {"algorithm_type": "dpmsolver++", "solver_order": 2}),
    }[solver]
    theirs = drawn_by(scheduler_of(cls, prior, **given), prior, 10, classes(1), seed=5)
    ours = prior.sampler(FINE.model_copy(update={"solver": solver, "steps": 10}), 1)(classes(1), [5])
    assert (ours - theirs).abs().max() < 1e-5 * max(1.0, theirs.abs().max())


@pytest.mark.parametrize("target", TYPES)
def test_a_run_of_ddpm_with_the_same_noise_gives_the_samples_of_diffusers(target, schedulers):
    """The generator goes on from the first noise as ours does."""
    prior = prior_of(target=target)
    given = torch.Generator().manual_seed(5)
    torch.randn(18, generator=given)
    scheduler = scheduler_of(schedulers.DDPMScheduler, prior, clip_sample=False, variance_type="fixed_small")
    theirs = drawn_by(scheduler, prior, 10, classes(1), seed=5, generator=given)
    ours = prior.sampler(FINE.model_copy(update={"solver": "ddpm", "steps": 10}), 1)(classes(1), [5])
    assert (ours - theirs).abs().max() < 1e-5 * max(1.0, theirs.abs().max())


def test_a_run_of_eulers_steps_of_flow_matching_gives_the_samples_of_diffusers(schedulers):
    """Their own grid ends at level 1 of 1000; the pipelines that use it hand over ours, from 1 down to 1 / steps."""
    prior, theirs, steps = prior_of(), schedulers.FlowMatchEulerDiscreteScheduler(), 10
    theirs.set_timesteps(sigmas=np.linspace(1, 1 / steps, steps).tolist())
    x = Draws([5], 18, prior.device).normal()
    with torch.no_grad():
        for t in theirs.timesteps:
            x = theirs.step(prior(x, t[None], classes(1)), t, x).prev_sample
    ours = prior.sampler(FINE.model_copy(update={"solver": "euler", "steps": steps}), 1)(classes(1), [5])
    torch.testing.assert_close(ours, x, atol=1e-5, rtol=1e-5)  # rounding of ten steps in fp32


# ------------------------------------------------------------------------------------------------------------ Gaussians


@pytest.mark.parametrize("target", TARGETS)
@pytest.mark.parametrize("solver, steps", [("ddpm", 100), ("ddim", 100), ("dpm", 20)])
def test_a_correlated_gaussian_of_any_mean_and_scale_is_drawn_as_it_is(target, solver, steps):
    """The latents have mean 100 and deviation 7 or so. 0.15 of that deviation holds 4 standard errors of 1500 draws and
    what the steps leave."""
    prior = gaussian_prior(target, mean=100.0, deviation=7.0)
    sampling = FINE.model_copy(update={"solver": solver, "steps": steps})
    drawn = (prior.sampler(sampling, 500)(none(1500), range(1500)).double() - 100) / 7
    torch.testing.assert_close(drawn.mean(0), MEAN, atol=0.12, rtol=0)
    torch.testing.assert_close(drawn.T.cov(), COVARIANCE, atol=0.15, rtol=0)


def test_of_more_steps_dpm_solver_needs_the_fewest_to_follow_the_exact_path():
    """On the path of a Gaussian, noise n of one number ends at mean + deviation n."""
    prior, seeds = gaussian_prior("v"), range(50)
    noise = Draws(seeds, 2, prior.device).normal().double()
    prior.network = GaussianGuess(prior.noise, MEAN, torch.diag(torch.tensor([1.0, 0.25]).double()))
    exact = MEAN + noise * torch.tensor([1.0, 0.5])

    def error(solver: str, steps: int) -> float:
        sampling = FINE.model_copy(update={"solver": solver, "steps": steps})
        return float((prior.sampler(sampling)(none(50), seeds) - exact).abs().mean())

    assert error("dpm", 20) < error("ddim", 20) / 3 and error("dpm", 40) < error("dpm", 10) / 4
    assert error("dpm", 100) < 0.01


def test_a_network_learns_a_correlated_gaussian():
    """A small network and 300 steps: mean and covariance to 0.15, and a bound that is one."""
    prior = prior_of(TWO, mean=5.0, deviation=2.0, depth=1)
    factor, draws = torch.linalg.cholesky(COVARIANCE).float(), torch.Generator().manual_seed(0)
    optimizer = torch.optim.AdamW(prior.parameters(), lr=3e-3)
    for step in range(300):
        optimizer.param_groups[0]["lr"] = 3e-3 * (1 - step / 300)
        latents = 5 + 2 * (torch.randn(256, 2, generator=draws) @ factor.T)
        optimizer.zero_grad()
        prior.loss(latents, none(256), prior).mean().backward()
        optimizer.step()
    drawn = (prior.sampler(FINE, 1000)(none(1000), range(1000)) - 5) / 2
    assert drawn.mean(0).abs().max() < 0.15 and (drawn.T.cov() - COVARIANCE).abs().max() < 0.15
    latents = 5 + 2 * (torch.randn(500, 2, generator=draws) @ factor.T)
    exact = torch.distributions.MultivariateNormal(torch.full((2,), 5.0), 4 * COVARIANCE.float()).log_prob(latents)
    assert 0 < float((exact + prior.nats(latents, none(500), range(500)).sum(1)).mean()) < 1.5


# ---------------------------------------------------------------------------------------------------------- likelihoods


def exact_log_prob(latents: Tensor) -> Tensor:
    """Return the log-density of the Gaussian of `gaussian_prior` with mean 100 and deviation 7."""
    return torch.distributions.MultivariateNormal(100 + 7 * MEAN, 49 * COVARIANCE).log_prob(latents.double())


def gaussian_rows(number: int) -> Tensor:
    draws = torch.Generator().manual_seed(1)
    standard = torch.randn(number, 2, generator=draws).double()
    return (100 + 7 * (MEAN + standard @ torch.linalg.cholesky(COVARIANCE).T)).float()


@pytest.mark.parametrize("target", TARGETS)
def test_the_bound_of_the_best_guess_is_the_exact_nll(target):
    """Within 4 standard errors of 4000 rows, a fifth of a nat for two numbers: no more is lost in the limit."""
    prior, latents = gaussian_prior(target, mean=100.0, deviation=7.0), gaussian_rows(4000)
    gap = prior.nats(latents, none(4000), range(4000)).double().sum(1) + exact_log_prob(latents)
    error = 4 * float(gap.std()) / 4000**0.5
    assert abs(float(gap.mean())) < error < 0.25


def test_the_bound_at_some_levels_is_that_of_many_in_the_mean():
    """The means over 200 equal rows, at 4 levels and at 100, lie within 5 standard errors of each other."""
    prior, x0 = gaussian_prior(), torch.tensor([[0.5, -0.4]]).repeat(200, 1)

    def bounds(terms: int) -> Tensor:
        draws = Draws(range(200 * terms, 200 * terms + 200), 2, prior.device)
        return bound_each(x0, partial(prior.denoised, none(200)), prior.noise, draws, terms).sum(1)

    few, many = bounds(4), bounds(100)
    assert abs(float(few.mean() - many.mean())) < 5 * float(few.var() / 200 + many.var() / 200) ** 0.5


@pytest.mark.parametrize("target", TARGETS)
def test_the_likelihood_of_the_probability_flow_is_the_exact_one(target):
    """The density of v and epsilon is that at level 1, a little wider than that of the latents: 0.02 nats."""
    prior, latents = gaussian_prior(target, mean=100.0, deviation=7.0), gaussian_rows(20)
    found = probability_flow_log_prob(prior, latents, none(20), steps=100, probes=1)
    torch.testing.assert_close(found, exact_log_prob(latents), atol=0.02, rtol=0)


def test_the_trace_by_random_probes_is_the_exact_one_in_the_mean(monkeypatch):
    prior, latents = gaussian_prior(mean=100.0, deviation=7.0), gaussian_rows(5)
    exact = probability_flow_log_prob(prior, latents, none(5), steps=10, probes=1)
    monkeypatch.setattr("smalti.prior.diffusion.probability_flow.EXACT", 0)
    found = probability_flow_log_prob(prior, latents, none(5), steps=10, probes=100)
    torch.testing.assert_close(found, exact, atol=0.5, rtol=0)  # off-diagonal numbers about 0.7, 200 signs, 10 steps


def test_a_sample_has_the_same_figure_in_every_batch():
    prior, latents = prior_of(), torch.randn(5, 18)
    together = prior.log_prob(latents, classes(5))
    alone = torch.cat([prior.log_prob(latents[i : i + 1], classes(5)[i : i + 1]) for i in range(5)])
    torch.testing.assert_close(alone, together, rtol=1e-5, atol=1e-3)  # sums of fp32
    torch.testing.assert_close(
        prior.nats(latents[3:], classes(5)[3:], [3, 4]), prior.nats(latents, classes(5), range(5))[3:]
    )
    torch.testing.assert_close(
        prior.validation(latents[3:], classes(5)[3:], [3, 4]), prior.validation(latents, classes(5), range(5))[3:]
    )


# -------------------------------------------------------------------------------------------------------------- drawing


@pytest.mark.parametrize("solver", ["ddpm", "ddim", "dpm"])
def test_an_image_depends_on_its_label_and_seed_and_not_on_its_batch(solver):
    """To the rounding of products of another shape; known places are of some images of the batch alone."""
    prior, seeds = prior_of(), [3, 4, 2**40, 6, 7, 2**63, 9]
    sampling = FINE.model_copy(update={"solver": solver, "steps": 4, "resampling": 2})
    latents, known = torch.randn(7, 18), torch.zeros(7, 9, dtype=torch.bool)
    known[::2, :5] = True
    whole = prior.sampler(sampling, 8)(classes(7), seeds)
    around = prior.sampler(sampling, 8)(classes(7), seeds, latents, known)
    for batch_size in (1, 3):
        draw = prior.sampler(sampling, batch_size)
        torch.testing.assert_close(draw(classes(7), seeds), whole, atol=1e-4, rtol=1e-4)
        torch.testing.assert_close(draw(classes(7), seeds, latents, known), around, atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(around[1::2], whole[1::2], atol=1e-4, rtol=1e-4)  # these have no known place
    assert len(whole.round(decimals=2).unique(dim=0)) == 7
    alone = prior.sampler(sampling)(classes(7)[:1], seeds[:1])  # of as many rows as are computed as among many
    assert torch.equal(alone, prior.sampler(sampling)(classes(7), seeds)[:1])


def test_known_places_come_back_exactly_and_none_known_is_as_drawing_whole():
    prior, latents, known = prior_of(mean=100.0, deviation=7.0), torch.randn(4, 18), torch.rand(4, 9) < 0.5
    draw = prior.sampler(FINE.model_copy(update={"steps": 3}))
    numbers = known.repeat_interleave(2, 1)
    assert torch.equal(draw(classes(4), range(4), latents, known)[numbers], latents[numbers])
    assert torch.equal(draw(classes(4), range(4), latents, known & False), draw(classes(4), range(4)))


def test_around_a_known_number_the_other_has_its_conditional_distribution():
    """It is approximate (Lugmayr et al. 2022): by the defaults to a tenth, of which the error of the draws is a third.

    With steps taken four times, which was the default, the mean is off by 0.17 of the pull of 0.64.
    """
    prior, number = gaussian_prior(), 400
    latents, known = torch.tensor([[1.5, 0.0]]).repeat(number, 1), torch.tensor([[True, False]]).repeat(number, 1)
    drawn = prior.sampler(FINE, number)(none(number), range(number), latents, known)[:, 1]
    slope = COVARIANCE[0, 1] / COVARIANCE[0, 0]
    mean, variance = MEAN[1] + slope * (1.5 - MEAN[0]), COVARIANCE[1, 1] - slope * COVARIANCE[0, 1]
    assert abs(float(drawn.mean() - mean)) < 0.1 and abs(float(drawn.var() - variance)) < 0.1


class Told(nn.Module):
    """A prediction that is the number of the condition everywhere."""

    def forward(self, x: Tensor, level: Tensor, condition: Tensor) -> Tensor:
        return condition.float()[:, None, None].expand_as(x)


def test_guidance_leads_away_from_the_prediction_without_a_class_and_1_is_none():
    prior, x = prior_of(TWO), torch.randn(2, 2)
    prior.network = Told()
    condition = torch.tensor([0, 1])  # none is 2
    for scale, predicted in ((1.0, [0.0, 1.0]), (0.0, [2.0, 2.0]), (3.0, [-4.0, -1.0])):
        guess = prior.guided(x, 500.0, condition, scale, "fp32")
        torch.testing.assert_close(guess.noise - guess.x0, torch.tensor(predicted)[:, None].expand(2, 2))
    real = prior_of()
    plain = real.sampler(FINE.model_copy(update={"steps": 3}))(classes(4), range(4))
    guided = FINE.model_copy(update={"steps": 3, "guidance": 2.0})
    assert not torch.equal(real.sampler(guided)(classes(4), range(4)), plain)
    late = guided.model_copy(update={"guidance_schedule": "power-cosine", "guidance_power": 1e6})
    first = next(iter(real.unfold(late, classes(4), range(4)))).latents
    assert torch.equal(
        first, next(iter(real.unfold(FINE.model_copy(update={"steps": 3}), classes(4), range(4)))).latents
    )


def test_it_unfolds_in_as_many_passes_as_steps_to_what_the_sampler_returns():
    prior, sampling = prior_of(mean=3.0, deviation=2.0), FINE.model_copy(update={"steps": 5})
    passes = list(prior.unfold(sampling, classes(3), [1, 2, 3]))
    assert len(passes) == 5 and all(each.settled is None for each in passes)
    assert torch.equal(passes[-1].latents, prior.sampler(sampling, 3)(classes(3), [1, 2, 3]))


def test_bf16_draws_nearly_the_same_and_its_states_stay_in_fp32():
    prior, sampling = prior_of(), FINE.model_copy(update={"steps": 5})
    exact = prior.sampler(sampling)(classes(3), range(3))
    rounded = prior.sampler(sampling.model_copy(update={"precision": "bf16"}))(classes(3), range(3))
    assert rounded.dtype == torch.float32
    assert 0 < float((rounded - exact).norm() / exact.norm()) < 0.05  # bf16 has 8 bits


LAYOUTS = (
    Layout.of(1, depth=8),  # one vector of the whole image
    Layout.of(5, depth=2),
    Layout.of(2, 3, 2, depth=3),
    Layout(grids=(Grid(shape=(1, 1), depth=2), Grid(shape=(3, 3), depth=2))),
)


@pytest.mark.parametrize("layout", LAYOUTS, ids=str)
def test_every_layout_of_one_depth_is_trained_drawn_and_scored(layout):
    prior = prior_of(layout)
    drawn = prior.sampler(FINE.model_copy(update={"steps": 2}))(classes(3), range(3))
    assert drawn.shape == (3, layout.length) and drawn.isfinite().all()
    loss = prior.loss(drawn, classes(3), prior)
    loss.mean().backward()
    assert loss.shape == drawn.shape and all(p.grad is not None for p in prior.parameters())
    assert prior.log_prob(drawn, classes(3)).isfinite().all()


def test_saved_and_loaded_it_draws_the_same(tmp_path):
    prior = prior_of(mean=100.0, deviation=7.0, target="v")
    prior.save_pretrained(tmp_path / "model")
    again, sampling = load_prior(tmp_path / "model"), FINE.model_copy(update={"steps": 3})
    assert type(again) is DiffusionPrior and again.config == prior.config
    assert torch.equal(again.sampler(sampling)(classes(3), range(3)), prior.sampler(sampling)(classes(3), range(3)))


def test_the_first_prediction_is_zero_and_recomputed_activations_give_the_same_gradients():
    plain = build_prior(prior_of(dropout=0.3).config).train()
    assert not plain(torch.randn(2, 18), torch.tensor([1.0, 500.0]), classes(2)).any()
    prior = prior_of(dropout=0.3).train()

    def gradients(recompute: bool) -> list[Tensor]:
        prior.network.recompute = recompute
        prior.zero_grad()
        torch.manual_seed(1)
        prior.loss(torch.ones(2, 18), classes(2), prior).mean().backward()
        return [parameter.grad.clone() for parameter in prior.parameters()]

    assert all(torch.equal(a, b) for a, b in zip(gradients(False), gradients(True), strict=True))


# -------------------------------------------------------------------------------------------------------------- refused


def test_it_scores_completes_and_unfolds_and_does_not_walk():
    prior = prior_of()
    assert isinstance(prior, Scores) and isinstance(prior, Completes) and isinstance(prior, Unfolds)
    assert not isinstance(prior, Walks) and not prior.exact and prior.heeds(torch.zeros(1, 9, dtype=torch.bool))


@pytest.mark.parametrize(
    "given, message",
    [
        ({"target": "epsilon", "schedule": "cosine"}, "target epsilon needs schedule linear"),
        ({"schedule": "linear"}, "schedule linear is of target v or epsilon; flow has none"),
        ({"dim": 36, "heads": 2}, "dim 36 must be a multiple of 4 x heads = 8"),
    ],
)
def test_settings_that_do_not_go_together_are_refused(given, message):
    with pytest.raises(UserError, match=message):
        config.build(DiffusionConfig, {"kind": "diffusion", **given}, "model")


@pytest.mark.parametrize(
    "target, given, message",
    [
        ("v", {"solver": "euler"}, "solver euler is of target flow, and this prior predicts v: take ddim"),
        ("epsilon", {"steps": 1001}, "steps 1001 are more than the 1000 levels of target epsilon"),
        ("flow", {"precision": "int8"}, "precision int8 is of priors that draw code after code"),
        ("flow", {"temperature": 0.9}, "temperature is no setting of a prior of kind diffusion"),
        ("flow", {"top_k": 5}, "top_k is no setting of a prior of kind diffusion"),
    ],
)
def test_sampling_that_it_does_not_have_is_refused_by_name(target, given, message):
    with pytest.raises(ValueError, match=message):
        prior_of(target=target).sampler(SamplingConfig(**given))


def test_a_likelihood_given_known_places_is_refused_with_its_reason():
    with pytest.raises(ValueError, match="bound of a diffusion prior is of whole samples"):
        prior_of().log_prob(torch.zeros(1, 18), classes(1), torch.zeros(1, 9, dtype=torch.bool))


def test_codes_grids_of_unequal_depth_and_orders_are_refused():
    def info(layout: Layout, **given) -> CodesInfo:
        return CodesInfo(
            layout=layout,
            views=1,
            condition=Classes(names=("a",)),
            tokenizer=TOKENIZER,
            source={},
            shard_size=1,
            **given,
        )

    with pytest.raises(UserError, match=r"model\.kind diffusion is over vectors"):
        PriorConfig.over(info(Layout.of(2, 2, factors=(4,))), DiffusionConfig())
    uneven = Layout(grids=(Grid(shape=(1, 1), depth=2), Grid(shape=(2, 2), depth=3)))
    statistics = LatentStatistics(mean=(0.0,) * 5, deviation=(1.0,) * 5)
    with pytest.raises(UserError, match="needs vectors of one length"):
        build_prior(PriorConfig.over(info(uneven, statistics=statistics), DiffusionConfig()))
    with pytest.raises(UserError, match="order annealed is of priors that draw codes"):
        prior_of().prepare(TrainConfig(order="annealed"))


def test_the_exact_nll_of_one_standard_normal_number_is_met_by_its_bound():
    """Known answer: ½ ln 2πe a number in the mean, at 1000 draws within 4 standard errors."""
    prior = prior_of(Layout.of(1, depth=1))
    prior.network = GaussianGuess(prior.noise, torch.zeros(1).double(), torch.eye(1).double())
    nats = prior.nats(torch.randn(1000, 1, generator=torch.Generator().manual_seed(0)), none(1000), range(1000))
    assert abs(float(nats.mean()) - 0.5 * math.log(2 * math.pi * math.e)) < 4 * float(nats.std()) / 1000**0.5
