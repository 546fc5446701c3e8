"""The voices of a cover: which files they are, told without loading them, and the loaded VC when they are to sing."""

from __future__ import annotations

import hashlib
from functools import lru_cache
from pathlib import Path

from rvc_spark.asset_folder import sha256_file
from rvc_spark.infer.checkpoint import inspect_checkpoint
from rvc_spark.infer.pitch import choose_method
from rvc_spark.infer.settings import ConversionSettings
from rvc_spark.infer.voice_files import find_voice, read_card
from rvc_spark.rvc_config import Choice
from rvc_spark.rvc_modules import VC

ENCODER_FILES = 16  # at most; a content encoder's folder has three


class CoverVoice:
    """A voice that may be sung with.

    Attributes: path, name, licence, range (where it is at home, None if its card does not say), index (file or empty,
    and why).
    """

    def __init__(self, shared: VC, voice: str | Path | None, index: str | Path | None = "auto") -> None:
        """voice: a name, a path, or None: that of the shared VC. Raises VoiceNotFoundError, VoiceFileError."""
        self._shared, self._own, loaded = shared, None, shared.voice
        if voice is None and loaded is not None:
            self.path, self.index = loaded.path, loaded.index_choice
        else:
            self.path = voice if isinstance(voice, Path) else find_voice(voice or "demo", shared.folders)
            self.index = self._choice(index)
        card = read_card(self.path)
        self.name, self.licence, self.range = card.name or self.path.stem, card.licence, card.pitch

    def _choice(self, index: str | Path | None) -> Choice:
        if index is None:
            return Choice("", "switched off")
        if index != "auto":
            return Choice(str(index), "as set")
        return self._shared.index_choice(self.path, inspect_checkpoint(self.path))

    def identity(self, settings: ConversionSettings) -> dict[str, str]:
        """Part -> sha256 of every file the sound of a conversion depends on, and what it is computed with.

        Raises AssetError: a file cannot be read. PitchError: an unknown pitch method.
        """
        config = self._shared.config
        pitch = choose_method(settings.f0_method, device=self._shared.device.value, rmvpe_path=config.rmvpe_path).value
        parts = {
            "voice": digest_of(self.path), "encoder": digest_of(self._shared.encoder_path(self.path)),
            "pitch": pitch, "precision": self._shared.precision.value,
        }  # fmt: skip
        if self.index.value and settings.index_rate > 0:
            parts["index"] = digest_of(Path(self.index.value))
        if pitch == "rmvpe":
            parts["pitch"] = f"rmvpe {digest_of(config.rmvpe_path)}"
        if settings.f0_curve:
            parts["f0_curve"] = digest_of(Path(settings.f0_curve))
        return parts

    def vc(self) -> VC:
        """A VC with this voice in it: the shared one if it holds it or none, else one beside it."""
        held = self._shared.voice
        if held is None:
            self._shared.load(self.path, index=self.index.value or None)
            return self._shared
        if (held.path, held.index_choice.value) == (self.path, self.index.value):
            return self._shared
        if self._own is None:
            self._own = self._shared.sibling()
            self._own.load(self.path, index=self.index.value or None)
        return self._own


def digest_of(path: Path) -> str:
    """sha256 of a file, or of the names and digests of a folder's files; read again only when it has changed.

    Raises AssetError.
    """
    if path.is_dir():
        files = sorted(item for item in path.iterdir() if item.is_file())[:ENCODER_FILES]
        told = "\n".join(f"{item.name} {digest_of(item)}" for item in files)
        return hashlib.sha256(told.encode()).hexdigest()
    try:
        here = path.stat()
    except OSError:
        return sha256_file(path)  # which says what is wrong
    return _digest(str(path), here.st_ino, here.st_size, here.st_mtime_ns)


@lru_cache(maxsize=256)
def _digest(path: str, inode: int, size: int, time: int) -> str:
    return sha256_file(Path(path))
