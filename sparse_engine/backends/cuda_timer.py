"""Times of calls on a GPU: CUDA graphs in turn, with cold caches.

A graph replays its kernels without Python, so launches do not count.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import cache
from statistics import median

import torch

# More than the L2 cache of any GPU (50 MB on an H100): weights then come from memory, as in a
# model.
FLUSH_BYTES = 256 * 1024 * 1024


@cache
def side_stream(device: torch.device) -> torch.cuda.Stream:
    """The stream that captures use on a device.

    torch's own stream for captures belongs to the device that captured first, and each new stream
    would hold a workspace of cuBLAS.
    """
    return torch.cuda.Stream(device)


def can_capture(x: torch.Tensor) -> bool:
    """Whether calls on x can be captured: x is on a GPU, and no capture is running."""
    return x.is_cuda and not torch.cuda.is_current_stream_capturing()


def capture(call: Callable[[], object], device: torch.device) -> torch.cuda.CUDAGraph:
    """`call` as a CUDA graph; it runs three times before the capture, which compiles kernels."""
    with torch.cuda.device(device):
        stream = side_stream(device)
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream):
            for _ in range(3):
                call()
        torch.cuda.current_stream().wait_stream(stream)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph, stream=stream):
            call()
    return graph


@torch.inference_mode()
def time_on_gpu(
    calls: Mapping[str, Callable[[], object]], device: torch.device, rounds: int = 20
) -> dict[str, float]:
    """Median microseconds of each call; calls alternate, so that clock drift affects them all."""
    graphs = {name: capture(call, device) for name, call in calls.items()}
    with torch.cuda.device(device):
        flush = torch.empty(FLUSH_BYTES, dtype=torch.int8, device=device)
        spans: dict[str, list[tuple[torch.cuda.Event, torch.cuda.Event]]] = {n: [] for n in graphs}
        for _ in range(rounds):
            for name, graph in graphs.items():
                flush.zero_()
                begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
                begin.record()
                graph.replay()
                end.record()
                spans[name].append((begin, end))
        torch.cuda.synchronize(device)
    return {n: median(b.elapsed_time(e) * 1e3 for b, e in pairs) for n, pairs in spans.items()}
