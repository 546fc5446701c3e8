"""How a streamed conversion is compared with the whole one: distance of spectra, clicks at joins."""

from __future__ import annotations

import numpy as np
from scipy.signal import stft

from rvc_spark.infer.mel import mel_filters

BANDS = 80
SPAN_DB = 70.0  # below the loudest band this counts as silence


def mel_db(sound: np.ndarray, rate: int) -> np.ndarray:
    """Magnitudes of 80 mel bands in dB, [80, T], one column per 10 ms."""
    size, hop = 1024, rate // 100
    magnitude = np.abs(stft(sound, rate, nperseg=size, noverlap=size - hop, boundary="even")[2])
    return 20 * np.log10(mel_filters(rate, size, BANDS, 30.0, rate / 2) @ magnitude + 1e-12)


def log_mel_distance(a: np.ndarray, b: np.ndarray, rate: int) -> float:
    """Mean absolute difference of two sounds of one length in dB; what lies 70 dB below the peak of `a` is cut off."""
    first, second = mel_db(a, rate), mel_db(b, rate)
    floor = first.max() - SPAN_DB
    return float(np.abs(np.maximum(first, floor) - np.maximum(second, floor)).mean())


def click_score(sound: np.ndarray, at: int, rate: int) -> float:
    """Energy of the second difference within 5 ms of a place over that of the loudest other 10 ms within 60 ms, in dB.

    The loudest and not the mean: where speech begins, 10 ms rise 11 dB above the mean of their surroundings without any
    join, while a click stands above everything near it.
    """
    second = np.diff(sound.astype(np.float64), 2) ** 2
    near = round(0.005 * rate)
    others = [middle for step in range(2, 13) for middle in (at - step * near, at + step * near)]
    around = [
        second[middle - near : middle + near].mean() for middle in others if near <= middle <= len(second) - near
    ]
    return float(10 * np.log10((second[at - near : at + near].mean() + 1e-12) / (max(around) + 1e-12)))


def join_places(frames: int, block: int, crossfade: int) -> list[int]:
    """Where clicks could be: start, middle and end of every crossfade, in samples, away from both ends of the sound."""
    places = [at + part for at in range(block, frames, block) for part in (0, crossfade // 2, crossfade)]
    return [at for at in places if at < frames - 10 * crossfade]


def join_scores(live: np.ndarray, whole: np.ndarray, places: list[int], rate: int) -> tuple[float, float]:
    """Worst score of the joins, and of the whole conversion at the same places, where it has none."""
    return tuple(max(click_score(sound, at, rate) for at in places) for sound in (live, whole))
