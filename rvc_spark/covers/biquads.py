"""Second-order filters for voices: high-pass, shelves and bells, and a chain of them over blocks.

The formulas are those of Robert Bristow-Johnson's "Cookbook formulae for audio EQ biquad filter coefficients" (W3C
Note, 2021): analogue prototypes H(s) through the bilinear transform. One row is scipy's `b0 b1 b2 1 a1 a2`.
"""

from __future__ import annotations

import math

import numpy as np
from scipy.signal import sosfilt

from rvc_spark.loudness import DEAD_STATE

BUTTERWORTH_Q = math.sqrt(0.5)
HIGHEST_SHARE = 0.47
"""Of the rate. The bilinear transform squeezes everything towards half the rate; a band that near it is left out."""


def _intermediate(hz: float, q: float, rate: int) -> tuple[float, float]:
    """cos(w0) and alpha of the cookbook."""
    w0 = 2 * math.pi * hz / rate
    return math.cos(w0), math.sin(w0) / (2 * q)


def _row(b: tuple[float, float, float], a: tuple[float, float, float]) -> np.ndarray:
    return np.array([*b, *a]) / a[0]


def high_pass(hz: float, rate: int, q: float = BUTTERWORTH_Q) -> np.ndarray:
    """12 dB per octave below `hz`. float64 [6]."""
    cos, alpha = _intermediate(hz, q, rate)
    return _row(((1 + cos) / 2, -(1 + cos), (1 + cos) / 2), (1 + alpha, -2 * cos, 1 - alpha))


def low_pass(hz: float, rate: int, q: float = BUTTERWORTH_Q) -> np.ndarray:
    """12 dB per octave above `hz`. float64 [6]."""
    cos, alpha = _intermediate(hz, q, rate)
    return _row(((1 - cos) / 2, 1 - cos, (1 - cos) / 2), (1 + alpha, -2 * cos, 1 - alpha))


def peaking(hz: float, decibels: float, q: float, rate: int) -> np.ndarray:
    """A bell of `decibels` around `hz`; `q` is its centre over its width. float64 [6]."""
    cos, alpha = _intermediate(hz, q, rate)
    a = 10 ** (decibels / 40)
    return _row((1 + alpha * a, -2 * cos, 1 - alpha * a), (1 + alpha / a, -2 * cos, 1 - alpha / a))


def low_shelf(hz: float, decibels: float, rate: int, q: float = BUTTERWORTH_Q) -> np.ndarray:
    """`decibels` well below `hz`, half of them at it. float64 [6]."""
    return _shelf(hz, decibels, rate, q, 1)


def high_shelf(hz: float, decibels: float, rate: int, q: float = BUTTERWORTH_Q) -> np.ndarray:
    """`decibels` well above `hz`, half of them at it. float64 [6]."""
    return _shelf(hz, decibels, rate, q, -1)


def _shelf(hz: float, decibels: float, rate: int, q: float, side: int) -> np.ndarray:
    """Both shelves are one formula with the sign of every cosine turned (`side` -1 is the high one)."""
    cos, alpha = _intermediate(hz, q, rate)
    cos *= side
    a = 10 ** (decibels / 40)
    root = 2 * math.sqrt(a) * alpha
    b = (
        a * ((a + 1) - (a - 1) * cos + root),
        side * 2 * a * ((a - 1) - (a + 1) * cos),
        a * ((a + 1) - (a - 1) * cos - root),
    )
    poles = (
        (a + 1) + (a - 1) * cos + root,
        side * -2 * ((a - 1) + (a + 1) * cos),
        (a + 1) + (a - 1) * cos - root,
    )
    return _row(b, poles)


class FilterChain:
    """Rows of filters over a sound in blocks; without rows it passes everything as it is."""

    def __init__(self, rows: list[np.ndarray], channels: int) -> None:
        self._rows = np.array(rows).reshape(-1, 6)
        self._state = np.zeros((len(rows), channels, 2))

    def push(self, block: np.ndarray) -> np.ndarray:
        """float32 [C, n] -> the same."""
        if not len(self._rows) or not block.shape[1]:
            return block
        if not block.any() and not self._state.any():
            return block
        filtered, self._state = sosfilt(self._rows, block, axis=-1, zi=self._state)
        self._state[np.abs(self._state) < DEAD_STATE] = 0.0
        return filtered.astype(np.float32)
