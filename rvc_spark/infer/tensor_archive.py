"""Open what `torch.save` wrote without torch.load: the zip container (torch >= 1.6) and the older plain stream.

The object tree goes through `inert_pickle`, so every class in it stays a record. Tensors stay descriptions
(`TensorNote`: which storage, offset, shape, strides) until `materialize` reads the storages that were asked for, so an
optimizer state of gigabytes beside the weights costs nothing. Each description must fit into its storage and each
storage into the file: memory is bounded by the file's size. Unlike `tensor_outline`, which prepares a file for torch's
own loader and allows no class in it, foreign classes are welcome here, since nothing else will read the bytes
afterwards. The module refuses to know what the tensors mean.
"""

from __future__ import annotations

import contextlib
import io
import stat
import struct
import zipfile
import zlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, Protocol

import torch

from rvc_spark.errors import EncoderFileError
from rvc_spark.file_kinds import other_kind
from rvc_spark.inert_pickle import MAX_STREAM_BYTES, InertMachine, Name, PickleRefusal
from rvc_spark.safe_load import shown
from rvc_spark.tensor_outline import LEGACY_MAGIC, LEGACY_PROTOCOL, STORAGE_TYPES

MAX_FILE_BYTES = 6 * 1024**3  # a large HuBERT with its optimizer state is 3.8 GB
MAX_ENTRIES = 20_000
MAX_DIRECTORY_BYTES = 4 * 1024**2
MAX_DIMENSIONS = 8
_END_RECORD = struct.Struct("<4s4H2LH")
_END_RECORD64 = struct.Struct("<4sQ2H2L4Q")


@dataclass(frozen=True, slots=True)
class StorageNote:
    """A run of `count` numbers of one type, `first` numbers into the stored run called `key`."""

    key: str
    dtype: torch.dtype
    count: int
    first: int = 0


@dataclass(frozen=True, slots=True)
class TensorNote:
    """A tensor that has not been read: a strided view of a storage, known to lie inside it."""

    storage: StorageNote
    offset: int
    shape: tuple[int, ...]
    stride: tuple[int, ...]


class _Container(Protocol):
    tree: Any

    def read(self, storage: StorageNote) -> bytearray: ...


_AGAIN = "Download the file again from a source you trust."


def _refuse(path: Path, reason: str) -> EncoderFileError:
    return EncoderFileError(f"{shown(path.name)} is refused: {reason}", _AGAIN)


# --- building descriptions instead of tensors ------------------------------------------------------------------------


def _whole_numbers(values: Any) -> tuple[int, ...]:
    if not isinstance(values, (tuple, list)) or len(values) > MAX_DIMENSIONS:
        raise PickleRefusal("it describes a tensor by something that is not a list of sizes")
    if not all(type(value) is int and 0 <= value < 2**48 for value in values):
        raise PickleRefusal("it describes a tensor with a negative or impossible size")
    return tuple(values)


def _tensor_note(arguments: tuple[Any, ...]) -> TensorNote:
    if len(arguments) < 4 or not isinstance(arguments[0], StorageNote):
        raise PickleRefusal("it describes a tensor without its storage")
    storage, (offset, *_) = arguments[0], _whole_numbers([arguments[1]])
    shape, stride = _whole_numbers(arguments[2]), _whole_numbers(arguments[3])
    if len(shape) != len(stride):
        raise PickleRefusal("it describes a tensor whose sizes and strides differ in number")
    numel, last = 1, 0
    for size, step in zip(shape, stride, strict=True):
        numel *= size
        last += (size - 1) * step
    # numel <= count also forbids stride-0 views, which would turn one stored number into terabytes when copied
    if numel and (offset + last >= storage.count or numel > storage.count):
        raise PickleRefusal(f"it describes a tensor of shape {list(shape)} that is larger than its stored data")
    return TensorNote(storage, offset, shape, stride)


def _parameter(arguments: tuple[Any, ...]) -> TensorNote:
    if not arguments or not isinstance(arguments[0], TensorNote):
        raise PickleRefusal("it describes a parameter that is not a tensor")
    return arguments[0]


def _ordered_dict(arguments: tuple[Any, ...]) -> dict[Any, Any]:
    # pickles of Python 2 hand the pairs over here; every later one sets them as items
    pairs = arguments[0] if arguments else []
    if len(arguments) > 1 or not isinstance(pairs, list) or len(pairs) > 10_000:
        raise PickleRefusal("it fills a dictionary in a way no checkpoint does")
    machine_made: dict[Any, Any] = {}
    for pair in pairs:
        if not isinstance(pair, (list, tuple)) or len(pair) != 2 or not isinstance(pair[0], str):
            raise PickleRefusal("it fills a dictionary in a way no checkpoint does")
        machine_made[pair[0]] = pair[1]
    pairs.clear()  # a second call on the same recalled list must not copy it again: that is how small files grow
    return machine_made


_BUILDERS = {
    "collections.OrderedDict": _ordered_dict,
    "torch._utils._rebuild_tensor": _tensor_note,
    "torch._utils._rebuild_tensor_v2": _tensor_note,
    "torch._utils._rebuild_parameter": _parameter,
}


def _storage_note(identity: Any) -> StorageNote:
    """Persistent id of torch.save: ("storage", type, key, location, count[, (view key, first, count)])."""
    if not isinstance(identity, tuple) or len(identity) not in (5, 6) or identity[0] != "storage":
        raise PickleRefusal("it refers to outside data in a way torch.save never does")
    kind, key, count = identity[1], identity[2], identity[4]
    dtype = STORAGE_TYPES.get(kind.name) if isinstance(kind, Name) and kind.module == "torch" else None
    if dtype is None or not isinstance(key, str) or len(key) > 64:
        raise PickleRefusal("it refers to stored numbers of a type this reader does not know")
    (count,) = _whole_numbers([count])
    view = identity[5] if len(identity) == 6 else None
    if view is None:
        return StorageNote(key, dtype, count)
    if not isinstance(view, tuple) or len(view) != 3:
        raise PickleRefusal("it refers to a part of stored numbers in a way torch.save never does")
    first, part = _whole_numbers(view[1:])
    if first + part > count:
        raise PickleRefusal("it refers to a part of stored numbers that lies outside them")
    return StorageNote(key, dtype, part, first)


class _Storages:
    """Sees to it that every storage is described in one way only, so that none needs to be read twice."""

    def __init__(self, *, views: bool) -> None:
        self.found: dict[str, StorageNote] = {}
        self._views = views  # whether tensors may name a part of a storage; only the old container does

    def __call__(self, identity: Any) -> StorageNote:
        note = _storage_note(identity)
        whole = StorageNote(note.key, note.dtype, identity[4])
        if self.found.setdefault(note.key, whole) != whole or (note != whole and not self._views):
            raise PickleRefusal(f"it describes storage {shown(note.key)} in two different ways")
        return note


# --- the two containers ----------------------------------------------------------------------------------------------


class _ZipContainer:
    """`<name>/data.pkl` plus one uncompressed entry `<name>/data/<key>` per storage."""

    def __init__(self, file: BinaryIO, size: int) -> None:
        _check_directory(file, size)
        self._archive = zipfile.ZipFile(file)
        self._entries = {entry.filename: entry for entry in self._archive.infolist()}
        trees = [name for name in self._entries if name.rpartition("/")[2] == "data.pkl"]
        if len(trees) != 1:
            raise PickleRefusal("it is a zip archive, but not one that torch.save wrote (no single data.pkl in it)")
        self._folder = trees[0][: -len("data.pkl")]
        order = self._folder + "byteorder"
        if order in self._entries and self._bytes(order, 16) != b"little":
            raise PickleRefusal("its numbers are stored in big-endian order")
        self.tree = InertMachine(
            bytes(self._bytes(trees[0], MAX_STREAM_BYTES)), _BUILDERS, _Storages(views=False)
        ).load()

    def _bytes(self, name: str, limit: int) -> bytes:
        entry = self._entries.get(name)
        if entry is None:
            raise PickleRefusal(f"its data entry {shown(name[-60:])} is missing")
        if entry.compress_type != zipfile.ZIP_STORED or entry.file_size != entry.compress_size:
            raise PickleRefusal("its entries are compressed, which torch.save never does (an archive bomb?)")
        if entry.file_size > limit:
            raise PickleRefusal(
                f"its entry {shown(name[-60:])} has {entry.file_size:,} bytes, over the limit of {limit:,}"
            )
        return self._archive.read(entry)

    def read(self, storage: StorageNote) -> bytearray:
        needed = (storage.first + storage.count) * storage.dtype.itemsize
        data = self._bytes(f"{self._folder}data/{storage.key}", MAX_FILE_BYTES)
        if len(data) < needed:
            raise PickleRefusal(f"storage {shown(storage.key)} should hold {needed:,} bytes and has {len(data):,}")
        return bytearray(memoryview(data)[storage.first * storage.dtype.itemsize : needed])


def _check_directory(file: BinaryIO, size: int) -> None:
    """Refuse an archive whose directory alone would fill the memory, before zipfile reads it."""
    file.seek(max(0, size - 98))  # the three end records, with no comment after them: what torch.save writes
    tail = file.read(98)
    if len(tail) < _END_RECORD.size or tail[-22:-18] != b"PK\x05\x06":
        raise PickleRefusal("it is a damaged or truncated zip archive")
    *_, entries, directory, _, comment = _END_RECORD.unpack(tail[-22:])
    if comment:
        raise PickleRefusal("it is a damaged or truncated zip archive")
    if len(tail) == 98 and tail[56:60] == b"PK\x06\x07" and tail[:4] == b"PK\x06\x06":
        *_, entries, directory, _ = _END_RECORD64.unpack(tail[:56])
    if entries > MAX_ENTRIES or directory > MAX_DIRECTORY_BYTES:
        raise PickleRefusal(f"its archive directory has {entries:,} entries in {directory:,} bytes")


class _StreamContainer:
    """Before torch 1.6: five pickles (magic, protocol, machine, tree, keys), then per key its count and raw numbers."""

    def __init__(self, file: BinaryIO, size: int) -> None:
        self._file = file
        storages = _Storages(views=True)
        file.seek(0)
        machine = InertMachine(file.read(MAX_STREAM_BYTES), _BUILDERS, storages)
        if machine.load() != LEGACY_MAGIC or machine.load() != LEGACY_PROTOCOL:
            raise PickleRefusal("it is a pickle, but not one that torch.save wrote")
        system = machine.load()
        if not isinstance(system, dict) or system.get("little_endian") is not True:
            raise PickleRefusal("its numbers are not stored in little-endian order")
        self.tree = machine.load()
        keys = machine.load()
        if not isinstance(keys, list) or not all(isinstance(key, str) and key in storages.found for key in keys):
            raise PickleRefusal("its list of stored data is damaged")
        self._places = self._walk(keys, storages.found, machine.position, size)

    def _walk(self, keys: list[str], storages: dict[str, StorageNote], position: int, size: int) -> dict[str, int]:
        places: dict[str, int] = {}
        for key in keys:
            self._file.seek(position)
            head = self._file.read(8)
            length = storages[key].count * storages[key].dtype.itemsize
            if len(head) < 8 or position + 8 + length > size:
                raise PickleRefusal("it is truncated: the stored numbers end too early")
            if int.from_bytes(head, "little", signed=True) != storages[key].count:
                raise PickleRefusal(f"storage {shown(key)} has another length than the object tree says")
            places[key] = position + 8
            position += 8 + length
        return places

    def read(self, storage: StorageNote) -> bytearray:
        if storage.key not in self._places:
            raise PickleRefusal(f"storage {shown(storage.key)} is missing")
        self._file.seek(self._places[storage.key] + storage.first * storage.dtype.itemsize)
        return bytearray(self._file.read(storage.count * storage.dtype.itemsize))


# --- the door --------------------------------------------------------------------------------------------------------

# what zipfile raises for directories and entries that contradict themselves
_DAMAGE = (zipfile.BadZipFile, zlib.error, struct.error, EOFError, OSError, RuntimeError, ValueError, OverflowError)


class TensorArchive:
    """An open file of torch.save. Use with `with`; `tree` is the object tree with TensorNote in place of tensors.

    Raises:
        EncoderFileError: not such a file, damaged, over a limit, or made to attack its reader.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        with contextlib.ExitStack() as opened:  # closes the file unless everything below succeeds
            self._file = opened.enter_context(_open_regular(path))
            self._container = self._open_container()
            opened.pop_all()

    def __enter__(self) -> TensorArchive:
        return self

    def __exit__(self, *_: object) -> None:
        self._file.close()

    @property
    def tree(self) -> Any:
        """The object tree: dicts, lists, tuples, text, numbers, Name, Record and TensorNote."""
        return self._container.tree

    def _open_container(self) -> _Container:
        size = self._file.seek(0, io.SEEK_END)
        self._file.seek(0)
        head = self._file.read(512)
        try:
            if head.startswith(b"PK\x03\x04"):
                return _ZipContainer(self._file, size)
            if head[:1] == b"\x80":
                return _StreamContainer(self._file, size)
        except PickleRefusal as refusal:
            raise _refuse(self.path, str(refusal)) from None
        except _DAMAGE as problem:
            raise _refuse(self.path, f"it is damaged ({shown(problem)})") from None
        kind, cure = other_kind(head) or ("neither a zip nor a pickle file, so torch.save did not write it", _AGAIN)
        if size == 0:
            kind, cure = "empty (0 bytes); a download was cut off", _AGAIN
        raise EncoderFileError(f"{shown(self.path.name)} is refused: it is {kind}", cure)

    def materialize(self, notes: Mapping[str, TensorNote]) -> dict[str, torch.Tensor]:
        """Read the tensors described by `notes` as contiguous float32 copies, each storage once.

        Raises:
            EncoderFileError: a storage is missing, too short or damaged, or a tensor is not of a float type.
        """
        budget = self._file.seek(0, io.SEEK_END)
        by_storage: dict[StorageNote, list[str]] = {}
        for name, note in notes.items():
            if not note.storage.dtype.is_floating_point:
                raise _refuse(self.path, f"tensor {shown(name)} has type {note.storage.dtype}, expected a float type")
            budget -= note.storage.dtype.itemsize * _numel(note.shape)
            by_storage.setdefault(note.storage, []).append(name)
        if budget < 0:  # many names for the same stored numbers
            raise _refuse(self.path, "its tensors are larger together than the file")
        tensors: dict[str, torch.Tensor] = {}
        for storage, names in by_storage.items():
            run = self._run(storage)
            for name in names:
                note = notes[name]
                view = torch.as_strided(run, note.shape, note.stride, note.offset)
                tensors[name] = view.to(torch.float32, copy=True).contiguous()
        return {name: tensors[name] for name in notes}

    def _run(self, storage: StorageNote) -> torch.Tensor:
        if storage.count == 0:
            return torch.empty(0, dtype=storage.dtype)
        try:
            return torch.frombuffer(self._container.read(storage), dtype=storage.dtype)
        except PickleRefusal as refusal:
            raise _refuse(self.path, str(refusal)) from None
        except _DAMAGE as problem:
            raise _refuse(self.path, f"storage {shown(storage.key)} is damaged ({shown(problem)})") from None


def _numel(shape: tuple[int, ...]) -> int:
    numel = 1
    for size in shape:
        numel *= size
    return numel


def _open_regular(path: Path) -> BinaryIO:
    try:
        status = path.stat()
        if not stat.S_ISREG(status.st_mode):  # opening a pipe would wait for ever
            raise EncoderFileError(f"{shown(path.name)} is not a regular file", "Give the path of the .pt file itself.")
        if status.st_size > MAX_FILE_BYTES:
            raise EncoderFileError(
                f"{shown(path.name)} has {status.st_size:,} bytes, over the limit of {MAX_FILE_BYTES:,}",
                "Use a checkpoint without optimizer state.",
            )
        return path.open("rb")
    except (OSError, ValueError) as problem:  # ValueError: a NUL character in the path
        reason = getattr(problem, "strerror", None) or str(problem)
        raise EncoderFileError(f"cannot open {shown(path)}: {reason}", "Check the path.") from None
