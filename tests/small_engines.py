"""Engines small enough for hundreds of conversions, with the interfaces of the real ones.

The synthesizer is a real one with tiny random weights; the encoder is a fixed random projection of each 25 ms window,
which is enough because the pipeline must place sound exactly whatever the features say.
"""

from __future__ import annotations

import numpy as np
import torch

from rvc_spark.infer.pipeline import Engines
from rvc_spark.infer.pitch import PitchTracker
from rvc_spark.infer.random_voice import VoiceRecipe
from rvc_spark.infer.synthesizer import load_synthesizer
from tests.voice_maker import make_voice


class ProjectionEncoder:
    """Content features by one fixed random projection per 400-sample window, every 320 samples."""

    def __init__(self, width: int) -> None:
        self._matrix = torch.from_numpy(np.random.default_rng(5).standard_normal((400, width)).astype(np.float32) / 20)
        self.dims = {"v1": width, "v2": width}

    def features(self, samples: np.ndarray, version: str) -> torch.Tensor:
        return self.features_of_many([samples], version)

    def features_of_many(self, sounds: list[np.ndarray], version: str) -> torch.Tensor:
        windows = torch.from_numpy(np.stack(sounds).astype(np.float32)).unfold(1, 400, 320)
        return torch.tanh(windows @ self._matrix)


def steady_tracker(hertz: float = 150.0) -> PitchTracker:
    """Voiced throughout, but for 100 ms of every second."""

    def contour(samples: np.ndarray) -> np.ndarray:
        f0 = np.full(len(samples) // 160, hertz)
        f0[np.arange(len(f0)) % 100 < 10] = 0
        return f0

    return PitchTracker("steady", "for tests", contour)


def small_engines(index=None, **layout) -> Engines:
    """Engines around a tiny random voice; `layout` goes to VoiceRecipe."""
    synthesizer = load_synthesizer(make_voice(VoiceRecipe(**layout)))
    tracker = steady_tracker() if synthesizer.info.has_f0 else None
    return Engines(ProjectionEncoder(synthesizer.info.content_dim), synthesizer, tracker, index)
