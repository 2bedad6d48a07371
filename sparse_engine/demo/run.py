"""The steps of the demo, each a call that a user could make."""

from __future__ import annotations

import copy
import json
import shutil
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from time import perf_counter

import torch
from rich.console import Console
from torch import nn

from sparse_engine import _core
from sparse_engine.bench.model import run_worker
from sparse_engine.bench.timing import time_in_turn
from sparse_engine.bench.worker import random_inputs
from sparse_engine.config import SparseConfig
from sparse_engine.convert.sparsify import sparsify_
from sparse_engine.demo.data import model_folder, paragraphs
from sparse_engine.demo.report import DemoRow, chart, table
from sparse_engine.demo.server import query_server
from sparse_engine.errors import VerificationError
from sparse_engine.io import is_package, load, load_pretrained, save
from sparse_engine.pruning import prune
from sparse_engine.tasks import Embedder
from sparse_engine.text.calibration import calibration_batches
from sparse_engine.text.tokenizer import load_tokenizer

# Sparsity and granularity of each variant.
VARIANTS = ((0.7, "element"), (0.9, "element"), (0.8, "4x1"))
BATCH, LENGTH = 1, 128
CALIBRATION_TEXTS, TEST_TEXTS = 768, 256


def run(out: Path, model: Path | None = None, console: Console | None = None) -> list[DemoRow]:
    """Run the demo; writes package-*, results.json and chart.png into `out`, over earlier ones."""
    console, threads = console or Console(), torch.get_num_threads()
    folder = model or model_folder()
    calibration, evaluation = paragraphs()
    calibration, evaluation = calibration[:CALIBRATION_TEXTS], evaluation[:TEST_TEXTS]
    dense, _ = load_pretrained(folder)
    name = f"{folder.parent.name}/{folder.name}" if model else "all-MiniLM-L6-v2"
    console.print(
        f"[bold]{name}[/]: {sum(p.numel() for p in dense.parameters()) / 1e6:.1f} M parameters; "
        f"{len(calibration)} paragraphs for calibration, {len(evaluation)} others for evaluation"
    )
    batches = calibration_batches(calibration, load_tokenizer(folder), dense, LENGTH)
    truth = Embedder(dense, folder).embed(evaluation)
    dense_memory = run_worker(folder, "torch", BATCH, LENGTH, 3, threads)["resident_mb"]
    out.mkdir(parents=True, exist_ok=True)
    for old in out.glob("package-*"):  # packages of an earlier demo; other files stay
        if is_package(old):
            shutil.rmtree(old)

    rows = []
    for sparsity, pattern in VARIANTS:
        title = f"{sparsity:.0%} {pattern}"
        pruned = copy.deepcopy(dense)
        start = perf_counter()
        with _bar(console, f"pruning {title}") as report:
            done = prune(
                pruned, sparsity, pattern, "sparsegpt", "least_squares", batches, progress=report
            )
        seconds = perf_counter() - start
        sparse = copy.deepcopy(pruned)
        with _bar(console, f"converting {title}") as report:
            config = SparseConfig(tokens=(BATCH * LENGTH,))
            summary = sparsify_(sparse, config, progress=report)
        package = out / f"package-{sparsity:.0%}-{pattern}".replace("%", "")
        save(sparse, package, report=summary, recipe=done.to_dict(), source=folder)
        sparse = load(package)
        error = _verify(sparse, pruned)
        cosine = torch.cosine_similarity(Embedder(sparse, folder).embed(evaluation), truth).mean()
        with console.status(f"timing {title}"):
            times = _time(pruned, sparse)
            memory = run_worker(package, "sparse_engine", BATCH, LENGTH, 3, threads)["resident_mb"]
        formats = Counter(row.format for row in summary.rows)
        rows.append(
            DemoRow(
                pattern=pattern,
                sparsity=sparsity,
                format=", ".join(f"{n} {spec}" for spec, n in formats.most_common()),
                dense_ms=times["dense"] * 1e3,
                sparse_ms=times["sparse"] * 1e3,
                dense_disk_mb=_megabytes(folder),
                disk_mb=_megabytes(package),
                dense_linear_mb=sum(row.dense_bytes for row in summary.rows) / 1e6,
                linear_mb=sum(row.bytes for row in summary.rows) / 1e6,
                dense_resident_mb=dense_memory,
                resident_mb=memory,
                cosine=float(cosine),
                max_rel_err=error,
                prune_seconds=seconds,
            )
        )
        console.print(
            f"  {title}: pruned in {seconds:.0f} s, {rows[-1].speedup:.2f}x, "
            f"cosine {rows[-1].cosine:.3f}, outputs verified (error {error:.0e})"
        )
    with console.status("serving"):
        url, answer = query_server(package, evaluation[0], threads)
    expected = Embedder(load(package), folder).embed(evaluation[:1])[0]
    if not torch.allclose(torch.tensor(answer), expected, atol=1e-4):
        raise VerificationError("the server's embedding differs from the package's own")
    console.print(
        f"  asked {url}/v1/embeddings: {len(answer)} numbers, equal to the package's own\n"
    )

    conditions = (
        f"{name}, batch {BATCH} x {LENGTH} tokens, float32, {torch.get_num_threads()} threads, "
        f"{_core.cpu_name()} {_core.active_isa()}, torch {torch.__version__}"
    )
    console.print(conditions, style="dim")
    console.print(table(rows))
    chart(rows, out / "chart.png", conditions)
    figures = {"conditions": conditions, "rows": [asdict(row) for row in rows]}
    (out / "results.json").write_text(json.dumps(figures, indent=1) + "\n")
    console.print(f"chart: {out / 'chart.png'}   figures: {out / 'results.json'}")
    console.print(f"try:   sparse-engine serve {package}")
    return rows


@contextmanager
def _bar(console: Console, what: str) -> Iterator[Callable[[int, int, str], None]]:
    with console.status(what) as status:
        yield lambda done, total, name: status.update(f"{what}: {done}/{total} {name}")


@torch.inference_mode()
def _verify(sparse: nn.Module, pruned: nn.Module) -> float:
    """Largest relative error of the last hidden state against the pruned model in torch."""
    inputs = random_inputs(pruned, BATCH, LENGTH)
    expected = pruned(**inputs).last_hidden_state
    error = float(
        (sparse(**inputs).last_hidden_state - expected).abs().max() / expected.abs().max()
    )
    if not error <= 1e-4:
        raise VerificationError(f"the package differs from the pruned model by {error:.1e}")
    return error


@torch.inference_mode()
def _time(dense: nn.Module, sparse: nn.Module) -> dict[str, float]:
    inputs = random_inputs(dense, BATCH, LENGTH)
    calls = {"dense": lambda: dense(**inputs), "sparse": lambda: sparse(**inputs)}
    return time_in_turn(calls, rounds=25)


def _megabytes(folder: Path) -> float:
    return sum(f.stat().st_size for f in folder.glob("*.safetensors")) / 1e6
