"""From content features at 50 per second to what the synthesizer reads at 100 per second.

Retrieval, doubling and protection in the order of the reference. Knows neither the encoder nor the synthesizer.
"""

from __future__ import annotations

from typing import Protocol

import torch

PROTECT_OFF = 0.5  # at this value, as in every RVC program, protection does nothing
VOICED_FLOOR = 1.0  # Hz; below it a frame counts as unvoiced


class Retrieval(Protocol):
    """What `index.RetrievalIndex` and `index_device.DeviceIndex` are to a conversion."""

    def blended(self, features: torch.Tensor, rate: float, k: int = 8) -> torch.Tensor:
        """Features [T, D], `rate` of them replaced by what the k nearest stored vectors say."""
        ...


def double_frames(features: torch.Tensor) -> torch.Tensor:
    """Repeat every 20 ms frame for two 10 ms frames: [B, F, D] -> [B, 2F, D]. Held, not interpolated, as trained."""
    return features.repeat_interleave(2, dim=1)


def protect_unvoiced(
    blended: torch.Tensor, original: torch.Tensor, pitchf: torch.Tensor, protect: float
) -> torch.Tensor:
    """Give breath and consonants back their own features: weight 1 where voiced, `protect` elsewhere.

    Args:
        blended, original: features [B, T, D] after and before retrieval.
        pitchf: f0 in Hz [B, T], 0 = unvoiced.
        protect: 0 (unvoiced frames are entirely the speaker's own) to 0.5 (off).
    """
    weight = torch.where(pitchf < VOICED_FLOOR, protect, 1.0).unsqueeze(-1).to(blended.dtype)
    return blended * weight + original * (1 - weight)


def prepare_features(
    features: torch.Tensor,
    index: Retrieval | None,
    index_rate: float,
    pitchf: torch.Tensor | None,
    protect: float,
    frames: int,
    neighbours: int = 8,
) -> torch.Tensor:
    """Content features [B, F, D] -> `phone` [B, T, D], T = min(frames, 2F).

    Args:
        index: where neighbours are looked up; None or `index_rate` 0 leaves the features alone.
        pitchf: f0 in Hz [B, >= T]; None for a voice without pitch, which is not protected.
        frames: frames of 10 ms wanted.
    """
    original = features
    if index is not None and index_rate > 0:
        features = index.blended(features.flatten(0, 1), index_rate, neighbours).reshape(features.shape)
    length = min(frames, 2 * features.shape[1])
    phone = double_frames(features)[:, :length]
    if pitchf is None or protect >= PROTECT_OFF or features is original:
        return phone
    return protect_unvoiced(phone, double_frames(original)[:, :length], pitchf[:, :length].to(phone.device), protect)
