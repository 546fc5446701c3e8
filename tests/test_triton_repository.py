"""The model repository, the container recipe and the stages that build an engine; a fake docker stands for the real."""

from __future__ import annotations

import json
import re
import stat
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import yaml
from spark_maker import SIZES, codec_config, make_spark_folder

from rvc_spark.errors import AssetError, ConfigError, OutputError, TritonBootError
from rvc_spark.rvc_config import PACKAGE
from rvc_spark.tts import triton_build
from rvc_spark.tts.bicodec_config import BiCodecConfig
from rvc_spark.tts.chunk_schedule import ChunkSettings
from rvc_spark.tts.triton_build import BuildSettings, build_engine, in_container
from rvc_spark.tts.triton_repository import (
    FRONT_MODELS,
    OTHER_MODELS,
    RepositorySettings,
    fill_template,
    write_repository,
)
from rvc_spark.tts.triton_service_settings import codec_reach, codec_sizes, read_front_settings
from rvc_spark.tts.triton_stages import Programs

DATA = PACKAGE / "tts" / "triton"


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_spark_folder(tmp_path_factory.mktemp("made") / "Spark-TTS-0.5B", features=False)


def parameters_of(text: str) -> dict[str, str]:
    return dict(re.findall(r'key: "(\w+)" value \{ string_value: "([^"]*)" \}', text))


def test_every_hole_of_the_python_models_is_filled(checkpoint: Path, tmp_path: Path) -> None:
    repository = write_repository(tmp_path / "repo", RepositorySettings(checkpoint))
    assert {path.name for path in repository.iterdir()} == {*FRONT_MODELS, *OTHER_MODELS}
    for model in (*FRONT_MODELS, *OTHER_MODELS):
        text = (repository / model / "config.pbtxt").read_text()
        if model != "tensorrt_llm":
            assert "${" not in text
        assert f'name: "{model}"' in text and 'backend: "python"' in text
        assert text.count("{") == text.count("}") and text.count("[") == text.count("]")
        compile((repository / model / "1" / "model.py").read_text(), model, "exec")
    told = parameters_of((repository / "spark_tts" / "config.pbtxt").read_text())
    assert told["audio_chunk_duration"] == "1.0" and told["audio_chunk_size_scale_factor"] == "8.0"
    assert told["max_audio_chunk_duration"] == "30.0" and told["audio_chunk_overlap_duration"] == "0.1"
    assert told["llm_tokenizer_dir"] == str(checkpoint / "LLM") and told["audio_tokenizer_frame_rate"] == "50"


@pytest.mark.parametrize("mode", ["streaming", "offline"])
def test_modes(checkpoint: Path, tmp_path: Path, mode: str) -> None:
    repository = write_repository(tmp_path / "repo", RepositorySettings(checkpoint, mode=mode))
    decoupled = {
        model: "decoupled: True" in (repository / model / "config.pbtxt").read_text() for model in FRONT_MODELS
    }
    assert decoupled == {
        "spark_tts": mode == "streaming", "spark_tts_streaming": True, "spark_tts_offline": False
    }  # fmt: skip


def test_the_tensorrt_form_has_the_values_of_the_public_one(checkpoint: Path, tmp_path: Path) -> None:
    settings = RepositorySettings(
        checkpoint, form="tensorrt", engine=tmp_path / "engine", device="cuda",
        paths_at={checkpoint: "/in/checkpoint", tmp_path: "/in/work"},
    )  # fmt: skip
    repository = write_repository(tmp_path / "repo", settings)
    text = (repository / "tensorrt_llm" / "config.pbtxt").read_text()
    told = parameters_of(text)
    assert 'backend: "tensorrtllm"' in text and "decoupled: True" in text
    assert told["gpt_model_path"] == "/in/work/engine" and told["gpt_model_type"] == "inflight_fused_batching"
    assert told["exclude_input_in_output"] == "True" and told["enable_kv_cache_reuse"] == "False"
    assert told["max_beam_width"] == "1" and told["kv_cache_free_gpu_mem_fraction"] == "0.5"
    assert told["max_tokens_in_paged_kv_cache"] == "${max_tokens_in_paged_kv_cache}"  # literally: read as not set
    for model in ("audio_tokenizer", "vocoder"):
        assert parameters_of((repository / model / "config.pbtxt").read_text())["model_dir"] == "/in/checkpoint"
    front = parameters_of((repository / "spark_tts" / "config.pbtxt").read_text())
    assert front["llm_tokenizer_dir"] == "/in/checkpoint/LLM" and front["language_model"] == "tensorrt"


def test_filling_rules() -> None:
    assert fill_template('a: "${x}" ${y} ${z}', {"x": 'q"\\', "y": "1"}) == 'a: "q\\"\\\\" 1 ${z}'
    with pytest.raises(ConfigError, match="no hole"):
        fill_template("${x}", {"X": "1"})
    for bad in ("line\nbreak", "${x}"):
        with pytest.raises(ConfigError):
            fill_template("${x}", {"x": bad})


def test_nothing_else_is_overwritten_and_nothing_half_is_left(checkpoint: Path, tmp_path: Path) -> None:
    target = tmp_path / "repo"
    target.mkdir()
    (target / "thesis.txt").write_text("mine")
    with pytest.raises(OutputError, match="no model repository"):
        write_repository(target, RepositorySettings(checkpoint))
    (target / "thesis.txt").unlink()
    write_repository(target, RepositorySettings(checkpoint))
    write_repository(target, RepositorySettings(checkpoint, mode="offline"))
    assert "decoupled: False" in (target / "spark_tts" / "config.pbtxt").read_text()
    assert [path.name for path in tmp_path.iterdir()] == ["repo"]
    with pytest.raises(AssetError):
        write_repository(tmp_path / "other", RepositorySettings(tmp_path / "nowhere"))
    assert not (tmp_path / "other").exists()


@pytest.mark.parametrize(
    "wrong",
    [
        {"form": "onnx"}, {"mode": "both"}, {"device": "tpu"}, {"slots": 0}, {"front_instances": 1000},
        {"form": "tensorrt"}, {"engine": Path("x")}, {"precision": "int4"},
    ],
)  # fmt: skip
def test_settings_out_of_range(wrong: dict) -> None:
    with pytest.raises(ConfigError):
        RepositorySettings(Path("somewhere"), **wrong)


def test_the_reach_counted_from_sizes_is_that_of_the_network(checkpoint: Path) -> None:
    from rvc_spark.tts.bicodec import lay_out
    from rvc_spark.tts.spark_checkpoint import SparkFolder

    for name, size in SIZES.items():
        config = BiCodecConfig.from_mapping(codec_config(size))
        assert codec_reach(config) == lay_out(config).reach, name
        for ratios in ((1, 2), (2, 2), (4,)):
            changed = replace(config, prenet=replace(config.prenet, sample_ratios=ratios))
            if len(ratios) == 2:
                assert codec_reach(changed) == lay_out(changed).reach, (name, ratios)
    assert codec_reach(BiCodecConfig.from_mapping(codec_config(SIZES["full"]))) == 67
    sizes = codec_sizes(SparkFolder(checkpoint))
    assert sizes.global_size == 4096 and sizes.semantic_size == SIZES["tiny"].codebook


def test_the_front_model_reads_what_was_written(checkpoint: Path, tmp_path: Path) -> None:
    chunks = ChunkSettings(first_seconds=0.5, scale=2.0, max_seconds=4.0, overlap_seconds=0.2)
    repository = write_repository(tmp_path / "repo", RepositorySettings(checkpoint, chunks=chunks))
    told = parameters_of((repository / "spark_tts" / "config.pbtxt").read_text())
    config = {"parameters": {name: {"string_value": value} for name, value in told.items()}}
    settings = read_front_settings(config)
    assert settings.chunks == chunks and settings.restricts and settings.room == 4096
    del config["parameters"]["codec_reach"]
    with pytest.raises(ConfigError, match="codec_reach"):
        read_front_settings(config)


def test_model_files_refuse_numpy_2_first() -> None:
    for path in sorted((DATA / "model_repo").glob("*/1/model.py")):
        statements = path.read_text().split('"""')[2].strip().splitlines()
        assert statements[0] == "import numpy" and ">= 2" in statements[2] and "raise" in statements[3], path
        with pytest.raises(ImportError, match="numpy"):  # the tests' own numpy is 2
            exec(compile(path.read_text(), str(path), "exec"), {"__name__": "model"})


def test_the_compose_file_keeps_to_the_schema() -> None:
    told = yaml.safe_load((DATA / "compose.yaml").read_text())
    assert set(told) == {"services"}
    (service,) = told["services"].values()
    assert set(service) <= {
        "image", "build", "shm_size", "ulimits", "ports", "volumes", "healthcheck", "deploy", "command", "environment",
    }  # fmt: skip
    assert set(service["build"]) <= {"context", "dockerfile", "args"}
    context = (DATA / service["build"]["context"]).resolve()
    assert context == PACKAGE and (context / service["build"]["dockerfile"]).is_file()
    assert all(port.startswith("127.0.0.1:") for port in service["ports"]) and len(service["ports"]) == 3
    assert {port.rpartition(":")[2] for port in service["ports"]} == {"8000", "8001", "8002"}
    for volume in service["volumes"]:
        assert set(volume) <= {"type", "source", "target", "read_only"} and volume["type"] == "bind"
    assert {volume["target"] for volume in service["volumes"]} == {
        triton_build.CHECKPOINT_INSIDE, triton_build.WORK_INSIDE
    }  # fmt: skip
    assert set(service["healthcheck"]) <= {"test", "interval", "timeout", "retries", "start_period"}
    (device,) = service["deploy"]["resources"]["reservations"]["devices"]
    assert device["capabilities"] == ["gpu"] and set(device) <= {"driver", "device_ids", "count", "capabilities"}


def test_the_dockerfile_is_sane() -> None:
    lines = (DATA / "Dockerfile").read_text().replace("\\\n", " ").splitlines()
    steps = [line.split(maxsplit=1) for line in lines if line.strip() and not line.startswith("#")]
    assert [step[0] for step in steps] == ["FROM", "RUN", "COPY", "ENV", "EXPOSE", "CMD"]
    assert steps[0][1] == "nvcr.io/nvidia/tritonserver:25.02-trtllm-python-py3"  # of TensorRT-LLM 0.17
    assert '"numpy<2"' in steps[1][1] and "torch" not in steps[1][1]
    command = json.loads(steps[-1][1])
    assert command[:3] == ["python3", "-m", "rvc_spark.tts.triton_build"]
    assert command[3:] == [triton_build.CHECKPOINT_INSIDE, triton_build.WORK_INSIDE]
    place = dict(item.split("=") for item in [steps[3][1]])["PYTHONPATH"]
    assert steps[2][1].split()[1] == f"{place}/rvc_spark"


FAKE = """#!{python}
import json, pathlib, sys
here = pathlib.Path(__file__).parent
with open(here / "calls.jsonl", "a") as log:
    log.write(json.dumps(sys.argv[1:]) + "\\n")
fails = (here / "fails.txt").read_text() if (here / "fails.txt").exists() else ""
words = sys.argv[1:]
mounts = dict(reversed(w.split(":")[:2]) for i, w in enumerate(words) if i and words[i - 1] == "--volume")
out = [words[i + 1] for i, w in enumerate(words) if w == "--output_dir"]
print("working", flush=True)
if fails and any(fails.split("|")[0] in word for word in words):
    print(fails.split("|")[1]); sys.exit(int(fails.split("|")[2]))
for inside, outside in mounts.items():
    for path in out:
        if path.startswith(inside + "/"):
            folder = pathlib.Path(outside + path[len(inside):]); folder.mkdir(exist_ok=True)
            (folder / "config.json").write_text("{{}}")
"""


@pytest.fixture
def fake(tmp_path: Path) -> Path:
    folder = tmp_path / "bin"
    folder.mkdir()
    program = folder / "docker"
    program.write_text(FAKE.format(python=sys.executable))
    program.chmod(program.stat().st_mode | stat.S_IXUSR)
    return program


def calls(fake: Path) -> list[list[str]]:
    log = fake.parent / "calls.jsonl"
    return [json.loads(line) for line in log.read_text().splitlines()] if log.exists() else []


def settings_for(fake: Path, checkpoint: Path, tmp_path: Path) -> BuildSettings:
    work = tmp_path / "work"
    return BuildSettings(checkpoint, work, in_container(str(fake), checkpoint, work))


def test_the_stages_run_once_and_in_order(fake: Path, checkpoint: Path, tmp_path: Path) -> None:
    settings = settings_for(fake, checkpoint, tmp_path)
    steps = []
    repository = build_engine(settings, steps.append)
    convert, build = calls(fake)
    place = f"{checkpoint}:/opt/rvc_spark/checkpoint:ro"
    shared = ["run", "--rm", "--gpus", "all", "--shm-size", "1g", "--volume", place]
    assert convert[:8] == build[:8] == shared
    image = convert.index(triton_build.IMAGE)
    assert convert[image + 1 :] == [
        "python3", "/app/examples/qwen/convert_checkpoint.py", "--model_dir", "/opt/rvc_spark/checkpoint/LLM",
        "--output_dir", "/opt/rvc_spark/work/weights.part", "--dtype", "bfloat16",
    ]  # fmt: skip
    assert build[image + 1 :] == [
        "trtllm-build", "--checkpoint_dir", "/opt/rvc_spark/work/weights", "--output_dir",
        "/opt/rvc_spark/work/engine.part", "--max_batch_size", "16", "--max_num_tokens", "32768", "--gemm_plugin",
        "bfloat16",
    ]  # fmt: skip
    text = (repository / "tensorrt_llm" / "config.pbtxt").read_text()
    assert parameters_of(text)["gpt_model_path"] == "/opt/rvc_spark/work/engine"
    fractions = [step.fraction for step in steps]
    assert fractions == sorted(fractions) and fractions[-1] == 1.0
    assert any("working" in step.message for step in steps)
    build_engine(settings)
    assert len(calls(fake)) == 2, "what was done is done again"


def test_a_failed_stage_is_the_one_that_is_resumed(fake: Path, checkpoint: Path, tmp_path: Path) -> None:
    settings = settings_for(fake, checkpoint, tmp_path)
    (fake.parent / "fails.txt").write_text("trtllm-build|RuntimeError: CUDA error: out of memory|1")
    with pytest.raises(TritonBootError, match="not enough memory"):
        build_engine(settings)
    assert not (tmp_path / "work" / "engine").exists()
    (fake.parent / "fails.txt").unlink()
    build_engine(settings)
    assert [next(word for word in call if word in ("python3", "trtllm-build")) for call in calls(fake)] == [
        "python3", "trtllm-build", "trtllm-build"
    ]  # fmt: skip


def test_another_checkpoint_makes_everything_anew(fake: Path, checkpoint: Path, tmp_path: Path) -> None:
    settings = settings_for(fake, checkpoint, tmp_path)
    build_engine(settings)
    config = checkpoint / "LLM" / "generation_config.json"
    config.write_text(config.read_text() + " ")
    build_engine(settings)
    assert len(calls(fake)) == 4
    (tmp_path / "work" / "weights" / "config.json").unlink()  # a marker without its result does not count
    build_engine(settings)
    assert len(calls(fake)) == 5


@pytest.mark.parametrize(
    ("words", "status", "told"),
    [
        ("CUDA error: no kernel image is available for execution", 1, "too old"),
        ("OSError: [Errno 28] No space left on device", 1, "disk is full"),
        ("docker: Error response: could not select device driver", 125, "no GPU"),
        ("ModuleNotFoundError: No module named 'tensorrt_llm'", 1, "lacks a Python package"),
        ("", 137, "killed"),
        ("something odd", 3, "status 3"),
    ],
)
def test_failures_in_words(fake: Path, checkpoint: Path, tmp_path: Path, words: str, status: int, told: str) -> None:
    (fake.parent / "fails.txt").write_text(f"convert_checkpoint|{words}|{status}")
    with pytest.raises(TritonBootError, match=told):
        build_engine(settings_for(fake, checkpoint, tmp_path))


def test_a_program_that_is_not_there(checkpoint: Path, tmp_path: Path) -> None:
    with pytest.raises(TritonBootError, match="cannot be started"):
        build_engine(BuildSettings(checkpoint, tmp_path / "work", Programs((str(tmp_path / "no-docker"),))))


def test_a_program_that_makes_nothing(fake: Path, checkpoint: Path, tmp_path: Path) -> None:
    fake.write_text(f"#!{sys.executable}\n")
    with pytest.raises(TritonBootError, match="made no config.json"):
        build_engine(settings_for(fake, checkpoint, tmp_path))


def test_the_licence_must_be_accepted(tmp_path: Path, checkpoint: Path) -> None:
    from rvc_spark.assets import AssetStore

    store = AssetStore(tmp_path / "assets", offline=True)
    stage = triton_build.download_stage(store, tmp_path / "assets" / "spark" / "Spark-TTS-0.5B", accept=())
    with pytest.raises(AssetError, match="licence"):
        stage.work(lambda line: None)
    triton_build.download_stage(store, checkpoint, accept=()).work(lambda line: None)  # it is there: nothing to accept


def test_inside_an_image_without_tensorrt(checkpoint: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    assert triton_build.main([str(checkpoint), str(tmp_path)]) == TritonBootError.exit_code
    assert "no conversion" in caplog.text
    assert triton_build.main([]) == 2


def test_podman_is_given_the_gpu_in_its_own_words(tmp_path: Path) -> None:
    command = in_container("/usr/bin/podman", tmp_path, tmp_path).command(["x"])
    assert command[:5] == ["/usr/bin/podman", "run", "--rm", "--device", "nvidia.com/gpu=all"]
