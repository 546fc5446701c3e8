"""A room for a voice: convolution with a synthetic impulse response, two channels out of one.

The response is noise from a seed that decays, the high end sooner than the low, after a few early reflections; left and
right are two draws of it, which is what makes a room wide. (Moorer, "About this reverberation business", 1979: the tail
of a good hall is decaying white noise.) Convolved by overlap-add: every block is transformed once, multiplied, and its
tail is carried into the blocks after it.
"""

from __future__ import annotations

import math

import numpy as np
from scipy import fft
from scipy.signal import sosfilt

from rvc_spark.covers.biquads import HIGHEST_SHARE, high_pass, low_pass

WET_LOW_HZ = 180.0
"""Below this a reverb is rumble that hides the bass of the band."""
BLOOM_SECONDS = 0.025
"""Over which the tail comes in behind the early reflections."""
EARLY_SECONDS = (0.009, 0.065)
EARLY_COUNT = 9
EARLY_SHARE = 0.35
"""Of the energy of the response."""
BRIGHT_DECAY = 0.45
"""Share of the decay time that is left to what lies above the damping frequency."""


def impulse_response(seconds: float, predelay: float, damping_hz: float, rate: int, seed: int) -> np.ndarray:
    """Two channels of a room, float64 [2, n], each of energy 1.

    Args:
        seconds: in which the tail falls by 60 dB below `damping_hz`; above, it takes less than half of that.
        predelay: seconds before the first reflection, so that words stay clear.
    """
    random = np.random.default_rng(seed)
    length = max(16, round(seconds * rate))
    time = np.arange(length) / rate
    noise = random.standard_normal((2, length))
    if damping_hz < HIGHEST_SHARE * rate:
        low = sosfilt(low_pass(damping_hz, rate)[np.newaxis], noise, axis=-1)
        tail = low * _decay(time, seconds) + (noise - low) * _decay(time, BRIGHT_DECAY * seconds)
    else:
        tail = noise * _decay(time, seconds)
    tail *= 1 - np.exp(-time / BLOOM_SECONDS)
    tail *= math.sqrt(1 - EARLY_SHARE) / np.linalg.norm(tail, axis=-1, keepdims=True)
    early = np.zeros_like(tail)
    for channel in range(2):
        places = random.uniform(*EARLY_SECONDS, EARLY_COUNT)
        heights = random.choice((-1.0, 1.0), EARLY_COUNT) * _decay(places, seconds / 4)
        np.add.at(early[channel], np.minimum((places * rate).astype(int), length - 1), heights)
    early *= math.sqrt(EARLY_SHARE) / np.linalg.norm(early, axis=-1, keepdims=True)
    response = np.pad(tail + early, ((0, 0), (round(predelay * rate), 0)))
    response = sosfilt(high_pass(WET_LOW_HZ, rate)[np.newaxis], response, axis=-1)
    return response / np.linalg.norm(response, axis=-1, keepdims=True)


def _decay(time: np.ndarray, seconds: float) -> np.ndarray:
    return 10 ** (-3 * time / seconds)


class Convolver:
    """One sound [n] through a response [R, m], in blocks of one fixed length; only the last may be shorter."""

    def __init__(self, response: np.ndarray, block_frames: int) -> None:
        self._size = fft.next_fast_len(block_frames + response.shape[1] - 1, real=True)
        self._spectrum = fft.rfft(response, self._size).astype(np.complex64)
        self._tail = np.zeros((len(response), self._size), np.float32)  # what earlier blocks still have to say

    def push(self, block: np.ndarray) -> np.ndarray:
        """float32 [n] -> float32 [R, n]."""
        count = len(block)
        if block.any():
            self._tail += fft.irfft(fft.rfft(block.astype(np.float32), self._size) * self._spectrum, self._size)
        ready = self._tail[:, :count].copy()
        self._tail[:, :-count] = self._tail[:, count:]
        self._tail[:, -count:] = 0.0
        return ready
