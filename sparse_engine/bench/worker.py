"""One engine, one process: time a folder's model and print one JSON line. Started by bench.model.

python -m sparse_engine.bench.worker FOLDER ENGINE BATCH SEQ NEW RUNS THREADS
"""

from __future__ import annotations

import ctypes
import gc
import json
import os
import sys
from pathlib import Path
from statistics import median
from time import perf_counter
from typing import Any

import torch
from torch import nn

from sparse_engine.bench.engines import (
    OURS,
    Call,
    Engine,
    Inputs,
    exported_call,
    in_torch,
    torch_call,
)
from sparse_engine.bench.model import Figures
from sparse_engine.convert.sparsify import densify_
from sparse_engine.errors import SparseEngineError, UnsupportedModelError, UsageError
from sparse_engine.io import load_pretrained

NEW = 32  # tokens after the prompt, of a causal language model


def resident_mb() -> float:
    """Resident memory of this process, MB."""
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE") / 1e6


def release_memory() -> None:
    """Return freed memory to the system, so that resident memory is memory in use."""
    gc.collect()
    ctypes.CDLL(None).malloc_trim(0)


def random_inputs(model: nn.Module, batch: int, seq: int, new: int = 0) -> Inputs:
    """Random token ids of the model's vocabulary without padding, with room for new ones."""
    config: Any = getattr(model, "config", None)
    words = getattr(config, "vocab_size", None)
    if words is None or getattr(config, "is_encoder_decoder", False):
        raise UnsupportedModelError(
            "bench model needs a model that reads token ids, and is not an encoder with a decoder"
        )
    longest = getattr(config, "max_position_embeddings", seq + new)
    if seq + new > longest:
        raise UsageError(f"--seq {seq} --new {new}: the model has {longest} positions")
    ids = torch.randint(0, words, (batch, seq), generator=torch.Generator().manual_seed(0))
    return {"input_ids": ids, "attention_mask": torch.ones_like(ids)}


def is_decoder(model: Any) -> bool:
    """Whether the model is a causal language model of transformers."""
    return type(model).__name__.endswith(("ForCausalLM", "LMHeadModel"))


def decode_call(model: nn.Module, inputs: Inputs) -> Call:
    """A call that decodes one more token of each sequence, after the prompt is read here."""
    from sparse_engine.generation.decoding import CACHES

    cache: dict[str, Any] = {}
    ids = inputs["input_ids"]

    def call() -> object:
        nonlocal ids
        with torch.inference_mode():
            output: Any = model(input_ids=ids, use_cache=True, **cache)
        ids = output.logits[:, -1:].argmax(-1)
        name = next(name for name in CACHES if name in output)
        cache[name] = output[name]
        return ids

    call()
    return call


def times_of(call: Call, runs: int) -> list[float]:
    """Milliseconds of `runs` calls."""
    times = []
    for _ in range(runs):
        start = perf_counter()
        call()
        times.append((perf_counter() - start) * 1e3)
    return times


def measure(
    folder: str, engine: Engine, batch: int, seq: int, new: int | None, runs: int
) -> Figures:
    """Times of a pass over random sequences and of decoding, and resident memory at the end.

    Args:
        folder: A package.
        engine: The engine to run.
        batch: Sequences of a call.
        seq: Tokens of a sequence.
        new: Tokens to decode after them; None for NEW where the model is a decoder.
        runs: Timed calls.
    """
    model, _ = load_pretrained(folder)
    if new is None:
        new = NEW if is_decoder(model) else 0
    if new and not is_decoder(model):
        raise UsageError("--new: only causal language models generate tokens")
    inputs = random_inputs(model, batch, seq, new)
    if engine.name != OURS:
        densify_(model)
        model = in_torch(model, engine.dtype if engine.name == "torch" else "float32")
        release_memory()
    in_process = engine.name in (OURS, "torch")
    call = torch_call(model, inputs) if in_process else exported_call(engine, model, inputs)
    times = times_of(call, 3 + runs)[3:]
    # Exported models have no cache.
    decode = times_of(decode_call(model, inputs), new) if new and in_process else None
    release_memory()
    return {
        "median_ms": median(times),
        "min_ms": min(times),
        "decode_ms": None if decode is None else median(decode),
        "resident_mb": resident_mb(),
    }


def main(folder: str, engine: str, batch: str, seq: str, new: str, runs: str, threads: str) -> None:
    """Load, warm up, time, print."""
    if int(threads):
        torch.set_num_threads(int(threads))
    chosen = Engine.parse(engine)
    chosen.require_installed()
    # A first load imports every module of the model, whose memory is not the model's.
    load_pretrained(folder)
    release_memory()
    before = resident_mb()
    found = measure(folder, chosen, int(batch), int(seq), int(new) if new else None, int(runs))
    found["resident_mb"] -= before
    print(json.dumps(found))


if __name__ == "__main__":
    try:
        main(*sys.argv[1:])
    except SparseEngineError as error:
        print(error, file=sys.stderr)
        sys.exit(error.exit_code)
