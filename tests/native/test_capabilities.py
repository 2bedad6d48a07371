"""Sets of capabilities: their texts, and the kernel that each table chooses for a set."""

from __future__ import annotations

import itertools
import subprocess
import sys

import pytest

from sparse_engine import _core
from sparse_engine.errors import UsageError
from sparse_engine.ops import reference

X86 = any(k["isa"] == "avx2" for k in _core.kernels())
needs_x86 = pytest.mark.skipif(not X86, reason="the tables of this processor have scalar rows only")
PRESETS = (
    "scalar",
    "avx2",
    "avx512",
    "avx512_vnni",
    "avx512_vbmi2",
    "avx512_bf16",
    "avx512_amx",
)
SHORT = {"float32": "f32", "bfloat16": "bf16", "int8": "i8"}
# Packing and dtype, for few or many tokens: the compile target that runs at each of PRESETS.
CHOICES = {
    "spmm_runs_f32": "scalar avx2 avx512 avx512 avx512 avx512 avx512",
    "spmm_runs_bf16": "scalar avx2 avx512 avx512 avx512 avx512 avx512",
    "spmm_runs_i8": "scalar avx2 avx2 avx512_vnni avx512_vnni avx512_vnni avx512_vnni",
    "spmm_half_runs_bf16": "scalar scalar scalar scalar scalar scalar avx512_fp16",
    "spmm_strips_f32": "scalar avx2 avx512 avx512 avx512 avx512 avx512",
    "spmm_strips_bf16": "scalar avx2 avx512 avx512 avx512 avx512_bf16 avx512_bf16",
    "spmv_strips_f32": "scalar avx2 avx512 avx512 avx512 avx512 avx512",
    "spmv_strips_bf16": "scalar avx2 avx512 avx512 avx512 avx512 avx512",
    "spmv_sellp_f32": "scalar avx2 avx512 avx512 avx512 avx512 avx512",
    "spmv_sellp_bf16": "scalar avx2 avx512 avx512 avx512 avx512 avx512",
    "spmv_sellp_i8": "scalar avx2 avx512 avx512 avx512 avx512 avx512",
    "spmv_bits_f32": "scalar scalar avx512 avx512 avx512 avx512 avx512",
    "spmv_bits_bf16": "scalar scalar scalar scalar avx512_vbmi2 avx512_vbmi2 avx512_vbmi2",
    "spmv_bits_i8": "scalar scalar scalar scalar avx512_vbmi2 avx512_vbmi2 avx512_vbmi2",
    "spmv_groups_f32": "scalar scalar avx512 avx512 avx512 avx512 avx512",
    "spmv_groups_bf16": "scalar scalar avx512 avx512 avx512 avx512 avx512",
    "spmm_columns_bf16": "scalar scalar scalar scalar scalar scalar avx512_amx",
    "spmm_columns_i8": "scalar scalar scalar scalar scalar scalar avx512_amx",
    "spmm_tiles_f32": "scalar scalar scalar scalar scalar scalar avx512_amx",
    "spmm_tiles_bf16": "scalar scalar scalar scalar scalar scalar avx512_amx",
    "spmm_tiles_i8": "scalar scalar scalar scalar scalar scalar avx512_amx",
    "spmv_tiles_f32": "scalar scalar avx512 avx512 avx512 avx512 avx512",
    "spmv_tiles_bf16": "scalar scalar scalar scalar avx512_vbmi2 avx512_vbmi2 avx512_vbmi2",
    "spmv_tiles_i8": "scalar scalar scalar scalar avx512_vbmi2 avx512_vbmi2 avx512_vbmi2",
    "spmv_groups_i8": "scalar scalar avx512 avx512 avx512 avx512 avx512",
}


MISSING = [
    ("strips", "int8"),
    ("columns", "float32"),
    ("half_runs", "float32"),
    ("half_runs", "int8"),
]


def kernel(packing: str, dtype: str, tokens: int, isa: str) -> str:
    return _core.linear_kernel(packing, dtype, tokens, isa)


@needs_x86
def test_every_preset_runs_the_expected_kernels() -> None:
    found = set()
    packings = {k["packing"] for k in _core.kernels()}
    for packing, dtype, tokens in itertools.product(packings, _core.DTYPES, (1, 8, 9, 128)):
        if (packing, dtype) in MISSING:
            with pytest.raises(ValueError, match="no kernel"):
                kernel(packing, dtype, tokens, "scalar")
            continue
        # Tokens with rows in the lanes.
        most = {"runs": 0, "half_runs": 0, "columns": 0, "strips": 8, "tiles": 4}
        few = tokens <= most.get(packing, tokens)
        name = f"{'spmv' if few else 'spmm'}_{packing}_{SHORT[dtype]}"
        found.add(name)
        for preset, target in zip(PRESETS, CHOICES[name].split(), strict=True):
            assert kernel(packing, dtype, tokens, preset) == f"{name}_{target}"
    assert found == set(CHOICES)


@needs_x86
@pytest.mark.parametrize(
    ("isa", "packing", "dtype", "target"),
    [
        # Cooper Lake: BF16 without VBMI2.
        ("avx512,vnni,bf16", "strips", "bfloat16", "avx512_bf16"),
        ("avx512,vnni,bf16", "bits", "bfloat16", "scalar"),
        ("avx512,vnni,bf16", "runs", "int8", "avx512_vnni"),
        # Sapphire Rapids, where vdpbf16ps is slow.
        ("avx512_amx,-bf16", "strips", "bfloat16", "avx512"),
        ("avx512_amx,-bf16", "bits", "int8", "avx512_vbmi2"),
        ("avx512_amx,-bf16", "tiles", "bfloat16", "avx512_amx"),
        ("avx512_amx,-vbmi2", "tiles", "int8", "scalar"),
        ("avx512_amx,-amx_int8", "tiles", "bfloat16", "scalar"),
        ("avx512_bf16,-vnni", "bits", "int8", "scalar"),
        ("avx512_bf16,-avx512", "strips", "bfloat16", "avx2"),
        ("avx512_bf16,-avx2", "strips", "bfloat16", "scalar"),
        ("scalar,vnni", "runs", "int8", "avx512_vnni"),
        ("avx512_bf16,-bf16,+bf16", "strips", "bfloat16", "avx512_bf16"),
    ],
)
def test_sets_that_are_no_preset(isa: str, packing: str, dtype: str, target: str) -> None:
    assert kernel(packing, dtype, 128, isa).endswith(f"_{SHORT[dtype]}_{target}")


def test_rows_are_supported_where_their_needs_are_met() -> None:
    here = set(_core.capabilities(_core.detected_isa()))
    for row in _core.kernels():
        assert row["supported"] == (set(row["needs"]) <= here)
        assert (row["needs"] == []) == (row["isa"] == "scalar")


def test_texts_are_read_back() -> None:
    for isa in (*_core.presets(), "native", _core.detected_isa(), _core.active_isa()):
        names = _core.capabilities(isa)
        assert _core.capabilities(",".join(["scalar", *names])) == names
    assert _core.presets()[0] == "scalar"
    assert _core.capabilities("scalar") == []
    assert set(_core.capabilities()) <= set(_core.capabilities(_core.detected_isa()))


@needs_x86
@pytest.mark.parametrize("text", ["mmx", "avx512,-sse9", "", "native,", "-avx512_vnni", "AVX2"])
def test_unknown_names_are_refused(text: str) -> None:
    with pytest.raises(
        ValueError, match=r"unknown ISA '.*': use native, scalar, avx2, .*bf16"
    ) as e:
        kernel("runs", "float32", 1, text)
    assert "\n" not in str(e.value)


def test_what_this_machine_lacks_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    every = "avx512_amx,amx_fp16"
    missing = {"avx2", "amx_fp16"} - set(_core.capabilities(_core.detected_isa()))
    if not missing:
        pytest.skip("this machine has every capability")
    with pytest.raises(ValueError, match=f"this processor lacks .*{max(missing)}.*; it has"):
        _core.capabilities(every)
    monkeypatch.setenv("SPARSE_ENGINE_ISA", every)
    with pytest.raises(UsageError, match="SPARSE_ENGINE_ISA: ISA avx512_amx,amx_fp16"):
        _core.active_isa()


@pytest.mark.parametrize("isa", [*_core.presets(), f"{_core.presets()[-1]},-avx2"])
def test_environment_forces_a_set(isa: str) -> None:
    code = (
        "from sparse_engine import _core\n"
        "print(_core.active_isa(), _core.linear_kernel('strips', 'bfloat16', 128))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, env={"SPARSE_ENGINE_ISA": isa}
    )
    assert done.stdout.split() == [
        isa if "," not in isa else "scalar",
        kernel("strips", "bfloat16", 128, isa),
    ]


def test_activations_have_one_list_of_names() -> None:
    assert set(_core.ACTIVATIONS) == set(reference.ACTIVATIONS)
    assert sorted(_core.ACTIVATIONS.values()) == list(range(len(_core.ACTIVATIONS)))
    assert {k["dtype"] for k in _core.kernels()} == set(_core.DTYPES)
