"""Where models run: one thread, so that kernels never share the cores and the event loop is free."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import Any, TypeVar

import torch

from sparse_engine.serve.replies import Refusal

MAX_WAITING = 64
# Texts of as many requests are tokenized at once: a long one takes seconds and much memory.
MAX_TOKENIZING = 2

T = TypeVar("T")


def compute_thread(threads: int | None) -> ThreadPoolExecutor:
    """The one thread that all models of an app run in.

    The number of OpenMP threads belongs to the thread that asks for them: it is set in there.
    """
    count = threads or torch.get_num_threads()
    return ThreadPoolExecutor(1, "compute", initializer=torch.set_num_threads, initargs=(count,))


def reader_threads() -> ThreadPoolExecutor:
    """The threads that tokenize for all models of an app."""
    return ThreadPoolExecutor(MAX_TOKENIZING, "tokenize")


class Line:
    """Requests for one model, in the order in which they came; the bound keeps memory bounded.

    A batching scheduler would take the place of `run`: requests reach it as lists of token ids.
    thread: computes; readers: tokenize.
    """

    def __init__(
        self, thread: ThreadPoolExecutor, readers: ThreadPoolExecutor, waiting: int = MAX_WAITING
    ) -> None:
        self.thread, self.readers = thread, readers
        self.waiting = waiting
        self.length = 0

    @contextmanager
    def place(self) -> Iterator[None]:
        """A place in the line, held until the answer is made; Refusal 429 when there is none."""
        self.check()
        self.length += 1
        try:
            yield
        finally:
            self.length -= 1

    def check(self) -> None:
        """Refusal 429 when the line is full."""
        if self.length > self.waiting:  # one computes, the others wait
            reason = f"{self.waiting} requests are waiting already: try again"
            raise Refusal(429, reason, "queue_full", 1)

    async def run(self, function: Callable[..., T], *args: Any) -> T:
        """function(*args) in the compute thread."""
        return await asyncio.get_running_loop().run_in_executor(self.thread, function, *args)

    async def read(self, function: Callable[..., T], *args: Any) -> T:
        """function(*args) in one of the threads that tokenize."""
        return await asyncio.get_running_loop().run_in_executor(self.readers, function, *args)
