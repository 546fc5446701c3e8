"""What the studio asks of the rest of the house: two requests, and the functions that answer them.

A front end of its own, or a test, puts other functions here. Nothing in this file shows anything but the player.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from rvc_spark import rvc_init
from rvc_spark.audio import Audio, loudness_lufs, open_audio
from rvc_spark.errors import RvcSparkError
from rvc_spark.infer.voice_files import VoiceListing, find_voice
from rvc_spark.processing.speak_options import SpeakOptions
from rvc_spark.processing.utils import split_text_and_validate
from rvc_spark.rvc_config import Choice
from rvc_spark.rvc_modules import VC
from rvc_spark.widgets.player import LivePlayer
from rvc_spark.widgets.playing import play
from rvc_spark.widgets.studio_profiles import (
    Unconverted,
    is_profile,
    profile_listings,
    profile_settings,
    refuse_change,
    rvc_voice,
)

READ_FRAMES = 1 << 19  # of a recording, copied at a time
WARM_SECONDS = 0.5  # of silence, converted before anybody asks: the first conversion of a process is the slowest


@dataclass(frozen=True)
class SpeakRequest:
    """A text to be spoken and converted."""

    text: str
    voice: str
    engine: str
    reference: str | None
    transcript: str | None
    settings: dict[str, Any]


@dataclass(frozen=True)
class ConvertRequest:
    """A recording to be converted."""

    recording: str
    voice: str
    settings: dict[str, Any]


def _nothing(*_given: Any) -> None:
    return None


@dataclass(frozen=True)
class Making:
    """Sound that is being made.

    pieces: in order. stop: ends the work, from any thread; called in the end too. engines: which did what, complete at
    the end. sources: what was converted, asked for once, after the last piece. timings: seconds per stage, at the end.
    change: another voice (or None) and other settings from the next sentence on. licence: of the weights that spoke, at
    the end.
    """

    pieces: Iterator[Audio]
    stop: Callable[[], Any] = _nothing
    engines: Callable[[], Mapping[str, Choice]] = dict
    sources: Callable[[], Iterable[Audio]] = tuple
    timings: Callable[[], Mapping[str, float]] = dict
    change: Callable[[str | None, dict[str, Any]], None] = _nothing
    licence: Callable[[], str] = str


class Sounding(Protocol):
    """What `play` returns, as far as the studio uses it."""

    def stop(self) -> Any: ...

    def wait(self, timeout: float | None = None) -> Any: ...


def speak_made(request: SpeakRequest) -> Making:
    """Hand a text to the shared workers. Raises what `WorkerManager.submit` raises.

    A profile is the engine's reference unless a recording is chosen; it is converted where it has an RVC voice.
    """
    reference, profile = request.reference, is_profile(request.voice)
    if profile:
        if rvc_init.get_profiles().get(request.voice).record.links.voice is None:
            alone = Unconverted(request.text, request.voice, request.engine)
            return Making(
                alone.pieces(), alone.stop, alone.engines, tuple, dict, alone.change, lambda: alone.licence
            )  # fmt: skip
        reference = reference or request.voice
    options = SpeakOptions(
        voice=rvc_voice(request.voice), engine=request.engine, reference=reference, transcript=request.transcript,
        settings=profile_settings(request.voice, request.settings),
    )  # fmt: skip
    utterance = rvc_init.get_worker_manager().submit(request.text, options)

    def timings() -> dict[str, float]:
        rows = utterance.timings
        return {"tts": sum(row.tts for row in rows), "rvc": sum(row.rvc for row in rows)}

    def change(voice: str | None, settings: dict[str, Any]) -> None:
        refuse_change(voice)
        utterance.change(voice=voice, **settings)

    spoke = utterance.engines["tts"].value
    return Making(
        utterance, utterance.cancel, lambda: utterance.engines, lambda: spoken_again(request, spoke), timings, change,
        lambda: rvc_init.get_speakers().engine(spoke)[0].licence,
    )  # fmt: skip


def spoken_again(request: SpeakRequest, spoke: str) -> Iterator[Audio]:
    """What was said before it was converted, sentence by sentence; nothing where saying it again costs time.

    spoke: name of the engine.
    """
    if spoke != "espeak":
        return
    speakers = rvc_init.get_speakers()
    engine, _ = speakers.engine(spoke)
    speaker = speakers.speaker_file(engine, request.reference or (request.voice if is_profile(request.voice) else None))
    for number, sentence in enumerate(split_text_and_validate(request.text)):
        spoken = engine.speak(speaker, sentence)
        if number:
            yield Audio(np.zeros(round(rvc_init.SENTENCE_PAUSE * spoken.rate), np.float32), spoken.rate)
        yield spoken


class Converter:
    """Converts recordings: with the shared VC if it holds the voice or none, else with a VC of its own beside it."""

    def __init__(self) -> None:
        self._own: VC | None = None

    def _with(self, voice: str) -> VC:
        shared = rvc_init.get_vc()
        path = Path(find_voice(voice, shared.folders))
        if shared.voice is None:
            shared.load(path)
        if shared.voice.path == path:
            return shared
        self._own = self._own or shared.sibling()
        if self._own.voice is None or self._own.voice.path != path:
            self._own.load(path)
        return self._own

    def __call__(self, request: ConvertRequest) -> Making:
        """Convert a file block by block. Raises AudioError, VoiceFileError, ConfigError, PitchError."""
        settings = profile_settings(request.voice, request.settings)
        blocks = self._with(rvc_voice(request.voice)).convert_blocks(request.recording, **settings)
        return Making(iter(blocks), _nothing, lambda: blocks.engines, lambda: recording_blocks(request.recording))


def recording_blocks(path: str) -> Iterator[Audio]:
    """A sound file as mono pieces at its own rate. Raises AudioError."""
    with open_audio(path) as reader:
        for block in reader.blocks(READ_FRAMES):
            yield Audio(block, reader.rate).mono()


def play_aloud(pieces: Iterable[Audio], title: str, player: Any) -> Sounding:
    """Let pieces be heard as they come, in a player that is shown already."""
    return play(pieces, title, player=player)


def warm_up(voice: str) -> None:
    """Make ready what the first press of Speak would wait for: the voice, its networks, the workers. Any thread."""
    vc = rvc_init.get_vc()
    silence = Audio(np.zeros(round(WARM_SECONDS * 16_000), np.float32), 16_000)
    try:
        if vc.voice is None:
            vc.load(rvc_init.DEFAULT_VOICE if is_profile(voice) else voice)
        rvc_init.get_worker_manager()
        vc.convert(silence)
        loudness_lufs(silence)
    except RvcSparkError:
        return  # whoever presses Speak is told


def survey_engines() -> dict[str, Choice]:
    """Every speech engine beside the shared VC, as ready or missing."""
    return rvc_init.get_speakers().survey()


def list_voices() -> list[VoiceListing]:
    """Every voice file of the shared VC, then every profile; damaged ones with their reason."""
    return [*rvc_init.get_vc().voices(), *profile_listings()]


def scratch_folder() -> Path:
    """Where uploads and kept takes go unless another place is named."""
    return rvc_init.get_vc().config.temp_dir


@dataclass(frozen=True)
class StudioVerbs:
    """What the studio calls; a test or another front end may put its own here."""

    speak: Callable[[SpeakRequest], Making] = speak_made
    convert: Callable[[ConvertRequest], Making] = field(default_factory=Converter)
    voices: Callable[[], Sequence[VoiceListing]] = list_voices
    survey: Callable[[], Mapping[str, Choice]] = survey_engines
    folder: Callable[[], Path] = scratch_folder
    warm: Callable[[str], None] = warm_up
    player: Callable[[], Any] = LivePlayer
    play: Callable[[Iterable[Audio], str, Any], Sounding] = play_aloud
