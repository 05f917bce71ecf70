"""The steps of the sampling loop as captured CUDA graphs: the host launches one graph a step, not hundreds of kernels.

A step attends to a fixed part of the cache, masked to what is written. A few lengths of that part are captured, since
short ones are cheaper to read, each for the codebooks of its steps. All graphs share one pool of memory.
"""

import threading
from collections.abc import Callable, Sequence

import torch

Advance = Callable[[torch.Tensor, int, int, bool], None]
CAPTURES = threading.Lock()  # a process captures one graph at a time

LENGTHS = 8  # of the cache for which graphs are captured
SHORTEST = 64  # below this length reading the weights takes most of a step
WARM_UP = 3  # runs before a capture, in which kernels are chosen and workspaces allocated


class Graphs:
    """The captured graphs of a batch, for each length, codebook, and whether codes are forced."""

    def __init__(self, slots: int, codebooks: Sequence[int], device: torch.device):
        """
        Args:
            codebooks: of each step.
        """
        self.codebooks = codebooks
        self.n = torch.zeros(1, dtype=torch.int64, device=device)
        self.lengths = lengths(slots)
        self.captured: dict[tuple[int, int, bool], torch.cuda.CUDAGraph] = {}
        self.pool = torch.cuda.graph_pool_handle()

    def capture(self, advance: Advance, forced: bool) -> None:
        """Capture the graphs that are missing. This runs steps: call it before the state of a batch is set.

        Args:
            advance: `advance(n, length, codebook, forced)` does step n (1,), on the device, and keeps its state at
                fixed addresses. It is not kept, as a reference to who draws would keep him and his memory alive.
        """
        with CAPTURES:
            self._capture(advance, forced)

    def _capture(self, advance: Advance, forced: bool) -> None:
        for length, codebook in sorted({(self._length(n), codebook) for n, codebook in enumerate(self.codebooks)}):
            if (length, codebook, forced) in self.captured:
                continue
            self.n.zero_()
            side = torch.cuda.Stream()
            side.wait_stream(torch.cuda.current_stream())
            with torch.cuda.stream(side):
                for _ in range(WARM_UP):
                    advance(self.n, length, codebook, forced)
            torch.cuda.current_stream().wait_stream(side)
            graph = torch.cuda.CUDAGraph()
            # torch keeps the stream of its first capture, which may be another device's
            with torch.cuda.graph(graph, pool=self.pool, stream=side, capture_error_mode="thread_local"):
                advance(self.n, length, codebook, forced)
                self.n += 1
            self.captured[length, codebook, forced] = graph

    def run(self, start: int, stop: int, forced: bool) -> None:
        """Run steps start, ..., stop − 1."""
        self.n.fill_(start)
        for n in range(start, stop):
            self.captured[self._length(n), self.codebooks[n], forced].replay()

    def _length(self, n: int) -> int:
        """Return the length of the cache that step n attends to."""
        return next(length for length in self.lengths if n < length)


def lengths(slots: int) -> list[int]:
    """Return the lengths of the cache that steps attend to; the last is all its slots."""
    part = max(SHORTEST, -(-slots // LENGTHS // 8) * 8)
    return [*range(part, slots, part), slots]
