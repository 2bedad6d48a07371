"""One peer, one process: requests as JSON lines: load, start, sample. Started by bench.peer_hosts.

python -m sparse_engine.bench.peer_worker PEER THREADS
"""

from __future__ import annotations

import json
import os
import sys
from typing import Any

import numpy as np
import torch
from torch import Tensor

from sparse_engine.bench.peer_hosts import Local, one_line
from sparse_engine.bench.peers import find_peers
from sparse_engine.bench.timing import Sampler


class Worker:
    """Each request calls the method of that name."""

    def __init__(self, name: str) -> None:
        self._host = Local(find_peers([name])[0])
        self._sampler: Sampler | None = None

    def load(self, file: str, dtype: str, block: list[int]) -> None:
        """Load the weight in `file`."""
        self._sampler = None
        self._host.load(_read(file), dtype, (block[0], block[1]))

    def start(self, file: str) -> None:
        """Check the peer on the activations in `file`."""
        self._sampler = self._host.start(_read(file))

    def sample(self) -> float:
        """Seconds a call."""
        assert self._sampler is not None
        return self._sampler()


def _read(file: str) -> Tensor:
    return torch.from_numpy(np.load(file))


@torch.inference_mode()
def main(name: str, threads: str) -> None:
    """Answer each line of stdin with a line on stdout, until stdin ends."""
    torch.set_num_threads(int(threads))
    # Libraries may print: their output must not come between the answers.
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    worker = Worker(name)
    for line in sys.stdin:
        request: dict[str, Any] = json.loads(line)
        try:
            answer = {"seconds": getattr(worker, request.pop("do"))(**request)}
        except Exception as error:  # the parent process reports it
            answer = {"refused": one_line(error)}
        print(json.dumps(answer), file=answers, flush=True)


if __name__ == "__main__":
    main(*sys.argv[1:])
