"""Check this machine, dtype or torch version against recordings of the reference implementation.

    python tools/conformance.py DIR                      every group
    python tools/conformance.py DIR --only voices --json

DIR is laid out like the golden vectors of voice conversion (index.json with cases, arrays and files, recipes.json and
the files they name) or like those of Spark-TTS (meta.json with fixtures and an array file for each). One line per
group: cases, comparisons, failures, and the comparison nearest to its limit. The exit code is 0 when all
hold and 1 otherwise. A case that cannot be run, and an array that nothing compared, are failures. The tolerances are
those of float32; in half precision networks are held to a ratio of signal to error of 30 dB instead. Spark-TTS is
checked in float32 only: in half precision the codec chooses other ids, and nothing recorded says how many may differ.
"""

from __future__ import annotations

import argparse
import json
import math
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from conformance_checks.folder import GoldenFolder
from conformance_checks.groups import FILES, GROUPS, run_groups
from conformance_checks.record import Check, Group
from conformance_checks.run import Run
from conformance_checks.spark_folder import META, SparkFolder, SparkRun
from conformance_checks.spark_groups import SPARK_FILES, SPARK_GROUPS, run_spark_groups

DTYPES = {"float32": torch.float32, "float64": torch.float64, "float16": torch.float16, "bfloat16": torch.bfloat16}
FAILURES_SHOWN = 10  # per group, unless --verbose


def parse(arguments: list[str] | None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, help="folder with index.json or meta.json")
    parser.add_argument(
        "--only", action="append", choices=[*GROUPS, *SPARK_GROUPS], default=[], help="one group; may be repeated"
    )
    parser.add_argument("--device", default="cpu", help="where the networks run, such as cpu or cuda (default: cpu)")
    parser.add_argument("--dtype", default="float32", choices=sorted(DTYPES), help="of the networks (default: float32)")
    parser.add_argument("--threads", type=int, default=1, help="of torch on the CPU (default: 1, as recorded)")
    parser.add_argument("--tf32", action="store_true", help="let CUDA round float32 products to TF32, as torch does")
    parser.add_argument("--json", action="store_true", help="print one JSON document instead of lines")
    parser.add_argument("--verbose", action="store_true", help="every quantity and every failure")
    return parser.parse_args(arguments)


def main(arguments: list[str] | None = None) -> int:
    """Run the checks; returns the exit code."""
    options = parse(arguments)
    spark = (options.folder / META).is_file()
    if not spark and not (options.folder / "index.json").is_file():
        sys.stderr.write(f"{options.folder} has no index.json and no {META}. Give a folder of golden vectors.\n")
        return 2
    if spark and options.dtype != "float32":
        sys.stderr.write("Spark-TTS is checked in float32 only. Leave --dtype away.\n")
        return 2
    torch.set_num_threads(max(1, options.threads))
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = options.tf32
    groups = []
    with tempfile.TemporaryDirectory(prefix="conformance-") as scratch:
        for group in run_all(options, Path(scratch), spark):
            groups.append(group)
            if not options.json:
                show(group, options.verbose)
    failures = sum(len(group.failures) for group in groups)
    if not any(group.cases for group in groups):
        sys.stderr.write("No case of these groups is in the folder, so nothing was checked.\n")
        return 1
    if options.json:
        json.dump(report(groups, options), sys.stdout, indent=1)
        sys.stdout.write("\n")
    else:
        cases = sum(group.cases for group in groups if group.name not in (FILES, SPARK_FILES))
        sys.stdout.write(f"{cases} cases on {options.device} in {options.dtype}, torch {torch.__version__}: ")
        sys.stdout.write(f"{failures} failures\n" if failures else "all within their limits\n")
    return 1 if failures else 0


def run_all(options: argparse.Namespace, scratch: Path, spark: bool) -> Iterator[Group]:
    """The groups of whichever layout the folder has."""
    only = tuple(options.only)
    if spark:
        return run_spark_groups(SparkRun(SparkFolder(options.folder), scratch, options.device), only)
    return run_groups(Run(GoldenFolder(options.folder), scratch, options.device, DTYPES[options.dtype]), only)


def show(group: Group, verbose: bool) -> None:
    """The line of a group, then its failures."""
    worst = ""
    if group.worst is not None:
        worst = f"{told(group.worst)}  {group.worst.case} {group.worst.quantity}"
    counts = f"{group.cases:>4} cases{len(group.checks):>6} checks{len(group.failures):>5} failures"
    sys.stdout.write(f"{group.name:<15}{counts}  {worst}\n")
    if verbose:
        for check in group.checks:
            sys.stdout.write(f"    {told(check):<32}  {check.case} {check.quantity}\n")
    hidden = 0 if verbose else max(0, len(group.failures) - FAILURES_SHOWN)
    for check in group.failures[: len(group.failures) - hidden]:
        sys.stdout.write(f"    FAILED {check.case} {check.quantity}: {check.reason}\n")
    if hidden:
        sys.stdout.write(f"    and {hidden} more (--verbose shows all)\n")
    sys.stdout.flush()


def told(check: Check) -> str:
    """Error and limit of one comparison in words."""
    if math.isnan(check.error):
        return "failed" if check.reason else "holds"
    limit = f"{check.limit.absolute:g}"
    if check.limit.relative:
        limit += f" + {check.limit.relative:g}|x|"
    if check.limit.share:
        limit += f" for {1 - check.limit.share:.0%}"
    return f"worst {check.error:.2e} of {limit}"


def report(groups: list[Group], options: argparse.Namespace) -> dict[str, Any]:
    """Everything as one document. Numbers that do not exist are null."""
    return {
        "folder": str(options.folder),
        "device": options.device,
        "dtype": options.dtype,
        "torch": torch.__version__,
        "ok": not any(group.failures for group in groups),
        "groups": [
            {
                "name": group.name,
                "cases": group.cases,
                "checks": len(group.checks),
                "worst": as_json(group.worst) if group.worst else None,
                "failures": [as_json(check) for check in group.failures],
                "measured": [as_json(check) for check in group.checks if not math.isnan(check.error)],
            }
            for group in groups
        ],
    }


def as_json(check: Check) -> dict[str, Any]:
    """One comparison."""
    return {
        "case": check.case,
        "quantity": check.quantity,
        "error": None if math.isnan(check.error) else check.error,
        "tolerance": {key: value for key, value in vars(check.limit).items() if value},
        "share_of_tolerance": check.load if math.isfinite(check.load) else None,
        "reason": check.reason,
    }


if __name__ == "__main__":
    sys.exit(main())
