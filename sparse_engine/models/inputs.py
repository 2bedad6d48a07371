"""Inputs of models: checks of token ids, and keyword arguments made of texts or at random."""

from __future__ import annotations

import inspect
from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from sparse_engine.errors import UsageError

# Numbers of tokens of random inputs, in turn: each kind of kernel runs.
LENGTHS = (1, 5, 16, 33, 128)
# Modules that hold a row for each position, by the last part of their names.
POSITIONS = ("position_embeddings", "embed_positions", "wpe")
AUDIO_SAMPLES = 4000  # of 16,000 a second


def has_argument(model: nn.Module, argument: str) -> bool:
    """Whether a model's forward has an argument of this name."""
    return argument in inspect.signature(model.forward).parameters


def vocabulary(model: nn.Module) -> int | None:
    """Number of token ids for which a model has embeddings; None without an embedding."""
    try:
        embedding = model.get_input_embeddings()  # type: ignore[operator]
    except (AttributeError, NotImplementedError):
        embedding = None
    rows = getattr(embedding, "num_embeddings", None)
    if not isinstance(rows, int):
        rows = getattr(_text_config(model), "vocab_size", None)
    return rows if isinstance(rows, int) and rows > 0 else None


def positions(model: nn.Module) -> int | None:
    """The longest text that a model's position tables allow, in tokens; None without a table."""
    found = []
    for name, module in model.named_modules():
        if isinstance(module, nn.Embedding) and name.rpartition(".")[2] in POSITIONS:
            # RoBERTa's positions start after the padding index, BART's two rows further down.
            first = 0 if module.padding_idx is None else module.padding_idx + 1
            found.append(module.num_embeddings - getattr(module, "offset", first))
    return min(found, default=None)


def check_ids(model: nn.Module, inputs: Mapping[str, Any], what: str) -> None:
    """Check token ids and lengths against a model's tables.

    Args:
        model: the model that will be called.
        inputs: keyword arguments of the call.
        what: the beginning of the error message.

    Raises:
        UsageError: for an id outside the vocabulary, a tensor without dimensions, or more tokens
            than there are positions.
    """
    rows, longest = vocabulary(model), positions(model)
    for name in ("input_ids", "decoder_input_ids"):
        ids = inputs.get(name)
        if not isinstance(ids, Tensor) or not ids.numel() or ids.is_floating_point():
            continue
        if not ids.ndim:
            raise UsageError(f"{what}: {name} is a single number; give ids [batch, tokens]")
        if rows is not None and name == "input_ids":
            low, high = int(ids.min()), int(ids.max())
            if low < 0 or high >= rows:
                raise UsageError(
                    f"{what}: token id {low if low < 0 else high}, the model's vocabulary is 0 to "
                    f"{rows - 1}; is this tokenizer the model's?"
                )
        if longest is not None and ids.shape[-1] > longest:
            raise UsageError(
                f"{what}: {name} has {ids.shape[-1]} tokens, the model has positions for {longest}"
            )


def inputs_of_texts(
    model: nn.Module,
    ids: Tensor,
    mask: Tensor,
    answers: Tensor | None = None,
    answers_mask: Tensor | None = None,
) -> dict[str, Tensor]:
    """Keyword arguments for texts.

    The decoder of an encoder-decoder model reads the answers; without answers it reads the texts. A
    model for multiple choice gets one choice for each text.

    Args:
        model: the model that will be called.
        ids, mask: int64 [n, seq], of the texts.
        answers, answers_mask: int64 [n, seq], of the answers.

    Raises:
        UsageError: for a model that needs other inputs than texts.
    """
    name = type(model).__name__
    needed = _needs(model)
    if needed != ["input_ids"]:
        raise UsageError(
            f"{name} needs {' and '.join(needed)}: texts are not enough; call se.prune or "
            "se.io.verify from Python with inputs of its own"
        )
    return _text_inputs(model, ids, mask, answers, answers_mask)


def _text_inputs(
    model: nn.Module,
    ids: Tensor,
    mask: Tensor,
    answers: Tensor | None = None,
    answers_mask: Tensor | None = None,
) -> dict[str, Tensor]:
    if type(model).__name__.endswith("ForMultipleChoice"):
        ids, mask = ids.unsqueeze(1), mask.unsqueeze(1)
    inputs = {"input_ids": ids, "attention_mask": mask}
    if has_decoder(model):
        inputs["decoder_input_ids"] = ids if answers is None else answers
        inputs["decoder_attention_mask"] = mask if answers_mask is None else answers_mask
    return inputs if has_argument(model, "attention_mask") else {"input_ids": ids}


def random_inputs(model: nn.Module, count: int) -> Iterator[dict[str, Tensor]]:
    """Keyword arguments of `count` calls, the same each time: tokens, images, sound.

    Raises:
        UsageError: for a model whose inputs its config does not describe.
    """
    generator = torch.Generator().manual_seed(0)
    rows = vocabulary(model)
    needed = _needs(model)
    if rows is None and "input_ids" in needed:
        raise UsageError("this model has no vocab_size: give verify its inputs as samples=[...]")
    config = _text_config(model)
    most = getattr(config, "max_position_embeddings", None)
    # Some models number positions from the padding token's id on, which costs two.
    limits = [limit for limit in (most and most - 2, positions(model)) if limit]
    end = getattr(config, "eos_token_id", None)
    for i in range(count):
        length = max(1, min([LENGTHS[i % len(LENGTHS)], *limits]))
        tokens = torch.randint(rows or 1, (1, length), generator=generator)
        if isinstance(end, int) and rows is not None and 0 <= end < rows and has_decoder(model):
            # BART labels a text by its one end token.
            tokens[tokens == end] = (end + 1) % rows
            tokens[:, -1] = end
        inputs: dict[str, Tensor] = {}
        for name in needed:
            if name == "input_ids":
                inputs |= _text_inputs(model, tokens, torch.ones_like(tokens))
            else:
                inputs[name] = torch.randn(_shape(model, name), generator=generator)
        if has_decoder(model):
            inputs.setdefault("decoder_input_ids", tokens)
        yield inputs


def _text_config(model: nn.Module) -> Any:
    """The config of the part of a transformers model that reads text; None for other models."""
    config: Any = getattr(model, "config", None)
    get = getattr(config, "get_text_config", None)
    if get is None:
        return config
    try:
        return get()
    except ValueError:  # several parts read text
        return config


def has_decoder(model: nn.Module) -> bool:
    """Whether a model reads two texts, one in its encoder and one in its decoder."""
    config = getattr(model, "config", None)
    return bool(getattr(config, "is_encoder_decoder", False)) and has_argument(
        model, "decoder_input_ids"
    )


def _needs(model: nn.Module) -> list[str]:
    """The inputs that a model must have: its main input; with a vision part, also an image."""
    main = getattr(model, "main_input_name", "input_ids")
    vision = getattr(getattr(model, "config", None), "vision_config", None) is not None
    generates = getattr(model, "can_generate", lambda: False)()
    if main == "input_ids" and vision and not generates and has_argument(model, "pixel_values"):
        return ["input_ids", "pixel_values"]
    return [main]


def _shape(model: nn.Module, name: str) -> tuple[int, ...]:
    """The shape of an input that is not token ids, as the config describes it."""
    config: Any = getattr(model, "config", None)
    try:
        if name == "pixel_values":
            for part in ("vision_config", "encoder"):
                config = getattr(config, part, None) or config
            size = config.image_size
            height, width = size if isinstance(size, list | tuple) else (size, size)
            return 1, getattr(config, "num_channels", 3), height, width
        if name == "input_features" and hasattr(config, "num_mel_bins"):
            return 1, config.num_mel_bins, 2 * config.max_source_positions
        if name == "input_features":
            return 1, 64, config.input_feat_per_channel * config.input_channels
        if name == "input_values":
            return 1, AUDIO_SAMPLES
    except AttributeError:
        pass
    raise UsageError(
        f"{type(model).__name__} reads {name}, and its config does not describe its shape: "
        "give verify its inputs as samples=[...]"
    )
