"""Files that hold a person's voice: for their owner alone, and never through a link.

    write      to a new file, 0600, brought to the disk before anybody sees it
    read       only a regular file of at most so many bytes; a link, a pipe or a device in its place is refused
    erase      a tree, without ever following a link out of it

Knows paths and bytes, nothing of profiles.
"""

from __future__ import annotations

import errno
import hashlib
import os
import shutil
import stat
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import NoReturn

from rvc_spark.errors import DiskSpaceError, OutputError, ProfileError

BLOCK = 1 << 20
PRIVATE_FOLDER, PRIVATE_FILE = 0o700, 0o600
_NO_FOLLOW = getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_BINARY", 0)


def make_private_folder(path: Path, *, parents: bool = True) -> Path:
    """A folder that only its owner may enter; one that is there is made so.

    parents: make the folders above it too; without it nothing is made in a folder that was deleted meanwhile.
    Raises OutputError, ProfileError.
    """
    try:
        if parents:
            path.parent.mkdir(parents=True, exist_ok=True)
        try:
            os.mkdir(path, PRIVATE_FOLDER)
        except FileExistsError:
            found = os.lstat(path)
            if not stat.S_ISDIR(found.st_mode):
                raise ProfileError(
                    f"{path} is a link or a file, not a folder", "Move it away, or name another place for profiles."
                ) from None
            if stat.S_IMODE(found.st_mode) & 0o077:
                os.chmod(path, PRIVATE_FOLDER)
    except OSError as error:
        _cannot("be made", path, error)
    return path


def write_private(path: Path, content: bytes | Iterable[bytes]) -> tuple[int, str]:
    """Write a file that must not exist yet; returns its bytes and sha256. Raises OutputError, DiskSpaceError."""
    digest, total = hashlib.sha256(), 0
    try:
        handle = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | _NO_FOLLOW, PRIVATE_FILE)
        with os.fdopen(handle, "wb") as file:
            for block in [content] if isinstance(content, bytes) else content:
                file.write(block)
                digest.update(block)
                total += len(block)
            file.flush()
            os.fsync(file.fileno())
    except OSError as error:
        _cannot("be written", path, error)
    return total, digest.hexdigest()


def replace_private(path: Path, content: bytes) -> None:
    """Write a file in the place of another, whole or not at all. Raises OutputError, DiskSpaceError."""
    beside = path.with_name(f".{path.name}.{os.getpid()}.part")
    try:
        beside.unlink(missing_ok=True)
        write_private(beside, content)
        os.replace(beside, path)
        sync_folder(path.parent)
    except OSError as error:
        _cannot("be written", path, error)
    finally:
        beside.unlink(missing_ok=True)


def read_plain(path: Path, max_bytes: int) -> bytes:
    """The bytes of a regular file. Raises ProfileError: a link, no file, or more than `max_bytes`."""
    return b"".join(plain_blocks(path, max_bytes))


def plain_blocks(path: Path, max_bytes: int) -> Iterator[bytes]:
    """The bytes of a regular file in blocks; raises as `read_plain`."""
    try:
        handle = os.open(path, os.O_RDONLY | _NO_FOLLOW)
        with os.fdopen(handle, "rb") as file:
            found = os.fstat(file.fileno())
            if not stat.S_ISREG(found.st_mode):
                raise ProfileError(f"{path.name} is not a regular file", "Do not trust it; delete it.")
            total = 0
            while block := file.read(min(BLOCK, max_bytes + 1 - total)):
                total += len(block)
                if total > max_bytes:
                    raise ProfileError(
                        f"{path.name} has {found.st_size:,} bytes, the limit is {max_bytes:,}", "Do not trust it."
                    )
                yield block
    except (OSError, ValueError) as error:  # ELOOP: a link
        told = "is a link" if getattr(error, "errno", None) == errno.ELOOP else f"cannot be read ({error})"
        raise ProfileError(f"{path.name} {told}", "Put the file itself there, or delete the profile.") from error


def sha256_plain(path: Path, max_bytes: int) -> str:
    """The sha256 of a regular file; raises as `read_plain`."""
    digest = hashlib.sha256()
    for block in plain_blocks(path, max_bytes):
        digest.update(block)
    return digest.hexdigest()


def tree_of(folder: Path, max_files: int) -> dict[str, int]:
    """Every file below a folder as {relative path with `/`: bytes}.

    Raises ProfileError for a link or device anywhere in it, and for more than `max_files`.
    """
    found: dict[str, int] = {}
    waiting = [(folder, "")]
    try:
        while waiting:
            here, prefix = waiting.pop()
            with os.scandir(here) as entries:
                for entry in entries:
                    name = prefix + entry.name
                    if entry.is_dir(follow_symlinks=False):
                        waiting.append((here / entry.name, f"{name}/"))
                    elif entry.is_file(follow_symlinks=False):
                        found[name] = entry.stat(follow_symlinks=False).st_size
                    else:
                        raise ProfileError(f"{ascii(name[:80])} is a link or a device", "Delete the profile.")
                    if len(found) + len(waiting) > max_files:
                        raise ProfileError(f"it holds more than {max_files} files", "Delete the profile.")
    except OSError as error:
        raise ProfileError(f"its folder cannot be read ({error.strerror})", "Check its permissions.") from error
    return found


def erase(path: Path) -> None:
    """Delete a file, a link (not what it leads to) or a whole folder. Raises OutputError when something is left."""
    try:
        while os.path.lexists(path):
            try:
                if path.is_symlink() or not path.is_dir():
                    path.unlink()
                else:
                    shutil.rmtree(path)
            except FileNotFoundError:
                continue  # somebody else erases it too
    except OSError as error:
        raise OutputError(f"{path} cannot be deleted ({error})", "Check its permissions, and again.") from error


def sync_folder(path: Path) -> None:
    """Bring the names in a folder to the disk, where the system can do that."""
    if os.name == "nt":
        return
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def _cannot(what: str, path: Path, error: OSError) -> NoReturn:
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        raise DiskSpaceError(f"the disk of {path.parent} is full", "Free some space and try again.") from error
    raise OutputError(f"{path} cannot {what} ({error})", "Check the folder and its permissions.") from error
