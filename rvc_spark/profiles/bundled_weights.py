"""Weights that travel inside somebody else's package: found on disk, judged, loaded; nothing of the package ever runs.

The networks are ours, so a package is only the place of a file. That keeps out what it would do when imported (reset
torch's threads, need a compiler for a dependency) and needs no network at any time.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor, nn

from rvc_spark.errors import MissingPackageError, ModelFileError
from rvc_spark.installed_packages import package_folder
from rvc_spark.safe_load import read_tensors

MAX_BYTES = 256 << 20
"""Bytes of a bundled file; the largest known one has 38 MB."""


def bundled_file(module: str, file: str, install: str, purpose: str) -> Path:
    """The file inside an installed package.

    Args:
        module: name the package is imported by.
        file: path inside its folder.
        install: command that brings it.
        purpose: what cannot be done without it, for the message.

    Raises:
        MissingPackageError: the package is not installed, or lacks the file.
    """
    folder = package_folder(module)
    if folder is None:
        raise MissingPackageError(f"the package {module} is not installed, so {purpose}", f"Run: {install}")
    path = folder / file
    if not path.is_file():
        raise MissingPackageError(
            f"the package {module} is installed but has no file {file}, so {purpose}",
            f"Run: {install} --force-reinstall",
        )
    return path


def fill_network(network: nn.Module, weights: Mapping[str, Tensor], name: str, install: str) -> nn.Module:
    """Load a state dict strictly and make the network ready to be asked; returns it.

    Raises:
        ModelFileError: names or shapes differ, or a number is not finite.
    """
    advice = f"Run: {install} --force-reinstall"
    broken = [key for key, value in weights.items() if not torch.isfinite(value).all()]
    if broken:
        raise ModelFileError(f"the weights of {name} hold numbers that are not finite ({broken[0]})", advice)
    try:
        network.load_state_dict(dict(weights))
    except RuntimeError as error:
        reason = " ".join(str(error).split())[:200]
        raise ModelFileError(f"the weights of {name} are of another network ({reason})", advice) from error
    return network.requires_grad_(False).eval()


def read_weights(path: Path, name: str) -> Mapping[str, object]:
    """The content of a bundled torch or safetensors file, read as data.

    Raises:
        ModelFileError: damaged, too large, more than data, or no table of names.
    """
    document = read_tensors(path, max_bytes=MAX_BYTES, what=name, error=ModelFileError)
    if not isinstance(document, dict):
        raise ModelFileError(f"{path.name} does not hold the weights of {name}", "Install its package again.")
    return document
