"""Work done in a few threads, whose results come in order."""

import os
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TypeVar

T = TypeVar("T")
R = TypeVar("R")


def threads() -> int:
    """Return how many threads are worth starting: the processors of each process of a job."""
    found = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return max(1, found // max(1, int(os.environ.get("LOCAL_WORLD_SIZE", "1"))))


def map_in_order(work: Callable[[T], R], items: Iterable[T], number: int | None = None) -> Iterator[R]:
    """Yield what `work` returns for each item, in order; take items only a few ahead of the results."""
    number = number or threads()
    waiting: deque[Future[R]] = deque()
    with ThreadPoolExecutor(number) as pool:
        try:
            for item in items:
                waiting.append(pool.submit(work, item))
                if len(waiting) > 2 * number:
                    yield waiting.popleft().result()
            while waiting:
                yield waiting.popleft().result()
        finally:
            for each in waiting:
                each.cancel()
