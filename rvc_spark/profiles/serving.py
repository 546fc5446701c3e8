"""What an enrolled voice is used for: a speaker of an engine, a target of retrieval. Made when asked for, kept inside.

Whatever is learnt of the voice lies in the profile's own folder and nowhere else, so that deleting the profile deletes
it. Knows neither the store nor who asks.
"""

from __future__ import annotations

import copy
import hashlib
import inspect
from collections.abc import Callable
from pathlib import Path
from typing import Protocol

import numpy as np

from rvc_spark.audio import Audio
from rvc_spark.errors import OutputError, ProfileError, SpeechError
from rvc_spark.infer.index_build import build_index
from rvc_spark.profiles.private_files import PRIVATE_FILE, erase, make_private_folder, read_plain, replace_private
from rvc_spark.profiles.profile_draft import ProfileDraft
from rvc_spark.profiles.profile_names import new_id
from rvc_spark.profiles.profile_record import REFERENCE
from rvc_spark.profiles.voice_profile import MAX_DERIVED, VoiceProfile
from rvc_spark.tts.engine import BaseTTSEngine

MAX_SPEAKER_BYTES = 8 << 20
CONTENT_RATE = 16_000  # Hz, of every content encoder
MIN_CONTENT_SAMPLES = 400
SPEAKER, INDEX = "speaker_", "index_"


class Encodes(Protocol):
    """A content encoder, as far as it is used here."""

    path: Path
    embedder: str
    dims: dict[str, int | None]

    def features(self, samples: np.ndarray, version: str) -> object: ...


def speaker_file(profile: VoiceProfile, engine: BaseTTSEngine) -> Path:
    """The file to hand to an engine so that it speaks as this voice; learnt at the first time it is asked for.

    The transcript of the reference clip is given to engines that take one. Raises SpeechError when nothing could be
    learnt, ProfileError, OutputError.
    """
    name = speaker_name(engine, profile.transcript, profile.record.files[REFERENCE].sha256)
    folder = profile.derived_folder
    known = sorted(folder.glob(f"{name}.*")) if folder.is_dir() else []
    if known:
        return known[0]
    with ProfileDraft(profile.folder.parent / new_id()) as scratch:
        content, suffix = learn_speaker(engine, profile.reference(), profile.transcript, scratch.folder)
    return _keep(profile, f"{name}{suffix}", lambda path: replace_private(path, content))


def speaker_name(engine: BaseTTSEngine, transcript: str | None, reference_sha256: str) -> str:
    """The name, without suffix, of the file that an engine makes of a clip."""
    told = "\0".join([engine.enrolment_key, transcript or "", reference_sha256])
    return f"{SPEAKER}{engine.name}_{_short(told)}"


def learn_speaker(
    engine: BaseTTSEngine, reference: Audio, transcript: str | None, scratch: Path
) -> tuple[bytes, str]:
    """The engine's speaker file for a clip, as bytes and suffix; nothing of it stays elsewhere.

    scratch: a private folder for the engine to write in. Raises SpeechError.
    """
    private = copy.copy(engine)  # the same networks, another folder
    private.folder = make_private_folder(scratch / "engine", parents=False)
    told = {}
    if transcript is not None and "transcript" in inspect.signature(engine.enroll).parameters:
        told = {"transcript": transcript}
    try:
        result = private.enroll([reference], **told)
        if not result.success or result.path is None:
            raise SpeechError(
                f"{engine.name} cannot learn this voice: {result.error}".rstrip("."),
                "Take another engine or recording.",
            )
        content = read_plain(result.path, MAX_SPEAKER_BYTES)
        if not result.path.resolve().is_relative_to(scratch.resolve()):
            result.path.unlink(missing_ok=True)  # an engine with a place of its own
    finally:
        erase(private.folder)
    return content, result.path.suffix


def retrieval_index(profile: VoiceProfile, encoder: Encodes, version: str, *, seed: int = 0) -> Path:
    """A retrieval index of the profile's content features; built once per encoder and version.

    version: "v1" or "v2", the RVC voice's. Raises ProfileError, IndexFileError, AudioError, OutputError,
    MissingPackageError without faiss.
    """
    told = f"{encoder.path}\0{encoder.embedder}\0{encoder.dims.get(version)}\0{seed}"
    name = f"{INDEX}{version}_{_short(told)}.index"
    path = profile.derived_folder / name
    if path.is_file() and not path.is_symlink():
        return path
    features = [content_features(profile.sample(number), encoder, version) for number in range(len(profile.samples))]
    found = [part for part in features if part is not None]
    if not found:
        raise ProfileError(f"the profile {profile.name!r} holds no sound of 25 ms", "Enrol the voice again.")

    def make(path: Path) -> None:
        build_index(found, path, version=version, seed=seed)
        path.chmod(PRIVATE_FILE)

    return _keep(profile, name, make)


def content_features(sound: Audio, encoder: Encodes, version: str) -> np.ndarray | None:
    """What is said in a sound, as the conversion sees it: float32 [F, D], a row per 20 ms; None for under 25 ms."""
    from rvc_spark.infer.segments import highpass

    samples = sound.mono().resampled(CONTENT_RATE).samples
    if len(samples) < MIN_CONTENT_SAMPLES:
        return None
    return encoder.features(highpass(samples).astype(np.float32), version)[0].cpu().numpy()  # type: ignore[index]


def _keep(profile: VoiceProfile, name: str, write: Callable[[Path], None]) -> Path:
    """Write something derived into the profile, unless that was deleted meanwhile; old things make room."""
    if not profile.folder.is_dir():
        raise ProfileError(f"the profile {profile.name!r} was deleted", "Enrol the voice again.")
    try:
        folder = make_private_folder(profile.derived_folder, parents=False)
        others = sorted(folder.iterdir(), key=lambda path: path.lstat().st_mtime)
        for path in others[: max(0, len(others) - MAX_DERIVED // 2)]:
            path.unlink(missing_ok=True)
        write(folder / name)
    except OSError as error:
        raise OutputError(f"{profile.folder} cannot be written ({error})", "Check its permissions.") from error
    return folder / name


def _short(text: str) -> str:
    return hashlib.sha256(text.encode("utf-8", "replace")).hexdigest()[:12]
