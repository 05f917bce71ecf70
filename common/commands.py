"""The commands by name: what `smalti NAME` runs, and what a command tells its user to type next.

Every command is a script, `python tokenizer/encode.py`, and has a name, `smalti encode`. Code and messages say the
script; `typed` replaces it by the name for a user who types names.
"""

import os
import re
import shlex
from pathlib import Path
from typing import NamedTuple

WHOLE = "SMALTI_RUN"  # in the environment of a stage: the process of the pipeline/run.py that started it
BY_NAME = "SMALTI_BY_NAME"  # in the environment of a command that was started by its name, and of all it starts
ROOT = Path(__file__).resolve().parents[1]

ALONE = "python"  # starts a command of one process


class Command(NamedTuple):
    script: str
    purpose: str
    launcher: str = "accelerate launch -q"  # what a hint starts it with

    @property
    def module(self) -> str:
        return f"smalti.{self.script.removesuffix('.py').replace('/', '.')}"


COMMANDS = {
    "run": Command("pipeline/run.py", "the whole chain: tokenizer, codes, prior, images", ALONE),
    "train-tokenizer": Command("tokenizer/train.py", "stage one: images -> a tokenizer"),
    "cluster": Command("tokenizer/cluster.py", "stage one without a network: K-means or a Gaussian mixture of patches"),
    "convert": Command("tokenizer/convert.py", "stage one by somebody else's VQGAN: LlamaGen, taming, diffusers"),
    "codebook": Command("tokenizer/codebook.py", "draw the codebook, and say what to change where codes lie idle"),
    "latents": Command("tokenizer/latents.py", "draw the latents of a VAE, and say what to change where they lie idle"),
    "amortization": Command("tokenizer/amortization.py", "what a VAE's encoder costs beside a q(z | x) of each image"),
    "encode": Command("tokenizer/encode.py", "images -> codes, or vectors"),
    "train-prior": Command("prior/train.py", "stage two: codes -> a prior"),
    "fit-prior": Command("prior/fit.py", "stage two without a network: a mixture of Gaussians over vectors, by EM"),
    "redraw": Command("prior/redraw.py", "the images' codes as a prior draws them, to train a decoder on"),
    "generate": Command("pipeline/generate.py", "a prior -> images"),
    "tune": Command("pipeline/tune.py", "choose temperature, top-k, guidance by what they draw"),
    "evaluate-tokenizer": Command("tokenizer/evaluate.py", "reconstructions: PSNR, SSIM, bits, use of the codebook"),
    "compare": Command("tokenizer/compare.py", "a tokenizer beside the one it began from, on new and old images"),
    "evaluate-prior": Command("prior/evaluate.py", "nats per code, beside independent and uniform codes"),
    "evaluate": Command("pipeline/evaluate.py", "bits per dimension, Fréchet distance, precision, copies"),
    "report": Command("pipeline/report.py", "all of a run on one page", ALONE),
    "app": Command("pipeline/app.py", "a page to play with: draw, look, complete, paint with codes", ALONE),
    "publish": Command("pipeline/publish.py", "a run as a Hub repository, with a card that says what it is", ALONE),
    "export-lm": Command("pipeline/export_lm.py", "codes as tokens of a language model of transformers", ALONE),
    "export-onnx": Command("pipeline/export_onnx.py", "encoder, decoder and prior as ONNX graphs", ALONE),
    "compress": Command("pipeline/compress.py", "images -> few bytes, and back", ALONE),
    "configs": Command("pipeline/configs.py", "list the shipped configs, or copy one to change it", ALONE),
    "doctor": Command("pipeline/doctor.py", "versions, devices, memory; whether a config fits this machine", ALONE),
}
READ_BY = {  # files of a config, by the command that reads them
    "tokenizer.yaml": "tokenizer/train.py",
    "cluster.yaml": "tokenizer/cluster.py",
    "prior.yaml": "prior/train.py",
    "fit.yaml": "prior/fit.py",
    "generate.yaml": "pipeline/generate.py",
}
_NAMES = {command.script: name for name, command in COMMANDS.items()}
_SCRIPT = re.compile(rf"(?:accelerate launch (?:-q )?|python )?\b({'|'.join(map(re.escape, _NAMES))})(?![\w/])")


def by_name() -> bool:
    """Return whether the user types names: this command was started by one, or there is no checkout with scripts."""
    return BY_NAME in os.environ or not (ROOT / "pyproject.toml").is_file()


def typed(text: str) -> str:
    """Return a text with each command as the user types it: its script, or its name where names are typed."""
    return _SCRIPT.sub(lambda found: f"smalti {_NAMES[found[1]]}", text) if by_name() else text


def as_typed(script: str, *words: object) -> str:
    """Return the command line that starts a script, as the user types it and a shell reads it."""
    name = _NAMES[script]
    start = f"smalti {name}" if by_name() else f"{COMMANDS[name].launcher} {quoted(found(script))}"
    return " ".join([start, *map(quoted, words)])


def found(script: str) -> str:
    """Return the path of a script from the current folder: relative in the checkout, absolute elsewhere."""
    there = ROOT / script
    try:
        here = os.path.samefile(script, there)
    except OSError:
        here = False
    return script if here or not there.is_file() else str(there)


def quoted(word: object) -> str:
    """Return a word quoted for a shell; a path that begins like an option gets `./` in front."""
    text = str(word)
    return shlex.quote(f"./{text}" if isinstance(word, Path) and text.startswith("-") else text)
