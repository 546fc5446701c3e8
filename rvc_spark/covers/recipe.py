"""What an artefact is made from, as plain data, and in words where two recipes differ."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True)
class Recipe:
    """All an artefact depends on. `key` is None while an input is not known yet."""

    stage: str
    version: int
    inputs: Mapping[str, str | None]  # name -> sha256 of what goes in
    parameters: Mapping[str, Any] = field(default_factory=dict)  # plain JSON
    model: Mapping[str, str | None] = field(default_factory=dict)  # part -> sha256

    @property
    def key(self) -> str | None:
        """sha256 of the recipe, hexadecimal."""
        if None in self.inputs.values():
            return None
        return hashlib.sha256(json.dumps(self.plain(), sort_keys=True, allow_nan=False).encode()).hexdigest()

    def plain(self) -> dict[str, Any]:
        """The recipe as it stands in the sidecar."""
        return {
            "stage": self.stage, "version": self.version, "inputs": dict(self.inputs),
            "parameters": dict(self.parameters), "model": dict(self.model),
        }  # fmt: skip


def differences(old: Mapping[str, Any], new: Mapping[str, Any]) -> list[str]:
    """Where two recipes differ, in words: `key is 3.0, was 0.0`."""
    told = []
    for part in ("version", "inputs", "parameters", "model"):
        before, after = old.get(part), new.get(part)
        if isinstance(before, Mapping) and isinstance(after, Mapping):
            for name in sorted({*before, *after}):
                if before.get(name) != after.get(name):
                    plain = part == "parameters"
                    was = f" is {after.get(name)!r:.60}, was {before.get(name)!r:.60}" if plain else " is another"
                    told.append(f"{name}{was}")
        elif before != after:
            told.append(f"{part} is {after}, was {before}")
    return told
