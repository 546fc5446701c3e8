"""The language model of Spark-TTS: Qwen2 (arXiv:2407.10671) for inference, with a static cache of slots.

    x = embed(ids) [N, H]
    per layer:  x += o( attention( rope(qkv(norm(x))) ) )        q, k and v are one matrix
                x += down( silu(gate) * up )(norm(x))            gate and up are one matrix
    hidden = norm(x),  logits = hidden head^T                    for all ids, or only those that may be chosen

The rows of one call are either a piece of one sequence's prompt or the next token of several sequences; the network
does not care, only the attention handed to it does. The output head is a third of the weights (166,000 rows), so it
can be computed for a set of ids alone. Refuses to know sampling, requests and time.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from rvc_spark.errors import ConfigError, ModelFileError
from rvc_spark.rvc_config import Choice, has_bf16
from rvc_spark.safe_load import shown
from rvc_spark.tts.spark_lm_cache import KVCache, PromptAttention
from rvc_spark.tts.spark_lm_config import LMConfig
from rvc_spark.tts.spark_lm_linear import Linear
from rvc_spark.tts.spark_lm_weights import EMBEDDING, HEAD, Weights

MAX_HEAD_SETS = 6  # kept at once; the two of Spark-TTS (speech ids, and those of a created voice) take 29 MB each

Allowed = tuple[range | int, ...]
Attention = Callable[[int, Tensor, Tensor, Tensor], Tensor]

_DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}


@dataclass(frozen=True, eq=False)
class HeadRows:
    """The output head for some ids alone: column c of its logits is the id `ids[c]`. Compared by identity."""

    ids: Tensor  # int64 [A], ascending
    linear: Linear


@dataclass(frozen=True)
class _Layer:
    before_attention: Tensor  # weight of the norm
    qkv: Linear
    out: Linear
    before_mlp: Tensor
    gate_up: Linear
    down: Linear


class SparkLM(nn.Module):
    """A loaded language model; made by `load_lm`. Its weights are laid out for one device and type and stay there.

    Attributes:
        config: its sizes.
        device, dtype: where and in what it computes.
    """

    def __init__(self, config: LMConfig, weights: Weights, device: torch.device, dtype: torch.dtype) -> None:
        super().__init__()
        self.config, self.device, self.dtype = config, device, dtype
        self._layers = [self._laid_out(weights, f"model.layers.{number}.") for number in range(config.layers)]
        self.register_buffer("_norm", weights.take("model.norm.weight").to(device))
        self.register_buffer("_embedding", weights.take(EMBEDDING).to(device))
        head = self._embedding if config.tied else weights.take(HEAD).to(device)
        # plain, because sets of its rows are cut from it; it is the embedding too, where they are tied
        self._full = HeadRows(torch.arange(config.vocab, device=device), Linear(head, pack=False))
        self._sets: OrderedDict[Allowed, HeadRows] = OrderedDict()
        self._cos, self._sin = self._rotations(0)

    def new_cache(self, slots: int, max_length: int) -> KVCache:
        """Memory for `slots` sequences of up to `max_length` tokens; the tables of rotations grow with it."""
        cache = KVCache(self.config, slots, max_length, device=self.device, dtype=self.dtype)
        if cache.capacity > self._cos.shape[0]:
            self._cos, self._sin = self._rotations(cache.capacity)
        return cache

    def forward(self, ids: Tensor, positions: Tensor, attention: Attention) -> Tensor:
        """Run N tokens through all layers; their keys and values go where `attention` puts them.

        Args:
            ids, positions: int64 [N] on the device.
            attention: one of `spark_lm_cache`.

        Returns:
            [N, hidden] after the last norm.
        """
        heads, kv_heads, width = self.config.heads, self.config.kv_heads, self.config.head_dim
        count, turned = ids.shape[0], heads + kv_heads
        cos, sin = self._cos[positions][:, None], self._sin[positions][:, None]
        x = F.embedding(ids, self._embedding)
        for number, layer in enumerate(self._layers):
            joined = layer.qkv(self._normed(x, layer.before_attention)).view(count, turned + kv_heads, width)
            qk = joined[:, :turned]  # queries and keys turn alike, so at once
            qk = torch.addcmul(qk * cos, qk.roll(width // 2, -1), sin)
            x = x + layer.out(attention(number, qk[:, :heads], qk[:, heads:], joined[:, turned:]))
            gate, up = layer.gate_up(self._normed(x, layer.before_mlp)).chunk(2, dim=-1)
            x = x + layer.down(F.silu(gate) * up)
        return self._normed(x, self._norm)

    def prefill(self, cache: KVCache, slot: int, ids: Sequence[int], start: int = 0) -> Tensor:
        """Read a piece of a prompt, whose first token stands at position `start`, into a slot.

        Returns:
            [T, hidden] after the last norm.
        """
        tokens = torch.tensor(ids, dtype=torch.int64).to(self.device)
        positions = torch.arange(start, start + len(ids), device=self.device)
        return self(tokens, positions, PromptAttention(cache, slot, start, len(ids)))

    def logits(self, hidden: Tensor, rows: HeadRows | None = None) -> Tensor:
        """[N, hidden] -> [N, A] for the ids of `rows` (None: all of them), in the model's type."""
        return (rows or self._full).linear(hidden)

    def head(self, allowed: Allowed | None) -> HeadRows:
        """The output head for a set of ids, cut out once and kept; None is the whole one.

        Raises:
            ConfigError: an id outside the vocabulary, or no id at all.
        """
        if allowed is None:
            return self._full
        found = self._sets.get(allowed)
        if found is None:
            ids = torch.tensor(_listed(allowed, self.config.vocab), device=self.device)
            found = HeadRows(ids, Linear(self._full.linear.weight[ids]))
            self._sets[allowed] = found
            while len(self._sets) > MAX_HEAD_SETS:
                self._sets.popitem(last=False)
        self._sets.move_to_end(allowed)
        return found

    def _normed(self, x: Tensor, weight: Tensor) -> Tensor:
        return F.rms_norm(x, (self.config.hidden,), weight, self.config.epsilon)

    def _laid_out(self, weights: Weights, prefix: str) -> _Layer:
        def linear(*names: str, bias: bool = False) -> Linear:
            weight = weights.take(*(f"{prefix}{name}.weight" for name in names)).to(self.device)
            return Linear(
                weight, weights.take(*(f"{prefix}{name}.bias" for name in names)).to(self.device) if bias else None
            )

        return _Layer(
            before_attention=weights.take(f"{prefix}input_layernorm.weight").to(self.device),
            qkv=linear("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj", bias=True),
            out=linear("self_attn.o_proj"),
            before_mlp=weights.take(f"{prefix}post_attention_layernorm.weight").to(self.device),
            gate_up=linear("mlp.gate_proj", "mlp.up_proj"),
            down=linear("mlp.down_proj"),
        )

    def _rotations(self, count: int) -> tuple[Tensor, Tensor]:
        """cos and sin [count, D] of rotary embedding (arXiv:2104.09864), in float32 before the model's type.

        A head's halves (a, b) turn to (a cos - b sin, b cos + a sin), which is x cos + swap(x) (-sin, sin): the sign is
        in the table, so that swapping is a plain roll.
        """
        width = self.config.head_dim
        speeds = self.config.rope_theta ** -(torch.arange(0, width, 2, dtype=torch.float32) / width)
        angles = torch.outer(torch.arange(count, dtype=torch.float32), speeds)
        cos, sin = torch.cat((angles.cos(),) * 2, -1), torch.cat((-angles.sin(), angles.sin()), -1)
        return cos.to(self.device, self.dtype), sin.to(self.device, self.dtype)


def _listed(allowed: Allowed, vocab: int) -> list[int]:
    for part in allowed:
        ends = (part[0], part[-1]) if isinstance(part, range) and part else (part,)
        if not all(type(end) is int and 0 <= end < vocab for end in ends):
            raise ConfigError(f"allowed ids hold {str(part)[:60]}", f"Ids are whole numbers from 0 to {vocab - 1:,}.")
    ids = {number for part in allowed for number in (part if isinstance(part, range) else (part,))}
    if not ids:
        raise ConfigError("no id is allowed", "Give at least one, or None for all.")
    return sorted(ids)


def load_lm(
    folder: str | Path, *, device: str | torch.device = "cpu", dtype: torch.dtype = torch.float32
) -> SparkLM:
    """Load the `LLM` folder of a checkpoint for inference.

    Args:
        folder: with config.json and model.safetensors (or its shards and their index), of any float type.
        device: torch device to run on.
        dtype: float32, bfloat16 or float64.

    Raises:
        ModelFileError: nothing there, damaged, hostile or not this architecture; names what is wrong.
        ConfigError: float16, in which this model is known to speak garbage; see `lm_precision`.
    """
    if dtype not in (torch.float32, torch.bfloat16, torch.float64):
        raise ConfigError(
            f"the language model cannot run in {dtype}: it overflows and speaks garbage", "Use bfloat16 or float32."
        )
    folder, device = Path(folder), torch.device(device)
    try:
        if not folder.is_dir():
            raise ModelFileError(f"the language model's folder {shown(folder)} is not there", "Check the path.")
    except (OSError, ValueError) as problem:  # an over-long name or a NUL character
        raise ModelFileError(f"cannot look at {shown(folder)}: {problem}", "Check the path.") from None
    config = LMConfig.from_json(folder / "config.json")
    with torch.no_grad():
        return SparkLM(config, Weights(folder, config, dtype), device, dtype).eval()


def lm_precision(asked: str, device: str | torch.device) -> Choice:
    """fp32 or bf16 for the language model on a device, with the reason. fp16 never: it gives garbage there.

    Raises:
        ConfigError: `asked` is none of auto, exact, fast, fp32, bf16, fp16.
    """
    if asked not in ("auto", "exact", "fast", "fp16", *_DTYPES):
        raise ConfigError(
            f"the language model's precision is {asked!r}", "It must be auto, exact, fast, fp32, bf16 or fp16."
        )
    device = torch.device(device)
    native = has_bf16(str(device))
    if asked == "exact":
        return Choice("fp32", "exact, as set")
    if asked in ("auto", "fast"):
        return Choice("bf16", f"twice as fast, and {device.type} has it") if native else Choice("fp32", "no bf16 here")
    if asked == "fp16":
        why = "fp16 makes this language model speak garbage"
        return Choice("bf16", f"{why}; {device.type} has bf16") if native else Choice("fp32", f"{why}; no bf16 here")
    if asked == "bf16" and not native:
        return Choice("fp32", f"{device.type} has no bf16 arithmetic here")
    return Choice(asked, "as set")


def lm_dtype(choice: Choice) -> torch.dtype:
    """The torch type of what `lm_precision` chose."""
    return _DTYPES[choice.value]
