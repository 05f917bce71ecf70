"""The Hub: what is saved, pushed, downloaded and published is the same, and says where it comes from."""

import ast
import hashlib
import json
import os
import re
import runpy
import shutil
import socket
import subprocess
import sys
from pathlib import Path

import httpx
import huggingface_hub
import numpy as np
import pytest
import torch
import yaml

from smalti.common import codes, folder
from smalti.common.errors import UserError
from smalti.common.evaluation_file import evaluation_path, write_evaluation
from smalti.common.folder import sha256, write_json
from smalti.common.hub import push, source_repository
from smalti.pipeline.app import load_pipeline
from smalti.pipeline.generate import Settings as Generation
from smalti.pipeline.generate import generate
from smalti.pipeline.image_pipeline import ImagePipeline
from smalti.pipeline.publish import Settings, lay_out, main
from smalti.prior.base import Prior
from smalti.prior.model import load_prior
from smalti.tokenizer.kmeans.model import KMeansTokenizer
from smalti.tokenizer.model import load_tokenizer
from smalti.tokenizer.vqvae.model import VQVAE
from tests import processes
from tests.format_folder import make, seen
from tests.hub_server import TOKEN, serving

ROOT = Path(__file__).resolve().parents[1]
FORMATS = sorted((ROOT / "tests/data").glob("format_*"))
LABELS = ["3", "7"]
HOSTS = ("me-page.hf.space", "another.hf.space")


@pytest.fixture(scope="module")
def run(finished_run, tmp_path_factory, accelerator) -> Path:
    """Return a run with a pipeline and samples. Tests share it: copy it before you change it."""
    run = shutil.copytree(
        finished_run, tmp_path_factory.mktemp("hub") / "digits", ignore=shutil.ignore_patterns("state")
    )
    generate(Generation(run=str(run), num_images=20), accelerator)
    return run


@pytest.fixture
def copied(run, tmp_path) -> Path:
    return shutil.copytree(run, tmp_path / "digits")


@pytest.fixture(scope="module")
def pipeline(run) -> ImagePipeline:
    return ImagePipeline.from_pretrained(run / "pipeline")


@pytest.fixture
def hub(monkeypatch, tmp_path):
    """Serve a Hub for this test alone, with a user who is logged in."""
    with serving() as hub:
        template = huggingface_hub.constants.HUGGINGFACE_CO_URL_TEMPLATE.replace(
            huggingface_hub.constants.ENDPOINT, hub.url
        )
        monkeypatch.setattr(huggingface_hub.constants, "HUGGINGFACE_CO_URL_TEMPLATE", template)
        monkeypatch.setattr(huggingface_hub.constants, "ENDPOINT", hub.url)
        monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
        monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", False)
        monkeypatch.setenv("HF_TOKEN", TOKEN)
        yield hub


def start_space(path: Path) -> None:
    """Run the app.py of a Space as Python does: what stands beside it is imported, and nothing of this checkout."""
    processes.import_from(path)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    os.environ |= {"SPACE_HOST": HOSTS[0], "GRADIO_SERVER_NAME": "127.0.0.1", "GRADIO_SERVER_PORT": str(port)}
    sys.argv, sys.dont_write_bytecode = ["app.py"], False
    runpy.run_path("app.py", run_name="__main__")


def digest(images) -> str:
    return hashlib.sha256(b"".join(np.asarray(image).tobytes() for image in images)).hexdigest()


def as_cache(source: Path, cache: Path, repo_id: str) -> None:
    """Lay out a folder as `snapshot_download` caches a repository: blobs, and links to them under the commit of
    `main`."""
    home, commit = cache / f"models--{repo_id.replace('/', '--')}", "c" * 40
    (home / "blobs").mkdir(parents=True)
    for path in (path for path in source.rglob("*") if path.is_file()):
        blob, link = home / "blobs" / sha256(path), home / "snapshots" / commit / path.relative_to(source)
        shutil.copy(path, blob)
        link.parent.mkdir(parents=True, exist_ok=True)
        link.symlink_to(os.path.relpath(blob, link.parent))
    (home / "refs").mkdir()
    (home / "refs/main").write_text(commit)


# ------------------------------------------------------------------------------------------------------ a fresh process


DRAW = """
import hashlib, sys
import numpy as np, torch
torch.set_num_threads(1)
import smalti.pipeline.image_pipeline
from smalti.pipeline.image_pipeline import ImagePipeline
from smalti import load_prior, load_tokenizer

assert smalti.pipeline.image_pipeline.__file__.startswith(sys.argv[1]), smalti.pipeline.image_pipeline.__file__
def tell(loaded):
    images = loaded(labels=["3", "7"], seed=5).images
    print(hashlib.sha256(b"".join(np.asarray(image).tobytes() for image in images)).hexdigest())
tell(ImagePipeline.from_pretrained(sys.argv[2]))
tell(ImagePipeline.from_pretrained("owner/cached", local_files_only=True))
tell(ImagePipeline.from_pretrained("owner/elsewhere", cache_dir=sys.argv[3], local_files_only=True))
tell(ImagePipeline.from_pretrained("me/digits"))
assert len(ImagePipeline.from_pretrained("smalti/digits")(["3"], seed=0).images) == 1
for load, subfolder in ((load_tokenizer, "tokenizer"), (load_prior, "prior")):
    load("me/digits", subfolder=subfolder)
"""


def test_a_fresh_process_with_the_wheel_draws_the_same_images_from_a_folder_a_cache_and_the_hub(
    run, pipeline, wheel, hub, tmp_path
):
    """Four sources give the same images: a saved folder, the default cache, a cache given by path, and a download."""
    pipeline.save_pretrained(tmp_path / "saved")
    pipeline.push_to_hub("me/digits")
    as_cache(tmp_path / "saved", tmp_path / "home/hub", "owner/cached")
    as_cache(tmp_path / "saved", tmp_path / "mine", "owner/elsewhere")
    environment = {
        "PATH": os.environ["PATH"],
        "PYTHONPATH": str(wheel),
        "OMP_NUM_THREADS": "1",
        "HF_HOME": str(tmp_path / "home"),
        "HF_ENDPOINT": hub.url,
    }
    command = [sys.executable, "-c", DRAW, str(wheel), str(tmp_path / "saved"), str(tmp_path / "mine")]
    told = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True)
    assert told.returncode == 0, told.stderr
    assert told.stdout.split() == [digest(pipeline(labels=LABELS, seed=5).images)] * 4


# ------------------------------------------------------------------------------------------------- pushing and fetching


def test_what_is_pushed_is_what_is_saved_with_a_card_and_comes_back(pipeline, hub, tmp_path):
    url = pipeline.push_to_hub("me/digits", private=True, commit_message="first")
    pipeline.save_pretrained(tmp_path / "saved")
    saved = {path.relative_to(tmp_path / "saved").as_posix(): path for path in (tmp_path / "saved").rglob("*.*")}
    there = hub.files("models/me/digits")
    assert there.keys() == saved.keys() | {"README.md", ".gitattributes"}
    assert all(there[name] == path.read_bytes() for name, path in saved.items())
    assert url.startswith(f"{hub.url}/me/digits/commit/") and hub.private["models/me/digits"]
    again = ImagePipeline.from_pretrained("me/digits")
    assert digest(again(labels=LABELS, seed=2).images) == digest(pipeline(labels=LABELS, seed=2).images)


@pytest.mark.parametrize("part", ["tokenizer", "prior"])
def test_either_part_has_the_same_three_methods(pipeline, hub, tmp_path, part):
    model = getattr(pipeline, part)
    model.push_to_hub(f"me/{part}")
    model.save_pretrained(tmp_path / part)
    for path in (f"me/{part}", tmp_path / part, str(tmp_path / part)):
        loaded = type(model).from_pretrained(path)
        assert folder.weights_sha256(loaded) == folder.weights_sha256(model) and loaded.config == model.config
    assert f'load_{part}("me/{part}")' in hub.files(f"models/me/{part}")["README.md"].decode()


def test_a_part_of_a_pipelines_repository_is_fetched_alone(pipeline, hub, tmp_path):
    pipeline.push_to_hub("me/digits")
    load_prior("me/digits", subfolder="prior", cache_dir=tmp_path / "fetched")
    names = {path.name for path in (tmp_path / "fetched").rglob("snapshots/*/*")}
    assert names == {"prior"}


def test_a_revision_is_a_branch_that_is_made_and_a_pull_request_leaves_the_main_one(pipeline, hub):
    pipeline.prior.push_to_hub("me/prior", revision="wide")
    assert "config.json" not in hub.files("models/me/prior")
    load_prior("me/prior", revision="wide")
    with pytest.raises(UserError, match=r"the Hub's repository me/prior has no config\.json"):
        load_prior("me/prior")
    url = pipeline.prior.push_to_hub("me/prior", create_pr=True)
    assert url == f"{hub.url}/me/prior/discussions/1" and "config.json" not in hub.files("models/me/prior")
    with pytest.raises(UserError, match="leave revision 'wide' away, or create_pr"):
        pipeline.prior.push_to_hub("me/prior", revision="wide", create_pr=True)


def test_a_card_that_somebody_wrote_is_kept(pipeline, hub):
    pipeline.prior.push_to_hub("me/prior")
    hub.repositories["models/me/prior"]["main"][-1]["README.md"] = b"mine"
    pipeline.prior.push_to_hub("me/prior")
    assert (
        hub.files("models/me/prior")["README.md"] == b"mine" and len(hub.repositories["models/me/prior"]["main"]) >= 2
    )


def test_what_the_hub_refuses_is_told_as_what_to_do(pipeline, hub, monkeypatch, tmp_path):
    with pytest.raises(
        UserError, match="there is no folder me/none here, and the Hub has no repository me/none that you may"
    ):
        load_prior("me/none")
    pipeline.prior.push_to_hub("me/prior", private=True)
    with pytest.raises(UserError, match="me/prior has no such revision"):
        load_prior("me/prior", revision="none")
    with pytest.raises(UserError, match=r"has no prior/config\.json: what it holds is nothing that can be read"):
        load_prior("me/prior", subfolder="prior")
    with pytest.raises(UserError, match="this token may not write into the Hub's repository me/prior"):
        pipeline.prior.push_to_hub("me/prior", token="hf_other")
    with pytest.raises(UserError, match="'me/a b' is no name of a repository"):
        pipeline.prior.push_to_hub("me/a b")
    monkeypatch.delenv("HF_TOKEN")
    with pytest.raises(UserError, match="if it is private, log in with `hf auth login`, or set HF_TOKEN"):
        load_prior("me/prior")
    with pytest.raises(UserError, match="the Hub does not know who asks for me/prior: log in"):
        pipeline.prior.push_to_hub("me/prior")
    hub.gated.add("models/me/prior")
    with pytest.raises(UserError, match="me/prior is gated: ask for access on its page, then log in"):
        load_prior("me/prior")


def test_without_the_network_it_is_told_how_to_go_on(pipeline, hub, monkeypatch, tmp_path):
    with pytest.raises(
        UserError, match="is not whole in the Hub's cache, and the Hub was not reached: connect, leave local"
    ):
        load_prior("me/prior", local_files_only=True)
    monkeypatch.setattr(huggingface_hub.constants, "ENDPOINT", "http://127.0.0.1:9")  # nothing listens there
    with pytest.raises(UserError, match="the Hub was not reached"):
        load_prior("me/prior")
    with pytest.raises(UserError, match=r"the Hub cannot be reached \(ConnectError\)"):
        pipeline.prior.push_to_hub("me/prior")


def test_what_looks_like_a_path_is_never_asked_of_the_hub(hub):
    for path in ("./a/b", "/a/b", "~/b", "a/b/c", "name"):
        with pytest.raises(UserError, match=f"there is no folder {path}$"):
            ImagePipeline.from_pretrained(path)


def test_a_name_whose_first_part_is_a_folder_here_is_never_asked_of_the_hub(hub, tmp_path, monkeypatch, pipeline):
    """`runs/nothere` looks like a repository's name: the page searched the Hub for 38 seconds, and then advised to log
    in."""
    pipeline.push_to_hub("runs/nothere")
    monkeypatch.chdir(tmp_path)
    assert ImagePipeline.from_pretrained("runs/nothere").device == pipeline.device
    for name in ("digits", "emoji", ".hidden"):
        (tmp_path / "runs" / name).mkdir(parents=True)
    hub.shutdown()
    for name, told in (("nothere", r"runs has digits, emoji"), ("digit", r"did you mean runs/digits\?")):
        with pytest.raises(UserError, match=rf"^there is no folder runs/{name}; {told}$"):
            load_pipeline(f"runs/{name}")
    (tmp_path / "runs/file").write_text("")
    with pytest.raises(UserError, match=r"^runs/file is a file; give the folder that it lies in$"):
        ImagePipeline.from_pretrained("runs/file")


def test_a_hub_that_takes_connections_and_says_nothing_is_waited_for_a_moment_alone(monkeypatch, tmp_path):
    """huggingface_hub waits without end."""
    with socket.create_server(("127.0.0.1", 0)) as silent:
        monkeypatch.setattr(huggingface_hub.constants, "ENDPOINT", f"http://127.0.0.1:{silent.getsockname()[1]}")
        monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", False)
        monkeypatch.setattr("smalti.common.hub.PATIENCE", 0.2)
        with pytest.raises(
            UserError, match=r"there is no folder me/digits here, and .* the Hub was not reached: connect"
        ):
            ImagePipeline.from_pretrained("me/digits", cache_dir=tmp_path)


def test_a_subfolder_does_not_leave_its_folder(pipeline, tmp_path):
    pipeline.save_pretrained(tmp_path / "saved")
    load_prior(tmp_path / "saved", subfolder="prior")
    with pytest.raises(UserError, match="leaves its folder"):
        load_prior(tmp_path / "saved/tokenizer", subfolder="../prior")


def test_a_git_checkout_is_never_replaced(pipeline, tmp_path):
    """Replacing the folder of a `git clone https://huggingface.co/me/digits` would delete its history."""
    pipeline.save_pretrained(tmp_path / "digits")
    (tmp_path / "digits/.git").mkdir()
    with pytest.raises(UserError, match="is a git checkout, whose history would be lost"):
        pipeline.save_pretrained(tmp_path / "digits")
    assert (tmp_path / "digits/.git").exists()


# ------------------------------------------------------------------------------------------------------------ the cards


def front(card: str) -> dict:
    return yaml.safe_load(card.split("---\n")[1])


def card_of(run: Path, **settings) -> str:
    return (lay_out(Settings(run=str(run), **settings)) / "README.md").read_text(encoding="utf-8")


def evaluated(run: Path) -> None:
    now = {stage: sha256(run / stage / "model/model.safetensors") for stage in ("tokenizer", "prior")}
    figures = {"tokenizer": {"psnr_pooled": 12.3456}, "prior": {"nll": 2.4681}, "pipeline": {"fd_classifier": 3.2109}}
    for stage, each in figures.items():
        protocol = {**now, "number": 297, "seed": 4, "drawn": 100}
        write_evaluation(run, stage, "test", figures=each, protocol=protocol, arguments=["/home/me/secret/digits"])


def test_a_card_says_data_budget_figures_with_their_protocol_and_how_it_was_made(copied):
    evaluated(copied)
    card = card_of(copied, license="cc-by-4.0", repo=None)
    head = front(card)
    assert head["library_name"] == "smalti" and head["license"] == "cc-by-4.0" and "datasets" not in head
    assert head["pipeline_tag"] == "unconditional-image-generation" and "smalti" in head["tags"]
    info, splits = codes.read_info(copied / "codes")
    for part in (
        info.source["fingerprint"],
        f"| train | {splits['train']['images']:,} | {splits['train']['rows']:,} | 0 |",
        "| 6 of 16 | 96 | fp32 |",
        "| PSNR, dB | 12.35 |",
        "| nats per code | 2.468 |",
        "| Fréchet distance (classifier) | 3.211 |",
        "On the test split, 297 images, and 100 drawn ones.",
        "seed: 4",
        "command: python prior/evaluate.py .../digits",
        "![samples](samples.png)",
        "a column for each class",
        "python prior/train.py prior.yaml --run runs/digits",
    ):
        assert part in card, part
    assert "Not measured" not in card and "/home/me" not in card and str(copied.parent) not in card


def test_a_card_says_what_was_not_measured_and_leaves_out_what_was_of_other_weights(copied):
    card = card_of(copied)
    for script in ("tokenizer/evaluate.py", "prior/evaluate.py", "pipeline/evaluate.py"):
        assert re.search(rf"Not measured: run `python {script} \S+`, then publish again", card), script
    assert re.search(r"reconstructions have a PSNR of [\d.]+ dB \(pooled, test split, as encoded\)", card)
    assert re.search(r"a code costs [\d.]+ nats \(test split, after training\)", card)
    evaluated(copied)
    path = evaluation_path(copied, "prior", "test")
    value = json.loads(path.read_text())
    value["protocol"]["prior"] = "0" * 64
    path.write_text(json.dumps(value))
    card = card_of(copied)
    assert "| nats per code | 2.468 |" not in card and "it was, with another prior than this" in card
    write_json(
        copied / "samples/.request.json", json.loads((copied / "samples/.request.json").read_text()) | {"prior": "0"}
    )
    card = card_of(copied)
    assert "samples.png" not in card and "No samples of these weights were drawn" in card
    assert not (copied / "hub/pipeline/samples.png").exists()


def test_a_card_leaves_out_what_is_of_another_tokenizer(copied):
    """The card of a tokenizer that was trained anew gave the PSNR and the rows of the codes of the one before."""
    rows = f"{codes.read_info(copied / 'codes')[1]['train']['rows']:,}"
    assert rows in card_of(copied, what="tokenizer")
    VQVAE(load_tokenizer(copied / "tokenizer/model").config).save_pretrained(copied / "tokenizer/model")
    card = card_of(copied, what="tokenizer")
    assert rows not in card and "as encoded" not in card and "in training" in card
    card = card_of(copied, what="prior")
    assert rows in card and "nats (test split, after training)" in card and "tokenizer.yaml" not in card


@pytest.mark.parametrize("what", ["pipeline", "tokenizer", "prior"])
def test_the_python_of_a_card_runs(run, tmp_path, what):
    """Every name in it exists, and it loads what publish laid out."""
    to = tmp_path / "laid out"
    card = (lay_out(Settings(run=str(run), what=what, to=str(to), repo=None)) / "README.md").read_text(encoding="utf-8")
    code = re.search(r"```python\n(.*?)```", card, re.S)[1].replace("path/to/this/folder", str(to))
    ast.parse(code)
    names: dict = {}
    exec(code, names)
    assert any(isinstance(value, ImagePipeline | Prior | VQVAE) for value in names.values())


def test_text_of_files_is_shown_and_is_no_markup(copied):
    nasty = "| **<script>` # a"
    path = copied / "codes/codes.json"
    value = json.loads(path.read_text())
    value["condition"]["names"][3] = nasty
    path.write_text(json.dumps(value))
    card = card_of(copied, what="tokenizer")
    assert r"\| \*\*\<script\>\` \# a" in card and "<script>" not in card


def test_a_dataset_of_the_hub_is_named_as_one_and_a_folder_is_not(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "data/photos").mkdir(parents=True)
    assert source_repository({"source": "zalando-datasets/fashion_mnist"}) == "zalando-datasets/fashion_mnist"
    for source in ("digits", "data/photos", "/home/me", "../me/b", "~/b", None):
        assert source_repository({"source": source}) is None


# ----------------------------------------------------------------------------------------------------------- publishing


def test_publishing_pushes_what_it_lays_out_and_says_where(copied, hub, capsys):
    main([str(copied), "--repo", "me/digits", "--private", "true"])
    assert f"pushed: {hub.url}/me/digits/commit/" in capsys.readouterr().out
    laid = {
        path.relative_to(copied / "hub/pipeline").as_posix(): path
        for path in (copied / "hub/pipeline").rglob("[!.]*.*")
    }
    there = hub.files("models/me/digits")
    assert (
        there.keys() == laid.keys() | {".gitattributes"}
        and {"samples.png", "reconstructions.png", "README.md"} < laid.keys()
    )
    assert 'ImagePipeline.from_pretrained("me/digits")' in there["README.md"].decode()
    loaded = ImagePipeline.from_pretrained("me/digits")
    assert loaded.sampling == ImagePipeline.from_pretrained(copied / "pipeline").sampling
    main([str(copied), "--what", "tokenizer"])
    assert capsys.readouterr().out.endswith(
        f"next: python pipeline/publish.py {copied} --what tokenizer --repo OWNER/NAME\n"
    )


def test_codes_are_pushed_as_a_dataset_that_datasets_reads_and_name_no_folder_of_this_machine(copied, hub, tmp_path):
    from datasets import load_dataset

    path = copied / "codes/codes.json"
    value = json.loads(path.read_text())
    value["source"]["source"] = "/home/me/secret/photos"
    path.write_text(json.dumps(value))
    hub.repositories["datasets/me/codes"] = {
        "main": [{"train-00000-of-00009.parquet": b"an earlier one", "notes.md": b""}]
    }
    main([str(copied), "--what", "codes", "--repo", "me/codes"])
    there = hub.files("datasets/me/codes")
    assert "train-00000-of-00009.parquet" not in there and "notes.md" in there and ".plan.json" not in there
    assert not any(b"secret" in content for content in there.values())
    fetched = huggingface_hub.snapshot_download("me/codes", repo_type="dataset", local_dir=tmp_path / "fetched")
    read, ours = load_dataset(fetched, cache_dir=str(tmp_path / "arrow")), codes.load_codes(copied / "codes")
    for name, split in ours.splits.items():
        assert np.array_equal(read[name]["codes"], split.codes) and read[name]["label"] == split.condition.tolist()
    head = front(there["README.md"].decode())
    counts = {split["name"]: split["num_examples"] for split in head["dataset_info"]["splits"]}
    assert counts == {name: len(split.rows) for name, split in ours.splits.items()}
    assert read["train"].features["label"].names == list(ours.info.condition.class_names)
    assert codes.load_codes(Path(fetched)).info.tokenizer == ours.info.tokenizer


def test_of_the_repository_shards_of_earlier_codes_alone_go_and_they_are_named(copied, hub, capsys):
    """Every Parquet of a repository went, at any depth and without a word."""
    theirs = {"data/train-00000-of-00001.parquet": b"", "words.parquet": b"", "train-0-of-1.parquet": b""}
    hub.repositories["datasets/me/codes"] = {"main": [{**theirs, "old-00000-of-00002.parquet": b""}]}
    main([str(copied), "--what", "codes", "--repo", "me/codes"])
    there = hub.files("datasets/me/codes")
    assert theirs.keys() < there.keys() and "old-00000-of-00002.parquet" not in there
    assert "removed from me/codes, as shards of earlier codes: old-00000-of-00002.parquet\n" in capsys.readouterr().out


def test_a_card_of_codes_that_are_not_all_there_is_noticed(copied, tmp_path):
    """The YAML head gives the number of rows, and `load_dataset` counts them."""
    from datasets import load_dataset

    laid = lay_out(Settings(run=str(copied), what="codes", to=str(tmp_path / "codes")))
    next(laid.glob("train-*.parquet")).unlink()
    with pytest.raises(Exception, match=r"(?i)split.*train"):
        load_dataset(str(laid), cache_dir=str(tmp_path / "arrow"))


def test_a_space_is_pushed_and_starts_with_the_code_in_it_under_its_own_name(copied, hub, tmp_path, pipeline):
    pytest.importorskip("gradio", reason="a Space has the Gradio that is here")
    from gradio_client import Client

    path = tmp_path / "space"
    main([str(copied), "--what", "space", "--to", str(path), "--repo", "me/page", "--license", "cc0-1.0"])
    there = hub.files("spaces/me/page")
    assert {"README.md", "app.py", "requirements.txt", "model/digits/model_index.json", "smalti/LICENSE"} < there.keys()
    head, needed = front(there["README.md"].decode()), there["requirements.txt"].decode()
    assert head["sdk"] == "gradio" and head["app_file"] == "app.py" and head["license"] == "cc0-1.0"
    assert re.search(r"^torch>=\S+$", needed, re.M) and re.search(r"^gradio(<7,)?>=\S+$", needed, re.M)
    assert "pytest" not in needed
    server = processes.Process(lambda: start_space(path), path)
    address = server.first_line().removeprefix("the page is at ")
    assert address.startswith("http://127.0.0.1:"), server.communicate(1)
    drawn = Client(address, verbose=False).predict(labels=LABELS, number=2, seed=3, api_name="/draw")
    asked = {name: httpx.get(address, headers={"Host": name}).status_code for name in HOSTS}
    server.kill()
    server.wait()
    assert drawn["codes"] == pipeline(LABELS, num_images=2, seed=3).codes.tolist()
    assert asked == {"me-page.hf.space": 200, "another.hf.space": 421}
    assert (path / "smalti/pipeline/__pycache__").is_dir()  # it ran this code, and not that of the tests
    push(path, "me/page", kind="space", commit_message="again")  # and what it compiled stays here
    assert hub.files("spaces/me/page").keys() == there.keys()


def test_a_pipeline_of_older_weights_is_not_published(copied):
    prior = load_prior(copied / "prior/model")
    torch.nn.init.normal_(prior.head.weight)
    prior.save_pretrained(copied / "prior/model")
    with pytest.raises(UserError, match=r"holds other weights than the run has now; python pipeline/generate\.py"):
        lay_out(Settings(run=str(copied)))
    shutil.rmtree(copied / "pipeline")
    with pytest.raises(UserError, match=r"pipeline is not there; python pipeline/generate\.py .* writes it"):
        lay_out(Settings(run=str(copied)))
    shutil.rmtree(copied / "prior")
    with pytest.raises(UserError, match=r"no trained model in .*; prior/train\.py \(or fit\.py\) with --run"):
        lay_out(Settings(run=str(copied)))


def test_a_folder_of_something_else_is_never_laid_over(run, tmp_path):
    (tmp_path / "README.md").write_text("my thesis")
    with pytest.raises(UserError, match="holds something that this command did not write; give another --to"):
        lay_out(Settings(run=str(run), what="prior", to=str(tmp_path)))
    lay_out(Settings(run=str(run), what="prior", to=str(tmp_path / "prior")))
    lay_out(Settings(run=str(run), what="prior", to=str(tmp_path / "prior")))
    assert (tmp_path / "README.md").read_text() == "my thesis"


def test_hidden_files_are_not_pushed(hub, tmp_path):
    for name in ("a.json", ".secret", ".git/config"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text("x")
    push(tmp_path, "me/a", commit_message="a")
    assert hub.files("models/me/a").keys() == {"a.json", ".gitattributes"}


# ----------------------------------------------------------------------------------------------------------- the format


def check(found: dict, expected: dict) -> None:
    """Compare codes exactly, pixels to 1 of 255 and nats to five digits: sums round differently on other processors."""
    for name in ("encoded", "drawn", "kmeans", "codes"):
        assert found[name] == expected[name], name
    assert (torch.tensor(found["decoded"]) - torch.tensor(expected["decoded"])).abs().max() <= 1
    torch.testing.assert_close(torch.tensor(found["nats"]), torch.tensor(expected["nats"]), rtol=1e-5, atol=0)


@pytest.mark.parametrize("old", FORMATS, ids=lambda path: path.name)
def test_folders_of_every_format_there_was_load_and_say_what_they_said(old):
    """tests/format_folder.py of that time wrote each folder once, and nothing writes it again."""
    check(seen(old), json.loads((old / "expected.json").read_text()))


def test_every_format_has_its_folder_and_what_writes_it_goes_on_working(tmp_path):
    assert [path.name for path in FORMATS] == [f"format_{number}" for number in range(1, folder.FORMAT + 1)]
    make(tmp_path)
    check(seen(tmp_path), json.loads((tmp_path / "expected.json").read_text()))


@pytest.mark.parametrize(
    ("file", "read"),
    [
        ("pipeline/model_index.json", lambda path: ImagePipeline.from_pretrained(path / "pipeline")),
        ("pipeline/tokenizer/config.json", lambda path: VQVAE.from_pretrained(path / "pipeline/tokenizer")),
        ("pipeline/prior/config.json", lambda path: load_prior(path / "pipeline", subfolder="prior")),
        ("kmeans/config.json", lambda path: KMeansTokenizer.from_pretrained(path / "kmeans")),
        ("codes/codes.json", lambda path: codes.load_codes(path / "codes")),
    ],
)
def test_a_newer_format_asks_for_a_newer_smalti(tmp_path, file, read):
    newer = shutil.copytree(FORMATS[-1], tmp_path / "newer")
    read(newer)
    value = json.loads((newer / file).read_text())
    (newer / file).write_text(json.dumps(value | {"format": folder.FORMAT + 1}))
    with pytest.raises(
        UserError, match=rf"has format {folder.FORMAT + 1}, this version reads up to {folder.FORMAT}; update"
    ):
        read(newer)


def test_offline_nothing_is_pushed_and_why_is_said(pipeline, monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(UserError, match="HF_HUB_OFFLINE is set, so nothing is pushed to me/digits"):
        pipeline.push_to_hub("me/digits")
