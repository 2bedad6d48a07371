"""Tasks against transformers' own models, and what they refuse."""

from __future__ import annotations

import asyncio
import json
from itertools import islice
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

pytest.importorskip("transformers")
pytest.importorskip("tokenizers")

import transformers
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors

import sparse_engine as se
from sparse_engine.errors import SparseEngineError, UnsupportedModelError, UsageError
from sparse_engine.tasks import InputError, Sampling, open_task

WORDS = "the a cat dog sat on mat who why Ada Paris in . ?".split()
PIECES = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", *WORDS, "##s"]
LABELS = {0: "O", 1: "B-PER", 2: "I-PER", 3: "B-LOC"}
SIZES = {
    "hidden_size": 24,
    "num_hidden_layers": 2,
    "num_attention_heads": 3,
    "num_key_value_heads": 1,
    "intermediate_size": 36,
    "max_position_embeddings": 64,
    "initializer_range": 0.7,
}


def folder(path: Path, kind: str) -> Path:
    """A model folder with a tokenizer: words for BERT, bytes for Llama."""
    torch.manual_seed(0)
    path.mkdir(parents=True)
    if kind == "LlamaForCausalLM":
        letters = {
            c: i
            for i, c in enumerate(["<s>", "</s>", *sorted(pre_tokenizers.ByteLevel.alphabet())])
        }
        tokenizer = Tokenizer(models.BPE(letters, []))
        tokenizer.add_special_tokens(["<s>", "</s>"])
        tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
        tokenizer.decoder = decoders.ByteLevel()
        tokenizer.post_processor = processors.TemplateProcessing(
            "<s> $A", special_tokens=[("<s>", 0)]
        )
        config: Any = transformers.LlamaConfig(
            **SIZES, vocab_size=len(letters), bos_token_id=0, eos_token_id=1, pad_token_id=0
        )
    elif kind == "T5ForConditionalGeneration":
        vocabulary = {word: i for i, word in enumerate(["[PAD]", "</s>", "[UNK]", *WORDS])}
        tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="[UNK]"))
        tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
        tokenizer.post_processor = processors.TemplateProcessing(
            "$A </s>", special_tokens=[("</s>", 1)]
        )
        config = transformers.T5Config(
            vocab_size=len(vocabulary),
            d_model=24,
            d_kv=8,
            d_ff=36,
            num_layers=2,
            num_heads=3,
            decoder_start_token_id=0,
            pad_token_id=0,
            eos_token_id=1,
            initializer_factor=9.0,
        )
    else:
        vocabulary = {piece: i for i, piece in enumerate(PIECES)}
        tokenizer = Tokenizer(models.WordPiece(vocabulary, unk_token="[UNK]"))
        tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
        tokenizer.post_processor = processors.BertProcessing(("[SEP]", 3), ("[CLS]", 2))
        labels = {} if "Question" in kind else {"id2label": LABELS}
        config = transformers.BertConfig(**SIZES, vocab_size=len(PIECES), **labels)
    model = getattr(transformers, kind)(config).eval().requires_grad_(False)
    for module in model.modules():
        if isinstance(module, torch.nn.Linear) and module.out_features > 4:
            module.weight[torch.rand_like(module.weight) < 0.6] = 0
    model.save_pretrained(path)
    tokenizer.save(str(path / "tokenizer.json"))
    return path


@pytest.fixture(scope="module")
def packages(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Packages of all kinds, converted from Hugging Face folders."""
    found = {}
    for kind in (
        "BertModel",
        "BertForSequenceClassification",
        "BertForTokenClassification",
        "BertForQuestionAnswering",
        "LlamaForCausalLM",
        "T5ForConditionalGeneration",
    ):
        source = folder(tmp_path_factory.mktemp("dense") / kind, kind)
        model, _ = se.io.load_pretrained(source)
        se.sparsify_(model, "csr")
        found[kind] = se.save(model, tmp_path_factory.mktemp("sparse") / kind, source=source)
    return found


def opened(package: Path) -> Any:
    return open_task(se.load(package), package)


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
    ("kind", "options", "seen"),
    [
        ("BertModel", [], "0."),
        ("BertForSequenceClassification", ["--pair", "a dog"], "PER"),
        ("BertForTokenClassification", ["-o", "json"], "["),
        ("BertForQuestionAnswering", ["--question", "who sat ?"], "answer"),
        ("LlamaForCausalLM", ["--max-tokens", "5", "-o", "json"], "length"),
        ("T5ForConditionalGeneration", ["--max-tokens", "5", "-o", "json"], "finish"),
    ],
)
def test_run_answers_from_the_shell(
    packages: dict[str, Path], kind: str, options: list[str], seen: str
) -> None:
    from typer.testing import CliRunner

    from sparse_engine.cli import app

    result = CliRunner().invoke(app, ["run", str(packages[kind]), "-t", "the cat sat", *options])
    assert result.exit_code == 0, result.output
    assert seen in result.output


def test_run_refuses_what_does_not_fit(packages: dict[str, Path]) -> None:
    from typer.testing import CliRunner

    from sparse_engine.cli import app

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


def serve(task: Any, path: str, *bodies: Any) -> list[Any]:
    pytest.importorskip("fastapi")
    httpx = pytest.importorskip("httpx")
    from sparse_engine.serve import create_app

    async def going() -> list[Any]:
        transport = httpx.ASGITransport(app=create_app({"tiny": task}, threads=1))
        async with httpx.AsyncClient(transport=transport, base_url="http://test") as client:
            return list(await asyncio.gather(*(client.post(path, json=body) for body in bodies)))

    return asyncio.run(going())


def test_completions_over_http(packages: dict[str, Path]) -> None:
    task = opened(packages["LlamaForCausalLM"])
    asked = {"prompt": "Once", "max_tokens": 12, "temperature": 0}
    expected = task.generate("Once", Sampling(max_tokens=12))
    whole, both, streamed, other = serve(
        task,
        "/v1/completions",
        asked,
        {**asked, "prompt": ["Once", "The end"]},
        {**asked, "stream": True},
        {**asked, "temperature": 0.9, "seed": 3, "top_k": 5, "stop": ["q", "zz"]},
    )
    assert whole.status_code == 200, whole.text
    body = whole.json()
    assert body["object"] == "text_completion"
    assert body["choices"][0]["text"] == expected
    assert body["choices"][0]["finish_reason"] == "length"
    prompt = len(task.prompt_ids("Once"))
    assert body["usage"] == {
        "prompt_tokens": prompt,
        "completion_tokens": 12,
        "total_tokens": prompt + 12,
    }
    assert [choice["index"] for choice in both.json()["choices"]] == [0, 1]
    assert both.json()["choices"][0]["text"] == expected
    assert streamed.headers["content-type"].startswith("text/event-stream")
    events = [line.removeprefix("data: ") for line in streamed.text.split("\n\n") if line]
    assert events.pop() == "[DONE]"
    told = [json.loads(event)["choices"][0] for event in events]
    assert "".join(choice["text"] for choice in told) == expected
    assert told[-1]["finish_reason"] == "length"
    assert other.status_code == 200


@pytest.mark.parametrize(
    ("wrong", "why"),
    [
        ({"prompt": None}, "prompt"),
        ({"prompt": ""}, "prompt 0 is empty"),
        ({"prompt": ["a"] * 9}, "at most 8"),
        ({"prompt": [1, 2]}, "prompt"),
        ({"prompt": "x" * 64}, "64"),
        ({"max_tokens": 0}, "max_tokens"),
        ({"max_tokens": 2.5}, "max_tokens"),
        ({"temperature": "hot"}, "temperature"),
        ({"top_p": 2}, "top_p"),
        ({"seed": -1}, "seed"),
        ({"n": 2}, "n is 2"),
        ({"logprobs": 3}, "logprobs"),
        ({"stop": [1]}, "stop"),
        ({"stop": ["a"] * 5}, "stop"),
        ({"model": "other"}, "other"),
    ],
    ids=str,
)
def test_completions_refuse(packages: dict[str, Path], wrong: dict[str, Any], why: str) -> None:
    task = opened(packages["LlamaForCausalLM"])
    for more in ({}, {"stream": True}):
        (answer,) = serve(task, "/v1/completions", {"prompt": "Once", **wrong, **more})
        assert answer.status_code in (400, 404)
        assert why in answer.json()["error"]["message"]


def test_heads_over_http(packages: dict[str, Path]) -> None:
    def texts(name: str, *data: str) -> dict[str, Any]:
        return {"name": name, "datatype": "BYTES", "shape": [len(data)], "data": list(data)}

    path = "/v2/models/tiny/infer"
    task = opened(packages["BertForSequenceClassification"])
    one, pair, wrong, uneven = serve(
        task,
        path,
        {"inputs": [texts("text", "a cat", "the dog sat")], "id": "7"},
        {"inputs": [texts("text", "a cat"), texts("pair", "a dog")]},
        {"inputs": [texts("question", "a cat")]},
        {"inputs": [texts("text", "a cat"), texts("pair", "a dog", "b")]},
    )
    labels = [json.loads(text) for text in one.json()["outputs"][0]["data"]]
    assert one.json()["id"] == "7"
    assert labels[1][0]["label"] == task.classify(["the dog sat"])[0][0].label
    (expected,) = task.classify([("a cat", "a dog")])
    assert json.loads(pair.json()["outputs"][0]["data"][0])[0]["label"] == expected[0].label
    assert (wrong.status_code, uneven.status_code) == (400, 400)
    task = opened(packages["BertForQuestionAnswering"])
    (found,) = serve(
        task, path, {"inputs": [texts("text", "the cat sat"), texts("question", "who ?")]}
    )
    assert (
        json.loads(found.json()["outputs"][0]["data"][0])["text"]
        == task.answer("who ?", "the cat sat").text
    )
    task = opened(packages["BertForTokenClassification"])
    (found,) = serve(task, path, {"inputs": [texts("text", "the cat sat")]})
    assert isinstance(json.loads(found.json()["outputs"][0]["data"][0]), list)
    for other in ("/v1/embeddings", "/v1/completions"):
        (found,) = serve(task, other, {"input": "a", "prompt": "a"})
        assert found.status_code == 400
        assert "token-classification" in found.text
    (found,) = serve(opened(packages["LlamaForCausalLM"]), path, {"inputs": [texts("text", "a")]})
    assert "/v1/completions" in found.text
