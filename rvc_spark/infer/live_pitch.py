"""The pitch of a live conversion: tracked over a moving window, but settled once sound was made of it.

    frames    start ........ known ............. stop
              settled before | tracked now
                             |--- settled ---|-- heard by the networks as future, tracked again next time

Since settled frames never change, the phase of the harmonic source runs through every join.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from rvc_spark.infer.live_key import LiveKey
from rvc_spark.infer.live_settings import Grid
from rvc_spark.infer.pitch import PitchTracker, coarse_pitch, fill_unvoiced, shift_key
from rvc_spark.infer.pitch_edit import Scale, VoiceRange, apply_f0_curve, autotune, read_f0_curve
from rvc_spark.infer.pitch_track import FRAMES_PER_SECOND
from rvc_spark.infer.settings import ConversionSettings

TRACKED_BEFORE = 60  # frames before the first new one that a tracker hears
NETWORK_STEP = 32  # trackers with a network work on multiples of it, counting one frame more than they are asked for


@dataclass(frozen=True)
class WindowPitch:
    """Pitch over the frames of one window, as the synthesizer takes it."""

    source: np.ndarray  # float64 [n] Hz, as tracked
    f0: np.ndarray  # float32 [n] Hz, drives the harmonic source
    coarse: np.ndarray  # int64 [n] 1..255, drives the prior
    phase: float  # cycles at the window's start


class LivePitch:
    """Call `push` once per block, with windows that move on by a block."""

    def __init__(
        self, tracker: PitchTracker, settings: ConversionSettings, voice_range: VoiceRange | None, grid: Grid
    ) -> None:
        self._tracker = tracker
        self._settings = settings
        self._grid = grid
        self.key = LiveKey(settings, voice_range)
        self._scale = Scale.parse(settings.scale)
        self._curve = read_f0_curve(settings.f0_curve) if settings.f0_curve else None
        self._source = np.zeros(0)  # of the settled frames of the window
        self._f0 = np.zeros(0)
        self._phase = 0.0
        self._begun = False

    @property
    def heard(self) -> int:
        """Frames up to a window's end whose sound `push` wants."""
        least = TRACKED_BEFORE + self._grid.block + self._grid.lookahead
        return -(-(least + 1) // NETWORK_STEP) * NETWORK_STEP - 1

    def push(self, samples: np.ndarray, start: int) -> WindowPitch:
        """Track and settle.

        Args:
            samples: [heard * 160] at 16 kHz that end with the window.
            start: number of the window's first frame, counted from the recording's first.
        """
        grid = self._grid
        tracked = self._tracker.track(samples)
        if not self._begun:
            known = 0
            # the window's beginning is the mirrored run-in: its pitch is that of the frames it mirrors
            mirrored = np.clip(np.abs(start + np.arange(grid.window)), 0, start + grid.window - 1)
            tail = np.zeros(grid.window)
            tail[-len(tracked) :] = tracked[-grid.window :]
            source = tail[mirrored - start]
            self._begun = True
        else:
            known = len(self._source)
            source = np.concatenate([self._source, tracked[len(tracked) - (grid.window - known) :]])
        settled = grid.window - grid.lookahead + grid.crossfade
        new = max(known, -start)  # the run-in does not count for the key
        self.key.hear(source[new:], max(settled - new, 0))
        f0 = np.concatenate([self._f0, self._edited(source, start)[known:]])
        result = WindowPitch(
            source,
            f0.astype(np.float32),
            coarse_pitch(shift_key(f0, -self._settings.formant) if self._settings.formant else f0),
            self._phase,
        )
        passed = result.f0[: grid.block].astype(np.float64).sum() / FRAMES_PER_SECOND
        self._phase = (self._phase + passed) % 1.0
        self._source, self._f0 = source[grid.block : settled].copy(), f0[grid.block : settled].copy()
        return result

    def _edited(self, source: np.ndarray, start: int) -> np.ndarray:
        """Fill, key, notes and the user's curve, in the order of a whole recording."""
        settings = self._settings
        f0 = shift_key(fill_unvoiced(source) if settings.profile == "r26" else source, self.key.key)
        if settings.autotune > 0:
            f0 = autotune(f0, self._scale, settings.autotune)
        return f0 if self._curve is None else apply_f0_curve(f0, self._curve, start_frame=start)
