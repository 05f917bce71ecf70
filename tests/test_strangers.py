"""Strangers' files: nothing in them is unpickled or imported, and oversized claims are refused by name."""

import contextlib
import json
import os
import pickle
import re
import shutil
from pathlib import Path

import PIL.Image
import pytest
import torch
import yaml
from safetensors.torch import load_file, save_file

from smalti.common import codes, config, state
from smalti.common.config import config_beside
from smalti.common.errors import UserError
from smalti.common.folder import inside, read_json, sha256
from smalti.common.reading import read_file
from smalti.common.run_folder import read_metrics
from smalti.pipeline.compress import read_bytes
from smalti.pipeline.generate import Settings as Generation
from smalti.pipeline.generate import generate
from smalti.pipeline.image_pipeline import ImagePipeline
from smalti.pipeline.reporting.codebook_section import read_histogram
from smalti.pipeline.reporting.run_contents import read_run_picture
from smalti.prior.config import TrainConfig as PriorTraining
from smalti.prior.model import load_prior
from smalti.prior.train import train as train_prior
from smalti.prior.transformer.config import TransformerConfig
from smalti.tokenizer.bottleneck.base import build_quantizer
from smalti.tokenizer.bottleneck.config import VQConfig
from smalti.tokenizer.codebooks.upkeep import CodebookUpkeep
from smalti.tokenizer.config import TrainConfig
from smalti.tokenizer.model import load_tokenizer
from smalti.tokenizer.train import train as train_tokenizer
from tests.conftest import prior_training, tokenizer_training

TAG = "!!python/object/apply:os.mkdir"  # YAML that creates a folder


WIDE = TransformerConfig(depth=1, heads=2).model_dump(mode="json")  # but for its width


class Planted:
    """Create a file when unpickled."""

    def __init__(self, mark: Path):
        self.mark = mark

    def __reduce__(self):
        return Path.touch, (self.mark,)


@pytest.fixture(scope="module")
def generated(finished_run, tmp_path_factory, accelerator) -> Path:
    """Return a run with a pipeline folder."""
    run = shutil.copytree(finished_run, tmp_path_factory.mktemp("strangers") / "run")
    generate(Generation(run=str(run), num_images=2), accelerator)
    return run


def read_all_of(name: Path, run: Path, accelerator) -> None:
    """Read whatever a file of a run is part of, and draw with the whole run; each reader refuses or reads, and does
    nothing else."""
    readers = [
        ("tokenizer/model", lambda: load_tokenizer(run / "tokenizer/model")),
        ("prior/model", lambda: load_prior(run / "prior/model")),
        ("pipeline", lambda: ImagePipeline.from_pretrained(run / "pipeline")),
        ("codes", lambda: codes.load_codes(run / "codes")),
        ("tokenizer", lambda: state.latest(run / "tokenizer", accelerator)),
        ("prior", lambda: state.latest(run / "prior", accelerator)),
        ("tokenizer", lambda: config.build(TrainConfig, config.read_yaml(run / "tokenizer/config.yaml"), "config")),
        ("prior", lambda: config.build(PriorTraining, config.read_yaml(run / "prior/config.yaml"), "config")),
        (".", lambda: generate(Generation(run=str(run), num_images=2), accelerator)),
    ]
    for folder, reader in readers:
        if name.is_relative_to(folder) or folder == ".":
            with contextlib.suppress(UserError):
                reader()


@pytest.mark.parametrize("kind", ["pickle", "torch", "yaml"])
def test_nothing_planted_in_any_file_of_a_run_is_executed(generated, tmp_path, accelerator, kind):
    mark = tmp_path / "executed"
    planted = tmp_path / "planted"
    if kind == "pickle":
        planted.write_bytes(pickle.dumps(Planted(mark)))
    elif kind == "torch":
        torch.save(Planted(mark), planted)
    else:
        planted.write_text(f"run: {TAG} ['{mark}']\n")
    files = [path.relative_to(generated) for path in generated.rglob("*") if path.is_file() and path.suffix != ".png"]
    run = shutil.copytree(generated, tmp_path / "run")
    assert len(files) > 25
    for name in files:
        (run / name).write_bytes(planted.read_bytes())
        read_all_of(name, run, accelerator)
        for path in run.rglob("*.damaged"):  # damaged states that were set aside
            shutil.move(path, path.with_suffix(""))
        shutil.copyfile(generated / name, run / name)
    assert not mark.exists()


def test_what_is_planted_does_run_where_it_is_unpickled(tmp_path):
    """The test above can fail."""
    pickle.loads(pickle.dumps(Planted(tmp_path / "executed")))
    assert (tmp_path / "executed").exists()
    yaml.load(f"{TAG} ['{tmp_path / 'again'}']", yaml.UnsafeLoader)
    assert (tmp_path / "again").exists()


@pytest.mark.parametrize(
    "part, change, message",
    [
        (
            "prior",
            {"architecture": {"depth": 10**9, "dim": 16, "heads": 2}},
            "architecture.depth .*less than or equal to 512",
        ),
        ("prior", {"architecture": {**WIDE, "dim": 32768}}, r"must be \(16384,\), got \(8,\)"),
        (
            "prior",
            {"layout": {"grids": [{"shape": [4096, 4096], "factors": [16]}]}},
            "are 16777216 numbers, at most 65536",
        ),
        ("tokenizer", {"image_size": [0, 8]}, "image_size.* greater than or equal to 1"),
        ("tokenizer", {"channels": [8, 16384]}, r"must be \(.*\), got \("),
        ("tokenizer", {"blocks": 10**12}, "blocks .*less than or equal to 256"),
    ],
)
def test_a_config_that_claims_an_absurd_size_is_refused_before_memory_is_taken(
    generated, tmp_path, part, change, message
):
    """The tensors of the file are compared with the config before any is allocated."""
    model = shutil.copytree(generated / part / "model", tmp_path / "model")
    path = model / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | change))
    with pytest.raises(UserError, match=message):
        load_prior(model) if part == "prior" else load_tokenizer(model)


def test_a_safetensors_header_that_claims_an_absurd_size_is_refused(generated, tmp_path):
    model = shutil.copytree(generated / "prior/model", tmp_path / "model")
    weights = model / "model.safetensors"
    for header in (b"\xff" * 8, (2**40).to_bytes(8, "little"), (60).to_bytes(8, "little")):
        weights.write_bytes(header + b'{"a":{"dtype":"F32","shape":[1099511627776],"data_offsets":[0,4398046511104]}}')
        with pytest.raises(UserError, match=r"model\.safetensors is damaged"):
            load_prior(model)


def test_a_class_that_is_not_ours_is_refused_by_name(generated, tmp_path):
    pipeline = shutil.copytree(generated / "pipeline", tmp_path / "pipeline")
    path = pipeline / "model_index.json"
    whole = json.loads(path.read_text())
    path.write_text(json.dumps(whole | {"_class_name": "os.system"}))
    with pytest.raises(UserError, match=r"_class_name must be ImagePipeline, got 'os\.system'"):
        ImagePipeline.from_pretrained(pipeline)
    path.write_text(json.dumps(whole | {"prior": ["os", "system"]}))
    ours = r"smalti\.prior\.\S+Prior"
    told = rf"prior must be {ours}( or {ours})+, got \['os', 'system'\]; nothing else is imported"
    with pytest.raises(UserError, match=told):
        ImagePipeline.from_pretrained(pipeline)


def changed_weights(model: Path, change) -> Path:
    """Change the first tensor of a model folder, and return the folder."""
    weights = load_file(model / "model.safetensors")
    name = sorted(weights)[0]
    save_file({**weights, name: change(weights[name])}, model / "model.safetensors")
    return model


@pytest.mark.parametrize("dtype", [torch.int64, torch.bool, torch.uint8, torch.complex64, torch.float8_e4m3fn])
@pytest.mark.parametrize("part", ["tokenizer", "prior"])
def test_weights_of_a_type_that_no_weight_has_are_refused_by_name(generated, tmp_path, part, dtype):
    """`load_state_dict` converts any number into any other: weights of zeros and ones became a model that drew
    noise."""
    model = shutil.copytree(generated / part / "model", tmp_path / "model")
    changed_weights(model, lambda tensor: tensor.to(dtype))
    got = {torch.complex64: "C64", torch.float8_e4m3fn: "F8_E4M3"}.get(dtype, str(dtype).removeprefix("torch."))
    with pytest.raises(
        UserError, match=rf"model\.safetensors .*: \S+ must be float32 \(float16, .* converted\), got {got}; "
    ):
        load_prior(model) if part == "prior" else load_tokenizer(model)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_weights_of_another_floating_type_are_converted(generated, tmp_path, dtype):
    model = shutil.copytree(generated / "prior/model", tmp_path / "model")
    changed_weights(model, lambda tensor: tensor.to(dtype))
    name, expected = sorted(load_file(model / "model.safetensors").items())[0]
    found = load_prior(model).state_dict()[name]
    assert found.dtype == torch.float32 and torch.equal(found, expected.float())


@pytest.mark.parametrize("number", [float("nan"), float("inf"), 1e300])
def test_weights_that_are_no_finite_numbers_are_refused_by_name(generated, tmp_path, number):
    """1e300 is finite in fp64, and not in fp32."""
    model = shutil.copytree(generated / "prior/model", tmp_path / "model")
    changed_weights(model, lambda tensor: torch.full_like(tensor.double(), number))
    with pytest.raises(
        UserError, match=r"\S+ must be of finite numbers, and has NaN or Inf; the command that trained it"
    ):
        load_prior(model)


@pytest.mark.parametrize(
    "stage, name",
    [
        ("tokenizer", "model"),
        ("tokenizer", "ema"),
        ("tokenizer", "optimizer"),
        ("tokenizer", "upkeep"),
        ("prior", "model"),
        ("prior", "ema"),
        ("prior", "adamw"),
        ("prior", "best"),
    ],
)
def test_a_state_of_numbers_of_another_type_is_refused_where_a_run_goes_on(
    finished_run, tmp_path, accelerator, stage, name
):
    """The state has valid checksums, as a stranger would write them."""
    run = shutil.copytree(finished_run, tmp_path / "run")
    saved = state.latest(run / stage, accelerator)
    tensors = {**saved.tensors, name: {key: tensor.to(torch.int64) for key, tensor in saved.tensors[name].items()}}
    state.save_state(run / stage, saved.step, tensors, saved.info, accelerator)
    training = {"tokenizer": (train_tokenizer, tokenizer_training), "prior": (train_prior, prior_training)}
    train, settings = training[stage]
    with pytest.raises(UserError, match=r"the state in .* does not fit this run \((ValueError|RuntimeError): .*"):
        train(settings(run), accelerator)


@pytest.mark.parametrize(
    "change",
    [
        lambda tensors: {**tensors, "0.use": tensors["0.use"][:1]},  # broadcasting would repeat it
        lambda tensors: {name: tensor for name, tensor in tensors.items() if name != "0.sums"},
    ],
)
def test_a_codebooks_statistics_of_other_names_or_shapes_are_refused(change):
    upkeep = CodebookUpkeep(build_quantizer(VQConfig(codebook_size=4, code_dim=2)).tables(), revive_below=0.1)
    whole = {f"0.{name}": getattr(upkeep.tables[0], name).clone() for name in ("use", "window", "counts", "sums")}
    upkeep.load_state_dict(whole)
    with pytest.raises((KeyError, ValueError)):
        upkeep.load_state_dict(change(whole))


@pytest.mark.parametrize("file", ["config.json", "model.safetensors"])
def test_a_link_that_leaves_a_model_folder_is_refused(generated, tmp_path, file):
    model = shutil.copytree(generated / "prior/model", tmp_path / "model")
    shutil.move(model / file, tmp_path / file)
    (model / file).symlink_to(tmp_path / file)
    with pytest.raises(UserError, match=f"{file} is a link that leaves its folder"):
        load_prior(model)


def test_a_link_that_leaves_a_codes_folder_is_refused(generated, tmp_path):
    found = shutil.copytree(generated / "codes", tmp_path / "codes")
    shard = sorted(found.glob("*.parquet"))[0]
    shutil.move(shard, tmp_path / "elsewhere.parquet")
    shard.symlink_to(tmp_path / "elsewhere.parquet")
    with pytest.raises(UserError, match="is a link that leaves its folder"):
        codes.load_codes(found)


@pytest.mark.parametrize("file", ["tokenizer/config.json", "prior/model.safetensors", "model_index.json"])
def test_a_pipe_in_the_place_of_a_file_is_refused_and_not_waited_for(generated, tmp_path, file):
    folder = shutil.copytree(generated / "pipeline", tmp_path / "pipeline")
    (folder / file).unlink()
    os.mkfifo(folder / file)
    with pytest.raises(UserError, match="is no file but a device or a pipe"):
        ImagePipeline.from_pretrained(folder)


READERS = {  # readers of every other kind of file in a run
    "codes/codes.json": lambda run: codes.load_codes(run / "codes"),
    "tokenizer/config.yaml": lambda run: config.read_yaml(run / "tokenizer/config.yaml"),
    "tokenizer/metrics.jsonl": lambda run: read_metrics(run / "tokenizer/metrics.jsonl"),
    "tokenizer/histogram.json": lambda run: read_histogram(run / "tokenizer/histogram.json"),
    "tokenizer/reconstructions.png": lambda run: read_run_picture(run / "tokenizer/reconstructions.png"),
    "prior/model/model.safetensors": lambda run: sha256(run / "prior/model/model.safetensors"),
    "compressed.tess": lambda run: read_bytes(run / "compressed.tess"),
}


@pytest.mark.parametrize("kind", ["pipe", "device", "folder"])
@pytest.mark.parametrize("name", READERS)
def test_no_reader_of_a_run_waits_for_a_pipe_or_reads_a_device_to_its_end(tmp_path, name, kind):
    """A reader of /dev/zero took 1.6 GiB before it was killed, and a reader of a pipe waits for ever."""
    path = tmp_path / name
    path.parent.mkdir(parents=True, exist_ok=True)
    if kind == "pipe":
        os.mkfifo(path)
    elif kind == "device":
        path.symlink_to("/dev/zero")
    else:
        path.mkdir()
    with pytest.raises(UserError, match=re.escape(path.name)):
        READERS[name](tmp_path)


def test_a_hint_heeds_no_note_of_a_stranger_on_where_configs_stand(tmp_path):
    """A run records its config's folder in `.configs`; if a pipe takes its place, no reader waits for it."""
    os.mkfifo(tmp_path / ".configs")
    assert config_beside(str(tmp_path), "prior") == "CONFIG"
    for note in ("x" * 5000, "y" * 2000, "a\x1b[2Jb", "\0"):
        (tmp_path / ".configs").unlink()
        (tmp_path / ".configs").write_text(note)
        assert config_beside(str(tmp_path), "prior") == "CONFIG"


def test_a_file_that_says_it_is_empty_is_read_to_the_bound_and_no_further():
    """Files in /proc report no size until they are read."""
    with pytest.raises(ValueError, match="it has more than 8 bytes"):
        read_file(Path("/proc/self/environ" if os.path.exists("/proc/self/environ") else "/etc/hosts"), 8)


def test_a_picture_of_a_run_that_is_a_link_to_somebodys_else_is_not_shown(tmp_path):
    """A report embeds its pictures, so a stranger's link to a private picture would give it to every reader."""
    PIL.Image.new("L", (8, 8)).save(tmp_path / "private.png")
    (tmp_path / "run/tokenizer").mkdir(parents=True)
    (tmp_path / "run/tokenizer/reconstructions.png").symlink_to(tmp_path / "private.png")
    with pytest.raises(UserError, match="is a link that leaves its folder"):
        read_run_picture(tmp_path / "run/tokenizer/reconstructions.png")


def test_links_in_a_circle_and_names_too_long_for_a_disk_are_refused(generated, tmp_path):
    folder = shutil.copytree(generated / "pipeline", tmp_path / "pipeline")
    shutil.rmtree(folder / "tokenizer")
    (folder / "tokenizer").symlink_to("tokenizer")
    with pytest.raises(UserError, match="cannot be followed"):
        ImagePipeline.from_pretrained(folder)
    with pytest.raises(UserError, match=r"there is no folder a+\.\.\.: File name too long"):
        ImagePipeline.from_pretrained("a" * 300 + "/b")


def test_the_hubs_cache_may_link_to_its_own_files_and_a_folder_may_be_a_link(generated, tmp_path):
    """`snapshot_download` lays a model out as links into the blobs beside the snapshots."""
    snapshot, blobs = tmp_path / "models--a--b/snapshots/1f", tmp_path / "models--a--b/blobs"
    snapshot.mkdir(parents=True)
    blobs.mkdir()
    for name in ("config.json", "model.safetensors"):
        shutil.copy(generated / "prior/model" / name, blobs / name)
        (snapshot / name).symlink_to(blobs / name)
    load_prior(snapshot)
    (tmp_path / "mine").symlink_to(generated / "prior/model")
    load_prior(tmp_path / "mine")
    (snapshot / "secret").symlink_to(generated / "prior/model/config.json")
    with pytest.raises(UserError, match="leaves its folder"):
        inside(snapshot, "secret")


def test_yaml_that_would_grow_without_bound_is_refused(tmp_path):
    """Nine lines of aliases expand to a billion values."""
    lines = ["a0: &a0 [x, x, x, x, x, x, x, x, x, x]"]
    lines += [f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 10)}]" for i in range(1, 9)]
    (tmp_path / "config.yaml").write_text("\n".join(lines))
    with pytest.raises(UserError, match=r"config\.yaml, line 2: no aliases"):
        config.read_yaml(tmp_path / "config.yaml")


def test_files_of_absurd_length_are_refused_unread(tmp_path):
    for name, size, read in (("a.json", 2**29, read_json), ("a.yaml", 2**21, config.read_yaml)):
        with open(tmp_path / name, "wb") as file:
            file.truncate(size)  # it takes no disk space
        with pytest.raises(UserError, match=f"has {size:,} bytes"):
            read(tmp_path / name)


def test_codes_that_claim_more_rows_than_memory_are_refused_before_it_is_taken(generated, tmp_path):
    found = shutil.copytree(generated / "codes", tmp_path / "codes")
    path = found / "codes.json"
    written = json.loads(path.read_text())
    written["splits"]["test"]["rows"] = 10**15
    path.write_text(json.dumps(written))
    with pytest.raises(UserError, match=r"split test must have 1000000000000000 rows, got \d+"):
        codes.load_codes(found)
    written["splits"] = {"../../test": {"rows": 1}}
    path.write_text(json.dumps(written))
    with pytest.raises(UserError, match=r"a split's name must be .*, got '\.\./\.\./test'"):
        codes.load_codes(found)


def test_a_state_of_another_model_is_refused(finished_run, tmp_path, accelerator):
    """The state has valid checksums, as a stranger would write them."""
    state.save_state(tmp_path, 3, {"model": {"weight": torch.zeros(2, 2)}}, {"data": "x"}, accelerator)
    saved = state.latest(tmp_path, accelerator)
    with pytest.raises(UserError, match=r"does not fit this run \(KeyError: 'ema'\)"), state.restoring(tmp_path):
        saved.tensors["ema"]
    save_file({"weight": torch.zeros(1)}, tmp_path / "state/step_00000003/model.safetensors")
    with pytest.raises(UserError, match="no state"):
        state.latest(tmp_path, accelerator)
