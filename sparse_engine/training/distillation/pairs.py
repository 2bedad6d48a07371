"""Which layer of the teacher each layer of the model is compared with."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TypeVar

from sparse_engine.errors import UsageError

T = TypeVar("T")


def paired(
    own: Sequence[Sequence[T]], dense: Sequence[Sequence[T]], what: str
) -> list[tuple[T, T]]:
    """Pair the layers of each stack with those of the teacher's.

    Layer i of n, from 1, is paired with layer round(i N / n) of N, so that the last ones are
    compared, and of a teacher that is twice as deep every second one (Jiao et al. 2020, "TinyBERT:
    Distilling BERT for Natural Language Understanding", arXiv:1909.10351).

    Args:
        own: by stack, the layers of the model.
        dense: the same of the teacher.
        what: what is compared, for messages.

    Raises:
        UsageError: if the teacher has another number of stacks, or fewer layers in one.
    """
    if len(own) != len(dense):
        raise UsageError(
            f"distil: stacks with {what}: {len(own)} in the model, {len(dense)} in the teacher; "
            f"leave {what} out, or give a teacher of the same architecture"
        )
    found: list[tuple[T, T]] = []
    for layers, others in zip(own, dense, strict=True):
        if len(layers) > len(others):
            raise UsageError(
                f"distil: {layers[0]} is one of {len(layers)} layers, and the teacher has only "
                f"{len(others)}; give a teacher that is at least as deep"
            )
        share = len(others) / len(layers)
        found += [(layer, others[round((i + 1) * share) - 1]) for i, layer in enumerate(layers)]
    return found
