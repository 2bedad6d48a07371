"""The safetensors files of a Hugging Face folder: which there are, and what their headers say."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import torch

from sparse_engine.errors import InvalidFileError
from sparse_engine.io.tensorfile import Slot, parse_json, read_header

WEIGHTS = "model.safetensors"
INDEX = "model.safetensors.index.json"
PICKLES = ("*.bin", "*.pt", "*.pth", "*.ckpt", "*.pkl")


def weight_files(folder: Path) -> list[Path]:
    """The safetensors files of a folder; raises InvalidFileError if there are none."""
    if (folder / INDEX).is_file() and not (folder / WEIGHTS).is_file():
        where = folder / INDEX
        names = parse_json(where.read_bytes(), str(where)).get("weight_map")
        if not isinstance(names, dict) or not all(isinstance(n, str) for n in names.values()):
            raise InvalidFileError(f"{where}: has no weight_map")
        for name in sorted(set(names.values())):
            if "/" in name or name.startswith(".") or not name.endswith(".safetensors"):
                raise InvalidFileError(f"{where}: {name[:80]!r} is no bare safetensors file name")
            if not (folder / name).is_file():
                raise InvalidFileError(f"{folder / name}: is missing")
        return [folder / name for name in sorted(set(names.values()))]
    if (folder / WEIGHTS).is_file():
        return [folder / WEIGHTS]
    pickles = sorted(path.name for pattern in PICKLES for path in folder.glob(pattern))
    if pickles:
        raise InvalidFileError(
            f"{folder / pickles[0]}: pickle is never read, since it can run code: convert to "
            "safetensors first, on a machine you can lose (model.save_pretrained writes them)"
        )
    raise InvalidFileError(f"{folder}: has no weights: expected {WEIGHTS} or {INDEX}")


def read_headers(folder: Path) -> dict[str, tuple[Path, Slot]]:
    """By name of a tensor, its file and its place there; raises InvalidFileError."""
    found: dict[str, tuple[Path, Slot]] = {}
    for path in weight_files(folder):
        with open(path, "rb") as file:
            slots = read_header(file.fileno(), path)
        for name, slot in slots.items():
            if name in found:
                raise InvalidFileError(
                    f"{path}: tensor {name!r} is in {found[name][0].name} as well"
                )
            found[name] = path, slot
    return found


class StoredDtypes:
    """The dtypes of the floating-point tensors of a folder."""

    def __init__(self, folder: Path) -> None:
        """Raises InvalidFileError for files that cannot be read."""
        slots = {name: slot for name, (_, slot) in read_headers(folder).items()}
        self._dtypes = {n: s.dtype for n, s in slots.items() if s.dtype.is_floating_point}
        elements = Counter[torch.dtype]()
        for name, dtype in self._dtypes.items():
            elements[dtype] += slots[name].nbytes // dtype.itemsize
        self._common = elements.most_common(1)[0][0] if elements else torch.float32

    def of(self, name: str) -> torch.dtype:
        """The dtype of a tensor, or that of most weights if the folder has no such tensor."""
        return self._dtypes.get(name, self._common)
