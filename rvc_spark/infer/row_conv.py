"""Convolutions over rows: time runs from row to row, the channels of a moment lie side by side in memory.

In this layout ("channels last") a convolution is a matrix product over rows that oneDNN runs near the processor's peak
in float32 and in bfloat16, a stretch of time is a view, and adding the input or a leaky ReLU costs nothing on the way
out. Rows are tensors [1, C, 1, T] whose numbers lie as [T, C]. All convolutions are "valid": they return only rows for
which every tap has a row. Inference on a CPU only; refuses to know networks.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor


def rows_work(dtype: torch.dtype) -> bool:
    """Whether this build of torch has oneDNN, and oneDNN this type on this processor."""
    if not torch.backends.mkldnn.is_available() or not hasattr(torch.ops.mkldnn, "_convolution_pointwise_"):
        return False
    return dtype == torch.float32 or (dtype == torch.bfloat16 and torch.ops.mkldnn._is_mkldnn_bf16_supported())


def as_rows(matrix: Tensor) -> Tensor:
    """A matrix [T, C], each row dense, as rows [1, C, 1, T]; a view."""
    return matrix.T[None, :, None]


def as_matrix(rows: Tensor) -> Tensor:
    """Rows [1, C, 1, T] as a matrix [T, C]; a view."""
    return rows[0, :, 0].T


def cut(rows: Tensor, start: int, count: int) -> Tensor:
    """`count` rows from row `start` on; a view."""
    return rows if count == rows.shape[3] else rows.narrow(3, start, count)


@dataclass
class RowSpan:
    """Rows of a time axis that has moments 0 to `length`: row r is moment `first + r`."""

    rows: Tensor
    first: int
    length: int

    def window(self, first: int, count: int) -> Tensor:
        """`count` rows from moment `first` on, zeros where there are none; a view where that is possible."""
        begin, end = max(first, self.first), min(first + count, self.first + self.rows.shape[3])
        if end - begin == count:
            return cut(self.rows, begin - self.first, count)
        wide = as_rows(torch.zeros(count, self.rows.shape[1], dtype=self.rows.dtype))
        if end > begin:
            cut(wide, begin - first, end - begin).copy_(cut(self.rows, begin - self.first, end - begin))
        return wide

    def silence_outside(self) -> None:
        """Zeros before moment 0 and from `length` on, as the padding of the next convolution has them."""
        count = self.rows.shape[3]
        begin = min(max(-self.first, 0), count)
        end = min(max(self.length - self.first, 0), count)
        if begin:
            cut(self.rows, 0, begin).zero_()
        if end < count:
            cut(self.rows, end, count - end).zero_()


class RowConv:
    """One valid convolution, its weights laid out once.

    Args:
        weight: [out, in / groups, K].
        bias: [out] or None.
    """

    def __init__(
        self, weight: Tensor, bias: Tensor | None, dilation: int = 1, *, stride: int = 1, groups: int = 1
    ) -> None:
        _, channels, kernel = weight.shape
        self.reach = dilation * (kernel - 1)  # rows that the result is shorter than the input, at stride 1
        self._weight = torch._C._nn.mkldnn_reorder_conv2d_weight(
            weight[:, :, None].contiguous().to_mkldnn(),
            (0, 0), (1, stride), (1, dilation), groups, (1, channels * groups, 1, 1024 + self.reach),
        )  # fmt: skip
        self._how = (self._weight, bias, [0, 0], [1, stride], [1, dilation], groups)  # [0, 0]: no padding

    def __call__(self, x: Tensor, slope: float | None = None) -> Tensor:
        """conv(x), through a leaky ReLU where a slope is given."""
        after = ("none", [], "") if slope is None else ("leaky_relu", [slope], "")
        return torch.ops.mkldnn._convolution_pointwise.default(x, *self._how, *after)

    def gelu(self, x: Tensor) -> Tensor:
        """GELU(conv(x))."""
        return torch.ops.mkldnn._convolution_pointwise.default(x, *self._how, "gelu", [], "none")

    def plus(self, x: Tensor, other: Tensor) -> Tensor:
        """conv(x) + other, as new rows of the type of x."""
        return torch.ops.mkldnn._convolution_pointwise.binary(
            x, other, *self._how, "add", 1.0, None, [], None
        )

    def onto(self, x: Tensor, total: Tensor) -> Tensor:
        """total += conv(x), in place; both of one type."""
        return torch.ops.mkldnn._convolution_pointwise_.binary(
            total, x, *self._how, "add", 1.0, None, [], None
        )
