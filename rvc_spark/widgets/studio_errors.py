"""Where a refusal is shown: beside the control that can mend it, and in a few words in the status line."""

from __future__ import annotations

from rvc_spark.errors import (
    AssetError,
    AudioError,
    ConfigError,
    ModelFileError,
    OutputError,
    PitchError,
    ProfileError,
    RvcSparkError,
    SpeechError,
    StreamError,
    TextError,
    VoiceNotFoundError,
)
from rvc_spark.widgets.studio_listen import ListenColumn, TakesCard
from rvc_spark.widgets.studio_parts import Note
from rvc_spark.widgets.studio_source import SourceColumn
from rvc_spark.widgets.studio_voice import VoiceColumn


class Places:
    """The notes of all cards."""

    def __init__(self, source: SourceColumn, voice: VoiceColumn, listen: ListenColumn, shelf: TakesCard) -> None:
        self._source, self._voice, self._listen, self._shelf = source, voice, listen, shelf

    def refuse(self, error: RvcSparkError, kind: str) -> None:
        """Show an error. kind: "speech" or "conversion", the work that met it; "take" for what is done with takes."""
        self._place(error, kind).say(str(error), refused=True)
        if kind != "take":
            self._listen.say("failed", "that did not work: the red line says why")

    def clear(self) -> None:
        """Take back what was said of an attempt before."""
        for note in (self._source.text_note, self._voice.note, self._shelf.note):
            note.say("")
        self._source.look_again()

    def _place(self, error: RvcSparkError, kind: str) -> Note:
        source, recorded = self._source, kind == "conversion"
        if kind == "take" or isinstance(error, OutputError):
            return self._shelf.note
        if isinstance(error, TextError):
            return source.text_note
        if isinstance(error, AudioError | StreamError) and recorded:
            return source.recording.note
        if isinstance(error, AudioError):
            return source.reference.note
        if isinstance(error, SpeechError):
            return source.reference.note if source.reference.path else source.engine_note
        if isinstance(error, ModelFileError | VoiceNotFoundError | PitchError | ConfigError):
            return self._voice.note
        if isinstance(error, AssetError | ProfileError):
            return self._voice.note
        return source.text_note
