"""The models with networks: each loads its part of the checkpoint, as its config.pbtxt says, and answers with it.

`model_dir` is the checkpoint folder, `device` and `precision` as in the settings of the package. Loading may say paths:
it speaks to the server's log, whose reader owns the server.
"""

from __future__ import annotations

import threading
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from rvc_spark.errors import ConfigError, RvcSparkError
from rvc_spark.tts.spark_checkpoint import SparkFolder
from rvc_spark.tts.triton_service_cancel import Cancellation
from rvc_spark.tts.triton_service_codec import Recording, TokenizerService, VocoderService, VoiceTokens, token_rows
from rvc_spark.tts.triton_service_desk import Desk, Reply, response_of
from rvc_spark.tts.triton_service_lm import (
    INPUTS,
    LanguageModelService,
    answers,
    check_supported,
    output_arrays,
    read_generation,
    wants_stop,
)
from rvc_spark.tts.triton_service_wire import Parameters, Refusal, read_parameters, refusal_of

if TYPE_CHECKING:
    from rvc_spark.tts.spark_features import FeatureExtractor


class ModelSettings:
    """String parameters of a model configuration, as the server hands it over."""

    def __init__(self, config: Mapping[str, Any]) -> None:
        self._told = {name: entry.get("string_value", "") for name, entry in config.get("parameters", {}).items()}

    def text(self, name: str) -> str:
        """A parameter. Raises ConfigError when it was not filled in."""
        value = self._told.get(name, "")
        if not value or value.startswith("${"):
            raise ConfigError(f"the parameter {name} is not set in config.pbtxt", "Write the repository anew.")
        return value

    def whole(self, name: str) -> int:
        """A whole number. Raises ConfigError."""
        value = self.text(name)
        if not value.isdecimal():
            raise ConfigError(f"the parameter {name} is {value!r:.60}, no whole number", "Write the repository anew.")
        return int(value)

    @property
    def folder(self) -> SparkFolder:
        """The checkpoint. Raises AssetError when it is not complete."""
        return SparkFolder(Path(self.text("model_dir"))).check()

    @property
    def device(self) -> str:
        """Where torch runs; "auto" is CUDA where there is one."""
        import torch

        told = self.text("device")
        return ("cuda" if torch.cuda.is_available() else "cpu") if told == "auto" else told


class TokenizerDesk:
    """Answers of `audio_tokenizer`."""

    def __init__(self, backend: Any, service: TokenizerService, *, normalise: bool) -> None:
        self._desk, self._service, self._normalise = Desk(backend), service, normalise
        self._encoding = threading.Lock()

    def take(self, request: Any) -> None:
        """Begin to answer a request: one recording a row."""
        inputs = self._desk.inputs(request, ("reference_wav", "reference_wav_len"))
        parameters = request.parameters()

        def answer(reply: Reply, cancellation: Cancellation) -> Mapping[str, np.ndarray]:
            told = Parameters(read_parameters(parameters))
            voice, normalise = told.text("voice"), told.flag("normalise_volume")
            told.check_all_known()
            normalise = self._normalise if normalise is None else normalise
            semantic = "semantic_tokens" in reply.wanted
            recordings = [Recording(samples, voice, normalise, semantic) for samples in rows_of(inputs, voice)]
            return token_rows(self._tokens(recordings, cancellation))

        self._desk.begin(request, answer)

    def close(self) -> None:
        """End the desk's own thread."""
        self._desk.close()

    def _tokens(self, recordings: Sequence[Recording], cancellation: Cancellation) -> list[VoiceTokens]:
        found = {index: self._service.remembered(recording) for index, recording in enumerate(recordings)}
        if any(tokens is None for tokens in found.values()):
            with self._encoding:  # one at a time; who waited for the same voice finds it in memory
                cancellation.check()
                found = {index: self._service.remembered(recording) for index, recording in enumerate(recordings)}
                new = [index for index, tokens in found.items() if tokens is None]
                made = self._service.tokenise([recordings[index] for index in new])
                found.update(zip(new, made, strict=True))
        for tokens in found.values():
            if isinstance(tokens, Refusal):
                raise tokens
        return [tokens for tokens in found.values() if isinstance(tokens, VoiceTokens)]


def rows_of(inputs: Mapping[str, np.ndarray], voice: str | None) -> list[np.ndarray]:
    """The recordings of a request without their padding, float32 [T] each; empty where `voice` stands for one."""
    waves, lengths = inputs["reference_wav"], inputs["reference_wav_len"].reshape(-1)
    if waves.ndim != 2 or len(lengths) != len(waves):
        raise Refusal(
            "INVALID_REFERENCE", f"reference_wav {list(waves.shape)} and {len(lengths)} lengths do not go together."
        )
    rows = []
    for wave, length in zip(waves, lengths, strict=True):
        if not 1 <= length <= len(wave):
            raise Refusal("INVALID_REFERENCE", f"reference_wav_len is {length}, the wave has {len(wave):,} samples.")
        known = voice is not None and length == 1
        rows.append(np.ascontiguousarray(wave[: 0 if known else length], np.float32))
    return rows


class Features:
    """The feature network, loaded in the background: it is the largest part, and most voices do without it."""

    def __init__(self, settings: ModelSettings) -> None:
        self._settings = settings
        self._lock = threading.Lock()
        self._network: FeatureExtractor | None = None
        self._refusal: Refusal | None = None
        if settings.folder.has_features:
            threading.Thread(target=self.__call__, name="features", daemon=True).start()

    def __call__(self) -> FeatureExtractor | None:
        """The network, None when the checkpoint has none. Raises Refusal when it cannot be loaded."""
        if not self._settings.folder.has_features:
            return None
        with self._lock:
            if self._network is None and self._refusal is None:
                self._load()
            if self._refusal is not None:
                raise self._refusal
            return self._network

    def _load(self) -> None:
        import torch

        from rvc_spark.tts.spark_features import load_features

        try:
            self._network = load_features(
                self._settings.folder.wav2vec2, device=self._settings.device, dtype=torch.float32
            )
        except RvcSparkError as error:
            self._refusal = refusal_of(error)
            raise


def tokenizer_desk(backend: Any, config: Mapping[str, Any]) -> TokenizerDesk:
    """`audio_tokenizer`. Raises RvcSparkError for a checkpoint that cannot be used."""
    from rvc_spark.tts.bicodec import load_bicodec

    settings = ModelSettings(config)
    told = settings.folder.settings()
    features = Features(settings)
    codec = load_bicodec(settings.folder.bicodec, device=settings.device, parts="encode")
    service = TokenizerService(codec, features, seconds=told.ref_segment_duration, hop=told.latent_hop_length)
    return TokenizerDesk(backend, service, normalise=told.volume_normalize)


class VocoderDesk:
    """Answers of `vocoder`."""

    def __init__(self, backend: Any, service: VocoderService) -> None:
        self._backend, self._desk, self._service = backend, Desk(backend), service

    def answer(self, requests: Sequence[Any]) -> list[Any]:
        """One response each; those of one shape are decoded as one batch, and a wrong one spoils only itself."""
        given = [self._desk.inputs(request, ("global_tokens", "semantic_tokens")) for request in requests]
        responses: list[Any] = [None] * len(requests)
        groups: dict[tuple[int, ...], list[int]] = {}
        for index, inputs in enumerate(given):
            try:
                self._service.check(inputs["global_tokens"], inputs["semantic_tokens"])
                groups.setdefault(inputs["semantic_tokens"].shape, []).append(index)
            except Refusal as refusal:
                responses[index] = response_of(self._backend, refusal)
        for shape, members in groups.items():
            voices = np.concatenate([given[index]["global_tokens"] for index in members])
            tokens = np.concatenate([given[index]["semantic_tokens"] for index in members])
            try:
                waves = self._service.decode(voices, tokens).reshape(len(members), shape[0], -1)
                made = [response_of(self._backend, {"waveform": wave}) for wave in waves]
            except RvcSparkError as error:
                made = [response_of(self._backend, refusal_of(error))] * len(members)
            for index, response in zip(members, made, strict=True):
                responses[index] = response
        return responses


def vocoder_desk(backend: Any, config: Mapping[str, Any]) -> VocoderDesk:
    """`vocoder`. Raises RvcSparkError for a checkpoint that cannot be used."""
    import torch

    from rvc_spark.tts.bicodec import load_bicodec

    settings = ModelSettings(config)
    half = settings.text("precision") == "fp16" and settings.device.startswith("cuda")
    dtype = torch.float16 if half else torch.float32
    codec = load_bicodec(settings.folder.bicodec, device=settings.device, dtype=dtype, parts="decode")
    return VocoderDesk(backend, VocoderService(codec))


class LanguageModelDesk:
    """Answers of `tensorrt_llm`."""

    def __init__(self, backend: Any, service: LanguageModelService, rows: int) -> None:
        self._desk, self._service, self._rows = Desk(backend), service, rows

    def take(self, request: Any) -> None:
        """Begin to answer a request, or end the one it names."""
        given = self._desk.given(request)
        inputs = self._desk.inputs(request, [name for name in given if name in INPUTS])
        told, request_id = request.parameters(), request.request_id()

        def answer(reply: Reply, cancellation: Cancellation) -> Mapping[str, np.ndarray] | None:
            if wants_stop(inputs):
                self._service.stop(request_id)
                return None
            for name in given:
                check_supported(name)
            generation = read_generation(inputs, read_parameters(told), self._rows)
            stream = self._service.start(request_id, generation)
            try:
                with cancellation.calling(stream.close):
                    for ids in answers(stream, generation.streaming):
                        reply.send(output_arrays(ids))
            finally:
                self._service.ended(request_id, stream)
            return None

        self._desk.begin(request, answer)

    def close(self) -> None:
        """End all generation."""
        self._service.close()
        self._desk.close()


def language_model_desk(backend: Any, config: Mapping[str, Any]) -> LanguageModelDesk:
    """`tensorrt_llm` run by torch. Raises RvcSparkError for a checkpoint that cannot be used."""
    from rvc_spark.tts.spark_generate import Generator
    from rvc_spark.tts.spark_lm import lm_dtype, lm_precision, load_lm

    settings = ModelSettings(config)
    dtype = lm_dtype(lm_precision(settings.text("precision"), settings.device))
    model = load_lm(settings.folder.llm, device=settings.device, dtype=dtype)
    generator = Generator(model, slots=settings.whole("slots"), max_length=settings.whole("room"))
    return LanguageModelDesk(backend, LanguageModelService(generator), model.config.vocab)
