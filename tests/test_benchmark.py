"""The benchmark of conversion, on tiny networks: what it measures, what it says, what it compares and refuses."""

from __future__ import annotations

import io
import json
import sys
import time
from copy import deepcopy
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from rvc_spark import benchmark, benchmark_against, benchmark_distance, benchmark_worker, cli_benchmark
from rvc_spark.benchmark import BenchmarkPlan, call_limit, load_request, percentile, run_benchmark
from rvc_spark.benchmark_against import Rival, compare_sounds, run_against
from rvc_spark.benchmark_compare import Thresholds, compare_reports, different_machines, read_report
from rvc_spark.benchmark_distance import compare_pitch, run_distances
from rvc_spark.benchmark_machine import machine, peak_bytes
from rvc_spark.benchmark_models import FULL_SIZE, TINY_SIZE, make_models, speech
from rvc_spark.benchmark_picture import draw_report
from rvc_spark.benchmark_process import MARK, Companion
from rvc_spark.benchmark_roofline import decoder_flops
from rvc_spark.benchmark_stages import STAGES, StageClock
from rvc_spark.cli import main
from rvc_spark.errors import BenchmarkError, ConfigError, OutputError
from rvc_spark.infer.random_voice import VoiceRecipe, config_of
from rvc_spark.infer.voice_layout import Traits, parse_config
from rvc_spark.rvc_config import has_bf16

MACHINE = {"processor": "a", "threads": 2, "gpu": None, "python": "3.11", "packages": {}, "load": 0.1, "cores": 2}
ROW = {
    "device": "cpu", "precision": "fp32", "precision_asked": "fp32", "f0_method": "pm", "seconds": 3.0,
    "warm_least": 1.0, "warm_seconds": 1.1, "load_seconds": 0.5, "first_seconds": 1.5, "peak_bytes": 500_000_000,
    "device_peak_bytes": None, "stages": dict.fromkeys(STAGES, 0.2),
}  # fmt: skip
REPORT = {"format": 1, "machine": MACHINE, "sizes": "full", "rows": [ROW], "streaming": [], "loading": []}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("benchmark")


@pytest.fixture(scope="module")
def models(folder):
    return make_models(folder, TINY_SIZE)


@pytest.fixture(scope="module")
def worker(models):
    """The worker without its process, with the tiny voice loaded."""
    worker = benchmark_worker.Worker()
    loaded = worker.load(load_request(models, 1, "cpu", "fp32"))
    assert loaded["precision"] == "fp32" and loaded["load_seconds"] > 0 and "cpu" in loaded["device"]
    return worker


class InProcess:
    """Stands in for a Companion: the same requests to a worker of this process."""

    def __init__(self, worker: benchmark_worker.Worker) -> None:
        self.worker = worker
        self.asked: list[str] = []

    def __enter__(self) -> InProcess:
        return self

    def __exit__(self, *_: object) -> None:
        pass

    def ask(self, request: dict, seconds: float) -> dict:
        self.asked.append(request["do"])
        request = json.loads(json.dumps(request))
        return json.loads(json.dumps(getattr(self.worker, request["do"])(request)))


def job(folder, seconds: float = 0.6, **changes) -> dict:
    return {"sound": str(speech(seconds, folder)), "f0_method": "pm", **changes}


# --- what is measured ------------------------------------------------------------------------------------------------


def test_a_conversion_is_the_one_everybody_gets(worker, folder, tmp_path):
    found = worker.convert(job(folder, keep=str(tmp_path / "kept.npy")))
    assert found["samples"] == 0.6 * 40_000 == len(np.load(tmp_path / "kept.npy")) and found["rate"] == 40_000
    assert found["seconds"] > 0 and found["peak_bytes"] > 1 << 20 and found["device_peak_bytes"] is None
    assert found["engines"]["pitch"].startswith("pm")


def test_stages_are_all_of_the_time(worker, folder):
    found = worker.stages(job(folder))
    assert tuple(found["stages"]) == STAGES and all(seconds > 0 for seconds in found["stages"].values())
    assert sum(found["stages"].values()) == pytest.approx(found["seconds"])
    engines = worker._vc.engines()
    assert "hidden" not in vars(engines.synthesizer.network.enc_p), "the networks are as they were"


def test_without_noise_a_conversion_repeats_itself_whatever_the_seed(worker, folder, tmp_path):
    sounds = []
    for seed in (0, 1):
        worker.silent(job(folder, seed=seed, keep=str(tmp_path / "silent.npy")))
        sounds.append(np.load(tmp_path / "silent.npy"))
    np.testing.assert_array_equal(*sounds)


def test_the_vocoder_is_held_against_a_matrix_product(worker, folder):
    found = worker.roofline(job(folder))
    assert found["peak_flops"] > 1e8 and found["decoder_flops"] > 1e6
    synthesizer, counted = worker._vc.engines().synthesizer, []
    for layer in synthesizer.network.dec.modules():
        if isinstance(layer, nn.Conv1d | nn.ConvTranspose1d) and layer is not synthesizer.network.dec.cond:
            layer.register_forward_hook(
                lambda layer, given, made: counted.append(
                    2 * layer.weight.numel() * (given[0] if isinstance(layer, nn.ConvTranspose1d) else made).shape[2]
                )
            )
    net, frames = synthesizer.net, 20
    inputs = torch.zeros(1, net.inter_channels, frames), torch.zeros(1, 1, frames * net.samples_per_frame)
    synthesizer.network.dec(*inputs, torch.zeros(1, net.gin_channels, 1))
    seconds = frames * net.samples_per_frame / net.sample_rate
    assert found["decoder_flops"] == pytest.approx(sum(counted) / seconds)
    recipe = VoiceRecipe(speakers=FULL_SIZE.speakers, sizes=FULL_SIZE.voice)
    full = parse_config(config_of(recipe), Traits(768, FULL_SIZE.speakers, has_f0=True, vocoder="HiFi-GAN"))
    stages = ((512, 256, 16, 1_000), (256, 128, 16, 10_000), (128, 64, 4, 20_000), (64, 32, 4, 40_000))  # wide, narrow
    branches = sum(2 * narrow**2 * 6 * (3 + 7 + 11) * rate for _, narrow, _, rate in stages)
    ups = sum(2 * wide * narrow * kernel * rate / (10 if rate < 20_000 else 2) for wide, narrow, kernel, rate in stages)
    assert decoder_flops(full) == pytest.approx(branches + ups, rel=0.005) and round(branches / 1e9) == 89


def test_many_clips_are_timed(worker, folder):
    found = worker.many(job(folder, count=2))
    assert found["clips"] == 2 and found["one_by_one_seconds"] > 0 and found["together_seconds"] > 0
    assert found["device_peak_bytes"] is None
    assert tuple(found["stages"]) == STAGES and all(seconds > 0 for seconds in found["stages"].values())


def test_every_block_of_a_stream_is_timed(worker, folder):
    found = worker.live(job(folder, seconds=1.5, block=0.25))
    assert 5 <= len(found["seconds"]) <= 8 and min(found["seconds"]) > 0
    assert found["delay_seconds"] > 0.25


def test_switching_voices(worker, models):
    found = worker.switch({"voices": [str(models.voice), str(models.other)], "rounds": 2})
    assert len(found["warm_seconds"]) == 3 and min(found["warm_seconds"]) > 0
    assert worker._vc.voice.path == models.voice


def test_a_report_has_everything(worker, folder, models, monkeypatch):
    companion = InProcess(worker)
    monkeypatch.setattr(benchmark, "ours", lambda threads: companion)
    monkeypatch.setattr(benchmark, "MANY_CLIPS", 2)
    plan = BenchmarkPlan(folder, (0.3, 0.6), f0_methods=("pm",), runs=2, sizes=TINY_SIZE, many=True)
    lines: list[str] = []
    report = run_benchmark(plan, lines.append)
    assert [row["seconds"] for row in report["rows"]] == [0.3, 0.6] and report["rows"][0]["runs"] == 2
    for row in report["rows"]:
        assert row["first_seconds"] > 0 and row["rtf"] == pytest.approx(row["warm_seconds"] / row["seconds"])
    assert report["streaming"][0]["p99_seconds"] >= report["streaming"][0]["p50_seconds"] > 0
    assert report["loading"][0]["switch_warm_seconds"] > 0
    assert companion.asked.count("load") == 5 and companion.asked.count("convert") == 6
    assert "threads" in lines[0] and any("RTF" in line for line in lines) and any("p99" in line for line in lines)
    assert report["many"][0]["ratio"] > 0 and any("one by one" in line for line in lines)
    assert all(row["decoder_share"] > 0 for row in report["rows"])
    json.dumps(report, allow_nan=False)
    assert compare_reports(report, report, Thresholds()), "and can be compared"


def test_no_more_warm_calls_than_patience(worker, folder, models, monkeypatch):
    companion = InProcess(worker)
    monkeypatch.setattr(benchmark, "ours", lambda threads: companion)
    plan = BenchmarkPlan(
        folder, (0.3,), f0_methods=("pm",), runs=50, patience=0.0, sizes=TINY_SIZE, streaming=False, loading=False
    )
    assert run_benchmark(plan, lambda _: None)["rows"][0]["runs"] == 1


def test_the_whole_command_in_processes_of_its_own(folder, tmp_path, capsys):
    target = tmp_path / "report.json"
    words = ["benchmark", "--size", "tiny", "--folder", str(folder), "--seconds", "0.3", "--f0-method", "pm", "--runs"]
    words += ["1", "--threads", "1", "--no-streaming", "--no-loading", "--no-distances", "-o", str(target), "--json"]
    assert main(words) == 0
    out, err = capsys.readouterr()
    report = read_report(target)
    assert json.loads(out) == report and "RTF" in err
    assert report["machine"]["threads"] == 1 and report["rows"][0]["import_seconds"] > 0
    assert main(["benchmark", "--compare", str(target), str(target)]) == 0


@pytest.mark.parametrize("changes", [{"seconds": (0.0,)}, {"seconds": (1e9,)}, {"threads": 0}, {"runs": 0}])
def test_plans_that_make_no_sense(folder, changes):
    with pytest.raises(ConfigError, match="outside"):
        BenchmarkPlan(folder, **changes)


def test_percentiles():
    values = [float(number) for number in range(1, 101)]
    assert [percentile(values[::-1], share) for share in (0, 50, 99, 100)] == [1, 50, 99, 100]
    assert percentile([3.0], 99) == 3.0 and call_limit(300) > call_limit(1)


def test_a_clock_counts_work_and_not_waiting():
    clock = StageClock("cpu")

    def steps():
        yield 1
        yield 2

    counted = clock.timed_steps("work", steps)()
    next(counted)
    before = clock.seconds["work"]
    time.sleep(0.02)
    assert list(counted) == [2] and clock.seconds["work"] - before < 0.02


# --- what it is measured with -----------------------------------------------------------------------------------------


def test_the_networks_are_made_once_and_are_of_full_size(folder, models):
    stamps = [path.stat().st_mtime_ns for path in (models.voice, models.index, models.rmvpe / "rmvpe.pt")]
    assert make_models(folder, TINY_SIZE) == models
    assert stamps == [path.stat().st_mtime_ns for path in (models.voice, models.index, models.rmvpe / "rmvpe.pt")]
    recipe = VoiceRecipe(speakers=FULL_SIZE.speakers, sizes=FULL_SIZE.voice)
    known = [1025, 32, 192, 192, 768, 2, 6, 3, 0, "1", [3, 7, 11], [[1, 3, 5]] * 3, [10, 10, 2, 2], 512]
    assert config_of(recipe) == [*known, [16, 16, 4, 4], 109, 256, 40_000]
    assert (FULL_SIZE.encoder.hidden, FULL_SIZE.encoder.layers, FULL_SIZE.encoder.channels) == (768, 12, 512)


def test_a_folder_that_cannot_be_written(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(OutputError, match="cannot write"):
        make_models(tmp_path / "file", TINY_SIZE)


def test_the_machine_is_named():
    about = machine(3)
    assert about["threads"] == 3 and about["processor"] and "torch" in about["packages"]
    assert peak_bytes() > 1 << 20


# --- processes --------------------------------------------------------------------------------------------------------

ECHO = f"""
import json, sys
print("talk that is no answer", flush=True)
for line in sys.stdin:
    job = json.loads(line)
    if job["do"] == "die":
        sys.exit("last words")
    if job["do"] == "sleep":
        import time; time.sleep(60)
    print({MARK!r} + json.dumps(job), flush=True)
"""


def test_a_companion_answers_and_its_death_is_told():
    with Companion([sys.executable, "-c", ECHO], "the echo", 1) as echo:
        assert echo.ask({"do": "say", "words": "ü"}, 30) == {"do": "say", "words": "ü"}
        with pytest.raises(BenchmarkError, match="the echo: no"):
            echo.ask({"do": "say", "error": "no"}, 30)
        with pytest.raises(BenchmarkError, match="ended with code 1: last words"):
            echo.ask({"do": "die"}, 30)
        with pytest.raises(BenchmarkError, match="last words"):
            echo.ask({"do": "say"}, 30)


def test_a_companion_that_is_stuck_is_ended(monkeypatch):
    monkeypatch.setattr("rvc_spark.benchmark_process.LEAVE_SECONDS", 0.1)
    with Companion([sys.executable, "-c", ECHO], "the echo", 1) as echo:
        with pytest.raises(BenchmarkError, match="did not answer 'sleep' within"):
            echo.ask({"do": "sleep"}, 0.5)
    assert echo._process.poll() is not None


def test_the_worker_reports_what_is_refused(monkeypatch, capsys, models):
    lines = [json.dumps({**load_request(models, 1, "cpu", "fp32"), "voice": "missing.pth"})]
    monkeypatch.setattr(sys, "stdin", io.StringIO("\n".join(lines)))
    benchmark_worker.main()
    (line,) = capsys.readouterr().out.splitlines()
    assert "missing.pth" in json.loads(line.removeprefix(MARK))["error"]


# --- what a precision costs -------------------------------------------------------------------------------------------


def test_pitch_is_compared_where_both_are_voiced():
    one, other = np.array([0.0, 100.0, 100.0, 200.0]), np.array([0.0, 100.0 * 2 ** (12 / 1200), 0.0, 200.0])
    found = compare_pitch(one, other)
    assert found["f0_cents_mean"] == pytest.approx(6) and found["f0_cents_most"] == pytest.approx(12)
    assert found["voicing_differs"] == 0.25
    assert compare_pitch(np.zeros(3), np.ones(3)) == {"f0_cents_mean": 0, "f0_cents_most": 0, "voicing_differs": 1}


def test_a_precision_is_compared_with_float32(folder, models, monkeypatch):
    monkeypatch.setattr(benchmark_distance, "ours", lambda threads: InProcess(benchmark_worker.Worker()))
    plan = BenchmarkPlan(folder, (1.0,), precisions=("exact", "fast"), f0_methods=("pm",), sizes=TINY_SIZE)
    lines: list[str] = []
    rows = run_distances(plan, lines.append)
    assert [row["voice"] for row in rows] == (["random", "demo"] if has_bf16("cpu") else [])
    assert len(lines) == len(rows)
    for row in rows:
        assert row["precision"] == "bf16" and row["f0_cents_most"] == row["voicing_differs"] == 0
        assert 0 < row["log_mel_db"] < row["log_mel_db_seed"]
    assert all(row["log_mel_db"] < 0.15 for row in rows if row["voice"] == "demo"), "the trained voice sounds the same"


# --- against the reference --------------------------------------------------------------------------------------------

PIPELINE = '''
import numpy as np, torch
class Pipeline:
    def __init__(self, rate, config):
        self.rate, self.config = rate, config
    def pipeline(self, model, net_g, sid, audio, times, f0_up_key, f0_method, file_index, index_rate, if_f0, tgt_sr,
                 resample_sr, rms_mix_rate, version, protect{more}):
        features = model(torch.from_numpy(audio)[None]).last_hidden_state
        assert features.shape[2] == 768 and file_index.endswith(".index") and net_g.training is False
        level = 3277 * (1 + 0.1 * torch.randn(1).item())
        return np.full(len(audio) * self.rate // 16000, level).astype(np.int16)
'''
MODELS = """
import torch
class SynthesizerTrnMs768NSFsid(torch.nn.Module):
    def __init__(self, *config, is_half):
        super().__init__()
        self.enc_q, self.emb_g = torch.nn.Linear(1, 1), torch.nn.Embedding(config[-3], config[-2])
"""


def checkout(folder: Path, more: str = "") -> Path:
    """A folder with the layout of the reference and a pipeline that makes a steady level."""
    for place, text in (("vc/pipeline.py", PIPELINE.replace("{more}", more)), ("module/models.py", MODELS)):
        path = folder / "infer" / place
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return folder


def test_both_programs_take_turns(worker, folder, models, monkeypatch, tmp_path):
    monkeypatch.setattr(benchmark_against, "ours", lambda threads: InProcess(worker))
    plan = BenchmarkPlan(folder, (0.3,), f0_methods=("pm",), runs=2, sizes=TINY_SIZE)
    lines: list[str] = []
    place = checkout(tmp_path)
    (row,) = run_against(plan, Rival(place), lines.append)
    assert row["layout"] == "2026" and row["runs"] == 2
    assert row["ratio"] == pytest.approx(row["reference"]["warm_seconds"] / row["ours"]["warm_seconds"])
    difference = row["difference"]
    assert difference["samples"] == 0 and difference["log_mel_db"] > 1 and difference["rms_db_silent"] > -60
    assert 0 < difference["log_mel_db_seed"] < difference["log_mel_db"], "its seeds differ in level alone"
    assert "times as fast" in lines[-1]
    assert not list(place.rglob("__pycache__")), "the checkout is left as it was"


def test_a_checkout_that_cannot_run_is_named(folder, models, tmp_path, worker, monkeypatch):
    monkeypatch.setattr(benchmark_against, "ours", lambda threads: InProcess(worker))
    plan = BenchmarkPlan(folder, (0.3,), f0_methods=("pm",), runs=1, sizes=TINY_SIZE)
    with pytest.raises(BenchmarkError, match="no folder infer"):
        run_against(plan, Rival(tmp_path), lambda _: None)
    with pytest.raises(BenchmarkError, match="no Python"):
        run_against(plan, Rival(checkout(tmp_path), "/no/such/python"), lambda _: None)
    with pytest.raises(BenchmarkError, match="its pipeline wants mood, which is not known here"):
        run_against(plan, Rival(checkout(tmp_path, ", mood")), lambda _: None)
    (tmp_path / "infer" / "vc" / "pipeline.py").unlink()
    with pytest.raises(BenchmarkError, match="it has no module infer.vc.pipeline or infer.modules.vc.pipeline"):
        run_against(plan, Rival(tmp_path), lambda _: None)


def test_how_far_apart_two_sounds_are():
    random = np.random.default_rng(0)
    sound = random.standard_normal(16_000).astype(np.float32)
    other = random.standard_normal(16_000).astype(np.float32)
    same = compare_sounds((sound, sound, other), (sound, sound * np.float32(1.001)), 16_000)
    assert same["samples"] == 0 and same["log_mel_db"] == 0 < same["log_mel_db_seed"]
    assert same["rms_db_silent"] == pytest.approx(-60, abs=0.1) and same["log_mel_db_silent"] < 0.02
    assert compare_sounds((sound[:-5], sound, other), (sound, other), 16_000)["samples"] == -5


# --- comparing reports ------------------------------------------------------------------------------------------------


def changed(**figures) -> dict:
    report = deepcopy(REPORT)
    report["rows"][0].update(figures)
    return report


@pytest.mark.parametrize(("figures", "verdicts"), [
    ({}, {"same"}), ({"warm_least": 1.2}, {"worse", "same"}), ({"warm_least": 0.8}, {"better", "same"}),
    ({"warm_least": 1.05, "peak_bytes": 530_000_000}, {"same"}), ({"peak_bytes": 600_000_000}, {"worse", "same"}),
])  # fmt: skip
def test_what_counts_as_worse(figures, verdicts):
    assert {change.verdict for change in compare_reports(REPORT, changed(**figures), Thresholds())} == verdicts


def test_what_a_clock_cannot_tell_is_no_regression():
    old, new = changed(warm_least=0.010), changed(warm_least=0.025)
    assert not any(change.worse for change in compare_reports(old, new, Thresholds()))
    (change, _) = compare_reports(changed(warm_least=0.1), changed(warm_least=0.2), Thresholds(time=0.5))
    assert change.worse and change.ratio == 2 and "+100.0 %" in change.line()


def test_reports_that_do_not_compare():
    with pytest.raises(BenchmarkError, match="no figure in common"):
        compare_reports(REPORT, changed(seconds=4.0), Thresholds())
    with pytest.raises(BenchmarkError, match="full and tiny size"):
        compare_reports(REPORT, {**REPORT, "sizes": "tiny"}, Thresholds())
    with pytest.raises(ConfigError, match="outside 0 to 10"):
        Thresholds(time=-1)
    assert different_machines(REPORT, REPORT) == []
    other = {**REPORT, "machine": {**MACHINE, "threads": 8}}
    assert different_machines(REPORT, other) == ["threads: 2 -> 8"]


@pytest.mark.parametrize("text", [
    "", "no json", "[]", "{}", '{"machine": {}, "format": 99}', '{"machine": {}, "format": 1, "rows": 5}',
    '{"machine": {}, "format": 1, "rows": [5]}', "[" * 100_000,
])  # fmt: skip
def test_files_that_are_no_report(tmp_path, text):
    (tmp_path / "report.json").write_text(text)
    with pytest.raises(BenchmarkError):
        read_report(tmp_path / "report.json")
    with pytest.raises(BenchmarkError, match="cannot be read"):
        read_report(tmp_path / "missing.json")


def test_the_regression_check_ends_with_one(tmp_path, capsys):
    for name, report in (("old", REPORT), ("new", changed(warm_least=2.0))):
        (tmp_path / f"{name}.json").write_text(json.dumps(report))
    words = ["benchmark", "--compare", str(tmp_path / "old.json"), str(tmp_path / "new.json")]
    assert main(words) == 1 and "worse" in capsys.readouterr().out
    assert main([*words, "--threshold", "2"]) == 0
    assert main([*words, "--json", "--threshold", "2"]) == 0
    assert json.loads(capsys.readouterr().out.splitlines()[-1])["verdict"] == "same"


def test_what_is_measured_where_nothing_was_asked_for(monkeypatch):
    for has, names in ((True, ["exact", "fast"]), (False, ["exact"])):
        monkeypatch.setattr("rvc_spark.rvc_config.has_bf16", lambda device, has=has: has)
        assert cli_benchmark._usual_precisions("cpu") == names


def test_a_place_for_the_report_that_is_not_there(capsys):
    assert main(["benchmark", "-o", "/no/such/folder/report.json"]) == 2
    assert "is not there" in capsys.readouterr().err


# --- the picture ------------------------------------------------------------------------------------------------------


def test_the_picture(tmp_path):
    report = deepcopy(REPORT)
    report["rows"] = [{**ROW, "seconds": seconds} for seconds in (1.0, 3.0, 10.0)]
    assert draw_report(report, tmp_path / "speed.svg").stat().st_size > 1_000
    text = (tmp_path / "speed.svg").read_text()
    assert text.startswith("<?xml") and list(tmp_path.iterdir()) == [tmp_path / "speed.svg"]
    with pytest.raises(BenchmarkError, match="no clips"):
        draw_report({**report, "rows": []}, tmp_path / "empty.png")
