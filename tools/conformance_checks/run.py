"""One conformance run: what is checked against what, on which device, and the groups in their order."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import torch

from conformance_checks.folder import Arrays, GoldenFolder
from conformance_checks.recipes import as_fairseq, as_rmvpe, as_voice, regenerate
from conformance_checks.record import Group, Recorder

HALF = (torch.float16, torch.bfloat16)


@dataclass
class Run:
    """The set, where its networks run, and a scratch folder for regenerated checkpoints."""

    folder: GoldenFolder
    scratch: Path
    device: str = "cpu"
    dtype: torch.dtype = torch.float32
    _loaded: dict[Path, Any] = field(default_factory=dict)

    def recorder(self, group: Group, case: str) -> Recorder:
        """A recorder that knows whether this run is in half precision."""
        return Recorder(group, case, self.dtype in HALF)

    @property
    def replays_torch_draws(self) -> bool:
        """Whether torch's own generator gives here what it gave while recording: float32 on a CPU."""
        return self.device == "cpu" and self.dtype == torch.float32

    @cached_property
    def recipes(self) -> dict[str, Any]:
        """All recipes by name."""
        return self.folder.recipes()

    def recipe(self, name: str) -> dict[str, Any]:
        """The recipe of that name."""
        if name not in self.recipes:
            raise KeyError(f"recipes.json has no {name}")
        return self.recipes[name]

    def recipe_tensors(self, name: str) -> dict[str, torch.Tensor]:
        """Its tensors, checked against their hash. Not kept: the large ones are 360 MB."""
        return regenerate(name, self.recipe(name))

    def recipe_file(self, name: str) -> Path:
        """The recipe as a checkpoint in the scratch folder, in the layout its kind of model is distributed in."""
        path = self.scratch / f"{name}.pth"
        if not path.exists():
            recipe, tensors = self.recipe(name), self.recipe_tensors(name)
            layouts = {
                "voice": lambda: as_voice(recipe, tensors),
                "hubert_base_layout": lambda: as_fairseq(recipe, tensors),
                "rmvpe_e2e": lambda: as_rmvpe(tensors),
            }
            if recipe["model"] not in layouts:
                raise ValueError(f"recipe {name} is of the unknown model {recipe['model']}")
            torch.save(layouts[recipe["model"]](), path)
        return path

    def loaded(self, path: Path, load: Callable[[], Any]) -> Any:
        """What `load()` makes of that path, once per run."""
        if path not in self._loaded:
            self._loaded[path] = load()
        return self._loaded[path]

    def forget(self) -> None:
        """Drop what was loaded; the networks of one group are rarely those of the next."""
        self._loaded.clear()

    def tensor(self, arrays: Arrays, key: str) -> torch.Tensor:
        """An input as a tensor on the device; real numbers in the run's dtype."""
        value = torch.from_numpy(arrays.given(key))
        return value.to(self.device, self.dtype) if value.is_floating_point() else value.to(self.device)

    def f0(self, arrays: Arrays, key: str) -> torch.Tensor:
        """An input that is float32 whatever the dtype of the networks: f0, and the noise of the harmonic source."""
        return torch.from_numpy(arrays.given(key)).to(self.device, torch.float32)
