"""One matrix multiplication with fixed weights, laid out as fast as the device multiplies.

Making a token reads every weight once for a handful of rows, so on a CPU the layout decides. There the weights are
reordered into oneDNN's blocks, which replaces them (no second copy). Measured on two cores against the plain layout:
in float32 a tenth slower for one row, 1.9 times as fast for 4 rows, 2.1 times for 8; in bfloat16 1.3 times as fast for
any. Also, a row's result then does not depend on how many rows there are, which the plain layout cannot promise.
Elsewhere, and where torch lacks the operation, it is `nn.functional.linear`. Refuses to know what is multiplied.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

TYPICAL_ROWS = 4  # the blocks are chosen for this many; they serve any number
PACKABLE = (torch.float32, torch.bfloat16)


def can_pack(weight: Tensor) -> bool:
    """Whether weights like these can be laid out in blocks here (torch's own compiler uses the same two operations)."""
    return (
        weight.device.type == "cpu"
        and weight.dtype in PACKABLE
        and min(weight.shape) > 1
        and torch.backends.mkldnn.is_available()
        and hasattr(torch.ops.mkldnn, "_reorder_linear_weight")
        and hasattr(torch.ops.mkldnn, "_linear_pointwise")
        and (weight.dtype == torch.float32 or torch.ops.mkldnn._is_mkldnn_bf16_supported())  # by this processor
    )


class Linear:
    """y = x W^T + b for float [N, inputs] -> [N, outputs].

    Args:
        weight: [outputs, inputs], on its device in its type; it may be given up to the blocked layout.
        bias: [outputs] or None.
        pack: False keeps the plain layout.
    """

    def __init__(self, weight: Tensor, bias: Tensor | None = None, *, pack: bool = True) -> None:
        self.outputs, self.inputs = weight.shape
        self.bias = bias
        self.packed = pack and can_pack(weight)
        # one row alone takes another path through the kernel, with another order of summation; two do not
        self._pairs = self.packed and weight.dtype == torch.float32
        self.weight = torch.ops.mkldnn._reorder_linear_weight(weight, TYPICAL_ROWS) if self.packed else weight

    def __call__(self, x: Tensor) -> Tensor:
        if not self.packed:
            return F.linear(x, self.weight, self.bias)
        if self._pairs and x.shape[0] == 1:
            return self._multiply(torch.cat((x, x)))[:1]
        return self._multiply(x)

    def _multiply(self, x: Tensor) -> Tensor:
        return torch.ops.mkldnn._linear_pointwise(x, self.weight, self.bias, "none", [], "")
