"""Weights into the networks around the codec: names, shapes, types and values checked before a network gets them.

A network is laid out without storage and given the file's tensors directly, so a refused file costs its header only and
an accepted one is in memory once. Weight norm is folded here, in float32. Refuses to know what a network does.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

from rvc_spark.errors import ModelFileError
from rvc_spark.safe_load import open_tensors, shown
from rvc_spark.tensor_outline import TensorNote

# Gain and direction of a weight-normed layer, as old and as new torch names them.
_SPELLINGS = ((".weight_g", ".weight_v"), (".parametrizations.weight.original0", ".parametrizations.weight.original1"))


@dataclass(frozen=True)
class FileRules:
    """What a kind of weight file may hold.

    Attributes:
        what: its kind, for messages.
        max_bytes: files above this are refused unread.
        passed_over: names (after the prefix) of tensors that are no part of the network.
        prefix: a name that some files put before every tensor.
        gain_axis: the axis of a weight-normed tensor that has one gain per entry.
        next_step: what to do with a refused file.
    """

    what: str
    max_bytes: int
    passed_over: re.Pattern[str]
    next_step: str
    prefix: str = ""
    gain_axis: int = 0


def fold_weight_norm(gain: Tensor, direction: Tensor, axis: int = 0) -> Tensor:
    """gain * direction / |direction| in float32, the norm over all axes but one.

    The first axis of a transposed convolution is its input channel, so its gains belong to inputs.
    """
    direction = direction.to(torch.float32)
    others = tuple(other for other in range(direction.dim()) if other != axis)
    return direction * (gain.to(torch.float32) / torch.linalg.vector_norm(direction, dim=others, keepdim=True))


def read_weights(
    path: Path, expected: Mapping[str, tuple[int, ...]], wanted: set[str], rules: FileRules
) -> Iterator[tuple[str, Tensor]]:
    """The wanted tensors of a weight file, folded and float32, one by one.

    Args:
        path: safetensors or torch file.
        expected: name -> shape of everything the file may hold, with weight norm folded.
        wanted: names that must be there; the others are only held to their shape.
        rules: what else there is to know about such files.

    Raises:
        ModelFileError: a tensor is missing, unknown, of the wrong shape or type, or not finite; names it.
    """
    with open_tensors(path, max_bytes=rules.max_bytes, what=rules.what, error=ModelFileError) as file:
        refuse = _Refusal(file.name, rules)
        sources = _sources(file.outline, refuse)
        _check(sources, file.outline, expected, wanted, refuse)
        sources = {name: keys for name, keys in sources.items() if name in wanted}
        tensors = file.load({key for keys in sources.values() for key in keys})
    for name, keys in sources.items():
        parts = [tensors.pop(key) for key in keys]
        weight = fold_weight_norm(*parts, rules.gain_axis) if len(parts) == 2 else parts[0].to(torch.float32)
        del parts
        if not torch.isfinite(weight).all():
            raise refuse(f"{name} has numbers that are not finite")
        yield name, weight


@dataclass(frozen=True)
class _Refusal:
    """Makes the error for one file."""

    file: str
    rules: FileRules

    def __call__(self, problem: str) -> ModelFileError:
        return ModelFileError(f"{self.file} is refused as a {self.rules.what}: {problem}", self.rules.next_step)


def _sources(outline: object, refuse: _Refusal) -> dict[str, tuple[str, ...]]:
    """Name of every tensor after folding -> the one or two tensors of the file it is made of."""
    named = isinstance(outline, Mapping) and all(isinstance(key, str) for key in outline)
    if not named or not all(isinstance(note, TensorNote) for note in outline.values()):
        raise refuse("it holds something else than named tensors")
    sources: dict[str, tuple[str, ...]] = {}
    for key in outline:
        plain = key.removeprefix(refuse.rules.prefix)
        if refuse.rules.passed_over.fullmatch(plain):
            continue
        name, keys = plain, (key,)
        for gain, direction in _SPELLINGS:
            stem = key.removesuffix(gain).removesuffix(direction)
            if stem != key and stem + gain in outline and stem + direction in outline:
                name = stem.removeprefix(refuse.rules.prefix) + ".weight"
                keys = (stem + gain, stem + direction)
        if sources.setdefault(name, keys) != keys:
            raise refuse(f"it holds {shown(name)} in two spellings")
    return sources


def _check(
    sources: Mapping[str, tuple[str, ...]],
    outline: Mapping[str, TensorNote],
    expected: Mapping[str, tuple[int, ...]],
    wanted: set[str],
    refuse: _Refusal,
) -> None:
    missing = sorted(wanted - sources.keys())
    if missing:
        raise refuse(f"the tensor {missing[0]} is missing ({len(missing)} in all)")
    for name, keys in sources.items():
        if name not in expected:
            raise refuse(f"it has an unknown tensor {shown(keys[0])}")
        shape = expected[name]
        gains = tuple(size if axis == refuse.rules.gain_axis else 1 for axis, size in enumerate(shape))
        for key, needed in zip(keys, [gains, shape] if len(keys) == 2 else [shape], strict=True):
            note = outline[key]
            if tuple(note.shape) != needed:
                raise refuse(f"{key} has shape {list(note.shape)}, its sizes need {list(needed)}")
            if not note.dtype.is_floating_point:
                raise refuse(f"{key} has type {note.dtype}, needs a float type")


def shapes_of(network: nn.Module) -> dict[str, tuple[int, ...]]:
    """Name -> shape of every tensor of a network."""
    return {name: tuple(tensor.shape) for name, tensor in network.state_dict().items()}


def give_weights(
    network: nn.Module, weights: Iterator[tuple[str, Tensor]], dtype: torch.dtype, device: str | torch.device
) -> None:
    """Give a network laid out without storage its tensors, in the wanted type and place, ready for inference."""
    network.load_state_dict({name: tensor.to(device, dtype) for name, tensor in weights}, strict=True, assign=True)
    network.requires_grad_(False).eval()
