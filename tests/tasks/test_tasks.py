"""Tasks against transformers' own models, and what they refuse."""

from __future__ import annotations

import json
from collections.abc import Callable
from itertools import islice, product
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

pytest.importorskip("transformers")
pytest.importorskip("tokenizers")

import task_models
import transformers
from task_models import LABELS, PIECES, SIZES, opened

import sparse_engine as se
from sparse_engine.errors import SparseEngineError, UnsupportedModelError, UsageError
from sparse_engine.generation.detokenize import stop_prefix
from sparse_engine.generation.sampling import MAX_STOP
from sparse_engine.tasks import InputError, Sampling, open_task


@pytest.fixture(scope="module")
def packages(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    return task_models.packages(tmp_path_factory.mktemp("tasks"))


def test_labels_of_texts_and_pairs(packages: dict[str, Path]) -> None:
    task = opened(packages["BertForSequenceClassification"])
    texts: list[Any] = ["the cat sat", "a dog", ("the cat sat", "who sat ?")]
    found = task.classify(texts)
    for text, labels in zip(texts, found, strict=True):
        encoding = task.tokenizer.encode(*([text] if isinstance(text, str) else text))
        logits = task.model(
            input_ids=torch.tensor([encoding.ids]), token_type_ids=torch.tensor([encoding.type_ids])
        ).logits[0]
        assert [label.label for label in labels] == [
            LABELS[int(i)] for i in logits.argsort(descending=True)
        ]
        torch.testing.assert_close(
            torch.tensor([label.score for label in labels]),
            logits.softmax(0).sort(descending=True)[0],
            atol=1e-5,
            rtol=1e-5,
        )
    assert sum(label.score for label in found[0]) == pytest.approx(1)


def test_spans_of_tokens(packages: dict[str, Path]) -> None:
    task = opened(packages["BertForTokenClassification"])
    names = ["O", "B-PER", "I-PER", "I-PER", "B-LOC", "O"]

    encoding = SimpleNamespace(
        offsets=[(0, 0), (0, 3), (4, 8), (8, 12), (13, 17), (0, 0)],
        special_tokens_mask=[1, 0, 0, 0, 0, 1],
        word_ids=[None, 0, 1, 1, 2, None],
    )
    shares = torch.full((6, 4), 0.1)
    for row, name in enumerate(names):
        shares[row, next(i for i, n in LABELS.items() if n == name)] = 0.7
    spans = task._spans("Ada Lovelace Rome", encoding, shares)
    assert [(s.text, s.label, s.start, s.end) for s in spans] == [
        ("Ada Lovelace", "PER", 0, 12),
        ("Rome", "LOC", 13, 17),
    ]
    assert spans[0].score == pytest.approx(0.7)
    (found,) = task.tag(["the cats sat on a mat"])
    for span in found:
        assert "the cats sat on a mat"[span.start : span.end] == span.text
        assert span.label in ("PER", "LOC")


def test_the_answer_to_a_question(packages: dict[str, Path]) -> None:
    task = opened(packages["BertForQuestionAnswering"])
    question, text = "who sat ?", "the cat sat on a mat in Paris ."
    span = task.answer(question, text)
    assert text[span.start : span.end] == span.text != ""
    encoding = task.tokenizer.encode(question, text)
    output = task.model(
        input_ids=torch.tensor([encoding.ids]), token_type_ids=torch.tensor([encoding.type_ids])
    )
    best = max(
        (float(output.start_logits[0, i] + output.end_logits[0, j]), i, j)
        for i in range(len(encoding.ids))
        for j in range(i, len(encoding.ids))
        if encoding.sequence_ids[i] == encoding.sequence_ids[j] == 1
    )
    assert (span.start, span.end) == (encoding.offsets[best[1]][0], encoding.offsets[best[2]][1])


def test_generated_text_is_that_of_transformers(packages: dict[str, Path]) -> None:
    package = packages["LlamaForCausalLM"]
    task = opened(package)
    prompt = "Once upon"
    ids = torch.tensor([task.prompt_ids(prompt)])
    mask = torch.ones_like(ids)  # the padding token is the first one here
    expected = task.model.generate(ids, attention_mask=mask, max_new_tokens=20, do_sample=False)[
        0, ids.shape[1] :
    ]
    found = list(islice(task.tokens(ids[0].tolist()), 20))
    assert found[: len(expected)] == expected.tolist()  # transformers ends where the text does
    how = dict(temperature=0.8, top_k=30, top_p=0.9, repetition_penalty=1.2, max_tokens=20)
    one = task.generate(prompt, Sampling(**how, seed=7))
    assert one == task.generate(prompt, Sampling(**how, seed=7))
    assert one != task.generate(prompt, Sampling(**how, seed=8))
    pieces = list(task.stream(prompt, Sampling(max_tokens=1000, temperature=1, seed=1)))
    assert pieces[-1].finish in ("stop", "length")
    assert pieces[-1].tokens <= task.max_length - ids.shape[1]
    assert all(piece.finish is None for piece in pieces[:-1])


def test_rewritten_text_is_that_of_transformers(packages: dict[str, Path]) -> None:
    task = opened(packages["T5ForConditionalGeneration"])
    ids = task.prompt_ids("the cat sat on a mat")
    expected = task.model.generate(torch.tensor([ids]), max_new_tokens=12, do_sample=False)[0, 1:]
    found = list(islice(task.tokens(ids), 12))
    assert found[: len(expected)] == expected.tolist()
    assert task.generate("the cat sat", Sampling(max_tokens=5))
    assert task.max_length == 512


def test_a_stop_text_ends_it_and_is_not_shown(packages: dict[str, Path]) -> None:
    task = opened(packages["LlamaForCausalLM"])
    letters = iter([task.tokenizer.token_to_id(c) for c in "abcabdefgh"])
    task.tokens = lambda ids, sampling: letters
    pieces = list(task.stream("x", Sampling(stop=("abd", "zz"), max_tokens=50)))
    assert "".join(piece.text for piece in pieces) == "abc"
    assert pieces[-1].finish == "stop"
    task.tokens = lambda ids, sampling: iter([task.tokenizer.token_to_id("q"), 1, 5])
    pieces = list(task.stream("x"))
    assert ("".join(p.text for p in pieces), pieces[-1].finish, pieces[-1].tokens) == (
        "q",
        "stop",
        1,
    )


def test_what_tasks_refuse(packages: dict[str, Path], tmp_path: Path) -> None:
    for wrong in (
        {"max_tokens": 0},
        {"temperature": -1.0},
        {"top_k": -1},
        {"top_p": 0.0},
        {"repetition_penalty": 0.0},
        {"stop": ("",)},
    ):
        with pytest.raises(UsageError, match=next(iter(wrong))):
            Sampling(**wrong)  # type: ignore[arg-type]
    generator = opened(packages["LlamaForCausalLM"])
    with pytest.raises(InputError, match="64"):
        generator.generate("x" * 64)
    classifier = opened(packages["BertForSequenceClassification"])
    for texts in ([], [""], [" "], [("a", "")]):
        with pytest.raises(InputError):
            classifier.classify(texts)
    with pytest.raises(InputError, match="at most 64"):
        classifier.classify(["cat " * 80])
    model = transformers.BertForNextSentencePrediction(
        transformers.BertConfig(**SIZES, vocab_size=len(PIECES))
    )
    with pytest.raises(UnsupportedModelError, match="BertForNextSentencePrediction"):
        open_task(model, packages["BertModel"])


@pytest.mark.parametrize(
    ("kind", "options", "check"),
    [
        ("BertModel", [], lambda found: len(found) == 24),
        (
            "BertForSequenceClassification",
            ["--pair", "a dog"],
            lambda found: {row["label"] for row in found} == set(LABELS.values()),
        ),
        (
            "BertForTokenClassification",
            [],
            lambda found: all(row["text"] in "the cat sat" for row in found),
        ),
        (
            "BertForQuestionAnswering",
            ["--question", "who sat ?"],
            lambda found: found["text"] in "the cat sat",
        ),
        (
            "LlamaForCausalLM",
            ["--max-tokens", "5"],
            lambda found: found["finish"] in ("length", "stop") and found["tokens"] <= 5,
        ),
        (
            "T5ForConditionalGeneration",
            ["--max-tokens", "5"],
            lambda found: found["finish"] in ("length", "stop") and found["tokens"] <= 5,
        ),
    ],
)
def test_run_answers_from_the_shell(
    packages: dict[str, Path], kind: str, options: list[str], check: Callable[[Any], bool]
) -> None:
    from typer.testing import CliRunner

    from sparse_engine.cli.app import app

    asked = ["run", str(packages[kind]), "-t", "the cat sat", *options]
    result = CliRunner().invoke(app, [*asked, "-o", "json"])
    assert result.exit_code == 0, result.output
    assert check(json.loads(result.stdout)), result.stdout
    result = CliRunner().invoke(app, asked)  # for people
    assert result.exit_code == 0
    assert result.stdout.strip()


def test_run_refuses_what_does_not_fit(packages: dict[str, Path]) -> None:
    from typer.testing import CliRunner

    from sparse_engine.cli.app import app

    for kind, options, why in (
        ("BertModel", ["--question", "who?"], "--question"),
        ("BertForQuestionAnswering", [], "--question"),
        ("LlamaForCausalLM", ["--pair", "x"], "--pair"),
        ("LlamaForCausalLM", ["--top-p", "2"], "top_p"),
        ("LlamaForCausalLM", ["-o", "xml"], "xml"),
    ):
        result = CliRunner().invoke(app, ["run", str(packages[kind]), "-t", "a cat", *options])
        assert isinstance(result.exception, SparseEngineError), result.output
        assert why in str(result.exception)


def test_stop_texts_are_found_and_bounded() -> None:
    words = ["".join(w) for n in range(6) for w in product("ab", repeat=n)]
    for stops in (("ab",), ("aab", "b"), ("abab", "bba"), ()):
        for text in words:
            if any(stop in text for stop in stops):
                continue
            begun = [n for s in stops for n in range(1, len(s)) if text.endswith(s[:n])]
            assert stop_prefix(text, stops) == max(begun, default=0)
    Sampling(stop=("x" * MAX_STOP,))
    for wrong in ("", "x" * (MAX_STOP + 1)):
        with pytest.raises(UsageError, match="give texts of 1 to 256 characters"):
            Sampling(stop=("a", wrong))


@pytest.mark.parametrize(
    ("told", "typed"),
    [
        (None, True),
        ({"tokenizer_class": "BertTokenizer"}, True),
        ({"tokenizer_class": "BertTokenizerFast"}, True),
        ({"tokenizer_class": "DebertaV2Tokenizer"}, True),
        ({"tokenizer_class": "DistilBertTokenizer"}, False),
        ({"tokenizer_class": "RobertaTokenizer"}, False),
        ({"tokenizer_class": "MPNetTokenizerFast"}, False),
        ({"tokenizer_class": "PreTrainedTokenizerFast"}, False),
        ({"model_input_names": ["input_ids", "attention_mask"]}, False),
        (
            {
                "tokenizer_class": "DistilBertTokenizer",
                "model_input_names": ["input_ids", "token_type_ids", "attention_mask"],
            },
            True,
        ),
        ({"tokenizer_class": "BertTokenizer", "model_input_names": ["input_ids"]}, False),
        ({"tokenizer_class": "no.such.Tokenizer"}, True),
        ({"tokenizer_class": "AutoModel"}, True),
    ],
)
def test_pairs_have_token_types_where_the_tokenizer_gives_them(
    told: dict[str, Any] | None, typed: bool, tmp_path: Path
) -> None:
    """The very answer that transformers' own tokenizer and model give."""
    source = task_models.folder(tmp_path / "dense", "BertForSequenceClassification")
    if told is not None:
        (source / "tokenizer_config.json").write_text(json.dumps(told))
    model, _ = se.io.load_pretrained(source)
    task = open_task(model, source)
    pair = ("the cat sat", "who sat on a mat ?")
    encoding = task.tokenizer.encode(*pair)
    given = {"input_ids": torch.tensor([encoding.ids])}
    if typed:
        given["token_type_ids"] = torch.tensor([encoding.type_ids])
    with torch.no_grad():
        expected = model(**given).logits[0].softmax(0)
        other = model(input_ids=given["input_ids"]).logits[0].softmax(0)
    (labels,) = task.classify([pair])
    found = {label.label: label.score for label in labels}
    got = torch.tensor([found[LABELS[i]] for i in range(4)])
    torch.testing.assert_close(got, expected, rtol=1e-5, atol=1e-6)
    assert torch.allclose(expected, other, atol=1e-3) != typed


@pytest.mark.parametrize("kind", ["Roberta", "DistilBert", "MPNet", "Electra", "Albert"])
def test_pairs_of_other_families(kind: str, tmp_path: Path) -> None:
    """Answers of the whole of transformers, its tokenizer included, for a folder it has written."""
    source = task_models.folder(tmp_path / "dense", "BertForSequenceClassification")
    torch.manual_seed(1)
    sizes = {name: value for name, value in SIZES.items() if name != "num_key_value_heads"}
    if kind == "DistilBert":
        sizes = {"dim": 24, "hidden_dim": 36, "n_layers": 2, "n_heads": 3, "initializer_range": 0.7}
    config = getattr(transformers, f"{kind}Config")(
        **sizes, vocab_size=len(PIECES), pad_token_id=0, id2label=LABELS
    )
    model = getattr(transformers, f"{kind}ForSequenceClassification")(config).eval()
    model.save_pretrained(source)
    tokenizer = transformers.PreTrainedTokenizerFast(
        tokenizer_file=str(source / "tokenizer.json"), pad_token="[PAD]", unk_token="[UNK]"
    )
    tokenizer.save_pretrained(source)
    pair = ("the cat sat", "who sat on a mat ?")
    auto = transformers.AutoTokenizer.from_pretrained(source)
    with torch.no_grad():
        expected = model(**auto(*pair, return_tensors="pt")).logits[0].softmax(0)
    loaded, _ = se.io.load_pretrained(source)
    (labels,) = open_task(loaded, source).classify([pair])
    found = {label.label: label.score for label in labels}
    got = torch.tensor([found[LABELS[i]] for i in range(4)])
    torch.testing.assert_close(got, expected, rtol=1e-4, atol=1e-5)


def test_a_tokenizer_that_fails_on_a_text_is_one_line(packages: dict[str, Path]) -> None:
    for kind in ("BertForSequenceClassification", "BertModel"):
        task = opened(packages[kind])
        told = json.loads(task.tokenizer.to_str())
        del told["model"]["vocab"]["[UNK]"]
        task.tokenizer = type(task.tokenizer).from_str(json.dumps(told))
        ask = task.classify if kind != "BertModel" else task.embed
        with pytest.raises(InputError, match="the tokenizer fails on a text"):
            ask(["what is this"])
