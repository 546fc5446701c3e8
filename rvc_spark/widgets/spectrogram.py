"""Sound reduced to what fits into a picture: a mel spectrogram, a waveform's outline, and an f0 line.

Every function takes a sound of any length and returns at most as many columns as a screen can show. It draws nothing,
and its spectrogram is for eyes: the networks have their own.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from rvc_spark.infer.mel import hz_to_mel, mel_filters

FLOOR_DB = -80.0  # below the loudest cell; quieter is drawn as silence
WINDOW_SECONDS = 0.032  # 31 Hz between bins: harmonics of a low male voice (80 Hz) still stand apart
HOP_SECONDS = 0.005
LOOKS_PER_COLUMN = 4  # windows averaged into one column when a long sound leaves gaps between them


@dataclass(frozen=True)
class MelPicture:
    """Levels in dB below the loudest cell, float32 [bands, columns]; cells are `step` seconds wide and start at 0."""

    levels: np.ndarray
    step: float
    top_mel: float


def mel_picture(samples: np.ndarray, rate: int, *, top_hz: float, columns: int = 1200, bands: int = 120) -> MelPicture:
    """A mel spectrogram for the eye.

    Args:
        samples: float32 [T].
        top_hz: highest frequency shown.
        columns: at most so many; a longer sound is looked at in LOOKS_PER_COLUMN places per column.

    Returns:
        MelPicture with levels between FLOOR_DB and 0; silence is FLOOR_DB throughout.
    """
    window = max(64, round(WINDOW_SECONDS * rate))
    hop = max(1.0, HOP_SECONDS * rate, len(samples) / columns)  # samples, fractional
    count = max(1, int(np.ceil(len(samples) / hop)))
    looks = LOOKS_PER_COLUMN if hop > window else 1
    within = (np.arange(looks) + 0.5) / looks  # where in a column the windows sit
    centres = ((np.arange(count)[:, None] + within[None]) * hop).astype(np.int64)  # [columns, looks]
    reach = np.arange(window) - window // 2
    size = 4 * window  # zero padding: bins of 8 Hz, so that none of the narrow low bands misses them all
    filters = mel_filters(rate, size, bands, 0.0, top_hz).T  # [bins, bands]
    taper = np.hanning(window).astype(np.float32)
    power = np.zeros((count, bands), np.float32)
    for start in range(0, count, 256):  # blocks, so that an hour of sound needs no more memory than a minute
        places = centres[start : start + 256, :, None] + reach  # [columns, looks, window]
        inside = (places >= 0) & (places < len(samples))
        cut = np.where(inside, samples[np.clip(places, 0, len(samples) - 1)], 0.0) * taper
        spectrum = np.abs(np.fft.rfft(cut, size, axis=-1)).astype(np.float32) ** 2
        power[start : start + 256] = (spectrum @ filters).mean(axis=1)
    loudest = float(power.max())
    if loudest <= 0.0:
        levels = np.full((bands, count), FLOOR_DB, np.float32)
    else:
        audible = np.maximum(power / loudest, 1e-12)
        levels = np.maximum(10.0 * np.log10(audible), FLOOR_DB).T.astype(np.float32)
    return MelPicture(levels, hop / rate, float(hz_to_mel(top_hz)))


def outline(samples: np.ndarray, rate: int, columns: int = 1600) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """The extremes of a waveform in at most `columns` pieces: times in seconds, lows and highs, each float [n]."""
    count = min(columns, len(samples))
    bounds = np.linspace(0, len(samples), count + 1).astype(np.int64)[:-1]
    times = (bounds + 0.5 * len(samples) / count) / rate
    return times, np.minimum.reduceat(samples, bounds), np.maximum.reduceat(samples, bounds)


def f0_line(f0: np.ndarray, frame_seconds: float = 0.01, points: int = 4000) -> tuple[np.ndarray, np.ndarray]:
    """An f0 contour ready to be drawn: times in seconds and Hz, NaN where there is no pitch so that the line breaks.

    Args:
        f0: float [F], Hz per frame; 0, negative and not finite mean unvoiced.
        points: at most so many; more are thinned by taking every n-th.
    """
    every = max(1, -(-len(f0) // points))
    hz = np.asarray(f0, np.float64)[::every]
    voiced = np.isfinite(hz) & (hz > 0)
    return np.arange(len(hz)) * every * frame_seconds, np.where(voiced, hz, np.nan)
