"""The recent past of a signal without end, read by absolute position."""

from __future__ import annotations

import numpy as np


class Recent:
    """Samples that can be read back by their number since the start, until they are forgotten."""

    def __init__(self) -> None:
        self._kept = np.zeros(0, np.float32)
        self._start = 0  # number of the first sample kept
        self._new: list[np.ndarray] = []  # joined when read, so that tiny pieces cost nothing
        self._length = 0

    def __len__(self) -> int:
        """Samples ever appended."""
        return self._length

    @property
    def held(self) -> int:
        """Samples in memory."""
        return self._length - self._start

    def append(self, samples: np.ndarray) -> None:
        """Add float32 [n] at the end."""
        self._new.append(samples)
        self._length += len(samples)

    def read(self, start: int, stop: int) -> np.ndarray:
        """Samples `start..stop`, which must not be forgotten or yet to come."""
        if not self._start <= start <= stop <= self._length:
            raise IndexError(f"range {start}..{stop} outside {self._start}..{self._length}")
        self._join()
        return self._kept[start - self._start : stop - self._start]

    def forget(self, before: int) -> None:
        """Free what lies before a position; without effect where that is forgotten already."""
        if before <= self._start:
            return
        self._join()
        before = min(before, self._length)
        self._kept = self._kept[before - self._start :].copy()
        self._start = before

    def _join(self) -> None:
        if self._new:
            self._kept = np.concatenate([self._kept, *self._new])
            self._new = []
