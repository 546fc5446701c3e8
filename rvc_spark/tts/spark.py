"""Spark-TTS in this process: a recording of seconds becomes a voice, and the voice speaks any text.

    recording -> 6 s clip -> mel -> 32 global tokens                       the voice
              -> wav2vec2 -> semantic tokens                               only with a transcript
    text + voice -> language model -> semantic tokens -> codec -> 16 kHz   streamed while tokens are being made

The weights are CC BY-NC-SA 4.0: no commercial use. `SparkEngine.licence` says so, and so does every voice file.
"""

from __future__ import annotations

import hashlib
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from types import TracebackType
from typing import ClassVar

import numpy as np

from rvc_spark.audio import Audio
from rvc_spark.errors import AudioError, RvcSparkError
from rvc_spark.rvc_config import Choice, RVCConfig
from rvc_spark.tts.engine import BaseTTSEngine, EmbeddingResult, check_spoken
from rvc_spark.tts.spark_checkpoint import LICENCE_NOTE
from rvc_spark.tts.spark_networks import SparkNetworks
from rvc_spark.tts.spark_settings import SparkSettings
from rvc_spark.tts.spark_speech import SPARK_RATE, SpeechNotes, SpokenText
from rvc_spark.tts.spark_tokens import ControlVoice
from rvc_spark.tts.spark_voice import SparkVoice, read_voice

REFERENCE_GAP = 0.1  # seconds of silence between recordings that are enrolled together


class SpokenAudio:
    """What `SparkEngine.stream` returns: an iterator of Audio at 16 kHz, and `notes` of what happened."""

    def __init__(self, spoken: SpokenText) -> None:
        self._spoken = spoken

    def __iter__(self) -> Iterator[Audio]:
        return self

    def __next__(self) -> Audio:
        return Audio(next(self._spoken), SPARK_RATE)

    @property
    def notes(self) -> SpeechNotes:
        """Seed, voice, tokens, retries and warnings."""
        return self._spoken.notes

    def close(self) -> None:
        """End the work."""
        self._spoken.close()


class SparkEngine(BaseTTSEngine):
    """Spark-TTS on this machine. Loads its networks when first needed; `close` (or `with`) frees them.

    config: where the checkpoint is and on what it runs. folder: for the files of `enroll` and `synthesize`.
    voice: spoken when no speaker file is given. networks: loaded ones to share.
    Raises AssetError without a checkpoint, ModelFileError for a damaged one.
    """

    name: ClassVar[str] = "spark"
    licence: ClassVar[str] = LICENCE_NOTE

    def __init__(
        self,
        settings: SparkSettings | None = None,
        *,
        config: RVCConfig | None = None,
        folder: str | Path | None = None,
        voice: SparkVoice | ControlVoice | None = None,
        networks: SparkNetworks | None = None,
    ) -> None:
        super().__init__(Path(folder) if folder else Path(tempfile.gettempdir()) / "rvc_spark_speech")
        self.settings = settings or SparkSettings()
        self.voice = voice or ControlVoice()
        self._own = networks is None
        self.networks = networks or SparkNetworks(config or RVCConfig())

    @property
    def choice(self) -> Choice:
        """`spark (in process, fp32 on cpu, female, pitch moderate, ...)`: all that shapes the sound."""
        own = self.settings
        voice = str(self.voice) if isinstance(self.voice, ControlVoice) else f"the voice {_short(self.voice)}"
        seed = "a seed of its own" if own.seed is None else f"seed {own.seed}"
        return Choice(
            self.name,
            f"in process, {self.networks.told}, without a reference {voice}, {seed}, temperature {own.temperature:g}, "
            f"top_k {own.top_k}, top_p {own.top_p:g}; {LICENCE_NOTE}",
        )

    def stream(self, embedding_path: str | Path | None, text: str) -> SpokenAudio:
        """See `BaseTTSEngine.stream`; 16 kHz. `.notes` of the result tells seed, tokens, retries and warnings."""
        voice = self.voice if embedding_path is None else read_voice(embedding_path)
        return SpokenAudio(SpokenText(self.networks.parts(), check_spoken(text), voice, self.settings))

    def enroll(self, samples: Sequence[Path | Audio], *, transcript: str | None = None) -> EmbeddingResult:
        """Learn a voice: the first 6 s of the recordings, joined, become 32 tokens in a small file.

        transcript: what the (single) recording says; then its speech itself is kept too, and continued in its manner.
        Closer to the recording, but it must fit it word for word. Failures are in the result.
        """
        try:
            voice = self.voice_of(samples, transcript=transcript)
            content = repr((voice.global_tokens, voice.semantic_tokens, voice.transcript)).encode()
            path = voice.save(self.own_folder() / f"spark_{hashlib.sha256(content).hexdigest()[:12]}.safetensors")
        except RvcSparkError as error:
            return EmbeddingResult(None, 0, False, str(error))
        return EmbeddingResult(path, len(samples), True)

    def voice_of(self, samples: Sequence[Path | Audio], *, transcript: str | None = None) -> SparkVoice:
        """The voice of recordings, without a file. Raises AudioError, TextError, AssetError, VoiceTokensError."""
        if not samples:
            raise AudioError("there is no recording to enrol", "Give at least one; 6 s or longer is best.")
        if transcript is not None and len(samples) != 1:
            raise AudioError(
                f"a transcript is given with {len(samples)} recordings", "Give the one recording the transcript is of."
            )
        return self.networks.voice_of(samples, transcript)

    def close(self) -> None:
        """Free the networks, unless they were given by the caller."""
        if self._own:
            self.networks.close()

    def __enter__(self) -> SparkEngine:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def _short(voice: SparkVoice) -> str:
    return hashlib.sha256(np.asarray(voice.global_tokens, "<i4").tobytes()).hexdigest()[:8]
