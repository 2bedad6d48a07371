"""From an opened package to a module: a model without weights, checked, then filled with views."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from torch import Tensor, nn

from sparse_engine.backends import CPU
from sparse_engine.backends.semi_structured import plain_of
from sparse_engine.convert.kinds import kind_of
from sparse_engine.errors import InvalidFileError, UnsupportedModelError, UsageError
from sparse_engine.formats.checks import dtype_name
from sparse_engine.io.bounds import check_buffers, check_numbers, check_values, most_parameters
from sparse_engine.io.hugging import (
    empty_model,
    last_line,
    model_class,
    read_config,
    transformers_module,
)
from sparse_engine.io.manifest import LayerEntry
from sparse_engine.io.package import Package
from sparse_engine.io.stated import readers_in
from sparse_engine.io.tensorfile import parse_json
from sparse_engine.modules.cut_attention import CutMultiheadAttention
from sparse_engine.modules.effective import fold_
from sparse_engine.modules.linears import is_conv1d, is_linear, weight_of
from sparse_engine.modules.names import prefixes
from sparse_engine.nn import SparseLinear
from sparse_engine.nn.transformer import disable_nested_tensors_
from sparse_engine.structures import Fit, Shape, find_fit, hollow


def state_of(module: nn.Module) -> Iterator[tuple[str, Tensor]]:
    """Parameters and persistent buffers of one module, not of its children."""
    for name, parameter in module._parameters.items():
        if parameter is not None:
            yield name, plain_of(parameter)
    for name, buffer in module._buffers.items():
        if buffer is not None and name not in module._non_persistent_buffers_set:
            yield name, buffer


def rebuild(package: Package) -> nn.Module:
    """The transformers model of a package, its parameters still empty; raises InvalidFileError.

    It is built twice: once with no memory at all, to compare it with the package; then with its
    non-persistent buffers, which no file holds.
    """
    draft, fit = draft_of(package)
    try:
        check_buffers(draft)
        model = _empty(package, buffers=True)
        fold_as_stored_(model, package)
        fit.apply_(model)
        check_numbers(model)
    except InvalidFileError as error:
        raise InvalidFileError(f"{package.path}: {error}") from None
    _read_generation_config(model, package)
    return model


def draft_of(package: Package) -> tuple[nn.Module, Fit]:
    """The transformers model of a package with no memory at all, and which of its heads, units and
    other groups the package lacks; raises InvalidFileError unless the package fits.
    """
    try:
        draft = _empty(package, buffers=False)
    except (InvalidFileError, UnsupportedModelError) as error:
        raise InvalidFileError(f"{package.path}: {error}") from None
    fold_as_stored_(draft, package)
    return draft, fit_as_stored_(draft, package)


def _empty(package: Package, buffers: bool) -> nn.Module:
    """The model that config.json describes, its parameters on the meta device."""
    plain = parse_json(package.read_file("config.json"), str(package.path / "config.json"))
    names = sum(1 + len(entry.aliases) for entry in package.manifest.tensors)
    check_values(plain, names)
    cls = model_class(plain, package.manifest.architecture)
    return empty_model(cls, read_config(plain), most_parameters(names), buffers)


def _read_generation_config(model: Any, package: Package) -> None:
    listed = any(entry.name == "generation_config.json" for entry in package.manifest.files)
    if listed and getattr(model, "generation_config", None) is not None:
        where = str(package.path / "generation_config.json")
        plain = parse_json(package.read_file("generation_config.json"), where)
        try:
            model.generation_config = transformers_module().GenerationConfig.from_dict(plain)
        except Exception as error:
            raise InvalidFileError(f"{where}: {last_line(error)}") from None


def fold_as_stored_(model: nn.Module, package: Package) -> None:
    """Make weights of `model` that are computed before each call plain, where the package has no
    more of what they are computed from: `sparsify_` folded them.
    """
    stored = _dense(package).keys()

    def folded(weight: str) -> bool:
        path, _, name = weight.rpartition(".")
        parametrized = f"{path}.parametrizations.{name}.".removeprefix(".")
        parts = (f"{weight}_orig", f"{weight}_g", f"{weight}_v")
        return not any(n in parts or n.startswith(parametrized) for n in stored)

    fold_(model, folded)


def fit_as_stored_(model: nn.Module, package: Package) -> Fit:
    """Remove the heads, units and other groups of `model` that the package has no more of.

    Raises InvalidFileError unless the package holds exactly the state of the model that is left;
    then `model` is as before.
    """
    try:
        readers = readers_in(package.manifest.recipe)
        fit = find_fit(model, *stored_shapes(package), readers=readers)
    except InvalidFileError as error:
        raise InvalidFileError(f"{package.path}: {error}") from None
    if fit.left:
        copied = hollow(model)
        fit.apply_(copied)
        check_fit(copied, package)
        fit.apply_(model)
    else:
        check_fit(model, package)
    return fit


def stored_shapes(package: Package) -> tuple[dict[str, Shape], dict[str, Shape]]:
    """The shapes of tensors outside of sparse layers, and of sparse layers [out, in], by name."""
    dense = {name: tuple(tensor.shape) for name, tensor in _dense(package).items()}
    return dense, {name: entry.shape for name, entry in _layers(package).items()}


def check_fit(model: nn.Module, package: Package) -> None:
    """Raise InvalidFileError unless the package holds exactly the state of `model`."""
    layers = _layers(package)
    sparse = _sparse_modules(model, package)
    inside = {
        f"{path}.{name}".rstrip("."): module
        for path, replacement in sparse.items()
        for name, module in replacement.named_modules(remove_duplicate=False)
    }
    for name, entry in layers.items():
        _check_layer(model, inside, name, entry, package)
    expected = {}
    outside = [
        (path, module)
        for path, module in model.named_modules(remove_duplicate=False)
        if sparse.keys().isdisjoint(prefixes(path))
    ]
    for path, module in (*outside, *inside.items()):
        if path not in layers:
            prefix = f"{path}." if path else ""
            expected.update({prefix + key: tensor for key, tensor in state_of(module)})
    given = _dense(package)
    for name in expected:
        if name not in given:
            raise InvalidFileError(f"{package.path}: tensor {name!r} of the model is missing")
    for name, tensor in given.items():
        if name not in expected:
            raise InvalidFileError(f"{package.path}: the model has no tensor {name!r}")
        want = expected[name]
        if tensor.shape != want.shape or tensor.is_floating_point() != want.is_floating_point():
            raise InvalidFileError(
                f"{package.path}: tensor {name!r} is {dtype_name(tensor.dtype)} "
                f"{list(tensor.shape)}, the model has {dtype_name(want.dtype)} {list(want.shape)}"
            )


def _sparse_modules(model: nn.Module, package: Package) -> dict[str, nn.Module]:
    """Sparse modules without weights, for the modules that the package holds as sparse ones.

    The names of the package's tensors show which these are: a sparse module has other names than
    the torch module that it replaces.
    """
    layers = _layers(package)
    names = {part for name in (*layers, *_dense(package)) for part in prefixes(name)}
    found: dict[str, nn.Module] = {}
    for name, module in model.named_modules(remove_duplicate=False):
        kind = kind_of(module)
        if kind is None or f"{name}.{kind.marker}" not in names or not name:
            continue
        # An attention with fewer heads has the names of a sparse one.
        cut = any(isinstance(part, CutMultiheadAttention) for part in module.modules())
        if cut and not any(layer.startswith(f"{name}.") for layer in layers):
            continue
        if not found.keys().isdisjoint(prefixes(name)):
            continue
        try:
            replacement = kind.unpacked(module)
        except UsageError as error:
            raise InvalidFileError(f"{package.path}: {name}: {error}") from None
        for part, child in replacement.named_modules():
            if kind.packed_whole and is_linear(child) and f"{name}.{part}" not in layers:
                raise InvalidFileError(f"{package.path}: layer {name}.{part} is missing")
        found[name] = replacement
    return found


def _layers(package: Package) -> dict[str, LayerEntry]:
    entries = package.manifest.layers
    return {name: entry for entry in entries for name in (entry.name, *entry.aliases)}


def _dense(package: Package) -> dict[str, Tensor]:
    """Tensors outside sparse layers by each of their names."""
    tensors = package.dense
    names = [(e.name, name) for e in package.manifest.tensors for name in (e.name, *e.aliases)]
    return {name: tensors[stored] for stored, name in names if stored in tensors}


def _check_layer(
    model: nn.Module,
    inside: Mapping[str, nn.Module],
    name: str,
    entry: LayerEntry,
    package: Package,
) -> None:
    where = f"{package.path}: layer {name!r}"
    try:
        module = inside.get(name) or model.get_submodule(name)
    except AttributeError:
        raise InvalidFileError(f"{where} is not in the model") from None
    if not isinstance(module, SparseLinear) and not is_linear(module):
        raise InvalidFileError(f"{where} is a {type(module).__name__} in the model, not a Linear")
    weight = module.weight if isinstance(module, SparseLinear) else weight_of(module)
    shape = tuple(weight.shape)
    if shape != entry.shape:
        raise InvalidFileError(f"{where} is {list(entry.shape)}, the model has {list(shape)}")
    if (module.bias is None) != (entry.bias is None):
        has = "no bias" if entry.bias is None else "a bias"
        raise InvalidFileError(f"{where} has {has}, unlike the model")


def fill(model: nn.Module, package: Package) -> None:
    """Put the package's weights into `model`, which fits; they stay views of the file.

    Raises InvalidFileError if a non-persistent buffer of `model` has no data.
    """
    for name, replacement in _sparse_modules(model, package).items():
        parent, _, child = name.rpartition(".")
        setattr(model.get_submodule(parent), child, replacement)
    for entry in package.manifest.layers:
        weight, bias = package.layers[entry.name], package.bias(entry)
        layer = SparseLinear.from_format(CPU.from_package(weight, entry.spec), bias, entry.spec)
        for name in (entry.name, *entry.aliases):
            parent, _, child = name.rpartition(".")
            holder = model.get_submodule(parent)
            layer.is_conv1d = is_conv1d(holder.get_submodule(child))
            setattr(holder, child, layer)
    disable_nested_tensors_(model)
    held: dict[int, nn.Parameter] = {}  # one Parameter for all names of a tied one
    for name, tensor in _dense(package).items():
        parent, _, child = name.rpartition(".")
        module = model.get_submodule(parent)
        if child in module._buffers:
            module._buffers[child] = tensor
        else:
            parameter = held.setdefault(id(tensor), nn.Parameter(tensor, requires_grad=False))
            module._parameters[child] = parameter
    for name, left in (*model.named_parameters(), *model.named_buffers()):
        if left.is_meta and left.numel():
            raise InvalidFileError(f"{package.path}: {name!r} has no data: build it off meta")
