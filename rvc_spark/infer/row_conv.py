"""Convolutions over rows: time runs from row to row, the channels of a moment lie side by side in memory.

In this layout ("channels last") a convolution is a matrix product over rows that oneDNN runs near the processor's peak
in float32 and in bfloat16, a stretch of time is a view, and adding the input or a leaky ReLU costs nothing on the way
out. Rows are tensors [1, C, 1, T] whose numbers lie as [T, C]. All convolutions are "valid": they return only rows for
which every tap has a row. Inference on a CPU only; refuses to know networks.
"""

from __future__ import annotations

import torch
from torch import Tensor

_PLAIN = ([0, 0], [1, 1])  # padding and stride of every call


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


class RowConv:
    """One valid convolution of stride 1, its weights laid out once.

    Args:
        weight: [out, in, K].
        bias: [out] or None.
    """

    def __init__(self, weight: Tensor, bias: Tensor | None, dilation: int = 1) -> None:
        _, channels, kernel = weight.shape
        self.reach = dilation * (kernel - 1)  # rows that the result is shorter than the input
        self._dilation = [1, dilation]
        self._bias = bias
        self._weight = torch._C._nn.mkldnn_reorder_conv2d_weight(
            weight[:, :, None].contiguous().to_mkldnn(),
            (0, 0), (1, 1), (1, dilation), 1, (1, channels, 1, 1024 + self.reach),
        )  # fmt: skip

    def __call__(self, x: Tensor, slope: float | None = None) -> Tensor:
        """conv(x), through a leaky ReLU where a slope is given."""
        after = ("none", [], "") if slope is None else ("leaky_relu", [slope], "")
        return torch.ops.mkldnn._convolution_pointwise.default(
            x, self._weight, self._bias, *_PLAIN, self._dilation, 1, *after
        )

    def plus(self, x: Tensor, other: Tensor) -> Tensor:
        """conv(x) + other, as new rows."""
        return torch.ops.mkldnn._convolution_pointwise.binary(
            x, other, self._weight, self._bias, *_PLAIN, self._dilation, 1, "add", 1.0, None, [], None
        )

    def onto(self, x: Tensor, total: Tensor) -> Tensor:
        """total += conv(x), in place; returns total."""
        return torch.ops.mkldnn._convolution_pointwise_.binary(
            total, x, self._weight, self._bias, *_PLAIN, self._dilation, 1, "add", 1.0, None, [], None
        )
