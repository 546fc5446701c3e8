"""A voice recorded in the notebook, sentence by sentence: prompts to read, a level meter, takes that can be done again.

    recorder = Recorder()
    recorder                    # the last line of a cell shows it
    recorder.takes_done()       # what was recorded: path, seconds, what was read

Each take comes from the page as one message and is decoded before it counts. The files lie in a folder that only its
owner may enter, and go when they are deleted, when `close()` is called and when Python ends. Nothing is kept in the
notebook. The sentences are our own: together they hold the sounds of English, questions, numbers and a list, because a
voice that was only heard stating things cannot ask.
"""

from __future__ import annotations

import math
import re
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path
from typing import Any

import anywidget
import traitlets

from rvc_spark.audio import peak_dbfs, read_audio
from rvc_spark.errors import RvcSparkError
from rvc_spark.widgets.microphone import SUFFIXES

MAX_SECONDS = 30.0  # of one take; longer ones would be cut again by whoever enrols them
MAX_BYTES = 4 << 20
MAX_TAKES = 64
CLIPPED_DBFS = -0.13  # of a decoded take: 0.985 of full scale
FAINT_DBFS = -26.0
SHORT_SECONDS = 3.0
PROMPTS = (
    "The old harbour was quiet that morning; a thin fog hung over the boats, and nobody was in a hurry to leave.",
    "Which of these five jars holds the thyme, and why is the measuring cup hidden behind the flour again?",
    "My brother plays the cello on Thursdays, usually badly, but his joy at the first true note is worth it.",
    "Turn left at the bakery, pass two yellow houses and the zoo, and you will see a church with a thick tower.",
    "In nineteen eighty-four they sold one hundred and sixteen bicycles, thirty of them without a single wheel.",
    "Please don't shout! The young owl is asleep above the chimney, and its mother watches us both.",
    "We bought bread, cheese, oranges, vinegar, a pound of rice and, as usual, far too much chocolate.",
    "I thought the path would be shorter, though I must say the view over the valley was a genuine pleasure.",
)
"""Ours, free to use; read at an ordinary pace each takes 5 to 8 seconds."""
STYLE = """
.rvc-spark-recorder { display: flex; flex-direction: column; gap: 6px; max-width: 46em; }
.rvc-spark-recorder .rvc-prompt { font-size: 1.15em; line-height: 1.45; margin: 2px 0; min-height: 2.9em; }
.rvc-spark-recorder .rvc-steps, .rvc-spark-recorder .rvc-controls, .rvc-spark-recorder .rvc-take {
  display: flex; flex-wrap: wrap; align-items: center; gap: 4px 8px; }
.rvc-spark-recorder .rvc-steps[hidden], .rvc-spark-recorder [hidden] { display: none; }
.rvc-spark-recorder button { width: auto; min-width: 2.6em; }
.rvc-spark-recorder .rvc-record { min-width: 7em; }
.rvc-spark-recorder .rvc-live { background: var(--jp-error-color1, #d32f2f); }
.rvc-spark-recorder .rvc-level { position: relative; flex: 1 1 10em; height: 10px; border-radius: 5px; overflow: hidden;
  background: var(--jp-layout-color2, rgba(128,128,128,.2)); }
.rvc-spark-recorder .rvc-level-bar { height: 100%; width: 0; background: var(--jp-success-color1, #388e3c); }
.rvc-spark-recorder .rvc-hot .rvc-level-bar { background: var(--jp-error-color1, #d32f2f); }
.rvc-spark-recorder .rvc-level-peak { position: absolute; top: 0; width: 2px; height: 100%; left: 0;
  background: var(--jp-ui-font-color1, #888); }
.rvc-spark-recorder small { opacity: 0.8; line-height: 1.3; min-height: 1.3em; }
.rvc-spark-recorder .rvc-takes { margin: 0; padding-left: 1.6em; }
.rvc-spark-recorder .rvc-take-name { flex: 1 1 14em; overflow: hidden; text-overflow: ellipsis; white-space: nowrap; }
.rvc-spark-recorder .rvc-take audio { height: 2em; width: 14em; }
.rvc-spark-recorder .rvc-take-note { flex-basis: 100%; color: var(--jp-error-color1, #d32f2f); }
"""
_ID = re.compile(r"[0-9A-Za-z.-]{1,64}")


@dataclass(frozen=True)
class RecordedTake:
    """A take that can be enrolled. text: what was to be read, None where nothing was."""

    id: str
    path: Path
    seconds: float
    text: str | None
    note: str


def recorder_module() -> str:
    """The page's part: microphone.js and, behind it, recorder.js, whose export is the module's."""
    microphone, recorder = (
        files("rvc_spark.streaming").joinpath("page", f"{name}.js").read_text("utf-8")
        for name in ("microphone", "recorder")
    )
    return microphone.replace("export default { render };", "") + recorder


class Recorder(anywidget.AnyWidget):
    """The recorder. changed: called in the kernel when a take comes or goes.

    prompts: sentences to read; none: free speech. max_seconds, max_bytes: of one take.
    """

    _esm = recorder_module()
    _css = STYLE
    hint = traitlets.Unicode("record the sentence above; press again to stop").tag(sync=True)
    prompts = traitlets.List(traitlets.Unicode()).tag(sync=True)
    current = traitlets.Int(0, min=0).tag(sync=True)
    takes = traitlets.List().tag(sync=True)  # what the page shows of each take, plain values
    said = traitlets.Unicode("").tag(sync=True)  # what the kernel says of the last take, where it refuses it
    max_seconds = traitlets.Float(MAX_SECONDS).tag(sync=True)
    max_bytes = traitlets.Int(MAX_BYTES).tag(sync=True)

    def __init__(
        self, prompts: Sequence[str] = PROMPTS, changed: Callable[[], None] = lambda: None, **traits: Any
    ) -> None:
        self._place = tempfile.TemporaryDirectory(prefix="rvc_spark_takes_")  # 0700, erased with this object
        self._changed = changed
        self._done: dict[str, RecordedTake] = {}
        self._count = 0
        super().__init__(prompts=list(prompts), **traits)
        self.on_msg(self._on_message)

    def takes_done(self) -> list[RecordedTake]:
        """The takes in the order they are shown."""
        return list(self._done.values())

    def delete(self, identity: str) -> None:
        """Forget a take and erase its file."""
        take = self._done.pop(identity, None)
        if take is not None:
            take.path.unlink(missing_ok=True)
            self._tell()

    def clear(self) -> None:
        """Forget every take."""
        for take in self._done.values():
            take.path.unlink(missing_ok=True)
        self._done.clear()
        self._tell()

    def close(self) -> None:
        """Forget every take, erase their folder and end the widget."""
        self._done.clear()
        self._place.cleanup()
        super().close()

    def _on_message(self, _widget: Any, content: Any, buffers: list[Any]) -> None:
        """A page is not trusted further than its browser: what is no take is left out."""
        if not isinstance(content, dict):
            return
        identity = content.get("id")
        if not isinstance(identity, str) or not _ID.fullmatch(identity):
            return
        if content.get("t") == "delete":
            self.delete(identity)
        elif content.get("t") == "take" and len(buffers) == 1 and identity not in self._done:
            data = memoryview(buffers[0]).tobytes()
            if 0 < len(data) <= self.max_bytes:
                self._take(identity, content, data)

    def _take(self, identity: str, content: dict[str, Any], data: bytes) -> None:
        mime = str(content.get("mime", ""))
        suffix = next((suffix for kind, suffix in SUFFIXES.items() if kind in mime), "webm")
        number = content.get("prompt")
        known = type(number) is int and 0 <= number < len(self.prompts)
        instead = content.get("instead")
        if len(self._done) >= MAX_TAKES and instead not in self._done:
            self.said = f"there are {MAX_TAKES} takes, and no more are kept: delete some"
            return
        self._count += 1
        path = Path(self._place.name) / f"take_{self._count}.{suffix}"
        try:
            sound = read_audio(data, mono=True)
        except RvcSparkError as error:
            self.said = f"this take cannot be used: {error}"
            return
        self.said = ""
        path.write_bytes(data)
        text = self.prompts[number] if known else None
        note = take_note(sound.seconds, max(peak_dbfs(sound), _decibels(content.get("peak"))))
        take = RecordedTake(identity, path, sound.seconds, text, note)
        if isinstance(instead, str) and (old := self._done.get(instead)) is not None:
            old.path.unlink(missing_ok=True)
            self._done = {take.id if name == instead else name: take if name == instead else kept
                          for name, kept in self._done.items()}  # fmt: skip
        else:
            self._done[identity] = take
        self._tell()

    def _tell(self) -> None:
        prompts = list(self.prompts)
        self.takes = [
            {
                "id": take.id, "seconds": round(take.seconds, 2), "text": take.text or "free speech", "note": take.note,
                "prompt": prompts.index(take.text) if take.text in prompts else -1,
            }
            for take in self._done.values()
        ]  # fmt: skip
        self._changed()


def take_note(seconds: float, peak: float) -> str:
    """What is wrong with a take, in words; empty where nothing is. peak: dBFS."""
    told = []
    if seconds < SHORT_SECONDS:
        told.append(f"{seconds:.1f} s is too short, {SHORT_SECONDS:g} s are needed")
    if peak >= CLIPPED_DBFS:
        told.append("it is clipped: move back or turn the microphone down")
    if peak < FAINT_DBFS:
        told.append("it is very quiet: come closer or turn the microphone up")
    return "; ".join(told)


def _decibels(level: object) -> float:
    usable = isinstance(level, int | float) and not isinstance(level, bool) and math.isfinite(level) and level > 0
    return 20 * math.log10(min(float(level), 1.0)) if usable else -math.inf  # type: ignore[arg-type]
