"""Prefill and decode of a randomly pruned Llama of 1.1 billion weights against dense engines.

    python bench/decode.py --sparsity 0.5,0.7 --dtype bfloat16,int8 --against torch,llama.cpp
    python bench/decode.py --layers 2 --rounds 1            # a small one, to see that it works

Engines run in processes of their own, in turn (A B C A B C ...); the medians of the rounds count.
llama.cpp needs `pip install llama-cpp-python gguf` (which compiles for a while); it runs bf16 for
bfloat16 and q8_0 for int8. torch runs the same weights dense, in float32 or bfloat16. Decoding
reads every weight once a token, so its time is bound by their bytes and the memory bandwidth.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable
from dataclasses import asdict, dataclass
from importlib.util import find_spec
from pathlib import Path
from statistics import median
from time import perf_counter
from typing import Any

import numpy as np
import torch

from sparse_engine.bench.machine import conditions
from sparse_engine.bench.output import render
from sparse_engine.bench.worker import release_memory, resident_mb
from sparse_engine.cli.common import progress_bar, run_script, split
from sparse_engine.config import SparseConfig
from sparse_engine.convert.sparsify import sparsify_
from sparse_engine.errors import SparseEngineError, UsageError
from sparse_engine.generation.decoding import CACHES

HIDDEN, INNER, HEADS, KEY_HEADS, WORDS, POSITIONS = 2048, 5632, 32, 4, 32000, 2048
PROMPT, NEW = 128, 32
ENGINES = ("torch", "llama.cpp")
FILES = {"bfloat16": "bf16", "int8": "q8_0"}  # the nearest dtype of llama.cpp


@dataclass(frozen=True)
class Job:
    """What one process measures."""

    engine: str
    dtype: str
    sparsity: float
    format: str
    layers: int
    threads: int
    file: str = ""


@dataclass(frozen=True)
class Row:
    """Medians of an engine; ratios are its times over sparse_engine's at the same dtype."""

    engine: str
    dtype: str
    format: str
    sparsity: float
    decode_ms: float
    decode_ratio: float
    prefill_ms: float
    prefill_ratio: float
    resident_mb: float


def random_llama(job: Job) -> Any:
    """A transformers model with `sparsity` zeros in every linear layer, in the dtype's carrier."""
    import transformers

    config = transformers.LlamaConfig(
        hidden_size=HIDDEN,
        intermediate_size=INNER,
        num_hidden_layers=job.layers,
        num_attention_heads=HEADS,
        num_key_value_heads=KEY_HEADS,
        vocab_size=WORDS,
        max_position_embeddings=POSITIONS,
    )
    dtype = torch.float32 if job.dtype == "float32" else torch.bfloat16
    model = transformers.LlamaForCausalLM(config).eval().requires_grad_(False).to(dtype)
    source = torch.Generator().manual_seed(0)
    for module in model.modules():
        if isinstance(module, torch.nn.Linear | torch.nn.Embedding):
            weight = module.weight
            weight.copy_(torch.randn(weight.shape, generator=source) * 0.02)
            if isinstance(module, torch.nn.Linear):
                weight[torch.rand(weight.shape, generator=source) < job.sparsity] = 0
    return model


def torch_engine(job: Job) -> Callable[[list[int]], object]:
    """A call that feeds more tokens of one sequence; an empty list starts a new sequence."""
    model = random_llama(job)
    if job.engine == "sparse_engine":
        report = sparsify_(model, SparseConfig(job.format, job.dtype))
        if "natively" not in report.native:
            raise SparseEngineError(report.native)
    cache: dict[str, Any] = {}

    def call(ids: list[int]) -> object:
        if not ids:
            cache.clear()
            return None
        with torch.inference_mode():
            output = model(torch.tensor([ids]), use_cache=True, logits_to_keep=1, **cache)
        name = next(name for name in CACHES if name in output)
        cache[name] = output[name]
        return output.logits

    return call


def llama_cpp_engine(job: Job) -> Callable[[list[int]], object]:
    """The same of llama.cpp, on a file of the same shape."""
    import llama_cpp as lc

    lc.llama_backend_init()
    model = lc.llama_model_load_from_file(job.file.encode(), lc.llama_model_default_params())
    params = lc.llama_context_default_params()
    params.n_ctx = params.n_batch = 512
    params.n_threads = params.n_threads_batch = job.threads
    context = lc.llama_init_from_model(model, params)

    def call(ids: list[int]) -> object:
        if not ids:
            return lc.llama_memory_clear(lc.llama_get_memory(context), True)
        tokens = (lc.llama_token * len(ids))(*ids)  # the batch points into it
        if lc.llama_decode(context, lc.llama_batch_get_one(tokens, len(ids))):
            raise SparseEngineError("llama.cpp refused a batch")
        return lc.llama_synchronize(context)

    return call


def write_gguf(path: Path, kind: str, layers: int) -> None:
    """A file of the same shape for llama.cpp, random and without zeros."""
    import gguf

    dtype = getattr(gguf.GGMLQuantizationType, kind.upper())
    file = gguf.GGUFWriter(str(path), "llama")
    file.add_context_length(POSITIONS)
    file.add_embedding_length(HIDDEN)
    file.add_block_count(layers)
    file.add_feed_forward_length(INNER)
    file.add_head_count(HEADS)
    file.add_head_count_kv(KEY_HEADS)
    file.add_layer_norm_rms_eps(1e-5)
    file.add_rope_dimension_count(HIDDEN // HEADS)
    file.add_vocab_size(WORDS)
    file.add_tokenizer_model("no_vocab")
    random, keys = np.random.default_rng(0), KEY_HEADS * HIDDEN // HEADS

    def add(name: str, *shape: int) -> None:
        if len(shape) == 1:
            file.add_tensor(f"{name}.weight", np.ones(shape, np.float32))
            return
        values = random.standard_normal(shape, dtype=np.float32) * 0.02
        packed = gguf.quants.quantize(values, dtype)
        file.add_tensor(f"{name}.weight", packed, raw_dtype=dtype)

    add("token_embd", WORDS, HIDDEN)
    add("output_norm", HIDDEN)
    add("output", WORDS, HIDDEN)
    for i in range(layers):
        for name, *shape in (
            ("attn_norm", HIDDEN),
            ("ffn_norm", HIDDEN),
            ("attn_q", HIDDEN, HIDDEN),
            ("attn_k", keys, HIDDEN),
            ("attn_v", keys, HIDDEN),
            ("attn_output", HIDDEN, HIDDEN),
            ("ffn_gate", INNER, HIDDEN),
            ("ffn_up", INNER, HIDDEN),
            ("ffn_down", HIDDEN, INNER),
        ):
            add(f"blk.{i}.{name}", *shape)
    file.write_header_to_file()
    file.write_kv_data_to_file()
    file.write_tensors_to_file()
    file.close()


def work(job: Job) -> dict[str, float]:
    """Measure in this process."""
    torch.set_num_threads(job.threads)
    call = (llama_cpp_engine if job.engine == "llama.cpp" else torch_engine)(job)
    prompt = list(range(1, PROMPT + 1))
    prefill, decode = [], []
    for _ in range(3):
        call([])
        prefill.append(seconds(call, prompt))
    decode = [seconds(call, [i + 5]) for i in range(NEW)]
    release_memory()
    return {
        "prefill_ms": median(prefill[1:]) * 1e3,
        "decode_ms": median(decode) * 1e3,
        "resident_mb": resident_mb(),
    }


def seconds(call: Callable[[list[int]], object], ids: list[int]) -> float:
    start = perf_counter()
    call(ids)
    return perf_counter() - start


def run(job: Job) -> dict[str, float]:
    """Measure in a process of its own."""
    command = [sys.executable, __file__, "--worker", json.dumps(asdict(job))]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    lines = done.stdout.strip().splitlines()
    if done.returncode or not lines:
        why = (done.stderr.strip().splitlines() or ["no output"])[-1]
        raise SparseEngineError(f"{job.engine}, {job.dtype}: ended with {done.returncode}: {why}")
    found: dict[str, float] = json.loads(lines[-1])
    return found


def jobs_of(given: argparse.Namespace, folder: Path) -> list[Job]:
    """What to measure, each engine beside the dtypes that it has."""
    against = split(given.against, str, "--against") if given.against else ()
    for engine in against:
        if engine not in ENGINES:
            raise UsageError(f"engine {engine!r}: use {' or '.join(ENGINES)}")
    needs = ("llama_cpp", "gguf") if "llama.cpp" in against else ()
    if missing := [name for name in ("transformers", *needs) if find_spec(name) is None]:
        raise UsageError(
            f"{missing[0]} is not installed; llama.cpp: pip install llama-cpp-python gguf"
        )
    jobs = []
    threads = given.threads or torch.get_num_threads()
    for dtype in split(given.dtype, str, "--dtype"):
        for spec in split(given.format, str, "--format"):
            for sparsity in split(given.sparsity, float, "--sparsity"):
                jobs.append(Job("sparse_engine", dtype, sparsity, spec, given.layers, threads))
        if "torch" in against and dtype != "int8":
            jobs.append(Job("torch", dtype, 0.0, "dense", given.layers, threads))
        if "llama.cpp" in against and dtype in FILES:
            file = folder / f"{FILES[dtype]}.gguf"
            write_gguf(file, FILES[dtype], given.layers)
            jobs.append(Job("llama.cpp", dtype, 0.0, "dense", given.layers, threads, str(file)))
    return jobs


def measure(given: argparse.Namespace) -> list[Row]:
    """All jobs, `rounds` times in turn."""
    with tempfile.TemporaryDirectory(prefix="sparse-engine-decode-") as name:
        jobs = jobs_of(given, Path(name))
        seen: dict[Job, list[dict[str, float]]] = {job: [] for job in jobs}
        with progress_bar("decode") as report:
            for turn in range(given.rounds):
                for i, job in enumerate(jobs):
                    report(
                        turn * len(jobs) + i, given.rounds * len(jobs), f"{job.engine} {job.dtype}"
                    )
                    seen[job].append(run(job))
    medians = {
        job: {name: median(one[name] for one in found) for name in found[0]}
        for job, found in seen.items()
    }
    rows = []
    for job, found in medians.items():
        ours = next(
            m for j, m in medians.items() if (j.engine, j.dtype) == ("sparse_engine", job.dtype)
        )
        rows.append(
            Row(
                job.engine,
                job.dtype,
                job.format,
                job.sparsity,
                round(found["decode_ms"], 1),
                round(found["decode_ms"] / ours["decode_ms"], 2),
                round(found["prefill_ms"], 1),
                round(found["prefill_ms"] / ours["prefill_ms"], 2),
                round(found["resident_mb"]),
            )
        )
    return rows


def main() -> None:
    """Measure, print a table, write JSON lines."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--sparsity", default="0.7", help="fractions of zeros; the first counts")
    parser.add_argument("--dtype", default="bfloat16,int8", help="float32, bfloat16, int8")
    parser.add_argument("--format", default="bitmask", help="of the weights for single tokens")
    parser.add_argument("--against", default="torch", help=f"of {', '.join(ENGINES)}")
    parser.add_argument("--layers", type=int, default=22)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--threads", type=int)
    parser.add_argument("-o", "--out", type=Path, help="JSON lines")
    parser.add_argument("--worker", help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.worker:
        print(json.dumps(work(Job(**json.loads(given.worker)))))
        return
    rows = measure(given)
    print(render(rows, "md"))
    if given.out:
        about = conditions() | {"layers": given.layers, "rounds": given.rounds}
        lines = [{"conditions": about}, *map(asdict, rows)]
        given.out.write_text("".join(json.dumps(line) + "\n" for line in lines))


if __name__ == "__main__":
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    run_script(main)
