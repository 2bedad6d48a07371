"""Models with a teacher, and every term of `Distil` as a loop over texts without padding."""

from __future__ import annotations

import copy
import math
from collections import defaultdict
from typing import Any

import torch
from family_models import model_of
from torch import Tensor, nn
from torch.nn import functional as F

from sparse_engine.training import Distil, Pruner

# By family: modules with hidden states, and projections with their parts and heads.
STATES = {
    "bert": ["encoder.layer.0", "encoder.layer.1"],
    "bert for labels": ["bert.encoder.layer.0", "bert.encoder.layer.1"],
    "distilbert": ["transformer.layer.0", "transformer.layer.1"],
    "gpt2": ["transformer.h.0", "transformer.h.1"],
    "llama": ["model.layers.0", "model.layers.1"],
    "t5": [f"{side}.block.{i}" for side in ("encoder", "decoder") for i in range(2)],
    "bart": [
        *(f"model.encoder.layers.{i}" for i in range(2)),
        *(f"model.decoder.layers.{i}" for i in range(3)),
    ],
}
T5 = [f"{side}.block.{i}.layer.0.SelfAttention" for side in ("encoder", "decoder") for i in (0, 1)]
T5 += [f"decoder.block.{i}.layer.1.EncDecAttention" for i in range(2)]
BART = [*STATES["bart"][:2], *STATES["bart"][2:]]
PROJECTIONS: dict[str, dict[str, tuple[int, int]]] = {
    "bert": {
        f"{layer}.attention.self.{part}": (1, 6)
        for layer in STATES["bert"]
        for part in ("query", "key", "value")
    },
    "gpt2": {f"{layer}.attn.c_attn": (3, 6) for layer in STATES["gpt2"]},
    "llama": {
        f"{layer}.self_attn.{part}_proj": (1, 4) for layer in STATES["llama"] for part in "qkv"
    },
    "t5": {f"{attention}.{part}": (1, 6) for attention in T5 for part in "qkv"},
    "bart": {
        f"{layer}.{attention}.{part}_proj": (1, 6 if "encoder.layers" in layer else 4)
        for layer in STATES["bart"]
        for attention in ("self_attn", "encoder_attn")
        if attention == "self_attn" or "decoder" in layer
        for part in "qkv"
    },
}


def pair(name: str) -> tuple[Any, Any]:
    """A model and its teacher, in float64."""
    dense = model_of(name).double()
    model = copy.deepcopy(dense)
    torch.manual_seed(1)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter += 0.1 * parameter.std().nan_to_num() * torch.randn_like(parameter)
    return model, dense


def texts(given: dict[str, Tensor]) -> list[dict[str, Tensor]]:
    """The rows of a batch, each without its padding."""
    rows = []
    for i, mask in enumerate(given["attention_mask"].bool()):
        row = {"input_ids": given["input_ids"][i, mask][None]}
        if "decoder_input_ids" in given:
            row["decoder_input_ids"] = given["decoder_input_ids"][i][None]
        rows.append(row)
    return rows


def run(model: nn.Module, row: dict[str, Tensor]) -> tuple[Any, dict[str, Tensor]]:
    """The output for one text, and what each module returned."""
    seen: dict[str, Tensor] = {}
    hooks = []
    for name, module in model.named_modules():

        def keep(module: Any, args: Any, output: Any, name: str = name) -> None:
            first = output[0] if isinstance(output, tuple) else output
            if isinstance(first, Tensor):
                seen[name] = first[0]

        hooks.append(module.register_forward_hook(keep))
    output = model(**row)
    for hook in hooks:
        hook.remove()
    return output, seen


def kl(state: Tensor, dense: Tensor) -> Tensor:
    """sum p (log p - log q) of one row of scores."""
    p, q = dense.softmax(-1), state.softmax(-1)
    return (p * (p.log() - q.log())).sum()


def expected_loss(model: Any, dense: Any, given: dict[str, Tensor], name: str, term: str) -> Tensor:
    """The term, by a loop over texts, tokens and heads."""
    sums: dict[str, list[Any]] = defaultdict(list)
    for row in texts(given):
        (y, own), (target, other) = run(model, row), run(dense, row)
        if term == "outputs" and "logits" in y:
            for state, wanted in zip(
                y.logits.flatten(0, -2), target.logits.flatten(0, -2), strict=True
            ):
                sums["rows"].append(4 * kl(state / 2, wanted / 2))
        elif term == "outputs":
            sums["squares"].append((y[0] - target[0]).square().sum())
            sums["energy"].append(target[0].square().sum())
        elif term == "embedding":
            sums["rows"].append(1 - F.cosine_similarity(y[0][0].mean(0), target[0][0].mean(0), 0))
        elif term == "hidden":
            for layer in STATES[name]:
                sums[f"squares {layer}"].append((own[layer] - other[layer]).square().sum())
                sums[f"energy {layer}"].append(other[layer].square().sum())
        else:
            for layer, (parts, heads) in PROJECTIONS[name].items():
                for part in range(parts):
                    a, b = own[layer].chunk(parts, -1)[part], other[layer].chunk(parts, -1)[part]
                    for x, z in zip(a.chunk(heads, -1), b.chunk(heads, -1), strict=True):
                        scale = math.sqrt(x.shape[-1])
                        for state, wanted in zip(x @ x.T / scale, z @ z.T / scale, strict=True):
                            sums[f"rows {layer} {part}"].append(kl(state, wanted))
    if "squares" in sums:
        return sum(sums["squares"]) / sum(sums["energy"])
    if term == "hidden":
        terms = [
            sum(sums[f"squares {layer}"]) / sum(sums[f"energy {layer}"]) for layer in STATES[name]
        ]
        return torch.stack(terms).mean()
    return torch.stack([torch.stack(rows).mean() for rows in sums.values()]).mean()


def loss_of(model: Any, dense: Any, given: Any, **options: Any) -> Tensor:
    pruner = Pruner(model, [Distil(**options)], teacher=dense)
    loss = pruner.loss(given)
    pruner.finalize()
    return loss
