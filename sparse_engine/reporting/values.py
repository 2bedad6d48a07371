"""Reports out of the plain values that they were written as."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, TypeVar

from sparse_engine.errors import InvalidFileError

T = TypeVar("T")


def checked(cls: type[T], values: Mapping[str, Any], what: str) -> T:
    """A dataclass of values whose types are checked; fields that it does not have are left out.

    Raises:
        InvalidFileError: if a field is missing or has another type; `what` names the class.
    """
    from pydantic import TypeAdapter, ValidationError

    try:
        return TypeAdapter(cls).validate_python(dict(values))
    except ValidationError as error:
        first = error.errors()[0]
        place = ".".join(map(str, first["loc"]))
        raise InvalidFileError(f"this is no {what}: {place}: {first['msg']}") from None
