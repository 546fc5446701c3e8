"""A recording as a profile keeps it: mono, at one loudness, at its own rate.

Only the gain is changed: -23 LUFS is where speech of any microphone sits side by side (EBU R 128), and where that would
push a peak over -1 dBTP the peak wins, since a limiter would change the voice. The rate stays what it was, because
training wants what a recording has and every reader resamples anyway; above 48 kHz there is no speech left.
"""

from __future__ import annotations

import math

from rvc_spark.audio import Audio, loudness_lufs, true_peak_dbtp

TARGET_LUFS = -23.0
PEAK_DBTP = -1.0
MAX_GAIN_DB = 40.0  # what needs more is not speech but the noise of the room
MAX_RATE = 48_000


def normalised(sound: Audio) -> tuple[Audio, float]:
    """The sound as it is kept, float32 [T], and the gain in dB that brought it there."""
    mono = sound.mono()
    if mono.rate > MAX_RATE:
        mono = mono.resampled(MAX_RATE)
    loudness = loudness_lufs(mono)
    if not math.isfinite(loudness):
        return mono, 0.0
    gain = min(TARGET_LUFS - loudness, PEAK_DBTP - true_peak_dbtp(mono), MAX_GAIN_DB)
    return Audio(mono.samples * 10 ** (gain / 20), mono.rate), round(gain, 3)
