"""Scripts of examples/: every model from texts to a package, on a few sentences."""

from __future__ import annotations

import json
import math
import re
import shlex
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

pytest.importorskip("transformers")
pytest.importorskip("tokenizers")

from transformers import AutoModel

import sparse_engine as se
from sparse_engine.errors import UsageError
from sparse_engine.tasks import open_task

MODELS = {
    "classify": ("lstm", "gru", "rnn", "bilstm", "cnn", "resnet", "bert"),
    "language_model": ("lstm", "gru", "rnn", "gpt"),
    "match": ("cnn", "lstm", "gru", "rnn", "resnet", "bert"),
    "tag": ("bilstm", "bigru", "bert"),
    "translate": ("gru",),
}
SMALL = (
    "--limit 60 --sparsity 0.8 --steps 6 --prune-steps 6 --size 32 --format csr --threads 1".split()
)


@pytest.mark.parametrize(
    ("name", "model"), [(name, model) for name, models in MODELS.items() for model in models]
)
def test_every_model_becomes_a_package(
    name: str, model: str, script: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    module, out = script(name), tmp_path / "out"
    lines = module.main(["--model", model, "--out", str(out), *SMALL])
    assert MODELS[name] == module.MODELS
    dense, pruned, random = lines
    assert dense.zeros == 0
    assert pruned.zeros == pytest.approx(0.8, abs=0.01)
    assert random.zeros == pytest.approx(0.8, abs=0.01)
    assert pruned.ms > 0
    assert 0 < pruned.mb < dense.mb
    assert random.ms is None
    printed = capsys.readouterr().out.splitlines()
    assert max(map(len, printed[:6])) <= 80
    assert printed[2].split()[0] == "model"
    assert [row.split()[0] for row in printed[3:6]] == ["dense,", "pruned,", "random"]
    layers = json.loads((out / "package" / "sparse_engine.json").read_text())["layers"]
    assert layers
    assert all(layer["sparsity"] == pytest.approx(0.8, abs=0.02) for layer in layers)
    if (out / "dense").exists():
        answer(out / "package", name)


def answer(package: Path, name: str) -> None:
    """A package with a tokenizer does its task."""
    task = open_task(se.load(package), package)
    text = "the value of a name"
    if name == "classify":
        [labels] = task.classify([text])
        assert {label.label for label in labels} <= {"language", "library", "torch", "licence"}
    elif name == "match":
        [labels] = task.classify([(text, "the name")])
        assert {label.label for label in labels} == {"same", "other"}
    elif name == "tag":
        assert {span.label for span in task.tag([text])[0]} <= {"Capital", "UPPER"}
    else:
        assert isinstance(task.generate(text, se.tasks.Sampling(4)), str)


def task_of(script: Any, name: str, model: str) -> Any:
    """The task of a script, and its module rows."""
    module = script(name)
    return module.make_task(module.options().parse_args(["--model", model, *SMALL]))


@pytest.mark.parametrize(
    ("name", "model"), [(name, model) for name, models in MODELS.items() for model in models]
)
def test_every_model_is_pruned_with_calibration(name: str, model: str, script: Any) -> None:
    task = task_of(script, name, model)
    rows = sys.modules["common.rows"]
    batches = list(rows.in_order(task.parts.train))
    for batch in batches:
        batch.pop("labels")
    torch.manual_seed(0)
    dense = task.build().eval()
    report = se.prune(dense, 0.75, "4x1", "obs", "least_squares", calibration=batches)
    assert report.layers
    sizes = [math.prod(layer.shape) for layer in report.layers]  # of a network they share zeros
    zeros = sum(n * layer.sparsity for n, layer in zip(sizes, report.layers, strict=True))
    assert zeros / sum(sizes) == pytest.approx(0.75, abs=0.02)
    logits = rows.logits_of(dense, batches[0])
    assert logits.isfinite().all()


def test_a_recurrent_model_takes_tokenizer_and_embedding_of_a_bert(
    script: Any, tmp_path: Path
) -> None:
    bert = tmp_path / "bert"
    script("tag").main(["--model", "bert", "--out", str(bert), *SMALL])
    words = ["--model", "bilstm", "--pretrained", str(bert / "dense"), "--bfloat16", *SMALL]
    tag = script("tag")
    task = tag.make_task(tag.options().parse_args(words))
    model = task.build()
    expected = AutoModel.from_pretrained(bert / "dense").get_input_embeddings().weight
    assert torch.equal(model.get_input_embeddings().weight, expected)
    lines = tag.main([*words, "--out", str(tmp_path / "out")])
    assert lines[1].zeros == pytest.approx(0.8, abs=0.01)
    answer(tmp_path / "out/package", "tag")


def test_the_pretrained_model_of_a_folder_is_trained(script: Any, tmp_path: Path) -> None:
    first, second = tmp_path / "first", tmp_path / "second"
    module = script("match")
    module.main(["--model", "bert", "--out", str(first), *SMALL])
    module.main(
        ["--model", "bert", "--pretrained", str(first / "dense"), "--out", str(second), *SMALL]
    )
    tokenizers = [(folder / "dense" / "tokenizer.json").read_text() for folder in (first, second)]
    assert tokenizers[0] == tokenizers[1]


def test_wrong_options_are_refused_before_the_training(
    script: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    module = script("classify")
    monkeypatch.setattr(sys.modules["common.run"], "train", None)
    with pytest.raises(UsageError, match="exists: give a new folder"):
        module.main(["--out", str(tmp_path), *SMALL])
    with pytest.raises(UsageError, match="create the folder above it"):
        module.main(["--out", str(tmp_path / "none" / "out"), *SMALL])
    with pytest.raises(UsageError, match="at least 6"):
        module.main([*SMALL, "--steps", "5"])
    with pytest.raises(UsageError, match="is not a folder"):
        module.main([*SMALL, "--data", str(tmp_path / "none")])
    wrong = {"sparsity=1.5": "less than 1", "criterion=best": "best", "format=coo": "coo"}
    for option, message in wrong.items():
        with pytest.raises(UsageError, match=message):
            module.main([*SMALL, f"--{option}"])


def test_criteria_that_need_inputs_get_some(script: Any) -> None:
    _, pruned, _ = script("classify").main(["--model", "cnn", "--criterion", "wanda", *SMALL])
    assert pruned.zeros == pytest.approx(0.8, abs=0.01)


def test_commands_of_the_documentation_parse(script: Any) -> None:
    page = (Path(__file__).parents[2] / "docs" / "examples.md").read_text()
    commands = re.findall(r"python examples/(\w+)\.py([^\n#]*)", page)
    assert {name for name, _ in commands} == MODELS.keys()
    for name, arguments in commands:
        script(name).options().parse_args(shlex.split(arguments))
