"""The options of `bench kernel` as a grid: which op has which options, and their values."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import fields
from pathlib import Path
from typing import Any

from sparse_engine.cli.common import split
from sparse_engine.errors import UsageError

KINDS: dict[str, Any] = {"n": int, "k": int, "m": int, "sparsity": float}


def kernel_grid(
    op: str,
    lists: Mapping[str, str | None],
    numbers: Mapping[str, int | None],
    linear_only: Mapping[str, Any],
) -> Any:
    """The grid of an op; options that are None keep the grid's default.

    Args:
        op: "linear", "conv1d", "lstm", "gru" or "rnn".
        lists: Options with comma-separated values.
        numbers: Options with one number.
        linear_only: "matrix", "from", "layer", "pattern" and "plot".

    Raises:
        UsageError: An option that the op does not have, or a value out of range.
    """
    from sparse_engine.bench.conv1d import Conv1dGrid
    from sparse_engine.bench.linear_grid import LinearGrid
    from sparse_engine.bench.patterns import Pattern
    from sparse_engine.bench.recurrent import NetworkGrid

    given: dict[str, Any] = {
        name: split(text, KINDS.get(name, str), _option(name))
        for name, text in lists.items()
        if text is not None
    }
    given |= {name: value for name, value in numbers.items() if value is not None}
    kinds: dict[str, Any] = {"linear": LinearGrid, "conv1d": Conv1dGrid}
    kind = kinds.get(op, NetworkGrid)
    known = {field.name for field in fields(kind)}
    extra = [name for name, value in linear_only.items() if value is not None]
    wrong = [name for name in given if name not in known] + (extra if op != "linear" else [])
    if wrong:
        raise UsageError(f"{', '.join(map(_option, wrong))}: not an option of --op {op}")
    if kind is NetworkGrid:
        given["op"] = op
    if linear_only["pattern"] is not None:
        given["pattern"] = Pattern.parse(linear_only["pattern"])
    own = own_matrices(linear_only["matrix"], linear_only["from"], linear_only["layer"])
    if own:
        random = [name for name in ("n", "k", "sparsity", "pattern") if name in given]
        if random:
            options = ", ".join(map(_option, random))
            raise UsageError(f"{options}: for random weights, not for your own")
        given["own"] = own
    return kind(**given)


def own_matrices(matrix: str | None, package: Path | None, layer: str | None) -> tuple[Any, ...]:
    """The weights that --matrix, --from and --layer name, each once.

    Raises:
        UsageError: --from without --layer, a name that is missing, a file that holds no weight.
        InvalidFileError: A damaged file.
    """
    from sparse_engine.bench.matrices import read_layer, read_matrix

    if (package is None) != (layer is None):
        raise UsageError("--from PACKAGE and --layer NAME go together")
    files = dict.fromkeys(split(matrix or "", str, "--matrix"))
    found = [read_matrix(file) for file in files]
    if package is not None:
        names = dict.fromkeys(split(layer or "", str, "--layer"))
        found += [read_layer(package, name) for name in names]
    if not found and (matrix is not None or package is not None):
        raise UsageError("--matrix and --layer need a name")
    return tuple(found)


def _option(name: str) -> str:
    return f"-{name}" if len(name) == 1 else f"--{name}"
