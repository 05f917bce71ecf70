"""Both stages together: labels and seeds become the same images on disk, however they are drawn."""

import json
import shutil
from concurrent.futures import ThreadPoolExecutor
from types import SimpleNamespace

import numpy as np
import PIL.Image
import pytest
import torch

from smalti.common import codes, folder, progress
from smalti.common.codes_info import TokenizerIdentity
from smalti.common.condition import Classes
from smalti.common.errors import UserError
from smalti.common.layout import Layout
from smalti.common.plots import make_grid
from smalti.pipeline.generate import Settings, generate, main
from smalti.pipeline.growth import UNDRAWN, check_grows, frames
from smalti.pipeline.image_pipeline import ImagePipeline
from smalti.prior.masked.config import MaskedConfig
from smalti.prior.model import build_prior
from smalti.prior.sampling_config import CODE_SETTINGS, SamplingConfig
from smalti.prior.transformer.model import TransformerPrior

DRAWN_BY = {*CODE_SETTINGS, "precision"}  # the settings that a Transformer draws by


@pytest.fixture(scope="module")
def pipeline(finished_run):
    return ImagePipeline.from_models(finished_run / "tokenizer/model", finished_run / "prior/model", SamplingConfig())


@pytest.fixture
def run(finished_run, tmp_path):
    """Return a copy of the finished run that a test may write into."""
    return shutil.copytree(finished_run, tmp_path / "digits", ignore=shutil.ignore_patterns("state"))


def pixels(images):
    return np.stack([np.asarray(image) for image in images])


def test_a_pipeline_survives_the_disk(pipeline, tmp_path):
    pipeline.save_pretrained(tmp_path / "pipeline")
    again = ImagePipeline.from_pretrained(tmp_path / "pipeline")
    files = {"model_index.json", "generation_config.json", "tokenizer", "prior"}
    assert {path.name for path in (tmp_path / "pipeline").iterdir()} == files
    drawn, redrawn = (p(labels=[3, 7], seed=1) for p in (pipeline, again))
    assert np.array_equal(pixels(drawn.images), pixels(redrawn.images))


def test_nothing_in_a_pipeline_folder_is_a_pickle(pipeline, tmp_path):
    pipeline.save_pretrained(tmp_path)
    assert {path.suffix for path in tmp_path.rglob("*") if path.is_file()} == {".json", ".safetensors"}


def test_the_wrong_tokenizer_is_refused_and_both_are_named(pipeline):
    other = TokenizerIdentity(name="other/tokenizer", sha256="f" * 64)
    with pytest.raises(UserError, match=r"codes of the tokenizer digits/tokenizer .*, not of other/tokenizer"):
        ImagePipeline(pipeline.tokenizer, pipeline.prior, SamplingConfig(), other)


def test_codes_of_other_digits_are_refused_by_the_setting_that_differs(pipeline):
    """Both sides read `4 x 4 codes of 16`."""
    (grid,) = pipeline.prior.config.layout.grids
    digits = Layout(grids=(grid.model_copy(update={"factors": (4, 4)}),))
    prior = TransformerPrior(pipeline.prior.config.model_copy(update={"layout": digits}))
    with pytest.raises(UserError, match=r"which differ in factors \[16\] and \[4, 4\]: a config\.json was changed"):
        ImagePipeline(pipeline.tokenizer, prior, SamplingConfig(), pipeline.identity)


def test_the_grid_of_two_classes_is_no_strip(run, accelerator, tmp_path):
    """One column a class made fifty rows of two from a hundred images of two classes."""
    generate(Settings(run=str(run), labels=(3, 7), num_images=16, output=str(tmp_path / "drawn")), accelerator)
    width, height = PIL.Image.open(tmp_path / "drawn/grid.png").size
    assert width == height


def test_an_image_depends_on_its_label_and_seed_and_not_on_its_batch(pipeline):
    together = pipeline(labels=[3, 5, 3], seed=10)
    alone = pipeline(labels=5, seed=11)
    assert np.array_equal(pixels(together.images)[1], pixels(alone.images)[0])
    assert together.seeds == [10, 11, 12] and not torch.equal(together.codes[0], together.codes[2])


def test_an_image_is_the_same_in_a_request_of_any_size(pipeline):
    """Batches are as large as the request: one image was padded to 64, and took as long."""
    many = pipeline(labels=[3, 7], num_images=64, seed=5, precision="fp32")
    for images in (1, 3, 8):
        few = pipeline(labels=[3, 7], num_images=images, seed=5, precision="fp32")
        assert torch.equal(few.codes, many.codes[:images])
        assert np.array_equal(pixels(few.images), pixels(many.images)[:images])


def test_a_pipeline_keeps_its_sampler_until_it_would_be_made_otherwise(pipeline, tmp_path):
    """Each call packed the weights anew, and on a GPU captured its graphs."""
    pipeline.save_pretrained(tmp_path)
    own = ImagePipeline.from_pretrained(tmp_path)

    def sampler_of(**settings):
        own(labels=3, seed=1, **settings)
        return own._kept[0][1]

    first = sampler_of()
    assert sampler_of() is first and sampler_of(num_images=3) is first
    warmer = sampler_of(temperature=1.5)
    assert warmer is not first
    assert sampler_of(batch_size=8, temperature=1.5) is not warmer
    kept = sampler_of()
    own.to("cpu")
    assert sampler_of() is not kept
    changes = (lambda weight: weight.neg_(), lambda weight: weight.data.neg_())
    for change in changes:
        before = own(labels=3, seed=1)
        with torch.no_grad():
            change(own.prior.head.weight)
        after = own(labels=3, seed=1)
        assert not torch.equal(after.codes, before.codes)
        assert torch.equal(after.codes, own.sampler()(torch.tensor([3]), [1]))


def test_calls_at_once_draw_what_calls_in_turn_do(pipeline):
    """A sampler holds the state of its batch, so a second thread makes one of its own."""
    in_turn = [pipeline(labels=3, num_images=4, seed=seed).codes for seed in range(4)]
    with ThreadPoolExecutor(4) as pool:
        at_once = list(pool.map(lambda seed: pipeline(labels=3, num_images=4, seed=seed).codes, range(4)))
    assert all(map(torch.equal, at_once, in_turn))


def test_four_processes_draw_what_one_does(pipeline):
    """Each process draws its share of the batches, and the codes are equal bit for bit."""
    labels, seeds = pipeline.deal_labels(None, 22), pipeline.deal_seeds(22, 7)
    sampler = pipeline.sampler(4, precision="fp32")
    alone = torch.cat([batch.codes for batch in pipeline.generate(labels, seeds, sampler, batch_size=4)])
    shares = [
        batch
        for rank in range(4)
        for batch in pipeline.generate(
            labels, seeds, pipeline.sampler(4, precision="fp32"), batch_size=4, first=rank, every=4
        )
    ]
    assert torch.equal(torch.cat([batch.codes for batch in sorted(shares, key=lambda batch: batch.start)]), alone)


def test_labels_are_given_by_name_or_number_and_dealt_in_turn(pipeline):
    assert pipeline(labels=["7", 2], num_images=5, seed=0).labels == [7, 2, 7, 2, 7]
    assert pipeline(num_images=12, seed=0).labels == [*range(10), 0, 1]


def with_classes(pipeline: ImagePipeline, *names: str) -> ImagePipeline:
    prior = TransformerPrior(pipeline.prior.config.model_copy(update={"condition": Classes(names=names)}))
    return ImagePipeline(pipeline.tokenizer, prior, SamplingConfig(), pipeline.identity)


def test_class_names_are_found_whatever_their_case(pipeline):
    named = with_classes(pipeline, "Sneaker", "ankle boot", "1")
    assert [named.class_number(label) for label in ("sneaker", "Ankle Boot", "1", 1, "0", 0)] == [0, 1, 2, 2, 0, 0]


def test_a_number_that_is_a_name_means_the_class_of_that_name_however_it_is_written(pipeline):
    """With class folders 0, 1, 10, 11, 2, `--labels 2` drew class "2" and `labels: [2]` in YAML drew class "10"."""
    old_order = with_classes(pipeline, "0", "1", "10", "11", "2").class_number
    assert [old_order(label) for label in (2, "2", "02", np.int64(10), "10")] == [4, 4, 4, 2, 2]
    years = with_classes(pipeline, "1999", "2000", "01").class_number
    assert [years(label) for label in (1999, "2000", 1)] == [0, 1, 2]
    for label in (0, "2", -1):  # no class has that name, and a number would be ambiguous
        with pytest.raises(UserError, match=r"there is no class .*; the classes are 1999, 2000, 01"):
            years(label)


def test_the_labels_that_a_pipeline_returns_mean_the_same_classes_when_given_back(pipeline):
    """With classes named 10, 9, ..., 1, a second call with `labels=drawn.labels` drew other classes."""
    named = with_classes(pipeline, *map(str, range(10, 0, -1)))
    drawn = named(labels=[9, "2"], seed=0)
    assert drawn.labels == [1, 8] == named(labels=drawn.labels, seed=0).labels


def test_a_class_is_found_by_its_name_in_either_form_of_unicode(pipeline):
    named = with_classes(pipeline, "caf\u00e9", "the\u0301")
    assert [named.class_number(label) for label in ("cafe\u0301", "caf\u00e9", "th\u00e9", "CAFE\u0301")] == [
        0,
        0,
        1,
        0,
    ]


def test_a_generator_draws_the_seeds_as_in_diffusers(pipeline):
    drawn = [pipeline(labels=[1, 2], generator=torch.Generator().manual_seed(5)) for _ in range(2)]
    assert drawn[0].seeds == drawn[1].seeds and torch.equal(drawn[0].codes, drawn[1].codes)


def test_pictures_are_what_the_codes_decode_to(pipeline):
    drawn = pipeline(labels=[4], seed=2)
    image = drawn.images[0]
    assert isinstance(image, PIL.Image.Image) and image.size == (8, 8) and image.mode == "L"
    assert np.array_equal(np.asarray(image), pipeline.decode(drawn.codes)[0, 0].numpy())


def test_any_picture_can_be_reconstructed(pipeline):
    """A picture may have any size and mode; the result has the tokenizer's."""
    picture = PIL.Image.linear_gradient("L").resize((40, 30)).convert("RGBA")
    again = pipeline.reconstruct([picture, picture.convert("P")])
    assert [image.size for image in again] == [(8, 8)] * 2


@pytest.mark.parametrize(
    "call, message",
    [
        ({"labels": ["shoe"]}, "there is no class 'shoe'; the classes are 0, 1, 2"),
        ({"labels": [10]}, "there is no class 10; the classes are 0, 1, 2"),
        ({"labels": []}, "at least one class"),
        ({"num_images": 0}, "num_images must be at least 1, got 0"),
        ({"seed": 1, "generator": torch.Generator()}, "a seed or a generator, not both"),
        ({"temperature": 0.0}, "temperature"),
        ({"top_k": 17}, "top_k 17 is more than the 16 codes"),
        ({"tempreture": 1.0}, "unknown setting tempreture; did you mean temperature"),
    ],
)
def test_a_wrong_call_says_what_was_expected(pipeline, call, message):
    with pytest.raises(UserError, match=message):
        pipeline(**call)


def test_generated_images_are_an_imagefolder_with_label_and_seed(run, accelerator, tmp_path):
    from datasets import load_dataset

    out = generate(Settings(run=str(run), labels=("7", 1), num_images=6, seed=4, batch_size=4), accelerator)
    read = load_dataset("imagefolder", data_dir=str(out), cache_dir=str(tmp_path / "cache"))["train"]
    assert read["label"] == ["7", "1"] * 3 and read["seed"] == [4, 5, 6, 7, 8, 9]
    pipeline = ImagePipeline.from_pretrained(run / "pipeline")
    expected = pipeline(labels=[7, 1], num_images=6, seed=4, batch_size=4)
    assert np.array_equal(pixels(read["image"]), pixels(expected.images))
    assert (out / "grid.png").exists()


def test_npz_has_the_evaluators_layout(run, accelerator):
    out = generate(Settings(run=str(run), num_images=20, format="npz", batch_size=8), accelerator)
    arrays = np.load(out / "samples.npz")
    assert arrays["arr_0"].shape == (20, 8, 8, 1) and arrays["arr_0"].dtype == np.uint8
    assert arrays["arr_1"].tolist() == [*range(10)] * 2


def test_sampled_codes_are_a_codes_dataset_of_the_same_tokenizer(run, accelerator):
    out = generate(Settings(run=str(run), num_images=5, format="codes", seed=3), accelerator)
    info, splits = codes.load_codes(out)
    drawn = ImagePipeline.from_pretrained(run / "pipeline")(num_images=5, seed=3)
    assert np.array_equal(splits["generated"].codes, drawn.codes.numpy())
    assert info.tokenizer.whole == folder.sha256(run / "tokenizer/model/model.safetensors")


@pytest.mark.parametrize("format", ["png", "npz", "codes"])
def test_the_same_request_goes_on_and_another_is_refused(run, accelerator, format):
    c = Settings(run=str(run), num_images=10, batch_size=4, format=format)
    out = generate(c, accelerator)
    before = {path.name: path.read_bytes() for path in out.iterdir() if path.is_file()}
    for name in ("000002.png", "metadata.jsonl", "grid.png") if format == "png" else ():
        (out / name).unlink()  # as if interrupted; the other formats keep parts until they are complete
    generate(c, accelerator)
    assert before == {path.name: path.read_bytes() for path in out.iterdir() if path.is_file()}
    other = c.model_copy(update={"seed": 1})
    with pytest.raises(UserError, match=r"holds another request's images; give another --output, or --overwrite true"):
        generate(other, accelerator)
    generate(other.model_copy(update={"overwrite": True}), accelerator)


def a_picture(path, side):
    PIL.Image.new("L", (side, side), 7).save(path, format="PNG")


@pytest.mark.parametrize("overwrite", [False, True])
@pytest.mark.parametrize("name", ["000002.png", "grid.png", "metadata.jsonl"])
def test_an_edited_file_and_a_users_own_picture_of_the_same_size_are_kept(run, accelerator, capsys, name, overwrite):
    """A stranger's picture of the right size was taken for the drawn one."""
    c = Settings(run=str(run), num_images=4, batch_size=4)
    out = generate(c, accelerator)
    side = PIL.Image.open(out / "000002.png").width
    a_picture(out / name, side)
    mine = (out / name).read_bytes()
    generate(c.model_copy(update={"seed": int(overwrite), "overwrite": overwrite}), accelerator)
    assert (out / f"{name}.found").read_bytes() == mine != (out / name).read_bytes()
    assert f"{name} is not as this command wrote it: it is kept as {name}.found" in capsys.readouterr().err


def test_what_lies_at_a_pictures_name_is_kept_under_another(run, accelerator, capsys):
    """A user's own 000002.png was replaced without a word."""
    c = Settings(run=str(run), num_images=4, batch_size=4)
    out = generate(c, accelerator)
    before = (out / "000002.png").read_bytes()
    for number, text in enumerate(("mine", "mine too")):
        (out / "000002.png").write_text(text)
        generate(c, accelerator)
        assert (out / "000002.png").read_bytes() == before
        assert (out / ("000002.png.found", "000002.png.found-2")[number]).read_text() == text
    assert "000002.png is not as this command wrote it: it is kept as 000002.png.found" in capsys.readouterr().err


def test_one_calls_sampling_is_not_kept_as_the_default_but_a_files_is(run, tmp_path):
    def kept():
        return folder.read_json(run / "pipeline/generation_config.json")

    main([str(run), "--top_k", "1", "--num-images", "1", "--output", str(tmp_path / "a")])
    assert kept() == SamplingConfig().model_dump(include=DRAWN_BY)
    (tmp_path / "g.yaml").write_text("temperature: 0.5\nnum_images: 1\n")
    main([str(run), "--config", str(tmp_path / "g.yaml"), "--top_k", "1", "--output", str(tmp_path / "b")])
    assert kept() == SamplingConfig(temperature=0.5).model_dump(include=DRAWN_BY)
    main([str(run), "--num-images", "1", "--output", str(tmp_path / "c")])
    assert kept() == SamplingConfig(temperature=0.5).model_dump(include=DRAWN_BY)
    assert folder.read_json(tmp_path / "c/.request.json")["temperature"] == 0.5


def test_a_model_is_never_saved_over_something_else(pipeline, tmp_path):
    (tmp_path / "thesis.txt").write_text("years of work")
    for save in (pipeline.save_pretrained, pipeline.tokenizer.save_pretrained, pipeline.prior.save_pretrained):
        with pytest.raises(UserError, match="holds something else"):
            save(tmp_path)
    assert (tmp_path / "thesis.txt").exists()


def test_a_folder_of_something_else_is_never_overwritten(run, accelerator):
    (run / "samples").mkdir()
    (run / "samples/thesis.txt").write_text("years of work")
    with pytest.raises(UserError, match="holds something else; give another --output"):
        generate(Settings(run=str(run), overwrite=True), accelerator)
    assert (run / "samples/thesis.txt").exists()


def test_a_run_without_a_prior_names_the_command_that_makes_one(run, accelerator):
    shutil.rmtree(run / "prior")
    with pytest.raises(UserError, match=r"no trained model in .*; prior/train\.py \(or fit\.py\) with --run"):
        generate(Settings(run=str(run)), accelerator)


def test_a_damaged_index_is_named(pipeline, tmp_path):
    pipeline.save_pretrained(tmp_path)
    (tmp_path / "model_index.json").write_text(json.dumps({"kind": "DDPMPipeline"}))
    with pytest.raises(UserError, match=r"model_index\.json must be of kind 'smalti\.imagepipeline', got 'DDPM"):
        ImagePipeline.from_pretrained(tmp_path)


# ----------------------------------------------------------------------------------------------- as diffusers has it


@pytest.fixture(scope="module")
def masked(pipeline):
    """Return a pipeline whose prior, of random weights, draws in passes."""
    torch.manual_seed(0)
    c = pipeline.prior.config.model_copy(update={"architecture": MaskedConfig(depth=1, dim=16, heads=2)})
    return ImagePipeline(pipeline.tokenizer, build_prior(c).eval(), SamplingConfig(steps=3), pipeline.identity)


def test_a_pipeline_says_what_is_inside(pipeline):
    shown = repr(pipeline)
    assert shown.startswith("ImagePipeline(\n") and len(shown.splitlines()) < 10
    for part in ("vqvae", "8 x 8 x 1", "4 x 4 codes of 16", "transformer", "10: 0, 1, 2", "cpu"):
        assert part in shown
    assert pipeline.class_names == tuple("0123456789")
    assert [*pipeline.components.values()] == [pipeline.tokenizer, pipeline.prior, pipeline.sampling]
    assert pipeline.config == (pipeline.tokenizer.config, pipeline.prior.config, pipeline.sampling)


def test_a_pipeline_is_made_of_the_components_of_another(pipeline, prior):
    pipeline = ImagePipeline.from_pipe(pipeline, sampling={"temperature": 0.5})
    for other in (ImagePipeline(**pipeline.components), ImagePipeline.from_pipe(pipeline)):
        assert other.components == pipeline.components and other.identity.same_codes(pipeline.identity)
        assert pixels(other([3], seed=1).images).tolist() == pixels(pipeline([3], seed=1).images).tolist()
    warm = ImagePipeline.from_pipe(pipeline, sampling=pipeline.sampling.model_copy(update={"temperature": 2.0}))
    assert warm.sampling.temperature == 2 and pipeline.sampling.temperature == 0.5
    with pytest.raises(UserError, match="the prior was trained on codes of the tokenizer test"):
        ImagePipeline(pipeline.tokenizer, prior)
    with pytest.raises(UserError, match="from_pipe takes tokenizer, prior, sampling, got unet"):
        ImagePipeline.from_pipe(pipeline, unet=None)
    for wrong in ({"tokenizer": pipeline.prior}, {"prior": None}):
        with pytest.raises(UserError, match=r"made of an ImageTokenizer and a Prior, got (TransformerPrior|NoneType)"):
            ImagePipeline.from_pipe(pipeline, **wrong)
    with pytest.raises(UserError, match="from_pipe takes a pipeline, got str"):
        ImagePipeline.from_pipe("smalti/digits")
    with pytest.raises(UserError, match=r"sampling: .*temperatur"):
        ImagePipeline(**pipeline.components | {"sampling": {"temperatur": 1}})


@pytest.mark.filterwarnings("ignore:this prior was trained in raster order")
def test_images_are_pictures_arrays_or_tensors_of_the_same_pixels(pipeline):
    pictures, array, tensor = (pipeline([3, 7], seed=1, output_type=each).images for each in ("pil", "np", "pt"))
    assert array.shape == (2, 8, 8, 1) and array.dtype == np.float32 and tensor.shape == (2, 1, 8, 8)
    assert np.array_equal((array[..., 0] * 255).round(), pixels(pictures))
    assert torch.equal(tensor, torch.from_numpy(array).permute(0, 3, 1, 2))
    upper = np.arange(64).reshape(8, 8) < 32
    others = [
        pipeline.complete(pictures, upper, labels=[3, 7], seed=1, output_type="np").images,
        pipeline.vary(pictures, labels=[3, 7], seed=1, output_type="np").images,
        pipeline.interpolate(*pictures, 2, label=3, seed=1, output_type="np").images,
        pipeline.reconstruct(pictures, output_type="np"),
    ]
    assert all(each.shape == (2, 8, 8, 1) for each in others)


def test_guidance_scale_is_guidance_and_each_label_has_its_images_in_a_row(pipeline):
    drawn = pipeline(labels=[3, 7], num_images_per_label=2, seed=1, guidance_scale=2.0)
    assert drawn.labels == [3, 3, 7, 7]
    assert torch.equal(drawn.codes, pipeline(labels=[3, 3, 7, 7], seed=1, guidance=2.0).codes)


@pytest.mark.parametrize(
    "call, message",
    [
        ({"prompt": "a three"}, "prompt is not offered here: .* give labels"),
        ({"negative_prompt": "a seven"}, "negative_prompt is not offered here: guidance leans away"),
        ({"latents": torch.zeros(1)}, "latents is not offered here: .* give seed or generator"),
        ({"num_images_per_prompt": 2}, "give num_images_per_label"),
        ({"num_inference_steps": 5}, "num_inference_steps is of priors that draw an image in passes"),
        ({"guidance_scale": 2.0, "guidance": 2.0}, "guidance_scale is guidance under the name"),
        ({"guidance_scale": 0.0}, "guidance_scale must be at least 1, which is no guidance"),
        ({"output_type": "latent"}, "the latents are in every result, as .codes"),
        ({"output_type": "jpg"}, "output_type must be one of pil, np, pt, got 'jpg'"),
        ({"num_images": 2, "num_images_per_label": 2}, "num_images or num_images_per_label, not both"),
        ({"num_images_per_label": 0}, "num_images_per_label must be at least 1, got 0"),
        ({"callback_on_step_end": print}, "of priors that draw an image in passes, and .* transformer"),
    ],
)
def test_what_diffusers_offers_and_this_does_not_is_refused_by_name_with_what_does_it_instead(pipeline, call, message):
    with pytest.raises(UserError, match=message):
        pipeline(**call)


def test_what_others_pass_on_as_none_asks_for_nothing(pipeline):
    assert pipeline(["3"], seed=0, negative_prompt=None, num_inference_steps=None).seeds == [0]


def test_a_part_of_diffusers_pipelines_is_refused_by_name(pipeline):
    with pytest.raises(AttributeError, match=r"ImagePipeline has no scheduler: .* steps, solver"):
        pipeline.scheduler  # noqa: B018 - the access itself raises
    assert not hasattr(pipeline, "unet") and not hasattr(pipeline, "anything")


def test_a_callback_sees_each_pass_and_the_images_are_those_without(masked):
    seen = []

    def look(pipe, step, timestep, kwargs):
        assert pipe is masked and timestep == step
        seen.append(kwargs["latents"])
        return kwargs

    drawn = masked(num_inference_steps=4, seed=1, callback_on_step_end=look)
    assert len(seen) == 4 and torch.equal(seen[-1], drawn.codes)
    assert torch.equal(drawn.codes, masked(steps=4, seed=1).codes)


def test_a_callback_that_changes_what_is_drawn_is_refused(masked):
    with pytest.raises(UserError, match="changes nothing"):
        masked(seed=1, callback_on_step_end=lambda pipe, step, timestep, kwargs: {"latents": kwargs["latents"] + 1})
    with pytest.raises(UserError, match="leave batch_size out"):
        masked(seed=1, batch_size=4, callback_on_step_end=print)


def test_a_progress_bar_is_switched_off_for_a_pipeline(pipeline, monkeypatch, capfd):
    monkeypatch.setattr(progress, "SHORT", 0.0)
    shown = []
    try:
        for disable in (False, True):
            pipeline.set_progress_bar_config(disable=disable, desc="digits of mine")
            pipeline(["3"], seed=1)
            shown.append("digits of mine" in capfd.readouterr().err)
    finally:
        pipeline.set_progress_bar_config()
    assert shown == [True, False]
    with pytest.raises(UserError, match="bars take disable, leave, desc, got colour"):
        pipeline.set_progress_bar_config(colour="red")


@pytest.mark.parametrize("output_type", ["pil", "np", "pt"])
def test_a_grid_is_of_what_a_pipeline_returns(pipeline, output_type):
    drawn = pipeline(num_images=6, seed=1, output_type=output_type)
    pictures = pipeline(num_images=6, seed=1).images
    assert np.array_equal(np.asarray(make_grid(drawn.images, 3)), np.asarray(make_grid(pictures, 3)))


def test_pictures_of_several_sizes_are_no_grid():
    with pytest.raises(UserError, match="all of one size and mode"):
        make_grid([PIL.Image.new("L", (8, 8)), PIL.Image.new("L", (9, 8))])


# ------------------------------------------------------------------------------------------------------ an animation


def test_an_animation_grows_code_by_code_to_the_images_that_are_drawn(run, accelerator):
    """A frame for each of the 16 places, and the finished images at last."""
    path = generate(Settings(run=str(run), num_images=4, seed=1, animation=True), accelerator)
    with PIL.Image.open(path / "growth.gif") as growing:
        assert growing.n_frames == 17
        first = np.asarray(growing.convert("L"))
        growing.seek(16)
        last = np.asarray(growing.convert("L"))
    assert ((np.abs(first.astype(int) - UNDRAWN) <= 4) | (first > 250)).all()
    with PIL.Image.open(path / "grid.png") as grid:
        assert np.abs(last.astype(int) - np.asarray(grid.convert("L"))).max() <= 4  # 255 colours for 256 greys
    assert generate(Settings(run=str(run), num_images=4, seed=1), accelerator) == path  # it is the same request


def test_an_animation_of_passes_shows_each(masked):
    *early, before, last = frames(masked, [3, 7], [0, 1])
    assert len(early) + 1 == 3 and torch.equal(before, last)
    assert (early[0] == UNDRAWN).any() and not (last == UNDRAWN).all()


def test_a_prior_that_draws_at_once_has_no_animation(pipeline):
    c = pipeline.prior.config.model_copy(update={"layout": Layout.of(2, 2, 2, factors=(16,))})
    with pytest.raises(UserError, match="is not drawn so: leave animation out"):
        check_grows(SimpleNamespace(prior=build_prior(c)))


def test_a_run_is_refused_for_the_pipeline_in_it_by_its_path(pipeline, tmp_path):
    pipeline.save_pretrained(tmp_path / "digits/pipeline")
    with pytest.raises(UserError, match=r"no .*digits/model_index\.json; give .*digits/pipeline, which lies in it"):
        ImagePipeline.from_pretrained(tmp_path / "digits")


def test_the_short_name_of_what_comes_with_the_package_is_explained(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError, match="did you mean smalti/digits, which comes with the package"):
        ImagePipeline.from_pretrained("digits")


def test_a_device_that_is_not_there_is_named(pipeline):
    with pytest.raises(UserError, match=r"cannot be moved to device nowhere: .*nowhere"):
        pipeline.to("nowhere")


def test_several_generators_are_refused_with_what_to_give(pipeline):
    with pytest.raises(UserError, match=r"must be one torch\.Generator, got list; .* give seed"):
        pipeline(labels=[1, 2], generator=[torch.Generator(), torch.Generator()])
