"""The main job in one call: a sentence is spoken, converted, drawn, and the start notebook is run on it.

Everything lands in one folder under TEMP. Sits above the surfaces it shows, and is called by the command line only.
"""

from __future__ import annotations

import importlib.util
import os
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rvc_spark.audio import write_audio
from rvc_spark.errors import MissingPackageError, OutputError
from rvc_spark.rvc_config import PACKAGE, Choice
from rvc_spark.rvc_init import Speech, init_rvc, load_model, speak

TEXT = "Good evening. You hear a sentence that was spoken by one voice, and is now heard in another."
NOTEBOOK = "start.ipynb"
NOTEBOOK_SECONDS = 300  # per cell; a run takes about twenty in all


@dataclass(frozen=True)
class DemoResult:
    """Where the demo's files are and how it went."""

    speech: Speech
    files: dict[str, Path]  # spoken, converted, picture, notebook
    notebook: Choice
    seconds: float

    def report(self) -> dict[str, Any]:
        """For machines."""
        return {
            **self.speech.conversion.report(),
            "text": self.speech.text,
            "files": {name: str(path) for name, path in self.files.items()},
            "notebook": {"value": self.notebook.value, "reason": self.notebook.reason},
            "total_seconds": round(self.seconds, 2),
        }

    def lines(self) -> list[str]:
        """For people."""
        conversion = self.speech.conversion
        return [
            f"“{self.speech.text}”",
            *(f"  {name:<10} {path}" for name, path in self.files.items()),
            f"  notebook   {self.notebook}",
            f"  engines    {', '.join(f'{name}={choice}' for name, choice in self.speech.engines.items())}",
            f"  sound      {conversion.seconds:.2f} s at {conversion.rate} Hz, converted in {conversion.elapsed:.2f} s",
            *([] if conversion.watermark is None else [f"  watermark  {conversion.watermark}"]),
            f"  speed      real-time factor {conversion.real_time_factor:.2f}; everything took {self.seconds:.0f} s",
            "The demo voice proves the chain and is a small one: clearly another person, a little hazy, consonants "
            "soft. Its figures are in METRICS.md beside it.",
        ]


def notebook_path(name: str) -> Path:
    """A notebook of this project, from the checkout or from the installed package."""
    for folder in (PACKAGE.parent / "notebooks", PACKAGE / "notebooks"):
        if (folder / name).is_file():
            return folder / name
    raise OutputError(f"notebook {name} is not beside the package", "Install rvc_spark from a checkout or its wheel.")


def _run_notebook(source: Path, target: Path, parameters: dict[str, Any]) -> None:
    import papermill

    temporary = target.with_suffix(".part.ipynb")
    papermill.execute_notebook(
        source, temporary, parameters=parameters, progress_bar=False, log_output=False, cwd=str(target.parent),
        execution_timeout=NOTEBOOK_SECONDS, kernel_name="python3", extra_arguments=["--log-level=CRITICAL"],
    )  # fmt: skip
    os.replace(temporary, target)


def run_demo(
    text: str | None, folder: Path | None, say: Callable[[str], None], *, watermark: str | None = None
) -> DemoResult:
    """Speak, convert, draw and run the notebook.

    Args:
        text: what to say; a default sentence if None.
        folder: where to write; `TEMP/demo` if None.
        say: takes one line per stage.
        watermark: of both sound files, "none" or "perth"; the configuration's if None.

    Raises whatever speaking and converting raise; OutputError when the folder cannot be made.
    """
    started = time.perf_counter()
    text = TEXT if text is None else text
    vc = init_rvc(**({} if watermark is None else {"watermark": watermark}))
    folder = (folder or vc.config.temp_dir / "demo").resolve()
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise OutputError(f"folder {folder} cannot be made: {error}", "Name another one with -o FOLDER.") from error
    say("speaking and converting ...")
    load_model("demo")
    speech = speak(text, folder / "converted.wav", engine="espeak")  # embedded: it needs nothing else
    files = {"spoken": write_audio(folder / "spoken.wav", speech.source), "converted": folder / "converted.wav"}
    say("drawing ...")
    from rvc_spark.widgets.plots import conversion_figure, save_figure

    figure = conversion_figure(
        speech.source, speech.audio, source_f0=speech.conversion.source_f0, result_f0=speech.conversion.result_f0
    )
    files["picture"] = save_figure(figure, folder / "picture.png")
    if importlib.util.find_spec("papermill") is None or importlib.util.find_spec("ipykernel") is None:
        missing = MissingPackageError("papermill or ipykernel is not installed", "pip install 'rvc-spark[lab]'")
        notebook = Choice("not run", str(missing))
    else:
        say("running the notebook ...")
        files["notebook"] = folder / NOTEBOOK
        _run_notebook(notebook_path(NOTEBOOK), files["notebook"], {"text": text, "engine": "espeak"})
        notebook = Choice("executed", "papermill")
    return DemoResult(speech, files, notebook, time.perf_counter() - started)
