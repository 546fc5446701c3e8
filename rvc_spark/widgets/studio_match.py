"""Two sounds at the same loudness, so that an A/B comparison is about the voice and not about the level.

The louder of two sounds is taken for the better one, whatever else differs. So both get the integrated loudness (ITU-R
BS.1770-4) of one target, chosen so that neither true peak passes the ceiling; the gains are told, never hidden.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from rvc_spark.audio import Audio, loudness_lufs, true_peak_dbtp

TARGET_LUFS = -20.0  # comfortable beside other sounds of a computer; speech seldom has the headroom for more
CEILING_DBTP = -1.0


@dataclass(frozen=True)
class Match:
    """Gains in dB, one per sound, and the loudness that all have after them; None where nothing could be measured."""

    gains: tuple[float, ...]
    lufs: float | None

    def words(self, names: tuple[str, ...]) -> str:
        """What was done, for a person."""
        if self.lufs is None:
            return "too short or too quiet to be measured: both are played as they are"
        told = ", ".join(f"{name} {round(gain, 1) + 0.0:+.1f} dB" for name, gain in zip(names, self.gains, strict=True))
        return f"matched at {self.lufs:.1f} LUFS: {told}"


def match_loudness(*sounds: Audio) -> Match:
    """The gains that bring all sounds to one loudness: TARGET_LUFS, or less where a peak would pass CEILING_DBTP."""
    measured = [(loudness_lufs(sound), true_peak_dbtp(sound)) for sound in sounds]
    if not all(math.isfinite(lufs) for lufs, _ in measured):
        return Match((0.0,) * len(sounds), None)
    # After a gain of (target - lufs) the peak lies at peak + target - lufs, which must not pass the ceiling.
    target = min([TARGET_LUFS, *(CEILING_DBTP - peak + lufs for lufs, peak in measured)])
    return Match(tuple(target - lufs for lufs, _ in measured), target)


def with_gain(sound: Audio, decibels: float) -> Audio:
    """The sound, louder or quieter by so many dB."""
    return Audio((sound.samples * np.float32(10 ** (decibels / 20))).astype(np.float32), sound.rate)
