"""Checkpoints of compressed-tensors: both formats, both ways of naming, and damaged ones."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

pytest.importorskip("transformers")

from foreign_layouts import bitmask, compress, edit_config, pruned, sparsity_config, write

import sparse_engine as se
from sparse_engine.errors import InvalidFileError, SparseEngineError, UnsupportedModelError
from sparse_engine.io import load, load_pretrained, save, save_checkpoint
from sparse_engine.io.foreign import CompressedTensors, layout_of

torch.set_num_threads(1)
QUERY = "encoder.layer.0.attention.self.query"
FORMATS = {False: "sparse-bitmask", True: "sparse-24-bitmask"}


def make(
    folder: Path,
    two_of_four: bool = False,
    full_names: bool = False,
    dtype: torch.dtype = torch.float32,
    edit: Callable[[dict[str, Tensor]], object] = lambda state: None,
    shards: int = 1,
) -> tuple[Path, Any]:
    """A compressed folder and its dense model."""
    model = pruned(two_of_four, dtype)
    state = compress(model.state_dict(), two_of_four, full_names)
    edit(state)
    config = {"quantization_config": sparsity_config(FORMATS[two_of_four])}
    return write(folder, model, config, state, shards), model


def refused(error: type[SparseEngineError], folder: Path, match: str) -> None:
    with pytest.raises(error, match=match) as caught:
        load_pretrained(folder)
    message = str(caught.value)
    assert "\n" not in message
    assert message.count(str(folder)) == 1


@pytest.mark.parametrize("shards", [1, 3])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("full_names", [False, True])
@pytest.mark.parametrize("two_of_four", [False, True])
def test_every_tensor_is_read_back(
    two_of_four: bool, full_names: bool, dtype: torch.dtype, shards: int, tmp_path: Path
) -> None:
    folder, model = make(tmp_path / "hf", two_of_four, full_names, dtype, shards=shards)
    found, _ = load_pretrained(folder)
    for name, tensor in model.state_dict().items():
        assert torch.equal(found.state_dict()[name], tensor.float()), name


@pytest.mark.parametrize("shape", [(3, 7), (1, 1), (5, 8), (2, 9), (4, 3, 5), (17,), (2, 64)])
def test_odd_shapes(shape: tuple[int, ...]) -> None:
    weight = torch.randn(shape) * (torch.rand(shape) < 0.4)
    parts = bitmask(weight)
    layout = layout_of({"quantization_config": sparsity_config("sparse-bitmask")})
    assert layout is not None
    state = {f"x.weight.{part}": tensor for part, tensor in parts.items()}
    assert torch.equal(layout.plain_state(state)["x.weight"], weight)
    assert list(state) == ["x.weight"]


def test_zeros_that_two_of_four_stores_stay(tmp_path: Path) -> None:
    def edit(state: dict[str, Tensor]) -> None:
        state[f"{QUERY}.compressed"][0] = 0

    folder, model = make(tmp_path / "hf", two_of_four=True, edit=edit)
    expected = model.state_dict()[f"{QUERY}.weight"].clone()
    expected[0] = 0
    assert torch.equal(load_pretrained(folder)[0].state_dict()[f"{QUERY}.weight"], expected)


def test_what_is_written_next_is_plain(tmp_path: Path) -> None:
    folder, model = make(tmp_path / "hf")
    loaded, source = load_pretrained(folder)
    out = save_checkpoint(loaded, tmp_path / "dense", source, {})
    again, _ = load_pretrained(out)
    assert "quantization_config" not in (out / "config.json").read_text()
    se.sparsify_(loaded, "csr")
    packed = load(save(loaded, tmp_path / "package", source=source))
    tokens = torch.arange(8).reshape(2, 4)
    with torch.inference_mode():
        expected = model(tokens)[0]
        assert torch.equal(again(tokens)[0], expected)
        torch.testing.assert_close(packed(tokens)[0], expected, rtol=1e-5, atol=1e-5)


def test_the_older_key_and_no_sparsity(tmp_path: Path) -> None:
    folder, model = make(tmp_path / "hf", full_names=True)
    edit_config(folder, lambda c: c.update(compression_config=c.pop("quantization_config")))
    found, _ = load_pretrained(folder)
    assert torch.equal(found.state_dict()[f"{QUERY}.weight"], model.state_dict()[f"{QUERY}.weight"])
    for sparsity in ({}, {"sparsity_config": {"format": "dense"}}):
        model.save_pretrained(tmp_path / "dense")
        plain = {"quant_method": "compressed-tensors", "format": "dense", **sparsity}
        edit_config(tmp_path / "dense", lambda c, plain=plain: c.update(quantization_config=plain))
        found, _ = load_pretrained(tmp_path / "dense")
        assert torch.equal(found.pooler.dense.weight, model.pooler.dense.weight)


QUANTISED = {"group_0": {"targets": ["Linear"], "weights": {"num_bits": 8}}}


@pytest.mark.parametrize("key", ["quantization_config", "compression_config"])
@pytest.mark.parametrize(
    "more",
    [
        {"config_groups": QUANTISED},
        {"format": "pack-quantized"},
        {"format": "marlin-24"},
        {"kv_cache_scheme": {"num_bits": 8}},
        {"transform_config": {"config_groups": QUANTISED}},
        {"quant_method": "bitsandbytes"},
        {"load_in_4bit": True},
    ],
)
def test_quantised_ones_are_refused(more: dict[str, Any], key: str, tmp_path: Path) -> None:
    folder, _ = make(tmp_path / "hf")
    edit_config(folder, lambda c: c.update({key: c.pop("quantization_config") | more}))
    refused(UnsupportedModelError, folder, f"models with {key} are not supported")


@pytest.mark.parametrize("name", ["sparse-magic", "torch.load", "", None, 3, ["sparse-bitmask"]])
def test_formats_are_those_of_a_table(name: Any, tmp_path: Path) -> None:
    folder, _ = make(tmp_path / "hf")

    def edit(config: dict[str, Any]) -> None:
        config["quantization_config"]["sparsity_config"]["format"] = name

    edit_config(folder, edit)
    refused(InvalidFileError, folder, r"is none of dense, sparse-bitmask, sparse-24-bitmask")


def test_two_descriptions_are_refused(tmp_path: Path) -> None:
    folder, _ = make(tmp_path / "hf")
    edit_config(folder, lambda c: c.update(compression_config=c["quantization_config"]))
    refused(UnsupportedModelError, folder, "models with quantization_config are not supported")


def set_(part: str, value: Tensor) -> Callable[[dict[str, Tensor]], object]:
    return lambda state: state.update({f"{QUERY}.{part}": value})


def change(part: str, edit: Callable[[Tensor], Tensor]) -> Callable[[dict[str, Tensor]], object]:
    return lambda state: state.update({f"{QUERY}.{part}": edit(state[f"{QUERY}.{part}"])})


@pytest.mark.parametrize(
    ("edit", "match"),
    [
        (change("compressed", lambda t: t[:-1]), r"has \d+ bits set for \d+ values"),
        (change("compressed", lambda t: t.to(torch.int8)), "expected a uint8 bitmask of floating"),
        (change("bitmask", lambda t: t.to(torch.int64)), "expected a uint8 bitmask of floating"),
        (change("bitmask", lambda t: t[:, :-1]), "bitmask is 32x3, expected 32x4"),
        (change("bitmask", lambda t: t.flatten()), "bitmask is 128, expected 32x4"),
        (change("bitmask", lambda t: t ^ 1), r"bits set for \d+ values|row_offsets are not"),
        (set_("shape", torch.tensor([32, 31])), "bits set beyond the last column|bits set for"),
        (set_("shape", torch.tensor([32, 64])), "bitmask is 32x4, expected 32x8"),
        (set_("shape", torch.tensor([1 << 62, 32])), "bitmask is 32x4, expected"),
        (set_("shape", torch.tensor([-32, 32])), "has no elements"),
        (set_("shape", torch.tensor([0, 32])), "has no elements"),
        (set_("shape", torch.tensor([])), "shape is no list of at most 8 integers"),
        (set_("shape", torch.ones(9, dtype=torch.int64)), "shape is no list of at most 8"),
        (set_("shape", torch.tensor([32.0, 32.0])), "shape is no list of at most 8 integers"),
        (change("row_offsets", lambda t: t[:-1]), "row_offsets are 31, expected 32 integers"),
        (change("row_offsets", lambda t: t.flip(0)), "are not where the rows of the bitmask start"),
        (change("row_offsets", lambda t: t + 1), "are not where the rows of the bitmask start"),
        (change("row_offsets", lambda t: t.float()), "expected 32 integers"),
        (lambda state: state.pop(f"{QUERY}.shape"), "shape' is missing: sparse-bitmask stores"),
        (lambda state: state.pop(f"{QUERY}.row_offsets"), "row_offsets' is missing"),
        (set_("weight", torch.zeros(32, 32)), "query.weight' exists twice"),
    ],
)
def test_parts_that_contradict_each_other(
    edit: Callable[[dict[str, Tensor]], object], match: str, tmp_path: Path
) -> None:
    folder, _ = make(tmp_path / "hf", edit=edit)
    refused(InvalidFileError, folder, match)


def not_24(bits: Tensor) -> Tensor:
    """The same number of bits, three in the first four and one in the next."""
    bits = bits.clone()
    bits[0, 0] = 0b0001_0111
    return bits


@pytest.mark.parametrize(
    ("edit", "match"),
    [
        (change("bitmask", not_24), "stores more or less than two of four"),
        (change("compressed", lambda t: t.flatten()), "2:4 values are 512 for a weight of 32x32"),
        (change("compressed", lambda t: t[:-1]), "bits set for"),
    ],
)
def test_two_of_four_is_checked(
    edit: Callable[[dict[str, Tensor]], object], match: str, tmp_path: Path
) -> None:
    folder, _ = make(tmp_path / "hf", two_of_four=True, edit=edit)
    refused(InvalidFileError, folder, match)


def test_another_config_needs_more_than_the_bitmasks_hold(tmp_path: Path) -> None:
    folder, _ = make(tmp_path / "hf")
    edit_config(folder, lambda c: c.update(hidden_size=40000, vocab_size=100000))
    refused(InvalidFileError, folder, r"weights, the files hold \d+")


def test_bytes_of_a_bitmask_bound_the_weight() -> None:
    layout = CompressedTensors.of({"quantization_config": sparsity_config("sparse-bitmask")})
    rows = 1 << 20
    parts = bitmask(torch.zeros(2, 8)) | {"shape": torch.tensor([rows, rows])}
    assert layout is not None
    with pytest.raises(InvalidFileError, match=f"bitmask is 2x1, expected {rows}x{rows // 8}"):
        layout.plain_state({f"x.{part}": tensor for part, tensor in parts.items()})
