"""The tensors of a model that have a row for each token.

The constructor of the model tells which they are: it is called without memory for the old and for
the new size of the vocabulary, and the shapes that differ are theirs.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from sparse_engine.errors import UnsupportedModelError, UsageError
from sparse_engine.io.hugging import empty_model
from sparse_engine.models.inputs import POSITIONS
from sparse_engine.structures.resize.base import select
from sparse_engine.vocabulary.configs import SIZES, Renumbering, is_id, merged, special_ids

PARAMETERS = 1 << 20  # far more tensors than any model has


@dataclass(frozen=True)
class Resized:
    """A tensor with a part of its rows.

    Attributes:
        name: its dotted name.
        dim: the dimension of the tokens.
        tensor: what is put in place of it; one object for all names of a tied tensor.
    """

    name: str
    dim: int
    tensor: Tensor


def vocabulary_rows(model: Any) -> int:
    """How many tokens the tensors of a transformers model have rows for.

    Raises:
        UsageError: if it is no model of transformers, is quantised, or has several vocabularies.
    """
    config: Any = getattr(model, "config", None)
    if not isinstance(model, nn.Module) or not hasattr(config, "to_dict"):
        raise UsageError(
            f"{type(model).__name__} is not a transformers model, which a vocabulary is cut from"
        )
    if getattr(config, "quantization_config", None) is not None:
        raise UsageError("the model is quantised already: cut the vocabulary of the original")
    sizes = set(_sizes(config.to_dict()))
    if len(sizes) != 1:
        found = f"vocabularies of {sorted(sizes)} tokens" if sizes else "no vocab_size"
        raise UsageError(f"the config of {type(model).__name__} has {found}; one is expected")
    return sizes.pop()


def _sizes(values: Mapping[str, Any]) -> Iterator[int]:
    for name, value in values.items():
        if isinstance(value, Mapping):
            yield from _sizes(value)
        elif name in SIZES and isinstance(value, int):
            yield value


def required_ids(model: Any, rows: int) -> set[int]:
    """The ids that the model itself needs: those in its configs, and where positions are counted
    from the id of padding all up to it, so that it stays the same.
    """
    ids = {i for config in _configs(model) for i in special_ids(config.to_dict(), rows)}
    for name, module in model.named_modules():
        table = isinstance(module, nn.Embedding) and name.rpartition(".")[2] in POSITIONS
        first = getattr(module, "padding_idx", None)
        if (table or hasattr(module, "create_position_ids_from_input_ids")) and first is not None:
            ids |= set(range(first + 1))
    return ids


def resized(model: Any, new: Renumbering) -> list[Resized]:
    """All tensors with rows of tokens, with the rows that are kept; the model stays as it is.

    Raises:
        UsageError: if the model is not as its config makes it.
        UnsupportedModelError: if the size of a tensor follows the vocabulary's in another way.
    """
    before, after = _shapes(model, model.config), _shapes(model, _changed(model.config, new))
    kept = torch.tensor(list(new.moves))
    made: dict[int, Tensor] = {}
    found = []
    for name, old in before.items():
        expected = after.get(name)
        if expected == old:
            continue
        dims = [d for d, size in enumerate(old) if expected is None or expected[d] != size]
        if expected is None or [(old[d], expected[d]) for d in dims] != [(new.rows, len(kept))]:
            raise UnsupportedModelError(
                f"{name} of {type(model).__name__} depends on the size of the vocabulary, but has "
                "no row for each token"
            )
        tensor = _tensor(model, name)
        if tensor is None or tensor.ndim != len(old) or tensor.shape[dims[0]] != new.rows:
            has = "is missing" if tensor is None else f"is {list(tensor.shape)}"
            raise UsageError(
                f"{name} {has}, and the config makes it {list(old)}: give the dense model, "
                "before sparsify_ and with adapters merged"
            )
        if id(tensor) not in made:
            made[id(tensor)] = select(tensor, dims[0], kept)
        found.append(Resized(name, dims[0], made[id(tensor)]))
    return found


def apply_(model: Any, tensors: list[Resized], new: Renumbering) -> None:
    """Put the tensors into the model; its configs and attributes get the new size and ids."""
    configs = [(config, new.changes(config.to_dict())) for config in _configs(model)]
    for config, changes in configs:
        _set(config, changes)
    for item in tensors:
        owner, _, name = item.name.rpartition(".")
        module = model.get_submodule(owner)
        if name in module._buffers:
            module._buffers[name] = item.tensor
        else:
            module._parameters[name] = item.tensor
        for attribute in ("num_embeddings", "out_features"):
            if getattr(module, attribute, None) == new.rows:
                setattr(module, attribute, len(new.moves))
    own = {item.name.rpartition(".")[0] for item in tensors}
    for path, module in model.named_modules():
        if isinstance(module, nn.Embedding) and path not in own:
            continue  # its padding_idx is a position or another kind of id
        for attribute, value in list(vars(module).items()):
            if isinstance(value, int) and not isinstance(value, bool):
                if is_id(attribute):
                    setattr(module, attribute, new.moves.get(value, value))
                elif attribute in SIZES and value == new.rows:
                    setattr(module, attribute, len(new.moves))


def _configs(model: Any) -> list[Any]:
    """The configs of all parts of a model, each once."""
    found = {}
    for module in model.modules():
        for name in ("config", "generation_config"):
            config = getattr(module, name, None)
            if hasattr(config, "to_dict"):
                found[id(config)] = config
    return list(found.values())


def _changed(config: Any, new: Renumbering) -> Any:
    changed = copy.deepcopy(config)
    _set(changed, new.changes(config.to_dict()))
    return changed


def _set(config: Any, changes: Mapping[str, Any]) -> None:
    for name, value in changes.items():
        inner = getattr(config, name, None)
        if hasattr(inner, "to_dict"):
            _set(inner, value)
        else:
            setattr(config, name, merged(inner, value) if isinstance(inner, dict) else value)


def _shapes(model: nn.Module, config: Any) -> dict[str, tuple[int, ...]]:
    """The shapes of the tensors that the constructor makes."""
    empty = empty_model(type(model), config, PARAMETERS, buffers=False)
    return {name: tuple(tensor.shape) for name, tensor in empty.state_dict().items()}


def _tensor(model: nn.Module, name: str) -> Tensor | None:
    owner, _, last = name.rpartition(".")
    try:
        module = model.get_submodule(owner)
    except AttributeError:
        return None
    return module._parameters.get(last, module._buffers.get(last))
