"""The packings of the CPU backend, by what they are chosen for.

Blocks of fewer than 16 rows have no kernel of their own: a pair of rows has all columns in common,
which runs store once. Packages store int8 blocks as the kernels for any number of tokens read them,
so a few tokens have no row for int8. On a processor with tile registers a bitmask is stored in
tiles, which serve prompts and single tokens alike.
"""

from __future__ import annotations

from collections.abc import Sequence

from sparse_engine import _core
from sparse_engine.backends.base import Params, Row
from sparse_engine.formats import BSR, NM, Bitmask, Format, SellP
from sparse_engine.packings.cpu.bits import Bits
from sparse_engine.packings.cpu.columns import Columns, Columns8
from sparse_engine.packings.cpu.groups import Groups
from sparse_engine.packings.cpu.half_runs import HalfRuns
from sparse_engine.packings.cpu.int8 import Bits8, Groups8, QuadRuns, SellP8
from sparse_engine.packings.cpu.runs import Runs
from sparse_engine.packings.cpu.sellp import PackedSellP
from sparse_engine.packings.cpu.strips import Strips
from sparse_engine.packings.cpu.tiles import PackedTiles, PackedTiles8

FEW_TOKENS = 4
"""As many tokens as a kernel with rows in the lanes multiplies in one pass over the weight."""
FLOATS, INT8 = ("float32", "bfloat16"), ("int8",)


def _groups_fit(params: Params, tokens: Sequence[int]) -> bool:
    return Groups.params_problem(params) is None


def _tall_blocks(params: Params, tokens: Sequence[int]) -> bool:
    """The lanes of a vector share an index of a tall block."""
    return params["rows"] % 16 == 0


def _few_tokens(params: Params, tokens: Sequence[int]) -> bool:
    """Runs have tokens in the lanes of a vector, which a few tokens do not fill."""
    return bool(tokens) and max(tokens) <= FEW_TOKENS


def has_tiles() -> bool:
    """Whether this processor multiplies tiles, and SPARSE_ENGINE_ISA allows it."""
    return {"amx_bf16", "amx_int8"} <= set(_core.capabilities())


def _tiles(params: Params, tokens: Sequence[int]) -> bool:
    return has_tiles()


def _whole_tiles(params: Params, tokens: Sequence[int]) -> bool:
    """No tile of 16x32 is cut by a block."""
    return params["rows"] % 16 == 0 and params["cols"] % 32 == 0 and has_tiles()


def _column_lists(params: Params, tokens: Sequence[int]) -> bool:
    """Rows of one or two tiles have many columns in common."""
    return params["rows"] % 4 == 0 and has_tiles() and not _few_tokens(params, tokens)


def _half_products(params: Params, tokens: Sequence[int]) -> bool:
    """Multiplies float16, twice as many at a time as float32."""
    return "fp16" in _core.capabilities() and not _few_tokens(params, tokens)


TABLE = (
    Row(SellP8, (SellP,), INT8),
    Row(PackedTiles8, (Bitmask,), INT8, _tiles, portable=False),
    Row(Bits8, (Bitmask,), INT8),
    Row(Groups8, (NM,), INT8, _groups_fit),
    Row(Columns8, (BSR,), INT8, _column_lists, portable=False),
    Row(QuadRuns, (Format,), INT8),
    Row(PackedSellP, (SellP,), FLOATS),
    Row(PackedTiles, (Bitmask,), FLOATS, _tiles, portable=False),
    Row(Bits, (Bitmask,), FLOATS),
    Row(Groups, (NM,), FLOATS, _groups_fit),
    Row(PackedTiles, (BSR,), FLOATS, _whole_tiles, portable=False),
    Row(Columns, (BSR,), ("bfloat16",), _column_lists, portable=False),
    Row(Strips, (BSR,), FLOATS, _tall_blocks),
    Row(PackedSellP, (BSR,), FLOATS, _few_tokens),
    Row(HalfRuns, (Format,), ("bfloat16",), _half_products, portable=False),
    Row(Runs, (Format,), FLOATS),
)
