"""Voices and sound in a notebook: text or a recording goes in, the chosen voice comes out.

The names below are the public ones. They are loaded on first use, so that importing the package is instant.
"""

from __future__ import annotations

from importlib import import_module
from typing import Any

__version__ = "0.1.0"

_HOMES = {
    "AssetStore": "assets",
    "Audio": "audio",
    "AudioChunk": "streaming.chunk",
    "BaseTTSEngine": "tts.engine",
    "BatchItem": "folder_conversion",
    "BatchOptions": "jobs.batch_plan",
    "BatchRow": "jobs.batch",
    "BlockConversion": "conversion",
    "BootOptions": "tts.triton_server",
    "Choice": "rvc_config",
    "ChunkSettings": "tts.chunk_schedule",
    "Consent": "profiles.consent",
    "Conversion": "conversion",
    "ConversionSettings": "infer.settings",
    "Cover": "covers.song_cover",
    "CoverInput": "covers.song_cover",
    "CoverMaker": "covers.song_cover",
    "CoverSettings": "covers.cover_settings",
    "EffectSettings": "covers.effects",
    "EncodeOptions": "audio",
    "Enrolment": "profiles.enrolment",
    "EspeakEngine": "tts.espeak",
    "EspeakSettings": "tts.espeak",
    "Gap": "streaming.chunk",
    "LiveConversion": "infer.live",
    "LiveSettings": "infer.live_settings",
    "LoadedVoice": "rvc_modules",
    "ProfileStore": "profiles.profile_store",
    "Progress": "infer.pipeline",
    "RVCConfig": "rvc_config",
    "RvcSparkError": "errors",
    "SparkEngine": "tts.spark",
    "SparkSettings": "tts.spark_settings",
    "SparkVoice": "tts.spark_voice",
    "SpeakOptions": "processing.speak_options",
    "Speech": "rvc_init",
    "Spoken": "rvc_init",
    "TritonConnection": "triton_client",
    "TritonHandle": "tts.triton_server",
    "TritonSettings": "triton_client",
    "TritonSparkClient": "triton_client",
    "Utterance": "processing.utterance",
    "VC": "rvc_modules",
    "VoiceEnrollmentPipeline": "profiles.voice_enrollment",
    "VoiceProfile": "profiles.voice_profile",
    "WatermarkReport": "watermark",
    "WorkerManager": "processing.worker_manager",
    "WorkerOptions": "processing.speak_options",
    "boot_triton": "tts.triton_server",
    "convert_audio": "rvc_init",
    "convert_folder": "rvc_init",
    "cover_steps": "covers.song_cover",
    "create_profile": "profile_verbs",
    "enroll": "rvc_init",
    "examine_recordings": "profile_verbs",
    "explain_cover": "covers.song_cover",
    "get_cover_maker": "covers.song_cover",
    "get_profiles": "rvc_init",
    "get_speakers": "rvc_init",
    "get_vc": "rvc_init",
    "get_worker_manager": "rvc_init",
    "given_consent": "profiles.consent",
    "init_rvc": "rvc_init",
    "load_model": "rvc_init",
    "make_cover": "covers.song_cover",
    "prune_covers": "covers.song_cover",
    "read_audio": "audio",
    "run_batch": "jobs.batch",
    "say": "rvc_init",
    "speak": "rvc_init",
    "split_text_and_validate": "processing.utils",
    "stream_speak": "rvc_init",
    "stream_speech": "rvc_init",
    "verify_watermark": "watermark",
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
