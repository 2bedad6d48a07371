"""Peak memory, and seconds a module, of `sparse-engine prune --stream` on a Llama of 1.1 billion.

    python bench/streaming.py                                  # magnitude, without calibration
    python bench/streaming.py --criterion wanda --texts 64
    python bench/streaming.py --criterion sparsegpt --recovery least_squares --granularity 16x1
    python bench/streaming.py --layers 2 --hidden 256 --inner 704   # a small one, to see it work

Weights and calibration texts are random; the weights are in bfloat16, in shards of two layers.
Memory is the resident set of the process beyond what it is when torch, transformers and the model's
class are imported. It includes pages of files that are mapped.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import re
import subprocess
import sys
import tempfile
from pathlib import Path
from statistics import median

import torch

from sparse_engine.bench.machine import conditions
from sparse_engine.cli.common import run_script
from sparse_engine.errors import SparseEngineError

HEADS, KEY_HEADS, WORDS = 32, 4, 32000
CHILD = """
import sys
import torch
import transformers
from transformers import LlamaForCausalLM
from sparse_engine.cli import main
from sparse_engine.streaming import prune_checkpoint


def resident(key):
    line = next(l for l in open("/proc/self/status") if l.startswith(key))
    return int(line.split()[1]) * 1024


open("/proc/self/clear_refs", "w").write("5")  # VmHWM starts again
before = resident("VmRSS")
try:
    main()
finally:
    print("peak", resident("VmHWM") - before, "of", before, file=sys.stderr)
"""


def main() -> None:
    """Write the checkpoint, prune it in a process of its own, and print what it took."""
    args = _parse()
    with tempfile.TemporaryDirectory(dir=args.folder) as name:
        folder = Path(name)
        size = write_checkpoint(folder / "model", args.layers, args.hidden, args.inner)
        (folder / "texts.txt").write_text(random_texts(args.texts, args.length))
        options = [
            *("--criterion", args.criterion, "--recovery", args.recovery),
            *("--sparsity", str(args.sparsity), "--granularity", args.granularity),
            *("--max-length", str(args.length), "--threads", str(args.threads), "--stream"),
        ]
        if args.criterion not in ("magnitude", "random") or args.recovery != "none":
            options += ["--calibration", str(folder / "texts.txt")]
        command = [sys.executable, "-c", CHILD, "prune", str(folder / "model"), str(folder / "out")]
        done = subprocess.run([*command, *options], capture_output=True, text=True)
        if done.returncode:
            raise SparseEngineError(done.stderr[-2000:])
    peak, interpreter = map(int, re.search(r"peak (\d+) of (\d+)", done.stderr).groups())  # type: ignore[union-attr]
    seconds = [float(s) for s in re.findall(r"^module .*: ([\d.]+) s", done.stderr, re.MULTILINE)]
    print("\n".join(re.findall("^module .*", done.stderr, re.MULTILINE)))
    print(
        f"{size / 1e9:.2f} GB of bfloat16 weights, {args.layers} modules; {' '.join(options)}\n"
        f"peak {peak / 1e9:.2f} GB beyond the {interpreter / 1e9:.2f} GB of the interpreter\n"
        f"{median(seconds):.1f} s a module ({min(seconds):.1f} to {max(seconds):.1f})\n"
        f"{conditions()}"
    )


def write_checkpoint(folder: Path, layers: int, hidden: int, inner: int) -> int:
    """Write a Llama of random weights and a tokenizer of numbered words; returns its bytes."""
    from safetensors.torch import save_file
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import LlamaConfig

    folder.mkdir()
    config = LlamaConfig(
        vocab_size=WORDS,
        hidden_size=hidden,
        intermediate_size=inner,
        num_hidden_layers=layers,
        num_attention_heads=HEADS,
        num_key_value_heads=KEY_HEADS,
        tie_word_embeddings=False,
        dtype="bfloat16",
        architectures=["LlamaForCausalLM"],
    )
    config.save_pretrained(folder)
    keys = hidden // HEADS * KEY_HEADS
    shapes = {
        "self_attn.q_proj": (hidden, hidden),
        "self_attn.k_proj": (keys, hidden),
        "self_attn.v_proj": (keys, hidden),
        "self_attn.o_proj": (hidden, hidden),
        "mlp.gate_proj": (inner, hidden),
        "mlp.up_proj": (inner, hidden),
        "mlp.down_proj": (hidden, inner),
        "input_layernorm": (hidden,),
        "post_attention_layernorm": (hidden,),
    }
    parts: list[dict[str, tuple[int, ...]]] = [
        {"model.embed_tokens.weight": (WORDS, hidden)},
        {"lm_head.weight": (WORDS, hidden), "model.norm.weight": (hidden,)},
    ]
    for first in range(0, layers, 2):
        numbers = range(first, min(first + 2, layers))
        named = {f"model.layers.{i}.{n}.weight": s for i in numbers for n, s in shapes.items()}
        parts.append(named)
    generator, size, files = torch.Generator().manual_seed(0), 0, {}
    for number, part in enumerate(parts, 1):
        file = f"model-{number:05}-of-{len(parts):05}.safetensors"
        tensors = {name: _random(shape, generator) for name, shape in part.items()}
        save_file(tensors, folder / file, metadata={"format": "pt"})
        size += sum(tensor.nbytes for tensor in tensors.values())
        files |= dict.fromkeys(part, file)
    index = {"metadata": {"total_size": size}, "weight_map": files}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    tokenizer = Tokenizer(models.WordLevel({f"w{i}": i for i in range(WORDS)}, unk_token="w0"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.save(str(folder / "tokenizer.json"))
    return size


def _random(shape: tuple[int, ...], generator: torch.Generator) -> torch.Tensor:
    """Weights of the usual initialisation; ones for a norm."""
    if len(shape) == 1:
        return torch.ones(shape, dtype=torch.bfloat16)
    return torch.empty(shape, dtype=torch.bfloat16).normal_(0, 0.02, generator=generator)


def random_texts(count: int, length: int) -> str:
    """Lines of random words, each a token."""
    words = random.Random(0)
    return "\n".join(
        " ".join(f"w{words.randrange(WORDS)}" for _ in range(length)) for _ in range(count)
    )


def _parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--criterion", default="magnitude")
    parser.add_argument("--recovery", default="none")
    parser.add_argument("--granularity", default="element")
    parser.add_argument("--sparsity", type=float, default=0.8)
    parser.add_argument("--texts", type=int, default=32, help="calibration texts")
    parser.add_argument("--length", type=int, default=128, help="tokens of a text")
    parser.add_argument("--layers", type=int, default=22)
    parser.add_argument("--hidden", type=int, default=2048)
    parser.add_argument("--inner", type=int, default=5632)
    parser.add_argument("--threads", type=int, default=os.cpu_count() or 1)
    parser.add_argument("--folder", type=Path, help="for the files, about 5 GB; default: temporary")
    return parser.parse_args()


if __name__ == "__main__":
    run_script(main)
