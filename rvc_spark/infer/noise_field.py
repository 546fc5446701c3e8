"""Where the random numbers of a conversion come from.

The synthesizer draws two kinds of noise: one on the latent, one in the harmonic source. `NoiseField` ties every number
to its place in the recording instead of to the order of calls, so a part, its overlapping neighbour and a stream of
small blocks all hear the same noise, on every device. `CallOrderNoise` draws as the reference does, for conformance.
"""

from __future__ import annotations

from typing import Protocol

import numpy as np
import torch

from rvc_spark.infer.source import WindowNoise

BLOCK = 64  # frames whose noise is drawn together
LATENT, SOURCE = 0, 1  # the two kinds; part of the seed


class PartNoise(Protocol):
    """Anything that can give the noise of a part of a recording."""

    def draw(self, channels: int, start: int, frames: int, samples_per_frame: int) -> WindowNoise:
        """Noise for `frames` frames from frame `start`: latent [1, channels, frames], source [1, frames * spf, 1].

        `samples_per_frame` 0 means a voice without harmonic source.
        """
        ...


class NoiseField:
    """Noise that depends on nothing but the seed and the place. Frames may be negative (the mirrored run-in)."""

    def __init__(self, seed: int) -> None:
        self._seed = seed

    def _block(self, kind: int, number: int, shape: tuple[int, ...]) -> torch.Tensor:
        # SeedSequence mixes its entropy words; negative block numbers are folded to odd, others to even.
        folded = 2 * number if number >= 0 else -2 * number - 1
        state = np.random.SeedSequence([self._seed, kind, folded]).generate_state(2, np.uint32)
        generator = torch.Generator().manual_seed(int(state[0]) << 31 ^ int(state[1]))
        return torch.randn(shape, generator=generator)

    def _range(self, kind: int, width: int, start: int, frames: int) -> torch.Tensor:
        first, last = start // BLOCK, (start + frames - 1) // BLOCK
        blocks = [self._block(kind, number, (BLOCK, width)) for number in range(first, last + 1)]
        offset = start - first * BLOCK
        return torch.cat(blocks)[offset : offset + frames]

    def draw(self, channels: int, start: int, frames: int, samples_per_frame: int) -> WindowNoise:
        latent = self._range(LATENT, channels, start, frames).T.contiguous()[None]
        if not samples_per_frame:
            return WindowNoise(latent, None)
        return WindowNoise(latent, self._range(SOURCE, samples_per_frame, start, frames).reshape(1, -1, 1))


class CallOrderNoise:
    """Draws from torch's global generator in the order of the reference, part after part."""

    def draw(self, channels: int, start: int, frames: int, samples_per_frame: int) -> WindowNoise:
        latent = torch.randn(1, channels, frames)
        if not samples_per_frame:
            return WindowNoise(latent, None)
        torch.rand(1, 1)  # the reference draws a start phase and then zeroes it; it still advances the generator
        return WindowNoise(latent, torch.randn(1, frames * samples_per_frame, 1))


class NoNoise:
    """Zeros wherever the reference draws: the deterministic skeleton of a conversion."""

    def draw(self, channels: int, start: int, frames: int, samples_per_frame: int) -> WindowNoise:
        latent = torch.zeros(1, channels, frames)
        source = torch.zeros(1, frames * samples_per_frame, 1) if samples_per_frame else None
        return WindowNoise(latent, source)
