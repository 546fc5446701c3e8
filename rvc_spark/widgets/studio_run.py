"""One press of Speak or Convert: what the player pulls, and a thread that completes the take when nothing more comes.

    play(run.pieces())  ->  the player's thread: begin the work, pass the pieces on, note them in the take
    a thread of the run ->  after the last piece: sources, timings, picture

Nothing here touches a widget: both fill a take, which the studio reads from the main thread. What the work can fail
with is an error of this package; it is kept in the take.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

from rvc_spark.audio import Audio
from rvc_spark.errors import RvcSparkError
from rvc_spark.widgets.studio_takes import DONE, FAILED, STOPPED, StudioTake
from rvc_spark.widgets.studio_verbs import Making


class Run:
    """Makes one take. make: begins the work; called by whoever pulls, because loading a network takes seconds."""

    def __init__(self, take: StudioTake, make: Callable[[], Making]) -> None:
        self.take = take
        self._make = make
        self._making: Making | None = None
        self._stopping = threading.Event()
        self._pulled = threading.Event()  # no further piece will come
        self._began = time.perf_counter()
        self._error: RvcSparkError | None = None
        threading.Thread(target=self._complete, name="studio take", daemon=True).start()

    def stop(self) -> None:
        """End the work. Returns at once; any thread."""
        self._stopping.set()
        self._pulled.set()
        if (making := self._making) is not None:
            making.stop()

    def change(self, voice: str | None, settings: dict[str, Any]) -> None:
        """Another voice, other settings, from the next sentence on. Raises what the maker refuses."""
        if (making := self._making) is not None and not self._pulled.is_set():
            making.change(voice, settings)

    @property
    def elapsed(self) -> float:
        """Seconds since the button was pressed."""
        return time.perf_counter() - self._began

    def pieces(self) -> Iterator[Audio]:
        """The sound as it comes; pull it in one thread, once. Raises what the work fails with."""
        take = self.take
        try:
            making = self._making = self._make()
            try:
                for piece in making.pieces:
                    if self._stopping.is_set():
                        return
                    self._note(piece)
                    yield piece
            finally:
                making.stop()
            if not self._stopping.is_set():  # whoever is stopped ends like one that is done
                take.timings["made"] = self.elapsed
        except RvcSparkError as error:
            self._error = error
            raise
        finally:
            self._pulled.set()

    def _note(self, piece: Audio) -> None:
        take = self.take
        take.timings.setdefault("first", self.elapsed)
        if gap := getattr(piece, "gap", None):
            take.gaps.append(f"sentence {gap.sentence + 1} is missing: {gap.error}")
        take.spools[1].append(piece)

    def _complete(self) -> None:
        """What is known only at the end. Whatever happens, nobody waits for ever."""
        take = self.take
        self._pulled.wait()
        state = FAILED
        try:
            if (making := self._making) is not None and take.seconds:
                take.engines.update(making.engines())
                take.licence = making.licence()
                take.timings.update(making.timings())
                for piece in making.sources():
                    take.spools[0].append(piece)
                take.draw()
            if "made" in take.timings and take.seconds:
                take.timings["real_time_factor"] = take.timings["made"] / take.seconds
            take.error = None if self._stopping.is_set() else self._error
            state = STOPPED if "made" not in take.timings and take.error is None else FAILED if take.error else DONE
        except RvcSparkError as error:
            take.error = error
        finally:
            take.state = state
            take.over.set()
