"""Where installed packages lie, found without running any of them. What is in them, others know."""

from __future__ import annotations

import importlib.util
from pathlib import Path


def is_installed(package: str) -> bool:
    """Whether a package could be imported; nothing of it runs."""
    return importlib.util.find_spec(package) is not None


def package_folder(package: str) -> Path | None:
    """The folder of an installed package, found without importing it; None when it is not installed."""
    spec = importlib.util.find_spec(package)
    locations = spec.submodule_search_locations if spec else None
    return Path(locations[0]) if locations else None
