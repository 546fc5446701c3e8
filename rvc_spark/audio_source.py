"""Where sound comes from: a path, bytes, or a stream that may not even seek, turned into one seekable stream.

Refuses what would block for ever or is no file (directories, pipes, devices, addresses). Decodes nothing.
"""

from __future__ import annotations

import io
import os
import stat
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from rvc_spark.audio_container import HEAD_BYTES, refuse_no_sound
from rvc_spark.audio_limits import MAX_STREAM_BYTES
from rvc_spark.errors import AudioError

SPOOL_BYTES = 32 * 2**20
"""A pipe's bytes are kept in memory up to this many, then in an unnamed temporary file."""
COPY_BYTES = 2**20
"""Bytes copied from a pipe at a time."""
MAX_NAME_LENGTH = 200
"""Characters of a file name that a message shows."""

_KINDS_OF_NO_FILE = (
    (stat.S_ISDIR, "a folder", "Give a file in it, or convert the folder as a batch."),
    (stat.S_ISFIFO, "a named pipe", "Pass it as a binary stream: open it yourself, or use standard input ('-')."),
    (stat.S_ISSOCK, "a socket", "Give a sound file."),
    (stat.S_ISCHR, "a device", "Give a sound file."),
    (stat.S_ISBLK, "a device", "Give a sound file."),
)


@dataclass
class Source:
    """A seekable binary stream, its size in bytes and its name for messages. A caller's own stream is never closed."""

    stream: BinaryIO
    name: str
    size: int
    owned: bool

    def close(self) -> None:
        """Release the file. Safe to call twice."""
        if self.owned:
            self.stream.close()


def shown(path: str | os.PathLike[str]) -> str:
    """A path as a message may show it: quoted, control characters escaped, of bounded length."""
    text = repr(os.fspath(path))
    return text if len(text) <= MAX_NAME_LENGTH else f"{text[: MAX_NAME_LENGTH // 2]}...{text[-MAX_NAME_LENGTH // 2 :]}"


def open_source(source: str | os.PathLike[str] | bytes | bytearray | memoryview | BinaryIO) -> Source:
    """Open whatever a caller may have. A stream that can seek is read from its start, wherever it stands.

    Raises:
        AudioError: missing, empty, unreadable, no regular file, a text stream, or a pipe beyond `MAX_STREAM_BYTES`.
    """
    if isinstance(source, (bytes, bytearray, memoryview)):
        opened = Source(io.BytesIO(source), "The sound given as bytes", memoryview(source).nbytes, owned=True)
    elif isinstance(source, (str, os.PathLike)):
        opened = _open_path(source)
    elif hasattr(source, "read"):
        try:
            opened = _open_stream(source)
        except (OSError, ValueError) as error:  # closed, or opened for writing (io.UnsupportedOperation is both)
            raise AudioError(f"The given stream cannot be read ({error})", "Open it in mode 'rb'.") from error
    else:
        raise AudioError(
            f"A {type(source).__name__} is no source of sound",
            "Give a path, bytes or a binary stream; arrays as Audio.",
        )
    if opened.size == 0:
        opened.close()
        raise AudioError(f"{opened.name} is empty (0 bytes)", "Copy, record or download it again.")
    return opened


def _open_path(path: str | os.PathLike[str]) -> Source:
    name = shown(path)
    if not os.fspath(path):
        raise AudioError("The path of the sound is empty", "Give the path of a sound file.")
    try:
        mode = os.stat(path).st_mode
        for is_kind, kind, next_step in _KINDS_OF_NO_FILE:
            if is_kind(mode):
                raise AudioError(f"{name} is {kind}, not a sound file", next_step)
        stream = Path(path).open("rb")
    except FileNotFoundError as error:
        raise _missing(name) from error
    except PermissionError as error:
        raise AudioError(f"{name} may not be read by this user", "Change its permissions or copy it.") from error
    except (OSError, ValueError) as error:  # symlink loop, name too long, NUL in the name, failing disk
        reason = error.strerror if isinstance(error, OSError) else str(error)
        raise AudioError(f"{name} cannot be opened ({reason})", "Check the path.") from error
    return Source(stream, name, os.fstat(stream.fileno()).st_size, owned=True)


def _missing(name: str) -> AudioError:
    if "://" in name:
        return AudioError(f"{name} is an address, not a file here", "Download it first and give the file.")
    return AudioError(f"{name} does not exist", "Check the path; it is relative to the current folder.")


def _open_stream(stream: BinaryIO) -> Source:
    name = "The sound given as a stream"
    seekable = getattr(stream, "seekable", None)
    if seekable is not None and seekable():
        size = stream.seek(0, io.SEEK_END)
        stream.seek(0)
        if isinstance(stream.read(0), str):
            raise _text_stream(name)
        return Source(stream, name, size, owned=False)
    spool = tempfile.SpooledTemporaryFile(max_size=SPOOL_BYTES)
    try:
        size = _copy(stream, spool, name)
    except BaseException:
        spool.close()
        raise
    return Source(spool, name, size, owned=True)


def _copy(stream: BinaryIO, spool: BinaryIO, name: str) -> int:
    """Copy a pipe to its end; what is no sound is refused from its first bytes, before the disk fills up."""
    size = 0
    head = b""
    judged = False
    while True:
        block = stream.read(COPY_BYTES)
        if isinstance(block, str) or block is None:
            raise _text_stream(name)
        if not judged:
            head += block[:HEAD_BYTES]
            if head and (len(head) >= HEAD_BYTES or not block):
                refuse_no_sound(head[:HEAD_BYTES], name)
                judged = True
        if not block:
            return size
        size += len(block)
        if size > MAX_STREAM_BYTES:
            raise AudioError(
                f"{name} goes on after {MAX_STREAM_BYTES} bytes, the limit for a pipe", "Write it to a file first."
            )
        spool.write(block)


def _text_stream(name: str) -> AudioError:
    return AudioError(f"{name} gives text or nothing instead of bytes", "Open it in binary, blocking mode ('rb').")


class RecordingFile:
    """A binary file that keeps the error of a failed write: callbacks of C libraries cannot carry an exception.

    Once `abandoned`, writes are swallowed: what an encoder still has to say when it is closed is of no use any more.
    It begins `start` bytes into the stream, behind what was written there before.
    """

    def __init__(self, stream: BinaryIO, start: int = 0) -> None:
        self._stream, self._start = stream, start
        self.error: OSError | None = None
        self.abandoned = False

    def write(self, data: bytes) -> int:
        """Bytes written: all, or 0 where that failed."""
        if self.abandoned:
            return len(data)
        try:
            return self._stream.write(data)
        except OSError as error:
            self.error = self.error or error
            return 0

    def read(self, count: int = -1) -> bytes:
        """Encoders look back at their headers."""
        return self._stream.read(count)

    def seek(self, offset: int, whence: int = 0) -> int:
        """Go to a place behind `start`."""
        try:
            return (
                self._stream.seek(offset + (0 if whence else self._start), whence) - self._start
            )  # writes out what is buffered, so it fails as a write does
        except OSError as error:
            self.error = self.error or error
            return 0

    def tell(self) -> int:
        """Where it stands, counted from `start`."""
        return self._stream.tell() - self._start
