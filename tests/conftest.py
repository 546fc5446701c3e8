"""What several test files share: one tiny Spark-TTS checkpoint for the whole run, and what a quick run leaves out.

`pytest --thorough` runs every notebook in every way; else every notebook runs once or more, and every way with several.
"""

from __future__ import annotations

from pathlib import Path

import pytest
from spark_maker import make_spark_folder


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--thorough", action="store_true", help="every notebook through nbval, papermill and voila")


def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line("markers", "thorough: minutes of the same with another notebook; runs with --thorough")


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    if not config.getoption("--thorough"):
        for item in items:
            if item.get_closest_marker("thorough"):
                item.add_marker(pytest.mark.skip(reason="tested with other notebooks; --thorough runs all"))


@pytest.fixture(scope="session")
def spark_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint folder in the published layout with tiny random networks. Not to be changed."""
    return make_spark_folder(tmp_path_factory.mktemp("spark") / "Spark-TTS-0.5B")


@pytest.fixture(scope="session")
def golden_spark() -> Path:
    """Vectors of the reference implementation of Spark-TTS."""
    return Path(__file__).parent / "golden" / "spark_tts"
