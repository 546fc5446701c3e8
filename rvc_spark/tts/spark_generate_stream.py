"""What is asked of the generator, and the stream its tokens come out of.

The scheduler's side of a stream is a `Job`, the caller's side a `TokenStream`. The caller's side may be read, closed or
forgotten in any thread at any time: closing only raises a flag and drops a note into the scheduler's inbox, which is
safe even inside garbage collection. A job holds all its tokens (at most max_new_tokens numbers), so that nobody waits
for a slow reader. Refuses to know networks.
"""

from __future__ import annotations

import queue
import threading
import time
import weakref
from collections.abc import Iterator
from concurrent.futures import Future
from dataclasses import dataclass, field
from typing import Literal

from rvc_spark.errors import ConfigError, SpeechError
from rvc_spark.tts.spark_lm import Allowed
from rvc_spark.tts.spark_sampling import Sampling

MAX_NEW_TOKENS = 1_000_000
Finish = Literal["stop", "length", "cancelled"]


@dataclass(frozen=True)
class TokenRequest:
    """One generation. Raises ConfigError for an empty prompt or numbers out of range.

    prompt: ids the model continues.
    sampling: how tokens are drawn.
    max_new_tokens: at most this many come, at least 1.
    stop_ids: ids that end it; none of them is delivered.
    allowed: ids that may be drawn, None for all. The stop ids always may.
    """

    prompt: tuple[int, ...]
    sampling: Sampling = field(default_factory=Sampling)
    max_new_tokens: int = 3000
    stop_ids: frozenset[int] = frozenset()
    allowed: Allowed | None = None

    def __post_init__(self) -> None:
        if not self.prompt:
            raise ConfigError("the prompt has no tokens", "Give at least one.")
        limit = self.max_new_tokens
        if type(limit) is not int or not 1 <= limit <= MAX_NEW_TOKENS:
            raise ConfigError(f"max_new_tokens={str(limit)[:40]}", f"It must be 1 to {MAX_NEW_TOKENS:,}.")
        if self.allowed is not None and not any(part if isinstance(part, range) else True for part in self.allowed):
            raise ConfigError("no id is allowed", "Give at least one, or None for all.")

    def check_ids(self, vocab: int) -> None:
        """Raises ConfigError for an id that a vocabulary of this size does not have."""
        spans = [part if isinstance(part, range) else (part,) for part in self.allowed or ()]
        ends = [end for span in spans if span for end in (span[0], span[-1])]
        for name, ids in (("prompt", self.prompt), ("stop_ids", self.stop_ids), ("allowed", ends)):
            wrong = next((number for number in ids if type(number) is not int or not 0 <= number < vocab), None)
            if wrong is not None:
                raise ConfigError(f"{name} holds {str(wrong)[:40]!r}", f"Ids are whole numbers below {vocab:,}.")

    @property
    def drawable(self) -> Allowed | None:
        """`allowed` with the stop ids; None for all."""
        return None if self.allowed is None else (*self.allowed, *sorted(self.stop_ids))


class Job:
    """The scheduler's side of a stream: the request, what has come of it, and how it ended."""

    def __init__(self, request: TokenRequest) -> None:
        self.request = request
        self.seed = request.sampling.resolved_seed()
        self.cancelled = False  # raised by any thread, obeyed by the scheduler at the next token
        self.tokens: list[int] = []
        self.finish: Finish | None = None
        self.error: SpeechError | None = None
        self.began = self.latest = 0.0  # of `time.perf_counter`: the slot was given, the last token came
        self.changed = threading.Condition()

    @property
    def over(self) -> bool:
        """Whether nothing more will come."""
        return self.finish is not None or self.error is not None

    def put(self, token: int) -> None:
        """One more token."""
        with self.changed:
            self.tokens.append(token)
            self.latest = time.perf_counter()
            self.changed.notify_all()

    def end(self, finish: Finish | None, error: SpeechError | None = None) -> None:
        """Nothing more will come; the first end is the one that counts."""
        with self.changed:
            if not self.over:
                self.finish, self.error = finish, error
            self.changed.notify_all()


@dataclass(frozen=True)
class Note:
    """What the scheduler's inbox holds; `done` hears the answer to "warm"."""

    kind: Literal["submit", "cancel", "warm", "close"]
    job: Job | None = None
    done: Future[int] | None = None


def _cancel(job: Job, inbox: queue.SimpleQueue[Note]) -> None:
    job.cancelled = True
    if not job.over:
        inbox.put(Note("cancel", job))  # this queue may be put into from a destructor


class TokenStream:
    """New ids in order, without the one that stopped them. Iterate, or take what is there with `next_batch`.

    Any thread may read it; several readers share the tokens. An error of the engine comes after the tokens made before
    it. A stream that nobody holds any more is cancelled.
    """

    def __init__(self, job: Job, inbox: queue.SimpleQueue[Note]) -> None:
        self._job = job
        self._taken = 0
        self._forgotten = weakref.finalize(self, _cancel, job, inbox)
        self._forgotten.atexit = False

    def __iter__(self) -> Iterator[int]:
        return self

    def __next__(self) -> int:
        with self._job.changed:
            self._wait(None)
            if self._closed or self._taken >= len(self._job.tokens):
                self._raise()
                raise StopIteration
            self._taken += 1
            return self._job.tokens[self._taken - 1]

    def next_batch(self, wait: float | None = None) -> list[int]:
        """All tokens not taken yet; waits for the first, at most `wait` seconds.

        Returns:
            [] when the time is over, and when nothing more will come (`finish` tells which).

        Raises:
            SpeechError: the engine failed, once the tokens made before that have been taken.
        """
        with self._job.changed:
            self._wait(wait)
            batch = [] if self._closed else self._job.tokens[self._taken :]
            self._taken += len(batch)
            if not batch:
                self._raise()
            return batch

    def close(self) -> None:
        """Stop at the next token and free the slot; what was not taken is dropped. Any thread, any number of times."""
        self._forgotten()
        self._job.end("cancelled")

    @property
    def finish(self) -> Finish | None:
        """Why no more is made: "stop", "length", "cancelled"; None while it runs, and when the engine failed."""
        return self._job.finish

    @property
    def seed(self) -> int:
        """The seed in use; with it the same request gives the same tokens."""
        return self._job.seed

    @property
    def tokens_per_second(self) -> float:
        """From the moment it got a slot, its prompt included; 0 before the first token."""
        job = self._job
        return len(job.tokens) / (job.latest - job.began) if job.tokens and job.latest > job.began else 0.0

    @property
    def _closed(self) -> bool:
        return not self._forgotten.alive

    def _wait(self, seconds: float | None) -> None:
        job = self._job
        job.changed.wait_for(lambda: self._taken < len(job.tokens) or job.over or self._closed, seconds)

    def _raise(self) -> None:
        error = self._job.error
        if error is not None and not self._closed:
            raise type(error)(error.problem, error.next_step) from error  # a fresh one for each reader
