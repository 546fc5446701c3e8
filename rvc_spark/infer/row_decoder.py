"""The vocoder on a CPU, as fast as the processor allows: the same function as `decoder.Decoder`, another shape.

    z -> rows -> conv_pre + speaker
      -> per stage: up-convolution as one product over input rows (+ source), residual branches in tiles -> their sum
      -> conv, tanh -> samples

Only what the wanted samples depend on is computed, stage by stage: 60 samples of context are a third of a frame where
there are 20,000 a second. Zeros beyond the ends of the latent enter every layer, as padding does in `Decoder`. The mean
of the branches is a sum whose division is part of the next stage's weights.

In bfloat16 the branches' convolutions multiply in it, and nothing else: what they add to stays float32. Rounded sums
would be white noise 40 dB below the voice, heard where the voice has nothing. Refuses to know voices and windows.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import cached_property

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from rvc_spark.infer.decoder import LAST_SLOPE, Decoder, LightBranch
from rvc_spark.infer.layers import SLOPE
from rvc_spark.infer.row_conv import RowConv, as_matrix, as_rows, cut
from rvc_spark.infer.split_conv import Dealt, SplitConv
from rvc_spark.infer.voice_layout import CONV_KERNEL, NetConfig

TILE_NUMBERS = 2**20  # numbers of one tensor of a tile: the handful in use stay in the outer cache
TILE_STEP = 64  # rows; tiles are a multiple of it, for kernels are made per length
# A branch whose convolutions have so many products per number (channels times taps) is dealt out to 4 phases. Measured
# on a processor with AVX-512: below it, and in smaller tiles, passes and calls cost more than the products they save.
SPLIT_PRODUCTS = 448
SPLIT_WAYS = 4
SPLIT_NUMBERS = 2**18  # of a tile


class RowBranch:
    """A residual branch over sound dealt out to `ways` phases."""

    def __init__(self, branch: nn.Module, ways: int, dtype: torch.dtype) -> None:
        if isinstance(branch, LightBranch):
            steps = [(conv,) for conv in branch.convs]
        else:
            steps = list(zip(branch.convs1, branch.convs2, strict=True))
        self._steps = [
            [SplitConv(conv.weight, conv.bias, conv.dilation[0], ways, dtype) for conv in step] for step in steps
        ]
        self.ways, self._dtype = ways, dtype
        self.lost = sum(conv.lost for step in self._steps for conv in step)

    def _counts(self, count: int) -> list[int]:
        """Rows of each phase before each convolution and after the last, which gives `count`."""
        counts = [count]
        for step in reversed(self._steps):
            for conv in reversed(step):
                counts.append(conv.needs(counts[-1]))
        return counts[::-1]

    def needs(self, count: int) -> int:
        """Rows of each phase that `count` rows of the result depend on; they begin `lost` rows earlier."""
        return self._counts(count)[0]

    def __call__(self, x: Dealt, heard: Dealt, first: int, count: int) -> list[Tensor]:
        """`count` rows of each phase of the result, from row `first` on; `heard` is `bent(x)`."""
        counts = iter(self._counts(count))
        y = Dealt(heard.part(first - self.lost, next(counts)), first - self.lost, x.length)
        for number, step in enumerate(self._steps):
            if number:
                y = bent(x, self._dtype)
            for conv in step[:-1]:
                y = Dealt(conv(y.phases, next(counts), SLOPE), y.first + conv.lost, x.length)
                y.silence_outside()
            row = y.first + step[-1].lost
            x = Dealt(step[-1].plus(y.phases, x.part(row, next(counts))), row, x.length)
            x.silence_outside()
        return x.phases


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

    def __call__(self, x: Tensor, first: int, last: int) -> Tensor:
        """Output rows first..last as a matrix, from x, the rows that they need."""
        wide = as_matrix(self._conv(x))
        start = (first + self._padding) // self.rate * self.rate - self._padding
        return wide.reshape(wide.shape[0] * self.rate, -1)[first - start : last - start]


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
        self._blocks = decoder.resblocks[stage * decoder.branches : (stage + 1) * decoder.branches]
        self._tile = max(TILE_NUMBERS // up.out_channels // TILE_STEP, 1) * TILE_STEP

    @cached_property
    def _whole(self) -> list[RowBranch]:
        return [RowBranch(block, 1, self._dtype) for block in self._blocks]

    @cached_property
    def _split(self) -> list[RowBranch]:
        ways = [_ways(block) for block in self._blocks]
        pairs = zip(self._whole, ways, self._blocks, strict=True)
        return [whole if many == 1 else RowBranch(block, many, self._dtype) for whole, many, block in pairs]

    @property
    def reach(self) -> int:
        """Rows on either side of a row that the widest branch looks at."""
        return max(branch.lost for branch in self._whole)

    def span(self, first: int, last: int, length: int) -> tuple[int, int]:
        """The rows before the branches that rows first..last of their sum, out of `length`, depend on."""
        return max(first - self.reach, 0), min(last + self.reach, length)

    def __call__(self, x: Dealt, source: Tensor | None, first: int, last: int) -> Dealt:
        """At least rows first..last of the sum of the branches, from the rows of the stage before they depend on.

        source: [N], the excitation of all frames.
        """
        length = x.length * self.up.rate
        start, stop = self.span(first, last, length)
        heard = F.leaky_relu(padded(x, *self.up.needs(start, stop)), SLOPE)
        raised = self.up(heard, start, stop)
        if self._noise is not None and source is not None:
            raised = raised.addmm_(self._windows(source, start, stop), self._noise)
        raised = Dealt([as_rows(raised)], start, length)
        first, last = first // SPLIT_WAYS * SPLIT_WAYS, -(-last // SPLIT_WAYS) * SPLIT_WAYS
        total = torch.empty(last - first, raised.phases[0].shape[1])
        for at, count in _tiles(last - first, self._tile):
            self._sum(raised, first + at, total[at : at + count])
        return Dealt([as_rows(total)], first, length)

    def _windows(self, source: Tensor, start: int, stop: int) -> Tensor:
        """What the source's convolution sees for each row of start..stop, [stop - start, K]."""
        kernel = self._noise.shape[0]
        first, last = start * self._stride - self._padding, (stop - 1) * self._stride - self._padding + kernel
        piece = F.pad(source[max(first, 0) : last], (max(-first, 0), max(last - len(source), 0)))
        return piece.unfold(0, kernel, self._stride)

    def _sum(self, x: Dealt, first: int, out: Tensor) -> None:
        """Write the sum of the branches into the matrix `out`: samples from `first` on, a multiple of SPLIT_WAYS."""
        branches = self._split if out.numel() >= SPLIT_NUMBERS else self._whole
        begun = False
        for ways in sorted({branch.ways for branch in branches}):
            total = None
            for rows in self._results(x, [branch for branch in branches if branch.ways == ways], first, len(out)):
                total = rows if total is None else [one.add_(more) for one, more in zip(total, rows, strict=True)]
            for phase, rows in enumerate(total):
                place = out[phase::ways]
                place.add_(as_matrix(rows)) if begun else place.copy_(as_matrix(rows))
            begun = True

    def _results(self, x: Dealt, branches: list[RowBranch], first: int, count: int) -> Iterator[list[Tensor]]:
        """What each of some branches of one splitting makes of the samples from `first` on."""
        ways = branches[0].ways
        row, count = first // ways, count // ways
        begin = row - max(branch.lost for branch in branches)
        rows = max(row - branch.lost + branch.needs(count) for branch in branches) - begin
        dealt = deal(x, begin, rows, ways)
        heard = bent(dealt, self._dtype)
        for branch in branches:
            yield branch(dealt, heard, row, count)


class RowDecoder:
    """The vocoder of one voice.

    Args:
        decoder: whose weights are taken.
        dtype: of the branches' products, float32 or bfloat16; see `row_conv.rows_work`.
    """

    def __init__(self, decoder: Decoder, net: NetConfig, dtype: torch.dtype) -> None:
        self.dtype = dtype
        self._per_frame = net.samples_per_frame
        self._pre = RowConv(decoder.conv_pre.weight.float(), decoder.conv_pre.bias.float())
        self._cond = decoder.cond
        self._stages = [RowStage(decoder, net, stage, dtype) for stage in range(len(net.upsample_rates))]
        self._post = RowConv(decoder.conv_post.weight.float().div(decoder.branches), None)
        self._post_bias = decoder.conv_post.bias

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
        ends = span[0] * self._per_frame - reach, span[1] * self._per_frame + reach
        spans, length = [ends], frames * self._per_frame
        for stage in reversed(self._stages):  # which rows each stage must give
            first, last = spans[-1] = max(spans[-1][0], 0), min(spans[-1][1], length)
            spans.append(stage.up.needs(*stage.span(first, last, length)))
            length //= stage.up.rate
        x = self._first_rows(z, speaker, max(spans[-1][0], 0), min(spans[-1][1], frames))
        for stage, (first, last) in zip(self._stages, reversed(spans[:-1]), strict=True):
            x = stage(x, heard, first, last)
        sound = self._post(F.leaky_relu(padded(x, *ends), LAST_SLOPE))[0, 0, 0]
        return torch.tanh(sound if self._post_bias is None else sound + self._post_bias.float())

    def _first_rows(self, z: Tensor, speaker: Tensor, first: int, last: int) -> Dealt:
        reach = CONV_KERNEL // 2
        latent = Dealt([as_rows(z[0].T.float().contiguous())], 0, z.shape[2])
        rows = self._pre(padded(latent, first - reach, last + reach))
        return Dealt([rows + self._cond(speaker).float()[:, :, None]], first, z.shape[2])


def _ways(block: nn.Module) -> int:
    """To how many phases the sound is dealt out for a branch: 1 where that does not pay or even dilations forbid it."""
    convs = [module for module in block.modules() if isinstance(module, nn.Conv1d)]
    pays = convs[0].in_channels * convs[0].kernel_size[0] >= SPLIT_PRODUCTS
    return SPLIT_WAYS if pays and all(conv.dilation[0] % 2 for conv in convs) else 1


def bent(x: Dealt, dtype: torch.dtype) -> Dealt:
    """x through the leaky ReLU, as `dtype`."""
    return Dealt([F.leaky_relu(phase, SLOPE).to(dtype) for phase in x.phases], x.first, x.length)


def padded(x: Dealt, first: int, last: int) -> Tensor:
    """Samples first..last of x, which is in one phase; zeros where it has none: beyond the ends of its time axis."""
    rows = x.phases[0]
    begin, end = max(first, x.first, 0), min(last, x.first + x.count, x.length)
    inside = cut(rows, begin - x.first, end - begin)
    if end - begin == last - first:
        return inside
    wide = as_rows(torch.zeros(last - first, rows.shape[1], dtype=rows.dtype))
    cut(wide, begin - first, end - begin).copy_(inside)
    return wide


def deal(x: Dealt, first: int, count: int, ways: int) -> Dealt:
    """x, which is in one phase, dealt out to `ways`: `count` rows of each from row `first` on."""
    rows = padded(x, first * ways, (first + count) * ways)
    if ways == 1:
        return Dealt([rows], first, x.length)
    matrix = as_matrix(rows)
    return Dealt([as_rows(matrix[phase::ways].contiguous()) for phase in range(ways)], first, x.length)


def _tiles(rows: int, largest: int) -> list[tuple[int, int]]:
    """(start, count) of tiles of one length that cover `rows`; the last one reaches back where that is no multiple."""
    number = -(-rows // largest)
    count = rows if number == 1 else min(-(-rows // number // TILE_STEP) * TILE_STEP, largest)
    return [(min(at, rows - count), count) for at in range(0, rows, count)]
