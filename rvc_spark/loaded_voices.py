"""What was read from files and may be wanted again: the voices and indexes used last, up to so many bytes.

A file that has changed since is another file. What is in use stays alive with whoever uses it; here it only counts
towards the limit, and the one that was used longest ago makes room. Refuses to know what is kept.
"""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Callable, Hashable
from pathlib import Path
from typing import Any, TypeVar

Kept = TypeVar("Kept")
Key = tuple[str, int, int, int, Hashable]


class LoadedVoices:
    """A memory for things made from files. Safe in threads; two threads that want the same thing may both make it."""

    def __init__(self, limit: int) -> None:
        """limit: bytes; 0 keeps nothing."""
        self.limit = limit
        self._kept: OrderedDict[Key, tuple[Any, int]] = OrderedDict()
        self._lock = threading.Lock()

    def get(self, path: Path, variant: Hashable, make: Callable[[], Kept], size_of: Callable[[Kept], int]) -> Kept:
        """What `make` made of this very file before, or makes now.

        Args:
            variant: what else it depends on, such as device and precision.
            size_of: its bytes.

        Raises what `make` raises.
        """
        key = _key(path, variant)
        with self._lock:
            if key in self._kept:
                self._kept.move_to_end(key)
                return self._kept[key][0]
        made = make()
        if key is not None and _key(path, variant) == key:  # it was not replaced while it was read
            self._keep(key, made, size_of(made))
        return made

    def _keep(self, key: Key, made: Any, size: int) -> None:
        with self._lock:
            for other in [other for other in self._kept if other[0] == key[0] and other[4] == key[4]]:
                del self._kept[other]  # an earlier state of the same file
            self._kept[key] = (made, size)
            while self._kept and sum(size for _, size in self._kept.values()) > self.limit:
                self._kept.popitem(last=False)

    @property
    def bytes(self) -> int:
        """What is kept, in bytes."""
        with self._lock:
            return sum(size for _, size in self._kept.values())

    def __len__(self) -> int:
        return len(self._kept)

    def clear(self) -> None:
        """Forget everything."""
        with self._lock:
            self._kept.clear()


def _key(path: Path, variant: Hashable) -> Key | None:
    """A file in its present state; None for what is no file, which is never kept."""
    try:
        place = path.resolve()
        status = place.stat()
    except (OSError, ValueError, RuntimeError):  # RuntimeError: links in a circle
        return None
    return str(place), status.st_mtime_ns, status.st_size, status.st_ino, variant
