"""Memory of packing, saving and loading, measured in processes of their own."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

START = """
import gc, sys, torch
import sparse_engine as se
from sparse_engine.backends import CPU
from sparse_engine.formats import CSR, FormatSpec
from sparse_engine.packings.cpu.purposes import for_panels, for_rows

torch.set_num_threads(1)


def status(key):
    line = next(l for l in open("/proc/self/status") if l.startswith(key))
    return int(line.split()[1]) * 1024


def grown(make):
    "What a call returns, and by how much the resident memory exceeded that before it, at most."
    gc.collect()
    open("/proc/self/clear_refs", "w").write("5")  # VmHWM starts again
    before = status("VmRSS")
    result = make()
    return result, status("VmHWM") - before


def weight_of(spec, out, inputs):
    "A matrix in the format, in whose strips of 16 rows a quarter of the columns is not zero."
    generator = torch.Generator().manual_seed(0)
    kept = torch.rand(out // 16, inputs, generator=generator) < 0.25
    dense = kept.repeat_interleave(16, 0) * torch.randn(out, inputs, generator=generator)
    return FormatSpec.parse(spec).from_dense(dense)
"""
# A piece of 2^18 elements or of a chunk of Runs, with the temporary tensors of its conversion.
CHUNK = 16 << 20

PACKING = """
for spec in ("csr", "bsr:4x1", "bsr:16x1", "bitmask", "sellp"):
    stored = weight_of(spec, 4096, 4096)
    packed, memory = grown(lambda: CPU.pack(stored))
    print(spec, "packed", memory, packed.nbytes)
    del stored
    again, memory = grown(lambda: FormatSpec.parse(spec).convert(packed))
    print(spec, "back", memory, again.nbytes)
    del again
    for turn in (for_panels, for_rows):
        turned, memory = grown(lambda: turn(packed))
        print(spec, turn.__name__, memory, turned.nbytes)
        del turned
    del packed
"""
SAVING = """
for spec in ("csr", "bitmask"):
    layer = se.nn.SparseLinear.from_format(weight_of(spec, 4096, 4096))
    size, folder = layer.packed.nbytes, f"{sys.argv[1]}/{spec.replace(':', '-')}"
    model = torch.nn.Sequential(layer)
    _, memory = grown(lambda: se.save(model, folder))
    print(spec, "saved", memory, size)
    del layer, model
    empty = torch.nn.Sequential(torch.nn.Linear(4096, 4096, bias=False, device="meta"))
    loaded, memory = grown(lambda: se.load(folder, model=empty))
    print(spec, "loaded", memory, size)
    del loaded, empty
"""
NEARLY_EMPTY = """
for spec in ("csr", "bsr:4x1", "bsr:16x1", "bsr:16x16", "sellp"):
    columns = torch.arange(10, dtype=torch.int32) * 5999
    pointers = torch.zeros(60001, dtype=torch.int32)
    pointers[torch.arange(10) * 6000 + 1] = 1
    weight = CSR((60000, 60000), torch.arange(1.0, 11), columns, pointers.cumsum(0).int())
    layer = se.nn.SparseLinear.from_format(FormatSpec.parse(spec).convert(weight))
    folder = f"{sys.argv[1]}/{spec.replace(':', '-')}"
    se.save(torch.nn.Sequential(layer), folder)
    model = torch.nn.Sequential(torch.nn.Linear(60000, 60000, bias=False, device="meta"))
    model = se.load(folder, model=model)
    x = torch.arange(60000.0)[None]
    y = model(x)[0]
    rows = torch.arange(10) * 6000
    assert torch.equal(y.nonzero().view(-1), rows[1:])  # column 0 meets a 0
    assert torch.equal(y[rows], weight.values * columns)
    empty = se.nn.SparseLinear(60000, 60000, bias=False)
    empty.load_state_dict(model[0].state_dict())
    assert torch.equal(empty(x)[0], y)
    print(spec, "peak", status("VmHWM"), 1)
"""


def run(script: str, folder: Path) -> list[tuple[str, int, int]]:
    """What a script prints: what was done, bytes that it took, bytes of the result."""
    done = subprocess.run(
        [sys.executable, "-c", START + script, str(folder)],
        capture_output=True,
        text=True,
        # Freed memory goes back at once: what the allocator keeps would hide what is in use.
        env={**os.environ, "MALLOC_MMAP_THRESHOLD_": str(1 << 17)},
    )
    assert done.returncode == 0, done.stderr[-2000:]
    lines = [line.rsplit(" ", 2) for line in done.stdout.splitlines()]
    assert lines
    return [(what, int(memory), int(size)) for what, memory, size in lines]


needs_proc = pytest.mark.skipif(
    not Path("/proc/self/clear_refs").exists(), reason="memory is measured through /proc of Linux"
)


@needs_proc
@pytest.mark.parametrize("script", [PACKING, SAVING], ids=["packing", "saving"])
def test_at_most_twice_the_packed_weight(script: str, tmp_path: Path) -> None:
    for what, memory, size in run(script, tmp_path):
        assert memory <= 2 * size + CHUNK, what


@needs_proc
def test_a_nearly_empty_matrix_takes_megabytes(tmp_path: Path) -> None:
    for what, memory, _ in run(NEARLY_EMPTY, tmp_path):
        assert memory < 600 << 20, what
