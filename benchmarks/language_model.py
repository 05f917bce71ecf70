"""A language model of transformers beside our Transformer: the same codes, as many weights and steps.

    python -m benchmarks.language_model --data FOLDER_OF_FASHION_MNIST --work DIR

Protocol: a tokenizer of Fashion-MNIST (the shipped config with channels 16 and 32, 256 codes and 600 steps) encodes all
images once, without a mirror. pipeline/export_lm.py writes its codes as tokens. An unmodified LlamaForCausalLM is
trained on them by Trainer, our Transformer on the codes by prior/train.py: depth, width, batch, steps, schedule,
weight decay and learning rate are the same, both by AdamW, both told of the class in every row, bf16, seed 0. Ours
stands there a second time by Muon, which prior/train.py takes by default. Ours keeps an average of its weights, Trainer
does not.

Figures are of the test split, 10,000 images: nats a code given the class and the codes before, of Llama over its whole
vocabulary, text included, and over the codes that the logits processor admits. Its ids are turned into text and back,
and it draws 1,000 images with the processor, a class after the other, at temperature 1.

Writes benchmarks/results/language_model.json. The same command goes on where it was interrupted.
"""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from datasets import load_dataset
from torch import Tensor
from transformers import (
    DataCollatorForLanguageModeling,
    LlamaConfig,
    LlamaForCausalLM,
    Trainer,
    TrainingArguments,
    set_seed,
)

from benchmarks.claim import Claim, verdict
from benchmarks.timing import ROOT, once
from smalti.common import codes
from smalti.common.folder import write_json
from smalti.common.record import record
from smalti.pipeline.image_tokens import ImageTokens
from smalti.prior.base import Scores
from smalti.prior.layers import hidden_width
from smalti.prior.model import load_prior

RESULT = ROOT / "benchmarks/results/language_model.json"
DEPTH, DIM, HEADS = 3, 64, 4
BATCH, LR, WARMUP, WEIGHT_DECAY, CLIP = 64, 3e-3, 100, 0.05, 1.0
TOKENIZER = [
    "--model.channels",
    16,
    32,
    "--model.quantizer.codebook_size",
    256,
    "--steps",
    600,
    "--evaluate_every",
    300,
]
CLAIM = Claim(
    text="nats a code of LlamaForCausalLM by Trainer above our Transformer, both by AdamW",
    relation="at most",
    threshold=0.02,
    value=lambda ours, llama: llama["nll"] - ours["nll"],
)
SCORED = 250  # rows at once


def command(words: Sequence[Any], ended: Path) -> float:
    return once([sys.executable, *map(str, words)], ended)


def prepare(data: Path, run: Path) -> None:
    """Train the tokenizer, encode, and write the tokens."""
    preset = "configs/fashion_mnist/tokenizer.yaml"
    command(
        ["tokenizer/train.py", preset, "--run", run, "--images.source", data, *TOKENIZER], run / ".tokenizer-ended.json"
    )
    command(["tokenizer/encode.py", run, "--views", 1], run / ".encode-ended.json")
    command(["pipeline/export_lm.py", run], run / ".export-ended.json")


def train_ours(run: Path, to: Path, steps: int, matrix_lr: str) -> float:
    """Train our Transformer, and return its CPU seconds."""
    sizes = ["--model.depth", DEPTH, "--model.dim", DIM, "--model.heads", HEADS, "--model.dropout", 0]
    budget = ["--steps", steps, "--batch_size", BATCH, "--warmup", WARMUP, "--evaluate_every", steps // 2]
    rates = ["--lr", LR, "--matrix_lr", matrix_lr, "--weight_decay", WEIGHT_DECAY, "--clip", CLIP]
    said = ["--run", to, "--codes", run / "codes", "--label_dropout", 0]
    preset = "configs/fashion_mnist/prior.yaml"
    return command(["prior/train.py", preset, *said, *sizes, *budget, *rates], to / ".prior-ended.json")


def train_llama(run: Path, to: Path, steps: int) -> LlamaForCausalLM:
    """Return a Llama of our Transformer's sizes, trained by Trainer, or as it was trained before."""
    if (to / "config.json").exists():
        return LlamaForCausalLM.from_pretrained(to)
    tokens = ImageTokens.from_pretrained(run / "language_model")
    ids = {f"{name}_token_id": getattr(tokens.text, f"{name}_token_id") for name in ("bos", "eos", "pad")}
    sizes = {"hidden_size": DIM, "intermediate_size": hidden_width(DIM), "num_hidden_layers": DEPTH}
    set_seed(0)
    model = LlamaForCausalLM(LlamaConfig(vocab_size=tokens.config.size, num_attention_heads=HEADS, **sizes, **ids))
    rows = load_dataset(str(run / "language_model"), cache_dir=str(run / "cache"))
    arguments = TrainingArguments(
        str(to.with_name("trainer")),
        max_steps=steps,
        per_device_train_batch_size=BATCH,
        learning_rate=LR,
        lr_scheduler_type="cosine",
        warmup_steps=WARMUP,
        weight_decay=WEIGHT_DECAY,
        adam_beta2=0.95,
        max_grad_norm=CLIP,
        bf16=True,
        use_cpu=True,
        seed=0,
        report_to="none",
        save_strategy="no",
        logging_steps=50,
    )
    collate = DataCollatorForLanguageModeling(tokens.text, mlm=False)
    Trainer(model, arguments, train_dataset=rows["train"], data_collator=collate).train()
    model.save_pretrained(to)
    return model


@torch.inference_mode()
def nll_of_ours(run: Path, to: Path) -> dict[str, Any]:
    """Return nats a code of our Transformer on the test split, and its weights."""
    prior, split = load_prior(to / "prior/model"), codes.load_codes(run / "codes", ["test"]).splits["test"]
    assert split.condition is not None and isinstance(prior, Scores)
    total = 0.0
    for start in range(0, len(split.codes), SCORED):
        some = split.at(slice(start, start + SCORED))
        there = torch.from_numpy(np.asarray(some.codes).astype(np.int64))
        total -= prior.log_prob(there, torch.from_numpy(some.condition)).double().sum().item()
    return {
        "nll": total / (len(split.codes) * prior.config.layout.length),
        "weights": sum(p.numel() for p in prior.parameters()),
    }


@torch.inference_mode()
def nll_of_llama(model: LlamaForCausalLM, tokens: ImageTokens, rows: Sequence[Sequence[int]]) -> dict[str, Any]:
    """Return nats a code of Llama on rows of ids, over its vocabulary and over what is admitted, and its weights."""
    T, sums = tokens.config.layout.length, torch.zeros(2, dtype=torch.float64)
    processor = tokens.legal_grids()
    for start in range(0, len(rows), SCORED):
        given = tokens.text.pad(
            {"input_ids": list(rows[start : start + SCORED])}, padding_side="left", return_tensors="pt"
        )
        logits = model(**given).logits[:, -T - 2 : -2].float()  # the last is of the end, which is in the row
        wanted = given["input_ids"][:, -T - 1 : -1]
        sums[0] += cross_entropy(logits, wanted)
        before = given["input_ids"].shape[1] - T - 1
        due = [processor(given["input_ids"][:, : before + t], logits[:, t]) for t in range(T)]
        sums[1] += cross_entropy(torch.stack(due, 1), wanted)
    nll = (sums / (len(rows) * T)).tolist()
    return {"nll": nll[0], "nll_admitted": nll[1], "weights": sum(p.numel() for p in model.parameters())}


def cross_entropy(logits: Tensor, wanted: Tensor) -> float:
    return F.cross_entropy(logits.flatten(0, 1), wanted.flatten(), reduction="sum").item()


def changed_by_text(tokens: ImageTokens, rows: Sequence[Sequence[int]]) -> int:
    """Return of how many rows the ids are others after they were text."""
    again = tokens.text(tokens.text.batch_decode(rows), add_special_tokens=False)["input_ids"]
    return sum(list(before) != list(after) for before, after in zip(rows, again, strict=True))


def illegal_draws(model: LlamaForCausalLM, tokens: ImageTokens, number: int) -> int:
    """Return how many of so many drawn images are not whole."""
    names, legal = tokens.config.condition.class_names or ("",), 0
    set_seed(0)
    for start in range(0, number, SCORED):
        prompt = tokens.prompt([names[i % len(names)] for i in range(start, min(number, start + SCORED))])
        given = {"max_new_tokens": tokens.length, "logits_processor": [tokens.legal_grids()]}
        legal += len(tokens.codes(model.generate(**prompt, do_sample=True, top_k=0, **given)))
    return number - legal


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="Fashion-MNIST's folder of Parquet files")
    parser.add_argument("--work", type=Path, required=True)
    parser.add_argument("--steps", type=int, default=500)
    args = parser.parse_args()
    torch.set_num_threads(1)
    work, run = args.work.resolve(), args.work.resolve() / "run"
    prepare(args.data.resolve(), run)
    seconds = {
        "transformer": train_ours(run, work / "adamw", args.steps, "null"),
        "transformer by Muon": train_ours(run, work / "muon", args.steps, "0.03"),
    }
    model = train_llama(run, work / "llama", args.steps).eval()
    tokens = ImageTokens.from_pretrained(run / "language_model")
    test = load_dataset(str(run / "language_model"), cache_dir=str(run / "cache"))["test"]["input_ids"]
    found = {
        "transformer": nll_of_ours(run, work / "adamw"),
        "transformer by Muon": nll_of_ours(run, work / "muon"),
        "llama": nll_of_llama(model, tokens, test[:]),
    }
    judged = CLAIM.judge([(found["transformer"], found["llama"])])
    result = record("benchmarks.language_model", peers=("transformers", "tokenizers")) | {
        "protocol": __doc__,
        "steps": args.steps,
        "training_cpu_seconds": seconds,
        "models": found,
        "images_changed_by_text": changed_by_text(tokens, test[:10_000]),
        "drawn": 1000,
        "drawn_illegal": illegal_draws(model, tokens, 1000),
        "claims": [judged],
    }
    write_json(RESULT, result)
    print(verdict(judged), {name: round(each["nll"], 4) for name, each in found.items()}, sep="\n")


if __name__ == "__main__":
    main()
