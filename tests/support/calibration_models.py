"""Small models to calibrate, and the statistics that their calibration collects."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from sparse_engine.errors import UsageError
from sparse_engine.pruning import prune
from sparse_engine.pruning.calibration import Batch
from sparse_engine.pruning.plan import make_plan
from sparse_engine.pruning.progress import Progress
from sparse_engine.pruning.statistics.collector import Collection, Collector
from sparse_engine.pruning.statistics.dense_weights import DenseWeights

transformers = pytest.importorskip("transformers")

SIZES = {
    "vocab_size": 50,
    "hidden_size": 16,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 24,
    "max_position_embeddings": 40,
    "initializer_range": 0.3,
}


def bert(head: str = "BertModel", **changes: Any) -> nn.Module:
    torch.manual_seed(0)
    kind = head.partition("For")[0].removesuffix("Model")
    config = getattr(transformers, f"{kind}Config")(**SIZES | changes)
    model: nn.Module = getattr(transformers, head)(config).eval().requires_grad_(False)
    return model


def t5() -> nn.Module:
    torch.manual_seed(0)
    sizes = {"d_model": 16, "d_kv": 8, "d_ff": 24, "num_layers": 2, "num_heads": 2}
    config = transformers.T5Config(
        vocab_size=50, decoder_start_token_id=0, pad_token_id=0, eos_token_id=1, **sizes
    )
    model: nn.Module = transformers.T5ForConditionalGeneration(config).eval()
    return model.requires_grad_(False)


def mlp() -> nn.Sequential:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 3))
    return model.requires_grad_(False)


def ids(*shape: int, seed: int = 0) -> Tensor:
    return torch.randint(2, 50, shape, generator=torch.Generator().manual_seed(seed))


def message_of(model: nn.Module, calibration: Any, **options: Any) -> str:
    """The message that `prune` is refused with, one line; the weights must not have changed."""
    before = {name: p.clone() for name, p in model.named_parameters()}
    with pytest.raises(UsageError) as caught:
        prune(model, 0.5, criterion="wanda", calibration=calibration, **options)
    assert all(torch.equal(before[name], p) for name, p in model.named_parameters())
    assert "\n" not in str(caught.value)
    return str(caught.value)


def same(a: list[Batch], b: list[Batch]) -> bool:
    """Whether batches have the same arguments, dtypes included, and masks."""
    for x, y in zip(a, b, strict=True):
        values = [*zip(x.args, y.args, strict=True)]
        values += [(x.kwargs[key], y.kwargs[key]) for key in x.kwargs | y.kwargs]
        values += [*zip(x.masks, y.masks, strict=True)]
        for left, right in values:
            if not torch.equal(left, right) or left.dtype != right.dtype:
                return False
    return True


def check(found: dict[str, Tensor], expected: dict[str, Tensor]) -> None:
    """Equal up to rounding, relative to the largest sums."""
    assert found.keys() == expected.keys()
    for name, sums in expected.items():
        assert float((found[name] - sums).abs().max() / sums.abs().max()) < 5e-5, name


def statistics(model: nn.Module, batches: list[Batch]) -> dict[str, Tensor]:
    """Sums over the dense model's inputs, by the first layer that reads them."""
    plan = make_plan(model)
    with torch.no_grad():
        collection = Collection(moments=True, pruned_inputs=False)
        dense, progress = DenseWeights(plan.layers), Progress(None, 1)
        collector = Collector(model, plan, batches, dense, collection, progress)
        return {
            group.layers[0].name: moments.hessian(centred=False)  # type: ignore[union-attr]
            for group, moments in collector.groups()
        }
