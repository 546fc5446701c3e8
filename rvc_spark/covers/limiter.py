"""A look-ahead true-peak limiter in two halves: where the peaks are, and the gain that keeps them under a ceiling.

Peaks are those of the continuous waveform: per hop of about 0.7 ms the largest magnitude of the samples and of three
points between any two of them (band-limited interpolation, as in BS.1770-4 annex 2 but with a longer filter). Gains
live on the borders of hops and run straight from border to border; the border of two hops satisfies both, so no point
of a hop gets more gain than its own peak allows.

    peaks     ......|......            reduction a hop needs
    look      ..||||||......           its maximum over what is to come ...
    release   ..|||||||||::::..        ... falls slowly behind it ...
    smooth    ../||||||||::::..        ... and is averaged over as much as was looked ahead: never less than needed

So the whole gain is a function of the peaks and a level, cheap to compute for many levels: `loudness_plan` searches.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
from numpy.lib.stride_tricks import sliding_window_view

from rvc_spark.covers.dynamics import Release, control_hop
from rvc_spark.loudness import oversampling

TAPS = 32
"""Samples on either side that a point between samples is interpolated from: flat to 0.47 of the rate."""
KAISER_BETA = 5.0


class HopPeaks:
    """True peaks of a sound in blocks, one per hop, over all channels.

    Every hop is one row of samples times one matrix with a column per point between samples: nothing is quicker than a
    matrix product.
    """

    def __init__(self, rate: int, channels: int) -> None:
        self.hop = control_hop(rate)
        self._matrix = _interpolation(self.hop, oversampling(rate))
        self._waiting = np.zeros((channels, TAPS), np.float32)

    def push(self, block: np.ndarray) -> np.ndarray:
        """float32 [C, n] -> float32 [k], a peak for every hop whose surroundings are known."""
        self._waiting = np.concatenate([self._waiting, block], axis=1)
        count = max(0, (self._waiting.shape[1] - 2 * TAPS) // self.hop)
        if not count:
            return np.zeros(0, np.float32)
        peaks = np.abs(self._waiting[:, TAPS : TAPS + count * self.hop]).reshape(-1, count, self.hop).max(axis=(0, 2))
        if self._matrix is not None:
            for row in self._waiting:
                windows = sliding_window_view(row, self.hop + 2 * TAPS)[:: self.hop][:count]
                between = np.ascontiguousarray(windows) @ self._matrix
                np.maximum(peaks, np.maximum(between.max(axis=1), -between.min(axis=1)), out=peaks)
        self._waiting = self._waiting[:, count * self.hop :]
        return peaks

    def flush(self) -> np.ndarray:
        """The rest; joined, one for every hop that has begun."""
        frames = self._waiting.shape[1] - TAPS
        return self.push(np.zeros((len(self._waiting), -frames % self.hop + TAPS), np.float32))


def _interpolation(hop: int, factor: int) -> np.ndarray | None:
    """float32 [hop + 2 TAPS, hop * (factor - 1)]: column (i, p) is the point p / factor after sample i."""
    if factor == 1:
        return None
    matrix = np.zeros((hop + 2 * TAPS, hop, factor - 1))
    around = np.arange(1 - TAPS, TAPS + 1)
    for phase in range(1, factor):
        distance = around - phase / factor
        weights = np.sinc(distance) * np.i0(KAISER_BETA * np.sqrt(np.maximum(0, 1 - (distance / TAPS) ** 2)))
        weights /= weights.sum()
        for i in range(hop):
            matrix[TAPS + i + around, i, phase - 1] = weights
    return matrix.reshape(len(matrix), -1).astype(np.float32)


class LimiterCurve:
    """The reduction in dB on the borders of hops, from what each hop needs: `push` [k] often, then `flush`.

    K hops have K + 1 borders, the first at frame 0.
    """

    def __init__(self, look_ahead: float, release: float, rate: int) -> None:
        """look_ahead, release: seconds."""
        step = control_hop(rate) / rate
        self._ahead = max(1, round(look_ahead / step))
        self._release = Release(release, step)
        self._kernel = np.hanning(self._ahead + 3)[1:-1]
        self._kernel /= self._kernel.sum()
        self._last = 0.0
        self._coming = np.zeros(self._ahead)  # starts `ahead` borders before frame 0, where the first ramp may begin
        self._past = np.zeros(self._ahead)
        self._early = self._ahead

    def push(self, needed: np.ndarray) -> np.ndarray:
        """float64 [k] dB >= 0 -> float64 [m] dB on the next m borders."""
        if not needed.size:
            return np.zeros(0)
        borders = np.maximum(needed, np.concatenate([[self._last], needed[:-1]]))
        self._last = float(needed[-1])
        return self._smoothed(borders)

    def flush(self) -> np.ndarray:
        """The rest, the border behind the last hop included."""
        return self._smoothed(np.concatenate([[self._last], np.zeros(self._ahead)]))

    def _smoothed(self, borders: np.ndarray) -> np.ndarray:
        self._coming = np.concatenate([self._coming, borders])
        if len(self._coming) <= self._ahead:
            return np.zeros(0)
        looked = sliding_window_view(self._coming, self._ahead + 1).max(axis=1)
        self._coming = self._coming[len(looked) :]
        released = np.concatenate([self._past, self._release.push(looked)])
        self._past = released[-self._ahead :]
        smooth = np.convolve(released, self._kernel, "valid")
        early = min(self._early, len(smooth))
        self._early -= early
        return smooth[early:]


def border_gains(
    peaks_db: Iterator[np.ndarray], level_db: float, curve: LimiterCurve, ceiling_db: float
) -> Iterator[np.ndarray]:
    """The limiter's gains on the borders of hops, float64 [m] each, for peaks in dB raised by `level_db`."""
    for peaks in peaks_db:
        yield 10 ** (-curve.push(np.maximum(peaks.astype(np.float64) + (level_db - ceiling_db), 0)) / 20)
    yield 10 ** (-curve.flush() / 20)


def apply_gains(block: np.ndarray, gains: np.ndarray, hop: int, level: float) -> np.ndarray:
    """float32 [C, k * hop] under gains on its k + 1 borders times `level`."""
    ends = (gains * level).astype(np.float32)
    if (ends == ends[0]).all():
        return block * ends[0]
    ramp = (np.arange(hop) / hop).astype(np.float32)
    line = ends[:-1, None] + (ends[1:] - ends[:-1])[:, None] * ramp
    return (block.reshape(len(block), -1, hop) * line).reshape(len(block), -1)
