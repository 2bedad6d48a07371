"""Errors that a user can act on; the command line turns each into one line and its exit code."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import ClassVar

MAX_CHARACTERS = 1000
"""Of a message; names and values of a hostile file may be longer."""


class SparseEngineError(Exception):
    """Base of all errors that sparse_engine raises on purpose.

    Its message is one line, whatever names and values it repeats.
    """

    exit_code: ClassVar[int] = 2

    def __str__(self) -> str:
        line = " ".join(super().__str__().splitlines())
        if len(line) <= MAX_CHARACTERS:
            return line
        half = MAX_CHARACTERS // 2
        return f"{line[:half]} ... {line[-half:]}"


class UsageError(SparseEngineError, ValueError):
    """An argument is out of range, of the wrong shape, or does not fit another one."""


class InvalidFileError(SparseEngineError, ValueError):
    """A package, checkpoint or set of format buffers is damaged or not as described."""

    exit_code = 3


class UnsupportedModelError(SparseEngineError):
    """The model, or its storage, is not supported."""

    exit_code = 4


class VerificationError(SparseEngineError):
    """A packed model does not give what the model it was made from gives."""

    exit_code = 5


@contextmanager
def one_line(what: str) -> Iterator[None]:
    """Turn an error of code that is not ours, such as a model's forward, into a UsageError.

    Its message is `what`, the kind of the error and the first line of its message; the error itself
    is the cause of the new one. Errors of sparse_engine pass through.
    """
    try:
        yield
    except SparseEngineError:
        raise
    except Exception as error:
        lines = [line.strip() for line in str(error).splitlines() if line.strip()]
        detail = f": {lines[0][:300]}" if lines else ""
        raise UsageError(f"{what}: {type(error).__name__}{detail}") from error
