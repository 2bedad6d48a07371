"""Pooling: one vector for each token to one for each text, as set in the model's files.

Reimers and Gurevych 2019, arXiv:1908.10084; the files are those of sentence-transformers.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

import torch
from torch import Tensor

from sparse_engine.errors import InvalidFileError, UnsupportedModelError
from sparse_engine.io.model_files import ModelFiles

MODES = ("mean", "cls", "max")
FLAG = "pooling_mode_"
OLD_NAMES = {"mean_tokens": "mean", "cls_token": "cls", "max_tokens": "max"}


@dataclass(frozen=True)
class Pooling:
    """mode: "mean", "cls" or "max" over the tokens of a text; normalize: divide by the L2 norm.

    source: the file with the setting, or a note that there is none.
    """

    mode: str
    normalize: bool
    source: str

    @classmethod
    def of(cls, folder: Path) -> Self:
        """The pooling of modules.json and the pooling config in `folder`; mean if both are missing.

        Raises UnsupportedModelError for a module or mode that is not supported: without it the
        embeddings would not be those that the model was trained for.
        """
        files = ModelFiles(folder)
        modules = read_modules(files)
        paths = [path for kind, path in modules if kind == "Pooling"] or ["1_Pooling"]
        normalize = any(kind == "Normalize" for kind, _ in modules)
        config = files.json(f"{paths[0]}/config.json")
        if config is not None:
            return cls(_mode(config), normalize, f"{paths[0]}/config.json")
        if any(kind == "Pooling" for kind, _ in modules):
            raise InvalidFileError(f"{folder}/modules.json names {paths[0]}/config.json: not there")
        return cls("mean", normalize, "default: the model's folder has no pooling config")

    def __call__(self, hidden: Tensor, mask: Tensor) -> Tensor:
        """hidden float32 [n, seq, h], mask int64 [n, seq] of 0 and 1 -> [n, h]."""
        if self.mode == "cls":
            pooled = hidden[:, 0]
        elif self.mode == "max":
            pooled = hidden.masked_fill(mask.unsqueeze(-1) == 0, float("-inf")).amax(1)
        else:
            real = mask.unsqueeze(-1).to(hidden.dtype)  # [n, seq, 1]
            pooled = (hidden * real).sum(1) / real.sum(1)
        return torch.nn.functional.normalize(pooled, dim=-1) if self.normalize else pooled


def read_modules(files: ModelFiles) -> list[tuple[str, str]]:
    """(class name, path) of each entry of modules.json; empty when there is no such file."""
    entries = files.json("modules.json", list)
    found = []
    for entry in entries or []:
        kind = str(entry.get("type", "")).rpartition(".")[2] if isinstance(entry, dict) else ""
        path = str(entry.get("path", "")) if kind else ""
        if kind not in ("Transformer", "Pooling", "Normalize"):
            raise UnsupportedModelError(
                f"{files.folder}/modules.json has a module {kind!r}: "
                "only Transformer, Pooling and Normalize are supported"
            )
        if path != Path(path).name:
            raise InvalidFileError(
                f"{files.folder}/modules.json: path {path!r} is not a plain name"
            )
        found.append((kind, path))
    return found


def _mode(config: dict[str, Any]) -> str:
    """The pooling mode of a pooling config, in either of its spellings."""
    if "pooling_mode" in config:
        value = config["pooling_mode"]
        modes = list(value) if isinstance(value, list) else [str(value)]
    else:
        flags = [key[len(FLAG) :] for key, on in config.items() if key.startswith(FLAG) and on]
        modes = [OLD_NAMES.get(flag, flag) for flag in flags]
    if len(modes) != 1 or modes[0] not in MODES:
        raise UnsupportedModelError(
            f"pooling {' + '.join(map(str, modes)) or 'none'}: use one of {', '.join(MODES)}"
        )
    return str(modes[0])
