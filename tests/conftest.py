"""What several test files share: one tiny Spark-TTS checkpoint for the whole run, and what a quick run leaves out.

`pytest --thorough` runs every notebook in every way; else every notebook runs at least once, and so does every way.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from spark_maker import make_spark_folder

# Files that take a minute or more go first: a process that begins one at the end leaves the other cores idle.
LONG_FILES = tuple(
    f"test_{name}.py" for name in (
        "memory", "conformance", "browser", "notebooks", "stored_outputs", "studio", "live", "voila", "workers",
        "browser_studio", "batch", "pipeline", "triton_spark", "player_page", "play",
    )
)  # fmt: skip


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--thorough", action="store_true", help="every notebook through nbval, papermill and voila")


def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line("markers", "thorough: minutes of the same with another notebook; runs with --thorough")


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    rank = {name: place for place, name in enumerate(LONG_FILES)}
    items.sort(key=lambda item: rank.get(item.path.name, len(LONG_FILES)))
    if not config.getoption("--thorough"):
        for item in items:
            if item.get_closest_marker("thorough"):
                item.add_marker(pytest.mark.skip(reason="tested with other notebooks; --thorough runs all"))


@pytest.fixture(scope="module", autouse=True)
def shared_workers_end() -> Iterator[None]:
    """The process-wide workers live as long as a notebook would; the next file counts threads of its own."""
    yield
    verbs = sys.modules.get("rvc_spark.rvc_init")
    if verbs is not None and verbs._workers is not None:
        assert verbs._workers.stop(30.0)


@pytest.fixture(scope="session")
def spark_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint folder in the published layout with tiny random networks. Not to be changed."""
    return make_spark_folder(tmp_path_factory.mktemp("spark") / "Spark-TTS-0.5B")


@pytest.fixture(scope="session")
def golden_spark() -> Path:
    """Vectors of the reference implementation of Spark-TTS."""
    return Path(__file__).parent / "golden" / "spark_tts"
