"""The regression check: two reports of `benchmark.py convert -o FILE.json`; ends with 1 if anything got worse.

    python tools/benchmark.py compare OLD.json NEW.json [--threshold 0.1]
"""

from __future__ import annotations

import sys

from rvc_spark.cli import main as command_line


def main(arguments: list[str] | None = None) -> int:
    """Compare and print."""
    return command_line(["benchmark", "--compare", *(sys.argv[1:] if arguments is None else arguments)])


if __name__ == "__main__":
    sys.exit(main())
