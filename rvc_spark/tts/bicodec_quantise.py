"""Numbers to codes and back: BiCodec's semantic codebook and its finite scalar quantiser for voices.

The codebook compares directions (Yu et al. 2021, arXiv:2110.04627: factorised, L2-normalised); the scalar quantiser
rounds each dimension to a few levels (Mentzer et al. 2023, arXiv:2309.15505), repeatedly on what is left over where
there is more than one. Decisions are taken in float32 whatever the network's precision. Refuses to know what the codes
stand for.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from rvc_spark.tts.bicodec_config import QuantizerSizes

NORM_EPSILON = 1e-12
EDGE = 1e-3  # the outermost levels are reached a little before infinity


class FactorizedQuantizer(nn.Module):
    """The nearest of `codebook_size` directions in a space of few dimensions."""

    def __init__(self, sizes: QuantizerSizes) -> None:
        super().__init__()
        projected = sizes.input_dim != sizes.codebook_dim
        wide, narrow = sizes.input_dim, sizes.codebook_dim
        self.in_project = nn.Conv1d(wide, narrow, 1) if projected else nn.Identity()
        self.out_project = nn.Conv1d(narrow, wide, 1) if projected else nn.Identity()
        # Given an empty weight it draws none, which without storage would make torch import its compiler: 3 s.
        self.codebook = nn.Embedding(sizes.codebook_size, narrow, _weight=torch.empty(sizes.codebook_size, narrow))

    def distances(self, z: Tensor) -> Tensor:
        """Squared distances float32 [B, T, codes] between directions, for z [B, D, T]."""
        frames = F.normalize(self.in_project(z).transpose(1, 2).float(), dim=-1, eps=NORM_EPSILON)
        codes = F.normalize(self.codebook.weight.float(), dim=-1, eps=NORM_EPSILON)
        return frames.square().sum(-1, keepdim=True) - 2 * (frames @ codes.T) + codes.square().sum(-1)

    def tokenise(self, z: Tensor) -> Tensor:
        """z [B, D, T] -> ids int64 [B, T]; the first of equally near codes."""
        return self.distances(z).argmin(-1)

    def detokenise(self, ids: Tensor) -> Tensor:
        """ids [B, T] -> [B, D, T], from the codebook's rows as they are, not normalised."""
        return self.out_project(self.codebook(ids).transpose(1, 2))


class ScalarQuantizer(nn.Module):
    """Each dimension i is squashed and rounded to `levels[i]` steps; the first dimension is the least significant."""

    def __init__(self, levels: Sequence[int]) -> None:
        super().__init__()
        self.levels = tuple(levels)
        self.size = math.prod(levels)
        half = [(count - 1) * (1 + EDGE) / 2 for count in levels]
        offset = [0.0 if count % 2 else 0.5 for count in levels]
        self._half, self._offset = half, offset
        self._shift = [math.atanh(o / h) for o, h in zip(offset, half, strict=True)]
        self._middle = [count // 2 for count in levels]
        self._basis = [math.prod(levels[:i]) for i in range(len(levels))]

    def bound(self, z: Tensor) -> Tensor:
        """z [..., L] squashed so that rounding gives exactly the levels."""
        half, offset = z.new_tensor(self._half), z.new_tensor(self._offset)
        return torch.tanh(z + z.new_tensor(self._shift)) * half - offset

    def forward(self, z: Tensor) -> tuple[Tensor, Tensor]:
        """z float32 [..., L] -> codes [..., L] of -1..1, ids int32 [...]."""
        steps = self.bound(z).round()
        middle = z.new_tensor(self._middle)
        ids = ((steps + middle) * z.new_tensor(self._basis)).sum(-1)
        return steps / middle, ids.to(torch.int32)

    def codes_of(self, ids: Tensor) -> Tensor:
        """ids int [...] -> codes float32 [..., L]."""
        basis, levels, middle = (ids.new_tensor(x) for x in (self._basis, self.levels, self._middle))
        digits = torch.div(ids[..., None], basis, rounding_mode="floor") % levels
        return (digits - middle).float() / middle


class ResidualScalarQuantizer(nn.Module):
    """Quantisers in a row, each over what those before left, at a finer scale; channel last: [B, N, dim].

    Ids have one column per quantiser: int32 [B, N, Q].
    """

    def __init__(self, levels: Sequence[int], quantizers: int, dim: int) -> None:
        super().__init__()
        count = len(levels)
        self.project_in = nn.Linear(dim, count) if dim != count else nn.Identity()
        self.project_out = nn.Linear(count, dim) if dim != count else nn.Identity()
        self.quantizer = ScalarQuantizer(levels)
        self._scales = [[(level - 1) ** -float(step) for level in levels] for step in range(quantizers)]

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """x -> what its ids stand for, ids."""
        left = self.project_in(x).float()
        total = torch.zeros_like(left)
        ids = []
        for scale in self._scales:
            scale = left.new_tensor(scale)
            codes, chosen = self.quantizer(left / scale)
            total, left = total + codes * scale, left - codes * scale
            ids.append(chosen)
        return self.project_out(total.to(x.dtype)), torch.stack(ids, dim=-1)

    def decode(self, ids: Tensor) -> Tensor:
        """ids [B, N, Q] -> [B, N, dim]."""
        total = sum(
            self.quantizer.codes_of(ids[..., step]) * torch.tensor(scale, device=ids.device)
            for step, scale in enumerate(self._scales)
        )
        return self.project_out(total.to(self._dtype))

    @property
    def _dtype(self) -> torch.dtype:
        return next((weight.dtype for weight in self.parameters()), torch.float32)
