"""A text on its way: its sentences one after the other, the next ones requested before the last is finished.

    sentence 1   request ---chunk--chunk--chunk|
    sentence 2            request(when 1 has begun) ---chunk--chunk|      kept until its turn
    sentence 3            request                   ---chunk|             at most `look_ahead` beyond the one delivered

Whoever listens pulls; nothing is requested that lies further ahead. Ending the stream ends all of it on the server.
"""

from __future__ import annotations

import asyncio
import threading
import time
import weakref
from collections import deque
from collections.abc import AsyncIterator, Callable, Iterable, Iterator
from types import TracebackType
from typing import Self

import numpy as np

from rvc_spark.audio import Audio
from rvc_spark.errors import RvcSparkError, TritonError, TritonTimeoutError
from rvc_spark.triton_answer import as_audio
from rvc_spark.triton_inputs import SAMPLE_RATE
from rvc_spark.triton_settings import TritonSettings
from rvc_spark.triton_stream import SentenceReader

Piece = tuple[int, str]
"""Number of a piece of the text, and its words."""
Starter = Callable[[Piece, float], SentenceReader]
"""Requests one piece, given how many seconds it may take."""


class SpeechStream(Iterator[Audio]):
    """Speech as it is made, mono at 16 kHz; the joined pieces are the whole. An iterator, and a context.

    `close` ends it from any thread, and the work on the server with it; being forgotten does the same. Iteration ends
    without an error then, and `finished` tells the two ends apart.
    """

    def __init__(self, pieces: Iterable[Piece], start: Starter, settings: TritonSettings, place: str) -> None:
        """place: the server's address, for messages."""
        self.finished = False
        """Whether the last sample was handed over."""
        self._sentences = deque(pieces)
        self._start, self._settings, self._place = start, settings, place
        self._readers: deque[SentenceReader] = deque()
        self._pause_due = self._closed = self._begun = False
        self._end: float | None = None
        self._error: RvcSparkError | None = None
        self._lock = threading.Lock()  # of `_readers` and `_closed`
        self._forgotten = weakref.finalize(self, _cancel, self._readers)

    def __iter__(self) -> Self:
        return self

    def __next__(self) -> Audio:
        if self._error is not None:
            raise self._error
        try:
            piece = self._piece()
        except RvcSparkError:
            stopped = self._closed
            self.close()
            if stopped and self._error is None:  # closing is what broke the request off
                raise StopIteration from None
            raise
        except BaseException:  # an interrupt: nobody will come back for the rest
            self.close()
            raise
        if piece is None:
            self.close()
            if self._error is not None:
                raise self._error
            raise StopIteration
        return piece

    def close(self) -> None:
        """End everything that is under way. Safe to call twice, from any thread."""
        self.abort(None)

    def abort(self, error: RvcSparkError | None) -> None:
        """`close`, but whoever listens gets `error`, unless all was handed over or closed before."""
        with self._lock:
            if not self._closed:
                self._error = error
            self._closed = True
            readers = list(self._readers)
            self._readers.clear()
        for reader in readers:
            reader.cancel(error)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _piece(self) -> Audio | None:
        while True:
            head = self._head()
            if head is None:
                return None
            samples = head.take(self._patience(head))
            if samples is not None:
                self._begun = True
                self._refill()
                return as_audio(self._after_pause(samples), self._place)
            with self._lock:
                if self._readers and self._readers[0] is head:
                    self._readers.popleft()
            self._pause_due = self._settings.pause_seconds > 0
            if not self._readers and not self._sentences and not self._closed:
                self.finished = True

    def _after_pause(self, samples: np.ndarray) -> np.ndarray:
        if not self._pause_due:
            return samples
        self._pause_due = False
        silence = np.zeros(round(self._settings.pause_seconds * SAMPLE_RATE), np.float32)
        return np.concatenate([silence, samples])

    def _head(self) -> SentenceReader | None:
        if self._end is None and self._settings.whole_seconds is not None:
            self._end = time.monotonic() + self._settings.whole_seconds
        self._refill()
        with self._lock:
            return self._readers[0] if self._readers and not self._closed else None

    def _refill(self) -> None:
        """Keep the sentence in turn and those after it under way.

        The first is alone until it has begun: nothing shall delay the first sound, and from then on the server knows
        the voice, which travels once.
        """
        wanted = 1 + (self._settings.look_ahead if self._begun else 0)
        while self._sentences and len(self._readers) < wanted and not self._closed:
            reader = self._start(self._sentences.popleft(), self._allowed())  # may ask the server, so without the lock
            with self._lock:
                if not self._closed:
                    self._readers.append(reader)
                    continue
            reader.cancel(self._error)

    def _allowed(self) -> float:
        """Seconds the next sentence may take."""
        return min(self._settings.sentence_seconds, self._rest())

    def _rest(self) -> float:
        if self._end is None:
            return float("inf")
        rest = self._end - time.monotonic()
        if rest <= 0:
            raise TritonTimeoutError(
                f"the text is not spoken after {self._settings.whole_seconds:g} s", "Allow more (whole_seconds)."
            )
        return rest

    def _patience(self, head: SentenceReader) -> float:
        longest = self._settings.stall_seconds if head.begun else self._settings.first_chunk_seconds
        return min(longest, self._rest())


def _cancel(readers: deque[SentenceReader]) -> None:
    for reader in list(readers):
        reader.cancel()


class AsyncSpeechStream(AsyncIterator[Audio]):
    """The same for `async for`: a thread pulls a `SpeechStream`, one piece ahead of the listener.

    `aclose` ends the work on the server, as do being forgotten and a cancelled task. Leaving `async for` early does so
    when the stream is forgotten; `async with` does it at once.
    """

    def __init__(self, stream: SpeechStream) -> None:
        self._stream = stream
        self._wanted = threading.Semaphore(1)  # pieces the thread may pull beyond those asked for
        self._arrived: asyncio.Queue[Audio | RvcSparkError | None] | None = None
        self._over = False
        self.finished = False
        """Whether the last sample was handed over."""
        self._forgotten = weakref.finalize(self, _let_go, stream, self._wanted)

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> Audio:
        if self._over:
            raise StopAsyncIteration
        if self._arrived is None:
            self._arrived = asyncio.Queue()
            work = (self._stream, self._wanted, asyncio.get_running_loop(), self._arrived)
            threading.Thread(target=_pull, args=work, name="triton listener", daemon=True).start()
        self._wanted.release()
        try:
            piece = await self._arrived.get()
        except asyncio.CancelledError:
            await self.aclose()
            raise
        if isinstance(piece, Audio):
            return piece
        self.finished = piece is None and self._stream.finished
        await self.aclose()
        if piece is None:
            raise StopAsyncIteration
        raise piece

    async def aclose(self) -> None:
        """End everything that is under way."""
        self._over = True
        self._forgotten()

    def abort(self, error: RvcSparkError) -> None:
        """End everything from any thread; whoever listens gets `error`."""
        self._stream.abort(error)
        self._wanted.release()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.aclose()


def _let_go(stream: SpeechStream, wanted: threading.Semaphore) -> None:
    stream.close()
    wanted.release()


def _pull(
    stream: SpeechStream,
    wanted: threading.Semaphore,
    loop: asyncio.AbstractEventLoop,
    arrived: asyncio.Queue[Audio | RvcSparkError | None],
) -> None:
    """Hand pieces to the loop as they are wanted; the last thing handed over is None or an error."""
    last: RvcSparkError | None = TritonError("the listener of a stream ended by a fault", "Report this.")
    try:
        while wanted.acquire():
            piece = next(stream, None)
            if piece is None:
                last = None
                break
            loop.call_soon_threadsafe(arrived.put_nowait, piece)
    except RvcSparkError as error:
        last = error
    except RuntimeError:  # the loop is closed: nobody listens any more
        if not loop.is_closed():
            raise
        stream.close()
    finally:
        if not loop.is_closed():
            loop.call_soon_threadsafe(arrived.put_nowait, last)
