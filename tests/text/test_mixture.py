"""Texts drawn by share: counts, repeatability, what several sources hold, and the record."""

from __future__ import annotations

from pathlib import Path

import pytest

from sparse_engine.errors import UsageError
from sparse_engine.text.calibration import calibration_texts
from sparse_engine.text.mixture import mix
from sparse_engine.text.sources import Source


def numbered(name: str, count: int, share: float = 1.0) -> Source:
    return Source(name, tuple(f"{name} {i}" for i in range(count)), share=share)


@pytest.mark.parametrize(
    ("shares", "samples", "counts"),
    [
        ((0.7, 0.3), 10, [7, 3]),
        ((7, 3), 10, [7, 3]),
        ((1, 1, 1), 100, [33, 34, 33]),
        ((1, 1), 1, [0, 1]),
        ((1,), 100, [100]),
    ],
)
def test_counts_follow_the_shares(
    shares: tuple[float, ...], samples: int, counts: list[int]
) -> None:
    chosen = mix([numbered(f"s{i}", 200, share) for i, share in enumerate(shares)], samples)
    assert [part.used for part in chosen.parts] == counts
    assert len(chosen.texts) == len(set(chosen.texts)) == samples
    assert [sum(t.startswith(f"s{i} ") for t in chosen.texts) for i in range(len(shares))] == counts


def test_the_seed_decides() -> None:
    source = [numbered("a", 500)]
    same, again, other = mix(source, 50, 1), mix(source, 50, 1), mix(source, 50, 2)
    assert same == again
    assert same.fingerprint == again.fingerprint
    assert same.texts != other.texts
    assert same.fingerprint["sha256"] != other.fingerprint["sha256"]
    assert mix(source, 500, 1).texts == source[0].texts  # all, in their order


def test_a_small_source_gives_all_and_is_named() -> None:
    chosen = mix([numbered("small", 5), numbered("large", 500)], 100)
    assert [part.used for part in chosen.parts] == [5, 50]
    assert chosen.warnings == ["small holds only 5 texts; use 128 or more"]
    assert str(chosen) == "55 texts: 5 of 5 from small, 50 of 500 from large"


def test_a_text_of_two_sources_is_drawn_once() -> None:
    a, b = numbered("a", 10), Source("b", (*numbered("a", 10).texts, "own"))
    chosen = mix([a, b], 22)
    assert sorted(chosen.texts) == sorted({*a.texts, "own"})
    assert [part.available for part in chosen.parts] == [10, 1]


def test_models_that_generate_get_passages() -> None:
    source = Source("a", ("short",), ("long passage",), detail="two texts")
    assert mix([source], 1).texts == ("short",)
    assert mix([source], 1, long=True).texts == ("long passage",)
    assert mix([numbered("b", 1)], 1, long=True).texts == ("b 0",)
    assert str(mix([source], 1)) == "1 texts: 1 of 1 from a (two texts)"


def test_fingerprint_tells_texts_apart() -> None:
    first = mix([Source("a", ("ab", "c"))], 2).fingerprint
    assert first["sources"] == [{"name": "a", "share": 1.0, "texts": 2, "available": 2}]
    assert first["texts"] == 2
    assert first["sha256"] != mix([Source("a", ("a", "bc"))], 2).fingerprint["sha256"]


def test_from_python(tmp_path: Path) -> None:
    path = tmp_path / "own.txt"
    path.write_text("\n".join(numbered("own", 300).texts))
    chosen = calibration_texts([f"{path}:0.75", "default:0.25"], samples=40)
    assert [part.used for part in chosen.parts] == [30, 10]
    assert len(calibration_texts().texts) == 512
    assert "documentation of Python" in str(calibration_texts())
    for nothing in ([], ["none"]):
        with pytest.raises(UsageError, match="no calibration sources"):
            calibration_texts(nothing)
