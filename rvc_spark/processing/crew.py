"""The crew: the workers' threads and the keeper, who replaces those that died, frees networks nobody needs, and gives
back the memory that sentences leave behind.

A thread that dies leaves its step behind, whatever it died of. The keeper is told by the dying thread, and looks by
himself from time to time in case it could not tell.
"""

from __future__ import annotations

import threading
import time

from rvc_spark.processing.heap import give_back_free_pages
from rvc_spark.processing.speak_options import WorkerOptions
from rvc_spark.processing.voice_shelf import VoiceShelf
from rvc_spark.processing.work_desk import WorkDesk
from rvc_spark.processing.workers import Worker
from rvc_spark.rvc_config import Choice
from rvc_spark.tts.choose import Speakers

LOOK_SECONDS = 0.5  # between the keeper's looks while anything is open
TIDY_SECONDS = 10.0  # of steady work between two times memory is given back; each costs some ten milliseconds


class Crew:
    """Threads over one desk. unload_after: seconds without work, None: never."""

    def __init__(
        self, desk: WorkDesk, shelf: VoiceShelf, speakers: Speakers, options: WorkerOptions, unload_after: float | None
    ) -> None:
        self.desk, self.shelf = desk, shelf
        self.freed = Choice("not loaded", "nothing was asked for yet")
        self._speakers, self._options, self._unload_after = speakers, options, unload_after
        self.workers: list[Worker] = []
        self._keeper: threading.Thread | None = None
        self._look = threading.Event()
        self._tidied = (0, time.monotonic())  # sentences made until memory was given back last, and when that was
        self._numbers = {"tts": 0, "rvc": 0}

    @property
    def running(self) -> bool:
        """Whether threads are there."""
        return self._keeper is not None and self._keeper.is_alive()

    def start(self) -> None:
        """Start all threads that are not there."""
        with self.desk.changed:
            self.desk.stopped = False
            wanted = {"tts": self._options.tts_workers, "rvc": self._options.rvc_workers}
            for kind, number in wanted.items():
                there = sum(worker.kind == kind for worker in self.workers)
                self.workers += [self._worker(kind) for _ in range(number - there)]
            if not self.running:
                self._keeper = threading.Thread(target=self._keep, name="rvc-spark keeper", daemon=True)
                self._keeper.start()

    def _worker(self, kind: str) -> Worker:
        self._numbers[kind] += 1
        worker = Worker(kind, self._numbers[kind], self.desk, self.shelf, self._look.set)
        worker.start()
        return worker

    def stop(self, timeout: float) -> bool:
        """End everything; whether all threads are gone within `timeout` seconds."""
        end = time.monotonic() + timeout
        with self.desk.changed:
            self.desk.stopped = True
            for session in self.desk.sessions:
                session.end(cancelled=True)
            threads = [*self.workers, *([self._keeper] if self._keeper else [])]
            self.workers, self._keeper = [], None
            self.desk.changed.notify_all()
        self._look.set()
        self.desk.settle()
        for thread in threads:
            if thread is not threading.current_thread():
                thread.join(max(0.0, end - time.monotonic()))
        return not any(thread.is_alive() for thread in threads if thread is not threading.current_thread())

    def look(self) -> None:
        """Let the keeper look now."""
        self._look.set()

    def models(self) -> Choice:
        """Whether networks are in memory, and why."""
        if not self.shelf.loaded():
            return self.freed
        kept = "until they are freed" if self._unload_after is None else f"for {self._unload_after:g} s without work"
        return Choice("loaded", f"kept {kept}")

    def _keep(self) -> None:
        me = threading.current_thread()
        while not self.desk.stopped and self._keeper is me:
            self._look.wait(self._patience())
            self._look.clear()
            with self.desk.changed:
                if self.desk.stopped or self._keeper is not me:
                    return
                self._replace_dead()
                free = self._due()
            self.desk.settle()
            if free:
                self._free()
            if free or self._untidy():
                self._tidied = (self.desk.made, time.monotonic())
                give_back_free_pages()

    def _patience(self) -> float | None:
        with self.desk.changed:
            idle = self._idle_seconds()
            if self.desk.sessions or (idle is None and self.desk.worked) or self.desk.made != self._tidied[0]:
                return LOOK_SECONDS
        return None if idle is None or self._unload_after is None else max(0.01, self._unload_after - idle)

    def _idle_seconds(self) -> float | None:
        """Since when nobody works, in seconds; None if somebody does, or nothing was done since networks were freed."""
        if not self.desk.worked or any(worker.step for worker in self.workers):
            return None
        return time.monotonic() - self.desk.last_work

    def _untidy(self) -> bool:
        """Whether sentences were made since memory was given back, and nobody works or many were."""
        made, when = self._tidied
        long = time.monotonic() - when >= TIDY_SECONDS
        return self.desk.made != made and (long or not any(worker.step for worker in self.workers))

    def _due(self) -> bool:
        idle = self._idle_seconds()
        return idle is not None and self._unload_after is not None and idle >= self._unload_after

    def _replace_dead(self) -> None:
        for number, worker in enumerate(self.workers):
            if worker.left or not worker.is_alive():
                self.workers[number] = self._worker(worker.kind)
                self.desk.restarts += 1
                self._take_over(worker)

    def _take_over(self, dead: Worker) -> None:
        for session in self.desk.sessions:
            for step in session.steps():
                if step.owner is dead:
                    self.desk.died(step, dead.error)

    def _free(self) -> None:
        """Give memory back; whatever is needed again is loaded again."""
        names = self.shelf.unload()
        with self.desk.changed:
            close = self.desk.networks_spoke and not any(session.speaking for session in self.desk.sessions)
            self.desk.worked = False
            self.desk.networks_spoke &= not close
        if close:
            self._speakers.close()
        told = f"no work for {self._unload_after:g} s"
        self.freed = Choice("freed", told + (f": {', '.join(names)}" if names else ""))
