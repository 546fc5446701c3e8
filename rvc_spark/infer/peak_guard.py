"""A peak guard for sound whose future is not known.

A finished recording is scaled as a whole. A stream cannot be: its gain falls just before a peak and recovers after it.
"""

from __future__ import annotations

import numpy as np

HOLD_SECONDS = 0.005  # a peak is seen so long before it comes out
RELEASE_SECONDS = 1.0  # from silence back to full gain


class PeakGuard:
    """Holds peaks under a limit with gains that move linearly; a signal that stays under it passes bit for bit.

    Each stretch of 5 ms has the gain its own peak needs; at the border of two the lower of both holds, so the line
    between two borders is low enough everywhere.
    """

    def __init__(self, limit: float, rate: int) -> None:
        self._limit = limit
        self._length = max(1, round(HOLD_SECONDS * rate))
        self._release = self._length / rate / RELEASE_SECONDS
        self._waiting = np.zeros(0, np.float32)
        self._border = 1.0  # gain at the start of what is waiting

    @property
    def held(self) -> int:
        """At most so many samples come out later than they went in."""
        return 2 * self._length

    @property
    def waiting(self) -> int:
        """Samples that went in and did not come out yet."""
        return len(self._waiting)

    def push(self, samples: np.ndarray) -> np.ndarray:
        """Feed float32 [n], get what is safe to let go, maybe nothing."""
        waiting = np.concatenate([self._waiting, samples])
        count = len(waiting) // self._length - 1  # the last whole stretch waits for its neighbour
        if count < 1:
            self._waiting = waiting
            return waiting[:0]
        cut = count * self._length
        ready, self._waiting = waiting[:cut], waiting[cut:].copy()
        return self._guarded(ready, self._waiting[: self._length])

    def finish(self) -> np.ndarray:
        """The rest."""
        rest, self._waiting = self._waiting, np.zeros(0, np.float32)
        padded = np.pad(rest, (0, -len(rest) % self._length))
        return self._guarded(padded, padded[:0])[: len(rest)]

    def _guarded(self, ready: np.ndarray, after: np.ndarray) -> np.ndarray:
        if not len(ready):
            return ready
        stretches = np.abs(ready).reshape(-1, self._length).max(axis=1)
        peaks = np.append(stretches, np.abs(after).max() if len(after) else 0.0)
        needed = np.minimum(1.0, self._limit / np.maximum(peaks, self._limit))
        if self._border == 1.0 and needed.min() == 1.0:
            return ready
        # the gain may have had to be lower already at the start; only the very first stretch can find itself so
        nodes = [min(self._border, float(needed[0]))]
        for left, right in zip(needed, needed[1:], strict=False):
            nodes.append(min(float(left), float(right), nodes[-1] + self._release))
        self._border = nodes[-1]
        return (ready * straight_lines(nodes, self._length)).astype(np.float32)


def straight_lines(nodes: list[float], length: int) -> np.ndarray:
    """Straight lines of `length` samples from node to node, float64 [(len(nodes) - 1) * length]."""
    places = (np.arange((len(nodes) - 1) * length) + 1) / length
    return np.interp(places, np.arange(len(nodes)), nodes)
