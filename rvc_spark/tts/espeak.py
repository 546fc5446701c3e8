"""The embedded speech engine: espeak-ng from a wheel, in process, over a hundred languages, no download.

It cannot clone a voice. Enrolling a speaker means: measure the median pitch of the recordings and find the setting with
which the engine speaks at that pitch. That is said in the result, and it is enough where a voice conversion follows.
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import ClassVar

import numpy as np

from rvc_spark.audio import Audio, open_audio, resample
from rvc_spark.errors import ConfigError, RvcSparkError, SpeechError
from rvc_spark.rvc_config import Choice
from rvc_spark.tts.engine import BaseTTSEngine, EmbeddingResult, check_spoken
from rvc_spark.tts.espeak_library import EspeakLibrary, Utterance, installed_library
from rvc_spark.tts.espeak_text import tamed
from rvc_spark.tts.espeak_voices import EspeakVariant, EspeakVoice, resolve, variants, voices
from rvc_spark.tts.median_pitch import median_pitch
from rvc_spark.tts.speaker_file import read_speaker, write_speaker

SPEED_RANGE = (80, 450)
"""Words per minute."""
PITCH_RANGE = (0, 100)
"""Of `pitch` and `pitch_range`, in the engine's own units; 50 is normal."""
VOLUME_RANGE = (1, 200)
"""Percent; above 100 loud vowels clip."""
BLOCK_CHARS = 400
"""A text is spoken in pieces of at most this many characters, about 25 s: what one step keeps in memory."""
ENROLL_SECONDS = 60.0
"""How much of each recording is measured."""
MAX_EMBEDDING_BYTES = 64 << 10

_FORMAT = "rvc_spark espeak voice"
_HIGH_VARIANT = "f3"  # a smaller throat: above this median a plain espeak voice sounds like a man in falsetto
_HIGH_ABOVE_HZ = 155.0
_ENROLL_RATE = 16_000
_STOPS = (". ", "! ", "? ", "\n", "。", "！", "？", "؟ ", "। ")
_PROBE = "Nine men were moaning low, we owe you a yellow lamb."  # nearly all voiced


@dataclass(frozen=True)
class EspeakSettings:
    """How the embedded engine speaks. Out of range raises ConfigError naming value and range.

    voice: language or voice with an optional variant: "en-us", "de", "en-gb+f3". speed: words per minute.
    pitch: height, pitch_range: liveliness, 0..100. volume: percent. variant: as after the + of `voice`.
    """

    voice: str = "en-us"
    speed: int = 165
    pitch: int = 50
    pitch_range: int = 50
    volume: int = 100
    variant: str | None = None

    def __post_init__(self) -> None:
        ranges = {"speed": SPEED_RANGE, "pitch": PITCH_RANGE, "pitch_range": PITCH_RANGE, "volume": VOLUME_RANGE}
        for name, (low, high) in ranges.items():
            value = getattr(self, name)
            if isinstance(value, bool) or not isinstance(value, int) or not low <= value <= high:
                raise ConfigError(
                    f"the embedded engine's {name} is {value!r:.40}, it must be a whole number from {low} to {high}",
                    f"Try {name}={EspeakSettings.__dataclass_fields__[name].default}.",
                )
        for name in ("voice", "variant"):
            value = getattr(self, name)
            if not (isinstance(value, str) and value.strip() or (name == "variant" and value is None)):
                raise ConfigError(f"the embedded engine's {name} is {value!r:.40}", "Name a voice such as en-us or de.")


class EspeakEngine(BaseTTSEngine):
    """espeak-ng. Safe in threads and after a fork; same text and settings, same samples.

    folder: for the files of `enroll` and `synthesize`; default is a folder below the system's temporary one.
    Raises MissingPackageError without the wheel, SpeechError for an unknown voice.
    """

    name: ClassVar[str] = "espeak"

    def __init__(
        self,
        settings: EspeakSettings | None = None,
        *,
        folder: str | Path | None = None,
        library: EspeakLibrary | None = None,
    ) -> None:
        super().__init__(Path(folder) if folder else Path(tempfile.gettempdir()) / "rvc_spark_speech")
        self.settings = settings or EspeakSettings()
        self.library = library or installed_library()
        self._identifier(self.settings)

    @property
    def choice(self) -> Choice:
        """`espeak (embedded, voice en-us at 165 words per minute, pitch 50)`, all that shapes the sound."""
        own = self.settings
        voice = f"{own.voice}+{own.variant}" if own.variant and "+" not in own.voice else own.voice
        extra = "".join(
            f", {name} {getattr(own, name)}"
            for name in ("pitch_range", "volume")
            if getattr(own, name) != EspeakSettings.__dataclass_fields__[name].default
        )
        return Choice(
            self.name, f"embedded, voice {voice} at {own.speed} words per minute, pitch {own.pitch}{extra}"
        )

    @property
    def enrolment_key(self) -> str:
        """The pitch that meets a recording is that of one voice at one pace."""
        return str(self.choice)

    def voices(self) -> tuple[EspeakVoice, ...]:
        """Every language there is."""
        return voices(self.library.data)

    def variants(self) -> tuple[EspeakVariant, ...]:
        """Every variant that can be laid over a language."""
        return variants(self.library.data)

    def stream(self, embedding_path: str | Path | None, text: str) -> Iterator[Audio]:
        """See `BaseTTSEngine.stream`; 22,050 Hz. Texts over BLOCK_CHARS come in pieces cut at sentence ends."""
        check_spoken(text)
        settings = self.settings if embedding_path is None else self._enrolled(Path(embedding_path))
        return self._pieces(text, settings, self._identifier(settings))

    def enroll(self, samples: Sequence[Path | Audio]) -> EmbeddingResult:
        """Find the engine's pitch that meets the recordings' median, and write it to a small JSON file.

        No voice is cloned. Fails, in the result, if nothing can be read or hardly anything is voiced.
        """
        try:
            if not samples:
                raise SpeechError("there is no recording to enrol", "Give at least one, a second or longer.")
            found = [median_pitch(_beginning(sample), _ENROLL_RATE) for sample in samples]
            voiced = [value for value in found if value is not None]
            if not voiced:
                raise SpeechError(
                    f"none of {len(samples)} recordings holds enough voice to measure a pitch",
                    "Give a second or more of clear speech.",
                )
            source_hz = float(np.median(voiced))
            settings, reached_hz = self._nearest(source_hz)
            path = self._write(settings, source_hz, reached_hz)
        except RvcSparkError as error:
            return EmbeddingResult(None, 0, False, str(error))
        return EmbeddingResult(path, len(voiced), True, None, source_hz, reached_hz)

    def _identifier(self, settings: EspeakSettings) -> str:
        return resolve(self.library.data, settings.voice, settings.variant)

    def _pieces(self, text: str, settings: EspeakSettings, identifier: str) -> Iterator[Audio]:
        said = False
        for block in blocks(tamed(text, identifier)):
            samples, rate = self.library.render(
                Utterance(
                    block, identifier, settings.speed, min(settings.pitch, 99), min(settings.pitch_range, 99),
                    settings.volume,
                )  # fmt: skip
            )
            if len(samples):
                said = True
                yield Audio(samples, rate)
        if not said:
            raise SpeechError(
                f"the voice {settings.voice} of espeak-ng has nothing to say to {text[:40]!r}",
                "Write words in the language of the voice, or choose the voice of the text's language.",
            )

    def _nearest(self, target_hz: float) -> tuple[EspeakSettings, float]:
        """The settings that speak closest to a median pitch, and the pitch they reach: bisection, for pitch rises."""
        settings = replace(self.settings, volume=100)
        if target_hz > _HIGH_ABOVE_HZ and not settings.variant and "+" not in settings.voice:
            settings = replace(settings, variant=_HIGH_VARIANT)
        low, high = PITCH_RANGE
        tried: dict[int, float] = {}
        while low <= high:
            middle = (low + high) // 2
            tried[middle] = self._spoken_hz(replace(settings, pitch=middle))
            low, high = (middle + 1, high) if tried[middle] < target_hz else (low, middle - 1)
        best = min(tried, key=lambda pitch: abs(np.log(tried[pitch] / target_hz)))
        return replace(settings, pitch=best, volume=self.settings.volume), tried[best]

    def _spoken_hz(self, settings: EspeakSettings) -> float:
        audio = next(self._pieces(_PROBE, settings, self._identifier(settings)))
        found = median_pitch(audio.samples, audio.rate)
        if found is None:
            raise SpeechError(
                f"the voice {settings.voice} has no pitch of its own, so it cannot meet another's",
                "Enrol with a voice that does not whisper, such as en-us.",
            )
        return found

    def _write(self, settings: EspeakSettings, source_hz: float, reached_hz: float) -> Path:
        told = {
            "format": _FORMAT,
            "voice": settings.voice,
            "variant": settings.variant,
            "pitch": settings.pitch,
            "source_hz": round(source_hz, 2),
            "reached_hz": round(reached_hz, 2),
        }
        return write_speaker(self.own_folder(), self.name, told)

    def _enrolled(self, path: Path) -> EspeakSettings:
        """Who speaks comes from the file; how fast, how lively and how loud from the engine's own settings."""
        told = read_speaker(path, _FORMAT, MAX_EMBEDDING_BYTES)
        try:
            return replace(self.settings, **{name: told.get(name) for name in ("voice", "variant", "pitch")})
        except ConfigError as error:
            raise SpeechError(f"{path.name} cannot be used: {error.problem}", "Enrol the speaker again.") from error


def blocks(text: str) -> Iterator[str]:
    """Pieces of at most BLOCK_CHARS that together are the text: cut after a stop or line, else a word, else hard."""
    start = 0
    while len(text) - start > BLOCK_CHARS:
        window = text[start : start + BLOCK_CHARS]
        half = BLOCK_CHARS // 2
        stops = max(window.rfind(stop, half) + len(stop) for stop in _STOPS)
        end = stops if stops > half else window.rfind(" ", half) + 1
        end = end or BLOCK_CHARS
        if window[:end].strip():
            yield window[:end]
        start += end
    if text[start:].strip():
        yield text[start:]


def _beginning(sample: Path | Audio) -> np.ndarray:
    """At most ENROLL_SECONDS of a recording, mono at 16 kHz, float32 [T]; a long file is not read to its end."""
    if isinstance(sample, Audio):
        audio = Audio(sample.samples[..., : round(ENROLL_SECONDS * sample.rate)], sample.rate).mono()
        return resample(audio.samples.reshape(-1), audio.rate, _ENROLL_RATE)
    with open_audio(sample) as reader:
        parts: list[np.ndarray] = []
        for part in reader.blocks(reader.rate):
            parts.append(part)
            if len(parts) >= ENROLL_SECONDS:
                break
        audio = Audio(np.concatenate(parts, axis=1), reader.rate).mono()
    return resample(audio.samples.reshape(-1), audio.rate, _ENROLL_RATE)
