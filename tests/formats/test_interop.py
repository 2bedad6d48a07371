"""Exchange of CSR and BSR with torch's sparse tensors and scipy.sparse."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy import sparse as scipy_sparse
from torch import Tensor

from sparse_engine.errors import InvalidFileError, UsageError
from sparse_engine.formats import BSR, CSR

pytestmark = pytest.mark.filterwarnings("ignore:Sparse (CSR|BSR) tensor support is in beta")


def random_weight(shape: tuple[int, int], dtype: torch.dtype = torch.float32) -> Tensor:
    generator = torch.Generator().manual_seed(3)
    weight = torch.randn(shape, generator=generator)
    return (weight * (torch.rand(shape, generator=generator) < 0.3)).to(dtype)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("shape", [(0, 4), (6, 0), (6, 8), (12, 4)])
def test_torch_both_ways(shape: tuple[int, int], dtype: torch.dtype) -> None:
    weight = random_weight(shape, dtype)
    csr = CSR.from_dense(weight)
    assert csr.to_torch().layout == torch.sparse_csr
    assert torch.equal(CSR.from_torch(csr.to_torch()).to_dense(), weight)
    bsr = BSR.from_dense(weight, rows=3, cols=2)
    assert bsr.to_torch().values().shape == bsr.values.shape
    assert torch.equal(BSR.from_torch(bsr.to_torch()).to_dense(), weight)
    if 0 not in shape:
        assert torch.equal(csr.to_torch().to_dense(), weight)
        assert torch.equal(bsr.to_torch().to_dense(), weight)
        assert torch.equal(CSR.from_torch(weight.to_sparse_csr()).to_dense(), weight)
        assert torch.equal(BSR.from_torch(weight.to_sparse_bsr((2, 4))).to_dense(), weight)


@pytest.mark.parametrize("shape", [(0, 4), (6, 0), (6, 8), (12, 4)])
def test_scipy_both_ways(shape: tuple[int, int]) -> None:
    weight = random_weight(shape)
    csr = CSR.from_dense(weight).to_scipy()
    assert csr.format == "csr"
    assert np.array_equal(csr.toarray(), weight.numpy())
    assert torch.equal(CSR.from_scipy(csr).to_dense(), weight)
    bsr = BSR.from_dense(weight, rows=3, cols=2).to_scipy()
    assert bsr.format == "bsr"
    assert bsr.blocksize == (3, 2)
    assert np.array_equal(bsr.toarray(), weight.numpy())
    assert torch.equal(BSR.from_scipy(bsr).to_dense(), weight)
    assert torch.equal(CSR.from_scipy(scipy_sparse.csr_matrix(weight.numpy())).to_dense(), weight)


def test_unsorted_and_duplicate_entries_are_canonicalised_on_a_copy() -> None:
    data = np.array([1, 2, 3, 4, 5, 0], dtype=np.float32)
    indices = np.array([3, 0, 3, 2, 1, 4], dtype=np.int64)
    pointers = np.array([0, 3, 3, 6], dtype=np.int64)
    theirs = scipy_sparse.csr_array((data, indices, pointers), shape=(3, 5))
    before = [theirs.data.copy(), theirs.indices.copy(), theirs.indptr.copy()]
    ours = CSR.from_scipy(theirs)
    for old, new in zip(before, (theirs.data, theirs.indices, theirs.indptr), strict=True):
        assert np.array_equal(old, new)
    assert ours.pointers.tolist() == [0, 2, 2, 5]
    assert ours.indices.tolist() == [0, 3, 1, 2, 4]
    assert ours.values.tolist() == [2, 4, 5, 4, 0]  # the zero that was stored stays stored
    assert ours.indices.dtype == ours.pointers.dtype == torch.int32
    unsafe = torch.sparse_csr_tensor(
        torch.tensor(pointers),
        torch.tensor(indices),
        torch.tensor(data),
        (3, 5),
        check_invariants=False,
    )
    assert torch.equal(CSR.from_torch(unsafe).to_dense(), ours.to_dense())


def test_unsorted_and_duplicate_blocks() -> None:
    data = np.arange(12, dtype=np.float32).reshape(3, 2, 2)
    theirs = scipy_sparse.bsr_array((data, np.array([1, 0, 1]), np.array([0, 3])), shape=(2, 4))
    ours = BSR.from_scipy(theirs)
    assert ours.indices.tolist() == [0, 1]
    assert np.array_equal(ours.to_dense().numpy(), theirs.toarray())


def test_nothing_is_shared() -> None:
    theirs = scipy_sparse.csr_array(random_weight((5, 6)).numpy())
    ours = CSR.from_scipy(theirs)
    expected = ours.to_dense()
    theirs.data[:] = 0
    theirs.indices[:] = 0
    given = ours.to_torch()
    again = CSR.from_torch(given)
    given.values().zero_()
    given.col_indices().zero_()
    ours.to_scipy().data[:] = 0
    assert torch.equal(ours.to_dense(), expected)
    assert torch.equal(again.to_dense(), expected)


def test_room_beyond_the_last_entry_is_ignored() -> None:
    theirs = scipy_sparse.csr_array(random_weight((5, 6)).numpy())
    expected = CSR.from_scipy(theirs).to_dense()
    theirs.data = np.append(theirs.data, np.float32(9))
    theirs.indices = np.append(theirs.indices, np.int32(99))
    assert torch.equal(CSR.from_scipy(theirs).to_dense(), expected)


def test_negative_zero_becomes_positive() -> None:
    theirs = scipy_sparse.csr_array(
        (np.array([-0.0], np.float32), np.array([1]), np.array([0, 1])), shape=(1, 2)
    )
    ours = CSR.from_scipy(theirs)
    assert ours.stored == 1
    assert not bool(torch.signbit(ours.values).any())


def test_refusals() -> None:
    dense = random_weight((6, 6))
    cases = [
        (
            lambda: CSR.from_scipy(scipy_sparse.coo_array(dense.numpy())),
            r"scipy coo; .*\.tocsr\(\)",
        ),
        (
            lambda: BSR.from_scipy(scipy_sparse.csr_array(dense.numpy())),
            r"scipy csr; .*\.tobsr\(\)",
        ),
        (
            lambda: CSR.from_scipy(scipy_sparse.csr_array(np.eye(3))),
            "expected float32, got float64",
        ),
        (lambda: CSR.from_scipy(dense), "got Tensor"),
        (lambda: CSR.from_torch(dense), "expected a torch.sparse_csr tensor, got torch.strided"),
        (lambda: CSR.from_torch(dense.to_sparse_bsr((2, 2))), "got torch.sparse_bsr"),
        (lambda: CSR.from_torch(dense.double().to_sparse_csr()), "got float64"),
        (lambda: CSR.from_torch(torch.stack([dense, dense]).to_sparse_csr()), r"expected \[out"),
        (lambda: CSR.from_dense(dense.bfloat16()).to_scipy(), "scipy has no bfloat16"),
        (lambda: BSR.from_dense(dense, 4, 1).to_scipy(), r"block 4x1.* pad the weight to \[8, 6\]"),
        (lambda: BSR.from_dense(dense, 1, 4).to_torch(), r"block 1x4.* pad the weight to \[6, 8\]"),
    ]
    for call, message in cases:
        with pytest.raises(UsageError, match=message):
            call()


@pytest.mark.parametrize(
    ("indices", "pointers", "message"),
    [
        ([0, 2**32], [0, 2], f"entry 1 is {2**32}, outside 0..3"),
        ([0, -1], [0, 2], "entry 1 is -1, outside 0..3"),
        ([0, 1], [0, 2**32 + 2], "must end at 2"),
        ([0, 1], [1, 2], "must start at 0"),
    ],
)
def test_wide_indices_are_checked_before_they_are_narrowed(
    indices: list[int], pointers: list[int], message: str
) -> None:
    unsafe = torch.sparse_csr_tensor(
        torch.tensor(pointers),
        torch.tensor(indices),
        torch.ones(2),
        (1, 4),
        check_invariants=False,
    )
    with pytest.raises(InvalidFileError, match=message):
        CSR.from_torch(unsafe)
