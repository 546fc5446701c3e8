"""rvc-spark export: a voice, and the content encoder it hears with, as ONNX files for programs without torch."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from rvc_spark.cli_output import say


def add_export(commands: Any) -> None:
    """The `export` branch of the command line."""
    export = commands.add_parser("export", help="a voice -> ONNX, compared with torch before it is kept")
    export.add_argument("voice", help="name of a voice (see `rvc-spark voices`), or path of a .pth")
    export.add_argument("-o", "--output", type=Path, help="file to write (default: NAME.onnx)")
    export.add_argument("--encoder", type=Path, metavar="FILE", help="write the content encoder of this voice as well")
    export.add_argument("--json", action="store_true", help="print one JSON object per file and nothing else")
    export.set_defaults(run=command_export)


def command_export(arguments: argparse.Namespace) -> int:
    """Write, run in both runtimes, report."""
    from rvc_spark.infer.checkpoint import read_checkpoint
    from rvc_spark.infer.onnx_export import export_voice
    from rvc_spark.infer.synthesizer import load_synthesizer
    from rvc_spark.infer.voice_files import find_voice
    from rvc_spark.rvc_config import RVCConfig
    from rvc_spark.rvc_modules import VC

    config = RVCConfig()
    path = find_voice(arguments.voice, [config.weights_dir, config.demo_dir])
    synthesizer = load_synthesizer(read_checkpoint(path))
    target = arguments.output or Path(f"{path.stem}.onnx")
    _tell(export_voice(synthesizer, target), "voice", arguments.json)
    if arguments.encoder is not None:
        from rvc_spark.infer.content import load_content_encoder
        from rvc_spark.infer.onnx_export import export_encoder

        encoder = load_content_encoder(VC(config).encoder_path(path))
        _tell(export_encoder(encoder, synthesizer.info.version, arguments.encoder), "encoder", arguments.json)
    return 0


def _tell(exported: Any, what: str, as_json: bool) -> None:
    report = {
        "what": what, "path": str(exported.path), "bytes": exported.bytes, "difference": exported.difference,
        "inputs": {name: list(shape) for name, shape in exported.inputs.items()},
        "outputs": {name: list(shape) for name, shape in exported.outputs.items()},
    }  # fmt: skip
    shapes = [f"  {name} {list(shape)}" for name, shape in (*exported.inputs.items(), *exported.outputs.items())]
    size = f"{exported.bytes / 1e6:.1f} MB"
    head = f"{exported.path}: {size}, differs from torch by {exported.difference:.1e} of the peak"
    say(report, as_json, [head, *shapes])
