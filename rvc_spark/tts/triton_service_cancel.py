"""Who hung up: one thread asks the server, some twenty times a second, whether running requests are still wanted.

The server tells a model of a cancelled request only when asked. Asking in the loop that makes the answer is not enough:
while it waits for a free slot or for another model, nobody would ask.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

POLL_SECONDS = 0.05


class Cancelled(Exception):
    """The client does not want its answer any more."""


class Cancellation:
    """Whether one request is still wanted. Safe in threads."""

    def __init__(self, is_cancelled: Callable[[], bool]) -> None:
        self._is_cancelled = is_cancelled
        self._actions: list[Callable[[], None]] = []
        self._lock = threading.Lock()
        self._asking = threading.Lock()
        self._cancelled = False
        self._over = False

    def check(self) -> None:
        """Raises Cancelled if nobody waits for the answer any more."""
        if self._cancelled:
            raise Cancelled

    @property
    def cancelled(self) -> bool:
        """What was last known."""
        return self._cancelled

    @contextmanager
    def calling(self, action: Callable[[], None]) -> Iterator[None]:
        """Inside, `action` is called once, from another thread, should the request be cancelled."""
        with self._lock:
            late = self._cancelled
            if not late:
                self._actions.append(action)
        if late:
            action()
        try:
            yield
        finally:
            with self._lock:
                if action in self._actions:
                    self._actions.remove(action)

    def poll(self) -> bool:
        """Ask the server; on the first yes call what is registered. False when there was nothing to ask any more."""
        with self._asking:
            if self._over or self._cancelled:
                return False
            if not self._is_cancelled():
                return True
        with self._lock:
            self._cancelled = True
            actions, self._actions = self._actions, []
        for action in actions:
            action()
        return True


    def end(self) -> None:
        """The answer is about to be complete: nobody asks any more, for the server frees what would be asked."""
        with self._asking:
            self._over = True


class Retired:
    """Iterators of answers that were read to their end and must not be freed yet.

    The server's own thread forgets such an iterator a little later. Should that be the last one to know it, it frees
    Python objects without holding the interpreter's lock, and the process dies of a corrupted heap within minutes. That
    thread takes its work from a queue, in order; the question whether a request is cancelled goes through the same
    queue. So what was retired before a question was asked can be let go when it has been answered.
    """

    def __init__(self) -> None:
        self._kept: list[Any] = []
        self._lock = threading.Lock()

    def keep(self, iterator: Any) -> None:
        """Hold on to it."""
        with self._lock:
            self._kept.append(iterator)

    def taken(self) -> list[Any]:
        """All that is kept, handed over."""
        with self._lock:
            kept, self._kept = self._kept, []
            return kept

    def put_back(self, kept: list[Any]) -> None:
        """The question was not asked after all."""
        with self._lock:
            self._kept += kept

    def __len__(self) -> int:
        return len(self._kept)


class CancelWatch:
    """Polls the requests that are inside `watching`. Its thread runs only while there are some.

    retired: let go whenever a question has been answered.
    """

    def __init__(self, retired: Retired | None = None, seconds: float = POLL_SECONDS) -> None:
        self._seconds = seconds
        self._retired = retired or Retired()
        self._watched: set[Cancellation] = set()
        self._change = threading.Condition()
        self._thread: threading.Thread | None = None
        self._closed = False

    @contextmanager
    def watching(self, is_cancelled: Callable[[], bool]) -> Iterator[Cancellation]:
        """Inside, the request is asked about; on leaving, no more: its sender may be gone then."""
        cancellation = Cancellation(is_cancelled)
        with self._change:
            self._watched.add(cancellation)
            if self._thread is None and not self._closed:
                self._thread = threading.Thread(target=self._run, name="cancel-watch", daemon=True)
                self._thread.start()
        try:
            yield cancellation
        finally:
            with self._change:
                self._watched.discard(cancellation)
            cancellation.end()

    def close(self) -> None:
        """End the thread."""
        with self._change:
            self._closed = True
            thread, self._thread = self._thread, None
            self._change.notify_all()
        if thread is not None:
            thread.join(timeout=5.0)

    def _run(self) -> None:
        while True:
            with self._change:
                if self._closed or not self._watched:
                    self._thread = None
                    return
                watched = list(self._watched)
            for cancellation in watched:
                self._ask(cancellation)
            with self._change:
                if not self._closed:
                    self._change.wait(self._seconds)

    def _ask(self, cancellation: Cancellation) -> None:
        kept = self._retired.taken()
        if not cancellation.poll():
            self._retired.put_back(kept)
