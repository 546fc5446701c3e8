"""ConvNeXt stacks over frames: BiCodec's feature encoder and feature decoders (prenet, postnet).

A backbone is an embedding convolution, blocks of depthwise convolution and a two-layer network per frame (Liu et al.
2022, arXiv:2201.03545, as used over time by Vocos, arXiv:2306.00814), and a layer norm. Between backbones stands a
sampling block, which even at ratio 1 triples its input. Module names follow the published checkpoint. Refuses to know
tokens, voices and files.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from rvc_spark.tts.bicodec_config import EncoderSizes, PrenetSizes

KERNEL = 7
EPSILON = 1e-6  # of every layer norm here
SLOPE = 0.2
RESAMPLED_LAYERS = 2  # blocks of the small backbone behind each sampling block
BACKBONE_REACH = KERNEL // 2  # frames per convolution


class ConditionedNorm(nn.Module):
    """Layer norm whose scale and shift are linear in a condition; the scale is used as it is, not as 1 + scale."""

    def __init__(self, width: int, condition: int) -> None:
        super().__init__()
        self.width = width
        self.scale = nn.Linear(condition, width)
        self.shift = nn.Linear(condition, width)

    def forward(self, x: Tensor, condition: Tensor) -> Tensor:
        """[B, T, D], [B, C] -> [B, T, D]."""
        normal = F.layer_norm(x, (self.width,), eps=EPSILON)
        return torch.addcmul(self.shift(condition)[:, None], normal, self.scale(condition)[:, None])


class ConvNeXtBlock(nn.Module):
    """x + gamma * MLP(norm(depthwise(x))) over [B, T, D]."""

    def __init__(self, width: int, inner: int, condition: int) -> None:
        super().__init__()
        self.dwconv = nn.Conv1d(width, width, KERNEL, padding=KERNEL // 2, groups=width)
        self.norm = _norm(width, condition)
        self.pwconv1 = nn.Linear(width, inner)
        self.pwconv2 = nn.Linear(inner, width)
        self.gamma = nn.Parameter(torch.empty(width))

    def forward(self, x: Tensor, condition: Tensor | None) -> Tensor:
        y = self.dwconv(x.transpose(1, 2)).transpose(1, 2)
        y = _normed(self.norm, y, condition)
        y = self.pwconv2(F.gelu(self.pwconv1(y)))
        return torch.addcmul(x, y, self.gamma)


class Backbone(nn.Module):
    """[B, C, T] -> [B, T, D]."""

    def __init__(self, channels: int, width: int, inner: int, layers: int, condition: int = 0) -> None:
        super().__init__()
        self.embed = nn.Conv1d(channels, width, KERNEL, padding=KERNEL // 2)
        self.norm = _norm(width, condition)
        self.convnext = nn.ModuleList(ConvNeXtBlock(width, inner, condition) for _ in range(layers))
        self.final_layer_norm = nn.LayerNorm(width, eps=EPSILON)

    def forward(self, x: Tensor, condition: Tensor | None = None) -> Tensor:
        x = _normed(self.norm, self.embed(x).transpose(1, 2), condition)
        for block in self.convnext:
            x = block(x, condition)
        return self.final_layer_norm(x)

    @property
    def reach(self) -> int:
        """Frames on either side that an output frame depends on."""
        return (1 + len(self.convnext)) * BACKBONE_REACH


def _norm(width: int, condition: int) -> nn.Module:
    return ConditionedNorm(width, condition) if condition else nn.LayerNorm(width, eps=EPSILON)


def _normed(norm: nn.Module, x: Tensor, condition: Tensor | None) -> Tensor:
    return norm(x, condition) if isinstance(norm, ConditionedNorm) else norm(x)


class SamplingBlock(nn.Module):
    """[B, T, D] -> [B, D, T * up / down].

    The input repeated, the input learnt and their sum meet again at the end: with both ratios 1 there is nothing to
    learn, and the block gives three times its input.
    """

    def __init__(self, width: int, up: int = 1, down: int = 1, groups: int | None = None) -> None:
        super().__init__()
        groups = groups or width
        self.up, self.down = up, down
        if up > 1:
            side = up // 2 + up % 2
            conv = nn.ConvTranspose1d(width, width, 2 * up, up, side, output_padding=up % 2, groups=groups)
            self.de_conv_upsampler = nn.Sequential(nn.LeakyReLU(SLOPE), conv)
        if down > 1:
            conv = nn.Conv1d(width, width, 2 * down, down, down // 2 + down % 2, groups=groups)
            self.conv_downsampler = nn.Sequential(nn.LeakyReLU(SLOPE), conv)

    def forward(self, x: Tensor) -> Tensor:
        x = x.transpose(1, 2)
        if self.up == self.down == 1:
            return x * 3.0
        repeated = x.repeat_interleave(self.up, dim=2) if self.up > 1 else x
        learnt = repeated + self.de_conv_upsampler(x) if self.up > 1 else x
        if self.down == 1:
            return learnt + repeated + learnt
        pooled = F.avg_pool1d(repeated, self.down) + F.avg_pool1d(learnt, self.down)
        return self.conv_downsampler(learnt) + pooled


class FeatureEncoder(nn.Module):
    """Features float [B, C, T] -> [B, C_out, T / product of ratios]."""

    def __init__(self, sizes: EncoderSizes) -> None:
        super().__init__()
        width, inner = sizes.vocos_dim, sizes.vocos_intermediate_dim
        self.encoder = Backbone(sizes.input_channels, width, inner, sizes.vocos_num_layers)
        self.downsample = nn.ModuleList(
            nn.Sequential(SamplingBlock(width, down=ratio), Backbone(width, width, inner, RESAMPLED_LAYERS))
            for ratio in sizes.sample_ratios
        )
        self.project = nn.Linear(width, sizes.out_channels)

    def forward(self, x: Tensor) -> Tensor:
        x = self.encoder(x)
        for step in self.downsample:
            x = step(x)
        return self.project(x).transpose(1, 2)


class FeatureDecoder(nn.Module):
    """Codes float [B, C, T] and a condition [B, K] -> [B, C_out, T * product of ratios].

    The list of up-sampling steps is named `downsample` in the published files, in decoders too.
    """

    def __init__(self, sizes: PrenetSizes) -> None:
        super().__init__()
        width, inner = sizes.vocos_dim, sizes.vocos_intermediate_dim
        self.linear_pre = nn.Linear(sizes.input_channels, width)
        self.downsample = nn.ModuleList(
            nn.Sequential(SamplingBlock(width, up=ratio), Backbone(width, width, inner, RESAMPLED_LAYERS))
            for ratio in sizes.sample_ratios
        )
        self.vocos_backbone = Backbone(width, width, inner, sizes.vocos_num_layers, sizes.condition_dim)
        self.linear = nn.Linear(width, sizes.out_channels)
        self.tanh = sizes.use_tanh_at_final

    def forward(self, x: Tensor, condition: Tensor | None = None) -> Tensor:
        x = self.linear_pre(x.transpose(1, 2))
        for step in self.downsample:
            x = step(x)
        x = self.linear(self.vocos_backbone(x.transpose(1, 2), condition)).transpose(1, 2)
        return torch.tanh(x) if self.tanh else x

    def inputs_of(self, first: int, last: int) -> tuple[int, int]:
        """The input frames (first, last) that the output frames `first` to `last` depend on, ends included."""
        first, last = first - self.vocos_backbone.reach, last + self.vocos_backbone.reach
        for sampling, backbone in reversed([(step[0], step[1]) for step in self.downsample]):
            first, last = first - backbone.reach, last + backbone.reach
            if sampling.up > 1:  # input i reaches i * up - side + (0 .. 2 * up - 1), and there lie its repetitions
                side = sampling.up // 2 + sampling.up % 2
                first = -(-(first + side - 2 * sampling.up + 1) // sampling.up)
                last = (last + side) // sampling.up
        return first, last
