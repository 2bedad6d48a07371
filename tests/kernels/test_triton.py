"""The Triton kernels: on the interpreter, on a GPU if there is one, and compiled for sm_90.

Each has a process of its own: the interpreter patches triton for good; compiling fails after it.
"""

from __future__ import annotations

import importlib.util
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

TESTS = Path(__file__).parent
needs_triton = pytest.mark.skipif(
    importlib.util.find_spec("triton") is None, reason="triton is not installed"
)


def run_python(*args: str, **environment: str) -> None:
    """Run Python on `args`; its output is the message if it fails."""
    keep = {key: value for key, value in os.environ.items() if not key.startswith("TRITON_")}
    done = subprocess.run(
        [sys.executable, *args], env={**keep, **environment}, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stdout[-8000:] + done.stderr[-4000:]


CASES = ("bsr", "ell", "nm", "recurrent", "engine", "models", "packages")


def run_cases(name: str, **environment: str) -> None:
    options = ("-q", "--import-mode=importlib", "-p", "no:cacheprovider", "-W", "error")
    run_python("-m", "pytest", *options, str(TESTS / name), **environment)


@needs_triton
@pytest.mark.parametrize("name", CASES)
def test_cases_on_the_interpreter(name: str) -> None:
    run_cases(f"triton_{name}_cases.py", TRITON_INTERPRET="1")


@needs_triton
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")
@pytest.mark.parametrize("name", [*CASES, "device"])
def test_cases_on_the_gpu(name: str) -> None:
    run_cases(f"triton_{name}_cases.py")


@needs_triton
def test_compiles_without_a_gpu(tmp_path: Path) -> None:
    run_cases("triton_compile_cases.py", TRITON_CACHE_DIR=str(tmp_path))


@needs_triton
def test_launches_compile_without_a_gpu(tmp_path: Path) -> None:
    run_cases("triton_launch_cases.py", TRITON_CACHE_DIR=str(tmp_path))


@needs_triton
@pytest.mark.skipif(torch.cuda.is_available(), reason="a GPU is there")
def test_cpu_tensors_are_refused_with_the_way_out() -> None:
    from sparse_engine.kernels import linear_bsr

    ints = torch.zeros(2, dtype=torch.int32)
    with pytest.raises(ValueError, match=r"x is on cpu; Triton needs a GPU \(or TRITON_INTERPRET"):
        linear_bsr(torch.ones(1, 16), torch.ones(0, 16, 16), ints[:0], ints)


def test_top_level_folder_has_the_version_of_no_package() -> None:
    """Hugging Face has a package named kernels: in a checkout, ours has too low a version."""
    code = "import sys, kernels; print(kernels.__version__, 'triton' in sys.modules)"
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=TESTS.parent, capture_output=True, text=True
    )
    assert done.stdout.split() == ["0.0", "False"], done.stderr


def test_sparse_engine_imports_without_triton() -> None:
    run_python("-c", "import sys; sys.modules['triton'] = None; import sparse_engine")
