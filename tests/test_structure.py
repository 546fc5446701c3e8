"""The house keeps its shape: who imports whom, one home per heavy package, the public names, sizes and a fast import.

Everything is read from source with `ast`; imports inside functions and under TYPE_CHECKING count like any other.
"""

from __future__ import annotations

import ast
import re
import subprocess
import sys
import tomllib
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
PACKAGE = ROOT / "rvc_spark"
SOURCES = sorted(PACKAGE.rglob("*.py"))

# Units of the package, lowest first, and whether the units of a row are blind to one another. A unit is a folder, a
# file, or a family of files behind one door. It may import from lower rows, and from its own where that is not blind.
LAYERS: list[tuple[set[str], bool]] = [
    ({"errors"}, True),
    ({"text", "safe_load", "rvc_config"}, True),
    ({"perth"}, True),  # the watermark's networks, which every sound that is written goes through
    ({"audio"}, True),
    ({"assets", "triton_client"}, True),
    ({"infer", "tts", "music", "streaming"}, True),
    ({"rvc_modules", "profiles", "training"}, True),
    ({"rvc_init", "covers", "processing"}, False),
    ({"jobs"}, True),
    ({"widgets", "serve", "doctor"}, True),
    ({"demo", "benchmark"}, True),  # show what the surfaces show, in one go; only the command line calls them
    ({"cli"}, True),
]
FAMILIES = {  # files that are the inside of a unit whose door is one file
    "audio": ("audio_", "loudness", "watermark"),
    "perth": ("perth_",),
    "safe_load": ("safetensors_file", "tensor_outline", "inert_pickle", "file_kinds", "installed_packages"),
    "triton_client": ("triton_",),
    "assets": ("asset_", "archives", "catalogue", "download", "transport", "part_file", "bundles", "voice_download"),
    "rvc_modules": ("conversion", "loaded_voices"),
    "rvc_init": ("profile_verbs", "folder_conversion"),
    "benchmark": ("benchmark_",),
    "cli": ("cli_", "__main__"),
}
TEXT_ONLY = {"utils", "pieces", "abbreviations"}  # of `processing`: pure text, which engines need below them
# The command line reaches the other surfaces only through what stands below it as a command of its own.
FORBIDDEN = {("cli", "widgets")}

HOMES = {  # package -> the only places that may import it
    "faiss": ("infer/index",),
    "transformers": ("infer/content", "infer/encoder_"),
    "parselmouth": ("infer/pitch",),
    "torchcrepe": ("infer/crepe", "infer/pitch"),
    "torchfcpe": ("infer/fcpe", "infer/pitch"),
    "pyworld": ("infer/pitch",),
    "soundfile": ("audio",),
    "av": ("audio",),
    "soxr": ("audio",),
    "pyloudnorm": ("audio", "loudness"),
    "espeakng_loader": ("tts/espeak",),
    "httpcore": ("transport",),
    "gdown": ("transport", "download", "asset"),
    "huggingface_hub": ("transport", "download", "asset"),
    "tritonclient": ("triton_",),
    "grpc": ("triton_",),
    "tokenizers": ("tts/spark_tokens",),
    "demucs": ("covers/separation",),
    "fastapi": ("serve/",),
    "uvicorn": ("serve/",),
    "ray": ("jobs/",),
    "anywidget": ("widgets/",),
    "traitlets": ("widgets/",),
    "ipywidgets": ("widgets/",),
    "IPython": ("widgets/",),
    "matplotlib": ("widgets/",),
    "pydantic_settings": ("rvc_config",),
    "rich": ("cli",),
    "papermill": ("demo",),
    "perth": (),  # nobody: its weights are read as a file, see perth_weights
    "silero_vad": (),  # nobody either, see profiles/bundled_weights
    "resemblyzer": (),
    "onnx": ("infer/onnx_export",),
    "onnxscript": ("infer/onnx_export",),
    "onnxruntime": ("covers/mdx_net", "infer/onnx_export"),
}
OPTIONAL = {
    "torchcrepe", "torchfcpe", "pyworld", "gdown", "papermill", "nbclient", "tritonclient", "grpc", "demucs", "ray",
    "onnx", "onnxscript", "onnxruntime",
}  # fmt: skip
OF_THE_HOST = {  # of a dependency, mended, of Triton's process, of a dependency, of Colab
    "pydantic", "torchaudio", "triton_python_backend_utils", "traitlets", "google",
}  # fmt: skip
MODULE_NAMES = {"praat-parselmouth": "parselmouth", "faiss-cpu": "faiss", "pyyaml": "yaml", "ipython": "IPython"}

PUBLIC_NAMES = [
    "AssetStore",
    "Audio",
    "AudioChunk",
    "BaseTTSEngine",
    "BatchItem",
    "BatchOptions",
    "BatchRow",
    "BlockConversion",
    "BootOptions",
    "Choice",
    "ChunkSettings",
    "Consent",
    "Conversion",
    "ConversionSettings",
    "Cover",
    "CoverInput",
    "CoverMaker",
    "CoverSettings",
    "EffectSettings",
    "EncodeOptions",
    "Enrolment",
    "EspeakEngine",
    "EspeakSettings",
    "Gap",
    "LiveConversion",
    "LiveSettings",
    "LoadedVoice",
    "ProfileStore",
    "Progress",
    "RVCConfig",
    "RvcSparkError",
    "SparkEngine",
    "SparkSettings",
    "SparkVoice",
    "SpeakOptions",
    "Speech",
    "Spoken",
    "TritonConnection",
    "TritonHandle",
    "TritonSettings",
    "TritonSparkClient",
    "Utterance",
    "VC",
    "VoiceEnrollmentPipeline",
    "VoiceProfile",
    "WatermarkReport",
    "WorkerManager",
    "WorkerOptions",
    "__version__",
    "boot_triton",
    "convert_audio",
    "convert_folder",
    "cover_steps",
    "create_profile",
    "enroll",
    "examine_recordings",
    "explain_cover",
    "get_cover_maker",
    "get_profiles",
    "get_speakers",
    "get_vc",
    "get_worker_manager",
    "given_consent",
    "init_rvc",
    "load_model",
    "make_cover",
    "prune_covers",
    "read_audio",
    "run_batch",
    "say",
    "speak",
    "split_text_and_validate",
    "stream_speak",
    "stream_speech",
    "verify_watermark",
    "write_audio",
]
MAX_FILE_LINES = 400
MAX_FUNCTION_LINES = 80
MAX_PARAMETERS = 8  # one more than the style asks for: a method's `self` is among them


@cache
def tree_of(path: Path) -> ast.Module:
    return ast.parse(path.read_text(encoding="utf-8"), str(path))


def name_of(path: Path) -> str:
    """`infer/pitch` for rvc_spark/infer/pitch.py."""
    return path.relative_to(PACKAGE).with_suffix("").as_posix()


def imports_of(path: Path) -> list[tuple[int, str]]:
    """(line, dotted name) of every import; `from a import b` gives both `a` and `a.b`."""
    found = []
    for node in ast.walk(tree_of(path)):
        if isinstance(node, ast.Import):
            found += [(node.lineno, alias.name) for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}:{node.lineno} imports relatively"
            found += [
                (node.lineno, node.module),
                *((node.lineno, f"{node.module}.{alias.name}") for alias in node.names),
            ]
    return found


def unit_of(module: str) -> str | None:
    """The unit a dotted name inside the package belongs to; None for the package itself."""
    parts = module.split(".")
    if parts[0] != "rvc_spark" or len(parts) < 2:
        return None
    if parts[1] == "processing" and parts[2:3] and parts[2] in TEXT_ONLY:
        return "text"
    for unit, starts in FAMILIES.items():
        if parts[1].startswith(starts):
            return unit
    return parts[1]


def level_of(unit: str) -> int | None:
    return next((level for level, (units, _) in enumerate(LAYERS) if unit in units), None)


def edges() -> list[tuple[str, str, str]]:
    """(unit, imported unit, place) for every import between two units."""
    found = []
    for path in SOURCES:
        unit = unit_of("rvc_spark." + name_of(path).replace("/", "."))
        if name_of(path) == "__init__":
            continue  # only names the homes of the public names, as text
        for line, module in imports_of(path):
            target = unit_of(module)
            if target and target != unit and level_of(target) is not None:
                found.append((unit, target, f"{path.relative_to(ROOT)}:{line}"))
    return found


def test_every_file_has_a_place_in_the_house() -> None:
    lost = [
        name_of(path) for path in SOURCES if level_of(unit_of("rvc_spark." + name_of(path).replace("/", "."))) is None
    ]
    assert [name for name in lost if name != "__init__"] == []


def test_imports_go_downward_only() -> None:
    wrong = []
    for unit, target, place in edges():
        above, below = level_of(unit), level_of(target)
        sideways = above == below and not LAYERS[above][1]
        if not (below < above or sideways) or (unit, target) in FORBIDDEN:
            wrong.append(f"{place}: {unit} imports {target}")
    assert wrong == []


def test_units_of_one_row_do_not_import_each_other_in_a_circle() -> None:
    sideways = {(unit, target) for unit, target, _ in edges() if level_of(unit) == level_of(target)}
    assert [pair for pair in sideways if pair[::-1] in sideways] == []


def test_the_direction_test_would_notice() -> None:
    assert unit_of("rvc_spark.audio_codec.open_decoder") == "audio" and unit_of("rvc_spark.archives") == "assets"
    assert unit_of("rvc_spark.infer.pitch") == "infer" and unit_of("numpy.fft") is None
    assert level_of("errors") < level_of("audio") < level_of("assets") < level_of("infer") < level_of("rvc_modules")
    assert level_of("rvc_modules") < level_of("rvc_init") < level_of("jobs") < level_of("widgets") < level_of("cli")
    assert len(edges()) > 20


def test_heavy_packages_have_one_home() -> None:
    strays = []
    for path in SOURCES:
        for line, module in imports_of(path):
            homes = HOMES.get(module.split(".")[0])
            if homes is not None and not name_of(path).startswith(homes):
                strays.append(f"{path.relative_to(ROOT)}:{line} imports {module}, whose home is {' or '.join(homes)}")
    assert strays == []


def test_optional_packages_are_imported_where_they_are_used() -> None:
    early = []
    for path in SOURCES:
        for node in tree_of(path).body:
            names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            names += [node.module] if isinstance(node, ast.ImportFrom) else []
            early += [f"{name_of(path)}: {name}" for name in names if name.split(".")[0] in OPTIONAL]
    assert early == []


def test_dependencies_are_floors_and_are_what_the_package_imports() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    everything = project["dependencies"] + [line for rows in project["optional-dependencies"].values() for line in rows]
    assert [line for line in everything if re.search(r"==|<|~=|!=", line)] == []
    named = [re.match(r"[A-Za-z0-9_.-]+", line).group().lower() for line in project["dependencies"]]
    declared = {MODULE_NAMES.get(name, name.replace("-", "_")) for name in named}
    imported = {module.split(".")[0] for path in SOURCES for _, module in imports_of(path)}
    foreign = imported - set(sys.stdlib_module_names) - {"rvc_spark"}
    assert sorted(foreign - declared - OPTIONAL - OF_THE_HOST) == []
    assert sorted(declared - foreign) == [], "declared but never imported"


def test_public_names() -> None:
    import rvc_spark

    assert sorted(rvc_spark.__all__) == PUBLIC_NAMES
    for name in PUBLIC_NAMES:
        assert getattr(rvc_spark, name) is not None
    with pytest.raises(AttributeError, match="load_model"):
        _ = rvc_spark.no_such_name


def test_importing_the_package_loads_nothing_heavy() -> None:
    code = (
        "import sys, time; start = time.perf_counter(); import rvc_spark; seconds = time.perf_counter() - start\n"
        "heavy = {'torch', 'numpy', 'transformers', 'matplotlib', 'ipywidgets', 'faiss', 'scipy', 'soundfile'}\n"
        "print(f'import rvc_spark: {seconds * 1000:.1f} ms'); print(sorted(heavy & set(sys.modules)))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT, timeout=60, check=True
    )
    print(done.stdout)
    assert done.stdout.splitlines()[-1] == "[]"


def functions() -> list[tuple[Path, ast.FunctionDef | ast.AsyncFunctionDef]]:
    kinds = (ast.FunctionDef, ast.AsyncFunctionDef)
    return [(path, node) for path in SOURCES for node in ast.walk(tree_of(path)) if isinstance(node, kinds)]


def test_files_and_functions_stay_small() -> None:
    long_files = [name_of(path) for path in SOURCES if path.read_text("utf-8").count("\n") > MAX_FILE_LINES]
    long_functions = [
        f"{name_of(path)}.{node.name}"
        for path, node in functions()
        if node.end_lineno - node.lineno + 1 > MAX_FUNCTION_LINES
    ]
    wide = [
        f"{name_of(path)}.{node.name}" for path, node in functions()
        if len(node.args.posonlyargs) + len(node.args.args) + len(node.args.kwonlyargs) > MAX_PARAMETERS
    ]  # fmt: skip
    assert (long_files, long_functions, wide) == ([], [], [])


def test_public_functions_are_annotated_and_documented() -> None:
    """What can be imported needs words; a method that fulfils a known contract (`forward`, `read`) does not."""
    bare = []
    for path in SOURCES:
        shown = [node for node in tree_of(path).body if not getattr(node, "name", "_").startswith("_")]
        bare += [f"{name_of(path)}:{node.lineno} {node.name}" for node in shown if ast.get_docstring(node) is None]
        methods = [node for owner in shown if isinstance(owner, ast.ClassDef) for node in owner.body]
        for node in [*shown, *methods]:
            if isinstance(node, ast.FunctionDef) and not node.name.startswith("_"):
                arguments = [*node.args.args, *node.args.kwonlyargs]
                untyped = [
                    item.arg for item in arguments if item.annotation is None and item.arg not in ("self", "cls")
                ]
                if node.returns is None or untyped:
                    bare.append(f"{name_of(path)}:{node.lineno} {node.name} {untyped}")
    assert bare == []


def test_modules_say_what_they_do() -> None:
    silent = [name_of(path) for path in SOURCES if tree_of(path).body and ast.get_docstring(tree_of(path)) is None]
    assert silent == []


def test_what_must_not_exist() -> None:
    found = []
    for path in SOURCES:
        place = path.relative_to(ROOT)
        text = path.read_text(encoding="utf-8")
        for node in ast.walk(tree_of(path)):
            if isinstance(node, ast.ExceptHandler):
                names = (
                    {item.id for item in ast.walk(node.type) if isinstance(item, ast.Name)} if node.type else {"bare"}
                )
                reraises = any(isinstance(item, ast.Raise) and item.exc is None for item in ast.walk(node))
                if names & {"bare", "Exception"} or ("BaseException" in names and not reraises):
                    found.append(f"{place}:{node.lineno} blanket except")
            if isinstance(node, ast.Call) and ast.unparse(node.func) in {
                "os.chdir",
                "sys.path.insert",
                "sys.path.append",
            }:
                found.append(f"{place}:{node.lineno} {ast.unparse(node.func)}")
            if (
                isinstance(node, ast.Call)
                and ast.unparse(node.func) == "print"
                and unit_of(f"rvc_spark.{path.stem}") != "cli"
            ):
                found.append(f"{place}:{node.lineno} print")
            targets = node.targets if isinstance(node, ast.Assign) else []
            if any(ast.unparse(target).startswith("os.environ") for target in targets):
                found.append(f"{place}:{node.lineno} writes os.environ")
        if re.search(r"os\.(environ|getenv)", text) and path.stem != "rvc_config":
            found.append(f"{place} reads the environment")
        if path.stem in {"common", "core", "helpers", "misc"} or (
            path.stem == "utils" and path.parent.name != "processing"
        ):
            found.append(f"{place} is a dumping ground by its name")
    assert found == []
