"""The fixed public names are there, and nothing half-documented is."""

from __future__ import annotations

import inspect

import sparse_engine as se

NAMES = (
    "prune load save sparsify_ densify_ SparseConfig CSR BSR Bitmask NM Element Block nn ops "
    "formats"
).split()


def test_public_names() -> None:
    for name in NAMES:
        assert name in se.__all__
        assert hasattr(se, name)
    assert len(set(se.__all__)) == len(se.__all__)


def test_everything_public_is_documented() -> None:
    for name in se.__all__:
        thing = getattr(se, name)
        assert inspect.getdoc(thing), name
        if inspect.isclass(thing):
            for attribute, value in vars(thing).items():
                if callable(value) and not attribute.startswith("_"):
                    assert inspect.getdoc(getattr(thing, attribute)), f"{name}.{attribute}"


def test_nm_is_the_pattern_to_prune_to_and_of_stored_matrices() -> None:
    import torch

    weight = torch.tensor([[1.0, 0, 2, 0], [0, 0, 3, 4]])
    assert str(se.NM(keep=2, of=4)) == "2:4"
    packed = se.NM.from_dense(weight, keep=2, of=4)
    assert torch.equal(packed.to_dense(), weight)
    assert isinstance(packed, se.NM)
    assert isinstance(packed, se.formats.NM)
    assert isinstance(se.NM(2, 4), se.NM)
    assert not isinstance(se.BSR.from_dense(weight, 1, 1), se.NM)
