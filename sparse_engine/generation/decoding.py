"""Steps of a transformers decoder: a token at a time, with the cache of earlier ones."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import chain
from typing import Any

import torch
from torch import nn

from sparse_engine.generation.sampling import Sampler

# Names of the argument and output of transformers' models that hold the cache.
CACHES = ("cache", "past_key_values")


def decode(
    model: nn.Module,
    ids: Sequence[int],
    max_length: int,
    sampler: Sampler,
    ids_name: str = "input_ids",
    arguments: dict[str, Any] | None = None,
) -> Iterator[int]:
    """Token ids that follow `ids`, until there are `max_length` together.

    Args:
        model: a causal language model, or a model whose decoder reads `ids_name`.
        ids: what the decoder reads before the first new token.
        max_length: positions of the model.
        sampler: chooses the tokens.
        ids_name: argument of the model for `ids`.
        arguments: further arguments of every call, as an encoder's outputs.
    """
    device = next(chain(model.parameters(), model.buffers()), torch.empty(0)).device
    sequence = list(ids)
    new = torch.tensor([sequence])
    cache: dict[str, Any] = {}
    while len(sequence) < max_length:
        with torch.inference_mode():
            output = model(
                **{ids_name: new.to(device)}, use_cache=True, **(arguments or {}), **cache
            )
            name = next(name for name in CACHES if name in output)  # one of two is an alias
            cache = {name: output[name]}
            token = sampler.next_token(sequence, output.logits[:, -1].float().cpu())
        yield token
        sequence.append(token)
        new = torch.tensor([[token]])
