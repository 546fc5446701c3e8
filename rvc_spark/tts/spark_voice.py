"""An enrolled Spark-TTS voice: 32 global tokens, and of a transcribed recording its semantic tokens, in a small file.

With it a known voice is spoken without the recording and without the encoder. The file is safetensors; it is read here
with bounds of its own, because it may come from a stranger and because the server's front model has no torch.
"""

from __future__ import annotations

import json
import os
import struct
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NoReturn

import numpy as np

from rvc_spark.errors import OutputError, VoiceTokensError
from rvc_spark.tts.spark_checkpoint import LICENCE_NOTE

GLOBAL_COUNT = 32
"""Global tokens of every voice of the published codec."""
MAX_GLOBAL = 1 << 20
MAX_SEMANTIC = 3_000
"""Semantic tokens of a reference recording, 60 s; the language model's memory is not endless."""
MAX_TRANSCRIPT = 2_000
MAX_VOICE_BYTES = 256 << 10

_FORMAT = "rvc_spark spark voice"


@dataclass(frozen=True)
class SparkVoice:
    """Who speaks. Raises VoiceTokensError when made of anything the codec cannot take.

    global_tokens: 32 numbers. semantic_tokens and transcript: of the reference recording, both or neither.
    notes: where the voice comes from; `licence` is always there.
    """

    global_tokens: tuple[int, ...]
    semantic_tokens: tuple[int, ...] = ()
    transcript: str | None = None
    notes: Mapping[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        _check_numbers("global", self.global_tokens, MAX_GLOBAL)
        _check_numbers("semantic", self.semantic_tokens, MAX_GLOBAL)
        if len(self.global_tokens) != GLOBAL_COUNT:
            _refuse(f"has {len(self.global_tokens)} global tokens, a voice has {GLOBAL_COUNT}")
        if len(self.semantic_tokens) > MAX_SEMANTIC:
            _refuse(f"has {len(self.semantic_tokens):,} semantic tokens, the limit is {MAX_SEMANTIC:,} (60 s)")
        if self.transcript is not None and len(self.transcript) > MAX_TRANSCRIPT:
            _refuse(f"has a transcript of {len(self.transcript):,} characters, the limit is {MAX_TRANSCRIPT:,}")

    def fits(self, semantic_size: int, global_size: int) -> SparkVoice:
        """This voice, if its numbers are in the codec's codebooks. Raises VoiceTokensError."""
        for name, numbers, size in (
            ("global", self.global_tokens, global_size),
            ("semantic", self.semantic_tokens, semantic_size),
        ):
            over = next((number for number in numbers if number >= size), None)
            if over is not None:
                _refuse(f"has the {name} token {over:,}, this codec has {size:,}")
        return self

    def save(self, path: Path) -> Path:
        """Write the voice; the file appears whole or not at all. Raises OutputError."""
        notes = {"licence": LICENCE_NOTE, **self.notes, "format": _FORMAT}
        if self.transcript is not None:
            notes["transcript"] = self.transcript
        content = _encoded({"global_tokens": self.global_tokens, "semantic_tokens": self.semantic_tokens}, notes)
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            with tempfile.NamedTemporaryFile(dir=path.parent, prefix=f".{path.name}.", delete=False) as handle:
                handle.write(content)
            os.replace(handle.name, path)
        except OSError as error:
            raise OutputError(f"{path} cannot be written ({error})", "Check space and permissions.") from error
        return path


def read_voice(path: str | Path) -> SparkVoice:
    """Read a voice file. Raises VoiceTokensError naming what is wrong with it."""
    path = Path(path)
    try:
        if not path.is_file():
            _refuse(f"{path.name!r} is not a file")
        if path.stat().st_size > MAX_VOICE_BYTES:
            _refuse(f"{path.name!r} has {path.stat().st_size:,} bytes, the limit is {MAX_VOICE_BYTES:,}")
        content = path.read_bytes()
    except (OSError, ValueError) as error:
        _refuse(f"{path.name!r} cannot be read ({error})")
    try:
        tensors, notes = _decoded(content)
    except (ValueError, KeyError, TypeError, struct.error, RecursionError) as error:
        _refuse(f"{path.name!r} is damaged or of another kind ({str(error)[:120]})")
    if notes.get("format") != _FORMAT or "global_tokens" not in tensors:
        _refuse(f"{path.name!r} was not written by this package's Spark-TTS engines")
    told = {key: value for key, value in notes.items() if key not in ("format", "transcript")}
    return SparkVoice(
        tensors["global_tokens"], tensors.get("semantic_tokens", ()), notes.get("transcript"), told
    )  # fmt: skip


def _refuse(problem: str) -> NoReturn:
    raise VoiceTokensError(f"the Spark-TTS voice {problem}", "Enrol the speaker again.")


def _check_numbers(name: str, numbers: Any, limit: int) -> None:
    wrong = [number for number in numbers if type(number) is not int or not 0 <= number < limit]
    if wrong:
        _refuse(f"has the {name} token {wrong[0]!r:.40}, tokens are whole numbers from 0")


def _encoded(tensors: dict[str, tuple[int, ...]], notes: dict[str, str]) -> bytes:
    """safetensors: length of the header, header as JSON, numbers."""
    header: dict[str, Any] = {"__metadata__": notes}
    data = b""
    for name, numbers in tensors.items():
        block = np.asarray(numbers, "<i4").tobytes()
        header[name] = {"dtype": "I32", "shape": [len(numbers)], "data_offsets": [len(data), len(data) + len(block)]}
        data += block
    told = json.dumps(header, ensure_ascii=False).encode()
    told += b" " * (-len(told) % 8)
    return struct.pack("<Q", len(told)) + told + data


def _decoded(content: bytes) -> tuple[dict[str, tuple[int, ...]], dict[str, str]]:
    (length,) = struct.unpack_from("<Q", content)
    if length > len(content) - 8:
        raise ValueError("its header is longer than the file")
    header = json.loads(content[8 : 8 + length].decode("utf-8"))
    if not isinstance(header, dict) or not isinstance(header.get("__metadata__", {}), dict):
        raise ValueError("its header is not a mapping")
    data = content[8 + length :]
    notes = {key: value for key, value in header.pop("__metadata__", {}).items() if isinstance(value, str)}
    tensors = {}
    for name, entry in header.items():
        begin, end = entry["data_offsets"]
        if entry["dtype"] != "I32" or not (0 <= begin <= end <= len(data)) or [(end - begin) // 4] != entry["shape"]:
            raise ValueError(f"its tensor {name[:40]!r} is not int32 [n] inside the file")
        tensors[name] = tuple(np.frombuffer(data[begin:end], "<i4").tolist())
    return tensors, notes
