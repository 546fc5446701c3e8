"""The front model `spark_tts`: one request of a client becomes sound, whole or while it is being made.

    request -> voice tokens (audio_tokenizer) -> `spark_speech` over tensorrt_llm and vocoder -> chunks

The loop from text to sound is the one of the engine in process. Imports no torch: its process is small and starts fast.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import closing
from dataclasses import replace
from typing import Any

import numpy as np

from rvc_spark.errors import RvcSparkError, SpeechError, TextError, VoiceTokensError
from rvc_spark.tts.spark_settings import SparkSettings
from rvc_spark.tts.spark_speech import SPARK_RATE, PartOfText, SpeechParts, SpokenText
from rvc_spark.tts.spark_tokens import ControlVoice, load_tokenizer
from rvc_spark.tts.spark_voice import SparkVoice
from rvc_spark.tts.triton_service_bls import ServerCodec, ServerLanguageModel, ServerModels, ServerTokenizer
from rvc_spark.tts.triton_service_cancel import Cancellation
from rvc_spark.tts.triton_service_frames import overlapped
from rvc_spark.tts.triton_service_settings import read_front_settings
from rvc_spark.tts.triton_service_wire import (
    Refusal,
    SpeechRequest,
    read_parameters,
    read_speech_request,
    refusal_of,
)

_SAMPLING = ("seed", "temperature", "top_k", "top_p", "max_tokens")


class SparkService:
    """Speaks requests; safe in threads.

    config: the model configuration as the server hands it over. models: the other models.
    Raises ConfigError, ModelFileError.
    """

    def __init__(self, config: Mapping[str, Any], models: ServerModels) -> None:
        self.settings = read_front_settings(config)
        self._tokenizer = load_tokenizer(self.settings.tokenizer_folder)
        self.models = models
        self._voices = ServerTokenizer(models)

    def read(self, inputs: Mapping[str, np.ndarray], parameters: str) -> SpeechRequest:
        """A request; everything wrong with it is said before any work is done. Raises Refusal."""
        request = read_speech_request(inputs, read_parameters(parameters), self.settings.chunks)
        try:
            settings_of(request).pieces(request.text)
        except RvcSparkError as error:
            raise refusal_of(error) from error
        return request

    def speak(self, request: SpeechRequest, cancellation: Cancellation) -> Iterator[np.ndarray]:
        """Chunks float32 [n] at 16 kHz. Raises Refusal; Cancelled when the client went away."""
        overlap = round(request.overlap_seconds * SPARK_RATE)
        with closing(self.sound(request, cancellation)) as sound:
            yield from overlapped(sound, overlap)

    def sound(self, request: SpeechRequest, cancellation: Cancellation) -> Iterator[np.ndarray]:
        """Pieces float32 [n] that follow one another. Raises as `speak`."""
        spoken = self._begin(request, cancellation)
        try:
            for piece in spoken:
                cancellation.check()
                yield piece
        except RvcSparkError as error:
            raise refusal_of(error) from error
        finally:
            spoken.close()

    def whole(self, request: SpeechRequest, cancellation: Cancellation) -> np.ndarray:
        """All of it, float32 [n]. Raises as `speak`."""
        with closing(self.sound(request, cancellation)) as sound:
            return np.concatenate(list(sound))

    def _begin(self, request: SpeechRequest, cancellation: Cancellation) -> SpokenText:
        cancellation.check()
        parts = SpeechParts(
            self._tokenizer, ServerLanguageModel(self.models, self.settings, cancellation),
            ServerCodec(self.models, self.settings.codec, cancellation),
        )  # fmt: skip
        try:
            voice = request.control or self._voice(request)
            part = PartOfText(request.piece, request.voice_text)
            return SpokenText(parts, request.text, voice, settings_of(request), part)
        except (TextError, VoiceTokensError) as error:
            raise refusal_of(error) from error
        except SpeechError as error:  # the prompt leaves no room to speak: the reference is too long
            raise Refusal("INVALID_REFERENCE", str(error)) from error

    def _voice(self, request: SpeechRequest) -> SparkVoice | ControlVoice:
        tokens = self._voices.tokens(request)
        semantic = () if tokens.semantic_tokens is None else tuple(tokens.semantic_tokens.tolist())
        return SparkVoice(tuple(tokens.global_tokens.tolist()), semantic, request.transcript)


def settings_of(request: SpeechRequest) -> SparkSettings:
    """The request's own settings over the defaults. Raises ConfigError."""
    given = {name: getattr(request, name) for name in _SAMPLING if getattr(request, name) is not None}
    return replace(SparkSettings(), chunks=request.chunks, **given)

