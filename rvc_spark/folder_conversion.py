"""Every sound of a folder into the loaded voice, into a folder of the same shape; what fails spoils nothing else."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from rvc_spark.audio import EncodeOptions
from rvc_spark.conversion import Conversion, refuse_overwriting, watermarked
from rvc_spark.errors import OutputError, RvcSparkError
from rvc_spark.infer.settings import ConversionSettings
from rvc_spark.rvc_modules import VC

SOUND_SUFFIXES = frozenset(
    ".wav .flac .ogg .oga .opus .mp3 .m4a .aac .aif .aiff .wma .mp4 .mkv .mov .webm .avi .w64 .caf .au".split()
)


@dataclass(frozen=True)
class BatchItem:
    """One file of a folder: converted to `path`, or left with `error`."""

    source: Path
    path: Path | None
    conversion: Conversion | None
    error: RvcSparkError | None


def batch_targets(sources: Sequence[Path], folder: Path, output: Path, suffix: str) -> list[Path]:
    """Where each source of a folder goes. `a.wav` and `a.mp3` become `a_wav.flac` and `a_mp3.flac`, not one file."""
    plain = [output / source.relative_to(folder).with_suffix(suffix) for source in sources]
    folded = [str(path).casefold() for path in plain]  # on a case-blind disk A.wav and a.wav are one name
    targets = [
        path if folded.count(key) == 1 else path.with_name(f"{source.stem}_{source.suffix[1:]}{suffix}")
        for source, path, key in zip(sources, plain, folded, strict=True)
    ]
    taken: set[str] = set()
    for number, target in enumerate(targets):
        count = 1
        while str(targets[number]).casefold() in taken:
            count += 1
            targets[number] = target.with_name(f"{target.stem}_{count}{suffix}")
        taken.add(str(targets[number]).casefold())
    return targets


def converted_folder(
    vc: VC, folder: Path, output: Path, settings: ConversionSettings, format: str, options: EncodeOptions | None
) -> Iterator[BatchItem]:
    """The files below `folder`, in the order of their names. See `rvc_init.convert_folder`."""
    if output.exists() and not output.is_dir():
        raise OutputError(f"{output} is not a folder", "Name a folder for the results.")
    sources = sorted(
        path for path in folder.rglob("*") if path.suffix.lower() in SOUND_SUFFIXES and path.is_file()
        and not (output != folder and path.is_relative_to(output))
    )  # fmt: skip
    if not sources:
        raise OutputError(f"{folder} holds no sound files", f"Known suffixes: {' '.join(sorted(SOUND_SUFFIXES))}.")
    pairs = list(zip(sources, batch_targets(sources, folder, output, f".{format}"), strict=True))
    options = watermarked(options, vc.config.watermark)
    refused = {source: why for source, target in pairs if (why := _refused_target(source, target, sources, options))}
    results = vc.convert_many((source for source in sources if source not in refused), settings)
    for source, target in pairs:
        result = refused.get(source) or next(results)
        if isinstance(result, Conversion):
            try:
                target.parent.mkdir(parents=True, exist_ok=True)
                result.save(target, options)
            except RvcSparkError as error:
                result = error
        done = isinstance(result, Conversion)
        yield BatchItem(source, target if done else None, result if done else None, None if done else result)


def _refused_target(
    source: Path, target: Path, sources: Sequence[Path], options: EncodeOptions
) -> RvcSparkError | None:
    """Why a result cannot be written there, as far as that is known before the work."""
    if target in sources:
        return OutputError(f"{target} is one of the sources", "Name another folder for the results.")
    try:
        refuse_overwriting(source, target)
        options.resolved(target)
    except RvcSparkError as error:
        return error
    return None
