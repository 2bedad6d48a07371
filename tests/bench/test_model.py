"""Whole models in dense engines: every engine of the table runs, computes what torch computes, and
is refused where it cannot; no test looks at a time's size.
"""

from __future__ import annotations

import json
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
import torch
from task_models import folder
from typer.testing import CliRunner

import sparse_engine as se
from sparse_engine.bench import model as bench
from sparse_engine.bench.engines import (
    DENSE_ENGINES,
    OURS,
    Engine,
    exported_call,
    in_torch,
    torch_call,
)
from sparse_engine.bench.model import bench_model
from sparse_engine.bench.worker import decode_call, random_inputs
from sparse_engine.cli.app import app
from sparse_engine.errors import SparseEngineError, UnsupportedModelError, UsageError

ALL = [f"{name}:{dtype}" for name, dtypes in DENSE_ENGINES.items() for dtype in dtypes]


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folders bert, llama, t5."""
    root = tmp_path_factory.mktemp("bench")
    folder(root / "bert", "BertModel")
    folder(root / "llama", "LlamaForCausalLM")
    folder(root / "t5", "T5ForConditionalGeneration")
    return root


@pytest.mark.parametrize("spec", ALL)
def test_every_engine_computes_the_model(root: Path, spec: str) -> None:
    engine = Engine.parse(spec)
    for package in () if engine.name == "torch" else ("onnx", engine.name):
        pytest.importorskip(package)
    model, _ = se.io.load_pretrained(root / "bert")
    inputs = random_inputs(model, 2, 9, 0)
    expected = model(**inputs)[0]
    if engine.name == "torch":
        call = torch_call(in_torch(model, engine.dtype), inputs)
    else:
        call = exported_call(engine, model, inputs)
    first: Any = call()
    y = torch.as_tensor(first[0], dtype=torch.float32)
    error = (y - expected).norm() / expected.norm()
    # OpenVINO computes in bfloat16 only where the processor does.
    assert error < {"float32": 1e-5, "bfloat16": 3e-2, "int8": 2e-1}[engine.dtype]
    if engine.dtype != "float32" and engine.name != "openvino":
        assert error > 1e-5


def test_engines_that_there_are_not() -> None:
    assert Engine.parse("torch:bfloat16") == Engine("torch", "bfloat16")
    assert Engine.parse(OURS) == Engine(OURS)
    for text, why in (
        ("jax", "use one of torch"),
        ("torch:float16", "in float32, bfloat16, int8"),
        ("onnxruntime:bfloat16", "not in bfloat16"),
        ("sparse_engine:int8", "use one of"),
    ):
        with pytest.raises(UsageError, match=why):
            Engine.parse(text)


def test_tokens_are_decoded_from_where_the_last_one_stopped(root: Path) -> None:
    model, _ = se.io.load_pretrained(root / "llama")
    inputs = random_inputs(model, 2, 5, 6)
    ids = model.generate(**inputs, max_new_tokens=6, min_new_tokens=6, do_sample=False)
    for sparse in (False, True):
        if sparse:
            se.sparsify_(model, "csr")
        step = decode_call(model, inputs)
        found: list[Any] = [step() for _ in range(5)]
        assert torch.equal(torch.cat(found, 1), ids[:, -5:])


def test_a_language_model_is_decoded_where_the_engine_can(root: Path) -> None:
    engines = (OURS, "torch:bfloat16")
    rows = bench_model(root / "llama", engines, 1, 8, runs=1, rounds=2, threads=1)
    for row in rows:
        assert None not in (row.median_ms, row.ratio, row.decode_ms, row.decode_ratio)
        assert row.problem is None
    assert rows[0].decode_ratio == 1.0
    for bad, why in (({"seq": 60}, "64 positions"), ({"seq": 60, "new": 5}, "64 positions")):
        with pytest.raises(UsageError, match=why):
            bench_model(root / "llama", (OURS,), runs=1, rounds=1, **bad)
    with pytest.raises(UsageError, match="only causal"):
        bench_model(root / "bert", (OURS,), seq=8, new=3, runs=1, rounds=1)
    with pytest.raises(UnsupportedModelError, match="encoder with a decoder"):
        bench_model(root / "t5", (OURS,), seq=8, runs=1, rounds=1)


def test_an_engine_that_fails_does_not_stop_the_others(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    def run_worker(package: Path, engine: str, *rest: object) -> dict[str, float | None]:
        if engine == "torch":
            raise SparseEngineError("torch: out of memory")
        return {"median_ms": 2.0, "min_ms": 1.0, "decode_ms": None, "resident_mb": 3.0}

    monkeypatch.setattr(bench, "run_worker", run_worker)
    rows = bench_model(tmp_path, (OURS, "torch", "torch:int8"), seq=8)
    assert [row.problem for row in rows] == [None, "torch: out of memory", None]
    assert [row.median_ms for row in rows] == [2.0, None, 2.0]
    with pytest.raises(SparseEngineError, match="out of memory"):
        bench_model(tmp_path, ("torch", OURS), seq=8)
    options = ["--against", "torch", "--seq", "8"]
    done = CliRunner().invoke(app, ["bench", "model", str(tmp_path), *options])
    assert done.exit_code == 0
    assert "not measured: torch: out of memory" in done.output
    assert "decode_ms" not in done.output  # a column that nobody filled
    done = CliRunner().invoke(app, ["bench", "model", str(tmp_path), *options, "-o", "json"])
    text = done.stdout[done.stdout.index("[") : done.stdout.rindex("]") + 1]
    assert json.loads(text)[1]["problem"] == "torch: out of memory"


@pytest.mark.skipif(find_spec("openvino") is not None, reason="openvino is installed")
def test_a_missing_engine_says_what_to_install(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"pip install sparse-engine\[bench\]"):
        bench_model(tmp_path, (OURS, "openvino"))
