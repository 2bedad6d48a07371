"""Model classes and configs of transformers, by name from its own tables.

No file can name a module to import, code to run, or a repository to download from.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn
from torch.nn.modules.module import register_module_parameter_registration_hook

from sparse_engine.errors import InvalidFileError, SparseEngineError, UnsupportedModelError

# Keys that name code, kernels or downloads; dropped at any depth.
DROPPED = frozenset(
    {
        "auto_map",
        "custom_pipelines",
        "attn_implementation",
        "_attn_implementation",
        "_attn_implementation_internal",
        "experts_implementation",
        "_experts_implementation",
        "_experts_implementation_internal",
        "kernel_config",
        "_name_or_path",
        "return_dict",  # tasks read outputs by name
    }
)
# Keys of models that cannot be rebuilt; null and false are allowed.
REFUSED = (
    "quantization_config",
    "compression_config",
    "use_pretrained_backbone",
    "use_timm_backbone",
    "backbone",
)
MAX_DEPTH = 16
# Infinite bounds, which transformers writes as {"__float__": ...}.
INFINITE = ("Infinity", "-Infinity")
# The model_type of sparse_engine.models.rnn, which transformers has no models for.
RECURRENT = "sparse_engine_rnn"


def transformers_module() -> Any:
    """The transformers package; raises SparseEngineError where it is not installed."""
    try:
        import transformers
    except ImportError:
        raise SparseEngineError(
            "this needs transformers: pip install 'sparse-engine[hf]'"
        ) from None
    return transformers


def model_class(config: dict[str, Any], architecture: str | None) -> type[nn.Module]:
    """The transformers class of a config, from the auto tables for its model_type.

    Args:
        config: config.json as parsed.
        architecture: Name of the class; None for the base model.

    Raises:
        UnsupportedModelError: An unknown model_type, or a class of another one.
    """
    transformers = transformers_module()
    kind = config.get("model_type")
    if kind == RECURRENT:
        from sparse_engine.models.rnn import MODELS

        if architecture not in MODELS:
            raise UnsupportedModelError(
                f"architecture {str(architecture)[:80]!r}: {kind} has {', '.join(MODELS)}"
            )
        return MODELS[architecture]
    if not isinstance(kind, str) or kind not in transformers.CONFIG_MAPPING:
        raise UnsupportedModelError(
            f"transformers {transformers.__version__} has no model_type {str(kind)[:80]!r}"
        )
    from transformers.models.auto import modeling_auto

    known: list[str] = []
    for table, names in vars(modeling_auto).items():
        if table.endswith("_MAPPING_NAMES") and kind in names:
            found = names[kind]
            known += [found] if isinstance(found, str) else found
    name = architecture or modeling_auto.MODEL_MAPPING_NAMES.get(kind)
    if name not in known:
        raise UnsupportedModelError(
            f"architecture {str(name)[:80]!r} is none of the {kind} models of transformers "
            f"{transformers.__version__}: {', '.join(sorted(set(known))) or 'there are none'}"
        )
    try:
        return getattr(transformers, str(name))
    except (ImportError, AttributeError) as error:
        raise UnsupportedModelError(f"{name} cannot be imported: {last_line(error)}") from None


def read_config(plain: dict[str, Any]) -> Any:
    """A transformers config from config.json, without keys that name code or downloads.

    Raises:
        UnsupportedModelError: A quantised model or a pretrained backbone.
        InvalidFileError: Values that transformers refuses.
    """
    cleaned = _clean(plain)
    kind = _config_class(plain["model_type"])
    try:
        return kind.from_dict(cleaned)
    except Exception as error:
        raise InvalidFileError(f"config.json: {last_line(error)}") from None


def _config_class(kind: str) -> Any:
    if kind == RECURRENT:
        from sparse_engine.models.rnn import RnnConfig

        return RnnConfig
    return transformers_module().CONFIG_MAPPING[kind]


def _clean(value: Any, depth: int = 0) -> Any:
    if depth > MAX_DEPTH:
        raise InvalidFileError(f"config.json: nested more than {MAX_DEPTH} deep")
    if isinstance(value, list):
        return [_clean(item, depth + 1) for item in value]
    if not isinstance(value, dict):
        return value
    if value.keys() == {"__float__"} and value["__float__"] in INFINITE:
        return float(value["__float__"])
    for key in REFUSED:
        if value.get(key):
            raise UnsupportedModelError(f"config.json: models with {key} are not supported")
    return {k: _clean(item, depth + 1) for k, item in value.items() if k not in DROPPED}


def empty_model(cls: type[nn.Module], config: Any, limit: int, buffers: bool) -> nn.Module:
    """A model whose parameters have shapes but no data.

    Args:
        cls: The class.
        config: Its config.
        limit: Most parameters.
        buffers: Whether buffers have data, as the constructor computes it; otherwise nothing is
            allocated.

    Raises:
        InvalidFileError: The constructor fails or registers more than `limit` parameters.
    """
    try:
        with _parameters_on_meta(limit):
            if buffers:
                return cls(config)
            with torch.device("meta"):
                return cls(config)
    except Exception as error:
        raise InvalidFileError(f"config.json: {cls.__name__}: {last_line(error)}") from None


@contextmanager
def _parameters_on_meta(limit: int) -> Iterator[None]:
    """Parameters that this thread's modules register move to the meta device at once.

    torch.empty reserves pages without touching them, and initialisation then works on nothing.
    """
    owner, count = threading.get_ident(), 0

    def drop(module: nn.Module, name: str, parameter: nn.Parameter | None) -> nn.Parameter | None:
        nonlocal count
        if parameter is None or threading.get_ident() != owner:
            return None
        count += 1
        if count > limit:
            raise ValueError(f"has more than {limit} parameters, far more than the package")
        if parameter.is_meta:
            return None
        return nn.Parameter(parameter.detach().to("meta"), requires_grad=False)

    handle = register_module_parameter_registration_hook(drop)  # type: ignore[arg-type]
    try:
        yield
    finally:
        handle.remove()


def last_line(error: BaseException) -> str:
    """The last line of a message, where pydantic and transformers put the reason."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return (lines[-1] if lines else type(error).__name__)[:300]
