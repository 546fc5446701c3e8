"""One line of a cell that changes in place: how far something is, in words and as a bar.

    boot_triton(config, on_progress=ProgressLine())

It is an output that is replaced, not a widget: so it is shown wherever outputs are, and the last state stays with the
notebook. Call it from the kernel's main thread, like everything that displays.
"""

from __future__ import annotations

import html
from dataclasses import dataclass
from typing import Protocol

from IPython.display import display


class Step(Protocol):
    """What the verbs report: a fraction 0..1 and a few words."""

    @property
    def fraction(self) -> float: ...

    @property
    def message(self) -> str: ...


@dataclass(frozen=True)
class _Line:
    words: str
    fraction: float | None

    def _repr_html_(self) -> str:
        bar = ""
        if self.fraction is not None:
            bar = f'<progress max="1" value="{self.fraction:.3f}" style="width:12em;margin-right:0.8em"></progress>'
        return f'<div role="status" style="font:0.9em sans-serif">{bar}{html.escape(self.words)}</div>'

    def __repr__(self) -> str:
        return self.words if self.fraction is None else f"{100 * self.fraction:3.0f} % {self.words}"


class ProgressLine:
    """Takes the steps of a verb's `on_progress`. Nothing is shown before the first one."""

    def __init__(self) -> None:
        self._handle = None

    def __call__(self, step: Step) -> None:
        """Show a step instead of the one before."""
        self._show(_Line(step.message, min(1.0, max(0.0, float(step.fraction)))))

    def say(self, words: str) -> None:
        """Show words without a bar, where nobody knows how much there will be."""
        self._show(_Line(words, None))

    def _show(self, line: _Line) -> None:
        if self._handle is None:
            self._handle = display(line, display_id=True)
        else:
            self._handle.update(line)
