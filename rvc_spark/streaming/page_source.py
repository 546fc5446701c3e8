"""The player's page as text: one ES module and one style sheet, put together from the scripts in `page/`.

A notebook saves the module with the state of every widget, so there is a packed form of it for widgets: a third of the
size, unpacked by the browser itself.
"""

from __future__ import annotations

import base64
import json
import zlib
from functools import cache
from importlib.resources import files

SCRIPTS = ("take", "sound", "picture", "deck", "face", "player")  # joined in this order
RING_TOKEN = "__RING_SOURCE__"

# The one line that is not data: DecompressionStream is in every browser since 2023, and where a page's rules forbid a
# blob as a module, the library that loads this module by the same means has failed before.
_UNPACK = """\
const bytes = Uint8Array.from(atob("%s"), (letter) => letter.charCodeAt(0));
const text = new Response(new Blob([bytes]).stream().pipeThrough(new DecompressionStream("deflate"))).text();
const place = URL.createObjectURL(new Blob([await text], { type: "text/javascript" }));
const { createPlayer, default: widget } = await import(place);
URL.revokeObjectURL(place);
export { createPlayer, widget as default };
"""


@cache
def player_module() -> str:
    """The ES module that a page loads: `createPlayer` and the widget of a notebook (default)."""
    text = "".join(_lines(_read(f"{name}.js")) for name in SCRIPTS)
    return text.replace(RING_TOKEN, json.dumps(_lines(_read("ring.js"))))


@cache
def packed_module() -> str:
    """The same module, packed; it unpacks itself when it is loaded."""
    return _UNPACK % base64.b64encode(zlib.compress(player_module().encode("utf-8"), 9)).decode("ascii")


@cache
def player_style() -> str:
    """The style sheet."""
    return _lines(_read("player.css"))


def _read(name: str) -> str:
    return files("rvc_spark.streaming").joinpath("page", name).read_text("utf-8")


def _lines(text: str) -> str:
    """Without the indentation and the lines that are only a comment; no string of these files spans lines that care."""
    kept = (line.strip() for line in text.splitlines())
    return "".join(f"{line}\n" for line in kept if line and not line.startswith("//"))
