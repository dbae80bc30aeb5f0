"""What the workflows ask of the machine."""

import platform

import pytest
from conftest import BUNDLE, run_process

FAULTS = """
import resource
import sys

import torch
from scripts.environment import keep_freed_memory

if sys.argv[1] == "keep":
    keep_freed_memory()
torch.zeros(2**24)
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
for _ in range(20):
    torch.zeros(2**24)
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


def count_page_faults(mode: str) -> int:
    """Pages that the kernel has to provide for the same 64 MiB again and again, in a fresh process."""
    return int(run_process("python", "-c", FAULTS, mode, folder=BUNDLE).stdout)


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="only glibc is told")
def test_keep_freed_memory():
    """Memory that a tensor freed serves the next one."""
    kept, left = count_page_faults("keep"), count_page_faults("leave")
    assert kept < 0.2 * left
    assert left > 10 * 2**24 * 4 / 4096  # else there is nothing to gain, and the function can go
