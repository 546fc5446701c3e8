"""Weights into a content encoder: names, shapes, types and values checked before the network gets them.

The network is laid out without storage and given the file's tensors directly, so a wrong file costs no memory and every
key must match (references load non-strictly, and a wrong file silently gives noise). Weight norm of the positional
convolution is folded into one weight here, in float32. The module refuses to know files' containers, sounds and
features.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import torch
from torch import nn

from rvc_spark.errors import EncoderFileError
from rvc_spark.infer.encoder_sizes import EncoderSizes
from rvc_spark.infer.hubert import Hubert
from rvc_spark.safe_load import all_finite, read_tensors, shown

MAX_WEIGHT_BYTES = 6 * 1024**3
_POSITION = "encoder.pos_conv_embed.conv."
_IGNORED = ("masked_spec_embed", "label_embs_concat")  # only training uses them
_NEXT = "Download the encoder again, or use RVC's ContentVec."


def build_encoder(
    sizes: EncoderSizes, weights: Mapping[str, torch.Tensor], name: str
) -> tuple[Hubert, nn.Linear | None]:
    """The network with exactly these weights (either weight-norm spelling), and its projection if there is one.

    Raises:
        EncoderFileError: a tensor is missing, unknown, of the wrong shape or type, or not finite; names it.
    """
    given = {key: tensor for key, tensor in weights.items() if key not in _IGNORED}
    given = _folded_position(given, name)
    given = {key: tensor.to(torch.float32) if tensor.is_floating_point() else tensor for key, tensor in given.items()}
    expected = _expected_shapes(sizes)
    projection = None
    if "final_proj.weight" in given:
        width = given["final_proj.weight"].shape[0] if given["final_proj.weight"].dim() == 2 else 0
        if not 1 <= width <= 4096:
            raise EncoderFileError(f"{name} is refused: final_proj gives {width} numbers, must be 1 to 4096", _NEXT)
        expected |= {"final_proj.weight": (width, sizes.hidden), "final_proj.bias": (width,)}
        with torch.device("meta"):
            projection = nn.Linear(sizes.hidden, width)
    _check_weights(given, expected, name)
    with torch.device("meta"):  # no memory for weights that are given anyway
        model = Hubert(sizes)
    if projection is not None:
        parts = {key: given.pop(f"final_proj.{key}") for key in ("weight", "bias")}
        projection.load_state_dict(parts, strict=True, assign=True)
        projection.requires_grad_(False).eval()
    model.load_state_dict(given, strict=True, assign=True)
    return model.requires_grad_(False).eval(), projection


def _expected_shapes(sizes: EncoderSizes) -> dict[str, tuple[int, ...]]:
    """Name -> shape of every tensor of HubertModel with these sizes, weight norm folded."""
    hidden, inner, last = sizes.hidden, sizes.intermediate, sizes.channels[-1]
    shapes: dict[str, tuple[int, ...]] = {}
    inputs = (1, *sizes.channels)
    for i, (channels, kernel) in enumerate(zip(sizes.channels, sizes.kernels, strict=True)):
        shapes[f"feature_extractor.conv_layers.{i}.conv.weight"] = (channels, inputs[i], kernel)
    layer_modules = {
        **{f"attention.{part}_proj": (hidden, hidden) for part in "qkv"},
        "attention.out_proj": (hidden, hidden),
        "feed_forward.intermediate_dense": (inner, hidden),
        "feed_forward.output_dense": (hidden, inner),
        "layer_norm": (hidden,),
        "final_layer_norm": (hidden,),
    }
    modules = {
        "feature_extractor.conv_layers.0.layer_norm": (sizes.channels[0],),
        "feature_projection.layer_norm": (last,),
        "feature_projection.projection": (hidden, last),
        "encoder.pos_conv_embed.conv": (hidden, hidden // sizes.position_groups, sizes.position_kernel),
        "encoder.layer_norm": (hidden,),
    }
    for layer in range(sizes.layers):
        modules |= {f"encoder.layers.{layer}.{part}": shape for part, shape in layer_modules.items()}
    for module, shape in modules.items():
        shapes |= {f"{module}.weight": shape, f"{module}.bias": shape[:1]}
    return shapes


def _check_weights(given: Mapping[str, torch.Tensor], expected: Mapping[str, tuple[int, ...]], name: str) -> None:
    for key in sorted(expected):
        if key not in given:
            missing = len(expected.keys() - given.keys())
            raise EncoderFileError(f"{name} is refused: the tensor {key} is missing ({missing} in all)", _NEXT)
        tensor = given[key]
        if tuple(tensor.shape) != expected[key]:
            raise EncoderFileError(
                f"{name} is refused: {key} has shape {list(tensor.shape)}, its sizes need {list(expected[key])}", _NEXT
            )
        if not tensor.is_floating_point():
            raise EncoderFileError(f"{name} is refused: {key} has type {tensor.dtype}, needs a float type", _NEXT)
        if not all_finite(tensor):
            raise EncoderFileError(f"{name} is refused: {key} has numbers that are not finite", _NEXT)
    for key in given:
        if key not in expected:
            raise EncoderFileError(f"{name} is refused: it has an unknown tensor {shown(key)}", _NEXT)


def _folded_position(given: dict[str, torch.Tensor], name: str) -> dict[str, torch.Tensor]:
    """Replace weight norm's two tensors, in either spelling, by the one weight they stand for.

    The norm is over all but the kernel axis: w[:, :, k] = g[k] * v[:, :, k] / |v[:, :, k]|.
    """
    for gain, direction in (
        ("parametrizations.weight.original0", "parametrizations.weight.original1"),
        ("weight_g", "weight_v"),
    ):
        if _POSITION + gain in given and _POSITION + direction in given:
            g, v = given.pop(_POSITION + gain), given.pop(_POSITION + direction)
            if v.dim() != 3 or tuple(g.shape) != (1, 1, v.shape[2]) or not v.is_floating_point():
                raise EncoderFileError(
                    f"{name} is refused: {_POSITION}{direction} has shape {list(v.shape)}, its gain {list(g.shape)}",
                    _NEXT,
                )
            v = v.to(torch.float32)
            norm = torch.linalg.vector_norm(v, dim=(0, 1), keepdim=True)
            given[_POSITION + "weight"] = v * (g.to(torch.float32) / norm)
    return given


def weight_file(folder: Path) -> Path:
    """The file with the weights of a HuggingFace folder. Raises EncoderFileError where there is none."""
    for name in ("model.safetensors", "pytorch_model.bin"):
        if (folder / name).exists():
            return folder / name
    sharded = "; it is split into several files" if list(folder.glob("*.index.json")) else ""
    raise EncoderFileError(
        f"the encoder folder {shown(folder.name)} has neither model.safetensors nor pytorch_model.bin{sharded}",
        _NEXT,
    )


def read_folder_weights(folder: Path) -> dict[str, torch.Tensor]:
    """All tensors of a HuggingFace folder under HubertModel's names (a wrapper's `hubert.` prefix removed).

    They are mapped from the file where the system can, so they take no memory of their own and processes share them.

    Raises:
        EncoderFileError: no weights in the folder, or not a dictionary of tensors.
    """
    path = weight_file(folder)
    read = read_tensors(
        path, max_bytes=MAX_WEIGHT_BYTES, what="content encoder", error=EncoderFileError, mapped=True
    )
    if not isinstance(read, Mapping):
        raise EncoderFileError(f"{shown(folder.name)}: {path.name} holds no dictionary of tensors", _NEXT)
    weights = {}
    for key, tensor in read.items():
        if not isinstance(key, str) or not isinstance(tensor, torch.Tensor):
            raise EncoderFileError(f"{shown(folder.name)}: {path.name} holds something else than named tensors", _NEXT)
        weights[key.removeprefix("hubert.")] = tensor
    return weights
