"""The masked prior: what it is trained on, its bound, what a pass keeps, and draws that belong to their seeds."""

import itertools
import math

import pytest
import torch

from smalti.common.codes_info import TokenizerIdentity
from smalti.common.condition import Classes
from smalti.common.errors import UserError
from smalti.common.layout import Grid, Layout
from smalti.common.mixed_radix import to_digits
from smalti.prior.base import Completes, Scores, Unfolds, Walks
from smalti.prior.code_head import nll_each
from smalti.prior.config import PriorConfig, TrainConfig
from smalti.prior.masked.choice import first_ranked, halton_ranks, still_hidden
from smalti.prior.masked.config import MaskedConfig
from smalti.prior.masked.model import MaskedPrior
from smalti.prior.model import build_prior, load_prior
from smalti.prior.sampling_config import SamplingConfig

TOKENIZER = TokenizerIdentity(name="t", sha256="0" * 64)
LAYOUTS = {  # what is predicted
    "one code": Layout.of(4, 5, factors=(7,)),
    "several codes a place": Layout.of(3, 3, depth=3, factors=(5,)),
    "codes in parts": Layout.of(2, 3, factors=(2,) * 16),
    "a sequence": Layout.of(9, factors=(6,)),
    "two grids": Layout(grids=(Grid(shape=(2, 2), factors=(7,)), Grid(shape=(4, 4), factors=(7,)))),
    "two grids of two codes": Layout(grids=tuple(Grid(shape=(n, n), depth=2, factors=(7,)) for n in (1, 2))),
}
FP32 = {"precision": "fp32"}


def make(layout=LAYOUTS["one code"], depth=2, dim=32, spread=0.5, **settings) -> MaskedPrior:
    """Return a prior with weights far from their beginning, where every code would be as likely."""
    torch.manual_seed(0)
    architecture = MaskedConfig(depth=depth, dim=dim, heads=2, dropout=0.0, **settings)
    config = PriorConfig(
        layout=layout, condition=Classes(names=("a", "b")), tokenizer=TOKENIZER, architecture=architecture
    )
    prior = build_prior(config).eval()
    assert isinstance(prior, MaskedPrior)
    torch.nn.init.normal_(prior.head.weight, std=spread)
    for embedding in (prior.class_embedding, prior.code_embedding):
        torch.nn.init.normal_(embedding.weight, std=0.2)
    for block in prior.blocks:
        torch.nn.init.normal_(block.attention.out.weight, std=0.3)
    return prior


def codes_of(prior: MaskedPrior, samples: int = 3) -> torch.Tensor:
    noise = torch.Generator().manual_seed(1)
    return torch.randint(prior.config.layout.codebook_size, (samples, prior.config.layout.length), generator=noise)


def toy(places=3, K=3) -> tuple[MaskedPrior, torch.Tensor]:
    """Return a prior over so few codes that all samples can be listed, and the list (K^T, T)."""
    prior = make(Layout.of(1, places, factors=(K,)), spread=0.2)
    return prior, torch.tensor(list(itertools.product(range(K), repeat=places)))


def chain(prior: MaskedPrior, codes: torch.Tensor, order: tuple[int, ...]) -> torch.Tensor:
    """Return log p (B,) of codes as they are drawn one a pass in an order."""
    labels, hidden = torch.zeros(len(codes), dtype=torch.int64), torch.ones_like(codes, dtype=torch.bool)
    found = torch.zeros(len(codes))
    for t in order:
        found += prior(labels, codes, hidden).log_softmax(-1)[:, t].gather(1, codes[:, t, None])[:, 0]
        hidden = hidden.index_fill(1, torch.tensor(t), False)
    return found


def draw(prior: MaskedPrior, samples: int = 6, batch_size: int = 6, first_seed: int = 0, **settings) -> torch.Tensor:
    labels = torch.arange(samples) % 2
    sampler = prior.sampler(SamplingConfig(**{**FP32, **settings}), batch_size)
    return sampler(labels, range(first_seed, first_seed + samples))


# -------------------------------------------------------------------------------------------------- what is predicted


@pytest.mark.parametrize("layout", LAYOUTS.values(), ids=LAYOUTS)
def test_a_prediction_depends_on_every_code_that_is_not_hidden_and_on_no_other(layout):
    prior = make(layout)
    labels, codes = torch.zeros(1, dtype=torch.int64), codes_of(prior, 1)
    hidden = torch.arange(layout.length)[None] % 2 == 0
    before = prior.features(labels, *_parts(prior, codes), hidden)
    for t in range(layout.length):
        other = codes.clone()
        other[0, t] = (other[0, t] + 1) % layout.codebook_size
        moved = (prior.features(labels, *_parts(prior, other), hidden) - before).abs().amax(2)[0] > 1e-6
        assert moved.any() != hidden[0, t]
        assert hidden[0, t] or moved.all(), f"places {(~moved).nonzero().flatten().tolist()} are blind to {t}"


def _parts(prior: MaskedPrior, codes: torch.Tensor) -> tuple[torch.Tensor]:
    from smalti.common.mixed_radix import to_digits

    return (to_digits(codes, prior.vocabularies),)


def test_codes_drawn_one_a_pass_have_probabilities_that_sum_to_one_in_every_order():
    prior, every = toy()
    for order in itertools.permutations(range(3)):
        assert chain(prior, every, order).exp().sum().item() == pytest.approx(1, abs=1e-5)


def test_one_code_a_pass_in_a_fixed_order_is_drawn_as_the_any_order_chain_says():
    """4,000 draws: each of 27 frequencies lies within 5 standard deviations of its probability."""
    prior, every = toy()
    order = tuple((-prior.halton).argsort().tolist())
    sampler = prior.sampler(SamplingConfig(steps=3, order="halton", precision="fp32"), 1000)
    drawn = sampler(torch.zeros(4000, dtype=torch.int64), range(4000))
    expected = chain(prior, every, order).exp()
    found = (drawn[:, None] == every).all(2).float().mean(0)
    assert ((found - expected).abs() < 5 * (expected * (1 - expected) / 4000).sqrt() + 1e-4).all()


def test_the_walk_of_the_coder_has_the_probabilities_of_one_code_a_pass():
    prior, every = toy()
    nats = torch.zeros(len(every))

    def choose(logits, t, g):
        nats.add_(logits.log_softmax(-1).gather(1, every[:, t, None])[:, 0])
        return every[:, t]

    walked = prior.walk(torch.zeros(len(every), dtype=torch.int64), choose)
    assert torch.equal(walked, every)
    order = tuple((-prior.halton).argsort().tolist())
    torch.testing.assert_close(nats, chain(prior, every, order), atol=1e-5, rtol=1e-5)


def test_each_grid_has_embeddings_and_a_head_of_its_own():
    """The loss of hidden fine codes moves their codebooks' heads and vectors of hidden codes, and no other's."""
    prior = make(LAYOUTS["two grids of two codes"])
    codes, labels = torch.full((3, 10), 5), torch.zeros(3, dtype=torch.int64)
    fine = (torch.arange(10) >= 2).expand(3, -1)
    nll_each(prior(labels, codes, fine), codes, prior.vocabularies)[fine].sum().backward()
    for weight, rows in ((prior.head.weight, 7), (prior.hidden_embedding.weight, 1)):
        moved = weight.grad.abs().sum(1).view(4, rows) > 0
        assert not moved[:2].any() and moved[2:].all()
    read = prior.code_embedding.weight.grad.abs().sum(1).view(4, 7) > 0
    assert read.nonzero().tolist() == [[0, 5], [1, 5]]


@pytest.mark.parametrize("layout", LAYOUTS.values(), ids=LAYOUTS)
def test_the_first_logits_of_the_walk_are_those_of_the_forward(layout):
    """The codes of a pass are independent given those before: of the first pass, given none."""
    prior = make(layout)
    labels, codes, found = torch.zeros(1, dtype=torch.int64), codes_of(prior, 1), {}

    def choose(logits, t, g):
        found.setdefault((t, g), logits)
        return to_digits(codes[:, t], prior.vocabularies)[:, g]

    prior.walk(labels, choose)
    logits = prior(labels, codes, torch.ones_like(codes, dtype=torch.bool)).split(list(prior.vocabularies), dim=-1)
    first = next(iter(found))[0]
    for g, part in enumerate(logits):
        torch.testing.assert_close(found[first, g], part[:, first])


@pytest.mark.parametrize("layout", LAYOUTS.values(), ids=LAYOUTS)
def test_the_walk_asks_for_each_part_of_each_code_once(layout):
    prior, asked = make(layout), []
    prior.walk(torch.tensor([0, 1]), lambda logits, t, g: asked.append((t, g)) or logits.argmax(1))
    assert sorted(asked) == [(t, g) for t in range(layout.length) for g in range(len(prior.vocabularies))]


# ---------------------------------------------------------------------------------------------------------- the bound


def exact_nll(prior: MaskedPrior, codes: torch.Tensor) -> torch.Tensor:
    """Return −log of the mean over all orders of the probability, (B,)."""
    orders = list(itertools.permutations(range(codes.shape[1])))
    each = torch.stack([chain(prior, codes, order) for order in orders])
    return math.log(len(orders)) - each.logsumexp(0)


def estimate(prior: MaskedPrior, codes: torch.Tensor, masks: int) -> torch.Tensor:
    """Return the bound on −log p of each sample, (B,), by so many masks."""
    many, seeds = codes.repeat(masks // 8, 1), range(len(codes) * masks // 8)
    labels, wanted = torch.zeros(len(many), dtype=torch.int64), torch.ones_like(many, dtype=torch.bool)
    with torch.no_grad():
        each = prior.bound(many, labels, wanted, seeds, 8).sum(1)
    return each.view(-1, len(codes)).mean(0)


def test_the_bound_lies_above_the_exact_nll_and_is_the_mean_over_orders():
    """Its estimate from 1,000 masks a sample has an error below 0.1 nats."""
    prior, every = toy()
    mean = -torch.stack([chain(prior, every, order) for order in itertools.permutations(range(3))]).mean(0)
    assert (mean >= exact_nll(prior, every) - 1e-6).all() and (mean > exact_nll(prior, every) + 1e-3).any()
    torch.testing.assert_close(estimate(prior, every, 1000), mean, atol=0.1, rtol=0)


def test_the_bound_meets_the_exact_nll_where_all_orders_agree():
    """Without attention a code depends on no other, so that every order gives the same probability; the estimate's
    error is below 0.07 nats."""
    prior, every = toy()
    for block in prior.blocks:
        torch.nn.init.zeros_(block.attention.out.weight)
    torch.testing.assert_close(estimate(prior, every, 1000), exact_nll(prior, every), atol=0.07, rtol=0)


def test_the_bound_of_one_code_is_its_nll():
    prior = make(Layout.of(1, 1, factors=(5,)))
    codes, labels = torch.arange(5)[:, None], torch.zeros(5, dtype=torch.int64)
    torch.testing.assert_close(-prior.log_prob(codes, labels), exact_nll(prior, codes))


def test_known_codes_cost_nothing():
    prior = make()
    codes, labels = codes_of(prior), torch.tensor([0, 1, 2])
    known = torch.ones(3, 20, dtype=torch.bool)
    assert prior.log_prob(codes, labels, known).abs().max() == 0
    known[:, 7] = False
    hidden = ~known
    nll = -prior(labels, codes, hidden).log_softmax(-1)[:, 7].gather(1, codes[:, 7, None])[:, 0]
    torch.testing.assert_close(-prior.log_prob(codes, labels, known), nll)


def test_the_figure_of_a_sample_does_not_depend_on_its_batch():
    prior = make()
    codes, labels = codes_of(prior, 5), torch.tensor([0, 1, 2, 0, 1])
    alone = torch.cat([prior.log_prob(codes[i : i + 1], labels[i : i + 1]) for i in range(5)])
    torch.testing.assert_close(prior.log_prob(codes, labels), alone, atol=1e-4, rtol=1e-5)


@pytest.mark.parametrize("schedule", ["cosine", "uniform"])
def test_the_loss_of_a_prior_that_knows_nothing_is_ln_k_on_average(schedule):
    """The mean weight of 4,000 samples of 20 codes is 1 within 0.02."""
    prior = make(schedule=schedule)
    torch.nn.init.zeros_(prior.head.weight)
    loss = prior.loss(codes_of(prior, 4000), torch.zeros(4000, dtype=torch.int64), prior)
    assert loss.mean().item() == pytest.approx(math.log(7), rel=0.02)


def test_training_with_the_uniform_schedule_is_on_the_bound():
    """Both are means over 2,000 random masks, whose difference is below 2%."""
    prior = make(schedule="uniform")
    codes, labels = codes_of(prior, 1), torch.zeros(1, dtype=torch.int64)
    loss = prior.loss(codes.expand(2000, -1), labels.expand(2000), prior).sum(1).mean().item()
    assert loss == pytest.approx(estimate(prior, codes, 2000).item(), rel=0.02)


# ------------------------------------------------------------------------------------------------- what a pass keeps


@pytest.mark.parametrize("passes", [1, 4, 12, 49, 60])
def test_as_many_codes_stay_hidden_as_in_diffusers(passes):
    """AmusedScheduler hides floor(T cos(π/2 · share)), and at least keeps one a pass."""
    from diffusers import AmusedScheduler

    T, mask, prior = 49, 16, AmusedScheduler(mask_token_id=16)
    prior.set_timesteps(passes, temperature=(0, 0))
    sample, hidden = torch.full((1, T), mask), torch.tensor([T])
    for i, step in enumerate(prior.timesteps):
        noise = torch.Generator().manual_seed(i)
        logits = torch.randn(1, T, mask, generator=noise)
        sample = prior.step(logits, step, sample, generator=noise).prev_sample
        ours = still_hidden(torch.tensor([T]), i + 1, torch.tensor([passes]))
        if passes <= T:
            assert ours.item() == (sample == mask).sum().item()
        assert ours < hidden or not hidden.any()
        hidden = ours
    assert not hidden.any()


def test_the_highest_ranks_among_the_hidden_are_kept():
    ranks, hidden = torch.tensor([[0.1, 0.9, 0.5, 0.7]]), torch.tensor([[True, False, True, True]])
    assert first_ranked(ranks, hidden, torch.tensor([2])).tolist() == [[False, False, True, True]]
    assert first_ranked(ranks, hidden, torch.tensor([9])).tolist() == hidden.tolist()


@pytest.mark.parametrize("layout", LAYOUTS.values(), ids=LAYOUTS)
def test_haltons_order_meets_each_code_once_and_those_of_a_place_together(layout):
    ranks = halton_ranks(layout)
    places = (-ranks).argsort() // layout.depth
    assert len(ranks.unique()) == layout.length
    assert places.view(-1, layout.depth).unique(dim=1).shape[1] == 1


def test_haltons_order_spreads_the_first_codes_over_the_grid():
    """The first 16 of 8 x 8 places lie in each of the 2 x 2 quarters 3 to 5 times."""
    first = (-halton_ranks(Layout.of(8, 8, factors=(4,)))).argsort()[:16]
    quarters = (first // 8 // 4) * 2 + first % 8 // 4
    assert quarters.bincount(minlength=4).tolist() == pytest.approx([4, 4, 4, 4], abs=1)


def test_with_no_noise_in_the_choice_those_are_kept_that_it_is_surest_of():
    prior = make(spread=2.0)
    settings = SamplingConfig(steps=4, choice_temperature=0, temperature=1e-6, precision="fp32")
    first, *_ = prior.unfold(settings, torch.tensor([0]), [0])
    labels, codes = torch.tensor([0]), torch.zeros(1, 20, dtype=torch.int64)
    # a temperature of nearly 0 makes every draw sure: ties are kept from the first place on
    assert first.settled.sum() == 20 - still_hidden(torch.tensor([20]), 1, torch.tensor([4])).item()
    assert torch.equal(first.latents[0], prior(labels, codes, torch.ones(1, 20, dtype=torch.bool)).argmax(2)[0])


# ------------------------------------------------------------------------------------------------------------ drawing


@pytest.mark.parametrize("order", ["confidence", "halton", "random"])
@pytest.mark.parametrize("layout", LAYOUTS.values(), ids=LAYOUTS)
def test_a_sample_is_a_function_of_its_label_and_seed(layout, order):
    prior = make(layout)
    whole = draw(prior, order=order, steps=5)
    assert whole.shape == (6, layout.length) and (whole >= 0).all() and (whole < layout.codebook_size).all()
    assert torch.equal(whole, draw(prior, order=order, steps=5, batch_size=4))
    sampler = prior.sampler(SamplingConfig(order=order, steps=5, precision="fp32"), 2)
    assert torch.equal(whole[3:5], sampler(torch.tensor([1, 0]), [3, 4]))
    assert not torch.equal(whole, draw(prior, order=order, steps=5, first_seed=100))


def test_seeds_beyond_32_bits_are_others():
    prior = make()
    assert not torch.equal(draw(prior, first_seed=1), draw(prior, first_seed=1 + 2**32))


def test_watching_the_passes_ends_with_the_sample():
    prior, settings = make(), SamplingConfig(steps=5, precision="fp32")
    frames = list(prior.unfold(settings, torch.arange(6) % 2, range(6)))
    assert torch.equal(frames[-1].latents, draw(prior, steps=5)) and frames[-1].settled.all()
    for before, after in itertools.pairwise(frames):
        assert (after.settled | ~before.settled).all() and (after.settled.sum(1) > before.settled.sum(1)).all()
        assert torch.equal(after.latents[before.settled], before.latents[before.settled])


@pytest.mark.parametrize("order", ["confidence", "halton", "random"])
def test_known_codes_stay_and_any_mask_is_completed(order):
    prior = make()
    codes, known = codes_of(prior, 6), torch.rand(6, 20, generator=torch.Generator().manual_seed(0)) < 0.5
    known[0], known[1] = True, False
    sampler = prior.sampler(SamplingConfig(order=order, steps=4, precision="fp32"), 4)
    drawn = sampler(torch.arange(6) % 2, range(6), codes, known)
    assert torch.equal(drawn[known], codes[known])
    assert torch.equal(drawn[0], codes[0])
    other = torch.where(known, codes, (codes + 1) % 7)  # what is not known is not read
    assert torch.equal(drawn, sampler(torch.arange(6) % 2, range(6), other, known))


def test_what_is_known_is_heeded_wherever_it_stands():
    prior = make(spread=2.0)
    codes, known = codes_of(prior, 1).expand(200, -1).clone(), torch.zeros(200, 20, dtype=torch.bool)
    known[:, -1] = True
    sampler = prior.sampler(SamplingConfig(**FP32, steps=20), 200)
    labels = torch.zeros(200, dtype=torch.int64)
    one = sampler(labels, range(200), codes, known)
    codes[:, -1] = (codes[:, -1] + 3) % 7
    assert (one[:, :-1] != sampler(labels, range(200), codes, known)[:, :-1]).any()


def test_more_steps_than_codes_are_as_many_as_there_are_codes():
    prior = make()
    assert len(list(prior.unfold(SamplingConfig(steps=1000, precision="fp32"), torch.tensor([0]), [0]))) == 20
    assert torch.equal(draw(prior, steps=1000), draw(prior, steps=20))


def test_guidance_of_one_is_none_and_more_leans_towards_the_class():
    prior = make(spread=1.0)
    assert torch.equal(draw(prior), draw(prior, guidance=1.0))
    many = {"samples": 200, "batch_size": 200, "steps": 5}
    plain, led = (draw(prior, guidance=scale, **many) for scale in (1.0, 4.0))
    assert not torch.equal(plain, led)
    own = torch.arange(200) % 2
    nats = [-prior.log_prob(each, own) for each in (plain, led)]
    none = [-prior.log_prob(each, torch.full((200,), 2)) for each in (plain, led)]
    assert (none[1] - nats[1]).mean() > (none[0] - nats[0]).mean()  # the class explains more of what it led to


def test_of_few_hidden_codes_the_schedules_reach_their_end():
    """With 5 codes to draw in 12 passes the fifth was the last: guidance had risen to a third, and noise was left."""
    prior, known = make(spread=1.0), torch.ones(3, 20, dtype=torch.bool)
    for row, few in enumerate((5, 5, 9)):  # whatever the others of a batch have to draw
        known[row, :few] = False
    settings = {**FP32, "guidance": 3.0, "guidance_schedule": "linear", "order": "confidence"}
    labels, given = torch.tensor([0, 1, 0]), codes_of(prior, 3)
    many, exact = (prior.sampler(SamplingConfig(**settings, steps=steps), 3) for steps in (12, 5))
    found = many(labels, range(3), given, known)
    assert torch.equal(found[:2], exact(labels, range(3), given, known)[:2])


def test_settings_of_other_kinds_are_refused_by_name():
    prior = make()
    for name, value in (("solver", "ddim"), ("resampling", 9)):
        with pytest.raises(ValueError, match=f"{name} is no setting of a prior of kind masked"):
            prior.sampler(SamplingConfig(**{name: value}))
    with pytest.raises(
        ValueError, match="choice_temperature 9 is noise in the order confidence; order halton has none"
    ):
        prior.sampler(SamplingConfig(order="halton", choice_temperature=9))
    with pytest.raises(ValueError, match="no precision int8"):
        prior.sampler(SamplingConfig(precision="int8"))


def test_weights_that_are_not_finite_are_named():
    prior = make()
    torch.nn.init.constant_(prior.head.weight, torch.nan)
    with pytest.raises(UserError, match="NaN or Inf"):
        draw(prior)


def test_it_offers_what_evaluation_coder_completion_and_page_ask_for():
    prior = make()
    for protocol in (Scores, Walks, Completes, Unfolds):
        assert isinstance(prior, protocol)
    assert not prior.exact and prior.heeds(torch.eye(20, dtype=torch.bool)[:1])


def test_it_is_saved_and_loaded(tmp_path):
    prior = make()
    prior.save_pretrained(tmp_path / "model")
    again = load_prior(tmp_path / "model")
    assert type(again) is MaskedPrior and torch.equal(draw(prior), draw(again.eval()))


def test_vectors_are_refused_with_the_priors_that_take_them():
    layout = Layout.of(4, 4, depth=3)
    config = PriorConfig(
        layout=layout, condition=Classes(names=("a",)), tokenizer=TOKENIZER, architecture=MaskedConfig(dim=32, heads=2)
    )
    with pytest.raises(UserError, match="is over codes, and a sample is 4 x 4 vectors of 3"):
        build_prior(config)


def test_an_order_of_training_is_refused():
    with pytest.raises(ValueError, match="is not trained in an order of one's choice"):
        TrainConfig(model=MaskedConfig(), order="any")


def test_recomputing_activations_changes_no_gradient():
    prior = make().train()
    codes, labels, hidden = codes_of(prior), torch.tensor([0, 1, 2]), torch.rand(3, 20) < 0.5
    gradients = []
    for recompute in (False, True):
        prior.recompute = recompute
        prior.zero_grad()
        prior(labels, codes, hidden).square().mean().backward()
        gradients.append(prior.code_embedding.weight.grad.clone())
    torch.testing.assert_close(*gradients)
