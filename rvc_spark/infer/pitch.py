"""Fundamental frequency of a sound: the door to every tracker, and the three things done to every contour.

One rule holds everywhere: a contour is Hz per 10 ms, 0 means unvoiced, and nothing here turns an unvoiced frame into a
voiced one except `fill_unvoiced`, on demand. This module does not know where weights lie (it is told) nor how a long
recording is cut (its caller cuts; a network tracker needs about 0.3 GB for a minute of sound).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from rvc_spark.errors import AssetError, PitchError
from rvc_spark.infer.pitch_trackers import (
    F0_CEILING,
    F0_FLOOR,
    HOP,
    dio_f0,
    fit_frames,
    harvest_f0,
    median_width,
    pm_f0,
)
from rvc_spark.installed_packages import is_installed
from rvc_spark.rvc_config import Choice

if TYPE_CHECKING:
    from rvc_spark.infer.crepe import Triangular

PITCH_METHODS = ("auto", "rmvpe", "fcpe", "crepe", "crepe-tiny", "harvest", "dio", "pm")
PACKAGES = {
    "fcpe": "torchfcpe",
    "crepe": "torchcrepe",
    "crepe-tiny": "torchcrepe",
    "harvest": "pyworld",
    "dio": "pyworld",
    "pm": "parselmouth",
}
MEL_SLOPE, MEL_CORNER = 1127.0, 700.0  # mel(f) = 1127 ln(1 + f / 700)
COARSE_BINS = 255


@dataclass(frozen=True)
class PitchTracker:
    """A tracker ready for use: which one, why that one, and the contour of a sound.

    Attributes:
        raw: float64 [N] → Hz at the algorithm's own length, mostly N // 160 + 1.
        raw_many: the same of several sounds, by those that take sounds of one length at once.
    """

    method: str
    reason: str
    raw: Callable[[np.ndarray], np.ndarray]
    raw_many: Callable[[Sequence[np.ndarray]], Sequence[np.ndarray]] | None = None

    def track_many(self, sounds: Sequence[np.ndarray]) -> list[np.ndarray]:
        """`track` of several sounds, at once where the method can. Raises as it does."""
        sounds = [_checked_sound(samples) for samples in sounds]
        contours = [self.raw(samples) for samples in sounds] if self.raw_many is None else self.raw_many(sounds)
        return [fit_frames(f0, len(samples) // HOP) for f0, samples in zip(contours, sounds, strict=True)]

    def track(self, samples: np.ndarray) -> np.ndarray:
        """f0 of `samples` float [N] at 16 kHz: float64 [N // 160] Hz, 0 = unvoiced, frame t at second t / 100.

        What the algorithm gives beyond N // 160 frames is dropped; what it lacks is unvoiced. PitchError when the sound
        has more than one axis, is shorter than a frame (160 samples) or is not finite.
        """
        samples = _checked_sound(samples)
        return fit_frames(self.raw(samples), len(samples) // HOP)


def _checked_sound(samples: np.ndarray) -> np.ndarray:
    samples = np.asarray(samples, dtype=np.float64)
    if samples.ndim != 1:
        raise PitchError(f"pitch tracking takes mono sound [N], not shape {samples.shape}", "Mix it down first.")
    if len(samples) < HOP:
        raise PitchError(
            f"a sound of {len(samples)} samples is shorter than one frame of {HOP} (10 ms)", "Give a longer sound."
        )
    if not np.isfinite(samples).all():
        raise PitchError("the sound has samples that are not finite", "Read it through rvc_spark.audio.")
    return samples


# ---- choosing --------------------------------------------------------------------------------------------------------


def why_missing(method: str, rmvpe_path: Path | None = None) -> str | None:
    """What a method lacks on this machine, in words; None when it can run. Loads nothing."""
    if method == "rmvpe":
        if rmvpe_path is None:
            return "no path for the rmvpe weights is set"
        return None if Path(rmvpe_path).is_file() else f"no rmvpe weights at {rmvpe_path}"
    package = PACKAGES.get(method)
    if package and not is_installed(package):
        return f"the package {package} is not installed"
    return None


def choose_method(method: str = "auto", *, device: str = "cpu", rmvpe_path: Path | None = None) -> Choice:
    """The tracker to use, with the reason. A method asked for by name is never replaced by another.

    `auto` takes the first present of rmvpe, fcpe, crepe, pm. crepe is passed over without a GPU, where it takes several
    seconds per second of sound and pm, in a thousandth of that, is nearly as accurate on a clean voice.

    Raises PitchError for an unknown method.
    """
    if method not in PITCH_METHODS:
        raise PitchError(f"there is no pitch method {method!r}", f"The methods are: {', '.join(PITCH_METHODS)}.")
    if method != "auto":
        return Choice(method, "asked for")
    passed_over = []
    for candidate, praise in (
        ("rmvpe", "the most robust, and its weights are there"),
        ("fcpe", "the best present"),
        ("crepe", "the best present"),
    ):
        problem = why_missing(candidate, rmvpe_path)
        if problem is None and candidate == "crepe" and not device.startswith("cuda"):
            problem = "crepe is too slow without a GPU"
        if problem is None:
            return Choice(candidate, "; ".join([praise, *passed_over]))
        passed_over.append(problem)
    return Choice("pm", "; ".join(["needs no weights", *passed_over]))


def load_tracker(
    method: str = "auto",
    *,
    device: str = "cpu",
    rmvpe_path: Path | None = None,
    filter_radius: int = 3,
    dither: Triangular | None = None,
) -> PitchTracker:
    """Make a method of PITCH_METHODS ready for use.

    Args:
        device: where rmvpe, fcpe and crepe run ("cpu", "cuda", "cuda:1"); the others know only the CPU.
        rmvpe_path: the file rmvpe.pt.
        filter_radius: 0..7, the median that harvest's contour passes; see `pitch_trackers.median_width`.
        dither: a seeded numpy generator for crepe's dither of ±20 cents; None leaves it out.

    Raises PitchError (unknown method, radius), AssetError (no rmvpe weights), MissingPackageError (the method's
    package), PitchModelError (its weights are damaged).
    """
    choice = choose_method(method, device=device, rmvpe_path=rmvpe_path)
    median_width(filter_radius)
    if choice.value == "rmvpe":
        problem = why_missing("rmvpe", rmvpe_path)
        if problem is not None:
            raise AssetError(problem, "Run: rvc-spark assets get rmvpe, or choose another pitch method.")
        from rvc_spark.infer.rmvpe import load_rmvpe

        rmvpe = load_rmvpe(rmvpe_path, device)
        return PitchTracker(choice.value, choice.reason, rmvpe.f0, rmvpe.f0_of_many)
    return PitchTracker(choice.value, choice.reason, _raw(choice.value, device, filter_radius, dither))


def _raw(
    method: str, device: str, filter_radius: int, dither: Triangular | None
) -> Callable[[np.ndarray], np.ndarray]:
    """The tracking function of a method. Networks are imported here, so that pm and the WORLD methods need no torch."""
    if method == "fcpe":
        from rvc_spark.infer.fcpe import load_fcpe

        return load_fcpe(device).f0
    if method in ("crepe", "crepe-tiny"):
        from rvc_spark.infer.crepe import load_crepe

        crepe = load_crepe("full" if method == "crepe" else "tiny", device)
        return lambda samples: crepe.f0(samples, dither)
    if method == "harvest":
        return lambda samples: harvest_f0(samples, filter_radius)
    return {"dio": dio_f0, "pm": pm_f0}[method]


# ---- every contour ---------------------------------------------------------------------------------------------------


def coarse_pitch(f0: np.ndarray) -> np.ndarray:
    """int64 [...] codes 1..255 of f0 [...] in Hz: 50 Hz → 1, 1100 Hz → 255, linear in mel between, clipped beyond.

    Unvoiced (0) gives 1. Rounds half to even, as the reference does. Raises PitchError for values that are not finite
    or are negative.
    """
    f0 = _checked(f0)
    low, high = (MEL_SLOPE * np.log(1 + hz / MEL_CORNER) for hz in (F0_FLOOR, F0_CEILING))
    mel = MEL_SLOPE * np.log(1 + f0 / MEL_CORNER)
    code = (mel - low) * (COARSE_BINS - 1) / (high - low) + 1
    return np.rint(np.clip(code, 1, COARSE_BINS)).astype(np.int64)


def fill_unvoiced(f0: np.ndarray) -> np.ndarray:
    """f0 [T] with unvoiced frames on straight lines between their voiced neighbours, the ends held; all zeros stay.

    What RVC of July 2026 does before anything else. It leaves `protect` without effect; hence not the default.
    """
    f0 = _checked(f0)
    voiced = np.flatnonzero(f0)
    if len(voiced) == 0:
        return f0.copy()
    return np.interp(np.arange(len(f0)), voiced, f0[voiced]).astype(f0.dtype)


def shift_key(f0: np.ndarray, semitones: float) -> np.ndarray:
    """f0 [T] · 2^(semitones / 12); fractions allowed; unvoiced stays 0. Raises PitchError for a key beyond ±120."""
    if not np.isfinite(semitones) or abs(semitones) > 120:
        raise PitchError(f"key={semitones!r} semitones is outside -120 to 120", "Choose a key within ±48 semitones.")
    f0 = _checked(f0)
    return f0 * f0.dtype.type(2.0 ** (semitones / 12))


def _checked(f0: np.ndarray) -> np.ndarray:
    """f0 as a floating array; PitchError when a value is not a frequency."""
    f0 = np.asarray(f0)
    if not np.issubdtype(f0.dtype, np.floating):
        f0 = f0.astype(np.float64)
    if not np.isfinite(f0).all() or (f0 < 0).any():
        frame = int(np.flatnonzero(~np.isfinite(f0) | (f0 < 0))[0])
        raise PitchError(
            f"f0 at frame {frame} is {f0.reshape(-1)[frame]}, not a frequency of 0 Hz or more",
            "Use 0 for unvoiced frames.",
        )
    return f0
