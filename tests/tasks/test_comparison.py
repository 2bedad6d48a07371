"""Answers before and after pruning, for each kind of task."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from task_models import folder

import sparse_engine as se
from sparse_engine.errors import UsageError
from sparse_engine.io import load_pretrained
from sparse_engine.tasks import Comparison, open_task

TEXTS = ["the cat sat on a mat", "a dog", "who is Ada ?"]
QUESTIONS = ["who sat ?\tthe cat sat on a mat", "why ?\tAda in Paris"]


@pytest.mark.parametrize(
    ("kind", "texts"),
    [
        ("BertModel", TEXTS),
        ("BertForSequenceClassification", TEXTS),
        ("BertForTokenClassification", TEXTS),
        ("BertForQuestionAnswering", QUESTIONS),
        ("LlamaForCausalLM", TEXTS),
        ("T5ForConditionalGeneration", TEXTS),
    ],
)
def test_each_task(tmp_path: Path, kind: str, texts: list[str]) -> None:
    path = folder(tmp_path / "model", kind)
    model, _ = load_pretrained(path)
    comparison = Comparison(open_task(model, path), texts)
    same = comparison.examples()
    assert [example.text for example in same] == texts
    assert all(example.before == example.after for example in same)
    report = se.prune(model, 0.9, granularity="4x1", filter_fn=lambda module, name: True)
    report.examples = comparison.examples()
    assert [example.before for example in report.examples] == [e.before for e in same]
    assert any(example.before != example.after for example in report.examples)
    if kind == "BertModel":
        again = open_task(model, path).embed(texts)
        dense = open_task(load_pretrained(path)[0], path).embed(texts)
        cosines = torch.nn.functional.cosine_similarity(dense, again).tolist()
        assert [e.similarity for e in report.examples] == pytest.approx(cosines)
        assert all(example.before.startswith("closest to “") for example in same)
    else:
        assert all(example.similarity is None for example in same)


def test_refusals(tmp_path: Path) -> None:
    path = folder(tmp_path / "model", "BertForQuestionAnswering")
    task = open_task(load_pretrained(path)[0], path)
    with pytest.raises(UsageError, match="a question, a tab and the text"):
        Comparison(task, ["no tab"])
    with pytest.raises(UsageError, match="at least one"):
        Comparison(task, [])


def test_one_text_has_no_closest(tmp_path: Path) -> None:
    path = folder(tmp_path / "model", "BertModel")
    (only,) = Comparison(open_task(load_pretrained(path)[0], path), ["the cat"]).examples()
    assert only.before == ""
    assert only.similarity == pytest.approx(1.0)
