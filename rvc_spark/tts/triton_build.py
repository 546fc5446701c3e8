"""Spark-TTS on Triton with TensorRT-LLM, from nothing to a served model, in stages that can be resumed.

    download   the checkpoint, its licence accepted                 on this machine
    image      Triton, TensorRT-LLM and this package                docker build
    weights    LLM/ -> TensorRT-LLM weights in bfloat16             in the container
    engine     weights -> engine for this very GPU                  in the container
    fill       the model repository                                 in the container, or here
    serve      tritonserver

    python -m rvc_spark.tts.triton_build CHECKPOINT WORK            inside the image: weights to serve

bfloat16, because the language model speaks garbage in fp16. Command lines are functions of the settings, so that they
can be read, recorded and tested where there is neither Docker nor a GPU.
"""

from __future__ import annotations

import logging
import os
import sys
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from pathlib import Path

from rvc_spark import __version__
from rvc_spark.assets import AssetStore, FetchOptions
from rvc_spark.errors import AssetError, RvcSparkError, TritonBootError
from rvc_spark.rvc_config import PACKAGE
from rvc_spark.tts.spark_checkpoint import GET, LICENCE, LICENCE_NOTE, SparkFolder
from rvc_spark.tts.triton_log import BootProgress, OnProgress
from rvc_spark.tts.triton_repository import MAX_BATCH, RepositorySettings, repository_files, write_repository
from rvc_spark.tts.triton_stages import Programs, Stage, files_key, fresh_folder, put_in_place, run_stages

IMAGE = "rvc-spark-triton:25.02"
DOCKERFILE = PACKAGE / "tts" / "triton" / "Dockerfile"
CHECKPOINT_INSIDE, WORK_INSIDE = "/opt/rvc_spark/checkpoint", "/opt/rvc_spark/work"
CONVERTERS = ("/app/examples/qwen/convert_checkpoint.py", "/app/tensorrt_llm/examples/qwen/convert_checkpoint.py")
"""Where images of TensorRT-LLM keep the conversion of this family of models."""
PRECISION = "bfloat16"
MAX_NUM_TOKENS = 32_768
SHARED_MEMORY = "1g"


@dataclass(frozen=True)
class BuildSettings:
    """What is built, from what and where.

    checkpoint: the published folder. work: for weights, engine, repository and markers; 6 GB. programs: how programs
    are run; behind a prefix they see the two folders as CHECKPOINT_INSIDE and WORK_INSIDE.
    """

    checkpoint: Path
    work: Path
    programs: Programs = Programs()
    converter: str = CONVERTERS[0]

    @property
    def seen(self) -> tuple[str, str]:
        """Checkpoint and work folder as the programs see them."""
        return (CHECKPOINT_INSIDE, WORK_INSIDE) if self.programs.prefix else (str(self.checkpoint), str(self.work))

    @property
    def repository(self) -> RepositorySettings:
        """How the model repository is filled; the server sees the folders as the programs do."""
        return RepositorySettings(
            self.checkpoint, form="tensorrt", device="cuda", precision="bf16", engine=self.work / "engine",
            paths_at=dict(zip((self.checkpoint, self.work), self.seen, strict=True)),
        )  # fmt: skip


def in_container(program: str, checkpoint: Path, work: Path, image: str = IMAGE) -> Programs:
    """Programs of the image, with the GPU and the two folders. program: docker or podman."""
    gpus = ("--device", "nvidia.com/gpu=all") if Path(program).name == "podman" else ("--gpus", "all")
    return Programs((
        program, "run", "--rm", *gpus, "--shm-size", SHARED_MEMORY, "--volume", f"{checkpoint}:{CHECKPOINT_INSIDE}:ro",
        "--volume", f"{work}:{WORK_INSIDE}", image,
    ))  # fmt: skip


def convert_command(settings: BuildSettings) -> list[str]:
    """LLM/ to TensorRT-LLM weights."""
    checkpoint, work = settings.seen
    return [
        "python3", settings.converter, "--model_dir", f"{checkpoint}/LLM", "--output_dir", f"{work}/weights.part",
        "--dtype", PRECISION,
    ]  # fmt: skip


def engine_command(settings: BuildSettings) -> list[str]:
    """Weights to an engine, for the GPU it is built on."""
    work = settings.seen[1]
    return [
        "trtllm-build", "--checkpoint_dir", f"{work}/weights", "--output_dir", f"{work}/engine.part",
        "--max_batch_size", str(MAX_BATCH), "--max_num_tokens", str(MAX_NUM_TOKENS), "--gemm_plugin", PRECISION,
    ]  # fmt: skip


def serve_command(repository: str) -> list[str]:
    """The server, inside a container whose ports are published on the loopback alone."""
    return [
        "tritonserver", "--model-repository", repository, "--model-control-mode", "explicit", "--load-model", "*",
        "--disable-auto-complete-config",
    ]  # fmt: skip


def image_command(program: str, image: str = IMAGE) -> list[str]:
    """Build the image; the context is the package's own folder."""
    return [program, "build", "--tag", image, "--file", str(DOCKERFILE), str(PACKAGE)]


def download_stage(store: AssetStore, checkpoint: Path, accept: Collection[str]) -> Stage:
    """The checkpoint. Its licence must be named in `accept`, or the store refuses."""

    def work(on_line: Callable[[str], None]) -> None:
        if SparkFolder(checkpoint).missing():
            if LICENCE not in accept:
                raise AssetError(f"the weights need their licence accepted: {LICENCE_NOTE}", f"Run: {GET}")
            options = FetchOptions(accept=accept, unpinned="hub")
            store.fetch_many(groups=["spark"], options=options, progress=lambda step: on_line(step.message))
        SparkFolder(checkpoint).check()

    inputs = {"folder": str(checkpoint)}
    return Stage("download", "downloading the checkpoint", inputs, (checkpoint / "config.yaml",), work)


def image_stage(program: str, image: str = IMAGE) -> Stage:
    """The image. The engine's own cache makes an unchanged one in a second, so nothing but its recipe is looked at."""
    inputs = {"dockerfile": DOCKERFILE.read_text(encoding="utf-8"), "version": __version__, "image": image}

    def work(on_line: Callable[[str], None]) -> None:
        Programs().run(image_command(program, image), "building the image", on_line)

    return Stage("image", "building the image", inputs, (), work)


def engine_stages(settings: BuildSettings) -> list[Stage]:
    """Weights, engine and repository. Raises AssetError without a checkpoint."""
    folder = SparkFolder(settings.checkpoint).check()
    model = [path for path in folder.llm.iterdir() if path.is_file()]

    def made(name: str, command: Sequence[str], what: str) -> Callable[[Callable[[str], None]], None]:
        def work(on_line: Callable[[str], None]) -> None:
            fresh_folder(settings.work / name)
            settings.programs.run(command, what, on_line)
            put_in_place(settings.work / name)

        return work

    def fill(on_line: Callable[[str], None]) -> None:
        on_line(str(write_repository(settings.work / "model_repo", settings.repository)))

    convert, build = convert_command(settings), engine_command(settings)
    words = ("converting the language model", "building the engine", "filling the model repository")
    results = [settings.work / name for name in ("weights", "engine", "model_repo")]
    return [
        Stage(
            "weights", words[0], {"model": files_key(model), "command": " ".join(convert)},
            (results[0] / "config.json",), made("weights", convert, words[0]),
        ),
        Stage(
            "engine", words[1], {"command": " ".join(build)}, (results[1] / "config.json",),
            made("engine", build, words[1]),
        ),
        Stage("fill", words[2], _fill_inputs(settings), (results[2] / "spark_tts" / "config.pbtxt",), fill),
    ]  # fmt: skip


def build_engine(settings: BuildSettings, on_progress: OnProgress = None) -> Path:
    """Do what is missing up to the filled repository, and return that.

    Raises AssetError without a checkpoint, TritonBootError when a program fails, OutputError for the disk.
    """
    settings.work.mkdir(parents=True, exist_ok=True)
    run_stages(engine_stages(settings), settings.work, on_progress)
    return settings.work / "model_repo"


def serve(checkpoint: Path, work: Path) -> None:
    """Inside the image: do what is missing, then become the server. Raises as `build_engine`."""
    log = logging.getLogger("rvc_spark.triton")

    def show(progress: BootProgress) -> None:
        log.info("%3.0f%% %s", 100 * progress.fraction, progress.message)

    converter = next((path for path in CONVERTERS if Path(path).is_file()), None)
    if converter is None:
        raise TritonBootError("this image has no conversion of TensorRT-LLM", f"Build the image {IMAGE}.")
    command = serve_command(str(build_engine(BuildSettings(checkpoint, work, converter=converter), show)))
    try:
        os.execvp(command[0], command)
    except OSError as error:
        raise TritonBootError("tritonserver cannot be started", f"Build the image {IMAGE}.") from error


def _fill_inputs(settings: BuildSettings) -> dict[str, str]:
    """Every file of the repository: a template that changed fills it anew."""
    return repository_files(settings.repository)


def main(arguments: Sequence[str]) -> int:
    """`CHECKPOINT WORK`; returns an exit status when the server could not be started."""
    logging.basicConfig(level=logging.INFO, format="%(message)s", stream=sys.stderr)
    if len(arguments) != 2:
        logging.error("usage: python -m rvc_spark.tts.triton_build CHECKPOINT WORK")
        return 2
    try:
        serve(*map(Path, arguments))
    except RvcSparkError as error:
        logging.error("error: %s", error)
        return error.exit_code
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
