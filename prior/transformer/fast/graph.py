"""The steps of the sampling loop as captured CUDA graphs: the host launches one graph a step and not hundreds of
kernels.

A step attends to a fixed part of the cache, masked to what is written. Captured are a few lengths of that part (a short
one is cheaper to read than a long one), each for the Q depths of a place, and share one pool of memory.
"""

from collections.abc import Callable

import torch

LENGTHS = 8  # of the cache that graphs are captured for
SHORTEST = 64  # below it a step is bound by its weights
WARM_UP = 3  # runs before a capture: kernels are chosen and workspaces allocated in them


class Graphs:
    """`advance(n, length, depth, forced)` does step n (1,), a tensor on the device, and leaves all state at fixed
    addresses."""

    def __init__(
        self, advance: Callable[[torch.Tensor, int, int, bool], None], slots: int, depths: int, device: torch.device
    ):
        self.advance, self.depths = advance, depths
        self.n = torch.zeros(1, dtype=torch.int64, device=device)
        self.lengths = lengths(slots)
        self.captured: dict[tuple[int, int, bool], torch.cuda.CUDAGraph] = {}
        self.pool = torch.cuda.graph_pool_handle()

    def capture(self, forced: bool) -> None:
        """Capture what is not yet. Runs steps: call it before the state of a batch is set, on the device it is of."""
        for length in self.lengths:
            for depth in range(self.depths):
                if (length, depth, forced) in self.captured:
                    continue
                self.n.zero_()
                side = torch.cuda.Stream()
                side.wait_stream(torch.cuda.current_stream())
                with torch.cuda.stream(side):
                    for _ in range(WARM_UP):
                        self.advance(self.n, length, depth, forced)
                torch.cuda.current_stream().wait_stream(side)
                graph = torch.cuda.CUDAGraph()
                with torch.cuda.graph(graph, pool=self.pool):
                    self.advance(self.n, length, depth, forced)
                    self.n += 1
                self.captured[length, depth, forced] = graph

    def run(self, start: int, stop: int, forced: bool) -> None:
        """Steps start, ..., stop − 1."""
        self.n.fill_(start)
        for n in range(start, stop):
            length = next(length for length in self.lengths if n < length)
            self.captured[length, n % self.depths, forced].replay()


def lengths(slots: int) -> list[int]:
    """The parts of a cache of so many slots that steps attend to, the last all of it."""
    part = max(SHORTEST, -(-slots // LENGTHS // 8) * 8)
    return [*range(part, slots, part), slots]
