"""Whether a model fits the memory of this machine, and how little of it a process keeps."""

from __future__ import annotations

import ctypes
from pathlib import Path

from sparse_engine.errors import SparseEngineError
from sparse_engine.io import is_package
from sparse_engine.io.checkpoint import find_folder
from sparse_engine.io.shards import read_headers

# float32 weights, the copy that `prune` keeps of them, and what it computes with.
COPIES = 2.5
CGROUP = Path("/sys/fs/cgroup")
M_MMAP_THRESHOLD = -3  # of malloc.h
MAPPED = 1 << 17  # bytes; allocations from this size on are mapped on their own


def return_freed_memory() -> None:
    """Make this process return large allocations to the system as soon as they are freed.

    The GNU C library keeps freed memory for later allocations, up to a size that it raises by
    itself. Modules and Hessians of different sizes then leave gaps. Other C libraries are left as
    they are.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is not None:
        mallopt(M_MMAP_THRESHOLD, MAPPED)


def must_stream(path_or_id: str | Path) -> bool:
    """Whether pruning a checkpoint in memory would take more than is available.

    Packages are always read into memory. False for files that cannot be read, which are refused
    when they are loaded.
    """
    try:
        folder = find_folder(path_or_id)
        slots = [] if is_package(folder) else [slot for _, slot in read_headers(folder).values()]
    except SparseEngineError:
        return False
    elements = sum(slot.nbytes // slot.dtype.itemsize for slot in slots)
    available = available_memory()
    return available is not None and COPIES * 4 * elements > available


def available_memory() -> int | None:
    """Bytes that can be allocated without swapping; None where the system does not say."""
    try:
        lines = Path("/proc/meminfo").read_text().splitlines()
        (free,) = (int(line.split()[1]) << 10 for line in lines if line.startswith("MemAvailable"))
    except (OSError, ValueError):
        return None
    try:
        limit = int((CGROUP / "memory.max").read_text())
        used = int((CGROUP / "memory.current").read_text())
    except (OSError, ValueError):  # no limit, or no cgroups
        return free
    return min(free, max(limit - used, 0))
