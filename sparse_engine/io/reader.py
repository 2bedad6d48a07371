"""load: a package folder -> a model whose weights are views of the file."""

from __future__ import annotations

import warnings
from pathlib import Path

import torch
from torch import nn

from sparse_engine import _core
from sparse_engine.backends import backend_of
from sparse_engine.convert.native import install_native
from sparse_engine.errors import UsageError
from sparse_engine.io.package import Package, Progress, open_package
from sparse_engine.io.skeleton import fill, fit_as_stored_, fold_as_stored_, rebuild


def load(
    folder: str | Path,
    model: nn.Module | None = None,
    device: str | torch.device = "cpu",
    progress: Progress | None = None,
) -> nn.Module:
    """The model of a package, in eval mode, without gradients.

    A transformers model is rebuilt from config.json, and stacks of known families run natively.

    Weights are mapped, not read: they come from the disk when they are first used, and processes
    that load the same package share one copy. Packages are replaced by renaming, so never rewrite
    the weights file in place while it is loaded. There is a warning if the formats were
    chosen by measurement on another processor.

    Args:
        folder: The package.
        model: For packages of other modules: the module before `sparsify_`, with any weights (they
            are replaced in place) or on the meta device.
        device: Device of the model; on "cuda" weights are packed again for the kernels there.
        progress: Called as (done, total, layer name).

    Raises:
        InvalidFileError: A damaged package; raised before a model is built.
        UsageError: `model` is missing, or there is no such device or too little memory on it.

    >>> model = se.load("out"); output = model(**inputs)
    """
    try:
        device = torch.device(device)
    except RuntimeError as error:
        raise UsageError(f"device {device!r}: {str(error).splitlines()[0]}") from None
    backend_of(device).check_available(device)
    package = open_package(Path(folder), progress)
    _warn_if_moved(package)
    loaded = load_package(package, model)
    try:
        return loaded.to(device)
    except torch.OutOfMemoryError as error:
        reason = str(error).splitlines()[0]
        raise UsageError(f"{package.path} does not fit the memory of {device}: {reason}") from None


def _warn_if_moved(package: Package) -> None:
    """Warn if the formats of a package were chosen on another processor."""
    machine = package.manifest.machine
    chosen = any(choice.times_us for choice in package.manifest.choices)
    if machine is not None and chosen and machine.cpu != _core.cpu_name():
        warnings.warn(
            f"{package.path}: formats were chosen on {machine.cpu}, this is {_core.cpu_name()}; "
            f"sparse-engine convert {package.path} NEW measures anew",
            stacklevel=3,
        )


def load_package(package: Package, model: nn.Module | None = None) -> nn.Module:
    """As `load`, from an open package."""
    if model is not None:
        fold_as_stored_(model, package)
        fit_as_stored_(model, package)
    elif package.manifest.source == "transformers":
        model = rebuild(package)
    else:
        raise UsageError(
            f"{package.path} holds a plain torch module: give the module to fill, load(..., model=)"
        )
    fill(model, package)
    install_native(model)
    return model.eval().requires_grad_(False)
