"""Errors: one line, whatever they repeat."""

from __future__ import annotations

from sparse_engine.errors import MAX_CHARACTERS, InvalidFileError, UsageError


def test_messages_are_one_line() -> None:
    assert str(UsageError("layer 'a\nb\r\nc' is unknown")) == "layer 'a b c' is unknown"


def test_long_messages_lose_their_middle() -> None:
    found = str(InvalidFileError(f"begin {'x' * 10**6} end"))
    assert len(found) <= MAX_CHARACTERS + 5
    assert found.startswith("begin xxx")
    assert found.endswith("xxx end")
