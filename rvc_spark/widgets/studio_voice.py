"""The studio's middle column: which voice, and how the conversion is done."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import ipywidgets

from rvc_spark.errors import ConfigError
from rvc_spark.infer.pitch import PITCH_METHODS
from rvc_spark.infer.settings import ConversionSettings
from rvc_spark.infer.voice_files import VoiceListing
from rvc_spark.widgets.controls import setting_words, tooltip
from rvc_spark.widgets.studio_parts import LABEL, Note, card, drop_down, icon_button, row, setting_slider, title
from rvc_spark.widgets.studio_profiles import shown_name

KEY_REACH = (-24.0, 24.0)  # two octaves either way; more is possible, and no voice sounds like itself there
FORMANT_REACH = (-6.0, 6.0)
MAX_SEED = 2**31 - 1  # what a number box of a browser keeps exactly, with room
DEFAULTS = ConversionSettings(auto_key="voice")  # a speaker is mostly lower or higher than the voice
SLIDERS = {  # setting -> label, step, the part of its range that people use
    "key": ("pitch", 0.5, KEY_REACH),
    "index_rate": ("index rate", 0.05, None),
    "protect": ("protect", 0.01, None),
    "rms_mix_rate": ("envelope mix", 0.05, None),
    "formant": ("formant", 0.25, FORMANT_REACH),
    "autotune": ("autotune", 0.05, None),
}
FIRST, MORE = ("key", "index_rate", "protect", "rms_mix_rate"), ("formant", "autotune")


class VoiceColumn:
    """Voice and conversion settings. Settings without a control of their own are kept and named, never lost."""

    def __init__(
        self, voices: Sequence[VoiceListing], voice: str, start: ConversionSettings,
        changed: Callable[[dict[str, Any]], None],
    ) -> None:  # fmt: skip
        """changed: told which settings a person changed. Raises ConfigError when there is no such voice."""
        self._listings = {item.name: item for item in voices}
        usable = [item.name for item in voices if item.error is None]
        if voice not in usable:
            reason = self._listings[voice].error if voice in self._listings else ""
            raise ConfigError(
                f"there is no usable voice {voice!r:.60}" + (f": {reason}" if reason else ""),
                f"The voices are: {', '.join(usable) or 'none; see get_vc().voices()'}.",
            )
        self._changed, self._silent = changed, False
        self._make_controls(usable, voice)
        self.show(start)
        self._on_voice()
        for name, control in self._observed().items():
            control.observe(lambda _change, name=name: self._on_change(name), "value")
        self.reset_button.on_click(lambda _button: self.reset())
        self.more = ipywidgets.VBox([*(self.sliders[name] for name in MORE), self.seed])
        self.more.layout.display = "none"
        self.more_button.on_click(lambda _button: self._unfold())
        self.box = card(
            title("In this voice"), self.voice_choice, self.voice_note.widget, self.sliders["key"], self.auto_key,
            *(self.sliders[name] for name in FIRST[1:]), self.f0_method, self.more, self.other_note.widget,
            row(self.more_button, self.reset_button), self.note.widget,
        )  # fmt: skip

    def _make_controls(self, usable: list[str], voice: str) -> None:
        names = [(shown_name(name), name) for name in usable]
        self.voice_choice = drop_down("voice", names, voice, "who is to be heard: trained voices and enrolled profiles")
        self.sliders = {
            name: setting_slider(name, label, getattr(DEFAULTS, name), step, reach)
            for name, (label, step, reach) in SLIDERS.items()
        }
        kind = ipywidgets.Checkbox
        self.auto_key = kind(
            value=True, description="meet the voice's own pitch", indent=False, layout=ipywidgets.Layout(width="auto"),
            **tooltip(kind, "finds the shift from how high the source speaks; the slider then adds to it"),
        )  # fmt: skip
        self.f0_method = drop_down(
            "pitch tracker", [(name, name) for name in PITCH_METHODS], "auto", setting_words("f0_method")
        )
        kind = ipywidgets.BoundedIntText
        self.seed = kind(
            value=0, min=0, max=MAX_SEED, description="seed", style={"description_width": LABEL},
            layout=ipywidgets.Layout(width="auto"), **tooltip(kind, setting_words("seed")),
        )  # fmt: skip
        self.voice_note, self.other_note, self.note = Note(), Note(), Note()
        self.more_button = icon_button("more", "chevron-down", "formant, autotune and seed, or fold them away again")
        self.voice_note.widget.add_class("rvc-clamped")
        self.reset_button = icon_button("back to defaults", "undo", "every setting of this column but the voice")

    def _unfold(self) -> None:
        folded = self.more.layout.display == "none"
        self.more.layout.display = None if folded else "none"
        self.more_button.description, self.more_button.icon = (
            ("less", "chevron-up") if folded else ("more", "chevron-down")
        )

    def _observed(self) -> dict[str, Any]:
        return {
            **self.sliders, "auto_key": self.auto_key, "f0_method": self.f0_method, "seed": self.seed,
            "voice": self.voice_choice,
        }  # fmt: skip

    def _on_change(self, name: str) -> None:
        self.note.say("")
        if name == "voice":
            self._on_voice()
        if not self._silent:
            self._changed({name: self.voice if name == "voice" else self.settings()[name]})

    def _on_voice(self) -> None:
        card_of = self._listings[self.voice].card
        words = [card_of.description.rstrip(".")] if card_of.description else []
        words += [f"speaks around {card_of.median_f0_hz:.0f} Hz"] if card_of.median_f0_hz else []
        words += [f"licence: {card_of.licence}"] if card_of.licence else []
        self.voice_note.say("; ".join(words))

    def show(self, settings: ConversionSettings) -> None:
        """Put every control where the settings say; nobody is told."""
        self._silent = True
        values = settings.as_dict()
        for name, control in self.sliders.items():
            value = float(values.pop(name))
            control.min, control.max = min(control.min, value), max(control.max, value)
            control.value = value
        asked = values.pop("auto_key")
        self._auto_value = asked if asked != "off" else "voice"
        self.auto_key.value = asked != "off"
        self.f0_method.value = values.pop("f0_method")
        seed = values.pop("seed")
        self.seed.max = max(MAX_SEED, seed)
        self.seed.value = seed
        self._others = values
        defaults = DEFAULTS.as_dict()
        told = [f"{name} {value}" for name, value in values.items() if value != defaults[name]]
        self.other_note.say(f"also set: {', '.join(told)}" if told else "")
        self._silent = False

    def reset(self) -> None:
        """Every setting back to its default; the voice stays."""
        before = self.settings()
        self.show(DEFAULTS)
        if changed := {name: value for name, value in self.settings().items() if value != before[name]}:
            self._changed(changed)
        self.note.say("")

    @property
    def voice(self) -> str:
        """Name of the chosen voice."""
        return self.voice_choice.value

    def settings(self) -> dict[str, Any]:
        """Every field of ConversionSettings as it stands."""
        shown = {
            **{name: control.value for name, control in self.sliders.items()},
            "auto_key": self._auto_value if self.auto_key.value else "off",
            "f0_method": self.f0_method.value, "seed": self.seed.value, **self._others,
        }  # fmt: skip
        return {name: shown[name] for name in ConversionSettings.names()}

    def checked_settings(self) -> dict[str, Any]:
        """The settings for the chosen voice: one that does not say its own pitch cannot be met. Raises ConfigError."""
        chosen = self.settings()
        if chosen["auto_key"] == "voice" and not self._listings[self.voice].card.median_f0_hz:
            chosen["auto_key"] = "off"
            self.note.say(f"{self.voice} does not say its own pitch: the slider alone counts.")
        ConversionSettings(**chosen)
        return chosen
