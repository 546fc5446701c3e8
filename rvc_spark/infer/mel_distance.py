"""How unlike two sounds are to the ear: the mean absolute difference of their log-mel spectrograms.

Refuses to know where the sounds came from.
"""

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
