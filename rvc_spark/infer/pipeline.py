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
from collections.abc import Callable, Generator, Iterator
from dataclasses import dataclass
from typing import TypeVar

import numpy as np
import torch

from rvc_spark import audio
from rvc_spark.infer.content import ContentEncoder
from rvc_spark.infer.features import Retrieval
from rvc_spark.infer.loudness_match import Envelope, StreamedMatch, envelope_gain, envelope_of
from rvc_spark.infer.noise_field import NoiseField, PartNoise
from rvc_spark.infer.part_decode import PartInputs, decoded_blocks
from rvc_spark.infer.peak_guard import PeakGuard
from rvc_spark.infer.pitch import PitchTracker
from rvc_spark.infer.pitch_edit import VoiceRange
from rvc_spark.infer.pitch_track import PitchTrack, VoicePitch, track_pitch, voice_pitch, whole_sound
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
Result = TypeVar("Result")


@dataclass(frozen=True)
class Engines:
    """The loaded networks of one conversion. `tracker` is None for a voice without pitch, `index` when none is used."""

    encoder: ContentEncoder
    synthesizer: Synthesizer
    tracker: PitchTracker | None = None
    index: Retrieval | None = None
    voice_range: VoiceRange | None = None  # where the voice is at home, for the automatic key


@dataclass(frozen=True)
class Source:
    """A recording at 16 kHz and what it was before: its length must come out exactly."""

    store: SampleStore
    frames: int  # samples of the original
    rate: int  # Hz of the original

    @property
    def seconds(self) -> float:
        """Its length."""
        return self.frames / self.rate

    def length_at(self, rate: int) -> int:
        """Samples of the result at `rate`: round(T * rate_out / rate_in)."""
        return round(self.frames * rate / self.rate)


@dataclass(frozen=True)
class Progress:
    """How far a long piece of work is: a fraction 0..1 and a few words."""

    fraction: float
    message: str


def drain(steps: Generator[Progress, None, Result], on_progress: Callable[[Progress], None] | None = None) -> Result:
    """Run a generator of progress to its end and return what it returns."""
    while True:
        try:
            progress = next(steps)
        except StopIteration as end:
            return end.value
        if on_progress is not None:
            on_progress(progress)


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
        self.parts: list[Part] = []
        self._short: np.ndarray | None = None
        self._made: dict[Part, np.ndarray] = {}
        self._track: PitchTrack | None = None
        self._pitch: VoicePitch | None = None
        source.store.guard_peak(INPUT_PEAK)

    def _filtered(self, start: int, stop: int) -> np.ndarray:
        """Samples of the recording without what lies below 48 Hz; a short one is filtered once."""
        total = len(self._source.store)
        if total > self._cutting.samples(self._cutting.limit):
            return highpass_range(self._source.store.read, total, start, stop)
        if self._short is None:
            self._short = highpass_range(self._source.store.read, total, 0, total)
        return self._short[start:stop]

    def _mirrored(self, start: int, stop: int) -> np.ndarray:
        return mirrored_range(self._filtered, len(self._source.store), start, stop)

    def part_inputs(self, part: Part) -> PartInputs:
        """What the networks read of a part; the pitch must be tracked."""
        info, synthesizer = self._info, self._engines.synthesizer
        frames = part.stop - part.start
        coarse = f0 = None
        phase = 0.0
        if self._pitch is not None and self._track is not None:
            span = self._track.span(part.start, part.stop)
            coarse = torch.from_numpy(self._pitch.coarse[span])[None]
            f0 = torch.from_numpy(self._pitch.f0[span])[None]
            phase = float(self._pitch.phase[span.start])
        noise = self._noise.draw(
            synthesizer.net.inter_channels, part.start, frames, info.samples_per_frame * info.has_f0
        )
        # The encoder's last window reaches 80 samples beyond its hop; one more frame fills the last pair.
        samples = self._mirrored(part.start * HOP, part.stop * HOP + 2 * HOP).astype(np.float32)
        keep = (part.keep_start - part.start, part.keep_stop - part.start)
        return PartInputs(samples, frames, keep, coarse, f0, phase, noise)

    def give(self, part: Part, sound: np.ndarray) -> None:
        """The decoded sound of a part, made elsewhere: float32 [(keep_stop - keep_start) * samples_per_frame]."""
        self._made[part] = sound

    def _part_blocks(self, part: Part, first_frames: int | None) -> Iterator[np.ndarray]:
        """The kept samples of one part, float32, together [(keep_stop - keep_start) * samples_per_frame]."""
        if part in self._made:
            yield self._made.pop(part)
            return
        inputs = [self.part_inputs(part)]
        for block in decoded_blocks(inputs, self._engines, self._settings, first_frames):
            yield block[0]

    def _joined(self, parts: list[Part], first_frames: int | None = None) -> Iterator[tuple[np.ndarray, float]]:
        """Blocks of sound at the voice's rate, crossfaded at the cuts, each with the fraction done.

        What has come is held back by the length of a crossfade, except at the end of the last part.
        """
        overlap = CROSSFADE_FRAMES * self._info.samples_per_frame
        tail = np.zeros(0, np.float32)
        for number, part in enumerate(parts):
            held, joined = np.zeros(0, np.float32), not len(tail)
            last, made = number == len(parts) - 1, 0
            for block in self._part_blocks(part, first_frames if number == 0 else None):
                held, made = np.concatenate([held, block]), made + len(block)
                if not joined and len(held) >= overlap:
                    held[:overlap] = audio.crossfade(tail, held[:overlap])
                    joined = True
                ready = len(held) if last else len(held) - overlap
                if joined and ready > 0:
                    yield held[:ready], (part.keep_start + made / self._info.samples_per_frame) / self._frames
                    held = held[ready:]
            tail = held

    def _source_envelope(self) -> np.ndarray:
        length = len(self._source.store)
        blocks = (self._filtered(at, min(at + READ_BLOCK, length)) for at in range(0, length, READ_BLOCK))
        return envelope_of(blocks, SAMPLE_RATE)

    def _matched(self, voice: SampleStore, target: np.ndarray | None) -> Iterator[np.ndarray]:
        """The voice's blocks with the source's loudness mixed in."""
        rate_mix, total = self._settings.rms_mix_rate, len(voice)
        curve = None if target is None else self._source_envelope()
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
        for block in self._resampled(self._matched(voice, target), rate):
            result.append(block[: self.frames_out - len(result)])
        result.guard_peak(OUTPUT_PEAK)
        return result

    def plan(self) -> None:
        """Cut the recording."""
        length = len(self._source.store)
        self.parts = plan_exact(self._frames, quiet_points(self._filtered, length, self._cutting), self._cutting)

    def _pitch_range(self) -> tuple[int, int, int]:
        """First frame whose pitch is needed, the one after the last, and the sample after which nothing is heard."""
        end = len(self._source.store) + self._cutting.samples(self._cutting.pad)
        return self.parts[0].start, self.parts[-1].stop, end

    def pitch_sound(self) -> np.ndarray | None:
        """What a tracker is given of a recording that it hears in one go; None of a longer one."""
        start, stop, end = self._pitch_range()
        return whole_sound(self._mirrored, start, stop, end)

    def track(self, tracker: PitchTracker | None) -> None:
        """All of `pitch_steps`."""
        for _ in self.pitch_steps(tracker):
            pass

    def pitch_steps(self, tracker: PitchTracker | None) -> Iterator[Progress]:
        """Track the pitch of the whole and decide what is sung; the recording must be cut."""
        if tracker is None or not self._info.has_f0:
            return
        for fraction, found in track_pitch(self._mirrored, *self._pitch_range(), tracker):
            yield Progress(fraction * PITCH_SHARE, f"pitch ({tracker.method})")
            self._track = found
        assert self._track is not None
        self._pitch = voice_pitch(self._track, self._frames, self._settings, self._engines.voice_range)

    def steps(self) -> Generator[Progress, None, Rendered]:
        """Convert. Yields progress and returns the Rendered result; closing the generator frees everything."""
        self.plan()
        yield from self.pitch_steps(self._engines.tracker)
        return (yield from self.voice_steps())

    def voice_steps(self) -> Generator[Progress, None, Rendered]:
        """The second half of `steps`: from cut and pitch to the result."""
        envelope = Envelope(self._info.sample_rate) if self._settings.rms_mix_rate != 1 else None
        voice = SampleStore(self._info.sample_rate)
        try:
            for block, fraction in self._joined(self.parts):
                block = block[: self._voice_length - len(voice)]
                voice.append(block)
                if envelope is not None:
                    envelope.push(block)
                yield Progress(PITCH_SHARE + (0.95 - PITCH_SHARE) * min(1.0, fraction), "voice")
            result = self._finish(voice, None if envelope is None else envelope.curve())
        finally:
            voice.close()
        yield Progress(1.0, "done")
        return Rendered(result, *self.contours())

    @property
    def frames_out(self) -> int:
        """Samples of the result."""
        return self._source.length_at(self._settings.resample_rate or self._info.sample_rate)

    def contours(self) -> tuple[np.ndarray | None, np.ndarray | None, float, str]:
        """f0 of source and result in Hz per 10 ms, the key and its reason; known once the pitch is tracked."""
        track, pitch = self._track, self._pitch
        if track is None or pitch is None:
            return None, None, 0.0, "a voice without pitch"
        span = track.span(0, self._frames)
        return track.f0[span], pitch.f0[span], pitch.key, pitch.key_reason

    def blocks(self, first_frames: int) -> Iterator[np.ndarray]:
        """The same result as `steps`, each block as soon as it is decoded: float32, together `frames_out` samples.

        Only where the result would exceed full scale do the two differ: `steps` scales the whole, here the gain falls
        around the peak.

        first_frames: length of the first decoded block in frames of 10 ms.
        """
        self.plan()
        self.track(self._engines.tracker)
        rate = self._settings.resample_rate or self._info.sample_rate
        guard = PeakGuard(OUTPUT_PEAK, rate)
        made = 0
        for block in self._resampled(self._leveled(self.parts, first_frames), rate):
            block = block[: self.frames_out - made]
            made += len(block)
            ready = guard.push(block)
            if len(ready):
                yield ready
        rest = guard.finish()
        if len(rest):
            yield rest

    def _leveled(self, parts: list[Part], first_frames: int) -> Iterator[np.ndarray]:
        """Blocks at the voice's rate, as long as the recording, with the source's loudness mixed in."""
        match = None
        if self._settings.rms_mix_rate != 1:
            match = StreamedMatch(
                self._source_envelope(), self._settings.rms_mix_rate, self._info.sample_rate, self._voice_length
            )
        left = self._voice_length
        for block, _fraction in self._joined(parts, first_frames):
            block = block[:left]
            left -= len(block)
            yield block if match is None else match.push(block)

    def _resampled(self, blocks: Iterator[np.ndarray], rate: int) -> Iterator[np.ndarray]:
        """Blocks at another rate; the last one is held to reach the promised length."""
        if rate == self._info.sample_rate:
            yield from blocks
            return
        resampler = audio.StreamResampler(self._info.sample_rate, rate, channels=1)
        for block in blocks:
            yield resampler.push(block[None])[0]
        tail = resampler.finish()[0]
        # Two roundings (to the voice's rate, then to this one) may miss the one that was promised by a sample.
        yield np.pad(tail, (0, max(0, self.frames_out - resampler.frames_out)), mode="edge")
