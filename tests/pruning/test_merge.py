"""Calibration batches: which ones are merged, and what progress reports meanwhile."""

from __future__ import annotations

import copy
import itertools
from collections.abc import Callable
from typing import Any

import pytest
import torch
from calibration_models import SIZES, bert, check, ids, mlp, statistics, t5
from torch import Tensor, nn

from sparse_engine.pruning import prune
from sparse_engine.pruning.calibration import merge_batches, read_calibration

transformers = pytest.importorskip("transformers")


class Tagger(nn.Module):
    def __init__(self, batch_first: bool) -> None:
        super().__init__()
        self.embed = nn.Embedding(50, 6)
        self.rnn = nn.LSTM(6, 5, batch_first=batch_first)
        self.out = nn.Linear(5, 3)

    def forward(self, tokens: Tensor) -> Tensor:
        found: Tensor = self.out(self.rnn(self.embed(tokens))[0])
        return found


class Mean(nn.Module):
    """Its output depends on all rows of a batch."""

    def __init__(self) -> None:
        super().__init__()
        self.body = mlp()

    def forward(self, x: Tensor) -> Tensor:
        found: Tensor = self.body(x - x.mean(0))
        return found


class Positions(nn.Module):
    """One of its inputs is a table of positions, which has no batch dimension."""

    def __init__(self) -> None:
        super().__init__()
        self.body = mlp()

    def forward(self, x: Tensor, positions: Tensor, scale: float = 1.0) -> Tensor:
        found: Tensor = self.body(x * scale + positions)
        return found


def texts(*lengths: int, masked: bool = True) -> list[Any]:
    rows = [ids(1, length, seed=seed) for seed, length in enumerate(lengths)]
    return [
        {"input_ids": row, "attention_mask": torch.ones_like(row)} if masked else row
        for row in rows
    ]


@pytest.mark.parametrize(
    ("make", "calibration", "rows"),
    [
        (bert, texts(5, 7, 5, 5, 7, 9), [3, 2, 1]),
        (bert, texts(5, 7, 5, 5, 7, 9, masked=False), [3, 2, 1]),
        (mlp, [torch.randn(4, 6), torch.randn(4, 6), torch.randn(2, 6)], [8, 2]),
        (mlp, [torch.randn(6), torch.randn(6)], [6, 6]),
        (lambda: Tagger(True), texts(4, 4, 4, masked=False), [3]),
        (lambda: Tagger(False), texts(4, 4, 4, masked=False), [1, 1, 1]),
        (Mean, [torch.randn(4, 6) + i for i in range(3)], [4, 4, 4]),
        (Positions, [(torch.randn(4, 6), torch.randn(6)) for _ in range(3)], [4, 4, 4]),
        (Positions, [(torch.randn(6, 6), torch.randn(6)) for _ in range(3)], [6, 6, 6]),
        (Positions, [(torch.randn(4, 6), torch.randn(4, 6)) for _ in range(3)], [12]),
        (
            Positions,
            [{"x": torch.randn(2, 6), "positions": torch.zeros(2, 6), "scale": s} for s in (1, 2)],
            [2, 2],
        ),
        (mlp, [torch.randn(1500, 6) for _ in range(5)], [3000, 3000, 1500]),
        (mlp, [torch.randn(5000, 6) for _ in range(2)], [5000, 5000]),
    ],
    ids=itertools.count(),
)
def test_what_runs_together(
    make: Callable[[], nn.Module], calibration: list[Any], rows: list[int]
) -> None:
    torch.manual_seed(0)
    model = make().eval()
    batches = read_calibration(model, calibration)
    merged = merge_batches(model, batches)
    found = [next(v for v in (*b.args, *b.kwargs.values())) for b in merged]
    assert [len(x) for x in found] == rows
    assert sorted({item for b in merged for item in b.items}) == list(range(len(calibration)))
    if isinstance(model, Tagger):
        return  # its layers run only inside prune
    expected, got = statistics(model, batches), statistics(model, merged)
    check(got, expected)


def test_rows_of_padding_stay_out_when_batches_run_together() -> None:
    model, calibration = bert(), []
    for seed in range(4):
        tokens = ids(2, 6, seed=seed)
        mask = (torch.arange(6) < torch.tensor([6, 2 + seed])[:, None]).long()
        calibration.append({"input_ids": tokens, "attention_mask": mask})
    batches = read_calibration(model, calibration)
    (merged,) = merge_batches(model, batches)
    assert merged.items == (0, 0, 1, 1, 2, 2, 3, 3)
    expected, got = statistics(model, batches), statistics(model, [merged])
    check(got, expected)


def test_many_small_batches_give_what_one_large_one_gives() -> None:
    rows = ids(40, 6)
    small, large = t5(), t5()
    for model, calibration in (
        (small, [{"input_ids": r[None], "decoder_input_ids": r[None]} for r in rows]),
        (large, [{"input_ids": rows, "decoder_input_ids": rows}]),
    ):
        prune(model, 0.5, criterion="sparsegpt", recovery="least_squares", calibration=calibration)
    for (name, a), b in zip(small.named_parameters(), large.parameters(), strict=True):
        torch.testing.assert_close(a, b, msg=name)


def test_small_batches_take_few_passes() -> None:
    passes = 0

    def count(*_: Any) -> None:
        nonlocal passes
        passes += 1

    model = bert()
    model.register_forward_pre_hook(count)
    prune(model, 0.5, criterion="wanda", calibration=texts(*[5, 9] * 100))
    # Three to test independence, one to find segments, one for each length to enter the stack.
    assert passes == 6


def test_progress_reports_the_batches_that_run(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sparse_engine.pruning.progress.INTERVAL", 0.0)
    reports: list[tuple[int, int, str]] = []
    prune(
        bert(),
        0.5,
        criterion="wanda",
        recovery="least_squares",
        calibration=texts(5, 6, 7),
        progress=lambda *step: reports.append(step),
    )
    first = next(i for i, (done, _, _) in enumerate(reports) if done)
    names = [what for _, _, what in reports[:first]]
    assert "batch 3 of 3, to encoder.layer.0" in names
    assert "batch 2 of 3, encoder.layer.0" in names
    assert {total for _, total, _ in reports} == {12}
    assert [done for done, _, _ in reports] == sorted(done for done, _, _ in reports)
    assert reports[-1][0] == 12


def test_a_wrapped_model_is_not_changed_by_reading() -> None:
    model = bert()
    before = copy.deepcopy(model.state_dict())
    read_calibration(model, texts(5, 5))
    assert all(torch.equal(before[name], value) for name, value in model.state_dict().items())


def bert_to_bert() -> nn.Module:
    torch.manual_seed(0)
    sizes = {key: value for key, value in SIZES.items() if key != "initializer_range"}
    encoder = transformers.BertConfig(**sizes)
    decoder = transformers.BertConfig(**sizes, is_decoder=True, add_cross_attention=True)
    config = transformers.EncoderDecoderConfig.from_encoder_decoder_configs(encoder, decoder)
    config.decoder_start_token_id, config.pad_token_id = 1, 0
    model: nn.Module = transformers.EncoderDecoderModel(config).eval()
    return model.requires_grad_(False)


def umt5() -> nn.Module:
    torch.manual_seed(0)
    sizes = {"d_model": 16, "d_kv": 8, "d_ff": 24, "num_layers": 2, "num_heads": 2}
    config = transformers.UMT5Config(vocab_size=50, decoder_start_token_id=0, **sizes)
    model: nn.Module = transformers.UMT5ForConditionalGeneration(config).eval()
    return model.requires_grad_(False)


@pytest.mark.parametrize("make", [bert_to_bert, umt5])
def test_decoders_with_configs_of_their_own_keep_no_cache(make: Callable[[], nn.Module]) -> None:
    """A full cache returns old keys, and the layers that compute them do not run."""
    model = make()
    configs = [m.config for m in model.modules() if hasattr(m, "config")]
    before = [config.use_cache for config in configs if hasattr(config, "use_cache")]
    calibration = [{"input_ids": ids(2, 6), "decoder_input_ids": ids(2, 5)}]
    report = prune(model, 0.5, criterion="wanda", recovery="least_squares", calibration=calibration)
    assert any("attention" in row.name.lower() for row in report.layers)
    assert all(row.sparsity == 0.5 for row in report.layers)
    assert before == [config.use_cache for config in configs if hasattr(config, "use_cache")]
    assert any(before)
