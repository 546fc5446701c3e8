"""What the command line prints and where: results to standard output, progress and errors to standard error."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table

PIPE_WIDTH = 160  # columns, where the output is no terminal and nobody's window limits it

errors = Console(stderr=True, highlight=False)
screen = Console(highlight=False, width=None if sys.stdout.isatty() else PIPE_WIDTH)


def listing(keys: Sequence[str], details: Sequence[str]) -> Table:
    """A table whose key columns are never cut, because they are what one types; the details share what is left."""
    table = Table(box=None, pad_edge=False, header_style="bold")
    for name in keys:
        table.add_column(name, no_wrap=True, overflow="ignore")
    for name in details:
        table.add_column(name, overflow="fold")
    return table


def say(report: dict[str, Any], as_json: bool, lines: Sequence[str]) -> None:
    """Print a result: one JSON line for machines, or the lines for people."""
    if as_json:
        sys.stdout.write(json.dumps(report, ensure_ascii=False) + "\n")
        sys.stdout.flush()
    else:
        for line in lines:
            screen.print(escape(line), soft_wrap=True)


@contextmanager
def progress_bar(quiet: bool) -> Iterator[Callable[[Any], None] | None]:
    """A bar on standard error fed by Progress values; none for machines and pipes."""
    if quiet or not errors.is_terminal:
        yield None
        return
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        TextColumn("{task.percentage:3.0f}%"),
        TimeElapsedColumn(),
    )
    with Progress(*columns, console=errors, transient=True) as bar:
        task = bar.add_task("", total=1.0)
        yield lambda step: bar.update(task, completed=step.fraction, description=step.message)
