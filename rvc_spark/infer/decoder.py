"""The vocoder: latent frames in, samples out; HiFi-GAN with or without a harmonic source (Kong et al., 2020; NSF).

    z [B, C, T] -> conv_pre + speaker -> per stage: up-convolution (+ source), mean of residual branches -> conv, tanh

Applio's MRF vocoder runs in the same network (see `mrf`). `receptive_field` tells exactly which frames the samples of a
frame depend on, so a stretch of sound can be made without the rest. Refuses to know files, speakers and windows.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from rvc_spark.infer.layers import SLOPE
from rvc_spark.infer.source import HarmonicSource
from rvc_spark.infer.voice_layout import CONV_KERNEL, MRF, NetConfig

LAST_SLOPE = 0.01  # the reference leaves torch's default before the last convolution


class ResidualBranch(nn.Module):
    """Dilated convolutions around which the signal passes: kind "1", pairs of them, as nearly every voice has."""

    def __init__(self, channels: int, kernel: int, dilations: tuple[int, ...]) -> None:
        super().__init__()
        self.convs1 = nn.ModuleList(
            nn.Conv1d(channels, channels, kernel, dilation=step, padding=step * (kernel - 1) // 2) for step in dilations
        )
        self.convs2 = nn.ModuleList(nn.Conv1d(channels, channels, kernel, padding=kernel // 2) for _ in dilations)

    def forward(self, x: Tensor) -> Tensor:
        for dilated, plain in zip(self.convs1, self.convs2, strict=True):
            x = x + plain(F.leaky_relu(dilated(F.leaky_relu(x, SLOPE)), SLOPE))
        return x


class LightBranch(nn.Module):
    """The lighter kind of residual branch: one dilated convolution per step."""

    def __init__(self, channels: int, kernel: int, dilations: tuple[int, ...]) -> None:
        super().__init__()
        self.convs = nn.ModuleList(
            nn.Conv1d(channels, channels, kernel, dilation=step, padding=step * (kernel - 1) // 2) for step in dilations
        )

    def forward(self, x: Tensor) -> Tensor:
        for conv in self.convs:
            x = x + conv(F.leaky_relu(x, SLOPE))
        return x


def is_light(net: NetConfig) -> bool:
    """Whether its residual branches are `LightBranch`."""
    return net.resblock != "1" and net.vocoder != MRF


def _up_padding(rate: int, kernel: int) -> tuple[int, int]:
    """(padding, output padding) with which an up-convolution gives exactly `rate` samples for one."""
    if (kernel - rate) % 2 == 0:
        return (kernel - rate) // 2, 0
    return (kernel - rate + 1) // 2, 1


class Decoder(nn.Module):
    """The vocoder of one voice."""

    def __init__(self, net: NetConfig) -> None:
        super().__init__()
        first, stages = net.upsample_initial_channel, range(len(net.upsample_rates))
        widths = [net.stage_channels(stage) for stage in stages]
        branch = LightBranch if is_light(net) else ResidualBranch
        if net.has_f0:
            self.m_source = HarmonicSource(net.sample_rate, net.samples_per_frame, net.harmonics)
            self.noise_convs = nn.ModuleList(self._noise_conv(net, stage) for stage in stages)
        self.conv_pre = nn.Conv1d(net.inter_channels, first, CONV_KERNEL, padding=CONV_KERNEL // 2)
        self.cond = nn.Conv1d(net.gin_channels, first, 1)
        self.ups = nn.ModuleList(self._up(net, stage) for stage in stages)
        self.resblocks = nn.ModuleList(
            branch(width, kernel, net.branch_dilations(number))
            for width in widths
            for number, kernel in enumerate(net.resblock_kernel_sizes)
        )
        self.branches = len(net.resblock_kernel_sizes)
        self.conv_post = nn.Conv1d(widths[-1], 1, CONV_KERNEL, padding=CONV_KERNEL // 2, bias=net.vocoder == MRF)

    @staticmethod
    def _up(net: NetConfig, stage: int) -> nn.ConvTranspose1d:
        rate, kernel = net.upsample_rates[stage], net.upsample_kernel_sizes[stage]
        padding, extra = _up_padding(rate, kernel)
        wide, narrow = net.stage_channels(stage - 1), net.stage_channels(stage)
        return nn.ConvTranspose1d(wide, narrow, kernel, rate, padding=padding, output_padding=extra)

    @staticmethod
    def _noise_conv(net: NetConfig, stage: int) -> nn.Conv1d:
        stride, kernel = net.stage_stride(stage), net.noise_kernel(stage)
        return nn.Conv1d(1, net.stage_channels(stage), kernel, stride, padding=(kernel - stride + 1) // 2)

    def forward(self, z: Tensor, source: Tensor | None, speaker: Tensor) -> Tensor:
        """Latent [B, C, T], excitation [B, 1, T * samples_per_frame] or None, speaker [B, gin, 1] -> [B, 1, N]."""
        x = self.conv_pre(z) + self.cond(speaker)
        for stage, up in enumerate(self.ups):
            x = up(F.leaky_relu(x, SLOPE))
            if source is not None:
                x = x + self.noise_convs[stage](source)
            x = self._mean_of_branches(x, stage)
        return torch.tanh(self.conv_post(F.leaky_relu(x, LAST_SLOPE)))

    def _mean_of_branches(self, x: Tensor, stage: int) -> Tensor:
        first, *others = self.resblocks[stage * self.branches : (stage + 1) * self.branches]
        total = first(x)
        for branch in others:
            total = total + branch(x)
        return total / self.branches


# --- the receptive field ---------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Margin:
    """Frames before and after a frame that its samples depend on."""

    before: int
    after: int


@dataclass
class _Span:
    """First and last position, inclusive, on some time axis."""

    first: int
    last: int

    def widened(self, reach: int) -> _Span:
        return _Span(self.first - reach, self.last + reach)


def receptive_field(net: NetConfig) -> Margin:
    """Exactly the frames of latent and source that the samples of one frame depend on.

    The samples 0 .. samples_per_frame - 1 are followed back through every layer; what holds for frame 0 holds for all.
    """
    span = _Span(0, net.samples_per_frame - 1).widened(CONV_KERNEL // 2)
    heard = _Span(0, 0)  # samples of the source
    for stage in reversed(range(len(net.upsample_rates))):
        span = span.widened(_branch_reach(net))
        if net.has_f0:
            part = _strided(span, net.stage_stride(stage), net.noise_kernel(stage))
            heard = _Span(min(heard.first, part.first), max(heard.last, part.last))
        span = _transposed(span, net.upsample_rates[stage], net.upsample_kernel_sizes[stage])
    span = span.widened(CONV_KERNEL // 2)
    first = min(span.first, heard.first // net.samples_per_frame)
    last = max(span.last, heard.last // net.samples_per_frame)
    return Margin(-first, last)


def _branch_reach(net: NetConfig) -> int:
    """Samples to each side that the widest residual branch looks at, at its own stage."""
    plain = 0 if is_light(net) else 1  # the undilated convolution of each pair
    return max(
        sum((step + plain) * (kernel - 1) // 2 for step in net.branch_dilations(number))
        for number, kernel in enumerate(net.resblock_kernel_sizes)
    )


def _strided(span: _Span, stride: int, kernel: int) -> _Span:
    """Inputs of a strided convolution: output n sees n * stride - padding + (0 .. kernel - 1)."""
    padding = (kernel - stride + 1) // 2
    return _Span(span.first * stride - padding, span.last * stride - padding + kernel - 1)


def _transposed(span: _Span, rate: int, kernel: int) -> _Span:
    """Inputs of an up-convolution: input i reaches outputs i * rate - padding + (0 .. kernel - 1)."""
    padding, _ = _up_padding(rate, kernel)
    return _Span(-(-(span.first + padding - kernel + 1) // rate), (span.last + padding) // rate)
