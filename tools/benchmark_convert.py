"""Voice conversion at full size: what `rvc-spark benchmark` measures, from the checkout.

    python tools/benchmark.py convert [--seconds 3 60] [--f0-method pm rmvpe] [--against DIR] [-o FILE.json]
"""

from __future__ import annotations

import sys

from rvc_spark.cli import main as command_line


def main(arguments: list[str] | None = None) -> int:
    """Measure and print."""
    return command_line(["benchmark", *(sys.argv[1:] if arguments is None else arguments)])


if __name__ == "__main__":
    sys.exit(main())
