"""The studio: a text or a recording in another voice, heard while it is being made, on one screen of a notebook.

    studio = Studio(text="Good morning.")
    studio                                          # the last line of a cell shows it
    take = studio.speak("In another voice.").wait() # the same without a mouse, as papermill needs it
    studio.settings(), take.audio, take.settings    # everything can be read back; Studio(**take.settings) restores it

Who does what, and in which thread: a click's callback checks the settings, starts a `Run` and returns at once, so Stop
can always be pressed. The run's thread, the workers and the player's pump never touch a widget: front ends lose updates
that are made outside the kernel's main thread (Colab, current ipykernel), and an update from there can interleave with
a cell's. What they made is pulled by the main thread instead: by a timer of the kernel's event loop while the kernel is
idle, and by `take.wait()` while a cell keeps it busy. The timer runs only while something is being made. Only the
player's sound messages leave from its own thread; they are messages, not state, and were measured to arrive.
"""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import ipywidgets
from IPython.display import display

from rvc_spark.audio import Audio
from rvc_spark.errors import ConfigError, RvcSparkError, StreamError, TextError
from rvc_spark.infer.settings import ConversionSettings
from rvc_spark.rvc_init import DEFAULT_SENTENCE, DEFAULT_VOICE
from rvc_spark.widgets.studio_errors import Places
from rvc_spark.widgets.studio_files import about_file
from rvc_spark.widgets.studio_listen import ListenColumn, TakesCard
from rvc_spark.widgets.studio_match import Match, match_loudness, with_gain
from rvc_spark.widgets.studio_parts import STYLE, side_by_side
from rvc_spark.widgets.studio_run import Run
from rvc_spark.widgets.studio_source import AUTO, SourceColumn
from rvc_spark.widgets.studio_takes import FAILED, STOPPED, StudioTake, TakeList, file_stem
from rvc_spark.widgets.studio_verbs import ConvertRequest, Making, Sounding, SpeakRequest, StudioVerbs
from rvc_spark.widgets.studio_voice import DEFAULTS, VoiceColumn

LOOK_SECONDS = 0.12  # between two looks at what was made, while something is being made
COMPARED_SECONDS = 600.0
OWN = {"text": DEFAULT_SENTENCE, "engine": AUTO, "reference": None, "transcript": None, "recording": None,
       "voice": DEFAULT_VOICE}  # fmt: skip


class Studio:
    """Everything on one screen; see the module for how it works.

    Args:
        verbs: the functions behind the buttons.
        chosen: first values: text, engine, reference, transcript, recording, voice, and fields of ConversionSettings
            (`auto_key` is "voice" unless a value is given). What `settings()` returns fits.

    Attributes:
        takes: what was made, oldest first.

    Raises ConfigError: an unknown name, a value out of range, a voice or an engine that cannot be used.
    """

    def __init__(self, *, verbs: StudioVerbs | None = None, **chosen: Any) -> None:
        self._verbs = verbs or StudioVerbs()
        own, settings = _sorted_out(chosen)
        own = {**OWN, **own}
        self.takes = TakeList()
        self._run: Run | None = None
        self._sounding: Sounding | None = None
        self._shown: StudioTake | None = None
        self._ticking = self._hurried = False
        self._loop = _running_loop()
        self.source = SourceColumn(own, self._verbs.survey, lambda: self._verbs.folder() / "uploads")
        self.voice = VoiceColumn(self._verbs.voices(), own["voice"], DEFAULTS.changed(**settings), self._on_setting)
        self.player = self._verbs.player()
        self.listen, self.shelf = ListenColumn(self.player), TakesCard(str(self._verbs.folder() / "takes"))
        self._places = Places(self.source, self.voice, self.listen, self.shelf)
        chosen_side = side_by_side(side_by_side(self.source.box, self.voice.box), self.shelf.box, kind="rvc-side")
        self.box = ipywidgets.VBox([ipywidgets.HTML(STYLE), side_by_side(chosen_side, self.listen.box)])
        self.box.add_class("rvc-studio")
        self._wire()

    def _wire(self) -> None:
        listen, shelf = self.listen, self.shelf
        for control, kind, work in (
            (self.source.speak_button, "speech", self.speak), (self.source.convert_button, "conversion", self.convert),
            (shelf.play_button, "take", self.play), (shelf.keep_button, "take", self.keep),
            (shelf.delete_button, "take", self.delete),
            (listen.source_button, "take", lambda: self.compare("source")),
            (listen.result_button, "take", lambda: self.compare("result")),
        ):  # fmt: skip
            control.on_click(lambda _button, work=work, kind=kind: self._clicked(kind, work))
        listen.stop_button.on_click(lambda _button: self.stop())
        shelf.take_list.observe(lambda _change: self._on_chosen(), "value")
        shelf.name_box.observe(lambda _change: self._on_renamed(), "value")

    def _ipython_display_(self) -> None:
        threading.Thread(target=self._verbs.warm, args=(self.voice.voice,), name="studio warm", daemon=True).start()
        display(self.box)

    def __repr__(self) -> str:
        count = len(self.takes)
        return f"Studio(voice={self.voice.voice!r}, {count} take{'s' * (count != 1)})"

    # ------------------------------------------------------------------------------------------------- settings

    def settings(self) -> dict[str, Any]:
        """Everything that is chosen, in plain values: `Studio(**settings)` shows the same again."""
        return {**self.source.values(), "voice": self.voice.voice, **self.voice.settings()}

    def set(self, **chosen: Any) -> None:
        """Choose values, as if by hand; names as in `settings()`. Raises ConfigError, and nothing is changed then."""
        own, settings = _sorted_out(chosen)
        start = ConversionSettings(**{**self.voice.settings(), **settings})
        for name, control in (("voice", self.voice.voice_choice), ("engine", self.source.engine_choice)):
            names = [value for _, value in control.options]
            if name in own and own[name] not in names:
                raise ConfigError(f"{name}={own[name]!r:.60} cannot be chosen", f"Choose {', '.join(names)}.")
        boxes = {
            "text": self.source.text_box, "transcript": self.source.transcript_box,
            "reference": self.source.reference.path_box, "recording": self.source.recording.path_box,
            "voice": self.voice.voice_choice, "engine": self.source.engine_choice,
        }  # fmt: skip
        for name, value in own.items():
            boxes[name].value = "" if value is None else str(value)
        if settings:
            self.voice.show(start)
            self._on_setting(settings)

    def _on_setting(self, changed: dict[str, Any]) -> None:
        """A setting was changed: while a text is being spoken it holds from the next sentence on."""
        run = self._run
        if run is None or run.take.kind != "speech" or run.take.over.is_set():
            return
        chosen = self.voice.checked_settings()
        try:
            told = {*changed, *(("key", "auto_key") if {"key", "auto_key"} & set(changed) else ())}  # they add up
            run.change(changed.get("voice"), {name: value for name, value in chosen.items() if name in told})
        except RvcSparkError as error:
            self._places.refuse(error, run.take.kind)
            return
        run.take.changes.append((run.take.seconds, dict(changed)))
        told = ", ".join(f"{name} {value}" for name, value in changed.items())
        self.voice.note.say(f"from the next sentence on: {told}")

    # --------------------------------------------------------------------------------------------------- making

    def speak(self, text: str | None = None, **chosen: Any) -> StudioTake:
        """Begin to speak the text in the chosen voice. Returns the take that grows; `take.wait()` waits for its end.

        text, chosen: put into the controls first, as `set` does. What was being made before is stopped.

        Raises TextError, ConfigError; what fails later is in the take, and raised by its `wait`.
        """
        self.set(**({} if text is None else {"text": text}), **chosen)
        self._places.clear()
        words = self.source.checked_text()
        own = self.source.values()
        request = SpeakRequest(
            words, self.voice.voice, own["engine"], own["reference"], own["transcript"] if own["reference"] else None,
            self.voice.checked_settings(),
        )  # fmt: skip
        return self._begin("speech", lambda: self._verbs.speak(request))

    def convert(self, recording: str | Path | None = None, **chosen: Any) -> StudioTake:
        """Begin to convert the chosen recording; else as `speak`.

        Raises StreamError (no recording was chosen), AudioError (it is not there or no sound), ConfigError.
        """
        self.set(**({} if recording is None else {"recording": str(recording)}), **chosen)
        self._places.clear()
        path = self.source.recording.path
        if path is None:
            raise StreamError("no recording was chosen", "Upload one, give its path, or record one.")
        about_file(Path(path).expanduser())  # refused before anything that plays is stopped for it
        request = ConvertRequest(str(Path(path).expanduser()), self.voice.voice, self.voice.checked_settings())
        return self._begin("conversion", lambda: self._verbs.convert(request))

    def _begin(self, kind: str, make: Callable[[], Making]) -> StudioTake:
        self.stop()
        take = StudioTake(self.takes.next_name(), kind, self.settings(), while_waiting=self._waited_for)
        self._run = run = Run(take, make)
        take.stop = self.stop
        self.shelf.note.say(self.takes.add(take))
        self._show(take)
        self._hear(run.pieces(), take.name)
        self._refresh()
        self._tick_soon()
        return take

    def _hear(self, pieces: Any, title: str) -> None:
        self._hurried = False
        self._sounding = self._verbs.play(pieces, title, self.player)

    def stop(self) -> None:
        """End the work and the sound, from any thread. What was made so far stays."""
        if self._run is not None:
            self._run.stop()
        if self._sounding is not None:
            self._sounding.stop()
        if threading.current_thread() is threading.main_thread():
            self._refresh()

    def _waited_for(self) -> None:
        """Somebody waits for the end: it need not keep to the pace of the player, and what came is shown."""
        if not self._hurried and self._sounding is not None:
            self._hurried = True
            with suppress(RvcSparkError):  # what it fails with is in the take
                self._sounding.wait(0.0)
        self._refresh()

    # -------------------------------------------------------------------------------------------------- showing

    def _clicked(self, kind: str, work: Callable[[], Any]) -> None:
        """Do what a button is for, in the main thread; a refusal is shown in words where it belongs."""
        if threading.current_thread() is not threading.main_thread() and self._loop is not None:
            self._loop.call_soon_threadsafe(self._clicked, kind, work)  # it came on a subshell of the kernel
            return
        try:
            work()
        except RvcSparkError as error:
            self._places.refuse(error, kind)

    def _tick_soon(self) -> None:
        if self._loop is not None and not self._ticking and not self._loop.is_closed():
            self._ticking = True
            self._loop.call_later(LOOK_SECONDS, self._tick)

    def _tick(self) -> None:
        self._ticking = False
        self._refresh()
        if self._run is not None:
            self._tick_soon()

    def _refresh(self) -> None:
        """Show what the run made since the last look. Main thread."""
        run = self._run
        if run is None:
            return
        take = run.take
        if not take.over.is_set():
            self.listen.say("working", _progress(run))
            return
        self._run = None
        if take.state == FAILED and take.error is not None:
            self._places.refuse(take.error, take.kind)
        elif take.state == STOPPED:
            self.listen.say("idle", f"stopped after {take.seconds:.1f} s of sound")
        else:
            self.listen.say("done", f"{take.name}: {take.seconds:.1f} s of sound in {take.timings['made']:.1f} s")
        if not take.seconds:
            self.takes.remove(take)
        self._show(take if take.seconds else (self.takes[-1] if len(self.takes) else None))

    def _show(self, take: StudioTake | None) -> None:
        self._shown = take
        self.shelf.show(self.takes, take)
        self.listen.show_take(take)

    def _on_chosen(self) -> None:
        place = self.shelf.take_list.value
        if place is not None and place < len(self.takes) and self.takes[place] is not self._shown:
            self._show(self.takes[place])

    # ---------------------------------------------------------------------------------------------------- takes

    def chosen_take(self) -> StudioTake:
        """The take that is shown. Raises StreamError when there is none."""
        return self._shown if self._shown is not None else self.takes[-1]

    def play(self, take: StudioTake | None = None) -> None:
        """Play a take again, at its own level. Raises StreamError (no take, no sound yet)."""
        take = take or self.chosen_take()
        if not take.seconds:
            raise StreamError(f"take {take.name!r} holds no sound", "Wait for the first of it.")
        self._play_alone(take.blocks(), take.name)

    def compare(self, which: str, take: StudioTake | None = None) -> Match:
        """Play "source" or "result" of a take, both brought to the same loudness. Returns the gains in dB.

        Of long takes the first COMPARED_SECONDS are measured and played.

        Raises StreamError (nothing to compare), ConfigError (neither of the two).
        """
        if which not in ("source", "result"):
            raise ConfigError(f"{which!r:.40} cannot be compared", "Choose 'source' or 'result'.")
        take = take or self.chosen_take()
        sounds = dict(zip(("source", "result"), take.pair(COMPARED_SECONDS), strict=True))
        match = match_loudness(*sounds.values())
        gain = dict(zip(sounds, match.gains, strict=True))[which]
        self.listen.match_note.say(match.words(("source", "result")))
        self._play_alone(with_gain(sounds[which], gain), f"{take.name}, {which}")
        return match

    def _play_alone(self, sound: Audio | Iterator[Audio], title: str) -> None:
        self.stop()
        self._hear(sound, title)

    def keep(self, take: StudioTake | None = None, path: str | Path | None = None) -> Path:
        """Write a take and its settings; into the folder and format chosen on the screen unless a path is given.

        Raises StreamError (no take, no sound yet), OutputError.
        """
        take = take or self.chosen_take()
        if path is None:
            folder = Path(self.shelf.place_box.value.strip() or self._verbs.folder() / "takes").expanduser()
            path = _free_name(folder, file_stem(take.name), self.shelf.format_choice.value)
        kept = take.export(path)
        self.shelf.note.say(f"kept: {kept}, and its settings as .json")
        self.shelf.show(self.takes, self._shown)
        return kept

    def delete(self, take: StudioTake | None = None) -> None:
        """Forget a take. Raises StreamError when there is none."""
        take = take or self.chosen_take()
        if self._run is not None and self._run.take is take:
            self.stop()
        self.takes.remove(take)
        self.shelf.note.say(f"{take.name} is forgotten")
        self._show(self.takes[-1] if len(self.takes) else None)

    def rename(self, name: str, take: StudioTake | None = None) -> None:
        """Give a take another name. Raises StreamError, ConfigError."""
        take = take or self.chosen_take()
        self.takes.rename(take, name)
        self._show(take)

    def _on_renamed(self) -> None:
        name = self.shelf.name_box.value
        if self._shown is not None and name != self._shown.name:
            self._clicked("take", lambda: self.rename(name))


def _running_loop() -> asyncio.AbstractEventLoop | None:
    """The kernel's event loop; None outside of a kernel, where nothing is shown anyway."""
    try:
        return asyncio.get_running_loop()
    except RuntimeError:
        return None


def _sorted_out(chosen: dict[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
    """The studio's own values, and those of the conversion. Raises ConfigError naming what is neither."""
    known = (*OWN, *ConversionSettings.names())
    if unknown := sorted(set(chosen) - set(known)):
        raise ConfigError(f"the studio has no {', '.join(unknown)}", f"It has: {', '.join(known)}.")
    own = {name: value for name, value in chosen.items() if name in OWN}
    if "text" in own and not isinstance(own["text"], str):
        raise TextError(f"the text is of type {type(own['text']).__name__}, not str", "Give a text.")
    settings = {name: value for name, value in chosen.items() if name not in OWN}
    ConversionSettings(**settings)
    return own, settings


def _progress(run: Run) -> str:
    take = run.take
    if not take.seconds:
        return f"working … {run.elapsed:.0f} s" if run.elapsed >= 1 else "working …"
    return f"working … {take.seconds:.1f} s of sound after {run.elapsed:.1f} s"


def _free_name(folder: Path, stem: str, suffix: str) -> Path:
    """A name in the folder that no file has: an earlier take is never overwritten unasked."""
    path, count = folder / f"{stem}.{suffix}", 1
    while path.exists() or path.with_suffix(".json").exists():
        count += 1
        path = folder / f"{stem}_{count}.{suffix}"
    return path
