"""Draw the codebook of a run's tokenizer, say how well it is used, and what to change.

    accelerate launch -q tokenizer/codebook.py runs/digits

Reads RUN/tokenizer/{config.yaml, model/} and counts the codes of whole splits: of RUN/codes where this very tokenizer
wrote them from the run's own images, else by encoding the validation split now (or --splits), the work and the counts
shared over processes. Writes, anew each time:
    RUN/tokenizer/codebook.json   figures and counts of each split, nearest pairs, advice
    RUN/tokenizer/codebook.png    the usage curve, every code's patch, the nearest pairs
and prints a summary with the advice.
"""

import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

if __package__ in (None, ""):
    sys.path[0] = str(Path(__file__).resolve().parents[1])
    from smalti.common.starting import answer_signals

    answer_signals()

from smalti.common import config
from smalti.common.choices import Precision
from smalti.common.command_line import answer_at_once, is_command
from smalti.common.config import Settings as BaseSettings


class Settings(BaseSettings):
    """Draw a codebook and judge its use."""

    run: str = "runs/digits"
    """folder of the experiment: its tokenizer is looked at"""
    splits: tuple[str, ...] | None = None
    """which splits are counted, or `all`; null is all of RUN/codes, and validation alone where codes must be made
    first"""
    precision: Precision = "auto"
    """of the encoder where codes must be made first; auto is bf16 where the hardware computes it"""


def read_settings(argv: Sequence[str]) -> Settings:
    return config.parse(Settings, __doc__, argv, positional="run", positional_help="folder of the experiment")


if is_command(__name__):  # --help and a wrong setting are answered before torch is imported
    answer_at_once(read_settings)

import numpy as np
import torch
from accelerate import Accelerator
from torch import Tensor

from smalti.common import codes
from smalti.common.codes_info import TokenizerIdentity
from smalti.common.commands import as_typed
from smalti.common.data.config import ImagesConfig
from smalti.common.data.pixels import to_float
from smalti.common.data.run_images import open_run_images, recorded
from smalti.common.data.split import ImageSplit
from smalti.common.errors import UserError
from smalti.common.folder import write_json
from smalti.common.launch import check_agree, make_accelerator, run_command
from smalti.common.parts import share_of
from smalti.common.progress import advance, passing_bar, progress_bar
from smalti.common.session import logged
from smalti.tokenizer.base import DrawsCodes, ImageTokenizer
from smalti.tokenizer.codebooks.health import Counted, advice, code_neighbours, codebook_of, split_figures
from smalti.tokenizer.codebooks.picture import draw_codebook
from smalti.tokenizer.codebooks.usage import count
from smalti.tokenizer.config import EncodeConfig
from smalti.tokenizer.model import load_identified, trained

BATCH = 256  # images at once, or fewer where encoding takes fewer


def examine(c: Settings, accelerator: Accelerator) -> dict[str, Any]:
    """Measure and draw the codebook, and return the contents of `codebook.json`."""
    run = Path(c.run) / "tokenizer"
    tokenizer, identity = load_identified(trained(run), f"{Path(c.run).name}/tokenizer")
    check_agree(identity.whole, str(run / "model"))
    tokenizer.to(accelerator.device)
    if not isinstance(tokenizer, DrawsCodes):
        raise UserError(f"a tokenizer of kind {tokenizer.config.name()} has no codebook to draw")
    settings = config.read_yaml(run / "config.yaml")
    counted = count_splits(c, tokenizer, identity, settings, accelerator)
    counts, layout = counted.counts[counted.most], tokenizer.config.layout
    tables = tokenizer.code_tables()  # none of fsq, lfq
    near = [code_neighbours(table, row) for table, row in zip(tables, counts, strict=False)]
    book = codebook_of(tokenizer, settings.get("revive_below"))
    sentences = advice(book, counted.counts, near)
    figures = {
        "kind": book.facts.kind,
        "codebook_size": book.codebook_size,
        "code_depth": layout.depth,
        "grids": len(layout.grids),
        "counted_from": counted.source,
        "splits": {name: split_figures(some, counted.images[name], layout) for name, some in counted.counts.items()},
        "nearest": [{**found._asdict(), "pairs": [pair._asdict() for pair in found.pairs]} for found in near],
        "advice": sentences,
    }
    if accelerator.is_main_process:
        write_json(run / "codebook.json", figures, indent=None)
        draw_codebook(tokenizer, layout.codebook_names, counted, near, sentences, run / "codebook.png")
    accelerator.wait_for_everyone()
    return figures


# ------------------------------------------------------------------------------------------------------------ counting


def count_splits(
    c: Settings,
    tokenizer: ImageTokenizer,
    identity: TokenizerIdentity,
    settings: Mapping[str, Any],
    accelerator: Accelerator,
) -> Counted:
    """Return the counts of the splits, from RUN/codes where they can be counted, else by encoding images."""
    run = Path(c.run)
    images = config.build(ImagesConfig, settings["images"], str(run / "tokenizer/config.yaml"))
    reason = why_not_codes(run, images, tokenizer, identity)
    if reason is None:
        _, there = codes.read_info(run / "codes")
        wanted = _wanted(c.splits or ("all",), list(there), run / "codes")
        both = {name: count_codes(run / "codes", name, there[name]["rows"], accelerator) for name in wanted}
        source = str(run / "codes")
    else:
        splits = open_run_images(run / "tokenizer", tokenizer.config).splits
        wanted = _wanted(c.splits or ("validation",), list(splits), images.source)
        accelerator.print(f"{reason}: {', '.join(wanted)} of {images.source} is encoded now", file=sys.stderr)
        encoding = config.build(EncodeConfig, settings["encode"], str(run / "tokenizer/config.yaml"))
        batch_size = min(BATCH, encoding.batch_size)
        both = {name: count_images(tokenizer, splits[name], batch_size, accelerator) for name in wanted}
        source = f"images of {images.source}"
    return Counted(
        source, {name: some for name, (some, _) in both.items()}, {name: some for name, (_, some) in both.items()}
    )


def why_not_codes(
    run: Path, images: ImagesConfig, tokenizer: ImageTokenizer, identity: TokenizerIdentity
) -> str | None:
    """Return why RUN/codes cannot be counted, or None where it can."""
    if not codes.is_whole(run / "codes"):
        return f"{run / 'codes'} is not there, or not yet whole"
    info, _ = codes.read_info(run / "codes")
    if not info.tokenizer.same_codes(identity):
        return f"{run / 'codes'} is of another tokenizer, {info.tokenizer}"
    if info.layout != tokenizer.config.layout:
        return f"{run / 'codes'} gives its codes another size than the tokenizer does: its codes.json was changed"
    known = recorded(run / "tokenizer").fingerprint or info.source.get("fingerprint")
    if (info.source.get("source"), info.source.get("subset"), info.source.get("fingerprint")) != (
        images.source,
        images.subset,
        known,
    ):
        return f"{run / 'codes'} is of other images, {info.source.get('source')}"
    return None


def _wanted(names: Sequence[str], there: Sequence[str], where: object) -> list[str]:
    if tuple(names) == ("all",):
        return list(there)
    if missing := [name for name in names if name not in there]:
        raise UserError(f"{where} has no split {missing[0]!r}; it has {', '.join(there)}")
    return list(names)


def count_codes(folder: Path, name: str, rows: int, accelerator: Accelerator) -> tuple[int, Tensor]:
    """Return the number of images and the counts (R, K) of a split of codes, of which the plain views are counted.

    Shard k belongs to rank k mod world.
    """
    info, _ = codes.read_info(folder)
    counts, read = torch.zeros(info.layout.codebooks, info.layout.codebook_size, dtype=torch.int64), 0
    bar = passing_bar(rows, f"count {name}", unit="row")
    for path in codes.shard_paths(folder, name)[accelerator.process_index :: accelerator.num_processes]:
        shard = codes.read_shard(path, info)
        read += len(shard.rows)
        plain = torch.from_numpy(shard.codes[:: info.views].astype(np.int64))
        counts += count(plain, info.layout)
        advance(bar, len(shard.rows) * accelerator.num_processes)
    bar.close()
    read, counts = _summed(read, counts, accelerator)
    if read != rows:
        raise UserError(f"split {name} of {folder} must have {rows} rows, got {read}; {codes.AGAIN}")
    return read // info.views, counts


@torch.no_grad()
def count_images(
    tokenizer: ImageTokenizer, split: ImageSplit, batch_size: int, accelerator: Accelerator
) -> tuple[int, Tensor]:
    """Return the number of images and the counts (R, K) of a split of images; each process encodes its share."""
    layout = tokenizer.config.layout
    counts, read = torch.zeros(layout.codebooks, layout.codebook_size, dtype=torch.int64), 0
    bar = progress_bar(accelerator, len(split), f"encode {split.name}", unit="image")
    for positions in share_of(len(split), batch_size, accelerator):
        batch = split.read(positions)
        with accelerator.autocast():
            encoded = tokenizer.encode(to_float(batch.images.to(accelerator.device)), batch.labels)
        counts += count(encoded.cpu(), layout)
        read += len(batch.images)
        advance(bar, len(positions) * accelerator.num_processes)
    bar.close()
    return _summed(read, counts, accelerator)


def _summed(number: int, counts: Tensor, accelerator: Accelerator) -> tuple[int, Tensor]:
    """Return the sums over processes, as whole numbers: in fp32 a count stops growing at 2^24."""
    total = accelerator.reduce(torch.tensor(number, device=accelerator.device))
    return int(total), accelerator.reduce(counts.to(accelerator.device)).cpu()


def summary_lines(figures: Mapping[str, Any]) -> Iterator[str]:
    """Yield the lines that the script prints."""
    Q, grids = figures["code_depth"], figures["grids"]
    kind, deep = (f"residual {figures['kind']}", f", {Q} deep") if Q > 1 else (figures["kind"], "")
    over = f", {grids} grids" if grids > 1 else ""
    yield f"{kind} of {figures['codebook_size']:,} codes{deep}{over}, counted from {figures['counted_from']}"
    for name, split in figures["splits"].items():
        yield (
            f"{name}: {split['images']:,} images, {split['codes']:,} codes; used {split['usage']:.1%}, "
            f"{split['dead_codes']:,} dead; perplexity {split['perplexity']:.1f}; "
            f"{split['bits_a_place']:.2f} of {split['most_bits_a_place']:.2f} bits a place"
        )
        for row in split["depths"] if len(split["depths"]) > 1 else ():
            of = f" of {row['reachable']:.1%} within reach" if grids > 1 else ""
            yield f"    {row['name']}: used {row['usage']:.1%}{of}, perplexity {row['perplexity']:.1f}"
    yield "advice:"
    yield from (f"  - {sentence}" for sentence in figures["advice"])


def main(argv: Sequence[str]) -> None:
    c = read_settings(argv)
    accelerator = make_accelerator(c.precision)
    with logged(Path(c.run) / "tokenizer"):  # not alone: a codebook may be looked at while it is trained
        figures = examine(c, accelerator)
    for line in summary_lines(figures):
        accelerator.print(line)
    accelerator.print(f"the picture is {c.run}/tokenizer/codebook.png, the figures are codebook.json beside it")
    accelerator.print(f"next: {as_typed('tokenizer/encode.py', Path(c.run))}")


if __name__ == "__main__":
    run_command(main)
