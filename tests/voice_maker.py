"""Tiny random voices of every layout that exists, for tests: the same file format and network, a thousandth the size.

    weights, document = voice_parts(VoiceRecipe(version="v1", rate=48_000, has_f0=False))
    save_parts(path, weights, document)        # a .pth as a stranger would have made it
    voice = make_voice(VoiceRecipe(seed=3))    # the checked VoiceCheckpoint
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch

from rvc_spark.infer.checkpoint import VoiceCheckpoint, make_checkpoint
from rvc_spark.infer.random_voice import CONTENT_WIDTH, VoiceRecipe, voice_parts


def save_parts(path: Path, weights: Any, document: dict[str, Any], *, legacy: bool = False) -> Path:
    """torch.save of anything at all in the layout of a voice; `legacy` is the container from before torch 1.6."""
    torch.save({"weight": weights, **document}, path, _use_new_zipfile_serialization=not legacy)
    return path


def make_voice(recipe: VoiceRecipe = VoiceRecipe()) -> VoiceCheckpoint:  # noqa: B008
    """A checked voice in memory."""
    return make_checkpoint(*voice_parts(recipe))


def save_voice(path: Path, recipe: VoiceRecipe = VoiceRecipe()) -> Path:  # noqa: B008
    """A voice file."""
    return save_parts(path, *voice_parts(recipe))


def content_for(recipe: VoiceRecipe, frames: int, seed: int = 0) -> dict[str, torch.Tensor | None]:
    """Inputs of a synthesizer: phone [1, T, D], lengths [1], pitch [1, T] and pitchf [1, T] (None without pitch)."""
    random = np.random.default_rng(seed)
    phone = torch.from_numpy(random.standard_normal((1, frames, CONTENT_WIDTH[recipe.version]))).float()
    pitchf = 220 * 2 ** torch.linspace(-1, 1, frames)[None]
    pitchf[:, frames // 3 : frames // 2] = 0
    pitch = (pitchf / 5).long().clamp(1, 255)
    f0 = (pitch, pitchf) if recipe.has_f0 else (None, None)
    return {"phone": phone, "lengths": torch.tensor([frames]), "pitch": f0[0], "pitchf": f0[1]}
