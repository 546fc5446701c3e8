"""The speech engines in a cell: which can be used, what the others lack, and all of them side by side.

Choosing is not done here: `Speakers` does it, and says why.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from rvc_spark.audio import Audio
from rvc_spark.errors import ConfigError, RvcSparkError
from rvc_spark.rvc_config import Choice
from rvc_spark.rvc_init import get_speakers
from rvc_spark.tts.choose import Speakers
from rvc_spark.tts.engine import BaseTTSEngine
from rvc_spark.widgets.listening import Heard, listen
from rvc_spark.widgets.plots import one_line
from rvc_spark.widgets.sound import BYTES_RANGE, MAX_BYTES, show_audio
from rvc_spark.widgets.tables import Table

READY = "ready"
_PLAIN = ("espeak",)  # engines that draw nothing by chance and cannot use a transcript


def ready_engines(survey: Mapping[str, Choice]) -> list[str]:
    """Names of the engines of `Speakers.survey` that can be used now."""
    return [name for name, state in survey.items() if state.value == READY]


def show_engines(survey: Mapping[str, Choice], speaks: Choice | None = None) -> Table:
    """Every engine with its state. speaks: what `Speakers.choose` chose; its row is tinted, and why is said below."""
    names = list(survey)
    rows = tuple(
        (name, f"{'✓' if state.value == READY else '✗'} {state.value}", state.reason) for name, state in survey.items()
    )
    marked = names.index(speaks.value) if speaks is not None and speaks.value in names else None
    caption = f"{speaks.value} speaks: {speaks.reason}." if speaks is not None else ""
    return Table(("engine", "state", "what it is, or what it lacks"), rows, caption, marked)


@dataclass(frozen=True)
class EngineTurn:
    """One engine's attempt at the text: what was heard of it, or the error that it ended with."""

    name: str
    why: str
    licence: str
    heard: Heard | None
    error: RvcSparkError | None = None


@dataclass(frozen=True)
class Comparison:
    """The same text by several engines; the last line of a cell shows it as a table with players."""

    text: str
    turns: tuple[EngineTurn, ...]

    def __getitem__(self, name: str) -> EngineTurn:
        """The turn of an engine. Raises ConfigError for one that was not there."""
        for turn in self.turns:
            if turn.name == name:
                return turn
        raise ConfigError(
            f"the engine {name!r:.40} is not among those compared",
            f"There are: {', '.join(turn.name for turn in self.turns)}.",
        )

    def table(self) -> Table:
        """One row per engine."""
        head = ("engine", "sound", "first sound after", "all after", "real-time factor", "licence of its weights")
        room = max(BYTES_RANGE[0], MAX_BYTES // max(1, len(self.turns)))  # all players stand in one output
        return Table(head, tuple(_turn_row(turn, room) for turn in self.turns), f"“{one_line(self.text)}”")

    def _repr_html_(self) -> str:
        return self.table()._repr_html_()

    def __repr__(self) -> str:
        return repr(self.table())


def _turn_row(turn: EngineTurn, room: int) -> tuple:
    licence = turn.licence or ("no weights" if turn.name in _PLAIN else "ask whoever runs it")
    if turn.heard is None:
        return turn.name, f"failed: {turn.error}", "–", "–", "–", licence
    heard = turn.heard
    return (
        turn.name, show_audio(heard.audio, max_bytes=room), f"{heard.first_seconds:.2f} s", f"{heard.elapsed:.2f} s",
        f"{heard.real_time_factor:.2g}", licence,
    )  # fmt: skip


def compare_engines(
    text: str,
    *,
    reference: str | Path | Audio | None = None,
    transcript: str | None = None,
    seed: int = 0,
    engines: Sequence[str] | None = None,
    speakers: Speakers | None = None,
) -> Comparison:
    """Let every engine that is ready speak a text, one after the other, so that none slows another down.

    Args:
        reference: a recording; each engine learns of it what it can.
        transcript: what the recording says, for the engines that clone.
        engines: names; every engine that is ready if None. speakers: those of the shared VC if None.

    An engine that fails has its error in its row, and the others are heard. Raises ConfigError for an unknown engine.
    """
    speakers = speakers or get_speakers()
    known = speakers.survey()
    names = ready_engines(known) if engines is None else list(engines)
    if strange := next((name for name in names if name not in known), None):
        raise ConfigError(f"the speech engine {strange!r:.40} is unknown", f"Choose among {', '.join(known)}.")
    given = _Task(text, reference, transcript, seed)
    return Comparison(text, tuple(_turn(speakers, name, given) for name in names))


@dataclass(frozen=True)
class _Task:
    """What every engine gets."""

    text: str
    reference: str | Path | Audio | None
    transcript: str | None
    seed: int


def _turn(speakers: Speakers, name: str, task: _Task) -> EngineTurn:
    plain = name in _PLAIN
    engine: BaseTTSEngine | None = None
    try:
        engine, why = speakers.engine(name, None if plain else {"seed": task.seed})
        voice = speakers.speaker_file(engine, task.reference, None if plain else task.transcript)
        heard = listen(engine.stream(voice, task.text), title=name)
    except RvcSparkError as error:
        return EngineTurn(name, "", engine.licence if engine else "", None, error)
    return EngineTurn(name, why.reason, engine.licence, heard)


class Server(Protocol):
    """What `boot_triton` returns, as far as it is shown."""

    address: str
    kind: Choice

    @property
    def owned(self) -> bool: ...


def show_server(server: Server | None) -> Table:
    """Where a server is, what it is and why that one; or that there is none."""
    if server is None:
        return Table(("server", "why"), (("none", "none was asked for, and none runs"),))
    ends = "with this notebook, or when it is told to" if server.owned else "not by this notebook"
    row = (server.address, server.kind.value, server.kind.reason, ends)
    return Table(("server", "kind", "why this one", "ends"), (row,))
