"""What holds for every test."""

from __future__ import annotations

import pytest


@pytest.fixture(autouse=True)
def forget_choices(monkeypatch: pytest.MonkeyPatch) -> None:
    """No test reads or writes what format="auto" has measured before."""
    monkeypatch.setenv("SPARSE_ENGINE_CACHE", "")
