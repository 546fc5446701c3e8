"""Voices with random weights in the community's file layout, of any size and every layout that exists.

    write_voice(path, VoiceRecipe(sizes=FULL, speakers=109))  27.5 million numbers: costs what a real voice costs
    make_checkpoint(*voice_parts(VoiceRecipe(version="v1")))  a thousandth of that, for tests

What comes out is no voice, but it is read, checked, loaded and run like one. Refuses to know other networks.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch

from rvc_spark.infer.checkpoint import make_checkpoint, write_checkpoint
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
class VoiceSizes:
    """Widths of the network; the defaults are those of every published voice."""

    inter: int = 192  # channels of the latent
    hidden: int = 192
    filters: int = 768
    layers: int = 6
    kernels: tuple[int, ...] = (3, 7, 11)  # of the residual branches
    channels: int = 512  # before the first up-convolution
    conditions: int = 256  # width of a speaker


FULL = VoiceSizes()
TINY = VoiceSizes(inter=8, hidden=12, filters=16, layers=2, kernels=(3, 5), channels=32, conditions=6)


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
    sizes: VoiceSizes = TINY


def config_of(recipe: VoiceRecipe) -> list[Any]:
    """The `config` list of a voice file."""
    rates, kernels = UPSAMPLING[recipe.rate, recipe.version]
    sizes = recipe.sizes
    bins = 513 if recipe.rate <= 32_000 else 1025
    dilations = [[1, 3, 5] if recipe.resblock == "1" else [1, 3] for _ in sizes.kernels]
    config = [bins, 32, sizes.inter, sizes.hidden, sizes.filters, 2, sizes.layers, 3, 0, recipe.resblock]
    config += [list(sizes.kernels), dilations, rates, sizes.channels, kernels, 109, sizes.conditions]
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


def write_voice(path: Path, recipe: VoiceRecipe) -> Path:
    """A voice file (.pth); it appears whole. Raises OutputError."""
    return write_checkpoint(path, make_checkpoint(*voice_parts(recipe)))
