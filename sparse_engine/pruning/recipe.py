"""Recipes: the arguments of a pruning run as plain values, written by every run and read again.

A recipe is a YAML 1.2 mapping of the arguments of `prune`, or of the options of the command line:

    sparsity: 0.8
    granularity: 4x1
    criterion: sparsegpt
    recovery: least_squares
    ignore: ["encoder.layer.0"]
    overrides:
      - {match: "*.query", granularity: 2:4}

Several steps are a list of such mappings; what stands beside it holds for all of them:

    criterion: obs
    steps:
      - {granularity: [head, unit], sparsity: 0.25}
      - {granularity: 4x1, sparsity: 0.8}

A report of an earlier run, a pruning.json, is one too: JSON is YAML, and the recipe is in its key
"recipe".
"""

from __future__ import annotations

import platform
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from difflib import get_close_matches
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any, Protocol

from sparse_engine.errors import InvalidFileError, UsageError
from sparse_engine.pruning.overrides import Override, find_overrides
from sparse_engine.pruning.plan import Selection
from sparse_engine.pruning.yaml_file import read_document

FILE = "pruning.json"
VERSION = 1
ARGUMENTS = (
    "sparsity",
    "granularity",
    "criterion",
    "recovery",
    "allocator",
    "seed",
    "layers",
    "ignore",
    "overrides",
    "steps",
)
# Options of the command line that `prune` takes in another form.
OTHERS = (
    "calibration",
    "samples",
    "max_length",
    "stream",
    "speedup",
    "latency_ms",
    "size_mb",
    "params",
    "flops",
    "tokens",
    "dtype",
    "search_seconds",
)
# What decides a result besides the arguments; also recorded, to explain a difference.
PACKAGES = {"sparse_engine": "sparse-engine", "torch": "torch", "transformers": "transformers"}


@dataclass(frozen=True)
class Recipe:
    """A recipe that was read.

    Attributes:
        path: of its file.
        options: by name, those without a value left out.
        calibration: fingerprint of the texts of the run that wrote it; empty if written by hand.
        versions: of that run.
    """

    path: Path
    options: dict[str, Any]
    calibration: dict[str, Any] = field(default_factory=dict)
    versions: dict[str, str] = field(default_factory=dict)

    @property
    def arguments(self) -> dict[str, Any]:
        """The arguments of `prune` among the options.

        Raises:
            UsageError: an option is unknown.
        """
        for name in self.options:
            if name not in (*ARGUMENTS, *OTHERS):
                near = ", ".join(get_close_matches(name, ARGUMENTS, 3, cutoff=0.0))
                raise UsageError(f"{self.path}: {name!r} is no option; the nearest are {near}")
        return {name: self.options[name] for name in ARGUMENTS if name in self.options}

    @property
    def overrides(self) -> list[Override]:
        """The layers that are pruned in another way; raises UsageError."""
        return find_overrides(self.options.get("overrides", ()))

    def changes(self, calibration: Mapping[str, Any]) -> list[str]:
        """What differs from the run that wrote it, a line each; the result may differ then.

        Args:
            calibration: the fingerprint of this run.
        """
        found = []
        for what, key in (("texts", "sha256"), ("inputs", "inputs_sha256")):
            before, now = self.calibration.get(key), calibration.get(key)
            if before and now and now != before:
                found.append(f"the calibration {what} are not those of {self.path}")
        own = versions()
        for name, text in self.versions.items():
            if own.get(name) != text:
                found.append(f"{self.path} was written with {name} {text}, not {own.get(name)}")
        return found


def read_recipe(path: str | Path) -> Recipe:
    """Read a recipe from a YAML or JSON file, or from the pruning.json of a folder.

    Raises:
        UsageError: there is no such file, or PyYAML, which YAML needs, is not installed.
        InvalidFileError: it is too large, no YAML, or no mapping of names.

    Example:
        recipe = read_recipe("pruned")
        se.prune(model, **recipe.arguments, calibration=batches)
    """
    found = Path(path)
    found = found / FILE if found.is_dir() else found
    values = _mapping(read_document(found), found)
    if "recipe" not in values:
        return Recipe(found, _options(values, found))
    recipe, calibration, packages = (
        _mapping(values.get(key) or {}, found) for key in ("recipe", "calibration", "versions")
    )
    named = {str(name): str(text) for name, text in packages.items()}
    return Recipe(found, _options(recipe, found), calibration, named)


class Recorded(Protocol):
    """A method of pruning that can be written down."""

    def to_dict(self) -> dict[str, Any]:
        """The arguments of `prune` as plain values, for JSON."""


def recipe_of(method: Recorded, seed: int, selection: Selection) -> dict[str, Any]:
    """The recipe of a run of one step as plain values, which `read_recipe` reads."""
    lists = {
        "layers": [pattern.text for pattern in selection.layers],
        "ignore": [pattern.text for pattern in selection.ignore],
    }
    return {
        "version": VERSION,
        **method.to_dict(),
        "seed": seed,
        **{name: values for name, values in lists.items() if values},
    }


def recipe_of_steps(recipes: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """The recipe of a run from those of its steps; that of the step itself for a single one."""
    if len(recipes) == 1:
        return dict(recipes[0])
    steps = [{n: v for n, v in recipe.items() if n != "version"} for recipe in recipes]
    return {"version": VERSION, "steps": steps}


def versions() -> dict[str, str]:
    """Versions of what computes the result; packages that are not installed are left out."""
    found = {"python": platform.python_version()}
    for name, package in PACKAGES.items():
        try:
            found[name] = version(package)
        except PackageNotFoundError:
            continue
    return found


def _options(values: dict[str, Any], path: Path) -> dict[str, Any]:
    given = {name: value for name, value in values.items() if value is not None}
    if given.pop("version", VERSION) != VERSION:
        raise InvalidFileError(f"{path}: version {values['version']!s:.20}, expected {VERSION}")
    return given


def _mapping(value: Any, path: Path) -> dict[str, Any]:
    if not isinstance(value, dict) or not all(isinstance(key, str) for key in value):
        raise InvalidFileError(f"{path}: expected a mapping such as 'sparsity: 0.8'")
    return value
