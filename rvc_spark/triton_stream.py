"""One sentence on its way: a thread that requests it, repeats that where it is safe, and keeps what arrives.

The thread reads ahead of whoever listens. So a deadline counts what the server takes and not how slowly the sound is
played, a broken connection is noticed while nobody listens, and a sentence that is done holds no place in the network.
"""

from __future__ import annotations

import itertools
import queue
import threading
import time
import uuid
from collections import OrderedDict
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

import numpy as np

from rvc_spark.errors import (
    NothingSpokenError,
    RvcSparkError,
    TritonError,
    TritonModelError,
    TritonTimeoutError,
    TritonUnreachableError,
)
from rvc_spark.triton_answer import read_answer
from rvc_spark.triton_channel import CallFailed, Channel, closed_error
from rvc_spark.triton_errors import is_worth_repeating, stream_error, wants_voice_again
from rvc_spark.triton_inputs import SAMPLE_RATE, SentenceRequest
from rvc_spark.triton_join import OverlapJoiner

MAX_SENTENCE_SAMPLES = 600 * SAMPLE_RATE
"""No sentence takes ten minutes; a server that goes on sending must not fill the memory."""
KNOWN_VOICES = 256
"""As many voices as a server of this package remembers."""
_GRACE_SECONDS = 5.0  # gRPC ends a call at its deadline; this much later nobody believes that it will

_WORD_SECONDS = 3.0  # for asking a model to end a request; then the call is broken off

_ids = itertools.count()
_session = uuid.uuid4().hex[:12]


class KnownVoices:
    """The voices the server has been sent and still remembers, as far as can be known from here."""

    def __init__(self) -> None:
        self._names: OrderedDict[str, None] = OrderedDict()
        self._lock = threading.Lock()

    def __contains__(self, name: str) -> bool:
        with self._lock:
            return name in self._names

    def add(self, name: str) -> None:
        """A request with this voice's sound was answered with sound."""
        with self._lock:
            self._names[name] = None
            self._names.move_to_end(name)
            while len(self._names) > KNOWN_VOICES:
                self._names.popitem(last=False)

    def forget(self) -> None:
        """The server may be another one now."""
        with self._lock:
            self._names.clear()


@dataclass(frozen=True)
class Line:
    """What the sentences of a client share."""

    channel: Channel
    voices: KnownVoices
    readers: set[SentenceReader]  # those whose threads run
    lock: threading.Lock  # of `readers`
    lost: Callable[[], None]  # called when the server was gone

    def close(self, seconds: float = 2.0) -> None:
        """End every sentence and wait, for `seconds` at most, until their threads are gone."""
        with self.lock:
            running = list(self.readers)
        for reader in running:
            reader.cancel(closed_error(self.channel.place))
        end = time.monotonic() + seconds
        for reader in running:
            reader.join(max(0.0, end - time.monotonic()))
        self.channel.close()
        for reader in running:
            reader.join(0.5)


class SentenceReader:
    """The samples of one sentence, as they come. `cancel` from any thread; it reaches the server."""

    def __init__(self, line: Line, request: SentenceRequest, *, seconds: float, overlap: int) -> None:
        """Starts at once. overlap: samples that chunks of this server share. seconds: from now to the last sample."""
        self.begun = False  # whether `take` has returned any sample
        self._line, self._request, self._overlap = line, request, overlap
        self._end = time.monotonic() + seconds
        self._items: queue.SimpleQueue[np.ndarray | RvcSparkError | None] = queue.SimpleQueue()
        self._lock = threading.Lock()
        self._cancelled = threading.Event()
        self._reason: RvcSparkError = closed_error(line.channel.place)
        self._call: Any = None
        self._id = ""
        self._count = 0  # samples handed over
        self._thread = threading.Thread(target=self._run, name="triton sentence", daemon=True)
        try:
            with line.lock:
                self._thread.start()
                line.readers.add(self)
        except RuntimeError as error:  # no more threads
            raise TritonError(f"a sentence cannot be requested ({error})", "Run fewer requests at once.") from error

    def take(self, seconds: float) -> np.ndarray | None:
        """The next samples, float32 [T], T > 0; None at the end of the sentence. Waits for `seconds` at most.

        Raises TritonTimeoutError, and whatever became of the request.
        """
        rest = self._end - time.monotonic() + (0.0 if self._request.ends_by_word else _GRACE_SECONDS)
        try:
            item = self._items.get(timeout=max(0.0, min(seconds, rest)))
        except queue.Empty:
            self.cancel()
            raise TritonTimeoutError(
                f"the Triton server at {self._line.channel.place} sent nothing for {min(seconds, rest):.3g} s",
                "Allow more (first_chunk_seconds, stall_seconds); or the server is overloaded, or its model has died.",
            ) from None
        if isinstance(item, RvcSparkError):
            raise item
        self.begun = self.begun or item is not None
        return item

    def cancel(self, reason: RvcSparkError | None = None) -> None:
        """End the request; harmless when it has ended. `take` raises `reason` from then on, if it still waits."""
        with self._lock:
            if self._cancelled.is_set():
                return
            self._reason = reason or self._reason
            self._cancelled.set()
            if self._call is not None:
                self._break_off(self._call)

    def join(self, seconds: float) -> None:
        """Wait for the thread's end."""
        self._thread.join(seconds)

    def _run(self) -> None:
        outcome: RvcSparkError | None = TritonError("the reader of a sentence ended by a fault", "Report this.")
        try:
            with self._line.channel.slot(self._given_up) as held:
                outcome = self._attempts() if held else self._reason
        except RvcSparkError as error:
            outcome = error
        finally:
            self._items.put(outcome)
            with self._line.lock:
                self._line.readers.discard(self)

    def _given_up(self) -> bool:
        if not self._cancelled.is_set() and time.monotonic() >= self._end:
            self.cancel(TritonTimeoutError("all requests at once were in use too long", "Raise max_in_flight."))
        return self._cancelled.is_set()

    def _attempts(self) -> RvcSparkError | None:
        """Repeat while nobody answers and nothing was delivered. Returns the error, None after the last sample."""
        reference, voices = self._request.reference, self._line.voices
        plain = self._request.parameters is None or reference is None
        for pause in self._line.channel.pauses():
            name_voice = not plain and reference.voice in voices
            try:
                try:
                    self._receive(name_voice=name_voice)
                except _VoiceForgotten:  # not counted as an attempt: it happens once
                    self._receive(name_voice=False)
            except CallFailed as failed:
                if self._cancelled.is_set():
                    return self._reason
                if failed.status == "UNAVAILABLE":
                    self._line.lost()
                last = pause is None or not failed.repeatable or self._count > 0
                if last or time.monotonic() + pause >= self._end:
                    return failed.error
                if self._cancelled.wait(pause):
                    return self._reason
                continue
            if not plain and not name_voice:
                voices.add(reference.voice)
            return None if self._count else _nothing(self._line.channel.place, self._request.text)
        raise AssertionError("the last attempt returns")

    def _receive(self, *, name_voice: bool) -> None:
        """One attempt. Raises CallFailed, _VoiceForgotten, and TritonModelError for an answer that is none."""
        self._id = f"{_session}-{next(_ids)}"
        call = self._started(self._request.build(self._id, name_voice=name_voice))
        try:
            self._listen(call, self._id, named=name_voice)
        finally:
            with self._lock:
                self._call = None
                if call.is_active() and not self._cancelled.is_set():
                    self._break_off(call)
            with suppress(CallFailed), self._line.channel.told_errors():
                for _ in call:  # what is still on its way
                    pass

    def _started(self, request: Any) -> Any:
        with self._lock, self._line.channel.told_errors():
            if self._cancelled.is_set():
                raise CallFailed(self._reason, "CANCELLED", False)
            grace = _GRACE_SECONDS if self._request.ends_by_word else 0.0
            self._call = self._line.channel.stream(request, max(0.001, self._end + grace - time.monotonic()))
            return self._call

    def _break_off(self, call: Any) -> None:
        """Have the server end a call: by word where its model listens, by gRPC's own means elsewhere, or if it is deaf.

        A stream that is reset while the server writes to it takes the whole server down in Triton 2.51 (a double free,
        mended in later ones): 1 of 100 to 500 such resets did. Asked by word, the model ends it in good order.
        """
        if not self._request.ends_by_word:
            call.cancel()
            return
        try:
            with self._line.channel.told_errors():
                word = self._line.channel.stream(self._request.end_word(self._id), _WORD_SECONDS)
        except CallFailed:
            call.cancel()
            return

        def heard() -> None:
            if word.code().name != "OK":
                call.cancel()

        if not word.add_callback(heard):
            heard()

    def _listen(self, call: Any, request_id: str, *, named: bool) -> None:
        joiner = OverlapJoiner(self._overlap)
        place, model = self._line.channel.place, self._request.model
        complete = False
        with self._line.channel.told_errors(unless=lambda: complete):
            for message in call:
                if complete or self._cancelled.is_set():
                    continue  # to the end of the call, which need not be broken off then
                if message.error_message:
                    if named and not self._count and wants_voice_again(message.error_message):
                        raise _VoiceForgotten
                    told = stream_error(message.error_message, model, place)
                    raise CallFailed(told, None, is_worth_repeating(None, message.error_message))
                answer = read_answer(message.infer_response, request_id, place)
                self._deliver(joiner.push(answer.samples))
                complete = answer.final
        if self._cancelled.is_set():
            raise CallFailed(self._reason, "CANCELLED", False)
        if not complete:
            raise TritonUnreachableError(
                f"the Triton server at {place} ended a sentence without saying that it is complete",
                "Try again; servers before 2.34 (23.05) do not say it.",
            )
        self._deliver(joiner.finish())

    def _deliver(self, samples: np.ndarray) -> None:
        if not len(samples):
            return
        self._count += len(samples)
        if self._count > MAX_SENTENCE_SAMPLES:
            raise TritonModelError(
                f"the Triton server at {self._line.channel.place} goes on speaking one sentence after "
                f"{MAX_SENTENCE_SAMPLES // SAMPLE_RATE} s",
                "Set max_tokens.",
            )
        self._items.put(samples)


class _VoiceForgotten(Exception):
    """The server does not know the voice that was named: send its sound."""


def _nothing(place: str, text: str) -> NothingSpokenError:
    shown = text if len(text) <= 40 else text[:37] + "..."
    return NothingSpokenError(
        f"the Triton server at {place} sent no sound for {shown!r}", "Write it in other words, or try another seed."
    )
