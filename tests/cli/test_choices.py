"""The help of `prune` lists every name that a user can give."""

from __future__ import annotations

import re

import pytest
from command_line import ok

from sparse_engine.pruning import CRITERIA
from sparse_engine.pruning.allocators import ALLOCATORS
from sparse_engine.pruning.recovery import RECOVERIES


@pytest.mark.parametrize("known", [CRITERIA, ALLOCATORS, RECOVERIES], ids=lambda k: k[0].kind)
def test_the_help_lists_every_name(known: tuple[type, ...]) -> None:
    words = set(re.findall(r"\w+", ok("prune", "--help")))
    missing = [choice.name for choice in known if choice.name not in words]  # type: ignore[attr-defined]
    assert not missing, f"the help of prune --{known[0].kind} lacks {missing}"  # type: ignore[attr-defined]
