"""Profiles where a recording, a pitch or an index is asked for: by `profile:NAME`, or by the bare name as a recording.

A bare word could be a file as well: where both are there, the word is refused.
"""

from __future__ import annotations

from pathlib import Path

from rvc_spark.errors import ConfigError, ProfileError
from rvc_spark.infer.pitch_edit import VoiceRange
from rvc_spark.profiles.profile_names import PREFIX, checked_name, is_id
from rvc_spark.profiles.profile_store import ProfileStore
from rvc_spark.profiles.serving import Encodes, retrieval_index, speaker_file
from rvc_spark.profiles.voice_profile import VoiceProfile
from rvc_spark.tts.engine import BaseTTSEngine


class ProfileVoices:
    """The profiles of a store as voices of the speech engines, as targets of the key and as indexes."""

    def __init__(self, store: ProfileStore) -> None:
        self.store = store

    def named(self, reference: str) -> VoiceProfile | None:
        """The profile a reference means; None where it means something else, a path for instance.

        Raises ProfileNotFoundError for `profile:` and an unknown name, ConfigError where a file has the same name.
        """
        if reference.startswith(PREFIX):
            return self.store.get(reference)
        if not _like_a_name(reference):
            return None
        found = self.store.find(reference)
        if found is not None and Path(reference).exists():
            raise ConfigError(
                f"{reference!r} is a profile and a file here", f"Write {PREFIX}{reference} or ./{reference}."
            )
        return found

    def speaker_file(self, engine: BaseTTSEngine, reference: str) -> Path | None:
        """See `rvc_spark.tts.choose.EnrolledVoices`."""
        profile = self.named(reference)
        if profile is None:
            return None
        with self.store.changing(profile):
            return speaker_file(profile, engine)

    def pitch(self, reference: str) -> VoiceRange:
        """Where a profile speaks. Raises ProfileNotFoundError; ProfileError when nothing of it was voiced."""
        profile = self.store.get(reference)
        if profile.pitch is None:
            raise ProfileError(f"the profile {profile.name!r} has no pitch: hardly anything is voiced", "Give a key.")
        return profile.pitch

    def index(self, reference: str, encoder: Encodes, version: str) -> Path:
        """The retrieval index of a profile, linked or built of its recordings. Raises what `retrieval_index` raises."""
        profile = self.store.get(reference)
        if profile.record.links.index is not None:
            return Path(profile.record.links.index)
        with self.store.changing(profile):
            return retrieval_index(profile, encoder, version)


def _like_a_name(reference: str) -> bool:
    if is_id(reference):
        return True
    try:
        checked_name(reference)
    except ProfileError:
        return False
    return True
