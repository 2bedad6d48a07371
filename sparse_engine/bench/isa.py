"""Instruction sets to measure: those that `--isa` names, and forcing one for a run."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager

from sparse_engine import _core
from sparse_engine.errors import UsageError


def isa_levels(isa: str | None) -> tuple[str | None, ...]:
    """The sets of capabilities that `--isa` names, each as SPARSE_ENGINE_ISA names it.

    "all" is every preset that has kernels and that this machine supports, from small to large, so
    that a kernel is measured at the first preset that has it. Elsewhere commas separate the sets; a
    part with a sign belongs to the set before it: "scalar,native,-bf16" is two sets. None is the
    one set in use.
    """
    if isa is None:
        return (None,)
    if isa == "all":
        targets = {kernel["isa"] for kernel in _core.kernels()}
        return tuple(preset for preset in _core.presets() if preset in targets)
    levels: list[str] = []
    for part in filter(None, map(str.strip, isa.split(","))):
        if levels and part.startswith(("+", "-")):
            levels[-1] += f",{part}"
        else:
            levels.append(part)
    return tuple(dict.fromkeys(levels))


@contextmanager
def forced_isa(isa: str | None) -> Iterator[None]:
    """Use the kernels of `isa` inside the context; None changes nothing.

    Raises:
        UsageError: There is no such set, or this machine does not support it.
    """
    previous = os.environ.get("SPARSE_ENGINE_ISA")
    if isa is not None:
        os.environ["SPARSE_ENGINE_ISA"] = isa
    try:
        try:
            _core.active_isa()
        except ValueError as error:
            raise UsageError(str(error)) from error
        yield
    finally:
        if isa is not None:
            os.environ.pop("SPARSE_ENGINE_ISA")
            if previous is not None:
                os.environ["SPARSE_ENGINE_ISA"] = previous
