"""An utterance: a text on its way to becoming sound, pulled chunk by chunk."""

from __future__ import annotations

import weakref
from pathlib import Path
from types import TracebackType
from typing import Any

from rvc_spark.errors import RvcSparkError
from rvc_spark.processing.session import Session, check_sentence
from rvc_spark.processing.speak_options import SpeakOptions
from rvc_spark.processing.voice_shelf import VoiceShelf
from rvc_spark.processing.work_desk import WorkDesk
from rvc_spark.processing.worker_status import SentenceTiming, UtteranceStatus
from rvc_spark.rvc_config import Choice
from rvc_spark.streaming.chunk import AudioChunk, Gap


class Utterance:
    """Iterator over the chunks of one text, in order, while the rest is being made. See `WorkerManager.submit`.

    It ends after the chunk that is `last`, or silently when it was cancelled; `status.state` tells which. Raises the
    error of a failed sentence under the policy "stop", and what went wrong with the reference. KeyboardInterrupt while
    waiting ends the utterance, not the workers; so does dropping it.
    """

    def __init__(self, session: Session, desk: WorkDesk, shelf: VoiceShelf, manager: object = None) -> None:
        self._session, self._desk, self._shelf = session, desk, shelf
        self._told = False  # whether its error, if it has one, was raised
        self._manager = manager  # whose workers end when nobody knows it any more
        weakref.finalize(self, setattr, session, "abandoned", True).atexit = False

    @property
    def name(self) -> str:
        """Of the stream, in every chunk."""
        return self._session.name

    @property
    def text(self) -> str:
        """What is spoken."""
        return self._session.text

    @property
    def sentences(self) -> tuple[str, ...]:
        """The sentences of the text. An engine that speaks them in one go may divide its speech elsewhere."""
        return self._session.texts

    @property
    def rate(self) -> int | None:
        """Hz of all chunks; None until the voice is known."""
        return self._session.queue.rate

    @property
    def engines(self) -> dict[str, Choice]:
        """Which engine did what and why; complete with the first chunk."""
        return dict(self._session.engines)

    @property
    def gaps(self) -> tuple[Gap, ...]:
        """Sentences that are missing so far."""
        return self._session.queue.gaps

    @property
    def timings(self) -> tuple[SentenceTiming, ...]:
        """Work and sound of every sentence that is made."""
        with self._desk.changed:
            return self._session.timings()

    @property
    def status(self) -> UtteranceStatus:
        """How far it is."""
        with self._desk.changed:
            return self._session.status()

    @property
    def settings(self) -> dict[str, Any]:
        """The fields of ConversionSettings that sentences from now on are converted with."""
        with self._desk.changed:
            return dict(self._session.settings)

    def __iter__(self) -> Utterance:
        return self

    def __next__(self) -> AudioChunk:
        chunk = self.get()
        if chunk is None:
            raise StopIteration
        return chunk

    def get(self, timeout: float | None = None) -> AudioChunk | None:
        """The next chunk; None when nothing came within `timeout` seconds, or nothing follows any more.

        Raises, once, what the utterance ended with, also when that was before anybody listened.
        """
        session = self._session
        if session.over or session.queue.ended:
            self._tell()
            return None
        try:
            chunk = session.queue.get(timeout)
            self._desk.wake()
        except KeyboardInterrupt:
            self.close()
            raise
        except RvcSparkError as error:
            if session.cancelled:
                return None
            with self._desk.changed:
                session.end(error=error)
                self._told = True
            self._desk.wake()
            raise
        if chunk is not None and chunk.last:
            self._desk.settle()
            self._desk.wake()
        return chunk

    def _tell(self) -> None:
        with self._desk.changed:
            error = None if self._told or self._session.cancelled else self._session.error
            self._told = True
        if error is not None:
            raise error

    def retry(self, sentence: int) -> None:
        """Make a failed sentence again, under the policy "wait". Raises StreamError if it has not failed."""
        with self._desk.changed:
            check_sentence(self._session, sentence)
            self._session.retry(sentence)
            self._desk.changed.notify_all()

    def change(self, *, voice: str | Path | None = None, on_failure: str | None = None, **settings: Any) -> None:
        """Other settings from the next sentence on that is not being converted yet.

        voice: a name or a path. on_failure: the policy, at once. settings: fields of ConversionSettings.
        Raises VoiceNotFoundError, ConfigError; then nothing is changed.
        """
        SpeakOptions(settings=settings)
        key = None if voice is None else self._shelf.key_of(voice)
        with self._desk.changed:
            if on_failure is not None:
                self._session.set_policy(on_failure)
            self._session.change(key, settings)
            self._desk.changed.notify_all()

    def pause(self) -> None:
        """Hold making and delivery. Sentences that are being made are finished."""
        self._pause(True)

    def resume(self) -> None:
        """Go on."""
        self._pause(False)

    def _pause(self, paused: bool) -> None:
        with self._desk.changed:
            self._session.paused = paused
            self._session.queue.pause(paused)
            self._desk.changed.notify_all()

    def cancel(self) -> None:
        """End it: what was made and not taken is dropped, whoever waits for a chunk is woken."""
        with self._desk.changed:
            if self._session.open:
                self._session.end(cancelled=True)
        self._desk.settle()
        self._desk.wake()

    def close(self) -> None:
        """`cancel`, as iterators call it."""
        self.cancel()

    def __enter__(self) -> Utterance:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def __repr__(self) -> str:
        return f"Utterance {self.status!r}"
