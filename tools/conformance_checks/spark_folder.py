"""A folder of Spark-TTS vectors: `meta.json` names the cases, one array file per fixture, networks by rule.

Like `folder`, it remembers what was looked at, so that neither a file nor an array can lie there unchecked.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from conformance_checks.folder import UNLISTED_IS_FINE, Arrays
from conformance_checks.spark_rule import tensor_of, tensors_of
from rvc_spark.safe_load import read_tensors
from rvc_spark.tts.bicodec_weights import fold_weight_norm

META = "meta.json"
LARGEST = 64 << 20


class SparkFolder:
    """`meta.json` and the files of its fixtures."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.fixtures: dict[str, Any] = json.loads((root / META).read_text(encoding="utf-8"))["fixtures"]
        self._arrays: dict[str, Arrays] = {}
        self._opened = {META}

    def arrays(self, name: str) -> Arrays:
        """The `.npz` of that name (without the ending), one object for the whole run."""
        if name not in self._arrays:
            self._arrays[name] = Arrays(self._path(f"{name}.npz"), name)
        return self._arrays[name]

    def document(self, name: str) -> Any:
        """The JSON file of that name."""
        return json.loads(self._path(name).read_text(encoding="utf-8"))

    def tensors(self, name: str) -> dict[str, torch.Tensor] | None:
        """The `.safetensors` of that name, which a part of the set may lack; None then."""
        if not (self.root / f"{name}.safetensors").is_file():
            return None
        from rvc_spark.errors import ModelFileError

        return read_tensors(self._path(f"{name}.safetensors"), max_bytes=LARGEST, what="vector", error=ModelFileError)

    def _path(self, name: str) -> Path:
        self._opened.add(name)
        return self.root / name

    def unopened(self) -> list[str]:
        """Files of the folder that no check asked for."""
        names = sorted(path.relative_to(self.root).as_posix() for path in self.root.rglob("*") if path.is_file())
        return [name for name in names if name not in self._opened and Path(name).suffix not in UNLISTED_IS_FINE]

    def used_arrays(self) -> list[Arrays]:
        """The array files that were opened."""
        return list(self._arrays.values())


@dataclass
class SparkRun:
    """The set, a scratch folder, and where networks run (always in float32, in which the set is recorded)."""

    folder: SparkFolder
    scratch: Path
    device: str = "cpu"

    def tensor(self, arrays: Arrays, key: str) -> torch.Tensor:
        """An input on the device."""
        return torch.from_numpy(arrays.given(key)).to(self.device)

    def ready(self, network: nn.Module, seed: int, normed: tuple[str, ...] = ()) -> nn.Module:
        """A network with the rule's weights on the device; `normed` begins the names of its weight-normed layers."""
        weights = {}
        for name, tensor in network.state_dict().items():
            shape, stem = tuple(tensor.shape), name.removesuffix("weight")
            if stem != name and len(shape) == 3 and name.startswith(normed or ("-",)):
                pair = {f"{stem}weight_g": (shape[0], 1, 1), f"{stem}weight_v": shape}
                weights[name] = fold_weight_norm(*tensors_of(pair, seed).values())
            else:
                weights[name] = torch.from_numpy(tensor_of(name, shape, seed))
        network.load_state_dict(weights, strict=True, assign=True)
        return network.requires_grad_(False).eval().to(self.device)


def numbered(cases: list[dict[str, Any]]) -> Iterator[tuple[int, dict[str, Any]]]:
    """Cases with their number, by which arrays are named. A part of a set keeps the numbers of the whole."""
    for place, case in enumerate(cases):
        yield case.get("case", place), case
