"""The next-set prior: which places a set has, what it sees, exact probabilities, draws set after set, and learning."""

import itertools
import math

import pytest
import torch

from smalti.common import config
from smalti.common.codes_info import TokenizerIdentity
from smalti.common.condition import Classes, Nothing
from smalti.common.errors import UserError
from smalti.common.layout import Grid, Layout
from smalti.common.mixed_radix import to_digits
from smalti.prior.attention import block_causal_attention
from smalti.prior.base import Completes, Scores, Unfolds, Walks
from smalti.prior.config import PriorConfig, TrainConfig
from smalti.prior.groups.drawing import CachedGroups
from smalti.prior.model import build_prior, load_prior
from smalti.prior.nextset.config import NextSetConfig
from smalti.prior.nextset.model import NextSetPrior
from smalti.prior.nextset.sets import places_in_order, set_sizes
from smalti.prior.pass_plan import share_left
from smalti.prior.sampling_config import SamplingConfig

TOKENIZER = TokenizerIdentity(name="t", sha256="0" * 64)
LAYOUTS = {
    "a square": Layout.of(4, 4, factors=(7,)),
    "not square": Layout.of(3, 5, factors=(7,)),
    "a sequence": Layout.of(9, factors=(7,)),
    "a block": Layout.of(2, 2, 3, factors=(7,)),
    "several codes a place": Layout.of(3, 3, depth=2, factors=(5,)),
    "codes in parts": Layout.of(2, 3, factors=(2,) * 16),
    "codes in parts, several a place": Layout.of(2, 3, depth=2, factors=(2,) * 16),
}
every_layout = pytest.mark.parametrize("layout", LAYOUTS.values(), ids=LAYOUTS)
both_orders = pytest.mark.parametrize("order", ["halton", "diagonal"])
FP32 = {"precision": "fp32"}


def make(
    layout=LAYOUTS["a square"], condition=None, spread=0.5, depth=2, dim=32, passes=5, order="halton"
) -> NextSetPrior:
    """Return a prior with weights far from their beginning, where every code would be as likely."""
    torch.manual_seed(0)
    prior = build_prior(
        PriorConfig(
            layout=layout,
            condition=Classes(names=("a", "b")) if condition is None else condition,
            tokenizer=TOKENIZER,
            architecture=NextSetConfig(depth=depth, dim=dim, heads=2, dropout=0.0, passes=passes, order=order),
        )
    ).eval()
    assert isinstance(prior, NextSetPrior)
    torch.nn.init.normal_(prior.head.weight, std=spread)
    for name, parameter in prior.named_parameters():
        if "embedding" in name:
            torch.nn.init.normal_(parameter, std=0.2)
    for block in prior.blocks:
        torch.nn.init.normal_(block.attention.out.weight, std=0.3)
    return prior


def codes_of(prior: NextSetPrior, samples: int = 3) -> torch.Tensor:
    noise = torch.Generator().manual_seed(1)
    return torch.randint(prior.config.layout.codebook_size, (samples, prior.config.layout.length), generator=noise)


def labels_of(samples: int) -> torch.Tensor:
    return torch.arange(samples) % 2


def sets_of(prior: NextSetPrior) -> torch.Tensor:
    """Return the number of the set of each place, (P,)."""
    found = torch.zeros(prior.config.layout.places, dtype=torch.int64)
    found[prior.target] = prior.group_of
    return found


def toy(passes: int = 2) -> tuple[NextSetPrior, torch.Tensor]:
    """Return a prior over three places with 2 codes, and all 8 samples, (8, 3): sets of one and of two places."""
    prior = make(Layout.of(1, 3, factors=(2,)), passes=passes, spread=0.3)
    for block in prior.blocks:
        torch.nn.init.normal_(block.attention.out.weight, std=1.0)  # the codes before decide much
    return prior, torch.tensor(list(itertools.product(range(2), repeat=3)))


def draw(prior: NextSetPrior, samples: int = 6, batch_size: int = 6, first_seed: int = 0, **settings) -> torch.Tensor:
    sampler = prior.sampler(SamplingConfig(**{**FP32, **settings}), batch_size)
    return sampler(labels_of(samples), range(first_seed, first_seed + samples))


def nats_by_walking(prior: NextSetPrior, codes: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    """Return −log p of each code (B, T) as the coder meets it."""
    digits, nats = to_digits(codes, prior.vocabularies), torch.zeros(codes.shape)

    def choose(logits, t, g):
        nats[:, t] -= logits.log_softmax(-1).gather(1, digits[:, t, g, None])[:, 0]
        return digits[:, t, g]

    assert torch.equal(prior.walk(labels, choose), codes)
    return nats


# ----------------------------------------------------------------------------------------------- which places a set has


def test_sizes_never_fall_are_one_at_least_and_cover_all_places():
    for places in range(1, 301):
        for sets in range(1, places + 1):
            sizes = set_sizes(places, sets)
            assert len(sizes) == sets and sum(sizes) == places and sizes[0] >= 1 and sizes == sorted(sizes)


def test_sizes_follow_the_cosine_of_masked_drawing():
    """Within two places: one of rounding down, one of sorting what it left."""
    sizes = torch.tensor(set_sizes(256, 12))
    left = torch.tensor([256 * share_left(done, 12) for done in range(13)])
    assert (sizes - (left[:-1] - left[1:])).abs().max() < 2
    assert set_sizes(49, 49) == [1] * 49 and set_sizes(7, 1) == [7]


@both_orders
@every_layout
def test_an_order_takes_every_place_once(layout, order):
    places = places_in_order(layout.grids[0], order)
    assert sorted(places) == list(range(layout.places))


def test_diagonals_go_from_corner_to_corner_and_halton_spreads_over_the_grid():
    assert places_in_order(Grid(shape=(3, 3), factors=(2,)), "diagonal") == [0, 1, 3, 2, 4, 6, 5, 7, 8]
    first = torch.tensor(places_in_order(Grid(shape=(8, 8), factors=(2,)), "halton")[:16])
    in_quarters = torch.bincount(2 * (first // 8 // 4) + first % 8 // 4, minlength=4)
    assert in_quarters.min() >= 3, "of sixteen places"


# ----------------------------------------------------------------------------------------------------- what a set sees


@both_orders
@every_layout
def test_a_code_changes_the_features_of_all_later_sets_and_of_no_other(layout, order):
    """Not by a bit in sets that must not see it, and at every place of those that do."""
    prior = make(layout, order=order)
    codes, labels, sets = codes_of(prior, 1), labels_of(1), sets_of(prior)
    before = prior.placed(prior.features(labels, codes))
    for t in range(layout.length):
        other = codes.clone()
        other[0, t] = (other[0, t] + 1) % layout.codebook_size
        moved = (prior.placed(prior.features(labels, other)) != before).any(2)[0]
        assert torch.equal(moved, sets > sets[t // layout.depth])


@every_layout
def test_no_gradient_flows_from_a_set_to_the_embeddings_of_its_own_and_later_codes(layout):
    prior, embedded = make(layout), []
    prior.code_embedding.register_forward_hook(lambda module, given, found: embedded.append(found))  # (1, T', G, C)
    features, of_codes = (
        prior.features(labels_of(1), codes_of(prior, 1)),
        prior.group_of.repeat_interleave(layout.depth),
    )
    for s in range(len(prior.groups)):
        (gradient,) = torch.autograd.grad(features[:, prior.group_of == s].sum(), embedded, retain_graph=True)
        seen = gradient[0].abs().amax((1, 2)) > 0
        assert torch.equal(seen, (of_codes < s)[: len(seen)])


@pytest.mark.parametrize("places", [16, 300], ids=["plain products", "fused"])
def test_its_attention_is_that_of_a_block_at_a_time(places):
    """1e-5: sums of fp32 numbers in another order."""
    prior = make(Layout.of(places, factors=(7,)))
    qkv = [torch.randn(2, 2, places, 8, generator=torch.Generator().manual_seed(i)) for i in range(3)]
    torch.testing.assert_close(prior.attend(*qkv), block_causal_attention(*qkv, prior.lengths), atol=1e-5, rtol=1e-5)


def test_every_place_is_told_of_the_class():
    prior = make()
    codes = codes_of(prior, 1)
    moved = prior.features(torch.tensor([0]), codes) != prior.features(torch.tensor([1]), codes)
    assert moved.any(2).all()


def test_attention_knows_where_a_code_lies_and_which_place_is_predicted():
    """Without embeddings of places, rotation alone tells slots of a set apart, by target and by code."""
    prior = make(passes=3)
    torch.nn.init.zeros_(prior.target_embedding)
    torch.nn.init.zeros_(prior.own_embedding)
    codes, labels = codes_of(prior, 1), labels_of(1)
    features = prior.placed(prior.features(labels, codes))
    assert len(features[0].unique(dim=0)) == 16
    first = prior.target[prior.groups[0]][:2]
    other = codes.clone()
    other[0, first] = codes[0, first.flip(0)]
    assert codes[0, first[0]] != codes[0, first[1]], "two codes change places"
    moved = (prior.placed(prior.features(labels, other)) - features).abs().amax(2)[0] > 1e-4
    assert torch.equal(moved, sets_of(prior) > 0)


# -------------------------------------------------------------------------------------------------------- probabilities


@pytest.mark.parametrize("passes", [1, 2, 3])
def test_the_probabilities_of_all_samples_sum_to_one(passes):
    """1e-5: they are sums of fp32 logarithms."""
    prior, every = toy(passes)
    for label in range(3):
        total = prior.log_prob(every, torch.full((8,), label)).exp().sum().item()
        assert total == pytest.approx(1, abs=1e-5)


def test_codes_of_a_set_are_independent_given_those_before_and_not_without_them():
    prior, every = toy()
    first, *rest = prior.target.tolist()
    joint = prior.log_prob(every, torch.zeros(8, dtype=torch.int64)).exp().view(2, 2, 2).permute(first, *rest)
    given = joint / joint.sum((1, 2), keepdim=True)
    torch.testing.assert_close(given, given.sum(2, keepdim=True) * given.sum(1, keepdim=True), atol=1e-6, rtol=0)
    free = joint.sum(0)
    assert (free - free.sum(1, keepdim=True) * free.sum(0, keepdim=True)).abs().max() > 1e-3


def test_one_place_a_pass_is_an_autoregressive_chain():
    """On a line the diagonals are places, in raster order: each code is predicted from its prefix, whatever follows."""
    prior = make(Layout.of(1, 6, factors=(7,)), passes=6, order="diagonal")
    assert prior.lengths == [1] * 6 and prior.target.tolist() == list(range(6))
    codes, labels, chain = codes_of(prior), labels_of(3), torch.zeros(3)
    for t in range(6):
        prefix = torch.where(torch.arange(6) < t, codes, 0)
        chain += prior(labels, prefix)[:, t].log_softmax(-1).gather(1, codes[:, t, None])[:, 0]
    torch.testing.assert_close(prior.log_prob(codes, labels), chain)


@every_layout
def test_log_prob_is_minus_the_sum_of_nats_and_known_codes_cost_nothing(layout):
    prior = make(layout)
    codes, labels = codes_of(prior), labels_of(3)
    nats = prior.nats(codes, labels, range(3))
    assert nats.shape == codes.shape
    torch.testing.assert_close(prior.log_prob(codes, labels), -nats.sum(1))
    known = torch.rand(3, layout.places, generator=torch.Generator().manual_seed(0)) < 0.5
    left = nats.masked_fill(known.repeat_interleave(layout.depth, 1), 0)
    torch.testing.assert_close(prior.log_prob(codes, labels, known), -left.sum(1))
    assert prior.log_prob(codes, labels, torch.ones_like(known)).abs().max() == 0


def test_the_first_loss_is_ln_k():
    prior = make()
    torch.nn.init.zeros_(prior.head.weight)
    loss = prior.loss(codes_of(prior), labels_of(3), prior)
    torch.testing.assert_close(loss, torch.full_like(loss, math.log(7)))


def test_draws_have_the_probabilities_that_it_says():
    """4,000 draws: each of 8 frequencies lies within 5 standard deviations of its probability."""
    prior, every = toy()
    drawn = prior.sampler(SamplingConfig(**FP32), 1000)(torch.zeros(4000, dtype=torch.int64), range(4000))
    expected = prior.log_prob(every, torch.zeros(8, dtype=torch.int64)).exp()
    found = (drawn[:, None] == every).all(2).float().mean(0)
    assert ((found - expected).abs() < 5 * (expected * (1 - expected) / 4000).sqrt()).all()


# -------------------------------------------------------------------------------------------------------------- drawing


@both_orders
@every_layout
@pytest.mark.parametrize("precision, tolerance", [("fp32", 1e-4), ("bf16", 0.1)])
def test_the_cache_gives_the_features_that_recomputing_all_sets_gives(layout, order, precision, tolerance):
    """1e-4: sums of fp32 numbers in another order; 0.1: bf16 has 8 bits, and features have a deviation of 1."""
    prior = make(layout, order=order)
    codes, labels, Q = codes_of(prior), labels_of(3), layout.depth
    network, told, ordered = (
        CachedGroups(prior, 3, precision),
        prior.class_embedding(labels),
        prior.codes_ordered(codes),
    )
    read, found = torch.zeros(3, layout.places, 32), []
    with torch.inference_mode():
        for s, slots in enumerate(prior.groups):
            found.append(network.features(network.inputs(told, read, s), s).view(3, -1, 32))
            read[:, slots] = prior.embedded(ordered[:, slots.start * Q : slots.stop * Q], slots.start)
    torch.testing.assert_close(
        torch.cat(found, 1), prior.features(labels, codes).detach(), atol=tolerance, rtol=tolerance
    )


@every_layout
@pytest.mark.parametrize("guidance", [1.0, 2.0])
def test_a_sample_is_a_function_of_its_label_and_seed(layout, guidance):
    prior = make(layout)
    whole = draw(prior, guidance=guidance)
    assert whole.shape == (6, layout.length) and (whole >= 0).all() and (whole < layout.codebook_size).all()
    assert torch.equal(whole, draw(prior, guidance=guidance, batch_size=4))
    sampler = prior.sampler(SamplingConfig(**FP32, guidance=guidance), 2)
    assert torch.equal(whole[3:5], sampler(torch.tensor([1, 0]), [3, 4]))
    assert not torch.equal(whole, draw(prior, guidance=guidance, first_seed=100))


def test_one_image_of_a_request_is_drawn_as_among_others():
    """A batch whose size nobody chose is padded until each row is computed as in a large one: a first set has one."""
    prior = make()
    sampler = prior.sampler(SamplingConfig(**FP32))
    whole = sampler(labels_of(8), range(8))
    for i in range(8):
        assert torch.equal(whole[i : i + 1], sampler(labels_of(8)[i : i + 1], [i]))


@pytest.mark.parametrize("guidance", [1.0, 2.0])
def test_one_image_in_bf16_is_drawn_as_among_others_where_the_first_set_has_several_places(guidance):
    """The keys and values are of one type for all batches, however few images they have."""
    prior = make(Layout.of(8, 8, factors=(7,)), passes=3)
    assert min(prior.lengths) > 1
    sampler = prior.sampler(SamplingConfig(precision="bf16", guidance=guidance))
    whole = sampler(labels_of(12), range(12))
    for i in range(0, 12, 4):
        assert torch.equal(whole[i : i + 1], sampler(labels_of(12)[i : i + 1], [i]))


def test_between_the_sets_the_caller_computes_as_ever():
    """The passes are in torch's inference mode, the caller is not."""
    for _ in make().unfold(SamplingConfig(**FP32), labels_of(2), range(2)):
        assert not torch.is_inference_mode_enabled()


def test_draws_in_bf16_are_codes_too():
    drawn = draw(make(), precision="bf16")
    assert (drawn >= 0).all() and (drawn < 7).all()


def test_watching_the_sets_settles_one_after_the_other_and_ends_with_the_sample():
    prior = make()
    frames, sets = list(prior.unfold(SamplingConfig(**FP32), labels_of(6), range(6))), sets_of(prior)
    for s, frame in enumerate(frames):
        assert torch.equal(frame.settled, (sets <= s).expand(6, -1))
        assert torch.equal(frame.latents[frame.settled], frames[-1].latents[frame.settled])
        assert (frame.latents[~frame.settled] == 0).all()
    assert len(frames) == 5 and torch.equal(frames[-1].latents, draw(prior))


def test_truncation_and_temperature_are_heeded():
    prior = make(spread=2.0)
    likeliest = draw(prior, temperature=1e-6)
    for settings in ({"top_k": 1}, {"top_p": 1e-6}, {"min_p": 1.0}):
        assert torch.equal(draw(prior, **settings), likeliest)
    assert torch.equal(likeliest, draw(prior, temperature=1e-6, first_seed=50))


def test_guidance_of_one_is_none_and_more_leans_towards_the_class():
    prior = make(spread=1.0)
    assert torch.equal(draw(prior), draw(prior, guidance=1.0))
    plain, led = (draw(prior, guidance=scale, samples=200, batch_size=200) for scale in (1.0, 4.0))
    nats = [-prior.log_prob(each, labels_of(200)) for each in (plain, led)]
    none = [-prior.log_prob(each, torch.full((200,), 2)) for each in (plain, led)]
    assert (none[1] - nats[1]).mean() > (none[0] - nats[0]).mean()  # the class explains more of what it led to


def test_rising_guidance_is_none_at_the_first_set_and_whole_at_the_last():
    prior = make(spread=1.0)
    first, last = sets_of(prior) == 0, sets_of(prior) == 4
    plain, rising, constant = (
        draw(prior, samples=50, batch_size=50, guidance=scale, guidance_schedule=schedule)
        for scale, schedule in ((1.0, "constant"), (6.0, "linear"), (6.0, "constant"))
    )
    assert torch.equal(rising[:, first], plain[:, first]) and not torch.equal(rising[:, last], plain[:, last])
    assert not torch.equal(constant[:, first], plain[:, first])
    again = [
        prior.sampler(SamplingConfig(**FP32, guidance=6.0, guidance_schedule=schedule), 50)(
            labels_of(50), range(50), plain, (~last).expand(50, -1)
        )
        for schedule in ("linear", "constant")
    ]
    assert torch.equal(*again), "given the same earlier sets, both schedules draw the last one alike"


@every_layout
def test_known_codes_stay_and_later_sets_are_drawn_given_them(layout):
    prior = make(layout, spread=2.0)
    P, K, early = layout.places, layout.codebook_size, sets_of(prior) < 3
    codes, known = codes_of(prior, 6), torch.rand(6, P, generator=torch.Generator().manual_seed(0)) < 0.5
    known[0], known[1] = True, False
    sampler = prior.sampler(SamplingConfig(**FP32), 4)
    drawn, deep = sampler(labels_of(6), range(6), codes, known), known.repeat_interleave(layout.depth, 1)
    assert torch.equal(drawn[deep], codes[deep])
    other = torch.where(deep, codes, (codes + 1) % K)  # what is not known is not read
    assert torch.equal(drawn, sampler(labels_of(6), range(6), other, known))
    prefix, late = early.expand(6, -1), ~early.repeat_interleave(layout.depth)
    given, otherwise = (sampler(labels_of(6), range(6), each % K, prefix) for each in (codes, codes + 1))
    assert not torch.equal(given[:, late], otherwise[:, late])


def test_what_is_kept_of_a_sample_leads_to_the_same_sample():
    """Uniforms belong to seed and place, whatever is known."""
    prior = make()
    whole, known = draw(prior), (sets_of(prior) < 3).expand(6, -1)
    assert torch.equal(whole, prior.sampler(SamplingConfig(**FP32), 6)(labels_of(6), range(6), whole, known))


def test_it_heeds_what_is_known_unless_it_lies_in_a_later_set_than_what_is_drawn():
    prior = make()
    sets, places = sets_of(prior), torch.arange(16)
    assert prior.heeds((sets < 3)[None]) and prior.heeds((sets < 0)[None]) and prior.heeds((sets < 5)[None])
    one = (places == prior.target[prior.groups[3]][0])[None]
    assert prior.heeds((sets < 3)[None] | one), "places of a set do not see each other"
    assert not prior.heeds(one) and not prior.heeds((sets > 0)[None])
    assert not prior.heeds(torch.stack([sets < 3, sets >= 3]))
    assert "later set" in prior.unheeded and not prior.heeds_all


# -------------------------------------------------------------------------------------------------------------- walking


@every_layout
def test_the_walk_asks_for_each_part_of_each_code_once_set_after_set(layout):
    prior, asked, Q = make(layout), [], layout.depth
    prior.walk(torch.tensor([0, 1]), lambda logits, t, g: asked.append((t, g)) or logits.argmax(1))
    parts = range(len(prior.vocabularies))
    assert asked == [(place * Q + depth, g) for place in prior.target.tolist() for depth in range(Q) for g in parts]


@both_orders
@every_layout
def test_walking_over_drawn_codes_gives_them_back_with_their_nats(layout, order):
    """1e-3: the cache and the parallel forward round their sums differently."""
    prior = make(layout, order=order)
    codes, labels = draw(prior), labels_of(6)
    nats = nats_by_walking(prior, codes, labels)
    torch.testing.assert_close(nats, prior.nats(codes, labels, range(6)), atol=1e-3, rtol=1e-3)
    torch.testing.assert_close(-nats.sum(1), prior.log_prob(codes, labels), atol=1e-3, rtol=1e-3)


def test_a_decoder_meets_the_logits_of_the_encoder_bit_for_bit():
    prior = make()
    codes, sent, met = codes_of(prior), [], []
    prior.walk(labels_of(3), lambda logits, t, g: sent.append(logits.clone()) or codes[:, t])
    back = prior.walk(labels_of(3), lambda logits, t, g: met.append(logits.clone()) or codes[:, t])
    assert torch.equal(back, codes) and all(map(torch.equal, sent, met))


# ------------------------------------------------------------------------------------------------------------- learning


def test_it_learns_that_later_sets_copy_the_first():
    """Codes are all alike: a sample costs the ln 4 of its first set of one place; codes alone would cost 16 ln 4."""
    torch.manual_seed(0)
    prior = make(Layout.of(4, 4, factors=(4,)), condition=Nothing(), depth=1).train()
    torch.nn.init.zeros_(prior.head.weight)
    assert prior.lengths[0] == 1
    optimizer = torch.optim.Adam(prior.parameters(), 1e-2)
    for _ in range(40):
        codes = torch.randint(4, (32, 1)).expand(-1, 16)
        loss = prior.loss(codes, torch.zeros(32, dtype=torch.int64), prior)
        optimizer.zero_grad()
        loss.sum(1).mean().backward()
        optimizer.step()
    assert loss.sum(1).mean() < math.log(4) + 1


def test_recomputing_activations_changes_no_gradient():
    prior = make().train()
    codes, labels, gradients = codes_of(prior), labels_of(3), []
    for recompute in (False, True):
        prior.recompute = recompute
        prior.zero_grad()
        prior.loss(codes, labels, prior).mean().backward()
        gradients.append(prior.code_embedding.weight.grad.clone())
    torch.testing.assert_close(*gradients)


@pytest.mark.parametrize("passes", [1, 5])
def test_every_weight_gets_a_gradient(passes):
    """Processes that share gradients wait for each. Where one pass draws all no code is read, and some are zero."""
    prior = make(passes=passes)
    prior.loss(codes_of(prior), labels_of(3), prior).mean().backward()
    assert all(parameter.grad is not None for parameter in prior.parameters())
    assert passes == 1 or all(parameter.grad.abs().sum() > 0 for parameter in prior.parameters())


# ----------------------------------------------------------------------------------------------- settings and protocols


def test_it_offers_what_evaluation_coder_completion_and_page_ask_for():
    prior = make()
    for protocol in (Scores, Walks, Completes, Unfolds):
        assert isinstance(prior, protocol)
    assert prior.exact


@both_orders
def test_it_is_saved_and_loaded(tmp_path, order):
    prior = make(order=order)
    prior.save_pretrained(tmp_path / "model")
    again = load_prior(tmp_path / "model")
    assert type(again) is NextSetPrior and torch.equal(draw(prior), draw(again.eval()))


def test_its_shapes_are_known_without_memory():
    with torch.device("meta"):
        prior = build_prior(make().config)
    assert prior.target_embedding.shape == prior.own_embedding.shape == (16, 32)


def test_settings_of_other_kinds_are_refused_by_name():
    prior = make()
    for name, value in (("steps", 4), ("order", "halton"), ("solver", "ddim")):
        with pytest.raises(ValueError, match=f"{name} is no setting of a prior of kind nextset"):
            prior.sampler(SamplingConfig(**{name: value}))
    with pytest.raises(ValueError, match="no precision int8"):
        prior.sampler(SamplingConfig(precision="int8"))


def test_weights_that_are_not_finite_are_named():
    prior = make()
    torch.nn.init.constant_(prior.head.weight, torch.nan)
    with pytest.raises(UserError, match="NaN or Inf"):
        draw(prior)


SEVERAL = Layout(grids=(Grid(shape=(2, 2), factors=(7,)), Grid(shape=(4, 4), factors=(7,))))


@pytest.mark.parametrize(
    "layout, message",
    [
        (SEVERAL, "sets of places of one grid, and a sample is .*, several: take --model.kind nextscale"),
        (Layout.of(2, 2, factors=(7,)), "model.passes 5 are more than the 4 places of 2 x 2 codes of 7, .* 4 or fewer"),
        (Layout.of(4, 4, depth=3), "is over codes, and a sample is 4 x 4 vectors of 3"),
    ],
)
def test_layouts_that_are_not_codes_on_one_grid_of_enough_places_are_refused(layout, message):
    with pytest.raises(UserError, match=message):
        make(layout)


def test_an_order_of_training_is_refused():
    with pytest.raises(ValueError, match="is not trained in an order of one's choice"):
        TrainConfig(model=NextSetConfig(), order="any")


def test_a_width_that_heads_do_not_divide_is_refused():
    with pytest.raises(ValueError, match="dim 36 must be a multiple of 4 x heads = 16"):
        NextSetConfig(dim=36, heads=4)


def test_the_help_of_training_lists_it(capsys):
    with pytest.raises(SystemExit):
        config.parse(TrainConfig, "", ["--model.kind", "nextset", "--help"])
    assert "nextset" in capsys.readouterr().out
