"""Freed memory that stays with the process. Linux with glibc only; elsewhere nothing is done, and nothing said.

By default glibc hands large blocks back at once, and the next batch fetches fresh pages: those were filled at 3 GiB/s,
pages that had stayed at 20 (2 cores; 10 to 25% of a training step). Source: man 3 mallopt.
"""

import ctypes
import platform

TRIM_THRESHOLD, TOP_PAD, MMAP_THRESHOLD = -1, -2, -3  # malloc.h
NEVER = -1  # as an unsigned number the largest there is
LARGEST = 2**25  # bytes; glibc before 2.35 takes no larger threshold
KEEP = {MMAP_THRESHOLD: 2**31 - 1, TRIM_THRESHOLD: NEVER, TOP_PAD: 2**28}
# Where glibc's own thresholds are after some batches: they follow what is freed, up to these.
RETURN = {MMAP_THRESHOLD: LARGEST, TRIM_THRESHOLD: 2 * LARGEST, TOP_PAD: 2**17}


def can_keep_freed_memory() -> bool:
    return platform.system() == "Linux" and platform.libc_ver()[0] == "glibc"


def keep_freed_memory(wish: bool) -> None:
    """Of the whole process, from now on."""
    if can_keep_freed_memory():
        library = ctypes.CDLL(None)
        for option, value in (KEEP if wish else RETURN).items():
            if not library.mallopt(option, value):
                library.mallopt(option, LARGEST)
        if not wish:
            library.malloc_trim(0)  # what was kept so far, too
