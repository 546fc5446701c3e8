"""Making files that attack their reader, and the check that a reader of voices refuses one."""

from __future__ import annotations

import pickle
import zipfile
from pathlib import Path

import pytest

from rvc_spark.errors import VoiceFileError
from rvc_spark.infer.checkpoint import inspect_checkpoint, read_checkpoint


def refused(path: Path, words: str, *, numbers_only: bool = False) -> None:
    """Both doors refuse; `numbers_only` for damage that only reading the numbers can show."""
    with pytest.raises(VoiceFileError, match=words):
        read_checkpoint(path)
    if not numbers_only:
        with pytest.raises(VoiceFileError, match=words):
            inspect_checkpoint(path)


def torch_zip(path: Path, tree: bytes, entries: dict[str, bytes] | None = None) -> Path:
    """A zip in the layout of torch.save around any pickle."""
    with zipfile.ZipFile(path, "w", zipfile.ZIP_STORED) as archive:
        archive.writestr("x/data.pkl", tree)
        archive.writestr("x/version", b"3\n")
        archive.writestr("x/byteorder", b"little")
        for name, content in (entries or {}).items():
            archive.writestr(name, content)
    return path


def old_container(path: Path, tree: bytes) -> Path:
    head = [pickle.dumps(part, protocol=2) for part in (0x1950A86A20F9469CFC6C, 1001, {"little_endian": True})]
    path.write_bytes(b"".join(head) + tree + pickle.dumps([], protocol=2))
    return path
