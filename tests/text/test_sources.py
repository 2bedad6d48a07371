"""Sources of calibration texts: files with shares, refusals of one line, and the built-in texts."""

from __future__ import annotations

from pathlib import Path

import pytest

from sparse_engine.errors import UsageError
from sparse_engine.text import sources
from sparse_engine.text.built_in import PASSAGE, WORDS, built_in_texts
from sparse_engine.text.sources import find_sources, read_texts


def write(path: Path, *lines: str) -> str:
    path.write_text("\n".join(lines))
    return str(path)


def test_a_share_follows_the_last_colon(tmp_path: Path) -> None:
    a, b = write(tmp_path / "a.txt", "one"), write(tmp_path / "b:c.txt", "two")
    found = find_sources([f"{a}:0.75", f"{b}:2"])
    assert [(source.name, source.share) for source in found] == [(a, 0.75), (b, 2.0)]
    assert [source.share for source in find_sources([a, b])] == [1.0, 1.0]
    odd = write(tmp_path / "d:0.5", "three")  # a file of the whole name comes first
    (found_odd,) = find_sources([odd])
    assert (found_odd.name, found_odd.share, found_odd.texts) == (odd, 1.0, ("three",))
    (found_odd,) = find_sources([f"{odd}:0.1"])
    assert (found_odd.name, found_odd.share) == (odd, 0.1)


def test_lines_are_stripped_and_occur_once(tmp_path: Path) -> None:
    path = tmp_path / "a.txt"
    path.write_bytes("\ufeff one \r\n\r\ntwo\tanswer\n one\n".encode())
    assert read_texts(path) == ["one", "two\tanswer", "one"]
    assert find_sources([str(path)])[0].texts == ("one", "two\tanswer")


def test_refusals_are_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sources, "MAX_BYTES", 100)
    good = write(tmp_path / "good.txt", "one")
    (tmp_path / "binary").write_bytes(b"\xff\xfe\x00\x01")
    (tmp_path / "nul").write_bytes(b"one\0two")
    for arguments, message in (
        ([write(tmp_path / "empty.txt", "", "  ")], "holds no text: write one text a line"),
        ([str(tmp_path / "binary")], "is not UTF-8 text"),
        ([str(tmp_path / "nul")], "is not text: it holds NUL bytes"),
        ([write(tmp_path / "large.txt", "word " * 21)], "has over 0 MiB"),
        ([str(tmp_path / "none.txt")], "none.txt: No such file"),
        ([str(tmp_path)], "Is a directory"),
        ([f"{good}:0"], "a share is a positive number"),
        ([f"{good}:-1"], "a share is a positive number"),
        ([f"{good}:nan"], "a share is a positive number"),
        ([f"{good}:inf"], "a share is a positive number"),
        ([f"{good}:0.5", good], "has no share: give one to every calibration file, or none"),
        ([":0.5"], "is a share without a file"),
        (["0.5"], "is a share without a file"),
        (["none", good], "'none' stands alone"),
        ([f"{good}:1", f"{good}:2"], "is there twice"),
    ):
        with pytest.raises(UsageError) as caught:
            find_sources(arguments)
        assert message in str(caught.value)
        assert "\n" not in str(caught.value)


def test_none_is_no_source() -> None:
    assert find_sources(["none"]) == []


def test_built_in_texts_are_prose_without_repetition() -> None:
    found = built_in_texts()
    assert len(found.sentences) > 1000
    assert len(found.passages) > 200
    for texts in (found.sentences, found.passages):
        assert len(set(texts)) == len(texts)
    assert all(len(sentence.split()) in WORDS for sentence in found.sentences)
    lengths = sorted(len(passage) for passage in found.passages)
    assert PASSAGE / 2 < lengths[len(lengths) // 2] <= PASSAGE
    assert "documentation of Python 3." in found.detail
    (source,) = find_sources(["default:3"])
    assert (source.texts, source.share) == (found.sentences, 3.0)
