"""The Triton kernels compiled for sm_90, without a GPU; test_triton.py runs this.

A kernel must fit the registers and the shared memory of one program, use the tensor cores where it
is meant to, bring its tiles as it is meant to, and spend no more instructions an element than
memory gives time for.
"""

from __future__ import annotations

import re
import subprocess
from pathlib import Path
from typing import Any

import pytest
import triton
from sparse_engine.kernels.epilogue import finish_partials_kernel
from sparse_engine.kernels.launch import SHARED_BYTES
from sparse_engine.kernels.linear_bsr import linear_bsr_kernel, linear_bsr_split_kernel
from sparse_engine.kernels.linear_bsr_tma import linear_bsr_tma_kernel
from sparse_engine.kernels.linear_ell import (
    ROWS,
    SLOTS,
    WIDTH,
    expand_ell_kernel,
    linear_ell_kernel,
)
from sparse_engine.kernels.linear_nm import expand_nm_kernel, linear_nm_kernel, tile_shape
from sparse_engine.kernels.recurrent_step import recurrent_step_kernel
from sparse_engine.kernels.tiles import TMA_COLS, choose_config, tma_config
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource, CompiledKernel

# Compute capability -> bytes of shared memory of one program.
SHARED = {90: SHARED_BYTES, 80: 166_912, 89: 101_376}
BIN = Path(triton.__file__).parent / "backends/nvidia/bin"
ITEMSIZE = {"fp32": 4, "fp16": 2, "bf16": 2}
EPILOGUE = {
    "ACTIVATION": "gelu",
    "GATED": False,
    "HAS_SCALES": False,
    "HAS_BIAS": True,
    "HAS_RESIDUAL": True,
}
INTS = ("indices", "pointers", "order", "items", "groups", "parts")
FLOATS = ("bias", "scales", "c", "partials")
BYTES = ("columns", "positions")


def compile_kernel(
    kernel: Any,
    dtype: str,
    constants: dict[str, Any],
    warps: int = 4,
    stages: int = 3,
    capability: int = 90,
    **types: str,
) -> CompiledKernel:
    """What the launcher would compile for sizes that are multiples of 16."""
    kinds = dict.fromkeys(("x", "values", "residual", "y", "h", "h_next", "inputs"), f"*{dtype}")
    kinds |= {"dense": f"*{dtype}", "rows": "*u16"}
    kinds |= dict.fromkeys(INTS, "*i32") | dict.fromkeys(FLOATS, "*fp32")
    kinds |= dict.fromkeys(BYTES, "*u8") | types | dict.fromkeys(constants, "constexpr")
    signature = {name: kinds.get(name, "i32") for name in kernel.arg_names}
    aligned = [
        i for i, kind in enumerate(signature.values()) if kind[0] == "*" or kind.startswith("i")
    ]
    source = ASTSource(
        kernel,
        signature=signature,
        constexprs=constants,
        attrs={(i,): [["tt.divisibility", 16]] for i in aligned},
    )
    options = {"num_warps": warps, "num_stages": stages, "enable_fp_fusion": True}
    return triton.compile(source, target=GPUTarget("cuda", capability, 32), options=options)


def check_fits(kernel: CompiledKernel, folder: Path, capability: int = 90) -> str:
    """Check shared memory, stack and local memory; the machine code, if a tool can read it."""
    assert kernel.metadata.shared <= SHARED[capability]
    tool = BIN / "cuobjdump"
    if not tool.exists():
        pytest.skip("triton has no cuobjdump: spills and instructions not checked")
    cubin = folder / "kernel.cubin"
    cubin.write_bytes(kernel.asm["cubin"])
    usage, code = (
        subprocess.run([tool, option, cubin], check=True, capture_output=True, text=True).stdout
        for option in ("-res-usage", "-sass")
    )
    assert re.search(r"\bREG:\d+", usage)
    assert re.findall(r"\b(?:STACK|LOCAL):(\d+)", usage) == ["0", "0"], usage
    return code


def loop_size(code: str) -> int:
    """Instructions of the largest loop."""
    lines = [(int(m[1], 16), m[2]) for m in re.finditer(r"/\*([0-9a-f]{4,})\*/\s+(.*?);", code)]
    sizes = [0]
    for at, text in lines:
        back = re.search(r"BRA.*?0x([0-9a-f]+)", text)
        if back and int(back[1], 16) < at:
            sizes.append(sum(int(back[1], 16) <= other <= at for other, _ in lines))
    return max(sizes)


def bsr_constants(dtype: str, tokens: int, rows: int, cols: int, gated: bool, shared: int) -> Any:
    config = choose_config(tokens, rows, cols, ITEMSIZE[dtype], 64, gated, shared)
    constants: dict[str, Any] = {
        "TILE": config.tile,
        "ROWS": rows,
        "COLS": cols,
        "STEP": config.step,
        "PRECISION": "tf32x3" if dtype == "fp32" else "ieee",
        "UPCAST": False,
    }
    # Single columns of many tokens are read from x transposed.
    constants["x_row_stride" if cols < 8 and tokens > 64 else "x_col_stride"] = 1
    return config, constants


BSR_CASES = [
    ("bf16", 1, 16, 16),
    ("bf16", 1, 32, 32),
    ("bf16", 16, 64, 64),
    ("bf16", 64, 128, 128),
    ("bf16", 1, 64, 1),
    ("bf16", 8192, 128, 1),
    ("bf16", 8192, 64, 1),
    ("bf16", 8192, 128, 16),
    ("bf16", 8192, 64, 16),
    ("bf16", 8192, 128, 32),
    ("bf16", 8192, 128, 128),
    ("bf16", 8192, 64, 64),
    ("bf16", 8192, 32, 32),
    ("bf16", 8192, 16, 16),
    ("fp16", 300, 64, 64),
    ("bf16", 100, 128, 1),
    ("bf16", 64, 16, 1),
    ("fp32", 64, 16, 16),
    ("fp32", 1, 16, 16),
    ("fp32", 4096, 128, 128),
]


@pytest.mark.parametrize(
    ("dtype", "tokens", "rows", "cols", "capability"),
    [(*case, 90) for case in BSR_CASES]
    + [(*case, sm) for case in BSR_CASES[::4] for sm in (80, 89)],
)
def test_bsr(
    dtype: str, tokens: int, rows: int, cols: int, capability: int, tmp_path: Path
) -> None:
    config, constants = bsr_constants(dtype, tokens, rows, cols, False, SHARED[capability])
    constants |= {"GROUP": 8, **EPILOGUE}
    kernel = compile_kernel(
        linear_bsr_kernel, dtype, constants, config.warps, config.stages, capability
    )
    if capability == 90:
        expected = r"wgmma\.mma_async" if config.tile >= 64 else r"mma\.sync"
        assert re.search(expected, kernel.asm["ptx"])
        # The pipeliner keeps one tile per stage for wgmma and one fewer for mma. Were the column
        # loaded in the iteration that uses it, about half of them would be left. Single columns of
        # few tokens are gathered, two bytes at a time: no asynchronous copy does that.
        tile = 0 if cols == 1 and tokens <= 64 else config.tile
        step_bytes = (tile + rows) * config.step * ITEMSIZE[dtype]
        assert (config.stages - 1) * step_bytes <= kernel.metadata.shared
    assert "cp.async" in kernel.asm["ptx"]
    code = check_fits(kernel, tmp_path, capability)
    if capability == 90 and dtype == "bf16" and tokens <= 16:
        # Memory gives time for 14 an element of 2 bytes.
        assert 0 < loop_size(code) * 32 * config.warps <= 5 * rows * config.step


@pytest.mark.parametrize(("tokens", "rows", "cols"), [(1, 32, 32), (16, 64, 64), (64, 128, 128)])
def test_bsr_split(tokens: int, rows: int, cols: int, tmp_path: Path) -> None:
    config, constants = bsr_constants("bf16", tokens, rows, cols, False, SHARED_BYTES)
    kernel = compile_kernel(linear_bsr_split_kernel, "bf16", constants, config.warps, config.stages)
    check_fits(kernel, tmp_path)


@pytest.mark.parametrize(
    ("tokens", "rows", "cols"),
    [
        (1, 32, 32),
        (64, 32, 32),
        (64, 64, 64),
        (8192, 32, 32),
        (8192, 64, 16),
        (8192, 128, 16),
        (8192, 128, 128),
    ],
)
def test_bsr_gated(tokens: int, rows: int, cols: int, tmp_path: Path) -> None:
    config, constants = bsr_constants("bf16", tokens, rows, cols, True, SHARED_BYTES)
    constants |= {"GROUP": 8, **EPILOGUE, "GATED": True, "ACTIVATION": "silu"}
    kernel = compile_kernel(linear_bsr_kernel, "bf16", constants, config.warps, config.stages)
    check_fits(kernel, tmp_path)


@pytest.mark.parametrize(("tokens", "rows", "cols"), [(1, 32, 32), (64, 64, 64), (8192, 128, 64)])
def test_bsr_int8(tokens: int, rows: int, cols: int, tmp_path: Path) -> None:
    config, constants = bsr_constants("bf16", tokens, rows, cols, False, SHARED_BYTES)
    constants |= {"GROUP": 8, **EPILOGUE, "HAS_SCALES": True}
    kernel = compile_kernel(
        linear_bsr_kernel, "bf16", constants, config.warps, config.stages, values="*i8"
    )
    check_fits(kernel, tmp_path)


@pytest.mark.parametrize("dtype", ["bf16", "fp16"])
@pytest.mark.parametrize(
    ("rows", "cols", "gated"),
    [
        (128, 128, False),
        (128, 64, False),
        (64, 64, False),
        (32, 64, False),
        (64, 64, True),
        (128, 128, True),
    ],
)
def test_bsr_tma(rows: int, cols: int, gated: bool, dtype: str, tmp_path: Path) -> None:
    config = tma_config(8192, rows, 64, gated)
    constants = {
        "TILE": config.tile,
        "ROWS": rows,
        "COLS": cols,
        "STEP": TMA_COLS,
        "GROUP": 8,
        "UPCAST": False,
        **EPILOGUE,
        "GATED": gated,
    }
    kernel = compile_kernel(
        linear_bsr_tma_kernel,
        dtype,
        constants,
        config.warps,
        config.stages,
        x=f"tensordesc<{dtype}[{config.tile},{TMA_COLS}]>",
        values=f"tensordesc<{dtype}[{rows},{TMA_COLS}]>",
    )
    assert "wgmma.mma_async" in kernel.asm["ptx"]
    assert "cp.async.bulk.tensor" in kernel.asm["ptx"]
    assert config.stages * (config.tile + rows) * TMA_COLS * 2 <= kernel.metadata.shared
    check_fits(kernel, tmp_path)


# An H200 has time for 6.9 instructions of a lane for a byte of memory (132 processors of 128 lanes
# at 1.75 GHz, 4.3 TB/s): 20 for a non-zero of 3 bytes, 15 for a kept value of 2.25.
@pytest.mark.parametrize(("taken", "budget"), [(1, 15), (2, 20), (4, 25)])
@pytest.mark.parametrize("dtype", ["bf16", "fp16", "fp32"])
def test_ell(dtype: str, taken: int, budget: int, tmp_path: Path) -> None:
    if dtype == "fp32" and taken > 1:
        pytest.skip("float32 takes a token at a time")
    constants = {
        "PASS": taken,
        "ROWS": ROWS,
        "WIDTH": WIDTH,
        "SLOTS": SLOTS,
        "BFLOAT16": dtype == "bf16",
    }
    kernel = compile_kernel(linear_ell_kernel, dtype, constants)
    assert "cp.async" in kernel.asm["ptx"]
    assert 0 < loop_size(check_fits(kernel, tmp_path)) <= budget * ROWS * SLOTS // 128


@pytest.mark.parametrize(("taken", "budget"), [(1, 15), (4, 25)])
@pytest.mark.parametrize("pattern", [(2, 4), (1, 4), (2, 8), (4, 16)])
def test_nm(pattern: tuple[int, int], taken: int, budget: int, tmp_path: Path) -> None:
    shape = tile_shape(*pattern)
    constants = {"PASS": taken, "BFLOAT16": True, **shape, **EPILOGUE}
    kernel = compile_kernel(linear_nm_kernel, "bf16", constants)
    assert "cp.async" in kernel.asm["ptx"]
    elements = shape["ROWS"] * shape["WORDS"] * 8 // shape["BITS"]
    assert 0 < loop_size(check_fits(kernel, tmp_path)) <= budget * elements // 128


def test_expansions(tmp_path: Path) -> None:
    shape = {"ROWS": ROWS, "WIDTH": WIDTH, "SLOTS": SLOTS, "HAS_SCALES": False}
    check_fits(compile_kernel(expand_ell_kernel, "bf16", shape), tmp_path)
    shape = {**tile_shape(2, 4), "HAS_SCALES": False}
    check_fits(compile_kernel(expand_nm_kernel, "bf16", shape), tmp_path)


@pytest.mark.parametrize("gated", [False, True])
@pytest.mark.parametrize("uniform", [False, True])
def test_finish_partials(uniform: bool, gated: bool, tmp_path: Path) -> None:
    constants = {"TILE": 4, "COLS": 128, "UNIFORM": uniform, **EPILOGUE, "GATED": gated}
    kinds = {"parts": "i32" if uniform else "*i32"}
    kernel = compile_kernel(finish_partials_kernel, "bf16", constants, **kinds)
    check_fits(kernel, tmp_path)


@pytest.mark.parametrize("mode", ["LSTM", "GRU", "RNN_TANH"])
@pytest.mark.parametrize(
    ("dtype", "batch", "cols"), [("bf16", 1, 16), ("fp16", 64, 32), ("fp32", 8, 16)]
)
def test_recurrent_step(dtype: str, batch: int, cols: int, mode: str, tmp_path: Path) -> None:
    config, constants = bsr_constants(dtype, batch, 16, cols, False, SHARED_BYTES)
    del constants["x_col_stride"]
    constants |= {"MODE": mode, "HAS_BIAS": mode == "GRU"}
    kernel = compile_kernel(recurrent_step_kernel, dtype, constants, 4, config.stages)
    assert re.search(r"wgmma\.mma_async|mma\.sync", kernel.asm["ptx"])
    check_fits(kernel, tmp_path)


ONES = ("tokens", "in_features", "out_features", "words", "sequences", "units", "features")


@pytest.mark.parametrize("uniform", [False, True])
def test_sizes_of_one(uniform: bool) -> None:
    """The compiler makes an argument of 1 a constant, not a tensor; the interpreter does not."""
    ones: dict[str, Any] = dict.fromkeys(ONES, 1)
    ones |= {
        "x_row_stride": 1,
        "x_stride": 1,
        "residual_stride": 1,
        "inputs_stride": 1,
        "y_stride": 1,
    }

    def compile_ones(kernel: Any, constants: dict[str, Any], **types: str) -> None:
        own = {name: 1 for name in ones if name in kernel.arg_names}
        compile_kernel(kernel, "bf16", {**constants, **own}, **types)

    _, constants = bsr_constants("bf16", 1, 16, 16, False, SHARED_BYTES)
    compile_ones(linear_bsr_kernel, {**constants, "GROUP": 8, **EPILOGUE})
    compile_ones(linear_bsr_split_kernel, constants)
    ell = {"PASS": 4 if uniform else 1, "ROWS": ROWS, "WIDTH": WIDTH, "SLOTS": SLOTS}
    compile_ones(linear_ell_kernel, {**ell, "BFLOAT16": True})
    del ell["PASS"]
    compile_ones(expand_ell_kernel, {**ell, "HAS_SCALES": uniform})
    shape = tile_shape(2, 4)
    compile_ones(linear_nm_kernel, {**shape, "PASS": 1, "BFLOAT16": True, **EPILOGUE})
    compile_ones(expand_nm_kernel, {**shape, "HAS_SCALES": uniform})
    partial = {"TILE": 1, "COLS": 128, "UNIFORM": uniform, **EPILOGUE}
    partial |= {"parts": 1} if uniform else {}
    compile_ones(finish_partials_kernel, partial)
    del constants["x_col_stride"]
    compile_ones(recurrent_step_kernel, {**constants, "MODE": "LSTM", "HAS_BIAS": False})
