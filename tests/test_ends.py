"""Commands end with a message that says what happened: missing memory or descriptors, lost files, other systems,
dtypes, threads."""

import errno
import io
import json
import os
import platform
import resource
import shutil
import signal
import subprocess
import sys
import threading
from contextlib import contextmanager, suppress
from pathlib import Path

import PIL.Image
import pyarrow as pa
import pytest
import torch
from safetensors import SafetensorError

from smalti.common import ends, folder, markdown
from smalti.common.commands import WHOLE
from smalti.common.config import read_yaml
from smalti.common.data.images import open_images
from smalti.common.data.sources.files import read_source_text
from smalti.common.data.split import ImageSplit
from smalti.common.errors import UserError
from smalti.common.launch import FAULT, MACHINE, USER_ERROR, Interrupt, _fail, _unexpected
from smalti.common.lock import Lock, _lock_folder
from smalti.common.record import commit, cores, machine_info
from smalti.common.run_folder import read_lines
from smalti.common.seeds import generator, uniforms
from smalti.common.session import log_path, session
from smalti.common.shown import Outlet, shown
from smalti.common.tensors import opened_tensors, read_tensors
from smalti.metrics.feature_extractor import read_weights
from smalti.pipeline.compress import Settings as Compression
from smalti.pipeline.compress import compress_or_expand, is_compressed, read_bytes
from smalti.pipeline.doctor import machine_lines
from smalti.pipeline.evaluate import Settings as Evaluation
from smalti.pipeline.evaluate import evaluate
from smalti.pipeline.generate import Settings as Generation
from smalti.pipeline.generate import generate
from smalti.pipeline.image_pipeline import ImagePipeline
from smalti.pipeline.publish import Settings as Publication
from smalti.pipeline.publish import lay_out
from smalti.pipeline.report import Settings as Report
from smalti.pipeline.report import write_report
from smalti.prior.draw import image_uniforms
from smalti.prior.sampling_config import SamplingConfig
from smalti.prior.train import train as train_prior
from smalti.tokenizer.encode import Settings as EncodeSettings
from smalti.tokenizer.encode import encode
from smalti.tokenizer.model import load_tokenizer
from smalti.tokenizer.train import train as train_tokenizer
from tests.conftest import prior_training, tokenizer_training

ROOT = Path(__file__).resolve().parents[1]


def in_a_thread(work):
    """Run a function in a new thread, and return its result or raise its exception."""
    results: list = []

    def run():
        try:
            results.append(work())
        except BaseException as error:
            results.append(error)

    thread = threading.Thread(target=run)
    thread.start()
    thread.join()
    if isinstance(results[0], BaseException):
        raise results[0]
    return results[0]


def caused(error: BaseException, by: BaseException) -> BaseException:
    error.__cause__ = by
    return error


LACKING = {
    "memory": [
        MemoryError(),
        pa.ArrowMemoryError("malloc of size 4096 failed"),
        RuntimeError("could not create a primitive"),  # from oneDNN
        RuntimeError(
            "[enforce fail at alloc_cpu.cpp:124] err == 0. DefaultCPUAllocator: can't allocate memory: you tried to"
        ),
        OSError(errno.ENOMEM, "Cannot allocate memory"),
        RuntimeError("unable to mmap 4096 bytes from file <model.safetensors>: Cannot allocate memory (12)"),
        ImportError("libtorch_cpu.so: failed to map segment from shared object"),
        caused(ValueError("an error occurred while generating"), OSError(errno.ENOMEM, "Cannot allocate memory")),
        SafetensorError("Error while deserializing: IoError: Cannot allocate memory (os error 12)"),
    ],
    "device's memory": [torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB")],
    "too many files": [
        OSError(errno.EMFILE, "Too many open files", "a.png"),
        OSError(errno.ENFILE, "Too many open files in system"),
        RuntimeError("unable to open shared memory object </torch_1> in read-write mode: Too many open files (24)"),
        RuntimeError("received 0 items of ancdata"),
        SafetensorError("Error while serializing: I/O error: Too many open files (os error 24)"),
        caused(RuntimeError("a wrapper"), OSError(errno.EMFILE, "Too many open files")),
    ],
    "threads or processes": [RuntimeError("can't start new thread"), BlockingIOError(errno.EAGAIN, "fork")],
    "reads images": [
        RuntimeError("DataLoader worker (pid(s) 17699) exited unexpectedly"),
        RuntimeError("DataLoader worker (pid 3) is killed by signal: Killed."),
    ],
    "does not answer": [OSError(errno.EIO, "Input/output error", "a.png"), OSError(errno.ESTALE, "Stale file handle")],
}


@pytest.mark.parametrize("words, error", [(words, error) for words, errors in LACKING.items() for error in errors])
def test_what_the_machine_lacks_is_status_1_and_a_line_that_says_what_to_do(words, error):
    """Full memory and too few descriptors were reported as "a fault of smalti"."""
    message, status = _unexpected(error)
    assert status == MACHINE and words in message and "fault of" not in message and "\n" not in message


@pytest.mark.parametrize("error", [ValueError("3 is no size"), RuntimeError("shapes do not match"), KeyError("memory")])
def test_what_nobody_expected_stays_a_fault_of_ours(error, capsys):
    message, status = _unexpected(error)
    assert status == FAULT and "this is a fault of smalti" in message


def test_a_file_that_is_gone_while_a_command_works_is_said_to_be(tmp_path):
    """Removing a run while it trained was reported as "a fault of smalti"."""
    with pytest.raises(FileNotFoundError) as raised:
        (tmp_path / "run/metrics.jsonl").write_text("")
    message, status = _unexpected(raised.value)
    assert (
        status == USER_ERROR
        and f"{tmp_path}/run/metrics.jsonl is not there any more: it was removed or renamed" in message
    )


@pytest.mark.skipif(not Path("/proc/self").exists(), reason="a system without /proc")
@pytest.mark.parametrize("place", ["/proc/x", "/proc/x/y/samples", "/proc/self/task/x"])
def test_a_folder_where_none_can_be_made_is_said_to_be_no_place_to_write(place):
    """mkdir says there that the folder does not exist, and the message was that somebody had removed it."""
    with pytest.raises(OSError) as raised:
        Path(place).mkdir(parents=True)
    told, status = ends.explain_end(raised.value)
    assert told.startswith("cannot write: ") and "give another folder" in told and status == USER_ERROR
    assert ends.GONE not in told


def test_a_file_that_is_gone_from_a_folder_that_can_be_written_was_removed(tmp_path):
    with pytest.raises(OSError) as raised:
        (tmp_path / "run/a.json").read_text()
    assert ends.GONE in ends.explain_end(raised.value)[0]


def test_a_file_of_the_code_that_is_missing_is_a_fault_of_ours(capsys):
    assert _unexpected(FileNotFoundError(errno.ENOENT, "No such file", str(ROOT / "common/nothing.json")))[1] == FAULT


@pytest.mark.parametrize(
    "variable",
    ["HF_HOME", "HF_DATASETS_CACHE", "MPLCONFIGDIR", "TORCHINDUCTOR_CACHE_DIR", "TRITON_CACHE_DIR", "TMPDIR"],
)
def test_a_cache_that_cannot_be_written_is_named_by_the_variable_that_moves_it(variable, tmp_path, monkeypatch):
    for each in ends.CACHES:
        monkeypatch.delenv(each, raising=False)
    monkeypatch.setenv(variable, str(tmp_path / "cache"))
    inner = PermissionError(errno.EACCES, "Permission denied", str(tmp_path / "cache/a/b.lock"))
    message, status = _unexpected(caused(RuntimeError("backend failed"), inner))
    assert status == USER_ERROR and message.endswith(f"make it writable, or set {variable} to a folder that is")


def test_the_place_a_cache_has_without_a_variable_is_known_too(monkeypatch):
    for each in ends.CACHES:
        monkeypatch.delenv(each, raising=False)
    assert ends.cache_variable(Path.home() / ".cache/huggingface/token") == "HF_HOME"
    assert ends.cache_variable(Path("runs/digits")) is None


def test_a_run_that_was_removed_does_not_come_back_for_its_log(tmp_path, accelerator):
    with pytest.raises(FileNotFoundError), session(tmp_path / "run/tokenizer", accelerator):
        (tmp_path / "run").rename(tmp_path / "renamed")
        (tmp_path / "run/tokenizer/metrics.jsonl").write_text("")
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    "error", ["ImportError('libtorch_cpu.so: failed to map segment')", "SystemError('error return')"]
)
def test_an_import_without_memory_ends_in_one_line(error):
    """With `ulimit -v` below what torch takes, importing it ended in a traceback."""
    code = f"from smalti.common.starting import answer_signals\nanswer_signals()\nraise {error}"
    told = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert told.returncode == 1 and told.stderr.count("\n") == 1
    assert told.stderr.startswith("error: this machine's memory is full")


def test_an_image_that_is_not_read_for_want_of_descriptors_is_no_damaged_one(tmp_path, accelerator):
    """With too few descriptors good images were left out as damaged, and training continued without them."""
    c = tokenizer_training(tmp_path).images.model_copy(update={"source": str(tmp_path / "pictures"), "memory": 0})
    for split in ("train", "test"):
        for number in range(4):
            path = tmp_path / "pictures" / split / "a" / f"{number}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            PIL.Image.new("L", (16, 16), 40 * number).save(path)
    split = open_images(c, (16, 16), 1).splits["train"]
    assert isinstance(split, ImageSplit)
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (3, hard))
    try:
        with pytest.raises(OSError) as raised:
            split.read(torch.tensor([0, 1]))
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    assert ends.lack(raised.value) is not None


@pytest.mark.parametrize(
    "words", ["error return without exception set", "<method> returned NULL without setting an exception"]
)
def test_an_import_inside_a_command_that_lost_its_memory_error_is_a_lack_of_memory(words):
    """With 1 MiB more, importing scikit-learn for the digits ended in a SystemError and in status 70."""
    assert ends.lack(SystemError(words)) == ends.LACKS[1].told and ends.lack(SystemError("bad argument")) is None


@contextmanager
def descriptors(number):
    """Allow so many more files to be opened, and no more."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    free = os.dup(0)  # the lowest free number: the limit bounds numbers, so none above it may be in use
    os.close(free)
    resource.setrlimit(resource.RLIMIT_NOFILE, (free + number, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


READERS = {  # each with a number of files it may open, which is too small
    "JSON": (0, lambda run: folder.read_json(run / "codes/codes.json")),
    "YAML": (0, lambda run: read_yaml(run / "tokenizer/config.yaml")),
    "lines": (0, lambda run: read_lines(run / "tokenizer/metrics.jsonl")),
    "metadata": (0, lambda run: read_source_text(run / "README.md", 100)),
    "a compressed file": (0, lambda run: read_bytes(run / "four.tess")),
    "a compressed file's beginning": (0, lambda run: is_compressed(run / "four.tess")),
    "weights of features": (1, lambda run: read_weights(run / "prior/model/model.safetensors")),
    "a model": (1, lambda run: load_tokenizer(run / "tokenizer/model")),
    "its tensors": (1, lambda run: read_tensors(run / "prior/model/model.safetensors")),
    "a file's heads": (1, lambda run: opened_tensors(run / "prior/model/model.safetensors").__enter__()),
    "locks inside": (0, lambda run: Lock(run)._overlapping()),
    "who holds one": (0, lambda run: Lock(run)._holder()),
    "a folder to lock": (0, lambda run: _lock_folder(run)),
    "halves to sweep": (0, lambda run: folder.sweep(run)),
    "the commit": (0, lambda run: commit()),
}


@pytest.mark.parametrize("what", READERS)
def test_what_cannot_be_opened_for_want_of_descriptors_is_neither_damaged_nor_absent(finished_run, tmp_path, what):
    """safetensors says of every file it cannot open that there is none: a report ended well with "there is no
    model.safetensors" in place of its pictures, and without its commit. Locks in folders that could not be listed were
    not seen."""
    run = shutil.copytree(finished_run, tmp_path / "run")
    (run / "README.md").write_text("a card")
    (run / "four.tess").write_bytes(b"any")
    (run / ".run.lock").write_text("{}")
    number, read = READERS[what]
    with suppress(Exception):
        read(run)  # the first read imports modules, which opens files
    with descriptors(number), pytest.raises(Exception) as raised:
        read(run)
    assert ends.lack(raised.value) == ends.LACKS[2].told and not isinstance(raised.value, UserError)


def test_a_git_without_memory_is_no_checkout_without_git(tmp_path, monkeypatch):
    """Under `ulimit -v` a result was written without its commit."""
    told = "fatal: Out of memory, malloc failed (tried to allocate 9 bytes)"
    (tmp_path / "git").write_text(f"#!/bin/sh\necho '{told}' >&2\nexit 128\n")
    (tmp_path / "git").chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    with pytest.raises(OSError) as raised:
        commit()
    assert ends.lack(raised.value) == ends.LACKS[1].told


# -------------------------------------------------------------------------------------------------------- other systems


def test_a_system_without_affinity_counts_its_cores(monkeypatch):
    """macOS has no `os.sched_getaffinity`: doctor and every evaluation ended there with status 70."""
    monkeypatch.delattr(os, "sched_getaffinity", raising=False)
    assert cores() == os.cpu_count() == machine_info()["cores"]
    assert any(f"{os.cpu_count()} cores" in line for line in machine_lines())


def test_a_system_without_sysconf_tells_its_memory(monkeypatch):
    monkeypatch.delattr(os, "sysconf", raising=False)
    assert machine_info()["memory_gib"] > 0


# ---------------------------------------------------------------------------------------- a stage that outlived its run


def test_a_stage_whose_run_py_was_killed_is_explained_with_how_to_end_it(tmp_path, monkeypatch):
    """SIGKILL of pipeline/run.py alone left a training that held the run, and the next start did not say whose it
    was."""
    gone = subprocess.Popen([sys.executable, "-c", ""])
    gone.wait()
    monkeypatch.setenv(WHOLE, str(gone.pid))
    lock, second = Lock(tmp_path / "run"), Lock(tmp_path / "run")
    lock.take()
    with pytest.raises(
        UserError, match=rf"process {gone.pid}\) was killed. Wait for it, or end it with `kill {os.getpid()}`"
    ):
        in_a_thread(second.take)
    lock.release()
    monkeypatch.setenv(WHOLE, str(os.getpid()))  # a run.py that is alive
    lock.take()
    assert json.loads(lock.path.read_text())["host"] == platform.node()
    with pytest.raises(UserError, match="wait for it, stop it, or give another folder"):
        in_a_thread(second.take)
    lock.release()


# ---------------------------------------------------------------------------------------------------------------- seeds


@pytest.mark.parametrize("seed", [0, 1, 7])
def test_seeds_that_share_their_lowest_32_bits_draw_different_numbers(seed):
    """Seeds 0 and 2**32 drew the same image: torch's CPU generator reads 32 bits of a seed."""
    others = [seed, seed + 2**32, seed + 2**33, seed + 2**61, seed + 2**62]
    drawn = image_uniforms(others, 16, 1)
    assert len({tuple(row.flatten().tolist()) for row in drawn}) == len(others)
    assert (drawn > 0).all() and (drawn <= 1).all() and drawn.dtype == torch.float32
    assert len({torch.rand(1, generator=generator(each)).item() for each in others}) == len(others)


@pytest.mark.parametrize("seed", [0, 3, 2**31, 2**32 - 1])
def test_seeds_below_32_bits_draw_what_they_always_drew(seed):
    plain = torch.Generator().manual_seed(seed)
    assert torch.equal(uniforms(seed, 5, 2), torch.rand(5, 2, generator=plain))
    assert torch.equal(
        torch.rand(4, generator=generator(seed)), torch.rand(4, generator=torch.Generator().manual_seed(seed))
    )


# -------------------------------------------------------------------------------------------------------------- threads


def test_every_command_works_in_a_thread(finished_run, tmp_path, accelerator):
    """Training in a thread ended in `signal only works in main thread`."""
    run = shutil.copytree(finished_run, tmp_path / "run")
    shutil.rmtree(run / "tokenizer/state/step_00000006")
    shutil.rmtree(run / "prior/state/step_00000006")  # both resume from their third step
    again = EncodeSettings(run=str(run), views=2, shard_size=500, precision="fp32")
    drawn = Generation(run=str(run), num_images=10)
    assert in_a_thread(lambda: train_tokenizer(tokenizer_training(run), accelerator)) == run / "tokenizer/model"
    assert in_a_thread(lambda: encode(again, accelerator)) == run / "codes"
    assert in_a_thread(lambda: train_prior(prior_training(run), accelerator)) == run / "prior/model"
    assert in_a_thread(lambda: generate(drawn, accelerator, SamplingConfig())) == run / "samples"
    assert in_a_thread(lambda: evaluate(Evaluation(run=str(run), images=0), accelerator)).exists()
    assert in_a_thread(lambda: write_report(Report(run=str(run), completion=False))).exists()
    assert in_a_thread(lambda: lay_out(Publication(run=str(run)))) == run / "hub/pipeline"
    in_a_thread(lambda: compress_or_expand(Compression(run=str(run), images=2), run))
    assert (run / "compressed.tess").exists()


def test_in_a_thread_signals_stay_whoevers_they_are(accelerator):
    before = signal.getsignal(signal.SIGINT)
    with Interrupt(accelerator):
        assert signal.getsignal(signal.SIGINT) is not before  # in the main thread signals are handled
    assert signal.getsignal(signal.SIGINT) is before

    def work():
        with Interrupt(accelerator) as interrupt:
            return signal.getsignal(signal.SIGINT) is before and not interrupt.asked()

    assert in_a_thread(work)


# ------------------------------------------------------------------------------------------------------------ precision


@pytest.fixture(scope="module")
def pipeline(finished_run):
    return ImagePipeline.from_run(finished_run, SamplingConfig())


@pytest.mark.parametrize("given", [(torch.bfloat16,), ("cpu", torch.float16), (torch.device("cpu"), torch.float64)])
def test_another_dtype_is_refused_by_name_and_nothing_is_cast(pipeline, given):
    """`.to(torch.bfloat16)` cast the weights, and the model saved afterwards could not be loaded."""
    with pytest.raises(UserError, match=r"weights are kept in float32, got (bfloat16|float16|float64)"):
        pipeline.to(*given)
    with pytest.raises(UserError, match="precision='bf16'"):
        pipeline.to("cpu", dtype=torch.bfloat16)
    assert {p.dtype for p in (*pipeline.prior.parameters(), *pipeline.tokenizer.parameters())} == {torch.float32}


def test_a_device_with_float32_is_taken(pipeline):
    assert pipeline.to("cpu", torch.float32) is pipeline and pipeline.to(device="cpu") is pipeline
    with pytest.raises(UserError, match="to takes a device"):
        pipeline.to("cpu", non_blocking=True)


@pytest.mark.parametrize(
    "option, told",
    [
        ({"torch_dtype": torch.bfloat16}, "weights are kept in float32, got bfloat16"),
        ({"dtype": "float16"}, "weights are kept in float32, got float16"),
        ({"device_map": "auto"}, r"device_map='auto'; load it, then \.to"),
        ({"variant": "fp16"}, "there is one set of weights"),
        ({"use_safetensors": False}, "safetensors and nothing else"),
        ({"trust_remote_code": True}, "no code of a repository is run"),
        ({"safety_checker": None}, "does not take safety_checker=None"),
    ],
)
def test_an_option_of_other_libraries_is_refused_by_name_with_what_does_it(tmp_path, option, told):
    with pytest.raises(UserError, match=told):
        ImagePipeline.from_pretrained(tmp_path, **option)


def test_options_that_change_nothing_are_taken(pipeline, tmp_path):
    pipeline.save_pretrained(tmp_path / "saved")
    options = {"torch_dtype": torch.float32, "use_safetensors": True, "device_map": None, "trust_remote_code": False}
    again = ImagePipeline.from_pretrained(tmp_path / "saved", **options)
    assert torch.equal(again(seed=3, num_images=2).codes, pipeline(seed=3, num_images=2).codes)


def test_a_model_that_was_cast_by_hand_is_not_saved(finished_run, tmp_path):
    """Its identity would differ from that in the codes, so no pipeline could load it."""
    cast = ImagePipeline.from_run(finished_run, SamplingConfig())
    cast.tokenizer.to(torch.bfloat16)
    with pytest.raises(UserError, match=r"weights are saved in float32, and .* is bfloat16: load the model again"):
        cast.save_pretrained(tmp_path / "saved")
    assert not list(tmp_path.iterdir())


# -------------------------------------------------------------------------------------------- characters that would act

ACTING = {
    "\x1b[2J": r"\x1b[2J",
    "a\nb": r"a\nb",
    "\u202eg": r"\u202eg",
    "\x9b3": r"\x9b3",
    "\udcff": r"\udcff",
    "\r": r"\r",
}


@pytest.mark.parametrize("name, seen", ACTING.items())
def test_a_character_that_would_act_is_shown_on_terminals_in_logs_and_in_cards(
    name, seen, tmp_path, accelerator, capsys
):
    """A file name could clear the terminal, colour it, or write a line that looked like ours."""
    assert shown(f"{name}.png") == f"{seen}.png"
    assert _fail(f"error: {name}.png is damaged", 2) == 2
    assert capsys.readouterr().err == f"error: {seen}.png is damaged\n"
    (tmp_path / "run/state").mkdir(parents=True)
    with pytest.raises(UserError), session(tmp_path / "run", accelerator):
        raise UserError(f"{name}.png is damaged")
    assert log_path(tmp_path / "run").read_text().endswith(f"UserError: {seen}.png is damaged\n")
    assert name not in markdown.plain(f"class {name}!") and name not in markdown.fenced(f"x{name}y").replace("a\nb", "")


def test_the_outlets_show_names_and_leave_progress_bars_their_moves():
    stream = io.StringIO()
    outlet = Outlet(stream)
    for text in ("\rtrain: 3/4", "\n", "\x1b[A", "two\nlines\n", "a \x1b[31m name", "\u202e"):
        outlet.write(text)
    assert stream.getvalue() == "\rtrain: 3/4\n\x1b[Atwo\nlines\na \\x1b[31m name\\u202e"
    assert outlet.isatty() is False


def test_letters_of_any_language_are_left_as_they_are():
    name = "Straße, naïve, 東京, עברית, 🎨, e\u0301"
    assert shown(name) == name
