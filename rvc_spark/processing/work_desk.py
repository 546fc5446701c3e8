"""Where workers get their work: all utterances under one lock, and whose turn it is.

The first sentence of a new utterance goes ahead of everybody's later ones; the others take turns. A step is only handed
out when its stream has room for the result, so no worker ever waits with work in its hands: streams that nobody listens
to hold up nobody else.
"""

from __future__ import annotations

import threading
import time
from itertools import count

from rvc_spark.errors import RvcSparkError, StreamError, WorkerError
from rvc_spark.processing.session import Session
from rvc_spark.processing.work_steps import Step


class WorkDesk:
    """The utterances that are open, and counters over all there were. Safe in threads.

    changed: notified whenever there may be something to do, or less of it.
    """

    def __init__(self, retries: int) -> None:
        self.changed = threading.Condition(threading.RLock())
        self.sessions: list[Session] = []
        self.stopped = False
        self.paused = False
        self.made = self.failures = self.restarts = 0
        self.last_death = ""
        self.last_work = time.monotonic()
        self.worked = False  # since the networks were freed
        self.networks_spoke = False  # likewise, anything but the embedded engine
        self._retries = retries
        self._turn = count(1)

    def add(self, session: Session) -> None:
        """Open an utterance. Raises StreamError if one of this name is open, WorkerError if the workers are stopped."""
        self.settle()
        with self.changed:
            if self.stopped:
                raise WorkerError("the workers are stopped", "Start them: WorkerManager.start().")
            if any(other.name == session.name for other in self.sessions):
                raise StreamError(f"a stream named {session.name!r} is open already", "Choose another name, or none.")
            self.sessions.append(session)
            self.networks_spoke |= session.source.engine.name != "espeak"
            self.changed.notify_all()

    def settle(self) -> None:
        """Forget utterances that are over."""
        with self.changed:
            for session in self.sessions:
                if session.abandoned and session.open:
                    session.end(cancelled=True)
            over = [session for session in self.sessions if not session.open]
            self.sessions = [session for session in self.sessions if session.open]
        for session in over:
            session.source.close()

    def wake(self) -> None:
        """There may be room now, or something else has changed."""
        with self.changed:
            self.changed.notify_all()

    def take(self, owner: threading.Thread, kind: str) -> Step | None:
        """The next step for a worker of this kind, as soon as there is one; None: the workers are stopped."""
        with self.changed:
            while not self.stopped:
                step = None if self.paused else self._pick(kind)
                if step is not None:
                    step.owner = owner
                    step.session.take(step)
                    step.session.served[kind] = next(self._turn)
                    self.worked = True
                    return step
                self.changed.wait()
            return None

    def _pick(self, kind: str) -> Step | None:
        best: tuple[tuple[bool, int], Step] | None = None
        for session in self.sessions:
            step = session.next_step(kind)
            if step is not None:
                rank = (not session.urgent(step), session.served[kind])
                if best is None or rank < best[0]:
                    best = (rank, step)
        return None if best is None else best[1]

    def give_back(self, step: Step) -> None:
        """A step is over, or laid down until there is room again."""
        with self.changed:
            step.owner = None
            self.last_work = time.monotonic()
            self.changed.notify_all()

    def failed(self, step: Step, error: RvcSparkError) -> None:
        """A step cannot be done."""
        session = step.session
        with self.changed:
            if not session.wanted:
                return
            try:
                session.failed(step, error)
            except StreamError:
                if session.wanted:  # else it was closed just now, and nobody minds
                    raise
            self.failures += 1

    def died(self, step: Step, error: BaseException | None) -> None:
        """The worker of a step died: it is done again, from what was delivered on, unless that happened too often."""
        session = step.session
        with self.changed:
            step.owner = None
            step.deaths += 1
            what = f"{type(error).__name__}: {error}".rstrip(": ") if error is not None else "its thread is gone"
            self.last_death = f"sentence {step.number} of {session.name!r} ({step.kind}; {what:.200})"
            if session.wanted:
                if step.kind == "convert" and session.queue.complete(step.number):
                    session.converted(session.sentences[step.number])
                    self.made += 1
                elif step.deaths > self._retries:
                    problem = WorkerError(
                        f"a worker died {step.deaths} times at {self.last_death}",
                        "If it was memory, free some; else report it with the text and the voice.",
                    )
                    problem.__cause__ = error
                    self.failed(step, problem)
                else:
                    session.again(step)
            self.changed.notify_all()
