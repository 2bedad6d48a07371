"""Folders on disk: written atomically, and read without following links.

A new folder or file is written as a temporary sibling, flushed to the disk and then renamed.
"""

from __future__ import annotations

import fcntl
import os
import re
import secrets
import shutil
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from sparse_engine.errors import InvalidFileError, SparseEngineError, UsageError


def check_free(target: Path) -> None:
    """Raise UsageError unless `target` does not exist yet and its parent does."""
    if os.path.lexists(target):
        raise UsageError(f"{target} exists: remove it or choose another name")
    if not target.absolute().parent.is_dir():
        raise UsageError(f"{target.absolute().parent} is not a folder: create it first")


@contextmanager
def new_folder(target: Path) -> Iterator[Path]:
    """A temporary sibling to write into; it becomes `target` when the block ends without an error.

    An error removes the draft. The draft of a killed process is removed by the next process that
    writes `target`.

    Raises:
        UsageError: `target` exists.
        SparseEngineError: The files cannot be written.
    """
    check_free(target)
    parent, name = target.absolute().parent, target.absolute().name
    draft = parent / f".{name}.{secrets.token_hex(6)}.tmp"
    lock = None
    try:
        _remove_leftovers(parent, name)
        lock = _make_locked(draft)
        yield draft
        for folder, _, names in os.walk(draft):
            for name in names:
                _flush(os.path.join(folder, name))
            _flush(folder)
        check_free(target)
        os.rename(draft, target)
    except OSError as error:
        shutil.rmtree(draft, ignore_errors=True)
        reason = error.strerror or str(error)
        raise SparseEngineError(
            f"cannot write {target}: {reason}; nothing was left behind"
        ) from error
    except BaseException:
        shutil.rmtree(draft, ignore_errors=True)
        raise
    finally:
        if lock is not None:
            os.close(lock)
    _flush(parent)


@contextmanager
def new_file(target: Path) -> Iterator[Path]:
    """A temporary sibling to write; it replaces the file `target` when the block ends.

    An error removes the draft, and leaves `target` as it was.

    Raises:
        SparseEngineError: The file cannot be written.
    """
    draft = target.with_name(f".{target.name}.{secrets.token_hex(6)}.tmp")
    try:
        yield draft
        _flush(draft)
        os.replace(draft, target)
        _flush(target.absolute().parent)
    except OSError as error:
        reason = error.strerror or str(error)
        raise SparseEngineError(f"cannot write {target}: {reason}") from error
    finally:
        draft.unlink(missing_ok=True)


def _make_locked(draft: Path) -> int:
    """Make a folder and lock it; the descriptor holds the lock as long as this process lives.

    A process that removes leftovers may lock the folder first; then a new one is made.
    """
    while True:
        draft.mkdir()
        handle = os.open(draft, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            fcntl.flock(handle, fcntl.LOCK_EX)
            if os.path.samestat(os.fstat(handle), os.stat(draft)):
                return handle
        except FileNotFoundError:
            pass
        except OSError:  # a file system without locks, where leftovers stay
            return handle
        os.close(handle)


def _remove_leftovers(parent: Path, name: str) -> None:
    """Remove the drafts of `name` that no live process has locked."""
    drafts = re.compile(rf"\.{re.escape(name)}\.[0-9a-f]{{12}}\.tmp")
    for found in filter(drafts.fullmatch, os.listdir(parent)):
        try:
            handle = os.open(parent / found, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)
        except OSError:  # not a folder, removed already, or of another user
            continue
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
            shutil.rmtree(parent / found, ignore_errors=True)
        except OSError:
            pass
        finally:
            os.close(handle)


def _flush(path: str | Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


@contextmanager
def open_inside(folder: Path, name: str) -> Iterator[int]:
    """A descriptor of the regular file `name` ("a.json" or "1_Pooling/config.json") of `folder`.

    No part of `name` may be a link, so nothing outside the folder is ever read. Raises
    InvalidFileError.
    """
    *folders, last = name.split("/")
    handle = _open(folder, None, folder, os.O_DIRECTORY)
    try:
        for part in folders:
            inner = _open(folder / name, handle, Path(part), os.O_DIRECTORY | os.O_NOFOLLOW)
            os.close(handle)
            handle = inner
        # Without O_NONBLOCK, opening a FIFO would wait for its writer.
        file = _open(folder / name, handle, Path(last), os.O_NOFOLLOW | os.O_NONBLOCK)
    finally:
        os.close(handle)
    try:
        _check_regular(file, folder / name)
        yield file
    finally:
        os.close(file)


def _open(shown: Path, base: int | None, path: Path, flags: int) -> int:
    try:
        return os.open(path, os.O_RDONLY | os.O_CLOEXEC | flags, dir_fd=base)
    except FileNotFoundError:
        raise InvalidFileError(f"{shown}: is missing") from None
    except OSError as error:
        linked = base is not None and stat.S_ISLNK(
            os.stat(path, dir_fd=base, follow_symlinks=False).st_mode
        )
        reason = "is a link, which a package may not hold" if linked else error.strerror
        raise InvalidFileError(f"{shown}: {reason}") from None


def read_regular(path: Path, limit: int) -> bytes | None:
    """All bytes of a file, at most `limit`, links followed; None where there is none.

    Raises InvalidFileError for anything else, without waiting for it: a FIFO, a device, a folder.
    """
    try:
        handle = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
    except (FileNotFoundError, NotADirectoryError, ValueError):  # the last for a null character
        return None
    except OSError as error:
        raise InvalidFileError(f"{path}: {error.strerror}") from None
    try:
        return _read(handle, path, limit)
    finally:
        os.close(handle)


def read_inside(folder: Path, name: str, limit: int) -> bytes:
    """All bytes of a file of `folder`, at most `limit`; raises InvalidFileError."""
    with open_inside(folder, name) as handle:
        return _read(handle, folder / name, limit)


def _read(handle: int, path: Path, limit: int) -> bytes:
    _check_regular(handle, path)
    size = os.fstat(handle).st_size
    if size > limit:
        raise InvalidFileError(f"{path}: {size} bytes, at most {limit} are read")
    with open(handle, "rb", closefd=False) as file:
        return file.read(size)


def _check_regular(handle: int, path: Path) -> None:
    if not stat.S_ISREG(os.fstat(handle).st_mode):
        raise InvalidFileError(f"{path}: is not a regular file")
