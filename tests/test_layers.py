"""Who may import whom, read from the source: the house has floors, and imports only look down."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
# Room -> rooms it may import at the top of a module. A room is the first name below sparse_engine.
ALLOWED = {
    "errors": set(),
    "formats": {"_core", "errors"},
    "packings": {"_core", "errors", "formats"},
    "config": {"errors", "formats"},
    "ops": {"_core", "errors", "formats", "packings", "kernels"},
    "choices": set(),
    "gpu_timer": set(),
    "choose": {"_core", "choices", "config", "formats", "gpu_timer", "ops", "packings", "errors"},
    "choose_network": {"gpu_timer"},
    "nn": {
        "_core",
        "as_built",
        "choose",
        "config",
        "effective",
        "eligible",
        "errors",
        "experts",
        "formats",
        "gpu_timer",
        "linears",
        "models",
        "ops",
        "packings",
    },
    "linears": set(),
    "experts": {"linears"},
    "eligible": {"errors"},
    "as_built": {"eligible"},
    "frozen": set(),
    "effective": {"errors"},
    "blocks": {"as_built", "errors", "models", "nn"},
    "semi_structured": {"choose", "gpu_timer"},
    "twins": {"experts", "gpu_timer", "nn"},
    "sparsify_report": {"census", "nn", "twins"},
    "swap": {
        "choose",
        "choose_network",
        "config",
        "errors",
        "linears",
        "nn",
        "semi_structured",
        "sparsify_report",
        "twins",
    },
    "sparsify": {
        "blocks",
        "config",
        "effective",
        "eligible",
        "errors",
        "frozen",
        "linears",
        "nn",
        "semi_structured",
        "sparsify_report",
        "swap",
        "twins",
    },
    "census": {"linears", "nn", "semi_structured"},
    "models": {"errors"},
    "pruning": {
        "census",
        "effective",
        "eligible",
        "errors",
        "experts",
        "formats",
        "inputs",
        "linears",
        "models",
        "ops",
    },
    "inputs": {"errors"},
    "text": {"errors", "inputs", "io"},
    "io": {
        "_core",
        "blocks",
        "census",
        "choose",
        "config",
        "effective",
        "errors",
        "formats",
        "inputs",
        "linears",
        "models",
        "nn",
        "ops",
        "packings",
        "semi_structured",
        "sparsify",
        "sparsify_report",
        "twins",
    },
    "bench": {
        "_core",
        "choose",
        "config",
        "errors",
        "formats",
        "io",
        "nn",
        "ops",
        "packings",
        "sparsify",
    },
    "tasks": {"errors", "inputs", "io", "text"},
    "serve": {"errors", "io", "nn", "tasks"},
    "demo": {
        "_core",
        "bench",
        "config",
        "errors",
        "io",
        "pruning",
        "serve",
        "sparsify",
        "tasks",
        "text",
        "nn",
    },
    "cli": None,  # the roof: may import everything
    "__init__": None,
    "__main__": None,
}
# Modules that are themselves imported only where transformers is at hand.
LATE = {"cache.py", "rnn.py"}
HEAVY = {
    "transformers",
    "tokenizers",
    "triton",
    "fastapi",
    "uvicorn",
    "matplotlib",
    "prometheus_client",
}


def modules() -> list[Path]:
    return sorted((ROOT / "sparse_engine").rglob("*.py"))


def room(path: Path) -> str:
    return path.relative_to(ROOT / "sparse_engine").parts[0].removesuffix(".py")


def imports(path: Path, top_only: bool) -> set[str]:
    """Absolute names that a module imports; relative imports are resolved."""
    tree = ast.parse(path.read_text())
    nodes = tree.body if top_only else list(ast.walk(tree))
    found: set[str] = set()
    for node in nodes:
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.level == 0 and node.module:
            found |= {f"{node.module}.{alias.name}" for alias in node.names}
    return found


@pytest.mark.parametrize("path", modules(), ids=lambda p: str(p.relative_to(ROOT)))
def test_imports_look_down(path: Path) -> None:
    own = room(path)
    assert own in ALLOWED, f"give {own} a place in ALLOWED"
    allowed = ALLOWED[own]
    for name in imports(path, top_only=True):
        parts = name.split(".")
        heavy = own == "serve" or path.name in LATE
        assert parts[0] not in HEAVY or heavy, f"{path.name} imports {name} at the top"
        if parts[0] == "sparse_engine" and allowed is not None and len(parts) > 1:
            assert parts[1] == own or parts[1] in allowed, f"{own} imports {name}"


def test_kernels_know_nothing_of_the_project() -> None:
    for path in (ROOT / "kernels").glob("*.py"):
        for name in imports(path, top_only=False):
            assert name.split(".")[0] in {
                "__future__",
                "collections",
                "dataclasses",
                "functools",
                "math",
                "torch",
                "triton",
                "typing",
            }


def test_csrc_knows_python_only_in_bindings() -> None:
    for path in (ROOT / "csrc").rglob("*"):
        if path.suffix in {".h", ".cc", ".inc"} and "bindings" not in path.parts:
            text = path.read_text()
            assert "pybind11" not in text, path
            assert "Python.h" not in text, path
            assert "torch/" not in text, path


def test_isa_files_use_no_standard_library() -> None:
    """Templates of the standard library, built with an ISA's flags, would leak into the program."""
    allowed = {"<immintrin.h>", "<cstdint>", "<cmath>", "<cstring>"}
    names = {"scalar", "avx2", "avx512", "avx512_vnni", "avx512_vbmi2", "avx512_bf16"}
    files = [p for p in (ROOT / "csrc").rglob("*") if p.stem in names or p.name.endswith(".inl.h")]
    assert len(files) >= 12
    for path in files:
        for line in path.read_text().splitlines():
            if line.startswith("#include <"):
                assert line.split()[1] in allowed, f"{path}: {line}"
