"""One press of Speak or Convert: a thread that asks for the sound, lets it be played, and completes the take.

The thread touches no widget. It fills a take, which the studio reads from the main thread. What it can fail with is an
error of this package; that is kept in the take. The thread ends when everything is made or when it is stopped, whatever
the player still plays.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterable, Iterator

from rvc_spark.audio import Audio
from rvc_spark.errors import RvcSparkError
from rvc_spark.widgets.studio_takes import DONE, FAILED, STOPPED, StudioTake
from rvc_spark.widgets.studio_verbs import Making, Sounding, SpeakRequest

Play = Callable[[Iterable[Audio], str], Sounding]


class Run:
    """Makes one take.

    make: begins the work; called in the run's own thread, because loading a network takes seconds.
    play: pulls the pieces and lets them be heard.
    """

    def __init__(self, take: StudioTake, make: Callable[[], Making], play: Play) -> None:
        self.take = take
        self.sentences = 0  # known once the work has begun
        self._make, self._play = make, play
        self._making: Making | None = None
        self._sounding: Sounding | None = None
        self._stopping = threading.Event()
        self._pulled = threading.Event()  # no further piece will come
        self._began = time.perf_counter()
        self._error: RvcSparkError | None = None
        take.stop = self.stop

    def start(self) -> None:
        """Begin."""
        threading.Thread(target=self._work, name="studio run", daemon=True).start()

    def stop(self) -> None:
        """End the work and the sound. Returns at once; any thread."""
        self._stopping.set()
        self._pulled.set()
        if (sounding := self._sounding) is not None:
            sounding.stop()

    def change(self, request: SpeakRequest) -> None:
        """Other settings from the next sentence on. Raises what the maker refuses."""
        if (making := self._making) is not None and not self._pulled.is_set():
            making.change(request)

    @property
    def elapsed(self) -> float:
        """Seconds since the button was pressed."""
        return time.perf_counter() - self._began

    def _work(self) -> None:
        take = self.take
        state = FAILED  # stands if something happens that nobody foresaw: then the thread dies loudly, and no one waits
        try:
            self._making = self._make()
            self.sentences, take.licence = self._making.sentences, self._making.licence
            take.engines.update(self._making.engines())
            if not self._stopping.is_set():
                self._sounding = self._play(self._watched(self._making), take.name)
                if self._stopping.is_set():  # pressed while the player was starting
                    self._sounding.stop()
            self._pulled.wait()
            if self._error is not None:
                raise self._error
            self._complete()
            state = STOPPED if self._stopping.is_set() else DONE
        except RvcSparkError as error:
            take.error = error
            state = STOPPED if self._stopping.is_set() else FAILED
        finally:
            take.state = state
            take.over.set()

    def _watched(self, making: Making) -> Iterator[Audio]:
        """The pieces as they pass to the player, noted in the take."""
        take = self.take
        try:
            for piece in making.pieces:
                if "first" not in take.timings:
                    take.timings["first"] = self.elapsed
                take.spools[1].append(piece)
                if gap := getattr(piece, "gap", None):
                    take.gaps.append(f"sentence {gap.sentence + 1} is missing: {gap.error}")
                yield piece
                if self._stopping.is_set():
                    break
            else:
                take.timings["made"] = self.elapsed
        except RvcSparkError as error:
            self._error = error
            raise
        finally:
            if close := getattr(making.pieces, "close", None):
                close()
            self._pulled.set()

    def _complete(self) -> None:
        """What is known only at the end: sources, stages, picture."""
        making, take = self._making, self.take
        assert making is not None
        take.engines.update(making.engines())
        for piece in making.sources():
            take.spools[0].append(piece)
        take.timings.update(making.timings())
        if "made" in take.timings and take.seconds:
            take.timings["real_time_factor"] = take.timings["made"] / take.seconds
        take.draw()
