"""The language model behind the public model `tensorrt_llm`, where torch runs it.

It has the inputs and outputs of TensorRT-LLM's in-flight batcher, as far as they mean anything here. What is not
supported is refused by name, never ignored.

A request with `stop` true ends the running request of the same id, as there; its slot is free at once.
"""

from __future__ import annotations

import random
import threading
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from rvc_spark.errors import RvcSparkError
from rvc_spark.tts.triton_service_wire import Refusal, refusal_of

if TYPE_CHECKING:
    from rvc_spark.tts.spark_generate import Generator, TokenRequest, TokenStream

MAX_ALLOWED_SPANS = 4_096
PACE_SECONDS = 0.005
"""Least time between two answers of one request; a millisecond each is what they cost in the server."""
_NEUTRAL = {  # inputs that may be given, if they say what happens here anyway
    "beam_width": 1,
    "num_return_sequences": 1,
    "repetition_penalty": 1.0,
    "presence_penalty": 0.0,
    "frequency_penalty": 0.0,
    "len_penalty": 1.0,
    "early_stopping": 0,
    "min_length": 1,
    "runtime_top_p_min": 0.0,
    "runtime_top_p_decay": 1.0,
    "beam_search_diversity_rate": 0.0,
    "return_log_probs": 0,
    "return_context_logits": 0,
    "return_generation_logits": 0,
    "return_kv_cache_reuse_stats": 0,
    "exclude_input_in_output": 1,
}
_USED = {
    "input_ids", "input_lengths", "request_output_len", "end_id", "pad_id", "stop_words_list", "temperature",
    "runtime_top_k", "runtime_top_p", "random_seed", "streaming", "stop",
}  # fmt: skip
INPUTS = tuple(sorted(_USED | set(_NEUTRAL)))
"""What is read of a request; `unsupported` checks the rest."""


@dataclass(frozen=True)
class Generation:
    """One request: the prompt and how to go on with it. `streaming`: ids are answered one by one."""

    request: TokenRequest
    streaming: bool


def wants_stop(inputs: Mapping[str, np.ndarray]) -> bool:
    """Whether a request ends another one instead of starting one."""
    return "stop" in inputs and bool(inputs["stop"].any())


def read_generation(
    inputs: Mapping[str, np.ndarray], parameters: Mapping[str, Any], vocabulary_size: int
) -> Generation:
    """A request of `tensorrt_llm`, one row: arrays by input name, only those that were given.

    Raises Refusal naming the input.
    """
    from rvc_spark.tts.spark_generate import TokenRequest
    from rvc_spark.tts.spark_sampling import Sampling

    _check_neutral(inputs)
    if "input_ids" not in inputs:  # all inputs are optional on the wire, and a probe may send none
        raise Refusal("INVALID_PARAMETER", "input_ids is missing; it holds the prompt.")
    prompt = inputs["input_ids"].reshape(-1)[: _whole(inputs, "input_lengths", 0)]
    if not len(prompt) or int(prompt.min()) < 0 or int(prompt.max()) >= vocabulary_size:
        raise Refusal(
            "INVALID_PARAMETER",
            f"input_ids holds {len(prompt)} ids, it must hold at least one and all below {vocabulary_size:,}.",
        )
    given: dict[str, Any] = {"seed": _seed(inputs)}
    for name, field in (("temperature", "temperature"), ("runtime_top_k", "top_k"), ("runtime_top_p", "top_p")):
        if name in inputs:
            value = inputs[name].reshape(-1)[0]
            # 0.8 travels as a float32; as the double nearest to that it would sometimes choose another token.
            given[field] = float(str(value)) if value.dtype.kind == "f" else int(value)
    stop = {_whole(inputs, "end_id", -1), *_stop_words(inputs)} - {-1}
    try:
        sampling = Sampling(**given)
        request = TokenRequest(
            prompt=tuple(prompt.tolist()), sampling=sampling, max_new_tokens=_whole(inputs, "request_output_len", 0),
            stop_ids=frozenset(stop), allowed=allowed_ids(parameters.get("allowed")),
        )  # fmt: skip
    except RvcSparkError as error:
        raise refusal_of(error) from error
    return Generation(request, bool("streaming" in inputs and inputs["streaming"].any()))


def check_supported(name: str) -> None:
    """Raises Refusal for an input that TensorRT-LLM knows and this form does not."""
    if name not in INPUTS:
        raise Refusal("INVALID_PARAMETER", f"the input {name} is not supported by the language model run by torch.")


def told_allowed(ids: tuple[range | int, ...]) -> str:
    """Ids the sampler may choose, as the request parameter `allowed`: "5,9-12" are 5, 9, 10, 11 and 12."""
    return ",".join(f"{item.start}-{item.stop - 1}" if isinstance(item, range) else str(item) for item in ids)


def allowed_ids(told: Any) -> tuple[range | int, ...] | None:
    """The reverse of `told_allowed`; None for None. Raises Refusal."""
    if told is None:
        return None
    spans: list[range | int] = []
    for item in str(told).split(","):
        first, dash, last = item.partition("-")
        if not first.isdecimal() or (dash and not last.isdecimal()) or len(spans) >= MAX_ALLOWED_SPANS:
            raise Refusal("INVALID_PARAMETER", f"allowed holds {item[:40]!r}, it must be ids such as 5,9-12.")
        spans.append(range(int(first), int(last) + 1) if dash else int(first))
    return tuple(spans)


class LanguageModelService:
    """Requests of a `Generator` by their ids, so that one can end another. Safe in threads."""

    def __init__(self, generator: Generator) -> None:
        self._generator = generator
        self._running: dict[str, TokenStream] = {}
        self._lock = threading.Lock()

    def start(self, request_id: str, generation: Generation) -> TokenStream:
        """Ids to come; closing it frees its slot. Raises Refusal: too long for the model, or the id is in use."""
        try:
            stream = self._generator.submit(generation.request)
        except RvcSparkError as error:
            raise refusal_of(error) from error
        if request_id:
            with self._lock:
                if request_id in self._running:
                    stream.close()
                    raise Refusal("INVALID_PARAMETER", f"a request with the id {request_id!r:.60} is running.")
                self._running[request_id] = stream
        return stream

    def ended(self, request_id: str, stream: TokenStream) -> None:
        """Forget a request; its stream is closed."""
        stream.close()
        with self._lock:
            if self._running.get(request_id) is stream:
                del self._running[request_id]

    def stop(self, request_id: str) -> bool:
        """End the running request of this id; False if there is none."""
        with self._lock:
            stream = self._running.get(request_id)
        if stream is not None:
            stream.close()
        return stream is not None

    def running(self) -> int:
        """How many requests with an id are under way."""
        return len(self._running)

    def close(self) -> None:
        """End everything."""
        self._generator.close()


def answers(stream: TokenStream, streaming: bool) -> Iterator[list[int]]:
    """Ids in the pieces they are answered in: as they come, or all at the end (then also when there are none).

    A fast model makes several in PACE_SECONDS; one answer for each would cost the server more than making them.
    """
    if not streaming:
        yield list(stream)
        return
    while ids := stream.next_batch():
        yield ids
        time.sleep(PACE_SECONDS)


def output_arrays(ids: list[int]) -> dict[str, np.ndarray]:
    """output_ids int32 [1, 1, n] (row, beam, ids) and sequence_length int32 [1, 1]."""
    return {
        "output_ids": np.asarray(ids, np.int32).reshape(1, 1, -1),
        "sequence_length": np.asarray([[len(ids)]], np.int32),
    }


def _check_neutral(inputs: Mapping[str, np.ndarray]) -> None:
    for name, value in _NEUTRAL.items():
        if name in inputs and float(inputs[name].reshape(-1)[0]) != value:
            told = inputs[name].reshape(-1)[0].item()
            raise Refusal(
                "INVALID_PARAMETER", f"{name} is {told}, the language model run by torch supports only {value}."
            )


def _whole(inputs: Mapping[str, np.ndarray], name: str, default: int) -> int:
    return int(inputs[name].reshape(-1)[0]) if name in inputs else default


def _seed(inputs: Mapping[str, np.ndarray]) -> int:
    """The request's seed, or one by chance, so that a request can always be told apart in a log."""
    return _whole(inputs, "random_seed", 0) if "random_seed" in inputs else random.SystemRandom().getrandbits(31)


def _stop_words(inputs: Mapping[str, np.ndarray]) -> set[int]:
    """Single ids of stop_words_list int32 [1, 2, n]: a row of ids, and a row of where each word ends (-1: no more)."""
    if "stop_words_list" not in inputs:
        return set()
    ids, ends = inputs["stop_words_list"].reshape(2, -1)
    bounds = [0, *(int(end) for end in ends if end >= 0)]
    if any(after - before != 1 for before, after in zip(bounds, bounds[1:], strict=False)):
        raise Refusal("INVALID_PARAMETER", "stop_words_list holds words of several ids, only single ids can stop here.")
    return {int(number) for number in ids[: len(bounds) - 1]}
