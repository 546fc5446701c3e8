"""The mel spectrogram a voice is recognised by: linear magnitudes on Slaney's scale, without a logarithm.

Formulas: M. Slaney, Auditory Toolbox, 1998: the scale is linear below 1 kHz (200 / 3 Hz per mel) and logarithmic above
(27 mels per factor of 6.4), each triangle has the area of its bandwidth. Always float32: a magnitude that underflows
in half precision would be another voice. Refuses to know tokens and files.
"""

from __future__ import annotations

import math

import numpy as np
import torch
from torch import Tensor, nn

from rvc_spark.tts.bicodec_config import MelSizes

_LINEAR_HZ = 200.0 / 3.0  # Hz per mel below the break
_BREAK_HZ = 1_000.0
_BREAK_MEL = _BREAK_HZ / _LINEAR_HZ
_LOG_STEP = math.log(6.4) / 27.0  # natural log of frequency per mel above the break


def slaney_mel(hz: float) -> float:
    """Mel of a frequency in Hz on Slaney's scale."""
    return hz / _LINEAR_HZ if hz < _BREAK_HZ else _BREAK_MEL + math.log(hz / _BREAK_HZ) / _LOG_STEP


def mel_filters(sizes: MelSizes) -> np.ndarray:
    """Filterbank float32 [n_fft // 2 + 1, num_mels] for magnitude spectra."""
    high = sizes.sample_rate / 2 if sizes.mel_fmax is None else sizes.mel_fmax
    mels = np.linspace(slaney_mel(sizes.mel_fmin), slaney_mel(high), sizes.num_mels + 2)
    above = _BREAK_HZ * np.exp(_LOG_STEP * (mels - _BREAK_MEL))
    corners = np.where(mels < _BREAK_MEL, mels * _LINEAR_HZ, above)
    bins = np.linspace(0.0, sizes.sample_rate / 2, sizes.n_fft // 2 + 1)
    widths = np.diff(corners)
    rising = (bins[:, None] - corners[:-2]) / widths[:-1]
    falling = (corners[2:] - bins[:, None]) / widths[1:]
    triangles = np.maximum(0.0, np.minimum(rising, falling))
    return (triangles * (2.0 / (corners[2:] - corners[:-2]))).astype(np.float32)


class MelFrontEnd(nn.Module):
    """Samples float [B, N], N > n_fft / 2 -> float32 [B, num_mels, N // hop + 1], centred, reflected at the ends."""

    def __init__(self, sizes: MelSizes) -> None:
        super().__init__()
        self.sizes = sizes
        self._made: dict[torch.device, tuple[Tensor, Tensor]] = {}  # window and filters, per device they were used on

    @property
    def shortest(self) -> int:
        """Samples a sound needs for its ends to be reflected."""
        return self.sizes.n_fft // 2 + 1

    def forward(self, samples: Tensor) -> Tensor:
        sizes = self.sizes
        window, filters = self._tables(samples.device)
        spectrum = torch.stft(
            samples.float(), sizes.n_fft, sizes.hop_length, sizes.win_length, window, return_complex=True
        )
        return (filters.T @ spectrum.abs()).contiguous()

    def _tables(self, device: torch.device) -> tuple[Tensor, Tensor]:
        if device not in self._made:
            window = torch.hann_window(self.sizes.win_length, dtype=torch.float32, device=device)
            self._made[device] = window, torch.from_numpy(mel_filters(self.sizes)).to(device)
        return self._made[device]
