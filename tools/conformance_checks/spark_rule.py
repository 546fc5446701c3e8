"""Weights by rule: every number of a tensor follows from its name and a seed, so that none need be stored.

The rule is that of the vectors' README: a 64-bit mixing function (Steele et al. 2014, SplitMix64) of counter, name and
seed gives numbers in -1..1, and the last part of the name decides scale and offset.
"""

from __future__ import annotations

import math
import zlib
from collections.abc import Mapping

import numpy as np
import torch

_GOLDEN = np.uint64(0x9E3779B97F4A7C15)
_MIX = ((30, np.uint64(0xBF58476D1CE4E5B9)), (27, np.uint64(0x94D049BB133111EB)))
_F = np.float32
_ZERO = ("cluster_size", "num_batches_tracked")


def uniform(seed: int, count: int) -> np.ndarray:
    """float32 [count] in -1..1 from a seed of up to 64 bits."""
    with np.errstate(over="ignore"):
        x = np.arange(count, dtype=np.uint64) + np.uint64((seed * int(_GOLDEN) + int(_GOLDEN)) % 2**64)
        for shift, factor in _MIX:
            x ^= x >> np.uint64(shift)
            x *= factor
        x ^= x >> np.uint64(31)
    x >>= np.uint64(40)
    values = x.astype(_F)
    values /= _F(2**23)
    values -= _F(1)
    return values


def tensor_of(name: str, shape: tuple[int, ...], seed: int) -> np.ndarray:
    """The tensor `name` of that shape, float32."""
    last = name.rpartition(".")[2]
    if last in _ZERO:
        return np.zeros(shape, _F)
    u = uniform(zlib.crc32(name.encode()) + seed * 2**32, math.prod(shape)).reshape(shape)
    if last == "running_var" or last == "alpha":
        return _F(1) + _F(0.5) * u
    if last in ("running_mean", "bias"):
        return _F(0.1) * u
    if last == "weight_g":
        return _F(0.7) + _F(0.175) * u
    if last == "gamma":
        return _F(0.75) + _F(0.25) * u
    if last in ("latents", "masked_spec_embed") or "codebook" in name.split("."):
        return u
    if last == "weight" and len(shape) == 1:
        return _F(1) + _F(0.25) * u
    if len(shape) >= 2:
        u *= _F(math.sqrt(3.0 / math.prod(shape[1:])))
        return u
    return _F(0.1) * u


def tensors_of(shapes: Mapping[str, tuple[int, ...]], seed: int) -> dict[str, torch.Tensor]:
    """All tensors of a state dict."""
    return {name: torch.from_numpy(tensor_of(name, shape, seed)) for name, shape in shapes.items()}
