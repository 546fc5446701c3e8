"""A button that records from the page's microphone, and hands the recording to a function.

    Microphone(lambda name, data: ...)      # called in the kernel when a recording is finished

The sound comes as one message in whatever form the browser records (Opus in WebM or Ogg, AAC in MP4). A page that has
no microphone, or may not use it, says so in words in place of the button. Nothing is kept in the notebook.
"""

from __future__ import annotations

from collections.abc import Callable
from importlib.resources import files
from typing import Any

import anywidget
import traitlets

MAX_SECONDS = 60.0
MAX_BYTES = 8 << 20  # of an encoded recording; a minute of Opus takes about 1 MB
SUFFIXES = {"webm": "webm", "ogg": "ogg", "mp4": "m4a"}
STYLE = """
.rvc-spark-microphone { display: flex; flex-wrap: wrap; align-items: center; gap: 2px 6px; }
.rvc-spark-microphone button { width: auto; min-width: 4.6em; }
.rvc-spark-microphone button[hidden], .rvc-spark-microphone meter[hidden] { display: none; }
.rvc-spark-microphone meter { width: 7em; }
.rvc-spark-microphone small { opacity: 0.75; line-height: 1.3; }
"""


class Microphone(anywidget.AnyWidget):
    """The button. sound: called with a file name and the bytes of a finished recording.

    hint, max_seconds, max_bytes: what the button explains, and the limits of a recording.
    """

    _esm = files("rvc_spark.streaming").joinpath("page", "microphone.js").read_text("utf-8")
    _css = STYLE
    hint = traitlets.Unicode(f"record up to {MAX_SECONDS:g} s; press again to stop").tag(sync=True)
    max_seconds = traitlets.Float(MAX_SECONDS).tag(sync=True)
    max_bytes = traitlets.Int(MAX_BYTES).tag(sync=True)

    def __init__(self, sound: Callable[[str, bytes], None], **traits: Any) -> None:
        super().__init__(**traits)
        self._sound = sound
        self.on_msg(self._on_message)

    def _on_message(self, _widget: Any, content: Any, buffers: list[Any]) -> None:
        """A page is not trusted further than its browser: what is no recording is left out."""
        if not isinstance(content, dict) or content.get("t") != "sound" or len(buffers) != 1:
            return
        data = memoryview(buffers[0]).tobytes()
        if not 0 < len(data) <= self.max_bytes:
            return
        mime = str(content.get("mime", ""))
        suffix = next((suffix for kind, suffix in SUFFIXES.items() if kind in mime), "webm")
        self._sound(f"recording.{suffix}", data)
