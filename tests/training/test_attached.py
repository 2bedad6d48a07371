"""Steps of any optimizer: closures, scalers that skip, other states, steps of base classes."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from training_models import batches, gradual, network, squared, train

from sparse_engine.errors import UsageError
from sparse_engine.training import Prune, Pruner


def zeros(model: Any) -> dict[str, Tensor]:
    return {name: p == 0 for name, p in model.named_parameters()}


def weights(model: Any) -> list[Tensor]:
    return [p.detach().clone() for p in model.parameters()]


def reference(make: Callable[[Any], torch.optim.Optimizer], **options: Any) -> Any:
    """A model trained by `step`, a batch after the other."""
    model = network()
    train(Pruner(model, gradual(**options), loss=squared), make(model.parameters()), batches(12))
    return model


def sgd(parameters: Any) -> torch.optim.Optimizer:
    return torch.optim.SGD(parameters, lr=0.1, momentum=0.9)


@pytest.mark.parametrize("closure", [False, True])
def test_an_attached_optimizer_is_stepped_as_usual(closure: bool) -> None:
    model = network()
    pruner = Pruner(model, gradual(), loss=squared)
    optimizer = sgd(model.parameters())
    pruner.attach(optimizer)
    for batch in batches(12):

        def compute(batch: Any = batch) -> Tensor:
            optimizer.zero_grad()
            loss = pruner.loss(batch)
            loss.backward()
            return loss

        if closure:
            optimizer.step(compute)
        else:
            compute()
            optimizer.step()
    assert pruner.steps == 12
    expected = reference(sgd)
    for a, b in zip(model.parameters(), expected.parameters(), strict=True):
        assert torch.equal(a, b)
    pruner.finalize()
    optimizer.zero_grad()
    squared(model, batches()[0]).backward()
    optimizer.step()  # a finalized Pruner has let go
    assert model[0].weight.all()


def test_a_step_that_calls_that_of_its_base_class_counts_once() -> None:
    class Outer(torch.optim.SGD):
        def step(self, closure: Any = None) -> Any:
            super().step(closure)
            with torch.no_grad():
                for group in self.param_groups:
                    for parameter in group["params"]:
                        parameter.add_(0.01)  # a decay, or whatever comes after

    torch.optim.SGD(network().parameters())  # its step has hooks too now
    model = network()
    pruner = Pruner(model, gradual(), loss=squared)
    train(pruner, Outer(model.parameters(), lr=0.1), batches(12))
    assert pruner.steps == 12
    assert zeros(model)["0.weight"].float().mean() == pytest.approx(0.8, abs=0.01)


class Rows(torch.optim.Optimizer):
    """A moment of each row and each column, and codes of 8 bits, as memory-saving optimizers."""

    def __init__(self, parameters: Any) -> None:
        super().__init__(parameters, {})

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:
        for group in self.param_groups:
            for p in group["params"]:
                state = self.state[p]
                state.setdefault("row", p.new_ones(p.shape[:1]))
                state.setdefault("codes", torch.full_like(p, 7, dtype=torch.uint8))
                state["row"].add_(p.grad.square().flatten(1).mean(-1) if p.ndim > 1 else 0)
                p.add_(p.grad + 0.01, alpha=-0.1)


@pytest.mark.parametrize(
    "make",
    [
        Rows,
        lambda p: torch.optim.Adafactor(p, lr=0.01),
        lambda p: torch.optim.Adam(p, lr=0.01, eps=0.0),  # 0 / 0 where a weight is removed
        lambda p: torch.optim.AdamW(p, lr=0.01, fused=True),
        lambda p: torch.optim.SGD(p, lr=0.01, momentum=0.9, maximize=True, foreach=True),
    ],
)
def test_states_of_other_shapes(make: Callable[[Any], torch.optim.Optimizer]) -> None:
    model = network()
    pruner = Pruner(model, gradual(), loss=squared)
    optimizer = make(model.parameters())
    train(pruner, optimizer, batches(12))
    for layer in (model[0], model[2]):
        assert layer.weight.isfinite().all()
        assert (layer.weight == 0).float().mean() == pytest.approx(0.8, abs=0.01)
    for state in optimizer.state.values():
        assert (state.get("codes", torch.tensor(7)) == 7).all()


def test_adafactor_of_transformers() -> None:
    optimization = pytest.importorskip("transformers.optimization")
    model = network()
    pruner = Pruner(model, gradual(), loss=squared)
    train(pruner, optimization.Adafactor(model.parameters()), batches(12))
    assert (model[0].weight == 0).float().mean() == pytest.approx(0.8, abs=0.01)


@pytest.mark.parametrize("fused", [False, True])
def test_a_step_that_a_scaler_skips_does_not_count(fused: bool) -> None:
    events: list[str] = []

    class Look(Prune):
        def before_step(self, training: Any) -> None:
            events.append("before")

        def after_step(self, training: Any) -> None:
            events.append("after")

    model = network()
    pruner = Pruner(model, [Look(sparsity=0.5, start=1, layers=("0",))], loss=squared)
    optimizer = torch.optim.Adam(model.parameters(), lr=0.01, fused=fused)
    scaler = torch.amp.GradScaler("cpu", init_scale=1024.0)
    *good, last = batches(3)
    for i, batch in enumerate([good[0], (good[1][0] * torch.inf, good[1][1]), good[1], last]):
        before = weights(model)
        if i == 1:  # a loss that is not finite is refused by `loss`
            scaler.scale(squared(model, (batch[1] @ torch.ones(3, 12), batch[1]))).backward()
            model[0].weight.grad[0, 0] = torch.inf
        else:
            scaler.scale(pruner.loss(batch)).backward()
        pruner.step(optimizer, scaler)
        same = all(map(torch.equal, before, weights(model)))
        assert same == (i == 1)
    assert pruner.steps == 3
    assert events == ["before", "after"] * 3
    assert scaler.get_scale() == 512
    assert (model[0].weight == 0).float().mean() == 0.5


@pytest.mark.parametrize("clips", [False, True])
@pytest.mark.parametrize("fused", [False, True])
def test_modifiers_see_gradients_without_the_scale(fused: bool, clips: bool) -> None:
    seen = []

    class Look(Prune):
        def before_step(self, training: Any) -> None:
            seen.append(training.model[0].weight.grad.norm().item())

    found = []
    for scale in (1.0, 1024.0):
        model = network()
        pruner = Pruner(model, [Look(sparsity=0.5, layers=("0",))], loss=squared)
        optimizer = torch.optim.AdamW(model.parameters(), lr=0.1, fused=fused)
        scaler = torch.amp.GradScaler("cpu", init_scale=scale)
        scaler.scale(pruner.loss(batches()[0])).backward()
        if clips:
            scaler.unscale_(optimizer)
            nn.utils.clip_grad_norm_(model.parameters(), 0.01)
        pruner.step(optimizer, scaler)
        found.append(weights(model))
    assert seen[1] == pytest.approx(seen[0])
    for a, b in zip(*found, strict=True):
        torch.testing.assert_close(a, b)


def test_another_optimizer_takes_the_place_of_the_first() -> None:
    model = network()
    pruner = Pruner(model, gradual(), loss=squared)
    first, second = sgd(model.parameters()), sgd(model.parameters())
    train(pruner, first, batches(3))
    train(pruner, second, batches(3))
    assert pruner.steps == 6
    assert not first._optimizer_step_post_hooks


def test_a_wrapper_that_changes_weights_after_the_step() -> None:
    class Lookahead:
        """Zhang et al. 2019, arXiv:1907.08610: weights go back towards slow ones."""

        def __init__(self, optimizer: torch.optim.Optimizer) -> None:
            self.optimizer = optimizer
            self.slow = [p.detach().clone() for g in optimizer.param_groups for p in g["params"]]

        @torch.no_grad()
        def step(self) -> None:
            self.optimizer.step()
            fast = [p for g in self.optimizer.param_groups for p in g["params"]]
            for slow, p in zip(self.slow, fast, strict=True):
                p.copy_(slow.lerp_(p, 0.5))

        def zero_grad(self) -> None:
            self.optimizer.zero_grad()

    model = network()
    pruner = Pruner(model, gradual(), loss=squared)
    train(pruner, Lookahead(sgd(model.parameters())), batches(12))
    assert pruner.steps == 12
    assert (model[0].weight == 0).float().mean() == pytest.approx(0.8, abs=0.01)


def test_optimizers_that_do_not_fit_are_refused() -> None:
    model = network()
    pruner = Pruner(model, gradual(), loss=squared)
    with pytest.raises(UsageError, match="LBFGS"):
        pruner.step(torch.optim.LBFGS(model.parameters()))
    with pytest.raises(UsageError, match=r"give a torch\.optim\.Optimizer"):
        pruner.step(0.1)
    other = sgd(network().parameters())
    with pytest.raises(UsageError, match=r"does not hold 0\.weight"):
        pruner.step(other)
    assert not other._optimizer_step_pre_hooks
    assert pruner.steps == 0


def test_frozen_weights_are_pruned_without_an_optimizer() -> None:
    model = network()
    model[0].requires_grad_(False)
    pruner = Pruner(model, gradual(), loss=squared)
    optimizer = sgd(p for p in model.parameters() if p.requires_grad)
    train(pruner, optimizer, batches(12))
    kept = model[0].weight != 0
    assert kept.float().mean() == pytest.approx(0.2, abs=0.01)
    assert torch.equal(model[0].weight[kept], network()[0].weight[kept])


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_models_of_16_bits(dtype: torch.dtype) -> None:
    model, dense = network().to(dtype), network().to(dtype)
    pruner = Pruner(model, [*gradual(), {"distil": {}}], teacher=dense)
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.01, eps=1e-4)
    losses = train(pruner, optimizer, [x.to(dtype) for x, _ in batches(12)])
    assert losses[-1] > 0
    assert (model[0].weight == 0).float().mean() == pytest.approx(0.8, abs=0.01)
    assert model[0].weight.isfinite().all()
