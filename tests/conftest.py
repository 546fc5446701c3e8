"""What several test files share: one tiny Spark-TTS checkpoint for the whole run."""

from __future__ import annotations

from pathlib import Path

import pytest
from spark_maker import make_spark_folder


@pytest.fixture(scope="session")
def spark_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint folder in the published layout with tiny random networks. Not to be changed."""
    return make_spark_folder(tmp_path_factory.mktemp("spark") / "Spark-TTS-0.5B")


@pytest.fixture(scope="session")
def golden_spark() -> Path:
    """Vectors of the reference implementation of Spark-TTS."""
    return Path(__file__).parent / "golden" / "spark_tts"
