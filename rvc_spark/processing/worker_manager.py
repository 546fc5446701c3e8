"""Texts through speech and conversion at once, several at a time, in order, while the rest is still being made.

    submit(text) -> sentences -> TTS workers -> speech -> RVC workers -> BufferQueue -> Utterance: chunk, chunk, ...

    with WorkerManager(vc, speakers) as manager:
        for chunk in manager.submit("A long text. With many sentences."):
            player.write(chunk)

The first sentence's sound leaves while it is still being converted. Networks are loaded once, freed when nobody needed
them for a while, and loaded again on demand. A worker that dies is replaced and its sentence done again.
"""

from __future__ import annotations

import time
import weakref
from dataclasses import replace
from itertools import count
from pathlib import Path
from types import TracebackType
from typing import Any

from rvc_spark.errors import StreamError, WorkerError
from rvc_spark.processing.crew import Crew
from rvc_spark.processing.session import Session
from rvc_spark.processing.speak_options import SpeakOptions, WorkerOptions, merged
from rvc_spark.processing.speech_source import SpeechSource
from rvc_spark.processing.utils import split_text_and_validate
from rvc_spark.processing.utterance import Utterance
from rvc_spark.processing.voice_shelf import VoiceShelf
from rvc_spark.processing.work_desk import WorkDesk
from rvc_spark.processing.worker_status import WorkerStatus
from rvc_spark.rvc_modules import VC
from rvc_spark.tts.choose import Speakers


class WorkerManager:
    """Workers over one VC and its speech engines. Safe in threads; `with`, or `start` and `stop`.

    The voice that is loaded into `vc` is used in place; other voices get VCs of their own beside it.
    """

    def __init__(self, vc: VC, speakers: Speakers, options: WorkerOptions | None = None) -> None:
        self.options = options or WorkerOptions()
        self._speakers = speakers
        self._shelf = VoiceShelf(vc)
        self._desk = WorkDesk(self.options.retries)
        self._desk.stopped = True
        after = self.options.unload_after
        after = vc.config.model_unload_delay if after == "config" else after
        self._crew = Crew(self._desk, self._shelf, speakers, self.options, after)
        self._names = count(1)
        self._defaults: dict[str, Any] = {}
        self._voice: str | Path | None = None
        weakref.finalize(self, self._crew.stop, 1.0)  # dropped, or at the end of the process

    def start(self) -> WorkerManager:
        """Start the workers, also after `stop`. Starting twice is once."""
        self._crew.start()
        return self

    def submit(self, text: str, options: SpeakOptions | None = None, **changes: Any) -> Utterance:
        """Speak and convert a text; returns at once.

        Args:
            changes: fields of SpeakOptions or of ConversionSettings, as in `submit("Hello.", voice="demo", key=3)`.

        Raises TextError, ConfigError, VoiceNotFoundError, WorkerError (stopped), StreamError (the name is taken), and
        what choosing the engine raises. What fails later is in the stream.
        """
        if self._desk.stopped:
            raise WorkerError("the workers are stopped", "Start them: WorkerManager.start().")
        options = (options or SpeakOptions()).changed(**changes)
        voice = self._voice if options.voice is None else options.voice
        options = replace(options, voice=voice, settings=merged(self._defaults, options.settings))
        sentences = tuple(split_text_and_validate(text))
        source = SpeechSource(self._speakers, options)
        name = options.name or f"speech {next(self._names)}"
        session = Session(name, text, sentences, source, options, self.options, self._shelf)
        self._desk.add(session)
        self._crew.start()
        self._crew.look()
        return Utterance(session, self._desk, self._shelf, self)

    def change(self, *, voice: str | Path | None = None, **settings: Any) -> None:
        """Other settings for all utterances, from each one's next sentence on, and for those to come.

        Raises VoiceNotFoundError, ConfigError; then nothing is changed.
        """
        SpeakOptions(settings=settings)
        key = None if voice is None else self._shelf.key_of(voice)
        with self._desk.changed:
            self._voice = voice if voice is not None else self._voice
            self._defaults = merged(self._defaults, settings)
            for session in self._desk.sessions:
                session.change(key, settings)
            self._desk.changed.notify_all()

    def pause(self) -> None:
        """Hold making and delivery of all utterances."""
        self._pause(True)

    def resume(self) -> None:
        """Go on; utterances that were paused themselves too."""
        self._pause(False)

    def _pause(self, paused: bool) -> None:
        with self._desk.changed:
            self._desk.paused = paused
            for session in self._desk.sessions:
                session.paused = paused
                session.queue.pause(paused)
            self._desk.changed.notify_all()

    def cancel(self, utterance: Utterance | str | None = None) -> None:
        """End an utterance (or the one of that name), or all. Raises StreamError for an unknown name."""
        name = utterance.name if isinstance(utterance, Utterance) else utterance
        with self._desk.changed:
            chosen = [session for session in self._desk.sessions if name in (None, session.name)]
            if isinstance(utterance, str) and not chosen:
                raise StreamError(f"no stream named {name!r:.40} is open", "See status() for those that are.")
            for session in chosen:
                session.end(cancelled=True)
        self._desk.settle()
        self._desk.wake()

    def drain(self, timeout: float | None = None) -> bool:
        """Wait until everything that was submitted is made or failed; whether that came true in `timeout` seconds.

        More than `ahead_seconds` is only made while somebody listens.
        """
        end = None if timeout is None else time.monotonic() + timeout
        with self._desk.changed:
            while any(session.open and not session.made for session in self._desk.sessions):
                rest = None if end is None else end - time.monotonic()
                if self._desk.stopped or (rest is not None and rest <= 0):
                    return False
                self._desk.changed.wait(rest)
        return True

    def stop(self, timeout: float = 1.0) -> bool:
        """Cancel everything and end the threads; whether all were gone within `timeout` seconds.

        One that is inside a network ends at its next block.
        """
        return self._crew.stop(timeout)

    def status(self) -> WorkerStatus:
        """What is going on."""
        voices, models = self._shelf.loaded(), self._crew.models()
        with self._desk.changed:
            workers = list(self._crew.workers)
            alive = {kind: [w for w in workers if w.kind == kind and w.is_alive()] for kind in ("tts", "rvc")}
            utterances = tuple(session.status() for session in self._desk.sessions)
            busy = {kind: sum(worker.step is not None for worker in found) for kind, found in alive.items()}
            state = "stopped" if self._desk.stopped else "paused" if self._desk.paused else "running"
            return WorkerStatus(
                state=state if state != "running" or any(busy.values()) or utterances else "idle",
                tts=(len(alive["tts"]), busy["tts"]),
                rvc=(len(alive["rvc"]), busy["rvc"]),
                queued=sum(item.sentences - item.made - item.failed for item in utterances),
                ready_seconds=sum(item.ready_seconds for item in utterances),
                voices=voices,
                models=models,
                restarts=self._desk.restarts,
                made=self._desk.made,
                failed=self._desk.failures,
                last_death=self._desk.last_death,
                utterances=utterances,
            )

    def __enter__(self) -> WorkerManager:
        return self.start()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()

    def __repr__(self) -> str:
        return f"WorkerManager: {self.status()!r}"
