"""What a booting server says about itself: progress for whoever waits, and its log read as it grows.

Knows the wording of tritonserver's log, nothing of how the server is started.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

FAILED = re.compile(r"\"failed to load '(?P<model>[^']+)' version \d+: (?P<reason>.*)\"\s*$")
LOADED = re.compile(r"\"successfully loaded '(?P<model>[^']+)'\"")
FATAL = re.compile(r"^(?:error: |E\d{4} .*?\] \"?)(?P<reason>.+?)\"?\s*$")
PORT_TAKEN = re.compile(r"(?i)(?:address already in use|failed to (?:bind|start) .*|Unable to (?:bind|listen).*)")
_CHATTER = re.compile(r"[+|]|I\d{4} ")  # tables and what is no complaint
_PATH = re.compile(r"(?<![\w.])(?:/[\w.@+\-]+)+/([\w.@+\-]+)")
MAX_REASON = 600  # characters of a model's own words that fit into a message


@dataclass(frozen=True)
class BootProgress:
    """How far the start of a server is: a fraction 0..1 and a few words."""

    fraction: float
    message: str


OnProgress = Callable[[BootProgress], None] | None


def report(on_progress: OnProgress, fraction: float, message: str) -> None:
    """Tell whoever waits, if anybody does."""
    if on_progress is not None:
        on_progress(BootProgress(min(max(fraction, 0.0), 1.0), message))


def clean(text: str) -> str:
    """A model's own words without this machine's folders and without the list of places in the code."""
    words = text.replace("\\n", "\n").split("\n\nAt:")[0]
    words = re.sub(r"^(?:Internal|Invalid argument|Unavailable): ", "", words.strip())
    shown = " ".join(_PATH.sub(r"\1", words).split())
    return shown if len(shown) <= MAX_REASON else shown[: MAX_REASON - 3] + "..."


@dataclass
class LogReader:
    """Reads the lines a file has gained since the last look; a half-written line waits for its end."""

    path: Path
    _offset: int = 0
    _rest: bytes = b""

    def lines(self) -> Iterator[str]:
        """New whole lines; none while the file does not exist. A file that shrank was begun anew."""
        try:
            with open(self.path, "rb") as stream:
                if stream.seek(0, 2) < self._offset:
                    self._offset, self._rest = 0, b""
                stream.seek(self._offset)
                gained = stream.read()
                self._offset = stream.tell()
        except FileNotFoundError:
            return
        *whole, self._rest = (self._rest + gained).split(b"\n")
        for line in whole:
            yield line.decode("utf-8", "replace").rstrip("\r")

    def rest(self) -> str:
        """What stands after the last line end: the last words of a process that died."""
        return self._rest.decode("utf-8", "replace").strip()


@dataclass
class BootLog:
    """The story of one start: which models are loaded, which failed with what words, what ended the server."""

    reader: LogReader
    loaded: list[str] = field(default_factory=list)
    failed: dict[str, str] = field(default_factory=dict)
    fatal: str = ""
    port_taken: bool = False
    last: str = ""

    def look(self) -> list[str]:
        """Read on; returns the new lines."""
        fresh = list(self.reader.lines())
        for line in fresh:
            self._take(line)
        return fresh

    def _take(self, line: str) -> None:
        if found := FAILED.search(line):
            self.failed[found["model"]] = clean(found["reason"])
        elif found := LOADED.search(line):
            self.loaded.append(found["model"])
        elif found := FATAL.match(line):
            self.fatal = clean(found["reason"])
        if line.strip() and not _CHATTER.match(line):
            self.last = line
        self.port_taken = self.port_taken or bool(PORT_TAKEN.search(line))

    def last_words(self) -> str:
        """The most telling thing a dead server left, for a message."""
        return self.fatal or clean(self.reader.rest() or self.last) or "it said nothing"


def tail(path: Path, count: int) -> list[str]:
    """The last `count` lines of a log; empty when there is none."""
    try:
        lines = path.read_text(encoding="utf-8", errors="replace").splitlines()
    except FileNotFoundError:
        return []
    return lines[-count:] if count > 0 else []
