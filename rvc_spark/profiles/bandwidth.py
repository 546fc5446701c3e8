"""Up to which frequency a recording holds anything: what its rate promises is often not there.

    |####  ####|             |          loud moments (97th percentile of each band)
    |##########|####         |
    |----------+----+--------|          quiet moments (10th percentile)
    0        real   mirror   rate / 2

A band holds sound where its loud moments rise above its quiet ones, or where noise is loud enough to hide them.
Careless resampling leaves a mirror image above the old limit, which moves exactly as what it mirrors; then the old
limit is the bandwidth.
"""

from __future__ import annotations

import numpy as np

BAND_HZ = 250.0
WINDOW_SECONDS = 0.04
MAX_FRAMES = 1_500
"""Windows kept; when there are more, every second one is dropped and fewer are taken from then on."""
RISE_DB = 8.0
"""Of loud moments over quiet ones; stationary noise in such a band stays within 5 dB."""
DEPTH_DB = 62.0
"""Below the loudest band there is nothing to hear, only leaks of filters and the rounding of 16 bits."""
NOISE_DEPTH_DB = 50.0
"""Noise less than this below the loudest band hides what speech has there: the band counts as there."""
OLD_RATES = (8_000, 11_025, 12_000, 16_000, 22_050)
MIRROR_LIKENESS = 0.97
"""Mean correlation over time of bands mirrored about an old limit; natural sound stays well below."""
_MIRROR_FROM, _MIRROR_TO = 750.0, 3_500.0  # Hz from the limit; nearer than that bands are alike in any sound


class BandwidthMeter:
    """Push mono float32 [n] as often as needed, then ask `bandwidth()`."""

    def __init__(self, rate: int) -> None:
        self._rate = rate
        self._size = round(WINDOW_SECONDS * rate)
        self._window = np.hanning(self._size).astype(np.float32)
        per_band = BAND_HZ * self._size / rate
        self._starts = np.round(np.arange(0, rate / 2 / BAND_HZ) * per_band).astype(int)
        self._starts = self._starts[self._starts <= self._size // 2]
        self._rest = np.zeros(0, np.float32)
        self._frames: list[np.ndarray] = []
        self._seen, self._every = 0, 1

    def push(self, block: np.ndarray) -> None:
        """Add float32 [n]."""
        samples = np.concatenate([self._rest, block])
        count = len(samples) // self._size
        for view in samples[: count * self._size].reshape(count, self._size):
            if self._seen % self._every == 0:
                self._keep(view)
            self._seen += 1
        self._rest = samples[count * self._size :]

    def _keep(self, view: np.ndarray) -> None:
        power = np.square(np.abs(np.fft.rfft(view * self._window)))
        bands = np.add.reduceat(power, self._starts) / np.diff(np.r_[self._starts, len(power)])
        self._frames.append(10 * np.log10(bands + 1e-14).astype(np.float32))
        if len(self._frames) > MAX_FRAMES:
            self._frames = self._frames[::2]
            self._every *= 2

    def bandwidth(self) -> float | None:
        """Hz; None where there is too little sound to tell."""
        if len(self._frames) < 10:
            return None
        frames = np.stack(self._frames)
        loud, quiet = np.percentile(frames, 97, axis=0), np.percentile(frames, 10, axis=0)
        holds = (loud > quiet + RISE_DB) & (loud > loud.max() - DEPTH_DB) | (quiet > loud.max() - NOISE_DEPTH_DB)
        if not holds.any():
            return None
        top = min((int(np.flatnonzero(holds)[-1]) + 1) * BAND_HZ, self._rate / 2)
        for old in OLD_RATES:
            if old / 2 < top - 4 * BAND_HZ and self._mirrored(frames, loud, old / 2):
                return old / 2
        return top

    def _mirrored(self, frames: np.ndarray, loud: np.ndarray, limit: float) -> bool:
        """Whether what is above the limit is quieter than, and moves as, what is as far below it."""
        likeness = []
        for distance in np.arange(_MIRROR_FROM, min(_MIRROR_TO, limit, self._rate / 2 - limit) - BAND_HZ, BAND_HZ):
            below, above = (int((limit + side * (distance + BAND_HZ / 2)) / BAND_HZ) for side in (-1, 1))
            if above >= frames.shape[1] or loud[above] > loud[below] - 3:
                return False
            pair = frames[:, [below, above]]
            active = pair[:, 0] > loud[below] - 30
            if active.sum() < 10 or pair[active].std(axis=0).min() < 0.1:
                return False
            likeness.append(float(np.corrcoef(pair[active].T)[0, 1]))
        return len(likeness) >= 4 and float(np.mean(likeness)) > MIRROR_LIKENESS
