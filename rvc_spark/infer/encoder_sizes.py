"""What a content encoder is built from: every size checked against a bound before anything of that size exists.

Sizes come either from a HuggingFace `config.json` (only the numbers named here are taken from it; code references,
dtypes and everything else in the file are ignored) or from the tensors of a fairseq checkpoint plus its few settings.
Both end in the same frozen `EncoderSizes`. The module refuses to know torch modules and transformers.

The architecture is HuBERT-base's (Hsu et al. 2021, arXiv:2106.07447) in any size: group norm in the first convolution,
post-norm transformer layers. Variants that compute something else (layer-norm extractors, pre-norm layers) are refused
with the reason, because RVC voices were trained on features of this one.
"""

from __future__ import annotations

import json
import math
import re
import stat
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from rvc_spark.errors import EncoderFileError
from rvc_spark.safe_load import shown

SAMPLE_RATE = 16_000
HOP = 320  # samples per content frame: 50 frames per second
WINDOW = 400  # samples that one frame sees, so the shortest input
V1_LAYER = 9  # RVC v1 voices were trained on layer 9, projected to 256

MAX_CONFIG_BYTES = 1024**2
MAX_PARAMETERS = 1_200_000_000  # HuBERT X-Large has 964 million

_NEXT = "Use an encoder of HuBERT-base layout, such as ContentVec (config.json + model.safetensors)."


@dataclass(frozen=True)
class EncoderSizes:
    """Everything that decides a HuBERT content encoder's shapes and arithmetic, already validated."""

    channels: tuple[int, ...]  # of the convolutions over the waveform
    kernels: tuple[int, ...]
    strides: tuple[int, ...]
    hidden: int
    heads: int
    intermediate: int
    layers: int
    position_kernel: int
    position_groups: int
    epsilon: float  # of every layer norm
    normalize: bool  # layer-norm the waveform first; false for ContentVec
    v1_layer: int  # counted from 1; the layer whose output v1 voices want projected
    embedder: str = ""  # what the config calls itself, "" if it does not say
    warnings: tuple[str, ...] = ()


# name in config.json -> (default of transformers' HubertConfig, smallest, largest)
_NUMBERS: dict[str, tuple[int, int, int]] = {
    "hidden_size": (768, 8, 4096),
    "num_attention_heads": (12, 1, 64),
    "intermediate_size": (3072, 8, 16384),
    "num_hidden_layers": (12, 1, 64),
    "num_conv_pos_embeddings": (128, 1, 1024),
    "num_conv_pos_embedding_groups": (16, 1, 1024),
}
_LISTS: dict[str, tuple[tuple[int, ...], int]] = {  # name -> (default, largest entry)
    "conv_dim": ((512,) * 7, 4096),
    "conv_kernel": ((10, 3, 3, 3, 3, 2, 2), 64),
    "conv_stride": ((5, 2, 2, 2, 2, 2, 2), 64),
}
# name -> (default, the one value that computes what RVC voices expect, why another one is refused)
_REQUIRED: dict[str, tuple[Any, Any, str]] = {
    "model_type": ("hubert", "hubert", "it is another architecture"),
    "feat_extract_norm": ("group", "group", "its convolutions are normalized per frame"),
    "do_stable_layer_norm": (False, False, "its layers normalize before attention, not after"),
    "conv_bias": (False, False, "its convolutions have biases"),
    "feat_extract_activation": ("gelu", "gelu", "its convolutions use another activation"),
    "hidden_act": ("gelu", "gelu", "its layers use another activation"),
    "conv_pos_batch_norm": (False, False, "its positional convolution has a batch norm"),
    "feat_proj_layer_norm": (True, True, "its convolution features are not normalized"),
    "adapter_attn_dim": (None, None, "it has adapters"),
}


def read_config(folder: Path) -> EncoderSizes:
    """Sizes from `config.json` (and `preprocessor_config.json` if it is there) of a HuggingFace folder.

    Raises:
        EncoderFileError: a file is missing, not JSON, or a value is absent, out of bounds or of an unfit architecture.
    """
    config = _read_json(folder / "config.json")
    for name, (default, wanted, why) in _REQUIRED.items():
        value = config.get(name, default)
        if type(value) is not type(wanted) or value != wanted:
            raise EncoderFileError(
                f"the encoder in {shown(folder.name)} does not fit: {name} is {_shown(value)}, not {wanted!r} ({why})",
                _NEXT,
            )
    numbers = {name: _number(config, name, *bounds) for name, bounds in _NUMBERS.items()}
    lists = {name: _numbers(config, name, *bounds) for name, bounds in _LISTS.items()}
    preprocessor = folder / "preprocessor_config.json"
    listening = _read_json(preprocessor) if preprocessor.exists() else {}
    if listening.get("sampling_rate", SAMPLE_RATE) != SAMPLE_RATE:
        raise EncoderFileError(
            f"the encoder in {shown(folder.name)} wants {_shown(listening['sampling_rate'])} Hz, RVC gives 16000 Hz",
            _NEXT,
        )
    layers = numbers["num_hidden_layers"]
    return checked(
        EncoderSizes(
            channels=lists["conv_dim"],
            kernels=lists["conv_kernel"],
            strides=lists["conv_stride"],
            hidden=numbers["hidden_size"],
            heads=numbers["num_attention_heads"],
            intermediate=numbers["intermediate_size"],
            layers=layers,
            position_kernel=numbers["num_conv_pos_embeddings"],
            position_groups=numbers["num_conv_pos_embedding_groups"],
            epsilon=_epsilon(config),
            normalize=listening.get("do_normalize", False) is True,
            v1_layer=_number(config, "rvc_feature_layer", V1_LAYER, 1, layers if "rvc_feature_layer" in config else 64),
            embedder=_text(config, "rvc_embedder"),
        )
    )


def sizes_of_weights(
    weights: Mapping[str, torch.Tensor], settings: Mapping[str, Any], heads: int | None = None
) -> EncoderSizes:
    """Sizes of a fairseq checkpoint: shapes from its tensors, the rest from its settings or the published layout.

    Args:
        weights: under transformers' names.
        settings: of `fairseq.FairseqCheckpoint`.
        heads: attention heads if the caller knows them; tensors cannot tell, and files often do not say.

    Raises:
        EncoderFileError: a tensor that sizes are read from is missing, or the training settings do not fit.
    """
    for name, (wanted, why) in {
        "extractor_mode": ("default", "its convolutions are normalized per frame"),
        "layer_norm_first": (False, "its layers normalize before attention, not after"),
        "activation_fn": ("gelu", "its layers use another activation"),
        "conv_bias": (False, "its convolutions have biases"),
    }.items():
        if settings.get(name, wanted) != wanted:
            raise EncoderFileError(f"the encoder does not fit: {name} is {_shown(settings[name])} ({why})", _NEXT)
    convolutions = []
    while (name := f"feature_extractor.conv_layers.{len(convolutions)}.conv.weight") in weights:
        convolutions.append(_shape(weights, name, 3))
    layers = 0
    while f"encoder.layers.{layers}.final_layer_norm.weight" in weights:
        layers += 1
    position = "encoder.pos_conv_embed.conv."
    gains, directions = position + "parametrizations.weight.original0", position + "parametrizations.weight.original1"
    position_shape = _shape(weights, directions if directions in weights else position + "weight", 3)
    if gains in weights and tuple(weights[gains].shape) != (1, 1, position_shape[2]):
        raise EncoderFileError(f"the encoder does not fit: {gains} has shape {list(weights[gains].shape)}", _NEXT)
    hidden = _shape(weights, "feature_projection.projection.weight", 2)[0]
    kernels = tuple(shape[2] for shape in convolutions)
    count, warnings = _heads(hidden, settings, heads)
    return checked(
        EncoderSizes(
            channels=tuple(shape[0] for shape in convolutions),
            kernels=kernels,
            strides=_strides(kernels, settings.get("conv_feature_layers")),
            hidden=hidden,
            heads=count,
            intermediate=_shape(weights, "encoder.layers.0.feed_forward.intermediate_dense.weight", 2)[0],
            layers=layers,
            position_kernel=position_shape[2],
            position_groups=hidden // max(position_shape[1], 1),
            epsilon=1e-5,
            normalize=settings.get("normalize") is True,
            v1_layer=V1_LAYER,
            warnings=warnings,
        )
    )


def checked(sizes: EncoderSizes) -> EncoderSizes:
    """The same sizes if they fit together, within bounds, and give RVC's 50 frames per second.

    Raises:
        EncoderFileError: naming the size that does not fit.
    """
    lists = (sizes.channels, sizes.kernels, sizes.strides)
    if len({len(values) for values in lists}) != 1 or not 1 <= len(sizes.channels) <= 12:
        raise EncoderFileError("the encoder's convolution sizes differ in number, or are none, or over 12", _NEXT)
    hop, window = math.prod(sizes.strides), 1
    for kernel, stride in zip(reversed(sizes.kernels), reversed(sizes.strides), strict=True):
        window = (window - 1) * stride + kernel
    if (hop, window) != (HOP, WINDOW):
        raise EncoderFileError(
            f"the encoder makes a frame of {window} samples every {hop}, RVC needs {WINDOW} every {HOP}", _NEXT
        )
    numbers = {
        "hidden_size": sizes.hidden,
        "num_attention_heads": sizes.heads,
        "intermediate_size": sizes.intermediate,
        "num_hidden_layers": sizes.layers,
        "num_conv_pos_embeddings": sizes.position_kernel,
        "num_conv_pos_embedding_groups": sizes.position_groups,
    }
    for name, value in numbers.items():
        _, low, high = _NUMBERS[name]
        if not low <= value <= high:
            raise EncoderFileError(f"the encoder's {name} is {value:,}, must be {low} to {high}", _NEXT)
    if sizes.hidden % sizes.heads or sizes.hidden % sizes.position_groups:
        raise EncoderFileError(
            f"the encoder's width {sizes.hidden} is not divisible by its {sizes.heads} heads "
            f"or {sizes.position_groups} groups",
            _NEXT,
        )
    parameters = sizes.layers * (4 * sizes.hidden**2 + 2 * sizes.hidden * sizes.intermediate)
    parameters += sizes.hidden**2 // sizes.position_groups * sizes.position_kernel
    parameters += sum(a * b * k for a, b, k in zip(sizes.channels, (1, *sizes.channels), sizes.kernels, strict=False))
    if parameters > MAX_PARAMETERS:
        raise EncoderFileError(f"the encoder would have {parameters:,} parameters, limit {MAX_PARAMETERS:,}", _NEXT)
    return sizes


def _heads(hidden: int, settings: Mapping[str, Any], known: int | None) -> tuple[int, tuple[str, ...]]:
    stated = known if known is not None else settings.get("encoder_attention_heads")
    if type(stated) is int:
        if not 1 <= stated <= 64:
            raise EncoderFileError(f"the encoder has {stated:,} attention heads, must be 1 to 64", _NEXT)
        return stated, ()
    if hidden % 64 == 0:  # published post-norm HuBERTs have heads 64 wide
        heads = max(hidden // 64, 1)
    else:  # fairseq's default is 12 heads; the largest part of them that divides the width
        heads = math.gcd(12, hidden)
    return heads, (() if hidden == 768 else (f"the file does not state its attention heads; assumed {heads}",))


def _strides(kernels: tuple[int, ...], written: Any) -> tuple[int, ...]:
    """Strides from fairseq's text "[(512,10,5)] + [(512,3,2)] * 4 + ..." if it fits the kernels, else the usual."""
    if isinstance(written, str):
        found: list[tuple[int, int]] = []
        for kernel, stride, times in re.findall(
            r"\[\(\s*\d{1,5}\s*,\s*(\d{1,3})\s*,\s*(\d{1,3})\s*\)\](?:\s*\*\s*(\d{1,2}))?", written
        ):
            found += [(int(kernel), int(stride))] * min(int(times or 1), 12)
        if tuple(kernel for kernel, _ in found[:13]) == kernels:
            return tuple(stride for _, stride in found)
    usual = _LISTS["conv_stride"][0]
    if kernels != _LISTS["conv_kernel"][0]:
        raise EncoderFileError(f"the encoder's convolution kernels {list(kernels)[:12]} have unknown strides", _NEXT)
    return usual


def _shape(weights: Mapping[str, torch.Tensor], name: str, dimensions: int) -> tuple[int, ...]:
    if name not in weights:
        raise EncoderFileError(f"the encoder lacks the tensor {name}", _NEXT)
    shape = tuple(weights[name].shape)
    if len(shape) != dimensions:
        raise EncoderFileError(f"the encoder's {name} has shape {list(shape)}, expected {dimensions} dimensions", _NEXT)
    return shape


# --- config.json -----------------------------------------------------------------------------------------------------


def _read_json(path: Path) -> dict[str, Any]:
    try:
        status = path.stat()
        if not stat.S_ISREG(status.st_mode) or status.st_size > MAX_CONFIG_BYTES:
            raise EncoderFileError(f"{path.name} is not a regular file of at most {MAX_CONFIG_BYTES:,} bytes", _NEXT)
        value = json.loads(path.read_bytes())
    except OSError as problem:
        raise EncoderFileError(
            f"cannot read {path.name} in {shown(path.parent.name)}: {problem.strerror}", _NEXT
        ) from None
    except (ValueError, RecursionError):  # not JSON, not text, a 5000-digit number, or nested beyond reason
        raise EncoderFileError(
            f"{path.name} in {shown(path.parent.name)} is not JSON (a web page or an LFS pointer?)",
            "Download it again.",
        ) from None
    if not isinstance(value, dict):
        raise EncoderFileError(f"{path.name} in {shown(path.parent.name)} holds no JSON object", "Download it again.")
    return value


def _number(config: Mapping[str, Any], name: str, default: int, low: int, high: int) -> int:
    value = config.get(name, default)
    if type(value) is not int or not low <= value <= high:
        raise EncoderFileError(f"config.json: {name} is {_shown(value)}, must be a whole number {low} to {high}", _NEXT)
    return value


def _numbers(config: Mapping[str, Any], name: str, default: tuple[int, ...], high: int) -> tuple[int, ...]:
    value = config.get(name, list(default))
    if not isinstance(value, list) or len(value) > 12 or not all(type(n) is int and 1 <= n <= high for n in value):
        raise EncoderFileError(
            f"config.json: {name} is {_shown(value)}, must be at most 12 whole numbers 1 to {high}", _NEXT
        )
    return tuple(value)


def _epsilon(config: Mapping[str, Any]) -> float:
    value = config.get("layer_norm_eps", 1e-5)
    if not isinstance(value, float) or not 1e-12 <= value <= 1e-2:
        raise EncoderFileError(f"config.json: layer_norm_eps is {_shown(value)}, must be 1e-12 to 0.01", _NEXT)
    return value


def _text(config: Mapping[str, Any], name: str) -> str:
    value = config.get(name)
    return value if isinstance(value, str) and len(value) <= 100 and value.isprintable() else ""


def _shown(value: Any) -> str:
    """A value from a file, short enough for an error message (and never the decimal digits of a giant integer)."""
    if isinstance(value, int) and value.bit_length() > 100:
        return f"an integer of {value.bit_length()} bits"
    if isinstance(value, (list, dict)):
        return f"a {type(value).__name__} of {len(value)} items"
    return repr(value)[:60]
