"""torch's 2:4 kernels in place of dense ones, and back, on a fake GPU backend."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

import sparse_engine as se
from sparse_engine.auto.format import Choice
from sparse_engine.backends import CPU, semi_structured, use_backend
from sparse_engine.backends.cpu import CPUBackend
from sparse_engine.convert import swap


class Compressed(Tensor):
    """A dense tensor with the class of a compressed one."""


def make(error: float = 0.0, failure: str = "") -> Callable[[Tensor], Tensor]:
    def compressed(weight: Tensor) -> Tensor:
        if failure:
            raise RuntimeError(failure)
        return (weight + error).as_subclass(Compressed)

    return compressed


class CompressingBackend(CPUBackend):
    """The CPU's, with torch's 2:4 kernels at `share` of the time of dense."""

    def __init__(self, share: float = 0.5) -> None:
        self.share = share

    def compress_linear(
        self, linear: nn.Linear, tokens: tuple[int, ...]
    ) -> tuple[Tensor | None, str]:
        def timer(calls: Mapping[str, Callable[[], object]], device: object) -> dict[str, float]:
            return {name: 10 * self.share if name == "2:4" else 10.0 for name in calls}

        return semi_structured.compress(linear, tokens, timer)


@pytest.fixture
def gpu(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[..., None]]:
    """A backend that compresses on the CPU: what torch's conversion and the timer return."""

    def pretend(share: float = 0.5, error: float = 0.0, failure: str = "") -> None:
        monkeypatch.setattr(torch.sparse, "to_sparse_semi_structured", make(error, failure))
        backends.enter_context(use_backend(CompressingBackend(share)))
        monkeypatch.setattr(torch.sparse, "SparseSemiStructuredTensor", Compressed)
        monkeypatch.setattr(Compressed, "to_dense", lambda self: self.as_subclass(Tensor).clone())
        # Formats of ours lose: dense is what 2:4 has to beat.
        choice = Choice("dense", 1.0, {}, "time over dense: dense 1.00")
        monkeypatch.setattr(swap, "_choose", lambda *_: choice)

    with ExitStack() as backends:
        yield pretend


def two_of_four(out: int = 32, inputs: int = 64) -> nn.Linear:
    linear = nn.Linear(inputs, out).bfloat16()
    linear.weight.data[:, ::2] = 0
    return linear


def reason_of(model: nn.Module) -> str:
    return se.sparsify_(model, se.SparseConfig(tokens=(64,))).rows[0].reason


def test_taken_where_it_is_faster_and_given_back(gpu: Callable[..., None], tmp_path: Path) -> None:
    gpu(share=0.5)
    model = nn.Sequential(two_of_four())
    weight = model[0].weight.detach().clone()
    report = se.sparsify_(model, se.SparseConfig(tokens=(64, 128)))
    assert "torch's 2:4 kernels, 0.50 of dense" in report.rows[0].reason
    assert semi_structured.is_compressed(model[0].weight)
    assert type(model[0]) is nn.Linear
    assert "already" in reason_of(model)
    se.save(model, tmp_path / "package")
    loaded = se.load(tmp_path / "package", nn.Sequential(two_of_four()))
    assert torch.equal(loaded[0].weight, weight)
    se.densify_(model)
    assert not semi_structured.is_compressed(model[0].weight)
    assert torch.equal(model[0].weight, weight)


@pytest.mark.parametrize(
    ("how", "reason"),
    [
        ({"share": 0.99}, "torch's 2:4 takes 0.99 of dense"),
        ({"error": 1.0}, "torch's 2:4 kernels give another result"),
        ({"failure": "no cuSPARSELt"}, "torch has no 2:4 for it: RuntimeError: no cuSPARSELt"),
    ],
)
def test_left_dense_with_the_reason(
    gpu: Callable[..., None], how: dict[str, object], reason: str
) -> None:
    gpu(**how)
    model = nn.Sequential(two_of_four())
    assert reason in reason_of(model)
    assert not semi_structured.is_compressed(model[0].weight)


def test_other_weights_are_not_meant(gpu: Callable[..., None]) -> None:
    gpu()
    backend = CompressingBackend()
    assert backend.compress_linear(nn.Linear(64, 32).bfloat16(), (64,)) == (None, "")
    assert backend.compress_linear(two_of_four().float(), (64,)) == (None, "")


def test_on_a_cpu_nothing_is_tried() -> None:
    assert CPU.compress_linear(two_of_four(), (64,)) == (None, "")
