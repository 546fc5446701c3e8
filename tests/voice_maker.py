"""Tiny random voices of every layout that exists, for tests: the same file format and network, a thousandth the size.

    weights, document = voice_parts(VoiceRecipe(version="v1", rate=48_000, has_f0=False))
    save_parts(path, weights, document)        # a .pth as a stranger would have made it
    voice = make_voice(VoiceRecipe(seed=3))    # the checked VoiceCheckpoint
"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch

from rvc_spark.infer.checkpoint import VoiceCheckpoint, make_checkpoint
from rvc_spark.infer.voice_layout import HIFIGAN, MRF, Traits, expected_tensors, parse_config
from rvc_spark.infer.voice_weights import fold

CONTENT_WIDTH = {"v1": 256, "v2": 768}
CLASSIC, PARAMETRIZED, FOLDED = "classic", "parametrized", "folded"
SPELLINGS = (CLASSIC, PARAMETRIZED, FOLDED)

# (rate, version) -> up-sampling rates and kernels of the community layouts
UPSAMPLING = {
    (24_000, "v1"): ([10, 6, 2, 2], [20, 12, 4, 4]),
    (24_000, "v2"): ([10, 6, 2, 2], [20, 12, 4, 4]),
    (32_000, "v1"): ([10, 4, 2, 2, 2], [16, 16, 4, 4, 4]),
    (32_000, "v2"): ([10, 8, 2, 2], [20, 16, 4, 4]),
    (40_000, "v1"): ([10, 10, 2, 2], [16, 16, 4, 4]),
    (40_000, "v2"): ([10, 10, 2, 2], [16, 16, 4, 4]),
    (48_000, "v1"): ([10, 6, 2, 2, 2], [16, 16, 4, 4, 4]),
    (48_000, "v2"): ([12, 10, 2, 2], [24, 20, 4, 4]),
    (44_100, "v2"): ([7, 7, 3, 3], [14, 14, 6, 6]),  # odd rates, as some Applio layouts
}
LABELS = {24_000: "24k", 32_000: "32k", 40_000: "40k", 44_100: 44_100, 48_000: "48k"}


@dataclass(frozen=True)
class VoiceRecipe:
    """What to make. `config_items` 19 is the layout of the "rvc-webui" fork; `changes` overwrite config items."""

    version: str = "v2"
    rate: int = 40_000
    has_f0: bool = True
    speakers: int = 2
    spelling: str = CLASSIC
    vocoder: str = HIFIGAN
    resblock: str = "1"
    config_items: int = 18
    dtype: torch.dtype = torch.float16
    seed: int = 0
    changes: dict[int, Any] = field(default_factory=dict)


def config_of(recipe: VoiceRecipe) -> list[Any]:
    """The `config` list of a tiny voice: 8 latent channels, 12 hidden, one layer."""
    rates, kernels = UPSAMPLING[recipe.rate, recipe.version]
    bins = 513 if recipe.rate <= 32_000 else 1025
    dilations = [[1, 3, 5]] * 2 if recipe.resblock == "1" else [[1, 3]] * 2
    config = [bins, 32, 8, 12, 16, 2, 2, 3, 0, recipe.resblock, [3, 5], dilations, rates, 32, kernels, 109, 6]
    config += [CONTENT_WIDTH[recipe.version]] if recipe.config_items == 19 else []
    config.append(recipe.rate)
    for item, value in recipe.changes.items():
        config[item] = value
    return config


def voice_parts(recipe: VoiceRecipe = VoiceRecipe()) -> tuple[dict[str, torch.Tensor], dict[str, Any]]:  # noqa: B008
    """(tensors by name, every other item) of a voice file."""
    config = config_of(recipe)
    traits = Traits(CONTENT_WIDTH[recipe.version], recipe.speakers, recipe.has_f0, recipe.vocoder)
    layout = expected_tensors(parse_config(config, traits))
    random = np.random.default_rng(recipe.seed)

    def draw(shape: tuple[int, ...], scale: float, centre: float = 0.0) -> torch.Tensor:
        return torch.from_numpy(centre + scale * random.standard_normal(shape)).to(recipe.dtype)

    weights: dict[str, torch.Tensor] = {}
    for weight in layout.weights:
        fan = max(int(np.prod(weight.shape[1:])), 1)
        if not weight.normed:
            weights[f"{weight.module}.weight"] = draw(weight.shape, fan**-0.5)
            continue
        gain, direction = draw(weight.gain_shape, 0.1, 1.0).abs(), draw(weight.shape, 1.0)
        if recipe.spelling == FOLDED:
            weights[f"{weight.module}.weight"] = fold(gain, direction).to(recipe.dtype)
        elif recipe.spelling == PARAMETRIZED:
            weights[f"{weight.module}.parametrizations.weight.original0"] = gain
            weights[f"{weight.module}.parametrizations.weight.original1"] = direction
        else:
            weights[f"{weight.module}.weight_g"], weights[f"{weight.module}.weight_v"] = gain, direction
    for name, shape in layout.others.items():
        weights[name] = draw(shape, 0.05, 1.0 if name.endswith("gamma") else 0.0)
    document: dict[str, Any] = {
        "config": config,
        "info": "3epoch",
        "sr": LABELS[recipe.rate],
        "f0": int(recipe.has_f0),
        "version": recipe.version,
    }
    if recipe.vocoder == MRF:
        document["vocoder"] = MRF
    return weights, document


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
