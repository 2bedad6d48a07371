"""Criteria, allocators and recoveries by name: "magnitude", or "obs(ratio=0.7)" with options.

Options are the fields of a frozen dataclass. The text form is what reports and recipes hold, and
what the command line reads.
"""

from __future__ import annotations

import ast
from abc import ABC
from dataclasses import Field, fields, is_dataclass
from typing import Any, ClassVar, TypeVar, get_type_hints

from sparse_engine.errors import UsageError

MAX_LENGTH = 1000  # of a text form, in characters

T = TypeVar("T", bound="Named")


class Named(ABC):
    """A choice that has a name and options.

    Attributes:
        kind: what it is, for messages: "criterion".
        name: the name in texts, reports and on the command line.
        aliases: other names that are accepted.
    """

    kind: ClassVar[str]
    name: ClassVar[str]
    aliases: ClassVar[tuple[str, ...]] = ()

    def __str__(self) -> str:
        """The text form, with the options that differ from their defaults."""
        given = [
            f"{option.name}={getattr(self, option.name)!r}"
            for option in _options(type(self))
            if getattr(self, option.name) != option.default
        ]
        return f"{self.name}({', '.join(given)})" if given else self.name


def find(text: str, known: tuple[type[T], ...]) -> T:
    """Return the choice of a text form.

    Args:
        text: a name, or a name and options such as "obs(ratio=0.7)".
        known: the classes to choose from, all of one kind.

    Raises:
        UsageError: if no class has this name, or an option is unknown or has another type.

    Example:
        find("magnitude(p=1)", CRITERIA)
    """
    kind = known[0].kind
    if not isinstance(text, str):
        names = ", ".join(cls.name for cls in known)
        raise UsageError(f"{kind} {text!r:.80} is no name; choose one of {names}")
    name, options = _parse(text, kind)
    cls = next((cls for cls in known if name in (cls.name, *cls.aliases)), None)
    if cls is None:
        names = ", ".join(cls.name for cls in known)
        raise UsageError(f"{kind} {text[:80]!r} is not known; choose one of {names}")
    accepted = {option.name: option for option in _options(cls)}
    for option, value in options.items():
        if option not in accepted:
            has = f"has {', '.join(accepted)}" if accepted else "has no options"
            raise UsageError(f"{kind} {name} has no option {option!r}; it {has}")
        options[option] = _checked(cls, accepted[option].name, value)
    return cls(**options)


def _parse(text: str, kind: str) -> tuple[str, dict[str, Any]]:
    """The name and the options of a text form."""
    message = f"{kind} {text[:80]!r}: expected a name, or name(option=value, ...)"
    literals = "; values are numbers, True, False and quoted texts"
    if len(text) > MAX_LENGTH:
        raise UsageError(message)
    if text.isidentifier() or "(" not in text:
        return text, {}
    try:
        call = ast.parse(text, mode="eval").body
        if not isinstance(call, ast.Call) or not isinstance(call.func, ast.Name) or call.args:
            raise UsageError(message)
        options = {item.arg or "**": ast.literal_eval(item.value) for item in call.keywords}
    except (SyntaxError, ValueError, TypeError, MemoryError, RecursionError):
        raise UsageError(message + literals) from None
    if len(options) < len(call.keywords):
        raise UsageError(f"{kind} {text[:80]!r}: an option is there twice")
    return call.func.id, options


def _checked(cls: type[Named], option: str, value: Any) -> Any:
    """The value of an option, an int as a float where a float is expected."""
    hint = get_type_hints(cls)[option]
    types = getattr(hint, "__args__", (hint,))
    if float in types and type(value) is int:
        value = float(value)
    if type(value) not in types:
        expected = " or ".join(getattr(t, "__name__", str(t)) for t in types)
        raise UsageError(f"{cls.kind} {cls.name}: {option}={value!r} is not {expected}")
    return value


def _options(cls: type[Named]) -> tuple[Field[Any], ...]:
    return fields(cls) if is_dataclass(cls) else ()
