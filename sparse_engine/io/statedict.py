"""State dicts of wrapped and masked models under the names of the model itself.

torch.compile puts `_orig_mod.` into names, DataParallel `module.` before all of them, and
torch.nn.utils.prune stores `weight_orig` and `weight_mask`, whose product is the weight.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping

from torch import Tensor

from sparse_engine.errors import InvalidFileError
from sparse_engine.modules.effective import MASK, ORIGINAL

COMPILED, PARALLEL = "_orig_mod.", "module."


def is_plain(names: Collection[str]) -> bool:
    """Whether no name has a wrapper's prefix or a mask."""
    return not (
        any(name.startswith(COMPILED) or f".{COMPILED}" in name for name in names)
        or _all_wrapped(names)
        or any(_stem(name) is not None and f"{_stem(name)}{MASK}" in names for name in names)
    )


def plain_state(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """A state dict under plain names, masks multiplied in.

    Raises InvalidFileError for a name twice, or a mask that does not fit.
    """
    wrapped, found = _all_wrapped(state), dict[str, Tensor]()
    for name, tensor in state.items():
        plain = name.replace(f".{COMPILED}", ".").removeprefix(COMPILED)
        plain = plain.removeprefix(PARALLEL).removeprefix(COMPILED) if wrapped else plain
        if plain in found:
            raise InvalidFileError(f"tensor {name!r}: {plain!r} exists twice")
        found[plain] = tensor
    for name in list(found):
        stem = _stem(name)
        mask = found.get(f"{stem}{MASK}")
        if stem is None or mask is None:
            continue
        original = found.pop(name)
        del found[f"{stem}{MASK}"]
        if stem in found or mask.shape != original.shape:
            raise InvalidFileError(
                f"tensor {name!r} does not fit its mask or has a {stem!r} beside"
            )
        found[stem] = original.masked_fill(mask == 0, 0)
    return found


def _all_wrapped(names: Collection[str]) -> bool:
    return bool(names) and all(n.removeprefix(COMPILED).startswith(PARALLEL) for n in names)


def _stem(name: str) -> str | None:
    return name.removesuffix(ORIGINAL) if name.endswith(ORIGINAL) else None
