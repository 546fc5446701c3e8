"""Small JSON files that an engine writes when it enrols a speaker, and reads back with distrust."""

from __future__ import annotations

import hashlib
import json
import os
import tempfile
from pathlib import Path
from typing import Any

from rvc_spark.errors import OutputError, SpeechError


def write_speaker(folder: Path, prefix: str, told: dict[str, Any]) -> Path:
    """Write `PREFIX_<hash of the content>.json`: the same speaker gives the same file. Raises OutputError."""
    content = json.dumps(told, indent=1, ensure_ascii=False)
    path = folder / f"{prefix}_{hashlib.sha256(content.encode()).hexdigest()[:12]}.json"
    try:
        with tempfile.NamedTemporaryFile("w", encoding="utf-8", dir=folder, delete=False) as handle:
            handle.write(content)
        os.replace(handle.name, path)
    except OSError as error:
        raise OutputError(f"{path} cannot be written ({error})", "Check space and permissions.") from error
    return path


def read_speaker(path: Path, kind: str, max_bytes: int) -> dict[str, Any]:
    """The content of a file whose "format" is `kind`. Raises SpeechError for anything else."""
    problem = None
    told: Any = None
    try:
        if not path.is_file():
            problem = "is not a file"
        elif path.stat().st_size > max_bytes:
            problem = f"has {path.stat().st_size:,} bytes, the limit is {max_bytes:,}"
        else:
            told = json.loads(path.read_bytes())
    except (OSError, ValueError, RecursionError) as error:  # ValueError: no JSON, no UTF-8, NUL in the path
        problem = f"cannot be read ({error})"
    if problem is None and not (isinstance(told, dict) and told.get("format") == kind):
        problem = "was not made by this engine"
    if problem is not None:
        raise SpeechError(f"the speaker file {path.name!r} {problem}", "Enrol the speaker again, or pass None.")
    return told
