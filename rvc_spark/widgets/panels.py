"""A panel to choose a voice, how it sounds and who speaks, with buttons to speak a text and to convert a recording.

    panel = VoicePanel(text="Good morning.")
    panel                              # the last line of a cell shows it
    panel.voice, panel.settings()      # what was chosen, for the cells below

A button's work runs where the click arrives, in the kernel's main thread, because Colab and current ipykernel lose
updates made from other threads; the notebook's stop button ends it. The panel decides nothing about sound: it calls
two verbs.
"""

from __future__ import annotations

import html
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import ipywidgets
from IPython.display import display

from rvc_spark.audio import Audio, read_audio
from rvc_spark.conversion import Conversion
from rvc_spark.errors import AudioError, ConfigError, RvcSparkError
from rvc_spark.infer.pitch import PITCH_METHODS
from rvc_spark.infer.settings import ConversionSettings
from rvc_spark.rvc_config import Choice
from rvc_spark.rvc_init import convert_audio, get_speakers, get_vc, load_model, speak
from rvc_spark.widgets.controls import WIDE, button, choice, clear_uploads, setting_words, slider, tooltip, uploads
from rvc_spark.widgets.engines import READY, ready_engines
from rvc_spark.widgets.plots import show_conversion
from rvc_spark.widgets.sound import show_audio

KEY_REACH = (-24.0, 24.0)  # two octaves either way; more is possible, and no voice sounds like itself there
PANEL_SETTINGS = ("key", "auto_key", "index_rate", "protect", "f0_method")


AUTO = "auto"
ENGINE_WORDS = "who says the text, before it is converted; auto takes the best that is ready and says why"


class Speaks(Protocol):
    """What `speak` returns, as far as a panel looks at it."""

    @property
    def source(self) -> Audio: ...

    @property
    def conversion(self) -> Conversion: ...


def survey_engines() -> dict[str, Choice]:
    """Every speech engine beside the shared VC, as ready or missing."""
    return get_speakers().survey()


@dataclass(frozen=True)
class Verbs:
    """What the panel calls; a test or another front end may put its own here."""

    load: Callable[[str], Any] = load_model
    speak: Callable[..., Speaks] = speak
    convert: Callable[..., Conversion] = convert_audio
    survey: Callable[[], Mapping[str, Choice]] = survey_engines


class VoicePanel:
    """Voice, pitch, index rate, protect and pitch tracker, a text to speak and by whom, a recording to convert.

    Args:
        voices: names to choose from; every usable voice of the shared VC if None.
        voice: the one chosen first.
        text: what the text box holds first.
        settings: first values of `key`, `auto_key`, `index_rate`, `protect`, `f0_method`.
        engine: who speaks at first: "auto" or the name of an engine that is ready.
        verbs: the functions behind the buttons.

    Attributes:
        source, conversion: of the last click that succeeded; None before.

    Raises ConfigError for a setting the panel does not have or a value out of range, when there is no such voice, and
    for an engine that is not ready.
    """

    def __init__(
        self,
        *,
        voices: Sequence[str] | None = None,
        voice: str = "demo",
        text: str = "",
        settings: Mapping[str, Any] | None = None,
        engine: str = AUTO,
        verbs: Verbs | None = None,
    ) -> None:
        first = dict(settings or {})
        unknown = sorted(set(first) - set(PANEL_SETTINGS))
        if unknown:
            raise ConfigError(
                f"the panel has no control for {', '.join(unknown)}", f"It has: {', '.join(PANEL_SETTINGS)}."
            )
        start = ConversionSettings(**first)
        names = usable_voices() if voices is None else list(voices)
        if voice not in names:
            raise ConfigError(
                f"there is no usable voice {voice!r}",
                f"The voices are: {', '.join(names) or 'none; see get_vc().voices()'}.",
            )
        self.source: Audio | None = None
        self.conversion: Conversion | None = None
        self._verbs = verbs or Verbs()
        self._loaded: str | None = None
        self._make_controls(names, voice, text, start)
        self._make_engine_controls(engine)
        self.box = self._arranged()
        self.speak_button.on_click(self._on_speak)
        self.convert_button.on_click(self._on_convert)
        self.again_button.on_click(lambda _button: self.refresh_engines())

    def _make_controls(self, names: list[str], voice: str, text: str, start: ConversionSettings) -> None:
        self.voice_choice = choice("voice", [(name, name) for name in names], voice, "who is to be heard")
        self.auto_key = ipywidgets.Checkbox(
            value=start.auto_key != "off", description="meet the voice's own pitch", indent=False,
            **tooltip(ipywidgets.Checkbox, "finds the key from how high the source speaks; the slider then adds to it"),
        )  # fmt: skip
        self._auto_value = start.auto_key if start.auto_key != "off" else "voice"
        self.key = slider("key", "pitch (key)", start.key, 0.5, KEY_REACH)
        self.index_rate = slider("index_rate", "index rate", start.index_rate, 0.05)
        self.protect = slider("protect", "protect", start.protect, 0.01)
        self.f0_method = choice(
            "pitch tracker", [(name, name) for name in PITCH_METHODS], start.f0_method, setting_words("f0_method")
        )
        self.text_box = ipywidgets.Textarea(
            value=text, placeholder="What shall be said?", layout=ipywidgets.Layout(width=WIDE, height="5em")
        )
        self.upload = ipywidgets.FileUpload(
            accept="audio/*,video/*", multiple=False, description="a recording",
            **tooltip(ipywidgets.FileUpload, "wav, flac, ogg, mp3, m4a or a video; it stays on this machine"),
        )  # fmt: skip
        self.speak_button = button("speak", "say the text in the chosen voice", "primary")
        self.convert_button = button("convert", "turn the recording into the chosen voice", "primary")
        self.progress = ipywidgets.FloatProgress(value=0.0, min=0.0, max=1.0, layout=ipywidgets.Layout(width="14em"))
        self.status = ipywidgets.HTML(value="")
        self.output = ipywidgets.Output()

    def _make_engine_controls(self, engine: str) -> None:
        survey = self._verbs.survey()
        ready = ready_engines(survey)
        if engine not in (AUTO, *ready):
            state = survey.get(engine)
            raise ConfigError(
                f"the speech engine {engine!r:.40} {f'is not ready: {state.reason}' if state else 'is unknown'}",
                f"Choose {', '.join((AUTO, *ready))}.",
            )
        names = [(name, name) for name in (AUTO, *ready)]
        self.engine_choice = choice("speech engine", names, engine, ENGINE_WORDS)
        self.again_button = button("look again", "a server was started or a checkpoint came: find out who is ready now")
        self.engine_note = ipywidgets.HTML(value=_engine_note(survey))

    def refresh_engines(self) -> None:
        """Find out anew which engines are ready; the chosen one stays chosen, or becomes auto when it is gone."""
        survey = self._verbs.survey()
        chosen, names = self.engine, [AUTO, *ready_engines(survey)]
        self.engine_choice.options = [(name, name) for name in names]
        self.engine_choice.value = chosen if chosen in names else AUTO
        self.engine_note.value = _engine_note(survey)

    def _arranged(self) -> Any:
        rows = [
            self.voice_choice,
            ipywidgets.HBox([self.key, self.auto_key]),
            self.index_rate,
            self.protect,
            self.f0_method,
            ipywidgets.HBox([self.engine_choice, self.again_button]),
            self.engine_note,
            ipywidgets.HBox([self.text_box, self.speak_button]),
            ipywidgets.HBox([self.upload, self.convert_button]),
            ipywidgets.HBox([self.progress, self.status]),
            self.output,
        ]
        return ipywidgets.VBox(rows)

    def _ipython_display_(self) -> None:
        display(self.box)

    def __repr__(self) -> str:
        return f"VoicePanel(voice={self.voice!r}, engine={self.engine!r}, settings={self.settings()!r})"

    @property
    def voice(self) -> str:
        """Name of the chosen voice."""
        return self.voice_choice.value

    @property
    def text(self) -> str:
        """What is to be said."""
        return self.text_box.value

    @property
    def engine(self) -> str:
        """Who is to say it: "auto" or the name of an engine."""
        return self.engine_choice.value

    def settings(self) -> dict[str, Any]:
        """The chosen values as keyword arguments for `speak` and `convert_audio`."""
        return {
            "key": self.key.value,
            "auto_key": self._auto_value if self.auto_key.value else "off",
            "index_rate": self.index_rate.value,
            "protect": self.protect.value,
            "f0_method": self.f0_method.value,
        }

    def recording(self) -> Audio:
        """The uploaded recording, decoded. Raises AudioError when there is none or it is no sound."""
        given = uploads(self.upload)
        if not given:
            raise AudioError("no recording was chosen", "Press 'a recording' and pick a sound file first.")
        return read_audio(given[-1].data)

    def _on_speak(self, _button: Any) -> None:
        def work() -> tuple[Audio, Conversion]:
            speech = self._verbs.speak(
                self.text, engine=self.engine, on_progress=self._show_progress, **self.settings()
            )
            return speech.source, speech.conversion

        self._run(work)

    def _on_convert(self, _button: Any) -> None:
        def work() -> tuple[Audio, Conversion]:
            source = self.recording()
            conversion = self._verbs.convert(source, on_progress=self._show_progress, **self.settings())
            clear_uploads(self.upload)
            return source, conversion

        self._run(work)

    def _run(self, work: Callable[[], tuple[Audio, Conversion]]) -> None:
        """Do a click's work and show what came of it; a refusal is shown in words, and the buttons always come back."""
        buttons = (self.speak_button, self.convert_button)
        for control in buttons:
            control.disabled = True
        self._say("working …")
        try:
            if self._loaded != self.voice:
                self._verbs.load(self.voice)
                self._loaded = self.voice
            self.source, self.conversion = work()
            self._show_result(self.source, self.conversion)
        except RvcSparkError as error:
            self._say(str(error), failed=True)
        except KeyboardInterrupt:
            self._say("stopped")
        finally:
            for control in buttons:
                control.disabled = False

    def _show_progress(self, step: Any) -> None:
        self.progress.value = min(1.0, max(0.0, float(step.fraction)))
        self._say(step.message)

    def _say(self, words: str, failed: bool = False) -> None:
        colour = ' style="color:#b00020"' if failed else ""
        self.status.value = f"<span{colour}>{html.escape(words)}</span>"

    def _show_result(self, source: Audio, conversion: Conversion) -> None:
        engines = ", ".join(f"{name}={choice}" for name, choice in conversion.engines.items())
        self.progress.value = 1.0
        self._say(f"{conversion.seconds:.2f} s of sound in {conversion.elapsed:.2f} s; {engines}")
        self.output.clear_output(wait=True)
        with self.output:
            display(show_audio(source, "before"), show_audio(conversion.audio, f"after, as {conversion.voice}"))
            display(show_conversion(source, conversion))


def usable_voices() -> list[str]:
    """Names of the shared VC's voices whose files are in order."""
    return [listing.name for listing in get_vc().voices() if listing.error is None]


def _engine_note(survey: Mapping[str, Choice]) -> str:
    """Which engines cannot be chosen, and what each lacks; begins below the drop-downs."""
    rows = [
        f"<div>✗ {html.escape(name)}: {html.escape(state.reason)}</div>"
        for name, state in survey.items() if state.value != READY
    ]  # fmt: skip
    return f'<div style="font-size:0.9em;line-height:1.4;padding-left:9em">{"".join(rows)}</div>' if rows else ""
