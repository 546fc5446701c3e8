"""The convolutions of a content encoder over a sound of any length, in pieces: exact, bounded, and fast on a CPU.

All convolutions are local; only the group norm behind the first one looks at all of time. Per channel it is
y = (x - mean) / sqrt(var + eps) * w + b, which is folded into the convolution:
y = conv(wave, W * s) + (b - mean * s) with s = w / sqrt(var + eps).

On a CPU the pieces are rows (see `row_conv`): each convolution is one product with its GELU on the way out. Where there
is no AVX-512, oneDNN's convolutions run at a quarter of their speed for some lengths, and plain products take their
place. Refuses to know transformers, versions and sounds' formats.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor
from torch.nn import functional as F

from rvc_spark.infer.encoder_sizes import HOP, WINDOW
from rvc_spark.infer.hubert import Extractor
from rvc_spark.infer.row_conv import RowConv, as_matrix, as_rows, rows_work

PIECE_FRAMES = 128  # 2.6 s: what a piece makes stays near the processor, where 10 s at once are fetched anew
DEVICE_FRAMES = 4096  # of all pieces at once on a GPU, which wants much to do: half a gigabyte
STEP_FRAMES = 64  # shorter pieces are a multiple of it, since kernels are made and kept per length


class ConvFeatures:
    """The convolutions of `extractor`.

    Args:
        dtype: of the products but the first; bfloat16 for an extractor in float32 on a CPU, else the extractor's.
    """

    def __init__(self, extractor: Extractor, dtype: torch.dtype) -> None:
        self._layers, self._dtype = extractor.conv_layers, dtype
        weight = self._layers[0].conv.weight
        self._rows: list[RowConv] | list[PairConv] | None = None
        if weight.device.type == "cpu" and weight.dtype == torch.float32 and rows_work(dtype):
            convs = [layer.conv for layer in self._layers[1:]]
            paired = all(conv.kernel_size[0] in (2, 3) and conv.stride[0] == 2 for conv in convs)
            if paired and dtype == torch.float32 and not has_avx512():
                self._rows = [PairConv(conv.weight) for conv in convs]
            else:
                self._rows = [RowConv(conv.weight.to(dtype), None, stride=conv.stride[0]) for conv in convs]

    def __call__(self, wave: Tensor) -> Tensor:
        """Waveforms [B, N], N >= WINDOW -> [B, F, C] in the waveforms' type, F = (N - WINDOW) // HOP + 1."""
        frames = (wave.shape[1] - WINDOW) // HOP + 1
        folded = [self._folded_first(one) for one in wave]
        largest = PIECE_FRAMES if wave.device.type == "cpu" else max(DEVICE_FRAMES // len(wave), PIECE_FRAMES)
        pieces = _pieces(wave, frames, largest)
        return torch.cat([self._piece(piece, folded)[:, :count] for piece, count in pieces], dim=1)

    def _piece(self, waves: Tensor, folded: list[tuple[Tensor, Tensor]]) -> Tensor:
        stride = self._layers[0].conv.stride[0]
        if self._rows is not None:
            made = [self._as_rows(wave, *first, stride) for wave, first in zip(waves, folded, strict=True)]
            return torch.stack(made).to(waves.dtype)
        heard = [
            F.conv1d(wave[None], weight[:, None], bias, stride)
            for wave, (weight, bias) in zip(waves, folded, strict=True)
        ]
        x = F.gelu(torch.stack(heard))
        for layer in self._layers[1:]:
            x = layer(x)
        return x.transpose(1, 2)

    def _as_rows(self, wave: Tensor, weight: Tensor, bias: Tensor, stride: int) -> Tensor:
        rows = as_rows(F.gelu(torch.addmm(bias, wave.unfold(0, weight.shape[1], stride), weight.T)).to(self._dtype))
        for conv in self._rows or ():
            rows = conv.gelu(rows)
        return as_matrix(rows)

    def _folded_first(self, wave: Tensor) -> tuple[Tensor, Tensor]:
        """The first convolution with its group norm over a waveform [N] inside: weight [C, K] and bias [C].

        Mean and variance of x = W v over all windows v of the wave follow from the windows alone: W E[v] and
        W E[v v^T] W^T, so no channel has to be computed for them.
        """
        first = self._layers[0]
        stride = first.conv.stride[0]
        weight = first.conv.weight[:, 0].double()
        kernel, step = weight.shape[1], PIECE_FRAMES * HOP  # a multiple of the stride, so the pieces continue one grid
        count, total, products = 0, weight.new_zeros(kernel), weight.new_zeros(kernel, kernel)
        for start in range(0, len(wave) - kernel + 1, step):
            windows = wave[start : start + step + kernel - stride].double().unfold(0, kernel, stride)
            count += len(windows)
            total, products = total + windows.sum(0), products + windows.T @ windows
        mean = weight @ (total / count)
        variance = (((weight @ (products / count)) * weight).sum(1) - mean.square()).clamp_min(0.0)
        norm = first.layer_norm
        scale = norm.weight.double() / torch.sqrt(variance + norm.eps)
        return (weight * scale[:, None]).to(wave.dtype), (norm.bias.double() - mean * scale).to(wave.dtype)


class PairConv:
    """A convolution of 2 or 3 taps and stride 2 without bias, as products over pairs of rows.

    Args:
        weight: [out, in, taps].
    """

    def __init__(self, weight: Tensor) -> None:
        self._channels, self._taps = weight.shape[1:]
        self._pair = weight[:, :, :2].permute(2, 1, 0).flatten(0, 1).contiguous()  # [2 in, out]
        self._third = weight[:, :, 2].T.contiguous() if self._taps == 3 else None

    def gelu(self, rows: Tensor) -> Tensor:
        """Rows [1, in, 1, T] -> GELU of the convolution, rows [1, out, 1, (T - taps) // 2 + 1]."""
        x = as_matrix(rows)
        count, wide = (len(x) - self._taps) // 2 + 1, 2 * self._channels
        made = x[: 2 * count].view(count, wide) @ self._pair
        if self._third is not None:
            made.addmm_(x[2:].as_strided((count, self._channels), (wide, 1)), self._third)
        return as_rows(F.gelu(made))


def has_avx512() -> bool:
    """Whether torch's kernels are those for AVX-512."""
    return torch.backends.cpu.get_cpu_capability() == "AVX512"


def _pieces(wave: Tensor, frames: int, largest: int) -> Iterator[tuple[Tensor, int]]:
    """Waveforms [B, n] and how many frames of each are meant: `largest`, of the last one the rest."""
    for first in range(0, frames, largest):
        count = min(largest, frames - first)
        room = -(-count // STEP_FRAMES) * STEP_FRAMES
        piece = wave[:, first * HOP : (first + room - 1) * HOP + WINDOW]
        yield F.pad(piece, (0, (room - 1) * HOP + WINDOW - piece.shape[1])), count
