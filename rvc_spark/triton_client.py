"""Speech from a Triton server: text and a voice go in, sound comes out while it is being made.

    with TritonSparkClient() as client:                                  # TRITON_SERVER_ADDR, TRITON_SERVER_PORT
        audio = client.synthesize("Good morning.", "voice.wav", "What the recording says.")
        for piece in client.stream(book, client.prepare("voice.wav")): ...
        async for piece in client.astream(book, voice): ...

One connection carries any number of requests at once. Works with the servers of this package and with the public
Spark-TTS ones; the neighbours `triton_*` are reached through here. Starts no server.
"""

from __future__ import annotations

import secrets
import threading
import weakref
from collections.abc import Callable
from types import TracebackType
from typing import Self

import numpy as np

from rvc_spark.audio import Audio
from rvc_spark.errors import ConfigError, SpeechError
from rvc_spark.processing.pieces import speech_pieces
from rvc_spark.rvc_config import RVCConfig
from rvc_spark.triton_channel import Channel, closed_error
from rvc_spark.triton_inputs import (
    SAMPLE_RATE,
    Reference,
    SentenceRequest,
    Voice,
    check_no_tokens,
    prepare_reference,
)
from rvc_spark.triton_model import (
    TritonHealth,
    TritonModel,
    TritonStatistics,
    read_health,
    read_model,
    read_statistics,
)
from rvc_spark.triton_settings import SERVER_SETTINGS, TritonConnection, TritonSettings
from rvc_spark.triton_speech import AsyncSpeechStream, SpeechStream, Starter
from rvc_spark.triton_stream import KnownVoices, Line, SentenceReader

__all__ = [
    "AsyncSpeechStream",
    "Reference",
    "SpeechStream",
    "TritonConnection",
    "TritonHealth",
    "TritonModel",
    "TritonSettings",
    "TritonSparkClient",
    "TritonStatistics",
    "Voice",
]


class TritonSparkClient:
    """A client of one server; usable from any thread, and a context. Nothing is sent before the first question.

    A client survives its server: after a restart the next call works.
    """

    def __init__(self, where: TritonConnection | RVCConfig | str | None = None, port: int | None = None) -> None:
        """where: a connection, a configuration (default: the one from the environment), or a host with its `port`.

        Raises ConfigError for an address that is none, MissingPackageError without tritonclient.
        """
        self.connection = _connection(where, port)
        self._channel = Channel(self.connection)
        self._model: TritonModel | None = None
        self._voices = KnownVoices()
        self._line = Line(self._channel, self._voices, set(), threading.Lock(), _calling(self._server_lost))
        self._streams: weakref.WeakSet[SpeechStream | AsyncSpeechStream] = weakref.WeakSet()

    def synthesize(
        self, text: str, reference: Voice | None, transcript: str | None = None, settings: TritonSettings | None = None
    ) -> Audio:
        """The whole text as one sound, mono at 16 kHz. Arguments and errors as `stream`."""
        with self.stream(text, reference, transcript, settings) as pieces:
            samples = [piece.samples for piece in pieces]
        if not pieces.finished:  # ended by `close` in another thread: never half a sound for a whole one
            raise closed_error(str(self.connection))
        return Audio(np.concatenate(samples), SAMPLE_RATE)

    def stream(
        self, text: str, reference: Voice | None, transcript: str | None = None, settings: TritonSettings | None = None
    ) -> SpeechStream:
        """The sound piece by piece, mono at 16 kHz; closing the stream ends the work on the server.

        reference: a voice of `prepare`, a sound or a file with at least 0.5 s of speech, best 3 to 10 s; None for a
        voice made from the settings' gender, pitch and speed. transcript: what is said in it; with it the voice is
        closer, unless it does not match.

        Raises at once: TextError, AudioError, ConfigError. While iterating: TritonUnreachableError,
        TritonModelError, TritonRequestError, TritonTimeoutError, NothingSpokenError, ConfigError for settings the
        server does not take, and TextError and AudioError for what only the server could see.
        """
        settings = settings or TritonSettings()
        pieces = speech_pieces(text, settings.max_chars, settings.language)
        check_no_tokens(text, "the text")
        voice = self._voice(reference, transcript, settings)
        if not self._channel.is_open:
            raise closed_error(str(self.connection))
        start = self._starter(voice, settings, pieces[0])
        stream = SpeechStream(enumerate(pieces), start, settings, str(self.connection))
        self._streams.add(stream)
        return stream

    def astream(
        self, text: str, reference: Voice | None, transcript: str | None = None, settings: TritonSettings | None = None
    ) -> AsyncSpeechStream:
        """`stream` for `async for`. Preparing a recording takes milliseconds of the loop: pass one of `prepare`."""
        stream = AsyncSpeechStream(self.stream(text, reference, transcript, settings))
        self._streams.add(stream)
        return stream

    def prepare(self, reference: Voice, transcript: str | None = None) -> Reference:
        """Read and check a voice once, for many texts. Raises AudioError, TextError."""
        return prepare_reference(reference, transcript)

    def health(self) -> TritonHealth:
        """Whether server and model answer, and if not why. Raises nothing for a server that is down.

        A model whose process has died still counts as ready here, on every Triton: only speaking shows it.
        """
        return read_health(self._channel)

    def ready(self) -> bool:
        """Whether requests can be made."""
        health = self.health()
        return health.live and health.ready and health.model_ready

    def metadata(self) -> TritonModel:
        """The speaking model, its signature checked; asked once per connection.

        Raises TritonModelError, TritonUnreachableError, TritonTimeoutError, TritonRequestError.
        """
        model = self._model
        if model is None:  # several threads may ask at once: behind a lock each would wait for the failures before it
            model = self._model = read_model(self._channel)
        return model

    def statistics(self) -> TritonStatistics:
        """The server's counters of the model. Raises as `metadata`."""
        return read_statistics(self._channel)

    def close(self) -> None:
        """End all streams and the connection. Safe to call twice, from any thread."""
        error = closed_error(str(self.connection))
        for stream in list(self._streams):
            stream.abort(error)
        self._line.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def __repr__(self) -> str:
        return f"TritonSparkClient({self.connection}, model {self.connection.model})"

    def _voice(self, reference: Voice | None, transcript: str | None, settings: TritonSettings) -> Reference | None:
        if reference is None and settings.gender is None:
            raise SpeechError(
                "there is no voice to speak in", "Give a recording, or set gender, pitch and speed in the settings."
            )
        if reference is not None and settings.gender is not None:
            raise ConfigError("a recording and gender, pitch and speed are two voices", "Give one of them.")
        return None if reference is None else prepare_reference(reference, transcript)

    def _starter(self, voice: Reference | None, settings: TritonSettings, voice_text: str) -> Starter:
        """What requests a piece, as the server's kind needs it; the server is asked when the first one starts.

        With a seed, a server of this package is told which piece of the whole it is and what the first one says: all
        have their seeds then, and one voice made to order, as if the text had come in one request.
        """
        seed = settings.seed
        if seed is None and settings.gender is not None:
            seed = secrets.randbits(32)  # the voice of all pieces comes from it

        def start(piece: tuple[int, str], seconds: float) -> SentenceReader:
            model = self.metadata()
            parameters = settings.parameters()
            if model.rvc_spark is None and parameters:
                names = ", ".join(name for name in SERVER_SETTINGS if name in parameters)
                raise ConfigError(
                    f"the Triton server at {self.connection} is not of this package and takes no {names}",
                    "Leave the settings out, or start one with `rvc-spark triton up`.",
                )
            number, text = piece
            if seed is not None:
                parameters |= {"seed": seed, "piece": number, "voice_text": voice_text}
            wanted = parameters if model.rvc_spark else None
            request = SentenceRequest(model.name, text, voice, wanted, model.ends_by_word)
            return SentenceReader(self._line, request, seconds=seconds, overlap=model.overlap_samples)

        return start

    def _server_lost(self) -> None:
        """Whoever answers next may be another server: ask for its model and send voices anew."""
        self._voices.forget()
        self._model = None


def _connection(where: TritonConnection | RVCConfig | str | None, port: int | None) -> TritonConnection:
    if isinstance(where, TritonConnection):
        return where
    if isinstance(where, str):
        return TritonConnection(where, 8001 if port is None else port)
    config = RVCConfig() if where is None else where
    connection = TritonConnection.from_config(config)
    if config.offline and not connection.is_local:
        raise ConfigError(f"offline mode is on, and {connection} is not this machine", "Unset offline, or use it here.")
    return connection


def _calling(method: Callable[[], None]) -> Callable[[], None]:
    """A bound method that does not keep its object alive: threads of a forgotten client must not hold it."""
    weak = weakref.WeakMethod(method)

    def call() -> None:
        if (found := weak()) is not None:
            found()

    return call
