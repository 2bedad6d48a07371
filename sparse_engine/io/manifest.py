"""sparse_engine.json: what a package holds, as closed data: no code, no paths, nothing unknown.

The first field is the sha256 of the file itself with that field left empty.
"""

from __future__ import annotations

import hashlib
import json
from functools import cached_property
from pathlib import Path
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, JsonValue, ValidationError

from sparse_engine.backends import CPU
from sparse_engine.backends.cpu_table import FEW_TOKENS
from sparse_engine.errors import InvalidFileError, UsageError
from sparse_engine.formats import NM, Bitmask, Format, FormatSpec
from sparse_engine.io.companions import Companion
from sparse_engine.io.folder import read_inside
from sparse_engine.io.tensorfile import MAX_DIMS, parse_json, repeated

MANIFEST = "sparse_engine.json"
# Not a name that other tools look for: beside config.json they would take it for a dense
# checkpoint, find none of its tensors, and go on with random ones.
WEIGHTS = "sparse_engine.safetensors"
# What packages called it before; such packages are read as they are.
OLD_WEIGHTS = "model.safetensors"
VERSION: Literal[2] = 2
MAX_BYTES = 64 << 20

# What a weight may be stored as.
STORED: tuple[type[Format], ...] = (
    *dict.fromkeys(row.packing for row in CPU.table if row.portable),
    Bitmask,
    NM,
)

Name = Annotated[str, Field(min_length=1, max_length=512, pattern=r"^[^\x00-\x1f\x7f]+$")]
Text = Annotated[str, Field(max_length=4096)]
Side = Annotated[int, Field(ge=0, le=2**31 - 1)]
Size = Annotated[int, Field(ge=0, le=2**48)]
Digest = Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]
DtypeName = Literal[
    "float64", "float32", "float16", "bfloat16",
    "int64", "int32", "int16", "int8", "uint8", "uint16", "bool",
]  # fmt: skip


class Entry(BaseModel):
    """Base of all entries: exact types, no unknown fields."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True, allow_inf_nan=False)


class FileEntry(Entry):
    """A file beside the weights, copied as it was."""

    name: Companion
    bytes: Size
    sha256: Digest


class TensorEntry(Entry):
    """One tensor of the weights file; `aliases` are further names of the same parameter."""

    name: Name
    dtype: DtypeName
    shape: Annotated[tuple[Size, ...], Field(max_length=MAX_DIMS)]
    sha256: Digest
    aliases: tuple[Name, ...] = ()


class LayerEntry(Entry):
    """One sparse layer. Its tensors are NAME.BUFFER for each buffer of what it is stored as.

    format: as the layer has it, e.g. "bsr:4x1"; params: of what is stored, not of the format;
    sparsity: fraction of zeros, 0..1; aliases: further names of the same module.
    """

    name: Name
    format: Annotated[str, Field(max_length=64)]
    stored: Literal[
        "runs", "quad_runs", "strips", "sellp", "sellp8", "bits8", "groups8", "bitmask", "nm"
    ]  # fmt: skip
    params: dict[str, Side]
    shape: tuple[Side, Side]
    dtype: Literal["float32", "bfloat16", "int8"]
    bias: Name | None
    sparsity: Annotated[float, Field(ge=0, le=1)]
    aliases: tuple[Name, ...] = ()

    @cached_property
    def spec(self) -> FormatSpec:
        """`format`, parsed; raises UsageError."""
        return FormatSpec.parse(self.format)

    @property
    def stored_class(self) -> type[Format]:
        """The class of the stored buffers."""
        return next(cls for cls in STORED if cls.name == self.stored)

    @property
    def tensor_names(self) -> dict[str, str]:
        """Buffer name -> tensor name."""
        return {buffer: f"{self.name}.{buffer}" for buffer in self.stored_class.buffer_names}


class ChoiceEntry(Entry):
    """What `sparsify_` chose for a linear layer, and why.

    times_us: microseconds by format, then by number of tokens, as measured on `Machine`.
    """

    name: Name
    format: Annotated[str, Field(max_length=64)]
    kernel: Text
    reason: Text
    times_us: dict[Text, dict[Side, float]]


class Machine(Entry):
    """Where the choices were made."""

    cpu: Text
    isa: Text


class Manifest(Entry):
    """The whole file; `architecture` is the name of a transformers class, None for plain torch."""

    sha256: Digest | Literal[""]
    package_version: Literal[2]
    library_version: Text
    source: Literal["transformers", "torch"]
    architecture: Annotated[str, Field(pattern=r"^[A-Za-z0-9_]{1,128}$")] | None
    files: tuple[FileEntry, ...]
    tensors: tuple[TensorEntry, ...]
    layers: tuple[LayerEntry, ...]
    recipe: dict[str, JsonValue] | None
    machine: Machine | None
    choices: tuple[ChoiceEntry, ...]
    skipped: Annotated[float, Field(ge=0, le=1)] | None = None
    """Share of the multiply-adds for one token that the sparse layers skip; older packages lack it.
    """

    def to_bytes(self) -> bytes:
        """The file, with its own hash filled in."""
        draft = self.model_copy(update={"sha256": ""})
        text = json.dumps(draft.model_dump(mode="json"), indent=1, allow_nan=False) + "\n"
        digest = hashlib.sha256(text.encode()).hexdigest()
        return text.replace('"sha256": ""', f'"sha256": "{digest}"', 1).encode()


def read_folder_manifest(folder: Path) -> Manifest:
    """The manifest of a package folder; raises InvalidFileError."""
    return read_manifest(read_inside(folder, MANIFEST, MAX_BYTES), str(folder / MANIFEST))


def read_manifest(raw: bytes, what: str) -> Manifest:
    """Read and check sparse_engine.json; raises InvalidFileError."""
    version = parse_json(raw, what).get("package_version")
    if type(version) is int and version != VERSION:
        advice = "update it" if version > VERSION else "convert the model again"
        raise InvalidFileError(
            f"{what}: package version {version}, this sparse_engine reads {VERSION}: {advice}"
        )
    try:
        manifest = Manifest.model_validate_json(raw)
    except ValidationError as error:
        first, *more = error.errors(include_url=False, include_input=False)
        where = ".".join(str(part) for part in first["loc"])
        others = f" (and {len(more)} more)" if more else ""
        raise InvalidFileError(f"{what}: {where}: {first['msg']}{others}") from None
    blank = raw.replace(f'"sha256": "{manifest.sha256}"'.encode(), b'"sha256": ""', 1)
    if hashlib.sha256(blank).hexdigest() != manifest.sha256:
        raise InvalidFileError(f"{what}: does not match its own sha256: damaged or edited")
    _check_names(manifest, what)
    for layer in manifest.layers:
        _check_layer(layer, f"{what}: layer {layer.name!r}")
    return manifest


def _check_names(manifest: Manifest, what: str) -> None:
    """Names are unique, biases and buffers are among the tensors, each used by one layer."""
    files: list[str] = [entry.name for entry in manifest.files]
    tensors = [name for entry in manifest.tensors for name in (entry.name, *entry.aliases)]
    layers = [name for entry in manifest.layers for name in (entry.name, *entry.aliases)]
    used = [name for entry in manifest.layers for name in entry.tensor_names.values()]
    used += [entry.bias for entry in manifest.layers if entry.bias is not None]
    for kind, names in (("file", files), ("tensor", tensors), ("layer", layers), ("buffer", used)):
        twice = repeated(names)
        if twice is not None:
            raise InvalidFileError(f"{what}: {kind} {twice!r} appears twice")
    missing = set(used) - {entry.name for entry in manifest.tensors}
    if missing:
        raise InvalidFileError(f"{what}: tensor {min(missing)!r} of a layer is missing")
    if manifest.source == "transformers" and (
        manifest.architecture is None or "config.json" not in files
    ):
        raise InvalidFileError(f"{what}: a transformers model needs architecture and config.json")


def stored_as(spec: FormatSpec, dtype: str) -> tuple[type[Format], ...]:
    """What may go to disk: the format where that is smaller, else what the CPU kernels read for any
    number of tokens, or for a few.
    """
    if spec.format in STORED and dtype != "int8":
        return (spec.format,)
    few = CPU.packing_for(spec, dtype, (FEW_TOKENS,), portable=True)
    return tuple(dict.fromkeys((CPU.packing_for(spec, dtype, portable=True), few)))


def _check_layer(layer: LayerEntry, where: str) -> None:
    """The format is known, and what is stored is what that format is stored as."""
    try:
        spec = layer.spec
    except UsageError as error:
        raise InvalidFileError(f"{where}: {error}") from None
    format_class, params = spec.format, spec.params
    kinds = {kind.name: kind for kind in stored_as(spec, layer.dtype)}
    if layer.stored not in kinds:
        raise InvalidFileError(
            f"{where}: format {layer.format} is stored as {' or '.join(kinds)}, "
            f"not as {layer.stored}"
        )
    stored = kinds[layer.stored]
    own = stored is format_class or set(params) == set(stored.param_names)
    expected = params if own else layer.params
    if set(layer.params) != set(stored.param_names) or layer.params != expected:
        raise InvalidFileError(f"{where}: params {layer.params} do not fit format {layer.format}")
    problem = stored.params_problem(layer.params)
    if problem:
        raise InvalidFileError(f"{where}: {problem}")
    if layer.bias not in (None, f"{layer.name}.bias"):
        raise InvalidFileError(f"{where}: bias is called {layer.bias!r}")
