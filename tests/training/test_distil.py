"""Distil: every term equals a loop over texts without padding, for each kind of model."""

from __future__ import annotations

import copy
import math
from collections import defaultdict
from typing import Any

import pytest
import torch
from family_models import inputs_of, model_of
from torch import Tensor, nn
from torch.nn import functional as F

from sparse_engine.errors import UsageError
from sparse_engine.training import Distil, Pruner

pytestmark = pytest.mark.filterwarnings("ignore:the model is trained in evaluation mode")

# By family: modules with hidden states, and projections with their parts and heads.
STATES = {
    "bert": ["encoder.layer.0", "encoder.layer.1"],
    "bert for labels": ["bert.encoder.layer.0", "bert.encoder.layer.1"],
    "distilbert": ["transformer.layer.0", "transformer.layer.1"],
    "gpt2": ["transformer.h.0", "transformer.h.1"],
    "llama": ["model.layers.0", "model.layers.1"],
    "t5": [f"{side}.block.{i}" for side in ("encoder", "decoder") for i in range(2)],
    "bart": [
        *(f"model.encoder.layers.{i}" for i in range(2)),
        *(f"model.decoder.layers.{i}" for i in range(3)),
    ],
}
T5 = [f"{side}.block.{i}.layer.0.SelfAttention" for side in ("encoder", "decoder") for i in (0, 1)]
T5 += [f"decoder.block.{i}.layer.1.EncDecAttention" for i in range(2)]
BART = [*STATES["bart"][:2], *STATES["bart"][2:]]
PROJECTIONS: dict[str, dict[str, tuple[int, int]]] = {
    "bert": {
        f"{layer}.attention.self.{part}": (1, 6)
        for layer in STATES["bert"]
        for part in ("query", "key", "value")
    },
    "gpt2": {f"{layer}.attn.c_attn": (3, 6) for layer in STATES["gpt2"]},
    "llama": {
        f"{layer}.self_attn.{part}_proj": (1, 4) for layer in STATES["llama"] for part in "qkv"
    },
    "t5": {f"{attention}.{part}": (1, 6) for attention in T5 for part in "qkv"},
    "bart": {
        f"{layer}.{attention}.{part}_proj": (1, 6 if "encoder.layers" in layer else 4)
        for layer in STATES["bart"]
        for attention in ("self_attn", "encoder_attn")
        if attention == "self_attn" or "decoder" in layer
        for part in "qkv"
    },
}


def pair(name: str) -> tuple[Any, Any]:
    """A model and its teacher, in float64."""
    dense = model_of(name).double()
    model = copy.deepcopy(dense)
    torch.manual_seed(1)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter += 0.1 * parameter.std().nan_to_num() * torch.randn_like(parameter)
    return model, dense


def texts(given: dict[str, Tensor]) -> list[dict[str, Tensor]]:
    """The rows of a batch, each without its padding."""
    rows = []
    for i, mask in enumerate(given["attention_mask"].bool()):
        row = {"input_ids": given["input_ids"][i, mask][None]}
        if "decoder_input_ids" in given:
            row["decoder_input_ids"] = given["decoder_input_ids"][i][None]
        rows.append(row)
    return rows


def run(model: nn.Module, row: dict[str, Tensor]) -> tuple[Any, dict[str, Tensor]]:
    """The output for one text, and what each module returned."""
    seen: dict[str, Tensor] = {}
    hooks = []
    for name, module in model.named_modules():

        def keep(module: Any, args: Any, output: Any, name: str = name) -> None:
            first = output[0] if isinstance(output, tuple) else output
            if isinstance(first, Tensor):
                seen[name] = first[0]

        hooks.append(module.register_forward_hook(keep))
    output = model(**row)
    for hook in hooks:
        hook.remove()
    return output, seen


def kl(state: Tensor, dense: Tensor) -> Tensor:
    """sum p (log p - log q) of one row of scores."""
    p, q = dense.softmax(-1), state.softmax(-1)
    return (p * (p.log() - q.log())).sum()


def expected_loss(model: Any, dense: Any, given: dict[str, Tensor], name: str, term: str) -> Tensor:
    """The term, by a loop over texts, tokens and heads."""
    sums: dict[str, list[Any]] = defaultdict(list)
    for row in texts(given):
        (y, own), (target, other) = run(model, row), run(dense, row)
        if term == "outputs" and "logits" in y:
            for state, wanted in zip(
                y.logits.flatten(0, -2), target.logits.flatten(0, -2), strict=True
            ):
                sums["rows"].append(4 * kl(state / 2, wanted / 2))
        elif term == "outputs":
            sums["squares"].append((y[0] - target[0]).square().sum())
            sums["energy"].append(target[0].square().sum())
        elif term == "embedding":
            sums["rows"].append(1 - F.cosine_similarity(y[0][0].mean(0), target[0][0].mean(0), 0))
        elif term == "hidden":
            for layer in STATES[name]:
                sums[f"squares {layer}"].append((own[layer] - other[layer]).square().sum())
                sums[f"energy {layer}"].append(other[layer].square().sum())
        else:
            for layer, (parts, heads) in PROJECTIONS[name].items():
                for part in range(parts):
                    a, b = own[layer].chunk(parts, -1)[part], other[layer].chunk(parts, -1)[part]
                    for x, z in zip(a.chunk(heads, -1), b.chunk(heads, -1), strict=True):
                        scale = math.sqrt(x.shape[-1])
                        for state, wanted in zip(x @ x.T / scale, z @ z.T / scale, strict=True):
                            sums[f"rows {layer} {part}"].append(kl(state, wanted))
    if "squares" in sums:
        return sum(sums["squares"]) / sum(sums["energy"])
    if term == "hidden":
        terms = [
            sum(sums[f"squares {layer}"]) / sum(sums[f"energy {layer}"]) for layer in STATES[name]
        ]
        return torch.stack(terms).mean()
    return torch.stack([torch.stack(rows).mean() for rows in sums.values()]).mean()


def loss_of(model: Any, dense: Any, given: Any, **options: Any) -> Tensor:
    pruner = Pruner(model, [Distil(**options)], teacher=dense)
    loss = pruner.loss(given)
    pruner.finalize()
    return loss


@pytest.mark.parametrize("name", list(STATES))
@pytest.mark.parametrize("term", ["outputs", "hidden"])
def test_outputs_and_hidden_states_without_padding(name: str, term: str) -> None:
    model, dense = pair(name)
    given = inputs_of(name)
    options = {"outputs": 0.0, term: 1.0, "temperature": 2.0}
    loss = loss_of(model, dense, given, **options)
    expected = expected_loss(model, dense, given, name, term)
    torch.testing.assert_close(loss, expected, rtol=1e-9, atol=0)
    assert loss > 1e-4


@pytest.mark.parametrize("name", list(PROJECTIONS))
def test_relations_of_queries_keys_and_values(name: str) -> None:
    model, dense = pair(name)
    given = inputs_of(name)
    loss = loss_of(model, dense, given, outputs=0, attention=1)
    expected = expected_loss(model, dense, given, name, "attention")
    torch.testing.assert_close(loss, expected, rtol=1e-9, atol=0)
    assert loss > 1e-5


@pytest.mark.parametrize("name", ["bert", "distilbert"])
def test_embeddings_of_texts(name: str) -> None:
    model, dense = pair(name)
    given = inputs_of(name)
    loss = loss_of(model, dense, given, outputs=0, embedding=1)
    expected = expected_loss(model, dense, given, name, "embedding")
    torch.testing.assert_close(loss, expected, rtol=1e-9, atol=0)


def test_terms_add_up_with_their_weights() -> None:
    given = inputs_of("bert")
    parts = {"outputs": 0.5, "hidden": 2.0, "attention": 3.0, "embedding": 0.25}
    whole = loss_of(*pair("bert"), given, weight=0.1, **parts)
    zero = {"outputs": 0.0}
    alone = [
        weight * loss_of(*pair("bert"), given, **(zero | {term: 1.0}))
        for term, weight in parts.items()
    ]
    torch.testing.assert_close(whole, 0.1 * torch.stack(alone).sum())


@pytest.mark.parametrize("names", [("q_proj", "k_proj", "v_proj")])
@pytest.mark.parametrize("batch_first", [True, False])
@pytest.mark.parametrize("sizes", [{}, {"kdim": 12, "vdim": 10}])
def test_relations_of_torch_attention(
    names: tuple[str, ...], batch_first: bool, sizes: dict[str, int]
) -> None:
    torch.manual_seed(0)
    dense = nn.MultiheadAttention(8, 2, batch_first=batch_first, **sizes).double()
    model = nn.MultiheadAttention(8, 2, batch_first=batch_first, **sizes).double()
    inputs = [torch.randn(3, 5, 8 if not sizes else n).double() for n in (8, 12, 10)]
    loss = loss_of(model, dense, tuple(inputs), outputs=0, attention=1)
    rows: dict[str, list[Tensor]] = defaultdict(list)
    for index, letter in enumerate("qkv"):
        for i in range(3 if batch_first else 5):
            x = inputs[index][i] if batch_first else inputs[index][:, i]
            relations = []
            for one in (model, dense):
                weight = (
                    getattr(one, f"{letter}_proj_weight")
                    if sizes
                    else one.in_proj_weight[8 * index : 8 * index + 8]
                )
                y = x @ weight.T + one.in_proj_bias[8 * index : 8 * index + 8]
                relations.append([h @ h.T / 2 for h in y.chunk(2, -1)])
            for a, b in zip(*relations, strict=True):
                rows[letter] += [kl(s, d) for s, d in zip(a, b, strict=True)]
    expected = torch.stack([torch.stack(x).mean() for x in rows.values()]).mean()
    torch.testing.assert_close(loss, expected, rtol=1e-9, atol=0)


def test_a_torch_encoder_is_compared_with_one_in_evaluation_mode() -> None:
    torch.manual_seed(0)

    def encoder() -> nn.Module:
        layer = nn.TransformerEncoderLayer(16, 2, 32, dropout=0.0, batch_first=True)
        return nn.TransformerEncoder(layer, 2)

    loss = loss_of(encoder(), encoder(), (torch.randn(2, 6, 16),), hidden=1, attention=1)
    assert loss.isfinite()
    loss.backward()


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
