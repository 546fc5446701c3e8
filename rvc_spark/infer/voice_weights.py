"""The weights of a voice: found under any of their spellings, and folded into what the network multiplies with.

A weight-normalised tensor is stored as gain g and direction v (w = g * v / |v|), under two spellings, or already
multiplied out. `resolve` matches a file's names and shapes with the network's, strictly; `folded_weights` gives float32
tensors under the network's own names. Refuses to know files and `config` lists.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Protocol

import torch

from rvc_spark.infer.mrf import hifigan_names
from rvc_spark.infer.voice_layout import Layout, NetConfig, Weight, expected_tensors
from rvc_spark.safe_load import all_finite

POSTERIOR = "enc_q."  # the posterior encoder: training only, left over in some voices
SPELLINGS = (
    ("weight_g", "weight_v"),
    ("parametrizations.weight.original0", "parametrizations.weight.original1"),
)
FLOATS = (torch.float16, torch.bfloat16, torch.float32, torch.float64)


class WeightProblem(ValueError):
    """A tensor is missing, unknown, of the wrong shape or type, or not finite. Names the key."""


class Shaped(Protocol):
    """A tensor or the description of one."""

    @property
    def dtype(self) -> torch.dtype: ...

    @property
    def shape(self) -> tuple[int, ...]: ...


@dataclass(frozen=True)
class Resolved:
    """Where each weight lies in a file: module -> the names of its parts (one, or gain and direction)."""

    weights: dict[str, tuple[str, ...]]
    others: tuple[str, ...]


def resolve(tensors: Mapping[str, Shaped], net: NetConfig) -> Resolved:
    """Match the tensors of a file with those of the network.

    Leftovers of the posterior encoder are passed over; every other difference raises WeightProblem.
    """
    layout = expected_tensors(net)
    for name, tensor in tensors.items():
        if tensor.dtype not in FLOATS:
            raise WeightProblem(f"tensor {ascii(name[:100])} is of type {tensor.dtype}, not a float type")
    weights = {weight.module: _parts(tensors, weight) for weight in layout.weights}
    for name, shape in layout.others.items():
        _need(tensors, name, shape)
    _no_more(tensors, layout, weights)
    return Resolved(weights, tuple(layout.others))


def _parts(tensors: Mapping[str, Shaped], weight: Weight) -> tuple[str, ...]:
    plain = f"{weight.module}.weight"
    if weight.normed and plain not in tensors:
        named = [tuple(f"{weight.module}.{part}" for part in spelling) for spelling in SPELLINGS]
        gain, direction = next((pair for pair in named if pair[0] in tensors or pair[1] in tensors), named[0])
        _need(tensors, gain, weight.gain_shape)
        _need(tensors, direction, weight.shape)
        return gain, direction
    _need(tensors, plain, weight.shape)
    return (plain,)


def _need(tensors: Mapping[str, Shaped], name: str, shape: tuple[int, ...]) -> None:
    tensor = tensors.get(name)
    if tensor is None:
        raise WeightProblem(f"tensor '{name}' is missing")
    if tuple(tensor.shape) != shape:
        raise WeightProblem(f"tensor '{name}' has shape {list(tensor.shape)}, its config needs {list(shape)}")


def _no_more(tensors: Mapping[str, Shaped], layout: Layout, weights: dict[str, tuple[str, ...]]) -> None:
    known = {name for parts in weights.values() for name in parts} | set(layout.others)
    unknown = [name for name in tensors if name not in known and not name.startswith(POSTERIOR)]
    if unknown:
        more = f" and {len(unknown) - 3} more" if len(unknown) > 3 else ""
        listed = ", ".join(ascii(name[:100]) for name in unknown[:3])
        raise WeightProblem(f"it holds tensors no such voice has: {listed}{more}")


def check_finite(tensors: Mapping[str, torch.Tensor]) -> None:
    """Raises WeightProblem naming the first tensor with an infinite or undefined number in it."""
    for name, tensor in tensors.items():
        if not all_finite(tensor):
            raise WeightProblem(f"tensor {ascii(name[:100])} holds infinite or undefined numbers (over-trained?)")


def fold(gain: torch.Tensor, direction: torch.Tensor) -> torch.Tensor:
    """g * v / |v| in float32, the norm over all axes but the first (the input channel of a transposed convolution)."""
    gain, direction = gain.float(), direction.float()
    norm = torch.linalg.vector_norm(direction, dim=tuple(range(1, direction.dim())), keepdim=True)
    return direction * (gain / norm)


def folded_weights(tensors: Mapping[str, torch.Tensor], net: NetConfig) -> dict[str, torch.Tensor]:
    """float32 tensors under the names of `synthesizer.VoiceNetwork`, weight norm multiplied out.

    Raises WeightProblem as `resolve`, and for a direction of length zero, whose weight is undefined.
    """
    found = resolve(tensors, net)
    renamed = hifigan_names(net)
    folded: dict[str, torch.Tensor] = {}
    for module, parts in found.weights.items():
        weight = tensors[parts[0]].float() if len(parts) == 1 else fold(tensors[parts[0]], tensors[parts[1]])
        if len(parts) == 2 and not all_finite(weight):
            raise WeightProblem(f"tensor '{parts[1]}' has a row of zeros, so its normalised weight is undefined")
        folded[f"{renamed.get(module, module)}.weight"] = weight
    for name in found.others:
        module, _, part = name.rpartition(".")
        folded[f"{renamed.get(module, module)}.{part}"] = tensors[name].float()
    return folded
