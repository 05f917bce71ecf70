"""The gated PixelCNN: what a code may see, exact probabilities, and a sampler that caches earlier places."""

import itertools

import pytest
import torch

from smalti.common.codes_info import TokenizerIdentity
from smalti.common.condition import Classes
from smalti.common.errors import UserError
from smalti.common.layout import Layout
from smalti.prior.config import PriorConfig, TrainConfig
from smalti.prior.model import build_prior, load_prior
from smalti.prior.pixelcnn.config import PixelCNNConfig
from smalti.prior.pixelcnn.model import PixelCNNPrior
from smalti.prior.pixelcnn.network import RowByRow, Stacks
from smalti.prior.sampling_config import SamplingConfig
from tests.conftest import sample

TOKENIZER = TokenizerIdentity(name="t", sha256="0" * 64)
SETTINGS = {  # what is predicted: one code a place, several, or one in parts
    "one code": {"factors": (7,)},
    "several codes a place": {"factors": (5,), "code_depth": 3},
    "codes in parts": {"factors": (2,) * 16},
}


def make(grid=(4, 5), kernel=3, depth=3, factors=(7,), code_depth=1, **settings) -> PixelCNNPrior:
    torch.manual_seed(0)
    shape = PixelCNNConfig(depth=depth, dim=16, kernel=kernel, dropout=0.0)
    layout = Layout.of(*grid, depth=code_depth, factors=factors)
    config = PriorConfig(
        layout=layout, condition=Classes(names=("a", "b")), tokenizer=TOKENIZER, architecture=shape, **settings
    )
    prior = build_prior(config).eval()
    assert isinstance(prior, PixelCNNPrior)
    torch.nn.init.normal_(prior.head.weight, std=0.3)
    return prior


def codes_of(prior: PixelCNNPrior, images: int = 3) -> torch.Tensor:
    return torch.randint(
        prior.config.layout.codebook_size,
        (images, prior.config.layout.length),
        generator=torch.Generator().manual_seed(1),
    )


# --------------------------------------------------------------------------------------------------------- what is seen


@pytest.mark.parametrize("kernel", [3, 5, 7])
def test_features_of_a_place_depend_on_the_places_before_it_and_on_no_other(kernel):
    """The test uses the gradient of each place's features, because masks of PixelCNNs are often wrong."""
    torch.manual_seed(0)
    stacks, h, w = Stacks(8, 6, kernel, 0.0).double(), 4, 5
    x = torch.randn(1, 8, h, w, dtype=torch.double, requires_grad=True)
    features = stacks(x, torch.randn(1, 8, dtype=torch.double))
    for place in range(h * w):
        (gradient,) = torch.autograd.grad(features[0, :, place // w, place % w].sum(), x, retain_graph=True)
        seen = gradient.abs().sum((0, 1)).flatten() > 0
        assert not seen[place:].any(), f"place {place} sees what comes later"
        assert seen[:place].all(), f"place {place} is blind to what stands before it"


def test_one_layer_sees_its_window_and_what_is_above_to_the_right():
    """The first PixelCNN had its blind spot there."""
    torch.manual_seed(0)
    stacks = Stacks(4, 1, 3, 0.0).double()
    x = torch.randn(1, 4, 5, 5, dtype=torch.double, requires_grad=True)
    stacks(x, torch.zeros(1, 4, dtype=torch.double))[0, :, 2, 2].sum().backward()
    seen = {tuple(place) for place in (x.grad.abs().sum((0, 1)) > 0).nonzero().tolist()}
    assert seen == {(0, 1), (0, 2), (0, 3), (1, 1), (1, 2), (1, 3), (2, 1)}


@pytest.mark.parametrize("settings", SETTINGS.values(), ids=SETTINGS)
def test_a_code_cannot_be_seen_before_it_is_predicted(settings):
    prior = make(**settings)
    codes, labels = codes_of(prior, 1), torch.tensor([1])
    before = prior.nll(codes, labels)
    for t in range(prior.config.layout.length):
        other = codes.clone()
        other[0, t] = (other[0, t] + 1) % prior.config.layout.codebook_size
        differ = (prior.nll(other, labels) - before).abs()[0] > 1e-6
        assert not differ[:t].any(), f"code {t} is seen by one before it"


def test_the_class_reaches_every_code():
    prior = make()
    nll = prior.nll(codes_of(prior, 1).expand(3, -1), torch.tensor([0, 1, 2]))
    assert ((nll[0] - nll[1]).abs() > 1e-6).all() and ((nll[0] - nll[2]).abs() > 1e-6).all()


# -------------------------------------------------------------------------------------------------------- probabilities


@pytest.mark.parametrize("depth", [1, 2])
def test_log_probabilities_of_all_images_sum_to_one(depth):
    prior = make(grid=(2, 2), factors=(3,) if depth == 1 else (2,), code_depth=depth)
    K, T = prior.config.layout.codebook_size, prior.config.layout.length
    every = torch.tensor(list(itertools.product(range(K), repeat=T)))
    for label in range(3):  # the last number means no class
        total = prior.log_prob(every, torch.full((len(every),), label)).double().exp().sum()
        assert total.item() == pytest.approx(1, abs=1e-5)  # fp32


def test_the_first_guess_is_uniform():
    prior = make()
    torch.nn.init.zeros_(prior.head.weight)
    nll = prior.nll(codes_of(prior), torch.tensor([0, 1, 2]))
    torch.testing.assert_close(nll, torch.full_like(nll, torch.tensor(7.0).log().item()))


# -------------------------------------------------------------------------------------------------------------- drawing


@pytest.mark.parametrize("kernel", [3, 5, 7])
def test_row_by_row_gives_the_features_that_all_at_once_gives(kernel):
    torch.manual_seed(0)
    stacks, h, w = Stacks(8, 3, kernel, 0.0).double().eval(), 5, 4
    x, condition = torch.randn(2, 8, h, w, dtype=torch.double), torch.randn(2, 8, dtype=torch.double)
    with torch.no_grad():
        whole, rows, found = (
            stacks(x, condition),
            RowByRow(stacks, condition, w),
            torch.empty(2, 8, h, w, dtype=torch.double),
        )
        for i in range(h):
            for j in range(w):
                found[:, :, i, j] = rows.features(j)
                rows.put(j, x[:, :, i, j])
            rows.end_row()
    torch.testing.assert_close(found, whole, rtol=0, atol=1e-12)  # sums in another order, in fp64


@pytest.mark.parametrize("settings", SETTINGS.values(), ids=SETTINGS)
def test_walking_gives_the_probabilities_that_the_parallel_forward_gives(settings):
    """The coder therefore pays what `log_prob` says."""
    prior = make(**settings)
    codes, labels, found = codes_of(prior), torch.tensor([0, 1, 2]), torch.zeros(3, dtype=torch.double)

    def choose(logits, t, g):
        digit = to_digits(codes[:, t], prior.vocabularies)[:, g]
        found.add_(logits.double().log_softmax(1).gather(1, digit[:, None])[:, 0])
        return digit

    from smalti.common.mixed_radix import to_digits

    assert torch.equal(prior.walk(labels, choose), codes)
    # fp32 sums of T codes
    torch.testing.assert_close(found.float(), prior.log_prob(codes, labels), rtol=1e-5, atol=1e-4)


def drawn_without_a_cache(prior, label, seed, config, codes=None, known=None):
    """Draw one image with the parallel forward only: it recomputes the whole sequence for every code."""
    from smalti.prior.draw import draw_categorical, image_uniforms

    c = prior.config
    (u,) = image_uniforms([seed], c.layout.length, len(prior.vocabularies))
    found = torch.zeros(1, c.layout.length, dtype=torch.int64) if codes is None else codes.clone()
    for t in range(c.layout.length):
        if known is not None and known[t // c.layout.depth]:
            continue
        logits = prior(torch.tensor([label]), found)[:, t]
        if config.guidance != 1:
            without = prior(torch.tensor([c.condition.num_classes]), found)[:, t]
            logits = torch.lerp(without, logits, torch.tensor(config.guidance))
        found[0, t] = draw_categorical(logits, u[t], config)[0]
    return found[0]


@torch.no_grad()
@pytest.mark.parametrize("guidance", [1.0, 2.0])
@pytest.mark.parametrize("depth", [1, 2])
def test_drawing_with_the_cache_draws_what_drawing_without_it_draws(guidance, depth):
    prior = make(code_depth=depth)
    config = SamplingConfig(guidance=guidance, temperature=0.8, top_k=5)
    found = sample(prior, torch.tensor([0, 1, 0]), [3, 4, 5], config)
    expected = [drawn_without_a_cache(prior, label, seed, config) for label, seed in ((0, 3), (1, 4), (0, 5))]
    assert torch.equal(found, torch.stack(expected))


@torch.no_grad()
@pytest.mark.parametrize("places", [3, 5, 7, 12])
def test_upper_rows_are_kept_and_the_rest_is_drawn_given_them(places):
    """The known codes may also end inside a row."""
    prior = make(code_depth=2)
    codes = codes_of(prior, 1)
    known = torch.arange(prior.config.layout.places)[None] < places
    found = prior.sampler(SamplingConfig())(torch.tensor([1]), [9], codes, known)
    assert torch.equal(found[0], drawn_without_a_cache(prior, 1, 9, SamplingConfig(), codes * 0 + codes, known[0]))


def test_an_image_depends_on_its_label_and_seed_and_not_on_its_batch():
    prior = make()
    draw = prior.sampler(SamplingConfig(), 4)
    together = draw(torch.tensor([0, 1, 0, 1, 1]), [5, 6, 7, 8, 9])
    assert torch.equal(draw(torch.tensor([1, 1]), [8, 6]), together[[3, 1]])


# ------------------------------------------------------------------------------------------------------ what is refused


@pytest.mark.parametrize("precision", ["bf16", "int8"])
def test_a_precision_that_is_not_there_is_refused_by_name(precision):
    with pytest.raises(ValueError, match=f"precision {precision}: a PixelCNN draws in fp32 alone"):
        make().sampler(SamplingConfig(precision=precision))


def test_any_order_is_refused():
    with pytest.raises(ValueError, match="a prior of kind pixelcnn is not trained in an order"):
        make(any_order=True)


def test_recomputing_is_refused():
    with pytest.raises(UserError, match=r"model\.kind pixelcnn has no recompute"):
        make().prepare(TrainConfig(recompute=True))


def test_an_even_kernel_is_refused():
    with pytest.raises(ValueError, match="kernel 4 must be odd"):
        PixelCNNConfig(kernel=4)


def test_weights_that_diverged_are_told(recwarn):
    prior = make()
    prior.head.weight.data[0, 0] = float("nan")
    with pytest.raises(UserError, match="became NaN or Inf"):
        sample(prior, torch.tensor([0]), [0], SamplingConfig())


def test_what_is_saved_is_loaded(tmp_path):
    prior = make(**SETTINGS["several codes a place"])
    prior.save_pretrained(tmp_path / "prior")
    again = load_prior(tmp_path / "prior")
    assert isinstance(again, PixelCNNPrior) and again.config == prior.config
    codes = codes_of(prior)
    assert torch.equal(again.nll(codes, torch.tensor([0, 1, 2])), prior.nll(codes, torch.tensor([0, 1, 2])))
