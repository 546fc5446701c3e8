"""A content encoder of a few kilobytes, in every form it is stored in, and pickles that attack their reader.

The weights are random with a fixed seed; the same numbers go into every form, so forms can be compared exactly.
"""

from __future__ import annotations

import io
import json
import struct
import zipfile
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file

from rvc_spark.infer import random_encoders
from rvc_spark.infer.random_encoders import EncoderRecipe, encoder_config

CHANNELS, HIDDEN, HEADS, INNER, LAYERS, PROJECTION = 8, 24, 12, 40, 10, 6
POSITION, GROUPS = 16, 4
RECIPE = EncoderRecipe(CHANNELS, HIDDEN, HEADS, INNER, LAYERS, PROJECTION, POSITION, GROUPS)


def fairseq_weights(seed: int = 3) -> dict[str, torch.Tensor]:
    """Random float16-exact weights under fairseq's names."""
    return random_encoders.fairseq_weights(RECIPE, seed)


def write_fairseq(path: Path, model: dict[str, Any] | None = None, **torch_options: Any) -> Path:
    """A fairseq checkpoint as torch.save writes it; `model` replaces the weights."""
    weights = {name: tensor.half() for name, tensor in fairseq_weights().items()} if model is None else model
    cfg = {"model": {"encoder_attention_heads": HEADS, "layer_norm_first": False}, "task": {"normalize": False}}
    optimizer = {"state": {0: {"exp_avg": torch.zeros(50)}}}
    document = {"args": None, "cfg": cfg, "model": weights, "last_optimizer_state": optimizer}
    torch.save(document, path, **torch_options)
    return path


def config(**changes: Any) -> dict[str, Any]:
    """config.json of the small encoder, with changes."""
    return encoder_config(RECIPE) | changes


def write_folder(folder: Path, weights: dict[str, torch.Tensor], *, binary: bool = False, **changes: Any) -> Path:
    """A HuggingFace folder with these weights (transformers' names); `changes` go into config.json."""
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps(config(**changes)))
    if binary:
        torch.save(weights, folder / "pytorch_model.bin")
    else:
        save_file(weights, folder / "model.safetensors")
    return folder


def torch_zip(pickle: bytes, storages: dict[str, bytes] | None = None, *, folder: str = "archive") -> bytes:
    """A zip as torch.save makes it, around a hand-written pickle."""
    content = io.BytesIO()
    with zipfile.ZipFile(content, "w") as archive:
        archive.writestr(f"{folder}/data.pkl", pickle)
        archive.writestr(f"{folder}/byteorder", "little")
        for key, data in (storages or {}).items():
            archive.writestr(f"{folder}/data/{key}", data)
    return content.getvalue()


# --- pieces of pickles -----------------------------------------------------------------------------------------------


def text(value: str) -> bytes:
    """Opcodes that push a text."""
    data = value.encode()
    return b"X" + struct.pack("<I", len(data)) + data


def whole(value: int) -> bytes:
    """Opcodes that push a whole number."""
    size = (value.bit_length() + 8) // 8
    return b"\x8a" + bytes([size]) + value.to_bytes(size, "little", signed=True)


def name(module: str, leaf: str) -> bytes:
    """Opcodes that push a class or function."""
    return f"c{module}\n{leaf}\n".encode()


def storage(count: int, key: str = "0", kind: str = "FloatStorage") -> bytes:
    """Opcodes that push a storage of torch.save."""
    return b"(" + text("storage") + name("torch", kind) + text(key) + text("cpu") + whole(count) + b"tQ"


def tensor(count: int, shape: tuple[int, ...], stride: tuple[int, ...], offset: int = 0, **kind: str) -> bytes:
    """Opcodes that push a tensor over a storage of `count` numbers."""
    sizes = b"(" + b"".join(map(whole, shape)) + b"t(" + b"".join(map(whole, stride)) + b"t"
    return (
        name("torch._utils", "_rebuild_tensor_v2") + b"(" + storage(count, **kind) + whole(offset) + sizes + b"\x89}tR"
    )


def checkpoint(*entries: tuple[str, bytes]) -> bytes:
    """A whole pickle: a dictionary with these entries, each value given as opcodes."""
    return b"\x80\x02}(" + b"".join(text(key) + value for key, value in entries) + b"u."


def model_of(*tensors: tuple[str, bytes]) -> bytes:
    """A whole pickle {"model": {name: tensor}}."""
    return checkpoint(("model", b"}(" + b"".join(text(key) + value for key, value in tensors) + b"u"))
