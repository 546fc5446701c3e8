"""What workers and streams say about themselves: frozen records that read well when shown."""

from __future__ import annotations

from dataclasses import dataclass, field

from rvc_spark.rvc_config import Choice


@dataclass(frozen=True)
class SentenceTiming:
    """One sentence of a stream: seconds of work to speak and to convert it, seconds of sound, and in which voice."""

    sentence: int
    tts: float
    rvc: float
    seconds: float
    voice: str


@dataclass(frozen=True)
class UtteranceStatus:
    """How far a stream is.

    state: "running", "paused", "held" (at a failed sentence, until `retry`), "ended", "failed" or "cancelled".
    sentences: known so far; `complete` says whether that is all. delivered: taken as a whole, or passed as a gap.
    ready_seconds: of sound that wait to be taken.
    """

    name: str
    state: str
    sentences: int
    complete: bool
    spoken: int
    made: int
    failed: int
    delivered: int
    ready_seconds: float
    error: str = ""

    def __repr__(self) -> str:
        of = f"{self.sentences}{'' if self.complete else '+'}"
        told = [f"{self.state}: {self.made} of {of} sentences made, {self.ready_seconds:.1f} s ready"]
        told += [f"{self.failed} failed"] * bool(self.failed) + [self.error] * bool(self.error)
        return f"{self.name} ({', '.join(told)})"


@dataclass(frozen=True)
class WorkerStatus:
    """What the workers are doing. `models`: "loaded", "freed" or "not loaded", and why.

    tts, rvc: workers (alive, busy). queued: sentences that are not made yet. restarts: workers that died and were
    replaced; `last_death` names the sentence and the error. made, failed: sentences since the start.
    """

    state: str
    tts: tuple[int, int]
    rvc: tuple[int, int]
    queued: int
    ready_seconds: float
    voices: tuple[str, ...]
    models: Choice
    restarts: int
    made: int
    failed: int
    last_death: str = ""
    utterances: tuple[UtteranceStatus, ...] = field(default=())

    def __repr__(self) -> str:
        (tts, speaking), (rvc, converting) = self.tts, self.rvc
        ready = f"{self.ready_seconds:.1f} s ready"
        lines = [
            f"workers {self.state}: {tts} speak ({speaking} busy), {rvc} convert ({converting} busy)",
            f"sentences: {self.made} made, {self.failed} failed, {self.queued} queued, {ready}",
            f"models {self.models}" + (f", voices {', '.join(self.voices)}" if self.voices else ""),
        ]
        if self.restarts:
            lines.append(f"restarts: {self.restarts}, the last at {self.last_death}")
        return "\n".join([*lines, *(f"- {item!r}" for item in self.utterances)])
