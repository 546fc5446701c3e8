"""The look-up of `index` where the networks run: every stored vector in one product, cells not searched left out.

A GPU multiplies all vectors faster than it could be told about cells one after another. As there, float32 thins out and
float64 decides, so both find the same neighbours. Refuses to know files.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from rvc_spark.infer.index import LEAST_SQUARED_DISTANCE, SPARE, RetrievalIndex, check_rate

BLOCK_NUMBERS = 1 << 26  # of the largest temporary: a quarter of a gigabyte
ORIGIN_ROWS = 4096  # whose mean is the middle: distances stay, and float32 has less to cancel


class DeviceIndex:
    """An index whose vectors lie on a device.

    Attributes:
        index: whose vectors these are.
    """

    def __init__(self, index: RetrievalIndex, device: str | torch.device) -> None:
        content = index.content
        self.index = index
        self._table = _Table(torch.from_numpy(np.ascontiguousarray(content.vectors)).to(device))
        sizes = torch.from_numpy(np.diff(content.offsets))
        self._cells = torch.repeat_interleave(torch.arange(len(sizes)), sizes).to(device)
        self._centroids = None
        if content.centroids is not None:
            self._centroids = _Table(torch.from_numpy(np.ascontiguousarray(content.centroids)).to(device))

    @property
    def nbytes(self) -> int:
        """What it takes of the device's memory."""
        tables = [self._table] if self._centroids is None else [self._table, self._centroids]
        return self._cells.nbytes + sum(table.vectors.nbytes for table in tables)

    def search(self, queries: Tensor, k: int = 8) -> tuple[Tensor, Tensor]:
        """The k nearest stored vectors of queries float32 [T, D] in the cells that are searched.

        Returns squared distances float64 [T, k], ascending, and rows of the stored vectors, int64 [T, k]; where there
        are fewer than k, or for a query that is not finite, infinity and -1.
        """
        usable = torch.isfinite(queries).all(dim=1, keepdim=True)
        queries = torch.where(usable, queries, 0.0)
        probed = self._probed(queries)
        distances, rows = self._table.nearest(queries, k, None if probed is None else (self._cells, probed))
        missing = torch.isinf(distances) | ~usable
        distances, rows = distances.masked_fill(missing, torch.inf), rows.masked_fill(missing, -1)
        short = k - rows.shape[1]
        pad = torch.nn.functional.pad
        return pad(distances, (0, short), value=torch.inf), pad(rows, (0, short), value=-1)

    def blended(self, features: Tensor, rate: float, k: int = 8) -> Tensor:
        """As `RetrievalIndex.blended`: features float32 [T, D] on the device -> the same, `rate` of them retrieved."""
        check_rate(rate)
        if rate == 0.0 or not len(features):
            return features
        distances, rows = self.search(features, k)
        weights = distances.clamp(LEAST_SQUARED_DISTANCE, 1e150).square().reciprocal().masked_fill(rows < 0, 0.0)
        weights = weights / weights.sum(dim=1, keepdim=True).clamp_min(torch.finfo(torch.float64).tiny)
        neighbours = self._table.vectors[rows.clamp_min(0)]
        mixed = torch.bmm(weights.float()[:, None], neighbours)[:, 0]
        return torch.where((rows >= 0).any(dim=1, keepdim=True), rate * mixed + (1.0 - rate) * features, features)

    def _probed(self, queries: Tensor) -> Tensor | None:
        """Cells to search for each query, int64 [T, nprobe]; None: all."""
        if self._centroids is None:
            return None
        if self.index.content.by_product:
            scores = queries @ self._centroids.vectors.T
            return scores.argsort(dim=1, descending=True, stable=True)[:, : self.index.nprobe]
        return self._centroids.nearest(queries, self.index.nprobe)[1]


class _Table:
    """Vectors [N, D] that are searched whole."""

    def __init__(self, vectors: Tensor) -> None:
        self.vectors = vectors
        self._origin = vectors[:ORIGIN_ROWS].mean(dim=0)
        self._norms = torch.cat([(part - self._origin).square().sum(dim=1) for part in vectors.split(1 << 16)])

    def nearest(self, queries: Tensor, k: int, cells: tuple[Tensor, Tensor] | None = None) -> tuple[Tensor, Tensor]:
        """Squared distances float64 and rows int64, both [T, min(k, N)], ascending, ties by row.

        cells: the cell of each vector [N], and those that are searched for each query [T, nprobe]; where these hold
        fewer than k vectors, distances are infinite.
        """
        count, width = self.vectors.shape
        keep = min(k + SPARE, count)
        step = max(1, BLOCK_NUMBERS // max(count, keep * width * 2))
        moved, found = (self.vectors - self._origin).T, []
        for start in range(0, len(queries), step):
            part = queries[start : start + step]
            scores = torch.addmm(self._norms, part - self._origin, moved, alpha=-2.0)
            if cells is not None:
                scores.masked_fill_(~_among(cells[0], cells[1][start : start + step]), torch.inf)
            found.append(self._decided(part, scores, keep, min(k, count)))
        return torch.cat([item[0] for item in found]), torch.cat([item[1] for item in found])

    def _decided(self, queries: Tensor, scores: Tensor, keep: int, k: int) -> tuple[Tensor, Tensor]:
        """The k nearest of the `keep` best by their scores."""
        best = scores.topk(keep, dim=1, largest=False)
        rows, order = best.indices.sort(dim=1)
        distances = (self.vectors[rows].double() - queries[:, None].double()).square().sum(dim=2)
        distances = distances.masked_fill(torch.isinf(best.values.gather(1, order)), torch.inf)
        distances, order = distances.sort(dim=1, stable=True)
        return distances[:, :k], rows.gather(1, order[:, :k])


def _among(cells: Tensor, searched: Tensor) -> Tensor:
    """Whether each vector's cell is searched for each query, bool [T, N]."""
    among = cells == searched[:, :1]
    for column in range(1, searched.shape[1]):
        among |= cells == searched[:, column : column + 1]
    return among
