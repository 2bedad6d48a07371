"""A package is there whole or not at all, whatever happens while it is written."""

from __future__ import annotations

import errno
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from sparse_engine.errors import InvalidFileError, SparseEngineError, UsageError
from sparse_engine.io import folder as folder_module
from sparse_engine.io import load, save, writer
from sparse_engine.io.folder import new_file

torch.set_num_threads(1)


def net(fill: float = 1.0) -> nn.Module:
    model = nn.Sequential(nn.Linear(64, 64))
    nn.init.constant_(model[0].weight, fill)
    return model


def content(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


@pytest.mark.parametrize("kind", ["folder", "empty", "file", "link"])
def test_existing_output_is_refused_before_any_work(
    kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    target = tmp_path / "a"
    if kind == "folder":
        save(net(), target)
    elif kind == "empty":
        target.mkdir()
    elif kind == "file":
        target.write_text("x")
    else:
        target.symlink_to(tmp_path / "nowhere")
    monkeypatch.setattr(writer, "_collect", lambda model: pytest.fail("work was done"))
    with pytest.raises(UsageError, match="exists: remove it or choose another name"):
        save(net(2.0), target)
    assert [path.name for path in tmp_path.iterdir()] == ["a"]


def test_parent_must_exist(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="is not a folder: create it first"):
        save(net(), tmp_path / "no" / "a")


@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EDQUOT, errno.EROFS])
@pytest.mark.parametrize("place", ["mkdir", "fsync", "rename"])
def test_errors_of_the_disk_leave_nothing(
    code: int, place: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    save(net(), tmp_path / "old")
    before = content(tmp_path / "old")

    def fail(*args: Any, **kwargs: Any) -> None:
        raise OSError(code, os.strerror(code))

    monkeypatch.setattr(folder_module.os, place, fail)
    with pytest.raises(SparseEngineError, match=os.strerror(code)) as caught:
        save(net(2.0), tmp_path / "new")
    assert "\n" not in str(caught.value)
    monkeypatch.undo()
    assert [path.name for path in tmp_path.iterdir()] == ["old"]
    assert content(tmp_path / "old") == before


def test_interrupt_leaves_nothing(tmp_path: Path) -> None:
    def stop(done: int, total: int, name: str) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        save(net(), tmp_path / "a", progress=stop)
    assert not list(tmp_path.iterdir())


def test_another_process_may_finish_first(tmp_path: Path) -> None:
    target = tmp_path / "a"

    def race(done: int, total: int, name: str) -> None:
        if done == total:
            save(net(), target)

    with pytest.raises(UsageError, match="exists"):
        save(net(2.0), target, progress=race)
    loaded: Any = load(target, model=net(0.0))
    assert torch.equal(loaded[0].weight, torch.ones(64, 64))
    assert [path.name for path in tmp_path.iterdir()] == ["a"]


def test_folder_is_readable_by_others_as_the_umask_says(tmp_path: Path) -> None:
    (tmp_path / "reference").mkdir()
    save(net(), tmp_path / "a")
    assert (tmp_path / "a").stat().st_mode == (tmp_path / "reference").stat().st_mode


SCRIPT = """
import os, resource, sys
import torch
from torch import nn
from sparse_engine.errors import SparseEngineError
from sparse_engine.io import save
model = nn.Sequential(nn.Linear(256, 256))
hard = resource.getrlimit(resource.RLIMIT_FSIZE)[1]
resource.setrlimit(resource.RLIMIT_FSIZE, (65536, hard))
try:
    save(model, sys.argv[1] + "/limited")
except SparseEngineError as error:
    print(error.exit_code, error)
print(os.listdir(sys.argv[1]), flush=True)
resource.setrlimit(resource.RLIMIT_FSIZE, (hard, hard))
os.rename = lambda *args: os._exit(9)
save(model, sys.argv[1] + "/killed")
"""


def test_a_disk_that_takes_no_more_then_a_kill_before_the_rename(tmp_path: Path) -> None:
    command = [sys.executable, "-c", SCRIPT, str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    error, left = done.stdout.splitlines()
    assert error.startswith(f"2 cannot write {tmp_path}/limited: ")
    assert error.endswith("nothing was left behind")
    assert left == "[]"

    assert done.returncode == 9, done.stderr
    target = tmp_path / "killed"
    (leftover,) = tmp_path.iterdir()
    assert leftover.name.startswith(".killed.")
    with pytest.raises(InvalidFileError):
        load(target, model=net())
    save(net(), tmp_path / "other")
    assert leftover.exists()
    save(net(), target)
    load(target, model=net())
    assert sorted(path.name for path in tmp_path.iterdir()) == ["killed", "other"]


def test_leftovers_are_removed_but_no_living_writer_s(tmp_path: Path) -> None:
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / ".a.0123456789ab.tmp").mkdir()
    (tmp_path / ".a.0123456789ab.tmp/x").write_text("x")
    (tmp_path / ".a.ba9876543210.tmp").symlink_to(tmp_path / "elsewhere")
    (tmp_path / ".a.notes.tmp").mkdir()
    with folder_module.new_folder(tmp_path / "a") as living:
        (living / "x").write_text("x")
        save(net(), tmp_path / "a")  # another one is faster
        assert (living / "x").exists()
        names = {path.name for path in tmp_path.iterdir()}
        assert names == {"a", "elsewhere", living.name, ".a.ba9876543210.tmp", ".a.notes.tmp"}
        shutil.rmtree(tmp_path / "a")
    assert (tmp_path / "a/x").read_text() == "x"


def test_a_new_file_replaces_the_old_one_or_leaves_it(tmp_path: Path) -> None:
    target = tmp_path / "run.json"
    for text in ("first", "second"):
        with new_file(target) as draft:
            draft.write_text(text)
        assert target.read_text() == text

    def write(error: BaseException) -> None:
        with new_file(target) as draft:
            draft.write_text("thi")
            raise error

    with pytest.raises(SparseEngineError, match=r"cannot write .*run.json: No space left"):
        write(OSError(errno.ENOSPC, "No space left on device"))
    with pytest.raises(KeyboardInterrupt):
        write(KeyboardInterrupt())
    assert [path.name for path in tmp_path.iterdir()] == ["run.json"]
    assert target.read_text() == "second"
