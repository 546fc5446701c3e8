"""Layers that multiply in half precision on a CPU and keep everything else in float32, for inference.

What flows between layers (residual sums, norms) stays float32, so errors do not add up from layer to layer: on a
content encoder the features are off by half of what a network wholly in bfloat16 gives, for nearly its speed. Refuses
to know whose layers they are.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from rvc_spark.errors import ConfigError
from rvc_spark.rvc_config import has_bf16


def check_type(dtype: torch.dtype, device: torch.device) -> None:
    """Raises ConfigError for what is no type to compute in, or not on this device."""
    if dtype not in (torch.float16, torch.bfloat16, torch.float32, torch.float64):
        raise ConfigError(f"precision {dtype} is not a float type", "Use fp32, fp16 or bf16.")
    if dtype == torch.float16 and device.type == "cpu":
        raise ConfigError("fp16 on a CPU is slower than fp32 and no smaller in effect", "Use fp32 on this device.")
    if dtype == torch.bfloat16 and device.type == "cpu" and not has_bf16("cpu"):
        raise ConfigError("this processor has no bfloat16 products", "Use fp32 on this device.")


class HalfConv(nn.Module):
    """A convolution in another type; float32 in and out."""

    def __init__(self, layer: nn.Conv1d, dtype: torch.dtype) -> None:
        super().__init__()
        self.layer, self._dtype = layer.to(dtype), dtype

    def forward(self, x: Tensor) -> Tensor:
        return self.layer(x.to(self._dtype)).float()


class HalfLinear(nn.Module):
    """A linear layer in another type, its weights laid out once for oneDNN.

    Args:
        narrow: whether results stay in that type; what comes in may be in it or in float32.
    """

    def __init__(self, layer: nn.Linear, dtype: torch.dtype, narrow: bool) -> None:
        super().__init__()
        self._width, self._dtype, self._narrow = layer.in_features, dtype, narrow
        self._weight = torch.ops.mkldnn._reorder_linear_weight(layer.weight.to(dtype), None)
        self._bias = None if layer.bias is None else layer.bias.to(dtype)

    def forward(self, x: Tensor) -> Tensor:
        rows = x.numel() // self._width
        wide = torch.empty(_room(rows), self._width, dtype=self._dtype)
        wide[:rows] = x.reshape(rows, self._width)
        wide[rows:] = 0
        made = torch.ops.mkldnn._linear_pointwise(wide, self._weight, self._bias, "none", [], "")[:rows]
        return (made if self._narrow else made.float()).view(*x.shape[:-1], -1)


def _room(rows: int) -> int:
    """So many rows or at most an eighth more (or 63): kernels are made and kept for each number of rows."""
    step = max(64, 1 << max(rows.bit_length() - 4, 0))
    return -(-rows // step) * step


def halve_products(network: nn.Module, dtype: torch.dtype) -> nn.Module:
    """Replace the linear layers and convolutions of a network, in place, but those that hear a single channel.

    A convolution of the waveform costs nothing and its input has more than 8 bits. A module may name layers whose
    results nothing is added to as `NARROW`; they stay in half precision.
    """
    narrow = getattr(network, "NARROW", ())
    for name, layer in list(network.named_children()):
        if isinstance(layer, nn.Linear):
            setattr(network, name, HalfLinear(layer, dtype, name in narrow))
        elif isinstance(layer, nn.Conv1d) and layer.in_channels > 1:
            setattr(network, name, HalfConv(layer, dtype))
        else:
            halve_products(layer, dtype)
    return network
