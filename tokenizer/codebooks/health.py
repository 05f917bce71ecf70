"""Judge a codebook and advise what to change, by counts over whole splits and by the codes' vectors.

    counts, vectors  ->  split_figures, code_neighbours  ->  advice

Shapes: counts (R, K), how often each code was used, a row a codebook of the layout, which is a depth of a grid;
vectors (K, D), where the codes are.
"""

import math
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from smalti.common.layout import Layout
from smalti.common.progress import passing_bar
from smalti.tokenizer.base import ImageTokenizer
from smalti.tokenizer.codebooks.facts import CodebookFacts
from smalti.tokenizer.codebooks.usage import ENOUGH, GROSS, LOW, entropy_bits, perplexity, reachable, usage
from smalti.tokenizer.config import TrainedConfig

SKEW_BITS = 1.0  # log2 used − log2 perplexity: where it is more, half as many codes used evenly would say as much
UNSEEN = 0.8  # of the usage expected of validation; not nearer 1, as the codes of one image are alike and reach fewer
IDLE = 0.25  # of the bits of the row that carries most; every one costs the prior a code a place
NEAR = 0.1  # of the median distance to the nearest code: of codes strewn at random in D = 4, one in 14,000 is as near
DUPLICATES = 0.05  # share of codes with another so near; with fewer, telling pairs apart costs under 0.04 bits a place
PAIRS = 12  # nearest pairs that are reported
COMPARED = 16_384  # codes whose distances are computed, the most used ones of more: K²/2 of them in seconds
ANEW = "a tokenizer without start_from, whose kind and number of codes may be others"
TILE = 256  # rows of the distances that are in memory at once


# ------------------------------------------------------------------------------------------------------------- figures


def split_figures(counts: Tensor, images: int, layout: Layout) -> dict[str, Any]:
    """Return the figures of one split, of all codebooks together and of each."""
    depths = [
        {
            "name": name,
            "reachable": reachable(row[None]),
            "usage": usage(row),
            "perplexity": perplexity(row),
            "dead_codes": int((row == 0).sum()),
            "counts": row.long().tolist(),
        }
        for name, row in zip(layout.codebook_names, counts, strict=True)
    ]
    return {
        "images": images,
        "codes": int(counts.sum()),
        "usage": usage(counts),
        "perplexity": perplexity(counts),
        "dead_codes": int((counts == 0).sum()),
        "bits_a_place": layout.depth * entropy_bits(counts),
        "most_bits_a_place": layout.depth * math.log2(layout.codebook_size),
        "depths": depths,
    }


class Counted(NamedTuple):
    """The counts of each code over whole splits."""

    source: str  # where the codes were read, or that they were made
    images: dict[str, int]  # of each split
    counts: dict[str, Tensor]  # (R, K) int64 of each split, on the CPU

    @property
    def most(self) -> str:
        """Return the split with most codes, by which codes are sorted."""
        return max(self.counts, key=lambda name: self.counts[name].sum().item())


class Pair(NamedTuple):
    """Two codes, and the distance between them."""

    codes: tuple[int, int]
    distance: float
    relative: float  # to the median distance of a code to its nearest


class Neighbours(NamedTuple):
    """The nearest pairs in one table of vectors."""

    compared: int  # K, or the most used codes of more
    median: float  # of the distance of a code to its nearest
    near: int  # codes with another within `NEAR` of that; few where most codes are so near, as the median is small then
    pairs: tuple[Pair, ...]  # the nearest, ascending


def code_neighbours(vectors: Tensor, counts: Tensor, *, most: int = COMPARED) -> Neighbours:
    """Return the nearest pairs of codes, by exact distances, computed a tile of rows at a time.

    Args:
        vectors: (K, D), as the nearest is searched among: normalised where the codes are.
        counts: (K,), which decide whose vectors are compared where K is more than `most`.
    """
    codes = counts.argsort(descending=True, stable=True)[:most].sort().values.cpu()
    chosen = vectors.detach().cpu().double()[codes]  # fp32 would tell duplicates of length 1 apart by 3e-4
    squares, K = chosen.square().sum(1), len(codes)
    nearest, found = [], torch.empty(0, dtype=torch.float64)
    places = torch.empty(0, 2, dtype=torch.int64)
    bar = passing_bar(K, "compare codes", unit="code")
    for start in range(0, K, TILE):
        rows = torch.arange(start, min(start + TILE, K))
        squared = (squares[rows, None] - 2 * chosen[rows] @ chosen.T + squares).clamp_min(0)  # (n, K)
        squared[torch.arange(len(rows)), rows] = torch.inf
        nearest.append(squared.amin(1))
        later = squared.masked_fill(torch.arange(K) < rows[:, None], torch.inf).flatten()  # each pair once
        some = later.topk(min(PAIRS, len(later)), largest=False)
        found = torch.cat([found, some.values])
        places = torch.cat([places, torch.stack([rows[some.indices // K], some.indices % K], dim=1)])
        order = found.argsort(stable=True)[:PAIRS]
        found, places = found[order], places[order]
        bar.update(len(rows))
    bar.close()
    distances = torch.cat(nearest).sqrt()
    median = distances.median().item()
    there = [
        (codes[place].tolist(), value.sqrt().item())
        for place, value in zip(places, found, strict=True)
        if value.isfinite()
    ]
    pairs = tuple(Pair((a, b), distance, distance / max(median, 1e-12)) for (a, b), distance in there)
    return Neighbours(K, median, int((distances <= NEAR * median).sum()), pairs)


# -------------------------------------------------------------------------------------------------------------- advice


class Codebook(NamedTuple):
    """The sizes and settings that advice depends on."""

    facts: CodebookFacts  # as its own kind states them; of each depth where it is residual
    codebook_size: int  # K
    names: tuple[str, ...] = ("",)  # of the codebooks of the layout
    revive_below: float | None = None
    one_table: bool = False  # for all codebooks: a code is used where any of them uses it
    begun: bool = False  # from given weights, whose kind and sizes cannot be others

    def wider_use(self) -> Sequence[str]:
        """Return the settings that bring more codes into use, without those that are so already."""
        found = self.facts.wider_use(self.revive_below)
        return [each for each in found if not each.startswith("model.")] if self.begun else found

    def fewer(self, wanted: float) -> str:
        """Return how to get about `wanted` codes, which are fewer than there are."""
        return self.facts.fewer(wanted, self.codebook_size)


def codebook_of(tokenizer: ImageTokenizer, revive_below: float | None = None, *, begun: bool = False) -> Codebook:
    """Return the sizes and settings of a tokenizer, and of its training, that advice depends on.

    Args:
        begun: from given weights.
    """
    c = tokenizer.config
    facts = c.codebook or CodebookFacts(c.name(), c.layout.depth, "model.")
    trained = revive_below if isinstance(c, TrainedConfig) else None
    one_table = len(c.layout.codebook_names) > 1 and bool(getattr(c, "shared", False))
    return Codebook(facts, c.layout.codebook_size, c.layout.codebook_names, trained, one_table, begun)


def advice(book: Codebook, splits: Mapping[str, Tensor], near: Sequence[Neighbours] = ()) -> list[str]:
    """Return what to change, the most pressing first, each with its figure, cause and remedy.

    One sentence says so where all is well.

    Args:
        splits: counts (R, K) of each split; the one with most codes is judged.
        near: of each codebook, where there are vectors.
    """
    split, counts = max(splits.items(), key=lambda item: item[1].sum().item())
    idle = idle_depths(counts)
    told_of_idle = _idle(book, split, counts, idle)
    book, splits, counts, near = pooled(book, splits, split, near)
    busy = [depth for depth in range(len(counts)) if book.one_table or depth not in idle]
    dead = _dead(book, split, counts, busy)
    said = [
        *_too_few(book, split, counts, splits),
        *dead,
        *told_of_idle,
        *([] if dead else _skewed(book, split, counts, busy)),  # the remedies are the same
        *_duplicates(book, near),
        *_unseen(book, splits),
    ]
    healthy = (
        f"nothing to change: {usage(counts):.1%} of the codes are used on {split}, with a perplexity of "
        f"{perplexity(counts):.1f} of {book.codebook_size}"
    )
    return said or [healthy]


class Judged(NamedTuple):
    """The counts and neighbours by which the tables of vectors are judged."""

    book: Codebook
    splits: Mapping[str, Tensor]  # counts (R, K) of each split
    counts: Tensor  # those of one
    near: Sequence[Neighbours]


def pooled(book: Codebook, splits: Mapping[str, Tensor], split: str, near: Sequence[Neighbours] = ()) -> Judged:
    """Return what is judged, as of one codebook where all codebooks have one table."""
    if not book.one_table:
        return Judged(book, splits, splits[split], near)
    together = {name: counts.sum(0, keepdim=True) for name, counts in splits.items()}
    return Judged(book._replace(names=("",)), together, together[split], near[:1])


def idle_depths(counts: Tensor) -> list[int]:
    """Return the rows that carry next to nothing: depths of a residual stack, or grids of a hierarchy."""
    bits = [math.log2(perplexity(row)) for row in counts]
    return [depth for depth, some in enumerate(bits) if some < IDLE * max(bits)]


def _depths(book: Codebook, depths: Sequence[int]) -> str:
    if len(book.names) == 1:
        return ""
    return f" at {' and '.join(book.names[depth] for depth in depths)} of {len(book.names)}"


def _remedies(*remedies: str) -> str:
    return "Remedies, the first first: " + "; ".join(remedies) if len(remedies) > 1 else f"Remedy: {remedies[0]}"


def _too_few(book: Codebook, split: str, counts: Tensor, splits: Mapping[str, Tensor]) -> list[str]:
    numbers, K = counts.sum(1), book.codebook_size
    number, few = numbers.min().item(), (numbers < ENOUGH * K).nonzero()[:, 0].tolist()
    if not few:
        return []
    at = "" if len(few) == len(counts) else _depths(book, few)
    remedy = (
        _remedies(f"more images, or {book.fewer(number / ENOUGH)}") if "train" in splits else _remedies("--splits all")
    )
    return [
        f"too few codes to judge by: {number:,.0f} places of {split} for {K:,} codes{at} (drawn evenly they would use "
        f"{reachable(counts[numbers.argmin()][None]):.1%}), so a code that is not used may only not have "
        f"been met. {remedy}"
    ]


def unused(book: Codebook, split: str, counts: Tensor) -> list[str]:
    """Return the warning about codes that are not used, or an empty list where enough are."""
    book, _, counts, _ = pooled(book, {split: counts}, split)
    return _dead(book, split, counts, range(len(counts)))


def _dead(book: Codebook, split: str, counts: Tensor, depths: Sequence[int]) -> list[str]:
    enough = counts.sum(1) >= ENOUGH * book.codebook_size
    low = [d for d in depths if usage(counts[d]) < (LOW if enough[d] else GROSS) * reachable(counts[d][None])]
    if not low:
        return []
    dead, expected = int((counts[low] == 0).sum()), (1 - reachable(counts[low])) * len(low) * book.codebook_size
    used = (counts[low] > 0).sum(1).max().item()
    return [
        f"dead codes: {dead:,} of {len(low) * book.codebook_size:,}{_depths(book, low)} are never used on {split} "
        f"({expected:,.0f} would be expected of as many places drawn evenly): {book.facts.cause}. "
        + _remedies(*book.wider_use(), ANEW if book.begun else book.fewer(used))
    ]


def _idle(book: Codebook, split: str, counts: Tensor, idle: Sequence[int]) -> list[str]:
    if not idle:
        return []
    each = ", ".join(f"{perplexity(row):.1f}" for row in counts)
    last = idle == list(range(idle[0], len(counts)))
    cause = "those before leave little that more codes could tell" if last else "others say what it would"
    remedy = book.facts.without([book.names[depth] for depth in idle], len(counts) - len(idle))
    return [
        f"idle codebook: the codes{_depths(book, idle)} say next to nothing on {split} (perplexities {each}): {cause}, "
        "and the prior predicts them all the same. "
        f"{_remedies(remedy, 'a smaller ' + (book.facts.size or 'codebook') + ', which leaves the later ones more')}"
    ]


def _skewed(book: Codebook, split: str, counts: Tensor, depths: Sequence[int]) -> list[str]:
    used = {depth: int((counts[depth] > 0).sum()) for depth in depths}
    lost = {depth: math.log2(max(1, used[depth])) - math.log2(perplexity(counts[depth])) for depth in depths}
    skewed = [depth for depth in depths if lost[depth] > SKEW_BITS]
    skewed = [depth for depth in skewed if counts[depth].sum() >= ENOUGH * book.codebook_size]
    if not skewed:
        return []
    worst = max(skewed, key=lambda depth: lost[depth])
    ordered = counts[worst].double().sort(descending=True).values
    half = int((ordered.cumsum(0) < ordered.sum() / 2).sum()) + 1
    few = "one code" if half == 1 else f"one of {half:,} codes"
    size = perplexity(counts[worst])
    return [
        f"skewed use: a perplexity of {size:.1f} where {used[worst]:,} codes are used{_depths(book, [worst])} on "
        f"{split}; half of all places take {few}: most patches are alike, as plain background is, or are not told "
        "apart. Where the picture's first patches show more than plain background: "
        + "; ".join([*book.wider_use(), book.fewer(size)])
    ]


def _duplicates(book: Codebook, near: Sequence[Neighbours]) -> list[str]:
    many = [depth for depth, found in enumerate(near) if found.near > max(1, DUPLICATES * found.compared)]
    if not many:
        return []
    number, compared = sum(near[depth].near for depth in many), sum(near[depth].compared for depth in many)
    kept = book.codebook_size * (1 - number / compared / 2)
    fewer = book.fewer(kept) if book.facts.size is None else f"a {book.facts.size} of {kept:,.0f} or less"
    return [
        f"near-duplicate codes: {number:,} of {compared:,}{_depths(book, many)} have another within {NEAR:g} of the "
        "median distance to the nearest: they decode alike, and the prior pays for telling them apart. "
        + _remedies(fewer, *book.facts.apart())
    ]


def _unseen(book: Codebook, splits: Mapping[str, Tensor]) -> list[str]:
    """Return advice if validation uses fewer codes than as many places of train would."""
    if not {"train", "validation"} <= splits.keys() or not book.facts.fitted:
        return []
    train, validation = splits["train"].double(), splits["validation"].double()
    share = train / train.sum(1, keepdim=True).clamp_min(1)
    expected, used = -torch.expm1(-share * validation.sum(1, keepdim=True)).mean().item(), usage(validation)
    if used >= UNSEEN * expected:
        return []
    remedies = _remedies(
        "more images",
        "images.flip true or a larger images.shift, where they leave an image what it is",
        book.fewer(used * book.codebook_size),
    )
    return [
        f"codes fitted to few images: validation uses {used:.1%} of the codes, where as many places of train use "
        f"{expected:.1%} ({usage(train):.1%} in all): many codes stand for a few training images. {remedies}"
    ]
