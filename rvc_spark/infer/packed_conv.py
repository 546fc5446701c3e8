"""Two-dimensional convolutions whose weights are laid out for oneDNN once, not at every call.

Where images are small and channels many, laying out the weights takes as long as the convolution. The numbers stay the
same to the bit. Inference in float32 on a CPU only; refuses to know networks.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn


class PackedConv2d(nn.Module):
    """A convolution of stride 1, through a ReLU if asked."""

    def __init__(self, conv: nn.Conv2d, relu: bool) -> None:
        super().__init__()
        padding = list(conv.padding)
        self._weight = torch._C._nn.mkldnn_reorder_conv2d_weight(
            conv.weight.contiguous().to_mkldnn(), padding, (1, 1), (1, 1), 1, (1, conv.in_channels, 64, 64)
        )
        self._how = (conv.bias, padding, [1, 1], [1, 1], 1, "relu" if relu else "none", [], "")

    def forward(self, x: Tensor) -> Tensor:
        return torch.ops.mkldnn._convolution_pointwise.default(x, self._weight, *self._how)
