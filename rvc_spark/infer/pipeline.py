"""A recording of any length into a voice, sample for sample, in bounded memory.

    16 kHz store -> high-pass -> f0 of the whole -> parts cut at quiet points -> content features -> retrieval
                 -> prior on the part with its context, decoder only on what is kept -> crossfaded joins
                 -> loudness envelope -> resampling -> peak guard -> store at the output rate

Everything is placed by absolute position: sample n of the result belongs to moment n / rate of the recording, whatever
the cuts. Noise and the phase of the harmonic source run through the cuts, so neighbouring parts agree where they
overlap and the crossfade joins equal sounds. Knows nothing of files, names or folders.
"""

from __future__ import annotations

import math
from collections.abc import Generator, Iterator
from dataclasses import dataclass

import numpy as np
import torch

from rvc_spark import audio
from rvc_spark.infer.content import ContentEncoder
from rvc_spark.infer.features import prepare_features
from rvc_spark.infer.index import RetrievalIndex
from rvc_spark.infer.loudness_match import Envelope, envelope_gain, envelope_of
from rvc_spark.infer.noise_field import NoiseField, PartNoise
from rvc_spark.infer.pitch import PitchTracker
from rvc_spark.infer.pitch_edit import VoiceRange
from rvc_spark.infer.pitch_track import PitchTrack, VoicePitch, track_pitch, voice_pitch
from rvc_spark.infer.sample_store import READ_BLOCK, SampleStore
from rvc_spark.infer.segments import (
    CROSSFADE_FRAMES,
    HOP,
    SAMPLE_RATE,
    Cutting,
    Part,
    highpass_range,
    mirrored_range,
    plan_exact,
    quiet_points,
)
from rvc_spark.infer.settings import ConversionSettings
from rvc_spark.infer.synthesizer import Synthesizer

INPUT_PEAK = 0.95  # louder sources are scaled down to this, as in every RVC program
OUTPUT_PEAK = 0.99
PITCH_SHARE = 0.2  # of the progress bar


@dataclass(frozen=True)
class Engines:
    """The loaded networks of one conversion. `tracker` is None for a voice without pitch, `index` when none is used."""

    encoder: ContentEncoder
    synthesizer: Synthesizer
    tracker: PitchTracker | None = None
    index: RetrievalIndex | None = None
    voice_range: VoiceRange | None = None  # where the voice is at home, for the automatic key


@dataclass(frozen=True)
class Source:
    """A recording at 16 kHz and what it was before: its length must come out exactly."""

    store: SampleStore
    frames: int  # samples of the original
    rate: int  # Hz of the original

    def length_at(self, rate: int) -> int:
        """Samples of the result at `rate`: round(T * rate_out / rate_in)."""
        return round(self.frames * rate / self.rate)


@dataclass(frozen=True)
class Progress:
    """How far a long piece of work is: a fraction 0..1 and a few words."""

    fraction: float
    message: str


@dataclass(frozen=True)
class Rendered:
    """A finished conversion: sound, and f0 in Hz per 10 ms of the source and of the result (None without pitch)."""

    store: SampleStore
    source_f0: np.ndarray | None
    result_f0: np.ndarray | None
    key: float
    key_reason: str


class Rendering:
    """One recording on its way through the networks. `steps()` does the work and yields progress."""

    def __init__(
        self,
        source: Source,
        engines: Engines,
        settings: ConversionSettings,
        cutting: Cutting | None = None,
        noise: PartNoise | None = None,
    ) -> None:
        self._source = source
        self._engines = engines
        self._settings = settings
        self._cutting = cutting or Cutting()
        self._noise = noise or NoiseField(settings.seed)
        self._info = engines.synthesizer.info
        spf = self._info.samples_per_frame
        self._voice_length = source.length_at(self._info.sample_rate)
        self._frames = max(math.ceil(len(source.store) / HOP), math.ceil(self._voice_length / spf), 1)
        source.store.guard_peak(INPUT_PEAK)

    def _filtered(self, start: int, stop: int) -> np.ndarray:
        return highpass_range(self._source.store.read, len(self._source.store), start, stop)

    def _mirrored(self, start: int, stop: int) -> np.ndarray:
        return mirrored_range(self._filtered, len(self._source.store), start, stop)

    def _part_sound(self, part: Part, pitch: VoicePitch | None, track: PitchTrack | None) -> np.ndarray:
        """The kept samples of one part, float32 [(keep_stop - keep_start) * samples_per_frame]."""
        info, settings, synthesizer = self._info, self._settings, self._engines.synthesizer
        # The encoder's last window reaches 80 samples beyond its hop; one more frame fills the last pair.
        samples = self._mirrored(part.start * HOP, part.stop * HOP + 2 * HOP).astype(np.float32)
        features = self._engines.encoder.features(samples, info.version)
        frames = part.stop - part.start
        coarse = f0 = None
        phase = 0.0
        if pitch is not None and track is not None:
            span = track.span(part.start, part.stop)
            coarse = torch.from_numpy(pitch.coarse[span])[None]
            f0 = torch.from_numpy(pitch.f0[span])[None]
            phase = float(pitch.phase[span.start])
        phone = prepare_features(
            features, self._engines.index, settings.index_rate, f0, settings.protect, frames, settings.neighbours
        )
        keep = (part.keep_start - part.start, part.keep_stop - part.start)
        kept = keep[1] - keep[0]
        noise = self._noise.draw(
            synthesizer.net.inter_channels, part.start, frames, info.samples_per_frame * info.has_f0
        )
        stretched = round(kept * 2 ** (settings.formant / 12)) if settings.formant else None
        sound = synthesizer.window(
            phone, coarse, f0, settings.speaker, keep, noise, start_phase=phase, formant_frames=stretched
        )
        samples = sound.float().cpu().numpy()
        return samples if stretched is None else audio.resample(samples, stretched, kept)

    def _joined(
        self, parts: list[Part], pitch: VoicePitch | None, track: PitchTrack | None
    ) -> Iterator[tuple[np.ndarray, float]]:
        """Blocks of sound at the voice's rate, crossfaded at the cuts, each with the fraction done."""
        overlap = CROSSFADE_FRAMES * self._info.samples_per_frame
        tail = np.zeros(0, np.float32)
        for number, part in enumerate(parts):
            sound = self._part_sound(part, pitch, track)
            if len(tail):
                sound[:overlap] = audio.crossfade(tail, sound[:overlap])
            last = number == len(parts) - 1
            tail = sound[len(sound) if last else -overlap :]
            yield sound[: len(sound) - len(tail)], part.keep_stop / self._frames

    def _matched(self, voice: SampleStore, target: np.ndarray | None) -> Iterator[np.ndarray]:
        """The voice's blocks with the source's loudness mixed in."""
        rate_mix, total = self._settings.rms_mix_rate, len(voice)
        curve = None
        if target is not None:
            length = len(self._source.store)
            blocks = (self._filtered(at, min(at + READ_BLOCK, length)) for at in range(0, length, READ_BLOCK))
            curve = envelope_of(blocks, SAMPLE_RATE)
        for start in range(0, total, READ_BLOCK):
            stop = min(start + READ_BLOCK, total)
            block = voice.read(start, stop)
            if curve is not None and target is not None:
                block = (block * envelope_gain(curve, target, rate_mix, total, (start, stop))).astype(np.float32)
            yield block

    def _finish(self, voice: SampleStore, target: np.ndarray | None) -> SampleStore:
        """Loudness, output rate and peak guard."""
        rate = self._settings.resample_rate or self._info.sample_rate
        result = SampleStore(rate)
        if rate == self._info.sample_rate:
            for block in self._matched(voice, target):
                result.append(block)
        else:
            resampler = audio.StreamResampler(self._info.sample_rate, rate, channels=1)
            for block in self._matched(voice, target):
                result.append(resampler.push(block[None])[0])
            tail = resampler.finish()[0]
            # Two roundings (to the voice's rate, then to this one) may miss the one that was promised by a sample.
            missing = self._source.length_at(rate) - len(result) - len(tail)
            result.append(np.pad(tail, (0, missing), mode="edge") if missing > 0 else tail[: len(tail) + missing])
        result.guard_peak(OUTPUT_PEAK)
        return result

    def steps(self) -> Generator[Progress, None, Rendered]:
        """Convert. Yields progress and returns the Rendered result; closing the generator frees everything."""
        length = len(self._source.store)
        cuts = quiet_points(self._filtered, length, self._cutting)
        parts = plan_exact(self._frames, cuts, self._cutting)
        track = pitch = None
        if self._engines.tracker is not None and self._info.has_f0:
            end = length + self._cutting.samples(self._cutting.pad)
            start, stop = parts[0].start, parts[-1].stop
            for fraction, found in track_pitch(self._mirrored, start, stop, end, self._engines.tracker):
                yield Progress(fraction * PITCH_SHARE, f"pitch ({self._engines.tracker.method})")
                track = found
            assert track is not None
            pitch = voice_pitch(track, self._frames, self._settings, self._engines.voice_range)
        envelope = Envelope(self._info.sample_rate) if self._settings.rms_mix_rate != 1 else None
        voice = SampleStore(self._info.sample_rate)
        try:
            for block, fraction in self._joined(parts, pitch, track):
                block = block[: self._voice_length - len(voice)]
                voice.append(block)
                if envelope is not None:
                    envelope.push(block)
                yield Progress(PITCH_SHARE + (0.95 - PITCH_SHARE) * fraction, "voice")
            result = self._finish(voice, None if envelope is None else envelope.curve())
        finally:
            voice.close()
        yield Progress(1.0, "done")
        return self._rendered(result, track, pitch)

    def _rendered(self, result: SampleStore, track: PitchTrack | None, pitch: VoicePitch | None) -> Rendered:
        if track is None or pitch is None:
            return Rendered(result, None, None, 0.0, "a voice without pitch")
        span = track.span(0, self._frames)
        return Rendered(result, track.f0[span], pitch.f0[span], pitch.key, pitch.key_reason)
