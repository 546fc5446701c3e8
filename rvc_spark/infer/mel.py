"""Mel filterbank on the HTK scale, with Slaney's normalization: triangles of equal area over a linear frequency axis.

Formulas: HTK book (mel = 2595 * log10(1 + f / 700)); M. Slaney, Auditory Toolbox, 1998 (each triangle divided by half
its width in Hz). Same numbers as `librosa.filters.mel(htk=True, norm="slaney")`, without librosa. Refuses to know
spectra.
"""

from __future__ import annotations

import numpy as np


def hz_to_mel(hz: np.ndarray | float) -> np.ndarray:
    """HTK mel of a frequency in Hz."""
    return 2595.0 * np.log10(1.0 + np.asarray(hz, dtype=np.float64) / 700.0)


def mel_to_hz(mel: np.ndarray | float) -> np.ndarray:
    """Frequency in Hz of an HTK mel."""
    return 700.0 * (10.0 ** (np.asarray(mel, dtype=np.float64) / 2595.0) - 1.0)


def mel_filters(rate: int, n_fft: int, bands: int, low: float, high: float) -> np.ndarray:
    """Filterbank float32 [bands, n_fft // 2 + 1] for magnitude spectra.

    Args:
        rate: samples per second.
        n_fft: length of the Fourier transform in samples.
        bands: number of triangles.
        low, high: Hz where the first triangle begins and the last one ends.
    """
    #        /\        triangle b rises from corner b to b + 1 and falls to b + 2
    #       /  \       corners are equally spaced in mel
    #   ---b-b+1-b+2-
    corners = mel_to_hz(np.linspace(hz_to_mel(low), hz_to_mel(high), bands + 2))
    bins = np.linspace(0.0, rate / 2, n_fft // 2 + 1)
    widths = np.diff(corners)
    rising = (bins[None] - corners[:-2, None]) / widths[:-1, None]
    falling = (corners[2:, None] - bins[None]) / widths[1:, None]
    triangles = np.maximum(0.0, np.minimum(rising, falling))
    return (triangles * (2.0 / (corners[2:] - corners[:-2]))[:, None]).astype(np.float32)
