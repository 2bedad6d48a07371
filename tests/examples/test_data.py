"""Readers of examples/: the forms of the data sets, and the parts of a folder."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("tokenizers")

from sparse_engine.errors import InvalidFileError, UsageError


def test_forms_of_the_data_sets(script: Any) -> None:
    data = script("common.data")
    assert list(data.sentences(["a b", "", "c"])) == [["a", "b"], ["c"]]
    assert list(data.labelled(["1 a fine film", ""])) == [(["a", "fine", "film"], "1")]
    tagged = ["Ada\tB-person", "spoke\tO", "", "\tO", ""]
    assert list(data.tagged(tagged)) == [(["Ada", "spoke"], ["B-person", "O"]), (["[UNK]"], ["O"])]
    header = "pair_ID\tsentence_A\tsentence_B\trelatedness_score\tentailment_judgment"
    rows = [header, '7\ta "b\tc d\t3.6\tNEUTRAL']
    assert list(data.pairs(rows)) == [(["a", '"b'], ["c", "d"], "NEUTRAL")]


@pytest.mark.parametrize(
    ("form", "line", "message"),
    [
        ("labelled", "film", "a label, a space and words"),
        ("tagged", "film", "a word, a tab and a tag"),
        ("pairs", "a\tb\nc\td", "sentence_A"),
    ],
)
def test_other_forms_are_refused(
    script: Any, tmp_path: Path, form: str, line: str, message: str
) -> None:
    data = script("common.data")
    (tmp_path / "train.txt").write_text(line)
    with pytest.raises(InvalidFileError, match=message):
        data.read_parts(tmp_path, getattr(data, form), None)


def write(folder: Path, **lines: int) -> None:
    for name, count in lines.items():
        (folder / name).write_text("\n".join(f"{name} {i}" for i in range(count)))


def test_parts_by_the_names_of_files(script: Any, tmp_path: Path) -> None:
    data = script("common.data")
    write(tmp_path, x_train=30, x_dev=4, x_test=5)
    (tmp_path / "README.md").write_text("a test\n" * 500)
    parts = data.read_parts(tmp_path, data.sentences, 20)
    assert [len(part) for part in (parts.train, parts.valid, parts.test)] == [20, 4, 5]
    assert parts.test[0] == ["x_test", "0"]


def test_missing_parts_are_drawn_from_the_training_file(script: Any, tmp_path: Path) -> None:
    data = script("common.data")
    write(tmp_path, everything=40)
    alone = data.read_parts(tmp_path, data.sentences, None)
    write(tmp_path, a_test=5)
    drawn = data.read_parts(tmp_path, data.sentences, None)
    assert [len(part) for part in (alone.train, alone.valid, alone.test)] == [32, 4, 4]
    assert [len(part) for part in (drawn.train, drawn.valid, drawn.test)] == [36, 4, 5]
    for parts in (alone, drawn):
        rows = [tuple(row) for part in (parts.train, parts.valid, parts.test) for row in part]
        assert len(set(rows)) == len(rows)


def test_a_text_in_order_keeps_its_order(script: Any, tmp_path: Path) -> None:
    data = script("common.data")
    write(tmp_path, everything=40)
    parts = data.read_parts(tmp_path, data.sentences, None, drawn=False)
    numbers = [int(row[1]) for row in (*parts.test, *parts.valid, *parts.train)]
    assert numbers == list(range(40))


def test_folders_without_texts_are_refused(script: Any, tmp_path: Path) -> None:
    data = script("common.data")
    with pytest.raises(UsageError, match="no file to train on"):
        data.read_parts(tmp_path, data.sentences, None)
    (tmp_path / "train.txt").write_text("\n\n")
    with pytest.raises(InvalidFileError, match="has no rows"):
        data.read_parts(tmp_path, data.sentences, None)
    write(tmp_path, **{"train.txt": 2})
    with pytest.raises(UsageError, match="2 rows are too few"):
        data.read_parts(tmp_path, data.sentences, None)


def test_bytes_that_are_not_utf8_are_latin_1(script: Any, tmp_path: Path) -> None:
    data = script("common.data")
    (tmp_path / "train.txt").write_bytes(b"caf\xe9 \x85 1\r\n" * 4)
    parts = data.read_parts(tmp_path, data.sentences, None)
    assert parts.train == [["café", "1"]] * 2


@pytest.mark.parametrize(
    ("word", "expected"), [("string", "ingstray"), ("apple", "appleway"), ("rhythm", "rhythmay")]
)
def test_pig_latin(script: Any, word: str, expected: str) -> None:
    assert script("common.data").pig_latin(word) == expected


def test_tasks_of_the_built_in_text(script: Any) -> None:
    data = script("common.data")
    kinds = {label for _, label in data.built_in_labelled()}
    assert {"language", "library"} <= kinds <= {"language", "library", "torch", "licence"}
    words, tags = map(list, zip(*data.built_in_tagged(), strict=True))
    assert {tag for row in tags for tag in row} == {"O", "B-Capital", "B-UPPER"}
    assert all(len(a) == len(b) for a, b in zip(words, tags, strict=True))
    shared = {"same": [], "other": []}
    for first, second, label in data.built_in_pairs():
        shared[label].append(len({*first} & {*second}) / len({*first}))
    same, other = (sum(x) / len(x) for x in shared.values())
    assert same > other + 0.3


def test_spans_of_tags(script: Any) -> None:
    pytest.importorskip("transformers")
    spans = script("tag").spans
    assert spans(["B-a", "I-a", "O", "B-b"]) == {(0, 2, "a"), (3, 4, "b")}
    assert spans(["B-a", "B-a", "I-b"]) == {(0, 1, "a"), (1, 2, "a"), (2, 3, "b")}
    assert spans(["O", "I-a", "I-a"]) == {(1, 3, "a")}
    assert spans([]) == set()


@pytest.mark.parametrize("rows", [10, 23, 61])
def test_ten_folds_test_every_row_once(script: Any, rows: int) -> None:
    data = script("common.data")
    folds = [data.split(range(rows), "rows", None, fold=fold) for fold in range(10)]
    assert sorted(row for fold in folds for row in fold.test) == list(range(rows))
    for fold, following in zip(folds, [*folds[1:], folds[0]], strict=True):
        assert fold.valid == following.test
        assert sorted([*fold.train, *fold.valid, *fold.test]) == list(range(rows))
