"""Ends this process when its Python has stood still for too long, so that a supervisor can load its model again.

The server's Python backend (2.51, and its newest source in 2026) can lock itself up. A thread that takes an answer
from an iterator waits for the interpreter and holds the iterator's lock; the thread that delivers answers waits for
that lock and holds the lock over all iterators; a thread that begins another streamed call waits for that one and
holds the interpreter. Nothing in the process runs ever again, and the server goes on saying that it is healthy. It
takes a second answer within the time a thread waits for the interpreter: 1 in 100 streams that were reset at once did
it. Handing the interpreter over sooner makes that time short (none in 1,600 resets since); a process that is locked
up all the same is ended from a thread that needs no interpreter.
"""

from __future__ import annotations

import faulthandler
import sys
import threading

FROZEN_SECONDS = 30.0
"""Patience: far more than a machine with too much to do needs to let a thread run once."""
SWITCH_SECONDS = 0.0002
"""How long a thread may keep the interpreter while others want it; Python's own setting is 5 ms."""
BEATS = 10  # in the time of patience


class FrozenWatch:
    """From `start` to `close`, the process exits with status 1 once no Python thread ran for `seconds`. Before that it
    writes where every thread stands to stderr."""

    def __init__(self, seconds: float = FROZEN_SECONDS) -> None:
        self._seconds = seconds
        self._ending = threading.Event()
        self._thread: threading.Thread | None = None

    def start(self) -> None:
        """Begin, and have the interpreter handed over soon."""
        sys.setswitchinterval(SWITCH_SECONDS)
        self._thread = threading.Thread(target=self._beat, name="frozen-watch", daemon=True)
        self._thread.start()

    def close(self) -> None:
        """End the watch."""
        self._ending.set()
        if self._thread is not None:
            self._thread.join()

    def _beat(self) -> None:
        stderr = sys.__stderr__
        while True:
            # the timer is a thread of C: it fires unless it is set anew
            faulthandler.dump_traceback_later(self._seconds, exit=True, file=stderr)
            if self._ending.wait(self._seconds / BEATS):
                break
        faulthandler.cancel_dump_traceback_later()
