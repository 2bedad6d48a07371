"""Target: exactly one goal, in its range; and its text form."""

from __future__ import annotations

from typing import Any

import pytest

from sparse_engine.errors import UsageError
from sparse_engine.pruning.target.target import Target


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({}, "exactly one of speedup, latency_ms, size_mb, params, flops; got none"),
        ({"speedup": 3, "params": 10}, "got speedup and params"),
        ({"speedup": 1.0}, "speedup 1.0: give a number above 1"),
        ({"speedup": float("nan")}, "speedup nan"),
        ({"latency_ms": 0}, "latency_ms 0: give a number above 0"),
        ({"size_mb": -1.0}, "size_mb -1.0"),
        ({"params": float("inf")}, "params inf"),
        ({"flops": True}, "flops True"),
        ({"speedup": "3"}, "speedup '3'"),
        ({"speedup": 3, "tokens": 0}, "tokens 0"),
        ({"speedup": 3, "tokens": 1.5}, "tokens 1.5"),
        ({"speedup": 3, "threads": 0}, "threads 0"),
        ({"speedup": 3, "dtype": "float64"}, "dtype 'float64'"),
        ({"speedup": 3, "search_seconds": -1}, "search_seconds -1"),
        ({"speedup": 3, "sparsities": ()}, "sparsities ()"),
        ({"speedup": 3, "sparsities": (0.5, 0.3)}, "ascending"),
        ({"speedup": 3, "sparsities": (0.0, 0.3)}, "above 0 and below 1"),
        ({"speedup": 3, "sparsities": (0.5, 1.0)}, "above 0 and below 1"),
        ({"speedup": 3, "shares": ()}, "shares ()"),
        ({"speedup": 3, "shares": [0.0]}, "shares [0.0]"),
        ({"speedup": 3, "shares": (0.5, 0.0)}, "ascending"),
        ({"speedup": 3, "shares": (0.0, 1.0)}, "each must be 0 or above, and below 1"),
    ],
)
def test_what_is_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(UsageError) as error:
        Target(**options)
    assert message in str(error.value)
    assert "\n" not in str(error.value)


def test_text_form() -> None:
    assert str(Target(speedup=3.0)) == "speedup 3 at 128 tokens"
    assert str(Target(latency_ms=4.5, tokens=16)) == "latency ms 4.5 at 16 tokens"
    assert str(Target(params=1_000_000)) == "params 1e+06"
