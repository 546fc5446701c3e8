"""Weights into a codec: names, shapes, types and values checked before the network gets them.

The network is laid out without storage and given the file's tensors directly, so a refused file costs its header only
and an accepted one is in memory once. Weight norm is folded here, in float32. Refuses to know what the network does.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from pathlib import Path

import torch
from torch import Tensor, nn

from rvc_spark.errors import ModelFileError
from rvc_spark.safe_load import open_tensors, shown
from rvc_spark.tensor_outline import TensorNote

MAX_WEIGHT_BYTES = 3 * 1024**3  # the published file has 626 MB
# Gain and direction of a weight-normed layer, as old and as new torch names them.
_SPELLINGS = ((".weight_g", ".weight_v"), (".parametrizations.weight.original0", ".parametrizations.weight.original1"))
# What training kept for itself, and two tables that files may hold or not and that are computed here.
_PASSED_OVER = re.compile(
    r"(.+\.)?num_batches_tracked|quantizer\.cluster_size|mel_transformer\.(spectrogram\.window|mel_scale\.fb)"
)
_NEXT = "Get the BiCodec folder of the published checkpoint again."


def fold_weight_norm(gain: Tensor, direction: Tensor) -> Tensor:
    """gain * direction / |direction| in float32, the norm over all axes but the first.

    The first axis of a transposed convolution is its input channel, so its gains belong to inputs.
    """
    direction = direction.to(torch.float32)
    norm = torch.linalg.vector_norm(direction, dim=tuple(range(1, direction.dim())), keepdim=True)
    return direction * (gain.to(torch.float32) / norm)


def read_weights(
    path: Path, expected: Mapping[str, tuple[int, ...]], wanted: set[str]
) -> Iterator[tuple[str, Tensor]]:
    """The wanted tensors of a weight file, folded and float32, one by one.

    Args:
        path: safetensors (or torch) file.
        expected: name -> shape of everything the file may hold, with weight norm folded.
        wanted: names that must be there; the others are only held to their shape.

    Raises:
        ModelFileError: a tensor is missing, unknown, of the wrong shape or type, or not finite; names it.
    """
    with open_tensors(path, max_bytes=MAX_WEIGHT_BYTES, what="speech codec", error=ModelFileError) as file:
        sources = _sources(file.outline, file.name)
        _check(sources, file.outline, expected, wanted, file.name)
        tensors = file.load()
    for name, keys in sources.items():
        parts = [tensors.pop(key) for key in keys]
        if name not in wanted:
            continue
        weight = fold_weight_norm(*parts) if len(parts) == 2 else parts[0].to(torch.float32)
        del parts
        if not torch.isfinite(weight).all():
            raise ModelFileError(f"{file.name} is refused: {name} has numbers that are not finite", _NEXT)
        yield name, weight


def _sources(outline: object, file: str) -> dict[str, tuple[str, ...]]:
    """Name of every tensor after folding -> the one or two tensors of the file it is made of."""
    if not isinstance(outline, Mapping) or not all(isinstance(note, TensorNote) for note in outline.values()):
        raise ModelFileError(f"{file} is refused: it holds something else than named tensors", _NEXT)
    sources: dict[str, tuple[str, ...]] = {}
    for key in map(str, outline):
        if _PASSED_OVER.fullmatch(key):
            continue
        name, keys = key, (key,)
        for gain, direction in _SPELLINGS:
            stem = key.removesuffix(gain).removesuffix(direction)
            if stem != key and stem + gain in outline and stem + direction in outline:
                name, keys = stem + ".weight", (stem + gain, stem + direction)
        if sources.setdefault(name, keys) != keys:
            raise ModelFileError(f"{file} is refused: it holds {shown(name)} in two spellings", _NEXT)
    return sources


def _check(
    sources: Mapping[str, tuple[str, ...]],
    outline: Mapping[str, TensorNote],
    expected: Mapping[str, tuple[int, ...]],
    wanted: set[str],
    file: str,
) -> None:
    missing = sorted(wanted - sources.keys())
    if missing:
        raise ModelFileError(f"{file} is refused: the tensor {missing[0]} is missing ({len(missing)} in all)", _NEXT)
    for name, keys in sources.items():
        if name not in expected:
            raise ModelFileError(f"{file} is refused: it has an unknown tensor {shown(keys[0])}", _NEXT)
        shape = expected[name]
        shapes = [(shape[0], *(1 for _ in shape[1:])), shape] if len(keys) == 2 else [shape]
        for key, needed in zip(keys, shapes, strict=True):
            note = outline[key]
            if tuple(note.shape) != needed:
                raise ModelFileError(
                    f"{file} is refused: {key} has shape {list(note.shape)}, its sizes need {list(needed)}", _NEXT
                )
            if not note.dtype.is_floating_point:
                raise ModelFileError(f"{file} is refused: {key} has type {note.dtype}, needs a float type", _NEXT)


def give_weights(network: nn.Module, weights: Iterator[tuple[str, Tensor]], dtype: torch.dtype, device: str) -> None:
    """Give a network laid out without storage its tensors, in the wanted type and place, ready for inference."""
    network.load_state_dict({name: tensor.to(device, dtype) for name, tensor in weights}, strict=True, assign=True)
    network.requires_grad_(False).eval()
