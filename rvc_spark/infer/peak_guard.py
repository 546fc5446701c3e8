"""A peak guard for sound whose future is not known: it turns down, once, and never up again.

A finished recording is scaled as a whole. A stream cannot be: here the gain falls when a block would exceed the limit,
on a line over the milliseconds before its first excess, so nothing clicks and what follows keeps its proportions.
"""

from __future__ import annotations

import numpy as np

RAMP_SECONDS = 0.005


class PeakGuard:
    """Scales float32 blocks [n] so that no sample exceeds `limit`."""

    def __init__(self, limit: float, rate: int) -> None:
        self.gain = 1.0
        self._limit = limit
        self._ramp = max(1, round(RAMP_SECONDS * rate))

    def push(self, block: np.ndarray) -> np.ndarray:
        """The block, scaled; what lies before its first excess is turned down gradually."""
        peak = float(np.max(np.abs(block), initial=0.0))
        if peak * self.gain <= self._limit:
            return block if self.gain == 1.0 else block * np.float32(self.gain)
        first = int(np.argmax(np.abs(block) * self.gain > self._limit))
        start, wanted = max(0, first - self._ramp), self._limit / peak
        gains = np.full(len(block), wanted, np.float32)
        gains[:start] = self.gain
        gains[start:first] = np.linspace(self.gain, wanted, first - start, endpoint=False, dtype=np.float32)
        self.gain = wanted
        return block * gains
