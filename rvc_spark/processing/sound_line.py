"""Parts that come in order, laid on one line of time: one rate, exact lengths, numbered, no click beside a gap.

    sentence 0 | pause | sentence 1 | pause | (missing: short silence) | sentence 3
               ^ the end of each is round(source seconds so far * rate): lengths never add up rounding errors

The converted sound of a sentence may be a sample off its place, so it is cut or filled at its end. The last few
milliseconds of every open sentence are held back until it is known what follows: before a gap they are faded.
"""

from __future__ import annotations

from dataclasses import dataclass
from fractions import Fraction

import numpy as np

from rvc_spark.audio import Audio, StreamResampler
from rvc_spark.processing.chunk_order import Missing, Place
from rvc_spark.streaming.chunk import AudioChunk, Gap

GAP_SECONDS = 0.25  # of silence where a sentence is missing
DEFAULT_RATE = 40_000  # Hz, of a gap before any voice is known
FADE_SECONDS = 0.008  # beside a gap; longer would be heard as a fade, shorter as a click


@dataclass(frozen=True)
class Source:
    """What a sentence was before it was converted: its speech with the pause behind it, in samples at `rate` Hz."""

    frames: int
    rate: int
    pause: int = 0

    @property
    def seconds(self) -> Fraction:
        """Exact length with the pause."""
        return Fraction(self.frames + self.pause, self.rate)


class SoundLine:
    """In: parts in order. Out: AudioChunk with `seq` 0, 1, 2, ... Mono, at the rate of the first part.

    rate: of gaps before the first part, and then of the stream.
    """

    def __init__(self, stream: str, rate: int | None = None) -> None:
        self.stream = stream
        self.rate = rate
        self._seq = 0
        self._made = 0  # samples of the line, held ones too
        self._heard = Fraction(0)  # seconds of source
        self._beside = 0  # samples of the line that stand for no source: gaps, sentences that broke off
        self._opened = 0  # samples of the sentence that is open
        self._held = np.zeros(0, np.float32)
        self._held_of = 0  # which sentence they belong to
        self._fading_in = 0  # samples of the fade-in that is still due
        self._resampler: StreamResampler | None = None

    @property
    def frames(self) -> int:
        """Samples given out or held."""
        return self._made

    def add(self, place: Place, sound: Audio, source: Source | None, final: bool | None) -> list[AudioChunk]:
        """Chunks of the next part.

        Args:
            source: with the last part of a sentence; without it the sentence is as long as its sound.
            final: whether nothing follows this part; None: not known yet.
        """
        if self.rate is None:
            self.rate = sound.rate
        samples = self._at_rate(sound.mono().samples, sound.rate, place.last)
        samples = self._faded_in(samples)
        self._opened += len(samples)
        self._made += len(samples)
        chunks = self._release() if self._held_of != place.sentence else []
        block = np.concatenate([self._held, samples])
        if place.last:
            block = self._placed(block, source)
        quiet = place.last and source is not None and source.pause > 0 and final is False
        keep = 0 if final or quiet else round(FADE_SECONDS * self.rate)
        cut = max(0, len(block) - keep)
        self._held, self._held_of = block[cut:], place.sentence
        return chunks + self._chunks(block[:cut], place.sentence, last=bool(final))

    def gap(self, missing: Missing, final: bool | None) -> list[AudioChunk]:
        """Chunks of a sentence that is missing: the faded end of what came before it, then silence that says why."""
        rate = self.rate = self.rate or DEFAULT_RATE
        self._held = self._held * np.linspace(1, 0, len(self._held), endpoint=False, dtype=np.float32)
        chunks = self._release()
        silence = round(GAP_SECONDS * rate)
        self._beside += self._opened + silence
        self._made += silence
        self._opened = 0
        self._resampler = None
        self._fading_in = round(FADE_SECONDS * rate)
        gap = Gap(missing.sentence, missing.text, missing.error)
        self._held_of = missing.sentence
        if final is None:  # one sample stays behind, to be the last if nothing else comes
            self._held = np.zeros(1, np.float32)
            silence -= 1
        return chunks + self._chunks(np.zeros(silence, np.float32), missing.sentence, bool(final), gap)

    def end(self) -> list[AudioChunk]:
        """Nothing follows: what was held back, as the last chunk."""
        held, self._held = self._held, self._held[:0]
        return self._chunks(held, self._held_of, last=True)

    def _release(self) -> list[AudioChunk]:
        held, self._held = self._held, self._held[:0]
        return self._chunks(held, self._held_of)

    def _chunks(
        self, samples: np.ndarray, sentence: int, last: bool = False, gap: Gap | None = None
    ) -> list[AudioChunk]:
        if not len(samples):
            if not last:
                return []
            samples = np.zeros(1, np.float32)  # the last chunk must come, even if rounding left it nothing
            self._made += 1
        assert self.rate is not None
        chunk = AudioChunk(
            samples=samples, rate=self.rate, stream=self.stream, seq=self._seq, last=last, sentence=sentence, gap=gap
        )
        self._seq += 1
        return [chunk]

    def _at_rate(self, samples: np.ndarray, rate: int, last: bool) -> np.ndarray:
        """The part at the stream's rate: a voice that was changed meanwhile may have another."""
        if rate == self.rate and self._resampler is None:
            return samples
        assert self.rate is not None
        if self._resampler is None:
            self._resampler = StreamResampler(rate, self.rate)
        ready = self._resampler.push(samples)
        if last:
            ready = np.concatenate([ready, self._resampler.finish()[0]])
            self._resampler = None
        return ready

    def _faded_in(self, samples: np.ndarray) -> np.ndarray:
        if not self._fading_in or not len(samples):
            return samples
        assert self.rate is not None
        whole = round(FADE_SECONDS * self.rate)
        count = min(self._fading_in, len(samples))
        start = whole - self._fading_in
        ramp = np.ones(len(samples), np.float32)
        ramp[:count] = np.arange(start, start + count) / whole
        self._fading_in -= count
        return samples * ramp

    def _placed(self, block: np.ndarray, source: Source | None) -> np.ndarray:
        """The end of a sentence, cut or filled so that it ends where the conversion of the whole text would."""
        assert self.rate is not None
        opened, self._opened = self._opened, 0
        if source is None:
            self._beside += opened
            return block
        self._heard += source.seconds
        missing = max(self._beside + round(self._heard * self.rate) - self._made, -len(block))
        self._made += missing
        return np.pad(block, (0, missing)) if missing > 0 else block[: len(block) + missing]
