"""Continuous batching: one thread that makes tokens for all requests, which join and leave at any token.

    submit -> inbox -> waiting -> slot: prompt read in pieces -> running: a token per step -> stream

In each round the thread reads its inbox, gives free slots to those waiting longest, reads one piece of one prompt and
makes one token for every running request; so a long prompt delays the others by one piece at a time. With nothing to do
it sleeps in the inbox. A prompt is always cut at the same places and each sequence has its own random numbers.

Same seed and prompt, same tokens, whatever else is running: on a CPU in float32 and bfloat16 with weights in blocks
(see `spark_lm_linear`) a row's numbers are the same to the last bit for every number of rows measured (1 to 16). In
the plain layout and on a GPU they differ in the last bits, so that a draw within about 1e-6 (bfloat16: 1e-2) of a
border may fall on the other side, and the sequences part from there. Refuses to know text, speech and sound.
"""

from __future__ import annotations

import atexit
import functools
import queue
import threading
import time
import weakref
from collections import deque
from concurrent.futures import Future
from dataclasses import dataclass

import torch

from rvc_spark.errors import ConfigError, SpeechError
from rvc_spark.tts.spark_generate_step import Batch, Capture, capture_graph
from rvc_spark.tts.spark_generate_stream import Job, Note, TokenRequest, TokenStream
from rvc_spark.tts.spark_lm import SparkLM
from rvc_spark.tts.spark_sampling import NOTHING

MAX_SLOTS = 256
MAX_WAITING = 4096  # requests that have no slot yet
PIECE, CPU_PIECE, CPU_PIECE_BF16 = 512, 128, 256  # prompt tokens read at once: at most half a second on one free core
JOIN_SECONDS = 60.0  # a step of a large model on a loaded machine takes seconds
_RETRY = "Try again; if it fails again, restart."
_NOT_FINITE = "the language model's numbers are not finite"

# Everything torch raises when a step fails: out of memory, a broken device, numbers it cannot use.
_FAILURES = (
    RuntimeError,
    MemoryError,
    ValueError,
    TypeError,
    LookupError,
    ArithmeticError,
    AttributeError,
    NotImplementedError,
)


@dataclass(frozen=True)
class GeneratorStats:
    """What a generator is doing and has done since it was made."""

    active: int  # requests that have a slot
    queued: int  # requests that wait for one
    slots: int
    finished: int  # requests that ended in any way
    tokens: int
    steps: int  # one step makes a token for every running request
    prefill_tokens: int
    prefill_seconds: float
    decode_seconds: float


class Generator:
    """Makes tokens for several requests at once in a thread of its own. Close it, or use it with `with`.

    Args:
        lm: the model; it belongs to this generator now.
        slots: requests that run at once.
        max_length: of a request, prompt and new tokens together; each slot holds memory for it.

    Raises:
        ConfigError: slots or max_length out of range.
    """

    def __init__(self, lm: SparkLM, *, slots: int = 4, max_length: int = 4096, capture: Capture | None = None) -> None:
        if type(slots) is not int or not 1 <= slots <= MAX_SLOTS:
            raise ConfigError(f"slots={slots!r}", f"It must be 1 to {MAX_SLOTS}.")
        if type(max_length) is not int or not 2 <= max_length <= lm.config.positions:
            raise ConfigError(f"max_length={max_length!r}", f"It must be 2 to {lm.config.positions:,} for this model.")
        if capture is None and lm.device.type == "cuda":
            capture = capture_graph
        self.max_length = max_length
        self._vocab = lm.config.vocab
        self._lock = threading.Lock()  # between the last submit and close
        self._closed = False
        self._scheduler = _Scheduler(Batch(lm, slots, max_length, capture))
        self._thread = threading.Thread(target=self._scheduler.run, name="spark-generate", daemon=True)
        self._at_exit = functools.partial(_end, self._scheduler.inbox, self._thread)
        atexit.register(self._at_exit)  # a daemon that computes while the interpreter ends can crash it
        weakref.finalize(self, _forget, self._scheduler.inbox, self._at_exit).atexit = False
        self._thread.start()

    def submit(self, request: TokenRequest) -> TokenStream:
        """Queue a request; its tokens come from the stream.

        Raises:
            ConfigError: an id outside the vocabulary.
            SpeechError: it does not fit in max_length, too many are waiting, or the generator is closed.
        """
        request.check_ids(self._vocab)
        length = len(request.prompt) + request.max_new_tokens
        if length > self.max_length:
            raise SpeechError(
                f"a prompt of {len(request.prompt):,} tokens and {request.max_new_tokens:,} new ones are {length:,}, "
                f"the limit is {self.max_length:,}",
                "Use a shorter text or transcript, or fewer new tokens.",
            )
        job = Job(request)
        with self._lock:
            if self._closed or not self._thread.is_alive():
                raise SpeechError("the generator of speech tokens is closed", "Load the model again.")
            if self._scheduler.waiting_count() >= MAX_WAITING:
                raise SpeechError(f"{MAX_WAITING:,} requests are waiting already", "Try again later.")
            self._scheduler.inbox.put(Note("submit", job))
        if self._scheduler.ended:  # it failed just now, perhaps after emptying its inbox
            job.end(None, SpeechError("the generator of speech tokens has failed", "Load the model again."))
        return TokenStream(job, self._scheduler.inbox)

    def warm_up(self, request: TokenRequest) -> int:
        """Prepare what requests like this one will need, so that the first of them need not wait for it: the head's
        rows, and on a GPU the recorded steps. What it may draw and its top_k matter; its prompt is not read.

        Returns:
            how many steps were recorded (0 on a CPU).

        Raises:
            ConfigError: an id outside the vocabulary.
            SpeechError: it failed, or the generator is closed.
        """
        request.check_ids(self._vocab)
        done: Future[int] = Future()
        with self._lock:
            if self._closed or not self._thread.is_alive():
                raise SpeechError("the generator of speech tokens is closed", "Load the model again.")
            self._scheduler.inbox.put(Note("warm", Job(request), done))
        return done.result()

    def stats(self) -> GeneratorStats:
        """Numbers of this moment."""
        return self._scheduler.stats()

    def close(self) -> None:
        """End every stream (as cancelled) and the thread. Any number of times.

        Raises:
            SpeechError: the thread hangs in a step.
        """
        with self._lock:
            self._closed = True
        atexit.unregister(self._at_exit)
        self._at_exit()
        if self._thread.is_alive() and self._thread is not threading.current_thread():
            raise SpeechError("the generator's thread does not end", "Restart the process.")

    def __enter__(self) -> Generator:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def _end(inbox: queue.SimpleQueue[Note], thread: threading.Thread) -> None:
    inbox.put(Note("close"))
    if thread is not threading.current_thread():
        thread.join(JOIN_SECONDS)


def _forget(inbox: queue.SimpleQueue[Note], at_exit: functools.partial[None]) -> None:
    """For a generator nobody holds any more. It does not wait: garbage is collected in any thread, at any time."""
    inbox.put(Note("close"))
    atexit.unregister(at_exit)


class _Scheduler:
    """The thread's side: who waits, who has which slot, and what is done next. Only its own thread calls the batch."""

    def __init__(self, batch: Batch) -> None:
        self.inbox: queue.SimpleQueue[Note] = queue.SimpleQueue()
        self._batch = batch
        self._piece = PIECE
        if batch.lm.device.type == "cpu":
            self._piece = CPU_PIECE_BF16 if batch.lm.dtype == torch.bfloat16 else CPU_PIECE
        self._free = list(range(batch.slots))
        self._waiting: deque[Job] = deque()
        self._reading: deque[tuple[int, Job, int]] = deque()  # slot, job, prompt tokens read
        self._running: dict[int, Job] = {}
        self._closing = self.ended = False
        self._finished = self._tokens = self._steps = self._read = 0
        self._prefill_seconds = self._decode_seconds = 0.0

    def waiting_count(self) -> int:
        return len(self._waiting) + self.inbox.qsize()

    def stats(self) -> GeneratorStats:
        batch = self._batch
        return GeneratorStats(
            active=batch.slots - len(self._free), queued=self.waiting_count(), slots=batch.slots,
            finished=self._finished, tokens=self._tokens, steps=self._steps, prefill_tokens=self._read,
            prefill_seconds=self._prefill_seconds, decode_seconds=self._decode_seconds,
        )  # fmt: skip

    def run(self) -> None:
        try:
            with torch.inference_mode():
                if self._batch.lm.device.type == "cuda":
                    torch.cuda.set_device(self._batch.lm.device)  # of this thread
                while not self._closing:
                    self._listen()
                    if not self._closing:
                        self._round()
        except BaseException as problem:
            self._end_all(_failed(problem))
            raise
        self._end_all(None)

    def _listen(self) -> None:
        """Take what is in the inbox; wait for something when there is nothing else to do."""
        idle = not (self._waiting or self._reading or self._running)
        while not self._closing:
            try:
                note = self.inbox.get(block=idle)
            except queue.Empty:
                return
            idle = False
            self._closing = note.kind == "close"
            if note.kind == "submit":
                self._waiting.append(note.job)
            elif note.kind == "warm":
                self._warm(note.job.request, note.done)

    def _round(self) -> None:
        self._sweep()
        while self._free and self._waiting:
            slot = min(self._free)  # the lowest, so that recorded steps stay small
            self._free.remove(slot)
            job = self._waiting.popleft()
            job.began = time.perf_counter()
            self._reading.append((slot, job, 0))
        try:
            if self._reading:
                self._read_piece()
            if self._running:
                self._step()
        except _FAILURES as problem:
            self._give_up(_failed(problem))

    def _sweep(self) -> None:
        """Drop what was cancelled, wherever it is."""
        for job in [job for job in self._waiting if job.cancelled]:
            self._waiting.remove(job)
            self._over(job, "cancelled")
        for entry in [entry for entry in self._reading if entry[1].cancelled]:
            self._reading.remove(entry)
            self._release(entry[0])
            self._over(entry[1], "cancelled")
        for slot in [slot for slot, job in self._running.items() if job.cancelled]:
            self._leave(slot, "cancelled")

    def _read_piece(self) -> None:
        """The next piece of the prompt that began first; its last token is left to the first step."""
        started = time.perf_counter()
        slot, job, done = self._reading[0]
        prompt = job.request.prompt
        piece = prompt[done : min(done + self._piece, len(prompt) - 1)]
        if piece:
            self._batch.lm.prefill(self._batch.cache, slot, piece, done)
            self._read += len(piece)
        if done + len(piece) == len(prompt) - 1:
            request = job.request
            head = self._batch.lm.head(request.drawable)
            self._batch.start(slot, prompt, head, request.sampling, job.seed, request.max_new_tokens)
            self._reading.popleft()
            self._running[slot] = job
        else:
            self._reading[0] = (slot, job, done + len(piece))
        self._prefill_seconds += time.perf_counter() - started

    def _step(self) -> None:
        started = time.perf_counter()
        drawn = self._batch.step()
        self._decode_seconds += time.perf_counter() - started
        self._steps += 1
        for slot, token in drawn.items():
            job = self._running[slot]
            if token == NOTHING:
                self._leave(slot, None, SpeechError(_NOT_FINITE, "Use another seed, or another checkpoint."))
            elif token in job.request.stop_ids:
                self._leave(slot, "stop")
            else:
                job.put(token)
                self._tokens += 1
                if len(job.tokens) >= job.request.max_new_tokens:
                    self._leave(slot, "length")

    def _warm(self, request: TokenRequest, done: Future[int]) -> None:
        try:
            done.set_result(self._batch.warm(self._batch.lm.head(request.drawable), request.sampling))
        except _FAILURES as problem:
            done.set_exception(_failed(problem))

    def _leave(self, slot: int, finish: str | None, error: SpeechError | None = None) -> None:
        job = self._running.pop(slot)
        self._release(slot)
        self._over(job, finish, error)

    def _release(self, slot: int) -> None:
        self._batch.stop(slot)
        self._free.append(slot)

    def _over(self, job: Job, finish: str | None, error: SpeechError | None = None) -> None:
        self._finished += 1
        job.end(finish, error)

    def _give_up(self, error: SpeechError) -> None:
        """A piece or step failed: those with a slot get the error, those waiting may still be served."""
        holders = [(slot, job) for slot, job, _ in self._reading] + list(self._running.items())
        self._reading.clear()
        self._running.clear()
        for slot, job in holders:
            self._release(slot)
            self._over(job, None, error)

    def _end_all(self, error: SpeechError | None) -> None:
        """The thread ends: nobody is left waiting, neither those in a slot nor those still in the inbox."""
        self.ended = True
        jobs = [*self._waiting, *(job for _, job, _ in self._reading), *self._running.values()]
        self._waiting.clear()
        self._reading.clear()
        self._running.clear()
        self._free = list(range(self._batch.slots))
        while not self.inbox.empty():
            note = self.inbox.get()
            if note.kind == "submit":
                jobs.append(note.job)
            elif note.kind == "warm":
                note.done.set_exception(error or SpeechError("the generator is closed", "Load the model again."))
        for job in jobs:
            self._over(job, None if error else "cancelled", error)


def _failed(problem: BaseException) -> SpeechError:
    first = (str(problem).splitlines() or [""])[0][:200]
    return SpeechError(f"making speech tokens failed: {type(problem).__name__}: {first}", _RETRY)
