"""prune(): what it accepts and refuses, what it leaves alone, and what it leaves behind."""

from __future__ import annotations

import copy
import json
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from sparse_engine.errors import UsageError
from sparse_engine.pruning import CRITERIA, NM, Block, prune

transformers = pytest.importorskip("transformers")


def mlp(width: int = 12, bias: bool = True) -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Linear(width, 20, bias=bias), nn.ReLU(), nn.Linear(20, 7, bias=bias), nn.Dropout(0.5)
    )


def batches(width: int = 12) -> list[Tensor]:
    return [
        torch.randn(6, width, generator=torch.Generator().manual_seed(seed)) for seed in range(4)
    ]


def bert(head: str = "Model", **changes: Any) -> nn.Module:
    torch.manual_seed(0)
    config = transformers.BertConfig(
        hidden_size=16,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=24,
        vocab_size=50,
        max_position_embeddings=40,
        initializer_range=0.3,
        **changes,
    )
    model: nn.Module = getattr(transformers, f"Bert{head}")(config)
    return model


def bert_batches() -> list[dict[str, Tensor]]:
    generator = torch.Generator().manual_seed(0)
    result = []
    for length in (5, 9, 9, 12):
        ids = torch.randint(50, (4, length), generator=generator)
        mask = torch.arange(length) < torch.tensor([length, length, 4, 3])[:, None]
        result.append({"input_ids": ids, "attention_mask": mask.long()})
    return result


def state(model: nn.Module) -> dict[str, Tensor]:
    return {name: value.clone() for name, value in model.state_dict().items()}


def same(a: dict[str, Tensor], b: dict[str, Tensor]) -> bool:
    return a.keys() == b.keys() and all(
        torch.equal(a[name].nan_to_num(), b[name].nan_to_num()) for name in a
    )


def hooks(model: nn.Module) -> int:
    return sum(len(m._forward_hooks) + len(m._forward_pre_hooks) for m in model.modules())


@pytest.mark.parametrize("recovery", [None, "lsq"])
@pytest.mark.parametrize("criterion", [known.name for known in CRITERIA])
@pytest.mark.parametrize("granularity", ["element", "4x1", "3x2", "2:4"])
def test_counts_are_exact(granularity: str, criterion: str, recovery: str | None) -> None:
    model = mlp()
    sparsity = None if granularity == "2:4" else 0.6
    report = prune(model, sparsity, granularity, criterion, recovery, batches())
    first, second = model[0].weight, model[2].weight  # [20, 12], [7, 20]
    if granularity == "2:4":
        assert first.view(20, 3, 4).count_nonzero(dim=2).eq(2).all()
        assert second.view(7, 5, 4).count_nonzero(dim=2).eq(2).all()
    elif granularity == "element":
        assert int((first == 0).sum()) == round(0.6 * 240)
        assert int((second == 0).sum()) == round(0.6 * 140)
    elif granularity == "4x1":
        tiles = first.view(5, 4, 12).count_nonzero(dim=1)
        assert sorted(tiles.unique().tolist()) == [0, 4]
        assert int((tiles == 0).sum()) == round(0.6 * 60)
        assert int((second[:4].count_nonzero(0) == 0).sum()) + int(
            (second[4:].count_nonzero(0) == 0).sum()
        ) == round(0.6 * 40)
    zeros = [int((weight == 0).sum()) for weight in (first, second)]
    assert [row.sparsity for row in report.layers] == [zeros[0] / 240, zeros[1] / 140]
    assert report.sparsity == pytest.approx(sum(zeros) / 380)


def test_magnitude_is_the_naive_one() -> None:
    model = mlp()
    expected = {
        i: torch.where(w.abs() > w.abs().flatten().kthvalue(round(0.7 * w.numel())).values, w, 0)
        for i, w in ((i, model[i].weight.detach().clone()) for i in (0, 2))
    }
    prune(model, 0.7)
    for i, weight in expected.items():
        assert torch.equal(model[i].weight, weight)


def test_random_is_deterministic_for_a_seed() -> None:
    def run(seed: int) -> Tensor:
        model = mlp()
        prune(model, 0.5, criterion="random", seed=seed)
        weight: Tensor = model[0].weight
        return weight

    torch.manual_seed(99)
    first = run(4)
    assert torch.equal(first, run(4))
    assert not torch.equal(first, run(5))


def test_bert_leaves_embeddings_norms_and_heads_alone() -> None:
    model = bert("ForSequenceClassification")
    before = state(model)
    report = prune(model, 0.5, "4x1", "sparsegpt", "lsq", bert_batches())
    assert len(report.layers) == 12
    changed = {
        name for name, value in model.state_dict().items() if not (value == before[name]).all()
    }
    pruned = {row.name for row in report.layers}
    assert {name.rpartition(".")[0] for name in changed} == pruned
    assert all(".encoder.layer." in f".{name}" for name in pruned)


def test_bert_recovery_keeps_the_outputs_closer() -> None:
    dense = bert().eval()
    calibration = bert_batches() * 4

    def error(recovery: str | None) -> float:
        model = copy.deepcopy(dense)
        prune(model, 0.5, "element", "sparsegpt", recovery, calibration)
        with torch.no_grad():
            pairs = [
                (model(**batch)[0][batch["attention_mask"] != 0] - wanted).norm() / wanted.norm()
                for batch in bert_batches()
                for wanted in [dense(**batch)[0][batch["attention_mask"] != 0]]
            ]
        return float(torch.stack(pairs).mean())

    assert error("lsq") < 0.8 * error(None)


def test_filter_decides_on_every_linear() -> None:
    model = bert("ForSequenceClassification")
    asked = []

    def only_head(module: nn.Module, name: str) -> bool:
        asked.append(name)
        return name in ("classifier", "bert.pooler.dense")

    report = prune(
        model,
        0.5,
        criterion="wanda",
        recovery="lsq",
        calibration=bert_batches(),
        filter_fn=only_head,
    )
    assert len(asked) == 14
    assert [row.name for row in report.layers] == ["bert.pooler.dense", "classifier"]
    assert int((model.classifier.weight == 0).sum()) == 16


def test_layers_outside_blocks_join_those_inside() -> None:
    model = bert("ForSequenceClassification")
    report = prune(
        model, 0.5, recovery="lsq", calibration=bert_batches(), filter_fn=lambda module, name: True
    )
    assert len(report.layers) == 14
    assert report.layers[-1].name == "classifier"
    assert all(row.sparsity == 0.5 for row in report.layers)


def test_heads_are_left_alone_where_there_are_no_blocks() -> None:
    model = nn.Sequential()
    model.add_module("body", nn.Linear(12, 8))
    model.add_module("score", nn.Linear(8, 8))
    model.add_module("embeddings", nn.Sequential(nn.Linear(8, 3)))
    assert [row.name for row in prune(model, 0.5).layers] == ["body"]


def test_tied_weights_are_pruned_once() -> None:
    tied = nn.Sequential(nn.Linear(20, 20), nn.ReLU(), nn.Linear(20, 20))
    tied[2].weight = tied[0].weight
    report = prune(tied, 0.5, criterion="sparsegpt", recovery="lsq", calibration=batches(20))
    assert [row.name for row in report.layers] == ["0"]
    assert tied[2].weight is tied[0].weight
    assert int((tied[0].weight == 0).sum()) == 200


def test_no_bias_is_created() -> None:
    model = mlp(bias=False)
    prune(model, 0.5, recovery="lsq", calibration=batches())
    assert model[0].bias is None


def test_half_precision_stays_half() -> None:
    model = mlp().to(torch.bfloat16)
    prune(model, 0.5, "4x1", "sparsegpt", "lsq", [b.bfloat16() for b in batches()])
    assert model[0].weight.dtype == torch.bfloat16
    assert int((model[0].weight == 0).sum()) == 120


@pytest.mark.parametrize("criterion", ["magnitude", "sparsegpt"])
@pytest.mark.parametrize("sparsity", [0.1, 0.2, 0.5])
def test_zeros_stay_zero_and_leave_first(sparsity: float, criterion: str) -> None:
    model = mlp()
    with torch.no_grad():
        model[2].weight[:, ::5] = 0
    report = prune(model, sparsity, "element", criterion, "lsq", batches())
    assert not model[2].weight[:, ::5].any()
    if criterion == "magnitude":
        assert [row.sparsity for row in report.layers] == [sparsity, max(sparsity, 0.2)]


def test_sparsity_zero_changes_nothing() -> None:
    model = mlp()
    before = state(model)
    report = prune(model, 0.0, criterion="wanda", calibration=batches())
    assert report.sparsity == 0
    assert same(before, state(model))


def test_global_scope_shares_out_the_same_total() -> None:
    model = mlp()
    with torch.no_grad():
        model[2].weight.pow_(5)
    for criterion in ("magnitude", "sparsegpt", "wanda"):
        copied = copy.deepcopy(model)
        report = prune(copied, 0.5, criterion=criterion, calibration=batches(), scope="global")
        assert report.sparsity == pytest.approx(0.5)
        assert report.layers[1].sparsity > report.layers[0].sparsity + 0.1


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"sparsity": 1.5}, "sparsity 1.5"),
        ({"sparsity": 1.0}, "sparsity 1.0"),
        ({"sparsity": -0.1}, "sparsity -0.1"),
        ({"sparsity": float("nan")}, "sparsity nan"),
        ({}, "no sparsity given"),
        ({"sparsity": 0.75, "granularity": "2:4"}, "does not fit 2:4, which has 0.5"),
        ({"sparsity": 0.5, "granularity": "7"}, "granularity '7'"),
        ({"sparsity": 0.5, "granularity": Block(64, 64)}, "fits no layer; the largest is 20x12"),
        ({"granularity": NM(1, 32)}, "1:32 fits no layer"),
        ({"sparsity": 0.5, "criterion": "best"}, "criterion 'best'"),
        ({"sparsity": 0.5, "criterion": "wanda"}, "wanda needs calibration"),
        ({"sparsity": 0.5, "criterion": "sparsegpt"}, "sparsegpt needs calibration"),
        ({"sparsity": 0.5, "recovery": "lsq"}, "lsq needs calibration"),
        ({"sparsity": 0.5, "recovery": "luck"}, "recovery 'luck'"),
        ({"sparsity": 0.5, "scope": "wide"}, "scope 'wide'"),
        ({"granularity": "2:4", "scope": "global"}, "nothing to share out"),
        ({"sparsity": 0.5, "filter_fn": lambda m, n: False}, "filter_fn leaves out every layer"),
        ({"sparsity": 0.5, "recovery": "lsq", "calibration": []}, "calibration is empty"),
        ({"sparsity": 0.5, "recovery": "lsq", "calibration": ["text"]}, "item 0 is a str"),
        ({"sparsity": 0.5, "recovery": "lsq", "calibration": {"x": 1}}, "a single dict"),
    ],
)
def test_wrong_arguments_change_nothing(arguments: dict[str, Any], message: str) -> None:
    model = mlp()
    before = state(model)
    with pytest.raises(UsageError, match=message):
        prune(model, **arguments)
    assert same(before, state(model))


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_weights_that_are_not_finite_are_named(bad: float) -> None:
    model = mlp()
    with torch.no_grad():
        model[2].weight[1, 1] = bad
    before = state(model)
    with pytest.raises(UsageError, match=r"2\.weight holds NaN or Inf"):
        prune(model, 0.5)
    assert same(before, state(model))


def test_weights_that_something_unknown_computes_are_refused() -> None:
    model = mlp()
    weight = model[0]._parameters.pop("weight")
    model[0].register_forward_pre_hook(lambda module, args: setattr(module, "weight", 2 * weight))
    model[0](torch.zeros(1, model[0].in_features))
    with pytest.raises(UsageError, match=r"0\.weight is not a plain"):
        prune(model, 0.5)


def test_layers_that_do_not_run_are_named() -> None:
    class Idle(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.used = nn.Linear(12, 8)
            self.idle = nn.Linear(8, 8)

        def forward(self, x: Tensor) -> Tensor:
            used: Tensor = self.used(x)
            return used

    model = Idle()
    before = model.idle.weight.clone()
    report = prune(model, 0.5, recovery="lsq", calibration=batches())
    assert [layer.name for layer in report.layers] == ["used"]
    assert [left.name for left in report.left] == ["idle"]
    assert "idle did not run on the calibration inputs" in str(report)
    assert torch.equal(model.idle.weight, before)
    assert prune(Idle(), 0.5).sparsity == 0.5
    with pytest.raises(UsageError, match=r"idle did not run .* nor did any other layer"):
        prune(
            Idle(),
            0.5,
            recovery="lsq",
            calibration=batches(),
            filter_fn=lambda module, name: name == "idle",
        )


def test_attention_is_pruned_with_the_layers_around_it() -> None:
    layer = nn.TransformerEncoderLayer(16, 2, 24, batch_first=True)
    model = nn.TransformerEncoder(layer, 2, enable_nested_tensor=False)
    x = [torch.randn(3, 5, 16, generator=torch.Generator().manual_seed(0))]
    report = prune(model, 0.5, "2x1", "sparsegpt", "lsq", x)
    parts = [*(f"self_attn.{part}_proj" for part in ("q", "k", "v", "out")), "linear1", "linear2"]
    assert [row.name for row in report.layers] == [
        f"layers.{i}.{part}" for i in (0, 1) for part in parts
    ]
    assert int((model.layers[1].self_attn.in_proj_weight == 0).sum()) == 16 * 48 // 2
    assert report.zeros_of_multiply_adds == 0.5


def fails_after(rows: int) -> Callable[[int, int, str], None]:
    def progress(done: int, total: int, name: str) -> None:
        if done == rows:
            raise KeyboardInterrupt

    return progress


def test_an_interrupt_puts_everything_back() -> None:
    model = bert().train()
    model.encoder.layer[0].eval()
    before, modes = state(model), [m.training for m in model.modules()]
    with pytest.raises(KeyboardInterrupt):
        prune(model, 0.5, recovery="lsq", calibration=bert_batches(), progress=fails_after(5))
    assert same(before, state(model))
    assert [m.training for m in model.modules()] == modes
    assert hooks(model) == 0


def test_nothing_is_left_behind() -> None:
    model = bert(is_decoder=True).train()
    model.encoder.layer[0].eval()
    modes = [m.training for m in model.modules()]
    trainable = [p.requires_grad for p in model.parameters()]
    calls: list[tuple[int, int, str]] = []
    report = prune(
        model,
        0.5,
        criterion="sparsegpt",
        recovery="lsq",
        calibration=bert_batches(),
        progress=lambda *call: calls.append(call),
    )
    assert hooks(model) == 0
    assert [m.training for m in model.modules()] == modes
    assert [p.requires_grad for p in model.parameters()] == trainable
    assert model.config.use_cache
    names = [row.name for row in report.layers]
    layers = [call for call in calls if call[2] in names]  # a slow machine tells of batches, too
    assert layers == [(i + 1, 12, name) for i, name in enumerate(names)]


def test_report() -> None:
    report = prune(mlp(), 0.5, "4x1", "sparsegpt", "lsq", batches())
    for row in report.layers:
        assert row.error_before is not None
        assert row.error_after is not None
        assert row.error_after < row.error_before
    again = json.loads(json.dumps(report.to_dict()))
    assert again["sparsity"] == report.sparsity
    assert again["layers"][0]["shape"] == [20, 12]
    assert (again["granularity"], again["criterion"], again["recovery"]) == (
        "4x1",
        "sparsegpt",
        "lsq",
    )
    table = report.to_markdown().splitlines()
    assert len(table) == 2 + len(report.layers)
    assert len({line.count("|") for line in table}) == 1
    assert "2 layers" in str(report)
    unread = prune(mlp(), 0.5)
    assert unread.layers[0].error_after is None
    assert "| - |" in unread.to_markdown()
