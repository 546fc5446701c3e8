"""Voices and sound in a notebook: text or a recording goes in, the chosen voice comes out.

The names below are the public ones. They are loaded on first use, so that importing the package is instant.
"""

from __future__ import annotations

from importlib import import_module
from typing import Any

__version__ = "0.1.0"

_HOMES = {
    "Audio": "audio",
    "AssetStore": "assets",
    "BaseTTSEngine": "tts.engine",
    "BatchItem": "rvc_init",
    "Choice": "rvc_config",
    "Conversion": "rvc_modules",
    "ConversionSettings": "infer.settings",
    "EncodeOptions": "audio",
    "EspeakEngine": "tts.espeak",
    "EspeakSettings": "tts.espeak",
    "LoadedVoice": "rvc_modules",
    "Progress": "infer.pipeline",
    "RVCConfig": "rvc_config",
    "RvcSparkError": "errors",
    "Speech": "rvc_init",
    "VC": "rvc_modules",
    "convert_audio": "rvc_init",
    "convert_folder": "rvc_init",
    "get_vc": "rvc_init",
    "init_rvc": "rvc_init",
    "load_model": "rvc_init",
    "read_audio": "audio",
    "speak": "rvc_init",
    "split_text_and_validate": "processing.utils",
    "write_audio": "audio",
}
__all__ = ["__version__", *sorted(_HOMES)]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}; public names: {', '.join(__all__)}")
    value = getattr(import_module(f"{__name__}.{_HOMES[name]}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return __all__
