"""A package opened for reading: everything checked, tensors mapped, nothing copied."""

from __future__ import annotations

import hashlib
import mmap
import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from torch import Tensor

from sparse_engine.errors import InvalidFileError
from sparse_engine.formats import Format
from sparse_engine.formats.checks import dtype_name
from sparse_engine.io import companions
from sparse_engine.io.folder import open_inside, read_inside
from sparse_engine.io.manifest import (
    MANIFEST,
    OLD_WEIGHTS,
    WEIGHTS,
    FileEntry,
    LayerEntry,
    Manifest,
    read_folder_manifest,
)
from sparse_engine.io.tensorfile import ALIGNMENT, PAD, Slot, map_file, map_tensors, read_header

Progress = Callable[[int, int, str], None]


@dataclass(frozen=True)
class Package:
    """A folder whose manifest, tensor table and sparse structures are valid.

    weights: the file of the tensors; tensors: views of it by name; layers: the sparse weights by
    layer name, built from such views. Values are not read: damage there is found by `verify`,
    through the hashes. view: the mapped file.
    """

    path: Path
    weights: Path
    manifest: Manifest
    tensors: dict[str, Tensor]
    layers: dict[str, Format]
    view: mmap.mmap

    def drop_pages(self) -> None:
        """Give the memory of the mapped file back; pages are read again when they are used."""
        self.view.madvise(mmap.MADV_DONTNEED)

    @property
    def dense(self) -> dict[str, Tensor]:
        """Tensors that belong to no sparse layer, by name."""
        taken = {name for entry in self.manifest.layers for name in entry.tensor_names.values()}
        taken |= {entry.bias for entry in self.manifest.layers if entry.bias is not None}
        return {name: tensor for name, tensor in self.tensors.items() if name not in taken}

    def bias(self, entry: LayerEntry) -> Tensor | None:
        """The bias of a sparse layer, float32 [out]."""
        return None if entry.bias is None else self.tensors[entry.bias]

    def read_file(self, name: companions.Companion) -> bytes:
        """A companion file that the manifest lists, checked against its hash."""
        entry = next(entry for entry in self.manifest.files if entry.name == name)
        return read_listed(self.path, entry)


def is_package(folder: Path) -> bool:
    """Whether `folder` claims to be a package."""
    return (folder / MANIFEST).is_file()


def read_listed(folder: Path, entry: FileEntry) -> bytes:
    """A companion file, checked against its entry in the manifest; raises InvalidFileError."""
    data = read_inside(folder, entry.name, companions.MAX_BYTES)
    if len(data) != entry.bytes or hashlib.sha256(data).hexdigest() != entry.sha256:
        raise InvalidFileError(f"{folder / entry.name}: is not the file that was packed")
    return data


def weights_name(folder: Path) -> str:
    """What the weights file of a package is called; old packages have the name of a
    checkpoint's.
    """
    old = os.path.lexists(folder / OLD_WEIGHTS) and not os.path.lexists(folder / WEIGHTS)
    return OLD_WEIGHTS if old else WEIGHTS


def open_package(
    folder: Path, progress: Progress | None = None, keeps_pages: bool = True
) -> Package:
    """Open and check a package; raises InvalidFileError naming the file and what is wrong.

    Sizes, offsets, names, dtypes and shapes are checked before anything is mapped, then each
    sparse weight: pointers, indices, masks and padding. Unless `keeps_pages`, the memory of what
    was read is given back after each layer.
    """
    if not folder.is_dir():
        raise InvalidFileError(f"{folder}: is not a folder")
    if not os.path.lexists(folder / MANIFEST) and os.path.lexists(folder / "config.json"):
        raise InvalidFileError(
            f"{folder / MANIFEST}: is missing; this is the folder of a model, no package: "
            f"sparse-engine convert {folder} PACKAGE makes one"
        )
    manifest = read_folder_manifest(folder)
    _check_unlisted(folder, manifest)
    path = folder / weights_name(folder)
    with open_inside(folder, path.name) as handle:
        slots = read_header(handle, path)
        _check_table(path, manifest, slots)
        view = map_file(handle)
        tensors = map_tensors(view, path, slots)
    _check_padding(path, tensors)
    layers = {}
    for done, entry in enumerate(manifest.layers, 1):
        layers[entry.name] = _layer(path, entry, tensors)
        if not keeps_pages:
            view.madvise(mmap.MADV_DONTNEED)
        if progress is not None:
            progress(done, len(manifest.layers), entry.name)
    tensors = {name: tensor for name, tensor in tensors.items() if not name.startswith(PAD)}
    package = Package(folder, path, manifest, tensors, layers, view)
    for file in manifest.files:  # small, and the tokenizer decides what the model is asked
        package.read_file(file.name)
    return package


def _check_unlisted(folder: Path, manifest: Manifest) -> None:
    """Refuse files without a hash that a model is read from: they would change its outputs."""
    known: set[str] = {weights_name(folder), *(entry.name for entry in manifest.files)}
    for name in (*companions.COMPANIONS, OLD_WEIGHTS):
        if name not in known and os.path.lexists(folder / name):
            raise InvalidFileError(f"{folder / name}: is not among the files of {MANIFEST}")


def _check_table(path: Path, manifest: Manifest, slots: dict[str, Slot]) -> None:
    """The file holds exactly the tensors of the manifest, in its order, on 64-byte boundaries."""
    named = {name: slot for name, slot in slots.items() if not name.startswith(PAD)}
    entries = {entry.name: entry for entry in manifest.tensors}
    for name in entries:
        if name not in named:
            raise InvalidFileError(f"{path}: tensor {name!r} of {MANIFEST} is missing")
    for name, slot in named.items():
        if name not in entries:
            raise InvalidFileError(f"{path}: tensor {name!r} is not in {MANIFEST}")
        found = f"{dtype_name(slot.dtype)} {list(slot.shape)}"
        expected = f"{entries[name].dtype} {list(entries[name].shape)}"
        if found != expected:
            raise InvalidFileError(f"{path}: tensor {name!r} is {found}, {MANIFEST} has {expected}")
        if slot.start % ALIGNMENT:
            raise InvalidFileError(f"{path}: tensor {name!r} is not on a {ALIGNMENT}-byte boundary")
    if list(named) != list(entries):
        raise InvalidFileError(f"{path}: tensors are not in the order of {MANIFEST}")
    before = 0
    for name, slot in slots.items():
        if not name.startswith(PAD):
            before += 1
        elif name != f"{PAD}{before}" or slot.nbytes >= ALIGNMENT:
            raise InvalidFileError(f"{path}: {name!r} of {slot.nbytes} bytes is no padding")


def _check_padding(path: Path, tensors: dict[str, Tensor]) -> None:
    for name, tensor in tensors.items():
        if name.startswith(PAD) and int(tensor.count_nonzero()):
            raise InvalidFileError(f"{path}: padding {name!r} is not zero")


def _layer(path: Path, entry: LayerEntry, tensors: dict[str, Tensor]) -> Format:
    where = f"{path}: layer {entry.name!r}"
    buffers = {buffer: tensors[name] for buffer, name in entry.tensor_names.items()}
    if dtype_name(buffers["values"].dtype) != entry.dtype:
        raise InvalidFileError(f"{where}: values are not {entry.dtype}")
    if entry.bias is not None:
        bias = tensors[entry.bias]
        if dtype_name(bias.dtype) != "float32" or bias.shape != (entry.shape[0],):
            raise InvalidFileError(f"{where}: bias is not float32 [{entry.shape[0]}]")
    try:
        return entry.stored_class.from_tensors(entry.shape, entry.params, buffers)
    except InvalidFileError as error:
        raise InvalidFileError(f"{where}: {error}") from None
