"""Training a large prior: weights sharded over processes (FSDP2), recomputed activations, a compiled forward."""

import functools
import math
import shutil
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from accelerate import DistributedType, FullyShardedDataParallelPlugin
from accelerate.commands.launch import _validate_launch_command, launch_command_parser
from accelerate.utils.launch import prepare_multi_gpu_env
from safetensors.torch import load_file

from smalti.common import config, folder, sharding
from smalti.common.errors import UserError
from smalti.common.launch import make_accelerator
from smalti.common.run_folder import read_metrics
from smalti.prior.code_head import nll_each
from smalti.prior.compilation import PAYS_FROM, forward_of
from smalti.prior.config import TrainConfig
from smalti.prior.diffusion.config import DiffusionConfig
from smalti.prior.model import load_prior
from smalti.prior.train import train
from smalti.prior.transformer.config import TransformerConfig
from smalti.prior.transformer.model import TransformerPrior
from smalti.tokenizer.encode import Settings as EncodeSettings
from smalti.tokenizer.encode import encode
from tests import processes
from tests.conftest import prior_training

SHARDING = processes.ROOT / "configs/imagenet256/fsdp.yaml"
ADAMW = {
    "model": TransformerConfig(depth=2, dim=32, heads=2, dropout=0.0),
    "label_dropout": 0.0,
    "matrix_lr": None,
    "clip": 0.05,
    "accumulate": 2,
}
MUON = {"model": ADAMW["model"], "label_dropout": 0.0, "recompute": True}
DIFFUSION = DiffusionConfig(depth=2, dim=32, heads=2)
# Only its first evaluation is the best: weights gathered for it are sharded again for the next step.
WORSE = {"lr": 3.0, "warmup": 1, "ema_decay": 0.0, "steps": 3, "evaluate_every": 1, "save_every": 3}
LAST = "state/step_00000006"


def config_files(*settings) -> list[Path]:
    files = [Path(f"{c.run}.yaml") for c in settings]
    for c, file in zip(settings, files, strict=True):
        config.write_yaml(c, file)
    return files


def environment_of_the_launcher() -> dict[str, str]:
    """Return the variables that `accelerate launch --config_file configs/imagenet256/fsdp.yaml` sets for sharding."""
    words = ["--config_file", str(SHARDING), "--num_processes", "2", "prior/train.py"]
    arguments, *_ = _validate_launch_command(launch_command_parser().parse_args(words))
    return {name: value for name, value in prepare_multi_gpu_env(arguments).items() if name.startswith("FSDP_")}


def train_in_parts(*settings) -> None:
    """Train with each of the settings in turn, in two new processes that are sharded as the launcher would."""
    with pytest.MonkeyPatch.context() as environment:
        for name, value in environment_of_the_launcher().items():
            environment.setenv(name, value)
        forked = processes.command_of_two("tests/prior_in_parts.py", *config_files(*settings))
        assert processes.finish(forked).count("in parts\n") == len(settings)


def half_of(run, copied_to):
    """Copy the run as it was after step 3 of 6."""
    shutil.copytree(run / "prior", copied_to / "prior")
    folder.remove(copied_to / "prior" / LAST)
    folder.remove(copied_to / "prior/config.yaml")  # it names the other folder
    return copied_to


def same(a, b, rtol):
    """Compare every number that two runs leave: weights, averages, both optimizers' states, and the figures."""
    for name in ("model/model", *(f"{LAST}/{path.stem}" for path in (a / "prior" / LAST).glob("*.safetensors"))):
        x, y = (load_file(run / f"prior/{name}.safetensors") for run in (a, b))
        assert {key: tensor.shape for key, tensor in x.items()} == {key: tensor.shape for key, tensor in y.items()}
        for key in x:
            assert (x[key] - y[key]).norm() <= rtol * y[key].norm(), (name, key)
    for x, y in zip(*(read_metrics(run / "prior/metrics.jsonl") for run in (a, b)), strict=True):
        assert x == pytest.approx(y, rel=max(rtol, 1e-6))  # a resumed mean is rounded once more
    return True


def vectors_of(run: Path, folder_: Path) -> Path:
    """Write the vectors of the codes of a run's images, and return their folder."""
    settings = EncodeSettings(run=str(run), output=str(folder_ / "vectors"), views=1, vectors=True, precision="fp32")
    return encode(settings, make_accelerator("fp32"))


def test_a_prior_in_parts_is_the_whole_one_and_either_goes_on_with_the_others_state(
    finished_run, tmp_path, accelerator
):
    """Weights, averages, both optimizers, clipping, accumulation and evaluation on shares of unequal length agree
    between one process and two with sharding, up to the rounding of sums in another order: AdamW divides the smallest
    gradients by themselves, and Muon computes in bf16, where two processes without sharding differ by 1% too. A
    diffusion prior's noise belongs to step and process, so that it is held against itself alone."""
    codes = {"codes": str(finished_run / "codes")}
    adamw, muon = (functools.partial(prior_training, **codes, **settings) for settings in (ADAMW, MUON))
    for name, training in (("whole", adamw), ("whole_muon", muon)):
        train(training(tmp_path / name), accelerator)
    half_of(tmp_path / "whole", tmp_path / "whole_then_parts")
    diffusion = functools.partial(prior_training, model=DIFFUSION, codes=str(vectors_of(finished_run, tmp_path)))
    train_in_parts(
        adamw(tmp_path / "parts"),
        muon(tmp_path / "parts_muon"),
        adamw(tmp_path / "worse", **WORSE),
        diffusion(tmp_path / "parts_diffusion"),
    )
    half_of(tmp_path / "parts_diffusion", tmp_path / "parts_then_parts_diffusion")
    half_of(tmp_path / "parts", tmp_path / "parts_then_whole")
    half_of(tmp_path / "parts_muon", tmp_path / "parts_then_parts_muon")
    train_in_parts(
        adamw(tmp_path / "whole_then_parts"),
        muon(tmp_path / "parts_then_parts_muon"),
        diffusion(tmp_path / "parts_then_parts_diffusion"),
    )
    train(adamw(tmp_path / "parts_then_whole"), accelerator)
    for name in ("parts", "whole_then_parts", "parts_then_whole"):
        assert same(tmp_path / name, tmp_path / "whole", rtol=1e-4)
    assert same(tmp_path / "parts_muon", tmp_path / "whole_muon", rtol=0.05)
    assert same(tmp_path / "parts_then_parts_muon", tmp_path / "parts_muon", rtol=0)
    assert same(tmp_path / "parts_then_parts_diffusion", tmp_path / "parts_diffusion", rtol=0)
    assert load_prior(tmp_path / "parts_diffusion/prior/model").config.architecture == DIFFUSION
    assert folder.read_json(tmp_path / "worse/prior/figures.json")["best_step"] < 3
    assert load_prior(tmp_path / "parts/prior/model").config.architecture == ADAMW["model"]


@pytest.mark.parametrize(
    "given, message",
    [
        ({"fsdp_version": 1}, "fsdp_version must be 2 .*got 1; configs/imagenet256/fsdp.yaml"),
        ({"activation_checkpointing": True}, "fsdp_activation_checkpointing must be false .*got true"),
        ({"cpu_ram_efficient_loading": True}, "fsdp_cpu_ram_efficient_loading must be false"),
        ({"cpu_offload": True}, "fsdp_offload_params must be false"),
    ],
)
def test_a_sharding_under_which_training_would_not_be_right_is_refused(given, message, monkeypatch):
    monkeypatch.setenv("FSDP_CPU_RAM_EFFICIENT_LOADING", "false")  # the plugin changes this variable
    plugin = FullyShardedDataParallelPlugin(**{"fsdp_version": 2, **given})
    accelerator = SimpleNamespace(distributed_type=DistributedType.FSDP, state=SimpleNamespace(fsdp_plugin=plugin))
    with pytest.raises(UserError, match=message):
        sharding.prepare(torch.nn.Identity(), torch.nn.Identity(), {}, accelerator)


def test_recomputed_activations_give_the_same_gradients_bit_for_bit(prior):
    """The recomputation draws the same dropout and enters autocast again."""
    architecture = prior.config.architecture.model_copy(update={"dropout": 0.3})
    torch.manual_seed(0)
    prior = TransformerPrior(prior.config.model_copy(update={"architecture": architecture})).train()
    torch.nn.init.normal_(prior.head.weight)
    labels, codes = torch.tensor([0, 2]), torch.randint(0, 16, (2, 9))

    def gradients(recompute: bool) -> list[torch.Tensor]:
        prior.recompute = recompute
        prior.zero_grad()
        torch.manual_seed(1)
        with torch.autocast("cpu", torch.bfloat16):
            logits = prior(labels, codes)
        nll_each(logits, codes, prior.config.vocabularies).mean().backward()
        return [parameter.grad.clone() for parameter in prior.parameters()]

    kept, again = gradients(False), gradients(True)
    assert all(torch.equal(a, b) for a, b in zip(kept, again, strict=True)) and any(a.any() for a in kept)


def test_a_compiled_training_leaves_the_same_files_and_goes_on_from_them(
    finished_run, tmp_path, accelerator, monkeypatch
):
    """It is traced and differentiated ahead of time as for a GPU, then run uncompiled: building its C++ takes 40 s."""
    monkeypatch.setattr(torch, "compile", functools.partial(torch.compile, backend="aot_eager"))
    settings = {**ADAMW, "model": TransformerConfig(depth=1, dim=16, heads=2, dropout=0.0)}  # a block to trace
    training = functools.partial(prior_training, codes=str(finished_run / "codes"), **settings)
    train(training(tmp_path / "plain"), accelerator)
    train(training(tmp_path / "compiled", compile=True), accelerator)
    half_of(tmp_path / "compiled", tmp_path / "resumed")
    train(training(tmp_path / "resumed", compile=True), accelerator)
    assert same(tmp_path / "compiled", tmp_path / "plain", rtol=1e-4)  # this compares the names of the weights too
    assert same(tmp_path / "resumed", tmp_path / "compiled", rtol=0)


def forward(prior, accelerator, **settings):
    return forward_of(prior, TrainConfig(**settings), accelerator)


def paying_steps(prior) -> int:
    """Return the number of steps from which compiling pays."""
    of_a_step = sum(weight.numel() for weight in prior.parameters()) * TrainConfig().batch_size * 9  # codes an image
    return math.ceil(PAYS_FROM / of_a_step)


def test_a_training_is_compiled_where_it_is_long_enough_to_pay(prior, accelerator, monkeypatch):
    monkeypatch.setattr(torch, "compile", functools.partial(torch.compile, backend="eager"))  # it builds nothing
    few, enough = ({"steps": paying_steps(prior) - less} for less in (1, 0))
    assert forward(prior, accelerator, **few) is prior
    assert forward(prior, accelerator, **enough, compile=False) is prior
    assert forward(prior, accelerator, **enough) is not prior
    assert forward(prior, accelerator, **few, compile=True) is not prior
    of_several = SimpleNamespace(device=accelerator.device, num_processes=2, print=print)
    assert forward(prior, of_several, **enough) is prior
    monkeypatch.setattr(type(prior), "compiles", False)  # a kind that nobody has measured
    assert forward(prior, accelerator, **enough) is prior


def test_without_a_compiler_a_training_is_as_it_is_and_says_why_in_a_line(prior, accelerator, monkeypatch, capsys):
    def backend(graph, inputs):  # torch fails at the first call of what was compiled
        raise RuntimeError("No working C++ compiler found in\n torch._inductor.config.cpp.cxx: (None, 'g++')")

    monkeypatch.setattr(torch, "compile", functools.partial(torch.compile, backend=backend))
    assert forward(prior, accelerator, steps=paying_steps(prior)) is prior
    said = capsys.readouterr().err
    assert said.startswith("not compiled") and "No working C++ compiler" in said and said.count("\n") == 1
    with pytest.raises(UserError, match=r"cannot compile here .*; install a C\+\+ compiler"):
        forward(prior, accelerator, compile=True)
