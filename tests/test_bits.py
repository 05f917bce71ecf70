"""The cost of an image in bits, compared with exact likelihoods and with the bytes of an arithmetic coder."""

import io
import math
import shutil
import tracemalloc
from itertools import product

import numpy as np
import PIL.Image
import pytest
import torch
from constriction import stream

from smalti.common.codes import load_codes
from smalti.common.codes_info import TokenizerIdentity
from smalti.common.condition import condition_of
from smalti.common.data.images import held_out_split
from smalti.common.data.pixels import to_float, to_uint8
from smalti.common.data.run_images import open_run_images
from smalti.common.errors import UserError
from smalti.common.layout import Layout
from smalti.pipeline.coder import FIRST_BATCH, FIRST_MAGIC, HEAD, compress, expand, expand_in_batches
from smalti.pipeline.compress import is_compressed, read_exact_picture
from smalti.pipeline.evaluation.bits import bits_per_dim, image_nats, stochastic_bounds
from smalti.pipeline.image_pipeline import ImagePipeline
from smalti.prior.baselines import Marginal
from smalti.prior.config import PriorConfig
from smalti.prior.masked.config import MaskedConfig
from smalti.prior.model import build_prior
from smalti.prior.sampling_config import SamplingConfig
from smalti.prior.transformer.config import TransformerConfig
from smalti.prior.transformer.model import TransformerPrior
from smalti.tokenizer.bottleneck.config import GumbelConfig, VQConfig
from smalti.tokenizer.criterion.likelihood.config import GaussianConfig, LogisticMixtureConfig
from smalti.tokenizer.kmeans.config import KMeansConfig
from smalti.tokenizer.kmeans.model import KMeansTokenizer
from smalti.tokenizer.vqvae.config import VQVAEConfig
from smalti.tokenizer.vqvae.model import VQVAE

IDENTITY = TokenizerIdentity(name="test", sha256="0" * 64)
K, T = 3, 4


def png() -> bytes:
    file = io.BytesIO()
    PIL.Image.effect_noise((8, 8), 50).save(file, "PNG")
    return file.getvalue()


PNG = png()


def joined(tokenizer, classes=None):
    """Return a pipeline whose prior over 2 x 2 codes of 3 is random and far from uniform."""
    torch.manual_seed(1)
    config = PriorConfig(
        layout=Layout.of(2, 2, factors=(K,)),
        condition=condition_of(classes),
        tokenizer=IDENTITY,
        architecture=TransformerConfig(depth=1, dim=16, heads=2, dropout=0.0),
    )
    prior = TransformerPrior(config).eval()
    torch.nn.init.normal_(prior.head.weight)
    return ImagePipeline(tokenizer.eval(), prior, SamplingConfig(), IDENTITY)


def means(sigma):
    """Return a K-means tokenizer of 2 x 2 pixels on 4 x 4 images, with three grey levels."""
    tokenizer = KMeansTokenizer(KMeansConfig(image_size=(4, 4), patch=2, codebook_size=K))
    tokenizer.codebook.copy_(torch.tensor([-0.7, 0.0, 0.7])[:, None].expand(-1, 4))
    tokenizer.fit_likelihood(sigma**2)
    return tokenizer


def exact_nats(pipeline, images, *, uniform=False):
    """Return −log Σ_z p(z) p(x | z) over all 81 codes in fp64, with the learned prior or the uniform one."""
    every = torch.tensor(list(product(range(K), repeat=T)))
    log_p = pipeline.prior.log_prob(every, torch.zeros(len(every), dtype=torch.int64)).double()
    log_p = torch.full_like(log_p, -T * math.log(K)) if uniform else log_p
    found = []
    for image in to_float(images):
        output = pipeline.tokenizer.output(every).double()
        nll = pipeline.tokenizer.likelihood.nll(output, image.double()[None].expand(len(every), -1, -1, -1))
        found.append(-(log_p - nll).logsumexp(0))
    return torch.stack(found)


@pytest.fixture
def marginal():
    return Marginal(np.random.default_rng(0).integers(0, K, (50, T)), Layout.of(T, factors=(K,)))


def test_bits_per_dim_are_the_exact_likelihood_where_no_other_code_explains_the_image(marginal):
    """With means far apart and a small variance the bound of one code is tight: it equals the enumeration to 1e-5."""
    pipeline = joined(means(sigma=0.05))
    images = to_uint8(0.7 * torch.randint(-1, 2, (6, 1, 2, 2)).repeat_interleave(2, 2).repeat_interleave(2, 3) + 0.02)
    bound = image_nats(pipeline, marginal, images, torch.zeros(6, dtype=torch.int64))
    ours = bits_per_dim(bound.distortion + bound.learned, 16)
    torch.testing.assert_close(ours, bits_per_dim(exact_nats(pipeline, images), 16), rtol=0, atol=1e-5)


def test_bits_per_dim_are_never_below_the_exact_likelihood(marginal):
    """With a large variance other codes explain the image too, and the bound of one code lies above."""
    pipeline = joined(means(sigma=0.6))
    images = torch.randint(256, (8, 1, 4, 4), dtype=torch.uint8)
    bound = image_nats(pipeline, marginal, images, torch.zeros(8, dtype=torch.int64))
    excess = bound.distortion + bound.learned - exact_nats(pipeline, images)
    assert (excess > 0.1).all()


def test_the_two_priors_without_training_cost_what_theory_says(marginal):
    """The uniform prior costs exactly T ln K; the independent one multiplies the counted shares."""
    pipeline = joined(means(sigma=0.6))
    images = torch.randint(256, (5, 1, 4, 4), dtype=torch.uint8)
    bound = image_nats(pipeline, marginal, images, torch.zeros(5, dtype=torch.int64))
    assert (bound.uniform == T * math.log(K)).all()
    codes = pipeline.tokenizer.encode(to_float(images)).flatten(1)
    expected = -torch.stack([marginal.log_p[0][codes[:, t]] for t in range(T)]).sum(0)
    torch.testing.assert_close(bound.independent, expected, rtol=1e-12, atol=0)


def test_a_class_that_the_prior_is_told_is_paid_for(marginal):
    """p(x, label) bounds p(x); p(x | label) alone would not be a figure of p(x)."""
    pipeline = joined(means(sigma=0.6), classes=("a", "b"))
    images, labels = torch.randint(256, (4, 1, 4, 4), dtype=torch.uint8), torch.tensor([0, 1, 0, 2])  # 2 means no class
    bound = image_nats(pipeline, marginal, images, labels)
    codes = pipeline.tokenizer.encode(to_float(images)).flatten(1)
    paid = bound.learned + pipeline.prior.log_prob(codes, labels).double()
    torch.testing.assert_close(paid, math.log(2) * torch.tensor([1.0, 1, 1, 0]).double(), rtol=0, atol=1e-6)


def stochastic():
    torch.manual_seed(3)
    config = VQVAEConfig(
        image_size=(4, 4),
        channels=(8, 8),
        quantizer=GumbelConfig(codebook_size=K, code_dim=2, normalize=False),
        likelihood=GaussianConfig(sigma=1.0),
    )
    tokenizer = VQVAE(config)
    with torch.no_grad():
        tokenizer.quantizer.codebook.normal_()
        # Near the true posterior, so that the weights of the draws are alike
        tokenizer.quantizer.log_sharpness.fill_(-3.0)
    return tokenizer


def test_the_importance_weighted_bound_reaches_the_exact_likelihood(marginal):
    """500 draws are compared with all 81 codes under the uniform prior, where the weights are alike: 0.02 nats
    apart."""
    pipeline = joined(stochastic())
    images = torch.randint(256, (3, 1, 4, 4), dtype=torch.uint8)
    labels, generator = torch.zeros(3, dtype=torch.int64), torch.Generator().manual_seed(0)
    bounds = stochastic_bounds(pipeline, marginal, images, labels, 500, generator)
    exact = exact_nats(pipeline, images, uniform=True)
    torch.testing.assert_close(bounds.importance["uniform"], exact, rtol=0, atol=0.1)
    assert (bounds.elbo["uniform"] > bounds.importance["uniform"] + 0.03).all()


def test_more_draws_make_the_bound_tighter(marginal):
    """This holds in expectation: the test averages 64 images, with one draw (the ELBO), 4 and 32."""
    pipeline = joined(stochastic())
    images, labels = torch.randint(256, (64, 1, 4, 4), dtype=torch.uint8), torch.zeros(64, dtype=torch.int64)
    totals = []
    for samples in (1, 4, 32):
        generator = torch.Generator().manual_seed(samples)
        bounds = stochastic_bounds(pipeline, marginal, images, labels, samples, generator)
        totals.append(bounds.importance["learned"].sum().item())
    assert totals[0] > totals[1] > totals[2] > exact_nats(pipeline, images).sum().item() - 1


def test_a_learned_prior_that_gives_a_bound_has_no_importance_weighted_one(marginal):
    """Its bound is estimated by a few orders: the mean of exp of that would be too large."""
    given = joined(stochastic())
    masked = MaskedConfig(depth=1, dim=16, heads=2, dropout=0.0)
    prior = build_prior(given.prior.config.model_copy(update={"architecture": masked})).eval()
    pipeline = ImagePipeline(given.tokenizer, prior, SamplingConfig(), IDENTITY)
    images, labels = torch.randint(256, (3, 1, 4, 4), dtype=torch.uint8), torch.zeros(3, dtype=torch.int64)
    bounds = stochastic_bounds(pipeline, marginal, images, labels, 2, torch.Generator().manual_seed(0))
    assert {*bounds.elbo} == {"uniform", "independent", "learned"} and {*bounds.importance} == {
        "uniform",
        "independent",
    }


def test_draws_of_a_posterior_that_is_one_code_are_refused(marginal):
    pipeline = joined(means(sigma=0.6))
    with pytest.raises(ValueError, match="posterior is a single code"):
        stochastic_bounds(pipeline, marginal, torch.zeros(1, 1, 4, 4), torch.zeros(1).long(), 2, torch.Generator())


# ------------------------------------------------------------------------------------------------------ coding with it


@pytest.fixture(scope="module")
def trained(finished_run):
    """Return the pipeline of a run, and 48 of its images with their labels."""
    pipeline = ImagePipeline.from_run(finished_run, SamplingConfig())
    split = held_out_split(open_run_images(finished_run / "tokenizer", pipeline.tokenizer.config).splits)
    batch = split.read(torch.arange(48))
    return pipeline, batch.images, batch.labels


def test_images_survive_the_bytes_and_cost_what_the_figure_says(trained, finished_run):
    """Images return byte for byte; the length is within 1% of the rate + distortion that evaluation reports."""
    pipeline, images, labels = trained
    made = compress(pipeline, images, labels)
    assert torch.equal(expand(pipeline, made.data), images)
    codes = load_codes(finished_run / "codes", ["train"])
    marginal = Marginal(codes.splits["train"].codes, codes.info.layout)
    nats = image_nats(pipeline, marginal, images, labels)
    figure = (nats.distortion + nats.learned).sum().item() / math.log(2)
    assert 8 * (len(made.data) - HEAD.size) == pytest.approx(figure, rel=0.01)
    assert made.rate + made.distortion == pytest.approx(figure, rel=1e-5)


def in_first_format(pipeline, images):
    """Return images as the first version wrote them: without labels, a pixel's level as one symbol of 256."""
    coder, family = stream.queue.RangeEncoder(), stream.model.Categorical(perfect=False)
    for some in images.split(FIRST_BATCH):
        pixels, none = to_float(some), pipeline.condition.none(len(some))
        codes = pipeline.tokenizer.encode(pixels)

        def known(logits, t, g, codes=codes):
            coder.encode(codes[:, t].int().numpy(), family, logits.double().softmax(-1).numpy())
            return codes[:, t]

        with torch.inference_mode():
            pipeline.prior.walk(pipeline.told_to_prior(none), known)
            shares = pipeline.tokenizer.likelihood.probabilities(
                pipeline.tokenizer.output(codes).double(), pixels.double(), 0
            )
        coder.encode(some.flatten().int().numpy(), family, shares.flatten(0, 2).numpy())
    written = HEAD.unpack_from(compress(pipeline, images).data)
    return HEAD.pack(FIRST_MAGIC, *written[1:]) + coder.get_compressed().astype("<u4").tobytes()


def test_files_of_the_first_format_are_expanded(trained, tmp_path):
    pipeline, images, _ = trained
    data = in_first_format(pipeline, images)
    (tmp_path / "old.tess").write_bytes(data)
    assert is_compressed(tmp_path / "old.tess")
    assert torch.equal(expand(pipeline, data), images)


def test_images_that_the_models_take_for_impossible_survive():
    """A pixel a thousand deviations from what is decoded has no mass: its digits cost what any other's do."""
    pipeline = joined(means(sigma=0.001))
    images = torch.randint(256, (5, 1, 4, 4), dtype=torch.uint8)
    assert torch.equal(expand(pipeline, compress(pipeline, images).data), images)


def test_colours_survive_where_later_channels_are_told_of_the_earlier_ones():
    """They never did: the encoder knew the earlier channels in fp32, the decoder in fp64, 6e-8 apart."""
    torch.manual_seed(0)
    quantizer, likelihood = VQConfig(codebook_size=K, code_dim=2), LogisticMixtureConfig(components=2)
    c = VQVAEConfig(image_size=(4, 4), image_channels=3, channels=(8, 8), quantizer=quantizer, likelihood=likelihood)
    pipeline = joined(VQVAE(c))
    images = torch.randint(256, (20, 3, 4, 4), dtype=torch.uint8)
    assert torch.equal(expand(pipeline, compress(pipeline, images).data), images)


def test_images_without_labels_survive_too(trained):
    pipeline, images, _ = trained
    made = compress(pipeline, images[:5])
    assert torch.equal(expand(pipeline, made.data), images[:5])


def test_bytes_of_another_prior_and_damaged_bytes_are_refused(trained):
    pipeline, images, _ = trained
    data = compress(pipeline, images[:2]).data
    other = ImagePipeline(
        pipeline.tokenizer, TransformerPrior(pipeline.prior.config).eval(), SamplingConfig(), pipeline.identity
    )
    with pytest.raises(UserError, match="another tokenizer or prior"):
        expand(other, data)
    for bad in (b"", b"\x89PNG" + data, data[:20], data[:-1]):
        with pytest.raises(UserError, match=r"no file that pipeline/compress.py wrote"):
            expand(pipeline, bad)
    flipped = bytearray(data)
    flipped[-20] ^= 255
    with pytest.raises(UserError, match="the bytes are damaged, or were written where sums are rounded otherwise"):
        expand(pipeline, bytes(flipped))


@pytest.mark.parametrize("images", [0, 2, 49, 2**32 - 1])
def test_a_head_that_claims_other_images_than_its_bytes_hold_is_refused(trained, images):
    """33 bytes that claimed 2**32 - 1 images asked for 34 GB. The second header claims too few images, the third one
    too many."""
    pipeline, given, _ = trained
    data = compress(pipeline, given).data
    magic, labelled, _, *rest = HEAD.unpack_from(data)
    head = HEAD.pack(magic, labelled, images, *rest)
    tracemalloc.start()
    with pytest.raises(UserError, match=r"the header claims|the bytes are damaged"):
        expand(pipeline, head + data[HEAD.size :])
    with pytest.raises(UserError, match="the header claims"):
        expand(pipeline, head)
    assert tracemalloc.get_traced_memory()[1] < 2**24
    tracemalloc.stop()


def test_images_that_the_bytes_do_not_hold_are_not_decoded_to_the_last(trained):
    """A decoder reads zeros after the last word: 8 kB of them claimed 65,536 images, and decoding those took long."""
    pipeline, given, _ = trained
    magic, labelled, _, *rest = HEAD.unpack_from(compress(pipeline, given[:1]).data)
    data = HEAD.pack(magic, labelled, 2**16, *rest) + bytes(2**13)
    batches = expand_in_batches(pipeline, data)
    with pytest.raises(UserError, match="the bytes are damaged"):
        for number, _ in enumerate(batches):
            assert number < 2**13 / 256  # batches of 256 images; each image takes more than a byte


def test_bytes_that_are_cut_or_followed_by_others_are_refused(trained):
    pipeline, given, labels = trained
    for data in (compress(pipeline, given[:3]).data, compress(pipeline, given[:3], labels[:3]).data):
        for changed in (data[:-4], data[:-8], data[: HEAD.size], data + bytes(4), data + b"more" * 2):
            with pytest.raises(UserError, match=r"the bytes are damaged|the header claims"):
                expand(pipeline, changed)


def test_every_flipped_bit_of_the_head_and_of_the_last_words_is_found_out(trained):
    pipeline, given, _ = trained
    data = compress(pipeline, given[:2]).data
    for place in (*range(HEAD.size), *range(len(data) - 8, len(data))):
        # The flag for labels; the highest bits of the number
        for bit in range(8) if place in (8, 12) else (place % 8,):
            flipped = bytearray(data)
            flipped[place] ^= 1 << bit
            with pytest.raises(UserError):
                expand(pipeline, bytes(flipped))


def test_a_head_that_claims_labels_where_the_prior_has_no_classes_is_refused():
    """The decoder divided by the number of classes, zero."""
    pipeline = joined(means(sigma=0.6))
    data = compress(pipeline, torch.randint(256, (2, 1, 4, 4), dtype=torch.uint8)).data
    with pytest.raises(UserError, match="the bytes are damaged"):
        expand(pipeline, data[:8] + b"\1" + data[9:])


def test_no_images_are_nothing_to_compress(trained):
    with pytest.raises(UserError, match="there are no images to compress"):
        compress(trained[0], trained[1][:0])


@pytest.mark.parametrize("content", [b"", b"%!PS-Adobe-3.0 EPSF-3.0\n", PNG[:60], PNG[:20] + b"\xff" * 40])
def test_a_damaged_picture_is_refused_in_words(trained, tmp_path, content):
    """PIL raises almost any exception: a SyntaxError ended the command as an internal fault."""
    (tmp_path / "a.png").write_bytes(content)
    with pytest.raises(UserError, match=r"a\.png cannot be read as a picture: "):
        read_exact_picture(str(tmp_path / "a.png"), trained[0])


def test_compress_takes_files_of_the_right_size_only(finished_run, tmp_path, capsys):
    from smalti.pipeline.compress import main

    run = shutil.copytree(finished_run, tmp_path / "digits", ignore=shutil.ignore_patterns("state"))
    main([str(run), "--images", "3"])
    out = capsys.readouterr().out
    assert "3 images of test" in out and "the same pixels" in out
    main([str(run), "--expand", str(run / "compressed.tess")])
    pictures = sorted((run / "expanded").iterdir())
    assert [picture.name for picture in pictures] == ["000000.png", "000001.png", "000002.png"]
    main([str(run), "--files", *map(str, pictures), "--output", str(tmp_path / "again.tess")])
    assert "3 pictures" in capsys.readouterr().out
    import PIL.Image

    PIL.Image.new("L", (9, 8)).save(tmp_path / "wide.png")
    with pytest.raises(UserError, match="is 8 x 9 pixels and the tokenizer's images are 8 x 8"):
        main([str(run), "--files", str(tmp_path / "wide.png")])
    with pytest.raises(UserError, match="cannot be read as a picture"):
        main([str(run), "--files", str(run / "compressed.tess")])


def test_compress_replaces_nothing_that_is_not_its_own(finished_run, tmp_path):
    """It once replaced a run folder given as --output as if it were its file, and took a folder of pictures for its
    own."""
    from smalti.pipeline.compress import main

    run = shutil.copytree(finished_run, tmp_path / "digits", ignore=shutil.ignore_patterns("state"))
    mine = tmp_path / "mine"
    mine.mkdir()
    (mine / "000000.png").write_bytes(b"a picture")
    for output in (run, mine, mine / "000000.png"):
        with pytest.raises(UserError, match="holds something else than a compressed file of ours"):
            main([str(run), "--images", "2", "--output", str(output)])
    for _ in range(2):  # it replaces its own file
        main([str(run), "--images", "2"])
    with pytest.raises(UserError, match="holds something already"):
        main([str(run), "--expand", str(run / "compressed.tess"), "--output", str(mine)])
    assert (mine / "000000.png").read_bytes() == b"a picture" and (run / "tokenizer/model").is_dir()


def test_a_picture_that_reading_would_change_is_refused(finished_run, tmp_path):
    """Decompression must return the given picture, so no colour, alpha or depth may be dropped silently."""
    import PIL.Image

    from smalti.pipeline.compress import main

    run = shutil.copytree(finished_run, tmp_path / "digits", ignore=shutil.ignore_patterns("state"))
    for mode in ("RGB", "RGBA", "LA", "P", "I;16"):
        PIL.Image.new(mode, (8, 8)).save(tmp_path / "picture.png")
        with pytest.raises(UserError, match="would be changed when it is read"):
            main([str(run), "--files", str(tmp_path / "picture.png")])


def test_every_flipped_byte_is_found_out(trained):
    """On some bytes the coder itself stops, with an assertion of its library."""
    pipeline, images, _ = trained
    data = compress(pipeline, images[:8]).data
    for place in range(HEAD.size, len(data) - 8, 29):
        flipped = bytearray(data)
        flipped[place] ^= 0x41
        with pytest.raises(UserError, match="the bytes are damaged"):
            expand(pipeline, bytes(flipped))
