"""A run recognises its data: every reader notices other images, codes or folders than those of its training."""

import json
import os
import shutil
from pathlib import Path

import numpy as np
import pytest

from smalti.common import codes, folder
from smalti.common.codes import CodesSplit
from smalti.common.codes_info import CodesInfo, TokenizerIdentity
from smalti.common.condition import Classes
from smalti.common.data.config import ImagesConfig
from smalti.common.data.run_images import open_run_images, open_vouched_images, recorded, where_they_lay
from smalti.common.errors import UserError
from smalti.common.layout import Layout
from smalti.pipeline.compress import Settings as CompressSettings
from smalti.pipeline.compress import read_pictures
from smalti.pipeline.image_pipeline import ImagePipeline
from smalti.pipeline.reporting import completion_section
from smalti.pipeline.reporting.run_contents import gather
from smalti.prior.config import PriorConfig
from smalti.prior.data import tell_of_other_codes
from smalti.prior.sampling_config import SamplingConfig
from smalti.prior.transformer.config import TransformerConfig
from smalti.tokenizer.cluster import cluster
from smalti.tokenizer.codebook import Settings as CodebookSettings
from smalti.tokenizer.codebook import examine
from smalti.tokenizer.encode import Settings as EncodeSettings
from smalti.tokenizer.encode import encode
from smalti.tokenizer.evaluate import Settings as EvaluateSettings
from smalti.tokenizer.evaluate import evaluate
from smalti.tokenizer.kmeans.config import KMeansConfig
from smalti.tokenizer.patches.cluster_config import ClusterConfig
from smalti.tokenizer.train import train
from tests.conftest import tokenizer_training
from tests.test_images import FILES, file_of, opened, pixels, write


@pytest.fixture
def pictures(tmp_path) -> Path:
    return write(tmp_path / "a/pics", {f"{i:03d}.png": file_of(pixels(i, (8, 8))[..., 0]) for i in range(24)})


def trained_on(pictures: Path, accelerator) -> Path:
    """Train a run beside the pictures, named by a relative path; the working directory stays there."""
    os.chdir(pictures.parent)
    settings = tokenizer_training(
        Path("r"), images=ImagesConfig(source="pics"), steps=2, batch_size=4, evaluate_every=2
    )
    train(settings, accelerator)
    return pictures.parent / "r"


@pytest.fixture(scope="module")
def shared(tmp_path_factory, accelerator) -> Path:
    """Return a run that is trained once, for tests to copy."""
    before = Path.cwd()
    files = {f"{i:03d}.png": file_of(pixels(i, (8, 8))[..., 0]) for i in range(24)}
    yield trained_on(write(tmp_path_factory.mktemp("shared") / "pics", files), accelerator)
    os.chdir(before)


@pytest.fixture
def run(shared, pictures, monkeypatch) -> Path:
    """Return a run trained on the pictures; the test works in the folder of both."""
    run = pictures.parent / "r"
    shutil.copytree(shared, run)
    record = folder.read_json(run / "tokenizer/images.json")
    folder.write_json(run / "tokenizer/images.json", {**record, "place": str(pictures)})
    monkeypatch.chdir(pictures.parent)
    return run


def read(run: Path):
    return open_run_images(run / "tokenizer", tokenizer_training(run).model)


# -------------------------------------------------------------------------------------------------- every byte is seen


def test_a_change_of_any_file_changes_the_fingerprint_even_at_its_old_size_and_time(tmp_path):
    """744 of 1,000 files changed between a kill and the resumption unnoticed: 256 rows were sampled."""
    source = write(tmp_path / "set", {f"{i:03d}.png": file_of(pixels(i, (2, 2))) for i in range(600)})
    before = opened(source).fingerprint
    for number in (0, 1, 301, 599):
        path = source / f"{number:03d}.png"
        kept, times = path.read_bytes(), path.stat()
        path.write_bytes(kept[:-1] + b"\0")  # the last chunk's checksum, which PIL does not check
        os.utime(path, ns=(times.st_atime_ns, times.st_mtime_ns))
        assert opened(source).fingerprint != before and opened(source, memory=0.0).fingerprint != before
        path.write_bytes(kept)
    assert opened(source).fingerprint == before


def test_a_renamed_folder_or_other_times_are_the_same_images(tmp_path):
    source = write(tmp_path / "set", {f"{i}.png": FILES[i] for i in range(6)})
    before = opened(source).fingerprint
    os.utime(source / "3.png", (0, 0))
    assert opened(source.rename(tmp_path / "other")).fingerprint == before


def test_files_that_cannot_be_read_have_their_place_in_the_fingerprint(tmp_path):
    damaged = write(tmp_path / "a", {f"{i}.png": FILES[i] for i in range(6)} | {"6.png": b"damaged"})
    before = opened(damaged, corrupt="skip").fingerprint
    (damaged / "6.png").write_bytes(b"otherwise")
    assert opened(damaged, corrupt="skip").fingerprint != before
    assert opened(damaged, corrupt="skip").fingerprint == opened(damaged, corrupt="skip", memory=0.0).fingerprint


def test_a_file_that_is_changed_while_it_is_read_batch_by_batch_is_seen_at_its_old_size(tmp_path):
    source = write(tmp_path / "set", {f"{i}.png": FILES[0] for i in range(6)})
    split = opened(source, memory=0.0).splits["train"]
    for path in source.iterdir():
        path.write_bytes(FILES[0][:-1] + b"\0")
    with pytest.raises(UserError, match=r"row \d+: .*is another file than when the set was opened"):
        split.read([0])


# ---------------------------------------------------------------------------------------------- the images of a run


def test_ten_new_files_are_refused_by_whoever_reads_the_images_of_a_run(run, pictures, accelerator):
    """encode and evaluate said nothing, and validation then held images from training."""
    for i in range(10):
        (pictures / f"0new{i}.png").write_bytes(file_of(pixels(100 + i, (8, 8))[..., 0]))
    before = (run / "tokenizer/images.json").read_bytes()
    readers = [
        lambda: encode(EncodeSettings(run=str(run), precision="fp32"), accelerator),
        lambda: evaluate(EvaluateSettings(run=str(run)), accelerator),
        lambda: examine(CodebookSettings(run=str(run)), accelerator),
    ]
    for reader in readers:
        with pytest.raises(
            UserError, match=r"are not those that .* was trained with \(fingerprint \w{12} then, \w{12} now\)"
        ):
            reader()
    with pytest.raises(UserError, match="they have changed since it began"):
        trained_on(pictures, accelerator)
    assert (run / "tokenizer/images.json").read_bytes() == before
    assert not (run / "codes").exists() and not (run / "evaluation").exists()


def test_changed_images_are_encoded_where_they_are_given_as_another_data_set(run, pictures, accelerator):
    (pictures / "new.png").write_bytes(FILES[0])
    encode(EncodeSettings(run=str(run), source=str(pictures), precision="fp32"), accelerator)
    assert codes.read_info(run / "codes")[0].source["fingerprint"] != recorded(run / "tokenizer").fingerprint


def test_images_that_were_not_changed_are_read_from_another_folder(run, tmp_path, monkeypatch):
    """From elsewhere, a relative path was looked up on the Hub, or another folder of that name was read."""
    monkeypatch.chdir(tmp_path)
    assert read(Path("a/r")).fingerprint == recorded(run / "tokenizer").fingerprint
    write(tmp_path / "pics", {f"{i}.png": FILES[i] for i in range(6)})
    assert read(Path("a/r")).fingerprint == recorded(run / "tokenizer").fingerprint


def test_training_goes_on_from_another_folder(run, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    found = where_they_lay(ImagesConfig(source="pics"), Path("a/r/tokenizer"))
    assert found.source == str(run.parent / "pics")


def test_the_record_keeps_the_name_of_the_source_wherever_training_goes_on(run, tmp_path, monkeypatch, accelerator):
    before = recorded(run / "tokenizer")
    shutil.rmtree(run / "tokenizer/state")  # it trains again, from another folder
    monkeypatch.chdir(tmp_path)
    (tmp_path / "r").symlink_to(run)
    settings = tokenizer_training(
        Path("r"), images=ImagesConfig(source="pics"), steps=2, batch_size=4, evaluate_every=2
    )
    train(settings, accelerator)
    assert recorded(run / "tokenizer") == before


def test_a_run_that_has_not_begun_holds_nobody_to_its_place(run, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name in ("state", "model"):
        shutil.rmtree(run / "tokenizer" / name)
    assert where_they_lay(ImagesConfig(source="pics"), run / "tokenizer").source == "pics"


def test_a_run_that_moved_with_its_images_finds_them_where_it_stands(run, tmp_path, monkeypatch):
    moved = (tmp_path / "a").rename(tmp_path / "b")
    monkeypatch.chdir(moved)
    assert read(Path("r")).fingerprint == recorded(moved / "r/tokenizer").fingerprint


def test_a_folder_that_is_gone_is_named_and_the_hub_not_asked(run, pictures, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    shutil.rmtree(pictures)
    with pytest.raises(UserError, match=rf"lay in the folder {pictures}, which is not there"):
        read(Path("a/r"))


def test_a_run_of_an_earlier_version_is_read_with_a_word(run, capsys):
    counts = folder.read_json(run / "tokenizer/images.json")["splits"]
    for earlier in (lambda path: folder.write_json(path, counts), lambda path: path.unlink()):
        earlier(run / "tokenizer/images.json")
        assert len(read(run).splits["train"]) > 0
        told = f"does not say which images it was trained with: those of {run.parent / 'pics'} are taken"
        assert told in capsys.readouterr().err


@pytest.mark.parametrize("key, value", [("fingerprint", 3), ("place", ["x"]), ("kind", "smalti.codes"), ("format", 99)])
def test_a_damaged_record_is_refused_by_name(run, key, value):
    path = run / "tokenizer/images.json"
    folder.write_json(path, {**folder.read_json(path), key: value})
    with pytest.raises(UserError, match=r"images\.json"):
        read(run)


def test_k_means_knows_its_images_too(pictures, tmp_path, accelerator, monkeypatch):
    monkeypatch.chdir(tmp_path)
    model = KMeansConfig(image_size=(8, 8), patch=4, codebook_size=8)
    settings = ClusterConfig(
        run=str(tmp_path / "r"), images=ImagesConfig(source=str(pictures)), model=model, iterations=1
    )
    cluster(settings, accelerator)
    before = (tmp_path / "r/tokenizer/images.json").read_bytes()
    assert json.loads(before)["place"] == str(pictures)
    (pictures / "new.png").write_bytes(FILES[0])
    with pytest.raises(UserError, match="they have changed since it began"):
        cluster(settings, accelerator)
    assert (tmp_path / "r/tokenizer/images.json").read_bytes() == before


# ------------------------------------------------------------------------------------------------------ strangers' runs


@pytest.mark.parametrize("known", [None, "0" * 64])
def test_a_strangers_run_does_not_get_the_pictures_of_a_folder_it_names(known, finished_run, pictures, tmp_path):
    """A config.yaml that named /home/you/private put its pictures into the report, and into a compressed file."""
    run = tmp_path / "stranger"
    shutil.copytree(finished_run, run)
    path = run / "tokenizer/config.yaml"
    path.write_text(path.read_text().replace("source: digits", f"source: {pictures}"))
    record = run / "tokenizer/images.json"
    said = {**folder.read_json(record), "fingerprint": known, "source": str(pictures), "place": str(pictures)}
    folder.write_json(record, said) if known else record.unlink()
    told = "was trained with"
    with pytest.raises(UserError, match=told):
        completion_section.completed(gather(run))
    with pytest.raises(UserError, match=told):
        read_pictures(CompressSettings(run=str(run)), ImagePipeline.from_run(run, SamplingConfig()))
    body = str(completion_section.completion_section(gather(run), wanted=True).body)
    assert told in body and str(pictures.parent) not in body


def test_the_pictures_of_ones_own_run_are_vouched_for(run, accelerator):
    model = tokenizer_training(run).model
    assert len(open_vouched_images(run / "tokenizer", model).splits["train"]) > 0
    encode(EncodeSettings(run=str(run), precision="fp32"), accelerator)
    (run / "tokenizer/images.json").unlink()  # as an earlier version left it: the codes hold the same record
    assert len(open_vouched_images(run / "tokenizer", model).splits["train"]) > 0


# ---------------------------------------------------------------------------------------------------------------- codes

INFO = CodesInfo(
    layout=Layout.of(2, 2, factors=(16,)),
    views=1,
    condition=Classes(names=("a", "b")),
    tokenizer=TokenizerIdentity(name="t", sha256="0" * 64),
    source={"source": "none", "fingerprint": "1"},
    shard_size=8,
)
CODES = np.arange(1, 33, dtype=np.uint8).reshape(8, 4) % 16


def write_codes(path: Path, values: np.ndarray = CODES, labels=(0, 1) * 4, sha256: bool = True) -> Path:
    split = CodesSplit(values, np.array(labels), np.arange(8))
    codes.write_shard(codes.shard_path(path, "train", 0, 1), INFO, split)
    said = {"sha256": CodesSplit(CODES, np.array((0, 1) * 4), np.arange(8)).digest()} if sha256 else {}
    codes.finish(path, INFO, {"train": {"rows": 8, **said}})
    return path


@pytest.mark.parametrize("changed", ["codes", "labels"])
def test_codes_that_were_changed_in_place_are_refused_by_every_reader(changed, tmp_path):
    """Codes zeroed between a kill and the resumption went unnoticed: only their number was compared."""
    codes.load_codes(write_codes(tmp_path / "codes"))
    other = {"values": np.zeros_like(CODES)} if changed == "codes" else {"labels": (1, 0) * 4}
    with pytest.raises(UserError, match=r"split train of .* holds other codes than were written"):
        codes.load_codes(write_codes(tmp_path / "codes", **other))


def test_the_fingerprint_of_codes_is_of_all_of_them_and_of_no_name(tmp_path):
    before = codes.codes_fingerprint(codes.load_codes(write_codes(tmp_path / "a", sha256=False)))
    one = CODES.copy()
    one[-1, -1] ^= 1
    assert codes.codes_fingerprint(codes.load_codes(write_codes(tmp_path / "b", one, sha256=False))) != before
    data = codes.load_codes(tmp_path / "a")
    renamed = INFO.model_copy(update={"source": {"source": "/elsewhere", "fingerprint": "1"}})
    assert codes.codes_fingerprint(data._replace(info=renamed)) == before


def test_encoding_writes_down_the_digest_of_what_it_wrote(finished_run):
    _, splits = codes.read_info(finished_run / "codes")
    assert {name: split["sha256"] for name, split in splits.items()} == {
        name: split.digest() for name, split in codes.load_codes(finished_run / "codes").splits.items()
    }


def test_codes_that_a_prior_was_not_trained_on_are_told_of(tmp_path, capsys):
    data = codes.load_codes(write_codes(tmp_path / "codes"))
    small = TransformerConfig(depth=1, dim=16, heads=2)
    for known, told in ((codes.codes_fingerprint(data), False), (None, False), ("f" * 64, True)):
        tell_of_other_codes(codes.codes_fingerprint(data), PriorConfig.over(INFO, small, codes=known))
        assert ("not those that the prior was trained on" in capsys.readouterr().err) == told


def test_a_trained_prior_knows_its_codes(finished_run):
    written = folder.read_json(finished_run / "prior/model/config.json")
    assert (
        written["codes"] == codes.codes_fingerprint(codes.load_codes(finished_run / "codes"))
        and written["condition"]["absent"] == []
    )


def test_what_codes_json_says_gives_the_fingerprint_that_reading_all_gives(finished_run):
    """`tune` uses validation only, and identifies the codes without reading the test split."""
    info, splits = codes.read_info(finished_run / "codes")
    assert codes.recorded_fingerprint(info, splits) == codes.codes_fingerprint(codes.load_codes(finished_run / "codes"))
    assert codes.recorded_fingerprint(info, {"train": {"rows": 3}}) is None
