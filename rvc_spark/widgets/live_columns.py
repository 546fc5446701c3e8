"""The picture of a sound that is still coming: mel levels and f0 per 10 ms, the same however the sound is cut.

                       |<- 120 ms ->|<--- block --->|40 ms|
    sound  ────────────┼────────────┼───────────────┼─────┤ <- so much must be there for the block's ten columns
    column                          |||||||||||

Columns lag 40 to 130 ms behind the sound that came, which is less than a player is kept ahead. For eyes only.
"""

from __future__ import annotations

import numpy as np

from rvc_spark.infer.mel import hz_to_mel, mel_to_hz
from rvc_spark.infer.pitch_trackers import HOP, SAMPLE_RATE, pm_f0

BANDS = 64
HOP_SECONDS = 0.01
TOP_HZ = 12_000.0
FLOOR_DB = -80.0  # below a sine at full scale; 0 in a column
WINDOW_SECONDS = 0.032
BLOCK = 10  # columns that are made at a time: Praat's work for one costs as much as for ten
BEFORE, AFTER = 12, 4  # columns of sound looked at around a block; Praat needs three periods of 50 Hz about a frame


class LiveColumns:
    """Feeds on float32 [n, C] at `rate`, gives columns. Keeps a quarter of a second."""

    def __init__(self, rate: int) -> None:
        self.rate = rate
        self.top_hz = min(TOP_HZ, rate / 2)
        window = round(WINDOW_SECONDS * rate)
        self._size = 1 << (2 * window - 1).bit_length()  # zero padding: no narrow low band misses all bins
        self._taper = np.hanning(window).astype(np.float32)
        self._reach = np.arange(window) - window // 2
        # A sine at full scale shall read 0 dB: peak 1 per filter, amplitude 1 per window, and the width of Hann's lobe.
        lobe = 1.5 * self._size / window
        self._filters = _Triangles(rate, self._size, self.top_hz, float((2.0 / self._taper.sum()) ** 2 / lobe))
        self._held = np.zeros(self._place(-BEFORE) * -1, np.float32)  # silence before the sound
        self._start = -len(self._held)  # frame number of held[0]
        self._columns = 0
        self._frames = 0

    def push(self, samples: np.ndarray, last: bool = False) -> tuple[np.ndarray, np.ndarray]:
        """Columns that are ready: mel uint8 [cols, BANDS], 0 (silence) to 255 (full scale); f0 float32 [cols] in Hz.

        last: nothing follows; the rest of the columns is made now, as if silence came.
        """
        mono = samples[:, 0] if samples.shape[1] == 1 else samples.mean(axis=1, dtype=np.float32)
        self._frames += len(mono)
        ends = [mono] + [np.zeros(self._place(BLOCK + AFTER), np.float32)] * last
        self._held = np.concatenate([self._held, *ends])
        made = []
        while self._place(self._columns + BLOCK + AFTER) <= self._start + len(self._held):
            made.append((self._mel(), self._f0()))
            self._columns += BLOCK
        old = max(0, self._place(self._columns - BEFORE) - self._start)
        self._held = self._held[old:]
        self._start += old
        if not made:
            return np.zeros((0, BANDS), np.uint8), np.zeros(0, np.float32)
        mel, f0 = (np.concatenate(parts) for parts in zip(*made, strict=True))
        if not last:
            return mel, f0
        keep = max(0, len(mel) - max(0, self._columns - int(self._frames / (HOP_SECONDS * self.rate))))
        return mel[:keep], f0[:keep]

    def _place(self, column: int) -> int:
        """The frame in the middle of a column; counted anew each time, so that no rate drifts."""
        return round(column * HOP_SECONDS * self.rate)

    def _mel(self) -> np.ndarray:
        middles = np.array([self._place(self._columns + column) for column in range(BLOCK)]) - self._start
        cut = self._held[middles[:, None] + self._reach] * self._taper
        spectrum = np.fft.rfft(cut, self._size)
        power = self._filters(spectrum.real**2 + spectrum.imag**2)
        levels = 10.0 * np.log10(np.maximum(power, 1e-12))
        return np.clip(np.rint((levels / -FLOOR_DB + 1.0) * 255.0), 0, 255).astype(np.uint8)

    def _f0(self) -> np.ndarray:
        count = (BEFORE + BLOCK + AFTER - 1) * HOP
        times = (self._columns - BEFORE) * HOP_SECONDS + np.arange(count) / SAMPLE_RATE
        places = times * self.rate - self._start
        width = max(1, round(self.rate / SAMPLE_RATE))  # a mean over so many samples is enough of a filter for a pitch
        smooth = np.convolve(self._held, np.full(width, 1.0 / width, np.float32), "same") if width > 1 else self._held
        window = np.interp(places, np.arange(len(smooth)), smooth)
        if not window.any():
            return np.zeros(BLOCK, np.float32)
        return pm_f0(window)[BEFORE : BEFORE + BLOCK].astype(np.float32)


class _Triangles:
    r"""Sums of power spectra under BANDS triangles that are equally spaced in mel.

      /\/\/\     between two corners one triangle falls while the next one rises, so two sums per stretch are all
     /  X  X  \   there is to do. A product of matrices would do the same with threads of its own, which cost a
    c0 c1 c2 c3   hundred times as much in a process that has other things to do.
    """

    def __init__(self, rate: int, size: int, top_hz: float, gain: float) -> None:
        corners = mel_to_hz(np.linspace(0.0, float(hz_to_mel(top_hz)), BANDS + 2))
        bins = np.arange(size // 2 + 1) * rate / size
        edges = np.searchsorted(bins, corners)
        self._starts, self._end = edges[:-1], edges[-1]
        self._filled = np.diff(edges) > 0  # of an empty stretch `reduceat` would take the next bin
        stretch = np.searchsorted(edges, np.arange(self._end), side="right") - 1
        rising = (bins[: self._end] - corners[stretch]) / np.diff(corners)[stretch]
        self._rising, self._falling = (gain * rising).astype(np.float32), (gain * (1 - rising)).astype(np.float32)

    def __call__(self, power: np.ndarray) -> np.ndarray:
        """Float [n, size // 2 + 1] to float32 [n, BANDS]."""
        power = power[:, : self._end].astype(np.float32)
        up, down = (
            np.add.reduceat(power * slope, self._starts, axis=1) * self._filled
            for slope in (self._rising, self._falling)
        )
        return up[:, :-1] + down[:, 1:]


def warm_up() -> None:
    """Load what the first columns need."""
    LiveColumns(SAMPLE_RATE).push(np.ones((SAMPLE_RATE // 2, 1), np.float32))
