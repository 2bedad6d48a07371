"""prune() on whole models with attention, convolutions, cells and experts."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
from expert_models import experts, routed
from torch import Tensor, nn

import sparse_engine as se
from sparse_engine.pruning.unrolled import unrolled

WIDTH = 16


def correlated(*shape: int, seed: int) -> Tensor:
    """Random states whose features depend on each other, as real ones do."""
    generator = torch.Generator().manual_seed(seed)
    mix = torch.randn(5, shape[-1], generator=torch.Generator().manual_seed(99))
    few = torch.randn(*shape[:-1], 5, generator=generator)
    return few @ mix + 0.2 * torch.randn(*shape, generator=generator) + 0.3


class Padded(nn.Module):
    """nn.TransformerEncoder under its default settings, called with a padding mask."""

    def __init__(self) -> None:
        super().__init__()
        layer = nn.TransformerEncoderLayer(WIDTH, 4, 32, batch_first=True)
        self.encoder = nn.TransformerEncoder(layer, 2)

    def forward(self, x: Tensor, padding: Tensor) -> Tensor:
        y: Tensor = self.encoder(x, src_key_padding_mask=padding)
        return y * ~padding[..., None]


class TextCNN(nn.Module):
    """Kim 2014, arXiv:1408.5882: convolutions of several widths, the maximum over time."""

    def __init__(self) -> None:
        super().__init__()
        self.convs = nn.ModuleList(
            nn.Conv1d(WIDTH, 16, width, padding="same", groups=groups)
            for width, groups in ((3, 1), (4, 2), (5, 1))
        )
        self.hidden = nn.Linear(48, 20)

    def forward(self, x: Tensor) -> Tensor:
        y = [conv(x.transpose(1, 2)).relu().amax(2) for conv in self.convs]
        return self.hidden(torch.cat(y, 1))


class Decoder(nn.Module):
    """A GRUCell that reads its own last output."""

    def __init__(self) -> None:
        super().__init__()
        self.cell = nn.GRUCell(WIDTH, 24)
        self.back = nn.Linear(24, WIDTH)

    def forward(self, x: Tensor) -> Tensor:
        state = x.new_zeros(len(x), self.cell.hidden_size)
        y, outputs = x[:, 0], []
        for t in range(x.shape[1]):
            state = self.cell(y + x[:, t], state)
            y = self.back(state)
            outputs.append(y)
        return torch.stack(outputs, 1)


class Routed(nn.Module):
    """Own mixture of experts, whose experts are modules of a list."""

    def __init__(self) -> None:
        super().__init__()
        self.router = nn.Linear(WIDTH, 4, bias=False)
        self.experts = nn.ModuleList(
            nn.Sequential(nn.Linear(WIDTH, 24), nn.ReLU(), nn.Linear(24, WIDTH)) for _ in range(4)
        )

    def forward(self, x: Tensor) -> Tensor:
        flat = x.flatten(0, 1)
        first = self.router(flat).argmax(-1)
        y = torch.zeros_like(flat)
        for index, expert in enumerate(self.experts):
            rows = (first == index).nonzero()[:, 0]
            if len(rows):
                y = y.index_add(0, rows, expert(flat[rows]))
        return y.view_as(x) + x


def mixtral(kind: str = "Mixtral") -> nn.Module:
    transformers = pytest.importorskip("transformers")
    more: dict[str, Any] = {
        "Mixtral": {"num_local_experts": 4},
        "Qwen3Moe": {"num_experts": 4, "moe_intermediate_size": 24, "head_dim": 8},
    }[kind]
    config = getattr(transformers, f"{kind}Config")(
        hidden_size=WIDTH,
        intermediate_size=24,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=2,
        num_experts_per_tok=2,
        vocab_size=60,
        initializer_range=0.3,
        **more,
    )
    model: nn.Module = getattr(transformers, f"{kind}ForCausalLM")(config)
    return model


def states(seed: int) -> tuple[Tensor, ...]:
    return (correlated(6, 9, WIDTH, seed=seed),)


def pairs(seed: int) -> tuple[Tensor, ...]:
    return correlated(6, 9, WIDTH, seed=seed), correlated(6, 7, WIDTH, seed=seed + 50)


def padded(seed: int) -> tuple[Tensor, ...]:
    lengths = torch.tensor([9, 9, 6, 8, 4, 7])
    return correlated(6, 9, WIDTH, seed=seed), torch.arange(9) >= lengths[:, None]


def tokens(seed: int) -> dict[str, Tensor]:
    ids = torch.randint(60, (6, 9), generator=torch.Generator().manual_seed(seed))
    lengths = torch.tensor([9, 9, 6, 8, 4, 7])
    return {"input_ids": ids, "attention_mask": (torch.arange(9) < lengths[:, None]).long()}


MODELS: dict[str, tuple[Callable[[], nn.Module], Callable[[int], Any]]] = {
    "Transformer": (lambda: nn.Transformer(WIDTH, 4, 2, 2, 32, batch_first=True), pairs),
    "TransformerEncoder": (Padded, padded),
    "TextCNN": (TextCNN, states),
    "GRUCell": (Decoder, states),
    "Mixtral": (mixtral, tokens),
    "Qwen3Moe": (lambda: mixtral("Qwen3Moe"), tokens),
    "own experts": (Routed, states),
}


def make(kind: str) -> tuple[nn.Module, list[Any]]:
    torch.manual_seed(0)
    build, batch = MODELS[kind]
    return build().eval(), [batch(seed) for seed in range(6)]


def run(model: nn.Module, batch: Any) -> Tensor:
    with torch.no_grad():
        if isinstance(batch, dict):
            return model(**batch).logits[batch["attention_mask"] != 0]
        return model(*batch)


def inner(module: nn.Module, name: str) -> bool:
    return not name.endswith(("lm_head", "router", "gate"))


def distance(model: nn.Module, dense: nn.Module, held_out: list[Any]) -> float:
    errors = [
        float((run(model, b) - run(dense, b)).norm() / run(dense, b).norm()) for b in held_out
    ]
    return sum(errors) / len(errors)


def weights(model: nn.Module) -> dict[str, Tensor]:
    """Every matrix that is pruned, once, by the name of its layer."""
    with unrolled(model):
        return {
            name: module.weight
            for name, module in model.named_modules()
            if isinstance(module, nn.Linear) and inner(module, name)
        }


@pytest.mark.parametrize("method", ["magnitude", "wanda", "sparsegpt"])
@pytest.mark.parametrize("kind", MODELS)
def test_every_layer_is_pruned(kind: str, method: str) -> None:
    dense, batches = make(kind)
    model = copy.deepcopy(dense)
    count = sum(p.numel() for p in model.parameters())
    recovery = "least_squares" if method == "sparsegpt" else None
    report = se.prune(
        model, 0.8, criterion=method, recovery=recovery, calibration=batches, filter_fn=inner
    )
    held = weights(model)
    assert {row.name for row in report.layers} == set(held)
    for name, weight in held.items():
        assert int((weight == 0).sum()) == round(0.8 * weight.numel()), name
        assert weight.isfinite().all()
    assert sum(p.numel() for p in model.parameters()) == count
    if recovery:
        alone = copy.deepcopy(dense)
        se.prune(alone, 0.8, criterion="wanda", calibration=batches, filter_fn=inner)
        held_out = [MODELS[kind][1](seed) for seed in (100, 101, 102)]
        assert distance(model, dense, held_out) < 0.95 * distance(alone, dense, held_out)
        after = sum(row.error_after or 0 for row in report.layers)
        assert after < sum(row.error_before or 0 for row in report.layers)


@pytest.mark.parametrize("granularity", ["4x1", "2:4"])
@pytest.mark.parametrize("kind", MODELS)
def test_blocks_and_patterns(kind: str, granularity: str) -> None:
    model, batches = make(kind)
    sparsity = None if granularity == "2:4" else 0.5
    se.prune(model, sparsity, granularity, "sparsegpt", "least_squares", batches, filter_fn=inner)
    for name, weight in weights(model).items():
        out, columns = weight.shape
        if granularity == "2:4":
            groups = weight[:, : columns // 4 * 4].reshape(out, -1, 4).count_nonzero(-1)
            assert int(groups.max()) <= 2, name
        else:
            assert set(weight.view(out // 4, 4, columns).count_nonzero(1).unique().tolist()) <= {
                0,
                4,
            }


@pytest.mark.parametrize("kind", MODELS)
def test_an_error_puts_everything_back(kind: str) -> None:
    model, batches = make(kind)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    modules = list(dict(model.named_modules()))

    def fail(done: int, total: int, name: str) -> None:
        if done == total - 1:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        se.prune(
            model,
            0.8,
            criterion="sparsegpt",
            recovery="least_squares",
            calibration=batches,
            filter_fn=inner,
            progress=fail,
        )
    after = model.state_dict()
    assert list(after) == list(before)
    assert all(torch.equal(after[name], value) for name, value in before.items())
    assert list(dict(model.named_modules())) == modules
    assert all("forward" not in module.__dict__ for module in model.modules())


def test_least_squares_refits_biases_within_fused_ones() -> None:
    model, batches = make("Transformer")
    attention = model.decoder.layers[0].multihead_attn
    conv, texts = make("TextCNN")
    held = attention.in_proj_bias.clone(), conv.convs[1].bias.clone()
    se.prune(model, 0.8, recovery="least_squares", calibration=batches, filter_fn=inner)
    se.prune(conv, 0.8, recovery="least_squares", calibration=texts, filter_fn=inner)
    for before, after in zip(held, (attention.in_proj_bias, conv.convs[1].bias), strict=True):
        assert (before != after).float().mean() > 0.9
    gpt_oss = Experts()
    held = tuple(
        b.clone() for b in (gpt_oss.experts.gate_up_proj_bias, gpt_oss.experts.down_proj_bias)
    )
    inputs = [
        (correlated(40, 24, seed=i), torch.randint(5, (40, 1)), torch.rand(40, 1)) for i in range(3)
    ]
    se.prune(gpt_oss, 0.8, recovery="least_squares", calibration=inputs, filter_fn=lambda *_: True)
    for before, after in zip(
        held, (gpt_oss.experts.gate_up_proj_bias, gpt_oss.experts.down_proj_bias), strict=True
    ):
        assert (before != after).float().mean() > 0.9


class Experts(nn.Module):
    """GPT-OSS's experts, transposed, with biases, gates and ups in turn."""

    def __init__(self) -> None:
        super().__init__()
        self.experts: Any = experts("gpt_oss")

    def forward(self, *args: Tensor) -> Tensor:
        y: Tensor = self.experts(*args)
        return y


@pytest.mark.parametrize(
    ("criterion", "recovery"),
    [("wanda", None), ("sparsegpt", "least_squares"), ("magnitude", "least_squares")],
)
def test_an_expert_without_tokens_is_pruned_by_magnitude(
    criterion: str, recovery: str | None
) -> None:
    model = Experts()
    layer = model.experts
    lonely = layer.gate_up_proj[4].detach().clone()
    inputs = [routed(30) for _ in range(3)]  # expert 4 is never chosen
    report = se.prune(
        model,
        0.8,
        criterion=criterion,
        recovery=recovery,
        calibration=inputs,
        filter_fn=lambda *_: True,
    )
    assert set(report.unseen) == {"experts.gate_up_proj.4", "experts.down_proj.4"}
    assert "no calibration token reached experts.gate_up_proj.4 and 1 more" in str(report)
    kept = layer.gate_up_proj[4] != 0
    assert torch.equal(layer.gate_up_proj[4][kept], lonely[kept])
    assert lonely[~kept].abs().max() <= lonely[kept].abs().min()


def test_an_own_expert_without_tokens_is_pruned_by_magnitude() -> None:
    model, batches = make("own experts")
    with torch.no_grad():
        model.router.weight[2] = 0
        model.router.weight[3] = model.router.weight[0] * 0.5
    model.router.register_forward_hook(lambda _, args, y: y - torch.tensor([0.0, 0.0, 1e6, 0.0]))
    report = se.prune(model, 0.8, criterion="wanda", calibration=batches, filter_fn=inner)
    assert set(report.unseen) == {"experts.2.0", "experts.2.2"}
    assert report.sparsity == pytest.approx(0.8, abs=0.01)


def test_padding_does_not_count_for_experts() -> None:
    """Statistics are those of the real tokens alone, whatever the padding contains."""
    model, batches = make("Mixtral")
    other = copy.deepcopy(model)
    changed = []
    for batch in batches:
        ids = torch.where(batch["attention_mask"] == 0, 7, batch["input_ids"])
        changed.append({**batch, "input_ids": ids})
    for net, inputs in ((model, batches), (other, changed)):
        se.prune(net, 0.5, criterion="wanda", calibration=inputs, filter_fn=inner)
    for one, two in zip(model.parameters(), other.parameters(), strict=True):
        assert torch.equal(one == 0, two == 0)
