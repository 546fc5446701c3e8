"""Where a refusal is shown: beside the control that can mend it, and in a few words in the status line."""

from __future__ import annotations

from rvc_spark.errors import (
    AssetError,
    AudioError,
    ConfigError,
    ModelFileError,
    OutputError,
    PitchError,
    RvcSparkError,
    SpeechError,
    StreamError,
    TextError,
    VoiceNotFoundError,
)
from rvc_spark.widgets.studio_listen import ListenColumn
from rvc_spark.widgets.studio_parts import Note
from rvc_spark.widgets.studio_source import SourceColumn
from rvc_spark.widgets.studio_voice import VoiceColumn


def show_refusal(
    source: SourceColumn, voice: VoiceColumn, listen: ListenColumn, error: RvcSparkError, kind: str
) -> None:
    """Show an error. kind: "speech" or "conversion", the work that met it."""
    place = _place(source, voice, listen, error, kind)
    place.say(str(error), refused=True)
    listen.say("failed", "that did not work: the red line says why")


def clear_refusals(source: SourceColumn, voice: VoiceColumn, listen: ListenColumn) -> None:
    """Take back what was said of an attempt before."""
    for note in (source.text_note, voice.note, listen.take_note):
        note.say("")
    source.look_again()


def _place(
    source: SourceColumn, voice: VoiceColumn, listen: ListenColumn, error: RvcSparkError, kind: str
) -> Note:
    recorded = kind == "conversion"
    if isinstance(error, TextError):
        return source.text_note
    if isinstance(error, AudioError):
        return source.recording.note if recorded else source.reference.note
    if isinstance(error, SpeechError):
        return source.reference.note if source.reference.path else source.engine_note
    if isinstance(error, OutputError):
        return listen.take_note
    if isinstance(error, StreamError):
        return source.recording.note if recorded else listen.take_note
    if isinstance(error, (ModelFileError, VoiceNotFoundError, PitchError, ConfigError, AssetError)):
        return voice.note
    return listen.take_note
