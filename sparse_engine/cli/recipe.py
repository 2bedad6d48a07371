"""Recipes on the command line: --recipe gives values to the other options."""

from __future__ import annotations

from collections.abc import Mapping
from difflib import get_close_matches
from pathlib import Path
from typing import Any

import typer

from sparse_engine.cli.common import remark
from sparse_engine.errors import UsageError

# Options that do not decide the result.
NOT_IN_RECIPES = ("model", "out", "recipe", "threads", "report", "examples")
IN_RECIPES_ALONE = ("overrides", "steps")


def use_recipe(ctx: typer.Context, path: Path | None) -> Path | None:
    """Callback of --recipe, before the other options are read: it sets their defaults.

    Raises:
        UsageError: the file is missing, or holds what is no option.
        InvalidFileError: it is no recipe.
    """
    if path is None:
        return None
    from sparse_engine.pruning import read_recipe

    recipe = read_recipe(path)
    known = {p.name: p for p in ctx.command.params if p.name not in NOT_IN_RECIPES}
    values: dict[str, Any] = {}
    for name, value in recipe.options.items():
        if name in IN_RECIPES_ALONE:
            continue
        if name not in known:
            names = [*map(str, known), *IN_RECIPES_ALONE]
            near = ", ".join(get_close_matches(name, names, 3, cutoff=0.0))
            raise UsageError(f"{recipe.path}: {name!r} is no option; the nearest are {near}")
        many = bool(getattr(known[name], "multiple", False))
        if name == "granularity" and isinstance(value, list):
            value = ",".join(map(str, value))
        listed = value if many and isinstance(value, list) else [value]
        if any(isinstance(item, list | dict) for item in listed):
            expected = "a list of values" if many else "one value"
            raise UsageError(f"{recipe.path}: {name} is {value!s:.40}; give {expected}")
        values[name] = [str(item) for item in listed] if many else str(value)
    ctx.default_map = values
    ctx.obj = recipe
    return path


def check_conflicts(ctx: typer.Context) -> None:
    """Raise UsageError for an option that is given, and in the recipe too."""
    for name in ctx.obj.options if ctx.obj else ():
        source = ctx.get_parameter_source(name)
        if source is not None and source.name == "COMMANDLINE":
            option = next(p.opts[0] for p in ctx.command.params if p.name == name)
            raise UsageError(
                f"{option} is given, and {ctx.obj.path} has {name} too: leave one of them out"
            )


def overrides_of(ctx: typer.Context) -> list[Any]:
    """The overrides of the recipe; none without a recipe."""
    return ctx.obj.overrides if ctx.obj else []


def steps_of(ctx: typer.Context) -> Any:
    """The steps of the recipe as they are written; None without any."""
    return ctx.obj.options.get("steps") if ctx.obj else None


def options_of(ctx: typer.Context) -> dict[str, Any]:
    """The options that decide the result, as plain values, to be recorded."""
    given = {
        n: v for n, v in ctx.params.items() if n not in NOT_IN_RECIPES and v not in (None, [], ())
    }
    return {n: v if isinstance(v, int | float | list | tuple) else str(v) for n, v in given.items()}


def recorded(ctx: typer.Context, recipe: Mapping[str, Any]) -> dict[str, Any]:
    """The options that decide the result, and the recipe of the run, which counts where both are.

    It holds what was chosen in place of a target, and all arguments of the steps. The seed also
    draws the calibration texts.
    """
    from sparse_engine.cli.target import OPTIONS
    from sparse_engine.pruning.steps import NAMES

    left_out = {*OPTIONS, *(NAMES if "steps" in recipe else ())} - {"seed"}
    return {n: v for n, v in options_of(ctx).items() if n not in left_out} | dict(recipe)


def warn_changes(ctx: typer.Context, calibration: Mapping[str, Any]) -> None:
    """Say what differs from the run that wrote the recipe."""
    for line in ctx.obj.changes(calibration) if ctx.obj else ():
        remark(f"warning: {line}; the result may differ", "yellow")
