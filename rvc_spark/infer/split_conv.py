"""A convolution over time with fewer multiplications: the samples dealt out to 2 or 4 rows, combined as Karatsuba does.

With dilation d let X_m[i] = x[P i + m d]. For P = 2, and w split into its even and odd taps e and o, both at half the
rate,

    y[2i]     = e * X_0 + o * X_1 = e * (X_0 - X_1) + (e + o) * X_1
    y[2i + d] = e * X_1 + o * X_2 = o * (X_2 - X_1) + (e + o) * X_1,        X_2[i] = X_0[i + d]

so three convolutions of half the taps at half the rate do the work of four. Each of them can be split again (P = 4: 9
for 16). The sums are exact up to rounding; they cost passes over memory, so it pays where a sample costs many products.
Odd dilations only, else X_0 and X_1 are the same samples. Works on rows (see `row_conv`); refuses to know networks.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from rvc_spark.infer.row_conv import RowConv, cut


@dataclass
class Dealt:
    """Sound dealt out to P phases: row r of phase p is sample P * (first + r) + p, of 0 to `length`."""

    phases: list[Tensor]  # rows [1, C, 1, n] each
    first: int
    length: int

    @property
    def count(self) -> int:
        return self.phases[0].shape[3]

    def part(self, first: int, count: int) -> list[Tensor]:
        """Rows `first` to `first + count` of every phase; views."""
        return [cut(phase, first - self.first, count) for phase in self.phases]

    def silence_outside(self) -> None:
        """Zeros before sample 0 and from `length` on, as the padding of the next convolution has them."""
        ways = len(self.phases)
        for number, phase in enumerate(self.phases):
            begin = min(max(-(number // ways) - self.first, 0), self.count)
            end = min(max(-(-(self.length - number) // ways) - self.first, 0), self.count)
            if begin:
                cut(phase, 0, begin).zero_()
            if end < self.count:
                cut(phase, end, self.count - end).zero_()


class SplitConv:
    """A valid convolution of stride 1 over sound dealt out to `ways` phases (1, 2 or 4).

    Args:
        weight: [C, C, K], float32.
        bias: [C].
        dtype: of the rows and of the products.
    """

    def __init__(self, weight: Tensor, bias: Tensor, dilation: int, ways: int, dtype: torch.dtype) -> None:
        self._ways, self._dilation = ways, dilation
        self._center = (weight.shape[2] - 1) // 2
        self._tree = _Node(weight.float(), bias.to(dtype), dilation, ways, dtype)

    @property
    def lost(self) -> int:
        """Rows of each phase that the result begins later than the input."""
        return self._offset(self._ways - 1)

    def _offset(self, number: int) -> int:
        return (self._center + number) * self._dilation // self._ways

    def needs(self, count: int) -> int:
        """Rows of each phase that `count` rows of the result depend on."""
        inner = count + self.lost - self._offset(0)
        places = range(self._ways)
        return max(self._tree.needs(inner, m) + m * self._dilation // self._ways for m in places)

    def __call__(self, x: list[Tensor], count: int, slope: float | None = None) -> list[Tensor]:
        """`count` rows of each phase, through a leaky ReLU where a slope is given."""
        if self._ways == 1:
            return [self._tree.conv(cut(x[0], 0, self.needs(count)), slope)]
        made = self._ordered(self._tree(self._orders(x), count + self.lost - self._offset(0), None, False), count)
        return made if slope is None else [torch.nn.functional.leaky_relu_(rows, slope) for rows in made]

    def plus(self, x: list[Tensor], other: list[Tensor]) -> list[Tensor]:
        """The same plus `other`, float32 rows of each phase, whose count is that of the result: float32."""
        count = other[0].shape[3]
        if self._ways == 1 and x[0].dtype == torch.float32:
            return [self._tree.conv.plus(cut(x[0], 0, self.needs(count)), other[0])]
        return [rows.float().add_(more) for more, rows in zip(other, self(x, count), strict=True)]

    def _orders(self, x: list[Tensor]) -> list[Tensor]:
        """The phases in the order of the dilation: X_m[i] = x[P i + m d]."""
        count = x[0].shape[3]
        moves = [divmod(m * self._dilation, self._ways) for m in range(self._ways)]
        return [cut(x[phase], rows, count - rows) for rows, phase in moves]

    def _ordered(self, y: list[Tensor], count: int) -> list[Tensor]:
        """The results back in the order of time, from the first row on that all of them have."""
        out = list(y)
        for m, rows in enumerate(y):
            phase = (self._center + m) * self._dilation % self._ways
            out[phase] = cut(rows, self.lost - self._offset(m), count)
        return out


class _Node:
    """One level of the splitting: a convolution of `ways` phases in the order of the dilation."""

    def __init__(self, weight: Tensor, bias: Tensor | None, dilation: int, ways: int, dtype: torch.dtype) -> None:
        self.ways, self._dilation, self._taps = ways, dilation, weight.shape[2]
        if ways == 1 or self._taps == 1:
            self.conv = RowConv(weight.to(dtype).contiguous(), bias, dilation)
            return
        even, odd = weight[:, :, 0::2], weight[:, :, 1::2]
        both = even.clone()
        both[:, :, : odd.shape[2]] += odd
        self._even = _Node(even, None, dilation, ways // 2, dtype)
        self._both = _Node(both, bias, dilation, ways // 2, dtype)
        self._odd = _Node(odd, None, dilation, ways // 2, dtype)

    def needs(self, count: int, number: int) -> int:
        """Rows of X_number that `count` rows of every result depend on."""
        if self.ways == 1 or self._taps == 1:
            return count + self._dilation * (self._taps - 1)
        half, odd = divmod(number, 2)
        if odd:
            return max(node.needs(count, half) for node in (self._even, self._both, self._odd))
        last = self.ways // 2 - 1
        before = self._odd.needs(count, half - 1 if half else last) + (0 if half else self._dilation)
        return max(self._even.needs(count, half), before)

    def __call__(self, x: list[Tensor], count: int, start: list[Tensor] | None, keep: bool) -> list[Tensor]:
        """`count` rows of every result plus `start`, whose memory is used unless `keep` says that it is needed."""
        if self.ways == 1 or self._taps == 1:
            return [self._leaf(rows, count, start[m] if start else None, keep) for m, rows in enumerate(x)]
        halves = range(self.ways // 2)
        two = [cut(x[2 * s + 1], 0, self.needs(count, 2 * s + 1)) for s in halves]
        both = self._both(two, count, None, False)
        if start is None:
            evens, odds, keep = both, both, True
        else:
            evens = [torch.add(start[2 * s], both[s], out=None if keep else start[2 * s]) for s in halves]
            odds, keep = [both[s].add_(start[2 * s + 1]) for s in halves], False
        left = [_minus(x[2 * s], two[s], 0, self._even.needs(count, s)) for s in halves]
        out = list(x)
        out[0::2] = self._even(left, count, evens, keep)
        last = self.ways // 2 - 1
        right = [
            _minus(x[0 if s == last else 2 * s + 2], two[s], self._dilation * (s == last), self._odd.needs(count, s))
            for s in halves
        ]
        out[1::2] = self._odd(right, count, odds, False)
        return out

    def _leaf(self, x: Tensor, count: int, start: Tensor | None, keep: bool) -> Tensor:
        x = cut(x, 0, count + self.conv.reach)
        if start is None:
            return self.conv(x)
        return self.conv.plus(x, start) if keep else self.conv.onto(x, start)


def _minus(one: Tensor, other: Tensor, start: int, count: int) -> Tensor:
    return torch.sub(cut(one, start, count), cut(other, 0, count))
