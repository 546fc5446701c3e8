"""The notebook's verbs, over one shared VC.

    load_model("demo")
    convert_audio("me.wav", "she.wav", key=9)
    speak("Good morning.", "hello.wav")

Everything can also be done with a `VC` of one's own; these functions only save the variable.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from rvc_spark.audio import Audio, EncodeOptions, WatermarkReport, use_watermark, write_whole
from rvc_spark.conversion import Conversion, SoundSource
from rvc_spark.errors import ConfigError, VoiceNotFoundError
from rvc_spark.folder_conversion import BatchItem, converted_folder
from rvc_spark.infer.pipeline import Progress
from rvc_spark.infer.settings import ConversionSettings
from rvc_spark.processing.speak_options import SpeakOptions
from rvc_spark.processing.spoken_parts import SENTENCE_PAUSE
from rvc_spark.processing.utils import split_text_and_validate
from rvc_spark.processing.utterance import Utterance
from rvc_spark.processing.worker_manager import WorkerManager
from rvc_spark.profiles.profile_names import PREFIX
from rvc_spark.profiles.profile_store import ProfileStore
from rvc_spark.profiles.profile_voices import ProfileVoices
from rvc_spark.rvc_config import Choice, RVCConfig
from rvc_spark.rvc_modules import VC, LoadedVoice
from rvc_spark.tts.choose import Speakers
from rvc_spark.tts.engine import BaseTTSEngine, EmbeddingResult

DEFAULT_VOICE = "demo"
DEFAULT_SENTENCE = "The quick brown fox jumps over the lazy dog, and nobody was surprised."

_shared: VC | None = None
_speakers: Speakers | None = None  # of the shared VC's configuration
_workers: WorkerManager | None = None  # over both


@dataclass(frozen=True)
class Spoken:
    """A spoken text before any conversion: the sound, where it was written, and which engine spoke."""

    text: str
    audio: Audio
    path: Path | None
    engine: Choice
    licence: str = ""
    watermark: WatermarkReport | None = None  # what the detector found in the file; None: not written, or not marked


@dataclass(frozen=True)
class Speech:
    """A spoken and converted text: the sound, what the engine said before conversion, and the conversion's report."""

    text: str
    sentences: tuple[str, ...]
    source: Audio
    conversion: Conversion

    @property
    def audio(self) -> Audio:
        """The converted sound, float32 [T]."""
        return self.conversion.audio

    @property
    def path(self) -> Path | None:
        """Where it was written, if it was."""
        return self.conversion.path

    @property
    def watermark(self) -> WatermarkReport | None:
        """What the detector found in the file; None: not written, or not marked."""
        return self.conversion.watermark

    @property
    def engines(self) -> dict[str, Choice]:
        """Which engine did what, and why."""
        return self.conversion.engines


def init_rvc(config: RVCConfig | None = None, **values: Any) -> VC:
    """Make (or make anew) the shared VC. `values` are fields of RVCConfig, as in `init_rvc(device="cpu")`.

    Its `watermark` is from then on that of everything this process writes, where `EncodeOptions` do not say otherwise.
    """
    global _shared, _speakers, _workers
    if config is not None and values:
        raise ConfigError(f"both a config and {', '.join(values)} are given", "Give one or the other.")
    _shared = VC(config or RVCConfig(**values))
    use_watermark(_shared.config.watermark)
    if _workers is not None:
        _workers.stop()
        _workers = None
    if _speakers is not None:
        _speakers.close()
    _speakers = Speakers(_shared.config, ProfileVoices(ProfileStore.of(_shared.config)))
    return _shared


def get_vc() -> VC:
    """The shared VC, made on first use."""
    return _shared if _shared is not None else init_rvc()


def get_speakers() -> Speakers:
    """The speech engines beside the shared VC: `get_speakers().survey()` tells which can be used."""
    get_vc()
    assert _speakers is not None
    return _speakers


def get_profiles() -> ProfileStore:
    """The enrolled voices of the shared VC's configuration."""
    return ProfileStore.of(get_vc().config)


def load_model(voice: str | Path = DEFAULT_VOICE, *, index: str | Path | None = "auto") -> LoadedVoice:
    """Load a voice into the shared VC: a name of `get_vc().voices()` or a path. See `VC.load`.

    `profile:NAME` as voice is the RVC voice that was trained for that profile; as index, an index of its recordings.
    """
    vc = get_vc()
    if isinstance(voice, str) and voice.startswith(PREFIX):
        links = get_profiles().get(voice).record.links
        if links.voice is None:
            raise VoiceNotFoundError(
                f"no RVC voice belongs to {voice!r:.100}",
                "Speak with it: speak(TEXT, reference=...); or train one and link it: get_profiles().link(...).",
            )
        voice, index = links.voice, links.index if index == "auto" and links.index else index
    if isinstance(index, str) and index.startswith(PREFIX):
        loaded = vc.load(voice, index=None)
        index = ProfileVoices(get_profiles()).index(index, vc.encoder, loaded.info.version)
    return vc.load(voice, index=index)


def ready_voice() -> VC:
    """The shared VC with a voice in it; the demo voice if none was loaded."""
    vc = get_vc()
    if vc.voice is None:
        vc.load(DEFAULT_VOICE)
    return vc


def convert_audio(
    source: SoundSource,
    output: str | Path | None = None,
    *,
    options: EncodeOptions | None = None,
    on_progress: Callable[[Progress], None] | None = None,
    **settings: Any,
) -> Conversion:
    """Convert a recording into the loaded voice (the demo voice if none is). See `VC.convert` for the settings.

    `auto_key="profile:NAME"` brings it to where that profile speaks.
    """
    settings = _with_profile_pitch(settings)
    return ready_voice().convert(source, output=output, options=options, on_progress=on_progress, **settings)


def enroll(
    samples: Sequence[str | Path | Audio], *, engine: str | None = None, transcript: str | None = None
) -> EmbeddingResult:
    """Learn a speaker from recordings; the path of the result is a `reference` for `speak`.

    engine: "triton", "spark", "espeak" or "auto". transcript: what the one recording says, for Spark-TTS.
    Failures are in the result; raises ConfigError and what a missing engine raises.
    """
    chosen, _ = get_speakers().engine(engine)
    told = {} if transcript is None else {"transcript": transcript}
    if told and chosen.name == "espeak":
        raise ConfigError("the embedded engine cannot use a transcript", "Leave it out, or take engine='spark'.")
    return chosen.enroll([item if isinstance(item, Audio) else Path(item) for item in samples], **told)


def stream_speech(
    text: str,
    *,
    engine: str | None = None,
    reference: str | Path | Audio | None = None,
    transcript: str | None = None,
    tts: dict[str, Any] | None = None,
) -> tuple[Iterator[Audio], Choice]:
    """The text as it is being spoken, unconverted: pieces that joined are the whole, and which engine speaks and why.

    Arguments as `speak`. Closing the iterator ends the work, on a server too.
    """
    speakers = get_speakers()
    chosen, why = speakers.engine(engine, tts)
    return chosen.stream(speakers.speaker_file(chosen, reference, transcript), text), why


def say(
    text: str,
    output: str | Path | None = None,
    *,
    engine: str | None = None,
    reference: str | Path | Audio | None = None,
    transcript: str | None = None,
    tts: dict[str, Any] | None = None,
    options: EncodeOptions | None = None,
) -> Spoken:
    """Speak a text without converting it: the engine's own voice, or with Spark-TTS the voice of the reference.

    Arguments as `speak`. Raises TextError, SpeechError, OutputError.
    """
    speakers = get_speakers()
    chosen, why = speakers.engine(engine, tts)
    audio = _spoken(chosen, speakers.speaker_file(chosen, reference, transcript), text)
    if output is None:
        return Spoken(text, audio, None, why, chosen.licence)
    written = write_whole(output, audio, licensed(options, chosen.licence))
    return Spoken(text, audio, written.path, why, chosen.licence, written.watermark)


def speak(
    text: str,
    output: str | Path | None = None,
    *,
    engine: str | None = None,
    reference: str | Path | Audio | None = None,
    transcript: str | None = None,
    tts: dict[str, Any] | None = None,
    options: EncodeOptions | None = None,
    on_progress: Callable[[Progress], None] | None = None,
    **settings: Any,
) -> Speech:
    """Speak a text and convert it into the loaded voice.

    Args:
        engine: "triton", "spark", "espeak" or "auto"; None takes the configuration's. See `Speakers.choose`.
        reference: a recording whose voice the engine takes, a file of `enroll`, or the name of a profile.
        transcript: what the recording says, for Spark-TTS; a profile knows its own.
        tts: settings of the engine: fields of EspeakSettings, SparkSettings or TritonSettings.
        settings: fields of ConversionSettings. `auto_key` is "voice" unless a key or auto_key is given, because the
            speaker is mostly lower or higher than the voice. "profile:NAME" is where that profile speaks.

    Raises TextError, SpeechError and whatever `VC.convert` raises.
    """
    vc = ready_voice()
    sentences = tuple(split_text_and_validate(text))
    settings = _with_auto_key(vc, settings)
    ConversionSettings().changed(**settings)  # refuse a bad setting before anything is spoken
    speakers = get_speakers()
    chosen, why = speakers.engine(engine, tts)
    source = _spoken(chosen, speakers.speaker_file(chosen, reference, transcript), text)
    options = licensed(options, chosen.licence)
    conversion = vc.convert(source, output=output, options=options, on_progress=on_progress, **settings)
    conversion.engines = {"tts": why, **conversion.engines}
    return Speech(text, sentences, source, conversion)


def get_worker_manager() -> WorkerManager:
    """The workers over the shared VC and its speech engines; made and started on first use, ended by `init_rvc`."""
    global _workers
    if _workers is None:
        _workers = WorkerManager(get_vc(), get_speakers())
    return _workers.start()


def stream_speak(
    text: str,
    *,
    engine: str | None = None,
    reference: str | Path | Audio | None = None,
    transcript: str | None = None,
    tts: dict[str, Any] | None = None,
    **settings: Any,
) -> Utterance:
    """`speak` as an iterator of AudioChunk: the first sentence while it is converted, the others as they are made.

    Arguments and errors as `speak`; what fails later is raised while iterating. The text is made by the shared workers,
    `get_worker_manager()`, so several may run at once. Closing the iterator ends the work, on a server too.
    """
    ready_voice()
    settings = _with_profile_pitch(settings)
    options = SpeakOptions(engine=engine, reference=reference, transcript=transcript, tts=tts or {}, on_failure="stop")
    return get_worker_manager().submit(text, options, settings=settings)


def _with_auto_key(vc: VC, settings: dict[str, Any]) -> dict[str, Any]:
    """The speaker is mostly lower or higher than the voice: unless a key is given, it is found."""
    assert vc.voice is not None
    settings = _with_profile_pitch(settings)
    if "key" not in settings and "auto_key" not in settings and vc.voice.card.median_f0_hz:
        return {**settings, "auto_key": "voice"}
    return settings


def _with_profile_pitch(settings: dict[str, Any]) -> dict[str, Any]:
    """`auto_key="profile:NAME"` as where that profile speaks."""
    target = settings.get("auto_key")
    if isinstance(target, str) and target.startswith(PREFIX):
        return {**settings, "auto_key": ProfileVoices(get_profiles()).pitch(target)}
    return settings


def licensed(options: EncodeOptions | None, licence: str) -> EncodeOptions:
    """Options that keep the licence of an engine's weights in the tags of the file."""
    options = options or EncodeOptions()
    return options if options.comment or not licence else replace(options, comment=licence)


def _spoken(engine: BaseTTSEngine, speaker: Path | None, text: str) -> Audio:
    """The whole text. The embedded engine speaks sentence by sentence; the others cut long texts themselves."""
    if engine.name != "espeak":
        return engine.speak(speaker, text)
    return join_sentences([engine.speak(speaker, sentence) for sentence in split_text_and_validate(text)])


def join_sentences(spoken: Sequence[Audio]) -> Audio:
    """Sentences with a pause between them, at their common rate."""
    rate = spoken[0].rate
    pause = np.zeros(round(SENTENCE_PAUSE * rate), np.float32)
    pieces = [piece for sound in spoken for piece in (sound.samples, pause)][:-1]
    return Audio(np.concatenate(pieces), rate)


def convert_folder(
    folder: str | Path,
    output: str | Path,
    *,
    format: str = "wav",
    options: EncodeOptions | None = None,
    **settings: Any,
) -> Iterator[BatchItem]:
    """Convert every sound below a folder, keeping its subfolders; yields one item per file as it is done.

    A file that fails is yielded with its error and spoils no other. Other kinds of file are left out.

    Raises OutputError when there is nothing to convert or the output cannot be a folder.
    """
    settings = ConversionSettings().changed(**_with_profile_pitch(settings))
    yield from converted_folder(ready_voice(), Path(folder), Path(output), settings, format, options)
