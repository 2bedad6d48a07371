"""Embedder against one text at a time in float64, and what it refuses."""

from __future__ import annotations

import copy
import json
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

pytest.importorskip("transformers")
pytest.importorskip("tokenizers")

import serve_model
from transformers import BertForMaskedLM, RobertaConfig, RobertaModel

from sparse_engine import SparseConfig, sparsify_
from sparse_engine.errors import InvalidFileError, UnsupportedModelError, UsageError
from sparse_engine.serve import Embedder, InputError

TEXTS = [
    "a sparse matrix has few non zeros .",
    "dense",
    "Many Matrixs ? a a a a a",
    "zeros",
    "few few few",
]
IDS = [
    [2, 4, 5, 6, 7, 8, 9, 10, 14, 3],
    [2, 11, 3],
    [2, 12, 6, 13, 1, 4, 4, 4, 4, 4, 3],
    [2, 10, 3],
    [2, 8, 8, 8, 3],
]


@pytest.fixture(autouse=True)
def _one_thread() -> Any:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def truth(model: nn.Module, mode: str, normalize: bool) -> Tensor:
    """Each text alone, without padding, in float64."""
    exact = copy.deepcopy(model).double().eval()
    rows = []
    for ids in IDS:
        with torch.no_grad():
            hidden = exact(input_ids=torch.tensor([ids])).last_hidden_state[0]  # [seq, hidden]
        row = {"mean": hidden.mean(0), "cls": hidden[0], "max": hidden.max(0).values}[mode]
        rows.append(row / row.norm() if normalize else row)
    return torch.stack(rows)


def pooled_by(files: dict[str, Any], **config: Any) -> dict[str, Any]:
    return files | {"1_Pooling/config.json": config}


@pytest.mark.parametrize(
    ("files", "mode", "normalize"),
    [
        (serve_model.POOLING, "mean", True),
        (pooled_by(serve_model.POOLING, pooling_mode_cls_token=True), "cls", True),
        (pooled_by(serve_model.POOLING, pooling_mode="max"), "max", True),
        (pooled_by({}, pooling_mode_max_tokens=True, pooling_mode_mean_tokens=False), "max", False),
        ({}, "mean", False),
    ],
)
@pytest.mark.parametrize("batch_size", [1, 2, 32])
def test_embeds_as_the_files_say(
    tmp_path: Path, files: dict[str, Any], mode: str, normalize: bool, batch_size: int
) -> None:
    model = serve_model.model()
    embedder = Embedder(model, serve_model.write(tmp_path, files), batch_size)
    got = embedder.embed(TEXTS)
    assert got.shape == (5, serve_model.HIDDEN)
    assert got.dtype == torch.float32
    torch.testing.assert_close(got.double(), truth(model, mode, normalize), rtol=0, atol=5e-6)
    assert (embedder.info["pooling"], embedder.info["normalize"]) == (mode, normalize)
    assert embedder.info["pooling_from"].startswith("1_Pooling" if files else "default")


def test_a_sparse_model_embeds_as_its_dense_one(tmp_path: Path) -> None:
    model = serve_model.pruned()
    expected = truth(model, "mean", True)
    assert len(sparsify_(model, SparseConfig(format="csr")).swapped) == 13
    got = Embedder(model, serve_model.write(tmp_path)).embed(TEXTS)
    torch.testing.assert_close(got.double(), expected, rtol=0, atol=2e-6)


def test_tokens_are_the_tokenizers_uncut_and_unpadded(tmp_path: Path) -> None:
    embedder = Embedder(serve_model.model(), serve_model.write(tmp_path))
    assert embedder.encode(TEXTS) == IDS
    assert embedder.encode([""]) == [[2, 3]]
    assert embedder.embed([]).shape == (0, serve_model.HIDDEN)


def test_embeddings_may_be_trained_on(tmp_path: Path) -> None:
    embeddings = Embedder(serve_model.model(), serve_model.write(tmp_path)).embed(TEXTS)
    probe = nn.Linear(serve_model.HIDDEN, 1)
    probe(embeddings).sum().backward()
    torch.testing.assert_close(probe.weight.grad, embeddings.sum(0, keepdim=True))


def test_a_head_is_left_out(tmp_path: Path) -> None:
    torch.manual_seed(0)
    model = BertForMaskedLM(serve_model.config())
    got = Embedder(model, serve_model.write(tmp_path)).embed(TEXTS)
    torch.testing.assert_close(got.double(), truth(model.bert, "mean", True), rtol=0, atol=2e-6)


def test_too_long_is_refused_with_both_numbers(tmp_path: Path) -> None:
    embedder = Embedder(serve_model.model(), serve_model.write(tmp_path / "sentence"))
    assert embedder.max_length == 17
    assert embedder.embed(["a " * 15]).shape == (1, serve_model.HIDDEN)
    with pytest.raises(InputError, match="input 1 has 18 tokens, the model takes at most 17"):
        embedder.embed(["a", "a " * 16])
    embedder = Embedder(serve_model.model(), serve_model.write(tmp_path / "plain", {}))
    assert embedder.max_length == serve_model.MAX_POSITIONS
    assert embedder.embed(["a " * 17]).shape == (1, serve_model.HIDDEN)


def test_roberta_counts_positions_from_its_padding(tmp_path: Path) -> None:
    config = RobertaConfig(**serve_model.config(pad_token_id=1).to_dict())
    embedder = Embedder(RobertaModel(config), serve_model.write(tmp_path, {}))
    assert embedder.max_length == serve_model.MAX_POSITIONS - 2
    assert embedder.embed(["a " * 15]).isfinite().all()
    with pytest.raises(InputError, match="18 tokens"):
        embedder.embed(["a " * 16])


@pytest.mark.parametrize(
    ("rows", "words"),
    [
        ([[2, 3], []], "input 1 has no tokens"),
        ([[2, 15]], "token id 15, the vocabulary is 0 to 14"),
        ([[-1]], "token id -1"),
    ],
)
def test_wrong_token_ids(tmp_path: Path, rows: list[list[int]], words: str) -> None:
    embedder = Embedder(serve_model.model(), serve_model.write(tmp_path))
    with pytest.raises(InputError, match=words):
        embedder.embed_ids(rows)


def test_wrong_texts(tmp_path: Path) -> None:
    embedder = Embedder(serve_model.model(), serve_model.write(tmp_path))
    with pytest.raises(InputError, match="surrogate"):
        embedder.embed(["a", "\ud800"])
    with pytest.raises(UsageError, match="one str"):
        embedder.embed("a")


@pytest.mark.parametrize(
    ("name", "content", "error", "words"),
    [
        ("tokenizer.json", None, InvalidFileError, "tokenizer.json is missing"),
        ("tokenizer.json", "{}", InvalidFileError, "is not a tokenizer"),
        ("config.json", "[" * 100_000, InvalidFileError, "not valid JSON"),
        ("config.json", "[]", InvalidFileError, "is not a JSON object"),
        ("modules.json", "{}", InvalidFileError, "is not a JSON list"),
        ("modules.json", '[{"type": "a.Router", "path": "2"}]', UnsupportedModelError, "'Router'"),
        (
            "modules.json",
            '[{"type": "a.Dense", "path": "2"}]',
            UnsupportedModelError,
            "safetensors",
        ),
        ("modules.json", '[{"type": "a.Dense"}]', InvalidFileError, "plain name"),
        ("modules.json", '[{"type": "a.Pooling"}]', InvalidFileError, "plain name"),
        (
            "modules.json",
            '[{"type": "a.Pooling", "path": "../up"}]',
            InvalidFileError,
            "plain name",
        ),
        ("modules.json", '[{"type": "a.Pooling", "path": "no"}]', InvalidFileError, "not there"),
        ("1_Pooling/config.json", '{"pooling_mode": "middle"}', UnsupportedModelError, "middle"),
        ("1_Pooling/config.json", "{}", UnsupportedModelError, "pooling none"),
        (
            "1_Pooling/config.json",
            '{"pooling_mode_mean_tokens": true, "pooling_mode_other": true}',
            UnsupportedModelError,
            "mean [+] other",
        ),
    ],
)
def test_damaged_folders(
    tmp_path: Path, name: str, content: str | None, error: type[Exception], words: str
) -> None:
    folder = serve_model.write(tmp_path)
    (folder / name).unlink()
    if content is not None:
        (folder / name).write_text(content)
    with pytest.raises(error, match=words):
        Embedder(serve_model.model(), folder)


def test_a_model_that_is_no_encoder(tmp_path: Path) -> None:
    class Scores(nn.Module):
        def forward(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
            return input_ids.float()

    with pytest.raises(UnsupportedModelError, match="Scores gives no last_hidden_state"):
        Embedder(Scores(), serve_model.write(tmp_path))


def test_longest_text_has_to_be_known(tmp_path: Path) -> None:
    folder = serve_model.write(tmp_path, {})
    (folder / "config.json").write_text(json.dumps({"vocab_size": 15}))
    with pytest.raises(UnsupportedModelError, match="longest text is not known"):
        Embedder(nn.Linear(1, 1), folder)


def test_missing_tokenizers_is_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "tokenizers", None)
    with pytest.raises(UsageError, match=r"pip install sparse-engine\[hf\]"):
        Embedder(serve_model.model(), tmp_path)
