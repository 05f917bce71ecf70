"""Imported tokenizers: published checkpoints loaded into our VQGAN compute what their own code computes, and no other
file is read."""

import importlib
import json
import pickle
import re
import shlex
import shutil
import zipfile
from itertools import product
from pathlib import Path, PurePosixPath

import numpy as np
import PIL.Image
import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import save_file

from smalti.common import folder
from smalti.common.data.config import ImagesConfig
from smalti.common.data.images import open_images
from smalti.common.data.pixels import to_float
from smalti.common.errors import UserError
from smalti.common.run_folder import read_metrics
from smalti.pipeline.generate import Settings as Generation
from smalti.pipeline.generate import generate
from smalti.pipeline.image_pipeline import ImagePipeline
from smalti.pipeline.reporting.run_contents import gather
from smalti.prior.train import train as train_prior
from smalti.tokenizer.codebook import Settings as Looking
from smalti.tokenizer.codebook import examine
from smalti.tokenizer.config import TrainConfig
from smalti.tokenizer.convert import convert
from smalti.tokenizer.criterion.criteria import remark_on_losses
from smalti.tokenizer.encode import Settings as EncodeSettings
from smalti.tokenizer.encode import encode
from smalti.tokenizer.evaluate import Settings as Evaluation
from smalti.tokenizer.evaluate import evaluate
from smalti.tokenizer.model import load_tokenizer
from smalti.tokenizer.train import train as train_tokenizer
from smalti.tokenizer.vqgan.config import ConvertConfig, VQGANConfig
from smalti.tokenizer.vqgan.model import VQGANTokenizer
from smalti.tokenizer.vqgan.published import (
    checkpoint_places,
    from_shapes,
    from_taming,
    read_checkpoint,
    read_published,
)
from tests.conftest import ROOT, prior_training

# ------------------------------------------------------------------------------------------------ the published layouts

# Written from the modules' definitions: LlamaGen's tokenizer/tokenizer_image/vq_model.py (3786e6a), VQ_16; and taming's
# taming/modules/diffusionmodules/model.py (a fork's copy, 1acce86) with the ddconfig of vqgan_imagenet_f16_16384
# (LlamaGen's copy, 5a50452). `0-1` means each of the numbers; the text after a module's name is expanded by
# `tensors_of`.

LLAMAGEN_VQ16 = """
    encoder.conv_in                        conv3 3 128
    encoder.conv_blocks.0-1.res.0-1        res 128 128
    encoder.conv_blocks.0-1.downsample.conv  conv3 128 128
    encoder.conv_blocks.2.res.0            res 128 256
    encoder.conv_blocks.2.res.1            res 256 256
    encoder.conv_blocks.3.res.0-1          res 256 256
    encoder.conv_blocks.2-3.downsample.conv  conv3 256 256
    encoder.conv_blocks.4.res.0            res 256 512
    encoder.conv_blocks.4.res.1            res 512 512
    encoder.conv_blocks.4.attn.0-1         attn 512
    encoder.mid.0                          res 512 512
    encoder.mid.1                          attn 512
    encoder.mid.2                          res 512 512
    encoder.norm_out                       norm 512
    encoder.conv_out                       conv3 512 256
    quant_conv                             conv1 256 8
    quantize.embedding                     table 16384 8
    quantize.codebook_used                 buffer 65536
    post_quant_conv                        conv1 8 256
    decoder.conv_in                        conv3 256 512
    decoder.mid.0                          res 512 512
    decoder.mid.1                          attn 512
    decoder.mid.2                          res 512 512
    decoder.conv_blocks.0.res.0-2          res 512 512
    decoder.conv_blocks.0.attn.0-2         attn 512
    decoder.conv_blocks.0.upsample.conv    conv3 512 512
    decoder.conv_blocks.1.res.0            res 512 256
    decoder.conv_blocks.1.res.1-2          res 256 256
    decoder.conv_blocks.2.res.0-2          res 256 256
    decoder.conv_blocks.1-2.upsample.conv  conv3 256 256
    decoder.conv_blocks.3.res.0            res 256 128
    decoder.conv_blocks.3.res.1-2          res 128 128
    decoder.conv_blocks.3.upsample.conv    conv3 128 128
    decoder.conv_blocks.4.res.0-2          res 128 128
    decoder.norm_out                       norm 128
    decoder.conv_out                       conv3 128 3
"""
TAMING_F16_16384 = """
    encoder.conv_in                        conv3 3 128
    encoder.down.0-1.block.0-1             res 128 128
    encoder.down.0-1.downsample.conv       conv3 128 128
    encoder.down.2.block.0                 res 128 256
    encoder.down.2.block.1                 res 256 256
    encoder.down.3.block.0-1               res 256 256
    encoder.down.2-3.downsample.conv       conv3 256 256
    encoder.down.4.block.0                 res 256 512
    encoder.down.4.block.1                 res 512 512
    encoder.down.4.attn.0-1                attn 512
    encoder.mid.block_1                    res 512 512
    encoder.mid.attn_1                     attn 512
    encoder.mid.block_2                    res 512 512
    encoder.norm_out                       norm 512
    encoder.conv_out                       conv3 512 256
    quant_conv                             conv1 256 256
    quantize.embedding                     table 16384 256
    post_quant_conv                        conv1 256 256
    decoder.conv_in                        conv3 256 512
    decoder.mid.block_1                    res 512 512
    decoder.mid.attn_1                     attn 512
    decoder.mid.block_2                    res 512 512
    decoder.up.0.block.0-2                 res 128 128
    decoder.up.1.block.0                   res 256 128
    decoder.up.1.block.1-2                 res 128 128
    decoder.up.1.upsample.conv             conv3 128 128
    decoder.up.2.block.0-2                 res 256 256
    decoder.up.3.block.0                   res 512 256
    decoder.up.3.block.1-2                 res 256 256
    decoder.up.2-3.upsample.conv           conv3 256 256
    decoder.up.4.block.0-2                 res 512 512
    decoder.up.4.attn.0-2                  attn 512
    decoder.up.4.upsample.conv             conv3 512 512
    decoder.norm_out                       norm 128
    decoder.conv_out                       conv3 128 3
"""
TAMING_YAML = """
model:
  base_learning_rate: 4.5e-06
  target: taming.models.vqgan.VQModel
  params:
    embed_dim: 256
    n_embed: 16384
    monitor: val/rec_loss
    ddconfig: {double_z: false, z_channels: 256, resolution: 256, in_channels: 3, out_ch: 3, ch: 128,
               ch_mult: [1, 1, 2, 2, 4], num_res_blocks: 2, attn_resolutions: [16], dropout: 0.0}
    lossconfig:
      target: taming.modules.losses.vqperceptual.VQLPIPSWithDiscriminator
      params: {disc_conditional: false, disc_in_channels: 3, disc_start: 0, disc_weight: 0.75}
"""


def tensors_of(module: str, kind: str, *sizes: int) -> dict[str, tuple[int, ...]]:
    a, b = sizes[0], sizes[-1]
    if kind == "table":
        return {f"{module}.weight": (a, b)}
    if kind == "buffer":
        return {module: (a,)}
    if kind == "norm":
        return {f"{module}.weight": (a,), f"{module}.bias": (a,)}
    if kind in ("conv1", "conv3"):
        return {f"{module}.weight": (b, a, *[int(kind[-1])] * 2), f"{module}.bias": (b,)}
    if kind == "attn":
        parts = [("norm", "norm", a), *[(name, "conv1", a, a) for name in ("q", "k", "v", "proj_out")]]
    else:
        parts = [("norm1", "norm", a), ("conv1", "conv3", a, b), ("norm2", "norm", b), ("conv2", "conv3", b, b)]
        parts += [] if a == b else [("nin_shortcut", "conv1", a, b)]
    return {name: shape for part, *rest in parts for name, shape in tensors_of(f"{module}.{part}", *rest).items()}


def published(text: str) -> dict[str, tuple[int, ...]]:
    shapes = {}
    for line in text.strip().splitlines():
        module, kind, *sizes = line.split()
        spans = [
            [part] if "-" not in part else [str(n) for n in range(int(part[0]), int(part[-1]) + 1)]
            for part in module.split(".")
        ]
        for parts in product(*spans):
            shapes |= tensors_of(".".join(parts), kind, *map(int, sizes))
    return shapes


@pytest.mark.parametrize(
    "kind, text, codes", [("llamagen", LLAMAGEN_VQ16, (8, True)), ("taming", TAMING_F16_16384, (256, False))]
)
def test_the_published_layout_has_a_place_for_every_tensor_of_ours_and_no_other(kind, text, codes):
    """It is built at full size on the meta device, which allocates nothing."""
    shapes = published(text)
    config = VQGANConfig(**from_shapes(shapes, kind, "the published layout"))
    assert config == VQGANConfig(code_dim=codes[0], normalize=codes[1])
    ours = checkpoint_places(config, kind)
    shapes.pop("quantize.codebook_used", None)
    assert {place.name: place.shape for place in ours.values()} == shapes
    assert len(ours) == len({place.name for place in ours.values()}) == 343
    assert config.grid == (16, 16) and config.layout.codebook_size == 16384


def test_tamings_project_file_says_what_the_tensors_say(tmp_path):
    (tmp_path / "model.yaml").write_text(TAMING_YAML)
    given = from_taming(tmp_path / "model.yaml")
    assert given.pop("image_size") == (256, 256)
    assert given == from_shapes(published(TAMING_F16_16384), "taming", "the published layout")


# -------------------------------------------------------------------------------------- the same function as diffusers'

LEVELS = {  # names of diffusers, taming and LlamaGen, for two levels of one block; LlamaGen's middle has none
    "encoder.down_blocks.0.resnets.0": ("encoder.down.0.block.0", "encoder.conv_blocks.0.res.0"),
    "encoder.down_blocks.0.downsamplers.0.conv": (
        "encoder.down.0.downsample.conv",
        "encoder.conv_blocks.0.downsample.conv",
    ),
    "encoder.down_blocks.1.resnets.0": ("encoder.down.1.block.0", "encoder.conv_blocks.1.res.0"),
    "encoder.down_blocks.1.attentions.0": ("encoder.down.1.attn.0", "encoder.conv_blocks.1.attn.0"),
    "decoder.up_blocks.0.resnets.0": ("decoder.up.1.block.0", "decoder.conv_blocks.0.res.0"),
    "decoder.up_blocks.0.resnets.1": ("decoder.up.1.block.1", "decoder.conv_blocks.0.res.1"),
    "decoder.up_blocks.0.attentions.0": ("decoder.up.1.attn.0", "decoder.conv_blocks.0.attn.0"),
    "decoder.up_blocks.0.attentions.1": ("decoder.up.1.attn.1", "decoder.conv_blocks.0.attn.1"),
    "decoder.up_blocks.0.upsamplers.0.conv": ("decoder.up.1.upsample.conv", "decoder.conv_blocks.0.upsample.conv"),
    "decoder.up_blocks.1.resnets.0": ("decoder.up.0.block.0", "decoder.conv_blocks.1.res.0"),
    "decoder.up_blocks.1.resnets.1": ("decoder.up.0.block.1", "decoder.conv_blocks.1.res.1"),
    "mid_block.resnets.0": ("mid.block_1", "mid.0"),
    "mid_block.attentions.0": ("mid.attn_1", "mid.1"),
    "mid_block.resnets.1": ("mid.block_2", "mid.2"),
    "conv_norm_out": ("norm_out", "norm_out"),
}
INSIDE = {
    "conv_shortcut": "nin_shortcut",
    "group_norm": "norm",
    "to_q": "q",
    "to_k": "k",
    "to_v": "v",
    "to_out.0": "proj_out",
}
TWO_LEVELS = {
    "block_out_channels": (32, 64),
    "layers_per_block": 1,
    "latent_channels": 6,
    "vq_embed_dim": 4,
    "num_vq_embeddings": 50,
    "down_block_types": ("DownEncoderBlock2D", "AttnDownEncoderBlock2D"),
    "up_block_types": ("AttnUpDecoderBlock2D", "UpDecoderBlock2D"),
}


def theirs(**settings):
    """Return a VQModel of diffusers with random weights."""
    diffusers = pytest.importorskip("diffusers")
    torch.manual_seed(0)
    model = diffusers.VQModel(**settings).eval().requires_grad_(False)
    for parameter in model.parameters():  # norms start as ones and zeros, which could hide an error
        parameter.add_(0.05 * torch.randn_like(parameter))
    model.quantize.embedding.weight.normal_()
    return model


def renamed(model, publisher: int) -> dict[str, torch.Tensor]:
    """Return its weights with the names and shapes of taming (0) or LlamaGen (1)."""
    found = {}
    for name, tensor in model.state_dict().items():
        for before, after in LEVELS.items():
            name = name.replace(f"{before}.", f"{after[publisher]}.")
        for before, after in INSIDE.items():
            name = name.replace(f".{before}.", f".{after}.")
        linear = re.search(r"\.(q|k|v|proj_out)\.weight$", name)
        found[name] = tensor[..., None, None] if linear else tensor
    return found


def images(channels: int = 3, size: int = 16, number: int = 3) -> torch.Tensor:
    return torch.rand(number, channels, size, size, generator=torch.Generator().manual_seed(1)) * 2 - 1


def check_same_function(ours: VQGANTokenizer, model, pixels: torch.Tensor) -> None:
    """Compare codes exactly, and latents and pictures to 1e-5: they are fp32 sums of a few hundred numbers of about
    one."""
    torch.testing.assert_close(ours.latents(pixels), model.encode(pixels).latents, atol=1e-5, rtol=1e-5)
    expected = model.quantize(model.encode(pixels).latents)[2][2]
    indices = ours.encode(pixels)
    assert torch.equal(indices.flatten(), expected.flatten()) and len(indices.unique()) > 5
    torch.testing.assert_close(
        ours.output(indices), model.decode(model.encode(pixels).latents).sample, atol=1e-5, rtol=1e-5
    )
    assert torch.equal(ours.decode(indices), ours.output(indices).clamp(-1, 1))


@pytest.mark.parametrize(
    "settings",
    [
        TWO_LEVELS,
        {"block_out_channels": (32,), "latent_channels": 3, "num_vq_embeddings": 40},
        {
            "block_out_channels": (16, 48, 32),
            "layers_per_block": 2,
            "mid_block_add_attention": False,
            "norm_num_groups": 8,
            "down_block_types": ("DownEncoderBlock2D",) * 3,
            "up_block_types": ("UpDecoderBlock2D",) * 3,
            "in_channels": 1,
            "out_channels": 1,
            "latent_channels": 8,
            "lookup_from_codebook": True,
            "force_upcast": True,
        },
        {**TWO_LEVELS, "block_out_channels": (64, 32), "in_channels": 4, "out_channels": 4, "vq_embed_dim": None},
    ],
)
def test_a_vqmodel_of_diffusers_is_the_same_function_here(tmp_path, settings):
    model = theirs(**settings)
    model.save_pretrained(tmp_path / "vqvae")
    pixels = images(model.config.in_channels)
    check_same_function(read_published(tmp_path / "vqvae", "diffusers", image_size=(16, 16)), model, pixels)


def test_diffusers_former_names_of_attention_are_read_too(tmp_path):
    """A .bin has query, key, value and proj_attn, the names before they changed."""
    model = theirs(**TWO_LEVELS)
    model.save_config(tmp_path)
    former = {"to_q": "query", "to_k": "key", "to_v": "value", "to_out.0": "proj_attn"}
    weights = {}
    for name, tensor in model.state_dict().items():
        for now, before in former.items():
            name = name.replace(f".{now}.", f".{before}.")
        weights[name] = tensor
    assert sum("proj_attn" in name for name in weights) == 10
    torch.save(weights, tmp_path / "diffusion_pytorch_model.bin")
    check_same_function(read_published(tmp_path, "diffusers", image_size=(16, 16)), model, images())


@pytest.mark.parametrize("with_yaml", [True, False])
def test_tamings_checkpoint_of_the_same_weights_is_the_same_function(tmp_path, with_yaml):
    """Its discriminator and LPIPS are left out; the project's file, if given, sets the image size."""
    model = theirs(**TWO_LEVELS)
    weights = renamed(model, 0) | {"loss.discriminator.main.0.weight": torch.zeros(64, 3, 4, 4)}
    torch.save({"epoch": 3, "global_step": 7, "state_dict": weights}, tmp_path / "last.ckpt")
    yaml = TAMING_YAML.replace("embed_dim: 256", "embed_dim: 4").replace("n_embed: 16384", "n_embed: 50")
    yaml = (
        yaml.replace("z_channels: 256", "z_channels: 6")
        .replace("ch: 128", "ch: 32")
        .replace("[1, 1, 2, 2, 4]", "[1, 2]")
    )
    yaml = yaml.replace("num_res_blocks: 2", "num_res_blocks: 1").replace("resolution: 256", "resolution: 32")
    (tmp_path / "model.yaml").write_text(yaml)
    architecture, size = (tmp_path / "model.yaml", 32) if with_yaml else (None, 256)
    ours = read_published(tmp_path / "last.ckpt", "taming", architecture)
    assert ours.config.image_size == (size, size) and ours.config.attention_levels == (1,)
    check_same_function(read_published(tmp_path / "last.ckpt", "taming", architecture, (16, 16)), model, images())


@pytest.mark.parametrize("suffix", ["pt", "safetensors"])
def test_llamagens_codes_are_nearest_in_angle_and_decode_from_the_unit_sphere(tmp_path, suffix):
    """The test writes out its formula (Yu et al. 2021, sec. 3.2) on diffusers' encoder and decoder with the same
    weights."""
    model = theirs(**TWO_LEVELS)
    weights = renamed(model, 1) | {"quantize.codebook_used": torch.zeros(65536)}
    path = tmp_path / f"vq_ds2.{suffix}"
    if suffix == "pt":
        torch.save({"model": weights, "steps": 3}, path)
    else:
        save_file({name: tensor.contiguous() for name, tensor in weights.items()}, path)
    ours = read_published(path, "llamagen", image_size=(16, 16))
    z_e, e = model.encode(images()).latents, F.normalize(model.quantize.embedding.weight, dim=1)
    expected = torch.einsum("bdhw,kd->bkhw", F.normalize(z_e, dim=1), e).argmax(1)
    indices = ours.encode(images())
    assert torch.equal(indices, expected.flatten(1)) and len(indices.unique()) > 5
    assert not torch.equal(indices.flatten(), model.quantize(z_e)[2][2])  # the norms matter
    decoded = model.decoder(model.post_quant_conv(e[expected].permute(0, 3, 1, 2)))
    torch.testing.assert_close(ours.output(indices), decoded, atol=1e-5, rtol=1e-5)


# ------------------------------------------------------------------------------------------------------ what is refused

TINY = {
    "image_size": (8, 8),
    "first_channels": 32,
    "channels": (32, 32),
    "blocks": 1,
    "attention_levels": (1,),
    "z_channels": 4,
    "codebook_size": 16,
    "code_dim": 4,
    "normalize": False,
}


def tiny(kind: str = "taming", **settings) -> dict[str, torch.Tensor]:
    """Return the tensors of a random checkpoint."""
    torch.manual_seed(0)
    model = VQGANTokenizer(VQGANConfig(**{**TINY, **settings}))
    tensors = model.state_dict()
    return {
        place.name: tensors[ours].reshape(place.shape) for ours, place in checkpoint_places(model.config, kind).items()
    }


@pytest.fixture
def checkpoint(tmp_path):
    def save(tensors, name="last.ckpt", **beside):
        torch.save({"state_dict": tensors, **beside}, tmp_path / name)
        return tmp_path / name

    return save


@pytest.mark.parametrize(
    "change, message",
    [
        ({"decoder.up.1.attn.1.q.bias": None}, r"decoder\.up\.1\.attn\.1\.q\.bias must be \(32,\), got none"),
        (
            {"encoder.mid.attn_2.q.bias": torch.zeros(1)},
            r"encoder\.mid\.attn_2\.q\.bias belongs to none \(1 such tensors\)",
        ),
        (
            {"post_quant_conv.weight": torch.zeros(4, 5, 1, 1)},
            r"post_quant_conv\.weight must be \(4, 4, 1, 1\), got \(4, 5",
        ),
        (
            {"decoder.conv_out.bias": torch.tensor([0.0, torch.nan, 0.0])},
            r"decoder\.conv_out\.bias must be .* finite numbers",
        ),
        (
            {"decoder.conv_out.bias": torch.zeros(3, dtype=torch.int64)},
            r"decoder\.conv_out\.bias must be float32 .* got int64",
        ),
        (
            {"decoder.conv_out.bias": torch.zeros(3, dtype=torch.uint8)},
            r"decoder\.conv_out\.bias must be float32 .* got uint8",
        ),
        (
            {"decoder.conv_out.bias": torch.zeros(3, dtype=torch.bool)},
            r"decoder\.conv_out\.bias must be float32 .* got bool",
        ),
        ({"quantize.embedding.weight": torch.zeros(1).expand(10**6, 10**4)}, "claims tensors of 40000"),
        (
            {"quantize.embedding.weight": None},
            r"must hold quantize\.embedding\.weight, of 2 axes, to be taming's, got none",
        ),
        ({"quantize.proj.weight": torch.zeros(16, 4, 1, 1)}, "is a GumbelVQ"),
    ],
)
def test_a_tensor_that_is_missing_left_over_misshapen_or_no_number_is_named(checkpoint, change, message):
    tensors = tiny() | change
    path = checkpoint({name: tensor for name, tensor in tensors.items() if tensor is not None})
    with pytest.raises(UserError, match=message):
        read_published(path, "taming")


def test_a_checkpoint_of_another_publisher_is_told_apart(checkpoint):
    path = checkpoint(tiny())
    with pytest.raises(
        UserError, match=r"must hold encoder\.conv_blocks\.0\.res\.0\.conv1\.weight.* is it another kind\?"
    ):
        read_published(path, "llamagen")
    with pytest.raises(UserError, match="is the folder of a VQModel"):
        read_published(path, "diffusers")
    with pytest.raises(UserError, match=r"the checkpoint .* is not there"):
        read_published(path.with_name("none.ckpt"), "taming")
    with pytest.raises(UserError, match="architecture is taming's project"):
        read_published(path, "llamagen", path)


def test_a_checkpoint_with_more_than_tensors_in_it_is_not_unpickled_and_the_advice_makes_a_safe_one(
    checkpoint, monkeypatch
):
    """Old Lightning checkpoints hold their callbacks. The test runs the advice as its reader would."""
    path = checkpoint(tiny(), callbacks={PurePosixPath("ModelCheckpoint"): 1})
    with pytest.raises(
        UserError, match=r"holds more than tensors \(pathlib.*PurePosixPath\), which is not unpickled"
    ) as error:
        read_published(path, "taming")
    monkeypatch.chdir(path.parent)
    exec(re.search(r'python -c "(.*)"', str(error.value))[1], {})
    safe = read_published(path.with_suffix(".safetensors"), "taming")
    again = read_published(checkpoint(tiny(), "plain.ckpt"), "taming")
    assert all(torch.equal(a, b) for a, b in zip(safe.state_dict().values(), again.state_dict().values(), strict=True))


def test_the_advice_for_a_training_checkpoint_takes_the_weights_that_would_be_read(tmp_path, monkeypatch):
    """LlamaGen's hold `model` and its average `ema` beside the arguments of the program."""
    average, path = tiny(), tmp_path / "vq.pt"
    others = {name: torch.zeros_like(tensor) for name, tensor in average.items()}
    torch.save({"model": others, "ema": average, "args": PurePosixPath("args"), "steps": 3}, path)
    with pytest.raises(UserError, match="holds more than tensors") as error:
        read_checkpoint(path, "llamagen")
    monkeypatch.chdir(path.parent)
    exec(re.search(r'python -c "(.*)"', str(error.value))[1], {})
    found = read_checkpoint(path.with_suffix(".safetensors"), "llamagen")
    assert found.keys() == average.keys() and all(torch.equal(found[name], average[name]) for name in found)


def test_files_that_are_cut_packed_or_no_checkpoints_are_refused_unread(checkpoint, tmp_path):
    path = checkpoint(tiny())
    whole = path.read_bytes()
    (tmp_path / "cut.ckpt").write_bytes(whole[: len(whole) // 2])
    (tmp_path / "pickle.ckpt").write_bytes(pickle.dumps({"state_dict": {}}))
    (tmp_path / "cut.safetensors").write_bytes(b"\0" * 20)
    for name in ("cut.ckpt", "pickle.ckpt"):
        with pytest.raises(UserError, match=f"{name} is no file of torch.save"):
            read_published(tmp_path / name, "taming")
    with pytest.raises(UserError, match=r"is no whole \.safetensors"):
        read_published(tmp_path / "cut.safetensors", "taming")
    with zipfile.ZipFile(tmp_path / "packed.ckpt", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("packed/data.pkl", bytes(2**22))
    with pytest.raises(UserError, match="would unpack to more than it is"):
        read_published(tmp_path / "packed.ckpt", "taming")
    torch.save([1, 2], tmp_path / "list.ckpt")
    with pytest.raises(UserError, match="must hold a dictionary of tensors, got list"):
        read_published(tmp_path / "list.ckpt", "taming")


@pytest.mark.parametrize(
    "change, message",
    [
        ({"norm_type": "spatial"}, "norm_type spatial, which makes it a MoVQ"),
        ({"_class_name": "AutoencoderKL"}, "must be that of a VQModel, got _class_name 'AutoencoderKL'"),
        ({"act_fn": "relu"}, "act_fn must be 'silu' or 'swish', got 'relu'"),
        ({"out_channels": 1}, "as many in as out; got 3 in and 1 out"),
        ({"up_block_types": ["UpDecoderBlock2D", "AttnUpDecoderBlock2D"]}, "attention on other levels of the decoder"),
        ({"up_block_types": ["UpDecoderBlock2D"]}, "as many down_block_types and up_block_types as block_out_channels"),
        ({"layers_per_block": 10**12}, "blocks .*less than or equal to 64"),
        ({"num_vq_embeddings": 10**7}, r"quantize\.embedding\.weight must be \(10000000, 4\), got \(16, 4\)"),
        ({"norm_num_groups": 3}, "a width of 32 does not divide into 3 groups"),
        ({"some_new_setting": 1}, "unknown setting some_new_setting"),
    ],
)
def test_a_config_of_diffusers_that_is_another_network_is_refused_by_name(tmp_path, change, message):
    config = {**TWO_LEVELS, "block_out_channels": (32, 32), "latent_channels": 4, "num_vq_embeddings": 16}
    save_file(tiny("diffusers"), tmp_path / "diffusion_pytorch_model.safetensors")
    (tmp_path / "config.json").write_text(json.dumps({"_class_name": "VQModel", **config, **change}))
    with pytest.raises(UserError, match=message):
        read_published(tmp_path, "diffusers")


def test_a_project_file_that_is_another_network_is_refused_by_name(checkpoint, tmp_path):
    for change, message in (
        (("double_z: false", "double_z: true"), "ddconfig.double_z must be false, got true"),
        (("resolution: 256", "tanh_out: true, resolution: 256"), "ddconfig.tanh_out must be false"),
        (("ch: 128", "ch: 32"), r"block\.1\.norm1\.weight must be \(32,\), got none"),
        (("ddconfig:", "other:"), "ddconfig must be given"),
        (("model:", "module:"), "got no model.params"),
    ):
        (tmp_path / "model.yaml").write_text(TAMING_YAML.replace(*change))
        with pytest.raises(UserError, match=message):
            read_published(checkpoint(tiny()), "taming", tmp_path / "model.yaml")


def test_an_image_size_that_does_not_divide_is_refused():
    with pytest.raises(ValueError, match="a width of 9 does not divide by the downsampling 2"):
        VQGANConfig(**{**TINY, "image_size": (8, 9)})


# ---------------------------------------------------------------------------------------------------------- the command


@pytest.fixture
def pictures(tmp_path):
    """Return forty unlabelled RGB pictures of 8 x 8."""
    source = tmp_path / "pictures"
    source.mkdir()
    generator = np.random.default_rng(0)
    for number in range(40):
        PIL.Image.fromarray(generator.integers(0, 256, (8, 8, 3), dtype=np.uint8)).save(source / f"{number:02d}.png")
    return ImagesConfig(source=str(source), validation_share=0.5)


@pytest.fixture
def converting(tmp_path, pictures, checkpoint):
    path = checkpoint(tiny())
    return ConvertConfig(
        checkpoint=str(path), kind="taming", run=str(tmp_path / "run"), images=pictures, image_size=(8, 8)
    )


def test_the_likelihoods_scale_is_the_error_of_reconstructions(converting, accelerator, pictures):
    """It is the maximum likelihood estimate: a wider or narrower scale costs more nats on the images of the fit."""
    tokenizer = load_tokenizer(convert(converting, accelerator))
    train = open_images(pictures, (8, 8), 3).splits["train"]
    pixels = to_float(train.read(torch.arange(len(train))).images)
    indices = tokenizer.encode(pixels)
    mse = (tokenizer.output(indices) - pixels).square().mean((0, 2, 3))
    torch.testing.assert_close(tokenizer.likelihood.log_scale.exp().square(), mse)
    nll = tokenizer.nll(pixels, indices).mean()
    for factor in (0.5, 2):
        other = tokenizer.likelihood.log_scale + np.log(factor)
        assert nll < type(tokenizer).nll(_scaled(tokenizer, other), pixels, indices).mean()


def _scaled(tokenizer, log_scale):
    other = VQGANTokenizer(tokenizer.config).eval()
    other.load_state_dict({**tokenizer.state_dict(), "likelihood.log_scale": log_scale})
    return other


def test_the_same_command_writes_the_same_and_another_is_refused(converting, accelerator):
    model = convert(converting, accelerator)
    before = folder.sha256(model / "model.safetensors")
    assert folder.sha256(convert(converting, accelerator) / "model.safetensors") == before
    with pytest.raises(UserError, match="is a run of other settings: fit_images was 128 and is 3"):
        convert(converting.model_copy(update={"fit_images": 3}), accelerator)


def folder_of_diffusers(path: Path) -> Path:
    """Write a tiny VQModel as diffusers would, and return its folder."""
    path.mkdir(parents=True)
    config = {**TWO_LEVELS, "block_out_channels": (32, 32), "latent_channels": 4, "num_vq_embeddings": 16}
    save_file(tiny("diffusers"), path / "diffusion_pytorch_model.safetensors")
    (path / "config.json").write_text(json.dumps({"_class_name": "VQModel", **config}))
    return path


def test_a_folder_of_diffusers_is_trained_further_on_images_of_ones_own(tmp_path, pictures, accelerator):
    run, mine = tmp_path / "theirs", tmp_path / "mine"
    converting = {"kind": "diffusers", "run": str(run), "images": pictures, "image_size": (8, 8)}
    convert(ConvertConfig(checkpoint=str(folder_of_diffusers(tmp_path / "vqvae")), **converting), accelerator)
    given = {"run": str(mine), "start_from": str(run), "images": pictures, "batch_size": 8, "precision": "fp32"}
    train_tokenizer(TrainConfig(steps=12, warmup=2, lr=3e-3, evaluate_every=12, **given), accelerator)
    lines = [line for line in read_metrics(mine / "tokenizer/metrics.jsonl") if "psnr" in line]
    assert lines[-1]["psnr"] > lines[0]["psnr"] + 0.3
    assert load_tokenizer(mine / "tokenizer/model").config == load_tokenizer(run / "tokenizer/model").config
    encode(EncodeSettings(run=str(mine), precision="fp32"), accelerator)
    for each in (run, mine):
        assert "(those it was published with): bits are" in remark_on_losses(each / "tokenizer")
    figures = folder.read_json(evaluate(Evaluation(run=str(mine)), accelerator))["figures"]
    assert figures["psnr"] == pytest.approx(lines[-1]["psnr"], abs=1e-3), "of the same split, in fp32 too"


def test_the_commands_of_the_page_on_a_published_tokenizer_work_as_they_are_written(
    tmp_path, pictures, monkeypatch, capsys
):
    """But for the sizes, which are a test's, and one precision, as this process has one accelerator."""
    page = (ROOT / "docs/imported.md").read_text(encoding="utf-8")
    section = page.partition("## A published tokenizer on your images")[2]
    written = re.findall(r"^    python (tokenizer/\w+\.py) (.*)$", section, re.M)[:3]
    assert [script for script, _ in written] == [f"tokenizer/{each}.py" for each in ("convert", "train", "compare")]
    monkeypatch.chdir(tmp_path)
    folder_of_diffusers(tmp_path / "path/to/vqvae")
    shutil.copytree(pictures.source, tmp_path / "path/to/images")
    sizes = {
        "64 64": "8 8",
        "--steps 2000": "--steps 12 --warmup 2",
        "--batch_size 16": "--batch_size 8 --precision fp32",
    }
    for script, words in written:
        for usual, small in sizes.items():
            words = words.replace(usual, small)
        importlib.import_module(f"smalti.{script.removesuffix('.py').replace('/', '.')}").main(shlex.split(words))
    told = capsys.readouterr().out
    assert re.search(r"validation images, before -> after: PSNR .* dB pooled -> .* dB pooled", told)
    assert re.search(r"new images: path/to/images, validation, .*\n +before +after\n  PSNR", told)


def test_an_imported_tokenizer_passes_through_every_command_that_follows(converting, accelerator):
    run = converting.run
    convert(converting, accelerator)
    encode(EncodeSettings(run=run, precision="fp32"), accelerator)
    figures = folder.read_json(evaluate(Evaluation(run=run), accelerator))["figures"]
    assert 0 < figures["psnr"] < 30 and 0 < figures["distortion"] < 10
    look = examine(Looking(run=run, precision="fp32"), accelerator)
    assert look["kind"] == "vqgan" and len(look["nearest"]) == 1
    assert not any("model.quantizer" in sentence for sentence in look["advice"])  # settings that a VQGAN lacks
    train_prior(prior_training(run), accelerator)
    drawn = generate(Generation(run=run, num_images=2), accelerator)
    assert len(list(drawn.glob("0*.png"))) == 2
    pipeline = ImagePipeline.from_pretrained(f"{run}/pipeline")
    assert isinstance(pipeline.tokenizer, VQGANTokenizer)
    found = gather(Path(run))
    assert found.model == pipeline.tokenizer.config and found.tokenizer_script == "tokenizer/convert.py"
