"""Networks of random weights, regenerated from a seed: the models of the set that are too large to be stored.

`numpy.random.RandomState.random_sample` is frozen by numpy's compatibility policy and uses no libm, so a recipe gives
the same bytes everywhere; the hash in the recipe proves it.
"""

from __future__ import annotations

import hashlib
from typing import Any

import numpy as np
import torch


def regenerate(name: str, recipe: dict[str, Any]) -> dict[str, torch.Tensor]:
    """All tensors of a recipe as float32 holding float16-exact values (counters as int64), in recipe order.

    Raises:
        ValueError: the recipe's rounding is unknown, or the drawn numbers do not have the recipe's hash.
    """
    if recipe["round"] != "float16":
        raise ValueError(f"recipe {name} rounds to {recipe['round']}, only float16 is defined")
    random = np.random.RandomState(recipe["seed"])
    digest = hashlib.sha256()
    tensors: dict[str, torch.Tensor] = {}
    for key, shape, spread, centre in recipe["tensors"]:
        if spread is None:
            tensors[key] = torch.full(shape, int(centre), dtype=torch.int64)
            continue
        uniform = random.random_sample(int(np.prod(shape, dtype=np.int64)))
        half = (centre + spread * (2 * uniform - 1)).astype(np.float32).astype("<f2")
        digest.update(half.tobytes())
        tensors[key] = torch.from_numpy(half.astype(np.float32).reshape(shape))
    if digest.hexdigest() != recipe["sha256_fp16_le"]:
        raise ValueError(f"recipe {name} regenerated to hash {digest.hexdigest()}, not {recipe['sha256_fp16_le']}")
    return tensors


def as_voice(recipe: dict[str, Any], tensors: dict[str, torch.Tensor]) -> dict[str, Any]:
    """A recipe voice in the community `.pth` layout, ready for torch.save."""
    return {
        "weight": {key: value.half() for key, value in tensors.items()},
        "config": recipe["config"],
        "info": "recipe",
        "sr": recipe["sr_tag"],
        "f0": recipe["f0"],
        "version": recipe["version"],
    }


def as_fairseq(recipe: dict[str, Any], tensors: dict[str, torch.Tensor]) -> dict[str, Any]:
    """A recipe content encoder in the layout of a fairseq checkpoint; heads cannot be told from the tensors."""
    settings = {"model": {"encoder_attention_heads": recipe["config"]["heads"]}}
    return {"args": None, "cfg": settings, "model": {key: value.half() for key, value in tensors.items()}}


def as_rmvpe(tensors: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """A recipe pitch network as the flat state dict that rmvpe.pt is."""
    return dict(tensors)
