"""Layers that multiply in half precision and keep everything else in float32, for inference.

What flows between layers (residual sums, norms, softmax) stays float32, so errors do not add up from layer to layer:
on a content encoder the features are off by half of what a network wholly in bfloat16 gives, for nearly its speed.
Refuses to know whose layers they are.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn


class HalfProducts(nn.Module):
    """A linear layer or convolution in another type; float32 in and out."""

    def __init__(self, layer: nn.Linear | nn.Conv1d, dtype: torch.dtype) -> None:
        super().__init__()
        self.layer = layer.to(dtype)
        self._dtype = dtype

    @property
    def weight(self) -> Tensor:
        return self.layer.weight

    def forward(self, x: Tensor) -> Tensor:
        return self.layer(x.to(self._dtype)).float()


def halve_products(network: nn.Module, dtype: torch.dtype) -> nn.Module:
    """Replace the linear layers and convolutions of a network, in place, but those that hear a single channel.

    A convolution of the waveform costs nothing and its input has more than 8 bits.
    """
    for name, layer in list(network.named_children()):
        if isinstance(layer, nn.Linear) or (isinstance(layer, nn.Conv1d) and layer.in_channels > 1):
            setattr(network, name, HalfProducts(layer, dtype))
        else:
            halve_products(layer, dtype)
    return network
