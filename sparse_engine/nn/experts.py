"""SparseExperts: the experts of a mixture, each a sparse feed-forward. Inference only."""

from __future__ import annotations

from typing import Any, Self

import torch
from torch import Tensor, nn

from sparse_engine.errors import UsageError
from sparse_engine.modules.effective import check_plain
from sparse_engine.modules.experts import (
    DOWN,
    expert_linears,
    is_transposed,
    refusal,
    run_experts,
    up_name,
)
from sparse_engine.nn.parts import ComposedModule, as_dense_linear


class SparseExperts(ComposedModule):
    """sum over the chosen experts e of weight[e] down[e](act(gate[e](x)) up[e](x)).

    The router of the model chooses the experts (Shazeer et al. 2017; gated as in Shazeer 2020).
    `gate_up_proj.3` and `down_proj.3` are the layers of expert 3: gate and up are one product. The
    activation, and a norm after each expert, are those of the module that this one replaces.

    >>> SparseExperts.from_dense(model.model.layers[0].mlp.experts, "csr")
    """

    first: str
    """Name of the layers that read the hidden states: "gate_up_proj" or "up_proj"."""
    transposed: bool
    """Whether the fused parameters are [experts, in, out]."""
    _shell: tuple[Any]
    """The module that this one replaces, without its weights."""

    @classmethod
    def unpacked(cls, module: Any) -> Self:
        """See ComposedModule.unpacked.

        Raises:
            UsageError: `module` computes something else (`modules.experts.refusal`), or has weights
                that are computed before each call.
        """
        check_plain(module)
        reason = refusal(module)
        if reason:
            raise UsageError(reason)
        experts = cls.__new__(cls)
        nn.Module.__init__(experts)
        first = str(up_name(module))
        fused = {f"{name}{end}" for name in (first, DOWN) for end in ("", "_bias")}
        shell = _uninitialised(module)
        shell.__dict__.update(module.__dict__)
        experts._parameters = {k: p for k, p in module._parameters.items() if k not in fused}
        experts._modules = dict(module._modules)
        shell._parameters, shell._modules = experts._parameters, dict(module._modules)
        experts.first, experts.transposed = first, is_transposed(module)
        experts._shell = (shell,)  # in a tuple, so that it is no submodule
        for name, linears in expert_linears(module).items():
            experts.add_module(name, nn.ModuleList(linears))
        return experts.train(module.training)

    def to_dense(self, dtype: torch.dtype | None = None) -> nn.Module:
        """The module that this one replaced, with the same weights, in `dtype` or their own."""
        shell = self._shell[0]
        dense = _uninitialised(shell)
        dense.__dict__.update(shell.__dict__)
        dense._modules = {name: m for name, m in self._modules.items() if name in shell._modules}
        dense._parameters = dict(self._parameters)
        for name in (self.first, DOWN):
            parts = [as_dense_linear(part, dtype) for part in self.get_submodule(name).children()]
            weights = [part.weight.t() if self.transposed else part.weight for part in parts]
            parameter = nn.Parameter(torch.stack(weights), requires_grad=False)
            dense.register_parameter(name, parameter)
            if parts[0].bias is not None:
                biases = torch.stack([part.bias for part in parts])
                dense.register_parameter(f"{name}_bias", nn.Parameter(biases, requires_grad=False))
        return dense.train(self.training)

    def forward(self, hidden_states: Tensor, top_k_index: Tensor, top_k_weights: Tensor) -> Tensor:
        """The weighted sum of the chosen experts' outputs, [tokens, hidden].

        Args:
            hidden_states: [tokens, hidden].
            top_k_index: the chosen experts, int64 [tokens, k].
            top_k_weights: their weights, [tokens, k].
        """
        first, down = self.get_submodule(self.first), self.get_submodule(DOWN)
        return run_experts(self._shell[0], first, down, hidden_states, top_k_index, top_k_weights)

    def __getattr__(self, name: str) -> Any:
        """Attributes that models read from their experts, such as num_experts and config."""
        try:
            return super().__getattr__(name)
        except AttributeError:
            shell = self.__dict__.get("_shell")
            if shell is None or name.startswith("__"):
                raise
            return getattr(shell[0], name)


def _uninitialised(module: nn.Module) -> nn.Module:
    """Another instance of the class of `module`, whose constructor was not run."""
    cls: Any = type(module)
    made: nn.Module = cls.__new__(cls)
    return made
