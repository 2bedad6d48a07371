"""Dotted names of modules."""

from __future__ import annotations

import pytest

from sparse_engine.modules.names import join, prefixes


@pytest.mark.parametrize(
    ("path", "name", "full"),
    [("encoder", "fc.weight", "encoder.fc.weight"), ("", "fc", "fc"), ("encoder", "", "encoder")],
)
def test_join(path: str, name: str, full: str) -> None:
    assert join(path, name) == full


def test_prefixes_are_outermost_first_and_end_with_the_name() -> None:
    assert prefixes("encoder.layers.0") == ["encoder", "encoder.layers", "encoder.layers.0"]
    assert prefixes("fc") == ["fc"]
