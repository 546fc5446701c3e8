"""The figures in the README, measured: one subject per call, everything side by side in one run.

    python tools/benchmark.py convert                    conversion at full size; the same as `rvc-spark benchmark`
    python tools/benchmark.py convert --against DIR      beside a checkout of the published RVC program, by turns
    python tools/benchmark.py compare OLD.json NEW.json  two reports of `convert`: ends with 1 if anything got worse
    python tools/benchmark.py spark                      a full-size checkpoint with random weights, made on the spot
    python tools/benchmark.py spark --checkpoint FOLDER  a real one
    python tools/benchmark.py stream                     text to converted sound: how soon, and whether it keeps up
    python tools/benchmark.py triton                     the client's own time per streamed chunk, a real server
    python tools/benchmark.py cover                      a song's cover from its stems, beside the conversion alone
    python tools/benchmark.py live                       streamed conversion against the whole: delay, speed, distance

Nothing here decides whether a test passes. Use an idle machine: with busy cores every figure is of the others' work.
"""

from __future__ import annotations

import argparse
import sys
from importlib import import_module

SUBJECTS = {
    name: f"benchmark_{name}" for name in ("convert", "compare", "cover", "spark", "stream", "triton", "live")
}


def main(arguments: list[str] | None = None) -> int:
    """Hand the rest of the command line to the subject."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("subject", choices=sorted(SUBJECTS))
    parser.add_argument("options", nargs=argparse.REMAINDER, help="see `benchmark.py SUBJECT --help`")
    chosen = parser.parse_args(arguments)
    return import_module(SUBJECTS[chosen.subject]).main(chosen.options)


if __name__ == "__main__":
    sys.exit(main())
