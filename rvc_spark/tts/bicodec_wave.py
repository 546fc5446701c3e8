"""The wave generator of BiCodec: frames in, samples out (the decoder of DAC, Kumar et al. 2023, arXiv:2306.06546).

    [B, C, T] -> conv 7 -> per stage: snake, up-convolution, three dilated residual units -> snake, conv 7, tanh

Module names follow the published checkpoint, with weight norm already folded into plain weights. `inputs_of` tells
which frames samples depend on, so a stretch of sound can be made without the rest. Refuses to know tokens and files.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from rvc_spark.tts.bicodec_config import WaveSizes

KERNEL = 7
DILATIONS = (1, 3, 9)
FLOOR = 1e-9  # keeps a snake of alpha 0 finite


class Snake(nn.Module):
    """x + sin^2(alpha x) / alpha, per channel (Ziyin et al. 2020, arXiv:2006.08195)."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.alpha = nn.Parameter(torch.empty(1, channels, 1))

    def forward(self, x: Tensor) -> Tensor:
        """[B, C, T] -> the same shape, leaving x as it is."""
        wave = (x * self.alpha).sin_().square_()  # in place from here: these tensors are far larger than any cache
        return torch.addcmul(x, wave, (self.alpha.float() + FLOOR).reciprocal().to(x.dtype), out=wave)


class ResidualUnit(nn.Module):
    """x + conv1(snake(conv7(snake(x)))), the first convolution dilated."""

    def __init__(self, channels: int, dilation: int) -> None:
        super().__init__()
        padding = dilation * (KERNEL // 2)
        self.block = nn.Sequential(
            Snake(channels),
            nn.Conv1d(channels, channels, KERNEL, dilation=dilation, padding=padding),
            Snake(channels),
            nn.Conv1d(channels, channels, 1),
        )

    def forward(self, x: Tensor) -> Tensor:
        return self.block(x).add_(x)


class UpBlock(nn.Module):
    """[B, C, T] -> [B, C / 2, T * rate]."""

    def __init__(self, channels: int, kernel: int, rate: int) -> None:
        super().__init__()
        half = channels // 2
        self.block = nn.Sequential(
            Snake(channels),
            nn.ConvTranspose1d(channels, half, kernel, rate, padding=(kernel - rate) // 2),
            *(ResidualUnit(half, dilation) for dilation in DILATIONS),
        )

    def forward(self, x: Tensor) -> Tensor:
        return self.block(x)


class WaveGenerator(nn.Module):
    """[B, C, T] -> [B, 1, T * product of rates], within -1..1."""

    def __init__(self, sizes: WaveSizes) -> None:
        super().__init__()
        self.sizes = sizes
        self.samples_per_frame = math.prod(sizes.rates)
        widths = [sizes.channels // 2**stage for stage in range(len(sizes.rates) + 1)]
        stages = zip(widths[:-1], sizes.kernel_sizes, sizes.rates, strict=True)
        self.model = nn.Sequential(
            nn.Conv1d(sizes.input_channel, sizes.channels, KERNEL, padding=KERNEL // 2),
            *(UpBlock(*stage) for stage in stages),
            Snake(widths[-1]),
            nn.Conv1d(widths[-1], 1, KERNEL, padding=KERNEL // 2),
            nn.Tanh(),
        )

    def forward(self, x: Tensor) -> Tensor:
        return self.model(x)

    def inputs_of(self, first: int, last: int) -> tuple[int, int]:
        """The frames (first, last) that the samples `first` to `last` depend on, ends included."""
        side = KERNEL // 2
        first, last = first - side, last + side
        for rate, kernel in reversed(list(zip(self.sizes.rates, self.sizes.kernel_sizes, strict=True))):
            first, last = first - side * sum(DILATIONS), last + side * sum(DILATIONS)
            padding = (kernel - rate) // 2  # frame i reaches samples i * rate - padding + (0 .. kernel - 1)
            first, last = -(-(first + padding - kernel + 1) // rate), (last + padding) // rate
        return first - side, last + side
