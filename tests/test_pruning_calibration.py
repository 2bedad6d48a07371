"""Calibration inputs: what is taken, what is refused in one line, and what runs together."""

from __future__ import annotations

import copy
import itertools
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from sparse_engine.errors import UsageError
from sparse_engine.pruning import prune
from sparse_engine.pruning.calibration import Batch, read_calibration
from sparse_engine.pruning.layers import make_plan
from sparse_engine.pruning.merge import merge
from sparse_engine.pruning.progress import Steps
from sparse_engine.pruning.walk import Need, Originals, Walk

transformers = pytest.importorskip("transformers")

SIZES = {
    "vocab_size": 50,
    "hidden_size": 16,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 24,
    "max_position_embeddings": 40,
    "initializer_range": 0.3,
}


def bert(head: str = "BertModel", **changes: Any) -> nn.Module:
    torch.manual_seed(0)
    kind = head.partition("For")[0].removesuffix("Model")
    config = getattr(transformers, f"{kind}Config")(**SIZES | changes)
    model: nn.Module = getattr(transformers, head)(config).eval().requires_grad_(False)
    return model


def t5() -> nn.Module:
    torch.manual_seed(0)
    sizes = {"d_model": 16, "d_kv": 8, "d_ff": 24, "num_layers": 2, "num_heads": 2}
    config = transformers.T5Config(
        vocab_size=50, decoder_start_token_id=0, pad_token_id=0, eos_token_id=1, **sizes
    )
    model: nn.Module = transformers.T5ForConditionalGeneration(config).eval()
    return model.requires_grad_(False)


def mlp() -> nn.Sequential:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 3))
    return model.requires_grad_(False)


def ids(*shape: int, seed: int = 0) -> Tensor:
    return torch.randint(2, 50, shape, generator=torch.Generator().manual_seed(seed))


def told(model: nn.Module, calibration: Any, **options: Any) -> str:
    """The one line that a prune is refused with; the weights are as they were."""
    before = {name: p.clone() for name, p in model.named_parameters()}
    with pytest.raises(UsageError) as caught:
        prune(model, 0.5, criterion="wanda", calibration=calibration, **options)
    assert all(torch.equal(before[name], p) for name, p in model.named_parameters())
    assert "\n" not in str(caught.value)
    return str(caught.value)


def same(a: list[Batch], b: list[Batch]) -> bool:
    """Whether batches have the same arguments, dtypes included, and masks."""
    for x, y in zip(a, b, strict=True):
        values = [*zip(x.args, y.args, strict=True)]
        values += [(x.kwargs[key], y.kwargs[key]) for key in x.kwargs | y.kwargs]
        values += [*zip(x.real, y.real, strict=True)]
        for left, right in values:
            if not torch.equal(left, right) or left.dtype != right.dtype:
                return False
    return True


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
    assert torch.equal(found.real[0], values[1] == 1)


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
        assert batch.real[0].tolist() == [[True, True, True, False]]
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
        (7, "item 0 is a int"),
        (None, "item 0 is a NoneType"),
    ],
)
def test_what_a_text_model_cannot_take_is_one_line(item: Any, message: str) -> None:
    import re

    found = told(bert(), [item])
    assert re.search(message, found), found


def test_wrong_names_shapes_and_dtypes_of_own_models_are_one_line() -> None:
    x = torch.ones(5, 6)
    assert told(mlp(), [{"x": x}]) == (
        "calibration item 0 has 'x', which Sequential.forward does not take; it takes input"
    )
    assert "Sequential.forward: too many positional arguments" in told(mlp(), [(x, x)])
    assert "Sequential.forward: missing a required argument: 'input'" in told(mlp(), [x, {}])
    assert told(mlp(), [x, x[:, :5]]) == "calibration batch 1: 0 gets 5 features and takes 6"
    shapes = told(mlp(), [x[:, :5], x])
    assert shapes.startswith("calibration batch 0: Sequential fails on it: RuntimeError: mat1 and")
    assert "calibration batch 0: Sequential fails on it: RuntimeError" in told(mlp(), [x.double()])
    assert "single ndarray" in told(mlp(), np.ones((2, 6)))


@pytest.mark.parametrize("place", range(3))
@pytest.mark.parametrize("recovery", [None, "lsq"])
def test_a_batch_that_fails_is_named_wherever_it_lies(place: int, recovery: str | None) -> None:
    class Touchy(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.blocks = nn.ModuleList([nn.Linear(6, 6), nn.Linear(6, 6)])

        def forward(self, x: Tensor) -> Tensor:
            for block in self.blocks:
                x = block(x)
            if float(x.abs().max()) > 1e6:
                raise RuntimeError("too large\nand more of it")
            return x

    model = Touchy().requires_grad_(False)
    inputs = [torch.ones(2 + i, 6) for i in range(3)]
    inputs[place] *= 1e9
    with pytest.raises(UsageError) as caught:
        # Of a block on its own nothing fails, so ask for what runs the whole model.
        prune(
            nn.Sequential(model, nn.Linear(6, 2)),
            0.5,
            criterion="wanda",
            recovery=recovery,
            calibration=inputs,
            filter_fn=lambda module, name: name == "1",
        )
    assert str(caught.value) == (
        f"calibration batch {place}: Sequential fails on it: RuntimeError: too large"
    )
    assert isinstance(caught.value.__cause__, RuntimeError)


def test_roberta_has_two_positions_fewer_than_its_table() -> None:
    model = bert("RobertaModel", pad_token_id=1)
    prune(model, 0.5, criterion="wanda", calibration=[ids(1, 38)])
    assert "39 tokens, the model has positions for 38" in told(model, [ids(1, 39)])


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
            recovery="lsq",
            calibration=[{"input_ids": tokens, "attention_mask": mask}],
        )
        pruned.append(model)
    for a, b in zip(*(model.parameters() for model in pruned), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-3, atol=1e-4)


def check(found: dict[str, Tensor], expected: dict[str, Tensor]) -> None:
    """Equal but for rounding, which goes by the largest sums."""
    assert found.keys() == expected.keys()
    for name, sums in expected.items():
        assert float((found[name] - sums).abs().max() / sums.abs().max()) < 5e-5, name


def statistics(model: nn.Module, batches: list[Batch]) -> dict[str, Tensor]:
    """Sums over the dense model's inputs, by the first layer that reads them."""
    plan = make_plan(model)
    with torch.no_grad():
        need, steps = Need(hessian=True, both_paths=False), Steps(None, 1)
        walk = Walk(model, plan, batches, Originals(plan.layers), need, steps)
        return {
            group.layers[0].name: moments.hessian(centred=False)  # type: ignore[union-attr]
            for group, moments in walk.groups()
        }


def test_answers_that_are_padded_otherwise_than_their_texts() -> None:
    """Both are five tokens wide, so that only their masks tell encoder and decoder apart."""
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
    shifted = answers.roll(1, 1)  # what T5 reads where it is to write `answers`
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
    assert told(t5(), [{"input_ids": ids(1, 4)}]).startswith(
        "calibration batch 0: T5ForConditionalGeneration fails on it, which has no "
        "decoder_input_ids: ValueError: "
    )


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
    """Gives what all rows of a batch have in common."""

    def __init__(self) -> None:
        super().__init__()
        self.body = mlp()

    def forward(self, x: Tensor) -> Tensor:
        found: Tensor = self.body(x - x.mean(0))
        return found


class Positions(nn.Module):
    """Takes a table of positions that has nothing to do with the batch."""

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
    merged = merge(model, batches)
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
    (merged,) = merge(model, batches)
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
        prune(model, 0.5, criterion="sparsegpt", recovery="lsq", calibration=calibration)
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
    # Three to see that batches are independent, one to trace, one a length to enter the blocks.
    assert passes == 6


def test_the_progress_of_statistics_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sparse_engine.pruning.progress.INTERVAL", 0.0)
    heard: list[tuple[int, int, str]] = []
    prune(
        bert(),
        0.5,
        criterion="wanda",
        recovery="lsq",
        calibration=texts(5, 6, 7),
        progress=lambda *step: heard.append(step),
    )
    first = next(i for i, (done, _, _) in enumerate(heard) if done)
    names = [what for _, _, what in heard[:first]]
    assert "batch 3 of 3, to encoder.layer.0" in names
    assert "batch 2 of 3, encoder.layer.0" in names
    assert {total for _, total, _ in heard} == {12}
    assert [done for done, _, _ in heard] == sorted(done for done, _, _ in heard)
    assert heard[-1][0] == 12


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
    """A cache that is full hands out old keys, and their layers do not run at all."""
    model = make()
    configs = [m.config for m in model.modules() if hasattr(m, "config")]
    before = [config.use_cache for config in configs if hasattr(config, "use_cache")]
    calibration = [{"input_ids": ids(2, 6), "decoder_input_ids": ids(2, 5)}]
    report = prune(model, 0.5, criterion="wanda", recovery="lsq", calibration=calibration)
    assert any("attention" in row.name.lower() for row in report.layers)
    assert all(row.sparsity == 0.5 for row in report.layers)
    assert before == [config.use_cache for config in configs if hasattr(config, "use_cache")]
    assert any(before)
