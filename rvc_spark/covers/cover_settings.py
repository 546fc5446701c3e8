"""What a user can choose about a cover: one frozen record; what single stages can do is in records of their own."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, fields, replace
from typing import Any

from rvc_spark.covers.effects import EffectSettings
from rvc_spark.covers.gate import GateSettings
from rvc_spark.covers.key_proposal import KEY_LIMIT
from rvc_spark.covers.mix import MixSettings
from rvc_spark.covers.tracks import GAIN_DB
from rvc_spark.errors import ConfigError
from rvc_spark.infer.settings import ConversionSettings, check_ranges, setting

QUALITIES = ("good", "best")
BACKING = ("together", "original", "convert")
MAX_RANGES = 1000
MIN_RANGE_SECONDS = 0.1
_NO_RANGE = {"help": "", "low": None, "high": None, "unit": ""}
NESTED = {"conversion": ConversionSettings, "effects": EffectSettings, "gate": GateSettings, "mixing": MixSettings}


@dataclass(frozen=True)
class CoverSettings:
    """How a song becomes a cover. Out of range raises ConfigError naming value and range.

    key: semitones of the lead; None proposes one from the singer's and the voice's range.
    accompaniment_key: semitones of the band; None follows, so that both stay in tune.
    ranges: (start, end) in seconds of what is converted, for a duet; elsewhere the original voice stays. Empty: all.
    preview: second at which a preview begins; None makes the whole song.
    conversion, effects, gate, mixing: of those stages; key and auto_key of the conversion are not used.
    """

    quality: str = setting("good", "of the separation: good is htdemucs, best is htdemucs_ft")
    backing: str = setting(
        "together", "backing voices: together with the lead, kept original beside it, or convert on their own"
    )
    dereverb: bool = setting(False, "take the room out of the lead before it is converted")
    key: float | None = setting(None, "shift of the lead in semitones; without it one is proposed")
    accompaniment_key: float | None = setting(None, "shift of the band in semitones; without it, it follows the lead")
    backing_key: float | None = setting(None, "shift of the backing voices in semitones; without it, that of the lead")
    backing_voice: str | None = setting(None, "voice of the backing voices; without it, that of the lead")
    voice_gain: float = setting(0.0, "level of the converted voice in the mix", *GAIN_DB, "dB")
    backing_gain: float = setting(0.0, "level of the backing voices in the mix", *GAIN_DB, "dB")
    accompaniment_gain: float = setting(0.0, "level of the band in the mix", *GAIN_DB, "dB")
    ranges: tuple[tuple[float, float], ...] = setting((), "what is converted, as pairs of seconds; nothing is all")
    preview: float | None = setting(None, "second at which a preview of the song begins")
    preview_seconds: float = setting(20.0, "length of a preview", 1, 120, "s")
    conversion: ConversionSettings = field(default=ConversionSettings(), metadata=_NO_RANGE)
    effects: EffectSettings = field(default=EffectSettings(), metadata=_NO_RANGE)
    gate: GateSettings = field(default=GateSettings(), metadata=_NO_RANGE)
    mixing: MixSettings = field(default=MixSettings(), metadata=_NO_RANGE)

    def __post_init__(self) -> None:
        check_ranges(self)
        for name, value, known in (("quality", self.quality, QUALITIES), ("backing", self.backing, BACKING)):
            if value not in known:
                raise ConfigError(f"{name}={value!r} is not one of {', '.join(known)}", "Choose one of those.")
        for name, kind in NESTED.items():
            if not isinstance(getattr(self, name), kind):
                raise ConfigError(f"{name} is a {type(getattr(self, name)).__name__}", f"Give a {kind.__name__}.")
        for name in ("key", "accompaniment_key", "backing_key"):
            value = getattr(self, name)
            if value is not None and not (_is_number(value) and abs(value) <= KEY_LIMIT):
                raise ConfigError(
                    f"{name}={value!r} is outside {-KEY_LIMIT:g} to {KEY_LIMIT:g} semitones", "Choose one in between."
                )
        if self.preview is not None and not (_is_number(self.preview) and self.preview >= 0):
            raise ConfigError(f"preview={self.preview!r} is no time in seconds", "Give where the preview begins.")
        object.__setattr__(self, "ranges", checked_ranges(self.ranges))

    @classmethod
    def names(cls) -> tuple[str, ...]:
        """All field names, in order."""
        return tuple(item.name for item in fields(cls))

    def changed(self, **changes: Any) -> CoverSettings:
        """A copy with some fields replaced. Names that are no fields here reach those of the stages: `reverb=0.3`.

        Where two stages know a name, say which: `**{"gate.release": 0.2}`. A `seed` is for all of them.

        Raises ConfigError for a name that is unknown or could mean two things.
        """
        own = {name: value for name, value in changes.items() if name in self.names()}
        for name in sorted(changes.keys() - own.keys()):
            stage, _, inner = name.rpartition(".")
            homes = [part for part, kind in NESTED.items() if inner in kind.names() and stage in ("", part)]
            if not homes or (len(homes) > 1 and inner != "seed"):
                known = f"A cover's settings are: {', '.join(self.names())}."
                either = f"Say {' or '.join(f'{home}.{inner}' for home in homes)}." if homes else known
                raise ConfigError(f"the setting {name} is {'ambiguous' if homes else 'unknown'}", either)
            for home in homes:
                own[home] = own.get(home, getattr(self, home)).changed(**{inner: changes[name]})
        return replace(self, **own)

    def as_dict(self) -> dict[str, Any]:
        """Every setting with its value, for reports."""
        return asdict(self)


def checked_ranges(ranges: Sequence[Sequence[float]]) -> tuple[tuple[float, float], ...]:
    """Pairs of seconds in order, those that touch joined. Raises ConfigError for what is no such pair."""
    if isinstance(ranges, str) or not isinstance(ranges, Sequence) or len(ranges) > MAX_RANGES:
        raise ConfigError(f"ranges={ranges!r:.60} are not up to {MAX_RANGES} pairs of seconds", "Give [(start, end)].")
    pairs: list[tuple[float, float]] = []
    for pair in ranges:
        good = isinstance(pair, Sequence) and len(pair) == 2 and all(map(_is_number, pair))
        if not good or not 0 <= pair[0] <= pair[1] - MIN_RANGE_SECONDS:
            raise ConfigError(
                f"the range {pair!r:.60} is not a start and an end at least {MIN_RANGE_SECONDS:g} s later, in seconds",
                "Give (start, end), as in (12.5, 30).",
            )
        pairs.append((float(pair[0]), float(pair[1])))
    joined: list[tuple[float, float]] = []
    for start, end in sorted(pairs):
        if joined and start <= joined[-1][1] + MIN_RANGE_SECONDS:
            joined[-1] = (joined[-1][0], max(end, joined[-1][1]))
        else:
            joined.append((start, end))
    return tuple(joined)


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
