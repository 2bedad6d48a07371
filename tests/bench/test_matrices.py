"""Weights of one's own in bench kernel: every kind of file, and refusals in one line."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

import sparse_engine as se
from sparse_engine.bench.kernel import bench_kernel
from sparse_engine.bench.linear_grid import LinearGrid
from sparse_engine.bench.matrices import MAX_ELEMENTS, read_layer, read_matrix
from sparse_engine.bench.patterns import Pattern, random_weight
from sparse_engine.errors import InvalidFileError, UsageError
from sparse_engine.formats import block_fill


@pytest.fixture
def weight() -> Tensor:
    return random_weight(12, 20, 0.7, "csr")


def write(weight: Tensor, folder: Path) -> dict[str, str]:
    """The weight as every kind of file: the text that names it by kind."""
    from scipy.io import mmwrite
    from scipy.sparse import coo_matrix, csr_matrix

    np.save(folder / "w.npy", weight.numpy())
    np.save(folder / "double.npy", np.asfortranarray(weight.double().numpy()))
    mmwrite(folder / "w.mtx", coo_matrix(weight.numpy()), precision=9)
    mmwrite(folder / "array.mtx", weight.numpy(), precision=9)
    save_file({"a.weight": weight, "bias": torch.ones(3)}, folder / "w.safetensors")
    csr = csr_matrix(weight.numpy())
    lines = [f"{len(weight)}, {weight.shape[1]}, {csr.nnz}"]
    lines += [" ".join(map(str, part)) for part in (csr.indptr, csr.indices)]
    (folder / "w.smtx").write_text("\n".join(lines) + "\n")
    names = ("w.npy", "double.npy", "w.mtx", "array.mtx", "w.safetensors:a.weight", "w.smtx")
    return {name: str(folder / name) for name in names}


def test_every_kind_of_file_gives_the_weight(weight: Tensor, tmp_path: Path) -> None:
    for name, text in write(weight, tmp_path).items():
        found = read_matrix(text)
        assert found.source == text
        assert found.weight.dtype == torch.float32
        if name == "w.smtx":  # a pattern: its values are random
            assert torch.equal(found.weight != 0, weight != 0)
        else:
            assert torch.allclose(found.weight, weight, rtol=1e-7, atol=0)


def test_symmetric_patterns(tmp_path: Path) -> None:
    path = tmp_path / "sym.mtx"
    head = "%%MatrixMarket matrix coordinate pattern symmetric\n% a remark\n"
    path.write_text(f"{head}3 3 3\n1 1\n2 1\n3 3\n")
    expected = torch.tensor([[1, 1, 0], [1, 0, 0], [0, 0, 1]]).bool()
    assert torch.equal(read_matrix(str(path)).weight != 0, expected)


HEAD = "%%MatrixMarket matrix coordinate real general\n"
BAD_TEXT = {
    "no-banner.mtx": "3 3 1\n1 1 1\n",
    "complex.mtx": "%%MatrixMarket matrix coordinate complex general\n2 2 1\n1 1 1 1\n",
    "sizes.mtx": f"{HEAD}2 x 1\n1 1 1\n",
    "few-sizes.mtx": f"{HEAD}2 2\n1 1 1\n",
    "promises.mtx": f"{HEAD}20000 2000 3000000\n1 1 1\n",
    "huge.mtx": f"{HEAD}2000000 2000000 1\n1 1 1\n",
    "negative.mtx": f"{HEAD}-2 2 1\n1 1 1\n",
    "outside.mtx": f"{HEAD}2 2 1\n3 1 1\n",
    "empty.mtx": "",
    "short.smtx": "3, 3, 2\n0 1 2 2\n",
    "no.npy": "text",
    "no.safetensors:x": "text that is long enough",
    "a.txt": "1 2 3",
}


@pytest.mark.parametrize("name", BAD_TEXT)
def test_damaged_files_are_refused(name: str, tmp_path: Path) -> None:
    (tmp_path / name.partition(":")[0]).write_text(BAD_TEXT[name])
    with pytest.raises((UsageError, InvalidFileError)) as refusal:
        read_matrix(str(tmp_path / name))
    assert "\n" not in str(refusal.value)
    assert "pickle" not in str(refusal.value)


@pytest.mark.parametrize(
    "array",
    [
        np.zeros(3, np.float32),
        np.zeros((2, 2, 2)),
        np.ones((2, 2), complex),
        np.array([[1, np.nan]]),
        np.array([[1, np.inf]]),
        np.zeros((2, 2)),
        np.zeros((0, 2)),
        np.array([["a"]]),
    ],
    ids=str,
)
def test_arrays_that_are_no_weights(array: np.ndarray, tmp_path: Path) -> None:
    np.save(tmp_path / "a.npy", array)
    with pytest.raises(UsageError):
        read_matrix(str(tmp_path / "a.npy"))


def test_pickles_stay_closed(tmp_path: Path) -> None:
    np.save(tmp_path / "a.npy", np.array([{}]), allow_pickle=True)
    with pytest.raises(InvalidFileError):
        read_matrix(str(tmp_path / "a.npy"))


def test_sizes_are_checked_before_data_are_read(tmp_path: Path) -> None:
    """A file with a hole instead of data: reading it would take more memory than is allowed."""
    rows = MAX_ELEMENTS // 1024 + 1
    np.lib.format.open_memmap(tmp_path / "a.npy", "w+", np.float32, (rows, 1024)).flush()
    with pytest.raises(UsageError, match=str(MAX_ELEMENTS)):
        read_matrix(str(tmp_path / "a.npy"))


def test_layers_of_a_package(tmp_path: Path) -> None:
    model = nn.Sequential(nn.Linear(24, 16), nn.ReLU(), nn.Linear(16, 8))
    model[0].weight.data = random_weight(16, 24, 0.8, "csr")
    expected = [model[0].weight.data.clone(), model[2].weight.data.clone()]
    se.sparsify_(model, se.SparseConfig("csr"))
    se.save(model, tmp_path / "package")
    for name, weight in zip(("0", "2"), expected, strict=True):
        assert torch.equal(read_layer(tmp_path / "package", name).weight, weight)
    with pytest.raises(UsageError, match="it has 0, 2"):
        read_layer(tmp_path / "package", "encoder")
    own = (read_layer(tmp_path / "package", "0"),)
    (row,) = bench_kernel(LinearGrid(own=own, m=(3,), format=("csr",), rounds=1))
    assert (row.n, row.k, row.source, row.sparsity) == (16, 24, "0", 0.7995)  # 77 of 384


def test_clusters_have_their_sparsity_inside_few_blocks() -> None:
    pattern = Pattern.parse("16x16:0.5")
    for sparsity in (0.5, 0.8, 0.95):
        weight = random_weight(256, 256, sparsity, "csr", pattern)
        assert int(weight.count_nonzero()) == round((1 - sparsity) * 256 * 256)
        assert block_fill(weight, 16, 16) == pytest.approx(0.5, abs=0.02)
        cut = random_weight(70, 90, sparsity, "csr", pattern)  # blocks at the edge are smaller
        assert cut.count_nonzero() == pytest.approx((1 - sparsity) * 70 * 90, rel=0.2)
    dense = random_weight(64, 64, 0.2, "csr", pattern)  # too few zeros for half-empty blocks
    assert block_fill(dense, 16, 16) == pytest.approx(0.8, abs=0.01)
    whole = random_weight(64, 64, 0.75, "csr", Pattern.parse("4x1:1"))
    assert block_fill(whole, 4, 1) == 1.0
    element = random_weight(64, 64, 0.75, "bsr:4x1", Pattern.parse("element"))
    assert block_fill(element, 4, 1) < 0.5


@pytest.mark.parametrize(
    "text", ["", "16", "0x4", "4x4:0", "4x4:2", "4x4:x", "4x4:1.1.1", "blocks"]
)
def test_bad_patterns_are_refused(text: str) -> None:
    with pytest.raises(UsageError, match="--pattern"):
        Pattern.parse(text)


def test_groups_have_a_pattern_of_their_own() -> None:
    with pytest.raises(UsageError, match="own pattern"):
        LinearGrid(format=("nm:2:4",), pattern=Pattern.parse("element"))


@pytest.mark.parametrize("grid", [{"n": (2**20,), "k": (2**20,)}, {"m": (2**30,)}, {"n": ()}])
def test_sizes_of_random_weights_are_bounded(grid: dict[str, tuple[int, ...]]) -> None:
    with pytest.raises(UsageError):
        LinearGrid(**grid)  # type: ignore[arg-type]
