"""The studio's right column: what is happening, the player, and what came out; and the card of takes beside it.

Both show takes; what their buttons do is the studio's business.
"""

from __future__ import annotations

import base64
import html
from typing import Any

import ipywidgets

from rvc_spark.rvc_config import Choice
from rvc_spark.widgets.controls import tooltip
from rvc_spark.widgets.studio_parts import Note, card, drop_down, grown, icon_button, line_of_text, row, title
from rvc_spark.widgets.studio_takes import EXPORT_FORMATS, NAME_LETTERS, StudioTake, TakeList
from rvc_spark.widgets.tables import Table

EMPTY = "Press Speak: what is said and what comes of it appear here, side by side."
LATER = "The picture comes when everything is made."
NO_PICTURE = "There is no source to compare this take with."
STAGES = {  # timing -> its name, the format of its value, what it means
    "first": ("first sound", "{:.2f} s", "from pressing the button until something could be heard"),
    "made": ("all", "{:.2f} s", "from pressing the button until everything was made"),
    "tts": ("speech", "{:.2f} s", "work of the speech engine"),
    "rvc": ("conversion", "{:.2f} s", "work of the voice conversion"),
    "real_time_factor": ("real-time factor", "{:.2f}", "seconds of work per second of sound"),
}
STATE_KINDS = {"idle": "", "working": "rvc-working", "done": "rvc-done", "failed": "rvc-bad"}
CONSENT = (
    "Other people's voices belong to them: convert into a voice only with its owner's consent, and say so when you "
    "publish a result."
)


class ListenColumn:
    """Status, player, picture, stages, comparison, engines."""

    def __init__(self, player: Any | None) -> None:
        self.status = ipywidgets.HTML()
        self.stop_button = icon_button("Stop", "stop", "end the work and the sound; what was made so far stays")
        self.picture, self.stages, self.engines = ipywidgets.HTML(), ipywidgets.HTML(), ipywidgets.HTML()
        self.source_button = icon_button("A: source", "user-o", "play what was converted, at matched loudness")
        self.result_button = icon_button("B: result", "user", "play the result, at matched loudness")
        self.match_note = Note()
        parts = [row(grown(self.status), self.stop_button)]
        parts += [player] if player is not None else []
        parts += [
            self.picture, self.stages, row(self.source_button, self.result_button, grown(self.match_note.widget)),
            self.engines,
        ]  # fmt: skip
        self.box = card(title("Listen"), *parts, wide=True)
        self.say("idle", "ready")
        self.show_take(None)

    def say(self, state: str, words: str) -> None:
        """The line that says what is happening. state: idle, working, done or failed."""
        kind = STATE_KINDS[state]
        value = f'<div class="rvc-status {kind}" role="status"><i class="rvc-dot"></i>{html.escape(words)}</div>'
        if self.status.value != value:
            self.status.value = value

    def show_take(self, take: StudioTake | None) -> None:
        """Picture, stages and engines of a take; invitations where there is none."""
        self.stages.value = stages_html(take) if take else ""
        self.engines.value = engines_html(take.engines if take else {})
        self.match_note.say("")
        if take is not None and take.picture is not None:
            address = base64.b64encode(take.picture).decode("ascii")
            alt = html.escape(take.picture_words)
            self.picture.value = (
                f'<div class="rvc-picture"><img alt="{alt}" title="{alt}" src="data:image/png;base64,{address}"></div>'
            )
            return
        words = EMPTY if take is None else NO_PICTURE if take.over.is_set() else LATER
        self.picture.value = f'<div class="rvc-picture rvc-empty"><span>{words}</span></div>'


class TakesCard:
    """The list of takes, and what can be done with the chosen one."""

    def __init__(self, folder: str) -> None:
        kind = ipywidgets.Select
        self.take_list = kind(
            options=[], rows=4, layout=ipywidgets.Layout(width="auto"),
            **tooltip(kind, "what was made, newest first; the chosen one is shown, compared, renamed, kept or deleted"),
        )  # fmt: skip
        self.name_box = line_of_text("", "name of the take", f"rename the chosen take: up to {NAME_LETTERS} letters")
        self.play_button = icon_button("Play", "headphones", "play the chosen take again, at its own level")
        self.delete_button = icon_button("Delete", "trash", "forget the chosen take; files that were kept stay")
        self.format_choice = drop_down(
            "", [(name, name) for name in EXPORT_FORMATS], EXPORT_FORMATS[0],
            "flac and wav keep every sample, ogg and mp3 are small; the settings come beside it as .json",
        )  # fmt: skip
        self.format_choice.style.description_width = "0"
        self.format_choice.layout.width = "5.2em"
        self.place_box = line_of_text(folder, "folder", "folder of the kernel's machine where kept takes are written")
        self.keep_button = icon_button("Keep", "save", "write the chosen take and its settings into the folder")
        self.note = Note()
        self.box = card(
            title("Takes"), self.take_list, row(grown(self.name_box), self.play_button, self.delete_button),
            row(self.format_choice, grown(self.place_box), self.keep_button), self.note.widget,
        )  # fmt: skip

    def show(self, takes: TakeList, chosen: StudioTake | None) -> None:
        """Fill the list, newest first, with one chosen."""
        rows = [(take_line(take), number) for number, take in reversed(list(enumerate(takes)))]
        place = next((number for number, take in enumerate(takes) if take is chosen), None)
        if tuple(self.take_list.options) != tuple(rows):
            self.take_list.options = rows
        if self.take_list.value != place:
            self.take_list.value = place
        self.name_box.value = chosen.name if chosen else ""


def take_line(take: StudioTake) -> str:
    """One line of the list."""
    marks = {"working": ", being made …", "stopped": ", stopped", "failed": ", broke off"}.get(take.state, "")
    voice = take.settings.get("voice", "")
    kept = " ✓ kept" if take.kept else ""
    return f"{take.name} · {voice}, {take.seconds:.1f} s{marks}{kept}"


def stages_html(take: StudioTake) -> str:
    """The timings that are known, and what is missing from the sound."""
    told = [
        f'<span title="{meaning}">{name} <b>{form.format(take.timings[key])}</b></span>'
        for key, (name, form, meaning) in STAGES.items() if key in take.timings
    ]  # fmt: skip
    gaps = "".join(f'<div class="rvc-note rvc-bad">{html.escape(words)}</div>' for words in take.gaps)
    return f'<div class="rvc-stages">{"".join(told)}</div>{gaps}'


def engines_html(engines: dict[str, Choice]) -> str:
    """Which engines worked and why, folded away; and whose the voices are."""
    consent = f'<div class="rvc-consent">{CONSENT}</div>'
    if not engines:
        return consent
    rows = tuple((name, choice.value, choice.reason) for name, choice in engines.items())
    table = Table(("part", "engine", "why this one"), rows)._repr_html_()
    short = ", ".join(f"{name} {choice.value}" for name, choice in engines.items() if name in ("tts", "device"))
    beside = f": {html.escape(short)}" if short else ""
    return f"<details><summary>which engines, and why{beside}</summary>{table}</details>{consent}"
