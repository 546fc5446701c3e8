"""Takes: what the studio made, with everything that is needed to make it again, and the list that holds them.

A take exists from the moment a button is pressed and grows while it is being made; any thread may read it. Its samples
lie in memory while they are few and in an unnamed temporary file beyond that. The list is bounded: the oldest take that
was not written to disk goes first, and its going is said.
"""

from __future__ import annotations

import json
import math
import os
import re
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from rvc_spark.audio import Audio, EncodeOptions, WatermarkReport, open_writer
from rvc_spark.errors import AudioError, ConfigError, OutputError, RvcSparkError, StreamError
from rvc_spark.rvc_config import Choice
from rvc_spark.rvc_init import licensed
from rvc_spark.streaming.take import TakeStore
from rvc_spark.widgets.sound import show_audio
from rvc_spark.widgets.studio_picture import SEEN_SECONDS, pair_picture

EXPORT_FORMATS = ("flac", "wav", "ogg", "mp3", "m4a")
MAX_TAKES = 30
MAX_SECONDS = 1_200.0  # of all takes together; source and result of 20 minutes take about 300 MB
NAME_LETTERS = 60
SHOWN_SECONDS = 60.0  # of a take as the last line of a cell; the screen plays all of it
LOOK_SECONDS = 0.05  # how often a waiting caller looks at the clock and lets the studio show what came
WORKING, DONE, STOPPED, FAILED = "working", "done", "stopped", "failed"


class Spool:
    """Mono samples that arrive in pieces: append from one thread, read from another."""

    def __init__(self) -> None:
        self._store: TakeStore | None = None

    def append(self, piece: Audio) -> None:
        """Add a piece. Raises AudioError when its rate is not that of the pieces before."""
        store = self._store
        if store is None:
            store = self._store = TakeStore(piece.rate, 1)
        if piece.rate != store.rate:
            raise AudioError(
                f"a piece at {piece.rate} Hz follows pieces at {store.rate} Hz",
                "Change to a voice of another rate between takes, not within one.",
            )
        store.append(piece.mono().samples[:, None])

    @property
    def seconds(self) -> float:
        """How much there is."""
        store = self._store
        return store.seconds if store is not None else 0.0

    @property
    def rate(self) -> int:
        """Hz; 0 while there is nothing."""
        store = self._store
        return store.rate if store is not None else 0

    def audio(self, seconds: float = math.inf) -> Audio | None:
        """All so far as one sound, or its beginning; None while there is nothing."""
        store = self._store
        if store is None or not store.frames:
            return None
        return store.audio(0, min(store.frames, max(1, round(min(seconds, store.seconds) * store.rate))))

    def blocks(self) -> Iterator[Audio]:
        """All so far in pieces, however long it is."""
        store = self._store
        if store is not None:
            for block in store.blocks():
                yield Audio(block[:, 0], store.rate)

    def close(self) -> None:
        """Forget the samples."""
        store, self._store = self._store, None
        if store is not None:
            store.close()


@dataclass(eq=False)
class StudioTake:
    """One result of the studio.

    Attributes:
        name: shown in the list; may be changed.
        kind: "speech" or "conversion".
        settings: everything that was chosen, as `Studio(**take.settings)` takes it.
        changes: what was changed while it was made: (seconds of sound there were, the changed settings).
        engines: which engine did what, and why.
        timings: seconds of each stage (`tts`, `rvc`), `first` sound after, `made` after; filled while it is made.
        gaps: sentences that are missing, in words.
        licence: of the weights that spoke; goes into the tags of exported files.
        state: "working", "done", "stopped" or "failed"; `error` says why it failed.
        kept: the file that `keep` or `export` wrote last.
        watermark: what the detector found in that file; None where none was asked for.
    """

    name: str
    kind: str
    settings: dict[str, Any]
    changes: list[tuple[float, dict[str, Any]]] = field(default_factory=list)
    engines: dict[str, Choice] = field(default_factory=dict)
    timings: dict[str, float] = field(default_factory=dict)
    gaps: list[str] = field(default_factory=list)
    licence: str = ""
    state: str = WORKING
    error: RvcSparkError | None = None
    kept: Path | None = None
    watermark: WatermarkReport | None = None
    picture: bytes | None = field(default=None, repr=False)
    picture_words: str = ""
    spools: tuple[Spool, Spool] = field(default_factory=lambda: (Spool(), Spool()), repr=False)
    over: threading.Event = field(default_factory=threading.Event, repr=False)
    while_waiting: Callable[[], None] = field(default=lambda: None, repr=False)
    stop: Callable[[], None] = field(default=lambda: None, repr=False)

    @property
    def audio(self) -> Audio:
        """The result so far. Raises StreamError when there is none."""
        return _there(self.spools[1].audio(), f"take {self.name!r} holds no sound")

    @property
    def source(self) -> Audio:
        """What was converted: the spoken text, or the recording. Raises StreamError when it was not kept."""
        return _there(self.spools[0].audio(), f"take {self.name!r} has no source to compare with")

    def blocks(self) -> Iterator[Audio]:
        """The result so far in pieces, however long it is."""
        return self.spools[1].blocks()

    def pair(self, seconds: float) -> tuple[Audio, Audio]:
        """The beginnings of source and result. Raises StreamError when one of them is not there."""
        source, result = (spool.audio(seconds) for spool in self.spools)
        return _there(source, f"take {self.name!r} has no source to compare with"), _there(
            result, f"take {self.name!r} holds no sound"
        )

    @property
    def seconds(self) -> float:
        """How much sound of the result there is."""
        return self.spools[1].seconds

    @property
    def has_source(self) -> bool:
        """Whether there is something to compare with."""
        return self.spools[0].seconds > 0

    def wait(self, timeout: float | None = None) -> StudioTake:
        """Until everything is made (not: played); an interrupt stops the work.

        Returns: itself, whether it is done or was stopped.

        Raises what the work failed with, and StreamError after `timeout` seconds; the work goes on then.
        """
        until = None if timeout is None else time.monotonic() + timeout
        try:
            while not self.over.wait(LOOK_SECONDS):
                self.while_waiting()
                if until is not None and time.monotonic() > until:
                    raise StreamError(f"the take is not made after {timeout:g} s", "Wait longer, or stop it.")
        except KeyboardInterrupt:
            self.stop()
            raise
        self.while_waiting()
        if self.state == FAILED and self.error is not None:
            raise self.error
        return self

    def export(self, path: str | Path, options: EncodeOptions | None = None) -> Path:
        """Write the sound, and beside it a .json of how it was made; the suffix chooses wav, flac, ogg or mp3.

        Raises OutputError (a suffix that is none of these, a place that cannot be written), StreamError (no sound).
        """
        path = Path(path)
        if path.suffix.lower().lstrip(".") not in EXPORT_FORMATS:
            raise OutputError(f"{path.name!r} has none of the suffixes of sound", f"Use {', '.join(EXPORT_FORMATS)}.")
        spool = self.spools[1]
        _there(spool.audio(0.0), f"take {self.name!r} holds no sound")
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise OutputError(f"{path.parent} cannot be made: {error}", "Name a place that is yours.") from error
        with open_writer(path, spool.rate, 1, licensed(options, self.licence)) as writer:
            for block in spool.blocks():
                writer.write(block.samples[None])
        self.watermark = writer.watermark
        _write_json(path.with_suffix(".json"), self.report())
        self.kept = path
        return path

    def report(self) -> dict[str, Any]:
        """Everything but the sound, ready for JSON."""
        return {
            "name": self.name,
            "kind": self.kind,
            "settings": self.settings,
            "changes": [{"at": round(at, 3), **changed} for at, changed in self.changes],
            "engines": {name: {"value": item.value, "reason": item.reason} for name, item in self.engines.items()},
            "timings": {name: round(value, 4) for name, value in self.timings.items()},
            "gaps": self.gaps,
            "seconds": round(self.seconds, 4),
            "licence": self.licence,
            **({} if self.watermark is None else {"watermark": self.watermark.report()}),
        }

    def close(self) -> None:
        """Forget the samples; the take can no longer be played."""
        for spool in self.spools:
            spool.close()

    def draw(self) -> None:
        """Make the picture of source and result, where both are there. Any thread."""
        source, result = (spool.audio(SEEN_SECONDS) for spool in self.spools)
        if source is not None and result is not None:
            picture = pair_picture(source, result)
            self.picture, self.picture_words = picture.png, picture.description

    def __repr__(self) -> str:
        voice = self.settings.get("voice", "")
        return f"StudioTake({self.name!r}, {self.kind} as {voice!r}, {self.seconds:.2f} s, {self.state})"

    def _repr_html_(self) -> str:
        sound = self.spools[1].audio(SHOWN_SECONDS)
        if sound is None:
            return ""
        cut = f", its first {sound.seconds:.0f} s" if sound.seconds < self.seconds else ""
        return show_audio(sound, self.name + cut)._repr_html_()


def _there(sound: Audio | None, problem: str) -> Audio:
    if sound is None:
        raise StreamError(problem, "Wait until it is made; if it was deleted, make it again.")
    return sound


def _write_json(path: Path, value: dict[str, Any]) -> None:
    beside = path.with_name(f".{path.name}.{os.getpid()}.part")
    try:
        beside.write_text(json.dumps(value, indent=1, ensure_ascii=False, default=str) + "\n", encoding="utf-8")
        os.replace(beside, path)
    except OSError as error:
        beside.unlink(missing_ok=True)
        raise OutputError(f"{path} cannot be written: {error}", "Name a place that exists and is yours.") from error


def file_stem(name: str) -> str:
    """A take's name as a file name: letters, digits, dot, dash and underscore of any script."""
    return re.sub(r"[^\w.-]+", "_", name, flags=re.UNICODE).strip("._-")[:NAME_LETTERS] or "take"


class TakeList:
    """The takes that can still be heard, oldest first; bounded in number and in seconds.

    It can be indexed, counted and looped over like a list.
    """

    def __init__(self, max_takes: int = MAX_TAKES, max_seconds: float = MAX_SECONDS) -> None:
        self.max_takes, self.max_seconds = max_takes, max_seconds
        self._takes: list[StudioTake] = []
        self._counted = 0

    def __len__(self) -> int:
        return len(self._takes)

    def __getitem__(self, place: int) -> StudioTake:
        if not self._takes:
            raise StreamError("there are no takes yet", "Press Speak, or call studio.speak().")
        return self._takes[place]

    def __iter__(self) -> Iterator[StudioTake]:
        return iter(tuple(self._takes))

    def next_name(self) -> str:
        """A name that no take had."""
        self._counted += 1
        return f"take {self._counted}"

    def add(self, take: StudioTake) -> str:
        """Put a take at the end. What had to go for it, in words; empty if nothing had."""
        self._takes.append(take)
        gone: list[StudioTake] = []
        while len(self._takes) > 1 and self._too_much():
            kept_first = sorted(self._takes[:-1], key=lambda item: item.kept is None)
            oldest = kept_first[0]  # what is on disk loses nothing; among equals the order of making holds
            self.remove(oldest)
            gone.append(oldest)
        if not gone:
            return ""
        names = ", ".join(f"{item.name}{f' (it is in {item.kept})' if item.kept else ''}" for item in gone)
        limit = f"{self.max_takes} takes or {self.max_seconds / 60:g} minutes"
        return f"{names} made room: up to {limit} are held. Keep writes a take to disk."

    def _too_much(self) -> bool:
        return len(self._takes) > self.max_takes or sum(item.seconds for item in self._takes) > self.max_seconds

    def remove(self, take: StudioTake) -> None:
        """Forget a take and its samples; files that were written stay."""
        if take in self._takes:
            self._takes.remove(take)
        take.close()

    def rename(self, take: StudioTake, name: str) -> None:
        """Give a take another name. Raises ConfigError for an empty or overlong one."""
        plain = " ".join(name.split())
        if not 0 < len(plain) <= NAME_LETTERS:
            raise ConfigError(f"a name of {len(plain)} letters cannot be given", f"Use 1 to {NAME_LETTERS} letters.")
        take.name = plain
