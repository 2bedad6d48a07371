"""Recurrent networks: more threads than cores, concurrent calls, and working memory."""

from __future__ import annotations

import os
import subprocess
import sys
import threading

import pytest
import torch
from recurrent_cases import dense, error_of, sparse


def test_nested_thread_counts_do_not_change_chunks() -> None:
    code = (
        "import torch, sparse_engine as se\n"
        "net = torch.nn.GRU(64, 256).requires_grad_(False)\n"
        "for n, w in net.named_parameters():\n"
        "    if n.startswith('weight'):\n"
        "        w[(torch.rand(w.shape[0] // 16, w.shape[1]) < 0.5).repeat_interleave(16, 0)] = 0\n"
        "layer = se.nn.SparseGRU.from_dense(net, 'bsr:16x1')\n"
        "x = torch.randn(9, 17, 64)\n"
        "assert (layer(x)[0] - net(x)[0]).abs().max() < 1e-5\n"
    )
    env = {**os.environ, "OMP_NUM_THREADS": "16,1"}
    done = subprocess.run(
        [sys.executable, "-c", code], timeout=120, capture_output=True, text=True, env=env
    )
    assert done.returncode == 0, done.stderr


def test_two_threads_run_the_same_layer() -> None:
    network = dense("lstm", 64, 128)
    layer = sparse("lstm", network)
    inputs = [torch.randn(20, batch, 64) for batch in (1, 12)]
    expected = [layer(x) for x in inputs]
    wrong = []

    def work(i: int) -> None:
        for _ in range(20):
            if error_of(layer(inputs[i]), expected[i]):
                wrong.append(i)

    threads = [threading.Thread(target=work, args=(i,)) for i in (0, 1, 0)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong


@pytest.mark.skipif(sys.platform != "linux", reason="sched_setaffinity")
def test_more_threads_than_cores_do_not_hang() -> None:
    code = (
        "import os; os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})\n"
        "import torch, sparse_engine as se\n"
        "torch.set_num_threads(4)\n"
        "net = torch.nn.LSTM(128, 256, 2, bidirectional=True).requires_grad_(False)\n"
        "layer = se.nn.SparseLSTM.from_dense(net, 'csr')\n"
        "x = torch.randn(50, 2, 128)\n"
        "assert (layer(x)[0] - net(x)[0]).abs().max() < 1e-5\n"
    )
    done = subprocess.run([sys.executable, "-c", code], timeout=120, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_working_memory_does_not_grow_with_the_steps() -> None:
    code = (
        "import resource, torch, sparse_engine as se\n"
        "torch.set_num_threads(2)\n"
        "net = torch.nn.LSTM(256, 256, 2).requires_grad_(False)\n"
        "layer = se.nn.SparseLSTM.from_dense(net, 'csr')\n"
        "def peak(batch, steps):\n"
        "    x = torch.zeros(1, batch, 256).expand(steps, -1, -1).contiguous()\n"
        "    y, _ = layer(x)\n"
        "    size = x.nbytes + y.nbytes\n"
        "    del x, y\n"
        "    return size, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024\n"
        "for batch in (1, 16):\n"
        "    peak(batch, 600)\n"
        "    small, before = peak(batch, 600)\n"
        "    large, after = peak(batch, 6000)\n"
        "    growth = after - before\n"
        "    assert growth < large - small + (8 << 20), (batch, growth, large - small)\n"
    )
    done = subprocess.run([sys.executable, "-c", code], timeout=120, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
