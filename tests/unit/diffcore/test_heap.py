import subprocess
import sys

import pytest

PROGRAM = """
import resource
from diffcore import heap

{call}
def faults():
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    bytearray(64 << 20)
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before

faults(); faults()
print(faults())
"""


def pages_touched_anew(call: str, **environment: str) -> int:
    """Of a buffer of 64 MiB that was freed and is asked for again."""
    # calloc clears what malloc kept, and touches no fresh page then.
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM.format(call=call)],
        env={"PATH": "", "PYTHONPATH": ":".join(p for p in sys.path if p), **environment},
        capture_output=True, text=True, timeout=60, check=True,
    )  # fmt: skip
    return int(done.stdout)


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="glibc's malloc")
def test_freed_memory_is_used_again():
    assert pages_touched_anew("heap.keep_freed()") < 100
    assert pages_touched_anew("") > 100


def test_what_the_environment_says_stays():
    assert pages_touched_anew("heap.keep_freed()", GLIBC_TUNABLES="glibc.malloc.perturb=0") > 100
