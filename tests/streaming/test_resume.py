"""A run that was killed continues, and writes the bytes of an uninterrupted one."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch

pytest.importorskip("transformers")

from sharded import save_sharded, tensors_of, token_batches

import sparse_engine as se
from sparse_engine.errors import InvalidFileError, UsageError
from sparse_engine.io import load_pretrained, save_checkpoint
from sparse_engine.pruning.allocators import Allocator, Setting
from sparse_engine.pruning.allocators.base import DenseModel
from sparse_engine.streaming import open_checkpoint, prune_checkpoint, unfinished

torch.set_num_threads(1)

# Kills its own process after the first module, or in the middle of the second one.
KILLED = """
import os, signal, sys
import torch
torch.set_num_threads(1)
sys.path.insert(0, sys.argv[1])
from test_resume import OPTIONS, token_batches
from sparse_engine.streaming import open_checkpoint, prune_checkpoint
from sparse_engine.streaming.copies import Copies

written = 0
write = Copies.write


def counted(self, name, values):
    global written
    write(self, name, values)
    written += 1
    if written == int(sys.argv[4]):
        os.kill(os.getpid(), signal.SIGKILL)


Copies.write = counted
prune_checkpoint(
    open_checkpoint(sys.argv[2]), sys.argv[3], **OPTIONS, calibration=token_batches()
)
"""
OPTIONS: dict[str, Any] = {
    "sparsity": 0.5,
    "criterion": "sparsegpt",
    "recovery": "least_squares",
    "seed": 7,
}


def pruned(source: Path, out: Path, **options: Any) -> dict[str, bytes]:
    """The files that a run writes, without the seconds it took."""
    given = {**OPTIONS, "calibration": token_batches(), **options}
    prune_checkpoint(open_checkpoint(source), out, **given)
    return files_of(out)


def files_of(out: Path) -> dict[str, bytes]:
    found = {path.name: path.read_bytes() for path in out.iterdir()}
    report = json.loads(found.pop("pruning.json"))
    report["seconds"] = 0
    for row in report["layers"]:
        row["seconds"] = 0
    return found | {"report": json.dumps(report).encode()}


def killed(source: Path, out: Path, after: int) -> None:
    paths = os.pathsep.join(sys.path)
    done = subprocess.run(
        [sys.executable, "-c", KILLED, str(Path(__file__).parent), source, out, str(after)],
        env={**os.environ, "PYTHONPATH": paths},
        capture_output=True,
        text=True,
    )
    assert done.returncode == -signal.SIGKILL, done.stderr[-2000:]
    assert unfinished(out).is_dir()
    assert not out.exists()


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_sharded(tmp_path_factory.mktemp("stream") / "source", "llama", torch.bfloat16)


def test_killed_in_a_module_and_continued(source: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    expected = pruned(source, tmp_path / "whole")
    killed(source, out, 10)  # in the middle of the second of three modules of seven layers
    state = json.loads((unfinished(out) / "state.json").read_text())
    assert state["state"]["done"] == 1
    seen: list[int] = []
    assert pruned(source, out, on_module=lambda done, *_: seen.append(done)) == expected
    assert seen == [2, 3]
    assert not unfinished(out).exists()


def test_killed_in_the_first_module(source: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    expected = pruned(source, tmp_path / "whole")
    killed(source, out, 3)
    with pytest.raises(UsageError, match="another sparsity"):  # some tensors are overwritten
        pruned(source, out, sparsity=0.3)
    assert pruned(source, out) == expected


@pytest.mark.parametrize("criterion", ["random", "magnitude"])
def test_interrupted_without_calibration(criterion: str, source: Path, tmp_path: Path) -> None:
    options = {"criterion": criterion, "recovery": None, "calibration": None}
    expected = pruned(source, tmp_path / "whole", **options)
    out = tmp_path / "out"

    def interrupt(done: int, *_: object) -> None:
        if done == 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        pruned(source, out, **options, on_module=interrupt)
    assert not out.exists()
    assert pruned(source, out, **options) == expected


@dataclass(frozen=True)
class ByEnergy(Allocator):
    """Prunes the layers whose inputs have more energy less; reads the dense model."""

    name = "by_energy"
    needs = ("norms",)

    def allocate(self, dense: DenseModel, requested: Setting) -> dict[str, Setting]:
        settings = {}
        for layer, inputs in dense.inputs():
            assert inputs.norms is not None
            share = 1 / (2 + float(inputs.norms.mean()) / 10)
            settings[layer.name] = Setting(requested.granularity, share)
        return settings


def test_an_allocator_that_reads_the_dense_model(source: Path, tmp_path: Path) -> None:
    model, folder = load_pretrained(source)
    options = {"criterion": "wanda", "recovery": None, "allocator": ByEnergy()}
    report = se.prune(model, 0.5, calibration=token_batches(), **options)
    save_checkpoint(model, tmp_path / "memory", folder, report.to_dict())
    expected = pruned(source, tmp_path / "whole", **options)
    before, after = tensors_of(tmp_path / "memory"), tensors_of(tmp_path / "whole")
    assert all(torch.equal(before[name], after[name]) for name in before)
    assert len({round(row.sparsity, 3) for row in report.layers}) > 3

    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        pruned(source, tmp_path / "out", **options, on_module=interrupt)
    assert pruned(source, tmp_path / "out", **options) == expected


@pytest.fixture
def begun(source: Path, tmp_path: Path) -> Path:
    """The output of a run that was interrupted after its first module."""

    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        pruned(source, tmp_path / "out", on_module=interrupt)
    return tmp_path / "out"


def test_another_request_is_refused(source: Path, begun: Path, tmp_path: Path) -> None:
    before = {p: p.read_bytes() for p in unfinished(begun).rglob("*") if p.is_file()}
    for options, named in [
        ({"sparsity": 0.6}, r"another sparsity \(0.5, now 0.6\)"),
        ({"criterion": "wanda"}, "another criterion"),
        ({"seed": 8}, "another seed"),
        ({"calibration": token_batches(2)}, "another calibration"),
    ]:
        with pytest.raises(UsageError, match=named):
            pruned(source, begun, **options)
    changed = Path(shutil.copytree(source, tmp_path / "changed"))
    sorted(changed.glob("*.safetensors"))[0].touch()
    with pytest.raises(UsageError, match="another source"):
        pruned(changed, begun)
    assert before == {p: p.read_bytes() for p in unfinished(begun).rglob("*") if p.is_file()}


def test_a_damaged_state_is_refused(source: Path, begun: Path) -> None:
    path = unfinished(begun) / "state.json"
    good = path.read_text()
    for key in ("done", "dense", "report", "generator"):
        state = json.loads(good)
        del state["state"][key]
        path.write_text(json.dumps(state))
        with pytest.raises(InvalidFileError, match="damaged: remove"):
            pruned(source, begun)
    path.write_text(good[:-3])
    with pytest.raises(InvalidFileError, match=r"not valid JSON.*: remove"):
        pruned(source, begun)
    path.write_text(good)
    for states in (unfinished(begun) / "states").iterdir():
        states.write_bytes(states.read_bytes()[:100])
    with pytest.raises(InvalidFileError, match="calibration states are cut short"):
        pruned(source, begun)


def test_a_copy_that_lost_bytes_is_refused(source: Path, begun: Path) -> None:
    path = min((unfinished(begun) / "model").glob("*.safetensors"))
    path.write_bytes(path.read_bytes()[:1000])
    with pytest.raises(InvalidFileError, match=r"is cut short: remove .* to begin again"):
        pruned(source, begun)
    assert not begun.exists()


def test_a_folder_of_another_kind_is_left_alone(source: Path, tmp_path: Path) -> None:
    mine = unfinished(tmp_path / "out") / "mine.txt"
    mine.parent.mkdir()
    mine.write_text("keep")
    with pytest.raises(UsageError, match="is no unfinished run: remove it"):
        pruned(source, tmp_path / "out")
    assert mine.read_text() == "keep"
