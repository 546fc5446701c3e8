"""A speech engine and a VC that work in microseconds, with the interfaces of the real ones, and misbehave on demand.

What a sentence sounds like follows from its text alone, so every sample of a stream can be told in advance.
"""

from __future__ import annotations

import hashlib
import random
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np

from rvc_spark.audio import Audio
from rvc_spark.errors import SpeechError, VoiceNotFoundError
from rvc_spark.processing.sound_line import GAP_SECONDS
from rvc_spark.processing.spoken_parts import SENTENCE_PAUSE
from rvc_spark.rvc_config import Choice

RATE_IN, RATE_OUT = 8_000, 16_000
SHORTEST, LONGEST = 200, 600  # samples of a spoken sentence


def number_of(text: str) -> int:
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:4], "little")


def speech_of(text: str) -> np.ndarray:
    """A ramp whose level and length belong to this text; never 0."""
    number = number_of(text)
    count = SHORTEST + number % (LONGEST - SHORTEST)
    return (0.1 + 0.8 * (number % 997) / 997 + np.arange(count) / count / 20).astype(np.float32)


def converted(samples: np.ndarray, rate_out: int = RATE_OUT, level: float = 0.5) -> np.ndarray:
    count = round(len(samples) * rate_out / RATE_IN)
    places = np.minimum((np.arange(count) * RATE_IN / rate_out).astype(int), len(samples) - 1)
    return (samples[places] * np.float32(level)).astype(np.float32)


def expected(sentences: tuple[str, ...], failed: set[int] = frozenset()) -> np.ndarray:
    """The stream of these sentences, with the silence of those that fail; fades beside gaps left out."""
    parts: list[np.ndarray] = []
    for number, text in enumerate(sentences):
        if number in failed:
            parts.append(np.zeros(round(GAP_SECONDS * RATE_OUT), np.float32))
            continue
        parts.append(converted(speech_of(text)))
        if number < len(sentences) - 1:
            parts.append(np.zeros(round(SENTENCE_PAUSE * RATE_OUT), np.float32))
    return np.concatenate(parts)


@dataclass
class Trouble:
    """What goes wrong, by seed. delay: longest, in seconds. fails, dies: chances. hook: called at every point."""

    seed: int = 0
    delay: float = 0.0
    speech_fails: float = 0.0
    voice_fails: float = 0.0
    dies: float = 0.0
    hook: Callable[[str, str], None] | None = None  # ("speak" or "convert", text or level of the sentence)
    lock: threading.Lock = field(default_factory=threading.Lock)
    died: set[str] = field(default_factory=set)

    def __post_init__(self) -> None:
        self._rng = random.Random(self.seed)

    def may(self, kind: str, text: str) -> None:
        """Wait a little; die, once for each sentence, if the seed says so."""
        with self.lock:
            wait = self._rng.random() ** 4 * self.delay
            mark = f"{kind} {text}"
            dies = random.Random(f"{self.seed} {mark}").random() < self.dies and mark not in self.died
            if dies:
                self.died.add(mark)
        if wait:
            time.sleep(wait)
        if self.hook is not None:
            self.hook(kind, text)
        if dies:
            raise SystemExit

    def bad(self, kind: str, text: str) -> bool:
        """Whether this sentence always fails there."""
        chance = self.speech_fails if kind == "speak" else self.voice_fails
        return random.Random(f"{self.seed} fails {kind} {text}").random() < chance


class QuickEngine:
    def __init__(self, trouble: Trouble, name: str = "espeak") -> None:
        self.trouble, self.name = trouble, name
        self.settings = QuickSettings()
        self.streams = self.closed = 0

    def stream(self, speaker: Path | None, text: str):
        self.streams += 1
        try:
            self.trouble.may("speak", text)
            if self.trouble.bad("speak", text):
                raise SpeechError(f"{text} cannot be spoken", "Try another.")
            if self.name == "espeak":
                samples = speech_of(text)
            else:
                parts = [speech_of(sentence.strip() + ".") for sentence in text.split(".") if sentence.strip()]
                pause = np.zeros(round(0.3 * RATE_IN), np.float32)
                samples = np.concatenate([piece for part in parts for piece in (part, pause)][:-1])
            for start in range(0, len(samples), 300):
                self.trouble.may("piece", f"{text} {start}")
                yield Audio(samples[start : start + 300], RATE_IN)
        finally:
            self.closed += 1


@dataclass(frozen=True)
class QuickSettings:
    seed: int | None = None


class QuickSpeakers:
    def __init__(self, trouble: Trouble | None = None, name: str = "espeak") -> None:
        self.trouble, self.name = trouble or Trouble(), name
        self.enrolled = self.closed = 0
        self.refuses = False
        self.engines: list[QuickEngine] = []

    def engine(self, asked=None, values=None):
        self.engines.append(QuickEngine(self.trouble, asked or self.name))
        return self.engines[-1], Choice(asked or self.name, "a quick one")

    def speaker_file(self, engine, reference, transcript=None):
        if reference is None:
            return None
        self.enrolled += 1
        if self.refuses:
            raise SpeechError("the voice cannot be enrolled", "Choose another recording.")
        return Path("speaker.json")

    def close(self) -> None:
        self.closed += 1


class QuickVC:
    """See `rvc_modules.VC`. Voices are a to h; each has its own level, the demo voice 0.5."""

    LEVELS = {"demo": 0.5, **{name: 0.1 * (number + 1) for number, name in enumerate("abcdefgh")}}

    def __init__(self, trouble: Trouble | None = None, folders=("folder",), rates=None, family=None) -> None:
        self.trouble = trouble or Trouble()
        self.folders = [Path(folder) for folder in folders]
        self.rates = rates or {}
        self.family = family if family is not None else []
        self.family.append(self)
        self.voice = None
        self.networks = False
        self.loads = self.unloads = self.running = 0
        self.config = SimpleNamespace(model_unload_delay=300.0)
        self.asked: list = []  # settings of every conversion

    @property
    def loaded(self) -> bool:
        return self.networks

    def load(self, voice, *, index="auto"):
        name = Path(voice).stem
        if name not in self.LEVELS:
            raise VoiceNotFoundError(f"there is no voice {name}", "Choose one.")
        rate = self.rates.get(name, RATE_OUT)
        self.voice = SimpleNamespace(
            name=name, path=Path(voice), info=SimpleNamespace(sample_rate=rate),
            card=SimpleNamespace(median_f0_hz=200.0), index_choice=Choice("", "none is there"),
        )  # fmt: skip
        self.networks = True
        self.loads += 1

    def unload(self) -> bool:
        was, self.networks = self.networks, False
        self.unloads += was
        return was

    def sibling(self):
        return QuickVC(self.trouble, self.folders, self.rates, self.family)

    def convert_blocks(self, sound, settings):
        self.networks = True
        return QuickBlocks(self, self.voice, sound, settings)


class QuickBlocks:
    def __init__(self, vc: QuickVC, voice, sound: Audio, settings) -> None:
        self.vc, self.voice, self.rate, self.settings = vc, voice.name, voice.info.sample_rate, settings
        self._samples = converted(sound.samples, self.rate, vc.LEVELS[voice.name])
        self._mark = hashlib.sha256(sound.samples.tobytes()).hexdigest()
        self.frames = len(self._samples)
        self.engines = {"pitch": Choice("quick", "as set")}
        self.closed = False
        self._blocks = self._made()

    def _made(self):
        self.vc.running += 1
        try:
            self.vc.trouble.may("convert", self._mark)
            key = self.settings.key if self.settings.auto_key == "off" else 7.0 + len(self.vc.asked) % 12
            self.vc.asked.append(self.settings)
            self.engines["key"] = Choice(f"{key:+g}", "told")
            for start in range(0, self.frames, 500):
                if self.vc.trouble.bad("convert", self._mark) and start:
                    raise SpeechError("the voice broke", "Try another.")
                yield Audio(self._samples[start : start + 500], self.rate)
                self.vc.trouble.may("block", f"{self._mark} {start}")
        finally:
            self.vc.running -= 1

    def __iter__(self):
        return self

    def __next__(self):
        return next(self._blocks)

    def close(self) -> None:
        self.closed = True
        self._blocks.close()


def failing(trouble: Trouble, sentences: tuple[str, ...]) -> set[int]:
    """Which of these sentences fail, in speech or (those with more than one block) in conversion."""
    found = set()
    for number, text in enumerate(sentences):
        samples = speech_of(text)
        mark = hashlib.sha256(samples.tobytes()).hexdigest()
        long = len(converted(samples)) > 500
        if trouble.bad("speak", text) or (trouble.bad("convert", mark) and long):
            found.add(number)
    return found


def seeded(trouble: Trouble, seed: int) -> Trouble:
    return replace(trouble, seed=seed, lock=threading.Lock(), died=set())
