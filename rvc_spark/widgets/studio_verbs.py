"""What the studio asks of the rest of the house: two requests, and the functions that answer them.

A front end of its own, or a test, puts other functions here. Nothing in this file shows anything.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from rvc_spark.audio import Audio, open_audio
from rvc_spark.infer.voice_files import VoiceListing
from rvc_spark.rvc_config import Choice
from rvc_spark.rvc_init import get_speakers, get_vc, load_model, stream_speak

READ_FRAMES = 1 << 19  # of a recording, copied at a time


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

    pieces: in order; closing the iterator ends the work. engines: which did what, complete at the end.
    sources: what was converted, asked for once, after the last piece. timings: seconds per stage, at the end.
    sentences: how many there will be, 0 where nobody counts. change: other settings from the next sentence on.
    licence: of the weights that speak.
    """

    pieces: Iterator[Audio]
    engines: Callable[[], Mapping[str, Choice]] = dict
    sources: Callable[[], Iterable[Audio]] = tuple
    timings: Callable[[], Mapping[str, float]] = dict
    sentences: int = 0
    change: Callable[[SpeakRequest], None] = _nothing
    licence: str = ""


class Sounding(Protocol):
    """What `play` returns, as far as the studio uses it."""

    def stop(self) -> None: ...


def speak_made(request: SpeakRequest) -> Making:
    """Hand a text to the shared workers. Raises what they raise."""
    get_vc().load(request.voice)
    stream = stream_speak(
        request.text, engine=request.engine, reference=request.reference, transcript=request.transcript,
        **request.settings,
    )  # fmt: skip
    return Making(stream, lambda: stream.engines)


def convert_made(request: ConvertRequest) -> Making:
    """Convert a file block by block. Raises AudioError, VoiceFileError, ConfigError."""
    load_model(request.voice)
    conversion = get_vc().convert(request.recording, **request.settings)
    return Making(iter([conversion.audio]), lambda: conversion.engines, lambda: recording_blocks(request.recording))


def recording_blocks(path: str) -> Iterator[Audio]:
    """A sound file as mono pieces at its own rate. Raises AudioError."""
    with open_audio(path) as reader:
        for block in reader.blocks(READ_FRAMES):
            yield Audio(block, reader.rate).mono()


def survey_engines() -> dict[str, Choice]:
    """Every speech engine beside the shared VC, as ready or missing."""
    return get_speakers().survey()


def list_voices() -> list[VoiceListing]:
    """Every voice file of the shared VC, damaged ones with their reason."""
    return get_vc().voices()


class _Silent:
    """Pulls what is made, heard by nobody."""

    def __init__(self, pieces: Iterable[Audio]) -> None:
        self._pieces = pieces
        threading.Thread(target=self._pull, name="studio silent", daemon=True).start()

    def _pull(self) -> None:
        for _piece in self._pieces:
            pass

    def stop(self) -> None:
        pass


def play_aloud(pieces: Iterable[Audio], title: str, player: Any) -> Sounding:
    """Let pieces be heard as they come."""
    return _Silent(pieces)


def make_player() -> Any:
    """The player of the page."""
    return None


def scratch_folder() -> Path:
    """Where uploads and kept takes go unless another place is named."""
    return get_vc().config.temp_dir


@dataclass(frozen=True)
class StudioVerbs:
    """What the studio calls; a test or another front end may put its own here."""

    speak: Callable[[SpeakRequest], Making] = speak_made
    convert: Callable[[ConvertRequest], Making] = convert_made
    voices: Callable[[], Sequence[VoiceListing]] = list_voices
    survey: Callable[[], Mapping[str, Choice]] = survey_engines
    folder: Callable[[], Path] = scratch_folder
    player: Callable[[], Any] = make_player
    play: Callable[[Iterable[Audio], str, Any], Sounding] = play_aloud
