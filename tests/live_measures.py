"""How a streamed conversion is compared with the whole one: distance of spectra, clicks at joins."""

from __future__ import annotations

import numpy as np


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
