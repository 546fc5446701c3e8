"""The ordered buffer between many workers and one listener: put from any thread in any order, get in order.

    workers  put(place, sound)  fail(sentence)          get() -> AudioChunk 0, 1, 2, ... last       one listener
                 \\________________ BufferQueue ________________/
                    order -> line of time -> ready chunks; bounded by seconds of sound

Why it cannot deadlock. There are two ways to wait here, and each is ended by what the other side does:

1. `put` waits only while the buffer holds `ahead_seconds` or more AND either a chunk is ready to be taken or its
   sentence is not the head, the one whose turn it is. A ready chunk leaves with the next `get`. When none is left, the
   head never waits, whatever else is full: its parts can always come, it is completed or fails, and the next sentence
   becomes the head. Every `get` and every change of the head wakes all who wait.
2. `get` waits only while no chunk is ready. Then the maker of the head is not held up by this buffer (1), so it
   delivers, or fails, which `get` turns into a gap or an error; under the policy "wait" it stays until `retry`, another
   policy or `close`. Every put, fail, finish, retry, policy, pause and close wakes it.

No lock is held while anything of another part of the program is called. A maker that must not wait at all asks
`has_room` before it begins a sentence and puts with `wait=False`.
"""

from __future__ import annotations

import threading
import time
from collections import deque

from rvc_spark.audio import Audio
from rvc_spark.errors import ConfigError, RvcSparkError, StreamError
from rvc_spark.processing.chunk_order import ChunkOrder, Missing, Place
from rvc_spark.processing.sound_line import SoundLine, Source
from rvc_spark.streaming.chunk import AudioChunk, Gap

POLICIES = ("skip", "stop", "wait")
AHEAD_SECONDS = 30.0
AHEAD_RANGE = (0.1, 3600.0)


def check_policy(on_failure: str) -> str:
    """The policy, if there is one of this name. Raises ConfigError."""
    if on_failure not in POLICIES:
        raise ConfigError(f"on_failure={on_failure!r:.40} is unknown", f"Choose one of {', '.join(POLICIES)}.")
    return on_failure


class BufferQueue:
    """Chunks of one stream, in order. Safe in threads; one listener.

    Args:
        stream: name of the stream, in every chunk.
        count: how many sentences there will be, if it is known; else call `finish`.
        ahead_seconds: of sound that may wait here before `put` waits, 0.1 to 3600.
        on_failure: what becomes of a failed sentence: "skip" gives a chunk of short silence with its `gap`, "stop"
            raises its error after all that came before, "wait" holds there until `retry`.
        rate: Hz of gaps that come before any sound.
    """

    def __init__(
        self, stream: str = "", count: int | None = None, *, ahead_seconds: float = AHEAD_SECONDS,
        on_failure: str = "skip", rate: int | None = None,
    ) -> None:  # fmt: skip
        if not AHEAD_RANGE[0] <= ahead_seconds <= AHEAD_RANGE[1]:
            raise ConfigError(
                f"ahead_seconds={ahead_seconds!r} is outside {AHEAD_RANGE[0]:g} to {AHEAD_RANGE[1]:g} s",
                f"Try {AHEAD_SECONDS:g}.",
            )
        self.stream = stream
        self.ahead_seconds = ahead_seconds
        self._policy = check_policy(on_failure)
        self._order: ChunkOrder[tuple[Audio, Source | None]] = ChunkOrder(count)
        self._line = SoundLine(stream, rate)
        self._ready: deque[AudioChunk] = deque()
        self._received: dict[int, int] = {}  # samples put per sentence that is not out yet
        self._behind = 0.0  # seconds in the order, whose turn has not come
        self._ready_frames = 0
        self._gaps: list[Gap] = []
        self._error: RvcSparkError | None = None
        self._closed = self._delivered_last = self._paused = False
        self._changed = threading.Condition()

    # what makers call

    def put(
        self, place: Place, sound: Audio, source: Source | None = None, *, wait: bool = True,
        timeout: float | None = None,
    ) -> None:  # fmt: skip
        """Take a part of a sentence, mono. Waits for room, unless it is of the head or `wait` is off.

        source: with the last part: what the sentence was, so that the stream gets its exact length.
        Raises StreamError: closed, no room within `timeout` seconds, late, double, unknown.
        """
        with self._changed:
            if wait and not self._changed.wait_for(lambda: self._closed or self._has_room(place.sentence), timeout):
                raise StreamError(f"no room for {place} within {timeout:g} s", "Let the listener take chunks.")
            self._check_open()
            self._order.put(place, (sound, source))
            self._received[place.sentence] = self._received.get(place.sentence, 0) + sound.frames
            self._behind += sound.seconds
            self._advance()

    def fail(self, sentence: int, text: str, error: RvcSparkError) -> None:
        """A sentence will not come. Raises StreamError: closed, it is complete or out."""
        with self._changed:
            self._check_open()
            self._order.fail(sentence, text, error)
            self._advance()

    def retry(self, sentence: int) -> None:
        """A failed sentence is being made again; its maker goes on where `received` says. Raises StreamError."""
        with self._changed:
            self._check_open()
            self._order.reopen(sentence)
            self._changed.notify_all()

    def finish(self, count: int) -> None:
        """There are `count` sentences. Raises StreamError if that cannot be."""
        with self._changed:
            self._check_open()
            self._order.finish(count)
            self._advance()

    def received(self, sentence: int) -> tuple[int, int]:
        """(parts, samples) put of a sentence that is not out yet."""
        with self._changed:
            return self._order.received(sentence), self._received.get(sentence, 0)

    def complete(self, sentence: int) -> bool:
        """Whether all of a sentence was put."""
        with self._changed:
            return self._order.complete(sentence)

    def has_room(self, sentence: int) -> bool:
        """Whether a maker may begin this sentence: there is room, or the listener waits for just this one."""
        with self._changed:
            return self._has_room(sentence)

    # what the listener calls

    def get(self, timeout: float | None = None) -> AudioChunk | None:
        """The next chunk; None if nothing came within `timeout` seconds.

        Raises StreamError: closed, or asked again after the last chunk; under "stop" the error of the sentence.
        """
        end = None if timeout is None else time.monotonic() + timeout
        with self._changed:
            while not self._closed:
                if self._ready and not self._paused:
                    return self._take()
                missing = self._order.pop_missing()
                if missing is not None and self._policy == "stop" and not self._paused:
                    self._gaps.append(Gap(missing.sentence, missing.text, missing.error))
                    self._shut(missing.error)
                    break
                if self._delivered_last:
                    raise StreamError(f"the stream {self.stream!r} has ended", "Its last chunk says so: `last`.")
                rest = None if end is None else end - time.monotonic()
                if rest is not None and rest <= 0:
                    return None
                self._changed.wait(rest)
            raise self._error or StreamError(f"the stream {self.stream!r} is closed", "Begin a new one.")

    def close(self, error: RvcSparkError | None = None) -> None:
        """End it now: whatever waits here is dropped, whoever waits is woken. `get` raises `error`, if there is one."""
        with self._changed:
            if not self._closed:
                self._shut(error)

    def pause(self, paused: bool = True) -> None:
        """Hold delivery, or go on with it: `get` waits meanwhile."""
        with self._changed:
            self._paused = paused
            self._changed.notify_all()

    # what anybody may ask

    @property
    def on_failure(self) -> str:
        """The policy. Setting it lets go of a sentence that is being waited for."""
        return self._policy

    @on_failure.setter
    def on_failure(self, policy: str) -> None:
        with self._changed:
            self._policy = check_policy(policy)
            self._advance()

    @property
    def ready_seconds(self) -> float:
        """Seconds of sound that wait here, in order or not."""
        with self._changed:
            return self._seconds()

    @property
    def head(self) -> int:
        """The sentence of which the next sound will come in."""
        return self._order.head

    @property
    def delivered(self) -> int:
        """Sentences that were taken as a whole, or passed."""
        with self._changed:
            return self._ready[0].sentence if self._ready else self._order.head

    @property
    def rate(self) -> int | None:
        """Hz of the stream, once it is known."""
        return self._line.rate

    @property
    def gaps(self) -> tuple[Gap, ...]:
        """Sentences that are missing so far, in the order of the stream."""
        with self._changed:
            return tuple(self._gaps)

    @property
    def held_by(self) -> Missing | None:
        """The failed sentence at which the stream stands still, under the policy "wait"."""
        with self._changed:
            missing = self._order.pop_missing()
            return missing if self._policy == "wait" and not self._ready else None

    @property
    def ended(self) -> bool:
        """Whether the last chunk was taken."""
        return self._delivered_last

    @property
    def closed(self) -> bool:
        """Whether it was closed before its end, or stopped at a failed sentence."""
        return self._closed

    # inside, with the lock held

    def _take(self) -> AudioChunk:
        chunk = self._ready.popleft()
        self._ready_frames -= chunk.frames
        self._delivered_last = chunk.last
        self._changed.notify_all()  # there may be room now
        return chunk

    def _has_room(self, sentence: int) -> bool:
        awaited = sentence <= self._order.head and not self._ready
        return awaited or self._seconds() < self.ahead_seconds

    def _seconds(self) -> float:
        return self._behind + (self._ready_frames / self._line.rate if self._line.rate else 0.0)

    def _check_open(self) -> None:
        if self._closed:
            raise StreamError(f"the stream {self.stream!r} is closed", "Begin a new one.")

    def _shut(self, error: RvcSparkError | None) -> None:
        self._closed, self._error = True, error
        self._ready.clear()
        self._order = ChunkOrder()
        self._received.clear()
        self._behind, self._ready_frames = 0.0, 0
        self._changed.notify_all()

    def _add(self, chunks: list[AudioChunk]) -> None:
        self._ready.extend(chunks)
        self._ready_frames += sum(chunk.frames for chunk in chunks)

    def _advance(self) -> None:
        """Move what is in order onto the line, then wake everybody."""
        while (found := self._order.pop()) is not None:
            if isinstance(found, Missing):
                if self._policy != "skip":
                    break
                self._order.pass_missing()
                self._received.pop(found.sentence, None)
                self._gaps.append(Gap(found.sentence, found.text, found.error))
                self._add(self._line.gap(found, self._final()))
                continue
            place, (sound, source) = found
            self._behind = max(0.0, self._behind - sound.seconds) if self._order.waiting else 0.0
            if place.last:
                self._received.pop(place.sentence, None)
            final = self._final() if place.last else False
            self._add(self._line.add(place, sound, source, final))
        if self._order.ended and not self._delivered_last and not (self._ready and self._ready[-1].last):
            self._add(self._line.end())
        self._changed.notify_all()

    def _final(self) -> bool | None:
        """Whether the line ends here; None while the number of sentences is open."""
        return None if self._order.count is None else self._order.ended
