"""What the studio's columns are built of: cards, notes, rows, full-width controls, and the style sheet they share.

Colours are those of the page where it has JupyterLab's names for them (JupyterLab, Notebook, Voila), else plain greys
that can be read on light and on dark ground; nothing depends on which theme is on.
"""

from __future__ import annotations

import html
from typing import Any

import ipywidgets

from rvc_spark.widgets.controls import button, setting_range, setting_words, tooltip

LABEL = "7.4em"  # of the labels beside controls, so that they stand in one line
STYLE = """<style>
.rvc-studio{--rvc-line:var(--jp-border-color2,rgba(128,128,128,.35));--rvc-ink:var(--jp-ui-font-color1,inherit);
 --rvc-dim:var(--jp-ui-font-color2,rgba(128,128,128,1));--rvc-accent:var(--jp-brand-color1,#1976d2);
 --rvc-bad:var(--jp-error-color1,#d32f2f);--rvc-good:var(--jp-success-color1,#388e3c);
 --rvc-ground:var(--jp-layout-color1,transparent);--rvc-well:var(--jp-layout-color2,rgba(128,128,128,.1))}
.rvc-studio.widget-box,.rvc-studio .widget-box{overflow:visible}
.rvc-studio.widget-box{gap:10px;margin:2px}
.rvc-columns.widget-box{display:flex;flex-flow:row wrap;gap:10px;align-items:stretch;flex:1 1 auto}
.rvc-side.widget-box{display:flex;flex-flow:column;gap:10px;flex:1.25 1 520px;min-width:250px}
.rvc-side>.rvc-card.widget-box{flex:0 0 auto}
.rvc-card.widget-box{border:1px solid var(--rvc-line);border-radius:8px;padding:8px 12px 10px;
 background:var(--rvc-ground);flex:1 1 270px;min-width:250px;gap:3px}
.rvc-card.rvc-wide.widget-box{flex:1 1 400px}
.rvc-card .widget-inline-hbox,.rvc-card .widget-text,.rvc-card .widget-textarea,.rvc-card .widget-dropdown
 {width:auto;max-width:100%}
.rvc-row.widget-box{display:flex;flex-flow:row wrap;align-items:center;gap:4px}
.rvc-row .rvc-grow{flex:1 1 7em;min-width:5em}
.rvc-tight.widget-box{flex-wrap:nowrap}
.rvc-tight .widget-text{flex:1 1 3em;min-width:3em}
.rvc-title{font-weight:600;font-size:1.05em;color:var(--rvc-ink);margin:0 0 2px;line-height:1.3}
.rvc-title small{font-weight:400;color:var(--rvc-dim);margin-left:.6em;font-size:.85em}
.rvc-note{font-size:.86em;line-height:1.35;color:var(--rvc-dim);overflow-wrap:anywhere}
.rvc-note.rvc-bad,.rvc-status.rvc-bad{color:var(--rvc-bad)}
.rvc-note.rvc-bad::before{content:"\\26A0\\00a0"}
.rvc-note:empty{display:none}
.rvc-studio .widget-html,.rvc-studio .widget-html-content{height:auto;min-height:0;margin:0 2px;line-height:1.35}
.rvc-rule{border-top:1px solid var(--rvc-line);margin:5px 0 3px}
.rvc-status{display:flex;align-items:center;gap:.55em;color:var(--rvc-ink);line-height:1.35;overflow-wrap:anywhere}
.rvc-dot{flex:none;width:.7em;height:.7em;border-radius:50%;background:var(--rvc-dim)}
.rvc-working .rvc-dot{background:var(--rvc-accent);animation:rvc-pulse 1s infinite alternate}
.rvc-done .rvc-dot{background:var(--rvc-good)}.rvc-bad .rvc-dot{background:var(--rvc-bad)}
@keyframes rvc-pulse{from{opacity:1}to{opacity:.25}}
@media (prefers-reduced-motion:reduce){.rvc-working .rvc-dot{animation:none}}
.rvc-picture img{width:100%;display:block}
.rvc-picture{aspect-ratio:990/262;box-sizing:border-box;margin:2px 0}
.rvc-empty{border:1px dashed var(--rvc-line);border-radius:6px;color:var(--rvc-dim);text-align:center;
 display:flex;align-items:center;justify-content:center;padding:.5em 1.5em;font-size:.92em}
.rvc-clamped .rvc-note{display:-webkit-box;-webkit-box-orient:vertical;-webkit-line-clamp:3;overflow:hidden}
.rvc-stages{display:flex;flex-wrap:wrap;gap:4px;font-size:.82em}
.rvc-stages span{background:var(--rvc-well);border-radius:4px;padding:1px 5px;color:var(--rvc-dim);white-space:nowrap}
.rvc-stages b{color:var(--rvc-ink);font-weight:600;font-variant-numeric:tabular-nums}
.rvc-studio details{font-size:.88em;color:var(--rvc-dim)}.rvc-studio summary{cursor:pointer;padding:2px 0}
.rvc-studio details table{color:var(--rvc-ink)}
.rvc-consent{font-size:.84em;color:var(--rvc-dim);line-height:1.35}
.rvc-studio .widget-button{width:auto;min-width:4.6em}
.rvc-studio .widget-upload{width:auto}
.rvc-studio .widget-select{width:auto}.rvc-studio .widget-select select{padding:3px 6px}
.rvc-studio .rvc-spark-player{min-width:0}
.rvc-studio .rvc-spark-stage canvas{height:120px}
</style>"""


def title(words: str, beside: str = "") -> Any:
    """The heading of a card."""
    small = f"<small>{html.escape(beside)}</small>" if beside else ""
    return ipywidgets.HTML(f'<div class="rvc-title">{html.escape(words)}{small}</div>')


class Note:
    """A line of words below a control; red where something was refused."""

    def __init__(self, words: str = "") -> None:
        self.widget = ipywidgets.HTML()
        self.refused = False
        self.say(words)

    def say(self, words: str, *, refused: bool = False) -> None:
        """Show words; they are text, never markup."""
        self.words, self.refused = words, refused
        kind = "rvc-note rvc-bad" if refused else "rvc-note"
        role = ' role="alert"' if refused else ""
        value = f'<div class="{kind}"{role} title="{html.escape(words)}">{html.escape(words)}</div>'
        if self.widget.value != value:
            self.widget.value = value


def folded(summary: str, words: list[str]) -> str:
    """Lines of text behind a summary that opens by a click, as HTML; empty without lines."""
    if not words:
        return ""
    lines = "".join(f"<div>{html.escape(line)}</div>" for line in words)
    return f"<details><summary>{html.escape(summary)}</summary>{lines}</details>"


def card(*parts: Any, wide: bool = False) -> Any:
    """A framed column."""
    box = ipywidgets.VBox(list(parts))
    box.add_class("rvc-card")
    if wide:
        box.add_class("rvc-wide")
    return box


def row(*parts: Any, tight: bool = False) -> Any:
    """Controls side by side, wrapping where it is narrow unless it is tight."""
    box = ipywidgets.HBox(list(parts))
    box.add_class("rvc-row")
    if tight:
        box.add_class("rvc-tight")
    return box


def side_by_side(*parts: Any, kind: str = "rvc-columns") -> Any:
    """Cards beside one another where there is room; kind "rvc-side": one below the other, as one column."""
    box = ipywidgets.VBox(list(parts)) if kind == "rvc-side" else ipywidgets.HBox(list(parts))
    box.add_class(kind)
    return box


def rule() -> Any:
    """A line between two parts of a card."""
    return ipywidgets.HTML('<div class="rvc-rule"></div>')


def grown(control: Any) -> Any:
    """The control takes the room that its row has left."""
    control.add_class("rvc-grow")
    return control


def setting_slider(name: str, label: str, value: float, step: float, limits: tuple[float, float] | None = None) -> Any:
    """A slider as wide as its card. limits: the part of the range that people use; a value beyond widens it."""
    low, high = limits or setting_range(name)
    kind = ipywidgets.FloatSlider
    return kind(
        value=value, min=min(low, value), max=max(high, value), step=step, description=label,
        readout_format=".1f" if step >= 0.5 else ".2f", continuous_update=False,
        style={"description_width": LABEL}, layout=ipywidgets.Layout(width="auto"),
        **tooltip(kind, f"{setting_words(name)} ({low:g} to {high:g})"),
    )  # fmt: skip


def drop_down(label: str, options: list[tuple[str, Any]], value: Any, words: str) -> Any:
    """A drop-down as wide as its card, of (shown, meant) pairs."""
    kind = ipywidgets.Dropdown
    return kind(
        options=options, value=value, description=label, style={"description_width": LABEL},
        layout=ipywidgets.Layout(width="auto"), **tooltip(kind, words),
    )  # fmt: skip


def line_of_text(value: str, hint: str, words: str, label: str = "") -> Any:
    """One line of text that reports when it is complete: enter, or leaving the box."""
    kind = ipywidgets.Text
    style = {"description_width": LABEL if label else "0"}
    return kind(
        value=value, placeholder=hint, description=label, continuous_update=False, style=style,
        layout=ipywidgets.Layout(width="auto"), **tooltip(kind, words),
    )  # fmt: skip


def small_button(icon: str, words: str) -> Any:
    """A button that is only a picture."""
    made = icon_button("", icon, words)
    made.layout.width, made.layout.min_width, made.layout.flex = "2.6em", "2.6em", "none"
    return made


def icon_button(label: str, icon: str, words: str, style: str = "") -> Any:
    """A push button with one of Font Awesome's pictures, which every front end brings."""
    made = button(label, words, style)
    made.icon = icon
    return made


def file_button(label: str, accept: str, words: str) -> Any:
    """A button that takes one file, which may also be dropped onto it."""
    kind = ipywidgets.FileUpload
    return kind(
        accept=accept, multiple=False, description=label, layout=ipywidgets.Layout(width="auto"),
        **tooltip(kind, words),
    )  # fmt: skip
