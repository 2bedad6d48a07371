"""format="auto": which format the measurements choose, and how often a weight is packed for it."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import sparse_engine as se
from sparse_engine.auto import cost
from sparse_engine.auto import format as auto_format
from sparse_engine.auto.cost import candidates
from sparse_engine.auto.format import choose_format
from sparse_engine.convert import swap
from sparse_engine.errors import UsageError
from sparse_engine.formats import FORMATS
from sparse_engine.nn import SparseLinear


def pruned(out: int, inputs: int, sparsity: float, rows: int = 1) -> Tensor:
    """A weight [out, inputs] in which `rows` rows at a time have zeros in the same columns."""
    generator = torch.Generator().manual_seed(0)
    keep = torch.rand(out // rows, inputs, generator=generator) >= sparsity
    return torch.randn(out, inputs, generator=generator) * keep.repeat_interleave(rows, 0)


def linear_of(weight: Tensor) -> nn.Linear:
    linear = nn.Linear(weight.shape[1], weight.shape[0], bias=False)
    linear.weight = nn.Parameter(weight, requires_grad=False)
    return linear


def fake_times(monkeypatch: pytest.MonkeyPatch, times: dict[str, float]) -> None:
    """Let `times` be what is measured, 30 us for every other format."""
    monkeypatch.setattr(
        auto_format,
        "_time_in_turn",
        lambda weight, packed, x, between: {
            spec: times.get(spec, 30.0) for spec in ("dense", *packed)
        },
    )


def test_the_fastest_is_chosen(monkeypatch: pytest.MonkeyPatch) -> None:
    times = {"dense": 10.0, "csr": 4.0, "bsr:16x1": 2.0, "sellp": 9.0, "bitmask": 9.5}
    fake_times(monkeypatch, times)
    choice = choose_format(pruned(32, 16, 0.7, rows=16), se.SparseConfig())
    assert choice.format == "bsr:16x1"
    assert choice.score == pytest.approx(0.2)
    scattered = pruned(32, 16, 0.7)
    assert choose_format(scattered, se.SparseConfig()).format == "csr"
    times.update(csr=11.2, sellp=11.5, bitmask=12.0)
    assert choose_format(scattered, se.SparseConfig()).format == "dense"
    assert choose_format(scattered, se.SparseConfig(), dense=False).format == "csr"


@pytest.mark.parametrize(
    ("sellp", "csr", "best"),
    [(10.4, 20.0, "sellp"), (11.5, 20.0, "dense"), (9.0, 9.6, "csr"), (9.0, 9.95, "sellp")],
)
def test_of_nearly_equal_times_the_smallest_is_chosen(
    sellp: float, csr: float, best: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    times = {"dense": 10.0, "csr": csr, "sellp": sellp, "bitmask": 30.0}
    fake_times(monkeypatch, times)
    monkeypatch.setattr(cost, "MAX_COST_RATIO", 1e9)
    weight = pruned(128, 256, 0.9)
    sizes = {
        spec: SparseLinear.from_dense(linear_of(weight), spec).packed.nbytes
        for spec in ("csr", "sellp")
    }
    assert sizes["csr"] < sizes["sellp"] < weight.nbytes
    choice = choose_format(weight, se.SparseConfig())
    assert choice.format == best
    assert ("smallest" in choice.reason) == (times[best] > min(times.values()))


def test_weights_without_zeros_are_not_timed() -> None:
    choice = choose_format(torch.randn(8, 8), se.SparseConfig())
    assert choice.format == "dense"
    assert choice.times_us == {}


def test_every_token_count_is_measured() -> None:
    choice = choose_format(pruned(64, 64, 0.9), se.SparseConfig(tokens=(1, 96)))
    assert set(choice.times_us["csr"]) == {1, 96}
    assert all(t > 0 for by_tokens in choice.times_us.values() for t in by_tokens.values())


@pytest.fixture
def packings(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Names of the formats that a weight is converted to, one for each conversion.

    Formats that are made by way of another one count once.
    """
    made: list[str] = []
    running: list[str] = []

    def counted(original: Callable[..., Any], name: str) -> Any:
        def from_dense(cls: type, *args: Any, **kwargs: Any) -> Any:
            if not running:
                made.append(name)
            running.append(name)
            try:
                return original(cls, *args, **kwargs)
            finally:
                running.pop()

        return classmethod(from_dense)

    for cls in FORMATS:
        original = cls.from_dense.__func__  # type: ignore[attr-defined]
        monkeypatch.setattr(cls, "from_dense", counted(original, cls.name))
    return made


def convert_alone(weight: Tensor) -> SparseLinear:
    return SparseLinear.from_dense(linear_of(weight), se.SparseConfig())


def convert_in_a_model(weight: Tensor) -> nn.Module:
    model = nn.Sequential(linear_of(weight))
    se.sparsify_(model, se.SparseConfig())
    return model[0]


@pytest.mark.parametrize("convert", [convert_alone, convert_in_a_model])
def test_each_candidate_is_packed_once_and_a_cached_choice_alone(
    convert: Callable[[Tensor], nn.Module],
    packings: list[str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("SPARSE_ENGINE_CACHE", str(tmp_path))
    fake_times(monkeypatch, {"dense": 10.0, "csr": 4.0, "sellp": 4.1, "bitmask": 4.1})
    weight = pruned(64, 64, 0.9)
    timed = [spec.partition(":")[0] for spec in candidates(weight, (1, 128), "float32")]
    assert len(timed) > 1
    packings.clear()
    layer = convert(weight)
    assert isinstance(layer, SparseLinear)
    assert sorted(packings) == sorted(timed)
    packings.clear()
    again = convert(weight)
    assert isinstance(again, SparseLinear)
    assert packings == [layer.format]
    assert again.format == layer.format
    assert torch.equal(again.packed.to_dense(), weight)


def test_a_cached_measurement_is_not_taken_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SPARSE_ENGINE_CACHE", str(tmp_path))
    weight = pruned(64, 64, 0.9)
    first = choose_format(weight, se.SparseConfig())
    monkeypatch.setattr(auto_format, "_measure", lambda *args: pytest.fail("measured again"))
    again = choose_format(weight, se.SparseConfig())
    assert again.format == first.format
    assert again.times_us == first.times_us
    assert "measured before" in again.reason


def test_a_measurement_holds_for_models_of_like_size(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """More than the caches hold is read between samples for a large model, little for a small."""
    monkeypatch.setenv("SPARSE_ENGINE_CACHE", str(tmp_path))
    read: list[int | None] = []
    measure = auto_format._measure

    def measured(*args: Any) -> Any:
        read.append(args[-1])
        return measure(*args)

    monkeypatch.setattr(auto_format, "_measure", measured)
    weight = pruned(64, 64, 0.9)
    for nbytes in (None, 1 << 40, 70_000, 100_000, 300_000):
        choose_format(weight, se.SparseConfig(model_bytes=nbytes))
    assert read == [None, 1 << 17, 1 << 19]


def test_the_size_of_the_model_is_that_of_its_layers(monkeypatch: pytest.MonkeyPatch) -> None:
    configs = []

    def choose(weight: torch.Tensor, config: se.SparseConfig, *args: Any) -> auto_format.Choice:
        configs.append(config)
        return auto_format.Choice("csr", 0.5, {}, "faster")

    monkeypatch.setattr(swap, "choose_format", choose)
    shared = nn.Linear(16, 16)
    model = nn.Sequential(nn.Embedding(1000, 16), shared, shared, nn.Linear(16, 8, bias=False))
    se.sparsify_(model)
    assert {config.model_bytes for config in configs} == {4 * (16 * 16 + 16 + 8 * 16)}
    with pytest.raises(UsageError, match="model_bytes -1: give a number of bytes from 0 up"):
        se.SparseConfig(model_bytes=-1)
