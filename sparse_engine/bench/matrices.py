"""The user's own weights to measure: from .npy, .mtx, .smtx and safetensors files, or a package.

Sizes are read from headers and checked before any data are; nothing is unpickled.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass, field
from difflib import get_close_matches
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from sparse_engine.bench.smtx import MAX_ELEMENTS, parse_smtx
from sparse_engine.errors import InvalidFileError, UsageError

# A number in text has two bytes or more: no longer file is needed for MAX_ELEMENTS.
MAX_TEXT_BYTES = 2**31
LONGEST_LINE = 1000
KINDS = ".npy, .mtx, .smtx, or a tensor of a safetensors file as FILE.safetensors:TENSOR"


@dataclass(frozen=True)
class OwnMatrix:
    """A weight [out, in], float32, and where it came from."""

    source: str
    weight: Tensor = field(compare=False)


def read_matrix(text: str) -> OwnMatrix:
    """The matrix that `--matrix TEXT` names.

    Raises:
        UsageError: No such file, or too large a matrix.
        InvalidFileError: A damaged file.
    """
    name, colon, tensor = text.rpartition(":")
    if colon and name.endswith(".safetensors"):
        return _checked(text, _read_safetensors(_file(name), tensor))
    readers: dict[str, Callable[[Path], Tensor]] = {
        ".npy": _read_npy,
        ".mtx": _read_mtx,
        ".smtx": _read_smtx,
    }
    suffix = Path(text).suffix
    if suffix not in readers:
        raise UsageError(f"--matrix {text}: use {KINDS}")
    return _checked(text, readers[suffix](_file(text)))


def read_layer(package: Path, name: str) -> OwnMatrix:
    """The weight of a layer of a package, sparse or dense; raises UsageError, InvalidFileError."""
    from sparse_engine.io.package import open_package

    opened = open_package(package)
    dense = {key.removesuffix(".weight"): t for key, t in opened.dense.items() if t.dim() == 2}
    if name in opened.layers:
        stored = opened.layers[name]
        check_size(stored.shape[0], stored.shape[1], name)
        return _checked(name, stored.to_dense())
    if name in dense:
        check_size(dense[name].shape[0], dense[name].shape[1], name)
        return _checked(name, dense[name])
    names = [*opened.layers, *dense]
    near = get_close_matches(name, names, 3, 0.5) or names[:3]
    raise UsageError(f"--layer {name}: {package} has no such layer; it has {', '.join(near)}, ...")


def check_size(rows: int, cols: int, what: str) -> None:
    """Raise UsageError for an empty weight or one too large to be compared with dense."""
    if rows < 1 or cols < 1 or rows * cols > MAX_ELEMENTS:
        raise UsageError(f"{what}: {rows} x {cols} elements; the limit is {MAX_ELEMENTS}")


def _file(name: str) -> Path:
    path = Path(name)
    if not path.is_file():
        raise UsageError(f"--matrix {name}: no such file")
    return path


def _checked(source: str, weight: Tensor) -> OwnMatrix:
    if weight.dim() != 2:
        raise UsageError(f"{source}: has {weight.dim()} dimensions, a weight has 2: [out, in]")
    check_size(weight.shape[0], weight.shape[1], source)
    weight = weight.float().contiguous()
    if not weight.isfinite().all():
        raise UsageError(f"{source}: holds NaN or infinite values")
    if not weight.any():
        raise UsageError(f"{source}: holds only zeros")
    return OwnMatrix(source, weight)


def _check_dimensions(shape: tuple[int, ...], path: Path) -> None:
    if len(shape) != 2:
        raise UsageError(f"{path}: has {len(shape)} dimensions, a weight has 2: [out, in]")
    check_size(shape[0], shape[1], str(path))


def _read_npy(path: Path) -> Tensor:
    try:
        array = np.load(path, mmap_mode="r", allow_pickle=False)
    except (ValueError, EOFError, OSError, SyntaxError) as error:
        # numpy reads any other file as a pickle; its message on how to allow that is left out.
        detail = "it has another header" if "pickle" in str(error) else str(error)[:80]
        raise InvalidFileError(f"{path}: not a .npy file: {detail}") from error
    _check_dimensions(array.shape, path)
    if array.dtype.kind not in "fiub":
        raise UsageError(f"{path}: holds {array.dtype}; real numbers are needed")
    return torch.from_numpy(np.array(array, dtype=np.float32))


def _read_smtx(path: Path) -> Tensor:
    _check_text(path)
    return parse_smtx(path.read_text("ascii", "replace"), str(path)).weight()


def _check_text(path: Path) -> None:
    if path.stat().st_size > MAX_TEXT_BYTES:
        raise UsageError(f"{path}: is larger than {MAX_TEXT_BYTES} bytes")


def _read_mtx(path: Path) -> Tensor:
    """A Matrix Market file; values of a pattern are random."""
    from scipy.io import mmread

    _check_text(path)
    with path.open("rb") as file:
        banner = file.readline(LONGEST_LINE).decode("ascii", "replace").lower().split()
        line = b"%"
        while line.startswith(b"%") or (line and not line.strip()):
            line = file.readline(LONGEST_LINE)
    if len(banner) != 5 or banner[:2] != ["%%matrixmarket", "matrix"]:
        raise InvalidFileError(f"{path}: not a Matrix Market file")
    _, _, layout, field, symmetry = banner
    general = symmetry == "general"
    if field not in ("real", "integer", "pattern") or layout not in ("coordinate", "array"):
        raise UsageError(f"{path}: a {layout} matrix of {field} values; use real numbers")
    try:
        numbers = [int(part) for part in line.split()]
        rows, cols = numbers[:2]
    except ValueError as error:
        raise InvalidFileError(f"{path}: its line of sizes is damaged") from error
    check_size(rows, cols, str(path))
    if len(numbers) != (3 if layout == "coordinate" else 2):
        raise InvalidFileError(f"{path}: its line of sizes is damaged")
    # An entry has two or more numbers, a value of an array one, each with a separator.
    least = (
        4 * numbers[2] if layout == "coordinate" else 2 * rows * (cols if general else cols // 2)
    )
    if not 0 <= numbers[-1] <= rows * cols or least > path.stat().st_size:
        raise InvalidFileError(f"{path}: is shorter than its line of sizes promises")
    try:
        found = mmread(path)
    except (ValueError, OverflowError, TypeError, OSError) as error:
        raise InvalidFileError(f"{path}: {' '.join(str(error).split())[:80]}") from error
    dense = torch.from_numpy(np.asarray(found if layout == "array" else found.toarray()).copy())
    if field == "pattern":
        values = torch.randn(dense.shape, generator=torch.Generator().manual_seed(0))
        dense = torch.where(dense != 0, values.where(values != 0, torch.ones(())), torch.zeros(()))
    return dense


def _read_safetensors(path: Path, name: str) -> Tensor:
    from sparse_engine.io.tensorfile import map_file, map_tensors, read_header

    handle = os.open(path, os.O_RDONLY)
    try:
        slots = read_header(handle, path)
        if name not in slots:
            near = get_close_matches(name, slots, 3, 0.5) or list(slots)[:3]
            raise UsageError(f"{path}: has no tensor {name!r}; it has {', '.join(near)}, ...")
        _check_dimensions(tuple(slots[name].shape), path)
        return map_tensors(map_file(handle), path, {name: slots[name]})[name]
    finally:
        os.close(handle)
