"""The safetensors container: 8 bytes of header length, a JSON header, then the numbers without gaps.

Read here rather than by the library of that name because the limits and messages of `safe_load` apply. Refuses to know
what the tensors mean.
"""

from __future__ import annotations

import json
import mmap
from collections.abc import Collection
from typing import Any, BinaryIO

import torch

from rvc_spark.inert_pickle import PickleRefusal
from rvc_spark.tensor_outline import MAX_DIMENSIONS, TensorNote

MAX_HEADER_BYTES = 8 * 1024**2
MAX_TENSORS = 20_000
_TYPES = {
    "F64": torch.float64,
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "I64": torch.int64,
    "I32": torch.int32,
    "I16": torch.int16,
    "I8": torch.int8,
    "U8": torch.uint8,
    "BOOL": torch.bool,
}


def looks_like_safetensors(head: bytes, size: int) -> bool:
    """Whether a file of `size` bytes that starts with `head` has the frame of a safetensors file."""
    length = int.from_bytes(head[:8], "little")
    return len(head) > 9 and head[8:9] == b"{" and 2 <= length <= size - 8


def read_safetensors_outline(handle: BinaryIO, size: int) -> dict[str, TensorNote]:
    """Name -> description of every tensor. Raises PickleRefusal for a header that breaks the format."""
    return {name: note for name, (note, _, _) in _entries(handle, size)[0].items()}


def read_safetensors_metadata(handle: BinaryIO) -> dict[str, str]:
    """What the file says of itself: text by name, empty if it says nothing. Raises PickleRefusal for its header."""
    found = _header(handle)[0].get("__metadata__", {})
    if not isinstance(found, dict) or not all(isinstance(value, str) for value in found.values()):
        raise PickleRefusal("what it says of itself is not text by name")
    return found


def read_safetensors_tensors(
    handle: BinaryIO, size: int, only: Collection[str] | None = None, *, mapped: bool = False
) -> dict[str, torch.Tensor]:
    """Name -> CPU tensor in the type of the file; with `only`, of those names. Raises PickleRefusal for its header.

    mapped: the numbers stay in the file and are read when they are used. Writing to such a tensor changes no file.
    """
    entries, start = _entries(handle, size)
    whole = mmap.mmap(handle.fileno(), 0, access=mmap.ACCESS_COPY) if mapped else None
    tensors = {}
    for name, (note, first, last) in entries.items():
        if only is not None and name not in only:
            continue
        if first == last:
            tensors[name] = torch.empty(note.shape, dtype=note.dtype)
            continue
        if whole is not None and (start + first) % note.dtype.itemsize == 0:
            count = (last - first) // note.dtype.itemsize
            run = torch.frombuffer(whole, dtype=note.dtype, count=count, offset=start + first)
            tensors[name] = run.reshape(note.shape)
            continue
        handle.seek(start + first)
        tensors[name] = torch.frombuffer(bytearray(handle.read(last - first)), dtype=note.dtype).reshape(note.shape)
    return tensors


def _header(handle: BinaryIO) -> tuple[dict[str, Any], int]:
    """The JSON header and its length in bytes."""
    handle.seek(0)
    length = int.from_bytes(handle.read(8), "little")
    if length > MAX_HEADER_BYTES:
        raise PickleRefusal(f"its header has {length:,} bytes, the limit is {MAX_HEADER_BYTES:,}")
    try:
        header = json.loads(handle.read(length))
    except (ValueError, RecursionError):
        raise PickleRefusal("its safetensors header is damaged") from None
    if not isinstance(header, dict) or len(header) > MAX_TENSORS:
        raise PickleRefusal("its safetensors header is damaged")
    return header, length


def _entries(handle: BinaryIO, size: int) -> tuple[dict[str, tuple[TensorNote, int, int]], int]:
    """Name -> (description, first byte, byte after the last), counted from the returned start of the numbers."""
    header, length = _header(handle)
    header.pop("__metadata__", None)
    entries = {name: _entry(name, value) for name, value in header.items()}
    position = 0
    for name, (_, first, last) in sorted(entries.items(), key=lambda item: item[1][1:]):
        if first != position:
            raise PickleRefusal(f"the numbers of its tensor {ascii(name[:100])} overlap others or leave a gap")
        position = last
    start = 8 + length
    if start + position != size:
        raise PickleRefusal(f"it should have {start + position:,} bytes and has {size:,} (a download was cut off?)")
    return entries, start


def _entry(name: str, value: Any) -> tuple[TensorNote, int, int]:
    shown = ascii(name[:100])
    fields = value if isinstance(value, dict) else {}
    dtype, shape, span = _TYPES.get(str(fields.get("dtype"))), fields.get("shape"), fields.get("data_offsets")
    if dtype is None:
        raise PickleRefusal(f"its tensor {shown} has a type that is not read ({ascii(str(fields.get('dtype'))[:20])})")
    lists = isinstance(shape, list) and len(shape) <= MAX_DIMENSIONS and isinstance(span, list) and len(span) == 2
    if not lists or not all(type(number) is int and 0 <= number < 2**40 for number in [*shape, *span]):
        raise PickleRefusal(f"its tensor {shown} is described by something that is not sizes")
    count = 1
    for number in shape:
        count *= number
    if span[1] - span[0] != count * dtype.itemsize:
        raise PickleRefusal(f"its tensor {shown} of shape {shape} does not take {span[1] - span[0]:,} bytes")
    return TensorNote(dtype, tuple(shape)), span[0], span[1]
