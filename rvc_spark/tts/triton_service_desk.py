"""How a model answers: requests are taken in at once and each is answered from a thread of its own.

The server calls a model with the next requests only when it has returned, so work done inside that call would stand in
the way of everybody else. An answer may be sent from any thread, by models that stream and by those that do not.

`backend` is the module the server gives its Python models.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from rvc_spark.tts.triton_service_cancel import Cancellation, Cancelled, CancelWatch, Retired
from rvc_spark.tts.triton_service_wire import Refusal, internal_refusal, read_parameters

if TYPE_CHECKING:
    from rvc_spark.tts.triton_service import SparkService

MAX_AT_ONCE = 512
"""Requests under way in one process; each has a thread."""
EARLY_WORDS = 1_000
SPEECH_INPUTS = ("reference_wav", "reference_wav_len", "reference_text", "target_text")


class Reply:
    """Where the answer to one request goes. Outputs nobody asked for are left out here: the server would remove them
    from a response without holding the interpreter's lock, which corrupts the heap."""

    def __init__(self, backend: Any, request: Any) -> None:
        self._backend = backend
        self._sender = request.get_response_sender()
        self.wanted = frozenset(request.requested_output_names())
        self.ended = threading.Event()

    def is_cancelled(self) -> bool:
        """Whether the client hung up, or ended the request by word."""
        return self.ended.is_set() or self._sender.is_cancelled()

    def send(self, outputs: Mapping[str, np.ndarray]) -> None:
        """One response of several."""
        self._sender.send(self._response(outputs))

    def finish(self, last: Mapping[str, np.ndarray] | Refusal | None) -> None:
        """The last response; None: an empty one."""
        final = self._backend.TRITONSERVER_RESPONSE_COMPLETE_FINAL
        if last is None:
            self._sender.send(flags=final)
        else:
            self._sender.send(self._response(last), flags=final)

    def _response(self, outputs: Mapping[str, np.ndarray] | Refusal) -> Any:
        if not isinstance(outputs, Refusal):
            outputs = {name: array for name, array in outputs.items() if name in self.wanted}
        return response_of(self._backend, outputs)


def response_of(backend: Any, outputs: Mapping[str, np.ndarray] | Refusal) -> Any:
    """A response, of arrays by name or with an error."""
    if isinstance(outputs, Refusal):
        internal = outputs.code in ("INTERNAL", "NO_SPEECH")
        status = backend.TritonError.INTERNAL if internal else backend.TritonError.INVALID_ARG
        return backend.InferenceResponse(error=backend.TritonError(str(outputs), status))
    return backend.InferenceResponse(output_tensors=[backend.Tensor(name, array) for name, array in outputs.items()])


Answer = Callable[[Reply, Cancellation], Mapping[str, np.ndarray] | None]


class EndWords:
    """Requests that another request may end by naming their id.

    Needed because Triton 2.51 dies of a double free now and then when a client resets a stream that is being written.
    A word may come before the request it means: the last EARLY_WORDS of those are kept.
    """

    def __init__(self) -> None:
        self._running: dict[str, threading.Event] = {}
        self._early: dict[str, None] = {}
        self._lock = threading.Lock()

    def enter(self, request_id: str, ended: threading.Event) -> None:
        """A request is under way; `ended` is set when its word comes."""
        with self._lock:
            if request_id in self._early:
                del self._early[request_id]
                ended.set()
            elif request_id:
                self._running[request_id] = ended

    def leave(self, request_id: str) -> None:
        """It is answered."""
        with self._lock:
            self._running.pop(request_id, None)

    def say(self, request_id: str) -> None:
        """End the request of that id."""
        with self._lock:
            ended = self._running.get(request_id)
            if ended is not None:
                ended.set()
                return
            self._early[request_id] = None
            if len(self._early) > EARLY_WORDS:
                del self._early[next(iter(self._early))]


class Desk:
    """Answers requests of one model. retired: see `CancelWatch`."""

    def __init__(self, backend: Any, retired: Retired | None = None) -> None:
        self._backend = backend
        self._watch = CancelWatch(retired)
        self._places = threading.BoundedSemaphore(MAX_AT_ONCE)
        self._words = EndWords()

    def end(self, request: Any, request_id: str) -> None:
        """End the request of that id; `request` said so and is answered with nothing."""
        self._words.say(request_id)
        Reply(self._backend, request).finish(None)

    def close(self) -> None:
        """End the watch over cancelled requests."""
        self._watch.close()

    def begin(self, request: Any, answer: Answer) -> None:
        """Run `answer(reply, cancellation)` in a thread and send what it returns as the last response.

        It returns arrays by output name, or None when it has sent everything itself. It may raise Refusal, Cancelled.
        """
        reply = Reply(self._backend, request)
        if not self._places.acquire(blocking=False):
            reply.finish(Refusal("INTERNAL", f"{MAX_AT_ONCE} requests are under way. Try again later."))
            return
        request_id = request.request_id()
        self._words.enter(request_id, reply.ended)
        threading.Thread(target=self._run, args=(reply, answer, request_id), name="answer", daemon=True).start()

    def inputs(self, request: Any, names: Sequence[str]) -> dict[str, np.ndarray]:
        """Copies of the inputs that were given, by name: the request's memory ends when `execute` returns."""
        tensors = {name: self._backend.get_input_tensor_by_name(request, name) for name in names}
        return {name: np.array(tensor.as_numpy()) for name, tensor in tensors.items() if tensor is not None}

    def given(self, request: Any) -> list[str]:
        """Names of all inputs of a request."""
        return [tensor.name() for tensor in request.inputs()]

    def _run(self, reply: Reply, answer: Answer, request_id: str) -> None:
        last: Mapping[str, np.ndarray] | Refusal | None
        try:
            with self._watch.watching(reply.is_cancelled) as cancellation:
                last = answer(reply, cancellation)
        except Refusal as refusal:
            last = refusal
        except Cancelled:
            last = None if reply.ended.is_set() else Refusal("INTERNAL", "the request was cancelled.")
        except BaseException as error:
            reply.finish(internal_refusal(error))
            raise  # for the log of the server
        finally:
            self._places.release()
            self._words.leave(request_id)
        reply.finish(last)


class SpeechDesk:
    """The front model's desk: streaming, several chunks and an empty last response; otherwise one response."""

    def __init__(self, backend: Any, service: SparkService, *, streaming: bool) -> None:
        self._desk, self._service, self._streaming = Desk(backend, service.models.retired), service, streaming

    def take(self, request: Any) -> None:
        """Begin to answer a request."""
        parameters = request.parameters()
        ends = read_parameters(parameters).get("cancel") if self._streaming else None
        if isinstance(ends, str):
            self._desk.end(request, ends)
            return
        inputs = self._desk.inputs(request, SPEECH_INPUTS)

        def answer(reply: Reply, cancellation: Cancellation) -> Mapping[str, np.ndarray] | None:
            wanted = self._service.read(inputs, parameters)
            if not self._streaming:
                return {"waveform": self._service.whole(wanted, cancellation)[None]}
            for chunk in self._service.speak(wanted, cancellation):
                cancellation.check()
                reply.send({"waveform": chunk[None]})
            return None

        self._desk.begin(request, answer)

    def close(self) -> None:
        """End the desk's own thread."""
        self._desk.close()
