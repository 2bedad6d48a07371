"""Targets and ignore: names, globs and regular expressions, and patterns that match nothing."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest
import torch
from torch import nn

from sparse_engine.errors import UsageError
from sparse_engine.pruning.plan import NamePattern, Selection, make_plan
from sparse_engine.pruning.unrolled import unrolled

torch.set_num_threads(1)


class Block(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.query, self.key, self.out = (nn.Linear(16, 16) for _ in range(3))
        self.norm = nn.LayerNorm(16)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.norm(self.out(self.query(x) + self.key(x)))


def model() -> nn.Module:
    return nn.ModuleDict(
        {
            "layers": nn.ModuleList([Block(), Block()]),
            "lstm": nn.LSTM(16, 16),
            "head": nn.Linear(16, 2),
        }
    )


def chosen(layers: Sequence[str] = (), ignore: Sequence[str] = (), **more: Any) -> list[str]:
    with unrolled(model()) as opened:
        plan = make_plan(opened, selection=Selection.of(layers, ignore), **more)
    return [layer.name for layer in plan.layers]


@pytest.mark.parametrize(
    ("pattern", "names"),
    [
        ("layers.0.key", ["layers.0.key"]),
        ("layers.0.key.weight", ["layers.0.key"]),
        ("layers.1", ["layers.1.query", "layers.1.key", "layers.1.out"]),
        ("*.key", ["layers.0.key", "layers.1.key"]),
        ("layers.[0]*.k?y", ["layers.0.key"]),
        ("re:.*\\.(key|out)", ["layers.0.key", "layers.0.out", "layers.1.key", "layers.1.out"]),
        ("re:layers\\.0\\.query\\.weight", ["layers.0.query"]),
        ("head", ["head"]),
        ("lstm", ["lstm.ih_l0", "lstm.hh_l0"]),
        ("*.hh_l0", ["lstm.hh_l0"]),
    ],
)
def test_patterns(pattern: str, names: list[str]) -> None:
    assert chosen([pattern]) == names


def test_patterns_match_whole_names() -> None:
    assert not NamePattern("layers.1").matches("layers.10.key")
    assert not NamePattern("re:layers").matches("layers.1.key")
    assert not NamePattern("key").matches("layers.0.key")
    assert NamePattern("a+b").matches("a+b.c")


@pytest.mark.parametrize("name", ["", "a.b", "a[0]", "re:x", "a*"])
def test_the_pattern_of_one_name(name: str) -> None:
    pattern = NamePattern.exactly(name)
    assert pattern.matches(name)
    assert not pattern.matches("aa")


def test_ignore_leaves_what_rules_or_layers_choose() -> None:
    by_rule = chosen()
    assert "head" not in by_rule
    assert chosen(ignore=["*.key", "lstm"]) == [
        name for name in by_rule if not name.endswith("key") and not name.startswith("lstm")
    ]
    assert chosen(["layers.0", "head"], ["*.query"]) == ["layers.0.key", "layers.0.out", "head"]


def test_other_modules_may_be_ignored() -> None:
    assert chosen(ignore=["*.norm"]) == chosen()


@pytest.mark.parametrize(
    ("layers", "ignore", "match"),
    [
        (
            ["layers.0.kye"],
            [],
            "layer 'layers.0.kye' matches no layer; the nearest are layers.0.k",
        ),
        (["*.norm"], [], r"layer '\*.norm' matches no layer; the nearest are"),
        ([], ["layer.0"], "ignore 'layer.0' matches no layer; the nearest are layers.0, "),
        (["re:*"], [], r"pattern 're:\*': nothing to repeat"),
        ([""], [], "pattern '' is no text"),
        (["head"], ["head"], "every layer that could be pruned is ignored"),
    ],
)
def test_patterns_without_a_match_are_refused(
    layers: list[str], ignore: list[str], match: str
) -> None:
    with pytest.raises(UsageError, match=match) as caught:
        chosen(layers, ignore)
    assert "\n" not in str(caught.value)


def test_a_text_is_no_list() -> None:
    with pytest.raises(UsageError, match="layers is a single text; give a list of patterns"):
        Selection.of("layers.0", [])
    with pytest.raises(UsageError, match="ignore is a int; give a list of patterns"):
        Selection.of([], 5)  # type: ignore[arg-type]
