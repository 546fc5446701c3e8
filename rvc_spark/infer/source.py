"""The harmonic source of a voice with pitch, and where the synthesizer's random numbers come from.

    f0 (one value per 10 ms frame) --held--> phase --sin--> 0.1 * sine + noise --linear, tanh--> excitation [B, 1, N]

    phi[n] = sum_{k<=n} f0[frame(k)] / rate   (mod 1; sample 0 already carries one step)

Summed as float32 this phase drifts audibly within minutes, so it is kept per frame in float64, modulo one cycle: the
phase at the start of each frame by a cumulative sum over frames, inside a frame by a ramp. That also lets any stretch
of frames be made alone, from the phase where it starts, and join its neighbours without a seam.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor, nn

SINE_AMPLITUDE = 0.1
VOICED_NOISE = 0.003  # standard deviation of the noise under a sine
UNVOICED_NOISE = SINE_AMPLITUDE / 3
GOLDEN_RATIO = (math.sqrt(5) - 1) / 2


# --- random numbers --------------------------------------------------------------------------------------------------


class Noise(Protocol):
    """Where `Synthesizer.infer` draws from, in this order: latent, then start phase, then source."""

    def latent(self, like: Tensor) -> Tensor:
        """Normal noise of the shape, type and device of `like` [B, C, T]."""
        ...

    def phase(self, like: Tensor) -> Tensor:
        """Start phase in cycles, uniform in 0..1, for `like` float32 [B, H]; the fundamental's is not used."""
        ...

    def source(self, like: Tensor) -> Tensor:
        """Normal noise for `like` float32 [B, N, H]; [B, N, 1] is taken as one draw for the sum of the harmonics."""
        ...


class TorchNoise:
    """True random numbers. Without a generator the device's global one is used, call by call as in the reference."""

    def __init__(self, generator: torch.Generator | None = None) -> None:
        self._generator = generator

    def latent(self, like: Tensor) -> Tensor:
        return torch.randn(like.shape, dtype=like.dtype, device=like.device, generator=self._generator)

    def phase(self, like: Tensor) -> Tensor:
        return torch.rand(like.shape, dtype=like.dtype, device=like.device, generator=self._generator)

    def source(self, like: Tensor) -> Tensor:
        return torch.randn(like.shape, dtype=like.dtype, device=like.device, generator=self._generator)


class ZeroNoise:
    """No randomness at all: the deterministic skeleton of a voice."""

    def latent(self, like: Tensor) -> Tensor:
        return torch.zeros_like(like)

    def phase(self, like: Tensor) -> Tensor:
        return torch.zeros_like(like)

    def source(self, like: Tensor) -> Tensor:
        return torch.zeros_like(like)


@dataclass(frozen=True)
class GivenNoise:
    """Recorded noise: latent [B, C, T], source [B, N, H], phase [B, H]; a part left out is zero."""

    latent_noise: Tensor
    source_noise: Tensor | None = None
    phase_noise: Tensor | None = None

    def latent(self, like: Tensor) -> Tensor:
        return self.latent_noise.to(like)

    def phase(self, like: Tensor) -> Tensor:
        return torch.zeros_like(like) if self.phase_noise is None else self.phase_noise.to(like)

    def source(self, like: Tensor) -> Tensor:
        return torch.zeros_like(like) if self.source_noise is None else self.source_noise.to(like)


@dataclass(frozen=True)
class WindowNoise:
    """The noise of one stretch of frames, for `Synthesizer.window`.

    Attributes:
        latent: [1, C, T].
        source: [1, T * samples_per_frame, 1 or H], None for a voice without pitch.
        phase: start phase of each harmonic in cycles, [1, H]. None spreads those of the overtones evenly, so that they
            do not all peak together; the fundamental's is 0 in any case.
    """

    latent: Tensor
    source: Tensor | None = None
    phase: Tensor | None = None


def spread_phase(harmonics: int) -> Tensor:
    """Start phases in cycles, float32 [1, H], as unlike one another as a fixed set can be (multiples of 0.618...)."""
    return torch.arange(harmonics, dtype=torch.float64).mul(GOLDEN_RATIO).remainder(1)[None].float()


# --- the source ------------------------------------------------------------------------------------------------------


def frame_phase(f0: Tensor, seconds_per_frame: float, start_phase: float | Tensor = 0.0) -> Tensor:
    """Phase of the fundamental at the start of each frame and at the end of the last.

    Args:
        f0: Hz, float [B, T].
        start_phase: cycles at the start of frame 0, of all or float64 [B, 1].

    Returns:
        Cycles in 0..1, float64 [B, T + 1].
    """
    turns = _exact(f0) * seconds_per_frame
    passed = torch.cumsum(torch.nn.functional.pad(turns, (1, 0)), dim=1)
    if isinstance(start_phase, Tensor):
        start_phase = start_phase.to(passed.device)
    return (passed + start_phase).remainder(1)


def _exact(x: Tensor) -> Tensor:
    """As float64, on the CPU where the device has none (Apple's GPUs)."""
    return x.cpu().double() if x.device.type == "mps" else x.double()


def sines(f0: Tensor, start: Tensor, rate: int, samples_per_frame: int, phase: Tensor) -> Tensor:
    """Sines of amplitude 0.1 at f0 and its overtones, silent where f0 is 0.

    Args:
        f0: Hz, float32 [B, T]; held across each frame.
        start: cycles of the fundamental at the start of each frame, float64 [B, T].
        phase: start phase of each harmonic in cycles, [B, H].

    Returns:
        float32 [B, T * samples_per_frame, H].
    """
    step = torch.arange(1, samples_per_frame + 1, dtype=torch.float64, device=start.device)
    turns = start[:, :, None] + _exact(f0)[:, :, None] / rate * step
    turns = turns.remainder(1).flatten(1)
    harmonic = torch.arange(1, phase.shape[1] + 1, dtype=torch.float64, device=start.device)
    cycles = (turns[:, :, None] * harmonic + _exact(phase).to(turns)[:, None]).remainder(1)
    wave = torch.sin(cycles.float().to(f0.device) * (2 * math.pi)) * SINE_AMPLITUDE
    return wave * voiced(f0, samples_per_frame)


def voiced(f0: Tensor, samples_per_frame: int) -> Tensor:
    """1 where f0 > 0 and 0 elsewhere, float32 [B, T * samples_per_frame, 1]."""
    return (f0 > 0).float().repeat_interleave(samples_per_frame, dim=1)[:, :, None]


@dataclass(frozen=True)
class Excitation:
    """What the source needs for a stretch of frames.

    Attributes:
        f0: Hz, float32 [B, T].
        start: cycles of the fundamental at the start of each frame, float64 [B, T].
        phase: start phase of each harmonic, cycles, [B, H]; the first column is ignored.
        noise: [B, T * samples_per_frame, H or 1], standard normal.
    """

    f0: Tensor
    start: Tensor
    phase: Tensor
    noise: Tensor


class HarmonicSource(nn.Module):
    """Sine and noise, merged by one linear layer and tanh.

    Args:
        rate: output rate in Hz.
        samples_per_frame: output samples per frame of f0.
        harmonics: 1, or 9 for Applio's MRF vocoder.
    """

    def __init__(self, rate: int, samples_per_frame: int, harmonics: int) -> None:
        super().__init__()
        self.rate = rate
        self.samples_per_frame = samples_per_frame
        self.harmonics = harmonics
        self.l_linear = nn.Linear(harmonics, 1)

    @property
    def seconds_per_frame(self) -> float:
        return self.samples_per_frame / self.rate

    def forward(self, excitation: Excitation) -> Tensor:
        """The excitation, [B, 1, T * samples_per_frame] in the type of the linear layer; float32 up to there."""
        f0 = excitation.f0.float()
        phase = excitation.phase.clone()
        phase[:, 0] = 0
        wave = sines(f0, excitation.start, self.rate, self.samples_per_frame, phase)
        tone = voiced(f0, self.samples_per_frame)
        noise = (VOICED_NOISE * tone + UNVOICED_NOISE * (1 - tone)) * excitation.noise.float()
        weight = self.l_linear.weight
        if noise.shape[2] == self.harmonics:
            return torch.tanh(self.l_linear((wave + noise).to(weight.dtype))).transpose(1, 2)
        # One draw for all harmonics: the sum of independent draws with weights w is one draw times |w|.
        return torch.tanh(self.l_linear(wave.to(weight.dtype)) + noise.to(weight.dtype) * weight.norm()).transpose(1, 2)
