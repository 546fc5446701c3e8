"""A few voices at once: streams in different voices do not take the networks out of each other's hands.

The shared VC is on the shelf with whatever voice its owner loaded, and is never given another. Further voices get VCs
of their own, which share everything but the voice; the one that was used longest ago makes room.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from itertools import count
from pathlib import Path

from rvc_spark.errors import StreamError, VoiceFileError
from rvc_spark.infer.voice_files import find_voice
from rvc_spark.rvc_modules import VC, LoadedVoice

PLACES = 3
LOOK_SECONDS = 0.2  # how often one who waits for a place looks whether it is still wanted


@dataclass(frozen=True)
class VoiceKey:
    """A voice with its index: "auto" is the one that belongs to it, None is none, else its path."""

    path: Path
    index: str | None = "auto"

    def is_of(self, loaded: LoadedVoice | None) -> bool:
        """Whether that is what is loaded."""
        if loaded is None or Path(loaded.path) != self.path:
            return False
        value, chosen = loaded.index_choice.value, loaded.index_choice.reason in ("as set", "switched off")
        return not chosen if self.index == "auto" else (self.index or "") == value

    @classmethod
    def of(cls, loaded: LoadedVoice) -> VoiceKey:
        """What is loaded."""
        return cls(Path(loaded.path), loaded.index_choice.value or None)


@dataclass(eq=False)
class _Place:
    vc: VC
    key: VoiceKey | None = None
    leases: int = 0
    used: int = 0
    loading: threading.Lock = field(default_factory=threading.Lock)


class VoiceShelf:
    """Up to PLACES voices that are ready at once. Safe in threads."""

    def __init__(self, vc: VC) -> None:
        self.shared = vc
        self._places = [_Place(vc)]
        self._changed = threading.Condition()
        self._clock = count(1)

    def key_of(self, voice: str | Path | None) -> VoiceKey:
        """What a person means by a name or a path; None is what the shared VC has loaded. Raises VoiceNotFoundError."""
        if voice is not None:
            return VoiceKey(voice if isinstance(voice, Path) else Path(find_voice(voice, self.shared.folders)))
        if self.shared.voice is None:
            raise VoiceFileError("no voice is loaded", "Call load_model('demo') first, or give voice=NAME.")
        return VoiceKey.of(self.shared.voice)

    def rate_of(self, key: VoiceKey) -> int | None:
        """Hz of a voice that is on the shelf."""
        with self._changed:
            voices = [place.vc.voice for place in self._places]
        return next((voice.info.sample_rate for voice in voices if voice is not None and key.is_of(voice)), None)

    @contextmanager
    def lease(self, key: VoiceKey, wanted: Callable[[], bool]) -> Iterator[VC]:
        """A VC with that voice loaded, kept from others while it is held. Waits for a place as long as it is `wanted`.

        Raises what `VC.load` raises; StreamError when it is not wanted any more.
        """
        place = self._take(key, wanted)
        try:
            with place.loading:
                if not key.is_of(place.vc.voice):
                    index = Path(key.index) if key.index not in (None, "auto") else key.index
                    place.vc.load(key.path, index=index)
            yield place.vc
        finally:
            with self._changed:
                place.leases -= 1
                place.used = next(self._clock)
                self._changed.notify_all()

    def _take(self, key: VoiceKey, wanted: Callable[[], bool]) -> _Place:
        with self._changed:
            while (place := self._place_for(key)) is None:
                if not wanted():
                    raise StreamError("the stream is closed", "Begin a new one.")
                self._changed.wait(LOOK_SECONDS)
            place.key = key
            place.leases += 1
            place.used = next(self._clock)
            return place

    def _place_for(self, key: VoiceKey) -> _Place | None:
        shared, *own = self._places
        # The owner of the shared VC may have loaded another voice meanwhile; it counts for what it holds now.
        empty = shared.vc.voice is None and (not shared.leases or shared.key == key)
        if empty or key.is_of(shared.vc.voice):
            return shared
        if found := next((place for place in own if place.key == key), None):
            return found
        if len(self._places) < PLACES:
            self._places.append(_Place(self.shared.sibling()))
            return self._places[-1]
        return min((place for place in own if not place.leases), key=lambda place: place.used, default=None)

    def unload(self) -> list[str]:
        """Free the networks of all voices that nobody holds, until they are needed again. Names of those freed."""
        freed = []
        with self._changed:
            for place in self._places:
                voice = place.vc.voice
                if not place.leases and place.vc.unload() and voice is not None:
                    freed.append(voice.name)
        return freed

    def loaded(self) -> tuple[str, ...]:
        """Names of the voices whose networks are in memory."""
        with self._changed:
            return tuple(
                place.vc.voice.name for place in self._places if place.vc.voice is not None and place.vc.loaded
            )
