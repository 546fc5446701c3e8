"""A small table for a cell: words, numbers and players side by side, readable on light and on dark pages.

It knows nothing of what it shows. Everything that is not a player is text, never markup.
"""

from __future__ import annotations

import html
from dataclasses import dataclass

from rvc_spark.widgets.sound import SoundPlayer

Cell = str | SoundPlayer
_LINE = "border-bottom:1px solid rgba(128,128,128,0.35)"
_CELL = f"text-align:left;vertical-align:middle;padding:0.35em 0.8em;{_LINE}"


@dataclass(frozen=True)
class Table:
    """Rows under their headings, with a caption below; the row `marked` is tinted. The last line of a cell shows it."""

    head: tuple[str, ...]
    rows: tuple[tuple[Cell, ...], ...]
    caption: str = ""
    marked: int | None = None

    def _repr_html_(self) -> str:
        head = "".join(f'<th scope="col" style="{_CELL};opacity:0.75">{html.escape(name)}</th>' for name in self.head)
        rows = "".join(self._row(row, number == self.marked) for number, row in enumerate(self.rows))
        told = f'<p style="font:0.95em sans-serif;margin:0.5em 0.8em">{html.escape(self.caption)}</p>'
        return (
            '<table style="border-collapse:collapse;font:0.9em sans-serif;background:none;margin:0.3em 0">'
            f'<thead><tr style="background:none">{head}</tr></thead><tbody>{rows}</tbody></table>'
            f"{told if self.caption else ''}"
        )

    def _row(self, row: tuple[Cell, ...], marked: bool) -> str:
        ground = "rgba(0,114,178,0.15)" if marked else "none"
        first, *others = row
        cells = [f'<th scope="row" style="{_CELL};white-space:nowrap">{_shown(first)}</th>']
        cells += [f'<td style="{_CELL};max-width:34em;white-space:normal">{_shown(cell)}</td>' for cell in others]
        return f'<tr style="background:{ground}">{"".join(cells)}</tr>'

    def __repr__(self) -> str:
        lines = [" | ".join(str(cell) for cell in row) for row in (self.head, *self.rows)]
        return "\n".join([*lines, self.caption] if self.caption else lines)


def _shown(cell: Cell) -> str:
    if isinstance(cell, SoundPlayer):
        return f'<div style="min-width:22em">{cell._repr_html_()}</div>'
    return html.escape(cell)
