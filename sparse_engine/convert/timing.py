"""format="auto" for modules of several linear layers: sparse and dense are timed in turn."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from sparse_engine.backends import backend_of
from sparse_engine.config import SparseConfig
from sparse_engine.convert.kinds import EXPERTS, Kind
from sparse_engine.modules.experts import DOWN, is_transposed


def part_tokens(kind: Kind, module: Any, tokens: tuple[int, ...]) -> tuple[int, ...]:
    """Token counts of a linear layer in `module`, where the module is called with `tokens`.

    An expert gets its share of the tokens, each of which is routed to two experts.
    """
    if kind is not EXPERTS:
        return tokens
    experts = len(module._parameters[DOWN])
    return tuple(sorted({max(1, 2 * count // experts) for count in tokens}))


@torch.inference_mode()
def faster(
    kind: Kind, dense: nn.Module, sparse: nn.Module, config: SparseConfig
) -> tuple[bool, str]:
    """Whether `sparse` is faster than `dense`, summed over the token counts, and the times."""
    training = {m: m.training for m in (*dense.modules(), *sparse.modules())}
    dense.eval()
    sparse.eval()
    total = {"dense": 0.0, "sparse": 0.0}  # microseconds
    for count in config.tokens:
        inputs = _inputs(kind, dense, count)
        calls = {"dense": lambda i=inputs: dense(*i), "sparse": lambda i=inputs: sparse(*i)}
        device, between = inputs[0].device, config.model_bytes
        times = backend_of(inputs[0]).time(calls, device, inputs[:1], between=between)
        total = {name: total[name] + micros for name, micros in times.items()}
    for m, was in training.items():
        m.training = was
    counts = ", ".join(map(str, config.tokens))
    detail = f"{counts} tokens: dense {total['dense']:.0f} us, sparse {total['sparse']:.0f} us"
    return total["sparse"] < total["dense"], detail


def _inputs(kind: Kind, module: Any, tokens: int) -> tuple[Any, ...]:
    """Random arguments of the module for one sequence of `tokens`."""
    weight = next(p for p in module.parameters() if p.dim() > 1)

    def random(*shape: int) -> Tensor:
        return torch.randn(*shape, device=weight.device).to(weight.dtype)

    if kind.name == "conv":
        reach = module.dilation[0] * (module.kernel_size[0] - 1) + 1
        return (random(1, module.in_channels, (tokens - 1) * module.stride[0] + reach),)
    if kind is EXPERTS:
        down = module._parameters[DOWN]
        experts, width = len(down), down.shape[2 if is_transposed(module) else 1]
        index = torch.stack([torch.randperm(experts)[: min(2, experts)] for _ in range(tokens)])
        return random(tokens, width), index.to(weight.device), random(*index.shape)
    attention = module if kind.name == "attention" else module.self_attn
    shape = (1, tokens) if attention.batch_first else (tokens, 1)
    x = random(*shape, attention.embed_dim)
    if kind.name == "encoder layer":
        return (x,)
    if kind.name == "decoder layer":
        return x, x
    return x, random(*shape, module.kdim), random(*shape, module.vdim), None, False
