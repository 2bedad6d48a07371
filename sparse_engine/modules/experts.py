"""Mixture-of-experts layers whose experts are fused parameters, as lists of linear layers.

transformers 5 stores the experts of a layer in three-dimensional parameters: `gate_up_proj`
[experts, 2 x inner, hidden] and `down_proj` [experts, hidden, inner], or `up_proj` where there is
no gate. Some models (GPT-OSS, Aria) transpose each of them, and some have biases [experts, out].
The router of the model chooses experts for each token and calls
`experts(hidden_states, top_k_index, top_k_weights)`. Experts that are modules of a ModuleList
already consist of linear layers and are not handled here.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from sparse_engine.modules.linears import linear_of

DOWN = "down_proj"
# Largest difference of `UnrolledExperts` to the module's own forward, over the largest output.
TOLERANCE = {torch.float32: 1e-3, torch.float64: 1e-3}
TOLERANCE_HALF = 5e-2


def is_experts(module: nn.Module) -> bool:
    """Whether `module` holds experts in fused parameters named as transformers names them."""
    if up_name(module) is None:
        return False
    weights = [module._parameters.get(name) for name in (up_name(module) or "", DOWN)]
    return all(weight is not None and weight.dim() == 3 for weight in weights)


def up_name(module: nn.Module) -> str | None:
    """The parameter that is multiplied by the hidden states: "gate_up_proj", "up_proj", or None."""
    names = ("gate_up_proj", "up_proj")
    return next((name for name in names if module._parameters.get(name) is not None), None)


def is_transposed(module: nn.Module) -> bool:
    """Whether the weight of an expert is [in, out], by the module's flag or by the shapes."""
    flag = getattr(module, "is_transposed", None)
    if flag is not None:
        return bool(flag)
    first, down = (module._parameters[name] for name in (up_name(module) or "", DOWN))
    assert first is not None
    assert down is not None
    return first.shape[1] == down.shape[2] and first.shape[2] == 2 * down.shape[1]


def expert_linears(module: nn.Module) -> dict[str, list[nn.Linear]]:
    """One torch.nn.Linear [out, in] an expert for each of the two parameters, by parameter name.

    Their weights are views of the parameters: writing to one changes the module.
    """
    transposed = is_transposed(module)
    made: dict[str, list[nn.Linear]] = {}
    for name in (up_name(module) or "", DOWN):
        weights, biases = module._parameters[name], module._parameters.get(f"{name}_bias")
        assert weights is not None
        made[name] = [
            linear_of(weight.t() if transposed else weight, None if biases is None else biases[i])
            for i, weight in enumerate(weights.detach())
        ]
    return made


def refusal(module: nn.Module) -> str:
    """Why the experts of `module` cannot run as linear layers; "" if they can.

    Shapes must agree, and so must outputs for a few random tokens: a class with the same parameters
    may still compute something else.
    """
    kind = type(module).__name__
    first, down = (module._parameters.get(name) for name in (up_name(module) or "", DOWN))
    if first is None or down is None or first.dim() != 3 or down.dim() != 3:
        return f"{kind} has no fused experts"
    gates = 1 if getattr(module, "has_gate", True) is False else 2
    (out, width), (hidden, inner) = (
        (p.shape[:0:-1] if is_transposed(module) else p.shape[1:]) for p in (first, down)
    )
    if (len(first), out, width) != (len(down), gates * inner, hidden):
        return f"{kind}: {up_name(module)} {list(first.shape)} does not fit {list(down.shape)}"
    return "" if first.is_meta else _compare(module, len(first), width)


def _compare(module: nn.Module, experts: int, width: int) -> str:
    kind, parameter = type(module).__name__, next(module.parameters())
    generator = torch.Generator().manual_seed(0)
    tokens, k = 4, min(2, experts)
    x = torch.randn(tokens, width, generator=generator).to(parameter)
    index = torch.stack([torch.randperm(experts, generator=generator)[:k] for _ in range(tokens)])
    weights = torch.rand(tokens, k, generator=generator).to(parameter)
    indices = [index]
    if not hasattr(module, "is_transposed"):  # not of transformers: may have zero experts
        indices.append(index + experts)
    for chosen in (index.to(x.device) for index in indices):
        with torch.inference_mode():
            try:
                own = module(x, chosen, weights)
            except Exception as error:  # an unknown class raises anything
                if chosen.max() >= experts:
                    continue
                return f"{kind} is not called as experts are ({type(error).__name__})"
            if not isinstance(own, Tensor) or own.shape != x.shape:
                return f"{kind} does not return one hidden state a token"
            ours = UnrolledExperts(module)(x, chosen, weights)
        scale = own.float().abs().max().clamp_min(1e-30)
        distance = float((own.float() - ours.float()).abs().max() / scale)
        if not distance <= TOLERANCE.get(parameter.dtype, TOLERANCE_HALF):
            return f"{kind} computes something else than gated experts"
    return ""


class UnrolledExperts(nn.Module):
    """Fused experts as linear layers: `gate_up_proj.3` is that of expert 3, and shares its memory.

    The slow, obvious reference for SparseExperts, and what pruning prunes.
    """

    def __init__(self, module: nn.Module) -> None:
        super().__init__()
        self._original = (module,)  # in a tuple, so that it is no submodule
        self.first = up_name(module) or ""
        for name, linears in expert_linears(module).items():
            self.add_module(name, nn.ModuleList(linears))
        self.train(module.training)

    def forward(self, hidden_states: Tensor, top_k_index: Tensor, top_k_weights: Tensor) -> Tensor:
        """What the module returns, [tokens, hidden]; top_k_* are [tokens, k]."""
        first, down = self.get_submodule(self.first), self.get_submodule(DOWN)
        return run_experts(
            self._original[0], first, down, hidden_states, top_k_index, top_k_weights
        )


def run_experts(
    module: Any, first: Any, down: Any, hidden: Tensor, index: Tensor, weights: Tensor
) -> Tensor:
    """sum over chosen experts e of weight[e] down[e](gate(first[e](x))), [tokens, hidden].

    The tokens of an expert are gathered side by side: one gather, a call for each chosen expert,
    one scatter. An index that is not an expert adds nothing.

    Args:
        module: has the gate, and the norm after each expert where its model has one.
        first: the layers that read the hidden states, one an expert.
        down: the layers that write them, one an expert.
        hidden: [tokens, hidden].
        index: the chosen experts, int64 [tokens, k].
        weights: of the chosen experts, [tokens, k].
    """
    chosen = index.flatten()
    order = chosen.argsort(stable=True)
    tokens = order.div(index.shape[-1], rounding_mode="floor")
    rows = hidden.index_select(0, tokens)
    counts = chosen.bincount(minlength=len(first)).tolist()[: len(first)]
    outputs, start = [], 0
    for expert, count in enumerate(counts):
        if count:
            inner = gate(module, first[expert](rows[start : start + count]))
            outputs.append(down[expert](inner))
            start += count
    result = torch.zeros_like(hidden)
    if not outputs:
        return result
    y = torch.cat(outputs)
    if getattr(module, "has_post_expert_norm", False):
        y = module.post_expert_norm(y)
    y = y * weights.flatten().index_select(0, order[:start])[:, None]
    return result.index_add_(0, tokens[:start], y.to(result.dtype))


def gate(module: Any, x: Tensor) -> Tensor:
    """The gated activation between an expert's two products; the module's own one if it has one."""
    if getattr(module, "has_gate", True) is False:
        return module.act_fn(x)
    if hasattr(module, "_apply_gate"):
        return module._apply_gate(x)
    gated, up = x.chunk(2, dim=-1)
    return module.act_fn(gated) * up
