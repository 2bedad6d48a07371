"""save and load of plain torch modules: same outputs, same bytes, nothing copied."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import sparse_engine as se
from sparse_engine.errors import UsageError
from sparse_engine.io import load, save
from sparse_engine.nn import SparseLinear

torch.set_num_threads(1)
SPECS = ("csr", "bsr:4x1", "bsr:3x2", "bsr:16x1", "bitmask", "nm:2:4", "nm:1:3", "sellp")


class Net(nn.Module):
    """Odd sizes, no bias here and there, tied embeddings, all kinds of buffers."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding(11, 13)
        self.wide = nn.Linear(13, 29)
        self.narrow = nn.Linear(29, 7, bias=False)
        self.one = nn.Linear(7, 1)
        self.norm = nn.BatchNorm1d(13)
        self.decoder = nn.Linear(13, 11, bias=False)
        self.decoder.weight = self.embedding.weight
        self.register_buffer("flags", torch.tensor([True, False, True]))
        self.register_buffer("halves", torch.rand(3).half())
        self.register_buffer("none", torch.zeros(0, 5))
        self.register_buffer("scratch", torch.full((2,), 7.0), persistent=False)

    def forward(self, tokens: Tensor) -> tuple[Tensor, Tensor]:
        x = self.norm(self.embedding(tokens))
        return self.one(self.narrow(torch.relu(self.wide(x)))), self.decoder(x)


def pruned(spec: str, seed: int = 0) -> Net:
    """A net whose linear weights have the pattern that `spec` needs; one row and one layer
    empty.
    """
    torch.manual_seed(seed)
    net = Net().eval().requires_grad_(False)
    for linear in (net.wide, net.narrow, net.one):
        keep = torch.rand_like(linear.weight) < 0.3
        if spec.startswith("nm"):
            _, kept, of = spec.split(":")
            keep &= (torch.arange(keep.shape[1]) % int(of)) < int(kept)
        linear.weight.mul_(keep)
        linear.weight[0] = 0
    return net


def packed(spec: str, dtype: str = "float32", seed: int = 0) -> tuple[Net, se.SparsifyReport]:
    net = pruned(spec, seed)
    report = se.sparsify_(net, se.SparseConfig(format=spec, dtype=dtype))
    assert len(report.swapped) == 3
    return net, report


TOKENS = torch.randint(11, (5,), generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "int8"])
@pytest.mark.parametrize("spec", SPECS)
def test_round_trip(spec: str, dtype: str, tmp_path: Path) -> None:
    net, report = packed(spec, dtype)
    assert save(net, tmp_path / "a", report=report) == tmp_path / "a"
    loaded = load(tmp_path / "a", model=Net())
    assert isinstance(loaded, Net)
    assert isinstance(loaded.wide, SparseLinear)
    assert loaded.wide.format == spec
    assert not loaded.training
    assert not any(p.requires_grad for p in loaded.parameters())
    with torch.inference_mode():
        for got, expected in zip(loaded(TOKENS), net(TOKENS), strict=True):
            assert torch.equal(got, expected)
    got, expected = loaded.state_dict(), net.state_dict()
    assert got.keys() == expected.keys()
    for name, tensor in expected.items():
        assert got[name].dtype == tensor.dtype, name
        assert torch.equal(got[name], tensor), name


def test_tied_parameters_are_stored_once_and_tied_again(tmp_path: Path) -> None:
    net, _ = packed("csr")
    save(net, tmp_path / "a")
    manifest = json.loads((tmp_path / "a/sparse_engine.json").read_bytes())
    entries = {entry["name"]: entry for entry in manifest["tensors"]}
    assert "decoder.weight" not in entries
    assert entries["embedding.weight"]["aliases"] == ["decoder.weight"]
    assert "scratch" not in entries
    loaded = load(tmp_path / "a", model=Net())
    assert loaded.decoder.weight is loaded.embedding.weight
    assert torch.equal(loaded.scratch, torch.full((2,), 7.0))


def test_a_layer_shared_by_two_modules_is_stored_once(tmp_path: Path) -> None:
    shared = SparseLinear.from_dense(nn.Linear(5, 5), "csr")
    model = nn.Sequential(shared, nn.Sequential(shared), nn.Linear(5, 2))
    save(model, tmp_path / "a")
    skeleton = nn.Sequential(nn.Linear(5, 5), nn.Sequential(nn.Linear(5, 5)), nn.Linear(5, 2))
    loaded: Any = load(tmp_path / "a", model=skeleton)
    assert loaded[0] is loaded[1][0]
    x = torch.rand(3, 5)
    with torch.inference_mode():
        assert torch.equal(loaded(x), model(x))


@pytest.mark.parametrize("spec", ["csr", "bitmask"])
def test_same_model_same_bytes(spec: str, tmp_path: Path) -> None:
    for name in ("a", "b"):
        net, _ = packed(spec)
        save(net, tmp_path / name, recipe={"sparsity": 0.7})
    files = sorted(path.name for path in (tmp_path / "a").iterdir())
    assert files == ["sparse_engine.json", "sparse_engine.safetensors"]
    for name in files:
        assert (tmp_path / "a" / name).read_bytes() == (tmp_path / "b" / name).read_bytes()
    again = load(tmp_path / "a", model=Net())
    save(again, tmp_path / "c", recipe={"sparsity": 0.7})
    for name in files:
        assert (tmp_path / "a" / name).read_bytes() == (tmp_path / "c" / name).read_bytes()


def test_safetensors_reads_what_is_written(tmp_path: Path) -> None:
    from safetensors import safe_open

    net, _ = packed("bitmask")
    save(net, tmp_path / "a")
    state = {**net.state_dict(), **net.wide.to_format().tensors()}
    with safe_open(tmp_path / "a/sparse_engine.safetensors", framework="pt") as file:
        assert torch.equal(file.get_tensor("flags"), state["flags"])
        assert torch.equal(file.get_tensor("halves"), state["halves"])
        assert torch.equal(file.get_tensor("wide.mask"), state["mask"])
        assert torch.equal(file.get_tensor("wide.values"), state["values"])


def mapped_ranges(path: Path) -> list[range]:
    """Address ranges of this process that map the file at `path`."""
    inode, found = str(path.stat().st_ino), []
    for line in Path("/proc/self/maps").read_text().splitlines():
        fields = line.split()
        if fields[4] == inode:
            low, high = (int(part, 16) for part in fields[0].split("-"))
            found.append(range(low, high))
    return found


def test_loads_share_one_copy_in_memory(tmp_path: Path) -> None:
    net, _ = packed("csr")
    save(net, tmp_path / "a")
    loads = [load(tmp_path / "a", model=Net()) for _ in range(2)]
    ranges = mapped_ranges(tmp_path / "a/sparse_engine.safetensors")
    for loaded in loads:
        for name in ("wide.values", "wide.columns", "wide.starts", "embedding.weight"):
            module, _, key = name.partition(".")
            address = getattr(loaded.get_submodule(module), key).data_ptr()
            assert any(address in found for found in ranges), name
            assert address % 64 == 0, name
    assert len(ranges) >= 2


def test_writing_to_a_loaded_tensor_leaves_the_file_alone(tmp_path: Path) -> None:
    net, _ = packed("csr")
    save(net, tmp_path / "a")
    before = (tmp_path / "a/sparse_engine.safetensors").read_bytes()
    one, two = (load(tmp_path / "a", model=Net()) for _ in range(2))
    one.embedding.weight.zero_()
    assert torch.equal(two.embedding.weight, net.embedding.weight)
    assert (tmp_path / "a/sparse_engine.safetensors").read_bytes() == before


def test_a_skeleton_on_meta_is_enough(tmp_path: Path) -> None:
    net = nn.Sequential(nn.Linear(9, 4), nn.ReLU(), nn.Linear(4, 3))
    net[0].weight.data[::2] = 0
    assert se.sparsify_(net, "csr").swapped
    save(net, tmp_path / "a")
    with torch.device("meta"):
        skeleton = nn.Sequential(nn.Linear(9, 4), nn.ReLU(), nn.Linear(4, 3))
    x = torch.rand(2, 9)
    with torch.inference_mode():
        assert torch.equal(load(tmp_path / "a", model=skeleton)(x), net(x))


def test_a_model_without_sparse_layers(tmp_path: Path) -> None:
    net = pruned("csr")
    save(net, tmp_path / "a")
    loaded = load(tmp_path / "a", model=Net())
    with torch.inference_mode():
        assert torch.equal(loaded(TOKENS)[0], net(TOKENS)[0])


def test_recipe_and_choices_are_kept(tmp_path: Path) -> None:
    net = pruned("csr")
    report = se.sparsify_(net, se.SparseConfig(format="auto", tokens=(1, 3)))
    recipe = {"sparsity": 0.7, "steps": [1, 2.5, None, "x"]}
    save(net, tmp_path / "a", report=report, recipe=recipe)
    manifest = json.loads((tmp_path / "a/sparse_engine.json").read_bytes())
    assert manifest["recipe"] == recipe
    assert [choice["name"] for choice in manifest["choices"]] == [row.name for row in report.rows]
    assert manifest["choices"][0]["times_us"].keys() == report.rows[0].times_us.keys()
    assert set(manifest["machine"]) == {"cpu", "isa"}
    load(tmp_path / "a", model=Net())


def test_progress_counts_tensors_and_layers(tmp_path: Path) -> None:
    net, _ = packed("csr")
    seen: list[tuple[int, int, str]] = []
    save(net, tmp_path / "a", progress=lambda *step: seen.append(step))
    assert [done for done, _, _ in seen] == list(range(1, seen[0][1] + 1))
    seen.clear()
    load(tmp_path / "a", model=Net(), progress=lambda *step: seen.append(step))
    assert seen == [(1, 3, "wide"), (2, 3, "narrow"), (3, 3, "one")]


def test_load_needs_a_module_and_a_known_device(tmp_path: Path) -> None:
    save(nn.Sequential(nn.Linear(2, 2)), tmp_path / "a")
    with pytest.raises(UsageError, match="holds a plain torch module: give the module to fill"):
        load(tmp_path / "a")
    with pytest.raises(UsageError, match="device 'abacus'"):
        load(tmp_path / "a", model=nn.Sequential(nn.Linear(2, 2)), device="abacus")
    if not torch.cuda.is_available():
        with pytest.raises(UsageError, match="device 'cuda': torch sees no such GPU here"):
            load(tmp_path / "a", model=nn.Sequential(nn.Linear(2, 2)), device="cuda")
