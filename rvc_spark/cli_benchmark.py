"""rvc-spark benchmark: how fast conversion is here, beside the reference, and compared with an earlier report."""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any, get_args

from rich.markup import escape

from rvc_spark.cli_output import errors, say
from rvc_spark.errors import ConfigError
from rvc_spark.rvc_config import RVCConfig

PRECISIONS = tuple(name for name in get_args(RVCConfig.model_fields["precision"].annotation) if name != "auto")
PARTS = ("rows", "many", "streaming", "loading", "distances")  # lists of a report
ON_CPU, ON_CUDA = ("exact", "fast"), ("fp32", "fp16", "bf16")  # measured where nothing else was asked for


def add_benchmark(commands: Any) -> None:
    """The `benchmark` branch of the command line."""
    words = "how fast conversion is on this machine: stages, memory, streaming, loading"
    bench = commands.add_parser("benchmark", help=words)
    bench.add_argument("--seconds", nargs="+", type=float, help="lengths of the clips (default: 1 3 10 60 300)")
    bench.add_argument("--device", nargs="+", help="cpu, cuda (default: both where there are both)")
    bench.add_argument("--precision", nargs="+", choices=PRECISIONS,
                       help="default: exact and fast on cpu; fp32, fp16 and bf16 on cuda")  # fmt: skip
    bench.add_argument("--f0-method", nargs="+", default=["rmvpe"], help="default: rmvpe")
    bench.add_argument("--threads", type=int, help="of torch and OpenMP (default: all cores)")
    bench.add_argument("--runs", type=int, default=5, help="warm calls per clip, at most (default: 5)")
    bench.add_argument("--patience", type=float, default=20, help="seconds after which no further one is begun")
    bench.add_argument("--size", choices=("full", "tiny"), default="full", help="of the networks that are made")
    bench.add_argument("--folder", type=Path, help="where the networks are made and kept (default: TEMP/benchmark)")
    bench.add_argument("--many", action="store_true", default=None,
                       help="32 clips one by one and at once (default: on cuda)")  # fmt: skip
    bench.add_argument("--no-streaming", action="store_true", help="leave the stream out")
    bench.add_argument("--no-loading", action="store_true", help="leave loading and switching out")
    bench.add_argument("--no-distances", action="store_true", help="leave out what a faster precision costs in sound")
    bench.add_argument("--against", type=Path, metavar="DIR", help="a checkout of the reference, measured by turns")
    bench.add_argument("--python", help="the Python the reference runs in (default: this one)")
    bench.add_argument("--compare", nargs=2, type=Path, metavar=("OLD", "NEW"), help="two reports; measures nothing")
    bench.add_argument("--threshold", type=float, default=0.1, help="share by which worse is worse (default: 0.1)")
    bench.add_argument("-o", "--output", type=Path, help="file for the JSON report")
    bench.add_argument("--plot", type=Path, help="file for the picture: png, svg or pdf")
    bench.add_argument("--json", action="store_true", help="print the report as one JSON object and nothing else")
    bench.set_defaults(run=command_benchmark)


def command_benchmark(arguments: argparse.Namespace) -> int:
    """Measure, or compare two measurements."""
    if arguments.compare:
        return _compare(arguments)
    from rvc_spark.benchmark import run_benchmark
    from rvc_spark.benchmark_against import run_against
    from rvc_spark.benchmark_distance import run_distances

    for path in (arguments.output, arguments.plot):
        if path is not None and not path.resolve().parent.is_dir():
            raise ConfigError(f"the folder of {path} is not there", "Make it first, or name another file.")
    plans, report = _plans(arguments), {}

    def tell(line: str) -> None:
        errors.print(escape(line), soft_wrap=True)

    for plan in plans:
        if arguments.against is not None:
            from rvc_spark.benchmark_against import Rival
            from rvc_spark.benchmark_machine import machine

            rows = run_against(plan, Rival(arguments.against, arguments.python), tell)
            report = report or {"machine": machine(plan.threads), "against": []}
            report["against"] += rows
        else:
            found = run_benchmark(plan, tell)
            found["distances"] = [] if arguments.no_distances else run_distances(plan, tell)
            report = report or {**found, **{part: [] for part in PARTS}}
            for part in PARTS:
                report[part] += found[part]
    _deliver(report, arguments)
    return 0


def _plans(arguments: argparse.Namespace) -> list[Any]:
    """One plan per device, because each device has precisions of its own."""
    import os

    import torch

    from rvc_spark.benchmark import LENGTHS, BenchmarkPlan
    from rvc_spark.benchmark_models import SIZES, default_folder

    lengths = arguments.seconds or ((3.0, 60.0) if arguments.against else LENGTHS)
    devices = arguments.device or (["cpu", "cuda"] if torch.cuda.is_available() else ["cpu"])
    return [
        BenchmarkPlan(
            folder=(arguments.folder or default_folder()).resolve(), seconds=tuple(lengths), devices=(device,),
            precisions=tuple(arguments.precision or _usual_precisions(device)),
            f0_methods=tuple(arguments.f0_method), threads=arguments.threads or os.cpu_count() or 1,
            runs=arguments.runs, patience=arguments.patience, sizes=SIZES[arguments.size],
            streaming=not arguments.no_streaming, loading=not arguments.no_loading, many=arguments.many,
        )
        for device in devices
    ]  # fmt: skip


def _usual_precisions(device: str) -> list[str]:
    """Those that differ on a device, so that nothing is measured twice where fast is no faster."""
    found: dict[str, str] = {}
    for name in ON_CUDA if device.startswith("cuda") else ON_CPU:
        found.setdefault(RVCConfig(device=device, precision=name).precision_choice().value, name)
    return list(found.values())


def _deliver(report: dict[str, Any], arguments: argparse.Namespace) -> None:
    from rvc_spark.jobs.batch_store import write_whole

    lines = []
    if arguments.output is not None:
        write_whole(arguments.output, json.dumps(report, indent=1).encode())
        lines.append(f"report {arguments.output}")
    if arguments.plot is not None and "rows" in report:
        from rvc_spark.benchmark_picture import draw_report

        lines.append(f"picture {draw_report(report, arguments.plot)}")
    say(report, arguments.json, lines)


def _compare(arguments: argparse.Namespace) -> int:
    """0 when nothing became worse, else 1."""
    from rvc_spark.benchmark_compare import Thresholds, compare_reports, different_machines, read_report

    old, new = map(read_report, arguments.compare)
    changes = compare_reports(old, new, Thresholds(arguments.threshold, arguments.threshold))
    for difference in different_machines(old, new):
        errors.print(escape(f"not the same machine: {difference}"), soft_wrap=True)
    for change in changes:
        told = {"place": change.place, "metric": change.metric, "old": change.old, "new": change.new,
                "verdict": change.verdict}  # fmt: skip
        say(told, arguments.json, [change.line()])
    return 1 if any(change.worse for change in changes) else 0
