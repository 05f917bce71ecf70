"""In folders that hold files of a user, these files stay, whatever a command writes or refuses."""

import json
import os
import shutil
import stat
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
import yaml

from smalti.common import codes, folder, process, written
from smalti.common.errors import Refused, UserError
from smalti.common.evaluation_file import write_evaluation
from smalti.common.launch import check_agree, make_accelerator, run_command
from smalti.common.lock import Lock
from smalti.common.run_folder import Leeway, check_run, enter_run
from smalti.common.session import at_work, log_path, path_beside, session
from smalti.pipeline import compress, configs, generate, publish, report
from smalti.pipeline import run as chain
from smalti.pipeline.image_pipeline import ImagePipeline
from smalti.pipeline.output import Request
from smalti.prior.model import load_prior
from smalti.prior.sampling_config import SamplingConfig
from smalti.tokenizer import encode
from smalti.tokenizer.model import load_identified, load_tokenizer
from tests import processes
from tests.conftest import prior_training
from tests.test_codes import INFO, write

KEPT = Path(__file__).parent / "data/format_1"
MINE = {  # files in a folder that a user names to a command
    "README.md": "my thesis",
    "config.json": '{"model_type": "llama"}',
    "config.yaml": "lr: 1",
    "model.safetensors": "other weights",
    "model_index.json": '{"_class_name": "StableDiffusionPipeline", "_diffusers_version": "0.30"}',
    "000000.png": "a photograph",
    "compressed.tess": "a letter",
    ".draft.writing": "a chapter",
    ".thesis.old": "last year's",
    ".thesis.2024.old": "the year's before",
    "notes/.draft.77.writing": "another chapter",
    "notes/deep/.plan.json.77.old": "a plan",
}


def planted(path: Path) -> Path:
    """Write a user's files into a folder."""
    for name, text in MINE.items():
        (path / name).parent.mkdir(parents=True, exist_ok=True)
        (path / name).write_text(text)
    return path


def tree(path: Path) -> dict[str, tuple]:
    """Return the kind, mode, time and bytes of everything under a folder."""
    found = {}
    for each in sorted(path.rglob("*")):
        about = each.lstat()
        content = each.read_bytes() if stat.S_ISREG(about.st_mode) else about.st_ino
        found[str(each.relative_to(path))] = (about.st_mode, about.st_mtime_ns, content)
    return found


@pytest.fixture
def pipeline() -> ImagePipeline:
    return ImagePipeline.from_pretrained(KEPT / "pipeline")


@pytest.fixture
def run(finished_run, tmp_path) -> Path:
    return shutil.copytree(finished_run, tmp_path / "digits", ignore=shutil.ignore_patterns("state"))


# ------------------------------------------------------------------------------------------------------------ refused


def open_run(folder, settings, accelerator):
    enter_run(folder, settings, 0, check_run(folder, settings, Leeway(frozenset())), accelerator)


WRITERS = {
    "publish": lambda run, to, _: publish.main([str(run), "--what", "prior", "--to", str(to)]),
    "generate": lambda run, to, _: generate.main([str(KEPT / "pipeline"), "--num-images", "1", "--output", str(to)]),
    "overwrite": lambda run, to, _: generate.main([str(KEPT / "pipeline"), "--overwrite", "true", "--output", str(to)]),
    "encode": lambda run, to, _: encode.main([str(run), "--output", str(to)]),
    "compress": lambda run, to, _: compress.main([str(run), "--output", str(to)]),
    "compress a file": lambda run, to, _: compress.main([str(run), "--output", str(to / "compressed.tess")]),
    "expand": lambda run, to, _: compress.main(
        [str(run), "--expand", str(to / "compressed.tess"), "--output", str(to)]
    ),
    "train": lambda run, to, accelerator: open_run(to, prior_training(to), accelerator),
    "configs": lambda run, to, _: configs.main(["digits", "--to", str(to)]),
    "a prior": lambda run, to, _: ImagePipeline.from_pretrained(KEPT / "pipeline").prior.save_pretrained(to),
    "a tokenizer": lambda run, to, _: ImagePipeline.from_pretrained(KEPT / "pipeline").tokenizer.save_pretrained(to),
    "a pipeline": lambda run, to, _: ImagePipeline.from_pretrained(KEPT / "pipeline").save_pretrained(to),
}


@pytest.mark.parametrize("writer", WRITERS)
def test_a_refused_command_leaves_a_users_folder_byte_for_byte_as_it_was(writer, finished_run, tmp_path, accelerator):
    """publish, generate and encode swept the folder before they refused: hidden files at any depth were deleted or
    renamed."""
    planted(tmp_path / "mine")
    before = tree(tmp_path)
    with pytest.raises(Refused):
        WRITERS[writer](finished_run, tmp_path / "mine", accelerator)
    assert tree(tmp_path) == before, "nor is a lock or a log left beside it"


@pytest.mark.parametrize("name", ["report.html", "report/bits.png"])
def test_a_report_takes_the_place_of_no_page_or_chart_that_is_not_its_own(run, name):
    (run / name).parent.mkdir(exist_ok=True)
    (run / name).write_text("my own")
    before = tree(run)
    with pytest.raises(
        Refused, match=r"report\S* (is not as|holds something that) this command (wrote it|did not write)"
    ):
        report.write_report(report.Settings(run=str(run), completion=False))
    assert tree(run) == before


def test_a_page_that_was_edited_is_not_replaced_and_another_is(run):
    page = report.write_report(report.Settings(run=str(run), completion=False))
    report.check_page_is_ours(run)
    before = page.read_text()
    page.write_text(before.replace("</body>", "my remarks</body>"))
    with pytest.raises(Refused, match=r"report\.html is not as this command wrote it; move it away"):
        report.check_page_is_ours(run)
    page.write_text(before)
    (run / written.NAME).unlink()  # an earlier version wrote no such note
    report.check_page_is_ours(run)


def test_figures_take_the_place_of_no_file_that_is_none_of_ours(tmp_path):
    (tmp_path / "evaluation").mkdir()
    (tmp_path / "evaluation/prior-test.json").write_text('{"mine": 1}')
    with pytest.raises(Refused, match="is none of our evaluations"):
        write_evaluation(tmp_path, "prior", "test", figures={}, protocol={}, arguments=[])
    assert folder.read_json(tmp_path / "evaluation/prior-test.json") == {"mine": 1}


def test_pictures_that_were_compressed_are_not_lost_to_others(run):
    """The original pictures may no longer exist."""
    output = run.parent / "two.tess"
    for _ in range(2):  # doing it twice changes nothing
        compress.main([str(run), "--images", "2", "--output", str(output)])
    before = output.read_bytes()
    with pytest.raises(
        Refused, match=r"two\.tess holds other compressed pictures; give another --output, or remove it"
    ):
        compress.main([str(run), "--images", "3", "--output", str(output)])
    assert output.read_bytes() == before


def test_a_link_is_not_taken_for_the_folder_it_leads_to(pipeline, tmp_path):
    """If pipeline/ of a stranger's run was a link, the command would have written into its target, or removed the
    link."""
    pipeline.save_pretrained(tmp_path / "real")
    (tmp_path / "link").symlink_to("real")
    before = tree(tmp_path)
    for save in (pipeline.save_pretrained, lambda to: publish.laid(publish.Settings(to=str(to)))):
        with pytest.raises(Refused, match=r"link is a link to \S+real; give that folder itself"):
            save(tmp_path / "link")
    assert tree(tmp_path) == before


# -------------------------------------------------------------------------------------------- beside what is ours


def test_what_a_user_put_beside_a_model_stays_when_it_is_saved_again(pipeline, tmp_path):
    """The whole folder was replaced, and with it a card, a logo and links were lost."""
    for save in (pipeline.prior.save_pretrained, pipeline.save_pretrained):
        path = tmp_path / save.__self__.__class__.__name__
        save(path)
        for name in ("README.md", "figures/logo.png", "figures/.hidden", "tokenizer/notes.txt"):
            (path / name).parent.mkdir(exist_ok=True)
            (path / name).write_text("mine")
        (path / "link").symlink_to("figures/logo.png")
        os.mkfifo(path / "pipe")
        (path / "empty").mkdir()
        before = tree(path)
        save(path)
        after = tree(path)
        ours = {"config.json", "model.safetensors", *pipeline.files}
        assert after.keys() == before.keys() and type(save.__self__).from_pretrained(path) is not None
        kept = [name for name in before if name not in ours and not (path / name).is_dir()]
        assert [after[name][1:] for name in kept] == [before[name][1:] for name in kept] and len(kept) == 6


def dying_in_rename(after: int, work: Callable[[], None]) -> None:
    """Do the work in a process that ends, as by SIGKILL, at the rename after the first `after` ones."""
    child = os.fork()
    if not child:
        steps = [*[Path.rename] * after, lambda *_: os._exit(9)]
        Path.rename = lambda path, target: steps.pop(0)(path, target)
        try:
            work()
        finally:
            os._exit(1)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 9


def test_a_model_is_whole_at_every_moment_and_a_kill_loses_nothing_of_the_users(pipeline, tmp_path):
    """The kill comes before, between and after the two renames that replace a folder; then the next holder of the lock
    sweeps."""
    pipeline.prior.save_pretrained(tmp_path / "model")
    (tmp_path / "model/README.md").write_text("mine")
    for renames, left in ((0, ["model", "writing"]), (1, ["old", "writing"])):
        dying_in_rename(renames, lambda: pipeline.prior.save_pretrained(tmp_path / "model"))
        assert sorted(path.name.split(".")[-1] for path in tmp_path.iterdir()) == left
        folder.sweep(tmp_path / "model")
        assert os.listdir(tmp_path) == ["model"] and (tmp_path / "model/README.md").read_text() == "mine"
        type(pipeline.prior).from_pretrained(tmp_path / "model")


def test_a_locked_folder_that_a_kill_left_aside_is_there_for_the_next_command(pipeline, tmp_path, accelerator):
    """The next command's lock made an empty folder in its place, for which the old one was then removed, and the new
    one with it."""
    path = tmp_path / "pipeline"
    pipeline.save_pretrained(path)
    before = tree(path)

    def save() -> None:
        with session(path, accelerator):
            pipeline.save_pretrained(path)

    dying_in_rename(1, save)
    with session(path, accelerator):
        assert tree(path) == before
        (tmp_path / ".pipeline.lock").unlink()
        assert at_work(path) is not None, "the lock is on the folder that came back"
    assert os.listdir(tmp_path) == ["pipeline"]


def test_the_settings_of_a_pipeline_that_a_kill_left_aside_are_kept(run):
    ImagePipeline.from_run(run, SamplingConfig(temperature=0.5)).save_pretrained(run / "pipeline")
    (run / "pipeline").rename(half(run / "pipeline", "old"))
    generate.main([str(run), "--num-images", "1"])
    assert ImagePipeline.from_pretrained(run / "pipeline").sampling.temperature == 0.5


def test_a_folder_whose_successor_cannot_take_its_place_stays(tmp_path, monkeypatch):
    """It stood aside, and nobody was told."""
    (tmp_path / "model").mkdir()
    (tmp_path / "model/config.json").write_text("{}")
    steps = [Path.rename, lambda *paths: os.rename(tmp_path / "not there", paths[1]), Path.rename]
    monkeypatch.setattr(Path, "rename", lambda *paths: steps.pop(0)(*paths))
    with pytest.raises(OSError, match="not there"), folder.replacing(tmp_path / "model") as aside:
        aside.mkdir()
    assert tree(tmp_path).keys() == {"model", "model/config.json"}


def test_a_damaged_config_of_a_runs_own_model_is_written_again(pipeline, tmp_path, accelerator):
    open_run(tmp_path / "prior", prior_training(tmp_path), accelerator)
    for harm in (lambda path: path.write_text("{"), lambda path: path.unlink()):
        pipeline.prior.save_pretrained(tmp_path / "prior/model")
        harm(tmp_path / "prior/model/config.json")
        pipeline.prior.save_pretrained(tmp_path / "prior/model")
        type(pipeline.prior).from_pretrained(tmp_path / "prior/model")


def test_a_second_publish_keeps_an_edited_card_and_what_lies_beside_it(run, tmp_path, capsys):
    c = publish.Settings(run=str(run), what="prior", to=str(tmp_path / "hub"))
    publish.lay_out(c)
    publish.lay_out(c)
    assert capsys.readouterr().err == ""
    (tmp_path / "hub/README.md").write_text("my own words")
    (tmp_path / "hub/logo.png").write_text("mine")
    weights = (tmp_path / "hub/model.safetensors").read_bytes()
    for _ in range(2):
        publish.lay_out(c)
        assert f"{tmp_path / 'hub/README.md'} is not as this command wrote it, and is kept" in capsys.readouterr().err
    assert (tmp_path / "hub/README.md").read_text() == "my own words" and (
        tmp_path / "hub/logo.png"
    ).read_text() == "mine"
    assert (tmp_path / "hub/model.safetensors").read_bytes() == weights
    publish.lay_out(c.model_copy(update={"what": "tokenizer"}))  # files of the other model are removed, the user's stay
    assert (tmp_path / "hub/logo.png").exists() and "vqvae" in (tmp_path / "hub/config.json").read_text()
    (tmp_path / "hub/README.md").unlink()
    publish.lay_out(c)
    assert "library_name: smalti" in (tmp_path / "hub/README.md").read_text()


def test_a_model_that_was_changed_in_a_published_folder_is_not_replaced(run, tmp_path):
    c = publish.Settings(run=str(run), what="prior", to=str(tmp_path / "hub"))
    publish.lay_out(c)
    (tmp_path / "hub/config.json").write_text("{}")
    before = tree(tmp_path)
    with pytest.raises(Refused, match=r"hub/config\.json is not as this command wrote it; move it away"):
        publish.lay_out(c)
    assert tree(tmp_path) == before


def test_a_folder_that_an_earlier_version_laid_out_keeps_its_card(run, tmp_path, capsys):
    c = publish.Settings(run=str(run), what="prior", to=str(tmp_path / "hub"))
    publish.lay_out(c)
    (tmp_path / "hub" / written.NAME).unlink()  # as an earlier version, which wrote no note
    publish.lay_out(c)
    assert "hub/README.md is not as this command wrote it, and is kept" in capsys.readouterr().err


@pytest.mark.parametrize("format", ["png", "npz", "codes"])
def test_another_request_replaces_what_a_request_wrote_and_nothing_else(format, tmp_path, accelerator):
    c = generate.Settings(
        run=str(KEPT / "pipeline"), output=str(tmp_path / "out"), num_images=3, format=format, precision="fp32"
    )
    generate.generate(c, accelerator)
    (tmp_path / "out/README.md").write_text("my own words")
    (tmp_path / "out/album").mkdir()
    names = ("album/000000.png", "000003.png", "notes.txt", ".x.writing")
    for name in names:
        (tmp_path / "out" / name).write_text("mine")
    generate.generate(c.model_copy(update={"num_images": 2, "seed": 5, "overwrite": True}), accelerator)
    assert {(tmp_path / "out" / name).read_text() for name in names} == {"mine"}
    assert (tmp_path / "out/README.md").read_text() == "my own words"
    assert not (tmp_path / "out/000002.png").exists(), "the earlier request's third image goes"
    if format == "codes":
        assert len(codes.load_codes(tmp_path / "out").splits["generated"].codes) == 2


def test_a_card_of_codes_that_was_edited_is_kept_and_named(tmp_path, capsys):
    path = tmp_path / "codes"
    write(path)
    first = (path / "README.md").read_text()
    codes.finish(path, INFO, {"train": {"rows": 3}})
    assert (path / "README.md").read_text() != first and capsys.readouterr().err == "", "ours is written again"
    (path / "README.md").write_text("my own words")
    codes.finish(path, INFO, {"train": {"rows": 4}})
    assert (path / "README.md").read_text() == "my own words"
    assert "codes/README.md is not as this command wrote it, and is kept" in capsys.readouterr().err


# ------------------------------------------------------------------------------------- replaced while they are read


def retrained(model: Path, load: Callable[[Path], torch.nn.Module]) -> None:
    """Save other weights into a model folder, as a training does that goes on."""
    found = load(model)
    with torch.no_grad():
        for weights in found.parameters():
            weights.mul_(0.5)
    found.save_pretrained(model)


def test_a_model_that_is_replaced_while_it_is_read_is_read_again(run):
    """The file was hashed after its weights had been loaded, and may have been another by then."""
    model, savings = run / "prior/model", [lambda: retrained(run / "prior/model", load_prior), lambda: None]

    def read() -> tuple[dict, str]:
        weights = load_prior(model).state_dict()
        savings.pop(0)()
        return weights, folder.sha256(model / "model.safetensors")

    weights, sha256 = folder.read_steadily(model, read)
    assert not savings and sha256 == folder.sha256(model / "model.safetensors")
    assert all(torch.equal(tensor, weights[name]) for name, tensor in load_prior(model).state_dict().items())


def test_codes_are_of_the_tokenizer_that_encoded_them_though_a_training_saves_meanwhile(run, accelerator, monkeypatch):
    """`encode` hashed the file once more after it had opened its images, minutes after it had loaded the weights."""
    model, output = run / "tokenizer/model", run / "other"
    before = load_identified(model, "").identity
    monkeypatch.setattr(accelerator, "print", lambda *_: retrained(model, load_tokenizer))
    encode.encode(encode.Settings(run=str(run), output=str(output), precision="fp32"), accelerator)
    assert not load_identified(model, "").identity.same_codes(before)
    assert codes.read_info(output)[0].tokenizer.same_codes(before)


def test_a_request_says_the_prior_that_draws_it_though_a_training_saves_meanwhile(run):
    loaded = ImagePipeline.from_run(run, SamplingConfig())
    before = folder.sha256(run / "prior/model/model.safetensors")
    retrained(run / "prior/model", load_prior)
    said = generate.request_settings(generate.Settings(run=str(run)), Request(loaded, [], [], 1))
    assert said["prior"] == before != folder.sha256(run / "prior/model/model.safetensors")


def test_processes_that_read_different_models_are_refused():
    def disagree(_: object) -> None:
        check_agree(str(make_accelerator().process_index), "runs/x/tokenizer/model")

    both = processes.together(lambda: run_command(disagree))
    _, err = both.communicate()
    assert both.returncode == 2 and "error: runs/x/tokenizer/model was replaced while" in err


# --------------------------------------------------------------------------------------------------------- sweeping


def half(path: Path, what: str = "writing", ending: str = "9") -> Path:
    """Return where an ended process of this machine left something unfinished."""
    return path.with_name(f".{path.name}.{process.label()}{ending}.{what}")


def test_what_was_written_is_noted_in_one_order(tmp_path):
    """The note is sorted by name: in the disk's order the same publish gave different bytes on another disk."""
    for place, names in (("one", "ab"), ("other", "ba")):
        (tmp_path / place).mkdir()
        written.note(tmp_path / place, dict.fromkeys(names, "0" * 64))
    assert (tmp_path / "one" / written.NAME).read_bytes() == (tmp_path / "other" / written.NAME).read_bytes()


def test_only_what_a_process_of_ours_left_is_swept(tmp_path):
    planted(tmp_path)
    before = tree(tmp_path)
    left, alive = half(tmp_path / "notes/deep/codes.json"), half(tmp_path / "notes/curves.png", ending="")
    elsewhere = tmp_path / "notes/.model.00000000-1-1.writing"
    for each in (left, alive, elsewhere):
        each.write_text("half")
    folder.sweep(tmp_path)
    assert not left.exists() and alive.exists(), (
        "a reader of the folder, such as codebook.py, may be writing beside the lock"
    )
    assert not elsewhere.exists(), "another machine has lost the lock, and so what it was writing"
    alive.unlink()
    after = tree(tmp_path)
    assert {name: each[2] for name, each in before.items() if name in MINE} == {
        n: e[2] for n, e in after.items() if n in MINE
    }


def test_what_a_command_without_a_lock_left_goes_with_its_next_start(tmp_path):
    left, others = half(tmp_path / "a.tess"), half(tmp_path / "b.tess")
    elsewhere = tmp_path / ".a.tess.00000000-1-1.writing"
    for each in (left, others, elsewhere):
        each.write_text("half")
    folder.mend(tmp_path / "a.tess")
    assert not left.exists() and others.exists() and elsewhere.exists(), "of another machine nobody can tell"


def test_a_folder_that_a_kill_left_with_halves_alone_is_empty(tmp_path, accelerator):
    half(tmp_path / "config.yaml").write_text("ru")
    open_run(tmp_path, prior_training(tmp_path), accelerator)
    assert os.listdir(tmp_path) == ["config.yaml"]


# ------------------------------------------------------------------------------------------------------------- locks


def test_a_link_to_a_folder_has_the_folders_lock(tmp_path, accelerator):
    (tmp_path / "real/run").mkdir(parents=True)
    (tmp_path / "link").symlink_to("real")
    (tmp_path / "alias").symlink_to("real/run")
    with session(tmp_path / "real/run", accelerator):
        for path in (tmp_path / "link/run", tmp_path / "alias", tmp_path / "real/../link/run", tmp_path / "real/run/"):
            assert at_work(path) is not None
            with pytest.raises(Refused), session(path, accelerator):
                pass


def test_removing_the_lock_file_makes_no_second_writer(tmp_path, accelerator):
    """`rm run/.tokenizer.lock`, as users do with locks, let a second training begin in the same folder."""
    with session(tmp_path / "run", accelerator):
        (tmp_path / ".run.lock").unlink()
        assert at_work(tmp_path / "run") is not None
        code = (
            "import sys; from pathlib import Path; from smalti.common.lock import Lock; Lock(Path(sys.argv[1])).take()"
        )
        second = subprocess.run(
            [sys.executable, "-c", code, str(tmp_path / "run")], cwd=KEPT.parents[2], capture_output=True, text=True
        )
        assert f"Refused: {tmp_path / 'run'} is being written by process {os.getpid()} on" in second.stderr
    assert os.listdir(tmp_path) == []


def test_the_lock_goes_over_to_the_folder_that_takes_the_locked_ones_place(pipeline, tmp_path, accelerator):
    with session(tmp_path / "pipeline", accelerator):
        pipeline.save_pretrained(tmp_path / "pipeline")
        (tmp_path / ".pipeline.lock").unlink()
        assert at_work(tmp_path / "pipeline") is not None
    assert at_work(tmp_path / "pipeline") is None


@pytest.mark.parametrize("other", ["runs", "runs/x", "runs/x/tokenizer/state/deep"])
def test_a_folder_in_or_around_one_at_work_is_refused(tmp_path, accelerator, other):
    with session(tmp_path / "runs/x/tokenizer", accelerator):
        (tmp_path / "runs/x/tokenizer/.step.1.writing").write_text("half")
        before = {name: each[2] for name, each in tree(tmp_path).items()}
        with (
            pytest.raises(Refused, match=r"runs/x/tokenizer is being written by process"),
            session(tmp_path / other, accelerator),
        ):
            pass
        assert {name: each[2] for name, each in tree(tmp_path).items()} == before
        with session(tmp_path / "runs/x/codes", accelerator):  # the folder beside it is free
            pass


def test_a_command_does_not_wait_for_itself(tmp_path, accelerator):
    """`generate --output RUN/pipeline` waited for ever: it writes the pipeline while it holds the output."""
    with session(tmp_path / "a", accelerator), pytest.raises(Refused, match="by this very command"):
        Lock(tmp_path / "a").take(wait=True)


# ------------------------------------------------------------------------------------------------- names and modes


@pytest.mark.parametrize(
    "spelled", ["run/pipeline", "run/pipeline/", "run/./pipeline//", "run/pipeline/../pipeline/", "here"]
)
def test_a_folder_means_the_same_however_it_is_spelled(tmp_path, monkeypatch, spelled):
    """`RUN/pipeline/` wrote its samples into the model folder, as `pipeline/-samples`."""
    shutil.copytree(KEPT / "pipeline", tmp_path / "run/pipeline")
    monkeypatch.chdir(tmp_path / "run/pipeline" if spelled == "here" else tmp_path)
    c = generate.Settings(run="." if spelled == "here" else spelled)
    assert generate.output_folder(c).resolve() == tmp_path / "run/pipeline-samples"
    assert log_path(Path(c.run)).resolve() == tmp_path / "run/pipeline.log"


def test_beside_two_dots_is_beside_the_folder_they_mean(tmp_path, monkeypatch):
    (tmp_path / "run/inner").mkdir(parents=True)
    monkeypatch.chdir(tmp_path / "run/inner")
    assert path_beside(Path(".."), ".log") == tmp_path / "run.log"


@pytest.mark.parametrize("umask", [0o002, 0o022, 0o077])
def test_the_umask_is_kept(pipeline, tmp_path, umask):
    """Files had mode 0644 whatever the umask; safetensors would give them 0600."""
    before = os.umask(umask)
    try:
        pipeline.save_pretrained(tmp_path / "pipeline")
        folder.write_json(tmp_path / "a.json", {})
        with folder.replacing(tmp_path / "b") as aside:
            torch.save({}, aside)
            aside.chmod(0o600)
    finally:
        os.umask(before)
    for path in tmp_path.rglob("*"):
        assert stat.S_IMODE(path.stat().st_mode) == (0o777 if path.is_dir() else 0o666) & ~umask, path


def test_a_file_that_is_written_again_keeps_its_mode(pipeline, tmp_path):
    pipeline.prior.save_pretrained(tmp_path / "model")
    folder.write_json(tmp_path / "a.json", {})
    modes = {tmp_path / "model": 0o750, tmp_path / "model/model.safetensors": 0o640, tmp_path / "a.json": 0o600}
    for path, mode in modes.items():
        path.chmod(mode)
    pipeline.prior.save_pretrained(tmp_path / "model")
    folder.write_json(tmp_path / "a.json", {})
    assert {path: stat.S_IMODE(path.stat().st_mode) for path in modes} == modes


def test_publishing_leaves_the_modes_of_what_it_links(run, tmp_path):
    for shard in (run / "codes").glob("*.parquet"):
        shard.chmod(0o440)
    laid = publish.lay_out(publish.Settings(run=str(run), what="codes", to=str(tmp_path / "hub")))
    for shard in (*(run / "codes").glob("*.parquet"), *laid.glob("*.parquet")):
        assert stat.S_IMODE(shard.stat().st_mode) == 0o440


def test_a_config_of_something_else_is_not_a_run(tmp_path, accelerator):
    """Before a run had a state, its config.yaml was replaced unread."""
    (tmp_path / "config.yaml").write_text(yaml.safe_dump({"model": {"target": "ldm"}, "data": {}}))
    with pytest.raises(Refused, match="holds something that no training wrote; give another --run"):
        open_run(tmp_path, prior_training(tmp_path), accelerator)
    (tmp_path / "config.yaml").write_text("a: [")
    with pytest.raises(UserError, match=r"config\.yaml is not a YAML file"):
        open_run(tmp_path, prior_training(tmp_path), accelerator)


def test_a_request_of_something_else_is_none_of_ours(tmp_path):
    for value in ({}, {"url": "http://a"}, {"format": "png"}, {"format": "png", "labels": "a"}):
        (tmp_path / ".request.json").write_text(json.dumps(value))
        with pytest.raises(Refused, match="holds something else; give another --output"):
            generate.read_request(tmp_path)


def test_the_whole_chain_replaces_no_summary_that_it_did_not_write(tmp_path):
    (tmp_path / "curves.png").write_text("my own")
    with pytest.raises(Refused, match=r"curves\.png is not as this command wrote it"):
        chain.check_summary_is_ours(tmp_path)
    (tmp_path / ".seconds.json").write_text("{}")
    chain.check_summary_is_ours(tmp_path)


# ---------------------------------------------------------------------------------------------------- what a file says


@pytest.mark.parametrize(
    "where, lost",
    [
        ("pipeline/tokenizer/config.json", "image_size"),
        ("pipeline/tokenizer/config.json", "quantizer.normalize"),
        ("pipeline/prior/config.json", "any_order"),
        ("pipeline/prior/config.json", "architecture.kind"),
        ("pipeline/prior/config.json", "layout.grids.0.factors"),
        ("kmeans/config.json", "image_channels"),
        ("codes/codes.json", "layout.grids.0.depth"),
        ("codes/codes.json", "condition.absent"),
    ],
)
def test_a_setting_that_is_lost_from_a_file_is_asked_for_and_no_default_is_taken(where, lost, tmp_path):
    """Without image_size a tokenizer of 8 x 8 pixels read 16 x 16; a folder of format 1 has its defaults."""
    here = shutil.copytree(KEPT.with_name(f"format_{folder.FORMAT}"), tmp_path / "now")
    said = folder.read_json(here / where)
    *above, last = lost.split(".")
    table = said
    for part in above:
        table = table[int(part) if part.isdecimal() else part]
    del table[last]
    folder.write_json(here / where, said)
    read = {"tokenizer": load_tokenizer, "kmeans": load_tokenizer, "prior": load_prior, "codes": codes.read_info}
    with pytest.raises(UserError, match=rf"\.json: {lost} must be given, and is not there"):
        read[(here / where).parent.name]((here / where).parent)


@pytest.mark.parametrize(
    "found", [{}, {"format": None}, {"format": 0}, {"format": -1}, {"format": True}, {"format": "2"}]
)
def test_a_file_without_a_format_there_is_is_said_to_be_changed_and_no_newer_smalti_is_asked_for(found):
    with pytest.raises(UserError, match=r"a\.json must say its format, a whole number from 1 to \d+, ") as told:
        folder.check_format({"kind": "smalti.codes", **found}, "smalti.codes", Path("a.json"))
    assert "update smalti" not in str(told.value)
