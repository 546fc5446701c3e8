"""The speech engine behind a Triton server: enrolling prepares a recording, speaking sends it and streams the answer.

The voice itself is made on the server, so the speaker file holds sound: what is sent, and what is said in it.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import ClassVar

import numpy as np

from rvc_spark.audio import Audio
from rvc_spark.errors import AudioError, RvcSparkError, SpeechError
from rvc_spark.rvc_config import Choice
from rvc_spark.triton_client import Reference, TritonSettings, TritonSparkClient
from rvc_spark.triton_inputs import MAX_REFERENCE_SECONDS, SAMPLE_RATE, prepare_reference
from rvc_spark.tts.engine import BaseTTSEngine, EmbeddingResult, check_spoken
from rvc_spark.tts.spark_checkpoint import LICENCE_NOTE
from rvc_spark.tts.speaker_file import read_speaker, write_speaker

MAX_EMBEDDING_BYTES = 4 << 20
"""30 s of samples take 2.6 MB as text."""

_FORMAT = "rvc_spark triton voice"
_MADE_VOICE = ("female", "moderate", "moderate")  # who speaks where nobody is enrolled: gender, pitch, speed


class TritonEngine(BaseTTSEngine):
    """Spark-TTS on a Triton server. The client stays the caller's: close it when done.

    why: how this server came to be chosen, for `choice`. folder: for the files of `enroll` and `synthesize`.
    """

    name: ClassVar[str] = "triton"
    licence: ClassVar[str] = LICENCE_NOTE

    def __init__(
        self,
        client: TritonSparkClient,
        settings: TritonSettings | None = None,
        *,
        why: str = "as set",
        folder: str | Path | None = None,
    ) -> None:
        super().__init__(Path(folder) if folder else Path(tempfile.gettempdir()) / "rvc_spark_speech")
        self.client = client
        self.settings = settings or TritonSettings()
        self.why = why

    @property
    def choice(self) -> Choice:
        """`triton (grpc://localhost:8001, model spark_tts; found running)`, with settings that shape the sound."""
        connection = self.client.connection
        told = ", ".join(f"{name} {value}" for name, value in self.settings.parameters().items())
        return Choice(self.name, f"{connection}, model {connection.model}{', ' * bool(told)}{told}; {self.why}")

    def enroll(self, samples: Sequence[Path | Audio], transcript: str | None = None) -> EmbeddingResult:
        """Keep up to 30 s of the recordings, joined in their order, in a small JSON file; the first 6 s are the voice.

        transcript: what is said, for a single recording of at most 30 s. Failures are in the result.
        """
        try:
            if not samples:
                raise SpeechError("there is no recording to enrol", "Give at least one, 3 to 10 seconds long.")
            if transcript is not None and len(samples) > 1:
                raise SpeechError(
                    f"there is one transcript for {len(samples)} recordings", "Enrol one recording with its transcript."
                )
            reference, used = _joined(samples, transcript)
            path = self._write(reference)
        except RvcSparkError as error:
            return EmbeddingResult(None, 0, False, str(error))
        return EmbeddingResult(path, used, True)

    def stream(self, embedding_path: str | Path | None, text: str) -> Iterator[Audio]:
        """See `BaseTTSEngine.stream`; 16 kHz. Without a speaker a voice made from attributes speaks.

        Raises what `TritonSparkClient.stream` raises.
        """
        check_spoken(text)
        if embedding_path is not None:
            return self.client.stream(text, read_reference(Path(embedding_path)), None, self._plain())
        settings = self.settings
        if settings.gender is None:
            gender, pitch, speed = _MADE_VOICE
            settings = replace(settings, gender=gender, pitch=pitch, speed=speed)
        return self.client.stream(text, None, None, settings)

    def _plain(self) -> TritonSettings:
        """The settings for an enrolled speaker, who needs no attributes."""
        return replace(self.settings, gender=None, pitch=None, speed=None)

    def _write(self, reference: Reference) -> Path:
        told = {
            "format": _FORMAT,
            "rate": SAMPLE_RATE,
            "transcript": reference.transcript,
            "voice": reference.voice,
            "samples": base64.b64encode(reference.payload).decode("ascii"),
        }
        return write_speaker(self.own_folder(), self.name, told)


def read_reference(path: Path) -> Reference:
    """The recording in a file of `TritonEngine.enroll`. Raises SpeechError for anything else."""
    told = read_speaker(path, _FORMAT, MAX_EMBEDDING_BYTES)
    try:
        raw = base64.b64decode(told["samples"], validate=True)
        samples = np.frombuffer(raw, "<f4").astype(np.float32)
        if told["rate"] != SAMPLE_RATE or hashlib.sha256(raw).hexdigest() != told["voice"]:
            raise ValueError("its samples are not those it was made with")
        if len(samples) > MAX_REFERENCE_SECONDS * SAMPLE_RATE:
            raise ValueError(f"it holds more than {MAX_REFERENCE_SECONDS:g} s")
        return prepare_reference(Audio(samples, SAMPLE_RATE), told["transcript"])
    except (KeyError, TypeError, ValueError, binascii.Error, RvcSparkError) as error:
        problem = error.problem if isinstance(error, RvcSparkError) else str(error)
        raise SpeechError(
            f"the speaker file {path.name!r} cannot be used ({problem:.200})", "Enrol the speaker again."
        ) from error


def _joined(samples: Sequence[Path | Audio], transcript: str | None) -> tuple[Reference, int]:
    """Recordings behind one another, as far as they fit, and how many were used."""
    if len(samples) == 1:
        return prepare_reference(samples[0], transcript), 1
    parts: list[np.ndarray] = []
    room = round(MAX_REFERENCE_SECONDS * SAMPLE_RATE)
    problem: AudioError | None = None
    for sample in samples:
        try:
            part = prepare_reference(sample).samples[:room]
        except AudioError as error:  # one bad recording of several does not hinder
            problem = error
            continue
        parts.append(part)
        room -= len(part)
        if room <= 0:
            break
    if not parts:
        raise problem or SpeechError("there is no recording to enrol", "Give at least one.")
    return prepare_reference(Audio(np.concatenate(parts), SAMPLE_RATE)), len(parts)
