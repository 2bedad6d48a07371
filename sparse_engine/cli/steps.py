"""The arguments of `prune` from the options of the command line, for one step or several."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from sparse_engine.errors import UsageError

if TYPE_CHECKING:
    from torch import nn

    from sparse_engine.pruning.steps import Step


def split_granularities(text: str) -> list[str]:
    """ "head, unit(round_to=16, keep=32)" as a list; commas in brackets do not separate."""
    parts, depth = [""], 0
    for character in text:
        depth += (character == "(") - (character == ")")
        if character == "," and depth == 0:
            parts.append("")
        else:
            parts[-1] += character
    return [part.strip() for part in parts if part.strip()]


def is_recurrent(model: nn.Module) -> bool:
    """Whether a model has recurrent networks or cells."""
    from torch.nn import RNNBase, RNNCellBase

    return any(isinstance(module, RNNBase | RNNCellBase) for module in model.modules())


def with_defaults(
    values: Mapping[str, Any], has_texts: bool, recurrent: bool = False
) -> dict[str, Any]:
    """The arguments of one step, with what is best for its granularity where nothing is given.

    Args:
        values: by name, as the command line or a recipe gives them; None stands for nothing.
        has_texts: whether there are calibration texts.
        recurrent: whether the model is, so that the errors of its gates say more about its units
            than gradients do.
    """
    from sparse_engine.pruning.cutting import find_layer, find_structures
    from sparse_engine.structures import Head, Unit

    given = {name: value for name, value in values.items() if value is not None}
    granularity = given.get("granularity")
    if isinstance(granularity, str):
        several = split_granularities(granularity)
        granularity = several if len(several) > 1 or "target" in given else granularity
    if "target" in given:
        return {"allocator": "uniform", **given, "granularity": granularity}
    structures = find_structures(granularity or "element")
    criterion: str | None = "sparsegpt" if has_texts else "magnitude"
    if structures:
        criterion = "obs" if has_texts else "magnitude"
    if find_layer(structures):
        criterion = None if has_texts else "last"
    allocator = "uniform"
    of_stacks = structures and all(isinstance(s, Head | Unit) for s in structures)
    if has_texts and of_stacks and not recurrent:
        criterion = given.get("criterion", "fisher")
        allocator = "raw" if criterion == "fisher" else "uniform"
    defaults = {
        "granularity": granularity or "element",
        "criterion": criterion,
        "recovery": "least_squares" if has_texts else "none",
        "allocator": allocator,
    }
    return {**defaults, **given, "granularity": granularity or "element"}


def arguments_of(
    values: Mapping[str, Any], steps: Any, has_texts: bool, recurrent: bool = False
) -> tuple[dict[str, Any], list[Step]]:
    """The arguments of `prune`, and its steps, validated before a model is loaded.

    Args:
        values: of the options, by the names of `prune`; defaults of all steps.
        steps: of a recipe; None without.
        has_texts: whether there are calibration texts.
        recurrent: whether the model is.

    Raises:
        UsageError: if a step is no mapping, or an argument is wrong.
    """
    from sparse_engine.pruning.steps import NAMES, find_steps, naming_step

    nothing = {**dict.fromkeys(NAMES), "layers": (), "ignore": (), "overrides": ()}
    if steps is None:
        arguments = with_defaults(values, has_texts, recurrent)
        return arguments, find_steps(None, {**nothing, **arguments}, has_texts)
    if not isinstance(steps, list):
        raise UsageError(f"steps is {steps!r:.80}; give a list of mappings, one for each step")
    full = []
    for number, step in enumerate(steps, 1):
        with naming_step(number):
            if not isinstance(step, Mapping):
                raise UsageError(f"{step!r:.80} is no mapping, such as 'granularity: head'")
            full.append(with_defaults({**values, **step}, has_texts, recurrent))
    return {"steps": full}, find_steps(full, nothing, has_texts)
