"""Models whose layers run natively, and ways to change them."""

from __future__ import annotations

import math
from typing import Any

import torch
import transformers
from torch import Tensor, nn

from sparse_engine.nn import NativeStack

SIZES = {
    "vocab_size": 50,
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "intermediate_size": 48,
    "max_position_embeddings": 40,
}
IDS = torch.arange(14).view(2, 7) % 50


def thinned(model: nn.Module) -> nn.Module:
    """Three of four weights of every linear layer are zero; the others are large enough to
    matter.
    """
    generator = torch.Generator().manual_seed(1)
    for module in model.modules():
        if type(module).__name__ in ("Linear", "Conv1D"):
            shape = module.weight.shape
            kept = torch.rand(shape, generator=generator) < 0.25
            value = torch.randn(shape, generator=generator) * 2 / math.sqrt(min(shape))
            module.weight.data = value * kept
    return model.eval()


def bert() -> Any:
    torch.manual_seed(0)
    return thinned(transformers.BertModel(transformers.BertConfig(**SIZES)))


def llama() -> Any:
    torch.manual_seed(0)
    config = transformers.LlamaConfig(**SIZES, num_key_value_heads=2)
    return thinned(transformers.LlamaForCausalLM(config))


def gpt2() -> Any:
    torch.manual_seed(0)
    config = transformers.GPT2Config(n_embd=32, n_layer=2, n_head=4, vocab_size=50, n_positions=40)
    return thinned(transformers.GPT2LMHeadModel(config))


def states(model: Any) -> Tensor:
    with torch.inference_mode():
        return model(input_ids=IDS)[0]


def is_native(model: nn.Module) -> bool:
    return any(isinstance(module, NativeStack) for module in model.modules())


class Louder(nn.Linear):
    def forward(self, x: Tensor) -> Tensor:
        return 2 * super().forward(x)


def with_class(module: nn.Module, name: str, kind: type) -> None:
    parent, _, child = name.rpartition(".")
    old: Any = module.get_submodule(name)
    new = kind(old.in_features, old.out_features)
    new.load_state_dict(old.state_dict())
    setattr(module.get_submodule(parent), child, new)


def louder_output(module: nn.Module, args: Any, output: Any) -> Any:
    return (output[0] * 1.5, *output[1:]) if isinstance(output, tuple) else output * 1.5


class Doubled(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return 2 * x


def patch(module: Any, factor: float = 1.5) -> None:
    old = module.forward
    module.forward = lambda *args, **kwargs: old(*args, **kwargs) * factor
