"""Write a run's codes for a language model: a tokenizer of transformers with a token for each code, and rows of tokens.

    python pipeline/export_lm.py runs/fashion_mnist
    python pipeline/export_lm.py runs/fashion_mnist --base FOLDER_OF_A_LANGUAGE_MODEL

Reads RUN/tokenizer/model and RUN/codes, and writes into RUN/language_model (or --output):
    tokenizer.json, tokenizer_config.json    what `AutoTokenizer.from_pretrained` reads: text, begin and end of an
                                             image, the codes of each codebook
    data/SPLIT-00000-of-00001.parquet        rows of `input_ids`, which `datasets.load_dataset` reads
    image_tokens.json, image_tokenizer/      the way back to pixels, which `smalti.ImageTokens.from_pretrained` reads
    README.md                                how to train on it and draw from it
"""

import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

if __package__ in (None, ""):
    sys.path[0] = str(Path(__file__).resolve().parents[1])
    from smalti.common.starting import answer_signals

    answer_signals()

from smalti.common import config
from smalti.common.command_line import answer_at_once, is_command
from smalti.common.config import Settings as BaseSettings


class Settings(BaseSettings):
    """Write the codes of a run as tokens of a language model."""

    run: str = "runs/digits"
    """folder of the experiment"""
    codes: str | None = None
    """another folder of codes; codes/ in the run when null"""
    output: str | None = None
    """folder to write; language_model/ in the run when null"""
    base: str | None = None
    """a language model whose tokenizer gets the tokens of images added, a folder or a Hub repository; when null, a new
    tokenizer of bytes, words of the classes' names, and codes"""


def read_settings(argv: Sequence[str]) -> Settings:
    return config.parse(Settings, __doc__, argv, positional="run", positional_help="folder of the experiment")


if is_command(__name__):  # --help and a wrong setting are answered before torch is imported
    answer_at_once(read_settings)

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch

from smalti.common import codes, folder, markdown
from smalti.common.codes import CodesSplit
from smalti.common.errors import UserError
from smalti.common.hub import README
from smalti.common.identity import check_tokenizer_of
from smalti.common.launch import check_alone, make_accelerator, run_command
from smalti.common.session import session
from smalti.common.written import is_as_written, noted, rewriting_ours, tell_kept, write_text
from smalti.pipeline.image_tokens import MARK, ImageTokens, check_layout, need_transformers
from smalti.tokenizer.model import load_tokenizer, trained

if TYPE_CHECKING:  # seconds, and optional
    from transformers import PreTrainedTokenizerFast

ROWS = 2**14  # written at once


def output_folder(c: Settings) -> Path:
    return Path(c.output or Path(c.run) / "language_model")


def open_base(name: str) -> "PreTrainedTokenizerFast":
    """Return a language model's tokenizer. Raises `UserError` where there is none, or none of a tokenizer.json."""
    from transformers import AutoTokenizer

    try:
        found = AutoTokenizer.from_pretrained(name, trust_remote_code=False)
    except (OSError, ValueError) as error:
        raise UserError(f"there is no tokenizer in {name}: {' '.join(str(error).split())[:300]}") from None
    if not found.is_fast:
        raise UserError(f"the tokenizer {name} has no tokenizer.json; give one of the tokenizers library")
    return found


def export(c: Settings) -> Path:
    """Write the folder in place of an earlier one, and return it. Files that a user added or changed are kept."""
    need_transformers()
    path = output_folder(c)
    folder.check_ours(path, MARK)
    run = Path(c.run)
    source = Path(c.codes or run / "codes")
    info, splits = codes.read_info(source)
    check_layout(info.layout)
    check_tokenizer_of(run, info)
    images = load_tokenizer(trained(run / "tokenizer"))
    tokens = ImageTokens.over(info, images, None if c.base is None else open_base(c.base))
    parquet = {f"data/{name}-00000-of-00001.parquet": name for name in splits}
    before = [f"data/{each.name}" for each in (path / "data").glob("*-00000-of-00001.parquet")]
    kept = not is_as_written(path, README, noted(path))  # somebody has edited it
    card = [] if kept else [README]
    with rewriting_ours(path, [*ImageTokens.files, *parquet, *before, *card]) as aside:
        tokens.write(aside)
        (aside / "data").mkdir()
        for file, name in parquet.items():
            write_rows(aside / file, tokens, codes.load_codes(source, [name]).splits[name])
        if kept:
            tell_kept(path / README)
        else:
            rows = {name: each["rows"] for name, each in splits.items()}
            write_text(aside / README, language_model_card(tokens, rows, path))
    return path


def write_rows(path: Path, tokens: ImageTokens, split: CodesSplit) -> None:
    """Write a split as rows of tokens: the class in words, where there is one, and the image."""
    from datasets import Features, List, Value

    schema = Features({"input_ids": List(Value("int32"))}).arrow_schema
    with pq.ParquetWriter(path, schema, compression="zstd") as writer:
        for start in range(0, len(split.codes), ROWS):
            rows = list(token_rows(tokens, split.at(slice(start, start + ROWS))))
            lengths = np.cumsum([0, *map(len, rows)], dtype=np.int32)
            lists = pa.ListArray.from_arrays(pa.array(lengths), pa.array(np.concatenate(rows)))
            writer.write_table(pa.table({"input_ids": lists.cast(schema.field(0).type)}, schema=schema))


def token_rows(tokens: ImageTokens, split: CodesSplit) -> Iterator[np.ndarray]:
    """Yield the tokens of each row, int32."""
    c, names = tokens.config, tokens.config.condition.class_names or ()
    before = [np.array([*c.before, *tokens.text_ids(name)], np.int32) for name in (*names, "")]  # the last: no class
    classes = [-1] * len(split.codes) if split.condition is None else split.condition.tolist()
    after = np.array(c.after, np.int32)
    images = tokens.ids(torch.from_numpy(np.asarray(split.codes).astype(np.int64))).to(torch.int32).numpy()
    for number, image in zip(classes, images, strict=True):
        yield np.concatenate([before[number], image, after])


USE = """\
from datasets import load_dataset
from smalti import ImageTokens
from transformers import DataCollatorForLanguageModeling, LlamaConfig, LlamaForCausalLM, Trainer, TrainingArguments

tokens = ImageTokens.from_pretrained({place})
rows = load_dataset({place})
text = tokens.text
model = LlamaForCausalLM(LlamaConfig(
    vocab_size=tokens.config.size, hidden_size=128, intermediate_size=352, num_hidden_layers=4, num_attention_heads=4,
    bos_token_id=text.bos_token_id, eos_token_id=text.eos_token_id, pad_token_id=text.pad_token_id))
arguments = TrainingArguments("trained", max_steps=1000, per_device_train_batch_size=64, learning_rate=3e-3)
collate = DataCollatorForLanguageModeling(text, mlm=False)
Trainer(model, arguments, train_dataset=rows["train"], data_collator=collate).train()

ids = model.generate(**tokens.prompt([{text}]).to(model.device), do_sample=True, max_new_tokens=tokens.length,
                     logits_processor=[tokens.legal_grids()])
tokens.decode(ids)[0].save("drawn.png")"""


def language_model_card(tokens: ImageTokens, rows: Mapping[str, int], path: Path) -> str:
    """Return the README.md of the folder, with the YAML head by which `load_dataset` finds the rows."""
    c = tokens.config
    head = markdown.yaml_head(
        pretty_name="Image codes as tokens",
        tags=[markdown.LIBRARY, "image-codes"],
        configs=[
            {
                "config_name": "default",
                "data_files": [{"split": name, "path": f"data/{name}-*.parquet"} for name in rows],
            }
        ],
    )
    names = c.condition.class_names
    text = repr(names[0] if names else "")
    said = f"the names of {len(names)} classes as text, then the image" if names else "an image a row, without text"
    splits = [(f"`{name}`", f"{number:,}") for name, number in rows.items()]
    return (
        head
        + f"# Image codes as tokens of a language model\n\n{c.size:,} tokens. An image is {c.layout}; rows are {said}, "
        "between `<|image|>` and `<|/image|>`.\n\n"
        + markdown.fenced(USE.format(place=repr(path.name), text=text), "python")
        + "\n## Rows\n\n"
        + markdown.markdown_table(("split", "rows"), splits)
        + f"\nThe codes are of the tokenizer {markdown.plain(str(c.tokenizer))}, which `image_tokenizer/` has.\n"
    )


def main(argv: Sequence[str]) -> None:
    check_alone()
    c = read_settings(argv)
    folder.check_ours(output_folder(c), MARK)
    with session(output_folder(c), make_accelerator()):
        path = export(c)
    print(f"{path} is written; {path / README} says how to train on it and draw from it")


if __name__ == "__main__":
    run_command(main)
