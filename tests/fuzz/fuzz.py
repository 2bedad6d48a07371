"""Packages that are mutated and sealed again with right hashes, loaded and run, in child processes.

python tests/fuzz/fuzz.py --mutations 2000 --seed 0     (or: make fuzz MUTATIONS=2000 SEED=0)
python tests/fuzz/fuzz.py --seed 0 --only 1234          one of them, here, with its traceback

A mutation may be refused by one line of ours, or compute whatever it says. What is a finding: any
other error, a crash, a hang, more memory than LIMIT. The same seed gives the same mutations.
"""

from __future__ import annotations

import argparse
import faulthandler
import logging
import os
import resource
import select
import shutil
import subprocess
import sys
import tempfile
import threading
import traceback
import warnings
from collections import Counter
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from random import Random
from typing import Any

SECONDS = 30
LIMIT = 1 << 30
REFUSED = ("InvalidFileError", "UsageError", "UnsupportedModelError", "InputError")


class Fuzzer:
    """All packages below `root`, and what becomes of mutation number `index`."""

    def __init__(self, root: Path, seed: int) -> None:
        import fuzz_mutate
        import fuzz_packages

        self.seed, self.mutate = seed, fuzz_mutate
        self.cases = list(fuzz_packages.make(root).values())

    def make(self, index: int, folder: Path) -> tuple[Any, str]:
        """Write mutation `index`; returns the kind of package and what was changed."""
        random = Random(f"{self.seed} {index}")
        case = self.cases[index % len(self.cases)]
        package = self.mutate.Package(case.folder)
        told = self.mutate.mutate(package, random)
        package.write(folder)
        return case, f"{case.folder.name}: {told}"

    def run(self, index: int, folder: Path) -> None:
        """Write mutation `index`, load it and compute with it."""
        import torch

        case, _ = self.make(index, folder)
        torch.manual_seed(index)
        case.run(folder)
        import sparse_engine as se

        se.io.inspect(folder)


def outcome(run: Callable[[], None]) -> str:
    """ "ran", "refused ..." or "finding ..." of what was done, on one line."""
    try:
        run()
    except Exception as error:
        name, told = type(error).__name__, str(error)
        if name in REFUSED and told.strip():
            return f"refused {name}: {told[:200]}"
        where = [
            f"{Path(f.filename).name}:{f.lineno}" for f in traceback.extract_tb(error.__traceback__)
        ]
        return f"finding {name}: {told[:300]!r} at {' > '.join(where[-5:])}"
    return "ran"


def child(root: Path, seed: int, limited: bool) -> None:
    """Answer each number on stdin with its outcome on stdout."""
    warnings.simplefilter("ignore")
    logging.disable(logging.CRITICAL)
    os.environ["SPARSE_ENGINE_CACHE"] = ""
    answers = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)
    fuzzer = Fuzzer(root, seed)
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch) / "package"
        for case in fuzzer.cases:  # whatever is imported or kept is there before memory is bounded
            case.run(case.folder)
        if limited:
            pages = int(Path("/proc/self/statm").read_text().split()[0])
            bound = pages * resource.getpagesize() + LIMIT
            resource.setrlimit(resource.RLIMIT_AS, (bound, bound))
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
        print("ready", file=answers)
        for line in sys.stdin:
            index = int(line)
            faulthandler.dump_traceback_later(SECONDS, exit=True)
            told = outcome(lambda index=index: fuzzer.run(index, folder))  # type: ignore[misc]
            faulthandler.cancel_dump_traceback_later()
            print(" ".join(told.split()), file=answers)
            shutil.rmtree(folder, ignore_errors=True)


class Worker:
    """A child process that is started anew whenever it dies."""

    def __init__(self, command: list[str], seconds: float) -> None:
        self.command, self.seconds = command, seconds
        self.process: subprocess.Popen[str] | None = None
        self.errors: Any = None

    def start(self) -> subprocess.Popen[str]:
        """The child, ready for a number."""
        self.errors = tempfile.TemporaryFile("w+")  # noqa: SIM115
        pipe = subprocess.PIPE
        self.process = subprocess.Popen(
            [*self.command], stdin=pipe, stdout=pipe, stderr=self.errors, text=True, bufsize=1
        )
        assert self.process.stdout is not None
        if self.process.stdout.readline() != "ready\n":
            raise RuntimeError(f"the child does not start:\n{self.last_words()}")
        return self.process

    def ask(self, index: int) -> str:
        """The outcome of a mutation; of a child that died or hung, what is known of it."""
        process = self.process or self.start()
        assert process.stdin is not None
        assert process.stdout is not None
        process.stdin.write(f"{index}\n")
        ready, _, _ = select.select([process.stdout], [], [], self.seconds)
        answer = process.stdout.readline() if ready else ""
        if answer:
            return answer.strip()
        process.kill()
        code = process.wait()
        self.process = None
        return f"finding {'hang' if not ready else f'exit {code}'}: {self.last_words()}"

    def last_words(self) -> str:
        """The end of what the child wrote to stderr."""
        self.errors.seek(0)
        return " | ".join(self.errors.read().split("\n")[-25:])

    def stop(self) -> None:
        """End the child."""
        if self.process is not None:
            self.process.kill()
            self.process.wait()


def fuzz(
    command: list[str],
    indices: Iterable[int],
    jobs: int,
    seconds: float,
    tell: Callable[[int, str], None],
) -> None:
    """Tell the outcome of each index, from `jobs` children of `command` at a time."""
    left = iter(indices)
    lock = threading.Lock()

    def work() -> None:
        worker = Worker(command, seconds)
        try:
            while True:
                with lock:
                    index = next(left, None)
                if index is None:
                    return
                outcome = worker.ask(index)
                with lock:
                    tell(index, outcome)
        finally:
            worker.stop()

    with ThreadPoolExecutor(jobs) as pool:
        started = [pool.submit(work) for _ in range(jobs)]
    for worker in started:
        worker.result()  # raises what ended it


def use(site: Path) -> None:
    """Import the library from `site`, whatever is installed."""
    editable = "ScikitBuildRedirectingFinder"
    sys.meta_path[:] = [f for f in sys.meta_path if type(f).__name__ != editable]
    sys.path.insert(0, str(site))
    from sparse_engine import _core

    if not str(_core.__file__).startswith(str(site)):
        raise SystemExit(f"the library is {_core.__file__}, not below {site}")


def main() -> int:
    """Fuzz, and print what was found; 1 if there is anything."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--mutations", type=int, default=2000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--first", type=int, default=0, help="number of the first mutation")
    parser.add_argument("--jobs", type=int, default=min(2, os.cpu_count() or 1))
    parser.add_argument("--only", type=int, help="run one mutation in this process")
    parser.add_argument("--site", type=Path, help="a build with sanitizers: memory is not limited")
    parser.add_argument("--verbose", action="store_true", help="print every outcome")
    parser.add_argument("--root", type=Path, help="keep the valid packages here")
    parser.add_argument("--child", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.site is not None:
        use(options.site)
    if options.child:
        child(options.root, options.seed, options.site is None)
        return 0
    with tempfile.TemporaryDirectory() as scratch:
        root = options.root or Path(scratch) / "valid"
        root.mkdir(exist_ok=True)
        fuzzer = Fuzzer(root, options.seed)
        folder = Path(scratch) / "package"
        if options.only is not None:
            print(fuzzer.make(options.only, folder)[1])
            fuzzer.run(options.only, folder)
            return 0
        command = [sys.executable, __file__, "--child", "--root", str(root)]
        command += ["--seed", str(options.seed)] + (
            ["--site", str(options.site)] if options.site else []
        )
        counts: Counter[str] = Counter()

        def tell(index: int, told: str) -> None:
            counts[told.split()[0]] += 1
            if told.startswith("finding"):
                shutil.rmtree(folder, ignore_errors=True)
                print(f"{index} {fuzzer.make(index, folder)[1]}\n    {told}", flush=True)
            elif options.verbose:
                print(f"{index} {told}", flush=True)

        indices = range(options.first, options.first + options.mutations)
        fuzz(command, indices, options.jobs, SECONDS + 10, tell)
        print(", ".join(f"{counts[kind]} {kind}" for kind in ("ran", "refused", "finding")))
        if counts.total() < options.mutations:
            print(f"{options.mutations - counts.total()} mutations did not run", file=sys.stderr)
            return 1
    return 1 if counts["finding"] else 0


if __name__ == "__main__":
    sys.exit(main())
