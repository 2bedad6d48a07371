"""Distil: padding, labels, other teachers, and models without what is compared."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from distil_cases import kl, loss_of, pair, run, texts
from family_models import inputs_of, model_of
from torch import Tensor, nn
from torch.nn import functional as F

from sparse_engine.errors import UsageError
from sparse_engine.training import Distil, Pruner

pytestmark = pytest.mark.filterwarnings("ignore:the model is trained in evaluation mode")


class Tagger(nn.Module):
    """Scores of each token, from a BiLSTM that reads packed sequences."""

    def __init__(self, packed: bool) -> None:
        super().__init__()
        self.packed = packed
        self.embedding = nn.Embedding(20, 8, padding_idx=0)
        self.lstm = nn.LSTM(8, 6, batch_first=True, bidirectional=packed)
        self.out = nn.Linear(12 if packed else 6, 4)

    def forward(self, ids: Tensor) -> Tensor:
        x: Any = self.embedding(ids)
        if self.packed:
            lengths = (ids != 0).sum(1)
            x = nn.utils.rnn.pack_padded_sequence(x, lengths, True, enforce_sorted=False)
            x = nn.utils.rnn.pad_packed_sequence(self.lstm(x)[0], True)[0]
        else:
            x = self.lstm(x)[0]
        scores: Tensor = self.out(x)
        return scores


@pytest.mark.parametrize("packed", [True, False])
@pytest.mark.parametrize("logits", [True, None])
def test_a_recurrent_tagger_tells_padding_by_its_id(packed: bool, logits: bool | None) -> None:
    torch.manual_seed(0)
    model, dense = Tagger(packed).double(), Tagger(packed).double()
    ids = torch.randint(1, 20, (3, 7))
    ids[1, 4:] = ids[2, 2:] = 0
    loss = loss_of(model, dense, ids, logits=logits, hidden=1, padding=0)
    outputs, states = [], []
    for row in ids:
        (y, own), (target, other) = (
            run(one, {"ids": row[row != 0][None]}) for one in (model, dense)
        )
        outputs.append((y[0], target[0]))
        if packed:  # the first output is a packed sequence
            own, other = (
                {"lstm": one.lstm(one.embedding(row[row != 0])[None])[0][0]}
                for one in (model, dense)
            )
        states.append((own["lstm"], other["lstm"]))
    state, target = (torch.cat(x) for x in zip(*outputs, strict=True))
    a, b = (torch.cat(x) for x in zip(*states, strict=True))
    expected = (a - b).square().sum() / b.square().sum()
    if logits:
        expected += torch.stack([kl(x, y) for x, y in zip(state, target, strict=True)]).mean()
    else:
        expected += (state - target).square().sum() / target.square().sum()
    torch.testing.assert_close(loss, expected, rtol=1e-9, atol=0)


def test_modules_whose_states_are_compared_are_pruned() -> None:
    torch.manual_seed(0)
    dense = Tagger(packed=True)
    model = copy.deepcopy(dense)
    recipe = [
        {"prune": {"sparsity": 0.5, "layers": ["lstm.*"], "end": 4, "every": 2}},
        {"distil": {"hidden": 1.0, "padding": 0}},
    ]
    pruner = Pruner(model, recipe, teacher=dense)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    for _ in range(6):
        pruner.loss(torch.randint(1, 20, (3, 7))).backward()
        pruner.step(optimizer)
    assert (model.lstm.weight_hh_l0 == 0).float().mean() == 0.5


def test_labelled_and_unlabelled_batches_in_one_loop() -> None:
    model, dense = pair("bert for labels")
    given = inputs_of("bert for labels")
    labels = torch.tensor([0, 1, 1])
    distance = loss_of(model, dense, given)
    both = loss_of(model, dense, given | {"labels": labels}, task=0.5, weight=2)
    own = model(**given, labels=labels).loss
    torch.testing.assert_close(both, 0.5 * own + 2 * distance, check_dtype=False)


def test_labels_of_a_decoder_tell_its_padding() -> None:
    model, dense = pair("t5")
    given = inputs_of("t5")
    del given["decoder_input_ids"]
    labels = torch.randint(2, 60, (3, 7))
    labels[1, 4:] = labels[2, 2:] = -100
    loss = loss_of(model, dense, given | {"labels": labels}, task=0)
    rows = []
    for i, mask in enumerate(given["attention_mask"].bool()):
        row = {
            "input_ids": given["input_ids"][i, mask][None],
            "labels": labels[i, labels[i] >= 0][None],
        }
        y, target = (one(**row).logits[0] for one in (model, dense))
        rows += [kl(a, b) for a, b in zip(y, target, strict=True)]
    torch.testing.assert_close(loss, torch.stack(rows).mean(), rtol=1e-9, atol=0)


def test_distances_are_not_rounded_to_16_bits_by_autocast() -> None:
    dense = model_of("bert")
    model = copy.deepcopy(dense)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter += 1e-3 * torch.randn_like(parameter)
    options = {"outputs": 1.0, "hidden": 1.0, "attention": 1.0, "embedding": 1.0}
    pruner = Pruner(model, [Distil(**options)], teacher=dense)
    with torch.autocast("cpu", torch.bfloat16):
        rounded = pruner.loss(inputs_of("bert"))
    assert rounded.dtype == torch.float32
    with torch.autocast("cpu", torch.bfloat16):
        same = loss_of(copy.deepcopy(dense), dense, inputs_of("bert"), **options)
    assert same.detach().abs() < 1e-6  # nothing is left of equal models
    assert rounded > 1e-5


def test_a_loss_function_returns_none_for_a_batch_without_labels() -> None:
    torch.manual_seed(0)
    model, dense = nn.Linear(6, 3), nn.Linear(6, 3)
    called = []

    def loss(model: nn.Module, batch: Any) -> Tensor | None:
        x, *labels = batch
        called.append(len(batch))
        return F.cross_entropy(model(x), labels[0]) if labels else None

    pruner = Pruner(model, [Distil(logits=True, end=1)], teacher=dense, loss=loss)
    x, y = torch.randn(4, 6), torch.tensor([0, 1, 2, 0])
    distance = F.kl_div(model(x).log_softmax(-1), dense(x).softmax(-1), reduction="batchmean")
    torch.testing.assert_close(pruner.loss((x,)), distance)
    torch.testing.assert_close(pruner.loss((x, y)), distance + F.cross_entropy(model(x), y))
    pruner.loss((x, y)).backward()
    pruner.step(torch.optim.SGD(model.parameters(), lr=0.1))
    with pytest.raises(UsageError, match="nothing gives a loss"):  # distil has ended
        pruner.loss((x,))


def test_starts_and_ends_of_answers_leave_padding_out() -> None:
    import transformers

    torch.manual_seed(0)
    sizes = {"hidden_size": 16, "num_attention_heads": 2, "intermediate_size": 16}
    config = transformers.BertConfig(vocab_size=60, num_hidden_layers=1, **sizes)
    model, dense = (transformers.BertForQuestionAnswering(config).double().eval() for _ in "ab")
    given = inputs_of("bert")
    terms = []
    for row in texts(given):
        y, target = model(**row), dense(**row)
        terms += [
            kl(y.start_logits[0], target.start_logits[0]),
            kl(y.end_logits[0], target.end_logits[0]),
        ]
    expected = torch.stack(terms).mean()
    torch.testing.assert_close(loss_of(model, dense, given), expected, rtol=1e-9, atol=0)


@pytest.mark.parametrize("kind", ["multi_label_classification", "regression"])
def test_scores_that_are_no_exclusive_classes(kind: str) -> None:
    model, dense = pair("bert for labels")
    model.config.problem_type = kind
    given = inputs_of("bert for labels")
    y, target = model(**given).logits, dense(**given).logits
    expected = (y - target).square().sum() / target.square().sum()
    torch.testing.assert_close(loss_of(model, dense, given), expected, rtol=1e-9, atol=0)


def test_a_deeper_and_wider_teacher() -> None:
    import transformers

    torch.manual_seed(0)
    sizes = {"vocab_size": 60, "hidden_size": 16, "num_attention_heads": 2}
    small = (
        transformers.BertModel(
            transformers.BertConfig(**sizes, num_hidden_layers=2, intermediate_size=20)
        )
        .double()
        .eval()
    )
    deep = (
        transformers.BertModel(
            transformers.BertConfig(**sizes, num_hidden_layers=4, intermediate_size=20)
        )
        .double()
        .eval()
    )
    wide = (
        transformers.BertModel(
            transformers.BertConfig(
                **sizes | {"hidden_size": 48, "num_attention_heads": 6},
                num_hidden_layers=2,
                intermediate_size=20,
            )
        )
        .double()
        .eval()
    )
    given = inputs_of("bert", padding="none")
    loss = loss_of(small, deep, given, outputs=0, hidden=1)
    states, others = (
        one(**given, output_hidden_states=True).hidden_states[1:] for one in (small, deep)
    )
    expected = torch.stack(
        [
            (a - b).square().sum() / b.square().sum()
            for a, b in zip(states, (others[1], others[3]), strict=True)
        ]
    ).mean()
    torch.testing.assert_close(loss, expected, rtol=1e-9, atol=0)
    assert loss_of(small, wide, given, outputs=0, attention=1) > 0
    with pytest.raises(UsageError, match=r"hidden states .*\[3, 9, 16\].*\[3, 9, 48\]"):
        loss_of(small, wide, given, outputs=0, hidden=1)
    with pytest.raises(UsageError, match=r"outputs .*\[3, 9, 16\].*\[3, 9, 48\]"):
        loss_of(small, wide, given)
    with pytest.raises(UsageError, match="at least as deep"):
        loss_of(deep, small, given, outputs=0, hidden=1)


def test_inner_states_of_a_model_that_is_cut_while_it_is_trained() -> None:
    import transformers

    torch.manual_seed(0)
    config = transformers.BertConfig(
        vocab_size=60,
        hidden_size=16,
        num_hidden_layers=4,
        num_attention_heads=2,
        intermediate_size=20,
        use_cache=False,
    )
    dense = transformers.BertModel(config).eval()
    model = copy.deepcopy(dense)
    given = inputs_of("bert", padding="none")
    cut = {"cut": {"granularity": "layer", "sparsity": 0.5, "criterion": "random", "start": 1}}
    pruner = Pruner(model, [cut, Distil(outputs=0, hidden=1)], teacher=dense)
    pruner.loss(given).backward()
    pruner.step(torch.optim.SGD(model.parameters(), lr=0.1))
    loss = pruner.loss(given)
    states, others = (
        one(**given, output_hidden_states=True).hidden_states[1:] for one in (model, dense)
    )
    assert len(states) == 2
    pairs = zip(states, (others[1], others[3]), strict=True)
    expected = [(a - b).square().sum() / b.square().sum() for a, b in pairs]
    torch.testing.assert_close(loss, torch.stack(expected).mean())

    def encoder() -> nn.Module:
        layer = nn.TransformerEncoderLayer(16, 4, 32, dropout=0.0, batch_first=True)
        return nn.TransformerEncoder(layer, 2)

    heads = {"cut": {"granularity": "head", "sparsity": 0.5, "start": 1}}
    model = encoder()
    recipe = [heads, Distil(hidden=1, attention=1)]
    pruner = Pruner(model, recipe, teacher=copy.deepcopy(model))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    for _ in range(3):
        pruner.loss((torch.randn(2, 6, 16),)).backward()
        pruner.step(optimizer)
    assert model.layers[0].self_attn.num_heads == 2
    assert pruner.loss((torch.randn(2, 6, 16),)) > 0


def test_gradient_checkpointing_gives_the_same_gradients() -> None:
    given = inputs_of("bert for labels")
    found = []
    for reentrant in (None, False):
        model, dense = pair("bert for labels")
        for module in model.modules():
            if isinstance(module, nn.Dropout):
                module.p = 0.0
        model.config.attention_probs_dropout_prob = 0.0
        model.train()
        if reentrant is not None:
            model.gradient_checkpointing_enable({"use_reentrant": reentrant})
        pruner = Pruner(model, [Distil(hidden=1, attention=1)], teacher=dense)
        pruner.loss(given).backward()
        found.append(model.bert.encoder.layer[0].attention.self.query.weight.grad)
    torch.testing.assert_close(*found)


def test_states_without_gradients_are_refused() -> None:
    model, dense = pair("bert")
    model.train().gradient_checkpointing_enable({"use_reentrant": True})
    pruner = Pruner(model, [Distil(outputs=0, attention=1)], teacher=dense)
    with pytest.raises(UsageError, match="use_reentrant=False"):
        pruner.loss(inputs_of("bert"))


def test_a_teacher_that_reads_other_tokens() -> None:
    class Shorter(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.attention = nn.MultiheadAttention(8, 2, batch_first=True)
            self.first = 0

        def forward(self, x: Tensor) -> Tensor:
            x = x[:, self.first :]
            found: Tensor = self.attention(x, x, x)[0]
            return found

    model, dense = Shorter(), Shorter()
    dense.first = 1
    with pytest.raises(UsageError, match=r"texts and tokens .*\[2, 5\].*\[2, 4\]"):
        loss_of(model, dense, torch.randn(2, 5, 8), outputs=0, attention=1)
    with pytest.raises(UsageError, match=r"outputs .*\[2, 5, 8\].*\[2, 4, 8\]"):
        loss_of(model, dense, torch.randn(2, 5, 8))


def test_models_without_what_is_compared_are_refused() -> None:
    dense = nn.Linear(4, 4)
    with pytest.raises(UsageError, match="no stack"):
        Pruner(nn.Linear(4, 4), [Distil(hidden=1)], teacher=dense)
    with pytest.raises(UsageError, match="no attention"):
        Pruner(nn.Linear(4, 4), [Distil(attention=1)], teacher=dense)
    with pytest.raises(ValueError, match="nothing is compared"):
        Distil(outputs=0)
    with pytest.raises(UsageError, match="pass teacher="):
        Pruner(nn.Linear(4, 4), [Distil()])
    model = nn.Linear(4, 4)
    for teacher in (model, nn.Sequential(model)):
        with pytest.raises(UsageError, match="teacher shares weight with the model"):
            Pruner(model, [Distil()], teacher=teacher)
    with pytest.raises(UsageError, match="the teacher fails on a batch"):
        Pruner(nn.Linear(4, 4), [Distil()], teacher=nn.Linear(5, 4)).loss(torch.randn(2, 4))


def test_a_teacher_that_returns_nan_stops_with_a_reason() -> None:
    dense = nn.Linear(4, 4)
    nn.init.constant_(dense.weight, torch.nan)
    with pytest.raises(UsageError, match="check the teacher"):
        Pruner(nn.Linear(4, 4), [Distil()], teacher=dense).loss(torch.randn(2, 4))
