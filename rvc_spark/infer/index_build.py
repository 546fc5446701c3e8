"""Builds a retrieval index from a voice's training features, the way training tools name and shape it.

The only place where faiss runs: it sorts vectors it was handed as arrays and writes them; it never reads a file. This
module does not extract features and does not know audio.
"""

from __future__ import annotations

import os
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from rvc_spark.errors import IndexFileError, MissingPackageError, OutputError
from rvc_spark.infer.index_file import MAX_ABS_VALUE, MAX_DIM

REDUCE_ABOVE = 200_000
"""Above this many vectors their k-means centres are stored instead of themselves."""
REDUCE_TO = 10_000
"""How many centres then remain."""
VECTORS_PER_CELL = 39
"""A cell is not made for fewer vectors than this (faiss asks for 39 training points per centre)."""
VERSIONS = {"v1": 256, "v2": 768}
"""Width of the content features of each voice version."""

_REDUCE_ROUNDS = 8
_REDUCE_SAMPLE = 64  # vectors per centre that k-means looks at
_ADD_BLOCK = 8192


@dataclass(frozen=True)
class BuiltIndex:
    """What was written: `vectors` stored out of `frames` given, sorted into `cells`."""

    path: Path
    dim: int
    frames: int
    vectors: int
    cells: int


def cell_count(vectors: int) -> int:
    """Number of cells for so many vectors: 16 sqrt(n), at least 39 vectors each, at least one cell."""
    return max(1, min(int(16 * np.sqrt(vectors)), vectors // VECTORS_PER_CELL))


def standard_name(voice: str, version: str, frames: int) -> str:
    """The file name community tools look for: `added_IVF38_Flat_nprobe_1_myvoice_v2.index`.

    frames: how many feature vectors `build_index` will be given.
    """
    cells = cell_count(REDUCE_TO if frames > REDUCE_ABOVE else frames)
    return f"added_IVF{cells}_Flat_nprobe_1_{voice}_{version}.index"


def build_index(
    features: np.ndarray | Sequence[np.ndarray],
    path: str | Path,
    *,
    version: str,
    seed: int = 0,
    reduce_above: int = REDUCE_ABOVE,
    reduce_to: int = REDUCE_TO,
) -> BuiltIndex:
    """Write an IVF-Flat index of a voice's content features; same features and seed, same file.

    features: float32 [M, D], or several such arrays, joined in order. version: "v1" (D 256) or "v2" (D 768).
    path: the file to write, see `standard_name`; it appears whole or not at all.
    Raises IndexFileError for features of another width, none at all or not finite, OutputError when it cannot be
    written, MissingPackageError without faiss.
    """
    table = _joined(features, version)
    faiss = _faiss()
    frames = len(table)
    np.random.default_rng(seed).shuffle(table)
    if frames > reduce_above:
        table = _centres(faiss, table, reduce_to, seed)
    cells = cell_count(len(table))
    index = faiss.index_factory(table.shape[1], f"IVF{cells},Flat", faiss.METRIC_L2)
    index.cp.seed = seed
    index.nprobe = 1
    index.train(table)
    for start in range(0, len(table), _ADD_BLOCK):
        index.add(table[start : start + _ADD_BLOCK])
    _write(faiss, index, Path(path))
    return BuiltIndex(Path(path), table.shape[1], frames, len(table), cells)


def _joined(features: np.ndarray | Sequence[np.ndarray], version: str) -> np.ndarray:
    """One fresh float32 [M, D] table of valid features."""
    if version not in VERSIONS:
        raise IndexFileError(f"version is {version!r}", f"Name one of: {', '.join(VERSIONS)}.")
    parts = [features] if isinstance(features, np.ndarray) else list(features)
    for part in parts:
        if np.ndim(part) != 2 or np.shape(part)[1] != VERSIONS[version] or np.shape(part)[1] > MAX_DIM:
            raise IndexFileError(
                f"features of shape {np.shape(part)} cannot go into a {version} index, which holds [frames, "
                f"{VERSIONS[version]}]",
                "Extract them with the content encoder and version of the voice.",
            )
    if not sum(len(part) for part in parts):
        raise IndexFileError("there is not one frame of features to index", "Extract the voice's features first.")
    table = np.concatenate(parts, dtype=np.float32, casting="same_kind")
    for number, part in enumerate(parts):
        low, high = (float(part.min()), float(part.max())) if len(part) else (0.0, 0.0)
        if not (low >= -MAX_ABS_VALUE and high <= MAX_ABS_VALUE):
            raise IndexFileError(
                f"features {number} hold a value that is not a number or lies beyond {MAX_ABS_VALUE:g}",
                "Extract them again, and look at the recording they came from.",
            )
    return table


def _centres(faiss: Any, table: np.ndarray, count: int, seed: int) -> np.ndarray:
    """k-means centres that stand for a table too large to search, float32 [count, D]."""
    kmeans = faiss.Kmeans(
        table.shape[1], count, niter=_REDUCE_ROUNDS, seed=seed, max_points_per_centroid=_REDUCE_SAMPLE
    )
    kmeans.train(table)
    return np.ascontiguousarray(kmeans.centroids, dtype=np.float32)


def _write(faiss: Any, index: Any, path: Path) -> None:
    """Through Python's own file, so that any path works, then renamed into place."""
    try:
        handle = tempfile.NamedTemporaryFile(dir=path.parent, prefix=f".{path.name[:40]}.", delete=False)
    except (OSError, ValueError) as error:
        raise OutputError(f"cannot write into {path.parent} ({error})", "Choose another folder.") from error
    try:
        with handle:
            faiss.write_index(index, faiss.PyCallbackIOWriter(handle.write))
        os.replace(handle.name, path)
    except (OSError, RuntimeError) as error:  # faiss turns what the file raises into RuntimeError
        raise OutputError(f"cannot write {path} ({error})", "Check space and permissions of that folder.") from error
    finally:
        Path(handle.name).unlink(missing_ok=True)


def _faiss() -> Any:
    try:
        import faiss
    except ImportError as error:
        raise MissingPackageError("building an index needs faiss", "pip install faiss-cpu") from error
    return faiss
