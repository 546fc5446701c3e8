"""Enrolled voices among the studio's voices: a profile says a text itself, through an engine, or lends its RVC voice.

    trained voice               text -> engine -> RVC voice
    profile with an RVC voice   text -> engine, with the profile as its reference -> RVC voice
    profile alone               text -> engine, with the profile as its reference; a recording needs an RVC voice

In the list they are called `profile:NAME`, which no voice file can be.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from rvc_spark import rvc_init
from rvc_spark.audio import Audio
from rvc_spark.errors import ConfigError, RvcSparkError, VoiceNotFoundError
from rvc_spark.infer.voice_files import VoiceCard, VoiceListing
from rvc_spark.processing.utils import split_text_and_validate
from rvc_spark.profiles.profile_names import PREFIX
from rvc_spark.profiles.voice_profile import VoiceProfile
from rvc_spark.rvc_config import Choice

ALONE = "the engine speaks as this voice, without conversion: spark and triton clone it, espeak takes over its pitch"


def is_profile(voice: str | None) -> bool:
    """Whether a name of the list is that of a profile."""
    return voice is not None and voice.startswith(PREFIX)


def shown_name(voice: str) -> str:
    """How the list shows a name: `Anna (profile)`."""
    return f"{voice.removeprefix(PREFIX)} (profile)" if is_profile(voice) else voice


def profile_listings() -> list[VoiceListing]:
    """Every profile as a voice of the list; a damaged one with its reason."""
    try:
        found = rvc_init.get_profiles().listings()
    except RvcSparkError as error:  # the whole store cannot be read: the trained voices are there all the same
        return [VoiceListing(PREFIX, Path(PREFIX), 0, VoiceCard(), None, str(error))]
    return [
        VoiceListing(
            f"{PREFIX}{item.name}", Path(item.id), 0,
            VoiceCard() if item.profile is None else _card(item.profile), None, item.error,
        )
        for item in found
    ]  # fmt: skip


def _card(profile: VoiceProfile) -> VoiceCard:
    record = profile.record
    linked = f"with the RVC voice {record.links.voice}" if record.links.voice else ALONE
    pitch = profile.pitch
    low, median, high = (None, None, None) if pitch is None else (pitch.low, pitch.median, pitch.high)
    return VoiceCard(profile.name, f"enrolled voice of {record.consent.who}; {linked}", "", median, low, high)


def rvc_voice(voice: str) -> str:
    """The RVC voice behind a name of the list. Raises VoiceNotFoundError where a profile has none."""
    if not is_profile(voice):
        return voice
    linked = rvc_init.get_profiles().get(voice).record.links.voice
    if linked is None:
        raise VoiceNotFoundError(
            f"no RVC voice belongs to the profile {voice.removeprefix(PREFIX)!r}, and a recording needs one",
            "Choose a trained voice; or train one of the profile's recordings and link it: get_profiles().link(...).",
        )
    return linked


def profile_settings(voice: str, settings: dict[str, Any]) -> dict[str, Any]:
    """Settings where meeting "the voice's own pitch" means the profile's, which was measured on its own recordings."""
    pitch = rvc_init.get_profiles().get(voice).pitch if is_profile(voice) else None
    return {**settings, "auto_key": pitch} if pitch is not None and settings.get("auto_key") == "voice" else settings


class Unconverted:
    """A text in an enrolled voice, sentence by sentence, as its engine speaks it.

    why: which engine, and why it. licence: of its weights. Raises ProfileNotFoundError, ConfigError, TextError.
    """

    def __init__(self, text: str, voice: str, engine: str) -> None:
        self._reference = f"{PREFIX}{rvc_init.get_profiles().get(voice).id}"
        self._sentences = split_text_and_validate(text)
        self._speakers = rvc_init.get_speakers()
        self._engine, self.why = self._speakers.engine(engine)
        self._stopped = threading.Event()

    @property
    def licence(self) -> str:
        """What the engine's weights ask for."""
        return self._engine.licence

    def engines(self) -> dict[str, Choice]:
        """Which did what."""
        return {"tts": self.why, "rvc": Choice("none", "the engine speaks as the profile")}

    def stop(self) -> None:
        """No further piece; any thread."""
        self._stopped.set()

    def pieces(self) -> Iterator[Audio]:
        """The sound as it comes. Raises SpeechError when the engine cannot learn the voice."""
        speaker = self._speakers.speaker_file(self._engine, self._reference)
        rate = 0
        for sentence in self._sentences:
            if rate:
                yield Audio(np.zeros(round(rvc_init.SENTENCE_PAUSE * rate), np.float32), rate)
            for piece in self._engine.stream(speaker, sentence):
                if self._stopped.is_set():
                    return
                rate = piece.rate
                yield piece

    def change(self, voice: str | None, settings: dict[str, Any]) -> None:
        """Raises ConfigError: there is no conversion whose settings could change."""
        raise ConfigError("a profile without an RVC voice speaks as it is", "Changes hold for the next text.")


def refuse_change(voice: str | None) -> None:
    """Raises ConfigError where a profile is to take over in the middle of a text: its engine would have to begin."""
    if is_profile(voice):
        raise ConfigError("a profile cannot take over in the middle of a text", "It speaks from the next text on.")
