"""Read published VQGAN checkpoints into our VQGAN: the names of their tensors, and their configs.

    file -> read_checkpoint -> {name: tensor} -> sizes, by a config or the shapes -> convert_tensors -> VQGANTokenizer

    llamagen    FoundationVision/LlamaGen, tokenizer/tokenizer_image/vq_model.py: VQ-16, VQ-8
    taming      CompVis/taming-transformers, taming/models/vqgan.py: VQModel
    diffusers   diffusers.VQModel, a folder with config.json

Nothing is unpickled but plain tensors (`torch.load(weights_only=True)`), and a file is held against what it claims
before memory is taken: a tensor that is missing, left over or of another shape is an error that names it.
"""

import pickle
import re
import zipfile
from collections.abc import Mapping
from itertools import count, takewhile
from pathlib import Path
from typing import Any, Literal, NamedTuple

import torch
from pydantic import Field
from safetensors import SafetensorError
from torch import Tensor

from smalti.common import config, folder
from smalti.common.config import Settings
from smalti.common.data.config import Pixels
from smalti.common.ends import pass_on
from smalti.common.errors import UserError
from smalti.common.tensors import misfit, read_tensors
from smalti.tokenizer.vqgan.config import Publisher, VQGANConfig, Width
from smalti.tokenizer.vqgan.model import VQGANTokenizer

MOST_PICKLE = 2**26  # bytes of a .pt's index; one of 10,000 tensors has 2**20
RESOLUTION = (256, 256)  # where nothing else gives one: that of all that the three published at first
# Keys under which a checkpoint may hold its tensors; the first that it has is read.
WRAPPERS = {"llamagen": ("ema", "model", "state_dict"), "taming": ("state_dict",), "diffusers": ()}
LEFT_OUT = {  # what a checkpoint may hold besides the tokenizer
    "llamagen": r"quantize\.codebook_used",  # a record of training
    "taming": r"loss\.",  # the discriminator and LPIPS
    "diffusers": r"(?!)",  # nothing
}

# ------------------------------------------------------------------------------------------------------------- names

EVERYWHERE = [
    (r"^to_code\.", "quant_conv."),
    (r"^from_code\.", "post_quant_conv."),
    (r"^quantizer\.codebook$", "quantize.embedding.weight"),
    (r"^(encoder|decoder)\.first\.", r"\1.conv_in."),
    (r"^(encoder|decoder)\.last\.", r"\1.conv_out."),
]
TAMING_BLOCKS = [
    (r"^(encoder|decoder)\.norm\.", r"\1.norm_out."),
    (r"\.shortcut\.", ".nin_shortcut."),
    (r"\.attentions\.", ".attn."),
    (r"\.query\.", ".q."),
    (r"\.key\.", ".k."),
    (r"\.value\.", ".v."),
    (r"\.out\.", ".proj_out."),
    (r"^encoder(.*)\.resample\.", r"encoder\1.downsample.conv."),
    (r"^decoder(.*)\.resample\.", r"decoder\1.upsample.conv."),
]
NAMES = {  # replacements in the name of a tensor of ours, one after the other
    "taming": [
        *EVERYWHERE,
        *TAMING_BLOCKS,
        (r"^encoder\.levels\.", "encoder.down."),
        (r"^decoder\.levels\.", "decoder.up."),
        (r"\.blocks\.", ".block."),
        (r"\.middle\.0\.", ".mid.block_1."),
        (r"\.middle\.1\.", ".mid.attn_1."),
        (r"\.middle\.2\.", ".mid.block_2."),
    ],
    "llamagen": [
        *EVERYWHERE,
        *TAMING_BLOCKS,
        (r"\.levels\.", ".conv_blocks."),
        (r"\.blocks\.", ".res."),
        (r"\.middle\.", ".mid."),
    ],
    "diffusers": [
        *EVERYWHERE,
        (r"^(encoder|decoder)\.norm\.", r"\1.conv_norm_out."),
        (r"\.shortcut\.", ".conv_shortcut."),
        (r"\.middle\.0\.", ".mid_block.resnets.0."),
        (r"\.middle\.1\.", ".mid_block.attentions.0."),
        (r"\.middle\.2\.", ".mid_block.resnets.1."),
        (r"\.attentions\.(\d+)\.norm\.", r".attentions.\1.group_norm."),
        (r"\.query\.", ".to_q."),
        (r"\.key\.", ".to_k."),
        (r"\.value\.", ".to_v."),
        (r"\.out\.", ".to_out.0."),
        (r"^encoder(.*)\.resample\.", r"encoder\1.downsamplers.0.conv."),
        (r"^decoder(.*)\.resample\.", r"decoder\1.upsamplers.0.conv."),
        (r"^encoder\.levels\.", "encoder.down_blocks."),
        (r"^decoder\.levels\.", "decoder.up_blocks."),
        (r"\.blocks\.", ".resnets."),
    ],
}
# Names that diffusers gave to attention before it renamed it, and today's.
FORMER = [(".query.", ".to_q."), (".key.", ".to_k."), (".value.", ".to_v."), (".proj_attn.", ".to_out.0.")]


class Place(NamedTuple):
    """The place of a tensor of ours in a checkpoint."""

    name: str
    shape: tuple[int, ...]
    ours: tuple[int, ...]  # the same but for attention: 1 x 1 convolutions here, linear maps in diffusers


def published_name(ours: str, kind: Publisher, levels: int) -> str:
    """Return the publisher's name of a tensor of ours, in a network of so many levels."""
    for pattern, replacement in NAMES[kind]:
        ours = re.sub(pattern, replacement, ours)
    # taming counts the decoder's levels from the finest, although it runs them from the coarsest
    return re.sub(r"^decoder\.up\.(\d+)", lambda found: f"decoder.up.{levels - 1 - int(found[1])}", ours)


def checkpoint_places(c: VQGANConfig, kind: Publisher) -> dict[str, Place]:
    """Return the place in a checkpoint of each tensor of ours but the likelihood's, without allocating any."""
    with torch.device("meta"):
        tensors = VQGANTokenizer(c).state_dict()
    places = {}
    for ours, tensor in tensors.items():
        if not ours.startswith("likelihood."):
            name, shape = published_name(ours, kind, len(c.channels)), tuple(tensor.shape)
            linear = kind == "diffusers" and re.search(r"\.to_(q|k|v|out\.0)\.weight$", name)
            places[ours] = Place(name, shape[:2] if linear else shape, shape)
    return places


# ------------------------------------------------------------------------------------------------------------- sizes


class DDConfig(Settings):
    """The encoder and decoder in taming's `ddconfig`."""

    ch: Width
    ch_mult: tuple[int, ...] = Field(min_length=1, max_length=12)
    num_res_blocks: int
    attn_resolutions: tuple[int, ...]
    resolution: Pixels
    in_channels: int
    out_ch: int
    z_channels: int
    double_z: Literal[False]
    dropout: float = 0.0  # of training
    resamp_with_conv: Literal[True] = True
    give_pre_end: Literal[False] = False
    tanh_out: Literal[False] = False
    use_linear_attn: Literal[False] = False
    attn_type: Literal["vanilla"] = "vanilla"


class TamingConfig(Settings):
    """The settings of a VQModel in model.params of taming's project .yaml."""

    ddconfig: DDConfig
    embed_dim: int
    n_embed: int


class DiffusersConfig(Settings):
    """The config.json of diffusers' VQModel, with its defaults."""

    in_channels: int = 3
    out_channels: int = 3
    down_block_types: tuple[Literal["DownEncoderBlock2D", "AttnDownEncoderBlock2D"], ...] = ("DownEncoderBlock2D",)
    up_block_types: tuple[Literal["UpDecoderBlock2D", "AttnUpDecoderBlock2D"], ...] = ("UpDecoderBlock2D",)
    block_out_channels: tuple[Width, ...] = (64,)
    layers_per_block: int = 1
    act_fn: Literal["silu", "swish"] = "silu"
    latent_channels: int = 3
    sample_size: Any = None  # of the images it was tried with: the network takes any
    num_vq_embeddings: int = 256
    norm_num_groups: int = 32
    vq_embed_dim: int | None = None
    scaling_factor: float = 0.18215  # of latent diffusion, which VQModel itself does not apply
    norm_type: Literal["group"] = "group"
    mid_block_add_attention: bool = True
    lookup_from_codebook: bool = False  # what its decode takes; the function is the same
    force_upcast: Any = None  # of half precision


def from_taming(path: Path) -> dict[str, Any]:
    """Return our settings, read from taming's project .yaml."""
    model = config.read_yaml(path).get("model")
    params = model.get("params") if isinstance(model, dict) else None
    if not isinstance(params, dict):
        raise UserError(f"{path} must be a project .yaml of taming's, with model.params.ddconfig; got no model.params")
    given = {name: params[name] for name in TamingConfig.model_fields if name in params}
    read = config.build(TamingConfig, given, f"{path}, model.params")
    c = read.ddconfig
    _same_channels(path, c.in_channels, c.out_ch)
    return {
        "image_size": (c.resolution, c.resolution),
        "image_channels": c.in_channels,
        "first_channels": c.ch,
        "channels": tuple(c.ch * times for times in c.ch_mult),
        "blocks": c.num_res_blocks,
        "attention_levels": tuple(n for n in range(len(c.ch_mult)) if c.resolution // 2**n in c.attn_resolutions),
        "z_channels": c.z_channels,
        "codebook_size": read.n_embed,
        "code_dim": read.embed_dim,
        "normalize": False,
    }


def from_diffusers(path: Path) -> dict[str, Any]:
    """Return our settings, read from diffusers' config.json."""
    written = folder.read_json(path)
    if written.get("_class_name") != "VQModel":
        raise UserError(f"{path} must be that of a VQModel, got _class_name {written.get('_class_name')!r}")
    if written.get("norm_type") == "spatial":
        raise UserError(
            f"{path} has norm_type spatial, which makes it a MoVQ: its decoder reads the codes at every norm, ours not"
        )
    given = {name: value for name, value in written.items() if not name.startswith("_")}
    c = config.build(DiffusersConfig, given, path)
    _same_channels(path, c.in_channels, c.out_channels)
    down = ["Attn" in each for each in c.down_block_types]
    if not len(down) == len(c.up_block_types) == len(c.block_out_channels):
        raise UserError(f"{path} must have as many down_block_types and up_block_types as block_out_channels")
    if ["Attn" in each for each in reversed(c.up_block_types)] != down:
        raise UserError(
            f"{path} has attention on other levels of the decoder than of the encoder, which ours cannot have"
        )
    return {
        "image_channels": c.in_channels,
        "first_channels": c.block_out_channels[0],
        "channels": c.block_out_channels,
        "blocks": c.layers_per_block,
        "attention_levels": tuple(n for n, attends in enumerate(down) if attends),
        "middle_attention": c.mid_block_add_attention,
        "norm_groups": c.norm_num_groups,
        "z_channels": c.latent_channels,
        "codebook_size": c.num_vq_embeddings,
        "code_dim": c.vq_embed_dim or c.latent_channels,
        "normalize": False,
    }


def _same_channels(path: Path, inputs: int, outputs: int) -> None:
    if inputs != outputs or inputs not in (1, 3, 4):
        raise UserError(
            f"{path}: a tokenizer of images has 1, 3 or 4 channels, as many in as out; "
            f"got {inputs} in and {outputs} out"
        )


def from_shapes(
    shapes: Mapping[str, tuple[int, ...]], kind: Literal["llamagen", "taming"], source: str
) -> dict[str, Any]:
    """Return our settings, read off the shapes of a checkpoint's tensors; the publisher never varies the others."""

    def shape(ours: str, dimensions: int = 4) -> tuple[int, ...]:
        name = published_name(ours, kind, 0)
        found = shapes.get(name)
        if found is None or len(found) != dimensions:
            raise UserError(
                f"{source} must hold {name}, of {dimensions} axes, to be {kind}'s, got {found or 'none'}; "
                "is it another kind?"
            )
        return found

    def there(ours: str) -> bool:
        return published_name(ours, kind, 0) in shapes

    width = "encoder.levels.{}.blocks.{}.conv1.weight"
    levels = len(list(takewhile(lambda n: there(width.format(n, 0)), count())))
    first, last = shape("encoder.first.weight"), shape("to_code.weight")
    codebook_size, code_dim = shape("quantizer.codebook", 2)
    return {
        "image_channels": first[1],
        "first_channels": first[0],
        "channels": tuple(shape(width.format(n, 0))[0] for n in range(max(levels, 1))),
        "blocks": len(list(takewhile(lambda n: there(width.format(0, n)), count()))),
        "attention_levels": tuple(n for n in range(levels) if there(f"encoder.levels.{n}.attentions.0.query.weight")),
        "z_channels": last[1],
        "codebook_size": codebook_size,
        "code_dim": code_dim,
        "normalize": kind == "llamagen",
    }


# ------------------------------------------------------------------------------------------------------------- files


def read_checkpoint(path: Path, kind: Publisher) -> dict[str, Tensor]:
    """Return the tensors of a checkpoint by the publisher's names, mapped from the disk and not yet read.

    Raises:
        UserError: no such file, a damaged one, one that claims more than it holds, or one that holds more than plain
            tensors.
    """
    if not path.is_file():
        wanted = "a folder, and a file is wanted: .safetensors, .pt, .ckpt or .bin"
        raise UserError(f"the checkpoint {path} is {wanted if path.is_dir() else 'not there'}")
    if path.suffix == ".safetensors":
        try:
            found: Any = read_tensors(path)
        except (SafetensorError, OSError, ValueError) as error:
            pass_on(error)
            raise UserError(f"{path} is no whole .safetensors: {error}; get it again") from None
    else:
        found = _read_torch(path, WRAPPERS[kind])
        wrapper = next((name for name in WRAPPERS[kind] if isinstance(found.get(name), dict)), None)
        found = found if wrapper is None else found[wrapper]
    tensors = {
        name: tensor
        for name, tensor in found.items()
        if isinstance(name, str) and isinstance(tensor, Tensor) and not re.match(LEFT_OUT[kind], name)
    }
    claimed = sum(tensor.nbytes for tensor in tensors.values() if tensor.layout is torch.strided)
    if claimed > (size := path.stat().st_size):
        raise UserError(f"{path} has {size} bytes and claims tensors of {claimed}: it is no published checkpoint")
    return tensors


def _read_torch(path: Path, wrappers: tuple[str, ...]) -> dict[Any, Any]:
    """Return the dictionary in a file of torch.save, which may hold plain values and tensors alone."""
    safe = path.with_suffix(".safetensors").name
    snippet = (
        f"import torch, safetensors.torch as s; w = torch.load('{path.name}', map_location='cpu', weights_only=False); "
        f"w = next((w[k] for k in {wrappers} if isinstance(w.get(k), dict)), w); "
        f"s.save_file({{k: v.clone() for k, v in w.items() if isinstance(v, torch.Tensor)}}, '{safe}')"
    )
    advice = f'where you trust whoever made it, and there alone, run python -c "{snippet}" and give {safe}'
    if not zipfile.is_zipfile(path):
        raise UserError(f"{path} is no file of torch.save since PyTorch 1.6, or not a whole one; {advice}")
    try:
        with zipfile.ZipFile(path) as archive:
            entries = archive.infolist()
        index = max((entry.file_size for entry in entries if entry.filename.endswith("data.pkl")), default=0)
        if sum(entry.file_size for entry in entries) > path.stat().st_size or index > MOST_PICKLE:
            raise UserError(
                f"{path} would unpack to more than it is: torch.save packs nothing, so it is no published checkpoint"
            )
        found = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
    except UserError:
        raise
    except pickle.UnpicklingError as error:
        what = re.search(r"GLOBAL (\S+)", str(error))
        raise UserError(
            f"{path} holds more than tensors ({what[1] if what else 'no plain pickle'}), "
            f"which is not unpickled here; {advice}"
        ) from None
    except Exception as error:  # a stranger's file may fail at anything
        pass_on(error)
        raise UserError(f"{path} is damaged: {' '.join(str(error).split())[:200]}; get it again") from None
    if not isinstance(found, dict):
        raise UserError(f"{path} must hold a dictionary of tensors, got {type(found).__name__}")
    return found


def convert_tensors(tensors: Mapping[str, Tensor], c: VQGANConfig, kind: Publisher, source: str) -> dict[str, Tensor]:
    """Return a checkpoint's tensors by our names, in fp32 and our shapes.

    Raises:
        UserError: a tensor is missing, left over, of another shape, or not of finite numbers.
    """
    wanted = checkpoint_places(c, kind)
    sizes = f"a {kind} VQGAN of widths {', '.join(map(str, c.channels))}"
    for place in wanted.values():
        got = tuple(tensors[place.name].shape) if place.name in tensors else "none"
        if got != place.shape:
            raise UserError(f"{source} does not fit {sizes}: {place.name} must be {place.shape}, got {got}")
    if extra := sorted(tensors.keys() - {place.name for place in wanted.values()}):
        raise UserError(f"{source} does not fit {sizes}: {extra[0]} belongs to none ({len(extra)} such tensors)")
    found = {}
    for ours, place in wanted.items():
        tensor = tensors[place.name]
        if wrong := misfit(tensor.dtype, torch.float32):
            raise UserError(f"{source}: {place.name} {wrong}; it is no published checkpoint")
        if tensor.layout is not torch.strided or not tensor.isfinite().all():
            raise UserError(f"{source}: {place.name} must be a plain tensor of finite numbers, got others")
        found[ours] = tensor.float().reshape(place.ours)
    return found


def read_published(
    path: Path, kind: Publisher, architecture: Path | None = None, image_size: tuple[int, int] | None = None
) -> VQGANTokenizer:
    """Return a published checkpoint as our tokenizer, in evaluation mode on the CPU; its likelihood is not yet fitted.

    Args:
        path: the file; of diffusers the folder.
        architecture: taming's project .yaml.
        image_size: (H, W), where not that of `architecture`.
    Raises:
        UserError: what it reads is not whole, not safe, not of this kind, or not consistent.
    """
    if architecture is not None and kind != "taming":
        raise UserError(f"architecture is taming's project .yaml; of {kind} leave it away, got {architecture}")
    if kind == "diffusers":
        weights = diffusers_weights(path)
        given = from_diffusers(folder.inside(path, "config.json"))
        tensors = _present_names(read_checkpoint(weights, kind))
    else:
        weights, tensors = path, read_checkpoint(path, kind)
        if "quantize.proj.weight" in tensors:
            raise UserError(
                f"{path} is a GumbelVQ (it has quantize.proj.weight), whose codes are no nearest neighbours; "
                "VQModel is read"
            )
        shapes = {name: tuple(tensor.shape) for name, tensor in tensors.items()}
        given = from_taming(architecture) if architecture else from_shapes(shapes, kind, str(path))
    given = {"image_size": RESOLUTION, **given}
    if image_size is not None:
        given["image_size"] = image_size
    c = config.build(VQGANConfig, given, str(architecture or path))
    found = convert_tensors(tensors, c, kind, str(weights))
    with torch.device("meta"):
        tokenizer = VQGANTokenizer(c)
    tokenizer.to_empty(device="cpu")
    tokenizer.load_state_dict({**found, "likelihood.log_scale": torch.zeros(c.image_channels)})
    return tokenizer.eval()


def diffusers_weights(path: Path) -> Path:
    """Return the file of the weights in the folder of a VQModel."""
    if not path.is_dir():
        raise UserError(f"a checkpoint of diffusers is the folder of a VQModel, with config.json; {path} is none")
    names = [f"diffusion_pytorch_model.{suffix}" for suffix in ("safetensors", "bin")]
    return next((folder.inside(path, name) for name in names if (path / name).exists()), path / names[0])


def _present_names(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return the tensors with diffusers' former names of attention replaced by today's."""
    found = {}
    for name, tensor in tensors.items():
        for former, now in FORMER:
            name = name.replace(former, now) if ".attentions." in name else name
        found[name] = tensor
    return found
