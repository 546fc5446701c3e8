"""One block of a live conversion through the networks.

    sound of the window -> f0, content features -> retrieval -> prior on the whole window, decoder on what is new
                        -> joined with the block before over the crossfade

Everything is placed by absolute position. Noise is tied to its place and the phase of the harmonic source to settled
pitch, so both sides of a join render the same sound and an equal-gain crossfade is all it takes: nothing has to be
searched or moved (SOLA), and no sample is lost or gained. All windows have one size, so kernels are made once.
Refuses to know where sound comes from.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch

from rvc_spark import audio
from rvc_spark.infer.features import prepare_features
from rvc_spark.infer.live_pitch import LivePitch, WindowPitch
from rvc_spark.infer.live_settings import Grid
from rvc_spark.infer.noise_field import NoiseField
from rvc_spark.infer.pipeline import Engines
from rvc_spark.infer.segments import HOP
from rvc_spark.infer.settings import ConversionSettings

ENCODER_REACH = 80  # samples that the encoder's last window reaches beyond its hop
FORMANT_MARGINS = range(4, 17)  # frames rendered beyond both ends when stretching, see `_stretched`


@dataclass(frozen=True)
class LiveBlock:
    """One block: float32 [n] at the voice's rate, the source it came from, and f0 in Hz per 10 ms of both."""

    sound: np.ndarray
    source: np.ndarray  # float32 [n] at 16 kHz
    source_f0: np.ndarray | None  # float64 [block]; None for a voice without pitch
    result_f0: np.ndarray | None


class LiveBlocks:
    """Makes block after block of one recording."""

    def __init__(self, engines: Engines, settings: ConversionSettings, grid: Grid) -> None:
        self._engines = engines
        self._settings = settings
        self._grid = grid
        self._info = engines.synthesizer.info
        self._noise = NoiseField(settings.seed)
        self._pitch: LivePitch | None = None
        if engines.tracker is not None and self._info.has_f0:
            self._pitch = LivePitch(engines.tracker, settings, engines.voice_range, grid)
        self._tail = np.zeros(0, np.float32)
        self.done = 0  # frames that came out

    @property
    def key(self) -> tuple[float, str]:
        """Semitones and why."""
        return (0.0, "a voice without pitch") if self._pitch is None else (self._pitch.key.key, self._pitch.key.reason)

    @property
    def limit(self) -> int:
        """How many samples at 16 kHz the next block must hear."""
        return (self.done + self._grid.block + self._grid.lookahead) * HOP + ENCODER_REACH

    @property
    def oldest(self) -> int:
        """The first sample at 16 kHz that the next block reads, also where it is mirrored at the recording's end."""
        grid = self._grid
        heard = 0 if self._pitch is None else self._pitch.heard
        ahead = grid.block + grid.lookahead
        return (self.done - max(grid.context, heard - ahead, ahead + 1)) * HOP

    def render(self, read: Callable[[int, int], np.ndarray]) -> LiveBlock:
        """The next block.

        Args:
            read: gives samples [b - a] of positions a..b at 16 kHz, up to `limit`.
        """
        grid = self._grid
        start = self.done - grid.context
        stop = start + grid.window
        heard = grid.window if self._pitch is None else max(grid.window, self._pitch.heard)
        sound = read((stop - heard) * HOP, stop * HOP + ENCODER_REACH)
        pitch = None
        if self._pitch is not None:
            pitch = self._pitch.push(sound[(heard - self._pitch.heard) * HOP : heard * HOP], start)
        window = sound[(heard - grid.window) * HOP :]
        voice = self._voice(window, pitch, start)
        overlap = grid.crossfade * self._info.samples_per_frame
        if len(self._tail):
            voice[:overlap] = audio.crossfade(self._tail, voice[:overlap])
        cut = grid.block * self._info.samples_per_frame
        self._tail = voice[cut:]
        self.done += grid.block
        now = slice(grid.context, grid.context + grid.block)
        return LiveBlock(
            voice[:cut],
            window[now.start * HOP : now.stop * HOP],
            None if pitch is None else pitch.source[now],
            None if pitch is None else pitch.f0[now],
        )

    def _voice(self, window: np.ndarray, pitch: WindowPitch | None, start: int) -> np.ndarray:
        """The block and the crossfade after it, float32 [(block + crossfade) * samples_per_frame]."""
        grid, settings, engines = self._grid, self._settings, self._engines
        features = engines.encoder.features(window, self._info.version)
        f0 = coarse = None
        phase = 0.0
        if pitch is not None:
            f0, coarse, phase = torch.from_numpy(pitch.f0)[None], torch.from_numpy(pitch.coarse)[None], pitch.phase
        phone = prepare_features(
            features, engines.index, settings.index_rate, f0, settings.protect, grid.window, settings.neighbours
        )
        per_frame = self._info.samples_per_frame
        noise = self._noise.draw(
            engines.synthesizer.net.inter_channels, start, grid.window, per_frame * self._info.has_f0
        )
        keep = (grid.context, grid.context + grid.block + grid.crossfade)
        if not settings.formant:
            sound = engines.synthesizer.window(phone, coarse, f0, settings.speaker, keep, noise, start_phase=phase)
            return sound.float().cpu().numpy()
        before, after, stretched = self._stretched()
        wide = (keep[0] - before, keep[1] + after)
        sound = engines.synthesizer.window(
            phone, coarse, f0, settings.speaker, wide, noise, start_phase=phase, formant_frames=stretched
        )
        samples = audio.resample(sound.float().cpu().numpy(), stretched, wide[1] - wide[0])
        return samples[before * per_frame : (before + keep[1] - keep[0]) * per_frame]

    def _stretched(self) -> tuple[int, int, int]:
        """Frames to render before and after the kept ones, and to how many all are stretched for the formant shift.

        The margin keeps the resampler's ends out of the result, and is chosen so that the whole number of stretched
        frames is nearest to the ratio that was asked for.
        """
        grid, ratio = self._grid, 2 ** (self._settings.formant / 12)
        after = min(FORMANT_MARGINS.start, grid.lookahead - grid.crossfade)
        kept = grid.block + grid.crossfade + after

        def error(before: int) -> float:
            wanted = (kept + before) * ratio
            return abs(round(wanted) / wanted - 1)

        before = min(FORMANT_MARGINS, key=error)
        return before, after, round((kept + before) * ratio)
