"""Stage one with somebody else's weights: make a published VQGAN a tokenizer of ours.

    python tokenizer/convert.py vq_ds16_c2i.pt --kind llamagen --run runs/mine
        --images.source path/to/images
    python tokenizer/convert.py last.ckpt --kind taming --architecture model.yaml --run runs/mine
        --images.source path/to/images
    python tokenizer/convert.py amused-256/vqvae --kind diffusers --run runs/mine
        --images.source path/to/images

Reads the checkpoint and some of the images, by whose reconstructions the scale of the likelihood is fitted, and writes
into RUN/tokenizer config.yaml, reconstructions.png and model/. tokenizer/encode.py, prior/train.py and
pipeline/generate.py take it from there. The same command writes the same again; a run of another tokenizer is refused.
"""

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

if __package__ in (None, ""):
    sys.path[0] = str(Path(__file__).resolve().parents[1])
    from smalti.common.starting import answer_signals

    answer_signals()

from smalti.common import config
from smalti.common.command_line import answer_at_once, is_command
from smalti.tokenizer.vqgan.config import ConvertConfig


def read_settings(argv: Sequence[str]) -> ConvertConfig:
    return config.parse(
        ConvertConfig, __doc__, argv, positional="checkpoint", positional_help="the published file, or folder"
    )


if is_command(__name__):  # --help and a wrong setting are answered before torch is imported
    answer_at_once(read_settings)

import torch
from accelerate import Accelerator
from torch import Tensor

from smalti.common.commands import as_typed
from smalti.common.data.images import open_images, tell_of_images
from smalti.common.data.pixels import to_float, to_uint8
from smalti.common.data.run_images import where_they_lay, write_record
from smalti.common.data.split import ImageSplit
from smalti.common.launch import make_accelerator, run_command
from smalti.common.parts import share_of
from smalti.common.plots import image_grid, save_picture
from smalti.common.progress import advance, progress_bar
from smalti.common.run_folder import Leeway, check_run, enter_run
from smalti.common.session import session
from smalti.common.spacing import evenly_spaced
from smalti.metrics.similarity import psnr_of, squared_error_each
from smalti.tokenizer.vqgan.model import VQGANTokenizer
from smalti.tokenizer.vqgan.published import read_published

LEEWAY = Leeway(free={"run", "encode.views", "encode.batch_size", "encode.shard_size", "batch_size"})
SHOWN = 12  # images of the picture


class Reconstructions(NamedTuple):
    """The errors of the reconstructions of some images, and a few of both."""

    number: int
    psnr: float  # dB, pooled
    squared_error: Tensor  # (C,), mean over pixels
    shown: list[Tensor]  # originals (n, C, H, W) uint8, a few
    decoded: list[Tensor]  # what they become


def convert(c: ConvertConfig, accelerator: Accelerator) -> Path:
    """Convert the checkpoint, fit its likelihood, and return the folder of the model."""
    run = Path(c.run) / "tokenizer"
    tokenizer = read_published(
        Path(c.checkpoint), c.kind, Path(c.architecture) if c.architecture else None, c.image_size
    )
    model = tokenizer.config
    images = open_images(where_they_lay(c.images, run), model.image_size, model.image_channels)
    reopened = check_run(run, c, LEEWAY)
    tell_of_images(images, accelerator)
    enter_run(run, c, 0, reopened, accelerator)
    write_record(images, c.images.source, run, accelerator)
    H, W = model.image_size
    said = "" if c.image_size else ", since no --image_size was given"
    accelerator.print(f"images of {H}x{W} pixels become {model.layout}{said}")
    found = reconstruct_sample(tokenizer.to(accelerator.device), images.splits["train"], c, accelerator)
    tokenizer.fit_likelihood(found.squared_error)
    if accelerator.is_main_process:
        rows = [torch.cat(some)[:SHOWN] for some in (found.shown, found.decoded)]
        save_picture(image_grid(torch.cat(rows), len(rows[0])), run / "reconstructions.png")
        tokenizer.save_pretrained(run / "model")
    accelerator.wait_for_everyone()
    numbers = sum(tensor.numel() for tensor in tokenizer.state_dict().values())
    accelerator.print(f"{c.kind}: {numbers:,} numbers; {found.number} train images: {found.psnr:.2f} dB pooled")
    return run / "model"


@torch.no_grad()
def reconstruct_sample(
    tokenizer: VQGANTokenizer, split: ImageSplit, c: ConvertConfig, accelerator: Accelerator
) -> Reconstructions:
    """Return the reconstructions of images evenly spaced in a split; each process decodes its share."""
    chosen = evenly_spaced(c.fit_images, len(split))
    sums = torch.zeros(2 + tokenizer.config.image_channels, device=accelerator.device)
    shown: list[Tensor] = []
    decoded: list[Tensor] = []
    bar = progress_bar(accelerator, len(chosen), "reconstruct", unit="image")
    for some in share_of(len(chosen), c.batch_size, accelerator):
        images = split.read(chosen[some]).images.to(accelerator.device)
        pixels = to_float(images)
        output = tokenizer.output(tokenizer.encode(pixels))
        again, error = to_uint8(tokenizer.likelihood.mean(output)), (pixels - output).square().mean((2, 3)).sum(0)
        sums += torch.cat([error.new_tensor([len(images)]), squared_error_each(images, again).sum()[None], error])
        if sum(map(len, shown)) < SHOWN:
            shown.append(images.cpu())
            decoded.append(again.cpu())
        advance(bar, len(some) * accelerator.num_processes)
    bar.close()
    number, levels, *errors = accelerator.reduce(sums).tolist()
    squared_error = torch.tensor(errors, device=accelerator.device) / max(number, 1)
    psnr = psnr_of(torch.tensor(levels / max(number, 1))).item()
    return Reconstructions(int(number), psnr, squared_error, shown, decoded)


def main(argv: Sequence[str]) -> None:
    c = read_settings(argv)
    accelerator = make_accelerator()
    with session(Path(c.run) / "tokenizer", accelerator):
        model = convert(c, accelerator)
    accelerator.print(f"the tokenizer is in {model}\nnext: {as_typed('tokenizer/encode.py', Path(c.run))}")


if __name__ == "__main__":
    run_command(main)
