"""Memory that is free but still held.

Converting a sentence allocates and frees hundreds of megabytes, in pieces of every size and in several threads. glibc
keeps what was freed for later, in an arena per thread, and later pieces rarely fit the holes: the process grows by
about 15 MB a minute of speech although nothing is kept. Asked to, glibc gives every free page back.
"""

from __future__ import annotations

import ctypes


def give_back_free_pages() -> bool:
    """Hand the allocator's free pages to the operating system, in some ten milliseconds; False where nobody can.

    Other threads may go on allocating. Source: malloc_trim(3), glibc only.
    """
    try:
        return bool(ctypes.CDLL(None).malloc_trim(0))
    except (AttributeError, OSError, TypeError):  # another C library; TypeError: Windows has no "this process" library
        return False
