"""sparse-engine info: the machine, its kernels, and those in use."""

from __future__ import annotations

import os
import platform
from importlib.metadata import PackageNotFoundError, version

from sparse_engine import __version__

# Distribution -> purpose.
OPTIONAL = {
    "transformers": "Hugging Face models (extra: hf)",
    "tokenizers": "text (extra: hf)",
    "triton": "GPU kernels (extra: gpu)",
    "fastapi": "serve (extra: serve)",
    "matplotlib": "charts (extra: bench)",
    "onnxruntime": "a peer in benchmarks (extra: bench)",
    "openvino": "a peer in benchmarks (extra: bench)",
}


def info() -> None:
    """Show the processor, the instruction set found and chosen, every kernel, and the extras.

    SPARSE_ENGINE_ISA=avx2 forces a preset: scalar, avx2, avx512, avx512_vnni, avx512_vbmi2,
    avx512_bf16, avx512_fp16, avx512_amx or native. It may add and subtract capabilities:
    "native,-bf16", "avx512,vnni".
    """
    import torch
    from rich.table import Table

    from sparse_engine import _core
    from sparse_engine.reporting.tables import add_columns, heading, new_table, show

    active = _core.active_isa()
    forced = os.environ.get("SPARSE_ENGINE_ISA")
    facts = Table(show_header=False, box=None)
    facts.add_row("sparse_engine", __version__)
    facts.add_row("python, torch", f"{platform.python_version()}, {torch.__version__}")
    facts.add_row("processor", f"{_core.cpu_name()}, {os.cpu_count()} cores")
    facts.add_row("threads", str(torch.get_num_threads()))
    why = "forced" if forced else "detected"
    if not forced and active != _core.detected_isa():
        why = "detected, without bf16: its products are slower here than float32's"
    facts.add_row("ISA", f"{active} ({why})")
    facts.add_row("capabilities", ", ".join(_core.capabilities()) or "none")
    if _core.tiles_refused():
        facts.add_row("AMX", "the processor has it, the operating system or container refuses it")
    cuda = torch.cuda.get_device_name() if torch.cuda.is_available() else "none"
    facts.add_row("CUDA device", cuda)
    for name, purpose in OPTIONAL.items():
        facts.add_row(name, f"{_version(name)}  [dim]{purpose}")
    show(facts)
    table = new_table(tight=True)
    add_columns(table, "op|packing|dtype|ISA|kernel")
    used = {
        _core.linear_kernel(k["packing"], k["dtype"], 1 if k["op"] == "spmv" else 128)
        for k in _core.kernels()
    }
    for k in _core.kernels():
        mark = "*" if k["name"] in used else " "
        style = None if k["supported"] else "dim"
        isa = k["isa"] if k["supported"] else f"{k['isa']} (not on this machine)"
        table.add_row(k["op"], k["packing"], k["dtype"], isa, f"{mark} {k['name']}", style=style)
    show(heading("CPU kernels, best first; * = in use"), table)


def _version(name: str) -> str:
    try:
        return version(name)
    except PackageNotFoundError:
        return "not installed"
