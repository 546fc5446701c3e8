"""A model process whose Python stands still ends; one that is only busy does not."""

from __future__ import annotations

import subprocess
import sys

PROGRAM = """
import ctypes, sys, time
from rvc_spark.tts.triton_service_frozen import FrozenWatch

watch = FrozenWatch(seconds=1.0)
watch.start()
{work}
watch.close()
time.sleep({after})
print("lived", round(sys.getswitchinterval(), 6))
"""


def run(work: str, after: float = 0.0) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-c", PROGRAM.format(work=work, after=after)]
    return subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)


def test_a_frozen_process_ends_and_says_where_it_stood():
    done = run("ctypes.PyDLL(None).sleep(50)  # keeps the interpreter")
    assert done.returncode == 1 and done.stdout == ""
    assert "Timeout" in done.stderr and 'File "<string>"' in done.stderr


def test_a_busy_process_and_one_that_is_no_longer_watched_go_on():
    done = run("end = time.monotonic() + 3.0\nwhile time.monotonic() < end: sum(range(1000))", after=1.5)
    assert done.returncode == 0, done.stderr
    assert done.stdout == "lived 0.0002\n"
