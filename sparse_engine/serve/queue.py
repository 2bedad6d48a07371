"""The request queue, and the one thread in which models run.

One compute thread keeps kernels from sharing the cores, and the event loop free.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import Any, TypeVar

import torch

from sparse_engine.serve.messages import RequestError

MAX_WAITING = 64
# Number of requests that are tokenized at the same time: a long one takes seconds and much memory.
MAX_TOKENIZING = 2

T = TypeVar("T")


def compute_thread(threads: int | None) -> ThreadPoolExecutor:
    """The one thread that all models of an app run in, with `threads` OpenMP threads.

    OpenMP keeps that number for each calling thread, so it is set inside of this one.
    """
    count = threads or torch.get_num_threads()
    return ThreadPoolExecutor(1, "compute", initializer=torch.set_num_threads, initargs=(count,))


def tokenizer_threads() -> ThreadPoolExecutor:
    """The threads that tokenize for all models of an app."""
    return ThreadPoolExecutor(MAX_TOKENIZING, "tokenize")


class RequestQueue:
    """Requests for one model, first in, first out, of bounded length.

    A batching scheduler would replace `run`: requests reach it as lists of token ids.

    Args:
        compute: the thread that runs models.
        tokenizers: the threads that tokenize.
        capacity: requests that may wait while one is computed.
    """

    def __init__(
        self,
        compute: ThreadPoolExecutor,
        tokenizers: ThreadPoolExecutor,
        capacity: int = MAX_WAITING,
    ) -> None:
        self.compute, self.tokenizers = compute, tokenizers
        self.capacity = capacity
        self.length = 0

    @contextmanager
    def slot(self) -> Iterator[None]:
        """A slot of the queue, held until the answer is made; RequestError 429 if it is full."""
        self.check()
        self.length += 1
        try:
            yield
        finally:
            self.length -= 1

    def check(self) -> None:
        """Raise RequestError 429 if the queue is full."""
        if self.length > self.capacity:  # one request is computed, the others wait
            reason = f"{self.capacity} requests are waiting already: try again"
            raise RequestError(429, reason, "queue_full", 1)

    async def run(self, function: Callable[..., T], *args: Any) -> T:
        """function(*args) in the compute thread."""
        return await asyncio.get_running_loop().run_in_executor(self.compute, function, *args)

    async def tokenize(self, function: Callable[..., T], *args: Any) -> T:
        """function(*args) in one of the threads that tokenize."""
        return await asyncio.get_running_loop().run_in_executor(self.tokenizers, function, *args)
