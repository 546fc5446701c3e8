"""A folder of golden vectors: its index, its files, and a memory of which of their arrays were looked at.

An array that no check compared is a hole in the conformance run, so the memory is what makes silence impossible.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

UNLISTED_IS_FINE = {".md", ".txt", ""}  # notes and licence lines beside the vectors


class Arrays:
    """The arrays of one `.npz`, loaded without pickle. `given` is for inputs, `expected` for what is compared."""

    def __init__(self, path: Path, name: str) -> None:
        self.name = name
        with np.load(path, allow_pickle=False) as archive:
            self._values = {key: archive[key] for key in archive.files}
        self._touched: set[str] = set()

    def __contains__(self, key: str) -> bool:
        return key in self._values

    def keys(self, prefix: str = "") -> list[str]:
        """Names that start with `prefix`, in file order."""
        return [key for key in self._values if key.startswith(prefix)]

    def given(self, key: str) -> np.ndarray:
        """An input, or a recorded quantity that serves as one."""
        self._touched.add(key)
        return self._values[key]

    def expected(self, key: str) -> np.ndarray:
        """An output that the caller is about to compare."""
        self._touched.add(key)
        return self._values[key]

    def untouched(self) -> list[str]:
        """Arrays that nothing asked for."""
        return [key for key in self._values if key not in self._touched]

    def layout(self) -> dict[str, list]:
        """Name -> [dtype, shape], as index.json writes it."""
        return {key: [str(value.dtype), list(value.shape)] for key, value in self._values.items()}


class GoldenFolder:
    """`index.json`, `recipes.json` and the files they name."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.index: dict[str, Any] = json.loads((root / "index.json").read_text(encoding="utf-8"))
        self._arrays: dict[str, Arrays] = {}
        self._opened: set[str] = set()

    @property
    def cases(self) -> list[dict[str, Any]]:
        """All cases, in the order of the index."""
        return self.index["cases"]

    def case(self, identifier: str) -> dict[str, Any]:
        """The case of that id; KeyError naming it if there is none."""
        for case in self.cases:
            if case["id"] == identifier:
                return case
        raise KeyError(f"index.json has no case {identifier}")

    def path(self, name: str) -> Path:
        """Where a file or folder of the set lies; remembers that it was used."""
        path = self.root / name
        if not path.exists():
            raise FileNotFoundError(f"{name} is named by the set but not in {self.root}")
        self._opened.add(name)
        return path

    def arrays(self, name: str) -> Arrays:
        """The `.npz` of that name, one object per file for the whole run."""
        path = self.path(name)
        if name not in self._arrays:
            self._arrays[name] = Arrays(path, name)
        return self._arrays[name]

    def recipes(self) -> dict[str, Any]:
        """All recipes by name."""
        return json.loads(self.path("recipes.json").read_text(encoding="utf-8"))

    def was_opened(self, name: str) -> bool:
        """Whether any check used this file, by itself or as part of a folder."""
        return name in self._opened or any(str(parent) in self._opened for parent in Path(name).parents)

    def unlisted(self) -> Iterator[str]:
        """Files that lie here without a line in `files`."""
        listed = self.index["files"]
        for path in sorted(self.root.rglob("*")):
            name = path.relative_to(self.root).as_posix()
            if path.is_file() and name not in listed and name != "index.json" and path.suffix not in UNLISTED_IS_FINE:
                yield name


def case_file(case: dict[str, Any], suffix: str) -> str:
    """The one file of a case with that suffix."""
    found = [name for name in case["files"] if name.endswith(suffix)]
    if len(found) != 1:
        raise ValueError(f"{case['id']} names {len(found)} files ending in {suffix}, expected one")
    return found[0]


def sha256(path: Path) -> str:
    """Hexadecimal SHA-256 of a file, read in blocks."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()
