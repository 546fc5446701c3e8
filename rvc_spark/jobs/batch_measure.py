"""What can be said of a converted item in numbers: length, speed, loudness, pitch, and what a listener would notice.

The pitch of the result is measured in the result, not taken from what was asked for; how far the two lie apart is a
figure of its own.
"""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np

from rvc_spark.audio import Audio, loudness_lufs, open_audio, true_peak_dbtp
from rvc_spark.conversion import Conversion
from rvc_spark.infer.pitch import load_tracker
from rvc_spark.infer.segments import SAMPLE_RATE

FULL_SCALE = 1.0 - 2.0**-15  # a 16-bit file cannot hold more
QUIET_LUFS = -50.0
MEASURED_SECONDS = 600.0  # of a long sound; loudness and pitch have settled by then
LOST_PITCH_CENTS = 100.0


def read_beginning(path: Path) -> Audio:
    """The first MEASURED_SECONDS of a sound file, mono; what an hour has more does not go through memory.

    Raises AudioError.
    """
    with open_audio(path) as reader:
        limit = int(MEASURED_SECONDS * reader.rate)
        blocks: list[np.ndarray] = []
        for block in reader.blocks():
            blocks.append(block.mean(axis=0, dtype=np.float32))
            if sum(map(len, blocks)) >= limit:
                break
        return Audio(np.concatenate(blocks)[:limit], reader.rate)


def measures(source: Audio, result: Audio, conversion: Conversion, spoken_seconds: float | None) -> dict[str, Any]:
    """Figures of one item; None where there is nothing to measure, such as the loudness of silence.

    Args:
        source, result: what was converted and what was written, or their beginnings.
        spoken_seconds: what the speech engine took, None for a recording.
    """
    asked = conversion.result_f0
    measured = measured_f0(result) if asked is not None else None
    elapsed = conversion.elapsed + (spoken_seconds or 0.0)
    told = {
        "seconds": round(conversion.seconds, 4),
        "elapsed": round(elapsed, 3),
        "spoken_elapsed": None if spoken_seconds is None else round(spoken_seconds, 3),
        "converted_elapsed": round(conversion.elapsed, 3),
        "real_time_factor": round(elapsed / conversion.seconds, 4),
        "rate": conversion.rate,
        "samples": conversion.frames,
        "lufs": _finite(loudness_lufs(result)),
        "source_lufs": _finite(loudness_lufs(source)),
        "true_peak_dbtp": _finite(true_peak_dbtp(result)),
        "clipped_samples": int(np.count_nonzero(np.abs(result.samples) >= FULL_SCALE)),
        "source_f0_hz": median_hz(conversion.source_f0),
        "asked_f0_hz": median_hz(asked),
        "result_f0_hz": median_hz(measured),
        "pitch_error_cents": None if measured is None else pitch_error_cents(asked, measured),
        "key": float(conversion.engines["key"].value),
        "voiced_share": None if asked is None else round(float(np.mean(conversion.source_f0 > 0)), 4),
    }
    return {**told, "remarks": remarks(told)}


def measured_f0(sound: Audio) -> np.ndarray:
    """float64 [F], Hz per 10 ms, 0 = unvoiced; by autocorrelation, which needs no weights and is quick."""
    return load_tracker("pm").track(sound.mono().resampled(SAMPLE_RATE).samples)


def median_hz(f0: np.ndarray | None) -> float | None:
    """Median of the voiced frames of f0 [F]; None without any."""
    if f0 is None or not np.any(f0 > 0):
        return None
    return round(float(np.median(f0[f0 > 0])), 2)


def pitch_error_cents(asked: np.ndarray, measured: np.ndarray) -> float | None:
    """Median distance of two contours [F] in hundredths of a semitone, where both are voiced; None where never."""
    frames = min(len(asked), len(measured))
    both = (asked[:frames] > 0) & (measured[:frames] > 0)
    if not both.any():
        return None
    return round(float(np.median(np.abs(1200 * np.log2(measured[:frames][both] / asked[:frames][both])))), 1)


def remarks(told: dict[str, Any]) -> list[str]:
    """What somebody should listen to before using the result, in words."""
    found = []
    if told["lufs"] is None:
        found.append("silent")
    elif told["lufs"] < QUIET_LUFS:
        found.append(f"very quiet, {told['lufs']:.0f} LUFS")
    if told["clipped_samples"]:
        found.append(f"{told['clipped_samples']} samples at full scale")
    if (told["pitch_error_cents"] or 0.0) > LOST_PITCH_CENTS:
        found.append(f"the pitch is {told['pitch_error_cents']:.0f} cents from what was asked for")
    if told["voiced_share"] == 0.0:
        found.append("no pitch was found in the source")
    return found


def _finite(value: float) -> float | None:
    return round(value, 2) if math.isfinite(value) else None
