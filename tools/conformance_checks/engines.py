"""Networks of a run, each loaded once: on the run's device, in its dtype."""

from __future__ import annotations

from pathlib import Path

from conformance_checks.run import Run
from rvc_spark.infer.checkpoint import read_checkpoint
from rvc_spark.infer.content import ContentEncoder, load_content_encoder
from rvc_spark.infer.synthesizer import Synthesizer, load_synthesizer


def load_encoder(run: Run, path: Path) -> ContentEncoder:
    """The content encoder at that path."""
    return run.loaded(path, lambda: load_content_encoder(path, run.device, run.dtype))


def load_voice(run: Run, path: Path) -> Synthesizer:
    """The voice at that path."""
    return run.loaded(path, lambda: load_synthesizer(read_checkpoint(path), run.device, run.dtype))
