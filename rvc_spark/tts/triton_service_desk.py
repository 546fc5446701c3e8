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

from rvc_spark.tts.triton_service_cancel import Cancellation, Cancelled, CancelWatch
from rvc_spark.tts.triton_service_wire import Refusal, internal_refusal

if TYPE_CHECKING:
    from rvc_spark.tts.triton_service import SparkService

MAX_AT_ONCE = 512
"""Requests under way in one process; each has a thread."""
SPEECH_INPUTS = ("reference_wav", "reference_wav_len", "reference_text", "target_text")


class Desk:
    """Answers requests of one model."""

    def __init__(self, backend: Any) -> None:
        self._backend = backend
        self._watch = CancelWatch()
        self._places = threading.BoundedSemaphore(MAX_AT_ONCE)

    def close(self) -> None:
        """End the watch over cancelled requests."""
        self._watch.close()

    def begin(self, request: Any, answer: Callable[[Any, Cancellation], Mapping[str, np.ndarray] | None]) -> None:
        """Run `answer(sender, cancellation)` in a thread and send what it returns as the last response.

        It returns arrays by output name, or None when it has sent everything itself. It may raise Refusal, Cancelled.
        """
        sender = request.get_response_sender()
        if not self._places.acquire(blocking=False):
            self._finish(sender, Refusal("INTERNAL", f"{MAX_AT_ONCE} requests are under way. Try again later."))
            return
        threading.Thread(target=self._run, args=(sender, answer), name="answer", daemon=True).start()

    def inputs(self, request: Any, names: Sequence[str]) -> dict[str, np.ndarray]:
        """Copies of the inputs that were given, by name: the request's memory ends when `execute` returns."""
        tensors = {name: self._backend.get_input_tensor_by_name(request, name) for name in names}
        return {name: np.array(tensor.as_numpy()) for name, tensor in tensors.items() if tensor is not None}

    def given(self, request: Any) -> list[str]:
        """Names of all inputs of a request."""
        return [tensor.name() for tensor in request.inputs()]

    def send(self, sender: Any, outputs: Mapping[str, np.ndarray]) -> None:
        """One response of several."""
        sender.send(self.response(outputs))

    def response(self, outputs: Mapping[str, np.ndarray] | Refusal) -> Any:
        """A response, of arrays by name or with an error."""
        if isinstance(outputs, Refusal):
            errors = self._backend.TritonError
            internal = outputs.code in ("INTERNAL", "NO_SPEECH")
            return self._backend.InferenceResponse(
                error=errors(str(outputs), errors.INTERNAL if internal else errors.INVALID_ARG)
            )
        tensors = [self._backend.Tensor(name, array) for name, array in outputs.items()]
        return self._backend.InferenceResponse(output_tensors=tensors)

    def _run(self, sender: Any, answer: Callable[[Any, Cancellation], Mapping[str, np.ndarray] | None]) -> None:
        last: Mapping[str, np.ndarray] | Refusal | None
        try:
            with self._watch.watching(sender.is_cancelled) as cancellation:
                last = answer(sender, cancellation)
        except Refusal as refusal:
            last = refusal
        except Cancelled:
            last = Refusal("INTERNAL", "the request was cancelled.")
        except BaseException as error:
            self._finish(sender, internal_refusal(error))
            raise  # for the log of the server
        finally:
            self._places.release()
        self._finish(sender, last)

    def _finish(self, sender: Any, last: Mapping[str, np.ndarray] | Refusal | None) -> None:
        final = self._backend.TRITONSERVER_RESPONSE_COMPLETE_FINAL
        if last is None:
            sender.send(flags=final)
        else:
            sender.send(self.response(last), flags=final)


class SpeechDesk:
    """The front model's desk: streaming, several chunks and an empty last response; otherwise one response."""

    def __init__(self, backend: Any, service: SparkService, *, streaming: bool) -> None:
        self._desk, self._service, self._streaming = Desk(backend), service, streaming

    def take(self, request: Any) -> None:
        """Begin to answer a request."""
        inputs = self._desk.inputs(request, SPEECH_INPUTS)
        parameters = request.parameters()

        def answer(sender: Any, cancellation: Cancellation) -> Mapping[str, np.ndarray] | None:
            wanted = self._service.read(inputs, parameters)
            if not self._streaming:
                return {"waveform": self._service.whole(wanted, cancellation)[None]}
            for chunk in self._service.speak(wanted, cancellation):
                cancellation.check()
                self._desk.send(sender, {"waveform": chunk[None]})
            return None

        self._desk.begin(request, answer)

    def close(self) -> None:
        """End the desk's own thread."""
        self._desk.close()
