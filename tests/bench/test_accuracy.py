"""bench/accuracy.py on made-up data: tasks, rows, tables and refusals; nothing real is read."""

from __future__ import annotations

import json
import random
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from target_cases import FormulaMachine
from torch import nn

from sparse_engine.errors import InvalidFileError, UsageError
from sparse_engine.pruning.target import method

pytest.importorskip("transformers")
sys.path.insert(0, str(Path(__file__).parents[2] / "bench"))  # as Python does for a script

import accuracy
import accuracy_stories
import accuracy_target
from accuracy_cases import (
    sentence,
    tiny_encoder,
    write_brown,
    write_sick,
    write_stories,
    write_tagger,
)
from accuracy_domain import Domain
from accuracy_rows import Results, Setting, grid, table
from accuracy_sick import Encoder, Sick, read_pairs
from accuracy_tagger import Tagger

METHODS = (("random", "least_squares"), ("wanda", "none"))


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """SICK, Brown and a novel of made-up sentences."""
    folder, source = tmp_path_factory.mktemp("data"), random.Random(0)
    novel = folder / "lm/warandpeace"
    novel.mkdir(parents=True)
    write_sick(folder, source)
    write_brown(folder, source)
    prose = " ".join(f"{sentence(source)}.".capitalize() for _ in range(20))
    (novel / "novel.txt").write_text(prose)
    return folder


@pytest.fixture(scope="module")
def encoder(tmp_path_factory: pytest.TempPathFactory) -> Encoder:
    return tiny_encoder(tmp_path_factory.mktemp("encoder"))


def test_sick_compares_pairs_and_calibrates_on_other_sentences(
    data: Path, encoder: Encoder
) -> None:
    task = Sick(data, encoder)
    pairs = read_pairs(data / "match/sick/SICK_test_annotated.txt")
    train = read_pairs(data / "match/sick/SICK_train.txt")
    assert train[0][0] == pairs[0][0]  # a sentence of both
    seen = {text for a, b, _ in pairs for text in (a, b)}
    assert set(task.texts(1000, 0)) == {text for a, b, _ in train for text in (a, b)} - seen
    assert len(task.texts(5, 1)) == 5
    assert task.texts(5, 1) != task.texts(5, 2)

    similarity = []
    for a, b, _ in pairs:
        x, y = encoder.embed(encoder.dense, [a]), encoder.embed(encoder.dense, [b])
        similarity.append(float((x * y).sum()))
    ranks = [np.argsort(np.argsort(values)) for values in (similarity, [s for _, _, s in pairs])]
    rho = 1 - 6 * ((ranks[0] - ranks[1]) ** 2).sum() / (12 * (12**2 - 1))
    figures = task.evaluate(encoder.dense)
    assert abs(figures["rho"] - 100 * rho) < 0.01
    assert figures["cosine"] == 1.0


def test_every_domain_calibrates(data: Path, encoder: Encoder) -> None:
    task = Domain(data, encoder)
    assert task.evaluate(task.dense) == {"sick": 1.0, "brown": 1.0}
    counts = {}
    for name in task.calibrations:
        batches = task.arguments(Setting("wanda", calibration=name, samples=8))["calibration"]
        counts[name] = sum(len(batch["input_ids"]) for batch in batches)
    assert counts == dict.fromkeys(task.calibrations, 8)


def test_targets_are_followed_by_uniform_settings_of_their_speed(
    data: Path, encoder: Encoder, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(accuracy_target, "Machine", FormulaMachine)
    monkeypatch.setattr(method, "Machine", FormulaMachine)
    monkeypatch.setattr(accuracy_target, "SEARCH_SECONDS", 0.0)
    monkeypatch.setattr(accuracy_target, "CRITERION", "magnitude")
    task = Sick(data, encoder)
    batches = encoder.batches(task.texts(8, 0))
    rows = list(accuracy_target.target_rows(task, batches, 0, (2.0,), None))
    names = ["dense", "2", *(f"2, uniform {g}" for g in accuracy_target.GRANULARITIES)]
    assert [row["target"] for row in rows] == names
    assert rows[0]["cosine"] == 1.0
    for row in rows[1:]:
        assert row["speed-up"] == pytest.approx(2.0, rel=0.1)
        assert row["ms"] > 0
        assert 0 < row["zeros"] < 1
        assert row.keys() >= {"rho", "cosine"}


def reference_logits(raw: np.ndarray, header: tuple[int, ...], ids: list[int]) -> np.ndarray:
    """llama2.c in float64, one position after the other: logits [positions, words]."""
    width, inner, layers, heads, kv_heads, words, _ = header
    size = width // heads
    place = 0

    def take(*shape: int) -> np.ndarray:
        nonlocal place
        count = int(np.prod(shape))
        place += count
        return raw[place - count : place].reshape(shape).astype(np.float64)

    embedding, norm1 = take(words, width), take(layers, width)
    wq, wk = take(layers, width, width), take(layers, kv_heads * size, width)
    wv, wo = take(layers, kv_heads * size, width), take(layers, width, width)
    norm2, w1 = take(layers, width), take(layers, inner, width)
    w2, w3, last = take(layers, width, inner), take(layers, inner, width), take(width)

    def norm(x: np.ndarray, weight: np.ndarray) -> np.ndarray:
        return x / np.sqrt((x * x).mean() + 1e-5) * weight

    def rotated(x: np.ndarray, position: int) -> np.ndarray:
        out = x.reshape(-1, size // 2, 2).copy()
        angles = position / 10000.0 ** (np.arange(0, size, 2) / size)
        cos, sin = np.cos(angles), np.sin(angles)
        a, b = out[..., 0].copy(), out[..., 1].copy()
        out[..., 0], out[..., 1] = a * cos - b * sin, a * sin + b * cos
        return out.reshape(-1, size)

    keys: list[list[np.ndarray]] = [[] for _ in range(layers)]
    values: list[list[np.ndarray]] = [[] for _ in range(layers)]
    logits = []
    for position, token in enumerate(ids):
        x = embedding[token]
        for i in range(layers):
            y = norm(x, norm1[i])
            query = rotated(wq[i] @ y, position)
            keys[i].append(rotated(wk[i] @ y, position))
            values[i].append((wv[i] @ y).reshape(-1, size))
            mixed = []
            for head in range(heads):
                group = head * kv_heads // heads
                scores = [query[head] @ key[group] / np.sqrt(size) for key in keys[i]]
                weights = np.exp(scores) / np.exp(scores).sum()
                mixed.append(sum(w * v[group] for w, v in zip(weights, values[i], strict=True)))
            x = x + wo[i] @ np.concatenate(mixed)
            y = norm(x, norm2[i])
            gate = w1[i] @ y
            x = x + w2[i] @ (gate / (1 + np.exp(-gate)) * (w3[i] @ y))
        logits.append(embedding @ norm(x, last))
    return np.stack(logits)


@pytest.fixture(scope="module")
def stories(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, tuple[int, ...]]:
    """A file of llama2.c with random weights, and its header."""
    return write_stories(tmp_path_factory.mktemp("stories"))


def test_stories_are_read_as_llama2c_computes(stories: tuple[Path, tuple[int, ...]]) -> None:
    path, header = stories
    model, ids = accuracy_stories.read_model(path), [1, 5, 3, 19, 7]
    found = model(input_ids=torch.tensor([ids])).logits[0].detach().double().numpy()
    expected = reference_logits(np.frombuffer(path.read_bytes(), "<f4", offset=28), header, ids)
    assert np.abs(found - expected).max() < 1e-4 * np.abs(expected).max()
    for damage in (path.read_bytes()[:-4], b"short"):
        other = path.parent / "damaged.bin"
        other.write_bytes(damage)
        with pytest.raises(InvalidFileError, match=r"damaged\.bin: "):
            accuracy_stories.read_model(other)


def test_perplexity_of_own_texts(
    stories: tuple[Path, tuple[int, ...]], monkeypatch: pytest.MonkeyPatch
) -> None:
    path, _ = stories
    monkeypatch.setattr(accuracy_stories, "TEST_TEXTS", 3)
    monkeypatch.setattr(accuracy_stories, "LENGTH", 6)
    task = accuracy_stories.Stories(path.parents[2])
    write = accuracy_stories.write_texts
    assert torch.equal(write(task.dense, 3, 1, 6), write(task.dense, 3, 1, 6))
    (batch,) = task.arguments(Setting("wanda", samples=3, seed=1))["calibration"]
    assert batch["input_ids"][:, 0].tolist() == [accuracy_stories.BOS] * 3
    assert not torch.equal(batch["input_ids"], task.test)
    task.test = write(task.dense, 3, 1, 6)
    losses = []
    for row in task.test:
        chances = task.dense(input_ids=row[None]).logits[0].double().log_softmax(-1)
        losses += [-float(chances[i, row[i + 1]]) for i in range(5)]
    expected = np.exp(np.mean(losses))
    assert abs(task.evaluate(task.dense)["perplexity"] - expected) < 1e-3 * expected


def test_the_tagger_is_calibrated_on_sentences_outside_of_the_test(tmp_path: Path) -> None:
    write_tagger(tmp_path)
    task = Tagger(tmp_path)
    arguments = task.arguments(Setting("wanda", samples=9))
    ids = [row for batch in arguments["calibration"] for row in batch["input_ids"].tolist()]
    assert len(ids) == 3  # of five, two are in the test set: one with its mark elsewhere
    assert arguments["filter_fn"](None, "rnn.ih_l0")
    assert not arguments["filter_fn"](None, "inner.0")
    assert task.evaluate(task.dense)["accuracy"] in (0.0, 50.0, 100.0)


class Halves:
    """A task without data: how many weights are left."""

    name = "sick"
    calibrations = ("noise",)
    samples = 4
    columns = ("kept",)
    points = (("element", 0.5), ("2x1", 0.5), ("2:4", 0.9))

    def __init__(self) -> None:
        self.dense = nn.Sequential(nn.Linear(8, 8), nn.Linear(8, 8))
        self.evaluated = 0

    def arguments(self, setting: Setting) -> dict[str, Any]:
        return {"calibration": [torch.randn(setting.samples, 8)], "filter_fn": lambda m, n: True}

    def evaluate(self, model: Any) -> dict[str, float]:
        self.evaluated += 1
        return {"kept": float((model[0].weight != 0).float().mean())}


def test_rows_are_appended_and_not_measured_twice(
    data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    task = Halves()
    monkeypatch.setitem(accuracy.TASKS, "sick", lambda given: task)
    options = ["sick", "--data", str(data), "--out", str(tmp_path), "--criterion", "wanda"]
    accuracy.main(options)
    lines = (tmp_path / "accuracy-sick.jsonl").read_text().splitlines()
    rows = [json.loads(line) for line in lines]
    assert task.evaluated == len(rows) == 1 + 3 * 4  # dense; three points by four criteria
    assert rows[0]["criterion"] == "dense"
    assert rows[0]["kept"] == 1.0
    assert {row["kept"] for row in rows[1:]} == {0.5}
    assert {row["criterion"] for row in rows[1:]} == {"random", "sparsegpt", "obs", "wanda"}
    assert all(row["seconds"] >= 0 and row["busy"] >= 0 for row in rows[1:])
    assert all("cpu" in row["conditions"] and "command" in row["conditions"] for row in rows)
    first = capsys.readouterr().out
    assert all(len(line) <= 80 for line in first.splitlines())
    assert "| wanda" in first
    accuracy.main([*options, "--criterion", "magnitude"])  # one criterion more
    assert task.evaluated == 13 + 3
    with_more = capsys.readouterr().out
    assert all(line in with_more for line in ("| magnitude", "| random"))
    accuracy.main([*options, "--only", "--seed", "1"])
    assert task.evaluated == 16 + 3
    assert "| random" not in capsys.readouterr().out


def test_options_choose_points(data: Path) -> None:
    given = type("Given", (), {"granularity": "4x1,2:4", "sparsity": None})()
    points = accuracy._points(Halves(), given)
    assert points == [("4x1", 0.5), ("4x1", 0.9), ("2:4", 0.5), ("2:4", 0.9)]
    settings = grid(METHODS, points, ("noise",), 4, 0)
    assert len(settings) == 1 + 2 * 3  # 2:4 has one sparsity
    assert {s.sparsity for s in settings if s.granularity == "2:4"} == {0.5}


def test_widest_tables_fit(tmp_path: Path) -> None:
    settings = grid(
        (("obs(ratio=0.7)", "least_squares"), ("sparsegpt", "least_squares")),
        (("element", 0.7), ("16x32", 0.5)),
        ("War and Peace", "sick"),
        1000,
        0,
    )
    results = Results(None, "domain")
    for setting in settings:
        figures = {"rho": 77.15, "cosine": 0.9999, "brown": 0.7, "seconds": 123.4, "busy": 0.0}
        results.add(setting, figures)
    lines = table(results.of(settings), ("rho", "cosine", "brown")).splitlines()
    assert {len(line) for line in lines} == {len(lines[0])}
    assert len(lines[0]) <= 80
    assert lines[2].startswith("| dense ")
    results.add(settings[1], {"rho": 1.0, "cosine": 1.0, "seconds": 9.0, "busy": 0.9})
    assert table(results.of(settings[:2]), ("rho",)).splitlines()[-1].endswith("| busy |")


def test_refusals_are_one_line(data: Path, encoder: Encoder, tmp_path: Path) -> None:
    out = ["--out", str(tmp_path)]
    with pytest.raises(UsageError, match="not a folder"):
        accuracy.main(["sick", "--data", str(tmp_path / "none"), *out])
    with pytest.raises(UsageError, match="--samples 0: expected 1 or more"):
        accuracy.main(["sick", "--data", str(data), "--samples", "0", *out])
    options = ["sick", "--data", str(data), "--model", str(encoder.folder), *out]
    with pytest.raises(UsageError, match="--calibration 'brown': sick has sick"):
        accuracy.main([*options, "--calibration", "brown"])
    (tmp_path / "accuracy-sick.jsonl").write_text('{"task": "sick"}\n')
    with pytest.raises(InvalidFileError, match=r"accuracy-sick\.jsonl, line 1: not a row"):
        accuracy.main(options)
    (tmp_path / "other.txt").write_text("a\tb\n1\t2")
    with pytest.raises(InvalidFileError, match=r"other\.txt: not a file of SICK"):
        read_pairs(tmp_path / "other.txt")
