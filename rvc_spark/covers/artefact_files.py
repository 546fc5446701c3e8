"""What the artefact store asks of a disk: read without following links, sync, empty a draft, ask for a lock."""

from __future__ import annotations

import os
import stat
from contextlib import suppress
from pathlib import Path

import filelock

MAX_SIDECAR_BYTES = 1 << 20


def is_held(lock_file: Path) -> bool:
    """Whether a living process holds this lock; asking never waits."""
    if not lock_file.exists():
        return False
    lock = filelock.FileLock(lock_file, thread_local=False)
    try:
        lock.acquire(timeout=0)
    except filelock.Timeout:
        return True
    lock.release()
    return False


def read_plain(path: Path) -> bytes:
    """The content of a small regular file; a link is an error like any other."""
    handle = os.open(path, os.O_RDONLY | getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_NONBLOCK", 0))
    with open(handle, "rb") as file:
        if not stat.S_ISREG(os.fstat(handle).st_mode):
            raise OSError("not a regular file")
        data = file.read(MAX_SIDECAR_BYTES + 1)
    if len(data) > MAX_SIDECAR_BYTES:
        raise ValueError("too large for a sidecar")
    return data


def empty_folder(folder: Path) -> None:
    """Remove a draft and the files in it; never what a link leads to."""
    if folder.is_symlink():
        folder.unlink()
        return
    with suppress(FileNotFoundError):
        for path in list(folder.iterdir()):
            if path.is_symlink() or not path.is_dir():
                path.unlink(missing_ok=True)
        folder.rmdir()


def sync(path: Path) -> None:
    """Have the disk hold a file, or a folder's list of names, before going on. Windows cannot sync a folder."""
    if os.name == "nt" and path.is_dir():
        return
    handle = os.open(path, os.O_RDONLY if path.is_dir() else os.O_RDWR)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
