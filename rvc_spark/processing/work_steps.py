"""What the workers' state is made of: sentences, the steps they need, and how each is converted. Data, no logic."""

from __future__ import annotations

import threading
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from rvc_spark.audio import Audio
from rvc_spark.infer.settings import ConversionSettings
from rvc_spark.processing.voice_shelf import VoiceKey

if TYPE_CHECKING:
    from rvc_spark.processing.session import Session


@dataclass(eq=False)
class Step:
    """One piece of work for one worker: "enrol", "speak", "stream" or "convert".

    owner: the thread that does it now. deaths: how many threads died doing it.
    """

    session: Session
    kind: str
    number: int = 0  # of the sentence
    owner: threading.Thread | None = None
    deaths: int = 0


@dataclass(frozen=True)
class Plan:
    """In which voice and how a sentence is converted; it keeps it when it must be done again.

    hold: the key that is found belongs to all sentences in this voice. find: it is looked for unless the voice knows no
    median pitch (`auto_key` was not chosen by a person).
    """

    voice: VoiceKey
    settings: ConversionSettings
    hold: bool
    find: bool


@dataclass(eq=False)
class Sentence:
    """A sentence on its way. state: "waiting", "spoken", "made" or "failed"."""

    session: Session
    number: int
    text: str
    state: str = "waiting"
    spoken: Audio | None = None
    pause: int = 0  # samples of silence behind it
    plan: Plan | None = None
    tts_seconds: float = 0.0
    rvc_seconds: float = 0.0
    seconds: float = 0.0
    voice: str = ""
    speak: Step = field(init=False)
    convert: Step = field(init=False)

    def __post_init__(self) -> None:
        self.speak = Step(self.session, "speak", self.number)
        self.convert = Step(self.session, "convert", self.number)
