"""Retrieval: pulls content features towards those heard in the voice's training data.

For each frame the k nearest training features are looked up and averaged with weights 1/d^4 (d: Euclidean distance),
then mixed with the frame itself. The look-up emulates an inverted file as stored: only the `nprobe` nearest cells are
searched, which is what voices were tuned with. This module knows nothing of files on disk beyond asking
`index_file` for a validated one, and nothing of audio.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from rvc_spark.errors import IndexFileError
from rvc_spark.infer.index_file import IndexContent, read_content

MISSING_DISTANCE = np.float32(3.4028235e38)
"""The distance that stands for 'no such neighbour', together with id -1 (float32's largest number)."""
LEAST_SQUARED_DISTANCE = 1e-8
"""Squared distances are raised to this: a frame that equals a stored vector would otherwise weigh infinity."""

SPARE = 16  # candidates beyond k kept by the float32 pass, so that its rounding cannot lose a true neighbour
_DIRECT = 1024  # cells up to this size are measured in float64 at once
_BLOCK_VALUES = 1 << 22  # numbers in the largest temporary


@dataclass(frozen=True)
class RetrievalIndex:
    """A voice's training features, ready to be searched. Make one with `read_index`."""

    path: Path
    content: IndexContent

    @property
    def dim(self) -> int:
        """Width D of a vector: 256 for v1 voices, 768 for v2."""
        return self.content.header.dim

    @property
    def count(self) -> int:
        """How many vectors are stored."""
        return self.content.header.count

    @property
    def cells(self) -> int:
        """How many cells the vectors are sorted into (1: not sorted)."""
        return self.content.header.cells

    @property
    def nprobe(self) -> int:
        """How many cells are searched per frame."""
        return self.content.header.nprobe

    def require_dim(self, dim: int, voice: str) -> None:
        """Refuse an index of another width than the voice's content features, before anything is computed."""
        if dim != self.dim:
            raise IndexFileError(
                f"{self.path.name} holds vectors of {self.dim} numbers, the voice {voice} works with {dim}",
                "Use the index that was trained with this voice (256: v1, 768: v2), or none.",
            )

    def search(self, queries: np.ndarray, k: int = 8) -> tuple[np.ndarray, np.ndarray]:
        """The k nearest stored vectors in the `nprobe` nearest cells of each query.

        queries: float32 [T, D]. Returns squared L2 distances, float32 [T, k], ascending, and ids, int64 [T, k]; where
        the cells hold fewer than k vectors, distance 3.4028235e38 and id -1. Distances are computed in float64.
        """
        distances, rows = self._nearest(self._checked(queries), k)
        ids = np.where(rows >= 0, self.content.ids[rows], -1)
        narrow = np.minimum(distances, float(MISSING_DISTANCE)).astype(np.float32)
        return narrow, ids

    def blend(self, features: np.ndarray, rate: float, k: int = 8) -> np.ndarray:
        """`rate` of the retrieved features and `1 - rate` of the given ones.

        features: float32 [T, D]; rate: 0..1. Returns float32 [T, D], finite wherever the input is. A frame for which
        nothing is found stays as it is. With w = (1 / max(d^2, 1e-8))^2 the retrieved frame is sum(w v) / sum(w).
        """
        check_rate(rate)
        features = self._checked(features)
        if rate == 0.0 or not len(features):
            return features.copy()
        distances, rows = self._nearest(features, k)
        found = rows >= 0
        weights = np.where(found, 1.0 / np.square(np.clip(distances, LEAST_SQUARED_DISTANCE, 1e150)), 0.0)
        total = weights.sum(axis=1, keepdims=True)
        weights = np.divide(weights, total, out=np.zeros_like(weights), where=total > 0)
        out = features.copy()
        step = max(1, _BLOCK_VALUES // max(1, k * self.dim))
        for start in range(0, len(features), step):
            part = slice(start, start + step)
            mixed = np.einsum("tk,tkd->td", weights[part].astype(np.float32), self.content.vectors[rows[part]])
            blended = np.float32(rate) * mixed + np.float32(1.0 - rate) * features[part]
            out[part] = np.where(found[part].any(axis=1, keepdims=True), blended, features[part])
        return out

    def blended(self, features: torch.Tensor, rate: float, k: int = 8) -> torch.Tensor:
        """`blend` of a tensor [T, D], whose type and device the result has."""
        return torch.from_numpy(self.blend(features.float().cpu().numpy(), rate, k)).to(features)

    def _checked(self, queries: np.ndarray) -> np.ndarray:
        queries = np.ascontiguousarray(queries, dtype=np.float32)
        if queries.ndim != 2 or queries.shape[1] != self.dim:
            raise IndexFileError(
                f"features of shape {queries.shape} do not fit {self.path.name}, which holds vectors of {self.dim}",
                "Use the index that was trained with this voice, or none.",
            )
        return queries

    def _nearest(self, queries: np.ndarray, k: int) -> tuple[np.ndarray, np.ndarray]:
        """Squared distances float64 [T, k] (inf: missing) and rows in `content.vectors`, int64 [T, k] (-1: missing)."""
        if k < 1:
            raise IndexFileError(f"k is {k}, at least one neighbour is needed", "Use k=8.")
        distances = np.full((len(queries), k), np.inf)
        rows = np.full((len(queries), k), -1, np.int64)
        usable = np.flatnonzero(np.isfinite(queries).all(axis=1))
        probed = self._probe(queries[usable])
        for column in range(probed.shape[1]):
            order = np.argsort(probed[:, column], kind="stable")
            cells, starts = np.unique(probed[order, column], return_index=True)
            for cell, members in zip(cells, np.split(usable[order], starts[1:]), strict=True):
                first, last = self.content.offsets[cell], self.content.offsets[cell + 1]
                if first < last:
                    self._search_cell(queries, members, slice(int(first), int(last)), distances, rows)
        return distances, rows

    def _probe(self, queries: np.ndarray) -> np.ndarray:
        """The nearest cells of each query, int64 [T, nprobe]."""
        centroids = self.content.centroids
        if centroids is None:
            return np.zeros((len(queries), 1), np.int64)
        if self.content.by_product:
            return _by_product(queries, centroids, self.nprobe)
        return _nearest_rows(queries, centroids, self.nprobe)[1]

    def _search_cell(
        self, queries: np.ndarray, members: np.ndarray, where: slice, distances: np.ndarray, rows: np.ndarray
    ) -> None:
        """Merge the best of one cell into `distances` and `rows` of the member queries."""
        k = distances.shape[1]
        near, local = _nearest_rows(queries[members], self.content.vectors[where], k)
        near = np.concatenate([distances[members], near], axis=1)
        local = np.concatenate([rows[members], local + where.start], axis=1)
        best = np.argsort(near, axis=1, kind="stable")[:, :k]
        distances[members] = np.take_along_axis(near, best, axis=1)
        rows[members] = np.take_along_axis(local, best, axis=1)


def check_rate(rate: float) -> None:
    """Raises IndexFileError for what is no share."""
    if not 0.0 <= rate <= 1.0:
        raise IndexFileError(f"index_rate is {rate}, it must lie between 0 and 1", "Use 0.75, or 0 for none.")


def read_index(path: str | Path) -> RetrievalIndex:
    """Read and validate an index file. Raises IndexFileError (see `index_file.read_content`)."""
    return RetrievalIndex(Path(path), read_content(path))


def _nearest_rows(queries: np.ndarray, vectors: np.ndarray, k: int) -> tuple[np.ndarray, np.ndarray]:
    """The min(k, N) nearest of `vectors` [N, D] to each of `queries` [T, D]: squared distances, row numbers.

    float64 and int64 [T, min(k, N)], ascending, ties by row number. Large tables are first thinned by a float32 matrix
    product; what survives is measured in float64.
    """
    k = min(k, len(vectors))
    if len(vectors) <= max(_DIRECT, k + SPARE):
        return _measure_all(queries, vectors, k)
    rows = _shortlist(queries, vectors, k + SPARE)
    distances = _measure_some(queries, vectors, rows)
    order = np.lexsort((rows, distances), axis=1)[:, :k]
    return np.take_along_axis(distances, order, axis=1), np.take_along_axis(rows, order, axis=1)


def _measure_all(queries: np.ndarray, vectors: np.ndarray, k: int) -> tuple[np.ndarray, np.ndarray]:
    """Exact squared distances to every vector of a small table, the k least of them.

    |q - v|^2 = |q|^2 - 2 q.v + |v|^2 around the table's mean; float64 leaves an error near 1e-16 of the squared norms.
    """
    origin = vectors.mean(axis=0, dtype=np.float64)
    table = vectors - origin
    norms = np.einsum("nd,nd->n", table, table)
    distances = np.empty((len(queries), k))
    rows = np.empty((len(queries), k), np.int64)
    step = max(1, _BLOCK_VALUES // max(len(vectors), vectors.shape[1]))
    for start in range(0, len(queries), step):
        part = queries[start : start + step] - origin
        squared = _products(part, table)
        squared *= -2.0
        squared += norms
        squared += np.einsum("td,td->t", part, part)[:, None]
        np.maximum(squared, 0.0, out=squared)
        order = _least(squared, k)
        rows[start : start + step] = order
        distances[start : start + step] = np.take_along_axis(squared, order, axis=1)
    return distances, rows


def _least(values: np.ndarray, k: int) -> np.ndarray:
    """Columns of the k least of each row, ascending, ties by column: a full sort only of what is near the limit."""
    if values.shape[1] <= 4 * k:
        return np.argsort(values, axis=1, kind="stable")[:, :k]
    columns = np.sort(np.argpartition(values, k - 1, axis=1)[:, :k], axis=1)
    order = np.argsort(np.take_along_axis(values, columns, axis=1), axis=1, kind="stable")
    return np.take_along_axis(columns, order, axis=1)


def _shortlist(queries: np.ndarray, vectors: np.ndarray, keep: int) -> np.ndarray:
    """Rows of the `keep` least distances in float32, int64 [T, keep], unordered; needs keep <= N.

    Scores are |v|^2 - 2 q.v, for |q|^2 is the same for all. Both sides are moved to the middle of the table first:
    distances stay, but float32 has less to cancel.
    """
    origin = torch.from_numpy(vectors[: 4 * _DIRECT].mean(axis=0))
    best = torch.empty(len(queries), 0)
    rows = torch.empty(len(queries), 0, dtype=torch.int64)
    width = min(len(vectors), _BLOCK_VALUES // 512)
    height = max(1, _BLOCK_VALUES // width)
    moved = torch.from_numpy(queries) - origin
    for start in range(0, len(vectors), width):
        tile = torch.from_numpy(vectors[start : start + width]) - origin
        norms = tile.square().sum(dim=1)
        found = [
            torch.addmm(norms, part, tile.T, alpha=-2.0).topk(min(keep, len(tile)), largest=False, sorted=False)
            for part in moved.split(height)
        ]
        best = torch.cat([best, torch.cat([item.values for item in found])], dim=1)
        rows = torch.cat([rows, torch.cat([item.indices for item in found]) + start], dim=1)
        best, order = best.topk(min(keep, best.shape[1]), largest=False, sorted=False)
        rows = rows.gather(1, order)
    return rows.numpy()


def _measure_some(queries: np.ndarray, vectors: np.ndarray, rows: np.ndarray) -> np.ndarray:
    """Squared distances of each query to its own candidates, float64 [T, n], by direct difference."""
    out = np.empty(rows.shape)
    step = max(1, _BLOCK_VALUES // (rows.shape[1] * vectors.shape[1]))
    for start in range(0, len(queries), step):
        part = slice(start, start + step)
        difference = vectors[rows[part]].astype(np.float64) - queries[part, None, :]
        out[part] = np.einsum("tnd,tnd->tn", difference, difference)
    return out


def _by_product(queries: np.ndarray, centroids: np.ndarray, nprobe: int) -> np.ndarray:
    """Cells with the largest inner products, int64 [T, nprobe]."""
    out = np.empty((len(queries), nprobe), np.int64)
    step = max(1, _BLOCK_VALUES // len(centroids))
    for start in range(0, len(queries), step):
        score = -_products(queries[start : start + step], centroids)
        out[start : start + step] = np.argsort(score, axis=1, kind="stable")[:, :nprobe]
    return out


def _products(one: np.ndarray, other: np.ndarray) -> np.ndarray:
    """one @ other.T by torch: numpy's own threads spin after a product, and what torch does next has to wait for them.

    That cost a tenth of a second per conversion on two cores.
    """
    return (torch.from_numpy(one) @ torch.from_numpy(other).T).numpy()
