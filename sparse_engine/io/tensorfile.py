"""Safetensors files: every check before the first allocation, tensors that are views of the file.

8 bytes header length N, N bytes of JSON, data; https://github.com/huggingface/safetensors.
"""

from __future__ import annotations

import hashlib
import json
import math
import mmap
import os
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from sparse_engine.errors import InvalidFileError, UsageError
from sparse_engine.formats.checks import dtype_name

DTYPES = {
    "F64": torch.float64,
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "I64": torch.int64,
    "I32": torch.int32,
    "I16": torch.int16,
    "I8": torch.int8,
    "U8": torch.uint8,
    "U16": torch.uint16,
    "BOOL": torch.bool,
}
CODES = {dtype: code for code, dtype in DTYPES.items()}
MAX_HEADER = 100 << 20
MAX_DIMS = 8
# Kernels load whole cache lines; a mapped file starts on a page.
ALIGNMENT = 64
# Safetensors allow no holes between tensors, so these fill them.
PAD = "__pad_"


@dataclass(frozen=True)
class Slot:
    """The position of a tensor: `nbytes` bytes from byte `start` of the file."""

    dtype: torch.dtype
    shape: tuple[int, ...]
    start: int
    nbytes: int


def read_header(handle: int, path: Path) -> dict[str, Slot]:
    """All tensors of an open file, in the order of their data; raises InvalidFileError.

    The data must start at 0 and have no holes, overlaps or trailing bytes, and the size of each
    tensor must follow from its shape and dtype. Only the header is read.
    """
    size = os.fstat(handle).st_size
    if size < 8:
        raise InvalidFileError(f"{path}: {size} bytes are too few for a safetensors file")
    length = int.from_bytes(os.pread(handle, 8, 0), "little")
    if length > min(size - 8, MAX_HEADER):
        raise InvalidFileError(
            f"{path}: header of {length} bytes in a file of {size}: truncated, or no safetensors"
        )
    raw = os.pread(handle, length, 8)
    if len(raw) != length or not raw.startswith(b"{"):
        raise InvalidFileError(f"{path}: header is not a JSON object")
    entries = parse_json(raw, f"{path}: header")
    entries.pop("__metadata__", None)
    slots = {name: _slot(path, name, entry, 8 + length) for name, entry in entries.items()}
    slots = dict(sorted(slots.items(), key=lambda item: (item[1].start, item[1].nbytes)))
    end = 8 + length
    for name, slot in slots.items():
        if slot.start != end:
            what = "overlaps the tensor before it" if slot.start < end else "leaves a hole"
            raise InvalidFileError(f"{path}: tensor {name!r} {what}")
        end += slot.nbytes
    if end != size:
        what = "truncated" if end > size else "has trailing bytes"
        raise InvalidFileError(f"{path}: {what}: {size} bytes, the header describes {end}")
    return slots


def parse_json(raw: bytes, what: str) -> dict[str, Any]:
    """A JSON object without duplicate keys, NaN or Infinity; raises InvalidFileError."""
    return read_json(raw, what, dict)


def read_json(raw: bytes, what: str, kind: type) -> Any:
    """The same for an object, a dict, or a list; raises InvalidFileError."""
    try:
        value = json.loads(
            raw, object_pairs_hook=_unique, parse_constant=_no_constant, parse_float=_finite
        )
    except (ValueError, RecursionError) as error:
        raise InvalidFileError(f"{what} is not valid JSON: {str(error)[:200]}") from None
    if not isinstance(value, kind):
        expected = "a JSON object" if kind is dict else f"a JSON {kind.__name__}"
        raise InvalidFileError(f"{what} is not {expected}")
    return value


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    result = dict(pairs)
    if len(result) != len(pairs):
        raise ValueError(f"{repeated(name for name, _ in pairs)!r} appears twice")
    return result


def repeated(names: Iterable[str]) -> str | None:
    """The first repeated name, or None; in linear time, because files can have many names."""
    seen: set[str] = set()
    for name in names:
        if name in seen:
            return name
        seen.add(name)
    return None


def _no_constant(text: str) -> float:
    raise ValueError(f"{text} is not a number")


def _finite(text: str) -> float:
    value = float(text)
    if not math.isfinite(value):  # 1e999
        raise ValueError(f"{text[:40]} is not a finite number")
    return value


def _slot(path: Path, name: str, entry: Any, base: int) -> Slot:
    where = f"{path}: tensor {name!r}"
    if not isinstance(entry, dict) or set(entry) != {"dtype", "shape", "data_offsets"}:
        raise InvalidFileError(f"{where}: expected dtype, shape and data_offsets")
    dtype = DTYPES.get(entry["dtype"]) if isinstance(entry["dtype"], str) else None
    if dtype is None:
        raise InvalidFileError(f"{where}: unknown dtype {str(entry['dtype'])[:40]!r}")
    shape, offsets = entry["shape"], entry["data_offsets"]
    if not _sizes(shape) or len(shape) > MAX_DIMS:
        raise InvalidFileError(f"{where}: shape is not a list of at most {MAX_DIMS} sizes")
    if not _sizes(offsets) or len(offsets) != 2:
        raise InvalidFileError(f"{where}: data_offsets are not two sizes")
    nbytes = math.prod(shape) * dtype.itemsize
    if offsets[1] - offsets[0] != nbytes:
        raise InvalidFileError(
            f"{where}: shape {shape} in {dtype_name(dtype)} needs {nbytes} bytes, "
            f"data_offsets hold {offsets[1] - offsets[0]}"
        )
    return Slot(dtype, tuple(shape), base + offsets[0], nbytes)


def _sizes(value: Any) -> bool:
    return isinstance(value, list) and all(type(n) is int and 0 <= n < 1 << 63 for n in value)


def map_file(handle: int) -> mmap.mmap:
    """An open file, mapped; writing copies a page and never changes the file."""
    return mmap.mmap(handle, 0, access=mmap.ACCESS_COPY)


def map_tensors(view: mmap.mmap, path: Path, slots: dict[str, Slot]) -> dict[str, Tensor]:
    """The tensors as views of a mapped file, of which processes share one copy in memory.

    Raises InvalidFileError for a bool that is none.
    """
    tensors = {}
    for name, slot in slots.items():
        count = math.prod(slot.shape)
        flat = torch.empty(0, dtype=slot.dtype)
        if count:
            flat = torch.frombuffer(view, dtype=slot.dtype, count=count, offset=slot.start)
        if slot.dtype == torch.bool and count and int(flat.view(torch.uint8).max()) > 1:
            raise InvalidFileError(f"{path}: tensor {name!r}: a bool is neither 0 nor 1")
        tensors[name] = flat.view(slot.shape)
    return tensors


def write_tensors(
    path: Path,
    tensors: Sequence[tuple[str, Tensor]],
    progress: Callable[[int, int, str], None] | None = None,
) -> dict[str, str]:
    """Write a safetensors file in the given order, each tensor on a 64-byte boundary.

    The same tensors give the same bytes.

    Args:
        path: The file.
        tensors: Pairs of name and tensor.
        progress: Called as (done, total, name).

    Returns:
        The sha256 of each tensor's data by name.

    Raises:
        UsageError: A name or dtype that cannot be stored.
    """
    entries: dict[str, Any] = {}
    end = 0
    for i, (name, tensor) in enumerate(tensors):
        if end % ALIGNMENT:
            pad = -end % ALIGNMENT
            entries[f"{PAD}{i}"] = {"dtype": "U8", "shape": [pad], "data_offsets": [end, end + pad]}
            end += pad
        if name in entries or name.startswith(PAD) or name == "__metadata__":
            raise UsageError(f"tensor name {name!r} is in use")
        if tensor.dtype not in CODES or tensor.layout != torch.strided or tensor.is_meta:
            kind = f"{tensor.layout} {dtype_name(tensor.dtype)} on {tensor.device}"
            raise UsageError(f"tensor {name!r} cannot be stored: it is {kind}")
        entries[name] = {
            "dtype": CODES[tensor.dtype],
            "shape": list(tensor.shape),
            "data_offsets": [end, end + tensor.nbytes],
        }
        end += tensor.nbytes
    header = json.dumps(entries, separators=(",", ":")).encode()
    header += b" " * (-(8 + len(header)) % ALIGNMENT)
    digests = {}
    with open(path, "wb") as file:
        file.write(len(header).to_bytes(8, "little") + header)
        for done, (name, tensor) in enumerate(tensors, 1):
            file.write(b"\0" * (-file.tell() % ALIGNMENT))
            data = tensor_bytes(tensor)
            digests[name] = hashlib.sha256(data).hexdigest()
            file.write(data)
            if progress is not None:
                progress(done, len(tensors), name)
    return digests


def tensor_bytes(tensor: Tensor) -> memoryview:
    """The data of a tensor, row-major; without a copy if it is contiguous on the CPU."""
    if not tensor.numel():  # an empty tensor may have strides that cannot be viewed as bytes
        return memoryview(b"")
    flat = tensor.detach().cpu().contiguous().reshape(-1)
    return flat.view(torch.uint8).numpy().data
