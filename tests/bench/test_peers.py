"""Peers give the right result or a reason, and never end a run; no test depends on a time."""

from __future__ import annotations

import ast
import json
import sys
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
import torch

from sparse_engine.bench import peer_hosts as hosts
from sparse_engine.bench import peers as room
from sparse_engine.bench.accuracy import TOLERANCE, max_error, spread
from sparse_engine.bench.kernel import bench_kernel
from sparse_engine.bench.linear_grid import LinearGrid
from sparse_engine.bench.output import reasons, render
from sparse_engine.bench.patterns import random_weight
from sparse_engine.bench.peer_hosts import Local, PeerSet, Remote
from sparse_engine.bench.peers import PEERS, find_peers
from sparse_engine.bench.timing import samples_in_turn
from sparse_engine.cli import main
from sparse_engine.errors import UsageError

CASES = [(peer, dtype) for peer in PEERS for dtype in peer.dtypes]
KNOWN = {peer.name: peer for peer in PEERS}
SMALL: dict[str, Any] = {
    "n": (16,),
    "k": (24,),
    "m": (2,),
    "sparsity": (0.5,),
    "format": ("csr",),
    "rounds": 1,
}


@pytest.mark.parametrize(("peer", "dtype"), CASES, ids=lambda value: getattr(value, "name", value))
@torch.inference_mode()
def test_peer_meets_float64(peer: room.Peer, dtype: str) -> None:
    for package in peer.packages:
        if find_spec(package) is None:
            pytest.skip(f"{package} is not installed")
    rounded = torch.bfloat16 if dtype == "bfloat16" else torch.float32
    weight = random_weight(48, 64, 0.7, "csr").to(rounded).float()
    weight[5] = 0
    try:
        loaded = peer.load(weight, dtype, (1, 1))
    except UsageError as error:
        pytest.skip(f"{peer.name} {error}")
    for tokens in (1, 5):
        x = torch.randn(tokens, 64).to(rounded).float()
        assert max_error(loaded(x)(), weight, x) <= TOLERANCE[dtype]


def test_blocks_of_torch_bsr() -> None:
    bsr = Local(KNOWN["torch-bsr"])
    weight, x = random_weight(24, 16, 0.5, "bsr:4x4"), torch.randn(3, 16)
    bsr.load(weight, "float32", (4, 4))
    bsr.start(x)
    # torch runs no 4x1 blocks, and 16x16 ones do not tile 24 rows.
    with pytest.raises(UsageError, match="16x16 blocks do not tile"):
        bsr.load(weight, "float32", (4, 1))


def test_unknown_and_missing_peers(monkeypatch: pytest.MonkeyPatch) -> None:
    assert [peer.name for peer in find_peers(["scipy", "torch", "scipy"])] == ["scipy", "torch"]
    with pytest.raises(UsageError, match="torch-csr"):
        find_peers(["numpy"])
    monkeypatch.setattr(room, "find_spec", lambda name: None)
    with pytest.raises(UsageError, match=r"onnx is not installed.*sparse-engine\[bench\]"):
        LinearGrid(against=("torch", "onnxruntime"))


def test_a_dense_peer_is_needed() -> None:
    for against in ((), ("scipy", "torch-csr")):
        with pytest.raises(UsageError, match="no dense float32"):
            LinearGrid(against=against)


def test_process_of_its_own() -> None:
    """Any peer can be hosted in a process; torch needs no further package."""
    remote = Remote(KNOWN["torch"])
    try:
        weight = random_weight(16, 24, 0.5, "csr")
        with pytest.raises(UsageError, match="KeyError"):
            remote.load(weight, "int3", (1, 1))
        remote.load(weight, "float32", (1, 1))
        sampler = remote.start(torch.randn(3, 24))
        here = Local(KNOWN["scipy"])
        here.load(weight, "float32", (1, 1))
        both = {"there": sampler, "here": here.start(torch.randn(3, 24))}
        assert min(found.median for found in samples_in_turn(both, rounds=1).values()) > 0
    finally:
        remote.close()
    assert remote._process.returncode == 0


def test_dead_process_is_reported(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hosts.sys, "executable", "/bin/false")
    remote = Remote(KNOWN["torch"])
    with pytest.raises(UsageError, match="its process ended"):
        remote.load(torch.ones(2, 2), "float32", (1, 1))
    remote.close()


def test_failing_peers_are_reported_and_the_others_run(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*_: object) -> None:
        raise RuntimeError("out of\nluck")

    fakes = (
        KNOWN["torch"],
        room.Peer("broken", broken, ("float32",)),  # type: ignore[arg-type]
        room.Peer("wrong", lambda w, *_: lambda x: lambda: x @ w.T + 1, ("float32",)),
        room.Peer("flat", lambda w, *_: lambda x: lambda: x, ("float32",)),
    )
    monkeypatch.setattr(room, "PEERS", fakes)
    names = ("torch", "broken", "wrong", "flat")
    (row,) = bench_kernel(LinearGrid(**SMALL, against=names))
    assert list(row.peers) == ["torch"]
    assert row.refused["broken"] == "RuntimeError: out of luck"
    assert "is wrong by" in row.refused["wrong"]
    assert "instead of [2, 16]" in row.refused["flat"]
    assert len(reasons([row, row])) == 3
    with pytest.raises(UsageError, match="no dense engine to compare with: broken RuntimeError"):
        list(bench_kernel(LinearGrid(**SMALL, against=("broken",))))


def test_dense_peers_keep_a_weight_of_the_same_shape(monkeypatch: pytest.MonkeyPatch) -> None:
    loads: list[str] = []
    load = Local.load
    monkeypatch.setattr(
        Local, "load", lambda self, *a: (loads.append(self.peer.name), load(self, *a))[1]
    )
    first, second = (random_weight(16, 24, s, "csr") for s in (0.5, 0.9))
    with PeerSet(("torch", "scipy")) as peer_set:
        for weight in (first, first, second):
            for tokens in (1, 2):
                assert len(peer_set.start(weight, torch.randn(tokens, 24), "float32", (1, 1))) == 2
        peer_set.start(first, torch.randn(1, 24), "bfloat16", (1, 1))
    assert loads.count("torch") == 2  # float32, bfloat16
    assert loads.count("scipy") == 2  # two weights; scipy has no bfloat16
    assert "bfloat16" in peer_set.refused["scipy"]


def test_rows_name_the_fastest_dense_engine(capsys: pytest.CaptureFixture[str]) -> None:
    grid = LinearGrid(**SMALL, dtype=("float32", "int8"), against=("scipy", "torch"))
    f32, i8 = rows = list(bench_kernel(grid))
    assert f32.dense_engine == i8.dense_engine == "torch"
    assert list(f32.peers) == ["scipy", "torch"]
    assert f32.peers["torch"] == f32.dense_time_us
    assert list(i8.peers) == ["torch"]
    assert i8.dense_bytes == 16 * 24
    assert i8.max_rel_err <= TOLERANCE["int8"]
    head, _, *body = render(rows, "md").splitlines()
    assert head.endswith("| time_p10_us | time_p90_us | scipy_us | torch_us |")
    assert "| dense_engine |" in head
    assert {line.count("|") for line in body} == {head.count("|")}


def test_command_line(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    sizes = "-n 16 -k 24 -m 2 --sparsity 0.5 --format csr --rounds 1 -o json"
    options = "--dtype float32,int8 --against torch,torch-csr"
    monkeypatch.setattr(sys, "argv", ["sparse-engine", *f"bench kernel {sizes} {options}".split()])
    with pytest.raises(SystemExit) as stop:
        main()
    assert not stop.value.code
    out, err = capsys.readouterr()
    rows = json.loads(out)
    assert [row["dtype"] for row in rows] == ["float32", "int8"]
    assert set(rows[0]["peers"]) == {"torch", "torch-csr"}
    assert set(rows[1]["refused"]) == {"torch-csr"}
    assert "not measured: torch-csr (int8) has no matrix product" in err
    monkeypatch.setattr(sys, "argv", ["sparse-engine", "bench", "kernel", "--against", "mkl"])
    with pytest.raises(SystemExit) as stop:
        main()
    assert stop.value.code == 2
    assert capsys.readouterr().err.startswith("error: peer 'mkl'")


def test_tokens_that_are_checked() -> None:
    assert spread(1, 16).tolist() == [0]
    assert spread(5, 16).tolist() == [0, 1, 2, 3, 4]
    some = spread(2048, 16).tolist()
    assert (some[0], some[-1], len(set(some))) == (0, 2047, 16)


def test_scripts_never_run_on_import() -> None:
    """What bench/ holds are scripts, and what they are made of: importing them must not measure."""
    kinds = (ast.FunctionDef, ast.ClassDef, ast.Import, ast.ImportFrom, ast.Assign, ast.AnnAssign)
    for path in (Path(__file__).parents[2] / "bench").glob("*.py"):
        docstring, *rest = ast.parse(path.read_text()).body
        assert isinstance(docstring, ast.Expr)
        for node in rest:
            guard = isinstance(node, ast.If) and ast.unparse(node.test) == "__name__ == '__main__'"
            assert guard or isinstance(node, kinds), f"{path}:{node.lineno}"
