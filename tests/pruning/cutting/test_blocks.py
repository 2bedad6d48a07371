"""Blocks that are chosen and removed by `prune`: scores by hand, repair, refusals."""

from __future__ import annotations

import copy
from itertools import pairwise
from typing import Any

import pytest
import torch
import transformers
from torch import Tensor, nn

import sparse_engine as se
from sparse_engine.errors import UsageError
from sparse_engine.structures import find_stacks, remove_blocks_

Items = list[dict[str, Any]]


def encoder(blocks: int = 4) -> Any:
    """A BERT whose blocks change the hidden states by different amounts."""
    torch.manual_seed(0)
    config = transformers.BertConfig(
        vocab_size=60,
        hidden_size=16,
        num_hidden_layers=blocks,
        num_attention_heads=2,
        intermediate_size=24,
        max_position_embeddings=16,
        initializer_range=0.3,
    )
    model = transformers.BertModel(config).eval()
    for i, block in enumerate(model.encoder.layer):
        block.output.dense.weight.data *= (0.3, 1.5, 0.2, 1.0, 0.7)[i]
    return model


def decoder() -> Any:
    torch.manual_seed(0)
    config = transformers.LlamaConfig(
        vocab_size=60,
        hidden_size=16,
        num_hidden_layers=4,
        num_attention_heads=2,
        num_key_value_heads=1,
        intermediate_size=24,
        max_position_embeddings=16,
        initializer_range=0.2,
    )
    return transformers.LlamaForCausalLM(config).eval()


def translator() -> Any:
    torch.manual_seed(0)
    config = transformers.T5Config(
        vocab_size=60,
        d_model=16,
        d_kv=8,
        d_ff=24,
        num_layers=3,
        num_decoder_layers=4,
        num_heads=2,
        decoder_start_token_id=0,
    )
    return transformers.T5ForConditionalGeneration(config).eval()


def torch_encoder() -> nn.Module:
    torch.manual_seed(0)
    layer = nn.TransformerEncoderLayer(16, 2, 24, batch_first=True)
    model = nn.TransformerEncoder(layer, 4)
    for p in model.parameters():  # the layers are copies of one
        p.data += 0.1 * torch.randn(p.shape)
    return model.eval()


def items(count: int = 4) -> Items:
    source = torch.Generator().manual_seed(1)
    found = []
    for _ in range(count):
        ids = torch.randint(0, 60, (2, 9), generator=source)
        mask = torch.ones_like(ids)
        mask[1, 6:] = 0
        found.append({"input_ids": ids, "attention_mask": mask})
    return found


def without(model: Any, kept: tuple[int, ...], stack: int = 0) -> Any:
    """A copy with fewer blocks in one stack."""
    shortened = copy.deepcopy(model)
    stacks = [find_stacks(shortened)[stack]]
    remove_blocks_(shortened, {stacks[0].name: kept}, stacks)
    return shortened


@torch.inference_mode()
def output_error(model: Any, dense: Any, given: Items) -> float:
    """The squared relative error of the hidden states, padding left out."""
    lost = size = 0.0
    for item in given:
        mask = item["attention_mask"].bool()
        wanted = dense(**item)[0][mask].double()
        lost += float((model(**item)[0][mask].double() - wanted).square().sum())
        size += float(wanted.square().sum())
    return lost / size


def test_outputs_is_a_greedy_search() -> None:
    dense, given = encoder(), items()
    kept = (0, 1, 2, 3)
    for count in (1, 2, 3):
        fewer = [tuple(i for i in kept if i != gone) for gone in kept]
        kept = min(fewer, key=lambda left: output_error(without(dense, left), dense, given))
        model = copy.deepcopy(dense)
        report = se.prune(model, granularity=se.Layer(count=count), calibration=given)
        assert [site.kept for site in report.sites] == [kept]
        assert report.criterion == "outputs"
        assert torch.equal(model(**given[0])[0], without(dense, kept)(**given[0])[0])


@torch.no_grad()
def hidden_states(model: Any, given: Items) -> list[tuple[Tensor, Tensor]]:
    """What enters and leaves each block, as float64 rows without padding."""
    by_item = []
    for item in given:
        mask = item["attention_mask"].bool()
        states = model(**item, output_hidden_states=True).hidden_states
        by_item.append([x[mask].double() for x in states])
    rows = [torch.cat(parts) for parts in zip(*by_item, strict=True)]
    return list(pairwise(rows))


@pytest.mark.parametrize("criterion", ["influence", "activation"])
def test_change_of_the_hidden_states(criterion: str) -> None:
    dense, given = encoder(), items()
    costs = []
    for x, y in hidden_states(dense, given):
        if criterion == "influence":
            costs.append(1 - float(((x * y).sum(1) / (x.norm(dim=1) * y.norm(dim=1))).mean()))
        else:
            costs.append(float((y - x).norm() ** 2 / x.norm() ** 2))
    order = sorted(range(4), key=costs.__getitem__)
    assert order != sorted(order)
    for count in (1, 2, 3):
        model = copy.deepcopy(dense)
        report = se.prune(model, count / 4, "layer", criterion, calibration=given)
        assert report.sites[0].kept == tuple(sorted(order[count:]))


def test_controls_need_no_calibration() -> None:
    report = se.prune(encoder(), 0.5, "layer", "last")
    assert report.sites[0].kept == (0, 1)
    seeds = [se.prune(encoder(), 0.5, "layer", "random", seed=i).sites[0].kept for i in range(8)]
    assert len(set(seeds)) > 1
    model = encoder()
    weights = sum(p.numel() for p in model.parameters())
    report = se.prune(model, granularity="layer(count=1)", criterion="random")
    left = sum(p.numel() for p in model.parameters())
    assert report.parameters == (weights, left)
    assert weights - left == sum(p.numel() for p in encoder().encoder.layer[0].parameters())
    assert (report.granularity, report.recovery) == ("layer(count=1)", None)


def test_the_report_counts_multiply_adds_of_whole_blocks() -> None:
    report = se.prune(encoder(), granularity="layer(count=1)", criterion="last")
    block, pooler = 4 * 16 * 16 + 2 * 16 * 24, 16 * 16
    assert report.multiply_adds == (4 * block + pooler, 3 * block + pooler)
    assert report.pruned_multiply_adds == 4 * block / (4 * block + pooler)
    assert report.zeros_of_parameters < 0.2  # biases, and the embedding of padding
    assert report.warnings == []


def test_patterns_tell_which_may_go() -> None:
    report = se.prune(encoder(), 0.5, "layer", "last", layers=["encoder.layer.[0-2]"])
    assert report.sites[0].kept == (0, 3)
    report = se.prune(encoder(), 0.5, "layer", "last", ignore=["encoder.layer.3", "pooler"])
    assert report.sites[0].kept == (0, 3)
    report = se.prune(translator(), 0.5, "layer", "last", layers=["decoder"])
    assert [(site.name, site.kept) for site in report.sites] == [("decoder.block", (0, 1))]


def test_stacks_lose_their_shares_or_compete() -> None:
    given = [item | {"decoder_input_ids": item["input_ids"]} for item in items()]
    report = se.prune(translator(), granularity=se.Layer(count=1), calibration=given)
    assert [len(site.kept) for site in report.sites] == [2, 3]
    model = translator()
    for block in model.decoder.block[:3]:  # blocks that do nothing
        for part, name in ((0, "SelfAttention"), (1, "EncDecAttention")):
            getattr(block.layer[part], name).o.weight.data.zero_()
        block.layer[2].DenseReluDense.wo.weight.data.zero_()
    structure = se.Layer(count=3)
    report = se.prune(model, granularity=structure, calibration=given, allocator="raw")
    assert [site.kept for site in report.sites] == [(0, 1, 2), (3,)]


@pytest.mark.parametrize("make", [encoder, decoder], ids=["post-norm", "pre-norm"])
@pytest.mark.parametrize("gone", [0, 1])
def test_least_squares_makes_up_for_a_block(make: Any, gone: int) -> None:
    dense, given = make(), items(16)
    model = make()
    kept = tuple(i for i in range(4) if i != gone)
    names = [stack.blocks[gone] for stack in find_stacks(model)]
    se.prune(model, 0.25, "layer", "last", "least_squares", calibration=given, layers=names)
    left = output_error(without(dense, kept), dense, given)
    assert output_error(model, dense, given) < 0.7 * left
    old, new = ([m.get_submodule(n) for n in find_stacks(m)[0].blocks] for m in (dense, model))
    for i, (before, after) in enumerate(zip((old[i] for i in kept), new, strict=True)):
        pairs = zip(before.parameters(), after.parameters(), strict=True)
        same = [torch.equal(*pair) for pair in pairs]
        assert all(same) if i < gone else not all(same)


@torch.no_grad()
def test_the_first_refit_against_a_solver() -> None:
    """The queries behind a removed block, by ridge regression to those of the dense model."""
    dense, given = encoder(), items(16)
    model = encoder()
    blocks = ["encoder.layer.1"]
    se.prune(model, 0.25, "layer", "last", "least_squares", calibration=given, layers=blocks)
    (_, x), (_, wanted) = hidden_states(dense, given)[:2]  # without and with the block
    query = dense.encoder.layer[2].attention.self.query
    weight, bias = query.weight.double(), query.bias.double()
    targets = wanted @ weight.T + bias
    centred = x - x.mean(0)
    gram = centred.T @ centred
    gram += 0.01 * gram.diagonal().mean() * torch.eye(16)
    missing = targets - targets.mean(0) - centred @ weight.T
    fitted = weight + torch.linalg.solve(gram, centred.T @ missing).T
    found = model.encoder.layer[1].attention.self.query
    torch.testing.assert_close(found.weight.double(), fitted, rtol=1e-3, atol=1e-4)
    shift = targets.mean(0) - fitted @ x.mean(0)
    torch.testing.assert_close(found.bias.double(), shift, rtol=1e-3, atol=1e-4)


def test_an_encoder_without_a_block_refits_the_decoder() -> None:
    given = [item | {"decoder_input_ids": item["input_ids"]} for item in items(8)]
    dense, model = translator(), translator()
    patterns = ["encoder.block.0"]
    arguments = {"calibration": given, "layers": patterns, "recovery": "least_squares"}
    report = se.prune(model, 0.34, "layer", "last", **arguments)
    assert [site.kept for site in report.sites] == [(1, 2)]

    def error(other: Any) -> float:
        with torch.inference_mode():
            pairs = [(other(**item).logits, dense(**item).logits) for item in given]
        return sum(float((a - b).square().sum()) for a, b in pairs)

    assert error(model) < 0.7 * error(without(dense, (1, 2)))


def test_blocks_fits_what_is_in_front_of_the_last_one() -> None:
    dense, given = encoder(), items(8)
    fitted, plain = encoder(), encoder()
    arguments = {"calibration": given, "seed": 0}
    report = se.prune(fitted, 0.25, "layer", "last", "blocks(steps=60)", **arguments)
    se.prune(plain, 0.25, "layer", "last", **arguments)
    assert [block.name for block in report.blocks] == ["encoder.layer.2"]
    assert report.blocks[0].error_after < report.blocks[0].error_before
    assert output_error(fitted, dense, given) < 0.7 * output_error(plain, dense, given)


def test_stacks_of_torch_with_padding() -> None:
    model, given = torch_encoder(), []
    for seed in range(6):
        x = torch.randn(2, 7, 16, generator=torch.Generator().manual_seed(seed))
        given.append(
            {"src": x, "src_key_padding_mask": torch.arange(7) >= torch.tensor([[7], [5]])}
        )
    dense = copy.deepcopy(model)
    arguments = {"calibration": given, "layers": ["layers.1"], "recovery": "least_squares"}
    report = se.prune(model, 0.25, "layer", "influence", **arguments)
    assert [(site.name, site.kept) for site in report.sites] == [("layers", (0, 2, 3))]
    plain = without(dense, (0, 2, 3))

    def error(other: nn.Module) -> float:
        seen = ~given[0]["src_key_padding_mask"]
        with torch.inference_mode():
            pairs = [(other(**item)[seen], dense(**item)[seen]) for item in given]
        return sum(float((a - b).square().sum()) for a, b in pairs)

    assert error(model) < 0.8 * error(plain)


def test_refusals_leave_the_model_untouched() -> None:
    model = encoder()
    before = copy.deepcopy(model.state_dict())
    layer = {"granularity": "layer", "sparsity": 0.5, "criterion": "last"}
    for arguments, message in (
        ({"sparsity": None}, "fraction of layers"),
        ({"sparsity": 0.0}, "fraction of layers"),
        ({"sparsity": 0.1}, r"removes none of the 4 layers of encoder\.layer; 0\.25 removes one"),
        ({"granularity": se.Layer(count=1)}, "both tell how many"),
        ({"granularity": se.Layer(count=4), "sparsity": None}, "3 may go, and 1 stays"),
        ({"granularity": se.Layer(count=1, keep=4), "sparsity": None}, "none of 4 can be removed"),
        ({"granularity": "layer(count=0)", "sparsity": None}, "less than 1"),
        ({"granularity": ["layer", "head"]}, "a step of its own"),
        ({"criterion": "obs"}, "choose one of random, last"),
        ({"criterion": None}, "outputs needs calibration"),
        ({"recovery": "least_squares"}, "least_squares needs calibration"),
        ({"recovery": "bias", "calibration": items()}, "does not make up for removed layers"),
        ({"allocator": "erk"}, "does not share out layers"),
        ({"ignore": ["encoder"]}, "every layer of this model is ignored"),
        ({"layers": ["encoder.layer.7"]}, "matches no layer"),
        ({"ignore": ["encoder.layer.[0-2]"]}, "1 may go"),
        ({"calibration": [{"words": torch.ones(1, 3)}], "criterion": "influence"}, "words"),
    ):
        with pytest.raises(UsageError, match=message):
            se.prune(model, **(layer | arguments))
    assert len(model.encoder.layer) == model.config.num_hidden_layers == 4
    for key, value in model.state_dict().items():
        assert torch.equal(value, before[key])
    with pytest.raises(UsageError, match="none of 1 can be removed"):
        se.prune(encoder(1), **layer)
    with pytest.raises(UsageError, match="no stack of a Sequential is known"):
        se.prune(nn.Sequential(nn.Linear(8, 8), nn.Linear(8, 8)), **layer)
    config = transformers.AlbertConfig(
        vocab_size=60, embedding_size=8, hidden_size=16, num_attention_heads=2, intermediate_size=24
    )
    with pytest.raises(UsageError, match="no stack of a AlbertModel is known"):
        se.prune(transformers.AlbertModel(config), **layer)
    sparse = encoder()
    se.prune(sparse, 0.7)
    assert se.sparsify_(sparse, "csr").swapped
    with pytest.raises(UsageError, match="sparse already: densify_"):
        se.prune(sparse, **layer)
    shared = encoder()
    shared.encoder.layer[3] = shared.encoder.layer[1]
    with pytest.raises(UsageError, match="share"):
        se.prune(shared, **layer)


def test_an_interrupt_leaves_the_model_untouched() -> None:
    model = encoder()
    before = copy.deepcopy(model.state_dict())

    def interrupting(done: int, total: int, text: str) -> None:
        if text.endswith("layer.2.attention.output.dense"):
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        se.prune(
            model,
            0.25,
            "layer",
            "last",
            "least_squares",
            calibration=items(),
            layers=["encoder.layer.0"],
            progress=interrupting,
        )
    assert list(model.state_dict()) == list(before)
    for key, value in model.state_dict().items():
        assert torch.equal(value, before[key])


@pytest.mark.parametrize(
    ("recovery", "ignore", "warned"),
    [
        ("least_squares", ["*.0", "*.1", "*.2"], True),
        ("least_squares", ["*.3"], False),
        ("blocks", ["*.0", "*.1", "*.2"], False),
        (None, ["*.0", "*.1", "*.2"], False),
    ],
)
def test_last_layers_that_cannot_be_repaired(
    recovery: str | None, ignore: list[str], warned: bool
) -> None:
    given = [{"input_ids": torch.arange(12).view(2, 6)}]
    structure = se.Layer(count=1)
    report = se.prune(
        encoder(),
        None,
        structure,
        "last",
        recovery,
        given,
        ignore=[f"encoder.layer{i[1:]}" for i in ignore],
    )
    message = "encoder.layer: the last layers are gone, and no layer behind them"
    assert any(line.startswith(message) for line in report.warnings) == warned


def test_the_last_layers_of_an_encoder_that_a_decoder_reads() -> None:
    given = [
        {"input_ids": torch.arange(12).view(2, 6), "decoder_input_ids": torch.ones(2, 3).long()}
    ]
    report = se.prune(translator(), None, se.Layer(count=1), "last", "least_squares", given)
    warned = [site.name for site in report.sites if site.warning]
    assert warned == ["decoder.block"]
