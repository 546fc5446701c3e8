"""A content encoder and an RMVPE network with random weights in their published formats, of any size.

    write_encoder(folder)                       HuBERT-base: config.json and pytorch_model.bin, as RVC publishes it
    torch.save(rmvpe_weights(RMVPESizes()), path)  the 181 MB of rmvpe.pt

Random weights cost what real ones cost. Refuses to know voices.
"""

from __future__ import annotations

import json
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from rvc_spark.infer.fairseq import transformers_name
from rvc_spark.infer.rmvpe_net import RMVPENetwork, RMVPESizes

KERNELS, STRIDES = (10, 3, 3, 3, 3, 2, 2), (5, 2, 2, 2, 2, 2, 2)


@dataclass(frozen=True)
class EncoderRecipe:
    """Sizes of a content encoder; the defaults are HuBERT-base's (94 million numbers)."""

    channels: int = 512
    hidden: int = 768
    heads: int = 12
    inner: int = 3072
    layers: int = 12
    projection: int = 256
    position: int = 128  # kernel of the positional convolution
    groups: int = 16


def fairseq_weights(recipe: EncoderRecipe, seed: int = 3) -> dict[str, torch.Tensor]:
    """Random float16-exact weights under fairseq's names."""
    channels, hidden, projection = recipe.channels, recipe.hidden, recipe.projection
    shapes: dict[str, tuple[int, ...]] = {"mask_emb": (hidden,), "label_embs_concat": (20, projection)}
    for i, kernel in enumerate(KERNELS):
        shapes[f"feature_extractor.conv_layers.{i}.0.weight"] = (channels, channels if i else 1, kernel)
    shapes |= _affine("feature_extractor.conv_layers.0.2", (channels,)) | _affine("layer_norm", (channels,))
    shapes |= _affine("post_extract_proj", (hidden, channels)) | _affine("encoder.layer_norm", (hidden,))
    shapes |= {
        "encoder.pos_conv.0.bias": (hidden,),
        "encoder.pos_conv.0.weight_g": (1, 1, recipe.position),
        "encoder.pos_conv.0.weight_v": (hidden, hidden // recipe.groups, recipe.position),
    }
    for layer in range(recipe.layers):
        start = f"encoder.layers.{layer}."
        for part in ("k", "v", "q", "out"):
            shapes |= _affine(f"{start}self_attn.{part}_proj", (hidden, hidden))
        shapes |= _affine(start + "self_attn_layer_norm", (hidden,)) | _affine(start + "fc1", (recipe.inner, hidden))
        shapes |= _affine(start + "fc2", (hidden, recipe.inner)) | _affine(start + "final_layer_norm", (hidden,))
    shapes |= _affine("final_proj", (projection, hidden))
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


def encoder_config(recipe: EncoderRecipe) -> dict[str, Any]:
    """config.json of the folder."""
    return {
        "model_type": "hubert",
        "conv_dim": [recipe.channels] * len(KERNELS),
        "conv_kernel": list(KERNELS),
        "conv_stride": list(STRIDES),
        "hidden_size": recipe.hidden,
        "num_attention_heads": recipe.heads,
        "intermediate_size": recipe.inner,
        "num_hidden_layers": recipe.layers,
        "num_conv_pos_embeddings": recipe.position,
        "num_conv_pos_embedding_groups": recipe.groups,
    }


def write_encoder(folder: Path, recipe: EncoderRecipe | None = None, seed: int = 3) -> Path:
    """A HuggingFace folder as RVC publishes it; config.json comes last, so a folder that has one is whole."""
    recipe = recipe or EncoderRecipe()
    folder.mkdir(parents=True, exist_ok=True)
    weights = {}
    for name, tensor in fairseq_weights(recipe, seed).items():
        renamed = transformers_name(name)
        if renamed is not None:
            weights[renamed] = tensor
    write_tensors(folder / "pytorch_model.bin", weights)
    sizes = {"classifier_proj_size": recipe.projection, "mask_time_prob": 0.05}
    temporary = folder / "config.json.part"
    temporary.write_text(json.dumps(encoder_config(recipe) | sizes), encoding="utf-8")
    os.replace(temporary, folder / "config.json")
    return folder


def rmvpe_weights(sizes: RMVPESizes, seed: int = 5) -> dict[str, torch.Tensor]:
    """A state dict as in rmvpe.pt, lively enough that frames differ."""
    generator = torch.Generator().manual_seed(seed)
    weights = {}
    for name, tensor in RMVPENetwork(sizes).state_dict().items():
        if name.endswith("num_batches_tracked"):
            weights[name] = tensor
        elif name.endswith("running_var"):
            weights[name] = 1 + torch.rand(tensor.shape, generator=generator)
        else:
            fan = max(tensor.numel() // max(len(tensor), 1), 1)
            spread = 0.2 if "gru" in name else 1.5  # a saturated GRU would hold its first state for ever
            weights[name] = torch.randn(tensor.shape, generator=generator) * (spread / fan**0.5)
    return weights


def write_tensors(path: Path, weights: dict[str, torch.Tensor]) -> Path:
    """A flat state dict as torch.save writes it; it appears whole."""
    temporary = path.with_name(path.name + ".part")
    torch.save(weights, temporary)
    os.replace(temporary, path)
    return path
