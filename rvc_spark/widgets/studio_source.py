"""The studio's left column: a text and who says it, or a recording to convert."""

from __future__ import annotations

import unicodedata
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import ipywidgets

from rvc_spark.errors import ConfigError, TextError
from rvc_spark.processing.utils import split_text_and_validate
from rvc_spark.rvc_config import Choice
from rvc_spark.widgets.controls import tooltip
from rvc_spark.widgets.engines import READY, ready_engines
from rvc_spark.widgets.microphone import Microphone
from rvc_spark.widgets.studio_files import FileChoice
from rvc_spark.widgets.studio_parts import (
    Note,
    card,
    drop_down,
    folded,
    grown,
    icon_button,
    line_of_text,
    row,
    rule,
    small_button,
    title,
)

AUTO = "auto"
LETTERS_PER_SECOND = 14.5  # of espeak at its usual pace, over English, German and French prose
WIDE_LETTERS_PER_SECOND = 5.0  # a Chinese or Japanese letter is about a syllable
PAUSE_SECONDS = 0.25  # between sentences
ENGINE_WORDS = "who says the text before it is converted; auto takes the best that is ready and says why"
# What an engine learns of a reference recording; those not listed are asked for nothing.
LEARNS = {
    "espeak": "takes over the pitch of the recording; it cannot clone",
    "spark": "clones the speaker; better still with the transcript",
    "triton": "clones the speaker; it needs the transcript",
}


def estimated_seconds(text: str, sentences: int) -> float:
    """How long a text will sound, from its letters alone; right within a fifth or so at an engine's usual pace."""
    wide = sum(unicodedata.east_asian_width(letter) in "WF" for letter in text)
    pauses = PAUSE_SECONDS * max(0, sentences - 1)
    return (len(text) - wide) / LETTERS_PER_SECOND + wide / WIDE_LETTERS_PER_SECOND + pauses


class SourceColumn:
    """Text, engine, reference and recording, each with a note where its refusals are shown."""

    def __init__(
        self, first: Mapping[str, Any], survey: Callable[[], Mapping[str, Choice]], folder: Callable[[], Path]
    ) -> None:
        """first: values of text, engine, reference, transcript and recording. Raises ConfigError (unknown engine)."""
        self._survey = survey
        self._make_text(first["text"])
        self._make_engine(first["engine"])
        self.reference = FileChoice(
            "reference", "a recording whose speaker says the text: a few seconds of clear speech",
            path=first["reference"], folder=folder, speaker_files=True, changed=self._on_reference,
        )  # fmt: skip
        self.transcript_box = line_of_text(
            first["transcript"] or "", "what the recording says (for cloning)",
            "word by word what is said in the reference recording; only for engines that clone",
        )  # fmt: skip
        self.recording = FileChoice(
            "recording", "a file to convert: wav, flac, ogg, mp3, m4a or a video; it stays on this machine",
            path=first["recording"], folder=folder,
        )  # fmt: skip
        self.convert_button = icon_button("Convert", "exchange", "turn the recording into the chosen voice", "primary")
        self.microphone = Microphone(self.recording.take)
        self._on_reference()
        self.box = card(
            title("Say a text"), self.text_box, row(grown(self.count.widget), self.speak_button),
            self.text_note.widget, row(grown(self.engine_choice), self.again_button, tight=True), self.engine_list,
            self.engine_note.widget, self.reference.row, self.transcript_box, self.reference.note.widget,
            self.reference_note.widget, rule(),
            title("Or convert a recording"), self.recording.row, self.recording.note.widget,
            row(grown(self.microphone), self.convert_button, tight=True),
        )  # fmt: skip

    def _make_text(self, text: str) -> None:
        kind = ipywidgets.Textarea
        self.text_box = kind(
            value=text, placeholder="What shall be said?", layout=ipywidgets.Layout(width="auto", height="6.4em"),
            **tooltip(kind, "any length; it is spoken sentence by sentence"),
        )  # fmt: skip
        self.count, self.text_note = Note(), Note()
        self.speak_button = icon_button("Speak", "play", "say the text in the chosen voice, heard at once", "primary")
        self.text_box.observe(lambda _change: self._count(), "value")
        self._count()

    def _count(self) -> None:
        """How much there is to say; a text that cannot be said is refused by Speak, not while it is being typed."""
        self.text_note.say("")
        text = self.text_box.value
        try:
            sentences = len(split_text_and_validate(text))
        except TextError as error:
            self.count.say("nothing to say yet" if not text.strip() else error.problem)
            return
        seconds = estimated_seconds(text, sentences)
        length = f"{seconds:.0f} s" if seconds < 90 else f"{seconds / 60:.0f} min"
        self.count.say(f"{sentences} sentence{'s' * (sentences != 1)}, about {length}")

    def _make_engine(self, engine: str) -> None:
        found = dict(self._survey())
        names = [AUTO, *ready_engines(found)]
        if engine not in names:
            state = found.get(engine)
            raise ConfigError(
                f"the speech engine {engine!r:.40} {f'is not ready: {state.reason}' if state else 'is unknown'}",
                f"Choose {', '.join(names)}.",
            )
        self.engine_choice = drop_down("engine", [(name, name) for name in names], engine, ENGINE_WORDS)
        self.again_button = small_button("refresh", "a server was started or a checkpoint came: who is ready now?")
        self.engine_note, self.reference_note = Note(), Note()
        self.engine_list = ipywidgets.HTML()
        self.survey = found
        self._say_engines()
        self.again_button.on_click(lambda _button: self.refresh_engines())

    def refresh_engines(self) -> None:
        """Find out anew who is ready; the chosen one stays chosen, or becomes auto when it is gone."""
        self.survey = dict(self._survey())
        chosen, names = self.engine_choice.value, [AUTO, *ready_engines(self.survey)]
        self.engine_choice.options = [(name, name) for name in names]
        self.engine_choice.value = chosen if chosen in names else AUTO
        self._say_engines()
        self._on_reference()

    def look_again(self) -> None:
        """Say of every file and engine what is so, in place of what was refused of it."""
        self.reference.look()
        self.recording.look()
        self._say_engines()

    def _say_engines(self) -> None:
        self.engine_note.say("")
        lacking = [f"{name}: {state.reason}" for name, state in self.survey.items() if state.value != READY]
        names = ", ".join(name for name, state in self.survey.items() if state.value != READY)
        self.engine_list.value = folded(f"not ready: {names}", lacking)

    def _on_reference(self) -> None:
        """What each engine can do with the reference, said while there is one."""
        told = [f"{name} {LEARNS[name]}" for name in ready_engines(self.survey) if name in LEARNS]
        self.reference_note.say("; ".join(told) + "." if self.reference.path else "")
        self.transcript_box.layout.display = None if self.reference.path else "none"

    def values(self) -> dict[str, Any]:
        """What is chosen."""
        return {
            "text": self.text_box.value,
            "engine": self.engine_choice.value,
            "reference": self.reference.path,
            "transcript": self.transcript_box.value.strip() or None,
            "recording": self.recording.path,
        }

    def checked_text(self) -> str:
        """The text, where it can be spoken. Raises TextError."""
        split_text_and_validate(self.text_box.value)
        return self.text_box.value
