"""rvc-spark watermark verify: is there a mark in these files?"""

from __future__ import annotations

import argparse
import sys
from typing import Any

from rich.markup import escape

from rvc_spark.cli_output import errors, say
from rvc_spark.errors import AudioError

STANDARD = "-"
NOT_PRESENT = 1  # exit code, as grep has it


def add_watermark_commands(commands: Any) -> None:
    """`watermark verify` under the subcommands of the command line."""
    parser = commands.add_parser("watermark", help="is a sound marked as made by a program?")
    verbs = parser.add_subparsers(dest="verb", required=True, metavar="VERB")
    verify = verbs.add_parser(
        "verify",
        help="look for the mark; exit code 0: all files have it, 1: one has not",
        description="Look for the watermark perth. Exit code 0: every file has it; 1: one has not; others: see errors.",
    )
    verify.add_argument("files", nargs="+", metavar="FILE", help="a sound or video, or - for standard input")
    verify.add_argument("--json", action="store_true", help="print one JSON object per file and nothing else")
    verify.set_defaults(run=command_verify)


def command_verify(arguments: argparse.Namespace) -> int:
    """The verdict on each file. One that cannot be read is reported, and the others are still judged."""
    from rvc_spark.watermark import verify_watermark

    code = 0
    for name in arguments.files:
        try:
            report = verify_watermark(sys.stdin.buffer if name == STANDARD else name)
        except AudioError as error:
            code = max(code, error.exit_code)
            if arguments.json:
                say({"file": name, "error": str(error), "kind": type(error).__name__}, True, [])
            errors.print(f"[red]{escape(name)}[/]: {escape(str(error))}", soft_wrap=True)
            continue
        code = max(code, 0 if report.present else NOT_PRESENT)
        say({"file": name, **report.report()}, arguments.json, [f"{name}: {report}"])
    return code
