"""Settings from a file and from the command line are read strictly."""

import shlex
from pathlib import Path
from typing import Literal

import pytest

from smalti.common import config
from smalti.common.codes_info import TokenizerIdentity
from smalti.common.condition import Classes
from smalti.common.errors import UserError
from smalti.common.folder import read_json, write_json
from smalti.common.layout import Grid, Layout
from smalti.pipeline.generate import Settings as Generation
from smalti.prior.config import FitConfig, PriorConfig
from smalti.prior.config import TrainConfig as PriorTraining
from smalti.prior.model import build_prior, load_prior
from smalti.prior.sampling_config import SamplingConfig
from smalti.tokenizer.bottleneck.base import Quantizer
from smalti.tokenizer.bottleneck.config import BottleneckConfig, EMAVQConfig, FSQConfig, SingleConfig
from smalti.tokenizer.config import TrainConfig as TokenizerTraining
from smalti.tokenizer.encode import Settings as EncodeSettings
from smalti.tokenizer.encode import next_command
from smalti.tokenizer.patches.cluster_config import ClusterConfig
from smalti.tokenizer.vqvae.config import VQVAEConfig

CONFIGS = Path(__file__).resolve().parents[1] / "configs"
SHIPPED = sorted({path.parent.name for path in CONFIGS.glob("*/generate.yaml")})  # launch/ holds Accelerate's configs


def parse(*argv, cls=TokenizerTraining, **options):
    return config.parse(cls, "", [str(word) for word in argv], **options)


def written(folder: Path, text: str) -> Path:
    path = folder / "settings.yaml"
    path.write_text(text)
    return path


@pytest.mark.parametrize("name", SHIPPED)
def test_every_shipped_config_loads_and_its_stages_share_a_run(name):
    first = {"tokenizer.yaml": TokenizerTraining, "cluster.yaml": ClusterConfig}
    (tokenizer,) = (
        parse(CONFIGS / name / file, cls=cls) for file, cls in first.items() if (CONFIGS / name / file).exists()
    )
    second = {"prior.yaml": PriorTraining, "fit.yaml": FitConfig}
    (prior,) = (
        parse(CONFIGS / name / file, cls=cls) for file, cls in second.items() if (CONFIGS / name / file).exists()
    )
    assert tokenizer.run == prior.run == config.read_yaml(CONFIGS / name / "generate.yaml")["run"] == f"runs/{name}"


def test_a_file_overrides_defaults_and_the_command_line_overrides_both(tmp_path):
    path = written(tmp_path, "steps: 7\nlr: 1e-4\nmodel: {channels: [8, 16]}\n")
    for argv in ([path, "--steps", 9], ["--steps", 9, path], ["--steps=9", path]):
        c = parse(*argv)
        assert (c.steps, c.lr, c.model.channels, c.batch_size) == (9, 1e-4, (8, 16), 128)


def test_a_preset_on_the_command_line_takes_the_place_of_the_files_shape(tmp_path):
    """Otherwise the file's depth would win over the preset, although the command line comes first."""
    path = written(tmp_path, "model: {depth: 4, dim: 128, heads: 4, dropout: 0.3}\n")
    shape = parse(path, "--model.preset", "14m", "--model.heads", 12, cls=PriorTraining).model
    assert (shape.depth, shape.dim, shape.heads, shape.dropout) == (8, 384, 12, 0.3)


def test_dashes_and_underscores_are_alike():
    assert parse("--batch-size", 3) == parse("--batch_size", 3)


@pytest.mark.parametrize(
    "words, value", [([], "auto"), (["auto"], "auto"), (["true"], True), (["no"], False), (["--steps", 9], True)]
)
def test_a_yes_or_no_may_have_a_third_answer(words, value):
    """`--compile true` was read as the word `true` beside `auto`, and refused."""
    given = parse("--compile", *words, cls=PriorTraining) if words else parse(cls=PriorTraining)
    assert given.compile is value or given.compile == value == "auto"


def test_several_values_may_stand_apart_or_in_brackets():
    assert parse("--model.channels", 8, 16) == parse("--model.channels", "[8,16]")


def test_text_on_the_command_line_stays_text():
    """Class folders 0 to 11 sort as text: `--labels 2` means the class named 2, not the third. Names may contain
    commas."""
    given = ["2", "yes", "tench, Tinca tinca"]
    assert parse("runs/a", "--labels", *given, cls=Generation, positional="run").labels == tuple(given)
    assert parse("runs/a", "--labels", "[cat,dog]", cls=Generation, positional="run").labels == ("cat", "dog")
    assert parse("2024-02-30", cls=Generation, positional="run").run == "2024-02-30"


def test_hints_name_the_configs_beside_the_one_a_run_was_started_with(tmp_path, monkeypatch):
    monkeypatch.chdir(CONFIGS.parent)
    config.remember_folder(str(tmp_path), ["configs/emoji/tokenizer.yaml", "--steps", "3"], Path("unused"))
    assert config.config_beside(str(tmp_path), "prior") == "configs/emoji/prior.yaml"
    assert config.config_beside(str(tmp_path / "unknown"), "prior") == "CONFIG"


ONE_GRID = Layout.of(7, 7, factors=(16,))
TWO_GRIDS = Layout(grids=tuple(Grid(shape=(n, n), factors=(16,)) for n in (4, 7)))


@pytest.mark.parametrize(
    "folder, layout",
    [
        ("fashion_mnist_scales", ONE_GRID),
        ("imagenet256_vqvae2", ONE_GRID),
        ("fashion_mnist", ONE_GRID),
        ("fashion_mnist_sets", ONE_GRID),
        ("fashion_mnist_sets", TWO_GRIDS),
    ],
)
def test_the_command_after_encoding_trains_a_prior_over_as_many_grids_as_there_are(
    tmp_path, monkeypatch, folder, layout
):
    """A tokenizer with one scale was followed by its config's prior, which is of several grids and refuses one."""
    monkeypatch.chdir(CONFIGS.parent)
    config.remember_folder(str(tmp_path), [f"configs/{folder}/tokenizer.yaml"], Path("unused"))
    words = shlex.split(next_command(EncodeSettings(run=str(tmp_path)), layout))
    small = ["--model.depth", 1, "--model.dim", 32, "--model.heads", 2]
    c = parse(*words[words.index("prior/train.py") + 1 :], *small, cls=PriorTraining)
    told = {"condition": Classes(names=("a",)), "tokenizer": TokenizerIdentity(name="t", sha256="0" * 64)}
    assert build_prior(PriorConfig(layout=layout, architecture=c.model, **told)).config.layout == layout


def test_a_config_may_be_given_by_name_but_not_twice(tmp_path):
    path = written(tmp_path, "steps: 7")
    assert parse("--config", path).steps == 7
    with pytest.raises(UserError, match="the config is given twice"):
        parse(path, "--config", path)


def test_what_has_a_place_may_be_given_by_name_but_not_twice():
    assert parse("--run", "runs/a", cls=Generation, positional="run").run == "runs/a"
    with pytest.raises(UserError, match="run is given twice, as runs/b and as --run; keep one"):
        parse("runs/b", "--run", "runs/a", cls=Generation, positional="run")


def test_a_settings_kind_selects_its_class():
    c = parse("--model.quantizer.kind", "vq_ema", "--model.quantizer.decay", "0.9")
    assert isinstance(c.model.quantizer, EMAVQConfig) and c.model.quantizer.decay == 0.9


def test_another_kind_on_the_command_line_leaves_the_files_settings_that_it_has_not(tmp_path, capsys):
    path = written(tmp_path, "model: {quantizer: {kind: vq_ema, codebook_size: 64, decay: 0.9}}")
    assert parse(path, "--model.quantizer.kind", "vq").model.quantizer.codebook_size == 64
    named = "left out, as model.quantizer.kind vq has no such setting: model.quantizer.decay 0.9\n"
    assert capsys.readouterr().err == f"{path}: {named}", "which settings were left out is said"
    assert parse(path, "--model.quantizer.kind", "fsq").model.quantizer == FSQConfig()
    assert "model.quantizer.codebook_size 64, model.quantizer.decay 0.9" in capsys.readouterr().err
    stacked = parse(path, "--model.quantizer.kind", "residual", "--model.quantizer.each.codebook_size", "32")
    assert stacked.model.quantizer.each.codebook_size == 32


def test_a_kind_that_the_file_itself_misfits_is_refused(tmp_path):
    path = written(tmp_path, "model: {quantizer: {kind: fsq, codebook_size: 64}}")
    with pytest.raises(UserError, match=r"model.quantizer.codebook_size is a setting of another kind than fsq"):
        parse(path)


def test_a_config_survives_being_written_and_read(tmp_path):
    c = parse("--lr", "3e-4", "--model.quantizer.kind", "vq_ema", "--images.subset", "null")
    config.write_yaml(c, tmp_path / "copy.yaml")
    assert parse(tmp_path / "copy.yaml") == c


@pytest.mark.parametrize(
    "text, message",
    [
        ("modell: {}", "unknown setting modell; did you mean model"),
        (
            "model: {quantizer: {codebok_size: 4}}",
            "model.quantizer.codebok_size; did you mean model.quantizer.codebook_size",
        ),
        ("model: {quantizer: {kind: vq, codebook_size: 4.5}}", "model.quantizer.codebook_size .*integer.*got 4.5"),
        ("model: {quantizer: {kind: os.system}}", "model.quantizer.kind must be one of vq, .*fsq, .*got 'os.system'"),
        ("model: {quantizer: {kind: vqema}}", "got 'vqema'; did you mean vq_ema"),
        (
            "model: {quantizer: {kind: residual, each: {kind: residual}}}",
            "quantizer.each.kind must be one of vq, .* vq_ema",
        ),
        (
            "model: {quantizer: {kind: vq, each: {kind: vq}}}",
            "model.quantizer.each is a setting of another kind than vq",
        ),
        ("model: {quantizer: {kind: fsq, levels: [256, 256, 256, 2]}}", "make 33554432 codes, more than 2.24"),
        ("steps: '7'", "steps .*integer.*got '7'"),
        ("steps: 7\nsteps: 8", "line 2: steps is given twice"),
        ("lr: -1", "lr .*greater than 0"),
        ("lr: .nan", "nan"),
        ("steps: [1", "is not a YAML file"),
        ("- steps", "key: value"),
        ("steps: !!python/object/apply:os.getcwd []", "is not a YAML file"),
        (
            "model: {image_size: [30, 32], channels: [8, 8, 8]}",
            "height of 30 does not divide by the downsampling 4.*32 would",
        ),
        ("model: {image_size: [2, 2], patch: 4}", "smaller than the downsampling"),
    ],
)
def test_a_wrong_file_fails_with_the_files_name_and_the_full_key(tmp_path, text, message):
    path = written(tmp_path, text)
    with pytest.raises(UserError, match=message) as raised:
        parse(path)
    assert str(path) in str(raised.value) and "\n" not in str(raised.value)


@pytest.mark.parametrize(
    "argv, message",
    [
        (["--stepz", "3"], "unknown option --stepz; did you mean --steps"),
        (["--quantizer", "3"], "unknown option --quantizer"),
        (["--steps", "3", "--steps", "4"], "--steps is given twice"),
        (["--steps", "many"], "steps .*integer.*got 'many'"),
        (["--steps"], "expected 1 argument"),
        (["--seed", "99999999999999999999999"], "seed .*less than or equal to"),
        (["nowhere.yaml"], "there is no config file nowhere.yaml"),
        (["configs/digits/tokeniser.yaml"], "did you mean configs/digits/tokenizer.yaml"),
        (["a.yaml", "b.yaml"], "unexpected argument b.yaml"),
    ],
)
def test_a_wrong_command_line_fails_in_one_line(argv, message, monkeypatch):
    monkeypatch.chdir(CONFIGS.parent)
    with pytest.raises(UserError, match=message) as raised:
        parse(*argv)
    assert "\n" not in str(raised.value)


def test_help_shows_type_meaning_and_default_of_every_setting(capsys):
    with pytest.raises(SystemExit):
        parse("--help")
    shown = " ".join(capsys.readouterr().out.split())
    kinds = [kind.name() for kind in BottleneckConfig.members()]
    assert kinds[0] == "vq" and f"--model.quantizer.kind {' | '.join(kinds)}" in shown
    assert "--steps int optimizer steps (default: 1000)" in shown
    for key, field in config.leaves(TokenizerTraining):
        assert f"--{key} " in shown and field.description, key


def test_help_shows_the_values_of_a_setting_that_may_be_null(capsys):
    with pytest.raises(SystemExit):
        parse("--help", cls=SamplingConfig)
    shown = " ".join(capsys.readouterr().out.split())
    assert "--solver ddpm | ddim | euler | dpm of a diffusion prior" in shown and "--steps int" in shown


def test_the_same_strict_reader_reads_a_saved_models_config(tmp_path):
    write_json(tmp_path / "config.json", {"image_size": [16, 16], "widths": [8]})
    with pytest.raises(UserError, match=r"config\.json: unknown setting widths"):
        config.build(VQVAEConfig, read_json(tmp_path / "config.json"), str(tmp_path / "config.json"))


@pytest.mark.parametrize(
    "change, told",
    [
        ({"layout": ...}, "layout must be given, and is not there"),
        (
            {"condition": {"kind": "class", "names": None}},
            "condition.names takes a list of values, got none; write [VALUE]",
        ),
        (
            {"condition": {"kind": "class"}},
            "condition.names must be given, and is not there: it was changed or is damaged; the command that wrote it "
            "writes it again",
        ),
        (
            {"condition": {"kind": "class", "names": "cat"}},
            "condition.names takes a list of values, got cat; write [cat]",
        ),
    ],
)
def test_what_is_wrong_in_a_file_that_a_program_wrote_is_told_without_options(prior, tmp_path, change, told):
    """No command has an option --condition.names, and `write --condition.names None` named no value either."""
    prior.save_pretrained(tmp_path)
    said = {name: value for name, value in (read_json(tmp_path / "config.json") | change).items() if value is not ...}
    write_json(tmp_path / "config.json", said)
    with pytest.raises(UserError) as raised:
        load_prior(tmp_path)
    assert str(raised.value) == f"{tmp_path}/config.json: {told}"


def test_no_value_where_several_are_wanted_is_told_with_their_number(tmp_path):
    with pytest.raises(
        UserError, match=r"takes 2 values, got none; write --model.image_size VALUE VALUE, or in a file"
    ):
        parse(written(tmp_path, "model: {image_size: null}"))


def test_sampling_settings_are_checked():
    for wrong in ({"temperature": 0.0}, {"top_k": 0}, {"top_p": 1.5}, {"guidance": -1.0}):
        with pytest.raises(UserError, match=next(iter(wrong))):
            config.build(SamplingConfig, wrong, "sampling")


@pytest.mark.parametrize("zero", [0, 0.0, "0"])
def test_a_temperature_of_zero_is_told_what_takes_the_likeliest_code(zero):
    with pytest.raises(UserError, match="give top_k 1 for the likeliest code each time"):
        config.build(SamplingConfig, {"temperature": zero}, "sampling")


def test_the_largest_preset_has_the_shapes_it_promises():
    """It is built without memory: 343 million weights of prior over 16 x 16 codes of a 256 x 256 tokenizer."""
    import torch

    from smalti.common.codes_info import CodesInfo, TokenizerIdentity
    from smalti.prior.transformer.model import TransformerPrior
    from smalti.tokenizer.vqvae.model import VQVAE

    stage_one = parse(CONFIGS / "imagenet256/tokenizer.yaml")
    stage_two = parse(CONFIGS / "imagenet256/prior.yaml", cls=PriorTraining)
    assert stage_one.model.grid == (16, 16)
    info = CodesInfo(
        layout=stage_one.model.layout,
        views=1,
        condition=Classes(names=tuple(map(str, range(1000)))),
        tokenizer=TokenizerIdentity(name="x", sha256="0" * 64),
        source={},
        shard_size=1,
    )
    with torch.device("meta"):
        images = torch.empty(2, 3, 256, 256)
        reconstruction = VQVAE(stage_one.model).decoder(torch.empty(2, 8, 16, 16))
        prior = TransformerPrior(PriorConfig.over(info, stage_two.model))
        logits = prior(torch.zeros(2, dtype=torch.int64), torch.zeros(2, 256, dtype=torch.int64))
    assert reconstruction.shape == images.shape and logits.shape == (2, 256, 16384)
    assert 330e6 < sum(p.numel() for p in prior.parameters()) < 350e6


def test_the_largest_masked_preset_has_the_shapes_it_promises():
    """It is built without memory: the 24 blocks of 768 channels of MaskGIT, over 16 x 16 codes."""
    import torch

    from smalti.common.codes_info import TokenizerIdentity
    from smalti.prior.model import build_prior

    layout = parse(CONFIGS / "imagenet256_masked/tokenizer.yaml").model.layout
    architecture = parse(CONFIGS / "imagenet256_masked/prior.yaml", cls=PriorTraining).model
    condition, identity = Classes(names=tuple(map(str, range(1000)))), TokenizerIdentity(name="x", sha256="0" * 64)
    with torch.device("meta"):
        prior = build_prior(
            PriorConfig(layout=layout, condition=condition, tokenizer=identity, architecture=architecture)
        )
        codes = torch.zeros(2, 256, dtype=torch.int64)
        logits = prior(torch.zeros(2, dtype=torch.int64), codes, codes > 0)
    assert logits.shape == (2, 256, 16384)
    assert 190e6 < sum(p.numel() for p in prior.parameters()) < 210e6


def test_the_largest_diffusion_preset_has_the_shapes_it_promises():
    """It is built without memory: a prior of the shape of DiT-B over 16 x 16 vectors of a 256 x 256 VAE."""
    import torch

    from smalti.common.codes_info import CodesInfo, TokenizerIdentity
    from smalti.common.latent_statistics import unit_statistics
    from smalti.prior.diffusion.model import DiffusionPrior
    from smalti.tokenizer.vae.model import VAE

    stage_one = parse(CONFIGS / "imagenet256_diffusion/tokenizer.yaml")
    stage_two = parse(CONFIGS / "imagenet256_diffusion/prior.yaml", cls=PriorTraining)
    layout = stage_one.model.layout
    assert str(layout) == "16 x 16 vectors of 16"
    info = CodesInfo(
        layout=layout,
        views=1,
        condition=Classes(names=tuple(map(str, range(1000)))),
        tokenizer=TokenizerIdentity(name="x", sha256="0" * 64),
        source={},
        shard_size=1,
        statistics=unit_statistics(layout),
    )
    with torch.device("meta"):
        images = VAE(stage_one.model).decode(torch.empty(2, layout.length))
        prior = DiffusionPrior(PriorConfig.over(info, stage_two.model))
        predicted = prior(torch.empty(2, layout.length), torch.empty(2), torch.zeros(2, dtype=torch.int64))
    assert images.shape == (2, 3, 256, 256) and predicted.shape == (2, layout.length)
    assert 120e6 < sum(p.numel() for p in prior.parameters()) < 135e6


def test_a_kind_that_is_a_list_is_refused_by_name():
    """A list has no hash, so looking it up among the kinds raised a TypeError; test_torture found it."""

    class Holder(config.Settings):
        quantizer: BottleneckConfig

    with pytest.raises(UserError, match=r"quantizer\.kind must be one of .*, got"):
        config.build(Holder, {"quantizer": {"kind": ["vq"]}}, "here")


class DigitConfig(SingleConfig):
    """A quantizer of one digit, declared here alone."""

    @property
    def dim(self) -> int:
        return 1

    @property
    def factors(self) -> tuple[int, ...]:
        return (2,)


def test_a_kind_is_never_taken_by_a_second_class():
    """A copied file with its kind left as it was replaced the shipped kind, and trained in its place."""

    class SecondConfig(DigitConfig):
        kind: Literal["lfq"] = "lfq"

    with pytest.raises(ValueError, match=r"SecondConfig has the kind 'lfq', which is that of smalti.*LFQConfig"):
        SecondConfig.register(type("Second", (), {}))
    assert BottleneckConfig.kinds["lfq"].__name__ == "LFQConfig"


def test_a_kind_without_a_method_of_its_contract_is_refused_where_it_is_declared():
    class HalfConfig(SingleConfig):
        kind: Literal["half"] = "half"

    class WholeConfig(DigitConfig):
        kind: Literal["half"] = "half"

    class Half(Quantizer):
        def quantize(self, z_e):
            return z_e

    with pytest.raises(TypeError, match="HalfConfig must have dim, factors"):
        HalfConfig.register(Half)
    with pytest.raises(TypeError, match="Half must have lookup"):
        WholeConfig.register(Half)
    assert "half" not in BottleneckConfig.kinds


def test_settings_of_tables_in_tables_are_looked_through_once(monkeypatch):
    """Each table of kinds was looked through anew for each of its settings: with four tables in one, a command took
    nine seconds to read its options."""
    looked = []
    monkeypatch.setattr(config, "_nested", lambda annotation, real=config._nested: looked.append(1) or real(annotation))
    found = list(config.leaves(TokenizerTraining))
    assert len(found) < len(looked) < 20 * len(found)  # once for a setting of each kind, and for what its type is of


@pytest.mark.parametrize("name, places, weights", [("scales", 680, (260e6, 330e6)), ("vqvae2", 5120, (560e6, 580e6))])
def test_the_largest_presets_of_several_grids_have_the_shapes_they_promise(name, places, weights):
    """They are built without memory: VAR's ten grids up to 16 x 16 by a prior of the shape of VAR-d16, and 32 x 32
    codes over 64 x 64 by a prior a grid."""
    import torch

    from smalti.common.codes_info import TokenizerIdentity
    from smalti.prior.model import build_prior
    from smalti.tokenizer.model import build_tokenizer

    model = parse(CONFIGS / f"imagenet256_{name}/tokenizer.yaml").model
    architecture = parse(CONFIGS / f"imagenet256_{name}/prior.yaml", cls=PriorTraining).model
    condition, identity = Classes(names=tuple(map(str, range(1000)))), TokenizerIdentity(name="x", sha256="0" * 64)
    with torch.device("meta"):
        decoded = build_tokenizer(model).decoder(torch.empty(2, model.vectors, *model.grid))
        prior = build_prior(
            PriorConfig(layout=model.layout, condition=condition, tokenizer=identity, architecture=architecture)
        )
        codes = torch.zeros(2, model.layout.length, dtype=torch.int64)
        nll = prior.loss(codes, torch.zeros(2, dtype=torch.int64), prior)
    assert decoded.shape == (2, 3, 256, 256) and nll.shape == (2, places)
    assert weights[0] < sum(p.numel() for p in prior.parameters()) < weights[1]
