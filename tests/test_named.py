"""Text forms of criteria, allocators and recoveries: names with options."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import pytest

from sparse_engine.errors import UsageError
from sparse_engine.named import Named, find


class Fruit(Named):
    kind = "fruit"


@dataclass(frozen=True)
class Apple(Fruit):
    name = "apple"
    aliases = ("pomme",)
    weight: float = 1.0
    seeds: int | None = None
    sort: str = "red"
    ripe: bool = True


class Plain(Fruit):
    name = "plain"


FRUIT: tuple[type[Fruit], ...] = (Apple, Plain)


@pytest.mark.parametrize(
    "text",
    [
        "apple",
        "plain",
        "apple(weight=2.5)",
        "apple(weight=-1.0, seeds=3, sort='green', ripe=False)",
    ],
)
def test_the_text_form_gives_itself_back(text: str) -> None:
    assert str(find(text, FRUIT)) == text


def test_values_have_the_types_of_their_fields() -> None:
    assert find("pomme(weight=2, seeds=7)", FRUIT) == Apple(2.0, 7)
    assert find("apple(seeds=None)", FRUIT) == Apple()


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("pear", "fruit 'pear' is not known; choose one of apple, plain"),
        ("pear(weight=1)", "fruit 'pear.*is not known"),
        ("apple(colour=1)", "apple has no option 'colour'; it has weight, seeds, sort, ripe"),
        ("plain(weight=1)", "plain has no option 'weight'; it has no options"),
        ("apple(weight='much')", "weight='much' is not float"),
        ("apple(weight=True)", "weight=True is not float"),
        ("apple(ripe=1)", "ripe=1 is not bool"),
        ("apple(seeds=1.5)", "seeds=1.5 is not int or NoneType"),
        ("apple(1)", "expected a name, or name"),
        ("apple(weight=", "expected a name, or name"),
        ("apple(**{})", "has no option '[*][*]'"),
        ("apple(weight=open('x'))", "expected a name, or name"),
        ("a.b(weight=1)", "expected a name, or name"),
        ("(" * 500, "expected a name, or name"),
        ("apple(weight=" + "9" * 2000 + ")", "expected a name, or name"),
        ("apple(weight=nan)", "values are numbers, True, False and quoted texts"),
        ("apple(seeds=1, seeds=2)", "an option is there twice"),
        ("", "fruit '' is not known"),
    ],
)
def test_other_texts_are_refused_in_one_line(text: str, message: str) -> None:
    with pytest.raises(UsageError, match=message) as caught:
        find(text, FRUIT)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("value", [5, None, object])
def test_what_is_no_text_is_refused(value: Any) -> None:
    with pytest.raises(UsageError, match="is no name; choose one of apple, plain"):
        find(value, FRUIT)
