"""scipy's recursive filter without importing scipy.signal, which takes as long as torch and needs nothing of it here.

Only the compiled part that filters is loaded. Should a scipy ever have none of that name, its front door is used: the
same numbers, later. Refuses to know coefficients.
"""

from __future__ import annotations

import importlib.machinery
import importlib.util
from collections.abc import Callable
from functools import cache

import numpy as np

from rvc_spark.installed_packages import package_folder

Filter = Callable[[np.ndarray, np.ndarray, np.ndarray, int, np.ndarray], tuple[np.ndarray, np.ndarray]]


def linear_filter(b: np.ndarray, a: np.ndarray, samples: np.ndarray, state: np.ndarray) -> np.ndarray:
    """Samples float64 [N] through b / a from a state: `scipy.signal.lfilter(b, a, samples, zi=state)[0]`."""
    return _filter()(b, a, samples, -1, state)[0]


@cache
def _filter() -> Filter:
    folder = package_folder("scipy")
    for suffix in importlib.machinery.EXTENSION_SUFFIXES if folder is not None else ():
        path = folder / "signal" / f"_sigtools{suffix}"
        if path.is_file():
            spec = importlib.util.spec_from_file_location("rvc_spark.infer._sigtools", path)
            module = importlib.util.module_from_spec(spec)
            spec.loader.exec_module(module)
            if hasattr(module, "_linear_filter"):
                return module._linear_filter
    from scipy import signal

    return lambda b, a, samples, axis, state: signal.lfilter(b, a, samples, axis, state)
