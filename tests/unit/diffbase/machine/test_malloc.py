import subprocess
import sys

import pytest

pytestmark = pytest.mark.skipif(not sys.platform.startswith("linux"), reason="glibc's malloc")

KEEP = "from diffbase.machine import malloc as heap; heap.keep_freed()\n"
FAULTS = """
import resource
def faults():
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    bytearray(64 << 20)  # clears what malloc kept, which touches no fresh page
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before

faults(); faults()
print(faults())
"""


def printed(program: str, **environment: str) -> int:
    """The number that a process of its own prints."""
    paths = ":".join(path for path in sys.path if path)
    command = [sys.executable, "-c", program]
    environment |= {"PATH": "", "PYTHONPATH": paths}
    return int(subprocess.run(command, env=environment, capture_output=True, timeout=60, check=True).stdout)


def test_freed_memory_is_used_again() -> None:
    assert printed(KEEP + FAULTS) < 10
    assert printed(FAULTS) > 20  # 32 where pages are huge


def test_what_the_environment_says_stays() -> None:
    assert printed(KEEP + FAULTS, GLIBC_TUNABLES="glibc.malloc.perturb=0") > 20


def test_limited_addresses_are_not_kept() -> None:
    limit = "import resource; resource.setrlimit(resource.RLIMIT_AS, (1 << 32, 1 << 32))\n"
    assert printed(limit + KEEP + FAULTS) > 20


def test_what_is_kept() -> None:
    freed = "a = bytearray(64 << 20); b = heap.kept(); del a; print(heap.kept() - b)"
    assert abs(printed(KEEP + freed) - (64 << 20)) < 1 << 20
