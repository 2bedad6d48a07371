"""Recurrent taggers and language models end to end: prune, convert, load, tag, generate."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from typer.testing import CliRunner

import sparse_engine as se
from sparse_engine.cli.app import app
from sparse_engine.errors import InvalidFileError, UnsupportedModelError

pytest.importorskip("transformers")
pytest.importorskip("tokenizers")

from tokenizers import Tokenizer, models, pre_tokenizers

from sparse_engine.models.rnn import (
    RnnConfig,
    RnnForCausalLM,
    RnnForSequenceClassification,
    RnnForTokenClassification,
)
from sparse_engine.tasks import Classifier, Generator, Sampling, TokenClassifier, open_task

WORDS = ["[PAD]", "[UNK]", *"the a cat dog sat on mat who why . ?".split()]
TAGGERS: dict[str, dict[str, Any]] = {
    "lstm": {"bidirectional": True, "inner_sizes": [20]},
    "gru": {"cell": "gru", "num_hidden_layers": 2},
    "rnn": {"cell": "rnn_relu", "bidirectional": True},
}
LANGUAGE_MODELS: dict[str, dict[str, Any]] = {
    "lstm": {"num_hidden_layers": 2},
    "gru, tied": {"cell": "gru", "tie_word_embeddings": True, "embedding_size": 32},
    "lstm, adaptive": {"cutoffs": [4, 8]},
}


def folder(path: Path, cls: Any, **sizes: Any) -> Path:
    """A model as Hugging Face writes it, with a word tokenizer."""
    torch.manual_seed(0)
    labels = {} if cls is RnnForCausalLM else {"id2label": {0: "O", 1: "NOUN", 2: "VERB"}}
    config = RnnConfig(vocab_size=len(WORDS), hidden_size=32, **(sizes | labels))
    model = cls(config).eval()
    for parameter in model.parameters():
        parameter.data.mul_(3)
    model.save_pretrained(path)
    tokenizer = Tokenizer(models.WordLevel({w: i for i, w in enumerate(WORDS)}, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.save(str(path / "tokenizer.json"))
    return path


def ok(*arguments: object) -> str:
    result = CliRunner().invoke(app, [str(a) for a in arguments])
    assert result.exit_code == 0, result.output
    return result.output


def same(found: Any, expected: Any) -> bool:
    """Whether tags and positions are the same, and probabilities close."""
    flat = [
        [(s.text, s.label, s.start, s.end) for row in rows for s in row]
        for rows in (found, expected)
    ]
    scores = [torch.tensor([s.score for row in rows for s in row]) for rows in (found, expected)]
    return flat[0] == flat[1] and torch.allclose(*scores, atol=1e-5)


@pytest.mark.parametrize("kind", TAGGERS)
def test_a_tagger_end_to_end(kind: str, tmp_path: Path) -> None:
    source = folder(tmp_path / "dense", RnnForTokenClassification, **TAGGERS[kind])
    texts = ["the cat sat on the mat .", "why ?", "a dog sat"]
    dense, _ = se.io.load_pretrained(source)
    assert isinstance(dense, RnnForTokenClassification)
    expected = TokenClassifier(dense, source).tag(texts)
    ok("prune", source, tmp_path / "pruned", "--sparsity", 0.5, "--calibration", "none")
    output = ok("convert", tmp_path / "pruned", tmp_path / "package", "--format", "csr", "--verify")
    assert "max relative error" in output
    model = se.load(tmp_path / "package")
    assert isinstance(model.rnn, se.nn.SparseRNNBase)
    pruned, _ = se.io.load_pretrained(tmp_path / "pruned")
    assert float((pruned.rnn.weight_hh_l0 == 0).float().mean()) == pytest.approx(0.5, abs=0.01)
    task = open_task(model, tmp_path / "package")
    assert isinstance(task, TokenClassifier)
    assert same(task.tag(texts), TokenClassifier(pruned, source).tag(texts))
    # Texts of different length have the same results together as alone.
    assert same(task.tag(texts), [task.tag([text])[0] for text in texts])
    found = json.loads(ok("run", tmp_path / "package", "--text", texts[0], "-o", "json"))
    assert {span["label"] for span in found} <= {"O", "NOUN", "VERB"}
    # Unpruned, the answers are the dense model's.
    se.sparsify_(dense, "csr", filter_fn=lambda module, name: True)
    assert same(TokenClassifier(dense, source).tag(texts), expected)


def test_a_tagger_without_half_of_its_units(tmp_path: Path) -> None:
    source = folder(tmp_path / "dense", RnnForTokenClassification)
    (tmp_path / "texts.txt").write_text("the cat sat on the mat .\na dog sat\nwhy ?\n")
    options = ("--granularity", "unit(keep=4)", "--sparsity", 0.5)
    ok("prune", source, tmp_path / "cut", *options, "--calibration", tmp_path / "texts.txt")
    record = json.loads((tmp_path / "cut/pruning.json").read_text())
    assert (record["criterion"], record["allocator"]) == ("obs", "uniform")
    cut, _ = se.io.load_pretrained(tmp_path / "cut")
    assert isinstance(cut, RnnForTokenClassification)
    assert cut.rnn.hidden_size == cut.config.hidden_size // 2
    ok("convert", tmp_path / "cut", tmp_path / "package", "--format", "csr", "--verify")
    text = "the cat sat on the mat ."
    found = json.loads(ok("run", tmp_path / "package", "--text", text, "-o", "json"))
    expected = TokenClassifier(cut, tmp_path / "cut").tag([text])[0]
    assert [span["label"] for span in found] == [span.label for span in expected]
    assert "units: " in ok("inspect", tmp_path / "package")


@pytest.mark.parametrize("kind", TAGGERS)
def test_a_classifier_end_to_end(kind: str, tmp_path: Path) -> None:
    source = folder(tmp_path / "dense", RnnForSequenceClassification, **TAGGERS[kind])
    ok("prune", source, tmp_path / "pruned", "--sparsity", 0.5, "--calibration", "none")
    ok("convert", tmp_path / "pruned", tmp_path / "package", "--format", "csr", "--verify")
    pruned, _ = se.io.load_pretrained(tmp_path / "pruned")
    texts = ["the cat sat on the mat .", "why ?", "a dog sat"]
    one, two = (
        open_task(model, tmp_path / "package") for model in (se.load(tmp_path / "package"), pruned)
    )
    assert isinstance(one, Classifier)
    together = one.classify(texts)
    for found in ([one.classify([text])[0] for text in texts], two.classify(texts)):
        assert [[x.label for x in row] for row in found] == [[x.label for x in r] for r in together]
        scores = [torch.tensor([[x.score for x in row] for row in y]) for y in (found, together)]
        torch.testing.assert_close(*scores, rtol=0, atol=1e-5)
    found = json.loads(ok("run", tmp_path / "package", "--text", texts[0], "-o", "json"))
    assert {label["label"] for label in found} == {"O", "NOUN", "VERB"}


def test_a_classifier_takes_the_largest_state_of_each_unit() -> None:
    torch.manual_seed(0)
    config = RnnConfig(vocab_size=9, hidden_size=8, bidirectional=True, num_labels=3)
    model = RnnForSequenceClassification(config).eval()
    ids, mask = torch.tensor([[4, 5, 6, 0], [1, 2, 3, 4]]), torch.tensor([[1, 1, 1, 0], [1] * 4])
    states = [model.rnn(model.embedding(row))[0] for row in (ids[:1, :3], ids[1:])]
    expected = model.classifier(torch.cat([state.max(1).values for state in states]))
    torch.testing.assert_close(model(ids, mask).logits, expected)
    assert model(ids, torch.zeros_like(mask)).logits.isfinite().all()


@pytest.mark.parametrize("kind", LANGUAGE_MODELS)
def test_a_language_model_end_to_end(kind: str, tmp_path: Path) -> None:
    source = folder(tmp_path / "dense", RnnForCausalLM, **LANGUAGE_MODELS[kind])
    ok("prune", source, tmp_path / "pruned", "--sparsity", 0.6, "--calibration", "none")
    ok("convert", tmp_path / "pruned", tmp_path / "package", "--format", "csr", "--verify")
    pruned, _ = se.io.load_pretrained(tmp_path / "pruned")
    model = se.load(tmp_path / "package")
    ids = torch.randint(2, len(WORDS), (3, 12))
    difference = model(ids).logits - pruned(ids).logits
    assert difference.abs().max() < 1e-5 * pruned(ids).logits.abs().max()
    one, two = (open_task(m, tmp_path / "package") for m in (model, pruned))
    assert isinstance(one, Generator)
    for sampling in (Sampling(max_tokens=9), Sampling(max_tokens=9, temperature=0.8, seed=1)):
        assert one.generate("the cat", sampling) == two.generate("the cat", sampling)
    # The state of a prompt does not depend on how it is cut.
    whole = pruned(ids, use_cache=True)
    halves = pruned(ids[:, :5], use_cache=True)
    rest = pruned(ids[:, 5:], past_key_values=halves.past_key_values, use_cache=True)
    assert torch.allclose(whole.logits[:, 5:], rest.logits, atol=1e-5)
    assert ok("run", tmp_path / "package", "--text", "the cat", "--max-tokens", 4)


def test_bad_models_are_refused(tmp_path: Path) -> None:
    for changes, message in (
        ({"cell": "tcn"}, "cell"),
        ({"tie_word_embeddings": True, "embedding_size": 3}, "tie"),
    ):
        with pytest.raises(ValueError, match=message):
            RnnConfig(**changes)
    with pytest.raises(ValueError, match="one direction"):
        RnnForCausalLM(RnnConfig(bidirectional=True))
    model = RnnForTokenClassification(RnnConfig(vocab_size=9, hidden_size=8, bidirectional=True))
    ids, mask = torch.ones(2, 4, dtype=torch.int64), torch.tensor([[0, 1, 1, 1], [1, 1, 1, 1]])
    with pytest.raises(ValueError, match="right"):
        model(ids, mask)
    source = folder(tmp_path / "dense", RnnForCausalLM)
    config = source / "config.json"
    text = config.read_text()
    config.write_text(text.replace("RnnForCausalLM", "RnnForEverything"))
    with pytest.raises(UnsupportedModelError, match="RnnForCausalLM"):
        se.io.load_pretrained(source)
    config.write_text(text.replace('"cell": "lstm"', '"cell": "tcn"'))
    with pytest.raises(InvalidFileError, match="tcn"):
        se.io.load_pretrained(source)


def test_packages_of_plain_modules(tmp_path: Path) -> None:
    class Net(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.rnn = torch.nn.GRU(8, 20, 2, bidirectional=True)
            self.head = torch.nn.Linear(40, 3)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            y: torch.Tensor = self.head(self.rnn(x)[0])
            return y

    net = Net().eval().requires_grad_(False)
    se.prune(net, 0.5)
    x = torch.randn(5, 2, 8)
    expected = net(x)
    report = se.sparsify_(net, "csr")
    se.save(net, tmp_path / "package", report=report)
    loaded = se.load(tmp_path / "package", model=Net())
    assert isinstance(loaded.rnn, se.nn.SparseGRU)
    assert (loaded(x) - expected).abs().max() < 1e-5
    assert "hh_l1_reverse" in ok("inspect", tmp_path / "package")

    class Narrower(Net):
        def __init__(self) -> None:
            super().__init__()
            self.rnn = torch.nn.GRU(8, 10, 2, bidirectional=True)

    narrower = Narrower()
    before = narrower.rnn
    with pytest.raises(InvalidFileError, match="rnn"):
        se.load(tmp_path / "package", model=narrower)
    assert narrower.rnn is before


@pytest.mark.parametrize("cell", [torch.nn.LSTMCell, torch.nn.GRUCell, torch.nn.RNNCell])
def test_packages_of_cells(cell: Any, tmp_path: Path) -> None:
    class Net(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.cell = cell(8, 20)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            state = None
            for step in x:
                state = self.cell(step, state)
            return state[0] if isinstance(state, tuple) else state  # type: ignore[return-value]

    net = Net().eval().requires_grad_(False)
    for name, weight in net.named_parameters():
        if "weight" in name:
            weight[torch.rand_like(weight) < 0.5] = 0
    x = torch.randn(5, 2, 8)
    expected = net(x)
    report = se.sparsify_(net, "csr")
    assert {row.name for row in report.rows} == {"cell.network.ih_l0", "cell.network.hh_l0"}
    assert (net(x) - expected).abs().max() < 1e-5
    se.save(net, tmp_path / "package", report=report)
    loaded = se.load(tmp_path / "package", model=Net())
    assert isinstance(loaded.cell, se.nn.SparseRNNCellBase)
    assert (loaded(x) - expected).abs().max() < 1e-5
    se.densify_(loaded)
    assert type(loaded.cell) is cell
    assert (loaded(x) - expected).abs().max() < 1e-5


def test_a_partly_packed_network_is_refused(tmp_path: Path) -> None:
    class Net(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.rnn = torch.nn.GRU(8, 16)

    net = Net().eval().requires_grad_(False)
    se.prune(net, 0.5)
    se.sparsify_(net, "csr")
    net.rnn.ih_l0 = net.rnn.ih_l0.to_dense()
    se.save(net, tmp_path / "package")
    with pytest.raises(InvalidFileError, match="ih_l0"):
        se.load(tmp_path / "package", model=Net())


def test_padding_of_language_models() -> None:
    model = RnnForCausalLM(RnnConfig(vocab_size=9, hidden_size=8)).eval()
    ids, mask = torch.ones(2, 4, dtype=torch.int64), torch.tensor([[1, 1, 0, 0], [1, 1, 1, 1]])
    expected = model(ids[:, :2]).logits
    for kind in (torch.int64, torch.bool, torch.uint8):
        assert torch.allclose(model(ids, mask.to(kind)).logits[:, :2], expected, atol=1e-6)
    with pytest.raises(ValueError, match="several lengths"):
        model(ids, mask, use_cache=True)
    with pytest.raises(ValueError, match="right"):
        model(ids, mask.flip(1))
    tagger = RnnForTokenClassification(RnnConfig(vocab_size=9, hidden_size=8, bidirectional=True))
    mask[0] = 0  # padding only
    assert tagger(ids, mask).logits.isfinite().all()


@pytest.mark.parametrize(
    "cls", [RnnForCausalLM, RnnForSequenceClassification, RnnForTokenClassification]
)
def test_dropout_is_for_training_alone(cls: Any) -> None:
    torch.manual_seed(0)
    model = cls(RnnConfig(len(WORDS), hidden_size=32, num_hidden_layers=2, dropout=0.5))
    ids = torch.randint(len(WORDS), (2, 5))
    assert model.rnn.dropout == 0.5
    model.eval()
    assert torch.equal(model(ids).logits, model(ids).logits)
    model.train()
    model.rnn.eval()
    assert not torch.equal(model(ids).logits, model(ids).logits)
    with pytest.raises(ValueError, match="dropout 1: expected at least 0 and less than 1"):
        RnnConfig(dropout=1)
