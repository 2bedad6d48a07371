"""Token ids and the size of the vocabulary in configs."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

ID_ENDS = ("_token_id", "_token_index")
ID_NAMES = ("padding_idx", "bos_index", "eos_index", "pad_index", "unk_index", "mask_index")
# Lists of ids, or lists of such lists, that keep tokens from being generated: without its token an
# entry has no purpose.
SUPPRESSED = ("suppress_tokens", "begin_suppress_tokens", "bad_words_ids")
SIZES = ("vocab_size", "decoder_vocab_size", "n_words")


@dataclass(frozen=True)
class Renumbering:
    """New ids of the rows that are kept.

    Attributes:
        rows: how many there were.
        moves: the new ids of the old ones, in the order of the new ones.
    """

    rows: int
    moves: Mapping[int, int]

    def changes(self, values: Mapping[str, Any]) -> dict[str, Any]:
        """What changes in a config: the names with their new values, nested as the config is.

        Ids that the model has no rows for, such as -1 or a default of its config, stay.
        """
        found: dict[str, Any] = {}
        for name, value in values.items():
            new = value
            if isinstance(value, Mapping):
                if inner := self.changes(value):
                    found[name] = inner
            elif name in SIZES and value == self.rows:
                new = len(self.moves)
            elif is_id(name):
                new = self._moved(value)
            elif name in SUPPRESSED and isinstance(value, list):
                new = [self._moved(item) for item in value if self._left(item)]
            if new != value:
                found[name] = new
        return found

    def _moved(self, value: Any) -> Any:
        if isinstance(value, list | tuple):
            return [self._moved(item) for item in value]
        return self.moves.get(value, value) if _is_number(value) else value

    def _left(self, value: Any) -> bool:
        if isinstance(value, list | tuple):
            return all(map(self._left, value))
        return value in self.moves or not 0 <= value < self.rows


def merged(values: Mapping[str, Any], changes: Mapping[str, Any]) -> dict[str, Any]:
    """Values with changes, nested as `Renumbering.changes` gives them."""
    new = dict(values)
    for name, value in changes.items():
        inner = new.get(name)
        new[name] = merged(inner, value) if isinstance(inner, Mapping) else value
    return new


def is_id(name: Any) -> bool:
    """Whether a value of this name in a config, or an attribute of a module, is a token id."""
    return isinstance(name, str) and (name.endswith(ID_ENDS) or name in ID_NAMES)


def special_ids(values: Mapping[str, Any], rows: int) -> Iterator[int]:
    """The ids in a config that are kept, of those that the model has rows for."""
    for name, value in values.items():
        if isinstance(value, Mapping):
            yield from special_ids(value, rows)
        elif is_id(name):
            given = value if isinstance(value, list | tuple) else [value]
            yield from (i for i in given if _is_number(i) and 0 <= i < rows)


def _is_number(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)
