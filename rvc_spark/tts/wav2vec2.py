"""wav2vec 2.0 in its large form (Baevski et al. 2020, arXiv:2006.11477; multilingual: arXiv:2006.13979), for features.

    samples [B, N] -> 7 convolutions, a layer norm behind each -> [B, T, 512] -> projection -> + positional convolution
    -> transformer blocks that normalise before attention -> the residual stream behind every block [B, T, 1024]

Written out here because the transformers package takes 6 s to import, longer than everything else a speech server does
before it is ready; a test holds this network against that package. Names follow the published checkpoint. Sizes come
from its config.json, each checked against a bound. Refuses to know sounds, tokens and voices.
"""

from __future__ import annotations

import json
import math
import stat
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from rvc_spark.errors import ModelFileError
from rvc_spark.safe_load import shown

HOP, WINDOW = 320, 400  # samples between frames, and that a frame sees
CHUNK_FRAMES = 512  # 10 s: the first convolution makes 66 MB of it, of an hour 24 GB
CONV_EPSILON = 1e-5  # of the norms between convolutions, whatever the config says of the others
MAX_CONFIG_BYTES = 1024**2
MAX_PARAMETERS = 1_200_000_000  # the largest published sibling has 965 million
_NEXT = "Use the wav2vec2-large-xlsr-53 folder of the published checkpoint."

# name in config.json -> (what transformers takes where it says nothing, smallest, largest)
_NUMBERS: dict[str, tuple[int, int, int]] = {
    "hidden_size": (768, 8, 4096),
    "num_hidden_layers": (12, 1, 64),
    "num_attention_heads": (12, 1, 64),
    "intermediate_size": (3072, 8, 16384),
    "num_conv_pos_embeddings": (128, 1, 1024),
    "num_conv_pos_embedding_groups": (16, 1, 1024),
}
_LISTS: dict[str, tuple[tuple[int, ...], int]] = {  # name -> (default, largest entry)
    "conv_dim": ((512,) * 7, 4096),
    "conv_kernel": ((10, 3, 3, 3, 3, 2, 2), 64),
    "conv_stride": ((5, 2, 2, 2, 2, 2, 2), 64),
}
_REQUIRED: dict[str, tuple[Any, Any]] = {  # name -> (default, the one value this network computes)
    "model_type": ("wav2vec2", "wav2vec2"),
    "feat_extract_norm": ("group", "layer"),
    "do_stable_layer_norm": (False, True),
    "conv_bias": (False, True),
    "feat_extract_activation": ("gelu", "gelu"),
    "hidden_act": ("gelu", "gelu"),
    "adapter_attn_dim": (None, None),
}


@dataclass(frozen=True)
class Wav2Vec2Sizes:
    """Everything that decides the network's shapes and arithmetic, checked."""

    hidden_size: int
    num_hidden_layers: int
    num_attention_heads: int
    intermediate_size: int
    num_conv_pos_embeddings: int
    num_conv_pos_embedding_groups: int
    conv_dim: tuple[int, ...]
    conv_kernel: tuple[int, ...]
    conv_stride: tuple[int, ...]
    layer_norm_eps: float


def read_sizes(path: Path) -> Wav2Vec2Sizes:
    """Sizes from a `config.json`; what is not named here is passed over.

    Raises:
        ModelFileError: missing, no JSON object, or a value absent, out of bounds or of another architecture.
    """
    config = _read_json(path)
    for name, (default, wanted) in _REQUIRED.items():
        value = config.get(name, default)
        if type(value) is not type(wanted) or value != wanted:
            raise ModelFileError(f"the feature network's {name} is {_told(value)}, must be {wanted!r}", _NEXT)
    numbers = {name: _number(config, name) for name in _NUMBERS}
    lists = {name: _numbers(config, name) for name in _LISTS}
    epsilon = config.get("layer_norm_eps", 1e-5)
    if type(epsilon) is not float or not 1e-12 <= epsilon <= 1e-2:
        raise ModelFileError(f"the feature network's layer_norm_eps is {_told(epsilon)}, must be 1e-12 to 0.01", _NEXT)
    sizes = Wav2Vec2Sizes(**numbers, **lists, layer_norm_eps=epsilon)
    _check_together(sizes)
    return sizes


def _check_together(sizes: Wav2Vec2Sizes) -> None:
    if not len(sizes.conv_dim) == len(sizes.conv_kernel) == len(sizes.conv_stride):
        raise ModelFileError("the feature network's lists of convolution sizes differ in length", _NEXT)
    window = 1
    for kernel, stride in zip(reversed(sizes.conv_kernel), reversed(sizes.conv_stride), strict=True):
        window = (window - 1) * stride + kernel
    if (math.prod(sizes.conv_stride), window) != (HOP, WINDOW):
        raise ModelFileError(
            f"the feature network makes a frame of {window} samples every {math.prod(sizes.conv_stride)}, "
            f"{WINDOW} every {HOP} are needed",
            _NEXT,
        )
    for name in ("num_attention_heads", "num_conv_pos_embedding_groups"):
        if sizes.hidden_size % getattr(sizes, name):
            raise ModelFileError(
                f"the feature network's width {sizes.hidden_size} is not divisible by its {name} "
                f"{getattr(sizes, name)}",
                _NEXT,
            )
    per_layer = 4 * sizes.hidden_size**2 + 2 * sizes.hidden_size * sizes.intermediate_size
    convolutions = zip(sizes.conv_dim, (1, *sizes.conv_dim), sizes.conv_kernel, strict=False)
    parameters = sizes.num_hidden_layers * per_layer + sum(math.prod(shape) for shape in convolutions)
    if parameters > MAX_PARAMETERS:
        raise ModelFileError(
            f"the feature network would have {parameters:,} parameters, limit {MAX_PARAMETERS:,}", _NEXT
        )


def _read_json(path: Path) -> Mapping[str, Any]:
    try:
        status = path.stat()
        if not stat.S_ISREG(status.st_mode) or status.st_size > MAX_CONFIG_BYTES:
            raise ModelFileError(f"{path.name} is not a regular file of at most {MAX_CONFIG_BYTES:,} bytes", _NEXT)
        value = json.loads(path.read_bytes())
    except OSError as problem:
        raise ModelFileError(
            f"cannot read {path.name} in {shown(path.parent.name)}: {problem.strerror}", _NEXT
        ) from None
    except (ValueError, RecursionError):  # not JSON, not text, a 5000-digit number, or nested beyond reason
        raise ModelFileError(f"{path.name} in {shown(path.parent.name)} is not JSON", "Download it again.") from None
    if not isinstance(value, dict):
        raise ModelFileError(f"{path.name} in {shown(path.parent.name)} holds no JSON object", "Download it again.")
    return value


def _number(config: Mapping[str, Any], name: str) -> int:
    default, low, high = _NUMBERS[name]
    value = config.get(name, default)
    if type(value) is not int or not low <= value <= high:
        raise ModelFileError(f"the feature network's {name} is {_told(value)}, must be {low} to {high}", _NEXT)
    return value


def _numbers(config: Mapping[str, Any], name: str) -> tuple[int, ...]:
    default, high = _LISTS[name]
    value = config.get(name, list(default))
    fits = isinstance(value, list) and 1 <= len(value) <= 12
    if not fits or not all(type(number) is int and 1 <= number <= high for number in value):
        raise ModelFileError(
            f"the feature network's {name} is {_told(value)}, must be 1 to 12 whole numbers 1 to {high}", _NEXT
        )
    return tuple(value)


def _told(value: Any) -> str:
    """A value from a file, short enough for a message (and never the decimal digits of a giant integer)."""
    if isinstance(value, int) and value.bit_length() > 100:
        return f"an integer of {value.bit_length()} bits"
    if isinstance(value, list | dict):
        return f"a {type(value).__name__} of {len(value)} items"
    return ascii(value)[:60]


# --- the network -----------------------------------------------------------------------------------------------------


class ConvLayer(nn.Module):
    """Convolution, layer norm over channels, GELU."""

    def __init__(self, channels_in: int, channels_out: int, kernel: int, stride: int) -> None:
        super().__init__()
        self.conv = nn.Conv1d(channels_in, channels_out, kernel, stride)
        self.layer_norm = nn.LayerNorm(channels_out, eps=CONV_EPSILON)

    def forward(self, x: Tensor) -> Tensor:
        return F.gelu(self.layer_norm(self.conv(x).transpose(1, 2))).transpose(1, 2)


class ConvExtractor(nn.Module):
    """Samples [B, N] -> [B, T, C]. All of it is local, so long sounds are done in pieces with the same result."""

    def __init__(self, sizes: Wav2Vec2Sizes) -> None:
        super().__init__()
        widths = zip((1, *sizes.conv_dim), sizes.conv_dim, sizes.conv_kernel, sizes.conv_stride, strict=False)
        self.conv_layers = nn.ModuleList(ConvLayer(*shape) for shape in widths)

    def forward(self, samples: Tensor) -> Tensor:
        frames = (samples.shape[1] - WINDOW) // HOP + 1
        parts = []
        for first in range(0, frames, CHUNK_FRAMES):
            last = min(first + CHUNK_FRAMES, frames) - 1
            x = samples[:, None, first * HOP : last * HOP + WINDOW]
            for layer in self.conv_layers:
                x = layer(x)
            parts.append(x.transpose(1, 2))
        return torch.cat(parts, dim=1) if len(parts) > 1 else parts[0]


class FeatureProjection(nn.Module):
    """Norm and projection to the width of the transformer."""

    def __init__(self, sizes: Wav2Vec2Sizes) -> None:
        super().__init__()
        self.layer_norm = nn.LayerNorm(sizes.conv_dim[-1], eps=sizes.layer_norm_eps)
        self.projection = nn.Linear(sizes.conv_dim[-1], sizes.hidden_size)

    def forward(self, x: Tensor) -> Tensor:
        return self.projection(self.layer_norm(x))


class PositionalConv(nn.Module):
    """Where a frame stands, from a wide grouped convolution over its neighbours (weight norm folded)."""

    def __init__(self, sizes: Wav2Vec2Sizes) -> None:
        super().__init__()
        width, kernel = sizes.hidden_size, sizes.num_conv_pos_embeddings
        self.conv = nn.Conv1d(width, width, kernel, padding=kernel // 2, groups=sizes.num_conv_pos_embedding_groups)

    def forward(self, x: Tensor) -> Tensor:
        y = self.conv(x.transpose(1, 2))[..., : x.shape[1]]  # an even kernel makes one frame too many
        return F.gelu(y).transpose(1, 2)


class SelfAttention(nn.Module):
    """Every frame looks at every frame."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.q_proj, self.k_proj, self.v_proj, self.out_proj = (nn.Linear(width, width) for _ in range(4))

    def forward(self, x: Tensor) -> Tensor:
        query, key, value = (
            part(x).unflatten(-1, (self.heads, -1)).transpose(1, 2) for part in (self.q_proj, self.k_proj, self.v_proj)
        )
        return self.out_proj(F.scaled_dot_product_attention(query, key, value).transpose(1, 2).flatten(2))


class FeedForward(nn.Module):
    """Two layers per frame."""

    def __init__(self, width: int, inner: int) -> None:
        super().__init__()
        self.intermediate_dense = nn.Linear(width, inner)
        self.output_dense = nn.Linear(inner, width)

    def forward(self, x: Tensor) -> Tensor:
        return self.output_dense(F.gelu(self.intermediate_dense(x)))


class Block(nn.Module):
    """x + attention(norm(x)), then x + network(norm(x))."""

    def __init__(self, sizes: Wav2Vec2Sizes) -> None:
        super().__init__()
        width = sizes.hidden_size
        self.layer_norm = nn.LayerNorm(width, eps=sizes.layer_norm_eps)
        self.attention = SelfAttention(width, sizes.num_attention_heads)
        self.final_layer_norm = nn.LayerNorm(width, eps=sizes.layer_norm_eps)
        self.feed_forward = FeedForward(width, sizes.intermediate_size)

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.attention(self.layer_norm(x))
        return x + self.feed_forward(self.final_layer_norm(x))


class Encoder(nn.Module):
    """The transformer; the norm behind its last block is not part of it, because no feature passes through it."""

    def __init__(self, sizes: Wav2Vec2Sizes) -> None:
        super().__init__()
        self.pos_conv_embed = PositionalConv(sizes)
        self.layers = nn.ModuleList(Block(sizes) for _ in range(sizes.num_hidden_layers))

    def states(self, x: Tensor) -> Iterator[Tensor]:
        """The input of the first block, then the output of every block, [B, T, D] each."""
        x = x + self.pos_conv_embed(x)
        yield x
        for layer in self.layers:
            x = layer(x)
            yield x


class Wav2Vec2(nn.Module):
    """The network; `states` is all that is asked of it."""

    def __init__(self, sizes: Wav2Vec2Sizes) -> None:
        super().__init__()
        self.feature_extractor = ConvExtractor(sizes)
        self.feature_projection = FeatureProjection(sizes)
        self.encoder = Encoder(sizes)

    def states(self, samples: Tensor) -> Iterator[Tensor]:
        """Normalised samples float [B, N], N >= 400 -> h[0], h[1], ... float [B, (N - 400) // 320 + 1, D]."""
        return self.encoder.states(self.feature_projection(self.feature_extractor(samples)))
