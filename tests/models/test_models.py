"""Model families: recognition, layers, residual streams."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from sparse_engine.models import FAMILIES, Bert, find_family

transformers = pytest.importorskip("transformers")

SMALL = {
    "hidden_size": 16,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 24,
    "vocab_size": 50,
    "max_position_embeddings": 40,
}


def make(kind: str, head: str = "Model") -> nn.Module:
    torch.manual_seed(0)
    config = getattr(transformers, f"{kind}Config")(**SMALL)
    model: nn.Module = getattr(transformers, f"{kind}{head}")(config)
    return model.eval()


@pytest.mark.parametrize("kind", ["Bert", "Roberta", "XLMRoberta", "Camembert", "Electra"])
def test_encoders_are_recognised(kind: str) -> None:
    model = make(kind)
    family = find_family(model)
    assert isinstance(family, Bert)
    assert family.layers(model) == ["encoder.layer.0", "encoder.layer.1"]


def test_names_carry_the_prefix_of_a_head_model() -> None:
    model = make("Bert", "ForSequenceClassification")
    family = find_family(model)
    assert family is not None
    assert family.layers(model)[0] == "bert.encoder.layer.0"


def test_residual_is_what_the_linear_output_is_added_to() -> None:
    model = make("Bert")
    residuals = Bert().residuals(model)
    assert len(residuals) == 4
    modules = dict(model.named_modules())
    seen: dict[str, torch.Tensor] = {}
    for name, residual in residuals.items():
        parent = modules[residual.module]

        def keep_stream(
            _: nn.Module,
            args: tuple[torch.Tensor, ...],
            name: str = name,
            at: int = residual.argument,
        ) -> None:
            seen[f"{name} stream"] = args[at]

        def keep_output(_: nn.Module, args: object, out: torch.Tensor, name: str = name) -> None:
            seen[f"{name} output"] = out

        def keep_sum(_: nn.Module, args: tuple[torch.Tensor, ...], name: str = name) -> None:
            seen[f"{name} sum"] = args[0]

        parent.register_forward_pre_hook(keep_stream)
        modules[name].register_forward_hook(keep_output)
        modules[f"{residual.module}.LayerNorm"].register_forward_pre_hook(keep_sum)
    with torch.no_grad():
        model(input_ids=torch.arange(7)[None])
    for name in residuals:
        torch.testing.assert_close(
            seen[f"{name} sum"], seen[f"{name} output"] + seen[f"{name} stream"]
        )


def test_other_models_belong_to_no_family() -> None:
    assert find_family(nn.Sequential(nn.Linear(2, 2))) is None
    assert len({family.name for family in FAMILIES}) == len(FAMILIES)
