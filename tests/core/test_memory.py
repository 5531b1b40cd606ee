"""Freed memory stays with the process."""

import platform
import subprocess
import sys

import pytest

SCRIPT = """
import resource, sys, torch
from agents.core.memory import keep_freed
if sys.argv[1] == "keep":
    assert keep_freed()
def spend():
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    for _ in range(5):
        blocks = [torch.ones(2**20) for _ in range(20)]  # 4 MiB each
        del blocks
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before
spend()
print(spend())
"""


def faults(how: str) -> int:
    done = subprocess.run([sys.executable, "-c", SCRIPT, how], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return int(done.stdout)


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="malloc's settings are of glibc")
def test_memory_that_was_freed_is_not_asked_for_again() -> None:
    pages = 5 * 20 * 2**22 // 4096
    assert faults("leave") > pages / 10
    assert faults("keep") < pages / 100
