"""What every text-to-speech engine offers: enrol a speaker once, then speak any text as that speaker.

An engine writes two methods, `enroll` and `stream`; speaking into memory or into a file follows from them. This module
knows no engine, and nothing of splitting long texts into sentences.
"""

from __future__ import annotations

import hashlib
import re
from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

import numpy as np

from rvc_spark.audio import Audio, EncodeOptions, WatermarkReport, open_writer, watermark_in_use
from rvc_spark.errors import OutputError, RvcSparkError, SpeechError, TextError
from rvc_spark.rvc_config import Choice

MAX_SPOKEN_CHARS = 200_000
"""Longest text of one call, in characters; about four hours of speech."""

_UNSPEAKABLE = re.compile(r"[\x00-\x08\x0e-\x1f\x7f-\x84\x86-\x9f\ud800-\udfff\ufffe\uffff]")


@dataclass(frozen=True)
class AudioResult:
    """One text spoken into a file, or why not. `path` is None and the numbers are 0 where `success` is False."""

    path: Path | None
    duration_seconds: float
    sample_rate: int
    sample_count: int
    success: bool
    error: str | None = None
    watermark: WatermarkReport | None = None


@dataclass(frozen=True)
class EmbeddingResult:
    """One speaker enrolled, or why not.

    path: the file to hand to `synthesize`. sample_count: recordings used. source_hz: median pitch of the recordings;
    reached_hz: the median pitch with which the engine will speak (None: the engine does not measure it).
    """

    path: Path | None
    sample_count: int
    success: bool
    error: str | None = None
    source_hz: float | None = None
    reached_hz: float | None = None


class BaseTTSEngine(ABC):
    """A speech engine. `folder` is where its files go; it is made when the first one is written.

    licence: what the engine's weights ask of those who use its sound; written into the tags of its files.
    """

    name: ClassVar[str]
    licence: ClassVar[str] = ""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    @property
    @abstractmethod
    def choice(self) -> Choice:
        """Which engine this is and in what voice, for people to read."""

    @property
    def enrolment_key(self) -> str:
        """What a file of `enroll` depends on besides the recordings: engines of equal key make the same file."""
        return self.name

    @abstractmethod
    def enroll(self, samples: Sequence[Path | Audio]) -> EmbeddingResult:
        """Learn a speaker from recordings and write what was learnt to a file. Failures are in the result."""

    @abstractmethod
    def stream(self, embedding_path: str | Path | None, text: str) -> Iterator[Audio]:
        """Speak a text piece by piece, mono, all pieces at one rate; the joined pieces are the whole.

        embedding_path: a file of `enroll`, None: the engine's default voice. Arguments are checked at once, not when
        the first piece is asked for. Closing the iterator ends the work.

        Raises TextError, SpeechError.
        """

    def speak(self, embedding_path: str | Path | None, text: str) -> Audio:
        """The whole text as one sound, mono. Raises what `stream` raises."""
        pieces = self.stream(embedding_path, text)
        first = self._first(pieces)
        return Audio(np.concatenate([first.samples, *(piece.samples for piece in pieces)]), first.rate)

    def synthesize(self, embedding_path: str | Path | None, text: str, *, output: Path | None = None) -> AudioResult:
        """Speak a text into a file, in memory that does not grow with its length.

        output: default is a wav file in `folder` named after everything that determines its sound, so that the same
        text and voice give the same file. Errors of this package do not escape: they are in the result, and then
        nothing is left behind.
        """
        try:
            pieces = self.stream(embedding_path, text)
            target = output or self._own_path(embedding_path, text)
            first = self._first(pieces)
            count = first.frames
            with open_writer(target, first.rate, 1, options=EncodeOptions(comment=self.licence)) as writer:
                writer.write(np.atleast_2d(first.samples))
                for piece in pieces:
                    writer.write(np.atleast_2d(piece.samples))
                    count += piece.frames
        except RvcSparkError as error:
            return AudioResult(None, 0.0, 0, 0, False, str(error))
        return AudioResult(Path(target), count / first.rate, first.rate, count, True, watermark=writer.watermark)

    def own_folder(self) -> Path:
        """`folder`, made if it is not there. Raises OutputError."""
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise OutputError(
                f"the folder {self.folder} cannot be made ({error})", "Give the engine another folder."
            ) from error
        return self.folder

    def _first(self, pieces: Iterator[Audio]) -> Audio:
        for piece in pieces:
            return piece
        raise SpeechError(f"{self.name} says nothing to this text", "Write words, in the language of the voice.")

    def _own_path(self, embedding_path: str | Path | None, text: str) -> Path:
        try:
            voice = Path(embedding_path).read_bytes() if embedding_path is not None else b""
        except OSError as error:
            raise SpeechError(f"{embedding_path} cannot be read ({error})", "Enrol the speaker again.") from error
        marks = [name for name in (watermark_in_use(),) if name != "none"]
        told = "\0".join([str(self.choice), text, *marks]).encode("utf-8")
        digest = hashlib.sha256(len(voice).to_bytes(8, "little") + voice + told).hexdigest()[:16]
        return self.own_folder() / f"{self.name}_{digest}.wav"


def check_spoken(text: str) -> str:
    """The text, if an engine may be given it.

    Raises TextError: not a str, empty, over MAX_SPOKEN_CHARS, control characters or unpaired surrogates. Control
    characters are commands to some engines, and end the text for others.
    """
    if not isinstance(text, str):
        raise TextError(f"the text is of type {type(text).__name__}, not str", "Decode it first, as UTF-8.")
    if len(text) > MAX_SPOKEN_CHARS:
        raise TextError(
            f"the text has {len(text):,} characters, up to {MAX_SPOKEN_CHARS:,} are spoken in one call",
            "Pass it chapter by chapter.",
        )
    if bad := _UNSPEAKABLE.search(text):
        raise TextError(
            f"the text holds U+{ord(bad[0]):04X}, which cannot be spoken, at character {bad.start() + 1}",
            "Remove it; binary data or a wrong encoding looks like this.",
        )
    if not text.strip():
        raise TextError("the text is empty", "Write at least one word.")
    return text


