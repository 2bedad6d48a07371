"""inspect says what is in a package, verify whether it computes what was packed."""

from __future__ import annotations

import copy
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

import sparse_engine as se
from sparse_engine.errors import InvalidFileError, UsageError, VerificationError
from sparse_engine.io import inspect, save, verify
from sparse_engine.io.verification import compare

torch.set_num_threads(1)


def dense() -> Any:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(12, 20), nn.ReLU(), nn.Linear(20, 7), nn.Linear(7, 3))
    model.eval().requires_grad_(False)
    for i in (0, 2):
        model[i].weight.mul_(torch.rand_like(model[i].weight) < 0.25)
    return model


def pack(folder: Path, dtype: str = "float32", recipe: dict[str, Any] | None = None) -> Path:
    model = dense()
    config = se.SparseConfig(format="bsr:2x1", dtype=dtype)
    report = se.sparsify_(model, config, filter_fn=lambda module, name: name != "3")
    return save(model, folder, report=report, recipe=recipe)


INPUTS = [torch.randn(4, 12, generator=torch.Generator().manual_seed(s)) for s in range(3)]


def test_inspect(tmp_path: Path) -> None:
    found = inspect(pack(tmp_path / "a", recipe={"sparsity": 0.75}))
    truth = dense()
    assert [row.name for row in found.rows] == ["0", "2", "3"]
    for row in found.rows:
        weight = truth[int(row.name)].weight
        assert row.shape == tuple(weight.shape)
        assert row.sparsity == pytest.approx(1 - int(weight.count_nonzero()) / weight.numel())
        assert row.dense_bytes == weight.nbytes
    assert [row.format for row in found.rows] == ["bsr:2x1", "bsr:2x1", "dense"]
    assert found.rows[0].kernel.startswith("spmm_runs_f32")
    assert found.rows[0].reason == "requested"
    assert found.rows[2].reason == "left out by filter_fn"
    parameters = sum(p.numel() for p in truth.parameters())
    zeros = sum(p.numel() - int(p.count_nonzero()) for p in truth.parameters())
    assert found.parameters == parameters
    assert found.dense_bytes == 4 * parameters
    assert found.sparsity == pytest.approx(zeros / parameters)
    saved = sum(row.dense_bytes - row.bytes for row in found.rows)
    assert found.bytes == found.dense_bytes - saved
    assert found.recipe == {"sparsity": 0.75}


def test_inspect_prints_and_serialises(tmp_path: Path) -> None:
    found = inspect(pack(tmp_path / "a"))
    text = str(found)
    assert "2 of 3 layers sparse" in text
    assert "bsr:2x1" in text
    assert "kernels here: spmm_runs_f32" in text
    assert json.loads(json.dumps(found.to_dict()))["rows"][0]["name"] == "0"
    elsewhere = replace(found, machine={"cpu": "another processor", "isa": "avx2"})
    assert "convert again" in str(elsewhere)
    assert "convert again" not in text


def test_inspect_without_report_or_sparse_layers(tmp_path: Path) -> None:
    found = inspect(save(dense(), tmp_path / "a"))
    assert found.rows == ()
    assert found.machine is None
    assert "0 of 0 layers" in str(found)


def test_inspect_refuses_damage(tmp_path: Path) -> None:
    folder = pack(tmp_path / "a")
    (folder / "sparse_engine.safetensors").write_bytes(b"")
    with pytest.raises(InvalidFileError):
        inspect(folder)


def test_verify_hashes_only(tmp_path: Path) -> None:
    seen: list[str] = []
    report = verify(pack(tmp_path / "a"), progress=lambda *step: seen.append(step[2]))
    assert report.tensors == len(seen)
    assert report.samples is None
    assert str(report).endswith(f"{report.tensors} tensors and 0 files intact")


@pytest.mark.parametrize(("dtype", "tolerance"), [("float32", 1e-4), ("bfloat16", 5e-2)])
def test_verify_against_a_module(dtype: str, tolerance: float, tmp_path: Path) -> None:
    folder = pack(tmp_path / "a", dtype)
    report = verify(folder, against=dense(), samples=INPUTS, model=dense())
    assert report.samples == 3
    assert report.tolerance == tolerance
    assert report.max_relative_error is not None
    assert (report.max_relative_error < 1e-6) == (dtype == "float32")
    assert report.mean_cosine == pytest.approx(1, abs=1e-4)
    assert "mean cosine" in str(report)
    assert json.loads(json.dumps(report.to_dict()))["samples"] == 3


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_a_dense_model_that_is_not_finite_itself_is_told(bad: float, tmp_path: Path) -> None:
    folder = pack(tmp_path / "a")
    other = dense()
    other[3].bias[0] = bad
    with pytest.raises(VerificationError, match="sample 0: the dense model Sequential gives NaN"):
        verify(folder, against=other, samples=INPUTS, model=dense())
    error, _ = compare(Many(bad), Many(), [(torch.ones(1, 2), torch.zeros(1, 2))])
    assert not error <= 1e30  # a packed model that gives NaN or infinity never passes


def test_a_model_that_fails_on_a_sample_is_one_line(tmp_path: Path) -> None:
    folder = pack(tmp_path / "a")
    with pytest.raises(UsageError) as caught:
        verify(folder, against=dense(), samples=[INPUTS[0], INPUTS[1][:, :5]], model=dense())
    told = str(caught.value)
    assert told.startswith("sample 1: Sequential fails on it: RuntimeError: mat1 and mat2 shapes")
    assert "\n" not in told
    assert isinstance(caught.value.__cause__, RuntimeError)


def test_verify_finds_another_model(tmp_path: Path) -> None:
    folder = pack(tmp_path / "a")
    other = dense()
    other[2].weight[0, 0] += 0.1
    with pytest.raises(
        VerificationError, match=r"outputs differ by .* was Sequential the packed model"
    ):
        verify(folder, against=other, samples=INPUTS, model=dense())


def test_verify_finds_a_flipped_value(tmp_path: Path) -> None:
    folder = pack(tmp_path / "a")
    raw = bytearray((folder / "sparse_engine.safetensors").read_bytes())
    raw[-1] ^= 1
    (folder / "sparse_engine.safetensors").write_bytes(raw)
    with pytest.raises(InvalidFileError, match=r"'3\.bias' does not match its sha256"):
        verify(folder)


def test_inputs_are_needed(tmp_path: Path) -> None:
    folder = pack(tmp_path / "a")
    with pytest.raises(UsageError, match="no vocab_size: give verify its inputs"):
        verify(folder, against=dense(), model=dense())
    with pytest.raises(UsageError, match="give at least one"):
        verify(folder, against=dense(), model=dense(), samples=[])


class Many(nn.Module):
    """Takes keywords, returns a nest."""

    def __init__(self, shift: float = 0.0) -> None:
        super().__init__()
        self.shift = shift

    def forward(self, a: torch.Tensor, b: torch.Tensor) -> dict[str, Any]:
        return {"x": (a + b + self.shift, [a - b]), "ids": a.int(), "none": None}


def test_compare_reads_nests_and_keywords() -> None:
    a, b = torch.tensor([[3.0, 4.0]]), torch.tensor([[0.0, 0.0]])
    for sample in ({"a": a, "b": b}, (a, b)):
        assert compare(Many(), Many(), [sample]) == (0.0, pytest.approx(1.0))
        error, cosine = compare(Many(2.0), Many(), [sample])
        assert error == pytest.approx(0.5)  # 2 of at most 4
        assert cosine == pytest.approx((1 + (15 + 24) / (5 * 61**0.5)) / 2)


def test_compare_refuses_other_shapes() -> None:
    with pytest.raises(VerificationError, match="different shapes"):
        compare(nn.Linear(12, 3), nn.Linear(12, 4), INPUTS)


def test_verify_transformers(tmp_path: Path) -> None:
    transformers = pytest.importorskip("transformers")
    sizes = {"hidden_size": 32, "intermediate_size": 64, "vocab_size": 50}
    heads = {"num_hidden_layers": 1, "num_attention_heads": 4, "max_position_embeddings": 30}
    model = transformers.BertModel(transformers.BertConfig(**sizes, **heads)).eval()
    model.requires_grad_(False)
    model.encoder.layer[0].output.dense.weight[::2] = 0
    model.save_pretrained(tmp_path / "hf")
    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "sparse", "dense"]
    (tmp_path / "hf/vocab.txt").write_text("\n".join(words))
    config = {"tokenizer_class": "BertTokenizer", "do_lower_case": True}
    (tmp_path / "hf/tokenizer_config.json").write_text(json.dumps(config))
    packed = copy.deepcopy(model)
    se.sparsify_(packed, "csr")
    folder = save(packed, tmp_path / "a", source=tmp_path / "hf")
    report = verify(folder, against=tmp_path / "hf")
    assert report.samples == 5
    assert report.files == 3
    assert verify(folder, against=model, samples=["sparse dense", "dense"]).samples == 2
    model.encoder.layer[0].output.dense.weight[::2] = 1
    with pytest.raises(VerificationError):
        verify(folder, against=model)
