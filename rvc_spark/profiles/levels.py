"""Levels of a recording that arrives in blocks: peak, flat tops, offset, loudness, bits in use; and mains hum.

Flat tops are looked for at the recording's own highest level, not at full scale, so clipping that was turned down later
is found as well. Measures only; what is too much, settings say.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from rvc_spark.audio import LoudnessMeter

TOP_SHARE = 0.999
"""Of the highest level; samples above it are at the top."""
RUN_SAMPLES, RUN_SECONDS = 3, 62.5e-6
"""A flat top has 3 samples and more, and lasts as long as 3 at 48 kHz: smooth peaks at high rates have as many."""
HUM_RATE = 16_000
HUM_BASES = (50.0, 60.0)  # Hz of the mains: most of the world; the Americas and parts of Asia
HARMONICS = 6
LINE_OVER_FLOOR = 10.0  # dB a line must stand above what is beside it
_DEPTHS = (8, 16, 24)


class _Tops:
    """Runs of samples at the highest level of one channel, in one direction."""

    def __init__(self, shortest: int) -> None:
        self._shortest = shortest
        self.top = 0.0
        self.samples = self.runs = self._open = 0

    def push(self, values: np.ndarray) -> None:
        highest = float(values.max())
        if highest * TOP_SHARE > self.top:  # all before was below the top
            self.samples = self.runs = self._open = 0
        self.top = max(self.top, highest)
        at_top = values >= TOP_SHARE * self.top
        if self.top <= 0 or (not at_top.any() and not self._open):
            self._open = 0
            return
        edges = np.flatnonzero(np.diff(np.concatenate([[False], at_top, [False]])))
        lengths = edges[1::2] - edges[::2]
        lengths = lengths.tolist()
        if self._open:
            if at_top[0]:
                lengths[0] += self._open
            else:
                lengths.insert(0, self._open)
        self._open = lengths.pop() if at_top[-1] else 0
        self._count(lengths)

    def _count(self, lengths: list[int]) -> None:
        long = [length for length in lengths if length >= self._shortest]
        self.samples += sum(long)
        self.runs += len(long)

    def finish(self) -> None:
        self._count([self._open])
        self._open = 0


@dataclass(frozen=True)
class Levels:
    """peak: full scale 1. clipped_samples, clipped_runs: at flat tops, of all channels. dc: largest mean of a channel.

    loudness_lufs: None for silence. used_bits: 8, 16 or 24 where the samples fit that many; None for more.
    """

    peak: float
    clipped_share: float
    clipped_runs: int
    dc: float
    loudness_lufs: float | None
    used_bits: int | None


class LevelMeter:
    """Push float32 [C, n] as often as needed, then `levels()` once."""

    def __init__(self, rate: int, channels: int) -> None:
        shortest = max(RUN_SAMPLES, math.ceil(RUN_SECONDS * rate))
        self._tops = [(_Tops(shortest), _Tops(shortest)) for _ in range(channels)]
        self._loudness = LoudnessMeter(rate, channels)
        self._sums = np.zeros(channels)
        self._frames = 0
        self._depths = list(_DEPTHS)

    def push(self, block: np.ndarray) -> None:
        """Add float32 [C, n], n > 0."""
        for channel, (up, down) in zip(block, self._tops, strict=True):
            up.push(channel)
            down.push(-channel)
        self._loudness.push(block)
        self._sums += block.sum(axis=1, dtype=np.float64)
        self._frames += block.shape[1]
        while self._depths and not _fits(block, self._depths[0]):
            self._depths.pop(0)

    def levels(self) -> Levels:
        """What was measured."""
        tops = [top for pair in self._tops for top in pair]
        for top in tops:
            top.finish()
        loudness = self._loudness.lufs()
        return Levels(
            peak=max(top.top for top in tops),
            clipped_share=sum(top.samples for top in tops) / max(1, self._frames * len(self._tops)),
            clipped_runs=sum(top.runs for top in tops),
            dc=float(np.abs(self._sums).max() / max(1, self._frames)),
            loudness_lufs=loudness if math.isfinite(loudness) else None,
            used_bits=self._depths[0] if self._depths else None,
        )


def _fits(block: np.ndarray, bits: int) -> bool:
    scaled = block * np.float32(2 ** (bits - 1))
    return bool(np.array_equal(scaled, np.rint(scaled)))


def decibels(power: float, floor: float = 1e-12) -> float:
    """10 log10, never below that of `floor`."""
    return 10 * math.log10(max(power, floor))


def find_hum(samples: np.ndarray, speech_power: float) -> tuple[float, float] | None:
    """Mains hum: (50 or 60 Hz, its level against the speech in dB); None where no line stands out.

    A line of the mains is always there, a voice never stays: per bin, a low percentile over windows of one second keeps
    the one and drops the other. It counts where the base, or two of its harmonics, stand out of their neighbourhood.

    Args:
        samples: float32 [T] at 16 kHz, at least 2 s.
        speech_power: mean square of the speech.
    """
    size, step = HUM_RATE, HUM_RATE // 4
    if len(samples) < 2 * size or speech_power <= 0:
        return None
    window = np.hanning(size).astype(np.float32)
    scale = 2 / float(np.square(window).sum()) / size * 1.5  # power of a line from its bin, Hann window
    views = np.lib.stride_tricks.sliding_window_view(samples, size)[::step]
    spectra = [np.square(np.abs(np.fft.rfft(view * window)[:500])) * scale for view in views[:240]]
    steady = np.percentile(spectra, 25, axis=0)  # float64 [500], one bin per Hz
    best: tuple[float, float] | None = None
    for base in HUM_BASES:
        standing, power = [], 0.0
        for number in range(1, HARMONICS + 1):
            centre = round(base * number)
            line = float(steady[centre - 1 : centre + 2].max())
            beside = float(np.median(np.r_[steady[centre - 12 : centre - 3], steady[centre + 4 : centre + 13]]))
            if decibels(line) - decibels(beside) >= LINE_OVER_FLOOR:
                standing.append(number)
                power += line
        level = decibels(power) - decibels(speech_power)
        if (1 in standing or len(standing) >= 3) and (best is None or level > best[1]):
            best = base, level
    return best
