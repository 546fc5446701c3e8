"""The numbers of Perth, out of the installed package resemble-perth, read as tensors only.

Nothing of the package runs: it imports pkg_resources, which current setuptools no longer have, and then offers no
watermark at all without a word; and it unpickles its file. Here, what is missing is an error, and what was loaded must
mark and detect before anybody relies on it. Knows nothing of files of sound.
"""

from __future__ import annotations

from functools import cache
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from rvc_spark.errors import MissingPackageError, WatermarkModelError
from rvc_spark.installed_packages import package_folder
from rvc_spark.perth_network import SAMPLE_RATE, Perth, PerthNetwork
from rvc_spark.safe_load import read_tensors

MODULE, DISTRIBUTION = "perth", "resemble-perth"
WEIGHTS_FILE = "perth_net/pretrained/implicit/perth_net_250000.pth.tar"
FILE_LIMIT = 1 << 28  # bytes; the bundled file has 37 MB
TRIAL_SCORES = (0.2, 0.8)  # of noise, unmarked at most and marked at least; the true weights answer 0.00 and 1.00
INSTALL = f"pip install {DISTRIBUTION}"
_AGAIN = f"Run: {INSTALL} --force-reinstall --no-deps, or write without watermark='perth'."


def weights_path() -> Path:
    """Where the weights lie.

    Raises MissingPackageError when the package is not installed, WatermarkModelError when it lacks the file.
    """
    folder = package_folder(MODULE)
    if folder is None:
        raise MissingPackageError(
            f"the watermark 'perth' needs the package {DISTRIBUTION}, which is not installed",
            f"Run: {INSTALL} (34 MB, it brings nothing else along), or write without a watermark.",
        )
    path = folder / WEIGHTS_FILE
    if not path.is_file():
        raise WatermarkModelError(f"the package {DISTRIBUTION} is installed but has no file {WEIGHTS_FILE}", _AGAIN)
    return path


def load_perth(path: Path | None = None) -> Perth:
    """Perth from the installed package, or from a file of the same form; read and tried out once per process.

    Raises MissingPackageError, WatermarkModelError: not there, not Perth's, or its mark is not one its detector finds.
    """
    return _loaded(path or weights_path())


@cache
def _loaded(path: Path) -> Perth:
    refusal = f"{path} does not hold the weights of Perth"
    document = read_tensors(path, max_bytes=FILE_LIMIT, what="watermark model", error=WatermarkModelError)
    weights = document.get("model") if isinstance(document, dict) else None
    if not isinstance(weights, dict) or not all(isinstance(value, Tensor) for value in weights.values()):
        raise WatermarkModelError(f"{refusal}: it lacks the section model", _AGAIN)
    if not all(torch.isfinite(value).all() for value in weights.values()):
        raise WatermarkModelError(f"{refusal}: some numbers in it are not finite", _AGAIN)
    try:
        perth = Perth(PerthNetwork(weights))
    except (RuntimeError, KeyError, ValueError, AttributeError) as error:
        reason = str(error).partition("\n")[0]
        raise WatermarkModelError(f"{refusal}: names or shapes differ ({reason})", _AGAIN) from error
    _try_out(perth, path)
    return perth


def _try_out(perth: Perth, path: Path) -> None:
    """A second of noise must be told from itself with the mark."""
    noise = 0.1 * np.random.default_rng(0).standard_normal(SAMPLE_RATE).astype(np.float32)
    before, after = perth.judge(noise).score, perth.judge(noise + perth.delta(noise)).score
    low, high = TRIAL_SCORES
    if not (before <= low and after >= high):
        raise WatermarkModelError(
            f"the weights in {path} do not work: noise scores {before:.2f} without and {after:.2f} with the mark, "
            f"where at most {low} and at least {high} are expected",
            _AGAIN,
        )
