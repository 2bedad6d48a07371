"""Valid packages of every format and dtype, and what is done with each of them: read by fuzz.py."""

from __future__ import annotations

import copy
import runpy
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from itertools import pairwise
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

import sparse_engine as se

SPECS = ("csr", "bsr:2x3", "bsr:4x1", "bsr:16x1", "sellp", "bitmask", "nm:2:4")
DTYPES = ("float32", "bfloat16", "int8")
TEXTS = ["the cat sat on a mat", "who?", "Ada in Paris sat. " * 5]


@dataclass(frozen=True)
class Case:
    """A valid package; `skeleton` makes the module to fill, None for a transformers model."""

    folder: Path
    skeleton: Callable[[], nn.Module] | None
    use: Callable[[Any, Path], None]

    def run(self, folder: Path) -> None:
        """Load a package of this kind and compute with it."""
        with torch.inference_mode():
            model = se.load(folder, model=self.skeleton() if self.skeleton else None)
            self.use(model, folder)


def linears() -> nn.Module:
    """A layer for each of SPECS, and what is kept dense."""
    sizes = (33, 40, 29, 36, 48, 35, 40, 24)
    layers = [nn.Linear(a, b, bias=i % 2 == 0) for i, (a, b) in enumerate(pairwise(sizes))]
    tail = nn.Sequential(nn.BatchNorm1d(24), nn.Linear(24, 24))
    return nn.Sequential(*layers, tail)


def recurrent() -> nn.Module:
    """Networks and cells of all kinds: several layers, both directions, a projection."""
    parts = {
        "lstm": nn.LSTM(9, 21, 2, bidirectional=True),
        "projected": nn.LSTM(9, 18, proj_size=5),
        "gru": nn.GRU(9, 16, 2),
        "rnn": nn.RNN(9, 20, nonlinearity="relu", bias=False),
        "cell": nn.LSTMCell(9, 12),
        "gru_cell": nn.GRUCell(9, 12),
    }
    return nn.ModuleDict(parts)


def drop_ins() -> nn.Module:
    """Convolutions, attention, encoder and decoder layers."""
    wide = {"batch_first": True, "dim_feedforward": 40, "dropout": 0.0}
    parts = {
        "conv": nn.Conv1d(9, 20, 3, padding=1, stride=2),
        "conv_wide": nn.Conv1d(9, 17, 5, dilation=2, bias=False),
        "attention": nn.MultiheadAttention(24, 3, batch_first=True),
        "others": nn.MultiheadAttention(24, 3, kdim=9, vdim=10, bias=False),
        "encoder": nn.TransformerEncoderLayer(24, 3, **wide),
        "decoder": nn.TransformerDecoderLayer(24, 3, norm_first=True, **wide),
    }
    return nn.ModuleDict(parts)


def mixture() -> nn.Module:
    """A mixture of experts from transformers, without its folder."""
    made: nn.Module = whole_models()["mixture"]()
    return made.eval()


@cache
def whole_models() -> dict[str, Any]:
    """The names of tests/support/whole_models.py."""
    return runpy.run_path(str(Path(__file__).parents[1] / "support" / "whole_models.py"))


def use_drop_ins(model: Any, folder: Path) -> None:
    """A short and a longer sequence, one and several at once, with and without padding."""
    model.eval()
    for batch, length in ((1, 9), (3, 14), (20, 10)):
        rows, hidden = torch.randn(batch, 9, length), torch.zeros(batch, length).bool()
        hidden[0, length - 2 :] = True
        x, memory = torch.randn(batch, length, 24), torch.randn(batch, 5, 24)
        model["conv"](rows)
        model["conv_wide"](rows)
        model["attention"](x, memory, memory, need_weights=False)
        keys, values = torch.randn(5, batch, 9), torch.randn(5, batch, 10)
        model["others"](x.transpose(0, 1), keys, values)
        model["encoder"](x, src_key_padding_mask=hidden)
        model["decoder"](x, memory, tgt_key_padding_mask=hidden)


def use_mixture(model: Any, folder: Path) -> None:
    """Few tokens, and enough that every expert gets some."""
    for shape in ((1, 1), (2, 30)):
        model(input_ids=torch.arange(shape[0] * shape[1]).reshape(shape) % 50)


def use_linears(model: Any, folder: Path) -> None:
    """One token, a few, a panel, and more than one."""
    for tokens in (1, 3, 17, 70):
        model(torch.randn(tokens, 33))


def use_recurrent(model: Any, folder: Path) -> None:
    """Whole sequences, one and many at once, and single steps."""
    for name, network in model.items():
        if "cell" in name:
            for batch in (1, 20):
                network(torch.randn(batch, 9))
            continue
        for batch in (1, 3, 20):
            network(torch.randn(6, batch, 9))
        if not getattr(network, "bidirectional", True) and hasattr(network, "step"):
            _, state = network.step(torch.randn(2, 9))
            network.step(torch.randn(2, 9), state)


def use_text(model: Any, folder: Path) -> None:
    """What the model's task answers, and its cache, cut, copied and reordered."""
    from sparse_engine.tasks import Sampling, open_task

    task: Any = open_task(model, folder)
    if hasattr(task, "embed"):
        task.embed(TEXTS)
    elif hasattr(task, "classify"):
        task.classify([*TEXTS, ("the cat", "a dog")])
    elif hasattr(task, "tag"):
        task.tag(TEXTS)
    elif hasattr(task, "answer"):
        task.answer("who sat?", "the cat sat.")
    else:
        task.warm_up()
        task.generate("the cat", Sampling(max_tokens=5))
        if task.task == "text-generation":
            use_cache(model)


def use_cache(model: Any) -> None:
    """Two prompts, a beam that goes on twice, a step back."""
    ids = torch.arange(2, 12).repeat(2, 1)
    output = model(input_ids=ids, use_cache=True)
    cache = next(output[name] for name in ("cache", "past_key_values") if name in output)
    if not hasattr(cache, "reorder_cache"):  # the state of a recurrent network
        return
    twin = copy.deepcopy(cache)
    cache.reorder_cache(torch.tensor([1, 1]))
    for kept in (cache, twin):
        model(input_ids=ids[:, :1], use_cache=True, past_key_values=kept)
    if hasattr(twin.layers[0], "native"):
        twin.layers[0].crop(-2)
    model(input_ids=ids, use_cache=True, past_key_values=twin)


def thin(tensor: Tensor) -> None:
    """Two of four places along the last axis, and half of those, become zero."""
    tensor.mul_(torch.arange(tensor.shape[-1]) % 4 < 2).mul_(torch.rand_like(tensor) < 0.6)


def text_cnn() -> nn.Module:
    """Convolutions whose readers are stated, in their full size."""
    made: nn.Module = whole_models()["TextCnn"]()
    return made.eval()


def use_text_cnn(model: Any, folder: Path) -> None:
    """A short text, and several longer ones."""
    for shape in ((1, 2), (5, 13)):
        model(torch.arange(shape[0] * shape[1]).reshape(shape) % 50)


def cut(model: nn.Module, structures: list[str], target: Path, source: Path | None = None) -> Path:
    """Remove structures, set half of the rest to zero, and save with the report."""
    report = se.prune(model, 0.4, structures, "random", allocator="raw")
    se.prune(model, 0.5, "element", "magnitude")
    se.sparsify_(model, "csr")
    return se.save(model, target, source=source, recipe=report.to_dict())


def pack(model: nn.Module, target: Path, spec: str, dtype: str, source: Path | None = None) -> Path:
    """Sparsify every linear layer and network, and save."""
    se.sparsify_(model, se.SparseConfig(spec, dtype))
    return se.save(model, target, source=source)


def make(root: Path) -> dict[str, Case]:
    """All packages, written below `root` where they are not there yet, by name."""
    torch.manual_seed(0)
    cases: dict[str, Case] = {}
    for dtype in DTYPES:
        target = root / f"linears-{dtype}"
        if not target.exists():
            layers: Any = linears().requires_grad_(False)
            for i, spec in enumerate(SPECS):
                thin(layers[i].weight)
                config = se.SparseConfig(spec, dtype)
                se.sparsify_(layers, config, filter_fn=lambda m, path, i=i: path == str(i))
            se.save(layers, target)
        cases[target.name] = Case(target, linears, use_linears)
    for spec, dtype in (("csr", "float32"), ("bsr:16x1", "bfloat16"), ("sellp", "int8")):
        target = root / f"recurrent-{spec.replace(':', '-')}-{dtype}"
        if not target.exists():
            network = recurrent().requires_grad_(False)
            for name, parameter in network.named_parameters():
                if "weight" in name:
                    thin(parameter)
            pack(network, target, spec, dtype)
        cases[target.name] = Case(target, recurrent, use_recurrent)
    for name, skeleton, use, spec, dtype in (
        ("drop-ins", drop_ins, use_drop_ins, "csr", "float32"),
        ("drop-ins-int8", drop_ins, use_drop_ins, "sellp", "int8"),
        ("experts", mixture, use_mixture, "csr", "bfloat16"),
    ):
        target = root / name
        if not target.exists():
            whole = skeleton().requires_grad_(False)
            for path, parameter in whole.named_parameters():
                if parameter.dim() > 1 and "embed" not in path and "lm_head" not in path:
                    thin(parameter)
            pack(whole, target, spec, dtype)
        cases[name] = Case(target, skeleton, use)
    for name, kind, spec, dtype in (
        ("bert", "BertModel", "csr", "float32"),
        ("bert-labels", "BertForSequenceClassification", "bsr:4x1", "bfloat16"),
        ("bert-tags", "BertForTokenClassification", "sellp", "int8"),
        ("llama", "LlamaForCausalLM", "csr", "float32"),
        ("llama-int8", "LlamaForCausalLM", "bitmask", "int8"),
        ("t5", "T5ForConditionalGeneration", "csr", "float32"),
        ("gpt2", "GPT2LMHeadModel", "csr", "float32"),
        ("mpnet", "MPNetModel", "csr", "float32"),
        ("rnn", "RnnForCausalLM", "csr", "float32"),
    ):
        target = root / name
        model: Any
        if not target.exists():
            source = dense(root / f"dense-{name}", kind)
            model = se.io.load_pretrained(source)[0]
            for path, parameter in model.named_parameters():
                if parameter.dim() == 2 and "mbedding" not in path and "shared" not in path:
                    thin(parameter)
            pack(model, target, spec, dtype, source)
        cases[name] = Case(target, None, use_text)
    cases |= make_cut(root)
    return cases


def make_cut(root: Path) -> dict[str, Case]:
    """Packages of models of which structures were removed, in each layer another number."""
    cases: dict[str, Case] = {}
    for name, skeleton, use, structures in (
        (
            "cut-text-cnn",
            text_cnn,
            use_text_cnn,
            ["filter(readers='convs.*: mix')", "unit(readers='mix: classify')"],
        ),
        ("cut-experts", mixture, use_mixture, ["unit", "expert"]),
    ):
        if not (root / name).exists():
            cut(skeleton().requires_grad_(False), structures, root / name)
        cases[name] = Case(root / name, skeleton, use)
    for name, kind in (
        ("cut-bert", "BertModel"),
        ("cut-llama", "LlamaForCausalLM"),
        ("cut-t5", "T5ForConditionalGeneration"),
        ("cut-rnn", "RnnForCausalLM"),
    ):
        if not (root / name).exists():
            source = dense(root / f"dense-{name}", kind)
            model = se.io.load_pretrained(source)[0]
            structures = ["unit(keep=4)"] if kind.startswith("Rnn") else ["head", "unit(keep=4)"]
            cut(model, structures, root / name, source)
        cases[name] = Case(root / name, None, use_text)
    return cases


def dense(folder: Path, kind: str) -> Path:
    """A Hugging Face folder with a tokenizer."""
    models = runpy.run_path(str(Path(__file__).parents[1] / "support" / "task_models.py"))
    if kind in ("LlamaForCausalLM", "T5ForConditionalGeneration") or kind.startswith("Bert"):
        made: Path = models["folder"](folder, kind)
        return made
    import transformers

    from sparse_engine.models.rnn import RnnConfig, RnnForCausalLM

    words = models["folder"](folder.with_name(f"{folder.name}-words"), "BertModel")
    sizes = {"vocab_size": len(models["PIECES"])}
    model: Any
    if kind == "GPT2LMHeadModel":
        model = transformers.GPT2LMHeadModel(
            transformers.GPT2Config(
                n_embd=24,
                n_head=3,
                n_layer=2,
                n_positions=64,
                bos_token_id=2,
                eos_token_id=3,
                **sizes,
            )
        )
    elif kind == "MPNetModel":
        names = ("hidden_size", "num_hidden_layers", "num_attention_heads", "intermediate_size")
        small = {name: models["SIZES"][name] for name in names}
        model = transformers.MPNetModel(
            transformers.MPNetConfig(**small, **sizes, max_position_embeddings=64)
        )
    else:
        model = RnnForCausalLM(RnnConfig(**sizes, hidden_size=32, num_hidden_layers=2))
    model.save_pretrained(folder)
    (folder / "tokenizer.json").write_bytes((words / "tokenizer.json").read_bytes())
    return folder
