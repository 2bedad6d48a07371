"""The packings of the CUDA backend, by what they are chosen for."""

from __future__ import annotations

from collections.abc import Sequence

from sparse_engine.backends.base import Params, Row
from sparse_engine.formats import BSR, NM, Format
from sparse_engine.formats.checks import dtype_name
from sparse_engine.packings.cuda.base import GPU_DTYPES
from sparse_engine.packings.cuda.bsr import PackedBSR
from sparse_engine.packings.cuda.ell import Ell
from sparse_engine.packings.cuda.nm import PackedNM

DTYPES = tuple(map(dtype_name, GPU_DTYPES))


def _blocks_fit(params: Params, tokens: Sequence[int]) -> bool:
    return PackedBSR.block_problem(params["rows"], params["cols"]) is None


def _groups_fit(params: Params, tokens: Sequence[int]) -> bool:
    return PackedNM.params_problem(params) is None


TABLE = (
    Row(PackedBSR, (BSR,), DTYPES, _blocks_fit),
    Row(PackedNM, (NM,), DTYPES, _groups_fit),
    Row(Ell, (Format,), DTYPES),
)
