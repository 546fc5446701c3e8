"""Damaged and hostile index files: each is refused by our error, in memory no larger than the file."""

from __future__ import annotations

import os
import random
import re
import struct
import tracemalloc
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import faiss
import numpy as np
import pytest

from rvc_spark.errors import IndexFileError
from rvc_spark.infer.index_file import MAX_INDEX_BYTES, read_content, read_header

DIM = 4
COUNT = 10


def header(magic: bytes, dim: int, count: int, trained: int = 1, metric: int = 1) -> bytes:
    return magic + struct.pack("<iqqqBi", dim, count, 1 << 20, 1 << 20, trained, metric)


@dataclass(frozen=True)
class Draft:
    """An IVF-Flat file by its parts, each of which a test can falsify."""

    start: bytes = header(b"IwFl", DIM, COUNT)
    cells: int = 3
    nprobe: int = 1
    quantizer: bytes = header(b"IxF2", DIM, 3)
    centre_count: int = 12
    centres: np.ndarray = field(default_factory=lambda: np.arange(12, dtype="<f4"))
    direct_map: bytes = struct.pack("<BQ", 0, 0)
    lists: bytes = b"ilar" + struct.pack("<QQ", 3, 4 * DIM) + b"full"
    sizes: tuple[int, ...] = (4, 0, 6)
    size_count: int = 3
    vectors: np.ndarray = field(default_factory=lambda: np.linspace(-1, 1, COUNT * DIM).astype("<f4"))
    ids: tuple[int, ...] = (3, 1, 0, 2, 4, 9, 8, 7, 6, 5)
    tail: bytes = b""

    def data(self) -> bytes:
        out = self.start + struct.pack("<QQ", self.cells, self.nprobe) + self.quantizer
        out += struct.pack("<Q", self.centre_count) + self.centres.tobytes() + self.direct_map + self.lists
        out += struct.pack(f"<Q{len(self.sizes)}Q", self.size_count, *self.sizes)
        vectors, ids = self.vectors.reshape(-1, DIM), np.array(self.ids, "<i8")
        out += vectors[:4].tobytes() + ids[:4].tobytes() + vectors[4:].tobytes() + ids[4:].tobytes()
        return out + self.tail


def refused(tmp_path: Path, data: bytes, name: str = "voice.index") -> str:
    """The message with which the file is refused; neither memory nor the file may suffer."""
    path = tmp_path / name
    path.write_bytes(data)
    tracemalloc.start()
    with pytest.raises(IndexFileError) as caught:
        read_content(path)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 1_000_000 + 3 * len(data)
    assert path.read_bytes() == data and name in str(caught.value)
    return str(caught.value)


def test_the_draft_itself_is_sound(tmp_path: Path) -> None:
    (tmp_path / "ok.index").write_bytes(Draft().data())
    content = read_content(tmp_path / "ok.index")
    theirs = faiss.read_index(str(tmp_path / "ok.index"))
    theirs.make_direct_map()
    np.testing.assert_array_equal(content.vectors[np.argsort(content.ids)], theirs.reconstruct_n(0, COUNT))
    sparse = Draft(lists=Draft().lists[:-4] + b"sprs", sizes=(0, 4, 2, 6), size_count=4)
    (tmp_path / "sparse.index").write_bytes(sparse.data())
    np.testing.assert_array_equal(read_content(tmp_path / "sparse.index").vectors, content.vectors)


VECTORS = Draft().vectors
CASES: dict[str, tuple[Draft, str]] = {
    "1e18 vectors": (Draft(start=header(b"IwFl", DIM, 10**18)), "needs 16,000,000,000,000,000,000 bytes"),
    "negative count": (Draft(start=header(b"IwFl", DIM, -10)), "announces -10 vectors"),
    "no vectors": (Draft(start=header(b"IwFl", DIM, 0)), "holds no vectors"),
    "one vector more": (Draft(start=header(b"IwFl", DIM, COUNT + 1)), "do not add up"),
    "one vector less": (Draft(start=header(b"IwFl", DIM, COUNT - 1)), "do not add up"),
    "dimension 0": (Draft(start=header(b"IwFl", 0, COUNT)), "vectors of 0 numbers"),
    "dimension -4": (Draft(start=header(b"IwFl", -4, COUNT)), "vectors of -4 numbers"),
    "dimension 2^31-1": (Draft(start=header(b"IwFl", 2**31 - 1, COUNT)), "vectors of 2147483647"),
    "other dimension": (Draft(start=header(b"IwFl", DIM - 1, COUNT)), "cell centres of 4 numbers"),
    "not trained": (Draft(start=header(b"IwFl", DIM, COUNT, trained=0)), "not trained"),
    "inner product": (Draft(start=header(b"IwFl", DIM, COUNT, metric=0)), "measures by inner product"),
    "metric with argument": (Draft(start=header(b"IwFl", DIM, COUNT, metric=4) + b"\0\0\0\0"), "measures by Lp"),
    "unknown metric": (Draft(start=header(b"IwFl", DIM, COUNT, metric=-7)), "metric -7"),
    "1e12 cells": (Draft(cells=10**12), "cell centres of 4 needs"),
    "2^64-1 cells": (Draft(cells=2**64 - 1), "cell centres of 4 needs"),
    "no cells": (Draft(cells=0), "announces 0 cells"),
    "no probe": (Draft(nprobe=0), "of which 0 are searched"),
    "fewer cells": (Draft(cells=2), "3 cell centres"),
    "graph as quantizer": (Draft(quantizer=header(b"IHNf", DIM, 3)), "coarse index of kind HNSW"),
    "text as quantizer": (Draft(quantizer=header(b"abcd", DIM, 3)), "coarse index of kind b'abcd'"),
    "negative centres": (Draft(quantizer=header(b"IxF2", DIM, -3)), "announces -3"),
    "quantizer metric": (Draft(quantizer=header(b"IxF2", DIM, 3, metric=0)), "measures by inner product"),
    "2^61 centre values": (Draft(centre_count=2**61), "instead of 3 x 4"),
    "NaN centre": (Draft(centres=np.array([np.nan] * 12, "<f4")), "not a number"),
    "direct map of 2^62": (Draft(direct_map=struct.pack("<BQ", 1, 2**62)), "direct map of type 1"),
    "direct map type 9": (Draft(direct_map=struct.pack("<BQ", 9, 0)), "direct map of type 9"),
    "hash map of 2^60": (Draft(direct_map=struct.pack("<BQQ", 2, 0, 2**60)), "the direct map needs"),
    "other lists": (Draft(lists=b"ilod" + struct.pack("<QQ", 3, 16) + b"full"), "keeps its cells as b'ilod'"),
    "other list form": (Draft(lists=b"ilar" + struct.pack("<QQ", 3, 16) + b"many"), "b'many'"),
    "list count": (Draft(lists=b"ilar" + struct.pack("<QQ", 10**12, 16) + b"full"), "lists of 16-byte"),
    "code size": (Draft(lists=b"ilar" + struct.pack("<QQ", 3, 17) + b"full"), "17-byte"),
    "2^60 sizes": (Draft(size_count=2**60), "cell sizes for 3 cells"),
    "sizes that wrap": (Draft(sizes=(2**63, 2**63, 10)), "do not add up"),
    "size 2^64-1": (Draft(sizes=(2**64 - 1, 0, 11)), "do not add up"),
    "odd sparse": (Draft(lists=Draft().lists[:-4] + b"sprs", sizes=(0, 4, 2), size_count=3), "3 cell sizes"),
    "sparse twice": (Draft(lists=Draft().lists[:-4] + b"sprs", sizes=(2, 4, 2, 6), size_count=4), "a cell twice"),
    "sparse outside": (Draft(lists=Draft().lists[:-4] + b"sprs", sizes=(0, 4, 3, 6), size_count=4), "does not exist"),
    "id beyond": (Draft(ids=(3, 1, 0, 2, 4, 10, 8, 7, 6, 5)), "ids from 0 to 10"),
    "negative id": (Draft(ids=(3, 1, 0, -1, 4, 9, 8, 7, 6, 5)), "ids from -1"),
    "id twice": (Draft(ids=(3, 1, 0, 3, 4, 9, 8, 7, 6, 5)), "none of its vectors has id 2"),
    "NaN vector": (Draft(vectors=np.where(np.arange(40) == 17, np.nan, VECTORS).astype("<f4")), "not a number"),
    "infinite vector": (Draft(vectors=np.where(np.arange(40) == 17, np.inf, VECTORS).astype("<f4")), "beyond 1e\\+06"),
    "overflowing vector": (Draft(vectors=np.where(np.arange(40) == 1, -1e30, VECTORS).astype("<f4")), "beyond 1e\\+06"),
    "trailing bytes": (Draft(tail=b"\0" * 5), "5 bytes behind its end"),
    "a second index behind": (Draft(tail=Draft().data()), "bytes behind its end"),
}


@pytest.mark.parametrize("name", CASES)
def test_falsified_parts(tmp_path: Path, name: str) -> None:
    draft, match = CASES[name]
    assert re.search(match, refused(tmp_path, draft.data()))


def test_cut_at_every_byte(tmp_path: Path) -> None:
    whole = Draft().data()
    path = tmp_path / "cut.index"
    for length in range(len(whole)):
        path.write_bytes(whole[:length])
        with pytest.raises(IndexFileError):
            read_content(path)


def test_flat_cut_surplus_and_lying(tmp_path: Path) -> None:
    good = header(b"IxF2", DIM, COUNT) + struct.pack("<Q", 40) + VECTORS.tobytes()
    (tmp_path / "ok.index").write_bytes(good)
    assert read_content(tmp_path / "ok.index").vectors.shape == (COUNT, DIM)
    assert "cut short" in refused(tmp_path, good[:-1])
    assert "behind its end" in refused(tmp_path, good + b"x")
    lying = header(b"IxF2", DIM, COUNT) + struct.pack("<Q", 2**62) + VECTORS.tobytes()
    assert "instead of 10 x 4" in refused(tmp_path, lying)


@pytest.mark.parametrize(
    "factory, match",
    [("IVF2,PQ2x4np", "IwPQ"), ("IVF2,SQ8", "IwSq"), ("PQ2x4np", "IxP"), ("HNSW4", "IHN"), ("IDMap,Flat", "IxMp")],
)
def test_other_kinds_of_index_are_refused_by_name(tmp_path: Path, factory: str, match: str) -> None:
    index = faiss.index_factory(8, factory)
    vectors = np.random.default_rng(0).normal(size=(700, 8)).astype(np.float32)
    index.train(vectors)
    index.add_with_ids(vectors, np.arange(700)) if "IDMap" in factory else index.add(vectors)
    faiss.write_index(index, str(tmp_path / "theirs.index"))
    with pytest.raises(IndexFileError, match=rf"of kind {match}\w* \("):
        read_content(tmp_path / "theirs.index")


def test_flat_by_inner_product_is_refused_by_name(tmp_path: Path) -> None:
    faiss.write_index(faiss.IndexFlatIP(8), str(tmp_path / "ip.index"))
    with pytest.raises(IndexFileError, match="IxFI .Flat with inner product."):
        read_content(tmp_path / "ip.index")


def test_trained_but_empty_names_the_product_to_use(tmp_path: Path) -> None:
    index = faiss.index_factory(8, "IVF2,Flat")
    index.train(np.random.default_rng(0).normal(size=(100, 8)).astype(np.float32))
    path = tmp_path / "trained_IVF2_Flat_nprobe_1_bob_v2.index"
    faiss.write_index(index, str(path))
    with pytest.raises(IndexFileError, match=r"holds no vectors.*half-way.*added_"):
        read_content(path)


@pytest.mark.parametrize(
    "data, match",
    [
        (b"", "is empty"),
        (b"Iw", "not a retrieval index"),
        (b"PK\x03\x04" + bytes(100), "voice checkpoint"),
        (b"\x80\x02}q\x00." + bytes(50), "old checkpoint"),
        (b"<!DOCTYPE html><html><body>404</body></html>", "web page"),
        (b"\xef\xbb\xbf\r\n <html>", "web page"),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:0\n", "Git LFS pointer"),
        (b'{"error": "not found"}', "JSON"),
        (b"\x93NUMPY\x01\x00" + bytes(50), "NumPy"),
        (b"\x1f\x8b\x08" + bytes(50), "gzip"),
        (bytes(10_000), "not a retrieval index"),
        (b"\xaa" + random.Random(0).randbytes(10_000), "not a retrieval index"),
    ],
)
def test_other_files_under_the_name_of_an_index(tmp_path: Path, data: bytes, match: str) -> None:
    assert match in refused(tmp_path, data)


def test_what_is_no_file(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe.index")
    for path in (tmp_path, tmp_path / "pipe.index", tmp_path / "missing.index", "a\0b.index", "/dev/zero"):
        for read in (read_header, read_content):
            with pytest.raises(IndexFileError):
                read(path)


def test_huge_sparse_file_is_refused_by_its_size(tmp_path: Path) -> None:
    with (tmp_path / "huge.index").open("wb") as handle:
        handle.write(Draft().data())
        handle.truncate(MAX_INDEX_BYTES + 1)
    with pytest.raises(IndexFileError, match="indexes up to 4,294,967,296"):
        read_content(tmp_path / "huge.index")


def test_nprobe_beyond_the_cells_means_all(tmp_path: Path) -> None:
    (tmp_path / "x.index").write_bytes(Draft(nprobe=2**64 - 1).data())
    assert read_header(tmp_path / "x.index").nprobe == 3


def mutated(data: bytes, rng: random.Random) -> bytes:
    out = bytearray(data)
    for _ in range(rng.randint(1, 4)):
        at = rng.randrange(len(out))
        edits: list[Callable[[], None]] = [
            lambda at=at: out.__setitem__(at, rng.randrange(256)),
            lambda at=at: out.__setitem__(slice(at, at + 8), struct.pack("<q", rng.choice([-1, 0, 2**31, 2**62]))),
            lambda at=at: out.__delitem__(slice(at, at + rng.randint(1, 9))),
            lambda at=at: out.__setitem__(slice(at, at), bytes(rng.randint(1, 9))),
        ]
        rng.choice(edits)()
        if not out:
            break
    return bytes(out)


def test_random_damage_is_refused_or_harmless(tmp_path: Path) -> None:
    rng = random.Random(5)
    sparse = Draft(lists=Draft().lists[:-4] + b"sprs", sizes=(0, 4, 2, 6), size_count=4)
    sound = [Draft().data(), sparse.data()]
    path = tmp_path / "fuzz.index"
    for round_number in range(3000):
        path.write_bytes(mutated(sound[round_number % 2], rng))
        try:
            content = read_content(path)
        except IndexFileError:
            continue
        assert np.isfinite(content.vectors).all()
        assert content.vectors.shape == (content.header.count, content.header.dim)
