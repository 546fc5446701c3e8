"""What the language model is built from: every size of `LLM/config.json` checked before anything of that size exists.

Only what decides shapes and arithmetic is read; code references, dtypes and everything else in the file is ignored.
Variants that compute something else (sliding windows, scaled rotations, other activations) are refused by name, since
running them as plain Qwen2 gives noise without an error. Refuses to know weights and torch.
"""

from __future__ import annotations

import json
import math
import stat
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rvc_spark.errors import ModelFileError
from rvc_spark.safe_load import shown

MAX_CONFIG_BYTES = 1024**2
MAX_PARAMETERS = 3_000_000_000  # Spark-TTS has 507 million; the next size of its base 1.5 billion
_NEXT = "Use the LLM folder of a Spark-TTS checkpoint, as published."

_NUMBERS: dict[str, tuple[int, int]] = {  # name in config.json -> smallest, largest
    "vocab_size": (2, 1_000_000),
    "hidden_size": (8, 8192),
    "intermediate_size": (8, 32_768),
    "num_hidden_layers": (1, 80),
    "num_attention_heads": (1, 128),
    "num_key_value_heads": (1, 128),
    "max_position_embeddings": (2, 10_000_000),
}


@dataclass(frozen=True)
class LMConfig:
    """Everything that decides a Qwen2 causal language model's shapes and arithmetic, already validated."""

    vocab: int  # rows of the embedding, the padding included
    hidden: int
    inner: int  # width between the two halves of the feed-forward
    layers: int
    heads: int
    kv_heads: int  # keys and values are shared by heads / kv_heads queries
    head_dim: int
    positions: int  # the longest sequence it was made for
    epsilon: float  # of every RMSNorm
    rope_theta: float  # base of the rotations
    tied: bool  # the output head is the embedding

    @classmethod
    def from_json(cls, path: str | Path) -> LMConfig:
        """Read `config.json` of a Qwen2ForCausalLM as transformers 4.x or 5.x writes it.

        Raises:
            ModelFileError: missing, not JSON, a value absent, of the wrong type or out of bounds, another architecture.
        """
        path = Path(path)
        config = read_json_object(path)
        _check_architecture(config)
        numbers = {name: _number(config, name, *bounds) for name, bounds in _NUMBERS.items()}
        return _checked(
            cls(
                vocab=numbers["vocab_size"],
                hidden=numbers["hidden_size"],
                inner=numbers["intermediate_size"],
                layers=numbers["num_hidden_layers"],
                heads=numbers["num_attention_heads"],
                kv_heads=numbers["num_key_value_heads"],
                head_dim=_head_dim(config, numbers["hidden_size"], numbers["num_attention_heads"]),
                positions=numbers["max_position_embeddings"],
                epsilon=_real(config, "rms_norm_eps", 1e-12, 1e-2),
                rope_theta=_rope_theta(config),
                tied=_flag(config, "tie_word_embeddings", False),
            )
        )

    @property
    def parameters(self) -> int:
        """How many numbers the weights are."""
        attention = self.hidden * self.head_dim * 2 * (self.heads + self.kv_heads)
        layer = attention + self.head_dim * (self.heads + 2 * self.kv_heads) + 3 * self.hidden * self.inner
        return self.layers * (layer + 2 * self.hidden) + self.hidden * (1 + self.vocab * (1 if self.tied else 2))


def _checked(config: LMConfig) -> LMConfig:
    if config.heads % config.kv_heads:
        raise ModelFileError(
            f"config.json: {config.heads} attention heads cannot share {config.kv_heads} key-value heads", _NEXT
        )
    if config.head_dim % 2:
        raise ModelFileError(f"config.json: heads are {config.head_dim} wide, rotations need an even number", _NEXT)
    if config.parameters > MAX_PARAMETERS:
        raise ModelFileError(
            f"config.json describes {config.parameters:,} parameters, the limit is {MAX_PARAMETERS:,}", _NEXT
        )
    return config


def _check_architecture(config: Mapping[str, Any]) -> None:
    kinds = config.get("architectures")
    named = kinds if isinstance(kinds, list) else ["Qwen2ForCausalLM"]
    if config.get("model_type") != "qwen2" or "Qwen2ForCausalLM" not in named:
        what = named[0] if named and named != ["Qwen2ForCausalLM"] else config.get("model_type")
        raise ModelFileError(f"config.json describes {_shown(what)}, not a Qwen2ForCausalLM", _NEXT)
    if config.get("hidden_act", "silu") != "silu":
        raise ModelFileError(f"config.json: hidden_act is {_shown(config['hidden_act'])}, must be 'silu'", _NEXT)
    kinds = config.get("layer_types")
    windows = isinstance(kinds, list) and any(kind != "full_attention" for kind in kinds)
    if _flag(config, "use_sliding_window", False) or windows:
        raise ModelFileError("config.json asks for sliding-window attention, which Spark-TTS does not use", _NEXT)


def _rope_theta(config: Mapping[str, Any]) -> float:
    """Base of the rotations: `rope_parameters` since transformers 5, `rope_theta` beside `rope_scaling` before."""
    for name in ("rope_parameters", "rope_scaling"):
        value = config.get(name)
        if value is None:
            continue
        if not isinstance(value, dict):
            raise ModelFileError(f"config.json: {name} is {_shown(value)}, must be an object", _NEXT)
        kind = value.get("rope_type", value.get("type", "default"))
        if kind != "default":
            raise ModelFileError(f"config.json: rotations are scaled ({_shown(kind)}), which is not supported", _NEXT)
        if "rope_theta" in value:
            return _real(value, "rope_theta", 1.0, 1e10)
    return _real(config, "rope_theta", 1.0, 1e10)


def _head_dim(config: Mapping[str, Any], hidden: int, heads: int) -> int:
    if config.get("head_dim") is not None:
        return _number(config, "head_dim", 2, 512)
    if hidden % heads or hidden // heads > 512:
        raise ModelFileError(f"config.json: a width of {hidden} does not divide into {heads} heads", _NEXT)
    return hidden // heads


def _number(config: Mapping[str, Any], name: str, low: int, high: int) -> int:
    value = config.get(name)
    if type(value) is not int or not low <= value <= high:
        raise ModelFileError(
            f"config.json: {name} is {_shown(value)}, must be a whole number {low:,} to {high:,}", _NEXT
        )
    return value


def _real(config: Mapping[str, Any], name: str, low: float, high: float) -> float:
    value = config.get(name)
    if type(value) not in (int, float) or not low <= value <= high:  # NaN compares false
        raise ModelFileError(f"config.json: {name} is {_shown(value)}, must be a number {low:g} to {high:g}", _NEXT)
    return float(value)


def _flag(config: Mapping[str, Any], name: str, default: bool) -> bool:
    value = config.get(name, default)
    if not isinstance(value, bool):
        raise ModelFileError(f"config.json: {name} is {_shown(value)}, must be true or false", _NEXT)
    return value


def read_json_object(path: Path, limit: int = MAX_CONFIG_BYTES) -> dict[str, Any]:
    """A JSON file that holds one object. Raises ModelFileError: missing, too large, not a file, not JSON."""
    try:
        status = path.stat()
        if not stat.S_ISREG(status.st_mode) or status.st_size > limit:
            raise ModelFileError(f"{shown(path.name)} is not a regular file of at most {limit:,} bytes", _NEXT)
        value = json.loads(path.read_bytes())
    except OSError as problem:
        raise ModelFileError(
            f"cannot read {shown(path.name)} in {shown(path.parent.name)}: {problem.strerror}", _NEXT
        ) from None
    except (ValueError, RecursionError):  # not JSON, not text, a NUL in the path, a 5000-digit number, nested too deep
        raise ModelFileError(
            f"{shown(path.name)} in {shown(path.parent.name)} is not JSON (a web page or an LFS pointer?)",
            "Download it again.",
        ) from None
    if not isinstance(value, dict):
        raise ModelFileError(f"{shown(path.name)} in {shown(path.parent.name)} holds no JSON object", _NEXT)
    return value


def _shown(value: Any) -> str:
    """A value from a file, short enough for a message (and never the decimal digits of a giant integer)."""
    if isinstance(value, int) and value.bit_length() > 100:
        return f"an integer of {value.bit_length()} bits"
    if isinstance(value, list | dict):
        return f"a {type(value).__name__} of {len(value)} items"
    if isinstance(value, float) and not math.isfinite(value):
        return "not a finite number"
    return repr(value)[:60] if value is not None else "missing"
