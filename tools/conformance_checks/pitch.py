"""The f0 trackers on short signals: f0 and pitch code at each tracker's own length, gaps as they are and filled."""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from conformance_checks.folder import Arrays, case_file
from conformance_checks.limits import EXACT, EXACT_F0, NEURAL_COARSE, NEURAL_F0, REALTIME_F0, Limit
from conformance_checks.record import Recorder
from conformance_checks.run import Run
from rvc_spark.infer.crepe import Crepe, load_crepe
from rvc_spark.infer.fcpe import load_fcpe
from rvc_spark.infer.pitch import coarse_pitch, fill_unvoiced, load_tracker
from rvc_spark.infer.pitch_trackers import HOP, dio_f0, dio_training_f0, harvest_f0, pm_f0, pm_realtime_f0

HARVEST = re.compile(r"harvest_r(\d+)")
CREPE = re.compile(r"crepe_(full|tiny)(?:_seed(\d+))?")
NEURAL = ("crepe", "fcpe")
FILLED = ("pm", "pm_realtime", "fcpe")  # recorded after gap filling; the same without it carries the suffix _nofill
SINGLE_PRECISION = ("pm_realtime",)  # handed on as float32, which the pitch code then sees
TRACKER_OF = {  # the public name of a tracker -> the recorded contour it must give, cut to N // 160 frames
    "pm": "pm.f0_nofill",
    "fcpe": "fcpe.f0_nofill",
    "dio": "dio_raw.f0",
    "harvest": "harvest_r3.f0",
    "crepe-tiny": "crepe_tiny.f0",  # the full network takes the same way and thirty times as long
}


class RememberingCrepe(Crepe):
    """CREPE that runs its network once for one sound: contours with and without dither share the salience."""

    def salience(self, samples: np.ndarray) -> np.ndarray:
        """As Crepe.salience; always of the first sound it heard."""
        if not hasattr(self, "_heard"):
            self._heard = super().salience(samples)
        return self._heard


@dataclass
class Signal:
    """One signal and what the trackers made of it, each computed once."""

    samples: np.ndarray
    device: str
    _tracked: dict[str, np.ndarray] = field(default_factory=dict)
    _crepes: dict[str, Crepe] = field(default_factory=dict)

    def track(self, name: str) -> np.ndarray | None:
        """Raw f0 in Hz of the tracker called `name` in the set; None if the name means nothing here."""
        if name not in self._tracked:
            f0 = self._run(name)
            if f0 is None:
                return None
            self._tracked[name] = np.asarray(f0)
        return self._tracked[name]

    def _run(self, name: str) -> np.ndarray | None:
        plain = {"pm": pm_f0, "pm_realtime": pm_realtime_f0, "dio_raw": dio_f0, "dio": dio_training_f0}
        if name in plain:
            return plain[name](self.samples)
        if name == "fcpe":
            return load_fcpe(self.device).f0(self.samples)
        if match := HARVEST.fullmatch(name):
            return harvest_f0(self.samples, int(match[1]))
        if match := CREPE.fullmatch(name):
            dither = np.random.RandomState(int(match[2])) if match[2] else None
            return self._crepe(match[1]).f0(self.samples, dither)
        return None

    def _crepe(self, capacity: str) -> Crepe:
        if capacity not in self._crepes:
            self._crepes[capacity] = RememberingCrepe(load_crepe(capacity, self.device).network, self.device)
        return self._crepes[capacity]


def limits_of(name: str) -> tuple[Limit, Limit]:
    """Limits for (f0, pitch code)."""
    if name.startswith(NEURAL):
        return NEURAL_F0, NEURAL_COARSE
    return (REALTIME_F0 if name in SINGLE_PRECISION else EXACT_F0), EXACT


def check_case(case: dict[str, Any], run: Run, record: Recorder) -> None:
    """Every contour of one signal, then the same through the public `load_tracker`."""
    arrays, prefix = run.folder.arrays(case_file(case, ".npz")), case["prefix"]
    samples = arrays.given(prefix + "in.audio").astype(np.float64)
    record.same("samples", len(samples), case["samples"])
    record.same("p_len", len(samples) // HOP, case["p_len"])
    signal = Signal(samples, run.device)
    for key in arrays.keys(prefix):
        name, _, what = key.removeprefix(prefix).partition(".")
        f0 = None if name == "in" else signal.track(name)
        if f0 is None:
            continue
        check_contour(arrays, key, (name, what), f0, record)
    check_public_trackers(arrays, prefix, signal, record)


def check_contour(arrays: Arrays, key: str, parts: tuple[str, str], f0: np.ndarray, record: Recorder) -> None:
    """One recorded array: `what` is f0 or coarse, with _nofill where the gaps were kept."""
    name, what = parts
    if name in FILLED and not what.endswith("_nofill"):
        f0 = fill_unvoiced(f0)
    if name in SINGLE_PRECISION:
        f0 = f0.astype(np.float32)
    f0_limit, coarse_limit = limits_of(name)
    if what.startswith("f0"):
        record.against(arrays, key, f0, f0_limit)
    elif what.startswith("coarse"):
        record.against(arrays, key, coarse_pitch(f0), coarse_limit)


def check_public_trackers(arrays: Arrays, prefix: str, signal: Signal, record: Recorder) -> None:
    """`load_tracker` promises N // 160 frames, gaps kept."""
    frames = len(signal.samples) // HOP
    for method, key in TRACKER_OF.items():
        if prefix + key not in arrays:
            continue
        f0 = load_tracker(method, device=signal.device).track(signal.samples)
        limit = limits_of(key)[0]
        record.compare(f"{prefix}load_tracker({method})", f0, arrays.expected(prefix + key)[:frames], limit)
