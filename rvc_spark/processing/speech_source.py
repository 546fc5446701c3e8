"""Who speaks a text and how it is divided into calls of the engine.

One by one, where every call sounds like the same speaker: the embedded engine, or any engine with a reference. As one
stream, where the voice is made to order within the call; it is then cut at the engine's own pauses.
"""

from __future__ import annotations

import secrets
import zlib
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np

from rvc_spark.audio import Audio
from rvc_spark.errors import SpeechError, WorkerError
from rvc_spark.processing.speak_options import SpeakOptions
from rvc_spark.processing.spoken_parts import SENTENCE_PAUSE, parts_between_pauses
from rvc_spark.tts.choose import Speakers
from rvc_spark.tts.engine import BaseTTSEngine


class SpeechSource:
    """The engine of one stream. Raises what `Speakers.engine` raises.

    one_by_one: whether sentences are spoken by calls of their own. enrolled: whether the reference was learnt.
    """

    def __init__(self, speakers: Speakers, options: SpeakOptions) -> None:
        self._speakers, self._options = speakers, options
        self.engine, self.why = speakers.engine(options.engine, options.tts or None)
        self.one_by_one = self.engine.name == "espeak" or options.reference is not None
        self.enrolled = False
        self._speaker: Path | None = None
        self._cut = 0  # samples of a stream that became sentences,
        self._mark = 0  # and their checksum: a stream that begins again must begin alike
        self._parts: Iterator[tuple[Audio, int]] | None = None
        self._pieces: Iterator[Audio] | None = None
        if not self.one_by_one:
            _fix_seed(self.engine)

    def enrol(self) -> None:
        """Learn the reference, once. Raises SpeechError, ConfigError."""
        self._speaker = self._speakers.speaker_file(self.engine, self._options.reference, self._options.transcript)
        self.enrolled = True

    def sentence(self, text: str, wanted: Callable[[], bool]) -> Audio:
        """One sentence, mono; not to its end when it is not `wanted` any more. Raises what the engine raises."""
        pieces = list(_while(wanted, self.engine.stream(self._speaker, text)))
        if not pieces:
            raise SpeechError(f"{self.engine.name} says nothing to {text[:40]!r}", "Write words in its language.")
        return Audio(np.concatenate([piece.mono().samples for piece in pieces]), pieces[0].rate)

    def pause(self, rate: int) -> int:
        """Samples of silence between sentences that are spoken one by one."""
        return round(SENTENCE_PAUSE * rate)

    def next_part(self, text: str, wanted: Callable[[], bool]) -> tuple[Audio, int] | None:
        """The next (speech, samples of silence behind it) of the stream; None at its end.

        Raises what the engine raises, WorkerError if a second attempt sounds different; then `restart` is due.
        """
        if self._parts is None:
            self._pieces = self.engine.stream(self._speaker, text)
            self._parts = parts_between_pauses(_behind(_while(wanted, self._pieces), self._cut, self._mark))
        found = next(self._parts, None)
        if found is not None:
            speech, pause = found
            self._mark = _checksum(np.zeros(pause, np.float32), _checksum(speech.mono().samples, self._mark))
            self._cut += speech.frames + pause
        return found

    def restart(self) -> None:
        """The next part comes from a new stream, behind what was cut already."""
        self._parts = None

    def close(self) -> None:
        """End the stream, on a server too. One that is at work just now ends at its next piece."""
        close = getattr(self._pieces, "close", None)
        if close is not None:
            try:
                close()
            except ValueError:  # a generator that another thread is in
                pass


def _fix_seed(engine: BaseTTSEngine) -> None:
    """Without a seed every stream is another; one that must begin again after a dead worker has to be the same."""
    chosen = getattr(engine, "settings", None)
    if chosen is not None and getattr(chosen, "seed", 0) is None:
        engine.settings = replace(chosen, seed=secrets.randbits(32))


def _while(wanted: Callable[[], bool], pieces: Iterator[Audio]) -> Iterator[Audio]:
    for piece in pieces:
        if not wanted():
            return
        yield piece


def _behind(pieces: Iterator[Audio], cut: int, mark: int) -> Iterator[Audio]:
    """The stream without its first `cut` samples, which must be those with that checksum."""
    found, left = 0, cut
    for piece in pieces:
        samples = piece.mono().samples
        found = _checksum(samples[:left], found)
        samples, left = samples[left:], left - min(left, len(samples))
        if left == 0 and found != mark and cut:
            break
        cut = cut if left else 0
        if len(samples):
            yield Audio(samples, piece.rate)
    if cut:
        raise WorkerError("the speech sounded different when it was begun again", "Give the engine a seed.")


def _checksum(samples: np.ndarray, before: int) -> int:
    return zlib.crc32((samples + np.float32(0)).tobytes(), before)  # -0 becomes 0: it counts as silence
