"""The f0 of a whole recording in bounded memory, and what the synthesizer reads of it.

Frames of 10 ms are counted from the recording's first sample; a track starts before it, in the mirrored run-in, so the
parts at both ends have pitch for their context. Tracking runs in chunks only when the recording is longer than one.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from rvc_spark.infer.pitch import PitchTracker, coarse_pitch, fill_unvoiced, shift_key
from rvc_spark.infer.pitch_edit import VoiceRange, apply_f0_curve, automatic_key, autotune, read_f0_curve
from rvc_spark.infer.segments import HOP, SAMPLE_RATE
from rvc_spark.infer.settings import ConversionSettings

FRAMES_PER_SECOND = SAMPLE_RATE // HOP
CHUNK = 60 * FRAMES_PER_SECOND  # frames tracked in one call; up to 1.5 chunks go in one
CONTEXT = 2 * FRAMES_PER_SECOND  # frames on either side that a tracker sees and whose result is dropped


@dataclass(frozen=True)
class PitchTrack:
    """f0 in Hz over frames `start .. start + len(f0)`; 0 = unvoiced."""

    f0: np.ndarray  # float64 [n]
    start: int

    def span(self, start: int, stop: int) -> slice:
        """Where frames `start..stop` lie in the arrays of this track."""
        return slice(start - self.start, stop - self.start)


@dataclass(frozen=True)
class VoicePitch:
    """Pitch as the synthesizer takes it, over the frames of a PitchTrack."""

    f0: np.ndarray  # float32 [n] Hz, drives the harmonic source
    coarse: np.ndarray  # int64 [n] 1..255, drives the prior
    phase: np.ndarray  # float64 [n + 1] cycles at each frame's start, modulo 1
    key: float  # semitones really applied
    key_reason: str


def _chunks(total: int) -> Iterator[tuple[int, int]]:
    """Cut `total` frames into pieces of CHUNK; the last takes up to half a chunk more rather than being tiny."""
    start = 0
    while total - start > CHUNK * 3 // 2:
        yield start, start + CHUNK
        start += CHUNK
    yield start, total


def track_pitch(
    read: Callable[[int, int], np.ndarray], start: int, stop: int, end: int, tracker: PitchTracker
) -> Iterator[tuple[float, PitchTrack | None]]:
    """Track frames `start..stop`; yields (fraction done, None), at last (1.0, track).

    Nothing beyond sample `end` is read, and frames there are unvoiced: some trackers lay their frames symmetrically
    into what they are given, so a recording of one chunk is handed over exactly as the reference hands it over.

    Args:
        read: gives samples [b - a] at 16 kHz of positions a..b, from frame `start` to sample `end`.
    """
    frames = stop - start
    f0 = np.zeros(frames)
    for left, right in _chunks(frames):
        before, after = min(left, CONTEXT), min(frames - right, CONTEXT)
        tracked = tracker.track(read((start + left - before) * HOP, min((start + right + after) * HOP, end)))
        piece = tracked[before : before + right - left]
        f0[left : left + len(piece)] = piece
        yield right / frames, None
    yield 1.0, PitchTrack(f0, start)


def whole_sound(read: Callable[[int, int], np.ndarray], start: int, stop: int, end: int) -> np.ndarray | None:
    """What `track_pitch` hands to its tracker, if that is one piece; else None."""
    if len(list(_chunks(stop - start))) > 1:
        return None
    return read(start * HOP, min(stop * HOP, end))


def voice_pitch(
    track: PitchTrack, frames: int, settings: ConversionSettings, voice_range: VoiceRange | None
) -> VoicePitch:
    """Apply fill, key, autotune and the user's curve, in this order, to a track.

    Args:
        frames: length of the recording; only these frames count for the automatic key.
        voice_range: where the voice is at home, if that is known.
    """
    f0 = fill_unvoiced(track.f0) if settings.profile == "r26" else track.f0
    key, reason = settings.key, f"{settings.key:+g} semitones as set"
    if settings.auto_key != "off":
        target = voice_range if settings.auto_key == "voice" else settings.auto_key
        if target is not None:
            proposed = automatic_key(track.f0[track.span(0, frames)], target)
            key, reason = settings.key + proposed.key, proposed.reason
        else:
            reason += " (the voice names no median pitch for an automatic key)"
    f0 = shift_key(f0, key)
    if settings.autotune > 0:
        f0 = autotune(f0, settings.scale, settings.autotune)
    if settings.f0_curve:
        f0 = apply_f0_curve(f0, read_f0_curve(Path(settings.f0_curve)), start_frame=track.start)
    # The network sings at the pitch minus the formant shift; stretching its output later adds the shift back.
    coarse = coarse_pitch(shift_key(f0, -settings.formant) if settings.formant else f0)
    phase = np.concatenate([[0.0], np.cumsum(f0.astype(np.float32).astype(np.float64) / FRAMES_PER_SECOND)]) % 1.0
    return VoicePitch(f0.astype(np.float32), coarse, phase, key, reason)
