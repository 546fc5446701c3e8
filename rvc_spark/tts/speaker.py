"""Who speaks, as a few tokens: BiCodec's speaker encoder.

    mel [B, T, 128] -> ECAPA-TDNN -> latent [B, 1536, T] -> perceiver: 32 queries look at it -> [B, 32, 128]
    -> scalar quantiser -> 32 ids of 0..4095 -> (back) [B, 128, 32] -> one vector [B, 1024]

ECAPA-TDNN: Desplanques et al. 2020, arXiv:2005.07143 (here ReLU stands before batch norm, and the three blocks form a
plain chain). Perceiver resampler: Jaegle et al. 2021, arXiv:2103.03206. Module names follow the published checkpoint.
Refuses to know sounds and files.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from rvc_spark.tts.bicodec_config import SpeakerSizes
from rvc_spark.tts.bicodec_quantise import ResidualScalarQuantizer

CHANNELS = 512  # of the published speaker network
LATENT = 1_536
GROUPS = 8  # of a Res2 convolution
BOTTLENECK = 128
HEADS, HEAD_WIDTH = 8, 64
PERCEIVER_LAYERS = 2
FEED_FORWARD = 4
VARIANCE_FLOOR = 1e-7


class FrozenBatchNorm(nn.Module):
    """Batch norm of a finished training: its statistics are weights like others, and no step counter is kept."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        for name in ("weight", "bias", "running_mean", "running_var"):
            self.register_parameter(name, nn.Parameter(torch.empty(channels), requires_grad=False))

    def forward(self, x: Tensor) -> Tensor:
        return F.batch_norm(x, self.running_mean, self.running_var, self.weight, self.bias)


class ConvReluNorm(nn.Module):
    """Convolution, ReLU, batch norm, in this order, keeping the length."""

    def __init__(self, channels_in: int, channels_out: int, kernel: int = 1) -> None:
        super().__init__()
        self.conv = nn.Conv1d(channels_in, channels_out, kernel, padding=kernel // 2)
        self.bn = FrozenBatchNorm(channels_out)

    def forward(self, x: Tensor) -> Tensor:
        return self.bn(F.relu(self.conv(x)))


class Res2Conv(nn.Module):
    """Channels in groups; each group hears the result of the one before, so later ones see further. The last passes."""

    def __init__(self, channels: int, dilation: int) -> None:
        super().__init__()
        width = channels // GROUPS
        self.convs = nn.ModuleList(
            nn.Conv1d(width, width, 3, dilation=dilation, padding=dilation) for _ in range(GROUPS - 1)
        )
        self.bns = nn.ModuleList(FrozenBatchNorm(width) for _ in range(GROUPS - 1))

    def forward(self, x: Tensor) -> Tensor:
        *groups, last = x.chunk(GROUPS, dim=1)
        done: list[Tensor] = []
        for group, conv, norm in zip(groups, self.convs, self.bns, strict=True):
            done.append(norm(F.relu(conv(group + done[-1] if done else group))))
        return torch.cat([*done, last], dim=1)


class SqueezeExcite(nn.Module):
    """Every channel scaled by what its mean over time asks for."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.linear1 = nn.Linear(channels, BOTTLENECK)
        self.linear2 = nn.Linear(BOTTLENECK, channels)

    def forward(self, x: Tensor) -> Tensor:
        return x * torch.sigmoid(self.linear2(F.relu(self.linear1(x.mean(2)))))[:, :, None]


class Res2Block(nn.Module):
    """x + SE(1x1(Res2(1x1(x))))."""

    def __init__(self, channels: int, dilation: int) -> None:
        super().__init__()
        self.se_res2block = nn.Sequential(
            ConvReluNorm(channels, channels),
            Res2Conv(channels, dilation),
            ConvReluNorm(channels, channels),
            SqueezeExcite(channels),
        )

    def forward(self, x: Tensor) -> Tensor:
        return x + self.se_res2block(x)


class StatisticsPool(nn.Module):
    """Attentive mean and standard deviation over time: [B, C, T] -> [B, 2C]. `with_context` adds the clip's own."""

    def __init__(self, channels: int, with_context: bool) -> None:
        super().__init__()
        self.with_context = with_context
        self.linear1 = nn.Conv1d(channels * 3 if with_context else channels, BOTTLENECK, 1)
        self.linear2 = nn.Conv1d(BOTTLENECK, channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        context = x
        if self.with_context:
            mean, deviation = x.mean(2, keepdim=True), (x.var(2, keepdim=True) + VARIANCE_FLOOR).sqrt()
            context = torch.cat([x, mean.expand_as(x), deviation.expand_as(x)], dim=1)
        weights = torch.softmax(self.linear2(torch.tanh(self.linear1(context))), dim=2)
        mean = (weights * x).sum(2)
        variance = (weights * x.square()).sum(2) - mean.square()
        return torch.cat([mean, variance.clamp_min(VARIANCE_FLOOR).sqrt()], dim=1)


class EcapaTdnn(nn.Module):
    """Mel [B, T, F] -> latent [B, 1536, T]; `embedding` makes the x-vector of it, which decoding never needs."""

    def __init__(self, features: int, embedding: int, channels: int = CHANNELS, with_context: bool = True) -> None:
        super().__init__()
        self.layer1 = ConvReluNorm(features, channels, 5)
        self.layer2, self.layer3, self.layer4 = (Res2Block(channels, dilation) for dilation in (2, 3, 4))
        self.conv = nn.Conv1d(channels * 3, LATENT, 1)
        self.pool = StatisticsPool(LATENT, with_context)
        self.bn = FrozenBatchNorm(LATENT * 2)
        self.linear = nn.Linear(LATENT * 2, embedding)

    def forward(self, mel: Tensor) -> Tensor:
        second = self.layer2(self.layer1(mel.transpose(1, 2)))
        third = self.layer3(second)
        return F.relu(self.conv(torch.cat([second, third, self.layer4(third)], dim=1)))

    def embedding(self, latent: Tensor) -> Tensor:
        """Latent [B, 1536, T] -> x-vector [B, E]."""
        return self.linear(self.bn(self.pool(latent)))


class Attention(nn.Module):
    """Queries look at themselves and at a context, themselves first."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        inner = HEADS * HEAD_WIDTH
        self.to_q = nn.Linear(dim, inner, bias=False)
        self.to_kv = nn.Linear(dim, inner * 2, bias=False)
        self.to_out = nn.Linear(inner, dim, bias=False)

    def forward(self, latents: Tensor, context: Tensor) -> Tensor:
        key, value = self.to_kv(torch.cat([latents, context], dim=1)).chunk(2, dim=-1)
        query, key, value = (x.unflatten(-1, (HEADS, -1)).transpose(1, 2) for x in (self.to_q(latents), key, value))
        return self.to_out(F.scaled_dot_product_attention(query, key, value).transpose(1, 2).flatten(2))


class GatedGelu(nn.Module):
    """First half times GELU of the second half, which is the gate."""

    def forward(self, x: Tensor) -> Tensor:
        value, gate = x.chunk(2, dim=-1)
        return F.gelu(gate) * value


class UnitNorm(nn.Module):
    """Every vector to length sqrt(dim), then scaled per dimension."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.gamma = nn.Parameter(torch.empty(dim))

    def forward(self, x: Tensor) -> Tensor:
        return F.normalize(x, dim=-1) * (math.sqrt(x.shape[-1]) * self.gamma)


class Perceiver(nn.Module):
    """Context [B, T, C] -> [B, latents, dim]: learnt queries gather what they need, whatever the length."""

    def __init__(self, dim: int, context: int, latents: int, layers: int = PERCEIVER_LAYERS) -> None:
        super().__init__()
        inner = dim * FEED_FORWARD * 2 // 3
        self.proj_context = nn.Linear(context, dim) if context != dim else nn.Identity()
        self.latents = nn.Parameter(torch.empty(latents, dim))
        self.layers = nn.ModuleList(
            nn.ModuleList(
                [Attention(dim), nn.Sequential(nn.Linear(dim, inner * 2), GatedGelu(), nn.Linear(inner, dim))]
            )
            for _ in range(layers)
        )
        self.norm = UnitNorm(dim)

    def forward(self, context: Tensor) -> Tensor:
        context = self.proj_context(context)
        x = self.latents.expand(context.shape[0], -1, -1)
        for attention, feed_forward in self.layers:
            x = x + attention(x, context)
            x = x + feed_forward(x)
        return self.norm(x)


class SpeakerEncoder(nn.Module):
    """A voice as ids and as a vector."""

    def __init__(self, sizes: SpeakerSizes) -> None:
        super().__init__()
        self.speaker_encoder = EcapaTdnn(sizes.input_dim, sizes.out_dim)
        self.perceiver_sampler = Perceiver(sizes.latent_dim, LATENT, sizes.token_num)
        self.quantizer = ResidualScalarQuantizer(sizes.fsq_levels, sizes.fsq_num_quantizers, sizes.latent_dim)
        self.project = nn.Linear(sizes.latent_dim * sizes.token_num, sizes.out_dim)

    def tokenise(self, mel: Tensor) -> Tensor:
        """Mel [B, T, F] -> ids int32 [B, Q, tokens]."""
        return self.quantizer(self.gathered(mel))[1].transpose(1, 2)

    def gathered(self, mel: Tensor) -> Tensor:
        """Mel [B, T, F] -> [B, tokens, dim], what is quantised."""
        return self.perceiver_sampler(self.speaker_encoder(mel).transpose(1, 2))

    def detokenise(self, ids: Tensor) -> Tensor:
        """ids [B, Q, tokens] -> d-vector [B, D]. Tokens are laid out channel by channel."""
        return self.project(self.quantizer.decode(ids.transpose(1, 2)).transpose(1, 2).flatten(1))
