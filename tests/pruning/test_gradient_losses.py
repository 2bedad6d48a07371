"""Which loss is differentiated: exact curvatures by enumeration, and what is refused."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
from calibration_models import bert
from driver_models import batches, bert_batches, hooks, mlp, same, state
from gradient_models import items, model_of, squared_error
from torch import Tensor, nn
from torch.autograd.functional import hessian, jacobian

from sparse_engine.errors import UsageError
from sparse_engine.pruning import Criterion, Inputs, prune
from sparse_engine.pruning.calibration import Batch
from sparse_engine.pruning.gradients.sampled import sampled_loss

CRITERIA = ["taylor", "taylor(signed=True)", "snip", "fisher", "fisher(block=5)"]


def draws(loss: Callable[[torch.Generator], Tensor], weight: Tensor, count: int) -> list[Tensor]:
    """The different gradients among the draws of a loss, whose values differ."""
    found: dict[float, Tensor] = {}
    for seed in range(500):
        value = loss(torch.Generator().manual_seed(seed))
        if value.item() not in found:
            (found[value.item()],) = torch.autograd.grad(value, weight)
    assert len(found) == count
    return list(found.values())


def test_labels_are_drawn_from_the_outputs_so_that_squares_give_the_hessian() -> None:
    """sum_y p(y) g_y g_y^T is the Hessian of the KL divergence to the dense model's p."""
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(1, 3, generator=generator)
    dense = torch.randn(4, 3, generator=generator)
    p = (x @ dense.T).softmax(-1)

    def divergence(weight: Tensor) -> Tensor:
        return (p * (p.log() - (x @ weight.T).log_softmax(-1))).sum()

    weight = dense.clone().requires_grad_()
    batch = Batch((x,), {})
    fisher = torch.zeros(12, 12)
    probabilities = []
    for seed in range(200):
        loss = sampled_loss({"logits": x @ weight.T}, batch, torch.Generator().manual_seed(seed))
        probabilities.append(loss.neg().exp().item())
        (gradient,) = torch.autograd.grad(loss, weight)
        fisher += torch.outer(gradient.flatten(), gradient.flatten()) / 200
    gradients = draws(lambda g: sampled_loss({"logits": x @ weight.T}, batch, g), weight, count=4)
    exact = torch.zeros(12, 12)
    for g in gradients:
        y = int((g @ x[0]).argmin())  # g = (p - e_y) x^T
        exact += p[0, y] * torch.outer(g.flatten(), g.flatten())
    expected = hessian(divergence, dense).reshape(12, 12)
    torch.testing.assert_close(exact, expected, rtol=1e-4, atol=1e-6)
    assert float((fisher - expected).norm() / expected.norm()) < 0.2
    for value in p[0].tolist():
        share = sum(abs(found - value) < 1e-6 for found in probabilities) / 200
        assert share == pytest.approx(value, abs=0.1)


def test_signs_give_the_gauss_newton_matrix() -> None:
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(1, 2, generator=generator)
    weight = torch.randn(3, 2, generator=generator).requires_grad_()

    def output(w: Tensor) -> Tensor:
        return (x @ w.T).tanh()

    batch = Batch((x,), {})
    gradients = draws(lambda g: sampled_loss((output(weight),), batch, g), weight, count=8)
    exact = torch.stack([torch.outer(g.flatten(), g.flatten()) for g in gradients]).mean(0)
    j = jacobian(output, weight).reshape(3, 6)
    torch.testing.assert_close(exact, j.T @ j, rtol=1e-4, atol=1e-6)


def test_the_tokens_of_a_text_add_up_without_padding() -> None:
    logits = torch.randn(2, 3, 5, generator=torch.Generator().manual_seed(0))
    mask = torch.tensor([[True, True, False], [True, False, False]])
    batch = Batch((), {}, (mask,))
    loss = sampled_loss({"logits": logits}, batch, torch.Generator().manual_seed(3))
    rows = Batch((), {})
    assert torch.equal(
        loss, sampled_loss({"logits": logits[mask]}, rows, torch.Generator().manual_seed(3))
    )
    logits[~mask] = torch.nan
    assert torch.equal(
        loss, sampled_loss({"logits": logits}, batch, torch.Generator().manual_seed(3))
    )


def test_one_class_is_a_regression() -> None:
    scores = torch.randn(3, 1).requires_grad_()
    loss = sampled_loss({"logits": scores}, Batch((), {}), torch.Generator().manual_seed(0))
    (gradient,) = torch.autograd.grad(loss, scores)
    assert gradient.abs().eq(1).all()


def returns(make: Callable[[Tensor], Any]) -> Callable[[nn.Module, Any], Any]:
    """A loss that computes something from the output."""
    return lambda model, batch: make(model(batch[0]))


def fails(output: Tensor) -> Tensor:
    raise ValueError("targets are missing\nsee above")


@torch.no_grad()
def without_gradients(model: nn.Module, batch: Any) -> Tensor:
    found: Tensor = model(batch[0]).sum()
    return found


def after_backward(output: Tensor) -> Tensor:
    loss = output.square().sum()
    loss.backward()
    return loss


BAD_LOSSES: dict[str, tuple[Any, str]] = {
    "not callable": (0.5, "^loss is a float; expected a function of the model and a batch"),
    "not scalar": (
        returns(lambda y: y),
        r"batch 0: the loss has shape \([12], 7, 3\); expected a scalar",
    ),
    "number": (returns(lambda y: y.sum().item()), "batch 0: the loss is a float; expected a sc"),
    "integer": (returns(lambda y: y.argmax()), "batch 0: the loss is int64, which has no gradient"),
    "detached": (returns(lambda y: y.detach().sum()), "batch 0: the loss has no gradient"),
    "no_grad": (without_gradients, "batch 0: the loss has no gradient for any layer to prune"),
    "NaN": (returns(lambda y: y.sum() * torch.nan), "batch 0: the loss is nan"),
    "infinite": (returns(lambda y: y.sum() / 0), "batch 0: the loss is -?inf"),
    "NaN gradient": (returns(lambda y: (y * 0).sum().abs().sqrt()), "0: the gradient of the loss"),
    "error": (returns(fails), "batch 0: the function given as loss fails on it: ValueError: targ"),
    "after backward": (returns(after_backward), "batch 0: the loss cannot be differentiated: "),
    "no effect": (
        lambda model, batch: model[0](batch[0]).sum(),
        "the gradient of the loss is zero for all weights of 2; leave the layer out",
    ),
}


@pytest.mark.parametrize("criterion", ["taylor", "fisher(block=4)"])
@pytest.mark.parametrize("loss", BAD_LOSSES)
def test_bad_losses_are_refused_in_one_line(loss: str, criterion: str) -> None:
    model = model_of("mlp").train()
    model[0].weight.requires_grad_(False)
    before, modes = state(model), [m.training for m in model.modules()]
    function, message = BAD_LOSSES[loss]
    with pytest.raises(UsageError, match=message) as caught:
        prune(model, 0.5, criterion=criterion, calibration=items(), loss=function)
    assert "\n" not in str(caught.value)
    assert same(before, state(model))
    assert [m.training for m in model.modules()] == modes
    assert [p.requires_grad for p in model.parameters()] == [False, True, True, True]
    assert all(p.grad is None for p in model.parameters())
    assert hooks(model) == 0


class Frozen(nn.Module):
    """A model whose forward runs under no_grad."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(12, 4)

    @torch.no_grad()
    def forward(self, x: Tensor) -> Tensor:
        found: Tensor = self.linear(x)
        return found


def labelled(value: int | None = None) -> list[dict[str, Tensor]]:
    """Batches with labels of three classes, or with one label everywhere."""
    found: list[dict[str, Tensor]] = [dict(batch) for batch in bert_batches()]
    for batch in found:
        ids = batch["input_ids"]
        batch["labels"] = ids % 3 if value is None else torch.full_like(ids, value)
    return found


@pytest.mark.parametrize(
    ("model", "calibration", "criterion", "message"),
    [
        (bert, bert_batches(), "snip", "without labels the mean gradient is zero"),
        (bert, bert_batches(), "taylor(signed=True)", "without labels the mean gradient is zero"),
        (
            lambda: bert("BertForTokenClassification", num_labels=3),
            [labelled()[0], bert_batches()[1]],
            "snip",
            "batch 1 has no labels, and calibration batch 0 has",
        ),
        (
            lambda: bert("BertForTokenClassification", num_labels=3),
            labelled(-100),
            "taylor",
            "batch 0: the loss is nan; are all of its labels padding",
        ),
        (
            lambda: bert("BertForTokenClassification", num_labels=3),
            labelled(-100),
            "fisher",
            "no calibration input has a label",
        ),
        (lambda: mlp().half(), [x.half() for x in batches()], "taylor", "float16, in which small"),
        (Frozen, batches(), "taylor", "the loss has no gradient for any layer"),
    ],
)
def test_what_gives_no_gradient_is_refused(
    model: Callable[[], nn.Module], calibration: list[Any], criterion: str, message: str
) -> None:
    made = model()
    before = state(made)
    with pytest.raises(UsageError, match=message) as caught:
        prune(made, 0.5, criterion=criterion, calibration=calibration)
    assert "\n" not in str(caught.value)
    assert same(before, state(made))


def test_a_model_without_a_loss_for_its_labels() -> None:
    class Plain(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.linear = nn.Linear(12, 4)

        def forward(self, x: Tensor, labels: Tensor | None = None) -> Tensor:
            found: Tensor = self.linear(x)
            return found

    calibration = [{"x": batches()[0], "labels": torch.ones(6)}]
    with pytest.raises(UsageError, match="holds labels, but Plain returns no loss for them; pass"):
        prune(Plain(), 0.5, criterion="snip", calibration=calibration)


@pytest.mark.parametrize("criterion", CRITERIA)
def test_nothing_but_the_weights_changes(criterion: str) -> None:
    model = model_of("lstm").train()
    model.first.requires_grad_(False)
    for p in model.second.parameters():
        p.grad = torch.ones_like(p)
    flags = [p.requires_grad for p in model.parameters()]
    kept = [copy.copy(p.grad) for p in model.parameters()]
    modes = [m.training for m in model.modules()]
    report = prune(model, 0.5, criterion=criterion, calibration=items(), loss=squared_error)
    assert report.sparsity == pytest.approx(0.5, abs=0.01)
    assert [p.requires_grad for p in model.parameters()] == flags
    assert [m.training for m in model.modules()] == modes
    assert hooks(model) == 0
    for p, grad in zip(model.parameters(), kept, strict=True):
        assert (p.grad is None) == (grad is None)
        assert grad is None or torch.equal(p.grad, grad)


def test_losses_of_layers_can_be_compared() -> None:
    """The scores of one step in one layer and of the same step in another are losses of one unit:

    A layer whose output is divided by ten afterwards has scores a hundredth of those of its twin.
    """

    class Twins(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b = nn.Linear(12, 4), nn.Linear(12, 4)
            self.b.load_state_dict(self.a.state_dict())

        def forward(self, x: Tensor) -> Tensor:
            return torch.cat([self.a(x), self.b(x) / 10], -1)

    found: dict[str, list[Tensor]] = {}

    class Recording(Criterion):
        name = "recording"

        def __init__(self, needs: str) -> None:
            object.__setattr__(self, "needs", (needs,))

        def score(self, weight: Tensor, inputs: Inputs, generator: torch.Generator) -> Tensor:
            squares = getattr(inputs, self.needs[0]).reshape(weight.shape) * weight.square()
            found.setdefault(self.needs[0], []).append(squares)
            return squares

    for needs in ("squared_gradient", "fisher"):
        prune(
            Twins(),
            0.5,
            criterion=Recording(needs),
            calibration=batches(),
            filter_fn=lambda module, name: True,
        )
        a, b = found[needs]
        # The signs of a's outputs differ from those of b's.
        assert float(b.sum() / a.sum()) == pytest.approx(0.01, rel=0.5)


def test_a_given_loss_decides_what_is_kept() -> None:
    """Only the first output matters to it: the rows of the others go first."""
    model = model_of("mlp")

    def loss(model: nn.Module, batch: Any) -> Tensor:
        x, y = batch
        found: Tensor = (model(x)[..., 0].mean(1) - y).square().mean()
        return found

    prune(
        model,
        2 / 3,
        criterion="fisher",
        calibration=items(),
        loss=loss,
        filter_fn=lambda module, name: name == "2",
    )
    assert model[2].weight[0].count_nonzero() == 7
    assert not model[2].weight[1:].any()


def test_a_seed_gives_the_same_zeros() -> None:
    zeros = []
    for seed in (0, 0, 1):
        model = bert()
        prune(model, 0.5, criterion="fisher(block=6)", calibration=bert_batches(), seed=seed)
        zeros.append(torch.cat([p.flatten() == 0 for p in model.encoder.parameters()]))
    assert torch.equal(zeros[0], zeros[1])
    assert not torch.equal(zeros[0], zeros[2])
