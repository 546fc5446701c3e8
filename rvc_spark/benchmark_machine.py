"""On what a measurement was made: processor, cores, versions, load; and how much memory a process has needed.

Figures without these are of no use to the next reader.
"""

from __future__ import annotations

import os
import platform
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

PACKAGES = ("rvc-spark", "torch", "numpy", "scipy", "praat-parselmouth", "onnxruntime")
STATUS, PROCESSORS = Path("/proc/self/status"), Path("/proc/cpuinfo")


def machine(threads: int) -> dict[str, Any]:
    """What is known of this machine, ready for JSON."""
    return {
        "processor": processor(), "cores": os.cpu_count(), "threads": threads, "platform": platform.platform(),
        "python": platform.python_version(), "packages": packages(), "load": load_average(), "gpu": gpu_name(),
    }  # fmt: skip


def processor() -> str:
    """The name of the processor."""
    if PROCESSORS.is_file():
        for line in PROCESSORS.read_text(encoding="utf-8", errors="replace").splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()


def packages() -> dict[str, str]:
    """Versions of what the figures depend on; what is not installed is left out."""
    found = {}
    for name in PACKAGES:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue
    return found


def load_average() -> float | None:
    """Processes that wanted to run in the last minute; above the number of cores, figures are of others' work too."""
    return round(os.getloadavg()[0], 2) if hasattr(os, "getloadavg") else None


def gpu_name() -> str | None:
    """The first CUDA device."""
    import torch

    return torch.cuda.get_device_name(0) if torch.cuda.is_available() else None


def peak_bytes() -> int | None:
    """The most memory this process has held so far; None where the system does not tell."""
    if STATUS.is_file():  # not getrusage: there a child begins with its parent's peak
        for line in STATUS.read_text(encoding="ascii", errors="replace").splitlines():
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) * 1024
    try:
        import resource
    except ImportError:  # Windows
        return None
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if platform.system() == "Darwin" else peak * 1024
