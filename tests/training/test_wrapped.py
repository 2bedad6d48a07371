"""Models in wrappers, with shared or computed weights, and on several processes."""

from __future__ import annotations

import copy
import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.nn.parallel import DataParallel, DistributedDataParallel
from torch.nn.utils import parametrizations
from training_models import batches, gradual, network, squared, train
from two_processes import on_two_processes

from sparse_engine.errors import UnsupportedModelError, UsageError
from sparse_engine.training import Prune, Pruner
from sparse_engine.training.masks import Masks
from sparse_engine.training.training import Training

RECIPE = [
    {"prune": {"sparsity": 0.75, "end": 4, "every": 2, "layers": ["0", "2"]}},
    {"regrow": {"every": 1, "end": 6, "layers": ["2"]}},
    {"distil": {"logits": True}},
]


def trained(model: Any, parts: list[Any], **options: Any) -> Pruner:
    pruner = Pruner(model, RECIPE, teacher=network()[:3], loss=squared_part, **options)
    train(pruner, torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9), parts)
    pruner.finalize()
    return pruner


def squared_part(model: nn.Module, batch: Any) -> Tensor:
    x, y = batch
    loss: Tensor = (model(x)[:, :3] - y).square().mean()
    return loss


def trained_on_a_half(rank: int) -> list[Tensor]:
    model = network()[:3]
    parts = [(x[rank::2], y[rank::2]) for x, y in batches(6)]
    trained(DistributedDataParallel(model), parts)
    return [p.detach() for p in model.parameters()]


def test_two_processes_train_what_one_trains_on_the_whole_batch() -> None:
    model = network()[:3]
    trained(model, batches(6))
    first, second = on_two_processes(trained_on_a_half)
    assert float((first[0] == 0).float().mean()) == 0.75
    for a, b, c in zip(first, second, model.parameters(), strict=True):
        assert torch.equal(a, b)
        assert torch.equal(a == 0, c == 0)
        torch.testing.assert_close(a, c.detach(), rtol=0, atol=1e-6)


@pytest.mark.parametrize("wrap", [DataParallel, lambda m: torch.compile(m, backend="eager")])
def test_wrapped_models_train_like_plain_ones(wrap: Any) -> None:
    plain, inner = network()[:3], network()[:3]
    pruner = trained(plain, batches(6))
    wrapped = trained(wrap(inner), batches(6))
    assert wrapped.sparsity == pruner.sparsity == 0.75
    for a, b in zip(plain.parameters(), inner.parameters(), strict=True):
        torch.testing.assert_close(a, b)


def test_a_compiled_model_gives_its_hidden_states() -> None:
    x = torch.randn(4, 12)
    losses = []
    for wrap in (lambda m: m, lambda m: torch.compile(m, backend="eager")):
        torch.manual_seed(0)
        model, dense = (
            nn.Sequential(*(nn.Sequential(nn.Linear(12, 12), nn.Tanh()) for _ in range(2)))
            for _ in range(2)
        )
        recipe = [{"distil": {"hidden": 1.0}}]
        pruner = Pruner(wrap(model), recipe, teacher=dense)
        losses.append([pruner.loss(x).item() for _ in range(2)])
    assert losses[0] == pytest.approx(losses[1])
    assert losses[0][0] == losses[0][1]


def test_models_that_are_split_over_processes_are_refused(tmp_path: Path) -> None:
    torch.distributed.init_process_group(
        "gloo", init_method=f"file://{tmp_path}/meeting", rank=0, world_size=1
    )
    try:
        mesh = init_device_mesh("cpu", (1,))
        model = fully_shard(network(), mesh=mesh)
        with pytest.raises(UnsupportedModelError, match="split over processes"):
            Pruner(model, gradual(), loss=squared)
    finally:
        torch.distributed.destroy_process_group()


def test_a_model_that_is_wrapped_later_is_given_to_loss() -> None:
    model = network()
    called: list[Any] = []
    pruner = Pruner(model, gradual(), loss=lambda m, b: called.append(m) or squared(m, b))
    wrapped = DataParallel(model)
    pruner.loss(batches()[0], model=wrapped)
    pruner.loss(batches()[0])
    assert called == [wrapped, model]


def test_computed_weights_become_plain_before_a_model_is_wrapped() -> None:
    def normed() -> nn.Sequential:
        model = network()
        parametrizations.weight_norm(model[0])
        return model

    with pytest.raises(UsageError, match=r"0\.weight is computed"):
        Pruner(DataParallel(normed()), gradual(), loss=squared)
    model = normed()
    pruner = Pruner(model, gradual(), loss=squared)
    train(pruner, torch.optim.SGD(model.parameters(), lr=0.1), batches(12))
    pruner.finalize()
    assert type(model[0]) is nn.Linear
    assert (model[0].weight == 0).float().mean() == pytest.approx(0.8, abs=0.01)


def test_tied_weights_are_one() -> None:
    class Tied(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.embedding = nn.Embedding(20, 8)
            self.out = nn.Linear(8, 20, bias=False)
            self.out.weight = self.embedding.weight

        def forward(self, ids: Tensor) -> Tensor:
            scores: Tensor = self.out(self.embedding(ids))
            return scores

    torch.manual_seed(0)
    model, dense = Tied(), Tied()
    recipe = [Prune(sparsity=0.5, layers=("out",)), {"distil": {"logits": True}}]
    pruner = Pruner(model, recipe, teacher=dense)
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.1)
    train(pruner, optimizer, [torch.randint(20, (4, 5)) for _ in range(3)])
    pruner.finalize()
    assert model.out.weight is model.embedding.weight
    assert (model.out.weight == 0).float().mean() == 0.5


def test_adapters_are_merged_first() -> None:
    peft = pytest.importorskip("peft")
    model = peft.get_peft_model(network(), peft.LoraConfig(target_modules=["0", "2"], r=2))
    with pytest.raises(UsageError, match="merge_and_unload"):
        Pruner(model, gradual(), loss=squared)
    merged = model.merge_and_unload()
    pruner = Pruner(merged, gradual(end=None), loss=squared)
    merged.requires_grad_(True)
    train(pruner, torch.optim.SGD(merged.parameters(), lr=0.1), batches(2))
    assert (merged[0].weight == 0).float().mean() == pytest.approx(0.8, abs=0.01)


def test_masks_follow_a_model_to_another_device() -> None:
    model = network()
    pruner = Pruner(model, gradual(end=None), loss=squared)
    train(pruner, torch.optim.SGD(model.parameters(), lr=0.1), batches(2))
    masks = pruner.state_dict()["masks"]
    model.to("meta")  # the only other device that every machine has
    assert {mask.device.type for mask in masks.values()} == {"cpu"}
    layer = pruner._training.masks.layers[0]
    assert pruner._training.masks.of(layer).device.type == "meta"


def test_evaluation_mode_warns_once_where_it_matters() -> None:
    model = nn.Sequential(nn.Linear(12, 3), nn.Dropout(0.5)).eval()
    pruner = Pruner(model, [Prune(sparsity=0.5)], loss=squared)
    first, *others = batches(3)
    with pytest.warns(UserWarning, match=r"call model\.train\(\)"):
        pruner.loss(first)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for batch in others:
            pruner.loss(batch)
    plain = copy.deepcopy(model)[:1]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        Pruner(plain.eval(), [Prune(sparsity=0.5)], loss=squared).loss(first)


@pytest.mark.parametrize("name", ["synchronise", "set", "note"])
def test_an_interrupt_in_an_event_leaves_all_as_before_it(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    data = batches(12)
    whole = network()
    train(Pruner(whole, gradual(), loss=squared), torch.optim.SGD(whole.parameters(), lr=0.1), data)
    model = network()
    pruner = Pruner(model, gradual(), loss=squared)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    train(pruner, optimizer, data[:3])
    before = pruner.state_dict()["masks"]
    assert pruner.sparsity > 0
    owner = Masks if name == "set" else Training
    original = getattr(owner, name)
    calls = []

    def interrupted(self: Any, *args: Any) -> None:
        if name == "set":
            original(self, *args)
        calls.append(name)
        raise KeyboardInterrupt

    loss = pruner.loss(data[3])
    loss.backward()
    with monkeypatch.context() as patch:
        patch.setattr(owner, name, interrupted)
        with pytest.raises(KeyboardInterrupt):
            pruner.step(optimizer)
    assert calls
    after = pruner.state_dict()["masks"]
    assert all(torch.equal(after[key], before[key]) for key in before)
    optimizer.zero_grad()
    train(pruner, optimizer, data[4:])  # the event happens then
    for a, b in zip(model.parameters(), whole.parameters(), strict=True):
        assert torch.equal(a, b)
