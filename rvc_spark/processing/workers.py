"""The threads that speak and convert. One takes a step, does it, and asks for the next.

An error of this package is a failure of the sentence. Anything else ends the thread, as it should: it is seen, another
thread takes its place and the sentence is begun again (see `crew`).
"""

from __future__ import annotations

import sys
import threading
import time
from collections.abc import Callable
from contextlib import closing

from rvc_spark.audio import Audio
from rvc_spark.conversion import BlockConversion
from rvc_spark.errors import RvcSparkError, WorkerError
from rvc_spark.processing.chunk_order import Place
from rvc_spark.processing.interruption import interruptible
from rvc_spark.processing.sound_line import Source
from rvc_spark.processing.voice_shelf import VoiceShelf
from rvc_spark.processing.work_desk import WorkDesk
from rvc_spark.processing.work_steps import Sentence, Step


class Worker(threading.Thread):
    """A thread for steps of one kind, "tts" or "rvc".

    step: what it does now. error: what it died of. left: it takes no more steps. on_end is called when it ends.
    """

    def __init__(
        self, kind: str, number: int, desk: WorkDesk, shelf: VoiceShelf, on_end: Callable[[], None]
    ) -> None:  # fmt: skip
        super().__init__(name=f"rvc-spark {kind} {number}", daemon=True)
        self.kind = kind
        self.step: Step | None = None
        self.error: BaseException | None = None
        self.left = False
        self._desk, self._shelf, self._on_end = desk, shelf, on_end

    def run(self) -> None:
        """Work until the desk is closed."""
        try:
            while (step := self._desk.take(self, self.kind)) is not None:
                self.step = step
                self._do(step)
                self._desk.give_back(step)
                self.step = None
        finally:
            self.error = sys.exception()
            self.left = True
            self._on_end()

    def _do(self, step: Step) -> None:
        try:
            if step.kind == "enrol":
                step.session.source.enrol()
            elif step.kind == "speak":
                speak(self._desk, step)
            elif step.kind == "stream":
                stream(self._desk, step)
            else:
                convert(self._desk, self._shelf, step)
        except RvcSparkError as error:
            self._desk.failed(step, error)


def speak(desk: WorkDesk, step: Step) -> None:
    """One sentence by a call of its own. Raises what the engine raises."""
    session, sentence = step.session, step.session.sentences[step.number]
    started = time.perf_counter()
    sound = session.source.sentence(sentence.text, lambda: session.wanted)
    last = sentence.number == len(session.sentences) - 1
    pause = 0 if last else session.source.pause(sound.rate)
    with desk.changed:
        if session.wanted:
            session.spoken(sentence, sound, pause, time.perf_counter() - started)


def stream(desk: WorkDesk, step: Step) -> None:
    """Sentences of one long call, until enough of them wait to be converted. Raises what the engine raises."""
    session = step.session
    more = True
    while more and session.wanted:
        started = time.perf_counter()
        found = session.source.next_part(session.text, lambda: session.wanted)
        with desk.changed:
            if not session.wanted:
                break
            if found is None:
                session.stream_ended()
                break
            session.cut(*found, time.perf_counter() - started)
            more = session.wants_speech() and not session.paused and not desk.paused
            desk.changed.notify_all()


def convert(desk: WorkDesk, shelf: VoiceShelf, step: Step) -> None:
    """One sentence into its voice, block by block, from what was delivered of it before. Raises what `VC` raises."""
    session, sentence = step.session, step.session.sentences[step.number]
    plan, sound = sentence.plan, sentence.spoken
    assert plan is not None
    if sound is None:  # the utterance was ended just now
        return
    source = Source(sound.frames, sound.rate, sentence.pause)
    conversion = None
    while conversion is None:
        with interruptible(lambda: session.wanted), shelf.lease(plan.voice, lambda: session.wanted) as vc:
            median_hz = vc.voice.card.median_f0_hz if vc.voice is not None else None
            with desk.changed:
                settings = session.final_settings(plan, median_hz)
            conversion = vc.convert_blocks(sound, settings)
            with closing(conversion):
                if plan.voice.is_of(vc.voice):
                    _deliver(desk, sentence, conversion, source)
                else:  # its owner loaded another voice into the shared VC just now: take another place
                    conversion = None


def _deliver(desk: WorkDesk, sentence: Sentence, conversion: BlockConversion, source: Source) -> None:
    """Put the blocks of a conversion into the queue; those that a worker before this one put are left out."""
    session = sentence.session
    started = time.perf_counter()
    part, there = session.queue.received(sentence.number)
    done = 0
    for block in conversion:
        if done == 0:
            with desk.changed:
                session.heard_engines(sentence, conversion.engines)
                sentence.voice, sentence.seconds = conversion.voice, conversion.frames / conversion.rate
                desk.changed.notify_all()
        start, done = done, done + block.frames
        if not session.wanted:
            return
        if done <= there:
            continue
        place = Place(sentence.number, part, done >= conversion.frames)
        rest = Audio(block.mono().samples[max(0, there - start) :], block.rate)
        with desk.changed:  # who takes the last chunk finds the sentence made
            session.queue.put(place, rest, source if place.last else None, wait=False)
            if place.last:
                session.converted(sentence, time.perf_counter() - started)
                desk.made += 1
        part += 1
    if done != conversion.frames:
        raise WorkerError(
            f"sentence {sentence.number} came out with {done} of {conversion.frames} samples", "Report it."
        )
