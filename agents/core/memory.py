"""The C library's memory: what tensors free is kept for the next ones."""

from __future__ import annotations

import ctypes
import platform

M_TOP_PAD, M_MMAP_THRESHOLD = -2, -3  # of mallopt(3)
KEPT = 2**30
"""Bytes that stay with the process when all above them is free."""
LARGEST = 2**25
"""Blocks below this come from that memory; larger ones do where there is room. glibc's maximum."""


def keep_freed() -> bool:
    """Let glibc's malloc keep up to 1 GiB of what was freed; whether it does.

    By default it hands large blocks back at once, and each update of a network gets its activations
    page by page from the kernel again: 7 % of an update of InfoPower, 20 % with a decoder. What a
    process takes at most stays as it is. Other C libraries, and allocators that are loaded instead
    (jemalloc, tcmalloc), are left alone.
    """
    if platform.libc_ver()[0] != "glibc":
        return False
    libc = ctypes.CDLL(None)
    return bool(libc.mallopt(M_MMAP_THRESHOLD, LARGEST) and libc.mallopt(M_TOP_PAD, KEPT))
