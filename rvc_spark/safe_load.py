"""The one door for files of tensors that strangers made: torch.save containers and safetensors, within bounds.

    size, first bytes -> directory of the zip -> outline of the pickle -> checksums -> torch.load(weights_only=True)

The outline is the file's own object tree with a `TensorNote` in place of every tensor. It is read by a machine that can
call nothing (`inert_pickle`), so what a file claims is judged before torch sees it and before anything is allocated:
every storage must lie in the file and every tensor in its storage. torch's safe loader then reads the very same bytes;
it has no fallback here. Refuses to know what the tensors mean.
"""

from __future__ import annotations

import io
import math
import pickle
import re
import stat
import struct
import zipfile
import zlib
from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, BinaryIO, NoReturn

import torch

from rvc_spark.errors import MissingPackageError, ModelFileError
from rvc_spark.file_kinds import other_kind
from rvc_spark.inert_pickle import PickleRefusal
from rvc_spark.safetensors_file import (
    looks_like_safetensors,
    read_safetensors_metadata,
    read_safetensors_outline,
    read_safetensors_tensors,
)
from rvc_spark.tensor_outline import StorageSize, TensorNote, legacy_outline, pickle_outline

GIB = 1024**3
MAX_ENTRIES = 20_000  # a voice has 460, a training checkpoint 3,000
MAX_DIRECTORY_BYTES = 4 * 1024**2
MAX_TREE_BYTES = 8 * 1024**2  # data.pkl: 0.05 MB in a voice, 0.4 MB in a training checkpoint
HEAD_BYTES = 512
CHUNK = 1024**2
OLDEST_TORCH = (2, 6)  # before it weights_only could be bypassed (CVE-2025-32434)

Error = Callable[[str, str], ModelFileError]

# Everything zipfile, pickle and torch raise for containers and trees that contradict themselves.
_DAMAGE = (
    zipfile.BadZipFile,
    zlib.error,
    struct.error,
    pickle.UnpicklingError,
    EOFError,
    OSError,
    RuntimeError,
    ValueError,
    TypeError,
    KeyError,
    IndexError,
    AttributeError,
    AssertionError,
    OverflowError,
)


def shown(text: object, limit: int = 100) -> str:
    """A name out of a file, quoted, with control characters escaped and its length bounded, fit for a message."""
    plain = str(text)
    return ascii(plain if len(plain) <= limit else plain[:limit] + "...")


@dataclass
class TensorFile:
    """An open, judged file of tensors.

    `outline` is its object tree: dicts, lists, tuples, text, numbers and TensorNote. `load` gives the same tree with
    tensors. `metadata` is what a safetensors file says of itself, unjudged; empty for other kinds.
    """

    name: str
    size: int  # bytes
    outline: Any
    _load: Callable[[Collection[str] | None], Any]
    refuse: Callable[[str, str], NoReturn]
    metadata: Mapping[str, str] = field(default_factory=dict)

    def load(self, only: Collection[str] | None = None) -> Any:
        """The object tree with real tensors, on the CPU, in the types of the file. Raises the door's error.

        only: names of the tensors wanted; of a safetensors file the others are not read. Other kinds come whole.
        """
        try:
            return self._load(only)
        except PickleRefusal as refusal:
            self.refuse(str(refusal), "Download the file again from a source you trust.")
        except _DAMAGE as problem:
            self.refuse(f"it is damaged ({shown(problem, 120)})", "Download the file again.")


def read_tensors(
    path: str | Path, *, max_bytes: int, what: str, error: type[ModelFileError], mapped: bool = False
) -> Any:
    """The whole content of a torch or safetensors file: containers, text, numbers and CPU tensors.

    Args:
        path: a regular file.
        max_bytes: files above this are refused unread.
        what: the thing expected, for messages ("voice", "pitch model").
        error: the leaf of the error tree to raise.
        mapped: leave the numbers in the file, where the system and the container allow it, to be read when they are
            used. For files that are replaced and never rewritten in place, which would change the tensors.

    Raises:
        error: missing, not a regular file, too large, another kind of file, damaged, or more than data.
        MissingPackageError: torch is too old to be trusted with a stranger's file.
    """
    with open_tensors(path, max_bytes=max_bytes, what=what, error=error, mapped=mapped) as file:
        return file.load()


@contextmanager
def open_tensors(
    path: str | Path, *, max_bytes: int, what: str, error: type[ModelFileError], mapped: bool = False
) -> Iterator[TensorFile]:
    """Open and judge a file without reading its numbers; arguments and errors as `read_tensors`."""
    require_safe_torch()
    name = shown(Path(path).name)

    def refuse(problem: str, next_step: str) -> NoReturn:
        raise error(f"{name} is refused as a {what}: {problem}", next_step)

    with _open_regular(path, max_bytes, refuse) as handle:
        size = handle.seek(0, io.SEEK_END)
        handle.seek(0)
        head = handle.read(HEAD_BYTES)
        try:
            outline, load = _judge(handle, head, size, refuse, mapped)
            metadata = read_safetensors_metadata(handle) if looks_like_safetensors(head, size) else {}
        except PickleRefusal as refusal:
            refuse(str(refusal), "Use a file from a source you trust, saved by torch as plain tensors.")
        except _DAMAGE as problem:
            refuse(f"it is damaged ({shown(problem, 120)})", "Download the file again.")
        yield TensorFile(name, size, outline, load, refuse, metadata)


def require_safe_torch(version: str = torch.__version__) -> None:
    """Raises MissingPackageError when torch's weights_only loading can be bypassed (CVE-2025-32434)."""
    found = re.match(r"(\d+)\.(\d+)", version)
    if found is None or (int(found[1]), int(found[2])) < OLDEST_TORCH:
        raise MissingPackageError(
            f"torch {version} cannot be trusted with model files from strangers (CVE-2025-32434); 2.6 is the oldest",
            "Run: pip install 'torch>=2.6'",
        )


def _open_regular(path: str | Path, max_bytes: int, refuse: Callable[[str, str], NoReturn]) -> BinaryIO:
    try:
        status = Path(path).stat()
        if stat.S_ISDIR(status.st_mode):
            refuse("it is a folder", "Give the path of the file in it.")
        if not stat.S_ISREG(status.st_mode):  # opening a pipe would wait for ever, a device never ends
            refuse("it is not a regular file", "Give the path of the file itself.")
        if status.st_size == 0:
            refuse("it is empty (0 bytes); a download was cut off", "Download the file again.")
        if status.st_size > max_bytes:
            refuse(f"it has {status.st_size:,} bytes, the limit is {max_bytes:,}", "Check that this is the right file.")
        return Path(path).open("rb")
    except (OSError, ValueError) as problem:  # ValueError: a NUL character in the path
        reason = getattr(problem, "strerror", None) or str(problem)
        refuse(f"it cannot be opened ({reason})", "Check the path.")


def _judge(
    handle: BinaryIO, head: bytes, size: int, refuse: Callable[[str, str], NoReturn], mapped: bool
) -> tuple[Any, Callable[[Collection[str] | None], Any]]:
    if head.startswith(b"PK\x03\x04"):
        archive = _TorchZip(handle, size, refuse)
        return archive.outline, lambda only: archive.load(mapped)
    if head[:1] == b"\x80" and head[1:2] in (b"\x02", b"\x03", b"\x04", b"\x05"):
        return _judge_stream(handle, size)
    if looks_like_safetensors(head, size):
        outline = read_safetensors_outline(handle, size)
        return outline, lambda only: read_safetensors_tensors(handle, size, only, mapped=mapped)
    kind = other_kind(head)
    if kind is not None:
        refuse(f"it is {kind[0]}", kind[1])
    refuse(f"it starts with {head[:8].hex(' ')}, which neither torch nor safetensors writes", "Check the file.")


def _torch_load(handle: BinaryIO, mapped: bool = False) -> Any:
    # torch maps files by their names only. This name stands for the open, judged file whatever happens to its path.
    opened = Path(f"/proc/self/fd/{handle.fileno()}")
    if mapped and opened.exists():
        return _plain(torch.load(str(opened), map_location="cpu", weights_only=True, mmap=True))
    handle.seek(0)
    return _plain(torch.load(handle, map_location="cpu", weights_only=True))


def _plain(tree: Any) -> Any:
    """Fresh plain containers: a pickle may give an OrderedDict attributes that hide its own methods."""
    if isinstance(tree, dict):
        return {key: _plain(value) for key, value in dict.items(tree)}
    if isinstance(tree, list | tuple):
        return type(tree)(_plain(value) for value in tree) if type(tree) in (list, tuple) else list(tree)
    return tree.detach() if isinstance(tree, torch.Tensor) else tree


def _judge_stream(handle: BinaryIO, size: int) -> tuple[Any, Callable[[Collection[str] | None], Any]]:
    """The container from before torch 1.6: five pickles, then the numbers."""
    handle.seek(0)
    outline, used = legacy_outline(handle.read(MAX_TREE_BYTES))
    if used > size:
        raise PickleRefusal(f"it is cut off: {used:,} bytes are described and {size:,} are there")
    return outline, lambda only: _torch_load(handle)


class _TorchZip:
    """`<folder>/data.pkl` plus one uncompressed entry `<folder>/data/<key>` per storage."""

    def __init__(self, handle: BinaryIO, size: int, refuse: Callable[[str, str], NoReturn]) -> None:
        self._handle = handle
        _check_directory(handle, size, refuse)
        self._zip = zipfile.ZipFile(handle)
        entries = self._zip.infolist()
        self._entries = {entry.filename: entry for entry in entries}
        trees = [name for name in self._entries if name.endswith("/data.pkl") and name.count("/") == 1]
        if len(trees) != 1:
            inside = [name for name in self._entries if name.lower().endswith((".pth", ".pt", ".safetensors"))]
            found = f" with {shown(inside[0])} in it" if inside else ""
            refuse(f"it is a zip archive{found}, not a file saved by torch", "Unpack it and give the model inside.")
        if len(entries) != len(self._entries):
            refuse("two entries of its archive have the same name", "Use a file from a source you trust.")
        self._folder = trees[0].removesuffix("data.pkl")
        if self._folder + "constants.pkl" in self._entries:
            refuse("it is a TorchScript program, not plain tensors", "Use the checkpoint it was exported from.")
        self._check_entries(size, refuse)
        tree = self._entries[trees[0]]
        if tree.file_size > MAX_TREE_BYTES:
            refuse(f"its object tree has {tree.file_size:,} bytes, the limit is {MAX_TREE_BYTES:,}", "Check the file.")
        self.outline, storages = pickle_outline(self._zip.read(tree))
        self._check_storages(storages)

    def _check_entries(self, size: int, refuse: Callable[[str, str], NoReturn]) -> None:
        total = 0
        for entry in self._entries.values():
            total += entry.file_size
            if entry.compress_type != zipfile.ZIP_STORED or entry.file_size != entry.compress_size:
                refuse(
                    f"its entry {shown(entry.filename)} is compressed to {entry.compress_size:,} of "
                    f"{entry.file_size:,} bytes, which torch never does (an archive bomb?)",
                    "Use a file from a source you trust.",
                )
        if total > size:
            refuse(f"its entries claim {total:,} of {size:,} bytes", "Use a file from a source you trust.")

    def _check_storages(self, storages: Mapping[str, StorageSize]) -> None:
        for key, storage in storages.items():
            entry = self._entries.get(f"{self._folder}data/{key}")
            if entry is None:
                raise PickleRefusal(f"its data entry {shown(key)} is missing")
            if entry.file_size != storage.bytes:
                raise PickleRefusal(f"its data entry {key} has {entry.file_size:,} bytes instead of {storage.bytes:,}")

    def load(self, mapped: bool) -> Any:
        """torch never compares the archive's checksums, so a flipped bit would become a wrong weight; do it here."""
        for entry in self._entries.values():
            with self._zip.open(entry) as content:
                while content.read(CHUNK):
                    pass
        return _torch_load(self._handle, mapped)


_END = struct.Struct("<4s4H2LH")
_END64 = struct.Struct("<4sQ2H2L4Q")


def _check_directory(handle: BinaryIO, size: int, refuse: Callable[[str, str], NoReturn]) -> None:
    """Refuse an archive whose directory alone would fill the memory, before zipfile reads it."""
    reach = min(size, _END.size + 65_535)
    handle.seek(size - reach)
    tail = handle.read(reach)
    at = tail.rfind(b"PK\x05\x06")
    if at < 0 or at + _END.size > len(tail):
        refuse("it is cut off: the end of the archive is missing", "Download the file again.")
    *_, entries, directory, _, _ = _END.unpack_from(tail, at)
    at64 = tail.rfind(b"PK\x06\x06", 0, at)
    if at64 >= 0 and at64 + _END64.size <= at:
        *_, entries64, directory64, _ = _END64.unpack_from(tail, at64)
        entries = entries64 if entries == 0xFFFF else entries
        directory = directory64 if directory == 0xFFFFFFFF else directory
    if entries > MAX_ENTRIES or directory > MAX_DIRECTORY_BYTES:
        refuse(
            f"its archive directory has {entries:,} entries in {directory:,} bytes; the limits are {MAX_ENTRIES:,} "
            f"and {MAX_DIRECTORY_BYTES:,}",
            "Use a file from a source you trust.",
        )


def note_bytes(note: TensorNote) -> int:
    """Bytes the numbers of a tensor take."""
    count = 1
    for size in note.shape:
        count *= size
    return count * note.dtype.itemsize


def all_finite(tensor: torch.Tensor) -> bool:
    """Whether no number is infinite or undefined; looking for the extremes is ten times as fast as `isfinite`."""
    if not tensor.numel() or not tensor.is_floating_point():
        return True
    tensor = tensor.detach().float() if tensor.itemsize == 1 else tensor.detach()  # torch compares no 8-bit floats
    low, high = torch.aminmax(tensor)  # either is NaN where any number is
    return math.isfinite(low) and math.isfinite(high)
