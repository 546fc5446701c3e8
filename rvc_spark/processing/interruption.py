"""Long calls into networks that end early when nobody wants their result any more.

The content encoder and a pitch tracker work on a whole sentence in one call, which takes seconds on a small machine.
Between the layers of every network PyTorch asks a hook; it ends the call of a thread whose work is not wanted.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from torch.nn.modules.module import register_module_forward_pre_hook

from rvc_spark.errors import StreamError

_here = threading.local()
_users = 0
_handle: Any = None
_lock = threading.Lock()


@contextmanager
def interruptible(wanted: Callable[[], bool]) -> Iterator[None]:
    """Networks called in this thread raise StreamError once the work is not `wanted`; other threads are let be."""
    _install(1)
    _here.wanted = wanted
    try:
        yield
    finally:
        _here.wanted = None
        _install(-1)


def _install(change: int) -> None:
    """The hook is only there while somebody needs it: it costs every network in the process a little."""
    global _users, _handle
    with _lock:
        _users += change
        if _users and _handle is None:
            _handle = register_module_forward_pre_hook(_look)
        elif not _users and _handle is not None:
            _handle.remove()
            _handle = None


def _look(module: Any, inputs: Any) -> None:
    wanted = getattr(_here, "wanted", None)
    if wanted is not None and not wanted():
        raise StreamError("the stream is closed", "Begin a new one.")
