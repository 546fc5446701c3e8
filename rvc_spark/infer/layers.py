"""The building blocks of the voice network up to the vocoder: attention, text encoder layers, WaveNet, couplings.

Names of parameters are those of community files. Shapes are channels-first, [B, C, T], with a mask [B, 1, T] that is 1
inside the sequence, or None where all frames are inside. All weights are plain: weight norm is multiplied out before
they come here, and a trainer can put it back with torch's parametrization. Refuses to know files.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from rvc_spark.infer.voice_layout import FLOW_COUPLINGS, FLOW_KERNEL, FLOW_LAYERS, WINDOW, NetConfig

SLOPE = 0.1  # leaky ReLU everywhere but before the last convolution
MASKED = -1e4  # attention score of a masked pair; fits half precision
SCORE_NUMBERS = 1024**2  # attention scores held at once: 4 MiB of float32, which stay in the cache


def masked(x: Tensor, mask: Tensor | None) -> Tensor:
    """x [B, C, T] with zeros outside the mask [B, 1, T]."""
    return x if mask is None else x * mask


class ChannelNorm(nn.Module):
    """Layer norm over the channels of [B, C, T]."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.gamma = nn.Parameter(torch.ones(channels))
        self.beta = nn.Parameter(torch.zeros(channels))

    def forward(self, x: Tensor) -> Tensor:
        return F.layer_norm(x.transpose(1, 2), self.gamma.shape, self.gamma, self.beta, eps=1e-5).transpose(1, 2)


class RelativeAttention(nn.Module):
    """Self-attention with learned embeddings of the distances -10..10, shared by the heads (Shaw et al., 2018).

    Queries are worked off in blocks, so memory grows with T and not with T squared; each row of scores is complete, so
    the result is the same.

        score[i, j] = q_i . k_j / sqrt(d) + (q_i . R_k[j - i] / sqrt(d) if |j - i| <= 10)
        out[i]      = sum_j p_ij v_j + sum_{|j - i| <= 10} p_ij R_v[j - i]
    """

    def __init__(self, channels: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.conv_q = nn.Conv1d(channels, channels, 1)
        self.conv_k = nn.Conv1d(channels, channels, 1)
        self.conv_v = nn.Conv1d(channels, channels, 1)
        self.conv_o = nn.Conv1d(channels, channels, 1)
        self.emb_rel_k = nn.Parameter(torch.empty(1, 2 * WINDOW + 1, channels // heads))
        self.emb_rel_v = nn.Parameter(torch.empty(1, 2 * WINDOW + 1, channels // heads))

    def _split(self, x: Tensor) -> Tensor:
        return x.unflatten(1, (self.heads, -1)).transpose(2, 3)  # [B, heads, T, d]

    def forward(self, x: Tensor, mask: Tensor | None) -> Tensor:
        """float [B, C, T], mask [B, 1, T] -> [B, C, T]."""
        query = self._split(self.conv_q(x)) / math.sqrt(x.shape[1] // self.heads)
        key, value = self._split(self.conv_k(x)), self._split(self.conv_v(x))
        batch, _, frames = x.shape
        size = max(1, SCORE_NUMBERS // (batch * self.heads * frames))
        blocks = [self._block(query, key, value, mask, (at, min(at + size, frames))) for at in range(0, frames, size)]
        out = torch.cat(blocks, dim=2).transpose(2, 3).flatten(1, 2)
        return self.conv_o(out)

    def _block(self, query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None, span: tuple[int, int]) -> Tensor:
        frames = key.shape[2]
        rows = torch.arange(*span, device=key.device)
        near = rows[:, None] + torch.arange(-WINDOW, WINDOW + 1, device=key.device)  # [rows, 21], may point outside
        inside = (near >= 0) & (near < frames)
        place = near.clamp(0, frames - 1).expand(*query.shape[:2], -1, -1)
        query = query[:, :, span[0] : span[1]]
        scores = query @ key.transpose(2, 3)
        relative = (query @ self.emb_rel_k[0].T) * inside  # outside the sequence it adds 0 to the clamped place
        scores.scatter_add_(3, place, relative)
        if mask is not None:
            pairs = mask[:, :, span[0] : span[1], None] * mask[:, :, None]
            scores.masked_fill_(pairs == 0, MASKED)
        weights = scores.softmax(dim=3)
        return weights @ value + (weights.gather(3, place) * inside) @ self.emb_rel_v[0]


class FeedForward(nn.Module):
    """Two convolutions over time with ReLU between."""

    def __init__(self, channels: int, filters: int, kernel: int) -> None:
        super().__init__()
        self.pad = ((kernel - 1) // 2, kernel // 2)
        self.conv_1 = nn.Conv1d(channels, filters, kernel)
        self.conv_2 = nn.Conv1d(filters, channels, kernel)

    def forward(self, x: Tensor, mask: Tensor | None) -> Tensor:
        y = torch.relu(self.conv_1(F.pad(masked(x, mask), self.pad)))
        return masked(self.conv_2(F.pad(masked(y, mask), self.pad)), mask)


class PriorLayers(nn.Module):
    """The transformer of the prior encoder, post-norm."""

    def __init__(self, net: NetConfig) -> None:
        super().__init__()
        layers = range(net.n_layers)
        hidden = net.hidden_channels
        self.attn_layers = nn.ModuleList(RelativeAttention(hidden, net.n_heads) for _ in layers)
        self.norm_layers_1 = nn.ModuleList(ChannelNorm(hidden) for _ in layers)
        self.ffn_layers = nn.ModuleList(FeedForward(hidden, net.filter_channels, net.kernel_size) for _ in layers)
        self.norm_layers_2 = nn.ModuleList(ChannelNorm(hidden) for _ in layers)

    def forward(self, x: Tensor, mask: Tensor | None) -> Tensor:
        x = masked(x, mask)
        layers = zip(self.attn_layers, self.norm_layers_1, self.ffn_layers, self.norm_layers_2, strict=True)
        for attention, norm_1, ffn, norm_2 in layers:
            x = norm_1(x + attention(x, mask))
            x = norm_2(x + ffn(x, mask))
        return masked(x, mask)


def table(rows: int, width: int) -> nn.Embedding:
    """An embedding whose weights are to come. Were some drawn without memory, torch would import its compiler first."""
    return nn.Embedding.from_pretrained(torch.empty(rows, width), freeze=False)


class PriorEncoder(nn.Module):
    """Content features and coarse pitch -> mean and log-scale of the latent of each frame."""

    def __init__(self, net: NetConfig) -> None:
        super().__init__()
        self.scale = math.sqrt(net.hidden_channels)
        self.emb_phone = nn.Linear(net.content_dim, net.hidden_channels)
        if net.has_f0:
            self.emb_pitch = table(256, net.hidden_channels)
        self.encoder = PriorLayers(net)
        self.proj = nn.Conv1d(net.hidden_channels, 2 * net.inter_channels, 1)

    def hidden(self, phone: Tensor, mask: Tensor | None, pitch: Tensor | None) -> Tensor:
        """phone [B, T, D], mask [B, 1, T] or None, pitch int [B, T] or None -> [B, hidden, T]."""
        x = self.emb_phone(phone)
        if pitch is not None:
            x = x + self.emb_pitch(pitch)
        return self.encoder(F.leaky_relu(x * self.scale, SLOPE).transpose(1, 2), mask)

    def project(self, hidden: Tensor, mask: Tensor | None) -> tuple[Tensor, Tensor]:
        """[B, hidden, T] -> mean and log-scale, each [B, C, T], zero outside the mask."""
        mean, log_scale = masked(self.proj(hidden), mask).chunk(2, dim=1)
        return mean, log_scale


class WaveNet(nn.Module):
    """Gated convolutions with residual and skip paths, conditioned on the speaker (van den Oord et al., 2016)."""

    def __init__(self, hidden: int, layers: int, conditions: int, kernel: int = FLOW_KERNEL) -> None:
        super().__init__()
        self.hidden = hidden
        self.cond_layer = nn.Conv1d(conditions, 2 * hidden * layers, 1)
        self.in_layers = nn.ModuleList(
            nn.Conv1d(hidden, 2 * hidden, kernel, padding=kernel // 2) for _ in range(layers)
        )
        self.res_skip_layers = nn.ModuleList(
            nn.Conv1d(hidden, 2 * hidden if layer < layers - 1 else hidden, 1) for layer in range(layers)
        )

    def forward(self, x: Tensor, mask: Tensor | None, speaker: Tensor) -> Tensor:
        """x [B, hidden, T], speaker [B, conditions, 1] -> sum of the skips [B, hidden, T]."""
        skips = torch.zeros_like(x)
        conditions = self.cond_layer(speaker).split(2 * self.hidden, dim=1)
        for condition, in_layer, res_skip in zip(conditions, self.in_layers, self.res_skip_layers, strict=True):
            carrier, gate = (in_layer(x) + condition).chunk(2, dim=1)
            y = res_skip(torch.tanh(carrier) * torch.sigmoid(gate))
            if y.shape[1] > self.hidden:
                x = masked(x + y[:, : self.hidden], mask)
                y = y[:, self.hidden :]
            skips = skips + y
        return masked(skips, mask)


class Coupling(nn.Module):
    """One half of the channels shifted by a function of the other (mean only, so no volume change)."""

    def __init__(self, net: NetConfig) -> None:
        super().__init__()
        half = net.inter_channels // 2
        self.pre = nn.Conv1d(half, net.hidden_channels, 1)
        self.enc = WaveNet(net.hidden_channels, FLOW_LAYERS, net.gin_channels)
        self.post = nn.Conv1d(net.hidden_channels, half, 1)

    def forward(self, x: Tensor, mask: Tensor | None, speaker: Tensor, reverse: bool) -> Tensor:
        still, moved = x.chunk(2, dim=1)
        mean = masked(self.post(self.enc(masked(self.pre(still), mask), mask, speaker)), mask)
        moved = masked(moved - mean, mask) if reverse else mean + masked(moved, mask)
        return torch.cat([still, moved], dim=1)


class Flow(nn.Module):
    """Four couplings, the channels flipped after each; reversed, it leads from the prior to the vocoder's latent."""

    # Frames on each side of a frame that its result depends on.
    MARGIN = FLOW_COUPLINGS * FLOW_LAYERS * (FLOW_KERNEL // 2)

    def __init__(self, net: NetConfig) -> None:
        super().__init__()
        # every second entry stands for a flip, which has no parameters, so that the numbers match the files
        self.flows = nn.ModuleList(
            Coupling(net) if number % 2 == 0 else nn.Identity() for number in range(2 * FLOW_COUPLINGS)
        )

    def forward(self, x: Tensor, mask: Tensor | None, speaker: Tensor, reverse: bool = False) -> Tensor:
        """[B, C, T] -> [B, C, T]; speaker [B, gin, 1]."""
        couplings = [self.flows[2 * number] for number in range(FLOW_COUPLINGS)]
        for coupling in reversed(couplings) if reverse else couplings:
            if reverse:
                x = coupling(x.flip(1), mask, speaker, True)
            else:
                x = coupling(x, mask, speaker, False).flip(1)
        return x
