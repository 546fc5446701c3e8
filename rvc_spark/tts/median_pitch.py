"""The median pitch of speech, from autocorrelation alone: enough to place a speaker, not to follow a melody.

Knows nothing of engines or files.
"""

from __future__ import annotations

import numpy as np

LOWEST_HZ = 60.0
HIGHEST_HZ = 500.0
FRAME_SECONDS = 0.05
HOP_SECONDS = 0.02
VOICED_ABOVE = 0.6
"""Least normalised autocorrelation of a voiced frame."""
AUDIBLE_ABOVE = 0.05
"""Least level of a counted frame, as a share of the loudest frame's."""
LEAST_VOICED_FRAMES = 10
"""A fifth of a second of voice; less says nothing."""

_OCTAVE_BONUS = 0.9  # the shortest period within this share of the best wins: multiples of a period fit as well


def median_pitch(samples: np.ndarray, rate: int) -> float | None:
    """Median f0 in Hz of float32 [T], None if hardly anything is voiced.

    Normalised autocorrelation per frame, divided by that of its window (P. Boersma, 1993, "Accurate short-term analysis
    of the fundamental frequency and the harmonics-to-noise ratio of a sampled sound").
    """
    length, hop = round(FRAME_SECONDS * rate), round(HOP_SECONDS * rate)
    if len(samples) < length:
        return None
    frames = np.lib.stride_tricks.sliding_window_view(samples, length)[::hop].astype(np.float64)
    frames = frames - frames.mean(axis=1, keepdims=True)
    level = np.sqrt(np.square(frames).mean(axis=1))
    window = np.hanning(length)
    size = 1 << (2 * length - 1).bit_length()
    correlation = _autocorrelation(frames * window, size) / _autocorrelation(window[None], size)
    shortest, longest = int(rate / HIGHEST_HZ), int(rate / LOWEST_HZ)
    part = correlation[:, shortest : longest + 1]
    best = part.max(axis=1)
    # The first local maximum near the best one; at the edges there is none.
    inner = part[:, 1:-1]
    peaks = (inner >= part[:, :-2]) & (inner >= part[:, 2:]) & (inner >= _OCTAVE_BONUS * best[:, None])
    periods = shortest + 1 + peaks.argmax(axis=1)
    voiced = peaks.any(axis=1) & (best >= VOICED_ABOVE) & (level > AUDIBLE_ABOVE * level.max()) & (level > 1e-5)
    if voiced.sum() < LEAST_VOICED_FRAMES:
        return None
    return float(np.median(rate / periods[voiced]))


def _autocorrelation(frames: np.ndarray, size: int) -> np.ndarray:
    """Of each row, float64 [n, size / 2], 1 at lag 0 (0 for silent rows)."""
    power = np.square(np.abs(np.fft.rfft(frames, size)))
    correlation = np.fft.irfft(power, size)[:, : frames.shape[1] * 3 // 4]
    return correlation / np.maximum(correlation[:, :1], 1e-20)
