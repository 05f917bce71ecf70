"""Objectives of a VAE: each is the formula of its paper, in nats, and bounds are bounds."""

import math

import pytest
import torch
from torch.distributions import MultivariateNormal, Normal

from smalti.metrics.mmd import mmd_squared
from smalti.tokenizer.criterion.objective.base import Evidence, build_objective
from smalti.tokenizer.criterion.objective.config import (
    ELBOConfig,
    InfoVAEConfig,
    IWAEConfig,
    ReconstructionConfig,
    WAEConfig,
)
from smalti.tokenizer.criterion.objective.iwae import importance_weighted_nll
from smalti.tokenizer.criterion.objective.mmd import distance_to_prior

W = torch.tensor([[1.0, 0.4], [-0.3, 0.8], [0.5, 0.5]], dtype=torch.float64)  # of p(x | z) = N(Wz, 0.25 I)
X = torch.tensor([0.7, -0.2, 1.1], dtype=torch.float64)


def log_evidence() -> torch.Tensor:
    """Return log p(x) of the linear-Gaussian model, () in nats."""
    return MultivariateNormal(torch.zeros(3).double(), W @ W.T + 0.25 * torch.eye(3).double()).log_prob(X)


def drawn_evidence(samples: int, images: int = 1, scale: float = 0.6) -> Evidence:
    """Return the evidence of X, `images` times over, by draws from a q that is not the posterior."""
    torch.manual_seed(0)
    q = Normal(torch.tensor([0.5, 0.3], dtype=torch.float64), torch.tensor(scale, dtype=torch.float64))
    z = q.sample((samples, images, 1))  # (S, B, 1, 2)
    nll = -Normal(z[:, :, 0] @ W.T, 0.5).log_prob(X).sum(-1)
    kl = torch.distributions.kl_divergence(q, Normal(torch.zeros(2).double(), 1.0)).expand(images, 1, 2)
    return Evidence(nll, z, q.log_prob(z).sum(-1), kl)


def test_the_elbo_is_below_the_evidence_by_the_kl_to_the_posterior():
    evidence = drawn_evidence(200_000)
    precision = W.T @ W / 0.25 + torch.eye(2).double()
    posterior = MultivariateNormal(torch.linalg.solve(precision, W.T @ X / 0.25), precision_matrix=precision)
    q = MultivariateNormal(torch.tensor([0.5, 0.3]).double(), 0.36 * torch.eye(2).double())
    gap = torch.distributions.kl_divergence(q, posterior)
    # 200,000 draws of a nll of deviation 2 have a standard error of 0.005
    assert evidence.negative_elbo.item() == pytest.approx((gap - log_evidence()).item(), abs=0.02)


def test_the_importance_weighted_bound_rises_with_the_draws_and_meets_the_evidence():
    bounds = []
    for K in (1, 5, 50, 2000):
        many = drawn_evidence(K, images=400)
        bounds.append(-importance_weighted_nll(many.log_weights).mean().item())
    assert bounds == sorted(bounds) and bounds[-1] <= log_evidence().item() + 0.01
    assert bounds[-1] == pytest.approx(log_evidence().item(), abs=0.01)  # the bias falls as 1 / K


def test_of_one_draw_the_importance_weighted_bound_is_the_elbo_by_monte_carlo():
    evidence = drawn_evidence(1, images=7)
    rate = (evidence.log_q - evidence.log_p).sum(-1)[0]
    torch.testing.assert_close(importance_weighted_nll(evidence.log_weights), evidence.nll[0] + rate)


def test_the_kl_is_summed_over_latents_and_averaged_over_images():
    evidence = drawn_evidence(3, images=4)
    kl = build_objective(ELBOConfig()).terms(evidence, 1.0)["kl_loss"]
    torch.testing.assert_close(kl, evidence.kl[0].sum())


def test_a_kl_in_closed_form_is_never_mixed_with_one_by_draws():
    closed, drawn = drawn_evidence(5), drawn_evidence(5)
    drawn.kl = None
    assert closed.rate is closed.kl
    torch.testing.assert_close(drawn.rate, (drawn.log_q - drawn.log_p).mean(0)[..., None])


@pytest.mark.parametrize(("progress", "weight"), [(0.0, 0.0), (0.1, 1.0), (0.2, 2.0), (1.0, 2.0)])
def test_the_weight_of_the_kl_warms_up(progress, weight):
    objective = build_objective(ELBOConfig(kl_weight=2.0, kl_warmup=0.2))
    evidence = drawn_evidence(1)
    torch.testing.assert_close(objective.terms(evidence, progress)["kl_loss"], weight * evidence.kl.sum())
    assert objective.config.scheduled(progress) == {"kl_weight": pytest.approx(weight)}


def test_free_bits_are_free_for_each_number_and_not_for_their_sum():
    evidence = drawn_evidence(1)
    evidence.kl = torch.tensor([[[0.1, 2.0]], [[0.3, 4.0]]])  # the mean over images is 0.2 and 3
    assert build_objective(ELBOConfig(free_bits=0.5)).terms(evidence, 1.0)["kl_loss"].item() == pytest.approx(3.5)


def test_every_objective_says_its_terms_in_nats_an_image():
    evidence = drawn_evidence(4, images=6)
    nll, kl = evidence.nll.mean(), evidence.kl[0].sum()
    for config, terms in (
        (ReconstructionConfig(), {"reconstruction_loss": nll}),
        (ELBOConfig(kl_weight=0.5), {"reconstruction_loss": nll, "kl_loss": 0.5 * kl}),
        (IWAEConfig(), {"importance_weighted_loss": importance_weighted_nll(evidence.log_weights).mean()}),
        (WAEConfig(mmd_weight=0.0), {"reconstruction_loss": nll, "mmd_loss": torch.tensor(0.0)}),
        (InfoVAEConfig(kl_weight=0.25, mmd_weight=0.0), {"reconstruction_loss": nll, "kl_loss": 0.25 * kl}),
    ):
        found = build_objective(config).terms(evidence, 1.0)
        for name, value in terms.items():
            torch.testing.assert_close(found[name].double(), value.double())


def test_an_autoencoder_has_no_bound():
    evidence = Evidence(torch.zeros(1, 2), torch.zeros(1, 2, 1, 3), None, None)
    with pytest.raises(ValueError, match="an autoencoder has no q"):
        evidence.rate  # noqa: B018
    with pytest.raises(ValueError, match="an autoencoder has no q"):
        evidence.log_weights  # noqa: B018


def test_mmd_is_unbiased_and_tells_distributions_apart():
    torch.manual_seed(0)
    alike = torch.stack([mmd_squared(torch.randn(50, 3), torch.randn(60, 3)) for _ in range(200)])
    assert abs(alike.mean()) < 4 * alike.std() / math.sqrt(200)
    assert mmd_squared(torch.randn(500, 3) + 1, torch.randn(500, 3)) > 10 * alike.std()


def test_mmd_has_a_gradient_towards_the_prior():
    torch.manual_seed(0)
    far = (torch.randn(64, 2) + 3).requires_grad_()
    mmd_squared(far, torch.randn(64, 2)).backward()
    assert (far.grad.mean(0) > 0).all()  # a step down the gradient moves them back


def test_mmd_to_the_prior_is_averaged_over_the_draws_and_0_of_one_image():
    """Draws of a q far from the prior: that of one image has no pair."""
    torch.manual_seed(0)
    z = torch.randn(8, 400, 1, 3) + torch.linspace(0, 1, 8).view(8, 1, 1, 1)
    each = torch.stack([distance_to_prior(draw[None]) for draw in z])
    assert distance_to_prior(z).item() == pytest.approx(each.mean().item(), abs=0.05)  # 400 draws differ by 0.05 each
    alone = z[:, :1].requires_grad_()
    distance_to_prior(alone).backward()
    assert distance_to_prior(alone) == 0 and not alone.grad.any()
