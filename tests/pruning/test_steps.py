"""Several steps in one run: structures, then elements or blocks of what is left."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from calibration_models import bert
from driver_models import batches, bert_batches, mlp, same, state

import sparse_engine as se
from sparse_engine.errors import UsageError
from sparse_engine.pruning import PruneReport, read_recipe

pytest.importorskip("transformers")
torch.set_num_threads(1)

HEADS = {"granularity": ["head", "unit(keep=4)"], "sparsity": 0.5, "criterion": "obs"}
BLOCKS = {"granularity": "4x1", "sparsity": 0.5, "criterion": "sparsegpt"}


def test_steps_are_the_same_as_one_call_each() -> None:
    model, reference = bert(), bert()
    arguments: dict[str, Any] = {"recovery": "least_squares", "seed": 3}
    report = se.prune(model, steps=[HEADS, BLOCKS], calibration=bert_batches(), **arguments)
    reports = [
        se.prune(reference, calibration=bert_batches(), **step, **arguments)
        for step in (HEADS, BLOCKS)
    ]
    assert same(state(model), state(reference))
    assert model.encoder.layer[0].attention.self.query.weight.shape[0] == 8
    (earlier,) = report.steps
    assert earlier.sites == reports[0].sites
    assert [row.name for row in report.layers] == [row.name for row in reports[1].layers]
    assert report.recipe["steps"] == [
        {name: value for name, value in one.recipe.items() if name != "version"} for one in reports
    ]
    assert report.calibration == reports[1].calibration


def test_a_recipe_of_steps_repeats_them_bit_by_bit(tmp_path: Path) -> None:
    model, again = bert(), bert()
    steps = [HEADS, {**BLOCKS, "ignore": ["*.key"], "overrides": [{"match": "*.query",
             "granularity": "2:4"}]}]  # fmt: skip
    report = se.prune(model, steps=steps, recovery="lsq", calibration=bert_batches())
    (tmp_path / "pruning.json").write_text(json.dumps(report.to_dict()))
    recipe = read_recipe(tmp_path)
    second = se.prune(again, **recipe.arguments, calibration=bert_batches())
    assert same(state(model), state(again))
    assert second.recipe == report.recipe
    read = PruneReport.from_dict(json.loads((tmp_path / "pruning.json").read_text()))
    assert read == report
    assert read.steps[0].sites
    assert isinstance(report.to_dict()["steps"][0]["sites"][0]["kept"], str)  # ranges


@pytest.mark.parametrize(
    "arguments",
    [
        {"layers": ["encoder.layer.0"]},
        {"filter_fn": lambda module, name: "layer.1" in name},
        {"overrides": [{"match": "encoder.layer.1", "sparsity": 0.25}], "allocator": "lamp"},
        {"criterion": "magnitude(sigma=1.0)", "sparsity": None},
    ],
)
def test_a_structure_alone_has_a_recipe(arguments: dict[str, Any], tmp_path: Path) -> None:
    model, again = bert(), bert()
    given = {"sparsity": 0.5, "granularity": "unit(round_to=8)", "criterion": "random", "seed": 5}
    report = se.prune(model, **given | arguments)
    (tmp_path / "pruning.json").write_text(json.dumps(report.to_dict()))
    se.prune(again, **read_recipe(tmp_path).arguments)
    assert same(state(model), state(again))
    assert report.recipe["granularity"] == "unit(round_to=8)"


def test_calibration_is_read_once() -> None:
    read = []

    def once() -> Iterator[Any]:
        for batch in bert_batches():
            read.append(batch)
            yield batch

    se.prune(bert(), steps=[HEADS, BLOCKS, BLOCKS | {"sparsity": 0.7}], calibration=once())
    assert len(read) == len(bert_batches())


def test_progress_tells_the_step() -> None:
    texts: list[str] = []
    se.prune(
        bert(),
        steps=[{"granularity": "head", "sparsity": 0.5}, {"sparsity": 0.5}],
        progress=lambda done, total, text: texts.append(text),
    )
    assert texts[0].startswith("step 1 of 2: ")
    assert texts[-1].startswith("step 2 of 2: encoder.layer.")


def test_every_step_reads_an_iterator() -> None:
    model = mlp()
    se.prune(model, layers=iter(["0"]), steps=[{"sparsity": 0.5}, {"sparsity": 0.75}])
    assert int((model[0].weight == 0).sum()) == 180
    assert model[2].weight.all()


def test_zeros_in_two_steps() -> None:
    model, reference = mlp(), mlp()
    se.prune(reference, 0.5, "4x1")
    steps = [{"granularity": "4x1", "sparsity": 0.5}, {"sparsity": 0.75, "layers": ["0"]}]
    report = se.prune(model, steps=steps)
    assert int((model[0].weight == 0).sum()) == 180
    assert torch.equal(model[2].weight, reference[2].weight)
    assert [len(one.layers) for one in (*report.steps, report)] == [2, 1]


@pytest.mark.parametrize(
    ("steps", "message"),
    [
        (
            [{"granularity": ["head", "4x1"], "sparsity": 0.5}],
            "give steps, the structures first",
        ),
        ([], r"steps is \[\]; give a list"),
        ("head", "steps is 'head'; give a list"),
        ({"granularity": "head"}, "give a list of mappings"),
        (["head"], "step 1: 'head' is no mapping"),
        ([{"granlarity": "head"}], "step 1: 'granlarity' is no argument of a step; the nearest"),
        ([{"calibration": []}], "step 1: 'calibration' is no argument"),
        ([{"steps": []}], "step 1: 'steps' is no argument"),
        ([HEADS, {"sparsity": 2.0}], "step 2: sparsity 2.0 is not a fraction"),
        ([HEADS, BLOCKS | {"criterion": "none"}], "step 2: criterion 'none' is not known"),
        ([HEADS, BLOCKS | {"layers": ["nothing"]}], "step 2: layer 'nothing' matches no layer"),
        ([BLOCKS, HEADS], "step 2 removes heads from layers that step 1 has pruned"),
        ([HEADS, HEADS], "steps 1 and 2 both remove heads: give one share"),
        (
            [{"granularity": ["head", "4x1"], "target": se.Target(params=9)}, HEADS],
            "step 2 removes heads from layers that step 1 has pruned",
        ),
        ([HEADS | {"filter_fn": lambda *_: True, "layers": ["a"]}], "give one of them"),
        ([HEADS | {"overrides": [{"match": "*", "granularity": "4x1"}]}], "no granularity"),
        ([HEADS | {"target": se.Target(speedup=2)}], "a target needs zeros beside structures"),
    ],
)
def test_what_does_not_fit_is_refused_before_anything_changes(steps: Any, message: str) -> None:
    model = bert()
    before = state(model)
    told: list[object] = []
    with pytest.raises(UsageError, match=message):
        se.prune(
            model,
            steps=steps,
            calibration=bert_batches(),
            progress=lambda *call: told.append(call),
        )
    assert not told
    assert same(before, state(model))


def test_a_second_step_without_calibration() -> None:
    with pytest.raises(UsageError, match="step 2: wanda needs calibration"):
        se.prune(mlp(), steps=[{"sparsity": 0.5}, {"sparsity": 0.6, "criterion": "wanda"}])


def test_defaults_hold_for_all_steps() -> None:
    model = mlp()
    report = se.prune(
        model,
        0.5,
        criterion="wanda",
        calibration=batches(),
        steps=[{"layers": ["0"]}, {"layers": ["2"], "sparsity": 0.75, "criterion": None}],
    )
    assert [one.criterion for one in (*report.steps, report)] == ["wanda", "wanda"]
    assert [one.layers[0].sparsity for one in (*report.steps, report)] == [0.5, 0.75]
