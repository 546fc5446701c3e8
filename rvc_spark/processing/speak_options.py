"""What can be chosen about a spoken stream and about the workers that make it; checked when it is made."""

from __future__ import annotations

from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import Any

from rvc_spark.audio import Audio
from rvc_spark.errors import ConfigError
from rvc_spark.infer.settings import ConversionSettings
from rvc_spark.processing.buffer_queue import AHEAD_RANGE, check_policy

WORKER_RANGE = (1, 16)
RETRY_RANGE = (0, 10)


@dataclass(frozen=True)
class SpeakOptions:
    """How one text becomes a stream. Raises ConfigError for an unknown setting or policy.

    voice: a name or a path; None is the voice that is loaded when the text is submitted.
    engine, reference, transcript, tts: who speaks, as in `speak`.
    settings: fields of ConversionSettings. Unless `key` or `auto_key` is among them, the key is found with the first
        sentence and held for the others.
    on_failure: what becomes of a sentence that fails: "skip", "stop" or "wait"; see BufferQueue.
    name: of the stream; one is made if none is given.
    """

    voice: str | Path | None = None
    engine: str | None = None
    reference: str | Path | Audio | None = None
    transcript: str | None = None
    tts: dict[str, Any] = field(default_factory=dict)
    settings: dict[str, Any] = field(default_factory=dict)
    on_failure: str = "skip"
    name: str | None = None

    def __post_init__(self) -> None:
        check_policy(self.on_failure)
        ConversionSettings().changed(**self.settings)

    def changed(self, **changes: Any) -> SpeakOptions:
        """A copy with fields replaced; fields of ConversionSettings go into `settings`."""
        own = {name: changes.pop(name) for name in [item.name for item in fields(self)] if name in changes}
        settings = {**self.settings, **own.pop("settings", {}), **changes}
        own["tts"] = own.get("tts", self.tts) or {}
        return replace(self, **own, settings=settings)


@dataclass(frozen=True)
class WorkerOptions:
    """How many workers, how far they run ahead, how often they try. Raises ConfigError naming value and range.

    tts_workers, rvc_workers: threads that speak and that convert, 1 to 16.
    ahead_seconds: of converted sound that may wait for the listener, per stream.
    spoken_ahead_seconds: of speech that may wait for its conversion, per stream.
    retries: how often a sentence is begun again whose worker died, 0 to 10.
    unload_after: idle seconds until the networks are freed; None: never; "config": `model_unload_delay`.
    """

    tts_workers: int = 1
    rvc_workers: int = 1
    ahead_seconds: float = 30.0
    spoken_ahead_seconds: float = 60.0
    retries: int = 2
    unload_after: float | str | None = "config"

    def __post_init__(self) -> None:
        ranges = {
            "tts_workers": WORKER_RANGE, "rvc_workers": WORKER_RANGE, "retries": RETRY_RANGE,
            "ahead_seconds": AHEAD_RANGE, "spoken_ahead_seconds": AHEAD_RANGE,
        }  # fmt: skip
        for name, (low, high) in ranges.items():
            value = getattr(self, name)
            kinds = (int,) if isinstance(low, int) else (int, float)
            if isinstance(value, bool) or not isinstance(value, kinds) or not low <= value <= high:
                default = WorkerOptions.__dataclass_fields__[name].default
                raise ConfigError(f"{name}={value!r:.40} is outside {low:g} to {high:g}", f"Try {default}.")
        after = self.unload_after
        timed = isinstance(after, int | float) and not isinstance(after, bool) and after > 0
        if not timed and after not in (None, "config"):
            raise ConfigError(f"unload_after={after!r:.40} is no time", "Give seconds above 0, None or 'config'.")


def merged(before: dict[str, Any], given: dict[str, Any]) -> dict[str, Any]:
    """Fields of ConversionSettings with newer ones over them: a key that is given ends a search for one, and back."""
    ended = {"auto_key"} if "key" in given else {"key"} if given.get("auto_key", "off") != "off" else set()
    return {**{name: value for name, value in before.items() if name not in ended}, **given}
