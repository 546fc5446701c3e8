"""The language model's tensors: names, shapes and types judged from the files' headers before a number is read.

One `model.safetensors`, or several named by `model.safetensors.index.json`. `Weights.take` hands tensors out one at a
time, converted and found finite, and forgets them, so that a file of 2 GB never lies in the memory twice. Refuses to
know the network.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from rvc_spark.errors import ModelFileError
from rvc_spark.safe_load import TensorNote, open_tensors, shown
from rvc_spark.tts.spark_lm_config import LMConfig, read_json_object

MAX_WEIGHT_BYTES = 16 * 1024**3
MAX_INDEX_BYTES = 4 * 1024**2
MAX_SHARDS = 64
EMBEDDING, HEAD = "model.embed_tokens.weight", "lm_head.weight"
_SINGLE, _INDEX = "model.safetensors", "model.safetensors.index.json"
_NEXT = "Download the checkpoint's LLM folder again."


def expected_shapes(config: LMConfig) -> dict[str, tuple[int, ...]]:
    """Name -> shape of every tensor of a Qwen2ForCausalLM with these sizes."""
    hidden, inner = config.hidden, config.inner
    queries, keys = config.heads * config.head_dim, config.kv_heads * config.head_dim
    layer: dict[str, tuple[int, ...]] = {
        "input_layernorm.weight": (hidden,),
        "post_attention_layernorm.weight": (hidden,),
        "self_attn.o_proj.weight": (hidden, queries),
        "mlp.gate_proj.weight": (inner, hidden),
        "mlp.up_proj.weight": (inner, hidden),
        "mlp.down_proj.weight": (hidden, inner),
    }
    for part, width in (("q", queries), ("k", keys), ("v", keys)):
        layer |= {f"self_attn.{part}_proj.weight": (width, hidden), f"self_attn.{part}_proj.bias": (width,)}
    shapes: dict[str, tuple[int, ...]] = {EMBEDDING: (config.vocab, hidden), "model.norm.weight": (hidden,)}
    if not config.tied:
        shapes[HEAD] = (config.vocab, hidden)
    for number in range(config.layers):
        shapes |= {f"model.layers.{number}.{name}": shape for name, shape in layer.items()}
    return shapes


class Weights:
    """All tensors of a folder, each handed out once.

    Args:
        folder: of the language model.
        config: its sizes, which the files must match in every name and shape.
        dtype: what `take` converts to.

    Raises:
        ModelFileError: a file is missing, damaged or hostile; a tensor is missing, unknown or of the wrong shape.
    """

    def __init__(self, folder: Path, config: LMConfig, dtype: torch.dtype) -> None:
        self._dtype = dtype
        self._name = shown(folder.name)
        shards = _shards(folder)
        notes: dict[str, TensorNote] = {}
        for name, wanted in shards.items():
            notes |= _outline(folder / name, wanted)
        _check_outline(notes, config)
        self._tensors: dict[str, Tensor] = {}
        for name in shards:
            with _open(folder / name) as file:
                self._tensors |= file.load()
        if config.tied and HEAD in self._tensors:
            self._check_tie()

    def take(self, *names: str) -> Tensor:
        """The named tensors stacked along their first axis, converted, on the CPU; they are forgotten here.

        Raises:
            ModelFileError: a number is not finite, in the file or once converted.
        """
        parts = []
        for name in names:
            tensor = self._tensors.pop(name).to(self._dtype)
            low, high = torch.aminmax(tensor)  # either is NaN when anything is
            if not (torch.isfinite(low) and torch.isfinite(high)):
                raise ModelFileError(f"{self._name} is refused: {name} has numbers that are not finite", _NEXT)
            parts.append(tensor)
        return torch.cat(parts) if len(parts) > 1 else parts[0]

    def _check_tie(self) -> None:
        if not torch.equal(self._tensors.pop(HEAD), self._tensors[EMBEDDING]):
            raise ModelFileError(
                f"{self._name} is refused: {HEAD} differs from the embedding that config.json says it is tied to", _NEXT
            )


def _open(path: Path) -> Any:
    return open_tensors(path, max_bytes=MAX_WEIGHT_BYTES, what="language model", error=ModelFileError)


def _shards(folder: Path) -> dict[str, set[str] | None]:
    """File name -> names of the tensors the index says are in it; None where there is no index."""
    if (folder / _SINGLE).exists() or not (folder / _INDEX).exists():
        return {_SINGLE: None}
    where = read_json_object(folder / _INDEX, MAX_INDEX_BYTES).get("weight_map")
    if not isinstance(where, dict) or not where:
        raise ModelFileError(f"{_INDEX} in {shown(folder.name)} has no weight_map", _NEXT)
    shards: dict[str, set[str] | None] = {}
    for tensor, name in where.items():
        if not isinstance(name, str) or not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]{0,120}\.safetensors", name):
            raise ModelFileError(f"{_INDEX} names the file {shown(name)}, which is not one of its folder", _NEXT)
        shards.setdefault(name, set()).add(tensor)
    if len(shards) > MAX_SHARDS:
        raise ModelFileError(f"{_INDEX} names {len(shards):,} files, the limit is {MAX_SHARDS}", _NEXT)
    return shards


def _outline(path: Path, wanted: set[str] | None) -> dict[str, TensorNote]:
    with _open(path) as file:
        notes = file.outline
        if not isinstance(notes, Mapping) or not all(isinstance(note, TensorNote) for note in notes.values()):
            file.refuse("it holds something else than named tensors", _NEXT)
        if wanted is not None and set(notes) != wanted:
            odd = sorted(map(str, set(notes) ^ wanted))[0]
            file.refuse(f"the index and the file disagree about {shown(odd)}", _NEXT)
        return dict(notes)


def _check_outline(notes: Mapping[str, TensorNote], config: LMConfig) -> None:
    expected = expected_shapes(config)
    for name in expected:
        if name not in notes:
            missing = len(expected.keys() - notes.keys())
            raise ModelFileError(
                f"the language model is refused: the tensor {name} is missing ({missing} in all)", _NEXT
            )
    allowed = expected | ({HEAD: expected[EMBEDDING]} if config.tied else {})
    for name, note in notes.items():
        shape = allowed.get(name)
        if shape is None:
            raise ModelFileError(f"the language model is refused: it has an unknown tensor {shown(name)}", _NEXT)
        if note.shape != shape:
            raise ModelFileError(
                f"the language model is refused: {name} has shape {list(note.shape)}, config.json needs {list(shape)}",
                _NEXT,
            )
        if not note.dtype.is_floating_point:
            raise ModelFileError(
                f"the language model is refused: {name} has type {note.dtype}, needs a float type", _NEXT
            )
