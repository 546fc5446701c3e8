"""Parts of recordings through the networks: sound and pitch in, the voice's samples out; equal parts together.

    content features -> retrieval -> prior, flow, decoder -> (formant: back to the length it had)

Refuses to know recordings, cuts and joins.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import torch

from rvc_spark import audio
from rvc_spark.infer.content import ContentEncoder
from rvc_spark.infer.features import Retrieval, prepare_features
from rvc_spark.infer.settings import ConversionSettings
from rvc_spark.infer.source import WindowNoise
from rvc_spark.infer.synthesizer import Synthesizer


@dataclass(frozen=True)
class PartInputs:
    """What the networks read of one part.

    Attributes:
        samples: float32 [N] at 16 kHz, of all frames and a little more.
        frames: of 10 ms.
        keep: first frame to be heard and the one after the last.
        coarse, f0: coarse pitch int [1, T] and Hz float32 [1, T]; None for a voice without pitch.
        phase: cycles of the harmonic source at the start of frame 0.
        noise: of all frames.
    """

    samples: np.ndarray
    frames: int
    keep: tuple[int, int]
    coarse: torch.Tensor | None
    f0: torch.Tensor | None
    phase: float
    noise: WindowNoise


class Networks(Protocol):
    """Of one voice."""

    encoder: ContentEncoder
    synthesizer: Synthesizer
    index: Retrieval | None


def decoded_blocks(
    parts: Sequence[PartInputs], networks: Networks, settings: ConversionSettings, first_frames: int | None = None
) -> Iterator[np.ndarray]:
    """The kept samples of parts that have the same `frames` and `keep`, block by block.

    first_frames: of the first block, see `WindowOptions`.

    Yields float32, together [B, kept frames * samples_per_frame]. A stretched part is one block, because it is
    resampled as a whole.
    """
    synthesizer, first = networks.synthesizer, parts[0]
    features = networks.encoder.features_of_many([part.samples for part in parts], synthesizer.info.version)
    coarse = None if first.coarse is None else torch.cat([part.coarse for part in parts])
    f0 = None if first.f0 is None else torch.cat([part.f0 for part in parts])
    phone = prepare_features(
        features, networks.index, settings.index_rate, f0, settings.protect, first.frames, settings.neighbours
    )
    kept = first.keep[1] - first.keep[0]
    stretched = round(kept * 2 ** (settings.formant / 12)) if settings.formant else None
    decoded = synthesizer.window_blocks(
        phone, coarse, f0, settings.speaker, first.keep, _joined_noise([part.noise for part in parts]),
        start_phase=[part.phase for part in parts], formant_frames=stretched, first_frames=first_frames,
    )  # fmt: skip
    blocks = (sound.float().cpu().numpy() for sound in decoded)
    if stretched is None:
        yield from blocks
    else:
        whole = np.concatenate(list(blocks), axis=1)
        yield np.stack([audio.resample(sound, stretched, kept) for sound in whole])


def _joined_noise(noises: list[WindowNoise]) -> WindowNoise:
    """The noise of several parts as that of one batch; they agree in what they have."""
    if len(noises) == 1:
        return noises[0]
    source = None if noises[0].source is None else torch.cat([noise.source for noise in noises])
    return WindowNoise(torch.cat([noise.latent for noise in noises]), source, noises[0].phase)
