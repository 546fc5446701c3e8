"""Who speaks: a Triton server, Spark-TTS in this process, or the embedded engine; one choice, with its reason.

    auto  ->  triton, if a server answers at the configured address
          ->  spark, if its checkpoint is here and a GPU is
          ->  espeak, which is always here

Asked for by name, an engine is taken or its lack is an error; nothing is replaced silently.
"""

from __future__ import annotations

import socket
import threading
from collections.abc import Mapping
from dataclasses import fields, replace
from pathlib import Path
from typing import Any, Protocol

from rvc_spark.audio import Audio
from rvc_spark.errors import ConfigError, RvcSparkError, SpeechError, TritonUnreachableError
from rvc_spark.rvc_config import Choice, RVCConfig
from rvc_spark.tts.chunk_schedule import ChunkSettings
from rvc_spark.tts.engine import BaseTTSEngine
from rvc_spark.tts.espeak import EspeakEngine, EspeakSettings
from rvc_spark.tts.spark_checkpoint import GET, LICENCE_NOTE, SparkFolder
from rvc_spark.tts.spark_settings import SparkSettings
from rvc_spark.tts.spark_tokens import ControlVoice

ENGINES = ("triton", "spark", "espeak")
PROBE_SECONDS = 0.5  # a server that does not take a connection for so long is not there
ANSWER_SECONDS = 2.0  # for questions about the server; who takes longer is not chosen
SPEAKER_SUFFIXES = (".safetensors", ".json")  # of files written by `enroll`

_CONTROL = tuple(field.name for field in fields(ControlVoice))
_CHUNKS = tuple(field.name for field in fields(ChunkSettings))


class EnrolledVoices(Protocol):
    """Voices that are known by name, as far as an engine needs them."""

    def speaker_file(self, engine: BaseTTSEngine, reference: str) -> Path | None:
        """The engine's file for a name; None where it is no name of a voice. Raises SpeechError, ProfileError."""


class Speakers:
    """The speech engines of one configuration. Networks and connections are made once and kept until `close`.

    enrolled: voices that may be a `reference` by name.
    """

    def __init__(self, config: RVCConfig, enrolled: EnrolledVoices | None = None) -> None:
        self.config = config
        self._enrolled = enrolled
        self._lock = threading.Lock()
        self._networks: Any = None
        self._client: Any = None

    def survey(self) -> dict[str, Choice]:
        """Every engine as `ready` or `missing`, with what it is or what it lacks."""
        problems = {"triton": self._no_triton(), "spark": self._no_spark(), "espeak": ""}
        told = {
            "triton": f"a server answers at {self._address}",
            "spark": f"checkpoint at {self.config.spark_dir}; {LICENCE_NOTE}",
            "espeak": "embedded, over a hundred languages, cannot clone",
        }
        return {
            name: Choice("missing", problem) if (problem := problems[name]) else Choice("ready", told[name])
            for name in ENGINES
        }

    def choose(self, asked: str | None = None) -> Choice:
        """The engine that will speak, and why it. `asked`: a name, "auto", or None for the configuration's.

        Raises ConfigError for an unknown name; TritonUnreachableError, AssetError when what was asked for is not here.
        """
        asked = asked or self.config.tts
        if asked not in ("auto", *ENGINES):
            raise ConfigError(f"the speech engine {asked!r:.40} is unknown", f"Choose auto, {', '.join(ENGINES)}.")
        if asked == "triton" and (problem := self._no_triton()):
            raise TritonUnreachableError(
                problem, "Start one: rvc-spark triton up; or set TRITON_SERVER_ADDR and TRITON_SERVER_PORT."
            )
        if asked == "spark":
            SparkFolder(self.config.spark_dir).check()
        if asked != "auto":
            return Choice(asked, "as set")
        no_triton = self._no_triton()
        if not no_triton:
            return Choice("triton", f"a server answers at {self._address}")
        no_spark = self._no_spark()
        if no_spark:
            return Choice("espeak", f"{no_triton}; {no_spark}")
        device = self.config.device_choice()
        if device.value.startswith("cuda"):
            return Choice("spark", f"{no_triton}; checkpoint and GPU are here")
        return Choice("espeak", f"{no_triton}; Spark-TTS is slow on {device}, ask for it by name")

    def engine(self, asked: str | None = None, values: Mapping[str, Any] | None = None) -> tuple[BaseTTSEngine, Choice]:
        """An engine with settings, and the choice that led to it.

        values: fields of EspeakSettings, SparkSettings, ChunkSettings and ControlVoice, or TritonSettings, as the
        engine takes them. Raises ConfigError naming what it does not take, and what `choose` raises.
        """
        choice = self.choose(asked)
        if choice.value == "triton":
            engine = self._triton(dict(values or {}), choice.reason)
            return engine, engine.choice
        engine = {"spark": self._spark, "espeak": self._espeak}[choice.value](dict(values or {}))
        return engine, Choice(choice.value, f"{choice.reason}; {engine.choice.reason}")

    def speaker_file(
        self, engine: BaseTTSEngine, reference: str | Path | Audio | None, transcript: str | None = None
    ) -> Path | None:
        """The file to hand to the engine for a recording, which is enrolled; a file of `enroll` is used as it is.

        reference: also the name of an enrolled voice, which knows its own transcript.

        Raises SpeechError: nothing could be learnt of the recording; ConfigError: a transcript without a recording.
        """
        if reference is None:
            if transcript is not None:
                raise ConfigError("a transcript is given without a recording", "Give the recording it is of.")
            return None
        if isinstance(reference, str) and self._enrolled is not None:
            known = self._enrolled.speaker_file(engine, reference)
            if known is not None:
                return known
        if not isinstance(reference, Audio):
            reference = Path(reference)
            if reference.suffix.lower() in SPEAKER_SUFFIXES:
                return reference
        if transcript is not None and engine.name == "espeak":
            raise ConfigError("the embedded engine cannot use a transcript", "Leave it out, or take engine='spark'.")
        told = {} if transcript is None else {"transcript": transcript}
        result = engine.enroll([reference], **told)
        if not result.success or result.path is None:
            raise SpeechError(f"the voice cannot be enrolled: {result.error}".rstrip("."), "Choose another recording.")
        return result.path

    def close(self) -> None:
        """Free networks and connections. Engines made before stop working."""
        with self._lock:
            for held in (self._networks, self._client):
                if held is not None:
                    held.close()
            self._networks = self._client = None

    @property
    def _address(self) -> str:
        return f"{self.config.triton_host}:{self.config.triton_port}"

    @property
    def _folder(self) -> Path:
        return self.config.temp_dir / "spark"

    def _no_triton(self) -> str:
        """Why no server can be used, or nothing."""
        from rvc_spark.triton_settings import TritonConnection

        where = TritonConnection.from_config(self.config)
        if self.config.offline and not where.is_local:
            return f"offline mode is on and {where} is not this machine"
        try:
            with socket.create_connection((where.host, where.port), PROBE_SECONDS):
                pass
        except OSError:
            return f"no Triton server at {self._address}"
        try:
            health = self._connected().health()
        except RvcSparkError as error:
            return error.problem
        return "" if health.live and health.ready and health.model_ready else health.problem or "it is not ready"

    def _no_spark(self) -> str:
        absent = SparkFolder(self.config.spark_dir).missing()
        return f"no Spark-TTS checkpoint ({absent[0]} missing; {GET})" if absent else ""

    def _connected(self) -> Any:
        from rvc_spark.triton_client import TritonConnection, TritonSparkClient

        with self._lock:
            if self._client is None:
                where = replace(TritonConnection.from_config(self.config), probe_seconds=ANSWER_SECONDS)
                self._client = TritonSparkClient(where)
            return self._client

    def _triton(self, values: dict[str, Any], why: str) -> BaseTTSEngine:
        from rvc_spark.triton_client import TritonSettings
        from rvc_spark.tts.triton_engine import TritonEngine

        settings = _only("triton", values, (TritonSettings,))
        return TritonEngine(self._connected(), TritonSettings(**settings), why=why, folder=self._folder)

    def _spark(self, values: dict[str, Any]) -> BaseTTSEngine:
        from rvc_spark.tts.spark import SparkEngine
        from rvc_spark.tts.spark_networks import SparkNetworks

        _only("spark", values, (SparkSettings, ChunkSettings, ControlVoice))
        control = ControlVoice(**{name: values.pop(name) for name in _CONTROL if name in values})
        chunks = ChunkSettings(**{name: values.pop(name) for name in _CHUNKS if name in values})
        settings = SparkSettings(**{"chunks": chunks, **values})
        with self._lock:
            if self._networks is None:
                self._networks = SparkNetworks(self.config)
        return SparkEngine(settings, folder=self._folder, voice=control, networks=self._networks)

    def _espeak(self, values: dict[str, Any]) -> BaseTTSEngine:
        return EspeakEngine(EspeakSettings(**_only("espeak", values, (EspeakSettings,))), folder=self._folder)


def _only(engine: str, values: dict[str, Any], kinds: tuple[type, ...]) -> dict[str, Any]:
    known = [field.name for kind in kinds for field in fields(kind)]
    if unknown := next((name for name in values if name not in known), None):
        raise ConfigError(
            f"the speech engine {engine} has no setting {unknown!r:.40}", f"It has {', '.join(known)}."
        )
    return values
