"""SparseExperts: the experts of a mixture, each a sparse feed-forward. Inference only."""

from __future__ import annotations

from typing import Any, Self

import torch
from torch import Tensor, nn

from sparse_engine.config import SparseConfig
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
from sparse_engine.nn.parts import dense_part, sparse_parts_


class SparseExperts(nn.Module):
    """sum over the chosen experts e of weight[e] down[e](act(gate[e](x)) up[e](x)), under the model's
    own router (Shazeer et al. 2017; gated as Shazeer 2020).

    `gate_up_proj.3` and `down_proj.3` are the layers of expert 3: gate and up are one product. The
    activation, and a norm after each expert, are those of the module that it stands for.

    >>> SparseExperts.from_dense(model.model.layers[0].mlp.experts, "csr")
    """

    first: str
    transposed: bool
    _shell: tuple[Any]

    @classmethod
    def like(cls, module: Any) -> Self:
        """A twin whose layers still are dense views of the parameters of `module`."""
        check_plain(module)
        told = refusal(module)
        if told:
            raise UsageError(told)
        twin = cls.__new__(cls)
        nn.Module.__init__(twin)
        first = str(up_name(module))
        fused = {f"{name}{end}" for name in (first, DOWN) for end in ("", "_bias")}
        # What is left of `module` without its weights: options, activation, gate.
        shell = _empty(module)
        shell.__dict__.update(module.__dict__)
        twin._parameters = {k: p for k, p in module._parameters.items() if k not in fused}
        twin._modules = dict(module._modules)
        shell._parameters, shell._modules = twin._parameters, dict(module._modules)
        twin.first, twin.transposed = first, is_transposed(module)
        twin._shell = (shell,)  # in a tuple, so that it is no submodule
        for name, linears in expert_linears(module).items():
            twin.add_module(name, nn.ModuleList(linears))
        return twin.train(module.training)

    @classmethod
    def from_dense(cls, module: nn.Module, config: SparseConfig | str | None = None) -> Self:
        """Store the weights of every expert of `module` as `config` says; raises UsageError for
        experts that compute something else (`sparse_engine.modules.experts.refusal` says what).
        """
        twin = cls.like(module)
        sparse_parts_(twin, config)
        return twin

    def to_dense(self, dtype: torch.dtype | None = None) -> nn.Module:
        """The module that it stands for, with the same weights."""
        shell = self._shell[0]
        dense = _empty(shell)
        dense.__dict__.update(shell.__dict__)
        dense._modules = {name: m for name, m in self._modules.items() if name in shell._modules}
        dense._parameters = dict(self._parameters)
        for name in (self.first, DOWN):
            parts = [dense_part(part, dtype) for part in self.get_submodule(name).children()]
            weights = [part.weight.t() if self.transposed else part.weight for part in parts]
            parameter = nn.Parameter(torch.stack(weights), requires_grad=False)
            dense.register_parameter(name, parameter)
            if parts[0].bias is not None:
                biases = torch.stack([part.bias for part in parts])
                dense.register_parameter(f"{name}_bias", nn.Parameter(biases, requires_grad=False))
        return dense.train(self.training)

    def forward(self, hidden_states: Tensor, top_k_index: Tensor, top_k_weights: Tensor) -> Tensor:
        """y [tokens, hidden] of x [tokens, hidden]; the chosen experts and their weights are
        [tokens, k].
        """
        first, down = self.get_submodule(self.first), self.get_submodule(DOWN)
        return run_experts(self._shell[0], first, down, hidden_states, top_k_index, top_k_weights)

    def __getattr__(self, name: str) -> Any:
        """What models look for on their experts: num_experts, config..."""
        try:
            return super().__getattr__(name)
        except AttributeError:
            shell = self.__dict__.get("_shell")
            if shell is None or name.startswith("__"):
                raise
            return getattr(shell[0], name)


def _empty(module: nn.Module) -> nn.Module:
    """Another instance of the class of `module`, not initialised."""
    cls: Any = type(module)
    made: nn.Module = cls.__new__(cls)
    return made
