"""Run the kernel tests and mutated packages on a build with AddressSanitizer and UBSan.

python tests/sanitize.py                                  (or: make sanitize)
python tests/sanitize.py --mutations 300 tests/nn/test_recurrent_steps.py     (only these tests)
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[1]
SITE = ROOT / "build" / "sanitize"
TESTS = (
    "tests/nn/test_conv1d.py",
    "tests/native/test_kernels.py",
    "tests/native/test_half_runs.py",
    "tests/native/test_tiles.py",
    "tests/native/test_stack_tiles.py",
    "tests/ops/test_ops.py",
    "tests/packings/test_packings.py",
    "tests/nn/test_recurrent.py",
    "tests/nn/test_recurrent_native.py",
    "tests/nn/test_recurrent_steps.py",
    "tests/nn/test_recurrent_threads.py",
    "tests/native/test_stack.py",
    "tests/native/test_stack_cache.py",
    "tests/models/test_encoder_models.py",
    "tests/models/test_decoder_models.py",
    "tests/models/test_seq2seq_models.py",
)
MUTATIONS = 2000
SECONDS = 2 * 3600  # limit for the tests, and for the mutations


def build() -> None:
    """Install the project with sanitizers into build/sanitize."""
    command = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--upgrade"]
    command += ["--target", str(SITE), "-C", "cmake.define.SE_SANITIZE=ON"]
    command += ["-C", f"build-dir={ROOT / 'build' / 'sanitize-objects'}", str(ROOT)]
    subprocess.run(command, check=True)


def library(name: str) -> str:
    """Path of a compiler's run-time library."""
    compiler = os.environ.get("CXX", "c++")
    found = subprocess.run([compiler, f"-print-file-name={name}"], capture_output=True, text=True)
    return found.stdout.strip()


def run(tests: list[str], mutations: int) -> int:
    """Run the tests in a process that preloads the sanitizers; a report of theirs fails it."""
    code = (
        "import sys, pytest\n"
        "editable = 'ScikitBuildRedirectingFinder'\n"
        "sys.meta_path[:] = [f for f in sys.meta_path if type(f).__name__ != editable]\n"
        f"sys.path.insert(0, {str(SITE)!r})\n"
        "import sparse_engine._core as core\n"
        f"assert core.__file__.startswith({str(SITE)!r}), core.__file__\n"
        f"sys.exit(pytest.main(['-q', '-p', 'no:cacheprovider', *{tests!r}]))\n"
    )
    env = {
        **os.environ,
        "LD_PRELOAD": f"{library('libasan.so')} {library('libubsan.so')}",
        "ASAN_OPTIONS": "detect_leaks=0",  # Python does not free everything at exit
        "UBSAN_OPTIONS": "print_stacktrace=1:halt_on_error=1",
        "OMP_NUM_THREADS": "2",
    }
    fuzz = ["tests/fuzz/fuzz.py", "--site", str(SITE), "--mutations", str(mutations)]
    for arguments in (["-c", code], fuzz):
        command = [sys.executable, *arguments]
        try:
            status = subprocess.run(command, cwd=ROOT, env=env, timeout=SECONDS).returncode
        except subprocess.TimeoutExpired:
            print(f"{' '.join(arguments[:1])}: still running after {SECONDS} s", file=sys.stderr)
            status = 1
        if status:
            return status
    return 0


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description="Tests and mutations under ASan and UBSan.")
    parser.add_argument("tests", nargs="*", default=list(TESTS))
    parser.add_argument("--mutations", type=int, default=MUTATIONS)
    options = parser.parse_args()
    build()
    sys.exit(run(options.tests, options.mutations))
