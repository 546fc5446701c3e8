"""The other models of the server, as the front model reaches them: calls through the server itself.

`backend` is the module the server gives its Python models. Everything here may be called from any thread. A running
generation is ended in the language model's own way, a second request of the same id with `stop`, because a cancelled
client is not passed on by the server.
"""

from __future__ import annotations

import threading
import uuid
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from rvc_spark.tts.chunk_schedule import Window
from rvc_spark.tts.spark_settings import SAMPLES_PER_TOKEN, SparkSettings
from rvc_spark.tts.spark_speech import TokenCall
from rvc_spark.tts.triton_service_cancel import Cancellation, Retired
from rvc_spark.tts.triton_service_codec import VoiceTokens
from rvc_spark.tts.triton_service_lm import told_allowed
from rvc_spark.tts.triton_service_settings import CodecSizes, FrontSettings
from rvc_spark.tts.triton_service_wire import SpeechRequest, forwarded_refusal

TOKENIZER, LANGUAGE_MODEL, VOCODER = "audio_tokenizer", "tensorrt_llm", "vocoder"


@dataclass(frozen=True)
class Call:
    """One request to another model: arrays by input name, names of outputs wanted, and parameters."""

    model: str
    inputs: Mapping[str, np.ndarray]
    outputs: Sequence[str]
    parameters: Mapping[str, str | int | bool] | None = None
    request_id: str = ""


class ServerModels:
    """Calls of one server process. retired: where exhausted iterators of answers wait to be let go."""

    def __init__(self, backend: Any) -> None:
        self._backend = backend
        self.retired = Retired()

    def ask(self, call: Call) -> dict[str, np.ndarray]:
        """One answer, by output name. Raises Refusal with the other model's words."""
        response = self._request(call).exec()
        self._check(response)
        return {tensor.name(): _array(tensor) for tensor in response.output_tensors()}

    def ask_many(self, call: Call) -> Iterator[dict[str, np.ndarray]]:
        """Answers as they come; the request is sent when this is called, not when the first answer is waited for."""
        return self._answers(self._request(call).exec(decoupled=True))

    def _request(self, call: Call) -> Any:
        tensors = [self._backend.Tensor(name, array) for name, array in call.inputs.items()]
        return self._backend.InferenceRequest(
            model_name=call.model, request_id=call.request_id, requested_output_names=list(call.outputs),
            inputs=tensors, parameters=dict(call.parameters or {}),
        )  # fmt: skip

    def _answers(self, responses: Any) -> Iterator[dict[str, np.ndarray]]:
        try:
            for response in responses:
                self._check(response)
                tensors = response.output_tensors()
                if tensors:
                    yield {tensor.name(): _array(tensor) for tensor in tensors}
        finally:
            for _ in responses:  # to its end, or the server keeps the request
                pass
            self.retired.keep(responses)

    @staticmethod
    def _check(response: Any) -> None:
        if response.has_error():
            raise forwarded_refusal(response.error().message())


class ServerTokenizer:
    """Recordings to tokens."""

    def __init__(self, models: ServerModels) -> None:
        self._models = models

    def tokens(self, request: SpeechRequest) -> VoiceTokens:
        """Tokens of a request's voice. Semantic ones only where it has a transcript: they cost the most."""
        samples = request.reference if len(request.reference) else np.zeros(1, np.float32)
        parameters: dict[str, str | int | bool] = {}
        if request.voice is not None and not len(request.reference):
            parameters["voice"] = request.voice
        if request.normalise_volume is not None:
            parameters["normalise_volume"] = request.normalise_volume
        names = ["global_tokens"] if request.transcript is None else ["global_tokens", "semantic_tokens"]
        inputs = {"reference_wav": samples[None], "reference_wav_len": np.asarray([[len(samples)]], np.int32)}
        found = self._models.ask(Call(TOKENIZER, inputs, names, parameters))
        semantic = found["semantic_tokens"].reshape(-1) if len(names) > 1 else None
        return VoiceTokens(found["global_tokens"].reshape(-1), semantic)


class ServerLanguageModel:
    """`spark_speech.LanguageModel` for one request of a client, which may go away at any time."""

    def __init__(self, models: ServerModels, settings: FrontSettings, cancellation: Cancellation) -> None:
        self.room = settings.room
        self._models, self._cancellation = models, cancellation
        self._restricts = settings.restricts

    def generate(self, call: TokenCall, settings: SparkSettings) -> ServerTokens:
        """See `spark_speech.LanguageModel`."""
        self._cancellation.check()
        inputs = {
            "input_ids": np.asarray(call.prompt, np.int32)[None],
            "input_lengths": np.asarray([[len(call.prompt)]], np.int32),
            "request_output_len": np.asarray([[call.limit]], np.int32),
            "streaming": np.asarray([[True]]),
            "temperature": np.asarray([[settings.temperature]], np.float32),
            "runtime_top_k": np.asarray([[settings.top_k]], np.int32),
            "runtime_top_p": np.asarray([[settings.top_p]], np.float32),
            "random_seed": np.asarray([[call.seed]], np.uint64),
        }
        if call.stop_ids:
            first, *others = sorted(call.stop_ids)
            inputs["end_id"] = np.asarray([[first]], np.int32)
            inputs["pad_id"] = inputs["end_id"]
            if others:
                inputs["stop_words_list"] = np.asarray([[others, range(1, len(others) + 1)]], np.int32)
        parameters = {"allowed": told_allowed(call.allowed)} if self._restricts else {}
        own = Call(LANGUAGE_MODEL, inputs, ["output_ids", "sequence_length"], parameters, str(uuid.uuid4()))
        return ServerTokens(self._models, own, call, self._cancellation)


class ServerTokens:
    """`spark_speech.Tokens`: ids from the language model, ended by its last, by `close`, or by the client."""

    def __init__(self, models: ServerModels, request: Call, call: TokenCall, cancellation: Cancellation) -> None:
        self._models, self._request, self._call = models, request, call
        self._cancellation = cancellation
        self._count = 0
        self._stopping = threading.Lock()
        self._over = False
        self.finish: str | None = None
        self._watched = cancellation.calling(self._stop)
        self._responses = models.ask_many(request)
        self._watched.__enter__()
        self._ids = self._read()

    def __iter__(self) -> ServerTokens:
        return self

    def __next__(self) -> int:
        return next(self._ids)

    def close(self) -> None:
        """End it; its slot in the language model is free when this returns."""
        if not self._over:
            self.finish = self.finish or "cancelled"
            self._stop()
            for _ in self._responses:  # what was under way; without the end the server keeps the request
                pass
            self._end()

    def _read(self) -> Iterator[int]:
        try:
            for answer in self._responses:
                self._cancellation.check()
                length = int(answer["sequence_length"].reshape(-1)[0])
                for number in answer["output_ids"].reshape(-1)[:length].tolist():
                    if self.finish is None and number in self._call.stop_ids:
                        self.finish = "stop"  # TensorRT-LLM may answer the id that ends it
                    if self.finish is None:
                        self._count += 1
                        yield number
        except GeneratorExit:
            raise
        except BaseException:
            self._end()
            raise
        if self.finish is None:
            self.finish = "length" if self._count >= self._call.limit else "stop"
        self._end()
        self._cancellation.check()

    def _end(self) -> None:
        if not self._over:
            self._over = True
            self._watched.__exit__(None, None, None)

    def _stop(self) -> None:
        """Ask the language model to end. Harmless when it has ended, or was asked before."""
        with self._stopping:
            if self._over:
                return
            inputs = {
                name: self._request.inputs[name] for name in ("input_ids", "input_lengths", "request_output_len")
            }
            inputs["stop"] = np.asarray([[True]])
            call = Call(LANGUAGE_MODEL, inputs, self._request.outputs, None, self._request.request_id)
            for _ in self._models.ask_many(call):
                pass


class ServerCodec:
    """`spark_speech.Codec` over the vocoder. It is asked window by window, with all the context a window needs."""

    def __init__(self, models: ServerModels, sizes: CodecSizes, cancellation: Cancellation) -> None:
        self.reach, self.semantic_size, self.global_size = sizes.reach, sizes.semantic_size, sizes.global_size
        self._models, self._cancellation = models, cancellation

    def utterance(self, global_tokens: Sequence[int]) -> Callable[[Sequence[int], Window], np.ndarray]:
        """See `spark_speech.Codec`."""
        voice = np.asarray(global_tokens, np.int32)[None]

        def decode(semantic: Sequence[int], window: Window) -> np.ndarray:
            self._cancellation.check()
            tokens = np.asarray(semantic[window.start : window.stop], np.int32)[None]
            found = self._models.ask(Call(VOCODER, {"global_tokens": voice, "semantic_tokens": tokens}, ["waveform"]))
            begin, end = (
                (edge - window.start) * SAMPLES_PER_TOKEN for edge in (window.keep_start, window.keep_stop)
            )
            return found["waveform"].reshape(-1)[begin:end]

        return decode


def _array(tensor: Any) -> np.ndarray:
    """A copy: the tensor's memory is the server's, and ends with its response."""
    return np.array(tensor.as_numpy())

