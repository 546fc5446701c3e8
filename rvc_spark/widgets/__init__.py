"""What a notebook shows: players, figures, tables, panels. The only home of matplotlib, IPython and ipywidgets.

    from rvc_spark.widgets import VoicePanel, show_audio, show_conversion

Names are loaded on first use: a picture needs neither widgets nor networks.
"""

from __future__ import annotations

from importlib import import_module
from typing import Any

_HOMES = {
    "ABPlayer": "cover_view",
    "BatchReport": "batch_report",
    "Comparison": "engines",
    "EnrolPanel": "enrol",
    "EnrolVerbs": "enrol",
    "Heard": "listening",
    "LivePlayer": "player",
    "Picture": "plots",
    "PlayOptions": "playing",
    "Playing": "playing",
    "ProgressLine": "progress",
    "Recorder": "recorder",
    "SoundPlayer": "sound",
    "Studio": "studio",
    "StudioTake": "studio_takes",
    "StudioVerbs": "studio_verbs",
    "Table": "tables",
    "Take": "take_view",
    "VoicePanel": "panels",
    "compare_engines": "engines",
    "compare_sounds": "cover_view",
    "conversion_figure": "plots",
    "play": "playing",
    "save_figure": "plots",
    "show_audio": "sound",
    "show_batch": "batch_report",
    "show_conversion": "plots",
    "show_cover": "cover_view",
    "show_engines": "engines",
    "show_figure": "plots",
    "show_profiles": "enrol_report",
    "show_report": "enrol_report",
    "show_server": "engines",
    "show_stages": "cover_view",
    "show_stream": "listening",
    "stream_figure": "listening",
}
__all__ = sorted(_HOMES)


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}; public names: {', '.join(__all__)}")
    return getattr(import_module(f"{__name__}.{_HOMES[name]}"), name)


def __dir__() -> list[str]:
    return __all__
