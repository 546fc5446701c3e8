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

KERNELS, STRIDES = (10, 3, 3, 3, 3, 2, 2), (5, 2, 2, 2, 2, 2, 2)
CHANNELS, HIDDEN, HEADS, INNER, LAYERS, PROJECTION = 8, 24, 12, 40, 10, 6
POSITION, GROUPS = 16, 4


def fairseq_weights(seed: int = 3) -> dict[str, torch.Tensor]:
    """Random float16-exact weights under fairseq's names."""
    shapes: dict[str, tuple[int, ...]] = {"mask_emb": (HIDDEN,), "label_embs_concat": (20, PROJECTION)}
    for i, kernel in enumerate(KERNELS):
        shapes[f"feature_extractor.conv_layers.{i}.0.weight"] = (CHANNELS, CHANNELS if i else 1, kernel)
    shapes |= _affine("feature_extractor.conv_layers.0.2", (CHANNELS,)) | _affine("layer_norm", (CHANNELS,))
    shapes |= _affine("post_extract_proj", (HIDDEN, CHANNELS)) | _affine("encoder.layer_norm", (HIDDEN,))
    shapes |= {
        "encoder.pos_conv.0.bias": (HIDDEN,),
        "encoder.pos_conv.0.weight_g": (1, 1, POSITION),
        "encoder.pos_conv.0.weight_v": (HIDDEN, HIDDEN // GROUPS, POSITION),
    }
    for layer in range(LAYERS):
        start = f"encoder.layers.{layer}."
        for part in ("k", "v", "q", "out"):
            shapes |= _affine(f"{start}self_attn.{part}_proj", (HIDDEN, HIDDEN))
        shapes |= _affine(start + "self_attn_layer_norm", (HIDDEN,)) | _affine(start + "fc1", (INNER, HIDDEN))
        shapes |= _affine(start + "fc2", (HIDDEN, INNER)) | _affine(start + "final_layer_norm", (HIDDEN,))
    shapes |= _affine("final_proj", (PROJECTION, HIDDEN))
    generator = torch.Generator().manual_seed(seed)
    weights = {}
    for name, shape in shapes.items():
        # matrices keep the level of what goes through them, and attention adds little of its average over time:
        # otherwise ten layers make all frames alike, and no test would hear the sound in them
        gain = 0.5 if any(part in name for part in ("v_proj", "out_proj", "fc2")) else 1.6
        spread = 0.1 if len(shape) == 1 else gain / (shape[1] * (shape[2] if len(shape) == 3 else 1)) ** 0.5
        centre = 1.0 if "norm.weight" in name or name.endswith((".2.weight", "weight_g")) else 0.0
        weights[name] = (torch.randn(shape, generator=generator) * spread + centre).half().float()
    return weights


def _affine(name: str, shape: tuple[int, ...]) -> dict[str, tuple[int, ...]]:
    return {f"{name}.weight": shape, f"{name}.bias": shape[:1]}


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
    return {
        "model_type": "hubert",
        "conv_dim": [CHANNELS] * len(KERNELS),
        "conv_kernel": list(KERNELS),
        "conv_stride": list(STRIDES),
        "hidden_size": HIDDEN,
        "num_attention_heads": HEADS,
        "intermediate_size": INNER,
        "num_hidden_layers": LAYERS,
        "num_conv_pos_embeddings": POSITION,
        "num_conv_pos_embedding_groups": GROUPS,
    } | changes


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
