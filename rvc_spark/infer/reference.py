"""The published program's pipeline, step by step, with its timing and its rounding.

For conformance: `tools/conformance.py` compares it with recordings of the reference. It shares every step with
`rvc_spark.infer.pipeline` but the cutting, which here loses 10 to 20 ms per part as the original does. Users convert
with the pipeline, never with this.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field

import numpy as np
import torch

from rvc_spark import audio
from rvc_spark.infer.content import ContentEncoder
from rvc_spark.infer.features import prepare_features
from rvc_spark.infer.index import RetrievalIndex
from rvc_spark.infer.loudness_match import match_loudness
from rvc_spark.infer.noise_field import PartNoise
from rvc_spark.infer.pitch import PitchTracker, coarse_pitch, fill_unvoiced, shift_key
from rvc_spark.infer.segments import (
    HOP,
    SAMPLE_RATE,
    Cutting,
    ReferencePart,
    highpass,
    plan_reference,
    quiet_points,
)
from rvc_spark.infer.synthesizer import Synthesizer

INPUT_PEAK, OUTPUT_PEAK = 0.95, 0.99
FRAMES_PER_SECOND = SAMPLE_RATE // HOP


@dataclass(frozen=True)
class ReferenceSettings:
    """The options of the reference's single-file conversion; x_* in seconds."""

    key: float = 0
    index_rate: float = 0.75
    protect: float = 0.33
    rms_mix_rate: float = 0.25
    resample_rate: int = 0
    speaker: int = 0
    x_pad: float = 1
    x_query: float = 6
    x_center: float = 38
    x_max: float = 41
    fill_unvoiced: bool = True


@dataclass
class ReferenceResult:
    """int16 sound [n] at `rate` and what led to it. Pitch runs over the padded signal; segments in its samples."""

    audio: np.ndarray
    rate: int
    pitch: np.ndarray | None
    pitchf: np.ndarray | None
    segments: list[tuple[int, int, int]] = field(default_factory=list)
    phone_first_segment: np.ndarray | None = None


@dataclass(frozen=True)
class ReferenceEngines:
    """The loaded parts a reference conversion needs; `tracker` and `index` may be missing."""

    encoder: ContentEncoder
    synthesizer: Synthesizer
    tracker: PitchTracker | None = None
    index: RetrievalIndex | None = None


def _track(
    padded: np.ndarray, engines: ReferenceEngines, settings: ReferenceSettings
) -> tuple[np.ndarray, np.ndarray] | tuple[None, None]:
    """Coarse pitch int64 [p] and f0 in Hz float32 [p] of the padded signal; (None, None) for a voice without pitch.

    The contour keeps the tracker's own length: the reference fills gaps before it cuts, so a frame beyond the sound
    decides how the last gap is filled.
    """
    if not engines.synthesizer.info.has_f0 or engines.tracker is None:
        return None, None
    f0 = np.asarray(engines.tracker.raw(padded))
    if settings.fill_unvoiced:
        f0 = fill_unvoiced(f0)
    f0 = shift_key(f0, settings.key)
    return coarse_pitch(f0), f0.astype(np.float32)


def _convert_parts(
    padded: np.ndarray,
    parts: list[ReferencePart],
    engines: ReferenceEngines,
    settings: ReferenceSettings,
    noise: PartNoise,
    result: ReferenceResult,
) -> Iterator[np.ndarray]:
    info = engines.synthesizer.info
    pad_frames = int(settings.x_pad * FRAMES_PER_SECOND)
    for part in parts:
        samples = padded[part.start : part.start + part.length]
        features = engines.encoder.features(samples.astype(np.float32), info.version)
        frames = min(part.length // HOP, 2 * features.shape[1])
        pitch = pitchf = None
        if result.pitch is not None and result.pitchf is not None:
            span = slice(part.pitch_start, part.pitch_stop)
            pitch, pitchf = (torch.from_numpy(x[span][:frames])[None] for x in (result.pitch, result.pitchf))
            frames = min(frames, pitch.shape[1])
        phone = prepare_features(features, engines.index, settings.index_rate, pitchf, settings.protect, frames)
        if result.phone_first_segment is None:
            result.phone_first_segment = phone[0].float().cpu().numpy()
        result.segments.append((part.start, part.length, frames))
        drawn = noise.draw(engines.synthesizer.net.inter_channels, 0, frames, info.samples_per_frame * info.has_f0)
        keep = (pad_frames, frames - pad_frames)
        sound = engines.synthesizer.window(phone, pitch, pitchf, settings.speaker, keep, drawn)
        yield sound.float().cpu().numpy()


def to_int16(samples: np.ndarray) -> np.ndarray:
    """Scale to the peak guard and truncate towards zero, as the reference writes its result."""
    over = float(np.abs(samples).max()) / OUTPUT_PEAK
    return (samples * (32768 / max(over, 1.0))).astype(np.int16)


def reference_convert(
    samples16k: np.ndarray, engines: ReferenceEngines, settings: ReferenceSettings, noise: PartNoise
) -> ReferenceResult:
    """Convert float32 [N] at 16 kHz exactly as the reference does (single precision, CPU)."""
    over = float(np.abs(samples16k).max()) / INPUT_PEAK
    filtered = highpass(samples16k / over if over > 1 else samples16k)
    cutting = Cutting(settings.x_pad, settings.x_query, settings.x_center, settings.x_max)
    cuts = quiet_points(lambda start, stop: filtered[start:stop], len(filtered), cutting)
    padded = np.pad(filtered, int(settings.x_pad * SAMPLE_RATE), mode="reflect")
    rate = engines.synthesizer.info.sample_rate
    pitch, pitchf = _track(padded, engines, settings)
    result = ReferenceResult(np.zeros(0, np.int16), rate, pitch, pitchf)
    parts = plan_reference(len(filtered), cuts, settings.x_pad)
    sound = np.concatenate(list(_convert_parts(padded, parts, engines, settings, noise, result)))
    if settings.rms_mix_rate != 1:
        sound = match_loudness(filtered, sound, rate, settings.rms_mix_rate)
    if settings.resample_rate >= SAMPLE_RATE and settings.resample_rate != rate:
        sound = audio.resample(sound, rate, settings.resample_rate, quality="HQ")
        result.rate = settings.resample_rate
    result.audio = to_int16(sound)
    return result
