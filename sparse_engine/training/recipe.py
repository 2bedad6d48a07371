"""Recipes of a training: what happens to the model when, as a list of modifiers.

A recipe is a YAML 1.2 or JSON mapping. Every entry of `modifiers` is the name of one with its
options; `start`, `end` and `every` are steps of the optimizer, or epochs such as 1.5ep:

    end: 4ep
    modifiers:
      - prune: {granularity: 4x1, sparsity: 0.8, criterion: obs, schedule: cubic, end: 2ep}
      - distil: {temperature: 2}

Unknown names are refused.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from sparse_engine.errors import UsageError
from sparse_engine.pruning.yaml_file import read_document
from sparse_engine.training.modifiers import MODIFIERS, Modifier
from sparse_engine.training.window import EPOCHS, MAX_STEPS

VERSION = 1
MAX_MODIFIERS = 100
KEYS = ("version", "end", "modifiers")


@dataclass(frozen=True)
class TrainingRecipe:
    """A recipe that was validated.

    Attributes:
        modifiers: in the order in which they act.
        end: of the training, in steps or epochs; None if the caller decides.
    """

    modifiers: tuple[Modifier, ...]
    end: int | str | None = None

    def to_dict(self) -> dict[str, Any]:
        """Plain values, which `read_training_recipe` reads."""
        entries = [{m.name: plain_options(m)} for m in self.modifiers]
        end = {} if self.end is None else {"end": self.end}
        return {"version": VERSION, **end, "modifiers": entries}


def plain_options(modifier: Modifier) -> dict[str, Any]:
    """The options of a modifier that differ from their defaults, as plain values."""
    given = {name: getattr(modifier, name) for name in type(modifier).model_fields}
    defaults = type(modifier).model_fields
    return {
        name: _plain(value)
        for name, value in given.items()
        if defaults[name].is_required() or value != defaults[name].default
    }


def read_training_recipe(source: Any) -> TrainingRecipe:
    """A recipe from a file, a mapping, or a list of modifiers.

    Args:
        source: the path of a YAML or JSON file, a mapping such as such a file holds, a list of
            modifiers, or a recipe.

    Raises:
        UsageError: if it has unknown names, or options that do not fit.
        InvalidFileError: if a file cannot be read.

    Example:
        read_training_recipe([Prune(sparsity=0.8, granularity="4x1", end=200)])
    """
    if isinstance(source, TrainingRecipe):
        return source
    if isinstance(source, Modifier):
        return TrainingRecipe((source,))
    if isinstance(source, str | Path):
        return _of_mapping(read_document(Path(source)), str(source))
    if isinstance(source, Mapping):
        return _of_mapping(source, "recipe")
    if isinstance(source, Sequence):
        return _of_mapping({"modifiers": source}, "recipe")
    raise UsageError(
        f"recipe is a {type(source).__name__}; give the path of a YAML file, or a list of modifiers"
    )


def _of_mapping(values: Any, where: str) -> TrainingRecipe:
    if not isinstance(values, Mapping):
        raise UsageError(f"{where}: expected a mapping with a list of modifiers")
    for key in values:
        if key not in KEYS:
            raise UsageError(f"{where}: {key!r} is no key of a recipe; it has {', '.join(KEYS)}")
    version = values.get("version", VERSION)
    if type(version) is not int or version != VERSION:
        raise UsageError(f"{where}: version {version!s:.20}, expected {VERSION}")
    entries = values.get("modifiers")
    if not isinstance(entries, Sequence) or isinstance(entries, str) or not entries:
        raise UsageError(
            f"{where}: no modifiers; expected a list such as [prune: {{sparsity: .8}}]"
        )
    if len(entries) > MAX_MODIFIERS:
        raise UsageError(f"{where}: {len(entries)} modifiers; at most {MAX_MODIFIERS} are read")
    end = values.get("end")
    if end is not None and not (
        (type(end) is int and 0 < end <= MAX_STEPS)
        or (isinstance(end, str) and EPOCHS.fullmatch(end))
    ):
        raise UsageError(f"{where}: end {end!r:.40} is no number of steps, or epochs such as 2ep")
    found = (_modifier(entry, f"{where}: modifier {i}") for i, entry in enumerate(entries, 1))
    return TrainingRecipe(tuple(found), end)


def _modifier(entry: Any, where: str) -> Modifier:
    if isinstance(entry, Modifier):
        return entry
    if not isinstance(entry, Mapping) or len(entry) != 1:
        raise UsageError(f"{where}: expected one name with its options, as {{prune: {{...}}}}")
    (name, options), *_ = entry.items()
    cls = next((cls for cls in MODIFIERS if cls.name == name), None)
    if cls is None:
        names = [cls.name for cls in MODIFIERS]
        near = ", ".join(get_close_matches(str(name), names, 3, cutoff=0.0))
        raise UsageError(f"{where}: {name!r:.40} is not known; the nearest are {near}")
    options = {} if options is None else options
    if not isinstance(options, Mapping):
        raise UsageError(f"{where}: the options of {name} are no mapping")
    for option in options:
        if option not in cls.model_fields:
            near = ", ".join(get_close_matches(str(option), cls.model_fields, 3, cutoff=0.0))
            raise UsageError(f"{where}, {name}: no option {option!r:.40}; the nearest are {near}")
    try:
        return cls(**options)
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        option = ".".join(str(part) for part in first["loc"][:1])
        detail = first["msg"].removeprefix("Value error, ")
        raise UsageError(f"{where}, {name}{f', {option}' if option else ''}: {detail}") from None


def _plain(value: Any) -> Any:
    if isinstance(value, bool | int | float | str) or value is None:
        return value
    if isinstance(value, Mapping):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    return str(value)
