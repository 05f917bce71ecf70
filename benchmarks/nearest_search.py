"""The search for the nearest codes alone: ours beside faiss, scikit-learn and plain PyTorch, in turns in one process.

Each point is N vectors of d dimensions and K codes, drawn from N(0, 1) and the same for all, fp32, on one thread of a
CPU. Ours is `nearest_indices`; faiss is `IndexFlatL2`, made and searched; scikit-learn is `pairwise_distances_argmin`;
`cdist` and `addmm` are torch's, each followed by `argmin` over all N x K numbers. After a warm-up all take turns, round
after round. Seconds are the processor's, which others at work on a core do not lengthen, and the median counts; a
`ratio` is a peer's over ours. Codes that differ from ours are looked at in fp64.

    python -m benchmarks.nearest_search [--rounds 5] [--out JSON]
"""

import argparse
import json
import time
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from statistics import median

import faiss
import torch
from sklearn.metrics import pairwise_distances_argmin
from torch import Tensor

from benchmarks.claim import Claim, verdict
from benchmarks.points import Figures, Point, compare
from benchmarks.timing import ROOT, interleaved
from smalti.common.record import record
from smalti.tokenizer.nearest import nearest_indices

POINTS = [
    Point(4096, 8, 512),
    Point(4096, 64, 512),
    Point(4096, 64, 8192),
    Point(16384, 8, 16384),
    Point(16384, 256, 8192),
]
Search = Callable[[Tensor, Tensor], Tensor]


def by_faiss(vectors: Tensor, codebook: Tensor) -> Tensor:
    index = faiss.IndexFlatL2(codebook.shape[1])
    index.add(codebook.numpy())
    return torch.from_numpy(index.search(vectors.numpy(), 1)[1][:, 0])


def by_scikit_learn(vectors: Tensor, codebook: Tensor) -> Tensor:
    return torch.from_numpy(pairwise_distances_argmin(vectors.numpy(), codebook.numpy()))


def by_cdist(vectors: Tensor, codebook: Tensor) -> Tensor:
    return torch.cdist(vectors, codebook).argmin(1)


def by_addmm(vectors: Tensor, codebook: Tensor) -> Tensor:
    return torch.addmm(codebook.square().sum(1), vectors, codebook.T, alpha=-2).argmin(1)


PEERS: dict[str, Search] = {
    "faiss": by_faiss,
    "scikit-learn": by_scikit_learn,
    "cdist": by_cdist,
    "addmm": by_addmm,
}
CLAIMS = [
    Claim(
        text=f"our search, times as fast as {peer}, at its worst point",
        relation="at least",
        threshold=1.0,
        value=lambda point, peer=peer: point["ratios"][peer],
    )
    for peer in PEERS
]


def measure(point: Point, rounds: int) -> Figures:
    """Return the seconds of each search at a point, and how its codes differ from ours."""
    vectors, codebook = point.draw("cpu")
    searches = {"ours": nearest_indices, **PEERS}
    works = {name: lambda search=search: search(vectors, codebook) for name, search in searches.items()}
    runs = interleaved(works, rounds, "cpu", clock=time.process_time)
    seconds = {name: median(times) for name, times in runs.items()}
    codes = nearest_indices(vectors, codebook)
    return asdict(point) | {
        "seconds": seconds,
        "ratios": {peer: seconds[peer] / seconds["ours"] for peer in PEERS},
        "codes": {peer: compare(vectors, codebook, codes, PEERS[peer](vectors, codebook)) for peer in PEERS},
        "rounds": runs,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--out", type=Path, default=ROOT / "benchmarks/results/nearest_search.json")
    args = parser.parse_args()
    torch.set_num_threads(1)
    faiss.omp_set_num_threads(1)
    points = []
    for point in POINTS:
        points.append(measure(point, args.rounds))
        print(json.dumps({name: points[-1][name] for name in ("N", "d", "K", "seconds", "ratios")}), flush=True)
    judged = [claim.judge([(point,) for point in points]) for claim in CLAIMS]
    protocol = (__doc__ or "").split("\n\n")[1].replace("\n", " ")
    written = record("benchmarks.nearest_search", ["faiss-cpu", "scikit-learn"])
    result = {**written, "protocol": protocol, "claims": judged, "points": points}
    args.out.write_text(json.dumps(result, indent=2) + "\n")
    print(*map(verdict, judged), sep="\n")


if __name__ == "__main__":
    main()
