"""Time sparse layers with the patterns of the Deep Learning Matrix Collection (Gale et al., SC20).

    python bench/dlmc.py FOLDER [-m 128] [-o results.jsonl]

FOLDER is searched for .smtx and .smtx.gz files, also inside .tar.gz files. A file is a pattern
without values: "rows, cols, nnz", then the rows + 1 offsets, then the nnz columns. Values are
random; this engine's CSR runs in turn with dense torch and torch's own CSR, in float32.
"""

from __future__ import annotations

import argparse
import gzip
import json
import os
import tarfile
import zlib
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from pathlib import Path, PurePath
from statistics import geometric_mean

from sparse_engine import _core
from sparse_engine.bench.layer import Run
from sparse_engine.bench.linear import LinearLayer
from sparse_engine.bench.machine import conditions
from sparse_engine.bench.peer_hosts import PeerSet
from sparse_engine.bench.rows import LinearRow
from sparse_engine.bench.smtx import Smtx, parse_smtx
from sparse_engine.cli.common import console, progress_bar, run_script, set_threads
from sparse_engine.errors import UsageError

AGAINST = ("torch", "torch-csr")


def find_smtx(folder: Path) -> Iterator[tuple[PurePath, bytes]]:
    """Every pattern below `folder`, in order: its path and its text, still encoded."""
    if not folder.is_dir():
        raise UsageError(f"{folder} is not a folder")
    for path in sorted(folder.rglob("*")):
        name = path.relative_to(folder)
        try:
            if path.name.endswith(".smtx"):
                yield name, path.read_bytes()
            elif path.name.endswith(".smtx.gz"):
                yield name, gzip.decompress(path.read_bytes())
            elif path.name.endswith(".tar.gz"):
                with tarfile.open(path) as archive:
                    for member in archive:
                        stored = archive.extractfile(member) if member.isfile() else None
                        if stored is not None and member.name.endswith(".smtx"):
                            yield name / member.name, stored.read()
        except (OSError, EOFError, zlib.error, tarfile.TarError) as error:
            raise UsageError(f"{path}: {error}") from error


def stated_sparsity(name: PurePath, pattern: Smtx) -> float:
    """The sparsity that the folder's name states, else the pattern's own, to two digits."""
    try:
        stated = float(name.parent.name)
    except ValueError:
        stated = -1.0
    if 0 <= stated < 1:
        return stated
    return round(1 - len(pattern.columns) / (pattern.rows * pattern.cols), 2)


def short(name: PurePath) -> str:
    """A file's name without what all of the collection's names have in common."""
    stem = name.name.partition(".smtx")[0]
    return stem.removeprefix("body_").removesuffix("_fully_connected")


def table(rows: Sequence[tuple[str, float, LinearRow]]) -> str:
    """A Markdown row a matrix, then the geometric means by sparsity."""
    head = ["matrix", "shape", "sparsity", "us", "dense us", "torch-csr us", "x dense", "x csr"]
    lines = ["| " + " | ".join(head) + " |", "| :-- | :-- |" + " --: |" * 6]
    groups: dict[float, list[LinearRow]] = {}
    for name, sparsity, row in rows:
        csr = row.peers.get("torch-csr")
        cells = [name, f"{row.n}x{row.k}", f"{sparsity:g}", f"{row.time_us:.0f}"]
        cells += [f"{row.dense_time_us:.0f}", f"{csr:.0f}" if csr else "-"]
        cells += [f"{row.speedup:.2f}", f"{csr / row.time_us:.2f}" if csr else "-"]
        lines.append("| " + " | ".join(cells) + " |")
        groups.setdefault(sparsity, []).append(row)
    lines += ["", "| sparsity | matrices | x dense | x csr |", "| --: | --: | --: | --: |"]
    for sparsity, group in sorted(groups.items()):
        over_csr = [r.peers["torch-csr"] / r.time_us for r in group if "torch-csr" in r.peers]
        means = [geometric_mean([r.speedup for r in group])]
        means += [geometric_mean(over_csr)] if over_csr else []
        shown = [f"{mean:.2f}" for mean in means] + ["-"] * (2 - len(means))
        lines.append(f"| {sparsity:g} | {len(group)} | {shown[0]} | {shown[1]} |")
    return "\n".join(lines)


def main(arguments: Sequence[str] | None = None) -> None:
    """Read every pattern, measure it, print the table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("folder", type=Path)
    parser.add_argument("-m", type=int, default=128, help="tokens")
    parser.add_argument(
        "-o", "--out", type=Path, help="JSON lines: conditions, then a line a matrix"
    )
    parser.add_argument("--match", default="", help="only files with this in their path")
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--threads", type=int)
    given = parser.parse_args(arguments)
    if given.m < 1 or given.rounds < 1:
        raise UsageError("-m and --rounds must be 1 or more")
    set_threads(given.threads)
    total = sum(given.match in str(name) for name, _ in find_smtx(given.folder))
    if not total:
        raise UsageError(
            f"{given.folder}: no .smtx or .smtx.gz file with {given.match!r} in its path"
        )
    peaks = {"float32": _core.peak_gflops("float32")}
    rows: list[tuple[str, float, LinearRow]] = []
    with (
        PeerSet(AGAINST) as peer_set,
        progress_bar("measuring") as report,
        (given.out or Path(os.devnull)).open("w") as out,
    ):
        print(json.dumps({"conditions": conditions()}), file=out)
        for name, text in find_smtx(given.folder):
            if given.match not in str(name):
                continue
            report(len(rows), total, name.name)
            pattern = parse_smtx(text.decode("ascii", "replace"), str(name))
            layer = LinearLayer(pattern.weight(), "csr", "float32")
            row = layer.measure(given.m, Run(peer_set, peaks, given.rounds))
            stated = stated_sparsity(name, pattern)
            rows.append((short(name), stated, row))
            line = {"file": str(name), "stated_sparsity": stated, **asdict(row)}
            print(json.dumps(line), file=out, flush=True)
    print(table(rows))
    console.print(", ".join(f"{key} {value}" for key, value in conditions().items()), style="dim")


if __name__ == "__main__":
    run_script(main)
