"""Reads a retrieval index (`.index`) from disk: IVF-Flat and Flat with squared L2 distance, byte by byte.

Every count in the file is held against the bytes that are really there before anything of that size is allocated, so a
damaged or hostile file costs a header's worth of memory and is refused by name. The library that writes such files is
never given one to read: its own reader trusts them. This module does not know what the vectors mean or how to search.

    IVF-Flat, little endian                                Flat
    "IwFl" d:i32 ntotal:i64 2 x i64 trained:u8 metric:i32  "IxF2" (the same 33 bytes)
    nlist:u64 nprobe:u64                                   count:u64 = ntotal * d, then the floats
    "IxF2"|"IxFI" (the same 33 bytes) count:u64, floats    <- the cells' centres
    direct map: type:u8 n:u64 n x i64 [hash: m:u64 m x 2 x i64]
    "ilar" nlist:u64 code_size:u64 then "full" n:u64 sizes | "sprs" n:u64 (cell, size) pairs
    per non-empty cell: size * 4d bytes of vectors, size * 8 bytes of ids
"""

from __future__ import annotations

import stat
import struct
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO, TypeVar

import numpy as np

from rvc_spark.errors import IndexFileError

MAX_INDEX_BYTES = 4 << 30
"""Largest file read, in bytes: 1.4 million vectors of 768; training tools reduce to 200,000 at most."""
MAX_DIM = 8192
"""Largest width of a vector; voices use 256 or 768."""
MAX_ABS_VALUE = 1e6
"""Largest magnitude of a stored number; content features stay below 100, and squares must not overflow."""

_METRICS = {0: "inner product", 1: "L2", 2: "L1", 3: "Linf", 4: "Lp", 20: "Canberra", 21: "Bray-Curtis",
            22: "Jensen-Shannon", 23: "Jaccard"}  # fmt: skip
_OTHER_KINDS = {
    b"IxFI": "Flat with inner product", b"IxFl": "Flat with another metric", b"IvFl": "IVF-Flat of before 2018",
    b"IwPQ": "IVF with product quantisation", b"IvPQ": "IVF with product quantisation", b"IwQR": "refined IVF-PQ",
    b"IvQR": "refined IVF-PQ", b"IwSq": "IVF with scalar quantisation", b"IvSQ": "IVF with scalar quantisation",
    b"IwSQ": "IVF with scalar quantisation", b"IwFd": "IVF-Flat without duplicates", b"IwPf": "IVF-PQ fast scan",
    b"IxPq": "product quantisation", b"IxPQ": "product quantisation", b"IxPo": "product quantisation",
    b"IxSQ": "scalar quantisation", b"IxPT": "with a pre-transform", b"IxMp": "with an id map",
    b"IxM2": "with an id map", b"IxRF": "with refinement", b"IHNf": "HNSW graph", b"IHNp": "HNSW graph",
    b"IHNs": "HNSW graph", b"IHN2": "HNSW graph", b"INSf": "NSG graph", b"IxHe": "LSH", b"IxHE": "LSH",
    b"IBxF": "binary", b"IBwF": "binary IVF",
}  # fmt: skip
_NOT_AN_INDEX = {
    b"PK\x03\x04": "a zip archive or a voice checkpoint (.pth)", b"\x80\x02": "an old checkpoint (pickle)",
    b"version https://git-lfs": "a Git LFS pointer instead of the file itself", b"<": "a web page (HTML or XML)",
    b"{": "JSON text", b"\x1f\x8b": "a gzip archive", b"Rar!": "a rar archive", b"7z\xbc\xaf": "a 7z archive",
    b"\x93NUMPY": "a NumPy array (.npy)",
}  # fmt: skip
_REPLACE = "Use the added_*.index that came with the voice, or build one from its features."
_BLOCK_VALUES = 1 << 21  # numbers examined at once

Parsed = TypeVar("Parsed")


@dataclass(frozen=True)
class IndexHeader:
    """What the first bytes of an index say; `cells` and `nprobe` are 1 for a Flat index."""

    kind: str
    dim: int
    count: int
    cells: int
    nprobe: int


@dataclass(frozen=True)
class IndexContent:
    """A whole validated index. Vectors lie cell after cell: cell c owns rows `offsets[c]:offsets[c + 1]`.

    centroids: float32 [cells, D], or None for Flat. by_product: cells are chosen by inner product, not by distance.
    offsets: int64 [cells + 1]. vectors: float32 [N, D]. ids: int64 [N], a permutation of 0..N-1.
    """

    header: IndexHeader
    centroids: np.ndarray | None
    by_product: bool
    offsets: np.ndarray
    vectors: np.ndarray
    ids: np.ndarray


def read_header(path: str | Path) -> IndexHeader:
    """Width, count and cells from the first bytes, without reading vectors.

    Raises IndexFileError for anything but an IVF-Flat or Flat L2 index that is long enough for what it announces.
    """
    return _with_file(path, _parse_header)


def read_content(path: str | Path) -> IndexContent:
    """The whole index, validated. Needs about the file's size in memory.

    Raises IndexFileError for another kind of file or index, wrong counts, missing or surplus bytes, ids that are not
    a permutation, and values that are not finite.
    """
    return _with_file(path, _parse_content)


class _Source:
    """A file with a known length; nothing is asked of it that it does not hold."""

    def __init__(self, handle: BinaryIO, size: int, name: str) -> None:
        self.handle, self.size, self.name, self.at = handle, size, name, 0

    @property
    def left(self) -> int:
        return self.size - self.at

    def refuse(self, problem: str, next_step: str = _REPLACE) -> IndexFileError:
        return IndexFileError(f"{self.name}: {problem}", next_step)

    def need(self, nbytes: int, what: str) -> None:
        if nbytes > self.left:
            raise self.refuse(
                f"{what} needs {nbytes:,} bytes and only {self.left:,} of {self.size:,} are left, so the file is cut "
                "short or damaged",
                "Download or copy it again.",
            )

    def values(self, layout: str, what: str) -> tuple:
        nbytes = struct.calcsize("<" + layout)
        self.need(nbytes, what)
        raw = self.handle.read(nbytes)
        if len(raw) != nbytes:
            raise self.refuse(f"the file became shorter while {what} was read", "Try again when nothing writes to it.")
        self.at += nbytes
        return struct.unpack("<" + layout, raw)

    def array(self, dtype: str, count: int, what: str) -> np.ndarray:
        self.need(count * np.dtype(dtype).itemsize, what)
        out = np.empty(count, dtype)
        self.fill(out, what)
        return out

    def fill(self, out: np.ndarray, what: str) -> None:
        """Fill a contiguous array; the caller has already held its size against `left`."""
        if out.nbytes and self.handle.readinto(memoryview(out).cast("B")) != out.nbytes:
            raise self.refuse(f"the file became shorter while {what} was read", "Try again when nothing writes to it.")
        self.at += out.nbytes

    def skip(self, nbytes: int, what: str) -> None:
        self.need(nbytes, what)
        self.handle.seek(nbytes, 1)
        self.at += nbytes


def _with_file(path: str | Path, parse: Callable[[_Source], Parsed]) -> Parsed:
    """Open a regular file of allowed size and parse it; every failure of the disk becomes our error."""
    path = Path(path)
    try:
        info = path.stat()
        if not stat.S_ISREG(info.st_mode):  # before opening: a named pipe would block
            raise IndexFileError(f"{path.name}: is not a file", "Name the .index file itself.")
        if info.st_size == 0:
            raise IndexFileError(f"{path.name}: is empty (0 bytes)", "Download or copy it again.")
        if info.st_size > MAX_INDEX_BYTES:
            raise IndexFileError(
                f"{path.name}: has {info.st_size:,} bytes; indexes up to {MAX_INDEX_BYTES:,} are read",
                "Build a smaller one from the voice's features.",
            )
        with path.open("rb") as handle:
            return parse(_Source(handle, info.st_size, path.name))
    except (OSError, ValueError) as error:  # ValueError: a NUL in the path
        raise IndexFileError(f"{path.name}: cannot be read ({error})", "Check the path and its permissions.") from error


def _parse_start(source: _Source) -> tuple[str, int, int]:
    """The fourcc and common header -> (kind, dim, count), or the reason why this is not one of ours."""
    start = source.handle.read(32)
    source.handle.seek(0)
    magic = start[:4]
    if magic not in (b"IwFl", b"IxF2"):
        if magic in _OTHER_KINDS:
            raise source.refuse(
                f"is an index of kind {magic.decode()} ({_OTHER_KINDS[magic]}); only IVF-Flat and Flat with L2 "
                "distance are read"
            )
        for prefix, what in _NOT_AN_INDEX.items():
            if start.lstrip(b"\xef\xbb\xbf \t\r\n").startswith(prefix):
                raise source.refuse(f"is {what}, not a retrieval index")
        raise source.refuse(f"is not a retrieval index (it begins with {magic!r} instead of b'IwFl' or b'IxF2')")
    dim, count = _common_header(source, "the index")
    return ("IVF-Flat" if magic == b"IwFl" else "Flat"), dim, count


def _common_header(source: _Source, what: str, metrics: tuple[int, ...] = (1,)) -> tuple[int, int]:
    """Fourcc and the 33 bytes after it; returns (dim, count)."""
    _, dim, count, _, _, trained, metric = source.values("4siqqqBi", f"the header of {what}")
    if not 1 <= dim <= MAX_DIM:
        raise source.refuse(f"{what} announces vectors of {dim} numbers; 1 to {MAX_DIM} are possible")
    if count < 0:
        raise source.refuse(f"{what} announces {count} vectors")
    if metric not in metrics:
        raise source.refuse(f"{what} measures by {_METRICS.get(metric, f'metric {metric}')}; only L2 distance is read")
    if trained != 1:
        raise source.refuse(f"{what} is marked as not trained ({trained} instead of 1)")
    return dim, count


def _parse_header(source: _Source) -> IndexHeader:
    kind, dim, count = _parse_start(source)
    if count == 0:
        hint = " It is a trained_*.index, the empty half-way product of training." if "trained" in source.name else ""
        raise source.refuse(f"holds no vectors.{hint}")
    source.need(count * dim * 4, f"{count:,} vectors of {dim}")
    if kind == "Flat":
        return IndexHeader(kind, dim, count, 1, 1)
    cells, nprobe = source.values("QQ", "the number of cells")
    if cells == 0 or nprobe == 0:
        raise source.refuse(f"announces {cells} cells of which {nprobe} are searched; both must be 1 or more")
    source.need(cells * dim * 4, f"{cells:,} cell centres of {dim}")
    return IndexHeader(kind, dim, count, cells, min(nprobe, cells))


def _parse_content(source: _Source) -> IndexContent:
    header = _parse_header(source)
    if header.kind == "Flat":
        vectors = _matrix(source, header.count, header.dim, "the vectors")
        _end(source)
        offsets = np.array([0, header.count], np.int64)
        return IndexContent(header, None, False, offsets, vectors, np.arange(header.count, dtype=np.int64))
    centroids, by_product = _quantizer(source, header)
    _skip_direct_map(source, header)
    sizes = _list_sizes(source, header)
    expected = header.count * (4 * header.dim + 8)
    if source.left != expected:
        source.need(expected, f"{header.count:,} vectors with ids")
        raise source.refuse(f"has {source.left - expected:,} bytes behind its end, so it is not what it says it is")
    offsets = np.zeros(header.cells + 1, np.int64)
    np.cumsum(sizes, out=offsets[1:])
    vectors = np.empty((header.count, header.dim), "<f4")
    ids = np.empty(header.count, "<i8")
    for cell in np.flatnonzero(sizes):
        first, last = offsets[cell], offsets[cell + 1]
        source.fill(vectors[first:last], "a cell's vectors")
        source.fill(ids[first:last], "a cell's ids")
    _check_finite(source, vectors, "the vectors")
    _check_permutation(source, ids)
    return IndexContent(header, centroids, by_product, offsets, vectors, ids)


def _quantizer(source: _Source, header: IndexHeader) -> tuple[np.ndarray, bool]:
    """The cells' centres, float32 [cells, D], and whether they are compared by inner product."""
    magic = source.handle.read(4)
    source.handle.seek(-len(magic), 1)
    if magic not in (b"IxF2", b"IxFI"):
        name = _OTHER_KINDS.get(magic, repr(magic))
        raise source.refuse(f"finds its cells with a coarse index of kind {name}; only Flat is read")
    by_product = magic == b"IxFI"
    dim, count = _common_header(source, "the table of cells", (0,) if by_product else (1,))
    if (dim, count) != (header.dim, header.cells):
        raise source.refuse(
            f"has {count:,} cell centres of {dim} numbers but announces {header.cells:,} cells of {header.dim}"
        )
    return _matrix(source, count, dim, "the cell centres"), by_product


def _matrix(source: _Source, rows: int, dim: int, what: str) -> np.ndarray:
    """`count:u64` and that many float32, which must be rows x dim -> float32 [rows, dim]."""
    (count,) = source.values("Q", f"the length of {what}")
    if count != rows * dim:
        raise source.refuse(f"{what} are {count:,} numbers instead of {rows:,} x {dim}")
    matrix = source.array("<f4", count, what).reshape(rows, dim)
    _check_finite(source, matrix, what)
    return matrix


def _skip_direct_map(source: _Source, header: IndexHeader) -> None:
    """An optional table id -> place. The ids in the lists say the same, so it is stepped over."""
    kind, entries = source.values("BQ", "the direct map")
    if kind not in (0, 1, 2) or entries > header.count:
        raise source.refuse(f"has a direct map of type {kind} with {entries:,} entries for {header.count:,} vectors")
    source.skip(entries * 8, "the direct map")
    if kind == 2:
        (pairs,) = source.values("Q", "the direct map")
        source.skip(pairs * 16, "the direct map")


def _list_sizes(source: _Source, header: IndexHeader) -> np.ndarray:
    """How many vectors each cell holds, int64 [cells]; their sum is the announced count."""
    magic, cells, code_size, form, entries = source.values("4sQQ4sQ", "the table of cell sizes")
    if magic != b"ilar" or form not in (b"full", b"sprs"):
        raise source.refuse(f"keeps its cells as {magic!r} {form!r}; only b'ilar' with b'full' or b'sprs' is read")
    if cells != header.cells or code_size != 4 * header.dim:
        raise source.refuse(
            f"has {cells:,} lists of {code_size}-byte vectors but announces {header.cells:,} of {4 * header.dim} bytes"
        )
    if (form == b"full" and entries != cells) or (form == b"sprs" and (entries % 2 or entries > 2 * cells)):
        raise source.refuse(f"has {entries:,} cell sizes for {cells:,} cells")
    table = source.array("<u8", entries, "the cell sizes")
    places = np.arange(cells, dtype=np.uint64) if form == b"full" else table[0::2]
    sizes = table if form == b"full" else table[1::2]
    if form == b"sprs" and len(places) and (places.max() >= cells or len(np.unique(places)) != len(places)):
        raise source.refuse("names a cell twice or one that does not exist")
    # Each size is bounded first: a sum of 64-bit numbers could wrap around to the right total.
    if len(sizes) and sizes.max() > header.count or int(sizes.sum()) != header.count:
        raise source.refuse(f"has cells whose sizes do not add up to its {header.count:,} vectors")
    out = np.zeros(cells, np.int64)
    out[places.astype(np.int64)] = sizes.astype(np.int64)
    return out


def _check_finite(source: _Source, matrix: np.ndarray, what: str) -> None:
    flat = matrix.reshape(-1)
    for start in range(0, flat.size, _BLOCK_VALUES):
        block = flat[start : start + _BLOCK_VALUES]
        low, high = float(block.min()), float(block.max())
        if not (low >= -MAX_ABS_VALUE and high <= MAX_ABS_VALUE):  # written so that NaN fails
            raise source.refuse(
                f"{what} hold a value that is not a number or lies beyond {MAX_ABS_VALUE:g} ({low:g} to {high:g} in "
                f"one block)"
            )


def _check_permutation(source: _Source, ids: np.ndarray) -> None:
    low, high = int(ids.min()), int(ids.max())
    if low < 0 or high >= len(ids):
        raise source.refuse(f"has ids from {low} to {high}; {len(ids):,} vectors have the ids 0 to {len(ids) - 1:,}")
    seen = np.zeros(len(ids), bool)
    seen[ids] = True
    if not seen.all():
        raise source.refuse(f"uses some ids twice, for example none of its vectors has id {int(np.argmin(seen))}")


def _end(source: _Source) -> None:
    if source.left:
        raise source.refuse(f"has {source.left:,} bytes behind its end, so it is not what it says it is")
