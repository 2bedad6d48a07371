"""Peak memory of a streamed run: one module, not the model."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("transformers")

SCRIPT = """
import gc, sys
import torch, transformers
from transformers import LlamaConfig, LlamaForCausalLM
from sparse_engine.streaming import open_checkpoint, prune_checkpoint, return_freed_memory

torch.set_num_threads(1)


def status(key):
    line = next(l for l in open("/proc/self/status") if l.startswith(key))
    return int(line.split()[1]) * 1024


ids = torch.randint(1000, (4, 32), generator=torch.Generator().manual_seed(0))
batches = [{"input_ids": ids + i} for i in range(4)]
options = {"criterion": "wanda"} if sys.argv[3] == "wanda" else {
    "criterion": "sparsegpt", "recovery": "least_squares", "granularity": "16x1"}
return_freed_memory()  # as the command line does
gc.collect()
open("/proc/self/clear_refs", "w").write("5")  # VmHWM starts again
before = status("VmRSS")
prune_checkpoint(
    open_checkpoint(sys.argv[1]), sys.argv[2], 0.8, calibration=batches, **options
)
print(status("VmHWM") - before)
"""
WRITE = """
import sys, torch
from transformers import LlamaConfig, LlamaForCausalLM
torch.manual_seed(0)
config = LlamaConfig(vocab_size=2000, hidden_size=512, num_hidden_layers=int(sys.argv[2]),
    num_attention_heads=8, num_key_value_heads=8, intermediate_size=1408)
model = LlamaForCausalLM(config).bfloat16()
model.save_pretrained(sys.argv[1], max_shard_size="20MB")
print(sum(p.numel() for p in model.parameters()))
"""
MODULE = 4 * 512 * 512 + 3 * 512 * 1408  # weights of one module
HESSIAN = 1408**2


def run(script: str, *arguments: object) -> int:
    done = subprocess.run(
        [sys.executable, "-c", script, *map(str, arguments)],
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    return int(done.stdout)


@pytest.mark.skipif(
    not Path("/proc/self/clear_refs").exists(), reason="memory is measured through /proc of Linux"
)
def test_one_module(tmp_path: Path) -> None:
    weights = run(WRITE, tmp_path / "source", 6)
    # The module, its largest weight in the dtype of the file too, and what one batch needs.
    bound = 4 * 2 * MODULE + (32 << 20)
    assert run(SCRIPT, tmp_path / "source", tmp_path / "out", "wanda") <= bound < 4 * weights


@pytest.mark.skipif(
    not Path("/proc/self/clear_refs").exists(), reason="memory is measured through /proc of Linux"
)
def test_the_hessians_of_one_input(tmp_path: Path) -> None:
    run(WRITE, tmp_path / "source", 2)
    # H, D, what is factorised, and copies of the weight.
    bound = 4 * (MODULE + 6 * HESSIAN + 6 * 512 * 1408) + (32 << 20)
    assert run(SCRIPT, tmp_path / "source", tmp_path / "out", "sparsegpt") <= bound
