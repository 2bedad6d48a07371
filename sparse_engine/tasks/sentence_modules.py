"""What follows the model of a sentence-transformers folder: pooling, dense layers, normalisation.

The folder's modules.json names them. Nothing is imported from it: classes and activations are those
of the tuples below.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Self

import torch
from safetensors import SafetensorError
from safetensors.torch import load
from torch import Tensor
from torch.nn import functional as F

from sparse_engine.errors import InvalidFileError, UnsupportedModelError
from sparse_engine.io.companions import COMPANIONS
from sparse_engine.io.model_files import ModelFiles
from sparse_engine.tasks.pooling import Pooling

KINDS = ("Transformer", "Pooling", "Dense", "Normalize")
ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "Tanh": torch.tanh,
    "Identity": lambda x: x,
    "ReLU": torch.relu,
    "GELU": F.gelu,
    "SiLU": F.silu,
    "Sigmoid": torch.sigmoid,
}
DEFAULT = "1_Pooling"


@dataclass(frozen=True)
class Dense:
    """activation(weight x + bias), of pooled vectors.

    Attributes:
        weight: float32 [out, in].
        bias: float32 [out], or None.
        activation: a name in ACTIVATIONS.
    """

    weight: Tensor
    bias: Tensor | None
    activation: str

    def __call__(self, x: Tensor) -> Tensor:
        """[n, out] of x [n, in]."""
        return ACTIVATIONS[self.activation](F.linear(x, self.weight, self.bias))

    @classmethod
    def read(cls, files: ModelFiles, path: str) -> Self:
        """The layer of a folder's config.json and model.safetensors.

        Raises:
            UnsupportedModelError: for weights or options of another kind.
            InvalidFileError: for tensors that do not fit the config.
        """
        config = files.json(f"{path}/config.json")
        raw = files.read(f"{path}/model.safetensors")
        if config is None or raw is None:
            raise UnsupportedModelError(
                f"{files.folder}/{path} has no config.json or no model.safetensors: "
                "save the model anew with sentence-transformers"
            )
        activation = str(config.get("activation_function", "Tanh")).rpartition(".")[2]
        if activation not in ACTIVATIONS:
            raise UnsupportedModelError(
                f"{files.folder}/{path}: activation {activation:.40}, use one of "
                f"{', '.join(ACTIVATIONS)}"
            )
        where = config.get("module_input_name", "sentence_embedding")
        if config.get("use_residual") or where != "sentence_embedding":
            raise UnsupportedModelError(f"{files.folder}/{path}: use_residual is not supported")
        try:
            tensors = load(raw)
        except (SafetensorError, ValueError) as error:
            raise InvalidFileError(f"{files.folder}/{path}/model.safetensors: {error}") from None
        weight, bias = tensors.pop("linear.weight", None), tensors.pop("linear.bias", None)
        size = (config.get("out_features"), config.get("in_features"))
        if weight is None or tuple(weight.shape) != size or tensors:
            raise InvalidFileError(
                f"{files.folder}/{path}: the weight is not {size[0]} x {size[1]}"
            )
        if bias is not None and tuple(bias.shape) != size[:1]:
            raise InvalidFileError(f"{files.folder}/{path}: the bias has not {size[0]} values")
        return cls(weight.float(), None if bias is None else bias.float(), activation)


@dataclass(frozen=True)
class Normalize:
    """x / the L2 norm of x, row by row."""

    def __call__(self, x: Tensor) -> Tensor:
        """A tensor like x [n, h]."""
        return F.normalize(x, dim=-1)


@dataclass(frozen=True)
class SentenceModules:
    """Hidden states of tokens to an embedding.

    Attributes:
        pooling: the first module.
        rest: those after it, in order.
        source: the file with the pooling, or a note that there is none.
    """

    pooling: Pooling
    rest: tuple[Dense | Normalize, ...]
    source: str

    @classmethod
    def of(cls, folder: str | Path) -> Self:
        """The modules of a folder; the mean of all tokens if it names none.

        Raises:
            UnsupportedModelError: for a module or mode that is not supported: without it the
                embeddings would not be those that the model was trained for.
            InvalidFileError: for damaged files.
        """
        files = ModelFiles(folder)
        modules = read_modules(files)
        paths = [path for kind, path in modules if kind == "Pooling"] or [DEFAULT]
        if len(paths) > 1:
            raise UnsupportedModelError(f"{folder}/modules.json has more than one Pooling")
        rest: list[Dense | Normalize] = []
        for kind, path in modules:
            if kind == "Dense":
                rest.append(Dense.read(files, path))
            elif kind == "Normalize":
                rest.append(Normalize())
        source = f"{paths[0]}/config.json"
        config = files.json(source)
        if config is not None:
            return cls(Pooling.of_config(config), tuple(rest), source)
        if any(kind == "Pooling" for kind, _ in modules):
            raise InvalidFileError(f"{folder}/modules.json names {source}: not there")
        return cls(Pooling(), tuple(rest), "default: the model's folder has no pooling config")

    @property
    def normalizes(self) -> bool:
        """Whether embeddings have the length 1."""
        return bool(self.rest) and isinstance(self.rest[-1], Normalize)

    def __call__(self, hidden: Tensor, mask: Tensor, prompt: int = 0) -> Tensor:
        """Embeddings [n, features]; arguments as Pooling has them."""
        x = self.pooling(hidden, mask, prompt)
        for module in self.rest:
            x = module(x)
        return x


def read_modules(files: ModelFiles) -> list[tuple[str, str]]:
    """(class name, path) of each entry of modules.json; empty when there is no such file."""
    entries = files.json("modules.json", list)
    found = []
    for entry in entries or []:
        kind = str(entry.get("type", "")).rpartition(".")[2] if isinstance(entry, dict) else ""
        path = str(entry.get("path", "")) if kind else ""
        if kind not in KINDS:
            raise UnsupportedModelError(
                f"{files.folder}/modules.json has a module {kind!r}: only {', '.join(KINDS[:-1])} "
                f"and {KINDS[-1]} are supported"
            )
        if path != Path(path).name or (kind in ("Pooling", "Dense") and not path):
            raise InvalidFileError(
                f"{files.folder}/modules.json: path {path!r} is not a plain name"
            )
        found.append((kind, path))
    return found


def check_packaged(folder: str | Path) -> None:
    """Check that the modules of a model's folder can be read again from a package.

    Raises:
        UnsupportedModelError: for modules that are not supported, or whose files packages do not
            keep.
        InvalidFileError: for damaged files.
    """
    SentenceModules.of(folder)
    for kind, path in read_modules(ModelFiles(folder)):
        name = f"{path}/config.json"
        if kind in ("Pooling", "Dense") and name not in COMPANIONS:
            places = "1_Pooling, 2_Dense and 3_Dense"
            raise UnsupportedModelError(f"{folder}: {kind} is in {name}, packages keep {places}")
