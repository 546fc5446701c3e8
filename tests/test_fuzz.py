"""The fuzzer: it finds nothing in the parsers for a few seconds, and it would notice each kind of failure."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

TOOLS = Path(__file__).parents[1] / "tools"


# In a process of its own, as the worker is: here, what other tests left could be freed while memory is measured.
EACH_OUTCOME = """
import json, sys, time
from pathlib import Path
import numpy as np
import fuzz_worker
from rvc_spark.errors import IndexFileError

def refuse(path):
    raise IndexFileError("no index", "Give one.")

def escape(path):
    raise ValueError("escaped")

def fill(path):
    np.ones(60_000_000, np.uint8).sum()

def spin(path):
    stop = time.process_time() + 0.2
    while time.process_time() < stop:
        pass

memory = fuzz_worker.HighWater()
print(json.dumps({job.__name__: fuzz_worker.report(job, Path("x"), memory) for job in (refuse, escape, fill, spin)}))
"""


@pytest.mark.parametrize("target", ["checkpoint", "index", "fairseq"])
def test_a_short_run_finds_nothing(target, tmp_path):
    command = [sys.executable, str(TOOLS / "fuzz.py"), target, "--inputs", "40", "--keep", str(tmp_path / "found")]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    assert f"{target}: 40 inputs" in done.stdout and "0 failures" in done.stdout
    assert not (tmp_path / "found").exists()


def test_each_kind_of_outcome_is_told():
    command = [sys.executable, "-c", EACH_OUTCOME]
    done = subprocess.run(command, cwd=TOOLS, capture_output=True, text=True, timeout=120, check=True)
    outcomes = json.loads(done.stdout)
    assert outcomes["refuse"]["outcome"] == "refused" and outcomes["refuse"]["memory"] < 20_000_000
    assert outcomes["escape"]["outcome"] == "escaped" and "ValueError: escaped" in outcomes["escape"]["detail"]
    assert outcomes["fill"]["outcome"] == "read" and outcomes["fill"]["memory"] > 50_000_000
    assert outcomes["spin"]["seconds"] >= 0.2


def test_a_failing_reader_is_reported_with_its_input(tmp_path):
    """A reader that leaves folders behind, dies, and lets an error out, in place of the real worker."""
    for name in ("fuzz.py", "fuzz_mutations.py"):
        (tmp_path / name).write_bytes((TOOLS / name).read_bytes())
    (tmp_path / "fuzz_worker.py").write_text(
        "import os, sys\n"
        "print('ready', flush=True)\n"
        "for number, line in enumerate(sys.stdin):\n"
        "    if number == 1: os.mkdir('canary')\n"
        "    if number == 3: os._exit(9)\n"
        "    out = 'escaped' if number == 2 else 'read'\n"
        "    print('{\"outcome\": \"%s\", \"detail\": \"\", \"seconds\": 0, \"memory\": 0}' % out, flush=True)\n",
        encoding="utf-8",
    )
    (tmp_path / "seeds").mkdir()
    (tmp_path / "seeds" / "a.index").write_bytes(bytes(range(100)))
    command = [sys.executable, "fuzz.py", "index", "--seeds", "seeds", "--inputs", "4", "--keep", "found"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 1 and "4 inputs, 1 read, 0 refused, 3 failures" in done.stdout
    reasons = [path.read_text() for path in sorted((tmp_path / "found").glob("*.txt"))]
    assert [reason.split()[0] for reason in reasons] == ["left", "escaped:", "died:"]
    assert len(list((tmp_path / "found").glob("*.bin"))) == 3
