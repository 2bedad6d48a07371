"""Who may import whom, read from the source: the house has floors, and imports only look down."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

from sparse_engine.backends import BACKENDS
from sparse_engine.formats import FORMATS

ROOT = Path(__file__).parents[1]
# Room -> rooms that its modules may import, also inside functions. A room is the first name below
# sparse_engine.
ALLOWED = {
    "errors": set(),
    "reporting": {"errors"},
    "formats": {"_core", "errors"},
    "packings": {"_core", "errors", "formats", "kernels"},
    "config": {"errors", "formats"},
    "backends": {"_core", "errors", "formats", "packings", "kernels"},
    "ops": {"backends", "errors", "formats"},
    "auto": {"_core", "backends", "config", "errors", "formats", "ops"},
    "modules": {"errors"},
    "models": {"errors"},
    "named": {"errors"},
    "structures": {"errors", "models", "modules", "named"},
    "nn": {
        "_core",
        "auto",
        "backends",
        "config",
        "errors",
        "formats",
        "kernels",
        "models",
        "modules",
        "ops",
        "packings",
        "structures",
    },
    "convert": {
        "auto",
        "backends",
        "config",
        "errors",
        "models",
        "modules",
        "nn",
        "reporting",
        "structures",
    },
    "pruning": {
        "auto",
        "backends",
        "config",
        "convert",
        "errors",
        "formats",
        "models",
        "modules",
        "named",
        "nn",
        "ops",
        "reporting",
        "structures",
    },
    "training": {"errors", "modules", "named", "pruning", "reporting", "structures"},
    "tuning": {
        "convert",
        "errors",
        "io",
        "modules",
        "pruning",
        "reporting",
        "structures",
        "training",
    },
    "analysis": {
        "backends",
        "config",
        "convert",
        "errors",
        "modules",
        "pruning",
        "reporting",
    },
    "io": {
        "_core",
        "backends",
        "convert",
        "errors",
        "formats",
        "models",
        "modules",
        "named",
        "nn",
        "ops",
        "packings",
        "structures",
    },
    "streaming": {"_core", "config", "convert", "errors", "formats", "io", "modules", "pruning"},
    "text": {"errors", "io", "models"},
    "vocabulary": {"errors", "io", "models", "modules", "named", "structures", "text"},
    "generation": {"errors"},
    "tasks": {"errors", "generation", "io", "models", "reporting", "text"},
    "bench": {
        "_core",
        "auto",
        "backends",
        "config",
        "convert",
        "errors",
        "formats",
        "generation",
        "io",
        "nn",
        "ops",
        "packings",
        "reporting",
        "tasks",
    },
    "serve": {"errors", "generation", "io", "nn", "tasks"},
    "demo": {
        "_core",
        "bench",
        "config",
        "convert",
        "errors",
        "io",
        "pruning",
        "reporting",
        "tasks",
        "text",
    },
    "cli": None,  # the top: may import everything
    "__init__": None,
    "__main__": None,
}
# Modules that are themselves imported only where transformers is at hand.
LATE = {"nn/native/cache.py", "models/rnn.py", "training/transformers.py"}
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
            found |= {f"{alias.name}." for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.level == 0 and node.module:
            found |= {f"{node.module}.{alias.name}" for alias in node.names}
    return found


@pytest.mark.parametrize("path", modules(), ids=lambda p: str(p.relative_to(ROOT)))
def test_imports_look_down(path: Path) -> None:
    own = room(path)
    assert own in ALLOWED, f"give {own} a place in ALLOWED"
    allowed = ALLOWED[own]
    for name in imports(path, top_only=True):
        heavy = own == "serve" or path.relative_to(ROOT / "sparse_engine").as_posix() in LATE
        assert name.split(".")[0] not in HEAVY or heavy, f"{path.name} imports {name} at the top"
    for name in imports(path, top_only=False):
        parts = name.split(".")
        if parts[0] != "sparse_engine" or allowed is None or parts[1] == "__version__":
            continue
        assert parts[1] == own or parts[1] in allowed, f"{own} imports {name}"


def test_no_room_reaches_itself() -> None:
    for room in ALLOWED:
        below, new = set(), set(ALLOWED[room] or ())
        while new:
            below |= new
            new = {deeper for name in new for deeper in ALLOWED.get(name) or ()} - below
        assert room not in below, f"{room} imports itself through {sorted(below)}"


def module_graph() -> dict[str, set[str]]:
    """Each module with the modules that it imports, also in functions and for type checking.

    A name that a package's __init__ re-exports counts as an import of the package. Names of the
    root package, such as the native library, do not count: it imports all others lazily.
    """
    files = {".".join(path.relative_to(ROOT).with_suffix("").parts): path for path in modules()}
    files = {name.removesuffix(".__init__"): path for name, path in files.items()}
    graph = {}
    for name, path in files.items():
        found = set()
        for imported in imports(path, top_only=False):
            imported = imported.removesuffix(".")
            found.add(imported if imported in files else imported.rpartition(".")[0])
        graph[name] = (found & files.keys()) - {name, "sparse_engine"}
    return graph


def circle_of(graph: dict[str, set[str]]) -> list[str]:
    """Modules that import each other, in order; empty if there are none."""
    done: set[str] = set()

    def follow(name: str, path: list[str]) -> list[str]:
        if name in path:
            return path[path.index(name) :]
        if name in done:
            return []
        for imported in sorted(graph[name]):
            if circle := follow(imported, [*path, name]):
                return circle
        done.add(name)
        return []

    return next(filter(None, (follow(name, []) for name in graph)), [])


def test_no_modules_import_each_other() -> None:
    graph = module_graph()
    assert graph["sparse_engine.io.reader"] >= {
        "sparse_engine.io.package",
        "sparse_engine.backends",
    }
    assert circle_of({"a": {"b"}, "b": {"c"}, "c": {"b"}}) == ["b", "c"]
    assert circle_of({"a": {"b", "c"}, "b": {"c"}, "c": set()}) == []
    assert circle_of(graph) == []


# Modules outside of backends/ and packings/ that name a kind of device, and why they may.
DEVICE_EXCEPTIONS = {
    "modules/placeholder.py": "answers is_cpu and is_cuda in place of a tensor",
    "nn/recurrent/native.py": "native code reads and writes memory of the CPU in place",
    "training/modifiers/distil.py": "torch.autocast is switched off by the kind of device",
}


def device_questions(path: Path) -> list[str]:
    """Expressions that ask what kind of device, or which packing, something has."""
    packings = {cls.__name__ for backend in BACKENDS for cls in backend.packings}
    packings -= {cls.__name__ for cls in FORMATS}
    found = []
    for node in ast.walk(ast.parse(path.read_text())):
        text = ast.unparse(node)
        if isinstance(node, ast.Attribute):
            asks = node.attr in ("is_cuda", "is_cpu") or text.endswith("device.type")
        elif isinstance(node, ast.Constant):
            asks = node.value == "cuda"
        elif isinstance(node, ast.Call) and text.startswith(("isinstance(", "issubclass(")):
            names = {n.id for n in ast.walk(node.args[1]) if isinstance(n, ast.Name)}
            asks = bool(names & packings)
        else:
            continue
        if asks:
            found.append(f"line {node.lineno}: {text}")
    return found


@pytest.mark.parametrize("path", modules(), ids=lambda p: str(p.relative_to(ROOT)))
def test_only_backends_ask_for_devices_and_packings(path: Path) -> None:
    inside = path.relative_to(ROOT / "sparse_engine").as_posix()
    if room(path) not in ("backends", "packings") and not inside.startswith(
        tuple(DEVICE_EXCEPTIONS)
    ):
        assert device_questions(path) == [], "ask the backend: sparse_engine/backends/base.py"


def test_device_questions_are_seen(tmp_path: Path) -> None:
    (tmp_path / "asks.py").write_text(
        "x.is_cuda\nx.device.type == 'cuda'\nisinstance(p, Runs | Ell)\nisinstance(p, SellP)\n"
    )
    found = device_questions(tmp_path / "asks.py")
    assert sorted(line[:7] for line in found) == ["line 1:", "line 2:", "line 2:", "line 3:"]


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
    names = {
        *("scalar", "avx2", "avx512", "avx512_vnni", "avx512_vbmi2", "avx512_bf16"),
        "avx512_amx",
    }
    files = [p for p in (ROOT / "csrc").rglob("*") if p.stem in names or p.name.endswith(".inl.h")]
    assert len(files) >= 12
    for path in files:
        for line in path.read_text().splitlines():
            if line.startswith("#include <"):
                assert line.split()[1] in allowed, f"{path}: {line}"
