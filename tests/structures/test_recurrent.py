"""Units of recurrent networks and cells: cut models against rows and columns taken by hand."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import sparse_engine as se
from sparse_engine.errors import UsageError
from sparse_engine.models.rnn import (
    RnnConfig,
    RnnForCausalLM,
    RnnForSequenceClassification,
    RnnForTokenClassification,
)

FEATURES, UNITS, LABELS = 6, 10, 4
READERS = "unit(keep=1, readers='rnn: head')"
CASES: list[tuple[type[Any], dict[str, Any]]] = [
    (cls, {"num_layers": layers, "bidirectional": both})
    for cls in (nn.LSTM, nn.GRU, nn.RNN)
    for layers in (1, 2, 3)
    for both in (False, True)
]
CASES += [
    (nn.LSTM, {"num_layers": layers, "bidirectional": both, "proj_size": 7})
    for layers, both in ((1, False), (2, True))
]
CASES += [(nn.GRU, {"bias": False, "num_layers": 2}), (nn.RNN, {"nonlinearity": "relu"})]


class Network(nn.Module):
    """A recurrent network, and a layer that reads its outputs."""

    def __init__(self, cls: Any, options: dict[str, Any], units: int, features: int) -> None:
        super().__init__()
        self.rnn = cls(features, units, **options)
        width = self.rnn.proj_size or units
        self.head = nn.Linear(width * (2 if self.rnn.bidirectional else 1), LABELS)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.rnn(x)[0].relu())


class Cell(nn.Module):
    """A cell that runs step by step, and a layer that reads its states."""

    def __init__(self, cls: Any, units: int) -> None:
        super().__init__()
        self.rnn = cls(FEATURES, units)
        self.head = nn.Linear(units, LABELS)

    def forward(self, x: Tensor) -> Tensor:
        state: Any = None
        outputs = []
        for step in x:
            state = self.rnn(step, state)
            outputs.append(state[0] if isinstance(state, tuple) else state)
        return self.head(torch.stack(outputs))


def inputs() -> Tensor:
    return torch.randn(5, 3, FEATURES, generator=torch.Generator().manual_seed(1)).double()


def kept_of(report: Any) -> dict[str, list[int]]:
    return {site.name.rpartition(".")[2]: list(site.kept) for site in report.sites}


def by_hand(model: Network, options: dict[str, Any], kept: dict[str, list[int]]) -> Network:
    """The smaller model, from rows and columns that are taken one matrix at a time."""
    rnn: Any = model.rnn
    projection = bool(rnn.proj_size)
    units = len(kept["hh_l0"])
    options = options | ({"proj_size": len(kept["hr_l0"])} if projection else {})
    small = Network(type(rnn), options, units, FEATURES).double()
    suffixes = ["", "_reverse"][: 1 + rnn.bidirectional]
    gates = len(rnn.weight_ih_l0) // rnn.hidden_size
    below = list(range(FEATURES))
    values: dict[str, Tensor] = {}
    for layer in range(rnn.num_layers):
        outputs: list[int] = []
        for direction, suffix in enumerate(suffixes):
            end = f"l{layer}{suffix}"
            inside = kept[f"hh_{end}"]
            states = kept[f"hr_{end}"] if projection else inside
            rows = [gate * rnn.hidden_size + unit for gate in range(gates) for unit in inside]
            values[f"weight_ih_{end}"] = getattr(rnn, f"weight_ih_{end}")[rows][:, below]
            values[f"weight_hh_{end}"] = getattr(rnn, f"weight_hh_{end}")[rows][:, states]
            if rnn.bias:
                for name in (f"bias_ih_{end}", f"bias_hh_{end}"):
                    values[name] = getattr(rnn, name)[rows]
            if projection:
                values[f"weight_hr_{end}"] = getattr(rnn, f"weight_hr_{end}")[states][:, inside]
            width = rnn.proj_size or rnn.hidden_size
            outputs += [direction * width + state for state in states]
        below = outputs
    small.rnn.load_state_dict(values)
    small.head.load_state_dict({"weight": model.head.weight[:, below], "bias": model.head.bias})
    return small


@pytest.mark.parametrize(("cls", "options"), CASES)
def test_cut_network_equals_rows_and_columns_taken_by_hand(
    cls: Any, options: dict[str, Any]
) -> None:
    torch.manual_seed(0)
    model = Network(cls, options, UNITS, FEATURES).double()
    before = copy.deepcopy(model)
    report = se.prune(model, 0.3, READERS, "magnitude")
    kept = kept_of(report)
    assert {len(units) for name, units in kept.items() if name.startswith("hh")} == {7}
    assert {len(units) for name, units in kept.items() if name.startswith("hr")} <= {5}
    expected = by_hand(before, options, kept)
    x = inputs()
    torch.testing.assert_close(model(x), expected(x), rtol=0, atol=1e-12)
    for attribute in ("hidden_size", "proj_size", "input_size"):
        assert getattr(model.rnn, attribute) == getattr(expected.rnn, attribute)
    # Everything else works as with a network that was made of this size.
    expected.load_state_dict(model.state_dict())
    torch.testing.assert_close(copy.deepcopy(model)(x), expected(x), rtol=0, atol=1e-12)
    for network in (model, expected):
        optimizer = torch.optim.SGD(network.parameters(), lr=0.01)
        network(x).square().mean().backward()
        optimizer.step()
    trained = expected(x).detach()
    torch.testing.assert_close(model(x), trained, rtol=0, atol=1e-12)
    se.prune(model.float(), 0.8, layers=["rnn"])  # single weights, on top
    pruned = model(x.float())
    se.sparsify_(model, "csr")
    assert isinstance(model.rnn, (se.nn.SparseLSTM, se.nn.SparseGRU, se.nn.SparseRNN))
    torch.testing.assert_close(model(x.float()), pruned, rtol=0, atol=1e-5)


@pytest.mark.parametrize("cls", [nn.LSTMCell, nn.GRUCell, nn.RNNCell])
def test_cut_cell_equals_rows_and_columns_taken_by_hand(cls: Any) -> None:
    torch.manual_seed(0)
    model = Cell(cls, UNITS).double()
    before = copy.deepcopy(model)
    report = se.prune(model, 0.3, READERS, "magnitude")
    (kept,) = kept_of(report).values()
    assert len(kept) == 7
    expected = Cell(cls, 7).double()
    gates = len(before.rnn.weight_ih) // UNITS
    rows = [gate * UNITS + unit for gate in range(gates) for unit in kept]
    expected.load_state_dict(
        {
            "rnn.weight_ih": before.rnn.weight_ih[rows],
            "rnn.weight_hh": before.rnn.weight_hh[rows][:, kept],
            "rnn.bias_ih": before.rnn.bias_ih[rows],
            "rnn.bias_hh": before.rnn.bias_hh[rows],
            "head.weight": before.head.weight[:, kept],
            "head.bias": before.head.bias,
        }
    )
    x = inputs()
    torch.testing.assert_close(model(x), expected(x), rtol=0, atol=1e-12)
    assert model.rnn.hidden_size == 7
    se.prune(model.float(), 0.8, layers=["rnn"])
    pruned = model(x.float())
    se.sparsify_(model, "csr")
    assert type(model.rnn).__name__.startswith("Sparse")
    torch.testing.assert_close(model(x.float()), pruned, rtol=0, atol=1e-5)


def library_model(**options: Any) -> Any:
    torch.manual_seed(0)
    cls = options.pop("cls", RnnForCausalLM)
    config = RnnConfig(
        vocab_size=30, hidden_size=10, num_labels=5, **({"embedding_size": 8} | options)
    )
    return cls(config).eval()


MODELS = {
    "lstm": {"cell": "lstm", "num_hidden_layers": 2},
    "gru": {"cell": "gru", "num_hidden_layers": 2},
    "adaptive softmax": {"cutoffs": (10,)},
    "tagger": {"cls": RnnForTokenClassification, "bidirectional": True},
    "tagger with inner layers": {
        "cls": RnnForTokenClassification,
        "bidirectional": True,
        "inner_sizes": (12, 9),
    },
    "classifier": {"cls": RnnForSequenceClassification, "bidirectional": True, "inner_sizes": (9,)},
}


@torch.inference_mode()
@pytest.mark.parametrize("options", MODELS.values(), ids=MODELS)
def test_library_models_equal_their_copies_with_zeros(options: dict[str, Any]) -> None:
    """Units that nobody reads are as good as gone."""
    model, reference = library_model(**options), library_model(**options)
    report = se.prune(model, 0.3, "unit(keep=1)", "magnitude")
    units = [site for site in report.sites if ".hh_" in site.name]
    layers = options.get("num_hidden_layers", 1)
    assert len(units) == layers * (1 + options.get("bidirectional", False))
    assert model.rnn.hidden_size == 7
    for site in report.sites:
        gone = [i for i in range(site.groups) if i not in site.kept]
        assert len(gone) == round(0.3 * site.groups)
        if site.name == "softmax.tail.0.0":  # rare words have a narrow layer of their own
            reference.softmax.tail[0][1].weight[:, gone] = 0
            continue
        if site not in units:
            index = int(site.name.rpartition(".")[2])
            chain = [*reference.inner, reference.classifier]
            chain[index + 1].weight[:, gone] = 0
            continue
        name = site.name.removeprefix("rnn.hh_")
        getattr(reference.rnn, f"weight_hh_{name}")[:, gone] = 0
        if int(name[1]) + 1 < layers:
            getattr(reference.rnn, f"weight_ih_l{int(name[1]) + 1}")[:, gone] = 0
            continue
        columns = [10 * name.endswith("_reverse") + i for i in gone]
        for reader in outside(reference):
            reader.weight[:, columns] = 0
    ids = torch.randint(0, 30, (3, 7), generator=torch.Generator().manual_seed(1))
    expected = reference(input_ids=ids).logits
    torch.testing.assert_close(model(input_ids=ids).logits, expected, rtol=0, atol=1e-6)
    se.prune(model, 0.8, layers=["rnn"])
    pruned = model(input_ids=ids).logits
    se.sparsify_(model, "csr")
    assert type(model.rnn).__name__.startswith("Sparse")
    torch.testing.assert_close(model(input_ids=ids).logits, pruned, rtol=0, atol=1e-5)


def outside(model: Any) -> list[Any]:
    if hasattr(model, "softmax"):
        return [model.softmax.head, *(tail[0] for tail in model.softmax.tail)]
    if hasattr(model, "lm_head"):
        return [model.lm_head]
    return [*model.inner, model.classifier][:1]


def test_a_network_that_reads_another() -> None:
    class Stack(nn.Module):
        def __init__(self, first: int = UNITS, second: int = UNITS) -> None:
            super().__init__()
            self.first = nn.GRU(FEATURES, first, bidirectional=True)
            self.second = nn.LSTM(2 * first, second, bidirectional=True)
            self.head = nn.Linear(2 * second, LABELS)

        def forward(self, x: Tensor) -> Tensor:
            _, (state, _) = self.second(self.first(x)[0])
            return self.head(torch.cat([state[0], state[1]], -1))

    torch.manual_seed(0)
    model = Stack().double()
    reference = copy.deepcopy(model)
    report = se.prune(
        model, 0.4, "unit(keep=1, readers='first: second; second: head')", "magnitude"
    )
    assert (model.second.input_size, model.head.in_features) == (12, 12)
    with torch.no_grad():
        for site in report.sites:
            gone = [i for i in range(site.groups) if i not in site.kept]
            at = [UNITS * site.name.endswith("reverse") + i for i in gone]
            network: Any = reference.get_submodule(site.name.partition(".")[0])
            getattr(network, f"weight_{site.name.partition('.')[2]}")[:, gone] = 0
            if network is reference.second:
                reference.head.weight[:, at] = 0
            else:
                reference.second.weight_ih_l0[:, at] = 0
                reference.second.weight_ih_l0_reverse[:, at] = 0
    torch.testing.assert_close(model(inputs()), reference(inputs()), rtol=0, atol=1e-12)


def test_layers_choose_the_networks_whose_units_go() -> None:
    model = library_model(**MODELS["tagger with inner layers"])
    report = se.prune(model, 0.3, "unit(keep=1)", "magnitude", layers=["rnn"])
    assert [site.name for site in report.sites] == ["rnn.hh_l0", "rnn.hh_l0_reverse"]
    assert model.inner[0].weight.shape == (12, 14)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("unit", "what reads the outputs of rnn is not known.*unit\\(readers='rnn: fc'"),
        ("unit(readers='rnn')", "expected 'module: layer"),
        ("unit(readers='rnn:')", "expected 'module: layer"),
        ("unit(readers='rnn: head; rnn: head')", "each module once"),
        ("unit(readers='rnn: tail')", "no module 'tail'"),
        ("unit(readers='head: head')", "head reads 10 features, but head has 4"),
        ("unit(readers='rnn: norm')", "norm, a LayerNorm, cannot lose columns"),
        ("unit(readers='rnn: other')", "other reads 3 features, but rnn has 10 outputs"),
        ("head", "there is no head"),
    ],
)
def test_refusals_leave_the_model_untouched(text: str, message: str) -> None:
    torch.manual_seed(0)
    model = Network(nn.LSTM, {}, UNITS, FEATURES)
    model.norm, model.other = nn.LayerNorm(UNITS), nn.Linear(3, 3)
    before = {name: p.clone() for name, p in model.named_parameters()}
    with pytest.raises(UsageError, match=message):
        se.prune(model, 0.3, text, "magnitude")
    for name, parameter in model.named_parameters():
        assert torch.equal(parameter, before[name])


def test_further_refusals() -> None:
    with pytest.raises(UsageError, match="the model, which keep their width"):
        se.prune(nn.LSTM(FEATURES, UNITS), 0.3, "unit", "magnitude")
    tied = library_model(embedding_size=10, tie_word_embeddings=True)
    with pytest.raises(UsageError, match="rnn: its output is the embedding"):
        se.prune(tied, 0.3, "unit", "magnitude")
    with pytest.raises(UsageError, match="what reads rnn is known"):
        se.prune(library_model(), 0.3, "unit(readers='rnn: lm_head')", "magnitude")
    deep = library_model(**MODELS["lstm"])
    with pytest.raises(UsageError, match=r"rnn.hh_l0 and rnn.hh_l1 keep the same size"):
        se.prune(deep, 0.3, "unit", "magnitude", ignore=["rnn.hh_l1"])
