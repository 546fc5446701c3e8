"""A panel to enrol a voice: record it sentence by sentence, upload it or name a folder; see what it is worth; enrol it.

    panel = EnrolPanel()
    panel                      # the last line of a cell shows it
    panel.report, panel.profile

A button's work runs where the click arrives, in the kernel's main thread, as in `panels`. The panel decides nothing of
recordings or profiles: it calls two verbs. What was recorded and uploaded lies in private folders and goes when it is
enrolled or the panel is closed.
"""

from __future__ import annotations

import html
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import ipywidgets
from IPython.display import display

from rvc_spark.errors import ConfigError, ConsentError, RvcSparkError
from rvc_spark.infer.pipeline import Progress
from rvc_spark.profile_verbs import create_profile, examine_recordings, sounds_of
from rvc_spark.profiles.consent import STATEMENT, given_consent
from rvc_spark.profiles.sample_report import EnrolmentReport
from rvc_spark.profiles.voice_profile import VoiceProfile
from rvc_spark.rvc_config import Choice
from rvc_spark.rvc_init import get_speakers
from rvc_spark.widgets.controls import clear_uploads, tooltip, uploads
from rvc_spark.widgets.engines import ready_engines
from rvc_spark.widgets.enrol_report import show_profiles, show_report
from rvc_spark.widgets.recorder import PROMPTS, Recorder
from rvc_spark.widgets.studio_files import SOUND, store_upload
from rvc_spark.widgets.studio_parts import (
    STYLE,
    Note,
    card,
    drop_down,
    grown,
    icon_button,
    line_of_text,
    row,
    rule,
    side_by_side,
    title,
)

AUTO = "auto"


def survey_engines() -> dict[str, Choice]:
    """Every speech engine beside the shared VC, as ready or missing."""
    return get_speakers().survey()


@dataclass(frozen=True)
class EnrolVerbs:
    """What the panel calls; a test or another front end may put its own here."""

    examine: Callable[..., EnrolmentReport] = examine_recordings
    create: Callable[..., VoiceProfile] = create_profile
    survey: Callable[[], dict[str, Choice]] = survey_engines


class EnrolPanel:
    """Recordings, what they are worth, consent, and the profile that comes of them.

    Args:
        name, who, language: what the boxes hold first.
        folder: recordings of this machine that are used too.
        prompts: sentences to read.
        thresholds: fields of QualitySettings.
        verbs: the functions behind the buttons.

    Attributes:
        report: of the last look at the recordings; None before.
        profile: the one that was enrolled; None before.
    """

    def __init__(
        self, *, name: str = "", who: str = "", language: str = "", folder: str | Path | None = None,
        prompts: Sequence[str] = PROMPTS, verbs: EnrolVerbs | None = None, **thresholds: Any,
    ) -> None:  # fmt: skip
        self._verbs, self._thresholds = verbs or EnrolVerbs(), thresholds
        self._place = tempfile.TemporaryDirectory(prefix="rvc_spark_enrol_")
        self._uploaded: list[Path] = []
        self.report: EnrolmentReport | None = None
        self.profile: VoiceProfile | None = None
        self._make_sources(prompts, folder)
        self._make_person(name, who, language)
        self.progress = ipywidgets.FloatProgress(value=0.0, min=0.0, max=1.0, layout=ipywidgets.Layout(width="14em"))
        self.note, self.output = Note(), ipywidgets.Output()
        self.check_button.on_click(lambda _button: self._run(self.check))
        self.create_button.on_click(lambda _button: self._run(self.create))
        self.box = self._arranged()
        self._count()

    def _make_sources(self, prompts: Sequence[str], folder: str | Path | None) -> None:
        self.recorder = Recorder(prompts, self._count)
        kind = ipywidgets.FileUpload
        self.upload = kind(
            accept=SOUND, multiple=True, description="upload", layout=ipywidgets.Layout(width="auto"),
            **tooltip(kind, "of one speaker: wav, flac, ogg, mp3, m4a or a video; they stay on this machine"),
        )  # fmt: skip
        self.folder_box = grown(
            line_of_text(str(folder or ""), "or a folder, or a file", "a place on the machine of the kernel")
        )
        self.clear_button = icon_button("clear", "times", "forget recordings and uploads, and erase their files")
        self.source_note = Note()
        self.upload.observe(self._on_upload, "value")
        self.folder_box.observe(lambda _change: self._count(), "value")
        self.clear_button.on_click(lambda _button: self.clear())

    def _make_person(self, name: str, who: str, language: str) -> None:
        self.name_box = line_of_text(name, "Anna", "what the profile is called", "name")
        self.who_box = line_of_text(who, "Anna Example", "whose it is, and who agreed if it is another", "voice of")
        self.language_box = line_of_text(language, "en", "of the recordings, such as en or de-AT", "language")
        ready = [(engine, engine) for engine in (AUTO, *ready_engines(self._verbs.survey()))]
        self.engine_choice = drop_down("engine", ready, AUTO, "who learns the voice now; others do when they are asked")
        kind = ipywidgets.Textarea
        self.statement_box = kind(
            value=STATEMENT, layout=ipywidgets.Layout(width="auto", height="6.5em"),
            **tooltip(kind, "what the owner of the voice agrees to"),
        )  # fmt: skip
        self.consent_box = self._tick("I agree", "kept with the profile, with the moment and a hash of the recordings")
        self.originals_box = self._tick("keep the files as they came, too", "beside the normalised recordings")
        self.cut_box = self._tick("cut long recordings", "take the offered pieces of recordings that are too long")
        self.check_button = icon_button("Check", "stethoscope", "find out what the recordings are worth")
        self.create_button = icon_button("Create profile", "user-plus", "enrol the voice", "primary")

    @staticmethod
    def _tick(words: str, hint: str) -> Any:
        kind = ipywidgets.Checkbox
        return kind(
            value=False, description=words, indent=False, layout=ipywidgets.Layout(width="auto"), **tooltip(kind, hint)
        )  # fmt: skip

    def _arranged(self) -> Any:
        left = card(
            title("Record", "three sentences or more, in a quiet room, a hand's breadth from the microphone"),
            self.recorder, rule(), title("Or use recordings"), row(self.upload, self.folder_box, self.clear_button),
            self.source_note.widget, wide=True,
        )  # fmt: skip
        right = card(
            title("Whose voice it is"), self.name_box, self.who_box, self.language_box, self.engine_choice,
            self.statement_box, self.consent_box, self.cut_box, self.originals_box,
            row(self.check_button, self.create_button), row(self.progress), self.note.widget,
        )  # fmt: skip
        box = ipywidgets.VBox([ipywidgets.HTML(STYLE), side_by_side(left, right), self.output])
        box.add_class("rvc-studio")
        box.add_class("rvc-enrol")
        return box

    def _ipython_display_(self) -> None:
        display(self.box)

    def __repr__(self) -> str:
        return f"EnrolPanel({len(self.sources())} recordings, profile={self.profile!r})"

    # ---- what is chosen --------------------------------------------------------------------------------------------

    def sources(self) -> list[tuple[Path, str | None]]:
        """Every recording with what was to be read, or None: takes, uploads, the folder. Raises ConfigError."""
        found: list[tuple[Path, str | None]] = [(take.path, take.text) for take in self.recorder.takes_done()]
        found += [(path, None) for path in self._uploaded]
        place = self.folder_box.value.strip()
        if place:
            found += [(path, None) for path in sounds_of([Path(place).expanduser()])]
        return found

    def check(self) -> EnrolmentReport:
        """Examine the recordings and show what they are worth. Raises ConfigError when there are none."""
        paths = [path for path, _ in self._chosen()]
        self.report = self._verbs.examine(paths, on_progress=self._show_progress, **self._thresholds)
        self._show(show_report(self.report))
        self.note.say(f"graded {self.report.grade}", refused=self.report.grade == "reject")
        return self.report

    def create(self) -> VoiceProfile:
        """Enrol the voice. Raises ConsentError (the box is not ticked), QualityError, ProfileError and its leaves."""
        chosen = self._chosen()
        if not self.consent_box.value:
            raise ConsentError("the consent is not given", "Read the statement, and tick the box if it is so.")
        consent = given_consent(self.statement_box.value.strip(), self.who_box.value.strip())
        told = {"language": language} if (language := self.language_box.value.strip()) else {}
        profile = self._verbs.create(
            [path for path, _ in chosen], self.name_box.value, consent, engine=self.engine_choice.value,
            transcripts=[text for _, text in chosen], keep_originals=self.originals_box.value, cut=self.cut_box.value,
            on_progress=self._show_progress, **told, **self._thresholds,
        )  # fmt: skip
        self.profile, self.report = profile, profile.report()
        self._show(show_report(self.report), show_profiles([profile]))
        self.clear()
        self.consent_box.value = False
        self.note.say(f'{profile.name} is enrolled. Speak with it: speak("...", reference="{profile.name}")')
        return profile

    def _chosen(self) -> list[tuple[Path, str | None]]:
        found = self.sources()
        if not found:
            raise ConfigError("there is no recording yet", "Record a few sentences, upload files or name a folder.")
        return found

    def clear(self) -> None:
        """Forget takes and uploads and erase their files; a folder of the person's own is only forgotten."""
        self.recorder.clear()
        for path in self._uploaded:
            path.unlink(missing_ok=True)
        self._uploaded.clear()
        self.folder_box.value = ""
        self._count()

    def close(self) -> None:
        """Erase what was recorded and uploaded, and end the widgets."""
        self.clear()
        self.recorder.close()
        self._place.cleanup()
        self.box.close()

    # ---- showing ---------------------------------------------------------------------------------------------------

    def _on_upload(self, _change: Any) -> None:
        try:
            for given in uploads(self.upload):
                self._uploaded.append(store_upload(Path(self._place.name), given.name, given.data))
        except RvcSparkError as error:
            self.source_note.say(str(error), refused=True)
            return
        if self.upload.value:
            clear_uploads(self.upload)
        self._count()

    def _count(self) -> None:
        try:
            found = self.sources()
        except RvcSparkError as error:
            self.source_note.say(str(error), refused=True)
            return
        self.source_note.say(f"{len(found)} recording{'s' * (len(found) != 1)}" if found else "no recording yet")

    def _run(self, work: Callable[[], Any]) -> None:
        """Do a click's work; a refusal is shown in words, and the buttons always come back."""
        buttons = (self.check_button, self.create_button)
        for control in buttons:
            control.disabled = True
        self.note.say("working \u2026")
        try:
            work()
        except RvcSparkError as error:
            self.note.say(str(error), refused=True)
        except KeyboardInterrupt:
            self.note.say("stopped")
        finally:
            self.progress.value = 0.0
            for control in buttons:
                control.disabled = False

    def _show_progress(self, step: Progress) -> None:
        self.progress.value = min(1.0, max(0.0, float(step.fraction)))
        self.note.say(step.message)

    def _show(self, *tables: Any) -> None:
        """As HTML outputs: what is displayed inside a click's callback may land elsewhere on some front ends."""
        self.output.outputs = tuple(
            {
                "output_type": "display_data", "metadata": {},
                "data": {"text/html": table._repr_html_(), "text/plain": html.unescape(repr(table))},
            }
            for table in tables
        )  # fmt: skip
