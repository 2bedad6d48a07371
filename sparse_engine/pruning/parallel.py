"""Runs operations on many small matrices in parallel, one torch thread for each matrix.

A Cholesky factorisation of a few hundred rows does not get faster with a second thread. On a busy
machine, threads that synchronise at every step are much slower than one.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager

import torch
from torch import Tensor


@contextmanager
def one_thread() -> Iterator[int]:
    """Run torch with one thread; yields the number of threads it had and restores it."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield threads
    finally:
        torch.set_num_threads(threads)


def for_each(function: Callable[[Tensor], None], items: Iterable[Tensor]) -> None:
    """Call function(item) for all items, on as many Python threads as torch has threads."""
    with (
        one_thread() as threads,
        ThreadPoolExecutor(threads, initializer=torch.set_num_threads, initargs=(1,)) as pool,
    ):
        for _ in pool.map(function, items):
            pass
