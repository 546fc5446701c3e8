"""The vocoder on a CPU, near the speed of its matrix products: the same function as `decoder.Decoder`, another shape.

    z -> rows -> conv_pre + speaker
      -> per stage, tile by tile: up-convolution as one product over input rows (+ source), residual branches, their sum
      -> conv, tanh -> samples

Only what the wanted samples depend on is computed, stage by stage: 60 samples of context are a third of a frame where
there are 20,000 a second. Zeros beyond the ends of the latent enter every layer, as padding does in `Decoder`. The mean
of the branches is a sum whose division is part of the next stage's weights. Everything is done in tiles: what one works
on stays in the cache, and their lengths are few, because oneDNN makes and keeps a kernel for each.

In bfloat16 the branches' convolutions multiply in it, and nothing else: what they add to stays float32. Rounded sums
would be white noise 40 dB below the voice, heard where the voice has nothing. Refuses to know voices and windows.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from rvc_spark.infer.decoder import LAST_SLOPE, Decoder, LightBranch
from rvc_spark.infer.layers import SLOPE
from rvc_spark.infer.row_conv import RowConv, RowSpan, as_matrix, as_rows, cut
from rvc_spark.infer.voice_layout import CONV_KERNEL, NetConfig

TILE_NUMBERS = 2**20  # of one tensor of a tile: larger ones leave the cache, smaller ones cost calls and context
TILE_HALVES = 5  # how often the longest tile may be halved for the rest
FIRST_FRAMES = 64  # of a tile of the first convolution


class RowBranch:
    """A residual branch."""

    def __init__(self, branch: nn.Module, dtype: torch.dtype) -> None:
        if isinstance(branch, LightBranch):
            steps = [(conv,) for conv in branch.convs]
        else:
            steps = list(zip(branch.convs1, branch.convs2, strict=True))
        self._steps = [
            [RowConv(conv.weight.to(dtype), conv.bias.to(dtype), conv.dilation[0]) for conv in step] for step in steps
        ]
        self._dtype = dtype
        self.lost = sum(conv.reach for step in self._steps for conv in step) // 2

    def __call__(self, x: RowSpan, heard: Tensor) -> Tensor:
        """The branch's result, float32, shorter than x by `lost` rows at both ends; x is left as it is.

        heard: `bent(x)`.
        """
        for number, step in enumerate(self._steps):
            y = RowSpan(heard if number == 0 else bent(x.rows, self._dtype), x.first, x.length)
            for conv in step[:-1]:
                y = RowSpan(conv(y.rows, SLOPE), y.first + conv.reach // 2, x.length)
                y.silence_outside()
            first = y.first + step[-1].reach // 2
            before = x.window(first, y.rows.shape[3] - step[-1].reach)
            x = RowSpan(self._added(step[-1], y.rows, before, own=number > 0), first, x.length)
            x.silence_outside()
        return x.rows

    def _added(self, conv: RowConv, y: Tensor, x: Tensor, own: bool) -> Tensor:
        """x + conv(y), in the place of x if it is our own."""
        if self._dtype == torch.float32:
            return conv.onto(y, x) if own else conv.plus(y, x)
        made = conv(y)
        return x.add_(made) if own else torch.add(x, made)


class RowUp:
    """An up-convolution as one product: sample rate * q + r - padding is output channel block r of input row q.

    y[rate * q + r - padding] = sum_m x[q - m] w[r + rate * m],   m = 0 .. ceil(K / rate) - 1
    """

    def __init__(self, up: nn.ConvTranspose1d, bias: Tensor, scale: float) -> None:
        wide, narrow, kernel = up.weight.shape
        self.rate, self._padding = up.stride[0], up.padding[0]
        self._taps = -(-kernel // self.rate)
        weight = F.pad(up.weight.float() * scale, (0, self._taps * self.rate - kernel))
        weight = weight.reshape(wide, narrow, self._taps, self.rate).flip(2).permute(3, 1, 0, 2)
        self._conv = RowConv(weight.reshape(self.rate * narrow, wide, self._taps), bias.repeat(self.rate))

    def needs(self, first: int, last: int) -> tuple[int, int]:
        """First input row and the one after the last that output rows first..last depend on."""
        return (first + self._padding) // self.rate - self._taps + 1, (last - 1 + self._padding) // self.rate + 1

    def __call__(self, x: RowSpan, first: int, count: int) -> Tensor:
        """`count` output rows from row `first` on, as a matrix."""
        begin, _ = self.needs(first, first + count)
        # whatever the place of the tile on the grid of the input, as many rows, so that there is one kernel
        wide = as_matrix(self._conv(x.window(begin, (count - 2) // self.rate + 1 + self._taps)))
        start = (begin + self._taps - 1) * self.rate - self._padding
        return wide.reshape(wide.shape[0] * self.rate, -1)[first - start : first - start + count]


class RowStage:
    """One stage of the vocoder."""

    def __init__(self, decoder: Decoder, net: NetConfig, stage: int, dtype: torch.dtype) -> None:
        up, self._noise, self._dtype = decoder.ups[stage], None, dtype
        bias = up.bias.float()
        if net.has_f0:
            conv = decoder.noise_convs[stage]
            bias = bias + conv.bias.float()  # both are added to the same rows
            self._noise = conv.weight[:, 0].float().T.contiguous()  # [K, C]
            self._stride, self._padding = conv.stride[0], conv.padding[0]
        self.up = RowUp(up, bias, 1 / decoder.branches if stage else 1.0)
        blocks = decoder.resblocks[stage * decoder.branches : (stage + 1) * decoder.branches]
        self._branches = [RowBranch(block, dtype) for block in blocks]
        self._reach = max(branch.lost for branch in self._branches)
        self._channels = up.out_channels

    def needs(self, first: int, last: int, length: int) -> tuple[int, int]:
        """The rows of the stage before that rows first..last of the sum, out of `length`, depend on."""
        return self.up.needs(max(first - self._reach, 0), min(last + self._reach, length))

    def __call__(self, x: RowSpan, source: Tensor | None, first: int, last: int, slope: float) -> RowSpan:
        """Rows first..last of the sum of the branches through the next leaky ReLU, from such a sum before it.

        source: [N], the excitation of all frames.
        """
        length = x.length * self.up.rate
        out = torch.empty(last - first, self._channels)
        for at, count, kept in tiles(last - first, TILE_NUMBERS // self._channels, 2 * self._reach):
            total = self._sum(x, source, first + at, count, length)
            out[at : at + kept] = F.leaky_relu_(as_matrix(cut(total, 0, kept)), slope)
        return RowSpan(as_rows(out), first, length)

    def _sum(self, x: RowSpan, source: Tensor | None, first: int, count: int, length: int) -> Tensor:
        """`count` rows of the sum of the branches from row `first` on."""
        start, rows = first - self._reach, count + 2 * self._reach
        matrix = self.up(x, start, rows)
        if self._noise is not None and source is not None:
            matrix.addmm_(self._windows(source, start, rows), self._noise)
        raised = RowSpan(as_rows(matrix), start, length)
        raised.silence_outside()
        heard, total = bent(raised.rows, self._dtype), None
        for branch in self._branches:
            skipped, rows = self._reach - branch.lost, count + 2 * branch.lost
            part = RowSpan(cut(raised.rows, skipped, rows), start + skipped, length)
            made = branch(part, cut(heard, skipped, rows))
            total = made if total is None else total.add_(made)
        return total

    def _windows(self, source: Tensor, start: int, count: int) -> Tensor:
        """What the source's convolution sees for each of `count` rows, [count, K]."""
        kernel = self._noise.shape[0]
        first = start * self._stride - self._padding
        last = first + (count - 1) * self._stride + kernel
        piece = source[max(first, 0) : max(last, 0)]
        short = max(-first, 0), last - max(first, 0) - len(piece)
        return F.pad(piece, short).unfold(0, kernel, self._stride)


class RowDecoder:
    """The vocoder of one voice.

    Args:
        decoder: whose weights are taken.
        dtype: of the branches' products, float32 or bfloat16; see `row_conv.rows_work`.
    """

    def __init__(self, decoder: Decoder, net: NetConfig, dtype: torch.dtype) -> None:
        self.dtype = dtype
        self.nbytes = sum(weight.numel() for weight in decoder.parameters()) * dtype.itemsize  # a few are in float32
        self._per_frame = net.samples_per_frame
        self._pre = RowConv(decoder.conv_pre.weight.float(), decoder.conv_pre.bias.float())
        self._cond = decoder.cond
        self._stages = [RowStage(decoder, net, stage, dtype) for stage in range(len(net.upsample_rates))]
        bias = decoder.conv_post.bias
        self._post = RowConv(
            decoder.conv_post.weight.float().div(decoder.branches), None if bias is None else bias.float()
        )

    def __call__(self, z: Tensor, source: Tensor | None, speaker: Tensor, span: tuple[int, int]) -> Tensor:
        """Frames span[0]..span[1] of what `Decoder` makes of all of z.

        Args:
            z: latent [1, C, T].
            source: excitation [1, 1, T * samples_per_frame], None for a voice without pitch.
            speaker: [1, gin, 1].

        Returns:
            float32 [(span[1] - span[0]) * samples_per_frame].
        """
        heard = None if source is None else source[0, 0].float()
        frames, reach = z.shape[2], CONV_KERNEL // 2
        first, last = span[0] * self._per_frame, span[1] * self._per_frame
        length = frames * self._per_frame
        wanted = [(max(first - reach, 0), min(last + reach, length))]
        for stage in reversed(self._stages):  # which rows each stage must give
            begin, end = stage.needs(*wanted[-1], length)
            length //= stage.up.rate
            wanted.append((max(begin, 0), min(end, length)))
        x = self._first_rows(z, speaker, *wanted.pop())
        for stage in self._stages:
            x = stage(x, heard, *wanted.pop(), SLOPE if wanted else LAST_SLOPE)
        return self._last(x, first, last)

    def _first_rows(self, z: Tensor, speaker: Tensor, first: int, last: int) -> RowSpan:
        latent = RowSpan(as_rows(z[0].T.float().contiguous()), 0, z.shape[2])
        reach, told = self._pre.reach, as_matrix(self._cond(speaker).float()[:, :, None])
        out = torch.empty(last - first, told.shape[1])
        for at, count, kept in tiles(last - first, FIRST_FRAMES, reach):
            rows = self._pre(latent.window(first + at - reach // 2, count + reach))
            torch.add(as_matrix(cut(rows, 0, kept)), told, out=out[at : at + kept])
        return RowSpan(as_rows(F.leaky_relu_(out, SLOPE)), first, z.shape[2])

    def _last(self, x: RowSpan, first: int, last: int) -> Tensor:
        reach, sound = self._post.reach, torch.empty(last - first)
        for at, count, kept in tiles(last - first, TILE_NUMBERS // x.rows.shape[1], reach):
            rows = self._post(x.window(first + at - reach // 2, count + reach))
            torch.tanh(rows[0, 0, 0, :kept], out=sound[at : at + kept])
        return sound


def bent(rows: Tensor, dtype: torch.dtype) -> Tensor:
    """Rows through the leaky ReLU, as `dtype`."""
    return F.leaky_relu(rows, SLOPE).to(dtype)


def tiles(rows: int, largest: int, context: int) -> list[tuple[int, int, int]]:
    """(start, count, kept) of tiles that cover `rows`, the first `kept` of each are wanted.

    `count` is `largest`, one of TILE_HALVES halvings, or three quarters of one of those. A tile costs `context` rows
    more than its own, so a somewhat too long one is better than two.
    """
    found, at = [], 0
    halvings = [max(largest >> halving, 1) for halving in range(TILE_HALVES + 1)]
    sizes = sorted({*halvings, *(size * 3 // 4 for size in halvings[:-1])})
    while at < rows:
        left = rows - at
        enough = next((size for size in sizes if size >= left), None)
        if enough is not None and (enough - left <= context + enough // 8 or enough == sizes[0]):
            count = enough
        else:
            count = next(size for size in reversed(sizes) if size <= left)
        found.append((at, count, min(count, left)))
        at += count
    return found
