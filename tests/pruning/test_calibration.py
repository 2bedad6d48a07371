"""Calibration inputs: what is accepted, and what is refused in one line."""

from __future__ import annotations

import re
from typing import Any

import numpy as np
import pytest
import torch
from calibration_models import bert, check, ids, message_of, mlp, same, statistics, t5
from torch import Tensor, nn

from sparse_engine.errors import UsageError
from sparse_engine.pruning import prune
from sparse_engine.pruning.calibration import read_calibration

transformers = pytest.importorskip("transformers")

TOKENS = [[4, 5, 6, 7], [8, 9, 10, 11]]
MASK = [[1, 1, 1, 1], [1, 1, 0, 0]]


@pytest.mark.parametrize(
    "item",
    [
        {"input_ids": TOKENS, "attention_mask": MASK},
        {"input_ids": np.array(TOKENS), "attention_mask": np.array(MASK)},
        {"input_ids": torch.tensor(TOKENS), "attention_mask": MASK},
        (np.array(TOKENS), np.array(MASK)),
        [torch.tensor(TOKENS), np.array(MASK)],
        transformers.BatchEncoding({"input_ids": TOKENS, "attention_mask": MASK}),
    ],
    ids=["lists", "arrays", "mixed", "tuple", "list", "BatchEncoding"],
)
def test_arrays_and_lists_are_tensors(item: Any) -> None:
    named = isinstance(item, dict | transformers.BatchEncoding)
    values = torch.tensor(TOKENS), torch.tensor(MASK)
    plain = dict(zip(("input_ids", "attention_mask"), values, strict=True)) if named else values
    model = bert()
    (found,) = read_calibration(model, [item])
    assert same([found], read_calibration(model, [plain]))
    assert torch.equal(found.masks[0], values[1] == 1)


def test_ids_of_one_text_are_a_batch_of_one() -> None:
    model = bert()
    row, mask = TOKENS[0], [1, 1, 1, 0]
    for item in (
        {"input_ids": row, "attention_mask": mask},
        {"input_ids": torch.tensor(row), "attention_mask": torch.tensor(mask)},
        {"input_ids": np.array(row), "attention_mask": mask},
    ):
        (batch,) = read_calibration(model, [item])
        assert {name: value.tolist() for name, value in batch.kwargs.items()} == {
            "input_ids": [row],
            "attention_mask": [mask],
        }
        assert batch.masks[0].tolist() == [[True, True, True, False]]
    for item in (row, torch.tensor(row), np.array(row)):
        (batch,) = read_calibration(model, [item])
        assert batch.args[0].tolist() == [row]
    whole, rows = bert(), bert()
    prune(whole, 0.5, criterion="wanda", calibration=[torch.tensor(TOKENS)])
    prune(rows, 0.5, criterion="wanda", calibration=TOKENS)
    for a, b in zip(whole.parameters(), rows.parameters(), strict=True):
        torch.testing.assert_close(a, b)


def test_own_models_get_arrays_as_they_are() -> None:
    x = np.random.default_rng(0).normal(size=(5, 6))
    for model in (mlp(), mlp().bfloat16(), mlp().double()):
        dtype = model[0].weight.dtype
        expected = read_calibration(model, [torch.tensor(x, dtype=dtype)])
        for item in (x, x.tolist(), [x], (x.tolist(),)):
            assert same(read_calibration(model, [item]), expected)
    (one,) = read_calibration(mlp(), [x[0]])  # a token, as nn.Linear takes it
    assert one.args[0].shape == (6,)
    prune(mlp(), 0.5, criterion="wanda", calibration=[x, x[0]])


@pytest.mark.parametrize(
    ("item", "message"),
    [
        ({"input_ids": ["a text"]}, "item 0: input_ids is text: give what the model's tokenizer"),
        ({"sentence": "a text", "label": 1}, "item 0: sentence is text"),
        (("a text",), "item 0, 0 is text"),
        ({"input_ids": [[1, 2], [3]]}, "item 0: input_ids is no array of numbers"),
        ({"input_ids": np.array(["a", "b"])}, "item 0: input_ids is no array of numbers"),
        ({"input_ids": TOKENS, "atention_mask": MASK}, "has 'atention_mask', which BertModel"),
        ({}, "batch 0: BertModel fails on it: ValueError: You must specify exactly one of"),
        ({"input_ids": [[4, 99]]}, "token id 99, the model's vocabulary is 0 to 49"),
        ({"input_ids": [[4, -1]]}, "token id -1, the model's vocabulary is 0 to 49"),
        ({"input_ids": [[4] * 41]}, "input_ids has 41 tokens, the model has positions for 40"),
        ({"input_ids": torch.ones(1, 4)}, "batch 0: BertModel fails on it: RuntimeError: Expected"),
        ({"input_ids": torch.ones(1, 1, 4).long()}, "batch 0: BertModel fails on it: ValueError"),
        ({"input_ids": torch.tensor(4)}, "item 0: input_ids is a single number; give ids"),
        (7, "item 0 is a int"),
        (None, "item 0 is a NoneType"),
    ],
)
def test_wrong_inputs_of_a_text_model_are_refused_in_one_line(item: Any, message: str) -> None:
    found = message_of(bert(), [item])
    assert re.search(message, found), found


def test_wrong_names_shapes_and_dtypes_of_own_models_are_one_line() -> None:
    x = torch.ones(5, 6)
    assert message_of(mlp(), [{"x": x}]) == (
        "calibration item 0 has 'x', which Sequential.forward does not take; it takes input"
    )
    assert "Sequential.forward: too many positional arguments" in message_of(mlp(), [(x, x)])
    assert "Sequential.forward: missing a required argument: 'input'" in message_of(mlp(), [x, {}])
    assert message_of(mlp(), [x, x[:, :5]]) == "calibration batch 1: 0 gets 5 features and takes 6"
    shapes = message_of(mlp(), [x[:, :5], x])
    assert shapes.startswith("calibration batch 0: Sequential fails on it: RuntimeError: mat1 and")
    assert "calibration batch 0: Sequential fails on it: RuntimeError" in message_of(
        mlp(), [x.double()]
    )
    assert "single ndarray" in message_of(mlp(), np.ones((2, 6)))
    assert "calibration is a int; give an iterable" in message_of(mlp(), 7)


@pytest.mark.parametrize("position", range(3))
@pytest.mark.parametrize("recovery", [None, "least_squares"])
def test_a_batch_that_fails_is_named_at_any_position(position: int, recovery: str | None) -> None:
    class Touchy(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layers = nn.ModuleList([nn.Linear(6, 6), nn.Linear(6, 6)])

        def forward(self, x: Tensor) -> Tensor:
            for layer in self.layers:
                x = layer(x)
            if float(x.abs().max()) > 1e6:
                raise RuntimeError("too large\nand more of it")
            return x

    model = Touchy().requires_grad_(False)
    inputs = [torch.ones(2 + i, 6) for i in range(3)]
    inputs[position] *= 1e9
    with pytest.raises(UsageError) as caught:
        # A layer of the stack alone does not fail; pruning the last layer runs the whole model.
        prune(
            nn.Sequential(model, nn.Linear(6, 2)),
            0.5,
            criterion="wanda",
            recovery=recovery,
            calibration=inputs,
            filter_fn=lambda module, name: name == "1",
        )
    assert str(caught.value) == (
        f"calibration batch {position}: Sequential fails on it: RuntimeError: too large"
    )
    assert isinstance(caught.value.__cause__, RuntimeError)


def test_roberta_has_two_positions_fewer_than_its_table() -> None:
    model = bert("RobertaModel", pad_token_id=1)
    prune(model, 0.5, criterion="wanda", calibration=[ids(1, 38)])
    assert "39 tokens, the model has positions for 38" in message_of(model, [ids(1, 39)])


@pytest.mark.parametrize("head", ["BertForMultipleChoice"])
def test_padding_of_choices_is_left_out(head: str) -> None:
    given = ids(2, 3, 5)
    mask = torch.ones_like(given)
    mask[1, 2, 3:] = 0
    other = given.masked_fill(mask == 0, 7)
    pruned = []
    for tokens in (given, other):
        model = bert(head)
        prune(
            model,
            0.5,
            criterion="wanda",
            recovery="least_squares",
            calibration=[{"input_ids": tokens, "attention_mask": mask}],
        )
        pruned.append(model)
    for a, b in zip(*(model.parameters() for model in pruned), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-3, atol=1e-4)


def test_answers_that_are_padded_otherwise_than_their_texts() -> None:
    """Both are five tokens wide, so only the masks distinguish encoder and decoder."""
    texts, answers = ids(2, 5), ids(2, 5, seed=1)
    mask = torch.tensor([[1, 1, 1, 1, 1], [1, 1, 1, 0, 0]])
    answers_mask = torch.tensor([[1, 1, 0, 0, 0], [1, 1, 1, 1, 0]])
    together = {
        "input_ids": texts,
        "attention_mask": mask,
        "decoder_input_ids": answers,
        "decoder_attention_mask": answers_mask,
    }
    apart = [
        {
            "input_ids": texts[i : i + 1, : mask[i].sum()],
            "decoder_input_ids": answers[i : i + 1, : answers_mask[i].sum()],
        }
        for i in range(2)
    ]
    model = t5()
    found = statistics(model, read_calibration(model, [together]))
    expected = statistics(model, read_calibration(model, apart))
    assert any(name.startswith("decoder") for name in found)
    check(found, expected)
    shifted = answers.roll(1, 1)  # the decoder input of T5 for these labels
    shifted[:, 0] = 0
    labels = {"labels": answers.masked_fill(answers_mask == 0, -100)}
    as_labels = {"input_ids": texts, "attention_mask": mask} | labels
    apart_shifted = [
        item | {"decoder_input_ids": shifted[i : i + 1, : answers_mask[i].sum()]}
        for i, item in enumerate(apart)
    ]
    check(
        statistics(model, read_calibration(model, [as_labels])),
        statistics(model, read_calibration(model, apart_shifted)),
    )
    without = {key: value for key, value in together.items() if key != "decoder_attention_mask"}
    found = statistics(model, read_calibration(model, [without]))
    apart[0]["decoder_input_ids"], apart[1]["decoder_input_ids"] = answers[:1], answers[1:]
    expected = statistics(model, read_calibration(model, apart))
    check(found, expected)


def test_a_decoder_without_its_input_is_one_line() -> None:
    assert message_of(t5(), [{"input_ids": ids(1, 4)}]).startswith(
        "calibration batch 0: T5ForConditionalGeneration fails on it, which has no "
        "decoder_input_ids: ValueError: "
    )
