"""Single controls that behave the same on ipywidgets 7.7 (Colab) and 8: tooltips, sliders with their ranges, uploads.

The two versions differ in names and in what `FileUpload.value` is; nothing outside this module needs to know.
"""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import Any

import ipywidgets

from rvc_spark.errors import AudioError
from rvc_spark.infer.settings import ConversionSettings

MAX_UPLOAD_BYTES = 100 << 20  # an upload travels through one websocket message and lies in memory twice
WIDE = "34em"


@dataclass(frozen=True)
class Upload:
    """A file a person gave to an upload button."""

    name: str
    data: bytes


def uploads(control: ipywidgets.FileUpload) -> list[Upload]:
    """What was uploaded, oldest first; empty when nothing was.

    ipywidgets 7 keeps {name: {"content": bytes, ...}}, ipywidgets 8 a tuple of {"name": ..., "content": memoryview}.

    Raises AudioError when a file is larger than MAX_UPLOAD_BYTES.
    """
    value = control.value
    rows = list(value.items()) if isinstance(value, dict) else [(row["name"], row) for row in value]
    found = [Upload(str(name), bytes(row["content"])) for name, row in rows]
    for upload in found:
        if len(upload.data) > MAX_UPLOAD_BYTES:
            raise AudioError(
                f"{upload.name!r} has {len(upload.data) >> 20} MiB, more than {MAX_UPLOAD_BYTES >> 20}",
                "Put the file beside the notebook and give its path instead.",
            )
    return found


def clear_uploads(control: ipywidgets.FileUpload) -> None:
    """Forget what was uploaded, so that the same file can be chosen again.

    In ipywidgets 7 `value` is read-only and made anew from two lists whenever the counter beside the button changes.
    """
    if isinstance(control.value, dict):
        control.metadata, control.data = [], []
        control._counter = 0
    else:
        control.value = ()


def tooltip(kind: type[ipywidgets.Widget], words: str) -> dict[str, str]:
    """The keyword that gives a control its tooltip: `tooltip` in version 8, `description_tooltip` in version 7."""
    names = kind.class_trait_names()
    return {"tooltip" if "tooltip" in names else "description_tooltip": words}


def setting_words(name: str) -> str:
    """What ConversionSettings says of one of its fields."""
    return next(str(item.metadata["help"]) for item in fields(ConversionSettings) if item.name == name)


def setting_range(name: str) -> tuple[float, float]:
    """The range of a numeric field of ConversionSettings."""
    item = next(item for item in fields(ConversionSettings) if item.name == name)
    return float(item.metadata["low"]), float(item.metadata["high"])


def slider(name: str, label: str, value: float, step: float, limits: tuple[float, float] | None = None) -> Any:
    """A slider for a setting, over its whole range or the part of it that people use."""
    low, high = limits or setting_range(name)
    kind = ipywidgets.FloatSlider
    return kind(
        value=value, min=min(low, value), max=max(high, value), step=step, description=label, readout_format=".2f",
        continuous_update=False, style={"description_width": "8em"}, layout=ipywidgets.Layout(width=WIDE),
        **tooltip(kind, setting_words(name)),
    )  # fmt: skip


def choice(label: str, options: list[tuple[str, Any]], value: Any, words: str) -> Any:
    """A drop-down of (shown, meant) pairs."""
    kind = ipywidgets.Dropdown
    return kind(
        options=options, value=value, description=label, style={"description_width": "8em"},
        layout=ipywidgets.Layout(width=WIDE), **tooltip(kind, words),
    )  # fmt: skip


def button(label: str, words: str, style: str = "") -> Any:
    """A push button; its tooltip has one name in both versions."""
    return ipywidgets.Button(description=label, tooltip=words, button_style=style)
