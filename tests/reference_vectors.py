"""Full-size networks with weights every machine can make alike, and a few numbers the reference computes with them.

Each weight is drawn from a generator seeded with the checksum of its name, so no weight file is needed.
"""

from __future__ import annotations

import math
import zlib

import numpy as np
import torch

from rvc_spark.infer.checkpoint import make_checkpoint
from rvc_spark.infer.synthesizer import Synthesizer, load_synthesizer
from rvc_spark.infer.voice_layout import HIFIGAN, MRF, Traits, expected_tensors, parse_config

BODY = [32, 192, 192, 768, 2, 6, 3, 0, "1", [3, 7, 11], [[1, 3, 5]] * 3]
VOICES = {
    "v2 f0 40k": ([1025, *BODY, [10, 10, 2, 2], 512, [16, 16, 4, 4], 109, 256, 40_000], Traits(768, 3, True, HIFIGAN)),
    "v1 no f0 32k": (
        [513, *BODY, [10, 4, 2, 2, 2], 512, [16, 16, 4, 4, 4], 109, 256, 32_000],
        Traits(256, 3, False, HIFIGAN),
    ),
    "mrf 48k": ([1025, *BODY, [12, 10, 2, 2], 512, [24, 20, 4, 4], 109, 256, 48_000], Traits(768, 1, True, MRF)),
}


def normal(seed: int, shape: tuple[int, ...]) -> torch.Tensor:
    """float32 standard normal numbers that do not change between versions of numpy."""
    return torch.from_numpy(np.random.RandomState(seed).standard_normal(shape).astype(np.float32))


def recipe_weight(name: str, shape: tuple[int, ...]) -> torch.Tensor:
    """The weight of that name."""
    drawn = np.random.RandomState(zlib.crc32(name.encode())).standard_normal(shape)
    if name.endswith("weight_g"):
        drawn = np.abs(1 + 0.1 * drawn)
    elif name.endswith("weight_v"):
        pass
    elif len(shape) >= 2:
        drawn = drawn / math.sqrt(drawn.size / shape[0])
    elif name.endswith(("weight", "gamma")):
        drawn = 1 + 0.1 * drawn
    else:
        drawn = 0.02 * drawn
    return torch.from_numpy(drawn.astype(np.float32))


def recipe_voice(name: str) -> Synthesizer:
    """One of VOICES, loaded."""
    config, traits = VOICES[name]
    layout = expected_tensors(parse_config(config, traits))
    shapes = dict(layout.others)
    for weight in layout.weights:
        if weight.normed:
            shapes[f"{weight.module}.weight_g"] = weight.gain_shape
            shapes[f"{weight.module}.weight_v"] = weight.shape
        else:
            shapes[f"{weight.module}.weight"] = weight.shape
    weights = {key: recipe_weight(key, shape) for key, shape in shapes.items()}
    version = "v1" if traits.content_dim == 256 else "v2"
    return load_synthesizer(make_checkpoint(weights, {"config": config, "version": version, "f0": int(traits.has_f0)}))


def rising_pitch() -> tuple[torch.Tensor, torch.Tensor]:
    """Coarse pitch int64 [1, 60] and f0 float32 [1, 60] of an octave upwards with a gap."""
    f0 = 220 * 2 ** (np.arange(60) / 60)
    f0[20:28] = 0
    mel, low, high = (1127 * np.log1p(hertz / 700) for hertz in (f0, 50, 1100))
    code = np.rint(np.clip((mel - low) * 254 / (high - low) + 1, 1, 255)).astype(np.int64)
    return torch.from_numpy(code)[None], torch.from_numpy(f0.astype(np.float32))[None]
