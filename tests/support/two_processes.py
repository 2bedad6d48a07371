"""A function on two processes that train together over gloo."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch


def _on_one(rank: int, work: Callable[[int], Any], folder: str) -> None:
    torch.set_num_threads(1)
    torch.distributed.init_process_group(
        "gloo", init_method=f"file://{folder}/meeting", rank=rank, world_size=2
    )
    torch.save(work(rank), f"{folder}/{rank}.pt")
    torch.distributed.barrier()
    torch.distributed.destroy_process_group()
    # Gloo's threads may still hold tensors. If one frees them while the interpreter is finalized,
    # the process aborts (github.com/pytorch/pytorch/pull/179291), so it is not finalized.
    os._exit(0)


def on_two_processes(work: Callable[[int], Any]) -> list[Any]:
    """What work(rank), a function of a module, returns on ranks 0 and 1: tensors in containers."""
    with tempfile.TemporaryDirectory() as folder:
        torch.multiprocessing.spawn(_on_one, (work, folder), nprocs=2)
        return [torch.load(Path(folder) / f"{rank}.pt") for rank in range(2)]
