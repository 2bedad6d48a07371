"""Numbers of groups as text: ascending ranges such as "0-3,5"."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import pairwise

from sparse_engine.errors import InvalidFileError

MOST_DIGITS = 18


def ranges_text(numbers: Sequence[int]) -> str:
    """Ascending numbers as ranges.

    >>> ranges_text([0, 1, 2, 3, 5])
    '0-3,5'
    """
    parts = []
    ends = [i for i, (a, b) in enumerate(pairwise(numbers), 1) if b != a + 1]
    for begin, end in pairwise((0, *ends, len(numbers))):
        if end > begin:
            first, last = numbers[begin], numbers[end - 1]
            parts.append(f"{first}" if first == last else f"{first}-{last}")
    return ",".join(parts)


def read_ranges(text: str, groups: int) -> Iterator[range]:
    """The ranges of a text from a file, in their order.

    Args:
        text: such as "0-3,5".
        groups: how many groups there are; every number is below it.

    Raises:
        InvalidFileError: if the text is no list of ascending ranges of these groups.
    """
    last = -1
    for part in filter(None, text.split(",")):
        first, dash, end = part.partition("-")
        is_range = _is_number(first) and (_is_number(end) if dash else True)
        begin, stop = (int(first), int(end if dash else first)) if is_range else (0, -1)
        if not last < begin <= stop < groups:
            raise InvalidFileError(f"kept: {part!r:.40} is no range of the {groups!r:.20} groups")
        yield range(begin, stop + 1)
        last = stop


def _is_number(text: str) -> bool:
    return text.isascii() and text.isdigit() and len(text) <= MOST_DIGITS
