"""The codes of images as tokens of a causal language model, and the way back to pixels.

    ankle boot <|image|> <|code 17|> <|code 403|> ... <|/image|>

    tokens = ImageTokens.from_pretrained("runs/fashion_mnist/language_model")
    prompt, legal = tokens.prompt(["ankle boot"]), [tokens.legal_grids()]
    ids = model.generate(**prompt, do_sample=True, max_new_tokens=tokens.length, logits_processor=legal)
    pictures = tokens.decode(ids)

Each codebook, one for each depth of each grid, has its own K tokens. Between the begin and the end of an image stand
its T codes as the layout has them: grid after grid, coarse first, place after place in raster order, the codes of a
place side by side. The class of an image is its name, as text before it.

Shapes: codes (B, T) int64; ids (B, L) int64, one or more images in each row; scores (B, V), V outputs of the model.
"""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Self

import PIL.Image
import torch
import torch.nn.functional as F
from pydantic import Field, model_validator
from torch import Tensor

from smalti.common import folder
from smalti.common.codes_info import CodesInfo, TokenizerIdentity
from smalti.common.condition import Condition
from smalti.common.config import Settings
from smalti.common.data.pixels import to_pil, to_uint8
from smalti.common.errors import UserError
from smalti.common.hub import Pretrained
from smalti.common.layout import Layout
from smalti.tokenizer.base import ImageTokenizer
from smalti.tokenizer.model import load_identified

if TYPE_CHECKING:  # seconds, and optional
    from transformers import BatchEncoding, PreTrainedTokenizerFast

BEGIN, END, PAD = "<|image|>", "<|/image|>", "<|pad|>"
MERGES = 1024  # pieces of words at most beside the 256 bytes, in a tokenizer of our own
MOST_CODES = 2**18  # tokens of all codebooks: the largest vocabularies of language models have as many
DECODED = 64  # images at once
MARK = "image_tokens.json"


class TokensConfig(Settings):
    """The settings in `image_tokens.json`: the token of each code."""

    layout: Layout
    """what stands where in an image"""
    condition: Condition
    """what an image is told of; the names of classes are the text before it"""
    tokenizer: TokenizerIdentity
    """whose codes these are"""
    begin: int = Field(ge=0)
    """id of the begin of an image"""
    end: int = Field(ge=0)
    """id of its end"""
    first: tuple[int, ...] = Field(min_length=1)
    """id of code 0 of each codebook; the others follow it"""
    size: int = Field(ge=1)
    """tokens in all: outputs that a language model has at least"""
    before: tuple[int, ...] = ()
    """ids that begin a row, as the extended tokenizer has them"""
    after: tuple[int, ...] = ()
    """ids that end a row, after its image"""

    @model_validator(mode="after")
    def _goes_together(self) -> "TokensConfig":
        ends = [first + K for first, K in zip(self.first, codebook_sizes(self.layout), strict=True)]
        if max(*ends, self.begin + 1, self.end + 1) > self.size:
            raise ValueError(f"size {self.size} must be more than every id of an image's tokens")
        return self


def codebook_sizes(layout: Layout) -> list[int]:
    """Return K of each codebook, one for each depth of each grid."""
    return [grid.codebook_size for grid in layout.grids for _ in range(grid.depth)]


class LegalGrids:
    """A logits processor of transformers that admits whole images only.

    After the begin of an image come T codes, each of the codebook of its place, and then the end. Elsewhere codes and
    ends are not admitted. It keeps no state, so that beams may change places.
    """

    def __init__(self, config: TokensConfig):
        self.config = config
        self.state_of_place = torch.cat([2 + config.layout.codebook_of(), torch.tensor([1])])  # (T + 1,), the end last
        self.admitted = admitted(config)

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        """Return scores (B, V) with −inf for what is not admitted after ids (B, L)."""
        if scores.shape[1] < self.config.size:
            raise UserError(
                f"the model has {scores.shape[1]} outputs and the tokens are {self.config.size}: call "
                f"model.resize_token_embeddings({self.config.size}) before training"
            )
        self.admitted = self.admitted.to(scores.device)
        due = F.pad(self.admitted[self.state(input_ids)], (0, scores.shape[1] - self.config.size))
        return scores.masked_fill(~due, -torch.inf)

    def state(self, ids: Tensor) -> Tensor:
        """Return what is due after ids (B, L), (B,): 0 is text, 1 the end of an image, 2 + q a code of codebook q."""
        number = torch.arange(ids.shape[1], device=ids.device)
        begun, ended = (torch.where(ids == each, number, -1).amax(1) for each in (self.config.begin, self.config.end))
        place = (ids.shape[1] - 1 - begun).clamp(max=self.config.layout.length)
        return torch.where(begun > ended, self.state_of_place.to(ids.device)[place], 0)


def admitted(c: TokensConfig) -> Tensor:
    """Return which tokens each state of `LegalGrids` admits, (2 + Q, size) bool."""
    sizes = codebook_sizes(c.layout)
    found = torch.zeros(2 + len(sizes), c.size, dtype=torch.bool)
    found[0] = True
    found[0, c.end], found[1, c.end] = False, True
    for q, (first, K) in enumerate(zip(c.first, sizes, strict=True)):
        found[0, first : first + K] = False
        found[2 + q, first : first + K] = True
    return found


class ImageTokens(Pretrained):
    """The tokens of images in a language model's vocabulary, with the image tokenizer whose codes they are."""

    face = "ImageTokens"
    files = (
        MARK,
        "tokenizer.json",
        "tokenizer_config.json",
        *(f"image_tokenizer/{name}" for name in folder.MODEL_FILES),
        "chat_template.jinja",  # of a language model's own tokenizer, where it has one
    )

    def __init__(self, config: TokensConfig, text: "PreTrainedTokenizerFast", images: ImageTokenizer):
        """
        Args:
            text: the tokenizer of transformers, of text and codes.
            images: the tokenizer of images.
        """
        if len(text) != config.size:
            raise UserError(f"{MARK} is of {config.size} tokens, and tokenizer.json has {len(text)}; {folder.ANEW}")
        self.config, self.text, self.images = config, text, images

    @classmethod
    def over(cls, info: CodesInfo, images: ImageTokenizer, base: "PreTrainedTokenizerFast | None" = None) -> Self:
        """Return the tokens of a codes dataset: of a new tokenizer, or added to one of a language model, which changes.

        Raises:
            UserError: a sample is vectors, there are too many codes, or a class is called as a token of ours.
        """
        check_layout(info.layout)
        names = info.condition.class_names or ()
        text = new_tokenizer(names) if base is None else base
        if text.pad_token_id is None:
            text.add_special_tokens({"pad_token": PAD})
        add_tokens(text, [BEGIN, END], special=True)
        first = [add_tokens(text, codes_of(info.layout, q), special=False) for q in range(info.layout.codebooks)]
        begin, end = text.convert_tokens_to_ids([BEGIN, END])
        own = base is None
        config = TokensConfig(
            layout=info.layout,
            condition=info.condition,
            tokenizer=info.tokenizer,
            begin=begin,
            end=end,
            first=tuple(first),
            size=len(text),
            before=() if own or text.bos_token_id is None else (text.bos_token_id,),
            after=() if own or text.eos_token_id is None else (text.eos_token_id,),
        )
        tokens = cls(config, text, images)
        for name in names:
            tokens.text_ids(name)
        return tokens

    @classmethod
    def from_folder(cls, path: Path) -> Self:
        need_transformers()
        from transformers import AutoTokenizer

        folder.check_not_around(path, MARK, "language_model")
        written = folder.inside(path, MARK)
        folder.check_format(folder.read_json(written), "smalti.imagetokens", written)
        config = folder.read_settings(TokensConfig, folder.read_json(written), written)
        for name in cls.files:
            folder.inside(path, name)  # a link to a stranger's file is refused
        images = path / "image_tokenizer"
        tokenizer, identity = load_identified(images, "")
        if not identity.same_codes(config.tokenizer):
            raise UserError(f"{images} is not the tokenizer {config.tokenizer}, whose codes these are; {folder.ANEW}")
        text = AutoTokenizer.from_pretrained(path, local_files_only=True, trust_remote_code=False)
        return cls(config, text, tokenizer)

    def save_pretrained(self, path: str | Path) -> None:
        """Write the tokens and the image tokenizer into a folder; other files in it stay."""
        folder.check_ours(Path(path), MARK)
        with folder.rewriting(Path(path), self.files) as aside:
            self.write(aside)

    def write(self, path: Path) -> None:
        """Write `files` into a folder that is there."""
        self.text.save_pretrained(path)
        self.images.save_pretrained(path / "image_tokenizer")
        said = {"kind": "smalti.imagetokens", "format": folder.FORMAT, **self.config.model_dump(mode="json")}
        folder.write_json(path / MARK, said)

    # ------------------------------------------------------------------------------------------------------- to tokens

    @property
    def length(self) -> int:
        """Return T + 1, the tokens of an image after its begin."""
        return self.config.layout.length + 1

    def text_ids(self, text: str) -> list[int]:
        """Return the ids of a text. Raises `UserError` where it has a token of images."""
        ids: list[int] = self.text(text, add_special_tokens=False)["input_ids"]
        c, sizes = self.config, codebook_sizes(self.config.layout)
        ours = [(c.begin, 1), (c.end, 1), *zip(c.first, sizes, strict=True)]
        if any(first <= each < first + number for each in ids for first, number in ours):
            raise UserError(f"{text!r} has a token of images in it, as {BEGIN}; call the class otherwise")
        return ids

    def prompt(self, texts: str | Sequence[str]) -> "BatchEncoding":
        """Return what `generate` goes on from: texts, names of classes or empty ones, each with an image begun.

        Raises:
            UserError: there is no text.
        """
        c, texts = self.config, [texts] if isinstance(texts, str) else texts
        if len(texts) == 0:
            raise UserError("a prompt needs at least one text, of each image one, got none")
        rows = [{"input_ids": [*c.before, *self.text_ids(text), c.begin]} for text in texts]
        return self.text.pad(rows, padding_side="left", return_tensors="pt")

    def ids(self, codes: Tensor) -> Tensor:
        """Return the tokens (B, T + 2) of images, begin and end included, of codes (B, T)."""
        self.images.check(codes)
        ends = [codes.new_full((len(codes), 1), each) for each in (self.config.begin, self.config.end)]
        return torch.cat([ends[0], codes + self.first_ids.to(codes.device), ends[1]], 1)

    @property
    def first_ids(self) -> Tensor:
        """Return the id of code 0 at each place, (T,)."""
        return torch.tensor(self.config.first)[self.config.layout.codebook_of()]

    def legal_grids(self) -> LegalGrids:
        """Return a logits processor that admits whole images only."""
        return LegalGrids(self.config)

    # -------------------------------------------------------------------------------------------------------- and back

    def codes(self, ids: Tensor | Sequence[Sequence[int]]) -> Tensor:
        """Return the codes (N, T) of all images in rows of ids, row after row.

        Raises:
            UserError: an image is not whole, or has a token where it cannot be; the message says which.
        """
        found = [codes for number, row in enumerate(ids) for codes in self._codes_in(number, torch.as_tensor(row))]
        return torch.stack(found) if found else torch.empty(0, self.config.layout.length, dtype=torch.int64)

    def _codes_in(self, number: int, row: Tensor) -> Iterator[Tensor]:
        T, c = self.config.layout.length, self.config
        row, first = row.cpu(), self.first_ids
        sizes = torch.tensor(codebook_sizes(c.layout))[c.layout.codebook_of()]
        begun = (row == c.begin).nonzero()[:, 0].tolist()
        if len(begun) != int((row == c.end).sum()):
            raise UserError(
                f"row {number} has {len(begun)} begun images and {int((row == c.end).sum())} ends: draw with "
                f"max_new_tokens={self.length} and logits_processor=[tokens.legal_grids()]"
            )
        for start in begun:
            inner = row[start + 1 : start + 1 + T + 1]
            if len(inner) < T + 1 or inner[-1] != c.end:
                raise UserError(f"row {number}: the image that begins at {start} must have {T} codes and then its end")
            codes = inner[:-1] - first
            if (wrong := ((codes < 0) | (codes >= sizes)).nonzero()[:, 0]).numel():
                place = int(wrong[0])
                raise UserError(f"row {number}: token {int(inner[place])} at place {place} is no code of that place")
            yield codes

    @torch.inference_mode()
    def decode(
        self, ids: Tensor | Sequence[Sequence[int]], labels: Sequence[int] | None = None
    ) -> list[PIL.Image.Image]:
        """Return all images in rows of ids, row after row.

        Args:
            labels: the class number of each image, where the image tokenizer is told of it.
        """
        codes, device = self.codes(ids), next(self.images.parameters()).device
        told = None if labels is None else torch.tensor(labels)
        found = []
        for rows in torch.arange(len(codes)).split(DECODED):
            some = self.images.decode(codes[rows].to(device), None if told is None else told[rows])
            found += to_pil(to_uint8(some).cpu())
        return found


def check_layout(layout: Layout) -> None:
    """Raise `UserError` unless an image is codes, not too many of them."""
    if not layout.discrete:
        raise UserError(f"an image is {layout} here, and tokens are codes: take a tokenizer with a quantizer, as vqvae")
    if (number := sum(codebook_sizes(layout))) > MOST_CODES:
        raise UserError(
            f"{layout.codebooks} codebooks make {number:,} tokens, more than {MOST_CODES:,}: train a tokenizer with "
            "fewer codes"
        )


def codes_of(layout: Layout, q: int) -> list[str]:
    """Return the tokens of a codebook, as text."""
    name = "" if layout.codebooks == 1 else f"{q}:"
    return [f"<|code {name}{code}|>" for code in range(codebook_sizes(layout)[q])]


def new_tokenizer(names: Sequence[str]) -> "PreTrainedTokenizerFast":
    """Return a tokenizer of any text by its bytes, and of the words of these names, each as one token or few."""
    need_transformers()
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    found = Tokenizer(models.BPE())
    found.pre_tokenizer, found.decoder = pre_tokenizers.ByteLevel(add_prefix_space=False), decoders.ByteLevel()
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    trainer = trainers.BpeTrainer(vocab_size=len(alphabet) + MERGES, initial_alphabet=alphabet, show_progress=False)
    found.train_from_iterator(names, trainer)
    return PreTrainedTokenizerFast(tokenizer_object=found, pad_token=PAD, bos_token=BEGIN, eos_token=END)


def add_tokens(text: "PreTrainedTokenizerFast", names: Sequence[str], *, special: bool) -> int:
    """Add tokens to a tokenizer, and return the id of the first; the others follow it. Raises `UserError` otherwise."""
    from tokenizers import AddedToken

    text.add_tokens([AddedToken(name, normalized=False, special=special) for name in names], special_tokens=special)
    ids: list[int] = text.convert_tokens_to_ids(list(names))
    if not special and ids != list(range(ids[0], ids[0] + len(ids))):
        raise UserError(f"the tokenizer to extend has tokens as {names[0]} already; give one without")
    return ids[0]


def need_transformers() -> None:
    """Raise `UserError` where transformers cannot be imported."""
    try:
        import transformers  # noqa: F401
    except ImportError as error:
        raise UserError(f"tokens of language models need transformers ({error}): pip install transformers") from None
