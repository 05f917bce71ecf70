"""Codes as tokens of a causal language model: what is drawn is a whole image, and it comes back as it was."""

import sys

import numpy as np
import pytest
import torch

from smalti.common import codes
from smalti.common.codes import CodesInfo, CodesSplit
from smalti.common.codes_info import TokenizerIdentity
from smalti.common.condition import Classes
from smalti.common.errors import UserError
from smalti.common.folder import read_json, sha256
from smalti.common.layout import Grid, Layout
from smalti.pipeline.export_lm import Settings, export, token_rows
from smalti.pipeline.image_tokens import ImageTokens, LegalGrids, TokensConfig, need_transformers
from smalti.tokenizer.bottleneck.vq import VQConfig
from smalti.tokenizer.vqvae.config import VQVAEConfig
from smalti.tokenizer.vqvae.model import VQVAE

transformers = pytest.importorskip("transformers")
NAMES = ("T-shirt/top", "ankle boot", "犬")


def tiny_model(tokens: ImageTokens):
    """Return a Llama of random weights, as anybody's."""
    sizes = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
    ids = {f"{name}_token_id": getattr(tokens.text, f"{name}_token_id") for name in ("bos", "eos", "pad")}
    torch.manual_seed(0)
    config = transformers.LlamaConfig(vocab_size=tokens.config.size, **sizes, **ids)
    return transformers.LlamaForCausalLM(config).eval()


@pytest.fixture(scope="module")
def tokens() -> ImageTokens:
    """Return the tokens of 2 x 2 codes of 16, with three classes."""
    torch.manual_seed(0)
    quantizer = VQConfig(codebook_size=16, code_dim=4)
    images = VQVAE(VQVAEConfig(image_size=(4, 4), channels=(8, 16), quantizer=quantizer)).eval()
    info = CodesInfo(
        layout=images.config.layout,
        views=1,
        condition=Classes(names=NAMES),
        tokenizer=TokenizerIdentity(name="test", sha256="0" * 64),
        source={},
        shard_size=1,
    )
    return ImageTokens.over(info, images)


@pytest.fixture(scope="module")
def exported(finished_run, tmp_path_factory):
    return export(Settings(run=str(finished_run), output=str(tmp_path_factory.mktemp("lm") / "digits")))


def test_rows_are_what_the_tokenizer_makes_of_their_text(tokens):
    """ids -> text -> ids is exact, for any class and for none."""
    generator = torch.Generator().manual_seed(0)
    some = torch.randint(16, (1000, 4), generator=generator)
    split = CodesSplit(some.numpy().astype(np.uint8), np.arange(1000) % 4 - 1, np.arange(1000))
    rows = [row.tolist() for row in token_rows(tokens, split)]
    texts = tokens.text.batch_decode(rows)
    assert texts[2] == "ankle boot<|image|>" + "".join(f"<|code {code}|>" for code in some[2]) + "<|/image|>"
    assert tokens.text(texts)["input_ids"] == rows
    assert torch.equal(tokens.codes(rows), some)


def test_a_model_of_random_weights_draws_whole_images_only(tokens):
    prompt = tokens.prompt(["ankle boot", "", "犬", "a cat on a mat"] * 16)  # of several lengths
    torch.manual_seed(0)
    drawn = tiny_model(tokens).generate(
        **prompt, do_sample=True, max_new_tokens=tokens.length, logits_processor=[tokens.legal_grids()]
    )
    assert tokens.codes(drawn).shape == (64, 4)
    assert [picture.size for picture in tokens.decode(drawn[:2])] == [(4, 4)] * 2


def test_each_place_of_several_grids_admits_the_codes_of_its_own_codebook():
    """Two grids, the finer one two codes deep: three codebooks, of 4, 8 and 8 codes."""
    layout = Layout(grids=(Grid(shape=(1, 1), factors=(4,)), Grid(shape=(1, 2), depth=2, factors=(8,))))
    config = TokensConfig(
        layout=layout,
        condition=Classes(names=()),
        tokenizer=TokenizerIdentity(name="test", sha256="0" * 64),
        begin=0,
        end=1,
        first=(3, 7, 15),
        size=23,
    )
    ids = [2, 0, 3, 7, 15, 14, 22, 1]
    admitted = {3: range(3, 7), 7: range(7, 15), 15: range(15, 23), 14: range(7, 15), 22: range(15, 23), 1: [1]}
    processor = LegalGrids(config)
    for length in range(2, len(ids)):
        scores = processor(torch.tensor([ids[:length]]), torch.zeros(1, 25))
        assert scores[0].isfinite().nonzero()[:, 0].tolist() == list(admitted[ids[length]])
    outside = processor(torch.tensor([ids]), torch.zeros(1, 25))[0].isfinite().nonzero()[:, 0].tolist()
    assert outside == [0, 2], "after the end codes and ends are not admitted, nor outputs that are no tokens"


@pytest.mark.parametrize(
    "change, told",
    [
        (lambda ids: ids[:, :-1], "row 0 has 1 begun images and 0 ends"),
        (lambda ids: torch.cat([ids[:, :2], ids[:, 3:]], 1), "must have 4 codes and then its end"),
        (lambda ids: torch.cat([ids[:, :2], ids[:, :1] * 0, ids[:, 3:]], 1), "token 0 at place 1 is no code"),
    ],
)
def test_an_image_that_is_not_whole_is_refused_by_name(tokens, change, told):
    with pytest.raises(UserError, match=told):
        tokens.codes(change(tokens.ids(torch.tensor([[1, 2, 3, 4]]))))


def test_a_word_is_one_prompt_and_nothing_is_none(tokens):
    """A string was taken for its letters, an image of each."""
    assert tokens.prompt("Bag")["input_ids"].tolist() == tokens.prompt(["Bag"])["input_ids"].tolist()
    with pytest.raises(UserError, match="a prompt needs at least one text"):
        tokens.prompt([])


def test_a_class_that_is_called_as_a_token_is_refused(tokens):
    with pytest.raises(UserError, match="has a token of images in it"):
        tokens.text_ids("boot<|/image|>")


def test_a_model_of_fewer_outputs_than_tokens_is_told_to_grow(tokens):
    with pytest.raises(UserError, match=r"model\.resize_token_embeddings"):
        tokens.legal_grids()(torch.tensor([[tokens.config.begin]]), torch.zeros(1, 5))


def test_the_tokens_of_a_language_model_stay_and_rows_have_its_ends(tokens, exported, finished_run, tmp_path):
    from tokenizers import Tokenizer, models

    base = Tokenizer(models.WordLevel({"<s>": 0, "</s>": 1, "7": 2, "?": 3}, unk_token="?"))
    base = transformers.PreTrainedTokenizerFast(tokenizer_object=base, bos_token="<s>", eos_token="</s>", unk_token="?")
    base.save_pretrained(tmp_path / "base")
    path = export(Settings(run=str(finished_run), base=str(tmp_path / "base"), output=str(tmp_path / "lm")))
    extended = ImageTokens.from_pretrained(path)
    assert extended.text.convert_tokens_to_ids(["<s>", "</s>", "7"]) == [0, 1, 2]
    assert extended.prompt(["7"])["input_ids"].tolist() == [[0, 2, extended.config.begin]]
    row = next(token_rows(extended, codes.load_codes(finished_run / "codes").splits["train"])).tolist()
    assert (row[0], row[-2], row[-1]) == (0, extended.config.end, 1)


def test_trainer_trains_on_the_folder_and_its_rows_decode_as_the_run_does(exported, finished_run, tmp_path):
    """An unmodified LlamaForCausalLM with Trainer, as the README of the folder says."""
    from datasets import load_dataset

    tokens = ImageTokens.from_pretrained(exported)
    there = codes.load_codes(finished_run / "codes").splits
    rows = load_dataset(str(exported), cache_dir=str(tmp_path / "cache"))
    assert {name: len(split) for name, split in rows.items()} == {n: len(s.rows) for n, s in there.items()}
    found = tokens.codes(rows["validation"]["input_ids"])
    assert np.array_equal(found.numpy(), there["validation"].codes)
    identity = read_json(exported / "image_tokens.json")["tokenizer"]
    assert sha256(exported / "image_tokenizer/model.safetensors") in identity["files"]

    model = tiny_model(tokens)
    arguments = transformers.TrainingArguments(
        str(tmp_path / "trained"), max_steps=30, per_device_train_batch_size=16, learning_rate=1e-2, use_cpu=True,
        report_to="none", save_strategy="no", disable_tqdm=True, logging_steps=10,
    )  # fmt: skip
    collate = transformers.DataCollatorForLanguageModeling(tokens.text, mlm=False)
    trainer = transformers.Trainer(model, arguments, train_dataset=rows["train"], data_collator=collate)
    trainer.train()
    losses = [line["loss"] for line in trainer.state.log_history if "loss" in line]
    assert losses[-1] < losses[0] - 0.5


def test_where_transformers_is_missing_it_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "transformers", None)  # as if it were not installed
    with pytest.raises(UserError, match="pip install transformers"):
        need_transformers()


def test_written_again_the_rows_are_new_and_an_edited_card_stays(finished_run, tmp_path, capsys):
    c = Settings(run=str(finished_run), output=str(tmp_path / "lm"))
    path = export(c)
    (path / "README.md").write_text("mine")
    (path / "data/train-00000-of-00001.parquet").unlink()
    export(c)
    assert (
        path / "README.md"
    ).read_text() == "mine" and "README.md is not as this command wrote it" in capsys.readouterr().err
    assert (path / "data/train-00000-of-00001.parquet").exists()


def test_what_a_user_changed_of_the_folder_is_kept_under_another_name(finished_run, tmp_path, capsys):
    """A quantised graph or a tokenizer with words of one's own was written over without a word."""
    path = export(Settings(run=str(finished_run), output=str(tmp_path / "lm")))
    (path / "tokenizer_config.json").write_text('{"mine": 1}')
    (path / "data/train-00000-of-00001.parquet").write_text("mine")
    for _ in range(2):
        export(Settings(run=str(finished_run), output=str(path)))
    assert (path / "tokenizer_config.json.found").read_text() == '{"mine": 1}'
    assert (path / "data/train-00000-of-00001.parquet.found").read_text() == "mine"
    assert capsys.readouterr().err.count("is not as this command wrote it: it is kept as") == 2
    ImageTokens.from_pretrained(path)


def test_vectors_and_a_strangers_folder_are_refused_before_anything_is_written(tokens, finished_run, tmp_path):
    vectors = Layout.of(2, 2, depth=4)
    with pytest.raises(UserError, match="tokens are codes"):
        ImageTokens.over(CodesInfo.model_construct(layout=vectors), tokens.images)
    (tmp_path / "note.txt").write_text("mine")
    with pytest.raises(UserError, match="holds something else"):
        export(Settings(run=str(finished_run), output=str(tmp_path)))
    assert [path.name for path in tmp_path.iterdir()] == ["note.txt"]
