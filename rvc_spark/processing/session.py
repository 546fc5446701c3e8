"""The state of one utterance: its sentences, what may be done next, its settings and the key it holds.

Every method is called with the lock of the work desk held, and none waits. Sound goes through the session's queue.
"""

from __future__ import annotations

import heapq
from collections.abc import Iterator
from typing import Any

from rvc_spark.audio import Audio
from rvc_spark.errors import RvcSparkError, StreamError
from rvc_spark.infer.settings import ConversionSettings
from rvc_spark.processing.buffer_queue import BufferQueue
from rvc_spark.processing.speak_options import SpeakOptions, WorkerOptions, merged
from rvc_spark.processing.speech_source import SpeechSource
from rvc_spark.processing.voice_shelf import VoiceKey, VoiceShelf
from rvc_spark.processing.work_steps import Plan, Sentence, Step
from rvc_spark.processing.worker_status import SentenceTiming, UtteranceStatus
from rvc_spark.rvc_config import Choice

REST = "the rest of the text"


class Session:
    """One utterance. `served`: when each kind of worker took a step of it, for taking turns."""

    def __init__(
        self, name: str, text: str, sentences: tuple[str, ...], source: SpeechSource, options: SpeakOptions,
        workers: WorkerOptions, shelf: VoiceShelf,
    ) -> None:  # fmt: skip
        self.name, self.text, self.texts = name, text, sentences
        self.source, self.options, self.workers, self._shelf = source, options, workers, shelf
        self.voice: VoiceKey = shelf.key_of(options.voice)
        self.settings: dict[str, Any] = dict(options.settings)
        self.engines: dict[str, Choice] = {"tts": source.why}
        self.sentences: list[Sentence] = []
        self.complete = source.one_by_one  # whether all sentences are known
        self.paused = self.abandoned = self.cancelled = self.over = False
        self.error: RvcSparkError | None = None
        self.served = {"tts": 0, "rvc": 0}
        self._unspoken: list[int] = []  # heaps of sentence numbers
        self._unconverted: list[int] = []
        self._spoken_seconds = 0.0  # of speech that waits for its conversion
        self._keys: dict[VoiceKey, Choice] = {}
        self._finding: dict[VoiceKey, Sentence] = {}
        self._enrol, self._stream = Step(self, "enrol"), Step(self, "stream")
        if self.complete:
            self.sentences = [Sentence(self, number, item) for number, item in enumerate(sentences)]
            self._unspoken = list(range(len(sentences)))
        rate = self.settings.get("resample_rate") or shelf.rate_of(self.voice)
        self.queue = BufferQueue(
            name, len(sentences) if self.complete else None, ahead_seconds=workers.ahead_seconds,
            on_failure=options.on_failure, rate=rate,
        )  # fmt: skip

    @property
    def open(self) -> bool:
        """Whether there is anything left to make or to hear."""
        return not (self.over or self.queue.closed or self.queue.ended)

    @property
    def wanted(self) -> bool:
        """Whether work for it makes sense; asked by workers between pieces, without the lock."""
        return not (self.over or self.queue.closed)

    @property
    def made(self) -> bool:
        """Whether nothing is left to make."""
        return self.complete and all(item.state in ("made", "failed") for item in self.sentences)

    @property
    def speaking(self) -> bool:
        """Whether anything is still to be spoken."""
        return self.open and (not self.complete or any(item.state == "waiting" for item in self.sentences))

    def steps(self) -> Iterator[Step]:
        """Every step there is."""
        yield from (self._enrol, self._stream)
        for sentence in self.sentences:
            yield from (sentence.speak, sentence.convert)

    # what comes next

    def next_step(self, kind: str) -> Step | None:
        """The step a worker of this kind ("tts" or "rvc") may take now."""
        if self.paused or not self.open:
            return None
        return self._next_tts() if kind == "tts" else self._next_rvc()

    def _next_tts(self) -> Step | None:
        if not self.source.enrolled:
            return None if self._enrol.owner else self._enrol
        if not self.source.one_by_one:
            return None if self.complete or self._stream.owner or not self.wants_speech() else self._stream
        if not self._unspoken:
            return None
        number = self._unspoken[0]
        if number != self.queue.head and not self.wants_speech():
            return None
        return self.sentences[number].speak

    def wants_speech(self) -> bool:
        """Whether more should be spoken: little waits to be converted."""
        return not self._unconverted or self._spoken_seconds < self.workers.spoken_ahead_seconds

    def _next_rvc(self) -> Step | None:
        if not self._unconverted or not self.queue.has_room(self._unconverted[0]):
            return None
        sentence = self.sentences[self._unconverted[0]]
        plan = sentence.plan or self.plan()
        if plan.hold and plan.voice not in self._keys:
            # The first sentence finds the key for all, whatever order they were spoken in.
            earlier = any(item.state == "waiting" for item in self.sentences[: sentence.number])
            if plan.voice in self._finding or earlier:
                return None
        return sentence.convert

    def urgent(self, step: Step) -> bool:
        """Whether it belongs to the first sentence, which goes ahead of others: its sound should start early."""
        if step.kind == "stream":
            return not self.sentences
        return step.kind == "enrol" or step.number == 0

    def take(self, step: Step) -> None:
        """A worker begins this step."""
        if step.kind == "speak":
            heapq.heappop(self._unspoken)
        if step.kind != "convert":
            return
        sentence = self.sentences[heapq.heappop(self._unconverted)]
        self._spoken_seconds -= sentence.spoken.seconds if sentence.spoken else 0
        sentence.plan = sentence.plan or self.plan()
        if sentence.plan.hold and sentence.plan.voice not in self._keys:
            self._finding[sentence.plan.voice] = sentence

    # how it is converted

    def plan(self) -> Plan:
        """In which voice and how the next sentence is converted."""
        settings = ConversionSettings().changed(**self.settings)
        find = "key" not in self.settings and "auto_key" not in self.settings
        return Plan(self.voice, settings, find or settings.auto_key != "off", find)

    def final_settings(self, plan: Plan, median_hz: float | None) -> ConversionSettings:
        """The settings of a plan, with the key that is held or has to be found. median_hz: of the loaded voice."""
        if plan.hold and plan.voice in self._keys:
            return plan.settings.changed(key=float(self._keys[plan.voice].value), auto_key="off")
        return plan.settings.changed(auto_key="voice") if plan.find and median_hz else plan.settings

    def change(self, voice: VoiceKey | None, settings: dict[str, Any]) -> None:
        """Other settings from the next sentence on; a key that is given replaces one that was found, and vice versa."""
        self.voice = voice or self.voice
        if "auto_key" in settings:
            self._keys.clear()
        self.settings = merged(self.settings, settings)

    def heard_engines(self, sentence: Sentence, engines: dict[str, Choice]) -> None:
        """The first block of a sentence is out: its engines are known, and with them the key."""
        plan = sentence.plan
        assert plan is not None
        engines = dict(engines)
        if plan.hold:
            engines["key"] = self._keys.setdefault(plan.voice, engines["key"])
        if self._finding.get(plan.voice) is sentence:
            del self._finding[plan.voice]
        self.engines = {"tts": self.source.why, **engines}

    # what became of a step

    def spoken(self, sentence: Sentence, sound: Audio, pause: int, seconds: float) -> None:
        """A sentence was spoken."""
        sentence.spoken, sentence.pause, sentence.tts_seconds = sound, pause, sentence.tts_seconds + seconds
        sentence.state = "spoken"
        self._spoken_seconds += sound.seconds
        heapq.heappush(self._unconverted, sentence.number)

    def cut(self, sound: Audio, pause: int, seconds: float) -> None:
        """The stream gave its next sentence."""
        self.sentences.append(Sentence(self, len(self.sentences), ""))
        self.spoken(self.sentences[-1], sound, pause, seconds)

    def stream_ended(self) -> None:
        """Nothing more will be spoken. Raises StreamError if nothing was."""
        self.queue.finish(len(self.sentences))
        self.complete = True

    def converted(self, sentence: Sentence, seconds: float = 0.0) -> None:
        """A sentence is in the queue as a whole."""
        sentence.state, sentence.spoken = "made", None
        sentence.rvc_seconds += seconds
        self._forget_finding(sentence)

    def failed(self, step: Step, error: RvcSparkError) -> None:
        """A step cannot be done. An utterance whose reference cannot be learnt ends; else it is a gap."""
        if step.kind == "enrol":
            self.end(error=error)
            return
        if step.kind == "stream":
            self.sentences.append(Sentence(self, len(self.sentences), REST if self.sentences else self.text))
            self.complete = True
            if self.queue.on_failure != "wait":
                self.queue.finish(len(self.sentences))
        sentence = self.sentences[-1 if step.kind == "stream" else step.number]
        if self.queue.complete(sentence.number):  # its last block was out before it failed
            self.converted(sentence)
            return
        sentence.state = "failed"
        if self.queue.on_failure != "wait":
            sentence.spoken = None
        self._forget_finding(sentence)
        self.queue.fail(sentence.number, sentence.text, error)

    def again(self, step: Step) -> None:
        """A step whose worker died waits for another one."""
        if step.kind == "speak":
            heapq.heappush(self._unspoken, step.number)
        elif step.kind == "stream":
            self.source.restart()
        elif step.kind == "convert":
            sentence = self.sentences[step.number]
            self._forget_finding(sentence)
            self._spoken_seconds += sentence.spoken.seconds if sentence.spoken else 0
            heapq.heappush(self._unconverted, step.number)

    def retry(self, number: int) -> None:
        """Make a failed sentence again. Raises StreamError if it has not failed or the stream is past it."""
        self.queue.retry(number)
        sentence = self.sentences[number]
        if not self.source.one_by_one and sentence.spoken is None:
            self.sentences.pop()  # what stood for the rest of the stream
            self.complete, self._stream.deaths = False, 0
            self.source.restart()
            return
        sentence.speak.deaths = sentence.convert.deaths = 0
        sentence.state = "waiting" if sentence.spoken is None else "spoken"
        self.again(sentence.speak if sentence.spoken is None else sentence.convert)

    def set_policy(self, on_failure: str) -> None:
        """What becomes of failed sentences from now on, a waiting one too. Raises ConfigError."""
        self.queue.on_failure = on_failure
        broke_off = self.complete and not self.source.one_by_one and self.sentences[-1].state == "failed"
        if broke_off and on_failure != "wait" and self.queue.head < len(self.sentences):
            self.queue.finish(len(self.sentences))

    def end(self, error: RvcSparkError | None = None, cancelled: bool = False) -> None:
        """Nothing more is made or delivered."""
        self.over = True
        self.error = self.error or error
        self.cancelled = self.cancelled or cancelled
        self.queue.close(error)
        for sentence in self.sentences:
            sentence.spoken = None

    def _forget_finding(self, sentence: Sentence) -> None:
        if sentence.plan is not None and self._finding.get(sentence.plan.voice) is sentence:
            del self._finding[sentence.plan.voice]

    # what is told

    def timings(self) -> tuple[SentenceTiming, ...]:
        """Of every sentence that is made."""
        return tuple(
            SentenceTiming(s.number, s.tts_seconds, s.rvc_seconds, s.seconds, s.voice)
            for s in self.sentences
            if s.state == "made"
        )

    def status(self) -> UtteranceStatus:
        """How far it is."""
        states = [item.state for item in self.sentences]
        return UtteranceStatus(
            self.name, self._state(), len(states), self.complete, sum(state != "waiting" for state in states),
            states.count("made"), states.count("failed"), self.queue.delivered, self.queue.ready_seconds,
            "" if self.error is None else str(self.error),
        )  # fmt: skip

    def _state(self) -> str:
        if self.cancelled:
            return "cancelled"
        if self.queue.ended:
            return "ended"
        if self.queue.closed:
            return "failed"
        return "paused" if self.paused else "held" if self.queue.held_by is not None else "running"


def check_sentence(session: Session, number: int) -> None:
    """Raises StreamError for a sentence that is not there."""
    if not 0 <= number < len(session.sentences):
        raise StreamError(f"sentence {number} is unknown", f"The stream has {len(session.sentences)} so far.")
