"""How much gain brings a mix to its loudness once the limiter has had its say.

A limiter takes loudness away, so the gain that reaches -14 LUFS cannot be read off the unlimited mix. But both, the
limiter's gain and the loudness behind it, follow from two curves with a value per hop of 0.7 ms: true peak and
K-weighted energy. On these the gain is searched, without touching the sound again; the writer then measures what really
came out.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from rvc_spark.covers.dynamics import control_hop, decibels
from rvc_spark.covers.limiter import HopPeaks, LimiterCurve, border_gains
from rvc_spark.infer.sample_store import SampleStore
from rvc_spark.loudness import BLOCK_SECONDS, HOPS_PER_BLOCK, KWeighting, gated_lufs

CLOSE_LU = 0.01
TRIES = 24
CURVE_VALUES = 1 << 20
"""Values of a curve in memory at a time: 12 minutes."""
SLOPES = (0.05, 1.5)
"""LU of loudness per dB of gain that the search believes in; 1 without limiter, less the harder it works."""


@dataclass(frozen=True)
class GainPlan:
    """What was found: gain before the limiter in dB, its largest reduction in dB, the loudness to expect in LUFS."""

    level_db: float
    limiter_db: float
    lufs: float
    reached: bool  # whether that is the target


class MixCurves:
    """True peak and K-weighted energy per hop of a mix that is pushed in blocks; on disk where long."""

    def __init__(self, rate: int, channels: int, folder: Path | None = None) -> None:
        self.rate, self.hop, self.frames = rate, control_hop(rate), 0
        self.peak = 0.0
        self._finder, self._weighting = HopPeaks(rate, channels), KWeighting(rate, channels)
        self._peaks, self._energies = SampleStore(rate, folder), SampleStore(rate, folder)

    def push(self, block: np.ndarray) -> None:
        """float32 [C, n], whole hops but for the last block."""
        self.frames += block.shape[1]
        self._peaks.append(self._finder.push(block))
        energy = self._weighting.push(block)
        self._energies.append(np.pad(energy, (0, -len(energy) % self.hop)).reshape(-1, self.hop).sum(axis=1))

    def finish(self) -> None:
        """No more blocks come."""
        self._peaks.append(self._finder.flush())
        self.peak = self._peaks.peak

    def close(self) -> None:
        """Free memory and disk."""
        self._peaks.close()
        self._energies.close()

    def peaks_db(self) -> Iterator[np.ndarray]:
        """True peak per hop in dB, in pieces."""
        return (decibels(peaks) for peaks in self._peaks.blocks(CURVE_VALUES))

    def behind_limiter(self, level_db: float, ceiling_db: float, curve: LimiterCurve) -> tuple[float, float]:
        """(LUFS, largest reduction in dB) of the mix raised by `level_db` and limited to `ceiling_db`."""
        hop_seconds = BLOCK_SECONDS / HOPS_PER_BLOCK
        count = max(1, math.ceil(self.frames / self.rate / hop_seconds))
        sums, done, lowest = np.zeros(count), 0, 1.0
        first = None  # the gain on the border where the next hops begin
        for gains in border_gains(self.peaks_db(), level_db, curve, ceiling_db):
            if not len(gains):
                continue
            lowest = min(lowest, float(gains.min()))
            borders = gains if first is None else np.concatenate([[first], gains])
            first = borders[-1]
            means = (borders[:-1] + borders[1:]) / 2
            energies = self._energies.read(done, min(done + len(means), len(self._energies))).astype(np.float64)
            centres = (done + np.arange(len(energies)) + 0.5) * self.hop / self.rate
            places = np.minimum((centres / hop_seconds).astype(np.int64), count - 1)
            sums += np.bincount(places, energies * means[: len(energies)] ** 2, count)
            done += len(energies)
        sums *= 10 ** (level_db / 10)
        whole = int(self.frames / self.rate / hop_seconds + 1e-9)
        if whole >= HOPS_PER_BLOCK:
            powers = np.convolve(sums[:whole], np.ones(HOPS_PER_BLOCK), "valid") / (self.rate * BLOCK_SECONDS)
        else:
            powers = sums.sum(keepdims=True) / max(1, self.frames)
        return gated_lufs(powers), 20 * math.log10(1 / max(lowest, 1e-12))


def plan_gain(
    curves: MixCurves, target_lufs: float, ceiling_db: float, most_limiting_db: float, timing: tuple[float, float]
) -> GainPlan:
    """Search the gain that gives `target_lufs` behind a limiter at `ceiling_db`.

    Args:
        most_limiting_db: the gain stops where the highest peak would have to be turned down by more.
        timing: look-ahead and release of the limiter in seconds.
    """
    peak_db = float(decibels(np.array(curves.peak)))
    most = ceiling_db + most_limiting_db - peak_db
    level, low, high = min(ceiling_db - peak_db, most), -math.inf, math.inf
    before: tuple[float, float] | None = None
    for _ in range(TRIES):
        lufs, reduction = curves.behind_limiter(level, ceiling_db, LimiterCurve(*timing, curves.rate))
        error = target_lufs - lufs
        if abs(error) <= CLOSE_LU:
            break
        low, high = (level, high) if error > 0 else (low, level)
        if low >= most:
            return GainPlan(level, reduction, lufs, False)
        slope = 1.0
        if before is not None and math.isfinite(before[1]) and math.isfinite(lufs) and before[0] != level:
            slope = float(np.clip((lufs - before[1]) / (level - before[0]), *SLOPES))
        before = (level, lufs)
        wanted = level + (error / slope if math.isfinite(error) else most_limiting_db)
        if not low < wanted < high:
            wanted = (low + high) / 2 if math.isfinite(low + high) else wanted
        level = min(wanted, most)
    return GainPlan(level, reduction, lufs, abs(error) < 10 * CLOSE_LU)
