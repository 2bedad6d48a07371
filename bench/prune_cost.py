"""Peak memory and time of `sparse-engine prune`: a BERT-base, or a Llama of 1.1 billion, streamed.

    python bench/prune_cost.py bert --criterion obs --recovery least_squares
    python bench/prune_cost.py llama                           # magnitude, without calibration
    python bench/prune_cost.py llama --criterion wanda --texts 64
    python bench/prune_cost.py llama --criterion sparsegpt --recovery least_squares \\
        --granularity 16x1
    python bench/prune_cost.py llama --layers 2 --hidden 256   # a small one, to see it work

Weights and calibration texts are random. The Llama is in bfloat16, in shards of two layers, and is
streamed; the BERT is in float32, and in memory. Memory is the resident set of the process beyond
what it is when torch, transformers and the command are imported. It includes pages of files that
are mapped.
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
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import median
from time import perf_counter

import torch

from sparse_engine.bench.machine import conditions
from sparse_engine.cli.common import run_script
from sparse_engine.errors import SparseEngineError

WORDS = 32000
CHILD = """
import sys
import torch
from transformers import BertModel, LlamaForCausalLM
from sparse_engine.cli import main
from sparse_engine.pruning import prune
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


@dataclass(frozen=True)
class Shape:
    """A model of random weights.

    Attributes:
        layers, hidden, inner, heads, key_heads: sizes.
        texts: default number of calibration texts.
    """

    layers: int
    hidden: int
    inner: int
    heads: int
    key_heads: int
    texts: int


SHAPES = {"bert": Shape(12, 768, 3072, 12, 12, 128), "llama": Shape(22, 2048, 5632, 32, 4, 32)}


def main() -> None:
    """Write the model, prune it in a process of its own, and print what it took."""
    args = _parse()
    given = {name: getattr(args, name) for name in ("layers", "hidden", "inner", "texts")}
    shape = replace(SHAPES[args.model], **{k: v for k, v in given.items() if v is not None})
    with tempfile.TemporaryDirectory(dir=args.folder) as name:
        folder = Path(name)
        write = write_bert if args.model == "bert" else write_llama
        size = write(folder / "model", shape)
        (folder / "texts.txt").write_text(random_texts(shape.texts, args.length))
        options = [
            *("--criterion", args.criterion, "--recovery", args.recovery),
            *("--sparsity", str(args.sparsity), "--granularity", args.granularity),
            *("--max-length", str(args.length), "--threads", str(args.threads)),
        ]
        options += ["--stream"] if args.model == "llama" else []
        if args.criterion not in ("magnitude", "random") or args.recovery != "none":
            options += ["--calibration", str(folder / "texts.txt")]
        command = [sys.executable, "-c", CHILD, "prune", str(folder / "model"), str(folder / "out")]
        started = perf_counter()
        done = subprocess.run([*command, *options], capture_output=True, text=True)
        seconds = perf_counter() - started
        if done.returncode:
            raise SparseEngineError(done.stderr[-2000:])
    peak, interpreter = map(int, re.search(r"peak (\d+) of (\d+)", done.stderr).groups())  # type: ignore[union-attr]
    shown = " ".join("TEXTS" if word.endswith("texts.txt") else word for word in options)
    for line in re.findall("^module .*", done.stderr, re.MULTILINE):
        print(line)
    print(
        f"{args.model}: {size / 1e9:.2f} GB, {shape}; {shown}\n"
        f"{seconds:.0f} s, loading and writing included\n"
        f"peak {peak / 1e9:.2f} GB beyond the {interpreter / 1e9:.2f} GB of the interpreter"
    )
    found = re.findall(r"^module .*: ([\d.]+) s", done.stderr, re.MULTILINE)
    if modules := [float(text) for text in found]:
        least, most = min(modules), max(modules)
        print(f"{median(modules):.1f} s a module ({least:.1f} to {most:.1f})")
    print(conditions())


def write_bert(folder: Path, shape: Shape) -> int:
    """Write a BERT of random weights and a tokenizer of numbered words; returns its bytes."""
    from transformers import BertConfig, BertModel, logging

    logging.disable_progress_bar()
    config = BertConfig(
        vocab_size=WORDS,
        hidden_size=shape.hidden,
        intermediate_size=shape.inner,
        num_hidden_layers=shape.layers,
        num_attention_heads=shape.heads,
    )
    torch.manual_seed(0)
    model = BertModel(config)
    model.save_pretrained(folder)
    write_tokenizer(folder)
    return sum(parameter.nbytes for parameter in model.parameters())


def write_llama(folder: Path, shape: Shape) -> int:
    """The same for a Llama in bfloat16, written shard by shard."""
    from safetensors.torch import save_file
    from transformers import LlamaConfig

    layers, hidden, inner = shape.layers, shape.hidden, shape.inner
    folder.mkdir()
    config = LlamaConfig(
        vocab_size=WORDS,
        hidden_size=hidden,
        intermediate_size=inner,
        num_hidden_layers=layers,
        num_attention_heads=shape.heads,
        num_key_value_heads=shape.key_heads,
        tie_word_embeddings=False,
        dtype="bfloat16",
        architectures=["LlamaForCausalLM"],
    )
    config.save_pretrained(folder)
    keys = hidden // shape.heads * shape.key_heads
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
    write_tokenizer(folder)
    return size


def write_tokenizer(folder: Path) -> None:
    """A tokenizer of numbered words."""
    from tokenizers import Tokenizer, models, pre_tokenizers

    tokenizer = Tokenizer(models.WordLevel({f"w{i}": i for i in range(WORDS)}, unk_token="w0"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.save(str(folder / "tokenizer.json"))


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
    parser.add_argument("model", choices=SHAPES)
    parser.add_argument("--criterion", default="magnitude")
    parser.add_argument("--recovery", default="none")
    parser.add_argument("--granularity", default="element")
    parser.add_argument("--sparsity", type=float, default=0.8)
    parser.add_argument("--texts", type=int, help="calibration texts; 128 for bert, 32 for llama")
    parser.add_argument("--length", type=int, default=128, help="tokens of a text")
    parser.add_argument("--layers", type=int)
    parser.add_argument("--hidden", type=int)
    parser.add_argument("--inner", type=int)
    parser.add_argument("--threads", type=int, default=os.cpu_count() or 1)
    parser.add_argument("--folder", type=Path, help="for the files, about 5 GB; default: temporary")
    return parser.parse_args()


if __name__ == "__main__":
    run_script(main)
